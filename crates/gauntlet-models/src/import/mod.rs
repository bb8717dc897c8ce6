//! Weights of other tools: safetensors files and PyTorch checkpoints, into a [`Network`] of a known architecture.
//!
//! Known are the names of Gauntlet itself; its layers' names with PyTorch's conventions (`conv1.weight`, `fc1.bias`); plain
//! `nn.Sequential` (`0.weight`, `2.weight`, ...); the PreActResNet-18 of robust_overfitting, MART and AWP, and that of RobustBench; the Wide
//! ResNet and small CNN of TRADES, which RobustBench, MART and AWP share; the Wide ResNet of Gowal et al. (2020); torchvision's ResNets; ResNet-18 and
//! VGG-16 of pytorch-cifar; timm's vision transformers. Dicts around a state dict (`state_dict`, `model`, ...) and modules around a network (`module.`,
//! `1.`) may have any name: they are what comes before the names of the weights.

mod fit;
pub(crate) mod names;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, TensorData};
use gauntlet_formats::WeightsFile;

use crate::{Description, ModelConfig, ModelError, Network, named};
use fit::{Fit, Source};

/// Reads the weights of a file into a network. See [`Weights::network`].
///
/// # Errors
/// [`ModelError::Weights`] naming the tensor; [`ModelError::Config`] if the description cannot be.
pub fn import(
    path: &Path,
    description: &Description,
    device: &Device,
) -> Result<Network, ModelError> {
    let mut weights = Weights::open(path, None)?;
    Ok(weights.network(description, device)?.network)
}

/// Every tensor of a weights file by its name there, as `f32`. For looking at; [`import`] reads only what a network has.
///
/// # Errors
/// [`ModelError::Weights`].
pub fn tensors(path: &Path) -> Result<BTreeMap<String, TensorData>, ModelError> {
    let mut weights = Weights::open(path, None)?;
    let listed = weights.list();
    // Values are at most four times as large as in the file. Views of one storage may share them, but not beyond any memory.
    let total: usize = listed
        .iter()
        .map(|tensor| 4 * tensor.shape.iter().product::<usize>())
        .sum();
    if total as u64 > 16 * weights.file.length() {
        return Err(weights.wrong(format!("its tensors have {total} bytes in all")));
    }
    let mut read = BTreeMap::new();
    for tensor in listed.into_iter().filter(|tensor| tensor.dtype != UNREAD) {
        let values = weights.values(&tensor.name)?;
        read.insert(tensor.name, TensorData::new(values, tensor.shape));
    }
    Ok(read)
}

/// A network that was imported.
#[derive(Debug)]
pub struct Imported {
    /// It is untracked, on the device that was asked for.
    pub network: Network,
    /// What of the file was left aside, and other things a person should know.
    pub notes: Vec<String>,
}

/// One tensor of a weights file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name in the file.
    pub name: String,
    /// Its shape, as the file has it.
    pub shape: Vec<usize>,
    /// `f32`, `bf16`, ...; `other` for kinds that are not read.
    pub dtype: String,
}

/// `dtype` of what is not read.
const UNREAD: &str = "other";

/// A weights file that is open.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    /// Only what is under this name is looked at.
    key: Option<String>,
    file: WeightsFile,
}

impl Weights {
    /// Opens a safetensors file or what `torch.save` wrote. Where a checkpoint has several state dicts that fit, `key` says which
    /// one: `state_dict`, `ema`.
    ///
    /// # Errors
    /// [`ModelError::Weights`] if it is no such file, is damaged, or has a pickle that asks for code.
    pub fn open(path: &Path, key: Option<&str>) -> Result<Self, ModelError> {
        let file = WeightsFile::open(path).map_err(|error| ModelError::Weights {
            path: path.to_owned(),
            problem: error.to_string(),
        })?;
        let weights = Self {
            path: path.to_owned(),
            key: key.map(str::to_owned),
            file,
        };
        if weights.source().is_empty() {
            let problem = match key {
                Some(key) => format!("holds no tensors under `{key}`; it has {}", weights.some()),
                None => "holds no tensors".to_owned(),
            };
            return Err(weights.wrong(problem));
        }
        Ok(weights)
    }

    /// What it holds, by name.
    pub fn list(&self) -> Vec<Listed> {
        let tensors = self.file.tensors().iter();
        tensors
            .map(|(name, stored)| Listed {
                name: name.clone(),
                shape: stored.shape.clone(),
                dtype: stored
                    .dtype
                    .map_or(UNREAD.to_owned(), |dtype| dtype.to_string()),
            })
            .collect()
    }

    /// The network of that description with the weights of the file. Nothing is loaded by halves: every tensor of the network is
    /// there under a known name with the right shape and finite values, and no weight of the file is left over. Left aside are
    /// counters of BatchNorm, buffers of a normalisation (`mean`, `std`, `mu`, `sigma`; see [`normalisation`](Self::normalisation)),
    /// whole numbers and numbers beside a state dict, other dicts of a checkpoint (`optimizer`, ...), and the stage `sub_block1` that TRADES's Wide ResNet has without using it.
    ///
    /// # Errors
    /// [`ModelError::Weights`] naming the tensor, its shape, and the nearest that there is; [`ModelError::Config`] if the
    /// description cannot be.
    pub fn network(
        &mut self,
        description: &Description,
        device: &Device,
    ) -> Result<Imported, ModelError> {
        let network = description.init(0, device)?;
        let wanted = named::list(&network);
        let arch = description.config.arch;
        let fit =
            fit::best(&self.source(), &wanted, arch).map_err(|problem| self.wrong(problem))?;
        let mut tensors = BTreeMap::new();
        for pair in &fit.pairs {
            let (name, ours) = (&pair.theirs, &wanted[pair.ours]);
            let values = self.values(name)?;
            if let Some((at, value)) = values
                .iter()
                .enumerate()
                .find(|(_, value)| !value.is_finite())
            {
                return Err(self.wrong(format!("`{name}` has {value} at position {at}")));
            }
            let variance = ours.path.ends_with("running_var");
            if let Some(value) = values.iter().find(|value| variance && **value < 0.0) {
                return Err(self.wrong(format!("`{name}` has {value}, which is no variance")));
            }
            let values = if pair.transposed {
                transposed(&values, ours.shape[0], ours.shape[1])
            } else {
                values
            };
            tensors.insert(
                ours.path.clone(),
                TensorData::new(values, ours.shape.clone()),
            );
        }
        let notes = self.notes(&fit, description);
        Ok(Imported {
            network: named::with_data(&network, tensors),
            notes,
        })
    }

    /// Mean and standard deviation of each channel, where the file has such buffers (`mean` or `mu`, `std` or `sigma`).
    ///
    /// # Errors
    /// [`ModelError::Weights`] if their values are not there.
    #[allow(
        clippy::type_complexity,
        reason = "a pair that callers take apart at once"
    )]
    pub fn normalisation(
        &mut self,
        channels: usize,
    ) -> Result<Option<(Vec<f32>, Vec<f32>)>, ModelError> {
        let source = self.source();
        let find = |kinds: [&str; 2]| {
            let mut found = source.iter().filter(|(name, stored)| {
                let last = name.rsplit('.').next().unwrap_or(name);
                kinds.contains(&last) && matches!(stored.values(), n if n == channels || n == 1)
            });
            match (found.next(), found.next()) {
                (Some((name, _)), None) => Some((*name).clone()),
                _ => None,
            }
        };
        let (Some(mean), Some(std)) = (find(["mean", "mu"]), find(["std", "sigma"])) else {
            return Ok(None);
        };
        let mut each = |name: &str| {
            let values = self.values(name)?;
            Ok::<_, ModelError>(match values[..] {
                [value] => vec![value; channels],
                _ => values,
            })
        };
        Ok(Some((each(&mean)?, each(&std)?)))
    }

    /// The architectures whose networks on images of `shape` = [channels, height, width] in `classes` classes fit the file, with
    /// their sizes.
    pub fn guess(&self, shape: [usize; 3], classes: usize) -> Vec<ModelConfig> {
        let source = self.source();
        let total: usize = source.values().map(|stored| stored.values()).sum();
        let fits = |config: &ModelConfig| {
            let network = config.init(shape, classes, 0, &Device::flex()).ok()?;
            fit::best(&source, &named::list(&network), config.arch).ok()
        };
        names::candidates(&source)
            .into_iter()
            // Nothing is built that is larger than the file.
            .filter(|&(_, _, _, least)| least <= total)
            .map(|(arch, width, depth, _)| ModelConfig {
                width,
                depth,
                ..ModelConfig::of(arch)
            })
            .filter(|config| fits(config).is_some())
            .collect()
    }

    /// The tensors that are looked at, by the names they have in the file.
    fn source(&self) -> Source<'_> {
        let under = |name: &str| match &self.key {
            None => true,
            Some(key) => name
                .strip_prefix(key.as_str())
                .is_some_and(|rest| rest.starts_with('.')),
        };
        self.file
            .tensors()
            .iter()
            .filter(|(name, _)| under(name))
            .collect()
    }

    fn values(&mut self, name: &str) -> Result<Vec<f32>, ModelError> {
        self.file.read(name).map_err(|error| ModelError::Weights {
            path: self.path.clone(),
            problem: error.to_string(),
        })
    }

    fn notes(&self, fit: &Fit, description: &Description) -> Vec<String> {
        let mut notes = Vec::new();
        if !fit.normalisation.is_empty() {
            let config = &description.config;
            let told = match (&config.mean, &config.std) {
                (None, None) => "the network is to normalise nothing".to_owned(),
                (mean, std) => format!(
                    "the network normalises by mean {:?} and std {:?}",
                    mean.as_deref().unwrap_or(&[0.0]),
                    std.as_deref().unwrap_or(&[1.0])
                ),
            };
            notes.push(format!(
                "left aside: {}; {told}",
                quoted(&fit.normalisation)
            ));
        }
        if !fit.numbers.is_empty() {
            notes.push(format!(
                "left aside: {}, single numbers",
                quoted(&fit.numbers)
            ));
        }
        if !fit.unused.is_empty() {
            notes.push(format!(
                "left aside: {}, which the published network has and does not use",
                quoted(&fit.unused)
            ));
        }
        notes
    }

    fn some(&self) -> String {
        quoted(&self.file.tensors().keys().cloned().collect::<Vec<_>>())
    }

    fn wrong(&self, problem: impl Into<String>) -> ModelError {
        ModelError::Weights {
            path: self.path.clone(),
            problem: problem.into(),
        }
    }
}

/// The first few names.
fn quoted(names: &[String]) -> String {
    let mut text: Vec<_> = names
        .iter()
        .take(3)
        .map(|name| format!("`{name}`"))
        .collect();
    if names.len() > 3 {
        text.push(format!("and {} more", names.len() - 3));
    }
    text.join(", ")
}

/// `[outputs, inputs]` as PyTorch has the weights of linear layers, as `[inputs, outputs]`.
fn transposed(values: &[f32], inputs: usize, outputs: usize) -> Vec<f32> {
    (0..inputs)
        .flat_map(|input| (0..outputs).map(move |output| values[output * inputs + input]))
        .collect()
}

#[cfg(test)]
mod tests;
