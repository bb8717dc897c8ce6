//! One training step: attack the model as it is, minimise what the method says, move the averages.

use std::collections::BTreeMap;
use std::time::Instant;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{FloatDType, Tensor};
use gauntlet_attacks::Noise;
use gauntlet_data::Batch;
use gauntlet_kernels::{NoiseKey, Stream};
use gauntlet_models::{Classifier, Computing, detached, made_ready, named};

use crate::awp;
use crate::objective::{Crafted, Loss, Method, Net, Outer, Pace, Scene, apart, standard};
use crate::trainer::Run;
use crate::{
    Event, Kind, Objective, OnNotFinite, Precision, Record, Split, StepPlan, TrainError,
    clip_global_norm,
};

/// Steps in a row that may be passed over.
const MAX_SKIPPED: u32 = 10;

impl<M: Module + Classifier<4> + Sync> Run<'_, M> {
    pub(crate) fn step(&mut self, epoch: u32, batch: Batch) -> Result<(), TrainError> {
        let began = Instant::now();
        let plan = self.session.plan;
        let size = batch.ids.len();
        let what = match plan.train.objective {
            Objective::Standard => StepPlan {
                adversarial: 0.0,
                ramp: 1.0,
            },
            _ => plan.train.interleave.at(self.state.step, self.per_epoch),
        };
        let attacked = what.attacked(size);
        let kind = StepPlan::kind(attacked, size);
        let rate = plan.train.schedule.rate(self.state.step, self.total);
        let replays = match attacked {
            0 => 1,
            _ => self.method.replays(),
        };
        let (mut eps, mut measured) = (0.0, Measured::default());
        for replay in 0..replays {
            let crafted = self.craft(epoch, &batch, attacked, self.pace(epoch, what.ramp));
            eps = crafted.eps;
            measured = self.update(epoch, replay, kind, rate, crafted)?;
        }
        self.state.step += 1;
        self.saved = false;

        let record = Record {
            step: self.state.step,
            epoch,
            split: Split::Train,
            kind,
            loss: f64::from(measured.loss),
            accuracy: measured.accuracy,
            robust_accuracy: None,
            single_step_accuracy: None,
            terms: measured.terms,
            adversarial: attacked as f64 / size as f64,
            eps: f64::from(eps),
            learning_rate: rate,
            images_per_second: Some(size as f64 / began.elapsed().as_secs_f64()),
        };
        self.sinks.send(self.session.sinks, &Event::Record(&record));
        Ok(())
    }

    /// How strong the attack is in `epoch`.
    pub(crate) fn pace(&self, epoch: u32, ramp: f64) -> Pace {
        let stages = &self.session.plan.train.curriculum;
        let stage = stages.iter().rev().find(|stage| stage.epoch <= epoch);
        Pace {
            ramp: ramp * stage.map_or(1.0, |stage| stage.eps),
            steps: stage.and_then(|stage| stage.steps),
        }
    }

    fn craft(&mut self, epoch: u32, batch: &Batch, attacked: usize, pace: Pace) -> Crafted {
        let in_bf16 = self.session.plan.train.precision.attacks_in_bf16();
        let dtype = if in_bf16 {
            FloatDType::BF16
        } else {
            FloatDType::F32
        };
        let frozen = match attacked {
            0 => self.model.valid(),
            _ => made_ready(self.model.valid(), dtype),
        };
        let half = Computing {
            model: &frozen,
            dtype,
        };
        // An attempt after a roll-back has other noise: the same would lead to the same collapse.
        let key = NoiseKey::new(self.session.plan.seed, Stream::TrainAttack)
            .at(epoch, self.state.step as u32);
        let scene = Scene {
            model: if in_bf16 { &half } else { &frozen },
            x: batch.images.clone(),
            second: batch.second.clone(),
            y: batch.labels.clone(),
            attacked,
            noise: Noise {
                key: apart(key, self.state.attempt),
                samples: batch.ids.clone(),
            },
            pace,
            label_smoothing: self.session.plan.train.label_smoothing,
        };
        match attacked {
            0 => standard::Standard.craft(&scene),
            _ => self.method.craft(&scene),
        }
    }

    /// One update of the weights.
    fn update(
        &mut self,
        epoch: u32,
        replay: u32,
        kind: Kind,
        rate: f64,
        crafted: Crafted,
    ) -> Result<Measured, TrainError> {
        let plan = self.session.plan;
        let key = NoiseKey::new(plan.seed, Stream::Dropout)
            .at(epoch, self.state.step as u32)
            .restart(replay);
        let awp = plan.train.awp.as_ref();
        let moved = awp.filter(|awp| epoch >= awp.warmup_epochs).map(|awp| {
            self.session.device.seed(key.seed());
            self.moved(&crafted.outer, awp.gamma)
        });
        // The same masks for both passes.
        self.session.device.seed(key.seed());
        let (main, for_clean) = match moved {
            Some((main, for_clean)) => (main, for_clean),
            None => (self.model.clone(), self.for_clean.clone()),
        };
        let loss = self.loss_of(&crafted.outer, &main, for_clean.as_ref());
        let measured = measure(&loss);
        if let Some((term, value)) = measured.broken() {
            return self.not_finite(epoch, kind, term, value, measured);
        }
        self.state.skipped = 0;

        let mut all = loss.total().backward();
        if let Some(input) = &crafted.watched
            && let Some(gradient) = input.grad_remove(&mut all)
        {
            self.method.learn(gradient);
        }
        let clean_gradients = for_clean
            .as_ref()
            .map(|model| GradientsParams::from_params(&mut all, model, &self.clean_norm_ids));
        let mut gradients = GradientsParams::from_module(&mut all, &main);
        if let Some(limit) = plan.train.clip_norm {
            gradients = clip_global_norm(&main, gradients, limit);
        }
        // The weights as they were; BatchNorm statistics as they are after this pass.
        let weights = |path: &str| !named::is_buffer(path);
        let main = match awp {
            Some(_) => named::graft(main, &self.model, weights),
            None => main,
        };
        self.model = self.optimizer.step(rate, main, gradients);
        if let (Some(model), Some(gradients)) = (for_clean, clean_gradients) {
            let model = match (awp, &self.for_clean) {
                (Some(_), Some(old)) => named::graft(model, old, weights),
                _ => model,
            };
            let model = self.optimizer.step_under("clean:", rate, model, gradients);
            self.for_clean = Some(named::graft(model, &self.model, |path| {
                !named::is_norm(path)
            }));
        }
        if let Some(average) = &mut self.average {
            average.after_step(&self.model);
        }
        Ok(measured)
    }

    /// Both networks at weights where the loss is higher.
    fn moved(&self, outer: &Outer, gamma: f64) -> (M, Option<M>) {
        // Deep copies: this pass is not to move BatchNorm statistics.
        let main = detached(&self.model);
        let for_clean = self
            .for_clean
            .as_ref()
            .map(|model| named::graft(detached(model), &main, |path| !named::is_norm(path)));
        let loss = self.loss_of(outer, &main, for_clean.as_ref());
        let gradients = GradientsParams::from_grads(loss.total().backward(), &main);
        let moved = awp::perturbed(self.model.clone(), gradients, gamma);
        let for_clean = self
            .for_clean
            .as_ref()
            .map(|model| named::graft(model.clone(), &moved, |path| !named::is_norm(path)));
        (moved, for_clean)
    }

    fn loss_of(&self, outer: &Outer, main: &M, for_clean: Option<&M>) -> Loss {
        if self.session.plan.train.precision != Precision::Bf16 {
            let for_clean = for_clean.map(|model| model as &dyn Classifier<4>);
            return outer(&Net { main, for_clean });
        }
        let dtype = FloatDType::BF16;
        let for_clean = for_clean.map(|model| Computing { model, dtype });
        outer(&Net {
            main: &Computing { model: main, dtype },
            for_clean: for_clean.as_ref().map(|model| model as &dyn Classifier<4>),
        })
    }

    fn not_finite(
        &mut self,
        epoch: u32,
        kind: Kind,
        term: String,
        value: f32,
        measured: Measured,
    ) -> Result<Measured, TrainError> {
        let step = self.state.step;
        self.state.skipped += 1;
        let skip = self.session.plan.train.guard.not_finite == OnNotFinite::Skip;
        if !skip || self.state.skipped >= MAX_SKIPPED {
            let kind = match kind {
                Kind::Clean => "clean",
                Kind::Adversarial => "adversarial",
                Kind::Mixed => "mixed",
            };
            return Err(TrainError::NotFinite {
                step,
                epoch,
                kind,
                term,
                value,
            });
        }
        let note = format!("step {step} is passed over: `{term}` is {value}");
        self.sinks.send(self.session.sinks, &Event::Note(&note));
        Ok(measured)
    }
}

/// A loss in numbers.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    loss: f32,
    accuracy: f64,
    /// Where there are several.
    terms: BTreeMap<String, f64>,
}

impl Measured {
    /// The first term that is no number.
    fn broken(&self) -> Option<(String, f32)> {
        if self.loss.is_finite() {
            return None;
        }
        let term = self.terms.iter().find(|(_, value)| !value.is_finite());
        Some(term.map_or_else(
            || ("loss".to_owned(), self.loss),
            |(name, value)| (name.clone(), *value as f32),
        ))
    }
}

/// Loss, terms and accuracy in one read from the device.
fn measure(loss: &Loss) -> Measured {
    let hits = loss
        .logits
        .clone()
        .inner()
        .argmax(1)
        .squeeze_dim::<1>(1)
        .equal(loss.labels.clone())
        .float()
        .mean_dim(0);
    let mut all = vec![loss.total().inner(), hits];
    all.extend(loss.terms.iter().map(|(_, term)| term.clone().inner()));
    let values: Vec<f32> = Tensor::cat(all, 0)
        .try_into_vec_as()
        .expect("computed numbers");
    let terms = match loss.terms.as_slice() {
        [_] => BTreeMap::new(),
        several => several
            .iter()
            .zip(&values[2..])
            .map(|((name, _), value)| ((*name).to_owned(), f64::from(*value)))
            .collect(),
    };
    Measured {
        loss: values[0],
        accuracy: f64::from(values[1]),
        terms,
    }
}
