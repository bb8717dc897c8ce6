//! SGD and Adam over all parameters of a module, with state that is named by parameter path.
//!
//! burn's `ModuleOptimizer` keys its state by random parameter ids and revives it on the process's default device, which in
//! a binary with several backends need not be the one the run is on (or exist at all). State by path, on the parameters'
//! own device, is what makes a checkpoint readable and a resumed run exact.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};

use gauntlet_kernels::reduce::total;
use gauntlet_kernels::update::{Adam, Sgd};
use gauntlet_models::named;

use crate::OptimizerConfig;

/// First-order update of every parameter that has a gradient.
#[derive(Debug, Clone)]
pub struct Optimizer {
    config: OptimizerConfig,
    state: BTreeMap<String, Slots>,
}

/// What an optimizer remembers of one parameter, flattened.
#[derive(Debug, Clone, Default)]
struct Slots {
    /// Velocity of SGD, first moment of Adam.
    first: Option<Tensor<1>>,
    /// Second moment of Adam.
    second: Option<Tensor<1>>,
    /// Updates made.
    time: u64,
}

impl Optimizer {
    /// An optimizer that remembers nothing yet.
    pub fn new(config: OptimizerConfig) -> Self {
        Self {
            config,
            state: BTreeMap::new(),
        }
    }

    /// Moves each parameter of `model` by its gradient at learning rate `rate`.
    pub fn step<M: Module>(&mut self, rate: f64, model: M, gradients: GradientsParams) -> M {
        self.step_under("", rate, model, gradients)
    }

    /// [`step`](Self::step) for a second module: what is remembered of its parameters is kept under `prefix`.
    pub fn step_under<M: Module>(
        &mut self,
        prefix: &'static str,
        rate: f64,
        model: M,
        gradients: GradientsParams,
    ) -> M {
        let mut update = Update {
            optimizer: self,
            prefix,
            gradients,
            rate,
            path: named::Path::default(),
        };
        model.map(&mut update)
    }

    /// Everything it remembers, by name: `first/PATH`, `second/PATH`, and `time/PATH` as an integer.
    pub fn state(&self) -> (BTreeMap<String, TensorData>, BTreeMap<String, u64>) {
        let mut tensors = BTreeMap::new();
        let mut times = BTreeMap::new();
        for (path, slots) in &self.state {
            if let Some(first) = &slots.first {
                tensors.insert(format!("first/{path}"), named::owned(first.clone()));
            }
            if let Some(second) = &slots.second {
                tensors.insert(format!("second/{path}"), named::owned(second.clone()));
            }
            times.insert(path.clone(), slots.time);
        }
        (tensors, times)
    }

    /// Takes back what [`state`](Self::state) gave.
    pub fn restore(
        &mut self,
        tensors: BTreeMap<String, TensorData>,
        times: BTreeMap<String, u64>,
        device: &Device,
    ) {
        self.state = times
            .into_iter()
            .map(|(path, time)| {
                (
                    path,
                    Slots {
                        time,
                        ..Slots::default()
                    },
                )
            })
            .collect();
        for (name, data) in tensors {
            let (slot, path) = name.split_once('/').unwrap_or(("first", &name));
            let slots = self.state.entry(path.to_owned()).or_default();
            let tensor = Some(Tensor::from_data(data, device));
            if slot == "second" {
                slots.second = tensor
            } else {
                slots.first = tensor
            }
        }
    }

    /// One flattened parameter after its update.
    fn moved(
        &mut self,
        path: &str,
        weights: Tensor<1>,
        gradient: Tensor<1>,
        rate: f64,
    ) -> Tensor<1> {
        let slots = self.state.entry(path.to_owned()).or_default();
        slots.time += 1;
        match self.config {
            OptimizerConfig::Sgd {
                momentum,
                nesterov,
                weight_decay,
                decay_norm_and_bias,
            } => {
                let sgd = Sgd {
                    rate: rate as f32,
                    momentum: momentum as f32,
                    nesterov,
                    decay: if decay_norm_and_bias || decays(path) {
                        weight_decay
                    } else {
                        0.0
                    },
                };
                let (weights, velocity) = sgd.update(weights, gradient, slots.first.take());
                slots.first = velocity;
                weights
            }
            OptimizerConfig::Adam {
                betas,
                epsilon,
                weight_decay,
                decay_norm_and_bias,
            } => {
                let decay = if decay_norm_and_bias || decays(path) {
                    weight_decay
                } else {
                    0.0
                };
                slots.adam(weights, gradient, rate, betas, epsilon, (decay, 1.0))
            }
            OptimizerConfig::AdamW {
                betas,
                epsilon,
                weight_decay,
                decay_norm_and_bias,
            } => {
                let keep = if decay_norm_and_bias || decays(path) {
                    1.0 - rate * f64::from(weight_decay)
                } else {
                    1.0
                };
                slots.adam(weights, gradient, rate, betas, epsilon, (0.0, keep as f32))
            }
        }
    }
}

impl Slots {
    fn adam(
        &mut self,
        weights: Tensor<1>,
        gradient: Tensor<1>,
        rate: f64,
        betas: [f32; 2],
        epsilon: f32,
        (decay, keep): (f32, f32),
    ) -> Tensor<1> {
        let adam = Adam {
            rate: rate as f32,
            betas,
            epsilon,
            decay,
            keep,
            corrections: betas.map(|beta| (1.0 - f64::from(beta).powf(self.time as f64)) as f32),
        };
        let moments = self.first.take().zip(self.second.take());
        let (weights, [first, second]) =
            adam.update(weights, gradient, moments.map(<[Tensor<1>; 2]>::from));
        self.first = Some(first);
        self.second = Some(second);
        weights
    }
}

/// Whether weight decay touches this parameter when BatchNorm and biases are exempt.
fn decays(path: &str) -> bool {
    !matches!(path.rsplit('.').next(), Some("bias" | "gamma" | "beta"))
}

struct Update<'a> {
    optimizer: &'a mut Optimizer,
    prefix: &'static str,
    gradients: GradientsParams,
    rate: f64,
    path: named::Path,
}

impl ModuleMapper for Update<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, value, mapper) = param.consume();
        let Some(gradient) = self.gradients.remove::<D>(id) else {
            return Param::from_mapped_value(id, value, mapper);
        };
        let shape = value.dims();
        let tracked = value.is_require_grad();
        let flat = |tensor: Tensor<D>| tensor.reshape([shape.iter().product::<usize>()]);
        let path = format!("{}{}", self.prefix, self.path.name());
        let moved = self
            .optimizer
            .moved(&path, flat(value.inner()), flat(gradient), self.rate);
        let moved = Tensor::from_inner(moved.reshape(shape)).set_require_grad(tracked);
        Param::from_mapped_value(id, moved, mapper)
    }
}

/// Scales all gradients so that their joint L2 norm is at most `limit` (Pascanu et al. 2013). Stays on the device.
pub fn clip_global_norm<M: Module>(
    model: &M,
    gradients: GradientsParams,
    limit: f32,
) -> GradientsParams {
    let mut norms = SquaredNorms {
        gradients: &gradients,
        sums: Vec::new(),
    };
    model.visit(&mut norms);
    if norms.sums.is_empty() {
        return gradients;
    }
    let norm = total(Tensor::cat(norms.sums, 0)).sqrt();
    let scale = norm
        .add_scalar(1e-6)
        .recip()
        .mul_scalar(limit)
        .clamp_max(1.0);
    let mut scaled = Scale {
        gradients,
        scale,
        scaled: GradientsParams::new(),
    };
    model.visit(&mut scaled);
    scaled.scaled
}

struct SquaredNorms<'a> {
    gradients: &'a GradientsParams,
    sums: Vec<Tensor<1>>,
}

impl ModuleVisitor for SquaredNorms<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            self.sums.push(total(gradient.square()));
        }
    }
}

struct Scale {
    gradients: GradientsParams,
    scale: Tensor<1>,
    scaled: GradientsParams,
}

impl ModuleVisitor for Scale {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            let shape = gradient.dims();
            let flat = gradient.flatten::<1>(0, D - 1);
            self.scaled
                .register(param.id, (flat * self.scale.clone()).reshape(shape));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Module, Debug)]
    struct Toy {
        w: Param<Tensor<1>>,
        bias: Param<Tensor<1>>,
    }

    fn toy() -> Toy {
        let device = Device::flex().autodiff();
        let param = |values: &[f32]| Param::from_tensor(Tensor::<1>::from_floats(values, &device));
        Toy {
            w: param(&[0.5, -1.0, 2.0]),
            bias: param(&[0.25]),
        }
    }

    /// Of sum(w^3)/3 + bias * sum(w).
    fn gradients(toy: &Toy) -> GradientsParams {
        let cubes = toy.w.val().powi_scalar(3).sum_dim(0).div_scalar(3.0);
        let loss = cubes + toy.bias.val() * toy.w.val().sum_dim(0);
        GradientsParams::from_grads(loss.backward(), toy)
    }

    fn values(toy: &Toy) -> Vec<f32> {
        let host = |p: &Param<Tensor<1>>| p.val().inner().try_into_vec_as::<f32>().unwrap();
        [host(&toy.w), host(&toy.bias)].concat()
    }

    fn config(text: &str) -> OptimizerConfig {
        serde_json::from_str(text).unwrap()
    }

    fn close(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!(
                (f64::from(*a) - b).abs() < 2e-6,
                "{found:?} != {expected:?}"
            );
        }
    }

    /// PyTorch 2.13 in f64 after four steps at rate 0.1: see scripts/golden/optimizers.py.
    const GOLDEN: [(&str, [f64; 4]); 5] = [
        (
            r#"{"kind":"sgd","momentum":0}"#,
            [0.388791636, -1.620093023, 1.01572453, -0.049704456],
        ),
        (
            r#"{"kind":"sgd","weight_decay":0.01}"#,
            [0.262576118, -2.401687964, -0.288229879, -0.378283133],
        ),
        (
            r#"{"kind":"sgd","weight_decay":0.01,"nesterov":true}"#,
            [0.301661165, -3.597751939, -0.217753114, 0.05128048],
        ),
        (
            r#"{"kind":"adam","weight_decay":0.01}"#,
            [0.14426675, -1.40114998, 1.604658598, -0.137098521],
        ),
        (
            r#"{"kind":"adam-w"}"#,
            [0.143574306, -1.396549953, 1.597395811, -0.13744184],
        ),
    ];

    #[test]
    fn every_optimizer_follows_pytorch_in_one_go_and_after_a_restore() {
        for (text, expected) in GOLDEN {
            let mut optimizer = Optimizer::new(config(text));
            let mut model = toy();
            for step in 0..4 {
                if step == 2 {
                    let (tensors, times) = optimizer.state();
                    optimizer = Optimizer::new(config(text));
                    optimizer.restore(tensors, times, &Device::flex());
                }
                let gradients = gradients(&model);
                model = optimizer.step(0.1, model, gradients);
            }
            close(&values(&model), &expected);
        }
    }

    #[test]
    fn biases_are_spared_from_decay_on_request() {
        let text = r#"{"kind":"sgd","momentum":0,"weight_decay":0.5,"decay_norm_and_bias":false}"#;
        let moved = Optimizer::new(config(text)).step(1.0, toy(), GradientsParams::new());
        close(&values(&moved), &[0.5, -1.0, 2.0, 0.25]);
        let model = toy();
        let gradients = gradients(&model);
        let moved = Optimizer::new(config(text)).step(0.1, model, gradients);
        // w: 0.5 - 0.1 (0.25 + 0.25 + 0.5 * 0.5), ...; bias: 0.25 - 0.1 * 1.5, without decay.
        close(&values(&moved), &[0.425, -1.075, 1.475, 0.1]);
    }

    #[test]
    fn clipping_scales_the_joint_norm_and_leaves_small_gradients_alone() {
        let model = toy();
        // dw = w^2 + bias = [0.5, 1.25, 4.25], dbias = 1.5.
        let norm = (0.25f64 + 1.5625 + 18.0625 + 2.25).sqrt();
        let descend = |limit: f32| {
            let clipped = clip_global_norm(&model, gradients(&model), limit);
            values(&Optimizer::new(config(GOLDEN[0].0)).step(1.0, model.clone(), clipped))
        };
        let after = |scale: f64| {
            [
                0.5 - 0.5 * scale,
                -1.0 - 1.25 * scale,
                2.0 - 4.25 * scale,
                0.25 - 1.5 * scale,
            ]
        };
        close(&descend(1.0), &after(1.0 / norm));
        close(&descend(100.0), &after(1.0));
    }
}
