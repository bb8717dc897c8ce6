//! What each step is made of: a pure function of epoch and step, so that a resumed run goes on as it would have.

use crate::{InterleaveConfig, Kind, Pattern};

/// What one training step is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepPlan {
    /// Share of the batch that is attacked: 0, 1 or between.
    pub adversarial: f64,
    /// Factor on the attack's eps and step size (ramp), in (0, 1].
    pub ramp: f64,
}

impl StepPlan {
    /// How many of `batch` examples are attacked.
    pub fn attacked(&self, batch: usize) -> usize {
        (self.adversarial * batch as f64).round() as usize
    }

    /// What a record calls a step that attacked `attacked` of `batch` examples.
    pub fn kind(attacked: usize, batch: usize) -> Kind {
        match attacked {
            0 => Kind::Clean,
            n if n == batch => Kind::Adversarial,
            _ => Kind::Mixed,
        }
    }
}

impl InterleaveConfig {
    /// What step `step` (of the run, from 0) is made of, with `per_epoch` steps in an epoch.
    ///
    /// `alternate` spreads its adversarial batches evenly: step `n` is adversarial when `floor((n + 1) share)` exceeds
    /// `floor(n share)`, so any share is met to within one batch at every moment.
    pub fn at(&self, step: u64, per_epoch: u64) -> StepPlan {
        let warm_up = u64::from(self.clean_epochs) * per_epoch;
        if step < warm_up {
            return StepPlan {
                adversarial: 0.0,
                ramp: 1.0,
            };
        }
        let step = step - warm_up;
        let adversarial = match self.pattern {
            Pattern::Adversarial => 1.0,
            Pattern::Mixed => self.adversarial,
            Pattern::Alternate => {
                // The small push keeps shares such as 1/3 from falling short of a whole number by rounding.
                let count = |steps: u64| (steps as f64 * self.adversarial + 1e-9).floor();
                count(step + 1) - count(step)
            }
        };
        let ramp_steps = self.ramp_epochs * per_epoch as f64;
        let ramp = if ramp_steps > 0.0 {
            ((step + 1) as f64 / ramp_steps).min(1.0)
        } else {
            1.0
        };
        StepPlan { adversarial, ramp }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interleave(pattern: Pattern, adversarial: f64) -> InterleaveConfig {
        InterleaveConfig {
            pattern,
            adversarial,
            ..InterleaveConfig::default()
        }
    }

    #[test]
    fn alternate_meets_any_share_at_every_moment() {
        for share in [0.5, 1.0 / 3.0, 0.25, 0.7, 1.0] {
            let config = interleave(Pattern::Alternate, share);
            let mut adversarial = 0.0;
            for step in 0..600 {
                let plan = config.at(step, 100);
                assert!(plan.adversarial == 0.0 || plan.adversarial == 1.0);
                adversarial += plan.adversarial;
                assert!(
                    (adversarial - share * (step + 1) as f64).abs() < 1.0,
                    "{share} at {step}"
                );
            }
        }
    }

    #[test]
    fn half_takes_turns() {
        let config = interleave(Pattern::Alternate, 0.5);
        let turns: Vec<_> = (0..4).map(|step| config.at(step, 10).adversarial).collect();
        assert_eq!(turns, [0.0, 1.0, 0.0, 1.0]);
    }

    #[test]
    fn mixed_attacks_a_share_of_each_batch() {
        let plan = interleave(Pattern::Mixed, 0.25).at(7, 10);
        assert_eq!(plan.attacked(128), 32);
        assert_eq!(StepPlan::kind(32, 128), Kind::Mixed);
        assert_eq!(StepPlan::kind(0, 128), Kind::Clean);
        assert_eq!(StepPlan::kind(128, 128), Kind::Adversarial);
    }

    #[test]
    fn clean_epochs_come_first_and_the_ramp_starts_after_them() {
        let config = InterleaveConfig {
            clean_epochs: 2,
            ramp_epochs: 0.5,
            ..interleave(Pattern::Adversarial, 0.5)
        };
        assert_eq!(config.at(19, 10).adversarial, 0.0);
        let first = config.at(20, 10);
        assert_eq!((first.adversarial, first.ramp), (1.0, 0.2));
        assert_eq!(config.at(24, 10).ramp, 1.0);
        assert_eq!(config.at(99, 10).ramp, 1.0);
    }
}
