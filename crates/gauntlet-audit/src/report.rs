use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{AuditError, Evaluation};

/// The stable JSON of an audit (`schema` 1): see the keys in the architecture page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Audit {
    /// Version of this layout: 1.
    pub schema: u32,
    // model, data: { name, split, samples }, clean_accuracy, seed, device, version, warnings,
    // threats: [ { threat, robust_accuracy, attacks: [ { name, steps, restarts, robust_accuracy, seconds } ] } ],
    // besides: per_class, protocol
}

/// A quantity over the steps of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// What it is: `validation robust accuracy`.
    pub name: String,
    /// (epoch, value)
    pub points: Vec<(f64, f64)>,
}

/// All that a run's report shows.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// Name of the run.
    pub name: String,
    /// The hardened model's evaluation.
    pub hardened: Evaluation,
    /// The standard twin's, if one was trained.
    pub standard: Option<Evaluation>,
    /// Curves over training, grouped by plot title.
    pub curves: Vec<(String, Vec<Curve>)>,
    /// Class names.
    pub classes: Vec<String>,
    /// The resolved config as TOML.
    pub config: String,
    /// Data set name, split, samples, hash.
    pub data: (String, String, usize, String),
    /// Seed, device, version.
    pub seed: u64,
    /// Name of the device.
    pub device: String,
    /// Version of gauntlet.
    pub version: String,
    /// Seconds of training.
    pub train_seconds: f64,
}

impl RunReport {
    /// Writes `report.json` and the self-contained `report.html` into `folder`, atomically.
    pub fn write(&self, folder: &Path) -> Result<(), AuditError> {
        let _ = folder;
        todo!()
    }
    /// The table people see at the end: standard vs hardened, clean and robust.
    pub fn table(&self) -> String {
        todo!()
    }
}
