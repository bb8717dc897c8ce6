use burn::tensor::{Int, Tensor};
use gauntlet_kernels::perturb::per_sample;
use gauntlet_models::Classifier;

use crate::gradient::input_gradient_of;
use crate::minimal::{Nearest, row_index};
use crate::penalty::{Rows, Stall, handicapped, shortfall};
use crate::{Goal, MinimumNorm, Noise, Norm};

/// The clean input is drawn this much towards the middle of the box, whose faces are infinitely far in `w`. The authors' code
/// has 0.999999 and 10,000 steps; a tenth of 1000 steps of 0.01 does not move a value at a face from there, and a round then
/// ends early as if nothing were left to gain.
const INSIDE: f32 = 0.999_9;

/// Adam's decay rates and the term of its denominator.
const ADAM: (f32, f32, f32) = (0.9, 0.999, 1e-8);

/// The L2 attack of Carlini & Wagner (2017, "Towards evaluating the robustness of neural networks", section VI.A): Adam on
///
/// `|x' - x|² + c * max(confidence - margin(x'), 0)`, with `x' = middle + half * tanh(w)` always in the box,
///
/// and a search for the least `c` of each sample that gives an example, in rounds from new starts at the clean input.
///
/// A step costs one forward and one backward pass of those samples whose round is not over; the host waits ten times a round.
#[derive(Clone, Debug)]
pub struct CarliniWagner {
    /// What is looked for.
    pub goal: Goal,
    /// Smallest and largest legal input value.
    pub bounds: (f32, f32),
    /// Adam steps of a round.
    pub steps: usize,
    /// Adam's step size, in units of `w`.
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

impl CarliniWagner {
    /// 9 rounds of 1000 steps of size 0.01, `c` from 0.001, `confidence` 0, ending early; for inputs in [0, 1]. The authors'
    /// code has the same values but 10,000 steps, which are worth their time where many values are at the faces of the box: on
    /// a robust network of MNIST 1000 steps found examples 1.45 times as far as [`Fmn`](crate::Fmn) did, on one of CIFAR-10
    /// 1.01 times (medians of 20 images). Steps of 0.03 helped the first (1.28) and harmed the second (1.19).
    pub fn new(goal: Goal) -> Self {
        Self {
            goal,
            bounds: (0.0, 1.0),
            steps: 1000,
            step_size: 0.01,
            searches: 9,
            initial_c: 1e-3,
            confidence: 0.0,
            abort_early: true,
        }
    }

    /// One round with the present `c` of each row.
    fn round<const D: usize>(&self, model: &dyn Classifier<D>, mut rows: Rows<D>) -> Rows<D> {
        let (low, high) = self.bounds;
        let (middle, half) = (0.5 * (low + high), 0.5 * (high - low));
        let centred = (rows.nearest.clean() - middle).mul_scalar(INSIDE / half);
        let mut adam = Adam::new(centred.atanh());
        let mut stall = Stall::new(self.abort_early, self.steps, &rows);
        for step in 0..=self.steps {
            let squashed = adam.w.clone().tanh();
            let x = (squashed.clone().mul_scalar(half) + middle).clamp(low, high);
            let (y, c) = (rows.nearest.y(), rows.penalty.c.clone());
            let (gradient, lack, logits) = input_gradient_of(model, x.clone(), |logits| {
                shortfall(self.goal, logits, y.clone(), self.confidence)
            });
            let logits = handicapped(self.goal, logits, y, self.confidence);
            let (reached, distance) = rows.nearest.keep(x.clone(), logits);
            rows.won = rows.won.max_pair(reached);
            if step == self.steps {
                break;
            }
            let pull = (x - rows.nearest.clean()).mul_scalar(2.0);
            let push = gradient * per_sample(c.clone(), pull.dims());
            let slope = squashed.square().neg().add_scalar(1.0).mul_scalar(half);
            adam.step((pull + push) * slope, self.step_size);
            if let Some(going) = stall.look(step, distance.square() + c * lack) {
                let rest = row_index(&going, &adam.w.device());
                adam = adam.select(rest);
                rows = stall.set_aside(rows, &going);
                if rows.places.is_empty() {
                    break;
                }
            }
        }
        stall.all(rows)
    }
}

impl<const D: usize> MinimumNorm<D> for CarliniWagner {
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
        let nearest = Nearest::new(Norm::L2, self.goal, x, y, logits);
        let mut rows = Rows::new(nearest, self.initial_c);
        for _ in 0..self.searches {
            rows = self.round(model, rows);
            rows.next_round();
        }
        rows.nearest.x
    }

    fn norm(&self) -> Norm {
        Norm::L2
    }

    fn name(&self) -> String {
        format!("CW-{}x{}", self.searches, self.steps)
    }
}

/// Adam (Kingma & Ba 2015), value by value.
struct Adam<const D: usize> {
    w: Tensor<D>,
    mean: Tensor<D>,
    square: Tensor<D>,
    made: i32,
}

impl<const D: usize> Adam<D> {
    fn new(w: Tensor<D>) -> Self {
        Self {
            mean: w.zeros_like(),
            square: w.zeros_like(),
            w,
            made: 0,
        }
    }

    fn step(&mut self, gradient: Tensor<D>, size: f32) {
        let (b1, b2, tiny) = ADAM;
        self.made += 1;
        self.mean = self.mean.clone().mul_scalar(b1) + gradient.clone().mul_scalar(1.0 - b1);
        self.square = self.square.clone().mul_scalar(b2) + gradient.square().mul_scalar(1.0 - b2);
        let (first, second) = (1.0 - b1.powi(self.made), 1.0 - b2.powi(self.made));
        let deviation = self.square.clone().div_scalar(second).sqrt() + tiny;
        self.w = self.w.clone() - self.mean.clone().mul_scalar(size / first) / deviation;
    }

    fn select(&self, rows: Tensor<1, Int>) -> Self {
        Self {
            w: self.w.clone().select(0, rows.clone()),
            mean: self.mean.clone().select(0, rows.clone()),
            square: self.square.clone().select(0, rows),
            made: self.made,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use gauntlet_kernels::{NoiseKey, Stream};

    use super::*;
    use crate::testing::{Linear, values};

    /// With confidence the boundary of a linear model is that much farther: `(gap + confidence) / |difference of rows|`.
    #[test]
    fn confidence_is_a_margin_that_examples_have() {
        let device = Device::flex();
        let model = Linear::new([[0.0, 0.0], [3.0, 4.0]], [0.0, -4.0], &device);
        let x = Tensor::<2>::from_floats([[0.6, 0.6], [0.4, 0.45]], &device);
        let noise = Noise {
            key: NoiseKey::new(0, Stream::EvalAttack),
            samples: vec![0, 1],
        };
        for (goal, y) in [(Goal::Untargeted, [1, 0]), (Goal::Targeted, [0, 1])] {
            // The first leaves class 1, the second class 0.
            let attack = CarliniWagner {
                confidence: 0.5,
                steps: 500,
                ..CarliniWagner::new(goal)
            };
            let y = Tensor::<1, Int>::from_ints(y, &device);
            let margins: Vec<f32> = values(model.logits(x.clone()))
                .chunks(2)
                .map(|logits| (logits[1] - logits[0]).abs())
                .collect();
            let found = attack.minimal(&model, x.clone(), y, &noise);
            let sizes = values(Norm::L2.lengths(found.clone() - x.clone()));
            for (row, logits) in values(model.logits(found)).chunks(2).enumerate() {
                let sign = if row == 0 { -1.0 } else { 1.0 };
                let margin = sign * (logits[1] - logits[0]);
                assert!(margin > 0.5, "{goal:?} {row}: {margin}");
                let least = (margins[row] + 0.5) / 5.0;
                assert!(
                    (sizes[row] / least - 1.0).abs() < 0.02,
                    "{goal:?} {row}: {sizes:?}"
                );
            }
        }
    }

    /// Adam's first step has its size whatever the gradient's; the second by the formulas, worked out by hand.
    #[test]
    fn adam_follows_its_formulas() {
        let device = Device::flex();
        let mut adam = Adam::new(Tensor::<2>::from_floats([[1.0, 1.0]], &device));
        adam.step(Tensor::from_floats([[4.0, -0.01]], &device), 0.1);
        let w = values(adam.w.clone());
        assert!((w[0] - 0.9).abs() < 1e-5 && (w[1] - 1.1).abs() < 1e-5);
        adam.step(Tensor::from_floats([[2.0, 0.0]], &device), 0.1);
        let mean = (0.9 * 0.1 * 4.0 + 0.1 * 2.0) / (1.0 - 0.81);
        let square = (0.999 * 0.001 * 16.0 + 0.001 * 4.0) / (1.0 - 0.998_001f64);
        let expected = 0.9 - 0.1 * mean / square.sqrt();
        assert!((f64::from(values(adam.w)[0]) - expected).abs() < 1e-4);
    }
}
