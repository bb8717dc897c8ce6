//! The learning rate as a pure function of the step: nothing to save, nothing to restore.

use std::f64::consts::PI;

use crate::ScheduleConfig;

impl ScheduleConfig {
    /// Learning rate of step `step` (from 0) of a run of `total` steps.
    pub fn rate(&self, step: u64, total: u64) -> f64 {
        let at = step as f64 / total.max(1) as f64;
        match self {
            Self::Constant { rate } => *rate,
            Self::Piecewise {
                rate,
                milestones,
                factor,
            } => {
                let passed = milestones
                    .iter()
                    .filter(|&&milestone| at >= milestone)
                    .count();
                rate * factor.powi(passed as i32)
            }
            Self::Cosine { rate, warmup } => {
                if at < *warmup {
                    rate * at / warmup
                } else {
                    rate * 0.5 * (1.0 + (PI * (at - warmup) / (1.0 - warmup)).cos())
                }
            }
            Self::OneCycle { peak, peak_at } => {
                // PyTorch's `OneCycleLR`: the phases end on whole steps, the last step is at the floor.
                let last = (total.max(2) - 1) as f64;
                let up = (peak_at * total as f64 - 1.0).max(1.0);
                let step = (step as f64).min(last);
                let (low, floor) = (peak / 25.0, peak / 25.0 / 1e4);
                if step <= up {
                    anneal(low, *peak, step / up)
                } else {
                    anneal(*peak, floor, (step - up) / (last - up).max(1.0))
                }
            }
            Self::Cyclic { peak, peak_at } => {
                if at < *peak_at {
                    peak * at / peak_at
                } else {
                    peak * (1.0 - at) / (1.0 - peak_at)
                }
            }
        }
    }
}

/// From `start` to `end` along half a cosine.
fn anneal(start: f64, end: f64, share: f64) -> f64 {
    end + (start - end) / 2.0 * (1.0 + (PI * share).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} != {b}");
    }

    #[test]
    fn piecewise_decays_at_every_milestone() {
        let schedule = ScheduleConfig::Piecewise {
            rate: 0.1,
            milestones: vec![0.5, 0.75],
            factor: 0.1,
        };
        close(schedule.rate(0, 200), 0.1);
        close(schedule.rate(99, 200), 0.1);
        close(schedule.rate(100, 200), 0.01);
        // The second decay is the one that a famous `elif` never reached.
        close(schedule.rate(150, 200), 0.001);
    }

    #[test]
    fn one_cycle_is_that_of_pytorch() {
        // PyTorch 2.13, `OneCycleLR(max_lr=0.1)`: see scripts/golden/optimizers.py.
        let ten = [
            0.004,
            0.052,
            0.1,
            0.0950484632,
            0.0811745654,
            0.0611262022,
            0.0388741978,
            0.0188258346,
            0.0049519368,
            4e-07,
        ];
        let schedule = ScheduleConfig::OneCycle {
            peak: 0.1,
            peak_at: 0.3,
        };
        for (step, rate) in ten.into_iter().enumerate() {
            close(schedule.rate(step as u64, 10), rate);
        }
        let schedule = ScheduleConfig::OneCycle {
            peak: 0.1,
            peak_at: 0.25,
        };
        for (step, rate) in [
            (1, 0.0068947542),
            (9, 0.1),
            (20, 0.0703369508),
            (38, 0.0002743041),
        ] {
            close(schedule.rate(step, 40), rate);
        }
    }

    #[test]
    fn cosine_warms_up_and_ends_near_zero() {
        let schedule = ScheduleConfig::Cosine {
            rate: 0.2,
            warmup: 0.1,
        };
        close(schedule.rate(0, 100), 0.0);
        close(schedule.rate(5, 100), 0.1);
        close(schedule.rate(10, 100), 0.2);
        close(schedule.rate(55, 100), 0.1);
        assert!(schedule.rate(99, 100) < 1e-3);
    }

    #[test]
    fn cyclic_is_a_triangle() {
        let schedule = ScheduleConfig::Cyclic {
            peak: 0.2,
            peak_at: 0.4,
        };
        close(schedule.rate(0, 10), 0.0);
        close(schedule.rate(2, 10), 0.1);
        close(schedule.rate(4, 10), 0.2);
        close(schedule.rate(7, 10), 0.1);
    }
}
