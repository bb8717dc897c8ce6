//! How long the next step of [`crate::Apgd`] is, and whether it starts anew from the best point.

use burn::tensor::Tensor;
use gauntlet_kernels::perturb::{choose, l0_norms};

/// The step size of each row over a run, looked at after certain steps.
pub(crate) struct Pace {
    step: Tensor<1>,
    rule: Rule,
}

enum Rule {
    Halving {
        checkpoints: Vec<usize>,
        check: Box<Check>,
    },
    Sparse(Box<Sparse>),
}

impl Pace {
    /// L∞ and L2: twice eps at first, halved where it stops to help. `loss` is that of the start.
    pub(crate) fn halving(loss: &Tensor<1>, eps: f32, steps: usize) -> Self {
        Self {
            step: loss.ones_like().mul_scalar(2.0 * eps),
            rule: Rule::Halving {
                checkpoints: checkpoints(steps),
                check: Box::new(Check::new(loss)),
            },
        }
    }

    /// L1: eps at first. A fifth of the values move or, where `staged`, as many as `start` has changed from `x0`, over 1.5.
    pub(crate) fn sparse<const D: usize>(
        start: &Tensor<D>,
        x0: &Tensor<D>,
        eps: f32,
        steps: usize,
        staged: bool,
    ) -> Self {
        let changed = changed(start, x0);
        let values = x0.dims()[1..].iter().product::<usize>() as f32;
        let all = changed.ones_like().mul_scalar(values);
        let (moved, changed) = match staged {
            true => (changed.clone().div_scalar(1.5), changed),
            false => (all.clone().mul_scalar(0.2), all),
        };
        Self {
            step: changed.ones_like().mul_scalar(eps),
            rule: Rule::Sparse(Box::new(Sparse {
                eps,
                period: (steps / 25).max(1),
                moved,
                changed,
            })),
        }
    }

    /// Length of the next step of each row.
    pub(crate) fn step(&self) -> &Tensor<1> {
        &self.step
    }

    /// How many values of each row the next step moves; L1 only.
    pub(crate) fn moved(&self) -> Tensor<1> {
        match &self.rule {
            Rule::Sparse(sparse) => sparse.moved.clone().ceil().clamp_min(1.0),
            Rule::Halving { .. } => unreachable!("steps in other norms move all values"),
        }
    }

    /// To be called after each step, with its loss. At a checkpoint, 1 for the rows that go on from their best point.
    pub(crate) fn after_step<const D: usize>(
        &mut self,
        made: usize,
        loss: Tensor<1>,
        best_loss: &Tensor<1>,
        best: &Tensor<D>,
        x0: &Tensor<D>,
    ) -> Option<Tensor<1>> {
        match &mut self.rule {
            Rule::Halving { checkpoints, check } => {
                check.add(loss);
                checkpoints.contains(&made).then(|| {
                    let halve = check.due(best_loss);
                    self.step = self.step.clone() * halve.clone().mul_scalar(-0.5).add_scalar(1.0);
                    halve
                })
            }
            Rule::Sparse(sparse) => made.is_multiple_of(sparse.period).then(|| {
                let sparser = sparse.look(changed(best, x0));
                let eps = sparse.eps;
                let shorter = self.step.clone().div_scalar(1.5).clamp_min(0.1 * eps);
                self.step = choose(&sparser, shorter.ones_like().mul_scalar(eps), shorter);
                sparser
            }),
        }
    }
}

/// How many values of each row are not what they were. Not pixels: each channel counts.
fn changed<const D: usize>(x: &Tensor<D>, x0: &Tensor<D>) -> Tensor<1> {
    let dims = x.dims();
    let flat = [dims[0], dims[1..].iter().product::<usize>()];
    l0_norms((x.clone() - x0.clone()).reshape(flat))
}

/// The rule of L1 (Croce & Hein 2021, algorithm 1): every 4 % of the steps, the number of values to move becomes that of the
/// best point, over 1.5. Where that point got sparser by 5 % or more, the row goes on from it with the full step; elsewhere the
/// step is divided by 1.5, down to a tenth of eps.
struct Sparse {
    eps: f32,
    /// Steps from one look to the next.
    period: usize,
    moved: Tensor<1>,
    /// How many values the best point had changed at the last look.
    changed: Tensor<1>,
}

impl Sparse {
    /// 1 where the best point got sparser.
    fn look(&mut self, changed: Tensor<1>) -> Tensor<1> {
        let bar = self.changed.clone().mul_scalar(0.95);
        let sparser = changed.clone().lower(bar).float();
        self.moved = changed.clone().div_scalar(1.5);
        self.changed = changed;
        sparser
    }
}

/// Steps after which the step size is looked at: periods of 22 % of all, then ever 3 % shorter, but no less than 6 %.
fn checkpoints(steps: usize) -> Vec<usize> {
    let share = |hundredths: usize| (steps * hundredths / 100).max(1);
    let (mut period, mut at, mut found) = (share(22), 0, Vec::new());
    while at + period <= steps {
        at += period;
        found.push(at);
        period = period.saturating_sub(share(3)).max(share(6));
    }
    found
}

/// What is remembered between checkpoints, a value a row.
struct Check {
    /// How often the loss rose.
    rises: Tensor<1>,
    steps: usize,
    /// The loss of the step before.
    loss: Tensor<1>,
    best: Tensor<1>,
    /// Whether the step was halved at the last one.
    halved: Tensor<1>,
}

impl Check {
    fn new(loss: &Tensor<1>) -> Self {
        Self {
            rises: loss.zeros_like(),
            steps: 0,
            // As the authors' code has it: the first loss is compared with zero.
            loss: loss.zeros_like(),
            best: loss.clone(),
            halved: loss.ones_like(),
        }
    }

    fn add(&mut self, loss: Tensor<1>) {
        self.rises = self.rises.clone() + loss.clone().greater(self.loss.clone()).float();
        self.loss = loss;
        self.steps += 1;
    }

    /// 1 for rows whose step is to be halved: the loss rose in three quarters of the steps or less (condition 1), or the step
    /// was kept last time and the best loss is still what it was (condition 2).
    fn due(&mut self, best: &Tensor<1>) -> Tensor<1> {
        let few = 0.75 * self.steps as f32;
        let oscillates = self.rises.clone().lower_equal_elem(few).float();
        let stalls = self.best.clone().greater_equal(best.clone()).float();
        let kept = self.halved.clone().neg().add_scalar(1.0);
        let halve = oscillates.max_pair(kept * stalls);
        self.halved = halve.clone();
        self.best = best.clone();
        self.rises = self.rises.zeros_like();
        self.steps = 0;
        halve
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::values;

    #[test]
    fn step_sizes_are_looked_at_when_the_paper_does() {
        // Section 3.1: p_j for 100 iterations.
        assert_eq!(checkpoints(100), [22, 41, 57, 70, 80, 87, 93, 99]);
        assert_eq!(checkpoints(1), [1]);
        assert!(checkpoints(0).is_empty());
    }

    /// Ten values, eps 1, 50 steps: a look every second step, at best points with so many values changed.
    #[test]
    fn sparse_steps_follow_the_sparsity_of_the_best_point() {
        let device = Device::flex();
        let x0 = Tensor::<2>::full([1, 10], 0.5, &device);
        let with = |changed: usize| {
            let delta: Vec<f32> = (0..10)
                .map(|i| if i < changed { 0.1 } else { 0.0 })
                .collect();
            x0.clone() + Tensor::<1>::from_floats(delta.as_slice(), &device).unsqueeze_dim(0)
        };
        let loss = Tensor::<1>::zeros([1], &device);
        let mut pace = Pace::sparse(&with(6), &x0, 1.0, 50, false);
        assert_eq!(values(pace.moved()), [2.0]);
        let mut seen = Vec::new();
        for (look, changed) in [6, 6, 5, 5, 5, 5, 5, 5, 5, 5].into_iter().enumerate() {
            let mut after = |made| pace.after_step(made, loss.clone(), &loss, &with(changed), &x0);
            assert!(after(2 * look + 1).is_none());
            let back = after(2 * look + 2).expect("a look");
            seen.push((
                values(back)[0],
                values(pace.moved())[0],
                values(pace.step().clone())[0],
            ));
        }
        // From 10 to 6: sparser. 6 of 6 is not; 5 of 6 is. Then 1.5 times shorter every time, but no less than a tenth.
        assert_eq!(seen[0], (1.0, 4.0, 1.0));
        assert_eq!(seen[1], (0.0, 4.0, 1.0 / 1.5));
        assert_eq!(seen[2], (1.0, 4.0, 1.0));
        assert_eq!(seen[3].2, 1.0 / 1.5);
        assert!((seen[4].2 - 1.0 / 2.25).abs() < 1e-6);
        assert_eq!(seen[9], (0.0, 4.0, 0.1));
        // In stages, the start says how many.
        let staged = Pace::sparse(&with(9), &x0, 1.0, 50, true);
        assert_eq!(values(staged.moved()), [6.0]);
    }
}
