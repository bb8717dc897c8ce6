//! The tables of the training methods, `[train.trades]` and its like, with their defaults.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The training method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Cross-entropy on clean examples.
    Standard,
    /// Cross-entropy on PGD examples (Madry et al. 2018).
    Pgd,
    /// Cross-entropy on clean examples and divergence from them under attack (Zhang et al. 2019).
    Trades,
    /// More weight on what is misclassified (Wang et al. 2020).
    Mart,
    /// TRADES with helper examples beyond the budget, labelled by a standard model (Rade & Moosavi-Dezfooli 2022).
    Hat,
    /// Cross-entropy on examples of one step from a random start (Wong et al. 2020).
    FgsmRs,
    /// The same with more noise and no projection (de Jorge et al. 2022).
    NFgsm,
    /// Several updates a batch, each of weights and perturbation at once (Shafahi et al. 2019).
    Free,
    /// Adversarial logit pairing (Kannan et al. 2018).
    Alp,
    /// Two augmented views, attacked, with predictions drawn together (Tack et al. 2022).
    Consistency,
    /// Learning from a robust teacher (Chen et al. 2021).
    Distill,
    /// Against several threat models at once (Tramèr & Boneh 2019; Maini et al. 2020).
    MultiNorm,
    /// Cross-entropy under Gaussian noise, for randomised smoothing (Cohen et al. 2019).
    Smoothing,
}

impl Objective {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Standard,
        Self::Pgd,
        Self::Trades,
        Self::Mart,
        Self::Hat,
        Self::FgsmRs,
        Self::NFgsm,
        Self::Free,
        Self::Alp,
        Self::Consistency,
        Self::Distill,
        Self::MultiNorm,
        Self::Smoothing,
    ];

    /// Its name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Pgd => "pgd",
            Self::Trades => "trades",
            Self::Mart => "mart",
            Self::Hat => "hat",
            Self::FgsmRs => "fgsm-rs",
            Self::NFgsm => "n-fgsm",
            Self::Free => "free",
            Self::Alp => "alp",
            Self::Consistency => "consistency",
            Self::Distill => "distill",
            Self::MultiNorm => "multi-norm",
            Self::Smoothing => "smoothing",
        }
    }

    /// Whether its loss is a mean over examples that are each clean or attacked, so that a batch can hold both.
    pub fn mixes(self) -> bool {
        matches!(self, Self::Pgd | Self::FgsmRs | Self::NFgsm)
    }

    /// Gradient steps of its attack, and the length of one in units of eps, where the config says nothing. `None`: 2.5 eps
    /// shared among the steps.
    pub(crate) fn attack_defaults(self) -> (usize, Option<f64>) {
        match self {
            Self::FgsmRs => (1, Some(1.25)),
            Self::NFgsm | Self::Free => (1, Some(1.0)),
            _ => (10, None),
        }
    }

    /// Whether its attack is a single step: its own recipe fixes the number of steps.
    pub fn is_single_step(self) -> bool {
        matches!(self, Self::FgsmRs | Self::NFgsm | Self::Free)
    }
}

impl std::fmt::Display for Objective {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Makes a table whose default is that of each key.
macro_rules! table {
    ($(#[$about:meta])* $name:ident { $($(#[$key_about:meta])* $key:ident: $kind:ty = $default:expr,)* }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name { $($(#[$key_about])* pub $key: $kind,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }
    };
}

table! {
    /// The `[train.trades]` table.
    Trades {
        /// Weight of the divergence (1/lambda in the paper). Default: 6.
        beta: f64 = 6.0,
    }
}

table! {
    /// The `[train.mart]` table.
    Mart {
        /// Weight of the divergence. Default: 5.
        beta: f64 = 5.0,
    }
}

table! {
    /// The `[train.alp]` table.
    Alp {
        /// Weight of the squared distance between logits. Default: 0.5.
        weight: f64 = 0.5,
    }
}

table! {
    /// The `[train.n-fgsm]` table.
    NFgsm {
        /// Width of the noise before the step, in units of eps. Default: 2.
        noise: f64 = 2.0,
    }
}

table! {
    /// The `[train.free]` table.
    Free {
        /// Updates on each batch (m in the paper). A pass over the data costs as much as so many ordinary ones. Default: 8.
        replays: u32 = 8,
    }
}

table! {
    /// The `[train.consistency]` table. It needs `data.augment`: without it both views are the same picture.
    Consistency {
        /// Weight of the Jensen-Shannon divergence between the two attacked views. Default: 1.
        weight: f64 = 1.0,
        /// Temperature of the predictions in it. Default: 0.5.
        temperature: f64 = 0.5,
    }
}

table! {
    /// The `[train.smoothing]` table.
    Smoothing {
        /// Standard deviation of the noise, in input units. Default: 0.25.
        sigma: f64 = 0.25,
    }
}

/// The `[train.hat]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hat {
    /// Folder of a run (or checkpoint) that was trained without attack: its predictions label the helper examples.
    pub helper: PathBuf,
    /// Weight of the divergence under attack. Default: 2.5.
    #[serde(default = "hat_beta")]
    pub beta: f64,
    /// Weight of the cross-entropy on helper examples. Default: 0.5.
    #[serde(default = "hat_gamma")]
    pub gamma: f64,
    /// How far beyond the adversarial example the helper example lies: `x + reach (x' - x)`. Default: 2.
    #[serde(default = "hat_reach")]
    pub reach: f64,
}

/// The `[train.distill]` table. What is left of 1 is the weight of the cross-entropy with the true class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Distill {
    /// Folder of a run (or checkpoint) that was trained against attacks.
    pub teacher: PathBuf,
    /// Weight of the robust teacher's predictions. Default: 0.6.
    #[serde(default = "teacher_weight")]
    pub weight: f64,
    /// Folder of a run that was trained without attack, as a second teacher. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_teacher: Option<PathBuf>,
    /// Weight of the second teacher's predictions. Default: 0.1.
    #[serde(default = "tenth")]
    pub standard_weight: f64,
    /// Temperature of both. Default: 2.
    #[serde(default = "two")]
    pub temperature: f64,
}

/// The `[train.multi-norm]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MultiNorm {
    /// The threat models, such as `["linf:0.3", "l2:2", "l1:10"]`; each is attacked with the steps of `[train.attack]`.
    pub threats: Vec<String>,
    /// How they are joined. Default: max.
    #[serde(default)]
    pub combine: Combine,
}

/// How losses under several threat models become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Combine {
    /// Of each sample, the example with the highest loss (Tramèr & Boneh 2019).
    #[default]
    Max,
    /// The mean over all examples (Tramèr & Boneh 2019).
    Average,
    /// One attack that takes the steepest of the steps (Maini et al. 2020).
    Msd,
}

/// The `[train.awp]` table: adversarial weight perturbation (Wu et al. 2020).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AwpConfig {
    /// Size of the perturbation of each layer, as a share of the norm of its weights. Default: 0.005.
    #[serde(default = "awp_gamma")]
    pub gamma: f64,
    /// Epochs before it starts. Default: 0.
    #[serde(default)]
    pub warmup_epochs: u32,
}

/// The `[train.swa]` table: an equal average of the weights at the ends of epochs (Izmailov et al. 2018), with BatchNorm
/// statistics estimated anew on the training data. It is then what is evaluated and kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SwaConfig {
    /// The first epoch whose end counts, from 0.
    pub from_epoch: u32,
}

/// One entry of `[[train.curriculum]]`: from an epoch on, the attack has other strength.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CurriculumConfig {
    /// The first epoch it holds for, from 0.
    pub epoch: u32,
    /// Gradient steps. Default: those of `[train.attack]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Share of eps (and of the step size), in (0, 1]. Default: 1.
    #[serde(default = "one")]
    pub eps: f64,
}

/// The `[train.early_stop]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopConfig {
    /// Validations without a new best after which training ends.
    pub patience: u32,
}

/// The `[train.guard]` table: what happens when training goes wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GuardConfig {
    /// What to do at catastrophic overfitting: validation accuracy under PGD falls to less than half of its best, while that
    /// under a single step does not fall; or two in a row below 10 %, 50 points under that of a single step. Default: stop.
    pub overfitting: OnOverfitting,
    /// What to do when the loss is no number. Default: stop.
    pub not_finite: OnNotFinite,
}

/// What to do at catastrophic overfitting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnOverfitting {
    /// Nothing; it is not looked for.
    Ignore,
    /// Training ends; the best checkpoint ships.
    #[default]
    Stop,
    /// Go back to the best checkpoint and train on with other noise; at most three times.
    RollBack,
    /// Go back to the best checkpoint and train on with an attack of 10 steps.
    MultiStep,
}

/// What to do when the loss is no number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnNotFinite {
    /// Training ends with an error that names step and term; the last checkpoint is whole.
    #[default]
    Stop,
    /// The step changes nothing; ten of them in a row end training.
    Skip,
}

/// `train.norm_layers`: clean and adversarial examples with normalisation layers of their own (Xie et al. 2020,
/// AdvProp).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NormLayers {
    /// The same for all examples.
    #[default]
    Shared,
    /// Those of adversarial examples ship.
    SplitAdversarial,
    /// Those of clean examples ship.
    SplitClean,
}

fn hat_beta() -> f64 {
    2.5
}
fn hat_gamma() -> f64 {
    0.5
}
fn hat_reach() -> f64 {
    2.0
}
fn teacher_weight() -> f64 {
    0.6
}
fn tenth() -> f64 {
    0.1
}
fn one() -> f64 {
    1.0
}
fn two() -> f64 {
    2.0
}
fn awp_gamma() -> f64 {
    0.005
}

/// In what a network computes while it is trained. Weights, their gradients, BatchNorm's statistics, the loss and the optimizer are
/// `f32` in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// `f32` (a GPU's matrix units may round what they multiply to TF32).
    #[default]
    F32,
    /// The attack's passes in `bf16`, the update in `f32`.
    Bf16Attack,
    /// The attack and the update in `bf16`.
    Bf16,
}

impl Precision {
    /// Whether attacks compute in `bf16`.
    pub fn attacks_in_bf16(self) -> bool {
        self != Self::F32
    }
}
