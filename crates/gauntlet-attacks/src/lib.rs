#![doc = include_str!("../README.md")]

mod apgd;
mod apgd_pace;
mod attack;
mod boundary;
mod box_projection;
mod budget;
mod carlini_wagner;
mod climb;
mod ddn;
mod decision;
mod deepfool;
mod ead;
mod eot;
pub mod evaluate;
mod fab;
mod fgsm;
mod fmn;
mod goal;
mod gradient;
mod hopskipjump;
mod kl_pgd;
mod minimal;
mod momentum;
mod msd;
mod nes;
mod oracle;
mod patch;
mod patch_threat;
mod penalty;
mod pgd;
mod r_fgsm;
mod rows;
mod scores;
mod simba;
mod sparse_rs;
mod spatial;
mod spatial_threat;
mod spsa;
mod square;
mod start;
mod threat;
mod transfer;
mod union;
mod universal;
mod universal_patch;
mod warp;
mod window;

#[cfg(test)]
mod black_box;
#[cfg(test)]
mod min_norm_tests;
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
pub use carlini_wagner::CarliniWagner;
pub use ddn::Ddn;
pub use decision::Start;
pub use deepfool::DeepFool;
pub use ead::{Ead, Rule};
pub use eot::{Average, Eot};
pub use fab::Fab;
pub use fgsm::Fgsm;
pub use fmn::Fmn;
pub use gauntlet_models::Classifier;
pub use goal::Goal;
pub use gradient::{AttackLoss, input_gradient, input_gradient_of};
pub use hopskipjump::HopSkipJump;
pub use kl_pgd::{KlPgd, kl_divergence};
pub use minimal::{MinimumNorm, Within};
pub use momentum::MomentumFgsm;
pub use msd::Msd;
pub use nes::Nes;
pub use patch::{Locations, Patch};
pub use patch_threat::PatchThreat;
pub use pgd::{Init, Keep, Pgd};
pub use r_fgsm::RFgsm;
pub use simba::{Basis, Simba};
pub use sparse_rs::SparseRs;
pub use spatial::{Poses, Spatial};
pub use spatial_threat::{Shift, SpatialThreat};
pub use spsa::Spsa;
pub use square::Square;
pub use threat::{Eps, Norm, ParseThreatError, ThreatModel, Violation};
pub use transfer::{Ensemble, Transfer};
pub use union::Union;
pub use universal::{FitError, Universal, UniversalFit};
pub use universal_patch::{UniversalPatch, UniversalPatchFit};
pub use warp::{Pose, warp};
