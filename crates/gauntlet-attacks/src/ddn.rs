use burn::tensor::{Int, Tensor};
use gauntlet_kernels::perturb::{l2_norms, per_sample, unit_l2};
use gauntlet_models::Classifier;

use crate::gradient::{input_gradient_of, without_true};
use crate::minimal::{Nearest, cosine};
use crate::{Goal, MinimumNorm, Noise, Norm};

/// Directions shorter than this are not scaled up to the radius.
const SHORTEST: f32 = 1e-12;

/// Decoupled direction and norm (Rony et al. 2019, "Decoupling direction and norm for efficient gradient-based L2 adversarial
/// attacks and defenses", algorithm 1), without quantisation.
///
/// A step follows the gradient of the loss; then the perturbation is scaled to a radius of its own, which shrinks by the factor
/// `1 - gamma` where the example is adversarial and grows by `1 + gamma` where it is not. No penalty has to be searched for.
///
/// A step costs one forward and one backward pass. The host never waits within a run.
#[derive(Clone, Debug)]
pub struct Ddn {
    /// What is looked for.
    pub goal: Goal,
    /// Smallest and largest legal input value.
    pub bounds: (f32, f32),
    /// Gradient steps.
    pub steps: usize,
    /// Length of the first step, in input units (L2).
    pub step_size: f32,
    /// Length that steps come down to, along half a cosine.
    pub final_step_size: f32,
    /// First radius, in input units (L2).
    pub initial_norm: f32,
    /// How fast the radius changes, in (0, 1).
    pub gamma: f32,
}

impl Ddn {
    /// As the paper has it: 1000 steps of length 1 to 0.01, first radius 1, `gamma` 0.05; for inputs in [0, 1].
    pub fn new(goal: Goal) -> Self {
        Self {
            goal,
            bounds: (0.0, 1.0),
            steps: 1000,
            step_size: 1.0,
            final_step_size: 0.01,
            initial_norm: 1.0,
            gamma: 0.05,
        }
    }
}

impl<const D: usize> MinimumNorm<D> for Ddn {
    fn minimal(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        _noise: &Noise,
    ) -> Tensor<D> {
        let dims = x.dims();
        if dims.contains(&0) {
            return x;
        }
        let (low, high) = self.bounds;
        let logits = model.logits(x.clone());
        let mut nearest = Nearest::new(Norm::L2, self.goal, x.clone(), y.clone(), logits);
        // The longest perturbation that stays in the box; a radius beyond it would grow without end.
        let longest = l2_norms(x.clone().sub_scalar(low).max_pair(x.clone().neg() + high));
        let mut radius = longest.zeros_like() + self.initial_norm;
        let mut point = x.clone();
        for step in 0..self.steps {
            let (gradient, _, logits) = input_gradient_of(model, point.clone(), |logits| {
                log_odds(self.goal, logits, y.clone())
            });
            let (reached, _) = nearest.keep(point.clone(), logits);
            let factor = reached.mul_scalar(-2.0 * self.gamma) + (1.0 + self.gamma);
            radius = (radius * factor).min_pair(longest.clone());

            let length = cosine(self.step_size, self.final_step_size, step, self.steps);
            let delta = point - x.clone() + unit_l2(gradient).mul_scalar(length);
            let scale = radius.clone() / l2_norms(delta.clone()).clamp_min(SHORTEST);
            point = (x.clone() + delta * per_sample(scale, dims)).clamp(low, high);
        }
        let logits = model.logits(point.clone());
        nearest.keep(point, logits);
        nearest.x
    }

    fn norm(&self) -> Norm {
        Norm::L2
    }

    fn name(&self) -> String {
        format!("DDN-{}", self.steps)
    }
}

/// What is ascended: the logarithm of the odds against the true class (or for the target), `logsumexp(other logits) - z_y`.
///
/// Cross-entropy is `ln(1 + exp(odds))`, so their gradients have one direction, and only the direction is used. But that of
/// cross-entropy loses its part along `z_y` in `f32` where the margin exceeds 17, and vanishes where it exceeds 103.
fn log_odds(goal: Goal, logits: Tensor<2>, y: Tensor<1, Int>) -> Tensor<1> {
    let truth = logits.clone().gather(1, y.clone().unsqueeze_dim(1));
    let others = without_true(logits, y);
    let largest = Tensor::from_inner(others.clone().inner().max_dim(1));
    let sum = (others - largest.clone()).exp().sum_dim(1);
    let odds = (sum.log() + largest - truth).squeeze_dim(1);
    match goal {
        Goal::Untargeted => odds,
        Goal::Targeted => odds.neg(),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::AttackLoss;
    use crate::testing::values;

    fn gradient(of: impl FnOnce(Tensor<2>) -> Tensor<1>, logits: [f32; 3]) -> Vec<f32> {
        let z = Tensor::<2>::from_floats([logits], &Device::flex());
        let z = z.autodiff().require_grad();
        let mut gradients = of(z.clone()).sum_dim(0).backward();
        values(unit_l2(z.grad_remove(&mut gradients).unwrap()))
    }

    #[test]
    fn the_direction_is_that_of_cross_entropy() {
        let y = Tensor::<1, Int>::from_ints([1], &Device::flex());
        for goal in [Goal::Untargeted, Goal::Targeted] {
            let odds = |z| log_odds(goal, z, y.clone());
            let ce = |z| goal.loss(AttackLoss::CrossEntropy, z, y.clone());
            let logits = [0.3, 1.4, -0.2];
            for (a, b) in gradient(odds, logits).iter().zip(gradient(ce, logits)) {
                assert!((a - b).abs() < 1e-5, "{goal:?}: {a} for {b}");
            }
            // Where cross-entropy has none in f32, it is still there: (1, -1) between the two classes that matter.
            let far = gradient(odds, [0.0, 200.0, -300.0]);
            let toward = if goal == Goal::Untargeted { 1.0 } else { -1.0 };
            let half = toward * 0.5f32.sqrt();
            assert!((far[0] - half).abs() < 1e-5 && (far[1] + half).abs() < 1e-5);
            assert!(goal == Goal::Targeted || gradient(ce, [0.0, 200.0, -300.0]) == [0.0; 3]);
        }
    }
}
