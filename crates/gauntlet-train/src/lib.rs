//! Adversarial training: objectives, interleaving, the step loop, run state, checkpoints, metric sinks.

pub mod checkpoint;
mod error;
mod interleave;
mod optimizer;
mod plan;
mod run_dir;
mod schedule;
mod sink;
mod trainer;

pub use error::TrainError;
pub use interleave::StepPlan;
pub use optimizer::{Optimizer, clip_global_norm};
pub use plan::{
    AttackConfig, CheckpointConfig, EmaConfig, EvaluateConfig, FinalConfig, InterleaveConfig,
    Objective, OptimizerConfig, Pattern, Plan, PlanError, ScheduleConfig, ThreatConfig,
    TrainConfig,
};
pub use run_dir::RunDir;
pub use sink::{Event, Kind, MetricSink, Record, Split};
pub use trainer::{Fitted, Session, fit};
