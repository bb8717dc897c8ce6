use std::collections::BTreeMap;
use std::path::Path;

use gauntlet_attacks::evaluate::predictions;
use gauntlet_attacks::{Budget, Norm, ThreatModel};
use gauntlet_data::corruptions::{Corruption, Severity};
use gauntlet_kernels::{NoiseKey, Stream};
use serde_json::{Value, json};

use crate::certify::certify;
use crate::kept::Kept;
use crate::kept_corruptions::KeptCorruptions;
use crate::replay::Replay;
use crate::{
    AuditError, Certified, Certify, CorruptionResult, Finding, Member, Signs, Standing, Subject,
    Suite, Threat,
};

/// An audit: suites of attacks on one model, what they found kept in a folder while they run, and a look for signs that it
/// is not what it seems.
pub struct Auditor<'a> {
    /// The model and the samples.
    pub subject: Subject<'a>,
    /// Suites, a budget each.
    pub suites: Vec<Suite>,
    /// Common corruptions to try.
    pub corruptions: Vec<(Corruption, Severity)>,
    /// How to certify the smoothed model, if it is to be.
    pub certify: Option<Certify>,
    /// Whether to look for [`Signs`] after each suite.
    pub diagnose: bool,
    /// What the model is, as far as it decides the result: hashes of weights, version, device.
    pub identity: Value,
    /// Folder of what is kept; [`Auditor::run`] goes on from what it finds there.
    pub folder: &'a Path,
}

/// What an audit is doing.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// An attack goes through samples.
    Attack {
        /// The budget.
        threat: String,
        /// The attack's name.
        attack: String,
        /// Samples it has been through.
        done: usize,
        /// Samples it is given.
        total: usize,
    },
    /// Signs are looked for.
    Signs {
        /// The budget.
        threat: String,
    },
    /// Corruptions are tried.
    Corruptions {
        /// How many have been.
        done: usize,
        /// How many there are.
        total: usize,
    },
    /// The smoothed model is certified.
    Certify {
        /// Samples that have been.
        done: usize,
        /// Samples in all.
        total: usize,
    },
}

/// What one suite found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The result.
    pub threat: Threat,
    /// Sample by sample.
    pub standing: Standing,
    /// Names of the attacks, by their place in the suite.
    pub attacks: Vec<String>,
    /// The adversarial example of each sample that fell, by its place: `[channels, height, width]`, flat.
    pub examples: BTreeMap<usize, Vec<f32>>,
    /// Signs that the number is not what it seems, if they were looked for.
    pub signs: Option<Signs>,
    /// What is out of the ordinary among them.
    pub findings: Vec<Finding>,
}

impl Auditor<'_> {
    /// Runs the suites, from where an earlier run of the same audit was stopped. `watch` is told of each step, and `false`
    /// from it stops with `Ok(None)`.
    ///
    /// Suites run from the smallest budget to the largest, and each begins with the examples of those whose budget lies within
    /// its own: a larger ball, or a union, is never withstood by more samples. Results come in the order of [`Auditor::suites`].
    ///
    /// # Errors
    /// An example outside its budget; a file that cannot be written.
    pub fn run(
        &mut self,
        watch: &mut dyn FnMut(Stage) -> bool,
    ) -> Result<Option<Vec<Found>>, AuditError> {
        let mut order: Vec<usize> = (0..self.suites.len()).collect();
        // What has no size comes last: a union holds balls.
        let size = |place: usize| self.suites[place].budget.limit().unwrap_or(f32::INFINITY);
        let count = |place: usize| balls(&self.suites[place].budget).map_or(0, <[_]>::len);
        order.sort_by(|&a, &b| {
            let by_size = size(a).total_cmp(&size(b));
            by_size.then(count(a).cmp(&count(b)))
        });
        let mut found: Vec<Option<Found>> = self.suites.iter().map(|_| None).collect();
        for place in order {
            let known = self.known(place, &found);
            if let Some(replay) = known {
                self.suites[place].members.insert(
                    0,
                    Member {
                        detail: Value::String(replay.hash()),
                        attack: Box::new(replay),
                        steps: 0,
                        restarts: 1,
                        // It says nothing of the model's gradients.
                        white_box: false,
                    },
                );
            }
            match self.run_suite(&self.suites[place], watch)? {
                Some(result) => found[place] = Some(result),
                None => return Ok(None),
            }
        }
        Ok(Some(found.into_iter().flatten().collect()))
    }

    /// Accuracy under each of the corruptions, in their order, those that an earlier run has tried from what it kept; `watch` as
    /// in [`Auditor::run`].
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn run_corruptions(
        &self,
        watch: &mut dyn FnMut(Stage) -> bool,
    ) -> Result<Option<Vec<CorruptionResult>>, AuditError> {
        let (subject, data) = (&self.subject, self.subject.data);
        let positions: Vec<usize> = (0..data.len()).collect();
        let key = NoiseKey::new(subject.seed, Stream::Corruption);
        let total = self.corruptions.len();
        let mut kept = KeptCorruptions::open(self.folder, self.setting())?;
        let result = |family: Corruption, severity: Severity, right: usize| CorruptionResult {
            family: family.name().to_owned(),
            severity: severity.number(),
            accuracy: right as f64 / data.len().max(1) as f64,
        };
        let mut results = Vec::with_capacity(total);
        for (done, &(family, severity)) in self.corruptions.iter().enumerate() {
            if !watch(Stage::Corruptions { done, total }) {
                return Ok(None);
            }
            if let Some(right) = kept.get(family, severity) {
                results.push(result(family, severity, right));
                continue;
            }
            let mut right = 0;
            for part in positions.chunks(subject.batch_size.max(1)) {
                let (x, _) = data.corrupted_batch(part, family, severity, key, subject.device);
                let said = predictions(subject.model.logits(x));
                let labels = part.iter().map(|&i| data.labels[data.ids[i] as usize]);
                right += said.into_iter().zip(labels).filter(|(a, b)| a == b).count();
            }
            kept.keep(family, severity, right)?;
            results.push(result(family, severity, right));
        }
        Ok(Some(results))
    }

    /// What randomised smoothing certifies, if it is asked for; `watch` as in [`Auditor::run`], but `None` within `Ok` is also
    /// the answer where nothing was asked.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn run_certify(
        &self,
        watch: &mut dyn FnMut(Stage) -> bool,
    ) -> Result<Option<Certified>, AuditError> {
        let Some(protocol) = &self.certify else {
            return Ok(None);
        };
        let mut identity = self.setting();
        // Radii are only read off.
        identity["certify"] = json!([
            protocol.sigma,
            protocol.selection,
            protocol.samples,
            protocol.alpha
        ]);
        certify(
            &self.subject,
            protocol,
            self.folder,
            identity,
            &mut |done, total| watch(Stage::Certify { done, total }),
        )
    }

    /// Examples of budgets that lie within that of the suite at `place`. Of those that lie within each other the largest has
    /// all.
    fn known(&self, place: usize, found: &[Option<Found>]) -> Option<Replay> {
        let budget = &self.suites[place].budget;
        let smaller = self.suites.iter().zip(found);
        let smaller = smaller.filter_map(|(suite, found)| Some((&suite.budget, found.as_ref()?)));
        let smaller: Vec<_> = smaller
            .filter(|(smaller, _)| within(smaller, budget))
            .collect();
        let largest = smaller.iter().filter(|(one, _)| {
            let mut others = smaller.iter();
            !others.any(|(other, _)| within(one, other))
        });
        let mut from = Vec::new();
        let mut examples = BTreeMap::new();
        for (smaller, found) in largest {
            from.push(smaller.to_string());
            for (&sample, example) in &found.examples {
                let id = self.subject.data.ids[sample];
                examples.entry(id).or_insert_with(|| example.clone());
            }
        }
        let from = from.join(", ");
        (!from.is_empty()).then_some(Replay { from, examples })
    }

    fn run_suite(
        &self,
        suite: &Suite,
        watch: &mut dyn FnMut(Stage) -> bool,
    ) -> Result<Option<Found>, AuditError> {
        let (subject, data) = (&self.subject, self.subject.data);
        let threat = suite.budget.to_string();
        let values = data.shape.iter().product();
        let mut kept = Kept::open(self.folder, &threat, self.identity(suite), values)?;
        let mut standing = kept.standing.clone();
        let stage = |standing: &Standing| {
            standing.at_work(data, suite.members.len()).map(|place| {
                let (total, done) = standing.progress(data, place);
                Stage::Attack {
                    threat: threat.clone(),
                    attack: suite.members[place].attack.name(),
                    done,
                    total,
                }
            })
        };
        // The first batch may take minutes: what is at work is told before it.
        standing.begin(subject);
        if !stage(&standing).is_none_or(&mut *watch) {
            return Ok(None);
        }
        let done = suite.run(subject, &mut standing, &mut |standing, examples| {
            kept.keep(standing, examples)?;
            Ok(stage(standing).is_none_or(&mut *watch))
        })?;
        kept.standing = standing;
        if !done {
            return Ok(None);
        }
        let ball = suite.norm().filter(|threat| threat.norm != Norm::L0);
        if let (Some(ball), true) = (ball, self.diagnose && kept.signs.is_none()) {
            if !watch(Stage::Signs {
                threat: threat.clone(),
            }) {
                return Ok(None);
            }
            let signs = Signs::measure(subject, ball, suite, &kept.standing);
            kept.keep_signs(signs)?;
        }
        let findings = match (&kept.signs, ball) {
            (Some(signs), Some(ball)) => signs.findings(ball),
            _ => Vec::new(),
        };
        let names = suite.members.iter().map(|member| member.attack.name());
        Ok(Some(Found {
            threat: suite.threat_result(data, &kept.standing),
            attacks: names.collect(),
            examples: kept.examples()?,
            signs: kept.signs,
            standing: kept.standing,
            findings,
        }))
    }

    /// Two suites with equal identities have equal results.
    fn identity(&self, suite: &Suite) -> Value {
        let attacks: Vec<_> = suite
            .members
            .iter()
            .map(|member| (member.attack.name(), &member.detail))
            .collect();
        let mut identity = self.setting();
        identity["budget"] = suite.budget.to_string().into();
        identity["attacks"] = json!(attacks);
        identity["eot"] = suite.eot.into();
        identity
    }

    /// What decides results, whatever the attacks.
    fn setting(&self) -> Value {
        json!({
            "model": self.identity,
            "data": { "sha256": self.subject.data.sha256, "samples": self.subject.data.len() },
            "seed": self.subject.seed,
        })
    }
}

/// Whether what is legal within `small` is legal within `large`, and they are not the same.
fn within(small: &Budget, large: &Budget) -> bool {
    match (small, large) {
        (Budget::Patch(a), Budget::Patch(b)) => a.side < b.side && a.bounds == b.bounds,
        _ => {
            let (Some(some), Some(others)) = (balls(small), balls(large)) else {
                return false;
            };
            let held = |a: &ThreatModel| {
                others.iter().any(|b| {
                    a.norm == b.norm && a.eps.value() <= b.eps.value() && a.bounds == b.bounds
                })
            };
            small != large && some.iter().all(held)
        }
    }
}

/// The balls any of which an attacker may use.
fn balls(budget: &Budget) -> Option<&[ThreatModel]> {
    match budget {
        Budget::Norm(threat) => Some(std::slice::from_ref(threat)),
        Budget::Union(union) => Some(&union.0),
        Budget::Patch(_) | Budget::Spatial(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_lie_within_each_other_or_not() {
        let holds =
            |small: &str, large: &str| within(&small.parse().unwrap(), &large.parse().unwrap());
        for (small, large) in [
            ("linf:0.1", "linf:0.2"),
            ("patch:2", "patch:3"),
            ("linf:0.3", "linf:0.3 + l2:2"),
            ("linf:0.3 + l2:1", "l1:3 + linf:0.3 + l2:2"),
        ] {
            assert!(holds(small, large), "{small} in {large}");
            assert!(!holds(large, small), "{large} in {small}");
        }
        for (one, other) in [
            ("linf:0.1", "linf:1/10"),
            ("linf:0.1", "l2:5"),
            ("linf:0.4", "linf:0.3 + l2:2"),
            ("patch:2", "l0:9"),
            ("spatial:1deg,1px", "spatial:2deg,2px"),
        ] {
            assert!(!holds(one, other) && !holds(other, one), "{one}, {other}");
        }
    }
}
