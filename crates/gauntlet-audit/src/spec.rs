use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::Device;
use gauntlet_attacks::{
    Apgd, ApgdLoss, Attack, AttackLoss, Basis, Boundary, Budget, CarliniWagner, Classifier, Ddn,
    DeepFool, Ead, Fab, Fgsm, Fmn, Goal, HopSkipJump, Init, Locations, MinimumNorm, MomentumFgsm,
    Msd, Nes, Norm, Patch, PatchThreat, Pgd, Poses, RFgsm, Simba, SparseRs, Spatial, SpatialThreat,
    Spsa, Square, ThreatModel, Transfer, Union, UniversalFit, UniversalPatchFit, Within,
};
use gauntlet_data::Dataset;
use gauntlet_kernels::{NoiseKey, Stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Member;

/// An attack of a plan: what it is, and what differs from its usual effort.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AttackSpec {
    /// One signed gradient step. `linf`, `l2`, `l1`.
    Fgsm {},
    /// FGSM after a random step. `linf`, `l2`, `l1`.
    RFgsm {},
    /// Iterated FGSM with momentum. `linf`, `l2`, `l1`.
    MiFgsm {
        /// Gradient steps. Default: 10.
        steps: Option<usize>,
    },
    /// The same with Nesterov's lookahead. `linf`, `l2`, `l1`.
    NiFgsm {
        /// Gradient steps. Default: 10.
        steps: Option<usize>,
    },
    /// Projected gradient descent. `linf`, `l2`, `l1`.
    Pgd {
        /// Gradient steps. Default: 100.
        steps: Option<usize>,
        /// Length of a step in input units. Default: 2.5 eps / steps.
        step_size: Option<f32>,
        /// Independent runs. Default: 1.
        restarts: Option<usize>,
        /// What is ascended. Default: cross-entropy.
        loss: Option<LossSpec>,
        /// Whether runs start at a random place in the ball. Default: true.
        random_start: Option<bool>,
    },
    /// Auto-PGD. `linf`, `l2`, `l1`.
    Apgd {
        /// What is ascended. Default: cross-entropy.
        loss: Option<ApgdLossSpec>,
        /// Gradient steps of a run. Default: 100.
        steps: Option<usize>,
        /// Independent runs (for each target). Default: 1.
        restarts: Option<usize>,
        /// Classes that the targeted ratio aims at. Default: 9, in `l1` 5.
        targets: Option<usize>,
    },
    /// Fast adaptive boundary attack. `linf`, `l2`, `l1`.
    Fab {
        /// Steps of a run. Default: 100.
        steps: Option<usize>,
        /// Runs against each target. Default: 1.
        restarts: Option<usize>,
        /// Classes aimed at in turn; 0 for the nearest boundary at each step. Default: 9.
        targets: Option<usize>,
    },
    /// DeepFool. `linf`, `l2`.
    Deepfool {
        /// Steps. Default: 50.
        steps: Option<usize>,
    },
    /// Carlini & Wagner. `l2`.
    CarliniWagner {
        /// Steps of a round. Default: the paper's.
        steps: Option<usize>,
        /// Rounds of the search for the weight of the margin. Default: 9.
        searches: Option<usize>,
    },
    /// Decoupled direction and norm. `l2`.
    Ddn {
        /// Steps. Default: 1000.
        steps: Option<usize>,
    },
    /// Fast minimum norm. `linf`, `l2`, `l1`, `l0`.
    Fmn {
        /// Steps. Default: the paper's.
        steps: Option<usize>,
    },
    /// Elastic net. `l1`.
    Ead {
        /// Steps of a round. Default: 1000.
        steps: Option<usize>,
        /// Rounds of the search for the weight of the margin. Default: 9.
        searches: Option<usize>,
    },
    /// Square Attack, by scores. `linf`, `l2`, `l1`.
    Square {
        /// Queries of a restart. Default: 5000.
        queries: Option<usize>,
        /// Independent searches. Default: 1.
        restarts: Option<usize>,
    },
    /// Simultaneous perturbations, by scores. `linf`, `l2`.
    Spsa {
        /// Steps. Default: 100.
        steps: Option<usize>,
        /// Pairs of queries in a step. Default: 128.
        pairs: Option<usize>,
    },
    /// Natural evolution strategies, by scores. `linf`, `l2`.
    Nes {
        /// Steps. Default: 200.
        steps: Option<usize>,
        /// Pairs of queries in a step. Default: 25.
        pairs: Option<usize>,
        /// How far from the iterate the model is asked, in input units. Default: 0.001.
        sigma: Option<f32>,
    },
    /// Coordinate after coordinate, by scores. `linf`, `l2`.
    Simba {
        /// Queries. Default: 10,000.
        queries: Option<usize>,
        /// Along waves of low frequency instead of single values. Default: false.
        dct: Option<bool>,
    },
    /// By predicted classes. `linf`, `l2`.
    Hopskipjump {
        /// Queries. Default: 25,000.
        queries: Option<usize>,
    },
    /// By predicted classes. `l2`.
    Boundary {
        /// Queries. Default: 25,000.
        queries: Option<usize>,
    },
    /// Random search over pixels, by scores. `l0`.
    SparseRs {
        /// Queries of a restart. Default: 10,000.
        queries: Option<usize>,
        /// Independent searches. Default: 1.
        restarts: Option<usize>,
    },
    /// The steepest step of several norms. Unions such as `linf:0.3 + l2:2 + l1:10`.
    Msd {
        /// Gradient steps. Default: 100.
        steps: Option<usize>,
        /// Independent runs. Default: 1.
        restarts: Option<usize>,
    },
    /// Gradient steps on the pixels of one window. `patch`.
    Patch {
        /// Steps at the best place. Default: 100.
        steps: Option<usize>,
        /// Places that are probed. Default: 20.
        places: Option<usize>,
        /// Independent searches. Default: 1.
        restarts: Option<usize>,
    },
    /// The worst of random poses, or of a grid of 775. `spatial`.
    Spatial {
        /// Random poses; 0 for the grid. Default: 0.
        tries: Option<usize>,
    },
    /// One perturbation for all images, or one patch, found on training images. `linf`, `l2`, `patch`.
    Universal {
        /// Training images it is found on. Default: 1000.
        samples: Option<usize>,
        /// Passes over them. Default: the usual.
        epochs: Option<usize>,
    },
    /// Another attack, on another model.
    Transfer {
        /// The model that is attacked instead: a run's folder, or a checkpoint's.
        surrogate: PathBuf,
        /// The attack. Default: PGD with 100 steps on the margin.
        attack: Option<Box<AttackSpec>>,
    },
}

/// What PGD ascends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LossSpec {
    /// Cross-entropy with the true class.
    CrossEntropy,
    /// Largest other logit minus the true one.
    Margin,
}

/// What APGD ascends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ApgdLossSpec {
    /// Cross-entropy with the true class.
    CrossEntropy,
    /// Difference of logits ratio.
    Dlr,
    /// The same towards one class after another.
    TargetedDlr,
}

/// A model an attack transfers from.
pub type Surrogate = Arc<dyn Classifier<4> + Send + Sync>;

/// What building an attack needs to know.
pub struct Setting<'a> {
    /// How many classes the model has.
    pub classes: usize,
    /// Loads the surrogate of a transfer attack.
    pub load: &'a dyn Fn(&std::path::Path) -> Result<Surrogate, String>,
    /// What universal attacks are found with; without it there are none.
    pub fit: Option<Fit<'a>>,
}

/// What a perturbation for all images is found with.
pub struct Fit<'a> {
    /// The model that is attacked.
    pub model: &'a dyn Classifier<4>,
    /// Loads images that are not those of the audit.
    pub training: &'a dyn Fn() -> Result<Dataset, String>,
    /// Where the model computes.
    pub device: &'a Device,
    /// Seed of the places of patches.
    pub seed: u64,
}

/// Training images in a batch.
const FIT_BATCH: usize = 128;

impl Fit<'_> {
    fn universal(
        &self,
        budget: &Budget,
        samples: usize,
        epochs: Option<usize>,
    ) -> Result<(Box<dyn Attack<4>>, usize), String> {
        let data = (self.training)()?.take(samples);
        let batches = |_epoch: usize| {
            let positions: Vec<usize> = (0..data.len()).collect();
            let parts: Vec<Vec<usize>> = positions.chunks(FIT_BATCH).map(<[_]>::to_vec).collect();
            let (data, device) = (&data, self.device);
            parts.into_iter().map(move |part| data.batch(&part, device))
        };
        Ok(match budget {
            Budget::Patch(threat) => {
                let mut fit = UniversalPatchFit::new(threat.clone());
                fit.epochs = epochs.unwrap_or(fit.epochs);
                let key = NoiseKey::new(self.seed, Stream::EvalAttack).at(0, UNIVERSAL);
                let found = fit.fit(self.model, batches, key);
                let found = found.map_err(|error| error.to_string())?;
                (Box::new(found), fit.epochs)
            }
            Budget::Norm(threat) => {
                let mut fit = UniversalFit::new(threat.clone());
                fit.epochs = epochs.unwrap_or(fit.epochs);
                let found = fit.fit(self.model, batches);
                let found = found.map_err(|error| error.to_string())?;
                (Box::new(found), fit.epochs)
            }
            Budget::Spatial(_) | Budget::Union(_) => {
                return Err("it works within linf, l2 and patches".to_owned());
            }
        })
    }
}

/// The stream of places of universal patches.
const UNIVERSAL: u32 = u32::MAX - 1;

impl AttackSpec {
    /// The attack within `budget`.
    ///
    /// # Errors
    /// Why it cannot be: a budget it does not work within, too few classes, a surrogate that cannot be loaded.
    pub fn build(&self, budget: &Budget, setting: &Setting<'_>) -> Result<Member, String> {
        let place = Place { spec: self, budget };
        let white = |attack: Box<dyn Attack<4>>, steps, restarts| Member {
            attack,
            steps,
            restarts,
            white_box: true,
            detail: serde_json::to_value(self).expect("plain values serialise"),
        };
        let black = |attack, steps, restarts| Member {
            white_box: false,
            ..white(attack, steps, restarts)
        };
        use Norm::{L0, L1, L2, Linf};
        let gradient = &[Linf, L2, L1];
        Ok(match self {
            Self::Fgsm {} => white(Box::new(Fgsm::new(place.ball(gradient)?)), 1, 1),
            Self::RFgsm {} => white(Box::new(RFgsm::new(place.ball(gradient)?)), 1, 1),
            Self::MiFgsm { steps } => {
                let mut attack = MomentumFgsm::mi(place.ball(gradient)?);
                if let Some(steps) = *steps {
                    attack.step_size *= attack.steps as f32 / steps.max(1) as f32;
                    attack.steps = steps;
                }
                let steps = attack.steps;
                white(Box::new(attack), steps, 1)
            }
            Self::NiFgsm { steps } => {
                let mut attack = MomentumFgsm::ni(place.ball(gradient)?);
                if let Some(steps) = *steps {
                    attack.step_size *= attack.steps as f32 / steps.max(1) as f32;
                    attack.steps = steps;
                }
                let steps = attack.steps;
                white(Box::new(attack), steps, 1)
            }
            Self::Pgd {
                steps,
                step_size,
                restarts,
                loss,
                random_start,
            } => {
                let steps = steps.unwrap_or(100);
                let mut attack = Pgd::new(place.ball(gradient)?, steps);
                attack.step_size = step_size.unwrap_or(attack.step_size);
                attack.restarts = restarts.unwrap_or(1);
                attack.loss = match loss {
                    Some(LossSpec::Margin) => AttackLoss::Margin,
                    _ => AttackLoss::CrossEntropy,
                };
                if *random_start == Some(false) {
                    attack.init = Init::Clean;
                }
                let restarts = attack.restarts;
                white(Box::new(attack), steps, restarts)
            }
            Self::Apgd {
                loss,
                steps,
                restarts,
                targets,
            } => {
                let threat = place.ball(gradient)?;
                let usual = if threat.norm == L1 { 5 } else { 9 };
                let (loss, least) = match loss {
                    None | Some(ApgdLossSpec::CrossEntropy) => (ApgdLoss::CrossEntropy, 2),
                    Some(ApgdLossSpec::Dlr) => (ApgdLoss::Dlr, 3),
                    Some(ApgdLossSpec::TargetedDlr) => {
                        let most = setting.classes.saturating_sub(1);
                        let targets = targets.unwrap_or(usual).min(most);
                        (ApgdLoss::TargetedDlr { targets }, 4)
                    }
                };
                if setting.classes < least {
                    return Err(place.wrong(&format!(
                        "this loss needs {least} classes, the model has {}",
                        setting.classes
                    )));
                }
                let mut attack = Apgd::new(threat, loss);
                attack.steps = steps.unwrap_or(attack.steps);
                attack.restarts = restarts.unwrap_or(attack.restarts);
                let (steps, restarts) = (attack.steps, attack.restarts);
                white(Box::new(attack), steps, restarts)
            }
            Self::Fab {
                steps,
                restarts,
                targets,
            } => {
                let mut attack = Fab::targeted(place.ball(gradient)?);
                attack.steps = steps.unwrap_or(attack.steps);
                attack.restarts = restarts.unwrap_or(attack.restarts);
                attack.targets = match targets {
                    None => attack.targets,
                    Some(0) => None,
                    Some(targets) => Some(*targets),
                };
                let (steps, restarts) = (attack.steps, attack.restarts);
                white(Box::new(attack), steps, restarts)
            }
            Self::Deepfool { steps } => {
                let threat = place.ball(&[Linf, L2])?;
                let mut attack = match threat.norm {
                    L2 => DeepFool::l2(Goal::Untargeted),
                    _ => DeepFool::linf(Goal::Untargeted),
                };
                attack.steps = steps.unwrap_or(attack.steps);
                let steps = attack.steps;
                white(within(threat, attack), steps, 1)
            }
            Self::CarliniWagner { steps, searches } => {
                let mut attack = CarliniWagner::new(Goal::Untargeted);
                attack.steps = steps.unwrap_or(attack.steps);
                attack.searches = searches.unwrap_or(attack.searches);
                let steps = attack.steps;
                white(within(place.ball(&[L2])?, attack), steps, 1)
            }
            Self::Ddn { steps } => {
                let mut attack = Ddn::new(Goal::Untargeted);
                attack.steps = steps.unwrap_or(attack.steps);
                let steps = attack.steps;
                white(within(place.ball(&[L2])?, attack), steps, 1)
            }
            Self::Fmn { steps } => {
                let threat = place.ball(&Norm::ALL)?;
                let mut attack = Fmn::new(threat.norm, Goal::Untargeted);
                attack.steps = steps.unwrap_or(attack.steps);
                let steps = attack.steps;
                white(within(threat, attack), steps, 1)
            }
            Self::Ead { steps, searches } => {
                let mut attack = Ead::new(Goal::Untargeted);
                attack.steps = steps.unwrap_or(attack.steps);
                attack.searches = searches.unwrap_or(attack.searches);
                let steps = attack.steps;
                white(within(place.ball(&[L1])?, attack), steps, 1)
            }
            Self::Square { queries, restarts } => {
                let mut attack = Square::standard(place.ball(gradient)?);
                attack.queries = queries.unwrap_or(attack.queries);
                attack.restarts = restarts.unwrap_or(attack.restarts);
                let (queries, restarts) = (attack.queries, attack.restarts);
                black(Box::new(attack), queries, restarts)
            }
            Self::Spsa { steps, pairs } => {
                let mut attack = Spsa::new(place.ball(&[Linf, L2])?);
                attack.steps = steps.unwrap_or(attack.steps);
                attack.pairs = pairs.unwrap_or(attack.pairs);
                let steps = attack.steps;
                black(Box::new(attack), steps, 1)
            }
            Self::Nes {
                steps,
                pairs,
                sigma,
            } => {
                let mut attack = Nes::new(place.ball(&[Linf, L2])?);
                attack.steps = steps.unwrap_or(attack.steps);
                attack.pairs = pairs.unwrap_or(attack.pairs);
                attack.sigma = sigma.unwrap_or(attack.sigma);
                let steps = attack.steps;
                black(Box::new(attack), steps, 1)
            }
            Self::Simba { queries, dct } => {
                let basis = match dct {
                    Some(true) => Basis::Dct { share: 0.25 },
                    _ => Basis::Pixel,
                };
                let mut attack = Simba::new(place.ball(&[Linf, L2])?, basis);
                attack.queries = queries.unwrap_or(attack.queries);
                let queries = attack.queries;
                black(Box::new(attack), queries, 1)
            }
            Self::Hopskipjump { queries } => {
                let threat = place.ball(&[Linf, L2])?;
                let mut attack = HopSkipJump::new(threat.norm);
                attack.queries = queries.unwrap_or(attack.queries);
                let queries = attack.queries;
                black(within(threat, attack), queries, 1)
            }
            Self::Boundary { queries } => {
                let mut attack = Boundary::new();
                attack.queries = queries.unwrap_or(attack.queries);
                let queries = attack.queries;
                black(within(place.ball(&[L2])?, attack), queries, 1)
            }
            Self::SparseRs { queries, restarts } => {
                let mut attack = SparseRs::new(place.ball(&[L0])?);
                attack.queries = queries.unwrap_or(attack.queries);
                attack.restarts = restarts.unwrap_or(attack.restarts);
                let (queries, restarts) = (attack.queries, attack.restarts);
                black(Box::new(attack), queries, restarts)
            }
            Self::Msd { steps, restarts } => {
                let steps = steps.unwrap_or(100);
                let mut attack = Msd::new(place.union()?, steps);
                attack.restarts = restarts.unwrap_or(attack.restarts);
                let restarts = attack.restarts;
                white(Box::new(attack), steps, restarts)
            }
            Self::Patch {
                steps,
                places,
                restarts,
            } => {
                let mut attack = Patch::new(place.patch()?);
                attack.steps = steps.unwrap_or(attack.steps);
                attack.restarts = restarts.unwrap_or(attack.restarts);
                if let Some(places) = *places {
                    attack.locations = Locations::Random(places);
                }
                let (steps, restarts) = (attack.steps, attack.restarts);
                white(Box::new(attack), steps, restarts)
            }
            Self::Spatial { tries } => {
                let threat = place.spatial()?;
                let attack = match tries.unwrap_or(0) {
                    0 => Spatial::grid(threat),
                    tries => Spatial::worst_of(tries, threat),
                };
                let poses = match attack.poses {
                    Poses::Random(tries) => tries,
                    Poses::Grid { shifts, angles } => shifts * shifts * angles,
                };
                black(Box::new(attack), poses, 1)
            }
            Self::Universal { samples, epochs } => {
                let fit = setting.fit.as_ref();
                let fit = fit.ok_or_else(|| place.wrong("there are no training images"))?;
                let (attack, epochs) = fit
                    .universal(budget, samples.unwrap_or(1000), *epochs)
                    .map_err(|problem| place.wrong(&problem))?;
                white(attack, epochs, 1)
            }
            Self::Transfer { surrogate, attack } => {
                let usual = Self::Pgd {
                    steps: None,
                    step_size: None,
                    restarts: None,
                    loss: Some(LossSpec::Margin),
                    random_start: None,
                };
                let inner = attack.as_deref().unwrap_or(&usual).build(budget, setting)?;
                let attack = Transfer {
                    surrogate: (setting.load)(surrogate)
                        .map_err(|problem| place.wrong(&problem))?,
                    attack: inner.attack,
                    surrogate_name: surrogate.display().to_string(),
                };
                black(Box::new(attack), inner.steps, inner.restarts)
            }
        })
    }

    /// What is wrong with its numbers, whatever the budget and the model: keys, and what is wrong with each.
    pub(crate) fn problems(&self) -> Vec<(String, String)> {
        let keys = serde_json::to_value(self).expect("plain values serialise");
        let number = |key: &str| keys[key].as_f64();
        let mut found = Vec::new();
        for (key, value) in keys.as_object().into_iter().flatten() {
            // None at all has a meaning of its own there.
            let from_zero = matches!(
                (self, key.as_str()),
                (Self::Fab { .. }, "targets") | (Self::Spatial { .. }, "tries")
            );
            let problem = match number(key) {
                Some(n) if value.is_f64() && !(n > 0.0 && n.is_finite()) => {
                    format!("{n} is not above 0")
                }
                Some(0.0) if !from_zero => "at least 1 is needed".to_owned(),
                _ => continue,
            };
            found.push((key.clone(), problem));
        }
        // Random numbers have names for so many runs.
        let most = if keys.get("targets").is_some() {
            100
        } else {
            1000
        };
        if number("restarts").is_some_and(|restarts| restarts > f64::from(most)) {
            found.push((
                "restarts".to_owned(),
                format!("at most {most} are possible"),
            ));
        }
        if let Self::Transfer {
            attack: Some(attack),
            ..
        } = self
        {
            let inner = attack.problems().into_iter();
            found.extend(inner.map(|(key, problem)| (format!("attack.{key}"), problem)));
        }
        found
    }

    /// Whether it works within `budget`, as far as that can be told without a model, training images and surrogates.
    pub(crate) fn fits(&self, budget: &Budget, classes: usize) -> Result<(), String> {
        let nobody = |_: &std::path::Path| Err(String::new());
        let setting = Setting {
            classes,
            load: &nobody,
            fit: None,
        };
        let place = Place { spec: self, budget };
        match (self, budget) {
            (Self::Transfer { attack, .. }, _) => {
                let attack = attack.as_deref();
                attack.map_or(Ok(()), |attack| attack.fits(budget, classes))
            }
            (Self::Universal { .. }, Budget::Patch(_)) => Ok(()),
            (Self::Universal { .. }, _) => place.ball(&[Norm::Linf, Norm::L2]).map(drop),
            _ => self.build(budget, &setting).map(drop),
        }
    }

    /// Its name in plans.
    pub fn kind(&self) -> String {
        let value = serde_json::to_value(self).expect("plain values serialise");
        value["kind"].as_str().unwrap_or_default().to_owned()
    }
}

fn within<A: MinimumNorm<4> + 'static>(threat: ThreatModel, attack: A) -> Box<dyn Attack<4>> {
    Box::new(Within { threat, attack })
}

/// An attack that is to work within a budget.
struct Place<'a> {
    spec: &'a AttackSpec,
    budget: &'a Budget,
}

impl Place<'_> {
    fn wrong(&self, problem: &str) -> String {
        format!("`{}` within {}: {problem}", self.spec.kind(), self.budget)
    }

    /// The budget, if it is a ball of one of these norms.
    fn ball(&self, norms: &[Norm]) -> Result<ThreatModel, String> {
        match self.budget {
            Budget::Norm(threat) if norms.contains(&threat.norm) => Ok(threat.clone()),
            _ => {
                let names: Vec<_> = norms.iter().map(Norm::to_string).collect();
                Err(self.wrong(&format!("it works within {}", names.join(", "))))
            }
        }
    }

    fn patch(&self) -> Result<PatchThreat, String> {
        match self.budget {
            Budget::Patch(threat) => Ok(threat.clone()),
            _ => Err(self.wrong("it works within a patch, such as `patch:5`")),
        }
    }

    fn spatial(&self) -> Result<SpatialThreat, String> {
        match self.budget {
            Budget::Spatial(threat) => Ok(threat.clone()),
            _ => Err(self.wrong("it works within poses, such as `spatial:30deg,3px`")),
        }
    }

    fn union(&self) -> Result<Union, String> {
        match self.budget {
            Budget::Union(union) if union.0.iter().all(|threat| threat.norm != Norm::L0) => {
                Ok(union.clone())
            }
            _ => {
                Err(self
                    .wrong("it works within a union of linf, l2 and l1, such as `linf:0.3 + l2:2`"))
            }
        }
    }
}
