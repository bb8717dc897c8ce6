//! How many samples a model still classifies, clean and under attack. What training and audit share.

use burn::tensor::{Int, Tensor};
use gauntlet_kernels::NoiseKey;
use gauntlet_models::Classifier;

use crate::{Attack, Noise, ThreatModel, Violation};

/// Predicted classes of samples, clean and under attack.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Data-set index of each sample.
    pub ids: Vec<u32>,
    /// True class.
    pub labels: Vec<u32>,
    /// Prediction on the clean input.
    pub clean: Vec<u32>,
    /// Prediction on the adversarial input.
    pub adversarial: Vec<u32>,
}

impl Outcome {
    /// Share of samples classified correctly without attack; 0 if there are none.
    pub fn clean_accuracy(&self) -> f64 {
        self.share(|i| self.clean[i] == self.labels[i])
    }

    /// Share of samples classified correctly with and without attack; 0 if there are none.
    pub fn robust_accuracy(&self) -> f64 {
        self.share(|i| self.stands(i))
    }

    /// Whether sample `i` is classified correctly with and without attack.
    pub fn stands(&self, i: usize) -> bool {
        self.clean[i] == self.labels[i] && self.adversarial[i] == self.labels[i]
    }

    /// Appends another batch's outcome.
    pub fn extend(&mut self, other: Self) {
        self.ids.extend(other.ids);
        self.labels.extend(other.labels);
        self.clean.extend(other.clean);
        self.adversarial.extend(other.adversarial);
    }

    /// Keeps the first `n` samples.
    pub fn truncate(&mut self, n: usize) {
        for column in [
            &mut self.ids,
            &mut self.labels,
            &mut self.clean,
            &mut self.adversarial,
        ] {
            column.truncate(n);
        }
    }

    fn share(&self, holds: impl Fn(usize) -> bool) -> f64 {
        let n = self.labels.len();
        (0..n).filter(|&i| holds(i)).count() as f64 / n.max(1) as f64
    }
}

/// Attacks one batch and classifies the result; each example is verified against `threat` before it counts. Samples that are
/// misclassified already are attacked with the rest, so that batches keep one shape, but they do not stand either way.
///
/// Returns the outcome and the adversarial batch.
///
/// # Errors
/// An example outside the threat model, by its data-set index.
pub fn evaluate_batch<const D: usize>(
    model: &dyn Classifier<D>,
    x: Tensor<D>,
    y: Tensor<1, Int>,
    ids: &[u32],
    attack: &dyn Attack<D>,
    threat: &ThreatModel,
    key: NoiseKey,
) -> Result<(Outcome, Tensor<D>), Violation> {
    let noise = Noise {
        key,
        samples: ids.to_vec(),
    };
    let adversarial = attack.perturb(model, x.clone(), y.clone(), &noise);
    threat
        .verify(&x, &adversarial)
        .map_err(|violation| Violation {
            sample: ids[violation.sample] as usize,
            ..violation
        })?;
    let outcome = Outcome {
        ids: ids.to_vec(),
        labels: classes(y),
        clean: predictions(model.logits(x)),
        adversarial: predictions(model.logits(adversarial.clone())),
    };
    Ok((outcome, adversarial))
}

/// Predicted class of each row of `logits`; a row with a value that is no number predicts no class (`u32::MAX`).
pub fn predictions(logits: Tensor<2>) -> Vec<u32> {
    let [_, classes] = logits.dims();
    let values: Vec<f32> = logits.try_into_vec_as().expect("computed logits");
    values
        .chunks(classes.max(1))
        .map(|row| {
            if row.iter().any(|v| v.is_nan()) {
                return u32::MAX;
            }
            let best = row
                .iter()
                .enumerate()
                .max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
            best.map_or(u32::MAX, |(class, _)| class as u32)
        })
        .collect()
}

fn classes(y: Tensor<1, Int>) -> Vec<u32> {
    let values: Vec<i64> = y.try_into_vec_as().expect("labels");
    values.into_iter().map(|class| class as u32).collect()
}
