//! Threat models and adversarial attacks on any [`Classifier`](gauntlet_models::Classifier).

mod apgd;
mod attack;
mod boundary;
mod box_projection;
mod climb;
mod decision;
pub mod evaluate;
mod fab;
mod fgsm;
mod goal;
mod gradient;
mod hopskipjump;
mod minimal;
mod nes;
mod oracle;
mod pgd;
mod simba;
mod spsa;
mod square;
mod threat;
mod transfer;

#[cfg(test)]
mod black_box;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use apgd::{Apgd, ApgdLoss};
pub use attack::{Attack, Noise};
pub use boundary::Boundary;
pub use decision::Start;
pub use fab::Fab;
pub use fgsm::Fgsm;
pub use gauntlet_models::Classifier;
pub use goal::Goal;
pub use gradient::{AttackLoss, input_gradient};
pub use hopskipjump::HopSkipJump;
pub use minimal::{MinimumNorm, Within};
pub use nes::Nes;
pub use pgd::{Init, Keep, Pgd};
pub use simba::{Basis, Simba};
pub use spsa::Spsa;
pub use square::Square;
pub use threat::{Eps, Norm, ParseThreatError, ThreatModel, Violation};
pub use transfer::{Ensemble, Transfer};
