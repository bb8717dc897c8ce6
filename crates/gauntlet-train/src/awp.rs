//! Adversarial weight perturbation (Wu et al. 2020): the loss is minimised at weights that are moved, layer by layer, to where it
//! is higher.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use gauntlet_kernels::reduce::total;
use gauntlet_models::named;

/// `model` with each weight tensor of two dimensions or more moved by `gamma |w| g / |g|` along its gradient `g` (eq. 8 and 10,
/// one step). Biases and normalisation stay, as in the published code. Parameters keep their ids; `model` is left as it was.
pub(crate) fn perturbed<M: Module>(model: M, gradients: GradientsParams, gamma: f64) -> M {
    model.map(&mut Perturb {
        gradients,
        gamma,
        path: named::Path::default(),
    })
}

struct Perturb {
    gradients: GradientsParams,
    gamma: f64,
    path: named::Path,
}

impl ModuleMapper for Perturb {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.name();
        let gradient = self.gradients.remove::<D>(param.id);
        let (id, value, mapper) = param.consume();
        let Some(gradient) = gradient.filter(|_| D > 1 && !named::is_norm(&path)) else {
            return Param::from_mapped_value(id, value, mapper);
        };
        let tracked = value.is_require_grad();
        let plain = value.inner();
        let length = |tensor: &Tensor<D>| total(tensor.clone().square()).sqrt();
        let scale = length(&plain) / length(&gradient).add_scalar(1e-20);
        let shape = [1; D];
        let moved = plain + gradient * scale.mul_scalar(self.gamma).reshape(shape);
        let moved = Tensor::from_inner(moved).set_require_grad(tracked);
        Param::from_mapped_value(id, moved, mapper)
    }
}

/// Whether every parameter and statistic of `model` is a number; the path of the first that is not.
pub(crate) fn not_finite<M: Module>(model: &M) -> Option<String> {
    struct Sums(named::Path, Vec<String>, Vec<Tensor<1>>);
    impl ModuleVisitor for Sums {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.push(self.0.name());
            let value = param.val().inner();
            // x - x is 0 for numbers and NaN for what is none.
            self.2.push(total(value.clone() - value));
        }
    }
    let mut sums = Sums(named::Path::default(), Vec::new(), Vec::new());
    model.visit(&mut sums);
    if sums.2.is_empty() {
        return None;
    }
    let values: Vec<f32> = Tensor::cat(sums.2, 0)
        .try_into_vec_as()
        .expect("computed numbers");
    let first = values.iter().position(|value| *value != 0.0)?;
    Some(sums.1.swap_remove(first))
}
