use burn::tensor::{Int, Tensor};
use gauntlet_kernels::perturb::{l1_step, l2_step, linf_step};
use gauntlet_models::Classifier;

use crate::gradient::input_gradient_of;
use crate::{Attack, AttackLoss, Goal, Noise, Norm, ThreatModel};

/// Fast gradient sign method: one step of size eps from the clean input (Goodfellow et al. 2015, section 4). In L2, one step
/// of length eps along the gradient. In L1, the steepest step: the whole of eps on the value with the largest gradient, what it
/// has no room for on the next.
///
/// # Panics
/// `perturb` panics in L0, which has no gradient step.
#[derive(Clone, Debug)]
pub struct Fgsm {
    /// What the attacker may do: L∞, L2 or L1.
    pub threat: ThreatModel,
    /// What the attacker wants.
    pub goal: Goal,
}

impl Fgsm {
    /// Untargeted.
    pub fn new(threat: ThreatModel) -> Self {
        Self {
            threat,
            goal: Goal::Untargeted,
        }
    }
}

impl<const D: usize> Attack<D> for Fgsm {
    fn perturb(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        _noise: &Noise,
    ) -> Tensor<D> {
        if x.dims().contains(&0) {
            return x;
        }
        let (gradient, ..) = input_gradient_of(model, x.clone(), |logits| {
            self.goal.loss(AttackLoss::CrossEntropy, logits, y)
        });
        let eps = self.threat.eps.value();
        let result = self.threat.step(x.clone(), x.clone(), gradient, eps, 0.0);
        debug_assert_eq!(self.threat.verify(&x, &result), Ok(()));
        result
    }

    fn name(&self) -> String {
        "FGSM".to_owned()
    }
}

impl ThreatModel {
    /// One ascent step of length `step_size` in this norm from `x`, projected on what is legal around `x0`. In L1 it moves a
    /// share of `sparsity` of the values, at least one.
    ///
    /// # Panics
    /// In L0.
    pub fn step<const D: usize>(
        &self,
        x: Tensor<D>,
        x0: Tensor<D>,
        gradient: Tensor<D>,
        step_size: f32,
        sparsity: f32,
    ) -> Tensor<D> {
        let (eps, bounds) = (self.eps.value(), self.bounds);
        match self.norm {
            Norm::Linf => linf_step(x, x0, gradient, step_size, eps, bounds),
            Norm::L2 => l2_step(x, x0, gradient, step_size, eps, bounds),
            Norm::L1 => l1_step(x, x0, gradient, step_size, sparsity, eps, bounds),
            Norm::L0 => no_gradient_step(),
        }
    }
}

/// The documented panic of gradient attacks in L0.
pub(crate) fn no_gradient_step() -> ! {
    panic!("L0 has no gradient step: FGSM, PGD, APGD and their kin work in linf, l2 and l1")
}
