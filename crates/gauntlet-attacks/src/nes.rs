//! NES: gradients estimated along antithetic normal directions, followed by signs (Ilyas, Engstrom, Athalye & Lin 2018,
//! "Black-box adversarial attacks with limited queries and information").

use burn::tensor::{Int, Tensor};
use gauntlet_kernels::noise::Philox;
use gauntlet_models::Classifier;

use crate::climb::{Climb, Climber, Estimator};
use crate::oracle::{normal, unit};
use crate::{Attack, Goal, Noise, Norm, ThreatModel};

/// NES (Ilyas et al. 2018, algorithm 1) for L∞ and L2, on the margin: asks the model for scores and never for a gradient.
///
/// ```text
/// u ~ N(0, 1)^d,   g = mean over pairs of (J(x + sigma u) - J(x - sigma u)) / (2 sigma) * u
/// m = momentum m + (1 - momentum) g,   x = project(x + step_size sign(m)),   in L2 x + step_size m / |m|
/// ```
///
/// The model is asked about inputs in bounds only: `u` is what the box leaves of it. The paper halves the step where the loss
/// stands still; here it stays, and where the search fails, the result is the iterate with the best margin. A sample is done as
/// soon as it is adversarial.
#[derive(Clone, Debug)]
pub struct Nes {
    /// What the attacker may do.
    pub threat: ThreatModel,
    /// What the attacker wants.
    pub goal: Goal,
    /// Steps.
    pub steps: usize,
    /// Directions averaged in each step, of two queries each.
    pub pairs: usize,
    /// Standard deviation of the search in input units, above 0. A model that rounds its input needs more than a rounding
    /// step: 0.001 is less than half a level of 8-bit images.
    pub sigma: f32,
    /// Share of the last direction that is kept, in [0, 1).
    pub momentum: f32,
    /// Length of a step in input units.
    pub step_size: f32,
    /// Candidates the model is given at once; a matter of speed and memory only.
    pub query_batch: usize,
}

impl Nes {
    /// The paper's sigma 0.001, 25 pairs a step (50 queries), momentum 0.9, steps of 0.01 in L∞; of eps / 5 in L2. 200 steps
    /// are about the 10,000 queries that it allows.
    pub fn new(threat: ThreatModel) -> Self {
        let step_size = match threat.norm {
            Norm::L2 => threat.eps.value() / 5.0,
            _ => 0.01,
        };
        Self {
            threat,
            goal: Goal::Untargeted,
            steps: 200,
            pairs: 25,
            sigma: 0.001,
            momentum: 0.9,
            step_size,
            query_batch: 256,
        }
    }

    /// The adversarial batch, and how many queries each sample took, at most `steps * (2 * pairs + 1)`: the look at the clean
    /// input is none.
    ///
    /// # Shapes
    /// `x: [batch, ..]` in bounds, `y: [batch]`.
    pub fn search<const D: usize>(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> (Tensor<D>, Vec<usize>) {
        let climb = Climb {
            threat: &self.threat,
            goal: self.goal,
            steps: self.steps,
            pairs: self.pairs,
            radius: self.sigma,
            query_batch: self.query_batch,
        };
        climb.search(self, model, x, y, noise)
    }
}

impl<const D: usize> Attack<D> for Nes {
    fn perturb(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<D> {
        self.search(model, x, y, noise).0
    }

    fn name(&self) -> String {
        format!("NES-{}", self.steps)
    }
}

impl Estimator for Nes {
    fn draw(&self, rng: &mut Philox, direction: &mut [f32]) {
        normal(rng, direction);
    }

    /// `plus - minus` is `2 sigma u`.
    fn add(&self, gradient: &mut [f32], rise: f32, plus: &[f32], minus: &[f32]) {
        let scale = rise / (4.0 * self.sigma * self.sigma);
        for (gradient, (plus, minus)) in gradient.iter_mut().zip(plus.iter().zip(minus)) {
            *gradient += scale * (plus - minus);
        }
    }

    fn step(&self, sample: &mut Climber, _: usize) {
        let share = (1.0 - self.momentum) / self.pairs.max(1) as f32;
        for (mean, gradient) in sample.mean.iter_mut().zip(&sample.gradient) {
            *mean = self.momentum * *mean + share * gradient;
        }
        let mut direction = sample.mean.clone();
        match self.threat.norm {
            Norm::L2 => unit(&mut direction),
            // Not `signum`, which is 1 for 0.
            _ => { direction.iter_mut() }
                .for_each(|d| *d = f32::from(*d > 0.0) - f32::from(*d < 0.0)),
        }
        for (x, direction) in sample.x.iter_mut().zip(direction) {
            *x += self.step_size * direction;
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::black_box::{check_scores, noise};
    use crate::testing::{Linear, values};

    #[test]
    fn linear_and_masked_models_fall_to_scores() {
        for (norm, enough) in [(Norm::Linf, 1.1), (Norm::L2, 1.1)] {
            check_scores(
                norm,
                enough,
                &|threat, goal, query_batch, model, x, y, noise| {
                    let attack = Nes {
                        goal,
                        query_batch,
                        sigma: 0.1,
                        step_size: threat.eps.value() / 5.0,
                        ..Nes::new(threat.clone())
                    };
                    attack.search(model, x, y, noise)
                },
            );
        }
    }

    /// The mean of `(w . u) u` over normal directions is w; after one step the estimate is `(1 - momentum)` of it.
    #[test]
    fn estimates_are_the_gradient_of_a_linear_margin() {
        let device = Device::flex();
        let model = Linear::new([[0.6, -0.8, 0.0], [0.0; 3]], [9.0, 0.0], &device);
        let x = Tensor::<2>::full([1, 3], 0.5, &device);
        let y = Tensor::<1, Int>::from_ints([0], &device);
        for sigma in [0.001, 0.05] {
            let attack = Nes {
                steps: 1,
                pairs: 4000,
                sigma,
                step_size: 0.1,
                ..Nes::new("l2:0.2".parse().unwrap())
            };
            let (found, queries) = attack.search(&model, x.clone(), y.clone(), &noise(0..1));
            assert_eq!(queries, [8001]);
            // Each part of the estimate is off by 1.4 / sqrt(4000) = 0.022 (one sigma) at most.
            for (moved, w) in values(found - x.clone()).iter().zip([-0.06, 0.08, 0.0]) {
                assert!((moved - w).abs() < 0.008, "{moved} for {w}");
            }
        }
        let attack = Nes::new("linf:0.1".parse().unwrap());
        let mut gradient = [0.0; 2];
        // u = (1, -2) at sigma 0.001, a rise of 0.004: 0.004 / 0.002 * u.
        attack.add(&mut gradient, 0.004, &[0.501, 0.498], &[0.499, 0.502]);
        assert!((gradient[0] - 2.0).abs() < 1e-3 && (gradient[1] + 4.0).abs() < 1e-3);
        assert_eq!(Attack::<2>::name(&attack), "NES-200");
    }

    /// One pair a step, all of whose directions are known: momentum keeps 0.9 of what was.
    #[test]
    fn momentum_keeps_what_was() {
        let attack = Nes {
            pairs: 1,
            ..Nes::new("linf:0.1".parse().unwrap())
        };
        let mut sample = Climber::new(vec![0.5; 2], 0, 0.0, noise(0..1).key.rng(0));
        for (gradient, expected, x) in [
            ([1.0, -1.0], [0.1, -0.1], [0.51, 0.49]),
            ([-0.5, 0.9], [0.04, 0.0], [0.52, 0.49]),
        ] {
            sample.gradient.copy_from_slice(&gradient);
            attack.step(&mut sample, 1);
            for (mean, expected) in sample.mean.iter().zip(expected) {
                assert!((mean - expected).abs() < 1e-6);
            }
            assert!((sample.x[0] - x[0]).abs() < 1e-6, "{:?}", sample.x);
        }
    }
}
