//! What to look for while training, on validation data.

use serde::{Deserialize, Serialize};

/// Accuracy under attack at one validation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Under PGD.
    pub(crate) robust: f64,
    /// Under one step of length eps from the clean image.
    pub(crate) single_step: f64,
}

/// A collapse is a fall to less than this share of the best accuracy under PGD.
const COLLAPSE: f64 = 0.5;

/// Below this accuracy under PGD there is nothing to collapse from.
const LEAST: f64 = 0.1;

/// Whether `now` shows catastrophic overfitting (Wong et al. 2020, section 5.4) beside the `best` validation so far: the network
/// has learnt to mask the single step it is trained with, so accuracy under that does not fall while accuracy under PGD does.
pub(crate) fn overfits(best: Seen, now: Seen) -> bool {
    best.robust >= LEAST
        && now.robust < COLLAPSE * best.robust
        && now.single_step >= best.single_step - 0.02
}

/// So much more stands after a single step than after PGD where the single step is masked.
const MASKED: f64 = 0.5;

/// Whether `now` shows a network that masks the single step and has nothing else. One may pass through this early in training;
/// one that stays so at full strength of the attack has overfitted before there was anything to collapse from.
pub(crate) fn masks(now: Seen) -> bool {
    now.robust < LEAST && now.single_step - now.robust > MASKED
}

/// The class that a network takes nearly everything for, and the share of samples, where the truth is more varied.
pub(crate) fn one_class(predicted: &[u32], labels: &[u32]) -> Option<(u32, f64)> {
    let share_of_most = |classes: &[u32]| {
        let mut counts = std::collections::BTreeMap::new();
        for class in classes {
            *counts.entry(*class).or_insert(0usize) += 1;
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count)?;
        Some((most.0, most.1 as f64 / classes.len() as f64))
    };
    let (class, share) = share_of_most(predicted)?;
    let (_, truth) = share_of_most(labels)?;
    (share >= 0.95 && truth < 0.75).then_some((class, share))
}

/// That a run went back to a checkpoint, kept beside the checkpoints until the end: those that came after it in an earlier
/// attempt do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RollBack {
    /// How often the run went back.
    pub(crate) attempt: u32,
    /// Where to.
    pub(crate) to_step: u64,
    /// Whether the attack has been changed for one of several steps.
    pub(crate) multi_step: bool,
}

/// Most times that a run goes back before it ends.
pub(crate) const MAX_ATTEMPTS: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(robust: f64, single_step: f64) -> Seen {
        Seen {
            robust,
            single_step,
        }
    }

    #[test]
    fn a_collapse_is_told_from_honest_trouble() {
        let best = seen(0.45, 0.55);
        // As published runs of FGSM look: 0 % under PGD, 90 % under the single step.
        assert!(overfits(best, seen(0.0, 0.9)));
        assert!(overfits(best, seen(0.2, 0.56)));
        // Both fall: the network forgets, or the learning rate is too high.
        assert!(!overfits(best, seen(0.1, 0.2)));
        // Robust overfitting is slow.
        assert!(!overfits(best, seen(0.40, 0.57)));
        assert!(!overfits(seen(0.05, 0.3), seen(0.0, 0.9)));
    }

    #[test]
    fn a_masked_single_step_is_told_from_a_weak_network() {
        // As FGSM-RS looked on MNIST at 0.3 without a ramp.
        assert!(masks(seen(0.013, 0.7)));
        // A network that was never attacked.
        assert!(!masks(seen(0.0, 0.3)));
        assert!(!masks(seen(0.05, 0.5)));
        // Weak, and honest enough to go on.
        assert!(!masks(seen(0.2, 0.75)));
    }

    #[test]
    fn one_class_for_all_is_a_collapse_only_where_there_are_several() {
        let labels: Vec<u32> = (0..100).map(|i| i % 10).collect();
        assert_eq!(one_class(&[3; 100], &labels), Some((3, 1.0)));
        assert_eq!(one_class(&labels, &labels), None);
        assert_eq!(one_class(&[3; 100], &[3; 100]), None);
        assert_eq!(one_class(&[], &[]), None);
    }
}
