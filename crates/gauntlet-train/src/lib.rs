//! Adversarial training: objectives, interleaving, the step loop, run state, checkpoints, metric sinks.

mod plan;
mod sink;

pub use plan::{
    AttackConfig, CheckpointConfig, EmaConfig, EvaluateConfig, FinalConfig, InterleaveConfig, Objective, OptimizerConfig,
    Pattern, Plan, PlanError, ScheduleConfig, ThreatConfig, TrainConfig,
};
pub use sink::{Event, Kind, MetricSink, Record, Split};
