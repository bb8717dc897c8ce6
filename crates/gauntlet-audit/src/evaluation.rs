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
    let (mut shown, mut attacked_shown) = (Vec::new(), Vec::new());
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
        if start < GALLERY {
            let wanted = real.min(GALLERY - start);
            shown.push(x.slice([0..wanted]));
            attacked_shown.push(adversarial.slice([0..wanted]));
        }
        if !progress(start + real, total) {
            return Ok(None);
        }
    }
    let [channels, height, width] = data.shape;
    let together = |images: Vec<Tensor<4>>| match images.len() {
        0 => Tensor::zeros([0, channels, height, width], device),
        _ => Tensor::cat(images, 0),
    };
    Ok(Some(Evaluation {
        attack: attack.clone(),
        outcome,
        seconds: began.elapsed().as_secs_f64(),
        gallery: (together(shown), together(attacked_shown)),
    }))
}

impl Evaluation {
    /// The attack's name: `PGD-20x5`.
    pub fn attack_name(&self) -> String {
        Attack::<4>::name(&self.attack)
    }

    /// How many samples were attacked.
    pub fn samples(&self) -> usize {
        self.outcome.labels.len()
    }

    /// Share of samples classified correctly without attack.
    pub fn clean_accuracy(&self) -> f64 {
        self.outcome.clean_accuracy()
    }

    /// Share of samples classified correctly with and without attack.
    pub fn robust_accuracy(&self) -> f64 {
        self.outcome.robust_accuracy()
    }

    /// The 95 % interval of the clean accuracy ([`wilson`]).
    pub fn clean_interval(&self) -> [f64; 2] {
        self.interval(1)
    }

    /// The 95 % interval of the robust accuracy ([`wilson`]).
    pub fn robust_interval(&self) -> [f64; 2] {
        self.interval(2)
    }

    fn interval(&self, column: usize) -> [f64; 2] {
        let counts = self.per_class(0);
        wilson(
            counts.iter().map(|count| count[column]).sum(),
            self.samples(),
        )
    }

    /// Samples, and how many of them are right without and with the attack, for each of `classes` classes, or of as many as
    /// the labels name if those are more.
    pub fn per_class(&self, classes: usize) -> Vec<[usize; 3]> {
        let outcome = &self.outcome;
        let named = outcome
            .labels
            .iter()
            .max()
            .map_or(0, |&label| label as usize + 1);
        let mut counts = vec![[0; 3]; classes.max(named)];
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

    use gauntlet_data::{DataConfig, load};
    use gauntlet_models::{ModelConfig, Network};

    use super::*;

    fn digits() -> Dataset {
        let config: DataConfig = serde_json::from_str(r#"{"source":"digits"}"#).unwrap();
        load(&config, Path::new(""), 0).unwrap().test
    }

    fn network(device: &Device) -> Network {
        let config: ModelConfig = serde_json::from_str(r#"{"arch":"mlp","width":16}"#).unwrap();
        config.init([1, 8, 8], 10, 0, device).unwrap()
    }

    fn pgd() -> Pgd {
        Pgd {
            step_size: 0.05,
            restarts: 2,
            ..Pgd::new("linf:0.1".parse().unwrap(), 3)
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
        let (tiny, _) = run(3);
        assert_eq!(tiny.outcome, whole.outcome);
        let pixels = |images: &Tensor<4>| images.clone().try_into_vec_as::<f32>().unwrap();
        assert_eq!(pixels(&tiny.gallery.0), pixels(&whole.gallery.0));
        assert_eq!(pixels(&tiny.gallery.1), pixels(&whole.gallery.1));
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
    fn intervals_are_the_published_ones() {
        // Newcombe (1998), Statistics in Medicine 17, table I, method 3.
        for (hits, n, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let [a, b] = wilson(hits, n);
            assert!(
                (a - low).abs() < 5e-5 && (b - high).abs() < 5e-5,
                "{hits}/{n}: {a} {b}"
            );
        }
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
