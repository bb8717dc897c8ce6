use burn::tensor::{Device, Tensor};
use gauntlet_attacks::evaluate::Outcome;
use gauntlet_attacks::{Attack, ThreatModel};
use gauntlet_data::Dataset;
use gauntlet_models::Classifier;

use crate::AuditError;

/// What one attack did to one model.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// `PGD-20x5`
    pub attack: String,
    /// The budget.
    pub threat: ThreatModel,
    /// Predictions of every sample.
    pub outcome: Outcome,
    /// Wall-clock time.
    pub seconds: f64,
    /// The first samples, clean and adversarial, for pictures: `[k, c, h, w]`.
    pub gallery: (Tensor<4>, Tensor<4>),
}

/// Attacks every sample of `data` in fixed-shape batches; `progress(done, total)` is called after each, and `false` from it
/// stops with `Ok(None)`.
///
/// # Errors
/// An example outside its threat model.
#[allow(clippy::too_many_arguments)]
pub fn evaluate(
    model: &dyn Classifier<4>,
    data: &Dataset,
    threat: &ThreatModel,
    attack: &dyn Attack<4>,
    seed: u64,
    batch_size: usize,
    device: &Device,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Option<Evaluation>, AuditError> {
    let _ = (model, data, threat, attack, seed, batch_size, device, progress);
    todo!()
}
