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

// Thresholds, as `DIAGNOSIS.md` states them. What was measured, on 200 samples each: honest networks are reference networks of
// adversarial training on MNIST (L∞ 0.1 and 0.3) and CIFAR-10 (2/255), and perceptrons and CNNs trained on MNIST and digits, without
// attack and on PGD in L∞, L2 and L1, in balls of all three norms. Masks are those of `masking_tests.rs`, on MNIST and digits.

/// More than this share of the samples that white-box attacks left standing falls to a black-box attack. Honest: at most 0.7 %,
/// and once 20 of 910 on MNIST at L∞ 0.3; rounded inputs: 53 to 100 %, waves: 2 to 16 %.
const BLACK_BOX: f64 = 0.05;
/// More than this share withstands an attacker who may turn any image into any other. Honest: 0; vanished gradients: 20 to 56 %.
const WHOLE_BOX: f64 = 0.05;
/// More than this share of what withstood the suite falls to more steps and restarts. Honest: 0 after the standard suite; 4 of 103
/// after the quick one, but 12 of 33 in L1, and 10 of 26 beyond the ball of training. Two steps of PGD: 20 of 107.
const MORE_EFFORT: f64 = 0.03;
/// More than this share has no gradient. Honest: 0; masked: all.
const NO_GRADIENT: f64 = 0.05;
/// Two passes differ by more than this share of the largest logit: more than rounding. Honest: 0; noise of 0.05 in the input: 5 %.
const SAME: f64 = 1e-4;
/// For more than this share a random direction is as good as the gradient's. Honest: at most 6 %, but more beyond the ball of
/// training, and 40 % of a network hardened on MNIST at L∞ 0.33, within 0.3; waves: 17 to 72 %, other masks: all; overfitted to
/// FGSM: 8 to 48 %. Shorter steps tell them apart no better: of half the size 22 % of that network, and 19 % of one with noise;
/// of a quarter 10 % and 51 %, but waves 2 %. So it counts only where there is another sign.
const RANDOM_WINS: f64 = 0.1;
/// More than this share falls to FGSM and withstands PGD. Honest: at most 1.2 %; waves: 3 to 100 %.
const FGSM_WINS: f64 = 0.05;
/// FGSM leaves more than this share standing, and PGD less than half of that. So it is with honest networks, too, in some balls
/// beyond that of training; not so the next.
const OVERFITTED: f64 = 0.4;
/// More than this share stands after FGSM and falls to PGD within half of eps. Honest: at most 2 %; overfitted: 6 to 30 %.
const HALF_SUFFICES: f64 = 0.03;
/// No finding rests on fewer samples: when a plan leaves 20 of 1,000 standing, another attack that takes three of them is no news.
const FEW: usize = 5;

/// Whether a share is surely larger than `limit`: so is the lower end of its 95 % interval, and it is no matter of a sample or two.
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
            // Honest networks are rough far beyond the ball of training, where nothing stands and nothing can be hidden.
            self.effort.0 >= FEW && exceeds(RANDOM_WINS, (samples, self.random_wins)),
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
        // Honest networks can be rough, too: it explains what else is wrong, and accuses nobody.
        if let [only] = found.as_slice()
            && only.code == "rough-landscape"
        {
            found.clear();
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_in_a_few_samples_is_no_finding() {
        for (of, count, surely) in [
            (1, 1, false),
            (4, 4, false),
            (5, 5, true),
            (30, 1, false),
            (23, 4, false),
            (30, 5, true),
            // The lower ends of these intervals are 4.98 and 5.37 %.
            (200, 16, false),
            (200, 17, true),
            (0, 0, false),
        ] {
            assert_eq!(exceeds(0.05, (of, count)), surely, "{count} of {of}");
        }
    }

    /// The number of each case is the least that is one.
    #[test]
    fn each_sign_alone_is_its_own_finding() {
        let threat = "linf:0.1".parse().unwrap();
        let nothing = Signs {
            samples: 200,
            fgsm: 100,
            pgd: 90,
            growing: vec![(0.2, 100), (1.0, 0)],
            effort: (128, 0),
            black_box: (150, 0),
            ..Signs::default()
        };
        let codes = |change: &dyn Fn(&mut Signs)| {
            let mut signs = nothing.clone();
            change(&mut signs);
            let found = signs.findings(&threat).into_iter();
            found.map(|finding| finding.code).collect::<Vec<_>>()
        };
        assert!(codes(&|_| ()).is_empty());
        type Change = fn(&mut Signs, usize);
        let cases: [(&str, usize, Change); 7] = [
            ("randomised-outputs", 11, |signs, n| {
                signs.difference = n as f64 * 1e-5;
            }),
            ("gradients-vanish", 17, |signs, n| {
                signs.without_gradient = n
            }),
            ("black-box-beats-white-box", 13, |signs, n| {
                signs.black_box.1 = n
            }),
            ("does-not-fall-to-zero", 17, |signs, n| {
                signs.growing[1].1 = n
            }),
            ("more-effort-helps", 8, |signs, n| signs.effort.1 = n),
            ("fgsm-beats-pgd", 17, |signs, n| signs.one_step_only = n),
            ("catastrophic-overfitting", 11, |signs, n| {
                signs.pgd = 49;
                signs.half_suffices = n;
            }),
        ];
        for (code, least, change) in cases {
            assert_eq!(codes(&|signs| change(signs, least)), [code]);
            assert!(
                codes(&|signs| change(signs, least - 1)).is_empty(),
                "{code}"
            );
        }
        let alone = Signs::CODES
            .iter()
            .filter(|code| **code != "rough-landscape");
        assert!(cases.iter().map(|(code, ..)| code).eq(alone));
        // Roughness accuses nobody; beside each other sign it is named.
        assert!(codes(&|signs| signs.random_wins = 200).is_empty());
        for (code, least, change) in cases {
            let rough = |wins| {
                codes(&|signs| {
                    change(signs, least);
                    signs.random_wins = wins;
                })
            };
            let both = Signs::CODES
                .into_iter()
                .filter(|named| [code, "rough-landscape"].contains(named));
            assert!(both.eq(rough(29)));
            assert_eq!(rough(28), [code]);
        }
        // FGSM leaves little, or PGD nearly as much.
        for (fgsm, pgd) in [(79, 20), (100, 51)] {
            let found = codes(&|signs| {
                (signs.fgsm, signs.pgd, signs.half_suffices) = (fgsm, pgd, 30);
            });
            assert!(found.is_empty());
        }
        // The plan left next to nothing standing: its number can hardly be too high.
        let found = codes(&|signs| {
            (signs.random_wins, signs.difference, signs.effort) = (200, 1.0, (4, 0));
        });
        assert_eq!(found, ["randomised-outputs"]);
        // A model that is never right, a ball of no size: nothing was measured.
        assert!(Signs::default().findings(&threat).is_empty());
    }

    /// What people read is what is done.
    #[test]
    fn the_document_states_the_numbers() {
        let percent = |share: f64| format!("{} %", (1e4 * share).round() / 1e2);
        let more = |share: f64| format!("more than {}", percent(share));
        let steps = format!("with {STEPS} steps");
        for (code, stated) in [
            (
                "randomised-outputs",
                vec![format!("{PASSES} passes"), more(SAME)],
            ),
            ("gradients-vanish", vec![more(NO_GRADIENT)]),
            (
                "rough-landscape",
                vec![
                    format!("{DIRECTIONS} such steps"),
                    format!("fewer than {FEW} standing"),
                    more(RANDOM_WINS),
                ],
            ),
            ("black-box-beats-white-box", vec![more(BLACK_BOX)]),
            (
                "does-not-fall-to-zero",
                vec![steps.clone(), more(WHOLE_BOX)],
            ),
            (
                "more-effort-helps",
                vec![
                    format!("first {EFFORT_SAMPLES} samples"),
                    format!("with {EFFORT_STEPS} steps"),
                    more(MORE_EFFORT),
                ],
            ),
            ("fgsm-beats-pgd", vec![steps.clone(), more(FGSM_WINS)]),
            (
                "catastrophic-overfitting",
                vec![steps, more(OVERFITTED), more(HALF_SUFFICES)],
            ),
        ] {
            let text = crate::diagnosis(code).unwrap();
            let measured = text.split("### ").nth(1).unwrap();
            let measured = measured.split_whitespace().collect::<Vec<_>>().join(" ");
            for number in stated {
                assert!(measured.contains(&number), "{code}: {number}");
            }
        }
        let document = include_str!("../DIAGNOSIS.md");
        let document = document.split_whitespace().collect::<Vec<_>>().join(" ");
        for number in [
            format!("the first {SAMPLES} that"),
            format!("at least {FEW} samples"),
            "twice eps, four times eps".to_owned(),
        ] {
            assert!(document.contains(&number), "{number}");
        }
        assert_eq!(GROWTH, [2.0, 4.0]);
    }
}
