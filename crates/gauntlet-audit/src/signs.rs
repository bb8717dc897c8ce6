//! Signs that robust accuracy is not what it seems: gradients that mislead, attacks that were too weak.
//!
//! Athalye, Carlini & Wagner (2018, "Obfuscated gradients give a false sense of security") and Carlini et al. (2019, "On
//! evaluating adversarial robustness") name the symptoms. Each is measured on a few samples and told with its numbers;
//! `DIAGNOSIS.md` has cause and remedy.

use gauntlet_attacks::{Apgd, ApgdLoss, Attack, Eps, Norm, ThreatModel};
use serde::{Deserialize, Serialize};

use crate::look::Look;
use crate::{Finding, Standing, Subject, Suite, wilson};

/// What was measured on a model within one ball.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Signs {
    /// The samples looked at: the first that are classified correctly. Counts are of these, where nothing else is said.
    pub samples: usize,
    /// Largest difference between the logits of several passes of the same samples, relative to the largest logit.
    pub difference: f64,
    /// Samples whose gradient of the cross-entropy is zero, or no number, in every value.
    pub without_gradient: usize,
    /// Samples that stand after a step of full size along the margin's gradient, and for which one of ten random steps raises
    /// the margin as much or more.
    pub random_wins: usize,
    /// Samples that stand after FGSM.
    pub fgsm: usize,
    /// Samples that stand after PGD from the clean input, 50 steps.
    pub pgd: usize,
    /// Samples that fell to FGSM, and stand after that PGD.
    pub one_step_only: usize,
    /// Samples that stand after FGSM, and fall to that PGD within half of eps.
    pub half_suffices: usize,
    /// Samples that stand after APGD on cross-entropy, 50 steps, within ever larger balls; the last holds the whole box.
    pub growing: Vec<(f64, usize)>,
    /// Samples that withstood the whole suite and were attacked once more with greater effort, and how many of them fell.
    pub effort: (usize, usize),
    /// Samples given to attacks without gradients that followed attacks with them, and how many of them fell.
    pub black_box: (usize, usize),
}

/// Samples looked at.
const SAMPLES: usize = 200;
/// Samples attacked with greater effort.
const EFFORT_SAMPLES: usize = 128;
/// Steps of that effort, on each of two losses.
const EFFORT_STEPS: usize = 200;
/// Passes of the same samples.
const PASSES: usize = 8;
/// Random directions tried for each sample.
const DIRECTIONS: u32 = 10;
/// Balls that are tried, in multiples of eps; the whole box comes after them.
const GROWTH: [f64; 2] = [2.0, 4.0];
/// Steps of the attacks, where nothing else is said.
const STEPS: usize = 50;

/// More than this share of the samples that white-box attacks left standing falls to a black-box attack.
const BLACK_BOX: f64 = 0.05;
/// More than this share withstands an attacker who may turn any image into any other.
const WHOLE_BOX: f64 = 0.05;
/// More than this share of what withstood the suite falls to more steps and restarts.
const MORE_EFFORT: f64 = 0.03;
/// More than this share has no gradient.
const NO_GRADIENT: f64 = 0.05;
/// Two passes differ by more than this share of the largest logit: more than rounding.
const SAME: f64 = 1e-4;
/// For more than this share a random direction is as good as the gradient's.
const RANDOM_WINS: f64 = 0.1;
/// More than this share falls to FGSM and withstands PGD.
const FGSM_WINS: f64 = 0.05;
/// FGSM leaves more than this share standing, and PGD less than half of that.
const OVERFITTED: f64 = 0.4;
/// More than this share stands after FGSM and falls to PGD within half of eps.
const HALF_SUFFICES: f64 = 0.03;
/// No finding rests on fewer samples.
const FEW: usize = 5;

/// Whether a share is larger than `limit` beyond doubt: so is the lower end of its 95 % interval, and it is no matter of
/// one sample or two.
fn exceeds(limit: f64, (of, count): (usize, usize)) -> bool {
    count >= FEW && wilson(count, of)[0] > limit
}

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
        let look = Look {
            subject,
            eot: suite.eot,
            positions: &right,
        };
        signs.difference = look.difference(PASSES);
        signs.without_gradient = look.without_gradient();
        signs.random_wins = look.random_wins(threat, DIRECTIONS);
        for stands in look.one_and_many(threat, STEPS) {
            signs.fgsm += usize::from(stands.fgsm);
            signs.pgd += usize::from(stands.pgd);
            signs.one_step_only += usize::from(!stands.fgsm && stands.pgd);
            signs.half_suffices += usize::from(stands.fgsm && !stands.half);
        }
        let values = data.shape.iter().product::<usize>() as f64;
        let whole = match threat.norm {
            Norm::Linf => 1.0,
            Norm::L2 => values.sqrt(),
            Norm::L1 | Norm::L0 => values,
        };
        let eps = f64::from(threat.eps.value());
        let balls = GROWTH.map(|factor| factor * eps).into_iter();
        for size in balls.filter(|size| *size < whole).chain([whole]) {
            let attack = apgd(&resized(threat, size), ApgdLoss::CrossEntropy, STEPS);
            signs.growing.push((size, look.stand_after(&[&attack])));
        }
        let left: Vec<usize> = (0..data.len())
            .filter(|&i| standing.stands(data, i))
            .take(EFFORT_SAMPLES)
            .collect();
        if !left.is_empty() {
            let look = Look {
                positions: &left,
                ..look
            };
            let losses = [ApgdLoss::CrossEntropy, ApgdLoss::Dlr]
                .map(|loss| apgd(threat, loss, EFFORT_STEPS));
            // The ratio needs three classes.
            let count = if data.classes.len() < 3 { 1 } else { 2 };
            let attacks: Vec<&dyn Attack<4>> =
                losses[..count].iter().map(|attack| attack as _).collect();
            signs.effort = (left.len(), left.len() - look.stand_after(&attacks));
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
        let share = |count: usize| percent(count as f64 / samples.max(1) as f64);
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
            exceeds(NO_GRADIENT, (samples, self.without_gradient)),
            "gradients-vanish",
            "gradients vanish",
            format!(
                "the gradient of the cross-entropy is zero, or no number, for {} of {samples} samples",
                share(self.without_gradient)
            ),
        );
        add(
            exceeds(RANDOM_WINS, (samples, self.random_wins)),
            "rough-landscape",
            "random directions do as well as the gradient's",
            format!(
                "for {} of {samples} samples one of {DIRECTIONS} random directions of size eps raises the margin as much as that \
                 of the gradient, or more",
                share(self.random_wins)
            ),
        );
        let (given, fell) = self.black_box;
        add(
            exceeds(BLACK_BOX, self.black_box),
            "black-box-beats-white-box",
            "attacks without gradients find what attacks with gradients miss",
            format!(
                "{fell} of the {given} samples that withstood all attacks with gradients fell to one without"
            ),
        );
        if let Some(&(size, stand)) = self.growing.last() {
            let on_the_way: Vec<_> = self
                .growing
                .iter()
                .map(|(size, stand)| format!("{} at eps {size:.3}", share(*stand)))
                .collect();
            add(
                exceeds(WHOLE_BOX, (samples, stand)),
                "does-not-fall-to-zero",
                "robust accuracy does not fall to zero as eps grows",
                format!(
                    "of {samples} samples {} stand within eps {size:.3}, where any image may become any other ({})",
                    share(stand),
                    on_the_way.join(", ")
                ),
            );
        }
        let (given, fell) = self.effort;
        add(
            exceeds(MORE_EFFORT, self.effort),
            "more-effort-helps",
            "more steps and restarts keep helping",
            format!(
                "{fell} of {given} samples that withstood the whole plan fell to APGD with {EFFORT_STEPS} steps on \
                 cross-entropy and as many on the ratio of differences"
            ),
        );
        let stand = format!(
            "{} of {samples} samples stand after FGSM, and {} after PGD with {STEPS} steps",
            share(self.fgsm),
            share(self.pgd)
        );
        add(
            exceeds(FGSM_WINS, (samples, self.one_step_only)),
            "fgsm-beats-pgd",
            "one step does better than many",
            format!("{stand}; {} fell to FGSM alone", share(self.one_step_only)),
        );
        add(
            self.fgsm as f64 > OVERFITTED * samples as f64
                && 2 * self.pgd < self.fgsm
                && exceeds(HALF_SUFFICES, (samples, self.half_suffices)),
            "catastrophic-overfitting",
            "the model is hardened against one step only",
            format!(
                "{stand}; {} stand after FGSM, and fall to PGD within half of eps",
                share(self.half_suffices)
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

fn apgd(threat: &ThreatModel, loss: ApgdLoss, steps: usize) -> Apgd {
    Apgd {
        steps,
        ..Apgd::new(threat.clone(), loss)
    }
}

/// A ball of another size.
fn resized(threat: &ThreatModel, eps: f64) -> ThreatModel {
    ThreatModel {
        eps: Eps::try_from(eps).expect("a finite size"),
        ..threat.clone()
    }
}
