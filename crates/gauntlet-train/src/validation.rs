//! What held-out examples say while a run is under way.

use burn::tensor::{Device, Tensor};
use gauntlet_attacks::evaluate::{Outcome, evaluate_batch};
use gauntlet_attacks::{Attack, Pgd};
use gauntlet_data::Dataset;
use gauntlet_kernels::{NoiseKey, Stream};
use gauntlet_models::Classifier;

use crate::TrainError;
use crate::guard::Seen;
use crate::loss::cross_entropy;

/// What validation found.
pub(crate) struct Validation {
    pub(crate) outcome: Outcome,
    /// Mean cross-entropy on clean examples.
    pub(crate) loss: f64,
    /// Accuracy under a single step, where it was asked for.
    pub(crate) single_step: Option<f64>,
    /// The first samples, clean and adversarial.
    pub(crate) gallery: (Tensor<4>, Tensor<4>),
}

impl Validation {
    /// What the guard against overfitting looks at.
    pub(crate) fn seen(&self) -> Option<Seen> {
        Some(Seen {
            robust: self.outcome.robust_accuracy(),
            single_step: self.single_step?,
        })
    }
}

/// Pictures shown of a validation.
const GALLERY: usize = 8;

/// Attacks every sample of `data`, with a second attack of a single step where that is wanted. `progress(done)` is called after
/// each batch; `false` from it stops with `Ok(None)`.
pub(crate) fn validate(
    model: &dyn Classifier<4>,
    data: &Dataset,
    (attack, single_step): (&Pgd, Option<&Pgd>),
    seed: u64,
    batch_size: usize,
    device: &Device,
    mut progress: impl FnMut(usize) -> bool,
) -> Result<Option<Validation>, TrainError> {
    let attack_each: &dyn Attack<4> = attack;
    let batch_size = batch_size.min(data.len());
    // The same starting points at every validation, so that epochs are compared and not draws.
    let key = NoiseKey::new(seed, Stream::EvalAttack);
    let mut outcome = Outcome::default();
    let mut under_single = Outcome::default();
    let (mut loss, mut gallery) = (0.0, None);
    for start in (0..data.len()).step_by(batch_size.max(1)) {
        // The last batch is filled up with repeats: one shape for all keeps compiled kernels few.
        let positions: Vec<usize> = (start..start + batch_size)
            .map(|i| i.min(data.len() - 1))
            .collect();
        let real = batch_size.min(data.len() - start);
        let ids: Vec<u32> = positions.iter().map(|&i| data.ids[i]).collect();
        let (x, y) = data.batch(&positions, device);
        let clean = cross_entropy(
            model.logits(x.clone()).slice([0..real]),
            y.clone().slice([0..real]),
            0.0,
        );
        loss += f64::from(clean.into_scalar::<f32>()) * real as f64;
        if let Some(single) = single_step {
            let (x, y, threat) = (x.clone(), y.clone(), &single.threat);
            let (mut batch, _) = evaluate_batch(model, x, y, &ids, single, threat, key)?;
            batch.truncate(real);
            under_single.extend(batch);
        }
        let (mut batch, adversarial) =
            evaluate_batch(model, x.clone(), y, &ids, attack_each, &attack.threat, key)?;
        batch.truncate(real);
        outcome.extend(batch);
        gallery.get_or_insert_with(|| {
            let shown = real.min(GALLERY);
            (x.slice([0..shown]), adversarial.slice([0..shown]))
        });
        if !progress(start + real) {
            return Ok(None);
        }
    }
    let gallery = gallery.unwrap_or_else(|| {
        (
            Tensor::zeros([0, 1, 1, 1], device),
            Tensor::zeros([0, 1, 1, 1], device),
        )
    });
    Ok(Some(Validation {
        loss: loss / data.len().max(1) as f64,
        outcome,
        single_step: single_step.map(|_| under_single.robust_accuracy()),
        gallery,
    }))
}
