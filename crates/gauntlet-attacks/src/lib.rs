//! Threat models and adversarial attacks on any [`Classifier`](gauntlet_models::Classifier).

mod apgd;
mod attack;
mod boundary;
mod box_projection;
mod budget;
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
mod patch;
mod patch_threat;
mod pgd;
mod rows;
mod scores;
mod simba;
mod sparse_rs;
mod spatial;
mod spatial_threat;
mod spsa;
mod square;
mod threat;
mod transfer;
mod universal;
mod universal_patch;
mod warp;
mod window;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod testing_images;
#[cfg(test)]
mod tests;

pub use apgd::{Apgd, ApgdLoss};
pub use attack::{Attack, Noise};
pub use boundary::Boundary;
pub use budget::Budget;
pub use decision::Start;
pub use fab::Fab;
pub use fgsm::Fgsm;
pub use gauntlet_models::Classifier;
pub use goal::Goal;
pub use gradient::{AttackLoss, input_gradient};
pub use hopskipjump::HopSkipJump;
pub use minimal::{MinimumNorm, Within};
pub use nes::Nes;
pub use patch::{Locations, Patch};
pub use patch_threat::PatchThreat;
pub use pgd::{Init, Keep, Pgd};
pub use simba::{Basis, Simba};
pub use sparse_rs::SparseRs;
pub use spatial::{Poses, Spatial};
pub use spatial_threat::{Shift, SpatialThreat};
pub use spsa::Spsa;
pub use square::Square;
pub use threat::{Eps, Norm, ParseThreatError, ThreatModel, Violation};
pub use transfer::{Ensemble, Transfer};
pub use universal::{FitError, Universal, UniversalFit};
pub use universal_patch::{UniversalPatch, UniversalPatchFit};
pub use warp::{Pose, warp};
