use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use burn::tensor::{Device, Tensor, activation::softmax};
use gauntlet_attacks::evaluate::predictions;
use gauntlet_attacks::{Attack, Budget, Eot, Noise, ThreatModel, Violation};
use gauntlet_data::Dataset;
use gauntlet_kernels::host::batch_rows;
use gauntlet_kernels::{NoiseKey, Stream};
use gauntlet_models::Classifier;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{AttackResult, AuditError, Class, Confidence, Threat, wilson};

/// Attacks in turn within one budget. Each is given only the samples that those before it left standing, so that a sample
/// counts as robust if it withstands all of them.
pub struct Suite {
    /// What the attacker may do.
    pub budget: Budget,
    /// The attacks, in order.
    pub members: Vec<Member>,
    /// Evaluations that are averaged in each look an attack takes at the model, at least 1 ([`Eot`]). What counts is one answer
    /// of the model itself.
    pub eot: usize,
}

/// An attack of a suite, and the effort that reports state.
pub struct Member {
    /// The attack; its results are verified against the suite's budget.
    pub attack: Box<dyn Attack<4>>,
    /// Gradient steps or queries of a run.
    pub steps: usize,
    /// Independent runs.
    pub restarts: usize,
    /// Whether it uses gradients of the model.
    pub white_box: bool,
    /// All that decides what it does, as far as [`Suite::budget`] does not.
    pub detail: Value,
}

/// What a suite is run on, and how.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The model, untracked and in eval mode.
    pub model: &'a (dyn Classifier<4> + Sync),
    /// The samples.
    pub data: &'a Dataset,
    /// Where it computes.
    pub device: &'a Device,
    /// Seed of the attacks' random numbers.
    pub seed: u64,
    /// Samples attacked at a time; the result does not depend on it.
    pub batch_size: usize,
    /// Batches attacked at the same time, each on a thread of its own. More than one pays on the CPU, where most operations
    /// of a small batch run on one core; a GPU wants 1.
    pub workers: usize,
}

/// An adversarial example that a sample fell to.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The sample's place in the data set under audit.
    pub sample: usize,
    /// `[channels, height, width]`, flat.
    pub pixels: Vec<f32>,
}

/// Takes a new state and the examples just found; `false` stops.
pub type Keep<'a> = dyn FnMut(&Standing, &[Example]) -> Result<bool, AuditError> + 'a;

/// How far a suite has come on a data set: what [`Suite::run`] goes on from. A value for each sample, in their order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Predicted class without attack.
    pub clean: Vec<u32>,
    /// Softmax probability of that class.
    pub clean_confidence: Vec<f32>,
    /// How many of the suite's attacks the sample has been through, with the one it fell to.
    pub through: Vec<usize>,
    /// The attack (by its place in the suite) that the sample fell to.
    pub fell_to: Vec<Option<usize>>,
    /// The size of the perturbation it took, where the budget measures one.
    pub distance: Vec<Option<f32>>,
    /// What the example is taken for.
    pub said: Vec<Option<u32>>,
    /// Softmax probability of that class.
    pub confidence: Vec<Option<f32>>,
    /// Wall-clock seconds each attack has taken.
    pub seconds: Vec<f64>,
}

impl Suite {
    /// The ball that is the budget, if it is one.
    pub(crate) fn norm(&self) -> Option<&ThreatModel> {
        match &self.budget {
            Budget::Norm(threat) => Some(threat),
            _ => None,
        }
    }

    /// Attacks the samples, from where `standing` is. After each batch `keep` is given the new state and the examples found in
    /// that batch; `false` from it stops with `Ok(false)`. A sample's random numbers are named by its index and the attack's
    /// place: neither interruptions nor `batch_size` nor `workers` change the result.
    ///
    /// # Errors
    /// An example outside the budget, by its index in the data set; what `keep` returns.
    pub fn run(
        &self,
        subject: &Subject<'_>,
        standing: &mut Standing,
        keep: &mut Keep<'_>,
    ) -> Result<bool, AuditError> {
        standing.begin(subject);
        for place in 0..self.members.len() {
            standing.seconds.resize(self.members.len(), 0.0);
            let given = standing.waiting(subject.data, place);
            if !given.is_empty() && !self.run_member(place, &given, subject, standing, keep)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Attacks the samples `given` with one attack: batch after batch here, or on as many threads as there are workers.
    fn run_member(
        &self,
        place: usize,
        given: &[usize],
        subject: &Subject<'_>,
        standing: &mut Standing,
        keep: &mut Keep<'_>,
    ) -> Result<bool, AuditError> {
        let workers = subject.workers.clamp(1, given.len());
        let size = subject.share(given.len(), workers);
        let parts = given.chunks(size);
        let mut since = Instant::now();
        let mut take = |part: &[usize], fallen: Result<Vec<Fall>, AuditError>| {
            fallen.and_then(|fallen| {
                standing.record(place, part, &fallen);
                standing.seconds[place] += since.elapsed().as_secs_f64();
                since = Instant::now();
                let examples: Vec<_> = fallen.into_iter().map(|fall| fall.example).collect();
                keep(standing, &examples)
            })
        };
        // On CUDA each kernel that takes memory of another thread, such as the weights, is fenced: one worker is this thread.
        if workers == 1 {
            for part in parts {
                let kept = take(part, self.attack_batch(place, part, subject));
                if !matches!(kept, Ok(true)) {
                    return kept;
                }
            }
            return Ok(true);
        }
        let queue: Mutex<VecDeque<&[usize]>> = Mutex::new(parts.collect());
        let stop = AtomicBool::new(false);
        let (send, receive) = mpsc::channel();
        let mut result = Ok(true);
        std::thread::scope(|scope| {
            for _ in 0..workers {
                let (send, queue, stop) = (send.clone(), &queue, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let next = queue.lock().expect("no holder panics").pop_front();
                        let Some(part) = next else { break };
                        let fallen = self.attack_batch(place, part, subject);
                        if send.send((part, fallen)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(send);
            for (part, fallen) in receive {
                let kept = take(part, fallen);
                if !matches!(kept, Ok(true)) {
                    stop.store(true, Ordering::Relaxed);
                    // The first reason to stop is the one that is told; batches under way are still recorded.
                    if matches!(result, Ok(true)) {
                        result = kept;
                    }
                }
            }
        });
        result
    }

    /// Which of the samples in `part` fall to the attack at `place`.
    fn attack_batch(
        &self,
        place: usize,
        part: &[usize],
        subject: &Subject<'_>,
    ) -> Result<Vec<Fall>, AuditError> {
        let attack = &*self.members[place].attack;
        let positions = subject.filled(part);
        let ids: Vec<u32> = positions.iter().map(|&i| subject.data.ids[i]).collect();
        let (x, y) = subject.data.batch(&positions, subject.device);
        let noise = Noise {
            key: NoiseKey::new(subject.seed, Stream::EvalAttack).at(0, place as u32),
            samples: ids.clone(),
        };
        let adversarial = match self.eot {
            0 | 1 => attack.perturb(subject.model, x.clone(), y, &noise),
            draws => attack.perturb(&Eot::new(subject.model, draws), x.clone(), y, &noise),
        };
        self.budget
            .verify(&x, &adversarial)
            .map_err(|violation| AuditError::Violation {
                attack: attack.name(),
                violation: Violation {
                    sample: ids[violation.sample] as usize,
                    ..violation
                },
            })?;
        let logits = subject.model.logits(adversarial.clone());
        let said = predictions(logits.clone());
        let wrong: Vec<usize> = (0..part.len())
            .filter(|&row| said[row] != subject.data.labels[ids[row] as usize])
            .collect();
        if wrong.is_empty() {
            return Ok(Vec::new());
        }
        let sizes = self.budget.sizes(&x, &adversarial);
        let sure = confidence(logits);
        let length = subject.data.shape.iter().product::<usize>();
        let pixels: Vec<f32> = adversarial
            .try_into_vec_as()
            .expect("images that were computed");
        let fall = |row: usize| Fall {
            example: Example {
                sample: part[row],
                pixels: pixels[row * length..(row + 1) * length].to_vec(),
            },
            distance: sizes.as_ref().map(|sizes| sizes[row]),
            said: said[row],
            confidence: sure[row],
        };
        Ok(wrong.into_iter().map(fall).collect())
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
                seconds: milliseconds(standing.seconds.get(place).copied()),
            });
        let robust = (0..data.len())
            .filter(|&i| standing.stands(data, i))
            .count();
        Threat {
            threat: self.budget.to_string(),
            robust_accuracy: share(robust),
            robust_interval: wilson(robust, data.len()),
            attacks: attacks.collect(),
            norm: self.norm().map(|threat| threat.norm.to_string()),
            eps: self.norm().map(|threat| f64::from(threat.eps.value())),
            per_class: standing.by_class(data),
            confusion: standing.confusion(data),
            confidence: Some(standing.histograms(data)),
        }
    }
}

/// Rounded, so that what is read back from a file is equal to what was written.
fn milliseconds(seconds: Option<f64>) -> f64 {
    (1e3 * seconds.unwrap_or_default()).round() / 1e3
}

/// A sample that fell.
struct Fall {
    example: Example,
    distance: Option<f32>,
    said: u32,
    confidence: f32,
}

impl Subject<'_> {
    /// How many of so many samples make a batch: a share like all others, so that no thread waits for another, and whole blocks of
    /// what a convolution on the CPU takes together.
    fn share(&self, samples: usize, workers: usize) -> usize {
        /// Images in a vector of AVX2, as `gauntlet_kernels` convolves them.
        const BLOCK: usize = 8;
        let most = self.batch_size.max(1);
        let batches = samples.div_ceil(most).next_multiple_of(workers);
        samples.div_ceil(batches).next_multiple_of(BLOCK).min(most)
    }

    /// On a GPU a batch is filled up with repeats to one of few sizes.
    fn filled(&self, part: &[usize]) -> Vec<usize> {
        let most = self.batch_size.max(part.len());
        let size = batch_rows(part.len(), most, self.device);
        let last = part.last().copied();
        let repeats = last.into_iter().cycle();
        part.iter().copied().chain(repeats).take(size).collect()
    }
}

/// Softmax probability of the predicted class of each row; 0 where the logits are no numbers.
fn confidence(logits: Tensor<2>) -> Vec<f32> {
    let most = softmax(logits, 1).max_dim(1).squeeze_dim::<1>(1);
    let most: Vec<f32> = most.try_into_vec_as().expect("computed logits");
    most.into_iter()
        .map(|p| if p.is_finite() { p } else { 0.0 })
        .collect()
}

/// Bins of a histogram of confidences.
const BINS: usize = 20;

impl Standing {
    /// Classifies the samples without attack, unless that is done.
    pub(crate) fn begin(&mut self, subject: &Subject<'_>) {
        let total = subject.data.len();
        while self.clean.len() < total {
            let start = self.clean.len();
            let end = total.min(start + subject.batch_size.max(1));
            let part: Vec<usize> = (start..end).collect();
            let (x, _) = subject.data.batch(&subject.filled(&part), subject.device);
            let logits = subject.model.logits(x);
            self.clean
                .extend(&predictions(logits.clone())[..part.len()]);
            self.clean_confidence
                .extend(&confidence(logits)[..part.len()]);
        }
        self.through.resize(total, 0);
        self.fell_to.resize(total, None);
        self.distance.resize(total, None);
        self.said.resize(total, None);
        self.confidence.resize(total, None);
    }

    fn record(&mut self, place: usize, part: &[usize], fallen: &[Fall]) {
        for &sample in part {
            self.through[sample] = place + 1;
        }
        for fall in fallen {
            let sample = fall.example.sample;
            self.fell_to[sample] = Some(place);
            self.distance[sample] = fall.distance;
            self.said[sample] = Some(fall.said);
            self.confidence[sample] = Some(fall.confidence);
        }
    }

    /// Whether sample `i` is classified correctly without attack.
    pub fn is_right(&self, data: &Dataset, i: usize) -> bool {
        self.clean[i] == data.labels[data.ids[i] as usize]
    }

    /// Whether sample `i` is classified correctly and has withstood what it was given so far.
    pub fn stands(&self, data: &Dataset, i: usize) -> bool {
        self.is_right(data, i) && self.fell_to[i].is_none()
    }

    /// The samples that stood before the attack at `place`, and those of them it has not been through.
    fn given(&self, data: &Dataset, place: usize) -> impl Iterator<Item = usize> {
        (0..data.len())
            .filter(move |&i| self.is_right(data, i))
            .filter(move |&i| self.fell_to[i].is_none_or(|attack| attack >= place))
    }

    fn waiting(&self, data: &Dataset, place: usize) -> Vec<usize> {
        self.given(data, place)
            .filter(|&i| self.through[i] <= place)
            .collect()
    }

    /// How many samples the attack at `place` is given, and how many of them it has been through.
    pub fn progress(&self, data: &Dataset, place: usize) -> (usize, usize) {
        let given = self.given(data, place).count();
        (given, given - self.waiting(data, place).len())
    }

    /// The attack at work of `members`: the first that has not been through all it is given.
    pub fn at_work(&self, data: &Dataset, members: usize) -> Option<usize> {
        (0..members).find(|&place| !self.waiting(data, place).is_empty())
    }

    fn label(&self, data: &Dataset, i: usize) -> usize {
        data.labels[data.ids[i] as usize] as usize
    }

    fn by_class(&self, data: &Dataset) -> Vec<Class> {
        let class = |(class, name): (usize, &String)| {
            let of: Vec<_> = (0..data.len())
                .filter(|&i| self.label(data, i) == class)
                .collect();
            let share = |holds: &dyn Fn(usize) -> bool| {
                of.iter().filter(|&&i| holds(i)).count() as f64 / of.len().max(1) as f64
            };
            Class {
                name: name.clone(),
                samples: of.len(),
                clean_accuracy: share(&|i| self.is_right(data, i)),
                robust_accuracy: share(&|i| self.stands(data, i)),
            }
        };
        data.classes.iter().enumerate().map(class).collect()
    }

    fn confusion(&self, data: &Dataset) -> Vec<Vec<usize>> {
        let classes = data.classes.len();
        let mut counts = vec![vec![0; classes]; classes];
        for i in 0..data.len() {
            let said = self.said[i].unwrap_or(self.clean[i]) as usize;
            if said < classes {
                counts[self.label(data, i)][said] += 1;
            }
        }
        counts
    }

    fn histograms(&self, data: &Dataset) -> Confidence {
        let bins = |values: &mut dyn Iterator<Item = f32>| {
            let mut counts = vec![0; BINS];
            for value in values {
                counts[((value * BINS as f32) as usize).min(BINS - 1)] += 1;
            }
            counts
        };
        let clean = |right: bool| {
            let of = (0..data.len()).filter(move |&i| self.is_right(data, i) == right);
            bins(&mut of.map(|i| self.clean_confidence[i]))
        };
        Confidence {
            clean_right: clean(true),
            clean_wrong: clean(false),
            adversarial: bins(&mut self.confidence.iter().copied().flatten()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use gauntlet_data::{DataConfig, load};
    use gauntlet_models::{ModelConfig, Network};

    use super::*;
    use crate::{AuditPlan, Setting, SuiteName};

    fn setting() -> (Network, Dataset, Suite) {
        let config: DataConfig = serde_json::from_str(r#"{"source":"digits"}"#).unwrap();
        let data = load(&config, Path::new(""), 0).unwrap().test.take(40);
        let config: ModelConfig = serde_json::from_str(r#"{"arch":"mlp","width":16}"#).unwrap();
        let model = config.init([1, 8, 8], 10, 0, &Device::flex()).unwrap();
        let threat: ThreatModel = "linf:0.02".parse().unwrap();
        let plan = AuditPlan::of(SuiteName::Standard, vec![threat.into()]);
        let setting = Setting {
            classes: 10,
            load: &|_| Err("there is none".to_owned()),
            fit: None,
        };
        let suite = plan.suites(&setting).unwrap().remove(0);
        (model, data, suite)
    }

    #[test]
    fn interruptions_batches_and_threads_change_nothing() {
        let (model, data, suite) = setting();
        let device = Device::flex();
        let subject = |batch_size, workers| Subject {
            model: &model,
            data: &data,
            device: &device,
            seed: 1,
            batch_size,
            workers,
        };
        let mut whole = Standing::default();
        let mut found = Vec::new();
        let done = suite.run(&subject(60, 1), &mut whole, &mut |_, examples| {
            found.extend(examples.to_vec());
            Ok(true)
        });
        assert!(done.unwrap());

        // Stopped after every batch, kept as JSON, gone on from there.
        let (mut kept, mut sessions) = (String::from("{}"), 0);
        let mut found_again = Vec::new();
        loop {
            let mut standing: Standing = serde_json::from_str(&kept).unwrap_or_default();
            let done = suite.run(&subject(7, 2), &mut standing, &mut |standing, examples| {
                kept = serde_json::to_string(standing).unwrap();
                found_again.extend(examples.to_vec());
                Ok(false)
            });
            sessions += 1;
            if done.unwrap() {
                break;
            }
        }
        assert!(sessions > 4);
        let again: Standing = serde_json::from_str(&kept).unwrap();
        assert_eq!(
            (&again.clean, &again.fell_to),
            (&whole.clean, &whole.fell_to)
        );
        let by_sample = |examples: &mut Vec<Example>| {
            examples.sort_by_key(|example| example.sample);
            examples.iter().map(|e| e.sample).collect::<Vec<_>>()
        };
        let fallen: Vec<_> = (0..40).filter(|&i| whole.fell_to[i].is_some()).collect();
        assert_eq!(by_sample(&mut found), fallen);
        assert_eq!(
            by_sample(&mut found_again),
            fallen,
            "an attack was repeated"
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

    #[test]
    fn shares_are_alike_and_whole_blocks_and_no_larger_than_asked_for() {
        let (model, data, _) = setting();
        let share = |samples, batch_size, workers| {
            let subject = Subject {
                model: &model,
                data: &data,
                device: &Device::flex(),
                seed: 1,
                batch_size,
                workers,
            };
            subject.share(samples, workers)
        };
        // 142 images in four batches are 36 each, of which the last block would be half empty.
        assert_eq!(share(142, 64, 2), 40);
        assert_eq!(share(14, 64, 2), 8);
        assert_eq!(share(82, 7, 2), 7);
        assert_eq!(share(142, 512, 1), 144);
    }
}
