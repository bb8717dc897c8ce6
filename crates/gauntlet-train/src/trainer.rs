//! The step loop.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor};
use gauntlet_attacks::{Attack, Eps, Noise, Pgd, ThreatModel};
use gauntlet_data::picture::{self, Example};
use gauntlet_data::{Batch, Loader, Splits};
use gauntlet_kernels::{NoiseKey, Stream};
use gauntlet_models::{Classifier, Description};

use crate::checkpoint::{self, Best, Snapshot, State};
use crate::ema::Ema;
use crate::jsonl::Jsonl;
use crate::loss::cross_entropy;
use crate::run_dir::write_atomic;
use crate::tensorboard::TensorBoard;
use crate::validation::{Validation, validate};
use crate::{
    Event, Kind, MetricSink, Objective, Optimizer, Plan, Record, Split, StepPlan, TrainError,
    clip_global_norm,
};

/// What a training needs besides the network.
pub struct Session<'a> {
    /// The resolved plan.
    pub plan: &'a Plan,
    /// How to build the network again; kept beside its weights.
    pub description: &'a Description,
    /// Where `checkpoints/`, `samples/`, `metrics.jsonl` and `tensorboard/` go. If it holds checkpoints, training goes on from
    /// the newest whole one.
    pub folder: &'a Path,
    /// `hardened` or `standard`, for people.
    pub label: &'a str,
    /// The data.
    pub splits: &'a Splits,
    /// Where to compute: a plain device, not an autodiff one.
    pub device: &'a Device,
    /// Who listens, besides `metrics.jsonl`.
    pub sinks: &'a mut [Box<dyn MetricSink>],
    /// Set by Ctrl-C: the run saves a checkpoint and returns.
    pub stop: &'a AtomicBool,
}

impl<'a> Session<'a> {
    /// A session on `device` that writes to `folder`, tells nobody, and is stopped by nobody.
    pub fn new(
        plan: &'a Plan,
        description: &'a Description,
        splits: &'a Splits,
        folder: &'a Path,
        device: &'a Device,
    ) -> Self {
        static NEVER: AtomicBool = AtomicBool::new(false);
        Self {
            plan,
            description,
            folder,
            label: "hardened",
            splits,
            device,
            sinks: &mut [],
            stop: &NEVER,
        }
    }
}

/// How a training ended.
#[derive(Debug)]
pub struct Fitted<M> {
    /// The network that ships (the best on validation data, if there are any), untracked and in eval mode.
    pub model: M,
    /// Its updates.
    pub step: u64,
    /// Whether all epochs were trained; `false` after Ctrl-C.
    pub finished: bool,
    /// Seconds of training over all interruptions, validation included.
    pub seconds: f64,
}

/// Trains `model` (built on an autodiff device) as the plan says, from the newest checkpoint in the folder if there is one.
///
/// Each step attacks the model as it ships (BatchNorm and dropout in eval mode, parameters untracked) and then minimises the
/// loss on what came out (Madry et al. 2018, eq. 2.1).
///
/// # Errors
/// See [`TrainError`]. Whatever happens, the checkpoints written before are whole.
pub fn fit<M: Module + Classifier<4>>(
    model: M,
    session: Session<'_>,
) -> Result<Fitted<M>, TrainError> {
    let mut run = Run::new(model, session)?;
    let finished = run.train()?;
    let Run {
        session,
        sinks,
        state,
        model,
        ema,
        ..
    } = run;
    sinks.finish(session.sinks);
    let shipped = ema.map_or_else(|| model.valid(), |ema| ema.model);
    let (model, step) = match state
        .best
        .filter(|best| finished && best.step != state.step)
    {
        Some(best) => {
            let path = checkpoint::best(session.folder).expect("the best checkpoint is kept");
            (checkpoint::load_weights(&path, shipped)?, best.step)
        }
        None => (shipped, state.step),
    };
    Ok(Fitted {
        model,
        step,
        finished,
        seconds: state.seconds,
    })
}

struct Run<'a, M> {
    session: Session<'a>,
    sinks: Sinks,
    loader: Arc<Loader>,
    per_epoch: u64,
    total: u64,
    attack: Pgd,
    state: State,
    /// Whether `state` is what the newest checkpoint holds.
    saved: bool,
    clock: Instant,
    model: M,
    ema: Option<Ema<M>>,
    optimizer: Optimizer,
}

impl<'a, M: Module + Classifier<4>> Run<'a, M> {
    fn new(model: M, session: Session<'a>) -> Result<Self, TrainError> {
        let plan = session.plan;
        plan.check()?;
        let loader = Arc::new(Loader::new(
            session.splits.train.clone(),
            plan.data.batch_size,
            &plan.data.augment,
            plan.seed,
            session.device,
        ));
        let per_epoch = loader.steps_per_epoch() as u64;
        if per_epoch == 0 {
            let (batch, examples) = (plan.data.batch_size, session.splits.train.len());
            return Err(TrainError::TooFewExamples { batch, examples });
        }
        for name in ["checkpoints", "samples", "tensorboard"] {
            let path = session.folder.join(name);
            std::fs::create_dir_all(&path).map_err(|source| TrainError::Io { path, source })?;
        }
        let mut optimizer = Optimizer::new(plan.train.optimizer.clone());
        let decay = plan.train.ema.as_ref().map(|ema| ema.decay);
        let mut notes = Vec::new();
        let (state, model, ema, saved) = match checkpoint::newest(session.folder, &model)? {
            Some(restored) => {
                let mut state = restored.state;
                notes.extend(
                    restored
                        .damaged
                        .into_iter()
                        .map(|problem| format!("not used: {problem}")),
                );
                notes.push(format!("going on from step {}", state.step));
                optimizer.restore(
                    restored.optimizer,
                    std::mem::take(&mut state.optimizer),
                    session.device,
                );
                let ema = decay.map(|decay| Ema::resume(restored.model, decay, state.ema_updates));
                (state, restored.live, ema, true)
            }
            None => {
                let ema = decay.map(|decay| Ema::new(&model, decay));
                (
                    State {
                        schema: 1,
                        ..State::default()
                    },
                    model,
                    ema,
                    false,
                )
            }
        };
        let total = per_epoch * u64::from(plan.train.epochs);
        let mut sinks = Sinks::open(session.folder, &state, &mut notes)?;
        let start = Event::Start {
            model: session.label,
            done: state.step,
            total,
            per_epoch,
        };
        sinks.send(session.sinks, &start);
        for note in &notes {
            sinks.send(session.sinks, &Event::Note(note));
        }
        let attack = plan.train_attack();
        let clock = Instant::now();
        Ok(Self {
            session,
            sinks,
            loader,
            per_epoch,
            total,
            attack,
            state,
            saved,
            clock,
            model,
            ema,
            optimizer,
        })
    }

    /// Returns whether all epochs were trained.
    fn train(&mut self) -> Result<bool, TrainError> {
        if self.epoch_end_is_due() && !self.end_epoch()? {
            return Ok(false);
        }
        while self.state.step < self.total {
            let epoch = (self.state.step / self.per_epoch) as u32;
            let first = (self.state.step % self.per_epoch) as usize;
            let batches = Arc::clone(&self.loader);
            for batch in batches.epoch(epoch, first) {
                self.step(epoch, batch)?;
                if self.stopped() {
                    self.save(false)?;
                    return Ok(false);
                }
                let every = self.session.plan.checkpoint.every_steps;
                if every.is_some_and(|every| self.state.step.is_multiple_of(every))
                    && !self.state.step.is_multiple_of(self.per_epoch)
                {
                    self.save(false)?;
                }
            }
            if !self.end_epoch()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn stopped(&self) -> bool {
        self.session.stop.load(Ordering::Relaxed)
    }

    fn step(&mut self, epoch: u32, batch: Batch) -> Result<(), TrainError> {
        let began = Instant::now();
        let plan = self.session.plan;
        let step = self.state.step;
        let size = batch.ids.len();
        let what = match plan.train.objective {
            Objective::Standard => StepPlan {
                adversarial: 0.0,
                ramp: 1.0,
            },
            Objective::Pgd => plan.train.interleave.at(step, self.per_epoch),
        };
        let attacked = what.attacked(size);
        let kind = StepPlan::kind(attacked, size);
        let labels = batch.labels.clone();
        let (images, eps) = self.attacked(epoch, batch, attacked, what.ramp)?;

        self.session.device.seed(
            NoiseKey::new(plan.seed, Stream::Dropout)
                .at(epoch, step as u32)
                .seed(),
        );
        // BatchNorm and dropout train only on inputs that live on an autodiff device.
        let logits = self.model.logits(images.autodiff());
        let loss = cross_entropy(logits.clone(), labels.clone(), plan.train.label_smoothing);
        let (value, accuracy) = measured(loss.clone().inner(), logits.inner(), labels);
        if !value.is_finite() {
            let kind = match kind {
                Kind::Clean => "clean",
                Kind::Adversarial => "adversarial",
                Kind::Mixed => "mixed",
            };
            return Err(TrainError::NotFinite {
                step,
                epoch,
                kind,
                loss: value,
            });
        }
        let mut gradients = GradientsParams::from_grads(loss.backward(), &self.model);
        if let Some(limit) = plan.train.clip_norm {
            gradients = clip_global_norm(&self.model, gradients, limit);
        }
        let rate = plan.train.schedule.rate(step, self.total);
        self.model = self.optimizer.step(rate, self.model.clone(), gradients);
        if let Some(ema) = &mut self.ema {
            ema.update(&self.model);
        }
        self.state.step += 1;
        self.saved = false;

        let record = Record {
            step: self.state.step,
            epoch,
            split: Split::Train,
            kind,
            loss: f64::from(value),
            accuracy,
            robust_accuracy: None,
            adversarial: attacked as f64 / size as f64,
            eps: f64::from(eps),
            learning_rate: rate,
            images_per_second: Some(size as f64 / began.elapsed().as_secs_f64()),
        };
        self.sinks.send(self.session.sinks, &Event::Record(&record));
        Ok(())
    }

    /// The batch with its first `attacked` rows replaced by adversarial ones, and the budget they were given.
    fn attacked(
        &self,
        epoch: u32,
        batch: Batch,
        attacked: usize,
        ramp: f64,
    ) -> Result<(Tensor<4>, f32), TrainError> {
        if attacked == 0 {
            return Ok((batch.images, 0.0));
        }
        let attack = ramped(&self.attack, ramp);
        let frozen = self.model.valid();
        let key = NoiseKey::new(self.session.plan.seed, Stream::TrainAttack)
            .at(epoch, self.state.step as u32);
        let noise = Noise {
            key,
            samples: batch.ids[..attacked].to_vec(),
        };
        let eps = attack.threat.eps.value();
        if attacked == batch.ids.len() {
            return Ok((
                attack.perturb(&frozen, batch.images, batch.labels, &noise),
                eps,
            ));
        }
        let clean = batch.images.clone().slice([attacked..batch.ids.len()]);
        let chosen = batch.images.slice([0..attacked]);
        let adversarial =
            attack.perturb(&frozen, chosen, batch.labels.slice([0..attacked]), &noise);
        Ok((Tensor::cat(vec![adversarial, clean], 0), eps))
    }

    fn epoch_end_is_due(&self) -> bool {
        let at_end = self.state.step > 0 && self.state.step.is_multiple_of(self.per_epoch);
        at_end && self.validation_is_due() && self.state.validated_at < self.state.step
    }

    fn validation_is_due(&self) -> bool {
        let epochs = self.state.step / self.per_epoch;
        let due = epochs.is_multiple_of(u64::from(self.session.plan.evaluate.every))
            || self.state.step == self.total;
        due && !self.session.splits.validation.is_empty()
    }

    /// Validates and saves where that is due. Returns whether to go on.
    fn end_epoch(&mut self) -> Result<bool, TrainError> {
        let epochs = self.state.step / self.per_epoch;
        let mut is_best = false;
        if self.validation_is_due() {
            let Some(validation) = self.validate()? else {
                self.save(false)?;
                return Ok(false);
            };
            is_best = self.report(epochs as u32 - 1, &validation)?;
        }
        let due = epochs.is_multiple_of(u64::from(self.session.plan.checkpoint.every_epochs))
            || self.state.step == self.total;
        if due || is_best || self.stopped() {
            self.save(is_best)?;
        }
        Ok(!self.stopped() || self.state.step == self.total)
    }

    fn validate(&mut self) -> Result<Option<Validation>, TrainError> {
        let plan = self.session.plan;
        let data = &self.session.splits.validation;
        let shipped = self.shipped();
        let (sinks, given, stop) = (&mut self.sinks, &mut *self.session.sinks, self.session.stop);
        let total = data.len();
        let attack = plan.validation_attack();
        validate(
            &shipped,
            data,
            &attack,
            plan.seed,
            plan.data.batch_size,
            self.session.device,
            |done| {
                sinks.send(given, &Event::Validating { done, total });
                !stop.load(Ordering::Relaxed)
            },
        )
    }

    /// Records a validation; returns whether it is the best so far.
    fn report(&mut self, epoch: u32, validation: &Validation) -> Result<bool, TrainError> {
        let plan = self.session.plan;
        let (clean, robust) = (
            validation.outcome.clean_accuracy(),
            validation.outcome.robust_accuracy(),
        );
        let record = Record {
            step: self.state.step,
            epoch,
            split: Split::Validation,
            kind: Kind::Adversarial,
            loss: validation.loss,
            accuracy: clean,
            robust_accuracy: Some(robust),
            adversarial: 1.0,
            eps: f64::from(plan.validation_attack().threat.eps.value()),
            learning_rate: plan
                .train
                .schedule
                .rate(self.state.step.saturating_sub(1), self.total),
            images_per_second: None,
        };
        self.sinks.send(self.session.sinks, &Event::Record(&record));
        self.state.validated_at = self.state.step;
        self.saved = false;
        // By what the run is for: a model that was never attacked in training has no robust accuracy to choose by.
        let accuracy = if plan.train.objective == Objective::Standard {
            clean
        } else {
            robust
        };
        let best = self.state.best.is_none_or(|best| accuracy > best.accuracy);
        if best {
            self.state.best = Some(Best {
                step: self.state.step,
                accuracy,
            });
        }

        let classes = &self.session.splits.validation.classes;
        let name = |class: u32| {
            classes
                .get(class as usize)
                .cloned()
                .unwrap_or_else(|| "nothing".to_owned())
        };
        let outcome = &validation.outcome;
        let shown = validation.gallery.0.dims()[0];
        let examples: Vec<_> = (0..shown)
            .map(|i| Example {
                label: name(outcome.labels[i]),
                clean: name(outcome.clean[i]),
                adversarial: name(outcome.adversarial[i]),
            })
            .collect();
        let (clean, adversarial) = validation.gallery.clone();
        let image = picture::grid(clean, adversarial, &examples);
        let path = self
            .session
            .folder
            .join("samples")
            .join(format!("epoch-{:03}.png", epoch + 1));
        if let Err(error) = write_atomic(&path, &picture::png_bytes(&image)) {
            self.sinks.send(
                self.session.sinks,
                &Event::Note(&format!("picture not written: {error}")),
            );
        }
        let step = self.state.step;
        self.sinks.send(
            self.session.sinks,
            &Event::Picture {
                step,
                image: &image,
            },
        );
        Ok(best)
    }

    /// What would ship now.
    fn shipped(&self) -> M {
        self.ema
            .as_ref()
            .map_or_else(|| self.model.valid(), |ema| ema.model.clone())
    }

    fn save(&mut self, is_best: bool) -> Result<(), TrainError> {
        if self.saved {
            return Ok(());
        }
        let (tensors, times) = self.optimizer.state();
        self.state.optimizer = times;
        self.state.ema_updates = self.ema.as_ref().map_or(0, |ema| ema.updates);
        self.state.seconds += self.clock.elapsed().as_secs_f64();
        self.clock = Instant::now();
        let shipped = self.shipped();
        let snapshot = Snapshot {
            state: &self.state,
            description: self.session.description,
            model: &shipped,
            live: self.ema.is_some().then_some(&self.model),
            optimizer: &tensors,
        };
        let path = checkpoint::write(self.session.folder, &snapshot)?;
        self.saved = true;
        checkpoint::prune(
            self.session.folder,
            self.session.plan.checkpoint.keep,
            self.state.best.map(|best| best.step),
        );
        let event = Event::Checkpoint {
            path: &path,
            step: self.state.step,
            best: is_best,
        };
        self.sinks.send(self.session.sinks, &event);
        Ok(())
    }
}

/// The attack with eps and step size shrunk to a share of theirs.
fn ramped(attack: &Pgd, ramp: f64) -> Pgd {
    if ramp >= 1.0 {
        return attack.clone();
    }
    let eps = Eps::try_from(f64::from(attack.threat.eps.value()) * ramp)
        .expect("a share of a legal size");
    let threat = ThreatModel {
        eps,
        ..attack.threat.clone()
    };
    Pgd {
        threat,
        step_size: (f64::from(attack.step_size) * ramp) as f32,
        ..attack.clone()
    }
}

/// Loss and accuracy in one read from the device.
fn measured(loss: Tensor<1>, logits: Tensor<2>, y: Tensor<1, Int>) -> (f32, f64) {
    let hits = logits
        .argmax(1)
        .squeeze_dim::<1>(1)
        .equal(y)
        .float()
        .mean_dim(0);
    let both: Vec<f32> = Tensor::cat(vec![loss, hits], 0)
        .try_into_vec_as()
        .expect("two computed numbers");
    (both[0], f64::from(both[1]))
}

/// The run's own sinks. A sink that fails is named once and left out from then on.
struct Sinks {
    own: Vec<Box<dyn MetricSink>>,
    /// Which of the caller's sinks failed.
    failed: Vec<usize>,
}

impl Sinks {
    fn open(folder: &Path, state: &State, notes: &mut Vec<String>) -> Result<Self, TrainError> {
        let mut own: Vec<Box<dyn MetricSink>> = Vec::new();
        own.push(Box::new(Jsonl::open(
            &folder.join("metrics.jsonl"),
            state.step,
            state.validated_at,
        )?));
        match TensorBoard::new(&folder.join("tensorboard")) {
            Ok(board) => own.push(Box::new(board)),
            Err(problem) => notes.push(problem),
        }
        Ok(Self {
            own,
            failed: Vec::new(),
        })
    }

    fn send(&mut self, given: &mut [Box<dyn MetricSink>], event: &Event<'_>) {
        let mut problems = Vec::new();
        self.own.retain_mut(|sink| {
            sink.event(event)
                .map_err(|problem| problems.push(problem))
                .is_ok()
        });
        for (i, sink) in given.iter_mut().enumerate() {
            if !self.failed.contains(&i)
                && sink
                    .event(event)
                    .map_err(|problem| problems.push(problem))
                    .is_err()
            {
                self.failed.push(i);
            }
        }
        for problem in problems {
            self.send(given, &Event::Note(&problem));
        }
    }

    fn finish(mut self, given: &mut [Box<dyn MetricSink>]) {
        self.send(given, &Event::Finish);
    }
}
