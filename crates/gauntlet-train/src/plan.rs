//! A run, as a user writes it: one TOML file, checked, every default written out.

use gauntlet_attacks::{Eps, Norm, ThreatModel};
use gauntlet_data::DataConfig;
use gauntlet_models::ModelConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Everything that decides what a training run does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Name of the run, and of its folder.
    pub name: String,
    /// Seed of every random number of the run. Default: 0.
    #[serde(default)]
    pub seed: u64,
    /// Where to run: `auto`, `cpu`, `vulkan[:N]`, `cuda[:N]`. Default: auto.
    #[serde(default = "auto")]
    pub device: String,
    /// The data set and its batches.
    pub data: DataConfig,
    /// The network.
    pub model: ModelConfig,
    /// What the finished model must withstand.
    pub threat: ThreatConfig,
    /// How it is trained.
    pub train: TrainConfig,
    /// How it is judged, during training and at the end.
    #[serde(default)]
    pub evaluate: EvaluateConfig,
    /// When state is saved.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
}

/// The `[threat]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ThreatConfig {
    /// How a perturbation is measured: `linf` or `l2`.
    pub norm: Norm,
    /// Its largest size in input units ([0, 1] pixels): `0.1` or `"8/255"`.
    pub eps: Eps,
}

impl ThreatConfig {
    /// The threat model on inputs in [0, 1].
    pub fn model(&self) -> ThreatModel {
        ThreatModel::new(self.norm, self.eps.clone())
    }
}

/// The training method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Cross-entropy on clean examples.
    Standard,
    /// Cross-entropy on PGD examples (Madry et al. 2018).
    Pgd,
}

/// The `[train]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The training method.
    pub objective: Objective,
    /// Passes over the training data, at least 1.
    pub epochs: u32,
    /// Which examples are attacked. Default: all of them.
    #[serde(default)]
    pub interleave: InterleaveConfig,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The learning rate over time.
    pub schedule: ScheduleConfig,
    /// Largest global L2 norm of the gradient over all parameters. Default: no clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f32>,
    /// Probability mass spread over all classes, in [0, 1). Default: 0.
    #[serde(default)]
    pub label_smoothing: f32,
    /// A running average of the weights; it is then what is evaluated and kept. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<EmaConfig>,
    /// The attack inside training. Default: 10 steps of eps/4 from a random start.
    #[serde(default)]
    pub attack: AttackConfig,
}

/// How clean and adversarial examples take turns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InterleaveConfig {
    /// What takes turns. Default: adversarial.
    #[serde(default)]
    pub pattern: Pattern,
    /// Share that is adversarial, in (0, 1]: of each batch (`mixed`) or of the batches (`alternate`). Default: 0.5.
    #[serde(default = "half")]
    pub adversarial: f64,
    /// First epochs on clean examples only. Default: 0.
    #[serde(default)]
    pub clean_epochs: u32,
    /// Epochs after those over which the attack's eps and step size grow linearly from 0. Default: 0.
    #[serde(default)]
    pub ramp_epochs: f64,
}

impl Default for InterleaveConfig {
    fn default() -> Self {
        Self {
            pattern: Pattern::default(),
            adversarial: half(),
            clean_epochs: 0,
            ramp_epochs: 0.0,
        }
    }
}

/// What takes turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Every example is attacked.
    #[default]
    Adversarial,
    /// Clean and adversarial batches.
    Alternate,
    /// Clean and adversarial examples in each batch.
    Mixed,
}

/// `kind` and its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// Stochastic gradient descent.
    Sgd {
        /// Default: 0.9.
        #[serde(default = "momentum")]
        momentum: f64,
        /// Nesterov's form of momentum. Default: false.
        #[serde(default)]
        nesterov: bool,
        /// L2 penalty, added to the gradient. Default: 0.
        #[serde(default)]
        weight_decay: f32,
        /// Whether BatchNorm parameters and biases decay too. Default: true.
        #[serde(default = "yes")]
        decay_norm_and_bias: bool,
    },
    /// Adam.
    Adam {
        /// Decay of the first and second moment. Default: [0.9, 0.999].
        #[serde(default = "betas")]
        betas: [f32; 2],
        /// Default: 1e-8.
        #[serde(default = "epsilon")]
        epsilon: f32,
        /// L2 penalty, added to the gradient. Default: 0.
        #[serde(default)]
        weight_decay: f32,
        /// Whether BatchNorm parameters and biases decay too. Default: true.
        #[serde(default = "yes")]
        decay_norm_and_bias: bool,
    },
    /// Adam with decoupled weight decay.
    AdamW {
        /// Decay of the first and second moment. Default: [0.9, 0.999].
        #[serde(default = "betas")]
        betas: [f32; 2],
        /// Default: 1e-8.
        #[serde(default = "epsilon")]
        epsilon: f32,
        /// Share of each weight removed per unit of learning rate. Default: 0.01.
        #[serde(default = "adamw_decay")]
        weight_decay: f32,
        /// Whether BatchNorm parameters and biases decay too. Default: true.
        #[serde(default = "yes")]
        decay_norm_and_bias: bool,
    },
}

/// The learning rate as a function of the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ScheduleConfig {
    /// The same from first to last step.
    Constant {
        /// Learning rate.
        rate: f64,
    },
    /// Multiplied by `factor` at each milestone.
    Piecewise {
        /// Learning rate at the start.
        rate: f64,
        /// Shares of the run, in (0, 1), ascending.
        milestones: Vec<f64>,
        /// Default: 0.1.
        #[serde(default = "tenth")]
        factor: f64,
    },
    /// Half a cosine from `rate` to 0 (Loshchilov & Hutter 2017), after a linear warm-up.
    Cosine {
        /// Largest learning rate.
        rate: f64,
        /// Share of the run that warms up from 0, in [0, 1). Default: 0.
        #[serde(default)]
        warmup: f64,
    },
    /// Cosine from `peak/25` up to `peak` and down to `peak/250000` (Smith & Topin 2018, as PyTorch has it).
    OneCycle {
        /// Largest learning rate.
        peak: f64,
        /// Share of the run until the peak, in (0, 1). Default: 0.3.
        #[serde(default = "one_cycle_peak_at")]
        peak_at: f64,
    },
    /// Linear from 0 up to `peak` and back to 0 (Wong et al. 2020).
    Cyclic {
        /// Largest learning rate.
        peak: f64,
        /// Share of the run until the peak, in (0, 1). Default: 0.5.
        #[serde(default = "half")]
        peak_at: f64,
    },
}

/// An exponential moving average of the weights, with BatchNorm statistics of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmaConfig {
    /// Share of the average that stays at each step, in (0, 1). In the first steps it is min(decay, (1 + t)/(10 + t)).
    pub decay: f64,
}

/// A PGD attack; `eps` and `norm` come from `[threat]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttackConfig {
    /// Gradient steps. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Length of a step in input units. Default: 2.5 eps / steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_size: Option<Eps>,
    /// Start at a random place in the ball. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random_start: Option<bool>,
    /// Independent runs, the best kept per sample; during training always 1. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<usize>,
}

/// The `[evaluate]` table: what validation data say during training, and test data at the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluateConfig {
    /// Epochs between validations; the best by robust accuracy is kept. Default: 1.
    #[serde(default = "one")]
    pub every: u32,
    /// The attack on validation data. Default: 10 steps.
    #[serde(default)]
    pub attack: AttackConfig,
    /// What the finished model is judged by, on test data.
    #[serde(default, rename = "final")]
    pub at_end: FinalConfig,
    /// Also train a standard twin (same data, network, seed, epochs) and judge it alike. Default: false.
    #[serde(default)]
    pub baseline: bool,
}

impl Default for EvaluateConfig {
    fn default() -> Self {
        Self {
            every: 1,
            attack: AttackConfig::default(),
            at_end: FinalConfig::default(),
            baseline: false,
        }
    }
}

/// The `[evaluate.final]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FinalConfig {
    /// The attack. Default: 20 steps, 5 restarts.
    #[serde(default = "final_attack")]
    pub attack: AttackConfig,
    /// Only the first so many test samples are attacked (and counted). Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<usize>,
}

impl Default for FinalConfig {
    fn default() -> Self {
        Self {
            attack: final_attack(),
            samples: None,
        }
    }
}

/// The `[checkpoint]` table. One is always written at the end of an epoch that is due, at the end, and on Ctrl-C.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Epochs between checkpoints. Default: 1.
    #[serde(default = "one")]
    pub every_epochs: u32,
    /// Steps between checkpoints, besides. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    /// How many of the newest are kept, besides the best. Default: 2.
    #[serde(default = "two")]
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            every_epochs: 1,
            every_steps: None,
            keep: 2,
        }
    }
}

/// All that is wrong with a plan: one line a key, by its path in the TOML file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.iter().map(|(key, problem)| format!("`{key}`: {problem}")).collect::<Vec<_>>().join("\n"))]
pub struct PlanError {
    /// Path of the key and what is wrong with its value.
    pub problems: Vec<(String, String)>,
}

impl Plan {
    /// Checks every value against its range and the values against each other.
    ///
    /// # Errors
    /// All problems at once.
    pub fn check(&self) -> Result<(), PlanError> {
        todo!()
    }
    /// The same plan with every default written out.
    pub fn resolved(&self) -> Self {
        todo!()
    }
}

fn auto() -> String {
    "auto".into()
}
fn yes() -> bool {
    true
}
fn half() -> f64 {
    0.5
}
fn tenth() -> f64 {
    0.1
}
fn one_cycle_peak_at() -> f64 {
    0.3
}
fn momentum() -> f64 {
    0.9
}
fn betas() -> [f32; 2] {
    [0.9, 0.999]
}
fn epsilon() -> f32 {
    1e-8
}
fn adamw_decay() -> f32 {
    0.01
}
fn one() -> u32 {
    1
}
fn two() -> usize {
    2
}
fn final_attack() -> AttackConfig {
    AttackConfig {
        steps: Some(20),
        restarts: Some(5),
        ..AttackConfig::default()
    }
}
