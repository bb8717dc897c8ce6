use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::module::Module;
use burn::tensor::Device;
use gauntlet_data::Splits;
use gauntlet_models::{Classifier, Description};

use crate::{MetricSink, Plan, TrainError};

/// What a training needs besides the network.
pub struct Session<'a> {
    /// The resolved plan.
    pub plan: &'a Plan,
    /// How to build the network again; kept beside its weights.
    pub description: &'a Description,
    /// Where `checkpoints/`, `samples/`, `metrics.jsonl` and `tensorboard/` go. If it holds checkpoints, training goes on from
    /// the newest whole one.
    pub folder: &'a Path,
    /// `hardened` or `standard`, for people.
    pub label: &'a str,
    /// The data.
    pub splits: &'a Splits,
    /// Where to compute: a plain device, not an autodiff one.
    pub device: &'a Device,
    /// Who listens, besides `metrics.jsonl`.
    pub sinks: &'a mut [Box<dyn MetricSink>],
    /// Set by Ctrl-C: the run saves a checkpoint and returns.
    pub stop: &'a AtomicBool,
}

/// How a training ended.
#[derive(Debug)]
pub struct Fitted<M> {
    /// The network that ships (the best on validation data, if there are any), untracked and in eval mode.
    pub model: M,
    /// Its updates.
    pub step: u64,
    /// Whether all epochs were trained; `false` after Ctrl-C.
    pub finished: bool,
    /// Seconds of training over all interruptions, validation included.
    pub seconds: f64,
}

/// Trains `model` (built on an autodiff device) as the plan says.
///
/// # Errors
/// See [`TrainError`]. Whatever happens, the checkpoints written before are whole.
pub fn fit<M: Module + Classifier<4>>(
    model: M,
    session: Session<'_>,
) -> Result<Fitted<M>, TrainError> {
    let _ = (model, session);
    todo!()
}
