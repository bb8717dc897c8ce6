use burn::tensor::{Int, Tensor};
use gauntlet_kernels::perturb::{l2_step, linf_step};
use gauntlet_models::Classifier;

use crate::{Attack, AttackLoss, Noise, Norm, ThreatModel, input_gradient};

/// Fast gradient sign method: one step of size eps from the clean input (Goodfellow et al. 2015, section 4). In L2, one step
/// of length eps along the gradient.
#[derive(Clone, Debug)]
pub struct Fgsm {
    /// What the attacker may do.
    pub threat: ThreatModel,
}

impl<const D: usize> Attack<D> for Fgsm {
    fn perturb(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        _noise: &Noise,
    ) -> Tensor<D> {
        let (gradient, ..) = input_gradient(model, x.clone(), y, AttackLoss::CrossEntropy);
        self.threat
            .step(x.clone(), x, gradient, self.threat.eps.value())
    }

    fn name(&self) -> String {
        "FGSM".to_owned()
    }
}

impl ThreatModel {
    /// One ascent step of length `step_size` in this norm from `x`, projected on what is legal around `x0`.
    pub fn step<const D: usize>(
        &self,
        x: Tensor<D>,
        x0: Tensor<D>,
        gradient: Tensor<D>,
        step_size: f32,
    ) -> Tensor<D> {
        let eps = self.eps.value();
        match self.norm {
            Norm::Linf => linf_step(x, x0, gradient, step_size, eps, self.bounds),
            Norm::L2 => l2_step(x, x0, gradient, step_size, eps, self.bounds),
            Norm::L1 | Norm::L0 => unimplemented!("steps in {}", self.norm),
        }
    }
}
