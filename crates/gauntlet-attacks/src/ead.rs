use burn::tensor::{Int, Tensor};
use gauntlet_kernels::perturb::{l1_norms, l2_norms, per_sample};
use gauntlet_models::Classifier;

use crate::gradient::input_gradient_of;
use crate::minimal::{Nearest, row_index};
use crate::penalty::{Rows, Stall, handicapped, shortfall};
use crate::{Goal, MinimumNorm, Noise, Norm};

/// Which of the examples found is the nearest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// That of least L1 distance.
    #[default]
    L1,
    /// That of least elastic-net distance, `beta * |δ|₁ + |δ|₂²`.
    ElasticNet,
}

/// Elastic-net attack (Chen et al. 2018, "EAD: elastic-net attacks to deep neural networks via adversarial examples", algorithm
/// 1 with FISTA): the objective of Carlini & Wagner with an L1 term, and without a change of variables:
///
/// `c * max(confidence - margin(x'), 0) + |x' - x|² + beta * |x' - x|₁`.
///
/// Each step goes along the gradient of the first two terms, from a point ahead in the direction of the last step; then every
/// value is drawn by `beta` towards the clean one and clipped to the box. As in the paper's equation 5 it is `beta`, not `beta`
/// times the step size, so that the weight of the L1 term is in effect `beta / step_size`.
///
/// A step costs two forward passes and one backward pass of those samples whose round is not over; the host waits ten times a
/// round.
#[derive(Clone, Debug)]
pub struct Ead {
    /// What is looked for.
    pub goal: Goal,
    /// Smallest and largest legal input value.
    pub bounds: (f32, f32),
    /// By which distance the nearest example is chosen.
    pub rule: Rule,
    /// How much values are drawn towards the clean ones in a step, in input units.
    pub beta: f32,
    /// Steps of a round.
    pub steps: usize,
    /// First step size; it goes down with the root of the share of steps left.
    pub step_size: f32,
    /// Rounds, each with another `c`.
    pub searches: usize,
    /// First `c`.
    pub initial_c: f32,
    /// The margin an example must have (kappa of the paper), in units of logits, at least 0.
    pub confidence: f32,
    /// Whether a round ends early for samples whose objective no longer falls.
    pub abort_early: bool,
}

impl Ead {
    /// 9 rounds of 1000 steps of size 0.01, `c` from 0.001, `beta` 0.01, `confidence` 0, for inputs in [0, 1], as the paper has
    /// them; decision by L1.
    pub fn new(goal: Goal) -> Self {
        Self {
            goal,
            bounds: (0.0, 1.0),
            rule: Rule::L1,
            beta: 1e-2,
            steps: 1000,
            step_size: 1e-2,
            searches: 9,
            initial_c: 1e-3,
            confidence: 0.0,
            abort_early: true,
        }
    }

    /// One round with the present `c` of each row.
    fn round<const D: usize>(&self, model: &dyn Classifier<D>, mut rows: Rows<D>) -> Rows<D> {
        let mut x = rows.nearest.clean();
        let mut ahead = x.clone();
        let mut stall = Stall::new(self.abort_early, self.steps, &rows);
        for step in 0..self.steps {
            let (clean, y, c) = (
                rows.nearest.clean(),
                rows.nearest.y(),
                rows.penalty.c.clone(),
            );
            let lack = |logits| shortfall(self.goal, logits, y.clone(), self.confidence);
            let (gradient, ..) = input_gradient_of(model, ahead.clone(), lack);
            let pull = (ahead.clone() - clean.clone()).mul_scalar(2.0);
            let push = gradient * per_sample(c.clone(), x.dims());
            let size = self.step_size * (1.0 - step as f32 / self.steps as f32).sqrt();
            let moved = self.shrink(ahead - (pull + push).mul_scalar(size), &clean);

            let logits = model.logits(moved.clone());
            let delta = moved.clone() - clean;
            let l1 = l1_norms(delta.clone());
            let elastic = l2_norms(delta).square() + l1.clone().mul_scalar(self.beta);
            let objective = elastic.clone() + c * lack(logits.clone());
            let logits = handicapped(self.goal, logits, y.clone(), self.confidence);
            let distance = match self.rule {
                Rule::L1 => l1,
                Rule::ElasticNet => elastic,
            };
            let reached = rows.nearest.keep_at(distance, moved.clone(), logits);
            rows.won = rows.won.max_pair(reached);

            let momentum = step as f32 / (step as f32 + 3.0);
            ahead = moved.clone() + (moved.clone() - x).mul_scalar(momentum);
            x = moved;
            if let Some(going) = stall.look(step, objective) {
                let rest = row_index(&going, &x.device());
                x = x.select(0, rest.clone());
                ahead = ahead.select(0, rest);
                rows = stall.set_aside(rows, &going);
                if rows.places.is_empty() {
                    break;
                }
            }
        }
        stall.all(rows)
    }

    /// Equation 5: values farther than `beta` from the clean ones come nearer by it, the others are clean.
    fn shrink<const D: usize>(&self, x: Tensor<D>, clean: &Tensor<D>) -> Tensor<D> {
        let delta = x - clean.clone();
        let size = (delta.clone().abs() - self.beta).clamp_min(0.0);
        (clean.clone() + delta.sign() * size).clamp(self.bounds.0, self.bounds.1)
    }
}

impl<const D: usize> MinimumNorm<D> for Ead {
    fn minimal(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        _noise: &Noise,
    ) -> Tensor<D> {
        if x.dims().contains(&0) {
            return x;
        }
        let logits = model.logits(x.clone());
        let nearest = Nearest::new(Norm::L1, self.goal, x, y, logits);
        let mut rows = Rows::new(nearest, self.initial_c);
        for _ in 0..self.searches {
            rows = self.round(model, rows);
            rows.next_round();
        }
        rows.nearest.x
    }

    fn norm(&self) -> Norm {
        Norm::L1
    }

    fn name(&self) -> String {
        let rule = match self.rule {
            Rule::L1 => "L1",
            Rule::ElasticNet => "EN",
        };
        format!("EAD-{rule}-{}x{}", self.searches, self.steps)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use gauntlet_kernels::{NoiseKey, Stream};

    use super::*;
    use crate::testing::{Linear, values};

    #[test]
    fn values_are_drawn_towards_the_clean_ones() {
        let device = Device::flex();
        let clean = Tensor::<2>::from_floats([[0.5, 0.5, 0.5, 0.0, 1.0]], &device);
        let x = Tensor::<2>::from_floats([[0.7, 0.45, 0.2, -0.5, 3.0]], &device);
        let ead = Ead {
            beta: 0.1,
            ..Ead::new(Goal::Untargeted)
        };
        let found = values(ead.shrink(x, &clean));
        for (found, expected) in found.into_iter().zip([0.6, 0.5, 0.3, 0.0, 1.0]) {
            assert!((found - expected).abs() < 1e-6);
        }
    }

    /// Each rule is the better one by its own measure; they differ where the slopes of a linear model are close to each other.
    #[test]
    fn each_rule_has_its_own_nearest() {
        let device = Device::flex();
        let model = Linear::new([[0.0; 3], [10.0, 9.0, 8.0]], [0.0, -17.0], &device);
        let x = Tensor::<2>::from_floats([[0.5, 0.5, 0.5]], &device);
        let y = Tensor::<1, Int>::zeros([1], &device);
        let noise = Noise {
            key: NoiseKey::new(0, Stream::EvalAttack),
            samples: vec![0],
        };
        let [(l1, en), (other_l1, other_en)] = [Rule::L1, Rule::ElasticNet].map(|rule| {
            let ead = Ead {
                rule,
                steps: 300,
                ..Ead::new(Goal::Untargeted)
            };
            let delta = values(ead.minimal(&model, x.clone(), y.clone(), &noise) - x.clone());
            let l1: f32 = delta.iter().map(|d| d.abs()).sum();
            let squares: f32 = delta.iter().map(|d| d * d).sum();
            (l1, ead.beta * l1 + squares)
        });
        assert!(
            l1 < other_l1 && other_en < en,
            "{l1} {other_l1} {en} {other_en}"
        );
        // By L1 alone the steepest value does it: a gap of 3.5 at slope 10.
        assert!((0.35..0.35 * 1.1).contains(&l1), "{l1}");
    }
}
