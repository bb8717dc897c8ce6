use burn::tensor::{Int, Tensor};
use gauntlet_models::Classifier;

use crate::gradient::input_gradient_of;
use crate::{Attack, AttackLoss, Goal, Noise, ThreatModel};

/// FGSM after a random step (Tramèr et al. 2018, "Ensemble adversarial training: attacks and defenses", there RAND+FGSM):
///
/// `x' = x + alpha * sign(N(0, I))`, then `x' + (eps - alpha) * sign(gradient at x')`
///
/// The random step leaves the place where a model's loss may be curved on purpose, the data point. In L2 and L1 it goes `alpha`
/// in a random direction, and the step after it is that of [`crate::Fgsm`].
///
/// # Panics
/// `perturb` panics in L0, which has no gradient step.
#[derive(Clone, Debug)]
pub struct RFgsm {
    /// What the attacker may do: L∞, L2 or L1.
    pub threat: ThreatModel,
    /// Length of the random step in input units, in `[0, eps]`.
    pub alpha: f32,
    /// What the attacker wants.
    pub goal: Goal,
}

impl RFgsm {
    /// Untargeted, with half of eps for the random step, as in the paper.
    pub fn new(threat: ThreatModel) -> Self {
        Self {
            alpha: 0.5 * threat.eps.value(),
            threat,
            goal: Goal::Untargeted,
        }
    }
}

impl<const D: usize> Attack<D> for RFgsm {
    fn perturb(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<D> {
        if x.dims().contains(&0) {
            return x;
        }
        let (threat, eps) = (&self.threat, self.threat.eps.value());
        let alpha = self.alpha.clamp(0.0, eps);
        let direction = threat.direction(x.dims(), noise, 0, &x.device());
        let (low, high) = threat.bounds;
        let near = (x.clone() + direction.mul_scalar(alpha)).clamp(low, high);
        let (gradient, ..) = input_gradient_of(model, near.clone(), |logits| {
            self.goal.loss(AttackLoss::CrossEntropy, logits, y)
        });
        let result = threat.step(near, x.clone(), gradient, eps - alpha, 0.0);
        debug_assert_eq!(threat.verify(&x, &result), Ok(()));
        result
    }

    fn name(&self) -> String {
        "R-FGSM".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use gauntlet_kernels::{NoiseKey, Stream};

    use super::*;
    use crate::testing::{Linear, values};
    use crate::{Fgsm, Norm};

    /// On a linear model the second step is known: what is left of the result without it is the random one.
    #[test]
    fn the_random_step_has_length_alpha_and_the_rest_climbs() {
        let device = Device::flex();
        let model = Linear::new([[0.0; 3], [1.0, -2.0, 0.5]], [0.0; 2], &device);
        let x = Tensor::<2>::full([40, 3], 0.5, &device);
        let y = Tensor::<1, Int>::zeros([40], &device);
        let noise = Noise {
            key: NoiseKey::new(2, Stream::TrainAttack),
            samples: (0..40).collect(),
        };
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            let attack = |eps: &str, alpha| RFgsm {
                alpha,
                ..RFgsm::new(ThreatModel::new(norm, eps.parse().unwrap()))
            };
            let result = attack("0.2", 0.05).perturb(&model, x.clone(), y.clone(), &noise);
            let step = Fgsm::new(ThreatModel::new(norm, "0.15".parse().unwrap()));
            let step = step.perturb(&model, x.clone(), y.clone(), &noise) - x.clone();
            let random = result - x.clone() - step;
            let lengths = values(norm.lengths(random.clone()));
            assert!(lengths.iter().all(|length| (length - 0.05).abs() < 1e-5));
            let random = values(random);
            assert!(random[..3] != random[3..6], "rows have their own noise");
            // With nothing left for the random step it is FGSM.
            let plain = attack("0.2", 0.0).perturb(&model, x.clone(), y.clone(), &noise);
            let fgsm = Fgsm::new(ThreatModel::new(norm, "0.2".parse().unwrap()));
            let fgsm = fgsm.perturb(&model, x.clone(), y.clone(), &noise);
            assert_eq!(values(plain), values(fgsm));
        }
    }
}
