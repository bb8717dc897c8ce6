use burn::tensor::{Int, Tensor};
use gauntlet_kernels::perturb::choose;
use gauntlet_models::Classifier;

use crate::gradient::input_gradient_of;
use crate::{Attack, AttackLoss, Goal, Noise, ThreatModel};

/// Where an attack starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// At the clean input.
    Clean,
    /// Uniform in the ball (L∞), or in a random direction at a uniform radius (L2, L1).
    #[default]
    Uniform,
}

/// Which iterate is returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// The last (training).
    #[default]
    Last,
    /// The best of each sample over all steps and restarts: one that is misclassified, else the highest loss (evaluation).
    Best,
}

/// Projected gradient descent (Madry et al. 2018) for L∞ and L2, and for L1 with sparse steps and the exact projection (Tramèr
/// & Boneh 2019; Croce & Hein 2021).
///
/// # Panics
/// `perturb` panics in L0, which has no gradient step.
#[derive(Clone, Debug)]
pub struct Pgd {
    /// What the attacker may do: L∞, L2 or L1.
    pub threat: ThreatModel,
    /// What is ascended.
    pub loss: AttackLoss,
    /// Gradient steps.
    pub steps: usize,
    /// Length of a step in input units.
    pub step_size: f32,
    /// Independent runs from new starting points; below 2048.
    pub restarts: usize,
    /// Starting point.
    pub init: Init,
    /// Which iterate is returned.
    pub keep: Keep,
    /// What the attacker wants.
    pub goal: Goal,
    /// Share of the values that a step in L1 moves, in `[0, 1]`; at least one value moves. Other norms do not use it.
    pub sparsity: f32,
}

impl Pgd {
    /// Default share of the values that a step in L1 moves. [`crate::Apgd`] finds its own.
    pub const SPARSITY: f32 = 0.05;

    /// For evaluation: so many steps of length 2.5 eps / steps on cross-entropy from one random start, untargeted, the best
    /// iterate of each sample.
    pub fn new(threat: ThreatModel, steps: usize) -> Self {
        Self {
            loss: AttackLoss::CrossEntropy,
            steps,
            step_size: 2.5 * threat.eps.value() / steps.max(1) as f32,
            restarts: 1,
            init: Init::Uniform,
            keep: Keep::Best,
            goal: Goal::Untargeted,
            sparsity: Self::SPARSITY,
            threat,
        }
    }
}

impl<const D: usize> Attack<D> for Pgd {
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
        let loss = |logits| self.goal.loss(self.loss, logits, y.clone());
        let mut best = Best::new(self.goal, y.clone());
        let mut last = x.clone();
        for restart in 0..self.restarts.max(1) {
            last = match self.init {
                Init::Clean => x.clone(),
                Init::Uniform => self.threat.start(&x, noise, restart as u32),
            };
            for _ in 0..self.steps {
                let (gradient, losses, logits) = input_gradient_of(model, last.clone(), loss);
                if self.keep == Keep::Best {
                    best.update(&last, losses, logits);
                }
                let (size, sparsity) = (self.step_size, self.sparsity);
                last = self.threat.step(last, x.clone(), gradient, size, sparsity);
            }
            if self.keep == Keep::Best {
                let logits = model.logits(last.clone());
                best.update(&last, loss(logits.clone()), logits);
            }
        }
        let result = best.take().unwrap_or(last);
        debug_assert_eq!(self.threat.verify(&x, &result), Ok(()));
        result
    }

    fn name(&self) -> String {
        match self.restarts {
            0 | 1 => format!("PGD-{}", self.steps),
            restarts => format!("PGD-{}x{restarts}", self.steps),
        }
    }
}

/// The best iterate of each sample so far: one that is what the attacker wants, else that of the highest loss.
pub(crate) struct Best<const D: usize> {
    goal: Goal,
    y: Tensor<1, Int>,
    kept: Option<Kept<D>>,
}

struct Kept<const D: usize> {
    x: Tensor<D>,
    losses: Tensor<1>,
    /// 1 where the iterate is what the attacker wants.
    reached: Tensor<1>,
}

impl<const D: usize> Best<D> {
    pub(crate) fn new(goal: Goal, y: Tensor<1, Int>) -> Self {
        Self {
            goal,
            y,
            kept: None,
        }
    }

    /// `losses` and `logits` are those of `x`; the losses have the goal's sign.
    pub(crate) fn update(&mut self, x: &Tensor<D>, losses: Tensor<1>, logits: Tensor<2>) {
        let reached = self.goal.reached(logits, self.y.clone());
        let (x, old) = (x.clone(), self.kept.take());
        self.kept = Some(match old {
            None => Kept { x, losses, reached },
            Some(old) => {
                let gain = reached.clone() - old.reached.clone();
                let higher = losses.clone().greater(old.losses.clone());
                let better = gain
                    .clone()
                    .greater_elem(0.5)
                    .bool_or(gain.abs().lower_elem(0.5).bool_and(higher))
                    .float();
                Kept {
                    x: choose(&better, x, old.x),
                    losses: choose(&better, losses, old.losses),
                    reached: choose(&better, reached, old.reached),
                }
            }
        });
    }

    /// What was kept, if anything was.
    pub(crate) fn take(self) -> Option<Tensor<D>> {
        self.kept.map(|kept| kept.x)
    }
}
