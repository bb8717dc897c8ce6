use std::time::Instant;

use burn::tensor::Device;
use gauntlet_attacks::evaluate::{evaluate_batch, predictions};
use gauntlet_attacks::{Apgd, ApgdLoss, Attack, Fab, Square, ThreatModel};
use gauntlet_data::Dataset;
use gauntlet_kernels::{NoiseKey, Stream};
use gauntlet_models::Classifier;
use serde::{Deserialize, Serialize};

use crate::{AttackResult, AuditError, Threat, wilson};

/// Attacks in turn within one threat model. Each is given only the samples that those before it left standing, so that a
/// sample counts as robust if it withstands all of them.
pub struct Suite {
    /// What the attacker may do.
    pub threat: ThreatModel,
    /// The attacks, in order.
    pub members: Vec<Member>,
}

/// An attack of a suite, and the budget that reports state.
pub struct Member {
    /// The attack; its results are verified against the suite's threat model.
    pub attack: Box<dyn Attack<4>>,
    /// Gradient steps or queries of a run.
    pub steps: usize,
    /// Independent runs.
    pub restarts: usize,
}

/// How far a suite has come on a data set: what [`Suite::run`] goes on from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Predicted class of each sample without attack.
    pub clean: Vec<u32>,
    /// The attack (by its place in the suite) that each sample fell to.
    pub fell_to: Vec<Option<usize>>,
    /// The size of the perturbation it took, in the suite's norm.
    pub distance: Vec<Option<f32>>,
    /// Seconds each attack has taken; the last may not be finished.
    pub seconds: Vec<f64>,
    /// Attacks that are finished.
    pub finished: usize,
    /// Samples that the attack at work has been through.
    pub position: usize,
}

impl Suite {
    /// The standard version of AutoAttack (Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an
    /// ensemble of diverse parameter-free attacks"), with its budgets: APGD on cross-entropy and on the targeted difference
    /// of logits ratio, 100 steps each; FAB on targets, 100 steps; Square, 5000 queries. Targets are the nine classes with the
    /// highest logits. With fewer than four classes the ratio is not defined, and the second attack is left out.
    pub fn standard(threat: &ThreatModel, classes: usize) -> Self {
        let mut suite = Self::apgd(threat, classes, 100, 9);
        suite.members.push(Member {
            attack: Box::new(Fab::targeted(threat.clone())),
            steps: 100,
            restarts: 1,
        });
        suite.members.push(Member {
            attack: Box::new(Square::standard(threat.clone())),
            steps: 5000,
            restarts: 1,
        });
        suite
    }

    /// For a first look, at a twentieth of the cost: the two APGD attacks of [`Suite::standard`] with 50 steps, the second on
    /// three targets.
    pub fn quick(threat: &ThreatModel, classes: usize) -> Self {
        Self::apgd(threat, classes, 50, 3)
    }

    fn apgd(threat: &ThreatModel, classes: usize, steps: usize, targets: usize) -> Self {
        let apgd = |loss| Member {
            attack: Box::new(Apgd {
                steps,
                ..Apgd::new(threat.clone(), loss)
            }),
            steps,
            restarts: 1,
        };
        let mut members = vec![apgd(ApgdLoss::CrossEntropy)];
        if classes >= 4 {
            let targets = targets.min(classes - 1);
            members.push(apgd(ApgdLoss::TargetedDlr { targets }));
        }
        Self {
            threat: threat.clone(),
            members,
        }
    }

    /// Attacks the samples of `data`, from where `standing` is; `keep` is called after each batch, and `false` from it stops
    /// with `Ok(false)`. A sample's random numbers are named by its index and the attack's place: neither interruptions nor
    /// `batch_size` change the result.
    ///
    /// # Errors
    /// An example outside the threat model, by its index in the data set; what `keep` returns.
    #[allow(clippy::too_many_arguments, reason = "what, on what, how, from where")]
    pub fn run(
        &self,
        model: &dyn Classifier<4>,
        data: &Dataset,
        seed: u64,
        batch_size: usize,
        device: &Device,
        standing: &mut Standing,
        keep: &mut dyn FnMut(&Standing) -> Result<bool, AuditError>,
    ) -> Result<bool, AuditError> {
        let total = data.len();
        let batch_size = batch_size.clamp(1, total.max(1));
        // The last batch of each attack is filled up with repeats: one shape for all keeps compiled kernels few.
        let filled = |part: &[usize]| -> Vec<usize> {
            let last = part.iter().copied().last();
            part.iter()
                .copied()
                .chain(last.into_iter().cycle())
                .take(batch_size)
                .collect()
        };
        while standing.clean.len() < total {
            let start = standing.clean.len();
            let part: Vec<usize> = (start..total.min(start + batch_size)).collect();
            let (x, _) = data.batch(&filled(&part), device);
            standing
                .clean
                .extend(&predictions(model.logits(x))[..part.len()]);
            standing.fell_to.resize(standing.clean.len(), None);
            standing.distance.resize(standing.clean.len(), None);
        }
        while standing.finished < self.members.len() {
            let place = standing.finished;
            let member = &self.members[place];
            standing.seconds.resize(place + 1, 0.0);
            let key = NoiseKey::new(seed, Stream::EvalAttack).at(0, place as u32);
            let given = standing.given(data, place);
            for part in given[standing.position.min(given.len())..].chunks(batch_size) {
                let began = Instant::now();
                let positions = filled(part);
                let ids: Vec<u32> = positions.iter().map(|&i| data.ids[i]).collect();
                let (x, y) = data.batch(&positions, device);
                let attack = &*member.attack;
                let (outcome, adversarial) =
                    evaluate_batch(model, x.clone(), y, &ids, attack, &self.threat, key).map_err(
                        |violation| AuditError::Violation {
                            attack: attack.name(),
                            violation,
                        },
                    )?;
                let sizes = self.threat.sizes(adversarial - x);
                for (row, &sample) in part.iter().enumerate() {
                    if outcome.adversarial[row] != outcome.labels[row] {
                        standing.fell_to[sample] = Some(place);
                        standing.distance[sample] = Some(sizes[row]);
                    }
                }
                standing.position += part.len();
                standing.seconds[place] += began.elapsed().as_secs_f64();
                if !keep(standing)? {
                    return Ok(false);
                }
            }
            standing.finished += 1;
            standing.position = 0;
            if !keep(standing)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What the model withstands, attack by attack, once the suite has run.
    pub fn threat_result(&self, data: &Dataset, standing: &Standing) -> Threat {
        let left = |after: usize| {
            (0..data.len())
                .filter(|&i| standing.is_right(data, i))
                .filter(|&i| standing.fell_to[i].is_none_or(|attack| attack > after))
                .count()
        };
        let share = |count: usize| count as f64 / data.len().max(1) as f64;
        let attacks = self
            .members
            .iter()
            .enumerate()
            .map(|(place, member)| AttackResult {
                name: member.attack.name(),
                steps: member.steps,
                step_size: None,
                restarts: member.restarts,
                random_start: None,
                loss: None,
                robust_accuracy: share(left(place)),
                seconds: standing.seconds.get(place).copied().unwrap_or_default(),
            });
        let robust = left(self.members.len());
        Threat {
            threat: self.threat.to_string(),
            robust_accuracy: share(robust),
            robust_interval: wilson(robust, data.len()),
            attacks: attacks.collect(),
            norm: Some(self.threat.norm.to_string()),
            eps: Some(f64::from(self.threat.eps.value())),
            per_class: Vec::new(),
            confusion: Vec::new(),
            confidence: None,
        }
    }
}

impl Standing {
    /// Whether sample `i` is classified correctly without attack.
    pub fn is_right(&self, data: &Dataset, i: usize) -> bool {
        self.clean[i] == data.labels[data.ids[i] as usize]
    }

    /// Whether sample `i` is classified correctly and has withstood what it was given so far.
    pub fn stands(&self, data: &Dataset, i: usize) -> bool {
        self.is_right(data, i) && self.fell_to[i].is_none()
    }

    /// The samples that the attack at `place` is given: those that stood before it.
    pub fn given(&self, data: &Dataset, place: usize) -> Vec<usize> {
        (0..data.len())
            .filter(|&i| self.is_right(data, i))
            .filter(|&i| self.fell_to[i].is_none_or(|attack| attack >= place))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use gauntlet_data::{DataConfig, load};
    use gauntlet_models::{ModelConfig, Network};

    use super::*;

    fn setting() -> (Network, Dataset, Suite) {
        let config: DataConfig = serde_json::from_str(r#"{"source":"digits"}"#).unwrap();
        let data = load(&config, Path::new(""), 0).unwrap().test.take(40);
        let config: ModelConfig = serde_json::from_str(r#"{"arch":"mlp","width":16}"#).unwrap();
        let model = config.init([1, 8, 8], 10, 0, &Device::flex()).unwrap();
        let threat: ThreatModel = "linf:0.02".parse().unwrap();
        let suite = Suite::standard(&threat, 10);
        (model, data, suite)
    }

    #[test]
    fn interruptions_and_batches_change_nothing() {
        let (model, data, suite) = setting();
        let device = Device::flex();
        let mut whole = Standing::default();
        let mut go_on = |_: &Standing| Ok(true);
        assert!(
            suite
                .run(&model, &data, 1, 60, &device, &mut whole, &mut go_on)
                .unwrap()
        );

        // Stopped after every batch, kept as JSON, gone on from there.
        let (mut kept, mut sessions) = (String::from("{}"), 0);
        loop {
            let mut standing: Standing = serde_json::from_str(&kept).unwrap_or_default();
            let done = suite
                .run(&model, &data, 1, 7, &device, &mut standing, &mut |_| {
                    Ok(false)
                })
                .unwrap();
            kept = serde_json::to_string(&standing).unwrap();
            sessions += 1;
            if done {
                break;
            }
        }
        assert!(sessions > 4);
        let again: Standing = serde_json::from_str(&kept).unwrap();
        assert_eq!(
            (&again.clean, &again.fell_to),
            (&whole.clean, &whole.fell_to)
        );

        let result = suite.threat_result(&data, &whole);
        let standing = (0..40).filter(|&i| whole.stands(&data, i)).count();
        assert_eq!(result.robust_accuracy, standing as f64 / 40.0);
        let left: Vec<_> = result
            .attacks
            .iter()
            .map(|attack| attack.robust_accuracy)
            .collect();
        assert!(left.is_sorted_by(|a, b| a >= b) && left.last() == Some(&result.robust_accuracy));
        for i in 0..40 {
            let fell = whole.fell_to[i].is_some();
            assert_eq!(whole.distance[i].is_some_and(|size| size <= 0.020_01), fell);
            assert!(
                whole.is_right(&data, i) || !fell,
                "what is wrong already is not attacked"
            );
        }
    }
}
