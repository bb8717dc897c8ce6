//! Adversarial training: objectives, interleaving, the step loop, run state, checkpoints, metric sinks.
#![doc = include_str!("../METHODS.md")]

mod average;
mod awp;
mod changes;
pub mod checkpoint;
mod error;
mod guard;
mod interleave;
mod jsonl;
mod loss;
mod method_config;
mod objective;
mod optimizer;
mod plan;
mod run_dir;
mod schedule;
mod sink;
mod sinks;
mod step;
mod tensorboard;
mod trainer;
mod validation;

#[cfg(test)]
mod guard_tests;
#[cfg(test)]
mod tests;

pub use changes::{Change, changes};
pub use error::TrainError;
pub use interleave::StepPlan;
pub use loss::{
    boosted_cross_entropy, cross_entropy, distillation, divergence, jensen_shannon, logit_distance,
    weighted_divergence,
};
pub use method_config::{
    Alp, AwpConfig, Combine, Consistency, CurriculumConfig, Distill, EarlyStopConfig, Free,
    GuardConfig, Hat, Mart, MultiNorm, NFgsm, NormLayers, Objective, OnNotFinite, OnOverfitting,
    Precision, Smoothing, SwaConfig, Trades,
};
pub use optimizer::{Optimizer, clip_global_norm};
pub use plan::{
    AttackConfig, CheckpointConfig, EmaConfig, EvaluateConfig, FinalConfig, InterleaveConfig,
    OptimizerConfig, Pattern, Plan, PlanError, ScheduleConfig, ThreatConfig, TrainConfig,
};
pub use run_dir::RunDir;
pub use sink::{Event, Kind, MetricSink, Record, Split};
pub use trainer::{Fitted, Session, fit};
