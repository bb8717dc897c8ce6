//! Threat models and adversarial attacks on any [`Classifier`](gauntlet_models::Classifier).

mod apgd;
mod attack;
mod box_projection;
mod carlini_wagner;
mod ddn;
mod deepfool;
mod ead;
pub mod evaluate;
mod fab;
mod fgsm;
mod fmn;
mod goal;
mod gradient;
mod minimal;
mod penalty;
mod pgd;
mod square;
mod threat;

#[cfg(test)]
mod min_norm_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use apgd::{Apgd, ApgdLoss};
pub use attack::{Attack, Noise};
pub use carlini_wagner::CarliniWagner;
pub use ddn::Ddn;
pub use deepfool::DeepFool;
pub use ead::{Ead, Rule};
pub use fab::Fab;
pub use fgsm::Fgsm;
pub use fmn::Fmn;
pub use gauntlet_models::Classifier;
pub use goal::Goal;
pub use gradient::{AttackLoss, input_gradient};
pub use minimal::{MinimumNorm, Within};
pub use pgd::{Init, Keep, Pgd};
pub use square::Square;
pub use threat::{Eps, Norm, ParseThreatError, ThreatModel, Violation};
