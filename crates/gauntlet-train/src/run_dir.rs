//! The folder of a run: plain files a person can read.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use gauntlet_data::files;
use serde::Serialize;

use crate::{Plan, TrainError};

/// A run's folder, held by this process: a second process that opens it is refused.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    _lock: File,
}

impl RunDir {
    /// Makes the folder of a new run and writes its resolved `config.toml`.
    ///
    /// # Errors
    /// [`TrainError::RunExists`] if a run is there already; nothing is deleted, ever.
    pub fn create(root: &Path, plan: &Plan) -> Result<Self, TrainError> {
        if root.join("config.toml").exists() {
            return Err(TrainError::RunExists {
                path: root.to_owned(),
            });
        }
        for folder in ["checkpoints", "samples", "tensorboard"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(|source| TrainError::Io { path, source })?;
        }
        let run = Self::lock(root)?;
        run.write_plan(plan)?;
        Ok(run)
    }

    /// Writes `config.toml`: what the run does from now on.
    ///
    /// # Errors
    /// [`TrainError::Io`] naming the file.
    pub fn write_plan(&self, plan: &Plan) -> Result<(), TrainError> {
        let config = toml::to_string_pretty(plan).expect("a plan is plain tables and values");
        write_atomic(&self.root.join("config.toml"), config.as_bytes())
    }

    /// Opens the folder of an existing run.
    ///
    /// # Errors
    /// [`TrainError::NoRun`] if it holds no `config.toml`, [`TrainError::Config`] if that cannot be read as a plan.
    pub fn open(root: &Path) -> Result<(Self, Plan), TrainError> {
        let plan = Self::plan(root)?;
        Ok((Self::lock(root)?, plan))
    }

    /// The plan of the run in `root`, without holding the folder.
    ///
    /// # Errors
    /// As [`RunDir::open`].
    pub fn plan(root: &Path) -> Result<Plan, TrainError> {
        let path = root.join("config.toml");
        let text = fs::read_to_string(&path).map_err(|_| TrainError::NoRun {
            path: root.to_owned(),
        })?;
        toml::from_str(&text).map_err(|error| TrainError::Config {
            path,
            problem: error.to_string(),
        })
    }

    fn lock(root: &Path) -> Result<Self, TrainError> {
        let path = root.join(".lock");
        let file = File::create(&path).map_err(|source| TrainError::Io {
            path: path.clone(),
            source,
        })?;
        match file.try_lock() {
            Ok(()) => Ok(Self {
                root: root.to_owned(),
                _lock: file,
            }),
            Err(TryLockError::WouldBlock) => Err(TrainError::Busy {
                path: root.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(TrainError::Io { path, source }),
        }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// Writes `value` as pretty JSON to `name`, atomically.
    ///
    /// # Errors
    /// [`TrainError::Io`] naming the file.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), TrainError> {
        write_json(&self.root.join(name), value)
    }
}

/// Writes `value` as pretty JSON, atomically.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), TrainError> {
    let mut text = serde_json::to_vec_pretty(value).expect("plain structs serialise");
    text.push(b'\n');
    write_atomic(path, &text)
}

/// [`files::write`], with its error.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    files::write(path, bytes).map_err(|source| TrainError::Io {
        path: path.to_owned(),
        source,
    })
}
