//! SPSA: gradients estimated along random signs, followed by Adam (Uesato, O'Donoghue, van den Oord & Kohli 2018,
//! "Adversarial risk and the dangers of evaluating against weak attacks").

use burn::tensor::{Int, Tensor};
use gauntlet_kernels::noise::Philox;
use gauntlet_models::Classifier;

use crate::climb::{Climb, Climber, Estimator};
use crate::oracle::{rademacher, unit};
use crate::{Attack, Goal, Noise, Norm, ThreatModel};

/// SPSA (Uesato et al. 2018, algorithm 1) for L∞ and L2, on the margin: asks the model for scores and never for a gradient.
///
/// ```text
/// v ~ {-1, 1}^d,   g = mean over pairs of (J(x + delta v) - J(x - delta v)) / (2 delta) * v^-1,   x = project(x + Adam(g))
/// ```
///
/// The model is asked about inputs in bounds only: where the box cuts `x ± delta v`, the quotient divides by what is left of
/// `2 delta v`. In L2 a step goes along Adam's first moment alone, at length `step_size`: a second moment for each value would
/// turn it towards the signs of the gradient. A sample is done as soon as it is adversarial; where the search fails, the result
/// is the iterate with the best margin.
#[derive(Clone, Debug)]
pub struct Spsa {
    /// What the attacker may do.
    pub threat: ThreatModel,
    /// What the attacker wants.
    pub goal: Goal,
    /// Steps of Adam.
    pub steps: usize,
    /// Directions averaged in each step, of two queries each.
    pub pairs: usize,
    /// How far from the iterate the model is asked, in input units; above 0.
    pub delta: f32,
    /// Adam's learning rate (L∞), the length of a step (L2), in input units.
    pub step_size: f32,
    /// Candidates the model is given at once; a matter of speed and memory only.
    pub query_batch: usize,
}

impl Spsa {
    /// Delta 0.01, 100 steps and Adam's rate 0.01 as in the paper, 128 directions a step; steps of eps / 5 in L2.
    ///
    /// The paper averages 2048 or 8192 directions where the defence is strong: the estimate is off by a factor of about
    /// `sqrt(values / pairs)`.
    pub fn new(threat: ThreatModel) -> Self {
        let step_size = match threat.norm {
            Norm::L2 => threat.eps.value() / 5.0,
            _ => 0.01,
        };
        Self {
            threat,
            goal: Goal::Untargeted,
            steps: 100,
            pairs: 128,
            delta: 0.01,
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
            radius: self.delta,
            query_batch: self.query_batch,
        };
        climb.search(self, model, x, y, noise)
    }
}

impl<const D: usize> Attack<D> for Spsa {
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
        format!("SPSA-{}", self.steps)
    }
}

impl Estimator for Spsa {
    fn draw(&self, rng: &mut Philox, direction: &mut [f32]) {
        rademacher(rng, direction);
    }

    fn add(&self, gradient: &mut [f32], rise: f32, plus: &[f32], minus: &[f32]) {
        for (gradient, (plus, minus)) in gradient.iter_mut().zip(plus.iter().zip(minus)) {
            let width = plus - minus;
            if width != 0.0 {
                *gradient += rise / width;
            }
        }
    }

    /// Adam with its usual constants (Kingma & Ba 2015, algorithm 1), uphill.
    fn step(&self, sample: &mut Climber, step: usize) {
        const DECAY: (f32, f32) = (0.9, 0.999);
        const STABILIZER: f32 = 1e-8;
        let power = i32::try_from(step).unwrap_or(i32::MAX);
        let debts = (1.0 - DECAY.0.powi(power), 1.0 - DECAY.1.powi(power));
        let share = 1.0 / self.pairs.max(1) as f32;
        let moments = sample.mean.iter_mut().zip(&mut sample.square);
        let mut direction = Vec::with_capacity(sample.x.len());
        for ((mean, square), gradient) in moments.zip(&sample.gradient) {
            let gradient = share * gradient;
            *mean = DECAY.0 * *mean + (1.0 - DECAY.0) * gradient;
            *square = DECAY.1 * *square + (1.0 - DECAY.1) * gradient * gradient;
            direction.push(match self.threat.norm {
                Norm::L2 => *mean,
                _ => (*mean / debts.0) / ((*square / debts.1).sqrt() + STABILIZER),
            });
        }
        if self.threat.norm == Norm::L2 {
            unit(&mut direction);
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
                    let attack = Spsa {
                        goal,
                        query_batch,
                        pairs: 32,
                        delta: 0.1,
                        step_size: threat.eps.value() / 5.0,
                        ..Spsa::new(threat.clone())
                    };
                    attack.search(model, x, y, noise)
                },
            );
        }
    }

    /// Along ±1 the quotient of a linear margin with weights w is `(w . v) v`, in the box and where it cuts half of a step off.
    /// The first step of Adam is its rate, along the sign.
    #[test]
    fn estimates_and_steps_are_those_of_the_paper() {
        let device = Device::flex();
        let weights = [0.5, -2.0, 1.0];
        let model = Linear::new([weights, [0.0; 3]], [2.0, 0.0], &device);
        let attack = Spsa {
            steps: 1,
            pairs: 512,
            step_size: 0.02,
            ..Spsa::new("linf:0.1".parse().unwrap())
        };
        // The true class loses by moving against its weights; the last value is at its bound.
        let x = Tensor::<2>::from_floats([[0.9, 0.5, 0.0]], &device);
        let y = Tensor::<1, Int>::from_ints([0], &device);
        let (found, queries) = attack.search(&model, x.clone(), y, &noise(0..1));
        assert_eq!(queries, [2 * 512 + 1]);
        for (moved, expected) in values(found - x).iter().zip([-0.02, 0.02, 0.0]) {
            assert!((moved - expected).abs() < 1e-6, "{moved} for {expected}");
        }
        let mut gradient = [0.0; 3];
        let plus = [0.51, 0.49, 0.01];
        let minus = [0.49, 0.51, 0.0];
        let rise: f32 = { weights.iter().zip(plus.iter().zip(&minus)) }
            .map(|(w, (p, m))| w * (p - m))
            .sum();
        attack.add(&mut gradient, rise, &plus, &minus);
        // 0.02 * 0.5 + 0.02 * 2 + 0.01 * 1 = 0.06
        for (found, expected) in gradient.iter().zip([3.0, -3.0, 6.0]) {
            assert!((found - expected).abs() < 1e-3, "{found} for {expected}");
        }
    }

    #[test]
    fn a_failed_search_returns_its_best() {
        let device = Device::flex();
        let model = Linear::new([[1.0, -2.0], [0.0; 2]], [9.0, 0.0], &device);
        let x = Tensor::<2>::from_floats([[0.5, 0.5]], &device);
        let y = Tensor::<1, Int>::from_ints([0], &device);
        for norm in ["linf:0.1", "l2:0.1"] {
            let attack = Spsa {
                steps: 40,
                pairs: 8,
                ..Spsa::new(norm.parse().unwrap())
            };
            let (found, queries) = attack.search(&model, x.clone(), y.clone(), &noise(0..1));
            assert_eq!(queries, [40 * 17]);
            let moved = values(found - x.clone());
            // -0.1 and 0.1; in L2 0.1 along (-1, 2) / sqrt 5.
            let best = if norm == "linf:0.1" {
                [-0.1, 0.1]
            } else {
                [-0.0447, 0.0894]
            };
            assert!(
                (moved[0] - best[0]).abs() < 0.01 && (moved[1] - best[1]).abs() < 0.01,
                "{moved:?}"
            );
        }
        assert_eq!(
            Attack::<2>::name(&Spsa::new("linf:0.1".parse().unwrap())),
            "SPSA-100"
        );
    }
}
