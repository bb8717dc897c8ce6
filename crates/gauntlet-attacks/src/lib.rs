//! Threat models and adversarial attacks on any [`Classifier`](gauntlet_models::Classifier).

mod apgd;
mod apgd_pace;
mod attack;
mod box_projection;
mod eot;
pub mod evaluate;
mod fab;
mod fgsm;
mod goal;
mod gradient;
mod minimal;
mod momentum;
mod msd;
mod pgd;
mod r_fgsm;
mod square;
mod start;
mod threat;
mod union;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use apgd::{Apgd, ApgdLoss};
pub use attack::{Attack, Noise};
pub use eot::{Average, Eot};
pub use fab::Fab;
pub use fgsm::Fgsm;
pub use gauntlet_models::Classifier;
pub use goal::Goal;
pub use gradient::{AttackLoss, input_gradient};
pub use minimal::{MinimumNorm, Within};
pub use momentum::MomentumFgsm;
pub use msd::Msd;
pub use pgd::{Init, Keep, Pgd};
pub use r_fgsm::RFgsm;
pub use square::Square;
pub use threat::{Eps, Norm, ParseThreatError, ThreatModel, Violation};
pub use union::Union;
