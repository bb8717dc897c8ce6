//! Where a run's measurements go.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which data a record speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Training examples.
    Train,
    /// Held-out training examples.
    Validation,
}

/// What the examples of a step were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// None was attacked.
    Clean,
    /// All were attacked.
    Adversarial,
    /// Some were attacked.
    Mixed,
}

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// Updates made so far, this one included.
    pub step: u64,
    /// Epoch, from 0.
    pub epoch: u32,
    /// Which data.
    pub split: Split,
    /// What the examples were.
    pub kind: Kind,
    /// Mean loss that was minimised (train), cross-entropy on clean examples (validation).
    pub loss: f64,
    /// Accuracy on the examples as they were trained on (train), on clean examples (validation).
    pub accuracy: f64,
    /// Accuracy under attack: validation only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub robust_accuracy: Option<f64>,
    /// Accuracy under a single step of length eps: validation only, where catastrophic overfitting is looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub single_step_accuracy: Option<f64>,
    /// The terms of the loss, weights included, where there are several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub terms: BTreeMap<String, f64>,
    /// Share of the examples that were attacked.
    pub adversarial: f64,
    /// Budget of the attack at this step.
    pub eps: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Images trained on in a second, attack included. Not written to `metrics.jsonl`: the same run twice writes the same
    /// file.
    #[serde(skip)]
    pub images_per_second: Option<f64>,
}

/// What happens in a run.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// Training starts or goes on.
    Start {
        /// `hardened` or `standard`.
        model: &'a str,
        /// Steps made already (resume).
        done: u64,
        /// Steps in all.
        total: u64,
        /// Steps in an epoch.
        per_epoch: u64,
    },
    /// A training step or a validation was made.
    Record(&'a Record),
    /// Validation is under way.
    Validating {
        /// Samples done.
        done: usize,
        /// Samples in all.
        total: usize,
    },
    /// A checkpoint was written.
    Checkpoint {
        /// Its folder.
        path: &'a Path,
        /// Step.
        step: u64,
        /// Whether it is the best so far.
        best: bool,
    },
    /// A picture of samples: clean | perturbation | adversarial.
    Picture {
        /// Step.
        step: u64,
        /// The picture.
        image: &'a gauntlet_data::picture::RgbImage,
    },
    /// Something a person should know.
    Note(&'a str),
    /// Training is over.
    Finish,
}

/// Receives events. JSONL is the truth; the terminal and TensorBoard are views of it.
pub trait MetricSink {
    /// Takes one event.
    ///
    /// # Errors
    /// Text for a person. A sink that fails is named once and left out from then on; it never stops a run.
    fn event(&mut self, event: &Event<'_>) -> Result<(), String>;
}
