use burn::tensor::{Int, Tensor};
use gauntlet_kernels::perturb::{choose, per_sample, project_l2, project_linf, unit_l2};
use gauntlet_models::Classifier;

use crate::{Attack, AttackLoss, Noise, Norm, ThreatModel, input_gradient};

/// Where an attack starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// At the clean input.
    Clean,
    /// Uniform in the ball (L∞), or in a random direction at a uniform radius (L2).
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

/// Projected gradient descent (Madry et al. 2018) for L∞ and L2.
#[derive(Clone, Debug)]
pub struct Pgd {
    /// What the attacker may do.
    pub threat: ThreatModel,
    /// What is ascended.
    pub loss: AttackLoss,
    /// Gradient steps.
    pub steps: usize,
    /// Length of a step in input units.
    pub step_size: f32,
    /// Independent runs from new starting points.
    pub restarts: usize,
    /// Starting point.
    pub init: Init,
    /// Which iterate is returned.
    pub keep: Keep,
}

impl<const D: usize> Attack<D> for Pgd {
    fn perturb(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<D> {
        if x.dims()[0] == 0 {
            return x;
        }
        let mut best = None;
        let mut last = x.clone();
        for restart in 0..self.restarts.max(1) {
            last = self.start(&x, noise, restart as u32);
            for _ in 0..self.steps {
                let (gradient, losses, logits) =
                    input_gradient(model, last.clone(), y.clone(), self.loss);
                if self.keep == Keep::Best {
                    Best::update(&mut best, last.clone(), losses, logits, &y);
                }
                last = self.threat.step(last, x.clone(), gradient, self.step_size);
            }
            if self.keep == Keep::Best {
                let logits = model.logits(last.clone());
                let losses = self.loss.per_sample(logits.clone(), y.clone());
                Best::update(&mut best, last.clone(), losses, logits, &y);
            }
        }
        let result = best.map_or(last, |best| best.x);
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

impl Pgd {
    fn start<const D: usize>(&self, x: &Tensor<D>, noise: &Noise, restart: u32) -> Tensor<D> {
        if self.init == Init::Clean {
            return x.clone();
        }
        let (shape, device) = (x.dims(), x.device());
        let key = noise.key.restart(restart);
        let eps = self.threat.eps.value();
        match self.threat.norm {
            Norm::Linf => {
                let delta = key.uniform(&noise.samples, shape, -eps, eps, &device);
                project_linf(x.clone() + delta, x.clone(), eps, self.threat.bounds)
            }
            Norm::L2 => {
                let values = shape[1..].iter().product::<usize>();
                let rows = key.normal(&noise.samples, [shape[0], values], &device);
                let radius_key = key.restart(RADIUS + restart);
                let radius = radius_key.uniform(&noise.samples, [shape[0]], 0.0, eps, &device);
                let delta = unit_l2(rows).reshape(shape) * per_sample(radius, shape);
                project_l2(x.clone() + delta, x.clone(), eps, self.threat.bounds)
            }
            Norm::L1 | Norm::L0 => unimplemented!("PGD in {}", self.threat.norm),
        }
    }
}

/// Radii are drawn under restart numbers of their own, above any real one.
const RADIUS: u32 = 2048;

/// The best iterate of each sample so far.
struct Best<const D: usize> {
    x: Tensor<D>,
    losses: Tensor<1>,
    /// 1 where the iterate is misclassified.
    wrong: Tensor<1>,
}

impl<const D: usize> Best<D> {
    fn update(
        best: &mut Option<Self>,
        x: Tensor<D>,
        losses: Tensor<1>,
        logits: Tensor<2>,
        y: &Tensor<1, Int>,
    ) {
        let wrong = AttackLoss::Margin
            .per_sample(logits, y.clone())
            .greater_elem(0.0)
            .float();
        *best = Some(match best.take() {
            None => Self { x, losses, wrong },
            Some(old) => {
                let gain = wrong.clone() - old.wrong.clone();
                let higher = losses.clone().greater(old.losses.clone());
                let better = gain
                    .clone()
                    .greater_elem(0.5)
                    .bool_or(gain.abs().lower_elem(0.5).bool_and(higher));
                let better = better.float();
                Self {
                    x: choose(&better, x, old.x),
                    losses: choose(&better, losses, old.losses),
                    wrong: choose(&better, wrong, old.wrong),
                }
            }
        });
    }
}
