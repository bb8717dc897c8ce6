//! Checkpoints: folders that are whole or not there.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use gauntlet_models::{Description, Network};

use crate::TrainError;

/// The checkpoint folders of a run, oldest first, with their steps.
pub fn list(run: &Path) -> Vec<(u64, PathBuf)> {
    let _ = run;
    todo!()
}

/// The best checkpoint of a run by validation robust accuracy, else the newest.
pub fn best(run: &Path) -> Option<PathBuf> {
    let _ = run;
    todo!()
}

/// The network of a checkpoint folder, untracked, verified against its manifest.
///
/// # Errors
/// [`TrainError::Checkpoint`] naming the damaged file or tensor.
pub fn load_network(
    checkpoint: &Path,
    device: &Device,
) -> Result<(Network, Description), TrainError> {
    let _ = (checkpoint, device);
    todo!()
}
