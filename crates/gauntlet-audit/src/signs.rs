//! Signs that robust accuracy is not what it seems: gradients that mislead, attacks that were too weak.
//!
//! Athalye, Carlini & Wagner (2018, "Obfuscated gradients give a false sense of security") and Carlini et al. (2019, "On
//! evaluating adversarial robustness") name the symptoms. Each is measured on a few samples and told with its numbers;
//! `DIAGNOSIS.md` has cause and remedy.

use burn::tensor::{Int, Tensor};
use gauntlet_attacks::{
    Apgd, ApgdLoss, Attack, AttackLoss, Eps, Fgsm, Init, Noise, Norm, Pgd, ThreatModel,
    input_gradient,
};
use gauntlet_kernels::perturb::{choose, linf_norms};
use gauntlet_kernels::{NoiseKey, Stream};
use serde::{Deserialize, Serialize};

use crate::{Finding, Standing, Subject, Suite};

/// What was measured on a model within one ball. Shares are of `samples`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Signs {
    /// The samples looked at: the first that are classified correctly.
    pub samples: usize,
    /// Largest difference between the logits of two passes of the same samples, relative to the largest logit.
    pub difference: f64,
    /// Share of samples whose gradient of the cross-entropy is zero, or no number, in every value.
    pub zero_gradients: f64,
    /// Share of samples for which one of ten random directions of full size raises the margin more than the gradient's.
    pub random_wins: f64,
    /// Share that stands after FGSM.
    pub fgsm: f64,
    /// Share that stands after PGD from the clean input, 50 steps.
    pub pgd: f64,
    /// Share that stands after APGD on cross-entropy, 50 steps, within ever larger balls; the last holds the whole box.
    pub growing: Vec<(f64, f64)>,
    /// Samples that withstood the whole suite and were attacked once more with greater effort, and how many of them fell.
    pub effort: (usize, usize),
    /// Samples given to attacks without gradients that followed attacks with them, and how many of them fell.
    pub black_box: (usize, usize),
}

/// Samples looked at.
const SAMPLES: usize = 200;
/// Samples attacked with greater effort.
const EFFORT_SAMPLES: usize = 64;
/// Steps and restarts of that effort.
const EFFORT: (usize, usize) = (200, 2);
/// Random directions tried for each sample.
const DIRECTIONS: u32 = 10;
/// Balls that are tried, in multiples of eps; the whole box comes after them.
const GROWTH: [f64; 2] = [2.0, 4.0];

/// More than this share of the samples that white-box attacks left standing falls to a black-box attack. Honestly trained
/// networks on MNIST at eps 0.3 lose about 2 % to Square.
const BLACK_BOX: f64 = 0.05;
/// More than this share withstands an attacker who may turn any image into any other.
const WHOLE_BOX: f64 = 0.05;
/// More than this share of what withstood the suite falls to more steps and restarts.
const MORE_EFFORT: f64 = 0.05;
/// More than this share has no gradient.
const NO_GRADIENT: f64 = 0.05;
/// Two passes differ by more than this share of the largest logit: more than rounding.
const SAME: f64 = 1e-4;
/// For more than this share a random direction is as good as the gradient's.
const RANDOM_WINS: f64 = 0.1;
/// FGSM leaves fewer standing than PGD, by more than this share.
const FGSM_WINS: f64 = 0.02;
/// FGSM leaves more than this share standing, and PGD less than half of that.
const OVERFITTED: f64 = 0.6;

/// Streams of random numbers, beside those of the suite's attacks.
const SIGNS: u32 = u32::MAX;

impl Signs {
    /// The codes of all that is looked for.
    pub const CODES: [&str; 8] = [
        "randomised-outputs",
        "gradients-vanish",
        "rough-landscape",
        "black-box-beats-white-box",
        "does-not-fall-to-zero",
        "more-effort-helps",
        "fgsm-beats-pgd",
        "catastrophic-overfitting",
    ];

    /// Looks at the model within `threat` (L∞, L2 or L1), after the suite has run to its end.
    pub fn measure(
        subject: &Subject<'_>,
        threat: &ThreatModel,
        suite: &Suite,
        standing: &Standing,
    ) -> Self {
        let data = subject.data;
        let right: Vec<usize> = (0..data.len())
            .filter(|&i| standing.is_right(data, i))
            .take(SAMPLES)
            .collect();
        let mut signs = Self {
            samples: right.len(),
            black_box: black_box(suite, standing, subject),
            ..Self::default()
        };
        if right.is_empty() || threat.eps.value() == 0.0 || threat.norm == Norm::L0 {
            return signs;
        }
        let look = Look::new(subject, &right);
        signs.difference = look.difference();
        let (gradient, zero) = look.gradient();
        signs.zero_gradients = zero;
        signs.random_wins = look.random_wins(threat, gradient);
        signs.fgsm = look.stands(&Fgsm::new(threat.clone()));
        signs.pgd = look.stands(&Pgd {
            init: Init::Clean,
            ..Pgd::new(threat.clone(), 50)
        });
        let values = data.shape.iter().product::<usize>() as f64;
        let whole = match threat.norm {
            Norm::Linf => 1.0,
            Norm::L2 => values.sqrt(),
            Norm::L1 | Norm::L0 => values,
        };
        let eps = f64::from(threat.eps.value());
        let balls = GROWTH.map(|factor| factor * eps).into_iter();
        for size in balls.filter(|size| *size < whole).chain([whole]) {
            let stands = look.stands(&apgd(&threat.resized(size), 50, 1));
            signs.growing.push((size, stands));
        }
        let left: Vec<usize> = (0..data.len())
            .filter(|&i| standing.stands(data, i))
            .take(EFFORT_SAMPLES)
            .collect();
        if !left.is_empty() {
            let (steps, restarts) = EFFORT;
            let look = Look::new(subject, &left);
            let stands = look.stands(&apgd(threat, steps, restarts));
            let fell = (1.0 - stands) * left.len() as f64;
            signs.effort = (left.len(), fell.round() as usize);
        }
        signs
    }

    /// What of it is out of the ordinary.
    pub fn findings(&self, threat: &ThreatModel) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut add = |holds: bool, code: &str, title: &str, evidence: String| {
            if holds {
                found.push(Finding {
                    code: code.to_owned(),
                    title: title.to_owned(),
                    evidence: format!("{threat}: {evidence}"),
                });
            }
        };
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let samples = self.samples;
        let share = |(given, fell): (usize, usize)| fell as f64 / given.max(1) as f64;
        add(
            self.difference > SAME,
            "randomised-outputs",
            "the model answers at random",
            format!(
                "the logits of {samples} samples differ from one pass to the next by up to {} of the largest",
                percent(self.difference)
            ),
        );
        add(
            self.zero_gradients > NO_GRADIENT,
            "gradients-vanish",
            "gradients vanish",
            format!(
                "the gradient of the cross-entropy is zero, or no number, for {} of {samples} samples",
                percent(self.zero_gradients)
            ),
        );
        add(
            self.random_wins > RANDOM_WINS,
            "rough-landscape",
            "random directions do as well as the gradient's",
            format!(
                "for {} of {samples} samples one of {DIRECTIONS} random directions of size eps raises the margin more than that \
                 of the gradient",
                percent(self.random_wins)
            ),
        );
        let (given, fell) = self.black_box;
        add(
            share(self.black_box) > BLACK_BOX,
            "black-box-beats-white-box",
            "attacks without gradients find what attacks with gradients miss",
            format!(
                "{fell} of the {given} samples that withstood all attacks with gradients fell to one without"
            ),
        );
        if let Some(&(size, stands)) = self.growing.last() {
            let on_the_way: Vec<_> = self
                .growing
                .iter()
                .map(|(size, stands)| format!("{} at eps {size:.3}", percent(*stands)))
                .collect();
            add(
                stands > WHOLE_BOX,
                "does-not-fall-to-zero",
                "robust accuracy does not fall to zero as eps grows",
                format!(
                    "of {samples} samples {} stand within eps {size:.3}, where any image may become any other ({})",
                    percent(stands),
                    on_the_way.join(", ")
                ),
            );
        }
        let (given, fell) = self.effort;
        add(
            share(self.effort) > MORE_EFFORT,
            "more-effort-helps",
            "more steps and restarts keep helping",
            format!(
                "{fell} of {given} samples that withstood the whole plan fell to APGD with {} steps and {} restarts",
                EFFORT.0, EFFORT.1
            ),
        );
        add(
            self.pgd - self.fgsm > FGSM_WINS,
            "fgsm-beats-pgd",
            "one step does better than many",
            format!(
                "{} of {samples} samples stand after FGSM, but {} after PGD with 50 steps",
                percent(self.fgsm),
                percent(self.pgd)
            ),
        );
        add(
            self.fgsm > OVERFITTED && self.pgd < 0.5 * self.fgsm,
            "catastrophic-overfitting",
            "the model is hardened against one step only",
            format!(
                "{} of {samples} samples stand after FGSM, {} after PGD with 50 steps",
                percent(self.fgsm),
                percent(self.pgd)
            ),
        );
        found
    }
}

/// Samples given to, and fallen to, black-box attacks that come after white-box ones.
fn black_box(suite: &Suite, standing: &Standing, subject: &Subject<'_>) -> (usize, usize) {
    let first_white = suite.members.iter().position(|member| member.white_box);
    let Some(first_white) = first_white else {
        return (0, 0);
    };
    let places = first_white..suite.members.len();
    let black: Vec<usize> = places
        .filter(|&place| !suite.members[place].white_box)
        .collect();
    let Some(&first) = black.first() else {
        return (0, 0);
    };
    let (given, _) = standing.progress(subject.data, first);
    let fell = standing
        .fell_to
        .iter()
        .filter(|place| place.is_some_and(|place| black.contains(&place)));
    (given, fell.count())
}

fn apgd(threat: &ThreatModel, steps: usize, restarts: usize) -> Apgd {
    Apgd {
        steps,
        restarts,
        ..Apgd::new(threat.clone(), ApgdLoss::CrossEntropy)
    }
}

/// Some samples, as batches.
struct Look<'a> {
    subject: &'a Subject<'a>,
    batches: Vec<(Tensor<4>, Tensor<1, Int>, Noise)>,
    samples: usize,
}

impl<'a> Look<'a> {
    fn new(subject: &'a Subject<'a>, positions: &[usize]) -> Self {
        let batches = positions.chunks(subject.batch_size.max(1)).map(|part| {
            let (x, y) = subject.data.batch(part, subject.device);
            let noise = Noise {
                key: NoiseKey::new(subject.seed, Stream::EvalAttack).at(0, SIGNS),
                samples: part.iter().map(|&i| subject.data.ids[i]).collect(),
            };
            (x, y, noise)
        });
        Self {
            subject,
            batches: batches.collect(),
            samples: positions.len(),
        }
    }

    fn share(&self, count: usize) -> f64 {
        count as f64 / self.samples.max(1) as f64
    }

    fn difference(&self) -> f64 {
        let differences = self.batches.iter().map(|(x, ..)| {
            let logits = || host(self.subject.model.logits(x.clone()));
            let (first, second) = (logits(), logits());
            let largest = first.iter().fold(1e-12f32, |most, v| most.max(v.abs()));
            let apart = first.iter().zip(&second).map(|(a, b)| (a - b).abs());
            f64::from(apart.fold(0.0, f32::max) / largest)
        });
        differences.fold(0.0, f64::max)
    }

    /// The gradient of each batch, and the share of samples that have none.
    fn gradient(&self) -> (Vec<Tensor<4>>, f64) {
        let mut none = 0;
        let gradients = self.batches.iter().map(|(x, y, _)| {
            let loss = AttackLoss::CrossEntropy;
            let (gradient, ..) = input_gradient(self.subject.model, x.clone(), y.clone(), loss);
            let sizes = host(linf_norms(gradient.clone()));
            none += sizes
                .iter()
                .filter(|size| **size == 0.0 || !size.is_finite())
                .count();
            gradient
        });
        let gradients = gradients.collect();
        (gradients, self.share(none))
    }

    fn random_wins(&self, threat: &ThreatModel, gradients: Vec<Tensor<4>>) -> f64 {
        let eps = threat.eps.value();
        let mut wins = 0;
        for ((x, y, noise), gradient) in self.batches.iter().zip(gradients) {
            let margin = |x: Tensor<4>| {
                let logits = self.subject.model.logits(x);
                AttackLoss::Margin.per_sample(logits, y.clone())
            };
            let step = |direction| threat.step(x.clone(), x.clone(), direction, eps, Pgd::SPARSITY);
            let guided = margin(step(gradient));
            let mut best = guided.full_like(f32::NEG_INFINITY);
            for r in 0..DIRECTIONS {
                let direction =
                    noise
                        .key
                        .restart(r)
                        .normal(&noise.samples, x.dims(), self.subject.device);
                let found = margin(step(direction));
                let higher = found.clone().greater(best.clone()).float();
                best = choose(&higher, found, best);
            }
            wins += host(best.greater_equal(guided).float())
                .iter()
                .filter(|won| **won > 0.5)
                .count();
        }
        self.share(wins)
    }

    /// Share of samples that an attack leaves standing.
    fn stands(&self, attack: &dyn Attack<4>) -> f64 {
        let stands = self.batches.iter().map(|(x, y, noise)| {
            let model = self.subject.model;
            let found = attack.perturb(model, x.clone(), y.clone(), noise);
            let margins = AttackLoss::Margin.per_sample(model.logits(found), y.clone());
            host(margins)
                .iter()
                .filter(|margin| **margin <= 0.0)
                .count()
        });
        self.share(stands.sum())
    }
}

fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.try_into_vec_as()
        .expect("a float tensor that was computed")
}

/// A ball of another size.
trait Resized {
    fn resized(&self, eps: f64) -> Self;
}

impl Resized for ThreatModel {
    fn resized(&self, eps: f64) -> Self {
        Self {
            eps: Eps::try_from(eps).expect("a finite size"),
            ..self.clone()
        }
    }
}
