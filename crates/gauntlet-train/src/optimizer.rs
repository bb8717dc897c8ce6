//! SGD and Adam over all parameters of a module, with state that is named by parameter path.
//!
//! burn's `ModuleOptimizer` keys its state by random parameter ids and revives it on the process's default device, which in
//! a binary with several backends need not be the one the run is on (or exist at all). State by path, on the parameters'
//! own device, is what makes a checkpoint readable and a resumed run exact.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};

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
        let mut update = Update {
            optimizer: self,
            gradients,
            rate,
            path: Vec::new(),
        };
        model.map(&mut update)
    }

    /// Everything it remembers, by name: `first/PATH`, `second/PATH`, and `time/PATH` as an integer.
    pub fn state(&self) -> (BTreeMap<String, TensorData>, BTreeMap<String, u64>) {
        let mut tensors = BTreeMap::new();
        let mut times = BTreeMap::new();
        for (path, slots) in &self.state {
            if let Some(first) = &slots.first {
                tensors.insert(format!("first/{path}"), first.to_data());
            }
            if let Some(second) = &slots.second {
                tensors.insert(format!("second/{path}"), second.to_data());
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

    /// The update direction of one flattened parameter.
    fn direction(
        &mut self,
        path: &str,
        value: Tensor<1>,
        mut gradient: Tensor<1>,
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
                if weight_decay != 0.0 && (decay_norm_and_bias || decays(path)) {
                    gradient = gradient + value.clone().mul_scalar(weight_decay);
                }
                if momentum == 0.0 {
                    return value - gradient.mul_scalar(rate);
                }
                // PyTorch's form: the first velocity is the gradient itself, no dampening.
                let velocity = match slots.first.take() {
                    Some(velocity) => velocity.mul_scalar(momentum) + gradient.clone(),
                    None => gradient.clone(),
                };
                let direction = if nesterov {
                    velocity.clone().mul_scalar(momentum) + gradient
                } else {
                    velocity.clone()
                };
                slots.first = Some(velocity);
                value - direction.mul_scalar(rate)
            }
            OptimizerConfig::Adam {
                betas,
                epsilon,
                weight_decay,
                decay_norm_and_bias,
            } => {
                if weight_decay != 0.0 && (decay_norm_and_bias || decays(path)) {
                    gradient = gradient + value.clone().mul_scalar(weight_decay);
                }
                value - adam(slots, gradient, betas, epsilon).mul_scalar(rate)
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
                value.mul_scalar(keep) - adam(slots, gradient, betas, epsilon).mul_scalar(rate)
            }
        }
    }
}

/// Adam's direction (Kingma & Ba 2015, algorithm 1) with bias correction.
fn adam(slots: &mut Slots, gradient: Tensor<1>, betas: [f32; 2], epsilon: f32) -> Tensor<1> {
    let [beta1, beta2] = betas.map(f64::from);
    let blend = |old: Option<Tensor<1>>, new: Tensor<1>, beta: f64| match old {
        Some(old) => old.mul_scalar(beta) + new.mul_scalar(1.0 - beta),
        None => new.mul_scalar(1.0 - beta),
    };
    let first = blend(slots.first.take(), gradient.clone(), beta1);
    let second = blend(slots.second.take(), gradient.square(), beta2);
    slots.first = Some(first.clone());
    slots.second = Some(second.clone());
    let time = slots.time as f64;
    let denominator = second
        .div_scalar(1.0 - beta2.powf(time))
        .sqrt()
        .add_scalar(epsilon);
    first.div_scalar(1.0 - beta1.powf(time)) / denominator
}

/// Whether weight decay touches this parameter when BatchNorm and biases are exempt.
fn decays(path: &str) -> bool {
    !matches!(path.rsplit('.').next(), Some("bias" | "gamma" | "beta"))
}

struct Update<'a> {
    optimizer: &'a mut Optimizer,
    gradients: GradientsParams,
    rate: f64,
    path: Vec<String>,
}

impl ModuleMapper for Update<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, value, mapper) = param.consume();
        let Some(gradient) = self.gradients.remove::<D>(id) else {
            return Param::from_mapped_value(id, value, mapper);
        };
        let shape = value.dims();
        let tracked = value.is_require_grad();
        let flat = |tensor: Tensor<D>| tensor.reshape([shape.iter().product::<usize>()]);
        let path = self.path.join(".");
        let moved = self
            .optimizer
            .direction(&path, flat(value.inner()), flat(gradient), self.rate);
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
    // `sum_dim`, not `sum`: the latter may use float atomics, and the same run twice must be the same run.
    let norm = Tensor::cat(norms.sums, 0).sum_dim(0).sqrt();
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
            self.sums
                .push(gradient.flatten::<1>(0, D - 1).square().sum_dim(0));
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
