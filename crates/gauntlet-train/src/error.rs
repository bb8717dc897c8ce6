use std::path::PathBuf;

use gauntlet_models::ModelError;

/// What stops a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The plan has values that cannot be.
    #[error(transparent)]
    Plan(#[from] crate::PlanError),
    /// A new run would overwrite one.
    #[error("{} holds a run already\n\nhint: `gauntlet resume {}` goes on with it; `--out DIR` or `--set name=...` starts another", path.display(), path.display())]
    RunExists {
        /// Folder of the run.
        path: PathBuf,
    },
    /// A folder holds no run.
    #[error("{} holds no run: it has no `config.toml`\n\nhint: `gauntlet runs list` shows what there is", path.display())]
    NoRun {
        /// The folder.
        path: PathBuf,
    },
    /// Another process works on the run.
    #[error("{} is in use by another process", path.display())]
    Busy {
        /// Folder of the run.
        path: PathBuf,
    },
    /// The config of a run cannot be read.
    #[error("{}: {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}\n\nhint: checkpoints written before are whole; free space or fix the permissions, then `gauntlet resume`", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A checkpoint is damaged or from another model.
    #[error("{}: {problem}", path.display())]
    Checkpoint {
        /// Its folder.
        path: PathBuf,
        /// What is wrong, naming the file or tensor.
        problem: String,
    },
    /// The loss is no number any more.
    #[error(
        "the loss is no number at step {step} (epoch {epoch}, {kind} examples): `{term}` is {value}\n\nhint: the last checkpoint is whole; a lower learning rate or `train.clip_norm` often helps, and `train.guard.not_finite = \"skip\"` passes over single steps"
    )]
    NotFinite {
        /// Updates made before.
        step: u64,
        /// Epoch.
        epoch: u32,
        /// `clean`, `adversarial` or `mixed`.
        kind: &'static str,
        /// The term of the loss, or the tensor of the weights.
        term: String,
        /// Its value.
        value: f32,
    },
    /// A run is to go on by another plan, and would not be the run it was meant to be.
    #[error(
        "the run was trained so far by another config:\n{}\n\nhint: `--allow-inexact` goes on all the same; `gauntlet train` with another `--out` starts a run of its own",
        changes.iter().map(|change| format!("  {change}")).collect::<Vec<_>>().join("\n")
    )]
    Changed {
        /// What differs.
        changes: Vec<crate::Change>,
    },
    /// A network that a method leans on cannot be used.
    #[error("`{key}`: {}: {problem}", path.display())]
    Other {
        /// The key that names it.
        key: String,
        /// Its folder.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The training part does not fill one batch.
    #[error("`data.batch_size`: {batch} examples a batch, but only {examples} to train on")]
    TooFewExamples {
        /// Batch size.
        batch: usize,
        /// Training examples.
        examples: usize,
    },
    /// An attack left its threat model.
    #[error("an attack left its threat model: {0}")]
    Violation(#[from] gauntlet_attacks::Violation),
    /// Data.
    #[error(transparent)]
    Data(#[from] gauntlet_data::DataError),
    /// Model.
    #[error(transparent)]
    Model(gauntlet_models::ModelError),
}

impl From<ModelError> for TrainError {
    fn from(error: ModelError) -> Self {
        match error {
            // A full disk is no fault of the model.
            ModelError::Write { path, source } => Self::Io { path, source },
            error => Self::Model(error),
        }
    }
}
