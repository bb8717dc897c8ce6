//! Adversarial training: objectives, interleaving, the step loop, run state, checkpoints, metric sinks.

pub mod checkpoint;
mod ema;
mod error;
mod interleave;
mod jsonl;
mod loss;
mod optimizer;
mod plan;
mod run_dir;
mod schedule;
mod sink;
mod tensorboard;
mod trainer;
mod validation;

#[cfg(test)]
mod tests;

pub use error::TrainError;
pub use interleave::StepPlan;
pub use loss::cross_entropy;
pub use optimizer::{Optimizer, clip_global_norm};
pub use plan::{
    AttackConfig, CheckpointConfig, EmaConfig, EvaluateConfig, FinalConfig, InterleaveConfig,
    Objective, OptimizerConfig, Pattern, Plan, PlanError, ScheduleConfig, ThreatConfig,
    TrainConfig,
};
pub use run_dir::RunDir;
pub use sink::{Event, Kind, MetricSink, Record, Split};
pub use trainer::{Fitted, Session, fit};
