//! What is looked at or judged: a run, a checkpoint, or a weights file of another tool.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use gauntlet_models::import::{Imported, Weights};
use gauntlet_models::onnx::OnnxNetwork;
use gauntlet_models::{Activation, Arch, Description, ModelConfig, Network};
use gauntlet_train::checkpoint;

use super::model::checkpoint_in;
use crate::failure::Failure;

/// What was typed of it, and what the data say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subject<'a> {
    /// A run's folder, a checkpoint's, or a weights file.
    pub(crate) path: PathBuf,
    /// `--arch`: that of a weights file.
    pub(crate) arch: Option<Arch>,
    /// `--width`
    pub(crate) width: Option<usize>,
    /// `--depth`
    pub(crate) depth: Option<usize>,
    /// `--activation`
    pub(crate) activation: Option<Activation>,
    /// `--mean` of each channel.
    pub(crate) mean: Option<Vec<f32>>,
    /// `--std` of each channel.
    pub(crate) std: Option<Vec<f32>>,
    /// `--key`: which of several state dicts of a weights file.
    pub(crate) key: Option<&'a str>,
    /// Channels, height, width of the images, and the classes, where the data are known.
    pub(crate) data: Option<([usize; 3], &'a [String])>,
}

/// Where a network came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The folder of a checkpoint.
    Checkpoint(PathBuf),
    /// A weights file of another tool.
    File(PathBuf),
}

impl Origin {
    /// The folder or the file.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Checkpoint(path) | Self::File(path) => path,
        }
    }
}

/// A network that is ready to be judged.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) network: Network,
    pub(crate) description: Description,
    pub(crate) origin: Origin,
    /// For people: what was found out or left aside.
    pub(crate) notes: Vec<String>,
}

impl Subject<'_> {
    /// Loads it.
    pub(crate) fn load(&self, device: &Device) -> Result<Loaded, Failure> {
        match self.origin()? {
            Origin::Checkpoint(folder) => {
                let (network, description) = checkpoint::load_network(&folder, device)?;
                Ok(Loaded {
                    network,
                    description,
                    origin: Origin::Checkpoint(folder),
                    notes: Vec::new(),
                })
            }
            Origin::File(path) => self.import(path, device),
        }
    }

    /// Which of the two it is; nothing is loaded yet.
    pub(crate) fn origin(&self) -> Result<Origin, Failure> {
        let path = &self.path;
        if !path.exists() {
            return Err(Failure::request(format!(
                "{}: there is no such file or folder",
                path.display()
            )));
        }
        let own = path.is_file().then(|| own_checkpoint(path)).flatten();
        let folder = match own {
            Some(folder) => folder,
            None if path.is_file() => return Ok(Origin::File(path.clone())),
            None => checkpoint_in(path)?,
        };
        match self.typed().first() {
            None => Ok(Origin::Checkpoint(folder)),
            Some(option) => Err(Failure::request(format!(
                "`{option}` is for weights files; {} is a checkpoint, which says itself what it holds",
                folder.display()
            ))),
        }
    }

    /// Options that only weights files need.
    fn typed(&self) -> Vec<&'static str> {
        let options = [
            ("--arch", self.arch.is_some()),
            ("--width", self.width.is_some()),
            ("--depth", self.depth.is_some()),
            ("--activation", self.activation.is_some()),
            ("--mean", self.mean.is_some()),
            ("--std", self.std.is_some()),
            ("--key", self.key.is_some()),
        ];
        options
            .into_iter()
            .filter_map(|(option, typed)| typed.then_some(option))
            .collect()
    }

    fn import(&self, path: PathBuf, device: &Device) -> Result<Loaded, Failure> {
        if is_onnx(&path) {
            return self.import_onnx(path, device);
        }
        let Some((shape, classes)) = self.data else {
            return Err(Failure::request(format!(
                "{} says nothing of the images and classes it is for\n\nhint: name the data with `--data`",
                path.display()
            )));
        };
        let mut weights = Weights::open(&path, self.key)?;
        let mut notes = Vec::new();
        let mut config = self.config(&weights, shape, classes.len(), &mut notes)?;
        if config.mean.is_none()
            && config.std.is_none()
            && let Some((mean, std)) = weights.normalisation(shape[0])?
        {
            notes.push(format!(
                "the file normalises by mean {mean:?} and std {std:?}, and so does the network; `--mean` and `--std` say otherwise"
            ));
            (config.mean, config.std) = (Some(mean), Some(std));
        }
        let description = Description {
            config,
            shape,
            classes: classes.to_vec(),
        };
        let Imported {
            network,
            notes: more,
        } = weights.network(&description, device)?;
        notes.extend(more);
        Ok(Loaded {
            network,
            description,
            origin: Origin::File(path),
            notes,
        })
    }

    /// A network with its graph, which says itself what images it takes.
    fn import_onnx(&self, path: PathBuf, device: &Device) -> Result<Loaded, Failure> {
        let typed = self.typed().into_iter();
        let mut others = typed.filter(|option| !matches!(*option, "--mean" | "--std"));
        let other = others.find(|option| *option != "--arch" || self.arch != Some(Arch::Onnx));
        if let Some(option) = other {
            return Err(Failure::request(format!(
                "`{option}` is for files of weights alone; {} says itself what is computed",
                path.display()
            )));
        }
        let file = OnnxNetwork::open(&path, device)?;
        let mut notes = file.notes().to_vec();
        let (shape, count) = (file.shape(), file.classes());
        let classes = match self.data {
            Some((known, classes)) if (known, classes.len()) == (shape, count) => classes.to_vec(),
            Some((known, classes)) => {
                return Err(Failure::request(format!(
                    "{} takes images of {shape:?} in {count} classes; these are {known:?} in {}",
                    path.display(),
                    classes.len()
                )));
            }
            None => (0..count).map(|class| class.to_string()).collect(),
        };
        let each = |values: &Option<Vec<f32>>| match values.as_deref() {
            Some(&[value]) => Some(vec![value; shape[0]]),
            _ => values.clone(),
        };
        if self.mean.is_none() && self.std.is_none() {
            notes.push(
                "its graph is taken to normalise by itself what is in [0, 1]; `--normalise` says otherwise"
                    .to_owned(),
            );
        }
        let description = Description {
            config: ModelConfig {
                mean: each(&self.mean),
                std: each(&self.std),
                file: Some(path.canonicalize().unwrap_or_else(|_| path.clone())),
                ..ModelConfig::of(Arch::Onnx)
            },
            shape,
            classes,
        };
        Ok(Loaded {
            network: description.init(0, device)?,
            description,
            origin: Origin::File(path),
            notes,
        })
    }

    /// The `[model]` table for a weights file: what was typed, and what its names and shapes say of the rest.
    fn config(
        &self,
        weights: &Weights,
        shape: [usize; 3],
        classes: usize,
        notes: &mut Vec<String>,
    ) -> Result<ModelConfig, Failure> {
        // One value stands for all channels.
        let each = |values: &Option<Vec<f32>>| match values.as_deref() {
            Some(&[value]) => Some(vec![value; shape[0]]),
            _ => values.clone(),
        };
        let typed = |arch| ModelConfig {
            activation: self.activation.unwrap_or_default(),
            width: self.width,
            depth: self.depth,
            mean: each(&self.mean),
            std: each(&self.std),
            ..ModelConfig::of(arch)
        };
        let sized = self.arch.is_some_and(Arch::has_width);
        let deep = self.arch.is_some_and(Arch::has_depth);
        let known = self.width.is_some() && (self.depth.is_some() || !deep);
        if let Some(arch) = self.arch
            && (!sized || known)
        {
            return Ok(typed(arch));
        }
        let agrees = |guess: &ModelConfig| {
            self.arch.is_none_or(|arch| arch == guess.arch)
                && self.width.is_none_or(|width| guess.width == Some(width))
                && self.depth.is_none_or(|depth| guess.depth == Some(depth))
        };
        let mut guesses = weights.guess(shape, classes);
        guesses.retain(agrees);
        match (&guesses[..], self.arch) {
            ([guess], _) => {
                notes.push(format!(
                    "the file's tensors are those of {}",
                    described(guess)
                ));
                Ok(ModelConfig {
                    width: guess.width,
                    depth: guess.depth,
                    ..typed(guess.arch)
                })
            }
            // Loading says what does not fit.
            ([], Some(arch)) => Ok(typed(arch)),
            ([], None) => {
                let [channels, height, width] = shape;
                let archs = Arch::ALL.map(Arch::name).join(", ");
                Err(Failure::request(format!(
                    "{}: its tensors are of no network here that takes images of {channels} x {height} x {width} in {classes} \
                     classes\n\nhint: `--arch`, one of {archs}, tells what is missing; `gauntlet model show` lists what the file holds",
                    self.path.display()
                )))
            }
            (several, _) => {
                let several: Vec<_> = several.iter().map(described).collect();
                Err(Failure::request(format!(
                    "{} could be {}\n\nhint: say which with `--arch`, `--width` and `--depth`",
                    self.path.display(),
                    several.join(" or ")
                )))
            }
        }
    }
}

/// Whether a file has a graph in it, and not weights alone.
fn is_onnx(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(64).read_to_end(&mut head));
    read.is_ok() && gauntlet_formats::onnx::is_onnx(&head)
}

/// The checkpoint whose own weights a file is.
fn own_checkpoint(file: &Path) -> Option<PathBuf> {
    let folder = file.parent()?;
    let is_own = file.file_name()? == "model.safetensors" && folder.join("MANIFEST.json").exists();
    is_own.then(|| folder.to_owned())
}

/// `wide-resnet of depth 28 and width 10`
fn described(config: &ModelConfig) -> String {
    let sizes: Vec<_> = [("depth", config.depth), ("width", config.width)]
        .into_iter()
        .filter_map(|(name, size)| Some(format!("{name} {}", size?)))
        .collect();
    match sizes.join(" and ") {
        sizes if sizes.is_empty() => config.arch.to_string(),
        sizes => format!("{} of {sizes}", config.arch),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use gauntlet_models::weights;

    use super::*;

    fn description(model: &str) -> Description {
        Description {
            config: serde_json::from_str(model).unwrap(),
            shape: [1, 8, 8],
            classes: ["a", "b", "c"].map(str::to_owned).to_vec(),
        }
    }

    /// The weights of a network in a file.
    fn saved(description: &Description, path: &Path) -> BTreeMap<String, String> {
        let network = description.init(3, &Device::flex()).unwrap();
        weights::save(&network, &BTreeMap::new(), path).unwrap()
    }

    fn problem(subject: &Subject<'_>) -> String {
        let failure = subject.load(&Device::flex()).expect_err("it was loaded");
        assert_eq!(failure.status, crate::failure::Status::Request);
        failure.to_string()
    }

    #[test]
    fn weights_files_are_what_their_tensors_say() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        let perceptron = description(r#"{"arch":"mlp","width":7}"#);
        let hashes = saved(&perceptron, &path);
        let subject = Subject {
            path: path.clone(),
            data: Some((perceptron.shape, &perceptron.classes)),
            ..Subject::default()
        };
        let loaded = subject.load(&Device::flex()).unwrap();
        assert_eq!(weights::hashes(&loaded.network), hashes);
        assert_eq!(loaded.description, perceptron);
        assert_eq!(loaded.origin, Origin::File(path.clone()));
        assert_eq!(
            loaded.notes,
            ["the file's tensors are those of mlp of width 7"]
        );

        let named = Subject {
            arch: Some(Arch::Mlp),
            mean: Some(vec![0.5]),
            ..subject.clone()
        };
        let loaded = named.load(&Device::flex()).unwrap();
        assert_eq!(loaded.description.config.width, Some(7));
        assert_eq!(loaded.description.config.mean, Some(vec![0.5]));

        let with = |change: &dyn Fn(&mut Subject<'_>)| {
            let mut subject = subject.clone();
            change(&mut subject);
            problem(&subject)
        };
        assert!(with(&|s| s.data = None).contains("--data"));
        assert!(with(&|s| s.width = Some(8)).contains("no network here"));
        assert!(with(&|s| (s.arch, s.width) = (Some(Arch::Mlp), Some(8))).contains("[64, 7]"));
        assert!(with(&|s| s.arch = Some(Arch::MnistCnn)).contains("`mnist-cnn` needs"));
        assert!(with(&|s| s.key = Some("ema")).contains("`ema`"));
        assert!(with(&|s| s.path.push("absent")).contains("no such file"));
    }

    #[test]
    fn folders_are_runs_or_checkpoints() {
        let folder = tempfile::tempdir().unwrap();
        let subject = Subject {
            path: folder.path().to_owned(),
            ..Subject::default()
        };
        assert!(problem(&subject).contains("holds no checkpoint"));
        fs::write(folder.path().join("MANIFEST.json"), "{}").unwrap();
        let weights = folder.path().join("model.safetensors");
        fs::write(&weights, "").unwrap();
        for path in [folder.path(), &weights] {
            let subject = Subject {
                path: path.to_owned(),
                ..Subject::default()
            };
            let origin = Origin::Checkpoint(folder.path().to_owned());
            assert_eq!(subject.origin().unwrap(), origin);
            let named = Subject {
                arch: Some(Arch::Mlp),
                ..subject
            };
            assert!(problem(&named).contains("`--arch` is for weights files"));
        }
    }
}
