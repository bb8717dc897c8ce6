use burn::tensor::{Int, Tensor, activation::log_softmax};
use gauntlet_models::Classifier;

use crate::gradient::input_gradient_of;
use crate::{Attack, Noise, Pgd, ThreatModel};

/// PGD on the divergence from the prediction on the clean input: the inner maximisation of TRADES (Zhang et al. 2019, eq. 5 and
/// algorithm 1),
///
/// `max KL(softmax f(x) || softmax f(x'))`
///
/// from a start of small normal noise, since the divergence and its gradient are zero at `x` itself. Labels are not used.
///
/// # Panics
/// `perturb` panics in L0, which has no gradient step.
#[derive(Clone, Debug)]
pub struct KlPgd {
    /// What the attacker may do: L∞, L2 or L1.
    pub threat: ThreatModel,
    /// Gradient steps.
    pub steps: usize,
    /// Length of a step in input units.
    pub step_size: f32,
    /// Start at a random place in the ball instead (as Gowal et al. 2020 do).
    pub random_start: bool,
}

impl KlPgd {
    /// Standard deviation of the noise at the start, of each value.
    pub const START: f32 = 1e-3;

    /// So many steps of 2.5 eps / steps.
    pub fn new(threat: ThreatModel, steps: usize) -> Self {
        Self {
            step_size: 2.5 * threat.eps.value() / steps.max(1) as f32,
            threat,
            steps,
            random_start: false,
        }
    }
}

/// `KL(p || q) = sum p (ln p - ln q)` of each row, from the logarithms of both.
///
/// # Shapes
/// `log_p`, `log_q`: `[batch, classes]`; the result `[batch]`.
pub fn kl_divergence(log_p: Tensor<2>, log_q: Tensor<2>) -> Tensor<1> {
    let p = log_p.clone().exp();
    (p * (log_p - log_q)).sum_dim(1).squeeze_dim(1)
}

impl<const D: usize> Attack<D> for KlPgd {
    fn perturb(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        _y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<D> {
        if x.dims().contains(&0) {
            return x;
        }
        // Once: it is the same in every step.
        let clean = log_softmax(model.logits(x.clone()), 1);
        let (low, high) = self.threat.bounds;
        let mut last = if self.random_start {
            self.threat.start(&x, noise, 0)
        } else {
            let normal = noise.key.normal(&noise.samples, x.dims(), &x.device());
            let near = (x.clone() + normal.mul_scalar(Self::START)).clamp(low, high);
            // No step, only the projection: noise can be larger than a small eps.
            self.threat
                .step(near, x.clone(), x.zeros_like(), 0.0, Pgd::SPARSITY)
        };
        for _ in 0..self.steps {
            let (gradient, ..) = input_gradient_of(model, last.clone(), |logits| {
                kl_divergence(clean.clone(), log_softmax(logits, 1))
            });
            let (size, sparsity) = (self.step_size, Pgd::SPARSITY);
            last = self.threat.step(last, x.clone(), gradient, size, sparsity);
        }
        debug_assert_eq!(self.threat.verify(&x, &last), Ok(()));
        last
    }

    fn name(&self) -> String {
        format!("KL-PGD-{}", self.steps)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use gauntlet_kernels::{NoiseKey, Stream};

    use super::*;
    use crate::Norm;
    use crate::testing::{Linear, values};

    #[test]
    fn the_divergence_is_its_formula_and_zero_only_between_equals() {
        let device = Device::flex();
        let p = Tensor::<2>::from_floats([[0.25f32, 0.75], [0.5, 0.5]], &device).log();
        let q = Tensor::<2>::from_floats([[0.5f32, 0.5], [0.5, 0.5]], &device).log();
        let found = values(kl_divergence(p, q));
        let expected = 0.25 * 0.5f32.ln() + 0.75 * 1.5f32.ln();
        assert!(
            (found[0] - expected).abs() < 1e-6 && found[1].abs() < 1e-7,
            "{found:?}"
        );
    }

    /// With two classes and a linear margin the divergence is largest at a corner of the ball, on the side that flips the odds
    /// more; which corners, the weights say.
    #[test]
    fn on_a_linear_model_it_ends_at_a_corner_and_stays_legal() {
        let device = Device::flex();
        let weights = [[0.0; 3], [4.0, -2.0, 1.0]];
        let model = Linear::new(weights, [0.0, 0.3], &device);
        let x = Tensor::<2>::full([6, 3], 0.5, &device);
        let y = Tensor::<1, Int>::zeros([6], &device);
        let noise = Noise {
            key: NoiseKey::new(1, Stream::TrainAttack).at(2, 3),
            samples: (0..6).collect(),
        };
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            let threat = ThreatModel::new(norm, "0.2".parse().unwrap());
            let attack = KlPgd::new(threat.clone(), 20);
            let found = attack.perturb(&model, x.clone(), y.clone(), &noise);
            assert_eq!(threat.verify(&x, &found), Ok(()));
            let delta = values(found - x.clone());
            for row in delta.chunks(3) {
                let along: f32 = row.iter().zip(weights[1]).map(|(d, w)| d * w).sum();
                let most = match norm {
                    Norm::Linf => 0.2 * 7.0,
                    Norm::L2 => 0.2 * 21f32.sqrt(),
                    _ => 0.2 * 4.0,
                };
                assert!((along.abs() - most).abs() < 0.02 * most, "{norm}: {row:?}");
            }
        }
    }
}
