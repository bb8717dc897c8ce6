use std::time::Instant;

use burn::tensor::{Device, Tensor};
use gauntlet_attacks::evaluate::{Outcome, evaluate_batch};
use gauntlet_attacks::{Attack, Pgd};
use gauntlet_data::Dataset;
use gauntlet_kernels::{NoiseKey, Stream};
use gauntlet_models::Classifier;

use crate::AuditError;

/// What one attack did to one model.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// The attack, with its budget.
    pub attack: Pgd,
    /// Predictions of every sample.
    pub outcome: Outcome,
    /// Wall-clock time.
    pub seconds: f64,
    /// The first samples, clean and adversarial, for pictures: `[k, c, h, w]`.
    pub gallery: (Tensor<4>, Tensor<4>),
}

/// Samples kept for pictures.
const GALLERY: usize = 8;

/// Attacks every sample of `data` in fixed-shape batches; `progress(done, total)` is called after each, and `false` from it
/// stops with `Ok(None)`. A sample's random numbers are named by its index, so the result does not depend on `batch_size`.
///
/// # Errors
/// An example outside its threat model, by its index in the data set.
pub fn evaluate(
    model: &dyn Classifier<4>,
    data: &Dataset,
    attack: &Pgd,
    seed: u64,
    batch_size: usize,
    device: &Device,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Option<Evaluation>, AuditError> {
    let began = Instant::now();
    let total = data.len();
    let batch_size = batch_size.clamp(1, total.max(1));
    let key = NoiseKey::new(seed, Stream::EvalAttack);
    let mut outcome = Outcome::default();
    let mut gallery = None;
    for start in (0..total).step_by(batch_size) {
        // The last batch is filled up with repeats: one shape for all keeps compiled kernels few.
        let positions: Vec<usize> = (start..start + batch_size)
            .map(|i| i.min(total - 1))
            .collect();
        let real = batch_size.min(total - start);
        let ids: Vec<u32> = positions.iter().map(|&i| data.ids[i]).collect();
        let (x, y) = data.batch(&positions, device);
        let attacked = evaluate_batch(model, x.clone(), y, &ids, attack, &attack.threat, key);
        let (mut batch, adversarial) = attacked.map_err(|violation| AuditError::Violation {
            attack: Attack::<4>::name(attack),
            violation,
        })?;
        batch.truncate(real);
        outcome.extend(batch);
        gallery.get_or_insert_with(|| {
            let shown = real.min(GALLERY);
            (x.slice([0..shown]), adversarial.slice([0..shown]))
        });
        if !progress(start + real, total) {
            return Ok(None);
        }
    }
    let none = || Tensor::zeros([0, data.shape[0], data.shape[1], data.shape[2]], device);
    Ok(Some(Evaluation {
        attack: attack.clone(),
        outcome,
        seconds: began.elapsed().as_secs_f64(),
        gallery: gallery.unwrap_or_else(|| (none(), none())),
    }))
}

impl Evaluation {
    /// The attack's name: `PGD-20x5`.
    pub fn attack_name(&self) -> String {
        Attack::<4>::name(&self.attack)
    }

    /// Samples, and how many of them are right without and with the attack, for each of `classes` classes.
    pub fn per_class(&self, classes: usize) -> Vec<[usize; 3]> {
        let mut counts = vec![[0; 3]; classes];
        let outcome = &self.outcome;
        for (i, &label) in outcome.labels.iter().enumerate() {
            let count = &mut counts[label as usize];
            count[0] += 1;
            count[1] += usize::from(outcome.clean[i] == label);
            count[2] += usize::from(outcome.stands(i));
        }
        counts
    }
}

/// The 95 % interval of a share of which `hits` of `n` samples were seen (Wilson 1927), as [low, high].
///
/// ```
/// let [low, high] = gauntlet_audit::wilson(10, 100);
/// assert!((low - 0.0552).abs() < 1e-4 && (high - 0.1744).abs() < 1e-4);
/// ```
pub fn wilson(hits: usize, n: usize) -> [f64; 2] {
    if n == 0 {
        return [0.0, 1.0];
    }
    let (n, z) = (n as f64, 1.959_963_984_540_054);
    let share = hits as f64 / n;
    let scale = 1.0 + z * z / n;
    let middle = (share + z * z / (2.0 * n)) / scale;
    let reach = z / scale * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    [(middle - reach).max(0.0), (middle + reach).min(1.0)]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use gauntlet_attacks::{AttackLoss, Init, Keep};
    use gauntlet_data::{DataConfig, load};
    use gauntlet_models::{ModelConfig, Network};

    use super::*;

    pub(crate) fn digits() -> Dataset {
        let config: DataConfig = serde_json::from_str(r#"{"source":"digits"}"#).unwrap();
        load(&config, Path::new(""), 0).unwrap().test
    }

    fn network(device: &Device) -> Network {
        let config: ModelConfig = serde_json::from_str(r#"{"arch":"mlp","width":16}"#).unwrap();
        config.init([1, 8, 8], 10, 0, device).unwrap()
    }

    fn pgd() -> Pgd {
        Pgd {
            threat: "linf:0.1".parse().unwrap(),
            loss: AttackLoss::CrossEntropy,
            steps: 3,
            step_size: 0.05,
            restarts: 2,
            init: Init::Uniform,
            keep: Keep::Best,
        }
    }

    #[test]
    fn the_batch_size_changes_nothing() {
        let device = Device::flex();
        let (data, model) = (digits().take(50), network(&device));
        let run = |size: usize| {
            let mut calls = Vec::new();
            let mut progress = |done, total| {
                calls.push((done, total));
                true
            };
            let done = evaluate(&model, &data, &pgd(), 4, size, &device, &mut progress)
                .unwrap()
                .unwrap();
            (done, calls)
        };
        let (whole, _) = run(50);
        let (pieces, calls) = run(16);
        assert_eq!(pieces.outcome, whole.outcome);
        assert_eq!(calls, [(16, 50), (32, 50), (48, 50), (50, 50)]);
        assert_eq!(pieces.outcome.labels[..], data.labels[..50]);
        assert_eq!(whole.gallery.0.dims(), [8, 1, 8, 8]);
        let counts = whole.per_class(10);
        let sum = |k: usize| counts.iter().map(|count| count[k]).sum::<usize>() as f64 / 50.0;
        assert_eq!(sum(0), 1.0);
        assert_eq!(sum(1), whole.outcome.clean_accuracy());
        assert_eq!(sum(2), whole.outcome.robust_accuracy());
    }

    #[test]
    fn it_stops_when_told_to_and_takes_an_empty_set() {
        let device = Device::flex();
        let model = network(&device);
        let stopped =
            evaluate(&model, &digits(), &pgd(), 0, 64, &device, &mut |_, _| false).unwrap();
        assert!(stopped.is_none());
        let empty = evaluate(
            &model,
            &digits().take(0),
            &pgd(),
            0,
            64,
            &device,
            &mut |_, _| true,
        )
        .unwrap();
        assert_eq!(empty.unwrap().outcome.robust_accuracy(), 0.0);
    }

    #[test]
    fn intervals_stay_within_bounds() {
        assert_eq!(wilson(0, 0), [0.0, 1.0]);
        let [low, high] = wilson(0, 10);
        // Wilson's upper end for no hit is z^2 / (n + z^2).
        assert!(low == 0.0 && (high - 3.841459 / 13.841459).abs() < 1e-6);
        assert!((wilson(10, 10)[1] - 1.0).abs() < 1e-12);
    }
}
