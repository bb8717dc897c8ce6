//! A run, as a user writes it: one TOML file, checked, every default written out.

use std::str::FromStr;

use gauntlet_attacks::{AttackLoss, Eps, Goal, Init, Keep, Norm, Pgd, ThreatModel};
use gauntlet_data::{DataConfig, Source};
use gauntlet_models::{Arch, ModelConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::method_config::{
    Alp, AwpConfig, Consistency, CurriculumConfig, Distill, EarlyStopConfig, Free, GuardConfig,
    Hat, Mart, MultiNorm, NFgsm, NormLayers, Objective, Precision, Smoothing, SwaConfig, Trades,
};

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
    /// The attack inside training. Default: 10 steps of eps/4 from a random start; one step where the method has one.
    #[serde(default)]
    pub attack: AttackConfig,
    /// Other strengths of the attack from certain epochs on. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curriculum: Vec<CurriculumConfig>,
    /// Adversarial weight perturbation, around any method. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub awp: Option<AwpConfig>,
    /// An equal average of the weights of late epochs; it is then what is evaluated and kept. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swa: Option<SwaConfig>,
    /// In what the network computes in training: `f32`, `bf16-attack`, `bf16`. Validation and audits are in f32. Default: f32.
    #[serde(default)]
    pub precision: Precision,
    /// Whether clean and adversarial examples share normalisation layers. Default: shared.
    #[serde(default)]
    pub norm_layers: NormLayers,
    /// When to end before the last epoch. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stop: Option<EarlyStopConfig>,
    /// What happens when training goes wrong.
    #[serde(default)]
    pub guard: GuardConfig,
    /// Parameters of the method `trades`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trades: Option<Trades>,
    /// Parameters of the method `mart`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mart: Option<Mart>,
    /// Parameters of the method `hat`, which needs them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hat: Option<Hat>,
    /// Parameters of the method `n-fgsm`.
    #[serde(default, rename = "n-fgsm", skip_serializing_if = "Option::is_none")]
    pub n_fgsm: Option<NFgsm>,
    /// Parameters of the method `free`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<Free>,
    /// Parameters of the method `alp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alp: Option<Alp>,
    /// Parameters of the method `consistency`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// Parameters of the method `distill`, which needs them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distill: Option<Distill>,
    /// Parameters of the method `multi-norm`, which needs them.
    #[serde(
        default,
        rename = "multi-norm",
        skip_serializing_if = "Option::is_none"
    )]
    pub multi_norm: Option<MultiNorm>,
    /// Parameters of the method `smoothing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smoothing: Option<Smoothing>,
}

impl TrainConfig {
    /// The tables of methods that are there, with whether the method needs its own.
    fn method_tables(&self) -> [(Objective, bool, bool); 10] {
        [
            (Objective::Trades, self.trades.is_some(), false),
            (Objective::Mart, self.mart.is_some(), false),
            (Objective::Hat, self.hat.is_some(), true),
            (Objective::NFgsm, self.n_fgsm.is_some(), false),
            (Objective::Free, self.free.is_some(), false),
            (Objective::Alp, self.alp.is_some(), false),
            (Objective::Consistency, self.consistency.is_some(), false),
            (Objective::Distill, self.distill.is_some(), true),
            (Objective::MultiNorm, self.multi_norm.is_some(), true),
            (Objective::Smoothing, self.smoothing.is_some(), false),
        ]
    }

    /// The same with the table of the chosen method written out.
    fn with_method_table(mut self) -> Self {
        match self.objective {
            Objective::Trades => drop(self.trades.get_or_insert_default()),
            Objective::Mart => drop(self.mart.get_or_insert_default()),
            Objective::NFgsm => drop(self.n_fgsm.get_or_insert_default()),
            Objective::Free => drop(self.free.get_or_insert_default()),
            Objective::Alp => drop(self.alp.get_or_insert_default()),
            Objective::Consistency => drop(self.consistency.get_or_insert_default()),
            Objective::Smoothing => drop(self.smoothing.get_or_insert_default()),
            _ => {}
        }
        self
    }

    /// The same without the tables of methods.
    fn without_method_tables(self) -> Self {
        Self {
            trades: None,
            mart: None,
            hat: None,
            n_fgsm: None,
            free: None,
            alp: None,
            consistency: None,
            distill: None,
            multi_norm: None,
            smoothing: None,
            ..self
        }
    }
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

/// A PGD attack; its norm comes from `[threat]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttackConfig {
    /// Budget in input units. Default: that of `[threat]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eps: Option<Eps>,
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

/// Collects what is wrong with a plan.
#[derive(Default)]
struct Problems(Vec<(String, String)>);

impl Problems {
    fn unless(&mut self, holds: bool, key: &str, problem: impl Into<String>) {
        if !holds {
            self.0.push((key.to_owned(), problem.into()));
        }
    }

    fn share(&mut self, key: &str, value: f64) {
        self.unless(
            value > 0.0 && value < 1.0,
            key,
            format!("{value} is not between 0 and 1"),
        );
    }

    fn positive(&mut self, key: &str, value: f64) {
        self.unless(
            value.is_finite() && value > 0.0,
            key,
            format!("{value} is not positive"),
        );
    }

    fn not_negative(&mut self, key: &str, value: f64) {
        self.unless(
            value.is_finite() && value >= 0.0,
            key,
            format!("{value} is negative or no number"),
        );
    }

    fn at_least_one(&mut self, key: &str, value: u64) {
        self.unless(value >= 1, key, "must be at least 1");
    }

    fn attack(&mut self, key: &str, attack: &AttackConfig) {
        if let Some(steps) = attack.steps {
            self.at_least_one(&format!("{key}.steps"), steps as u64);
        }
        for (name, size) in [("eps", &attack.eps), ("step_size", &attack.step_size)] {
            if let Some(size) = size {
                self.positive(&format!("{key}.{name}"), f64::from(size.value()));
            }
        }
        if let Some(restarts) = attack.restarts {
            let fits = (1..=MAX_RESTARTS).contains(&restarts);
            self.unless(
                fits,
                &format!("{key}.restarts"),
                format!("{restarts} is not in 1..={MAX_RESTARTS}"),
            );
        }
    }

    /// What the methods ask for.
    fn methods(&mut self, plan: &Plan) {
        let train = &plan.train;
        let chosen = train.objective;
        for (method, there, needed) in train.method_tables() {
            let key = format!("train.{method}");
            self.unless(
                !there || method == chosen,
                &key,
                format!("belongs to the method `{method}`, and `train.objective` is `{chosen}`"),
            );
            self.unless(
                there || !needed || method != chosen,
                &key,
                format!("`train.objective` is `{method}`, which needs this table"),
            );
        }
        let mixes = chosen.mixes() || train.interleave.pattern != Pattern::Mixed;
        let clean_too = matches!(chosen, Objective::Standard);
        self.unless(
            mixes || clean_too,
            "train.interleave.pattern",
            format!(
                "`{chosen}` attacks whole batches: `adversarial` or `alternate`; `pgd`, `fgsm-rs` and `n-fgsm` mix"
            ),
        );
        if chosen == Objective::NFgsm {
            self.unless(
                plan.threat.norm == Norm::Linf,
                "train.objective",
                "`n-fgsm` is a method for `linf`",
            );
            self.unless(
                train.attack.steps.unwrap_or(1) == 1,
                "train.attack.steps",
                "`n-fgsm` takes one step; `pgd` takes several",
            );
        }
        if matches!(chosen, Objective::FgsmRs | Objective::Free) {
            self.unless(
                train.attack.steps.unwrap_or(1) == 1,
                "train.attack.steps",
                format!("`{chosen}` takes one step; `pgd` takes several"),
            );
        }
        let weights = [
            ("train.trades.beta", train.trades.as_ref().map(|t| t.beta)),
            ("train.mart.beta", train.mart.as_ref().map(|t| t.beta)),
            ("train.hat.beta", train.hat.as_ref().map(|t| t.beta)),
            ("train.hat.gamma", train.hat.as_ref().map(|t| t.gamma)),
            ("train.hat.reach", train.hat.as_ref().map(|t| t.reach)),
            ("train.alp.weight", train.alp.as_ref().map(|t| t.weight)),
            ("train.n-fgsm.noise", train.n_fgsm.as_ref().map(|t| t.noise)),
            (
                "train.consistency.weight",
                train.consistency.as_ref().map(|t| t.weight),
            ),
        ];
        for (key, value) in weights {
            self.not_negative(key, value.unwrap_or(0.0));
        }
        if let Some(free) = &train.free {
            let fits = (1..=1024).contains(&free.replays);
            self.unless(fits, "train.free.replays", "is not in 1..=1024");
        }
        if let Some(consistency) = &train.consistency {
            self.positive("train.consistency.temperature", consistency.temperature);
        }
        self.unless(
            chosen != Objective::Consistency || !plan.data.augment.is_empty(),
            "data.augment",
            "`consistency` compares two augmented views: without augmentation they are the same",
        );
        if let Some(smoothing) = &train.smoothing {
            self.positive("train.smoothing.sigma", smoothing.sigma);
        }
        if let Some(distill) = &train.distill {
            self.positive("train.distill.temperature", distill.temperature);
            let second = match distill.standard_teacher {
                Some(_) => distill.standard_weight,
                None => 0.0,
            };
            let fits = distill.weight >= 0.0 && second >= 0.0 && distill.weight + second <= 1.0;
            self.unless(
                fits,
                "train.distill.weight",
                "the weights of the teachers are shares: not negative, and together at most 1",
            );
        }
        if let Some(several) = &train.multi_norm {
            self.unless(
                !several.threats.is_empty(),
                "train.multi-norm.threats",
                "is empty: name threat models such as \"linf:0.3\", \"l2:2\"",
            );
            for text in &several.threats {
                let problem = match text.parse::<ThreatModel>() {
                    Ok(threat) if threat.norm == Norm::L0 => {
                        Some(format!("`{text}`: L0 has no gradient step to train with"))
                    }
                    Ok(_) => None,
                    Err(error) => Some(error.to_string()),
                };
                if let Some(problem) = problem {
                    self.unless(false, "train.multi-norm.threats", problem);
                }
            }
        }
    }

    /// What goes around the methods.
    fn around(&mut self, train: &TrainConfig, arch: Arch) {
        if let Some(awp) = &train.awp {
            self.positive("train.awp.gamma", awp.gamma);
        }
        if let Some(swa) = &train.swa {
            self.unless(
                train.ema.is_none(),
                "train.swa",
                "there is `train.ema` too, and only one average can ship",
            );
            self.unless(
                swa.from_epoch < train.epochs.max(1),
                "train.swa.from_epoch",
                "no epoch is left to average; see `train.epochs`",
            );
        }
        let ascending = train
            .curriculum
            .windows(2)
            .all(|pair| pair[0].epoch < pair[1].epoch);
        self.unless(
            ascending,
            "train.curriculum",
            "epochs are not in ascending order",
        );
        for stage in &train.curriculum {
            self.unless(
                stage.eps > 0.0 && stage.eps <= 1.0,
                "train.curriculum.eps",
                format!("{} is not in (0, 1]", stage.eps),
            );
            self.at_least_one("train.curriculum.steps", stage.steps.unwrap_or(1) as u64);
        }
        self.unless(
            train.curriculum.is_empty() || train.objective != Objective::Standard,
            "train.curriculum",
            "objective `standard` attacks nothing",
        );
        let several = |stage: &CurriculumConfig| stage.steps.is_some_and(|steps| steps != 1);
        self.unless(
            !train.objective.is_single_step() || !train.curriculum.iter().any(several),
            "train.curriculum.steps",
            format!("`{}` takes one step", train.objective),
        );
        if let Some(stop) = &train.early_stop {
            self.at_least_one("train.early_stop.patience", u64::from(stop.patience));
        }
        self.unless(
            train.precision == Precision::F32 || arch.computes_in_bf16(),
            "train.precision",
            format!("`{arch}` computes in f32 only"),
        );
        self.unless(
            train.norm_layers != NormLayers::SplitClean
                || (train.ema.is_none() && train.swa.is_none()),
            "train.norm_layers",
            "an average of the weights goes with the layers of adversarial examples: `split-adversarial`",
        );
        self.unless(
            train.norm_layers == NormLayers::Shared || train.objective != Objective::Standard,
            "train.norm_layers",
            "objective `standard` has no adversarial examples to keep apart",
        );
    }

    fn optimizer(&mut self, optimizer: &OptimizerConfig) {
        let decay = match *optimizer {
            OptimizerConfig::Sgd {
                momentum,
                nesterov,
                weight_decay,
                ..
            } => {
                let fits = (0.0..1.0).contains(&momentum);
                self.unless(
                    fits,
                    "train.optimizer.momentum",
                    format!("{momentum} is not in [0, 1)"),
                );
                let meaningful = !nesterov || momentum > 0.0;
                self.unless(
                    meaningful,
                    "train.optimizer.nesterov",
                    "needs `momentum` above 0",
                );
                weight_decay
            }
            OptimizerConfig::Adam {
                betas,
                epsilon,
                weight_decay,
                ..
            }
            | OptimizerConfig::AdamW {
                betas,
                epsilon,
                weight_decay,
                ..
            } => {
                let fits = betas.iter().all(|beta| (0.0..1.0).contains(beta));
                self.unless(
                    fits,
                    "train.optimizer.betas",
                    format!("{betas:?} are not in [0, 1)"),
                );
                self.positive("train.optimizer.epsilon", f64::from(epsilon));
                weight_decay
            }
        };
        self.not_negative("train.optimizer.weight_decay", f64::from(decay));
    }

    fn schedule(&mut self, schedule: &ScheduleConfig) {
        match schedule {
            ScheduleConfig::Constant { rate } => self.positive("train.schedule.rate", *rate),
            ScheduleConfig::Piecewise {
                rate,
                milestones,
                factor,
            } => {
                self.positive("train.schedule.rate", *rate);
                self.positive("train.schedule.factor", *factor);
                let inside = milestones.iter().all(|at| *at > 0.0 && *at < 1.0);
                let fits = inside && milestones.is_sorted();
                let hint = "shares of the run between 0 and 1, ascending, such as [0.5, 0.75]";
                self.unless(
                    fits,
                    "train.schedule.milestones",
                    format!("{milestones:?} are not {hint}"),
                );
            }
            ScheduleConfig::Cosine { rate, warmup } => {
                self.positive("train.schedule.rate", *rate);
                let fits = (0.0..1.0).contains(warmup);
                self.unless(
                    fits,
                    "train.schedule.warmup",
                    format!("{warmup} is not in [0, 1)"),
                );
            }
            ScheduleConfig::OneCycle { peak, peak_at }
            | ScheduleConfig::Cyclic { peak, peak_at } => {
                self.positive("train.schedule.peak", *peak);
                self.share("train.schedule.peak_at", *peak_at);
            }
        }
    }
}

/// More would run into the numbers that radii of L2 starts are drawn under.
const MAX_RESTARTS: usize = 2048;

/// A plan from the text of a config file: read, checked, every default written out.
///
/// ```
/// let text = r#"
///     name = "example"
///     data = { source = "digits" }
///     model = { arch = "mlp" }
///     threat = { norm = "linf", eps = "8/255" }
///     [train]
///     objective = "pgd"
///     epochs = 5
///     optimizer = { kind = "adam" }
///     schedule = { kind = "constant", rate = 0.001 }
/// "#;
/// let plan: gauntlet_train::Plan = text.parse()?;
/// assert_eq!(plan.train.attack.steps, Some(10));
/// assert!(text.replace("pgd", "pdg").parse::<gauntlet_train::Plan>().is_err());
/// # Ok::<(), gauntlet_train::TrainError>(())
/// ```
impl FromStr for Plan {
    type Err = TrainError;

    fn from_str(text: &str) -> Result<Self, TrainError> {
        let plan: Self = toml::from_str(text).map_err(|error| TrainError::Config {
            path: "plan".into(),
            problem: error.to_string(),
        })?;
        plan.check()?;
        Ok(plan.resolved())
    }
}

impl Plan {
    /// Checks every value against its range and the values against each other.
    ///
    /// # Errors
    /// All problems at once.
    pub fn check(&self) -> Result<(), PlanError> {
        let mut wrong = Problems::default();
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name =
            !self.name.is_empty() && self.name.chars().all(legal) && !self.name.starts_with('.');
        wrong.unless(
            name,
            "name",
            "names a folder: letters, digits, `-`, `_` and `.`, not starting with `.`",
        );

        let folder = self.data.source == Source::ImageFolder;
        wrong.unless(
            !folder || self.data.path.is_some(),
            "data.path",
            "`image-folder` needs the folder",
        );
        wrong.unless(
            folder || self.data.path.is_none(),
            "data.path",
            "only `image-folder` takes a folder",
        );
        wrong.unless(
            folder || self.data.size.is_none(),
            "data.size",
            "only `image-folder` resizes",
        );
        wrong.at_least_one("data.batch_size", self.data.batch_size as u64);
        wrong.at_least_one("data.limit", self.data.limit.unwrap_or(1) as u64);

        wrong.unless(
            self.threat.norm != Norm::L0,
            "threat.norm",
            "`l0` has no gradient step to train with: choose `linf`, `l2` or `l1`",
        );
        wrong.positive("threat.eps", f64::from(self.threat.eps.value()));
        let sane = self.threat.norm != Norm::Linf || self.threat.eps.value() <= 1.0;
        wrong.unless(
            sane,
            "threat.eps",
            "more than 1, the whole range of a pixel; did you mean a fraction such as \"8/255\"?",
        );

        let train = &self.train;
        wrong.at_least_one("train.epochs", u64::from(train.epochs));
        let interleave = &train.interleave;
        let share = interleave.adversarial > 0.0 && interleave.adversarial <= 1.0;
        wrong.unless(
            share,
            "train.interleave.adversarial",
            format!("{} is not in (0, 1]", interleave.adversarial),
        );
        wrong.not_negative("train.interleave.ramp_epochs", interleave.ramp_epochs);
        let some_left = interleave.clean_epochs < train.epochs.max(1);
        wrong.unless(
            some_left,
            "train.interleave.clean_epochs",
            "leaves no epoch to attack in; see `train.epochs`",
        );
        let means =
            train.objective != Objective::Standard || *interleave == InterleaveConfig::default();
        wrong.unless(
            means,
            "train.interleave",
            "objective `standard` attacks nothing: remove this or choose `pgd`",
        );
        wrong.methods(self);
        wrong.optimizer(&train.optimizer);
        wrong.schedule(&train.schedule);
        if let Some(limit) = train.clip_norm {
            wrong.positive("train.clip_norm", f64::from(limit));
        }
        let smoothing = (0.0..1.0).contains(&train.label_smoothing);
        wrong.unless(
            smoothing,
            "train.label_smoothing",
            format!("{} is not in [0, 1)", train.label_smoothing),
        );
        if let Some(ema) = &train.ema {
            wrong.share("train.ema.decay", ema.decay);
        }
        wrong.around(train, self.model.arch);
        wrong.attack("train.attack", &train.attack);
        let single = train.attack.restarts.unwrap_or(1) == 1;
        wrong.unless(
            single,
            "train.attack.restarts",
            "training runs the attack once",
        );

        wrong.at_least_one("evaluate.every", u64::from(self.evaluate.every));
        wrong.attack("evaluate.attack", &self.evaluate.attack);
        wrong.attack("evaluate.final.attack", &self.evaluate.at_end.attack);
        wrong.at_least_one(
            "evaluate.final.samples",
            self.evaluate.at_end.samples.unwrap_or(1) as u64,
        );
        wrong.at_least_one(
            "checkpoint.every_epochs",
            u64::from(self.checkpoint.every_epochs),
        );
        wrong.at_least_one(
            "checkpoint.every_steps",
            self.checkpoint.every_steps.unwrap_or(1),
        );
        wrong.at_least_one("checkpoint.keep", self.checkpoint.keep as u64);
        if wrong.0.is_empty() {
            Ok(())
        } else {
            Err(PlanError { problems: wrong.0 })
        }
    }

    /// The same plan with every default written out.
    pub fn resolved(&self) -> Self {
        let eps = &self.threat.eps;
        let mut plan = self.clone();
        plan.train.attack = self.train_attack_config();
        plan.train = plan.train.with_method_table();
        plan.evaluate.attack = self.evaluate.attack.resolved(eps, 10, 1);
        plan.evaluate.at_end.attack = self.evaluate.at_end.attack.resolved(eps, 20, 5);
        plan
    }

    /// The plan of the standard twin: the same data, network, seed, epochs and optimizer, no attack.
    pub fn baseline(&self) -> Self {
        let mut plan = self.clone();
        plan.train = plan.train.without_method_tables();
        plan.train.objective = Objective::Standard;
        plan.train.interleave = InterleaveConfig::default();
        plan.train.attack = AttackConfig::default();
        plan.train.curriculum = Vec::new();
        plan.train.norm_layers = NormLayers::Shared;
        plan.evaluate.baseline = false;
        plan
    }

    fn train_attack_config(&self) -> AttackConfig {
        let (steps, relative) = self.train.objective.attack_defaults();
        let mut attack = self.train.attack.clone();
        if let (Some(relative), None, None | Some(1)) = (relative, &attack.step_size, attack.steps)
        {
            let eps = attack.eps.as_ref().unwrap_or(&self.threat.eps);
            attack.step_size = scaled(eps, relative);
        }
        attack.resolved(&self.threat.eps, steps, 1)
    }

    /// The attack inside training: the last iterate counts.
    pub fn train_attack(&self) -> Pgd {
        self.train_attack_config().pgd(self.threat.norm, Keep::Last)
    }

    /// The attack on validation data: the best iterate of each sample counts.
    pub fn validation_attack(&self) -> Pgd {
        self.evaluate
            .attack
            .resolved(&self.threat.eps, 10, 1)
            .pgd(self.threat.norm, Keep::Best)
    }

    /// The attack that judges the finished model.
    pub fn final_attack(&self) -> Pgd {
        self.evaluate
            .at_end
            .attack
            .resolved(&self.threat.eps, 20, 5)
            .pgd(self.threat.norm, Keep::Best)
    }
}

impl AttackConfig {
    fn resolved(&self, eps: &Eps, steps: usize, restarts: usize) -> Self {
        let steps = self.steps.unwrap_or(steps);
        let eps = self.eps.clone().unwrap_or_else(|| eps.clone());
        let step_size = self.step_size.clone().unwrap_or_else(|| {
            scaled(&eps, 2.5 / steps.max(1) as f64).unwrap_or_else(|| eps.clone())
        });
        Self {
            eps: Some(eps),
            steps: Some(steps),
            step_size: Some(step_size),
            random_start: Some(self.random_start.unwrap_or(true)),
            restarts: Some(self.restarts.unwrap_or(restarts)),
        }
    }

    fn pgd(self, norm: Norm, keep: Keep) -> Pgd {
        let (Some(eps), Some(steps), Some(step_size)) = (self.eps, self.steps, self.step_size)
        else {
            unreachable!("only resolved attacks are built");
        };
        Pgd {
            threat: ThreatModel::new(norm, eps),
            loss: AttackLoss::CrossEntropy,
            steps,
            step_size: step_size.value(),
            restarts: self.restarts.unwrap_or(1),
            init: if self.random_start == Some(false) {
                Init::Clean
            } else {
                Init::Uniform
            },
            keep,
            goal: Goal::Untargeted,
            sparsity: Pgd::SPARSITY,
        }
    }
}

/// A multiple of a size, as a person would write it: what f32 adds in the eighth digit is noise.
fn scaled(eps: &Eps, factor: f64) -> Option<Eps> {
    if factor == 1.0 {
        return Some(eps.clone());
    }
    let exact = factor * f64::from(eps.value());
    let written = (exact * 1e7).round() / 1e7;
    Eps::try_from(if written > 0.0 { written } else { exact }).ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = r#"
        name = "smallest"
        data = { source = "digits" }
        model = { arch = "mlp" }
        threat = { norm = "linf", eps = "8/255" }
        [train]
        objective = "pgd"
        epochs = 2
        optimizer = { kind = "sgd" }
        schedule = { kind = "constant", rate = 0.1 }
    "#;

    #[test]
    fn every_default_is_written_out_once_and_for_all() {
        let plan: Plan = toml::from_str(SMALLEST).unwrap();
        plan.check().unwrap();
        let resolved = plan.resolved();
        let attack = &resolved.evaluate.at_end.attack;
        assert_eq!((attack.steps, attack.restarts), (Some(20), Some(5)));
        // 2.5 * 8/255 / 20, to seven digits.
        assert_eq!(attack.step_size.as_ref().unwrap().to_string(), "0.0039216");
        assert_eq!(attack.eps.as_ref().unwrap().to_string(), "8/255");
        let text = toml::to_string(&resolved).unwrap();
        assert!(
            text.contains("eps = \"8/255\"") && text.contains("decay_norm_and_bias = true"),
            "{text}"
        );
        let again: Plan = toml::from_str(&text).unwrap();
        assert_eq!(again, resolved);
        assert_eq!(again.resolved(), resolved);
    }

    #[test]
    fn all_problems_are_named_at_once_by_their_keys() {
        let mut plan: Plan = toml::from_str(SMALLEST).unwrap();
        plan.name = "../elsewhere".to_owned();
        plan.threat.eps = "8".parse().unwrap();
        plan.train.label_smoothing = 1.0;
        plan.train.schedule = ScheduleConfig::Piecewise {
            rate: 0.1,
            milestones: vec![0.75, 0.5],
            factor: 0.1,
        };
        plan.train.attack.restarts = Some(5);
        plan.evaluate.at_end.attack.steps = Some(0);
        plan.data.path = Some("pictures".into());
        let keys: Vec<_> = plan
            .check()
            .unwrap_err()
            .problems
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        let expected = [
            "name",
            "data.path",
            "threat.eps",
            "train.schedule.milestones",
            "train.label_smoothing",
            "train.attack.restarts",
            "evaluate.final.attack.steps",
        ];
        assert_eq!(keys, expected);
    }

    #[test]
    fn networks_that_compute_in_f32_only_are_refused_in_bf16() {
        let mut plan: Plan = toml::from_str(SMALLEST).unwrap();
        plan.train.precision = Precision::Bf16Attack;
        plan.check().unwrap();
        plan.model.arch = Arch::Vit;
        let error = plan.check().unwrap_err().to_string();
        assert!(
            error.contains("train.precision") && error.contains("`vit`"),
            "{error}"
        );
    }

    #[test]
    fn l0_is_refused_by_its_key() {
        let plan = |norm: &str| SMALLEST.replace("linf", norm).parse::<Plan>();
        let error = plan("l0").unwrap_err().to_string();
        assert!(
            error.contains("threat.norm") && error.contains("`l0`"),
            "{error}"
        );
        for norm in ["linf", "l2", "l1"] {
            assert_eq!(plan(norm).unwrap().threat.norm.to_string(), norm);
        }
    }

    #[test]
    fn the_twin_differs_in_nothing_but_the_attack() {
        let mut plan: Plan = toml::from_str(SMALLEST).unwrap();
        plan.train.interleave.pattern = Pattern::Mixed;
        plan.evaluate.baseline = true;
        let twin = plan.baseline();
        twin.check().unwrap();
        assert_eq!(twin.train.objective, Objective::Standard);
        let back = Plan {
            train: plan.train.clone(),
            evaluate: plan.evaluate.clone(),
            ..twin
        };
        assert_eq!(back, plan);
    }

    #[test]
    fn misspelt_keys_are_refused() {
        let text = SMALLEST.replace("epochs", "epoch");
        let error = toml::from_str::<Plan>(&text).unwrap_err().to_string();
        assert!(error.contains("unknown field `epoch`"), "{error}");
    }
}
