use burn::tensor::{Int, Tensor};
use gauntlet_kernels::perturb::choose;
use gauntlet_models::Classifier;

use crate::gradient::input_gradient_of;
use crate::pgd::Best;
use crate::union::Union;
use crate::{Attack, AttackLoss, Goal, Init, Keep, Noise, Pgd};

/// Multi steepest descent, against the union of several balls (Maini et al. 2020, "Adversarial robustness against the union of
/// multiple perturbation models", algorithm 1): in each step, one step under each threat model, projected on its own ball; of
/// these the one with the highest loss is kept, for each sample by itself.
///
/// The result is legal under one of the threat models at least, which [`Union::verify`] checks.
///
/// # Panics
/// `perturb` panics where a threat model is L0, which has no gradient step.
#[derive(Clone, Debug)]
pub struct Msd {
    /// What the attacker may choose from: L∞, L2 and L1. With nothing to choose from, inputs stay as they are.
    pub union: Union,
    /// What is ascended.
    pub loss: AttackLoss,
    /// Steps; each costs a gradient, and a forward pass for each threat model.
    pub steps: usize,
    /// Length of a step as a share of eps, of each threat model.
    pub relative_step: f32,
    /// Independent runs; below 2048.
    pub restarts: usize,
    /// Where runs after the first start; the first starts at the clean input, as in the paper. Random points are those of the
    /// threat models in turn.
    pub init: Init,
    /// Which iterate is returned.
    pub keep: Keep,
    /// What the attacker wants.
    pub goal: Goal,
    /// Share of the values that a step in L1 moves, in `[0, 1]`; at least one value moves.
    pub sparsity: f32,
}

impl Msd {
    /// For evaluation: so many steps of 2.5 / steps of each eps, one run, untargeted, the best iterate of each sample.
    pub fn new(union: Union, steps: usize) -> Self {
        Self {
            union,
            loss: AttackLoss::CrossEntropy,
            steps,
            relative_step: 2.5 / steps.max(1) as f32,
            restarts: 1,
            init: Init::Uniform,
            keep: Keep::Best,
            goal: Goal::Untargeted,
            sparsity: Pgd::SPARSITY,
        }
    }
}

impl<const D: usize> Attack<D> for Msd {
    fn perturb(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<D> {
        let threats = &self.union.0;
        if x.dims().contains(&0) || threats.is_empty() {
            return x;
        }
        let loss = |logits| self.goal.loss(self.loss, logits, y.clone());
        let mut best = Best::new(self.goal, y.clone());
        let mut last = x.clone();
        for restart in 0..self.restarts.max(1) {
            last = match self.init {
                Init::Uniform if restart > 0 => {
                    let threat = &threats[restart % threats.len()];
                    threat.start(&x, noise, restart as u32)
                }
                _ => x.clone(),
            };
            if self.keep == Keep::Best {
                let logits = model.logits(last.clone());
                best.update(&last, loss(logits.clone()), logits);
            }
            for _ in 0..self.steps {
                let (gradient, ..) = input_gradient_of(model, last.clone(), loss);
                let mut highest: Option<(Tensor<D>, Tensor<1>)> = None;
                for threat in threats {
                    let size = self.relative_step * threat.eps.value();
                    let (from, gradient) = (last.clone(), gradient.clone());
                    let moved = threat.step(from, x.clone(), gradient, size, self.sparsity);
                    let logits = model.logits(moved.clone());
                    let losses = loss(logits.clone());
                    if self.keep == Keep::Best {
                        best.update(&moved, losses.clone(), logits);
                    }
                    highest = Some(match highest {
                        None => (moved, losses),
                        Some((x, old)) => {
                            let higher = losses.clone().greater(old.clone()).float();
                            (choose(&higher, moved, x), choose(&higher, losses, old))
                        }
                    });
                }
                last = highest.expect("there is a threat model").0;
            }
        }
        let result = best.take().unwrap_or(last);
        debug_assert_eq!(self.union.verify(&x, &result), Ok(()));
        result
    }

    fn name(&self) -> String {
        match self.restarts {
            0 | 1 => format!("MSD-{}", self.steps),
            restarts => format!("MSD-{}x{restarts}", self.steps),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use gauntlet_kernels::{NoiseKey, Stream};

    use super::*;
    use crate::testing::{Linear, values};
    use crate::{Norm, ThreatModel};

    fn noise() -> Noise {
        Noise {
            key: NoiseKey::new(3, Stream::EvalAttack),
            samples: vec![0, 1],
        }
    }

    /// Each class flees along its own direction: one is met best by many small changes, the other by a single large one. On a
    /// linear model the gain of a ball is eps times the dual norm of the direction: each row gets the norm with the larger one.
    #[test]
    fn each_sample_gets_the_norm_that_hurts_it_most() {
        let device = Device::flex();
        let (flat, spike) = ([1.0f32; 8], [0.0, 0.0, 0.0, 6.0, 0.0, 0.0, 0.0, 0.5]);
        let model = Linear::new([[0.0; 8], flat, spike], [50.0, 20.0, 20.0], &device);
        let x = Tensor::<2>::full([2, 8], 0.5, &device);
        // Towards class 1 from class 2 or back: the difference of rows is the same. So the target decides, from class 0.
        let y = Tensor::<1, Int>::from_ints([1, 2], &device);
        let union = Union(
            ["linf:0.1", "l2:0.2", "l1:0.4"]
                .map(|t| t.parse().unwrap())
                .to_vec(),
        );
        let attack = Msd {
            goal: Goal::Targeted,
            ..Msd::new(union, 20)
        };
        let moved = attack.perturb(&model, x.clone(), y, &noise()) - x;
        // Towards class 1: L∞ gains 0.1 * 8, L2 0.2 * sqrt(8), L1 0.4. Towards class 2: 0.65, 1.2, 2.4.
        let of = |norm: Norm| values(norm.lengths(moved.clone()));
        assert!((of(Norm::Linf)[0] - 0.1).abs() < 1e-4, "{moved}");
        assert!((of(Norm::L1)[0] - 0.8).abs() < 1e-3, "{moved}");
        assert!((of(Norm::L1)[1] - 0.4).abs() < 1e-4, "{moved}");
        assert!((of(Norm::Linf)[1] - 0.4).abs() < 1e-3, "{moved}");
    }

    /// With one threat model it is PGD from the clean input.
    #[test]
    fn alone_a_threat_model_is_pgd() {
        let device = Device::flex();
        let rows = [[1.0, -2.0, 0.5, 0.3], [0.5, 1.0, -1.0, 0.2]];
        let model = Linear::new(rows, [0.2, -0.1], &device);
        let x = Tensor::<2>::full([2, 4], 0.5, &device);
        let y = Tensor::<1, Int>::from_ints([0, 1], &device);
        for threat in ["linf:0.1", "l2:0.3", "l1:0.5"] {
            let threat: ThreatModel = threat.parse().unwrap();
            for keep in [Keep::Last, Keep::Best] {
                let pgd = Pgd {
                    init: Init::Clean,
                    keep,
                    ..Pgd::new(threat.clone(), 7)
                };
                let msd = Msd {
                    keep,
                    ..Msd::new(Union(vec![threat.clone()]), 7)
                };
                let a = pgd.perturb(&model, x.clone(), y.clone(), &noise());
                let b = msd.perturb(&model, x.clone(), y.clone(), &noise());
                for (a, b) in values(a).into_iter().zip(values(b)) {
                    assert!((a - b).abs() < 1e-6, "{threat}");
                }
            }
        }
        let nothing = Msd::new(Union(Vec::new()), 3);
        assert_eq!(
            values(nothing.perturb(&model, x.clone(), y, &noise())),
            values(x)
        );
    }
}
