//! Certificates of randomised smoothing: a radius in L2 within which no perturbation changes the smoothed prediction, except
//! with a small probability of error.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use gauntlet_attacks::evaluate::predictions;
use gauntlet_data::files;
use gauntlet_kernels::{NoiseKey, Stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use statrs::function::beta::inv_beta_reg;
use statrs::function::erf::erfc_inv;

use crate::kept::short_hash;
use crate::{AuditError, Subject};

/// How a smoothed classifier is certified (Cohen et al. 2019, algorithm CERTIFY).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Certify {
    /// Standard deviation of the Gaussian noise, in input units: the one that the model was trained with.
    pub sigma: f64,
    /// Noisy copies by which the class is guessed (n0). Default: 100.
    #[serde(default = "selection")]
    pub selection: u32,
    /// Noisy copies by which its probability is bounded (n). More certify larger radii: 1,000 up to 2.4 sigma, 100,000 (the
    /// paper's) up to 3.8 sigma. Default: 1000.
    #[serde(default = "samples")]
    pub samples: u32,
    /// Probability that a certificate is wrong. Default: 0.001.
    #[serde(default = "alpha")]
    pub alpha: f64,
    /// Radii in L2 at which certified accuracy is told. Default: 0.25, 0.5, 0.75, 1.
    #[serde(default = "radii")]
    pub radii: Vec<f64>,
}

impl Certify {
    /// Everything but the noise as by default.
    pub fn new(sigma: f64) -> Self {
        Self {
            sigma,
            selection: selection(),
            samples: samples(),
            alpha: alpha(),
            radii: radii(),
        }
    }

    /// What is wrong with it: key and problem.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if !(self.sigma.is_finite() && self.sigma > 0.0) {
            found.push(("sigma", format!("{} is not positive", self.sigma)));
        }
        for (key, count) in [("selection", self.selection), ("samples", self.samples)] {
            if !(1..=10_000_000).contains(&count) {
                found.push((key, format!("{count} is not in 1..=10000000")));
            }
        }
        if !(self.alpha > 0.0 && self.alpha < 0.5) {
            found.push(("alpha", format!("{} is not between 0 and 0.5", self.alpha)));
        }
        if self
            .radii
            .iter()
            .any(|radius| !radius.is_finite() || *radius < 0.0)
        {
            found.push(("radii", "a radius is negative or no number".to_owned()));
        }
        found
    }
}

fn selection() -> u32 {
    100
}
fn samples() -> u32 {
    1000
}
fn alpha() -> f64 {
    0.001
}
fn radii() -> Vec<f64> {
    vec![0.25, 0.5, 0.75, 1.0]
}

/// What smoothing says of one sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Certificate {
    /// The smoothed prediction; `None` if it abstains: no class is likely enough.
    pub class: Option<u32>,
    /// L2 radius within which it stays, except with probability alpha; 0 if it abstains.
    pub radius: f64,
}

/// What smoothing certifies of a set of samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Certified {
    /// How it was certified.
    pub protocol: Certify,
    /// Share of samples whose smoothed prediction is right.
    pub accuracy: f64,
    /// Share of samples that it abstains from.
    pub abstained: f64,
    /// Certified accuracy by radius: share of samples that are right and stay so within it.
    pub certified: Vec<AtRadius>,
    /// Mean radius over all samples; wrong ones count as 0 (the ACR of Zhai et al. 2020).
    pub mean_radius: f64,
    /// Time it took.
    pub seconds: f64,
}

/// Certified accuracy at one radius.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AtRadius {
    /// In L2, input units.
    pub radius: f64,
    /// Share of all samples.
    pub accuracy: f64,
}

/// The certificate of a class that was counted `hits` times among `samples`: `sigma Phi^-1(p)`, where `p` is the one-sided
/// Clopper-Pearson lower bound of its probability. `None` if `p` is not above 1/2.
pub fn radius(hits: u32, samples: u32, alpha: f64, sigma: f64) -> Option<f64> {
    let lower = lower_bound(hits, samples, alpha);
    (lower > 0.5).then(|| sigma * inverse_normal(lower))
}

/// Lower end of the one-sided Clopper-Pearson interval at confidence `1 - alpha`.
pub fn lower_bound(hits: u32, samples: u32, alpha: f64) -> f64 {
    if hits == 0 {
        return 0.0;
    }
    let (hits, samples) = (f64::from(hits), f64::from(samples));
    inv_beta_reg(hits, samples - hits + 1.0, alpha)
}

/// Quantile of the standard normal distribution.
fn inverse_normal(p: f64) -> f64 {
    -std::f64::consts::SQRT_2 * erfc_inv(2.0 * p)
}

/// Certifies every sample, from where an earlier certification in the same folder was stopped. `watch(done, total)` is called
/// before each part of them; `false` stops with `Ok(None)`.
///
/// # Errors
/// A file that cannot be written.
pub(crate) fn certify(
    subject: &Subject<'_>,
    protocol: &Certify,
    folder: &Path,
    identity: Value,
    watch: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Option<Certified>, AuditError> {
    let data = subject.data;
    let mut kept = Kept::open(folder, identity)?;
    let total = data.len();
    while kept.certificates.len() < total {
        if !watch(kept.certificates.len(), total) {
            return Ok(None);
        }
        let part = PART.min(total - kept.certificates.len());
        let from = kept.certificates.len();
        let began = std::time::Instant::now();
        let certificates = on_threads(subject, protocol, from..from + part);
        kept.certificates.extend(certificates);
        kept.seconds += began.elapsed().as_secs_f64();
        kept.keep()?;
    }
    let right = |i: usize| {
        let label = data.labels[data.ids[i] as usize];
        kept.certificates[i].class == Some(label)
    };
    let share = |holds: &dyn Fn(usize) -> bool| {
        (0..total).filter(|&i| holds(i)).count() as f64 / total.max(1) as f64
    };
    let certified = protocol.radii.iter().map(|&radius| AtRadius {
        radius,
        accuracy: share(&|i| right(i) && kept.certificates[i].radius >= radius),
    });
    let radii = (0..total)
        .filter(|&i| right(i))
        .map(|i| kept.certificates[i].radius);
    Ok(Some(Certified {
        protocol: protocol.clone(),
        accuracy: share(&right),
        abstained: share(&|i| kept.certificates[i].class.is_none()),
        certified: certified.collect(),
        mean_radius: radii.sum::<f64>() / total.max(1) as f64,
        seconds: kept.seconds,
    }))
}

/// Samples certified between two looks at the clock.
const PART: usize = 16;

/// In parts: the first on this thread, whose kernels a GPU need not order with another's, the rest each on one of its own.
fn on_threads(
    subject: &Subject<'_>,
    protocol: &Certify,
    range: std::ops::Range<usize>,
) -> Vec<Certificate> {
    let positions: Vec<usize> = range.collect();
    let share = positions.len().div_ceil(subject.workers.max(1)).max(1);
    let certificates = &|part: &[usize]| -> Vec<_> {
        let part = part.iter();
        part.map(|&i| certificate(subject, protocol, i)).collect()
    };
    let mut parts = positions.chunks(share);
    let Some(first) = parts.next() else {
        return Vec::new();
    };
    std::thread::scope(|scope| {
        let jobs: Vec<_> = parts
            .map(|part| scope.spawn(move || certificates(part)))
            .collect();
        let mut done = certificates(first);
        done.extend(
            jobs.into_iter()
                .flat_map(|job| job.join().expect("no job panics")),
        );
        done
    })
}

/// Algorithm CERTIFY on one sample.
fn certificate(subject: &Subject<'_>, protocol: &Certify, position: usize) -> Certificate {
    let guess = counts(subject, protocol, position, 0, protocol.selection);
    // The first of equals, so that the guess does not depend on anything else.
    let most = guess.iter().copied().max().unwrap_or(0);
    let class = guess.iter().position(|&count| count == most).unwrap_or(0);
    let hits = counts(subject, protocol, position, 1, protocol.samples);
    let hits = hits.get(class).copied().unwrap_or(0);
    let radius = radius(hits, protocol.samples, protocol.alpha, protocol.sigma);
    Certificate {
        class: radius.map(|_| class as u32),
        radius: radius.unwrap_or(0.0),
    }
}

/// How often each class is said of noisy copies of a sample. Draw `n` of a round is the same whatever the batch size.
fn counts(
    subject: &Subject<'_>,
    protocol: &Certify,
    position: usize,
    round: u32,
    draws: u32,
) -> Vec<u32> {
    let data = subject.data;
    let [channels, height, width] = data.shape;
    let (x, _) = data.batch(&[position], subject.device);
    let key = NoiseKey::new(subject.seed, Stream::Smoothing).at(data.ids[position], round);
    let mut counts = vec![0; data.classes.len()];
    let batch = subject.batch_size.max(1) as u32;
    for from in (0..draws).step_by(batch as usize) {
        let names: Vec<u32> = (from..(from + batch).min(draws)).collect();
        let rows = names.len();
        let noise: Tensor<4> = key.normal(&names, [rows, channels, height, width], subject.device);
        let noisy = x.clone().repeat_dim(0, rows) + noise.mul_scalar(protocol.sigma);
        for class in predictions(subject.model.logits(noisy)) {
            if let Some(count) = counts.get_mut(class as usize) {
                *count += 1;
            }
        }
    }
    counts
}

/// Certificates so far, in a JSON file that is replaced as a whole. What makes two certifications equal is part of its name.
#[derive(Serialize, Deserialize)]
struct Kept {
    schema: u32,
    identity: Value,
    certificates: Vec<Certificate>,
    seconds: f64,
    #[serde(skip)]
    path: PathBuf,
}

impl Kept {
    fn open(folder: &Path, identity: Value) -> Result<Self, AuditError> {
        fs::create_dir_all(folder).map_err(|source| AuditError::Write {
            path: folder.to_owned(),
            source,
        })?;
        let path = folder.join(format!("certificates-{}.json", short_hash(&identity)));
        let found = fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice::<Self>(&text).ok())
            .filter(|found| found.identity == identity);
        Ok(found.map_or_else(
            || Self {
                schema: 1,
                identity,
                certificates: Vec::new(),
                seconds: 0.0,
                path: path.clone(),
            },
            |found| Self {
                path: path.clone(),
                ..found
            },
        ))
    }

    fn keep(&self) -> Result<(), AuditError> {
        let text = serde_json::to_vec(self).expect("plain values serialise");
        files::write(&self.path, &text).map_err(|source| AuditError::Write {
            path: self.path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use burn::tensor::Device;
    use gauntlet_data::Dataset;
    use gauntlet_models::Classifier;
    use serde_json::json;

    use super::*;

    /// `scipy.stats.beta.ppf(alpha, k, n - k + 1)` and `scipy.stats.norm.ppf`, which the paper's own code calls.
    #[test]
    fn bounds_are_those_of_scipy() {
        for (hits, samples, alpha, expected) in [
            (99, 100, 0.001, 0.911_373_1),
            (1000, 1000, 0.001, 0.993_116_0),
            (700, 1000, 0.001, 0.653_472_0),
            (1, 10, 0.05, 0.005_116_2),
        ] {
            let found = lower_bound(hits, samples, alpha);
            assert!((found - expected).abs() < 1e-6, "{hits}/{samples}: {found}");
        }
        assert_eq!(lower_bound(0, 10, 0.001), 0.0);
        let all = radius(1000, 1000, 0.001, 0.5).unwrap();
        assert!((all - 0.5 * 2.463_262_6).abs() < 1e-4, "{all}");
        assert_eq!(radius(510, 1000, 0.001, 0.5), None);
    }

    /// A linear classifier of two classes: smoothing it changes nothing, and its true radius is the distance to the boundary
    /// (Cohen et al. 2019, appendix B).
    struct Half;

    impl Classifier<4> for Half {
        fn logits(&self, x: Tensor<4>) -> Tensor<2> {
            let margin = x.flatten::<2>(1, 3).mean_dim(1).sub_scalar(0.5);
            Tensor::cat(vec![margin.clone(), margin.neg()], 1)
        }
        fn features(&self, x: Tensor<4>) -> Tensor<2> {
            x.flatten(1, 3)
        }
    }

    fn data(levels: &[u8]) -> Dataset {
        Dataset {
            name: "greys".to_owned(),
            split: "test",
            pixels: Arc::new(levels.iter().flat_map(|&level| [level; 4]).collect()),
            max: 255,
            shape: [1, 2, 2],
            labels: Arc::new(levels.iter().map(|&level| u32::from(level < 128)).collect()),
            ids: Arc::new((0..levels.len() as u32).collect()),
            classes: Arc::new(vec!["bright".to_owned(), "dark".to_owned()]),
            sha256: String::new(),
        }
    }

    #[test]
    fn on_a_linear_model_radii_come_close_to_the_distance_and_never_beyond() {
        let device = Device::flex();
        let data = data(&[255, 200, 150, 60, 20]);
        let folder = tempfile::tempdir().unwrap();
        let protocol = Certify {
            samples: 20_000,
            ..Certify::new(0.5)
        };
        let subject = Subject {
            model: &Half,
            data: &data,
            device: &device,
            seed: 1,
            batch_size: 1000,
            workers: 2,
        };
        let found = certify(&subject, &protocol, folder.path(), json!(1), &mut |_, _| {
            true
        });
        let found = found.unwrap().unwrap();
        let kept = Kept::open(folder.path(), json!(1)).unwrap();
        for (i, certificate) in kept.certificates.iter().enumerate() {
            // |mean - 1/2| in L2: four equal values.
            let level = f64::from(data.pixels[i * 4]) / 255.0;
            let distance = 2.0 * (level - 0.5).abs();
            let radius = certificate.radius;
            assert!(radius <= distance, "{radius} beyond {distance}");
            assert!(radius > 0.85 * distance - 0.02, "{radius} for {distance}");
        }
        assert_eq!((found.accuracy, found.abstained), (1.0, 0.0));
        let at = |radius: f64| {
            let mut all = found.certified.iter();
            all.find(|at| at.radius == radius).unwrap().accuracy
        };
        assert_eq!((at(0.25), at(1.0)), (0.8, 0.0));
    }

    #[test]
    fn stopped_after_some_samples_it_goes_on_to_the_same_result() {
        let device = Device::flex();
        let levels: Vec<u8> = (0..40).map(|i| 30 + i * 5).collect();
        let data = data(&levels);
        let protocol = Certify {
            samples: 50,
            selection: 10,
            ..Certify::new(0.5)
        };
        let run = |folder: &Path, batch_size: usize, stop: usize| {
            let subject = Subject {
                model: &Half,
                data: &data,
                device: &device,
                seed: 1,
                batch_size,
                workers: 2,
            };
            let mut watch = |done: usize, _: usize| done < stop;
            let found = certify(&subject, &protocol, folder, json!(1), &mut watch).unwrap();
            found.map(|found| Certified {
                seconds: 0.0,
                ..found
            })
        };
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(run(one.path(), 7, 10), None);
        let found = run(one.path(), 7, 1000);
        assert!(found.is_some());
        assert_eq!(found, run(two.path(), 32, 1000));
    }
}
