//! Training methods. A method makes its examples (the inner maximisation) and returns what is to be minimised on them, so that
//! whatever goes around it (weight perturbation, averages, guards) is the same for all.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use gauntlet_attacks::{Attack, Eps, Init, KlPgd, Noise, Norm, Pgd, ThreatModel};
use gauntlet_kernels::{NoiseKey, host, on_host};
use gauntlet_models::{Classifier, Description, Network, weights};

use crate::loss::cross_entropy;
use crate::{Objective, Plan, TrainError, checkpoint};

mod alp;
mod consistency;
mod distill;
mod fgsm_rs;
mod free;
mod hat;
mod mart;
mod multi_norm;
mod n_fgsm;
mod pgd;
mod single_step;
mod smoothing;
pub(crate) mod standard;
mod trades;

/// The training methods on one fixed batch, against numbers from PyTorch.
#[cfg(test)]
mod tests;

/// A training method.
pub(crate) trait Method {
    /// Attacks the batch and says what is to be minimised on the result.
    fn craft(&mut self, scene: &Scene<'_>) -> Crafted;

    /// Updates on each batch.
    fn replays(&self) -> u32 {
        1
    }

    /// Takes the gradient of what was watched, after the backward pass.
    fn learn(&mut self, _gradient: Tensor<4>) {}

    /// What must survive an interruption, by name.
    fn state(&self) -> BTreeMap<String, TensorData> {
        BTreeMap::new()
    }

    /// Takes back what [`state`](Self::state) gave.
    fn restore(&mut self, _state: BTreeMap<String, TensorData>, _device: &Device) {}

    /// Networks it leans on: their folders and the hashes of their weights.
    fn others(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
}

/// What a method has to work with: one batch and the model as it is.
pub(crate) struct Scene<'a> {
    /// Untracked and in eval mode: attack what you ship.
    pub(crate) model: &'a (dyn Classifier<4> + Sync),
    pub(crate) x: Tensor<4>,
    /// The same samples, augmented differently, where the method asks for two views.
    pub(crate) second: Option<Tensor<4>>,
    pub(crate) y: Tensor<1, Int>,
    /// How many of the rows are attacked, the first ones.
    pub(crate) attacked: usize,
    pub(crate) noise: Noise,
    pub(crate) pace: Pace,
    pub(crate) label_smoothing: f32,
}

/// A key whose numbers have nothing to do with those of `key`: attacks set its restart themselves.
pub(crate) fn apart(key: NoiseKey, number: u32) -> NoiseKey {
    let away = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    NoiseKey {
        seed: key.seed.wrapping_add(away),
        ..key
    }
}

/// How strong the attack is at this step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pace {
    /// Share of eps and step size, in (0, 1].
    pub(crate) ramp: f64,
    /// Gradient steps, where they are not those of the attack.
    pub(crate) steps: Option<usize>,
}

/// Examples, and what to make of them.
pub(crate) struct Crafted {
    pub(crate) outer: Outer,
    /// Budget that the examples were given, for the record.
    pub(crate) eps: f32,
    /// An input whose gradient the method wants.
    pub(crate) watched: Option<Tensor<4>>,
}

/// The loss of a network on examples that are made: it may be asked more than once.
pub(crate) type Outer = Box<dyn Fn(&Net<'_>) -> Loss>;

/// The network in training, on an autodiff device.
pub(crate) struct Net<'a> {
    /// As adversarial examples see it.
    pub(crate) main: &'a dyn Classifier<4>,
    /// As clean examples see it, where that is another (split normalisation).
    pub(crate) for_clean: Option<&'a dyn Classifier<4>>,
}

impl Net<'_> {
    /// Logits of adversarial examples. BatchNorm and dropout train only on inputs that live on an autodiff device.
    pub(crate) fn adversarial(&self, x: Tensor<4>) -> Tensor<2> {
        self.main.logits(x.autodiff())
    }

    /// Logits of clean examples.
    pub(crate) fn clean(&self, x: Tensor<4>) -> Tensor<2> {
        self.for_clean.unwrap_or(self.main).logits(x.autodiff())
    }
}

/// A loss by its terms.
pub(crate) struct Loss {
    /// Name and value, weights included.
    pub(crate) terms: Vec<(&'static str, Tensor<1>)>,
    /// By which accuracy is measured: on attacked examples, where there are any.
    pub(crate) logits: Tensor<2>,
    pub(crate) labels: Tensor<1, Int>,
}

impl Loss {
    /// The sum of the terms.
    pub(crate) fn total(&self) -> Tensor<1> {
        let mut terms = self.terms.iter().map(|(_, term)| term.clone());
        let first = terms.next().expect("a loss has terms");
        terms.fold(first, |sum, term| sum + term)
    }
}

impl Crafted {
    /// The cross-entropy of `logits` and nothing else.
    fn cross_entropy(
        eps: f32,
        y: Tensor<1, Int>,
        label_smoothing: f32,
        logits: impl Fn(&Net<'_>) -> Tensor<2> + 'static,
    ) -> Self {
        let outer: Outer = Box::new(move |net| {
            let logits = logits(net);
            let term = cross_entropy(logits.clone(), y.clone(), label_smoothing);
            Loss {
                terms: vec![("cross_entropy", term)],
                logits,
                labels: y.clone(),
            }
        });
        Self {
            outer,
            eps,
            watched: None,
        }
    }
}

impl Scene<'_> {
    /// Cross-entropy on the batch with its first `attacked` rows replaced by what `perturb` makes of them.
    fn mixed(
        &self,
        eps: f32,
        perturb: impl FnOnce(Tensor<4>, Tensor<1, Int>, &Noise) -> Tensor<4>,
    ) -> Crafted {
        let (size, attacked) = (self.x.dims()[0], self.attacked);
        let noise = Noise {
            key: self.noise.key,
            samples: self.noise.samples[..attacked].to_vec(),
        };
        let chosen = self.x.clone().slice([0..attacked]);
        let adversarial = perturb(chosen, self.y.clone().slice([0..attacked]), &noise);
        let clean = (attacked < size).then(|| self.x.clone().slice([attacked..size]));
        let smoothing = self.label_smoothing;
        Crafted::cross_entropy(eps, self.y.clone(), smoothing, move |net| {
            let adversarial = adversarial.clone();
            match clean.clone() {
                None => net.adversarial(adversarial),
                Some(clean) if net.for_clean.is_none() => {
                    net.adversarial(Tensor::cat(vec![adversarial, clean], 0))
                }
                Some(clean) => {
                    let attacked = net.adversarial(adversarial);
                    Tensor::cat(vec![attacked, net.clean(clean)], 0)
                }
            }
        })
    }

    /// Attacks all rows.
    fn attack(&self, attack: &dyn Attack<4>) -> Tensor<4> {
        self.perturb(attack, self.x.clone(), self.y.clone(), &self.noise)
    }

    /// Attacks some rows. On the CPU parts of the batch are attacked at the same time: most operations there use one thread, and
    /// rows do not depend on each other. The size of a part depends on the batch alone, so that the machine decides nothing.
    fn perturb(
        &self,
        attack: &dyn Attack<4>,
        x: Tensor<4>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<4> {
        let rows = x.dims()[0];
        let part = rows.div_ceil(4).clamp(PART.start, PART.end);
        if rows <= part || !on_host(&x.device()) {
            return attack.perturb(self.model, x, y, noise);
        }
        let model = self.model;
        let jobs: Vec<_> = (0..rows)
            .step_by(part)
            .map(|from| {
                let to = (from + part).min(rows);
                let (x, y) = (x.clone().slice([from..to]), y.clone().slice([from..to]));
                let samples = noise.samples[from..to].to_vec();
                (
                    x,
                    y,
                    Noise {
                        key: noise.key,
                        samples,
                    },
                )
            })
            .collect();
        let parts = host::at_once(&jobs, |(x, y, noise)| {
            attack.perturb(model, x.clone(), y.clone(), noise)
        });
        Tensor::cat(parts, 0)
    }
}

/// Rows that are attacked together on the CPU: as many as a vector has lanes, or twice as many.
const PART: Range<usize> = 16..32;

/// The method of a plan. `multi_step`: the guard has changed a single-step attack for PGD.
pub(crate) fn build(
    plan: &Plan,
    description: &Description,
    multi_step: bool,
    device: &Device,
) -> Result<Box<dyn Method>, TrainError> {
    let attack = plan.train_attack();
    if multi_step {
        let threat = attack.threat.clone();
        let steps = MULTI_STEPS;
        return Ok(Box::new(pgd::PgdTraining {
            attack: Pgd {
                step_size: 2.5 * threat.eps.value() / steps as f32,
                steps,
                ..attack
            },
        }));
    }
    let train = &plan.train;
    let other = |path: &Path, key: &str| Other::load(path, key, description, device);
    Ok(match train.objective {
        Objective::Standard => Box::new(standard::Standard),
        Objective::FgsmRs if attack.threat.norm == Norm::Linf && attack.init == Init::Uniform => {
            Box::new(fgsm_rs::FgsmRsTraining { attack })
        }
        // In other norms, and from the clean image, FGSM is PGD of one step.
        Objective::Pgd | Objective::FgsmRs => Box::new(pgd::PgdTraining { attack }),
        Objective::Trades => Box::new(trades::TradesTraining {
            attack: divergence_attack(&attack, plan),
            beta: train.trades.clone().unwrap_or_default().beta,
        }),
        Objective::Mart => Box::new(mart::MartTraining {
            attack,
            beta: train.mart.clone().unwrap_or_default().beta,
        }),
        Objective::Hat => {
            let hat = train.hat.clone().expect("the plan was checked");
            Box::new(hat::HatTraining {
                attack: divergence_attack(&attack, plan),
                helper: other(&hat.helper, "train.hat.helper")?,
                beta: hat.beta,
                gamma: hat.gamma,
                reach: hat.reach,
            })
        }
        Objective::NFgsm => Box::new(n_fgsm::NFgsmTraining {
            attack,
            noise: train.n_fgsm.clone().unwrap_or_default().noise,
        }),
        Objective::Free => Box::new(free::FreeTraining::new(
            attack,
            train.free.clone().unwrap_or_default().replays,
        )),
        Objective::Alp => Box::new(alp::AlpTraining {
            attack,
            weight: train.alp.clone().unwrap_or_default().weight,
        }),
        Objective::Consistency => {
            let config = train.consistency.clone().unwrap_or_default();
            Box::new(consistency::ConsistencyTraining {
                attack,
                weight: config.weight,
                temperature: config.temperature,
            })
        }
        Objective::Distill => {
            let config = train.distill.clone().expect("the plan was checked");
            let mut teachers = vec![distill::Teacher {
                term: "teacher",
                network: other(&config.teacher, "train.distill.teacher")?,
                weight: config.weight,
            }];
            if let Some(path) = &config.standard_teacher {
                teachers.push(distill::Teacher {
                    term: "standard_teacher",
                    network: other(path, "train.distill.standard_teacher")?,
                    weight: config.standard_weight,
                });
            }
            Box::new(distill::DistillTraining {
                attack,
                teachers,
                temperature: config.temperature,
            })
        }
        Objective::MultiNorm => {
            let config = train.multi_norm.clone().expect("the plan was checked");
            Box::new(multi_norm::MultiNormTraining::new(&config, &attack))
        }
        Objective::Smoothing => Box::new(smoothing::SmoothingTraining {
            sigma: train.smoothing.clone().unwrap_or_default().sigma as f32,
        }),
    })
}

/// Gradient steps that the guard changes a single step for.
const MULTI_STEPS: usize = 10;

/// The attack of TRADES with the sizes of `attack`. Small normal noise at the start, unless the config asks for a random one.
fn divergence_attack(attack: &Pgd, plan: &Plan) -> KlPgd {
    KlPgd {
        threat: attack.threat.clone(),
        steps: attack.steps,
        step_size: attack.step_size,
        random_start: plan.train.attack.random_start == Some(true),
    }
}

/// `attack` at a pace: eps and step size shrunk to a share of theirs; with other steps, longer or shorter ones of the same
/// reach.
fn paced(attack: &Pgd, pace: Pace) -> Pgd {
    let (threat, step_size) = paced_sizes(&attack.threat, attack.step_size, attack.steps, pace);
    Pgd {
        threat,
        step_size,
        steps: pace.steps.unwrap_or(attack.steps),
        ..attack.clone()
    }
}

/// As [`paced`].
fn paced_divergence(attack: &KlPgd, pace: Pace) -> KlPgd {
    let (threat, step_size) = paced_sizes(&attack.threat, attack.step_size, attack.steps, pace);
    KlPgd {
        threat,
        step_size,
        steps: pace.steps.unwrap_or(attack.steps),
        ..attack.clone()
    }
}

fn paced_sizes(threat: &ThreatModel, size: f32, steps: usize, pace: Pace) -> (ThreatModel, f32) {
    let mut threat = threat.clone();
    let mut step_size = f64::from(size);
    if pace.ramp < 1.0 {
        threat.eps = Eps::try_from(f64::from(threat.eps.value()) * pace.ramp)
            .expect("a share of a legal size");
        step_size *= pace.ramp;
    }
    if let Some(other) = pace.steps {
        step_size *= steps as f64 / other.max(1) as f64;
    }
    (threat, step_size as f32)
}

/// A network that is not trained but asked.
pub(crate) struct Other {
    path: String,
    network: Network,
    hash: String,
}

impl Other {
    /// From the folder of a run (its best checkpoint) or of a checkpoint; it must score the same classes of the same images.
    fn load(
        path: &Path,
        key: &str,
        description: &Description,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let folder = checkpoint::best(path).unwrap_or_else(|| path.to_owned());
        let wrong = |problem: String| TrainError::Other {
            key: key.to_owned(),
            path: path.to_owned(),
            problem,
        };
        let (network, theirs) =
            checkpoint::load_network(&folder, device).map_err(|error| wrong(error.to_string()))?;
        if theirs.shape != description.shape || theirs.classes.len() != description.classes.len() {
            return Err(wrong(format!(
                "it was trained on images of {:?} in {} classes, these are {:?} in {}",
                theirs.shape,
                theirs.classes.len(),
                description.shape,
                description.classes.len()
            )));
        }
        let hash = checkpoint::digest_of(&weights::hashes(&network));
        Ok(Self {
            path: path.display().to_string(),
            network,
            hash,
        })
    }

    fn entry(&self) -> (String, String) {
        (self.path.clone(), self.hash.clone())
    }
}
