use super::model::checkpoint_in;
use crate::args;
use crate::failure::Failure;
use burn::tensor::Device;
use gauntlet_models::{Description, Network};
use gauntlet_train::checkpoint;
use std::path::{Path, PathBuf};
/// Shape of the images and names of the classes.
pub(crate) type Takes = ([usize; 3], Vec<String>);
pub(crate) struct Loaded {
    pub(crate) model: Network,
    pub(crate) description: Description,
    pub(crate) name: String,
    folder: PathBuf,
}
impl Loaded {
    pub(crate) fn audit_folder(&self) -> PathBuf {
        self.folder.join("audit")
    }
}
pub(crate) fn load(
    path: &Path,
    _: &args::Weights,
    _: Option<Takes>,
    device: &Device,
) -> Result<Loaded, Failure> {
    let folder = checkpoint_in(path)?;
    let (model, description) = checkpoint::load_network(&folder, device)?;
    Ok(Loaded {
        name: folder.display().to_string(),
        model,
        description,
        folder,
    })
}
