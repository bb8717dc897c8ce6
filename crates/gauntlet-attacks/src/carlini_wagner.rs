use burn::tensor::{Int, Tensor};
use gauntlet_kernels::perturb::per_sample;
use gauntlet_models::Classifier;

use crate::gradient::input_gradient_of;
use crate::minimal::{Nearest, row_index};
use crate::penalty::{Rows, Stall, handicapped, shortfall};
use crate::{Goal, MinimumNorm, Noise, Norm};

/// The clean input is drawn this much towards the middle of the box, whose faces are infinitely far in `w`. As the authors' code.
const INSIDE: f32 = 0.999_999;

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
    /// 9 rounds of 1000 steps of size 0.01, `c` from 0.001, `confidence` 0, ending early; for inputs in [0, 1]. The authors' code
    /// has the same values but 10,000 steps.
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
            adam.step(
                (pull + push) * slope,
                crate::minimal::cosine(
                    self.step_size,
                    if std::env::var("CW").is_ok() {
                        0.01 * self.step_size
                    } else {
                        self.step_size
                    },
                    step,
                    self.steps,
                ),
            );
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
