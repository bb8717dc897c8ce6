//! The layout of `report.json`.

use crate::Certified;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The stable JSON of an audit (`schema` 1). Accuracies are shares in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Audit {
    /// Version of this layout: 1.
    pub schema: u32,
    /// Name of the run, or the checkpoint.
    pub model: String,
    /// What it was judged on.
    pub data: Data,
    /// Accuracy without attack.
    pub clean_accuracy: f64,
    /// 95 % interval of it (Wilson 1927).
    pub clean_interval: [f64; 2],
    /// Seed of the attack's random numbers.
    pub seed: u64,
    /// What it was computed on.
    pub device: String,
    /// Version of gauntlet.
    pub version: String,
    /// Seconds of training, where they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_seconds: Option<f64>,
    /// The plan of attacks: `standard`, `quick`, or the name of a plan file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// What a reader should keep in mind: the findings in a sentence each, and the limits of the protocol.
    pub warnings: Vec<String>,
    /// Codes of the signs that were looked for: those of [`Finding`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<String>,
    /// Signs that the numbers are not what they seem.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// What it withstands.
    pub threats: Vec<Threat>,
    /// How it copes with common corruptions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub corruptions: Vec<CorruptionResult>,
    /// What randomised smoothing certifies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certified: Option<Certified>,
    /// By class.
    pub per_class: Vec<Class>,
    /// The same numbers for a twin trained without attack, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard: Option<Twin>,
}

/// The samples of an audit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Data {
    /// Name of the data set.
    pub name: String,
    /// Which part of it.
    pub split: String,
    /// How many samples.
    pub samples: usize,
    /// SHA-256 of its pixels and labels.
    pub sha256: String,
}

/// What a model withstands within one budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Threat {
    /// `linf:0.1`
    pub threat: String,
    /// Accuracy after all attacks.
    pub robust_accuracy: f64,
    /// 95 % interval of it (Wilson 1927).
    pub robust_interval: [f64; 2],
    /// The attacks, in order.
    pub attacks: Vec<AttackResult>,
    /// `linf`, `l2`, ..., where the budget is a ball of a norm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm: Option<String>,
    /// The radius of that ball in input units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
    /// By class.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub per_class: Vec<Class>,
    /// How many samples of each class (row) ended as which class (column) under attack: as their own where they stand, as what
    /// they were misclassified as where they fell, or without attack. A prediction that is no class is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub confusion: Vec<Vec<usize>>,
    /// How sure the model was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<Confidence>,
}

/// How often the softmax probability of the predicted class fell into each of 20 equal bins of [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Confidence {
    /// Of clean samples that are classified correctly.
    pub clean_right: Vec<usize>,
    /// Of clean samples that are not.
    pub clean_wrong: Vec<usize>,
    /// Of the adversarial examples that samples fell to.
    pub adversarial: Vec<usize>,
}

/// A sign that a number is not what it seems.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// `gradients-vanish`; also the section of the document on diagnosis that has cause and remedy.
    pub code: String,
    /// In a few words.
    pub title: String,
    /// What was measured, with numbers.
    pub evidence: String,
}

/// Accuracy under one common corruption.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CorruptionResult {
    /// `gaussian-noise`
    pub family: String,
    /// From 1 to 5.
    pub severity: u8,
    /// Share of all samples that are classified correctly.
    pub accuracy: f64,
}

/// What is left standing after an attack and those before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttackResult {
    /// `PGD-20x5`
    pub name: String,
    /// Gradient steps or queries of a run.
    pub steps: usize,
    /// Length of a step in input units, where it is always the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_size: Option<f32>,
    /// Independent runs, the best kept per sample.
    pub restarts: usize,
    /// Whether each run starts at a random place in the ball, where that can be chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random_start: Option<bool>,
    /// What it ascends, where that can be chosen: `cross-entropy` or `margin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<String>,
    /// Accuracy.
    pub robust_accuracy: f64,
    /// Wall-clock time.
    pub seconds: f64,
}

/// A class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Class {
    /// Its name.
    pub name: String,
    /// How many samples.
    pub samples: usize,
    /// Accuracy without attack.
    pub clean_accuracy: f64,
    /// Accuracy under attack.
    pub robust_accuracy: f64,
}

/// A twin trained without attack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Twin {
    /// Accuracy without attack.
    pub clean_accuracy: f64,
    /// 95 % interval of it (Wilson 1927).
    #[serde(default = "anything")]
    pub clean_interval: [f64; 2],
    /// Accuracy under attack.
    pub robust_accuracy: f64,
    /// 95 % interval of it (Wilson 1927).
    #[serde(default = "anything")]
    pub robust_interval: [f64; 2],
}

/// The interval of a share of which nothing is known: for files that do not state one.
fn anything() -> [f64; 2] {
    [0.0, 1.0]
}
