use burn::tensor::{Int, Tensor};
use gauntlet_kernels::perturb::{l1_norms, linf_norms, per_sample, unit_l2};
use gauntlet_models::Classifier;

use crate::gradient::input_gradient_of;
use crate::{Attack, AttackLoss, Goal, Noise, Norm, Pgd, ThreatModel};

/// Iterative FGSM with a memory of past gradients, which makes examples that fool models other than the one attacked (Dong et
/// al. 2018, "Boosting adversarial attacks with momentum", algorithm 1):
///
/// `g <- decay * g + gradient / mean |gradient|`, then a step along `g` from the clean input on
///
/// With `lookahead` it is NI-FGSM (Lin et al. 2020, "Nesterov accelerated gradient and scale invariance for adversarial
/// attacks", equations 6 to 8): the gradient is that at the point where momentum alone would lead.
///
/// Both papers write the L1 norm of the gradient, and both authors' programs take the mean: the step is the same, and the
/// lookahead of NI-FGSM has a size that means something only with the mean.
///
/// # Panics
/// `perturb` panics in L0, which has no gradient step.
#[derive(Clone, Debug)]
pub struct MomentumFgsm {
    /// What the attacker may do: L∞, L2 or L1.
    pub threat: ThreatModel,
    /// What is ascended.
    pub loss: AttackLoss,
    /// Gradient steps.
    pub steps: usize,
    /// Length of a step in input units.
    pub step_size: f32,
    /// What remains of the memory after each step; 0 is plain iterative FGSM, 1 an even sum.
    pub decay: f32,
    /// Whether the gradient is taken ahead of the current point, as Nesterov does.
    pub lookahead: bool,
    /// What the attacker wants.
    pub goal: Goal,
}

impl MomentumFgsm {
    /// MI-FGSM: ten steps of eps / 10 with decay 1, untargeted.
    pub fn mi(threat: ThreatModel) -> Self {
        Self {
            loss: AttackLoss::CrossEntropy,
            steps: 10,
            step_size: threat.eps.value() / 10.0,
            decay: 1.0,
            lookahead: false,
            goal: Goal::Untargeted,
            threat,
        }
    }

    /// NI-FGSM, likewise.
    pub fn ni(threat: ThreatModel) -> Self {
        Self {
            lookahead: true,
            ..Self::mi(threat)
        }
    }

    /// Where momentum alone leads from `x`: not projected, as in the paper. In L2 and L1, along `g` at the length of a step.
    fn ahead<const D: usize>(&self, x: &Tensor<D>, g: &Tensor<D>) -> Tensor<D> {
        let along = match self.threat.norm {
            Norm::L2 => unit_l2(g.clone()),
            Norm::L1 => {
                let lengths = l1_norms(g.clone()).clamp_min(f32::MIN_POSITIVE);
                g.clone() / per_sample(lengths, g.dims())
            }
            Norm::Linf | Norm::L0 => g.clone(),
        };
        x.clone() + along.mul_scalar(self.decay * self.step_size)
    }
}

impl<const D: usize> Attack<D> for MomentumFgsm {
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
        let mut g = x.zeros_like();
        let mut result = x.clone();
        for _ in 0..self.steps {
            let at = match self.lookahead {
                true => self.ahead(&result, &g),
                false => result.clone(),
            };
            let (gradient, ..) = input_gradient_of(model, at, |logits| {
                self.goal.loss(self.loss, logits, y.clone())
            });
            g = g.mul_scalar(self.decay) + even(gradient);
            let (size, sparsity) = (self.step_size, Pgd::SPARSITY);
            result = self
                .threat
                .step(result, x.clone(), g.clone(), size, sparsity);
        }
        debug_assert_eq!(self.threat.verify(&x, &result), Ok(()));
        result
    }

    fn name(&self) -> String {
        let kind = if self.lookahead { "NI" } else { "MI" };
        format!("{kind}-FGSM-{}", self.steps)
    }
}

/// Each sample scaled to mean size 1; zero samples stay zero.
fn even<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let dims = x.dims();
    let values = dims[1..].iter().product::<usize>() as f32;
    // Scaled by the largest first: means of tiny gradients underflow.
    let largest = linf_norms(x.clone()).clamp_min(f32::MIN_POSITIVE);
    let x = x / per_sample(largest, dims);
    let means = l1_norms(x.clone()).div_scalar(values);
    x / per_sample(means.clamp_min(f32::MIN_POSITIVE), dims)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use gauntlet_kernels::{NoiseKey, Stream};

    use super::*;
    use crate::testing::values;

    /// The loss rises towards (1, 1) along a curve: one logit is a given function of x, the other 0.
    struct Curve;

    impl Classifier<2> for Curve {
        fn logits(&self, x: Tensor<2>) -> Tensor<2> {
            let rows = x.dims()[0];
            let [a, b] = [0, 1].map(|i| x.clone().slice([0..rows, i..i + 1]));
            // Gradient (-6 a + 2, 1): the first value is best at 1/3.
            let score = a.clone().square().mul_scalar(-3.0) + a.mul_scalar(2.0) + b;
            Tensor::cat(vec![score.zeros_like(), score], 1)
        }

        fn features(&self, x: Tensor<2>) -> Tensor<2> {
            x
        }
    }

    /// The papers' recursions in `f64` on the curve, whose margin has gradient (2 - 6 a, 1).
    fn by_hand(lookahead: bool, start: [f64; 2], eps: f64, steps: usize) -> [f64; 2] {
        let alpha = eps / steps as f64;
        let (mut x, mut g) = (start, [0.0f64; 2]);
        for _ in 0..steps {
            let ahead = if lookahead { alpha } else { 0.0 };
            let gradient = [2.0 - 6.0 * (x[0] + ahead * g[0]), 1.0];
            let mean = 0.5 * (gradient[0].abs() + gradient[1].abs());
            for i in 0..2 {
                g[i] += gradient[i] / mean;
            }
            for i in 0..2 {
                let moved = x[i] + alpha * g[i].signum();
                x[i] = moved.clamp(start[i] - eps, start[i] + eps).clamp(0.0, 1.0);
            }
        }
        x
    }

    #[test]
    fn steps_follow_the_papers() {
        let device = Device::flex();
        let start = [0.21f64, 0.4];
        let mut ends = Vec::new();
        for lookahead in [false, true] {
            let attack = MomentumFgsm {
                loss: AttackLoss::Margin,
                lookahead,
                ..MomentumFgsm::mi("linf:0.3".parse().unwrap())
            };
            let x = Tensor::<2>::from_floats([[start[0] as f32, start[1] as f32]], &device);
            let noise = Noise {
                key: NoiseKey::new(0, Stream::EvalAttack),
                samples: vec![0],
            };
            let y = Tensor::<1, Int>::zeros([1], &device);
            let found = values(attack.perturb(&Curve, x, y, &noise));
            let expected = by_hand(lookahead, start, 0.3, 10);
            for (found, expected) in found.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{lookahead}");
            }
            ends.push(found[0]);
        }
        // Momentum runs past the top at 1/3; looking ahead, it turns earlier.
        let [plain, ahead] = [0, 1].map(|i| (ends[i] - 1.0 / 3.0).abs());
        assert!(plain > 0.1 && ahead < 0.03, "{ends:?}");
    }

    #[test]
    fn gradients_of_all_sizes_weigh_the_same() {
        let x = Tensor::<2>::from_floats(
            [[3e-30, -1e-30], [3e30, -1e30], [0.0, 0.0]],
            &Device::flex(),
        );
        assert_eq!(values(even(x)), [1.5, -0.5, 1.5, -0.5, 0.0, 0.0]);
    }
}
