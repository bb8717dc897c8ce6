//! Threat models and adversarial attacks on any [`Classifier`](gauntlet_models::Classifier).

mod apgd;
mod attack;
mod box_projection;
pub mod evaluate;
mod fab;
mod fgsm;
mod goal;
mod gradient;
mod minimal;
mod pgd;
mod square;
mod threat;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use apgd::{Apgd, ApgdLoss};
pub use attack::{Attack, Noise};
pub use fab::Fab;
pub use fgsm::Fgsm;
pub use gauntlet_models::Classifier;
pub use goal::Goal;
pub use gradient::{AttackLoss, input_gradient};
pub use minimal::{MinimumNorm, Within};
pub use pgd::{Init, Keep, Pgd};
pub use square::Square;
pub use threat::{Eps, Norm, ParseThreatError, ThreatModel, Violation};
