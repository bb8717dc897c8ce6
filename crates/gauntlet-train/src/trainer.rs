//! The step loop.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, FloatDType, Tensor};
use gauntlet_attacks::{Init, Keep, Pgd};
use gauntlet_data::picture::{self, Example};
use gauntlet_data::{Loader, Splits};
use gauntlet_models::{Classifier, Description, detached, named};

use crate::average::{Average, Kind as AverageKind, estimate_norm};
use crate::changes::inexact;
use crate::checkpoint::{self, Best, Restored, Snapshot, State};
use crate::guard::{self, RollBack, Seen};
use crate::objective::{self, Method};
use crate::run_dir::write_atomic;
use crate::sinks::Sinks;
use crate::validation::{Validation, validate};
use crate::{
    Event, Kind, MetricSink, NormLayers, Objective, OnOverfitting, Optimizer, Plan, PlanError,
    Precision, Record, Split, TrainError, awp,
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
    /// Whether a run may go on by a plan that makes it another than it would have been from the start.
    pub allow_inexact: bool,
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
            allow_inexact: false,
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
    /// Whether the run is over; `false` after Ctrl-C.
    pub finished: bool,
    /// Why it is over before its last epoch, if it is.
    pub ended: Option<String>,
    /// Seconds of training over all interruptions, validation included.
    pub seconds: f64,
}

/// Trains `model` (built on an autodiff device) as the plan says, from the newest checkpoint in the folder if there is one.
///
/// Each step attacks the model as it ships (BatchNorm and dropout in eval mode, parameters untracked) and then minimises the
/// loss of the method on what came out.
///
/// # Errors
/// See [`TrainError`]. Whatever happens, the checkpoints written before are whole.
pub fn fit<M: Module + Classifier<4> + Sync>(
    model: M,
    session: Session<'_>,
) -> Result<Fitted<M>, TrainError> {
    let mut run = Run::new(model, session)?;
    let finished = run.train()?;
    let (shipped, state) = (run.shipped(), run.state);
    run.sinks.finish(run.session.sinks);
    let (model, step) = match state
        .best
        .filter(|best| finished && best.step != state.step)
    {
        Some(best) => {
            let path = checkpoint::best(run.session.folder).expect("the best checkpoint is kept");
            (checkpoint::load_weights(&path, shipped)?, best.step)
        }
        None => (shipped, state.step),
    };
    Ok(Fitted {
        model,
        step,
        finished,
        ended: state.ended,
        seconds: state.seconds,
    })
}

/// A run under way.
pub(crate) struct Run<'a, M> {
    pub(crate) session: Session<'a>,
    pub(crate) sinks: Sinks,
    loader: Arc<Loader>,
    pub(crate) per_epoch: u64,
    pub(crate) total: u64,
    pub(crate) method: Box<dyn Method>,
    pub(crate) state: State,
    /// Whether `state` is what the newest checkpoint holds.
    pub(crate) saved: bool,
    clock: Instant,
    pub(crate) model: M,
    /// The network as clean examples see it, where that is another.
    pub(crate) for_clean: Option<M>,
    /// The parameters that only `for_clean` has.
    pub(crate) clean_norm_ids: Vec<ParamId>,
    pub(crate) average: Option<Average<M>>,
    pub(crate) optimizer: Optimizer,
}

impl<'a, M: Module + Classifier<4> + Sync> Run<'a, M> {
    fn new(model: M, session: Session<'a>) -> Result<Self, TrainError> {
        let plan = session.plan;
        plan.check()?;
        if plan.train.precision != Precision::F32
            && !session.device.supports_dtype(FloatDType::BF16)
        {
            let key = "train.precision".to_owned();
            let problem = "this device does not compute in bf16; choose `f32`".to_owned();
            let problems = vec![(key, problem)];
            return Err(PlanError { problems }.into());
        }
        let loader = loader(plan, session.splits, session.device);
        let per_epoch = loader.steps_per_epoch() as u64;
        if per_epoch == 0 {
            let (batch, examples) = (plan.data.batch_size, session.splits.train.len());
            return Err(TrainError::TooFewExamples { batch, examples });
        }
        for name in ["checkpoints", "samples", "tensorboard"] {
            let path = session.folder.join(name);
            std::fs::create_dir_all(&path).map_err(|source| TrainError::Io { path, source })?;
        }
        let mut notes = Vec::new();
        let back = checkpoint::roll_back(session.folder)?.unwrap_or_default();
        checkpoint::discard_after(session.folder, back);
        let method = objective::build(plan, session.description, back.multi_step, session.device)?;
        let kind = average_kind(plan);
        let fresh = State {
            schema: 1,
            attempt: back.attempt,
            multi_step: back.multi_step,
            others: method.others(),
            ..State::default()
        };
        let mut run = Self {
            loader: Arc::new(loader),
            per_epoch,
            total: per_epoch * u64::from(plan.train.epochs),
            method,
            sinks: Sinks::none(),
            state: fresh,
            saved: false,
            clock: Instant::now(),
            average: kind.map(|kind| Average::new(&model, kind)),
            for_clean: (plan.train.norm_layers != NormLayers::Shared)
                .then(|| named::graft(new_ids(&model), &model, |path| !named::is_norm(path))),
            clean_norm_ids: Vec::new(),
            model,
            optimizer: Optimizer::new(plan.train.optimizer.clone()),
            session,
        };
        if let Some(restored) = checkpoint::newest(run.session.folder, &run.model)? {
            let damaged = restored.damaged.iter();
            notes.extend(damaged.map(|problem| format!("not used: {problem}")));
            if let Some(before) = &restored.plan {
                let changes = inexact(before, plan, restored.state.step, per_epoch);
                if !changes.is_empty() && !run.session.allow_inexact {
                    return Err(TrainError::Changed { changes });
                }
                notes.extend(
                    changes
                        .iter()
                        .map(|change| format!("not exact any more: {change}")),
                );
            }
            run.take_back(restored)?;
            notes.push(format!("going on from step {}", run.state.step));
        }
        run.state.attempt = back.attempt;
        run.state.multi_step = back.multi_step;
        run.clean_norm_ids = run.for_clean.as_ref().map_or_else(Vec::new, norm_ids);
        run.sinks = Sinks::open(run.session.folder, &run.state, &mut notes)?;
        let start = Event::Start {
            model: run.session.label,
            done: run.state.step,
            total: run.total,
            per_epoch,
        };
        run.sinks.send(run.session.sinks, &start);
        for note in &notes {
            run.sinks.send(run.session.sinks, &Event::Note(note));
        }
        run.clock = Instant::now();
        Ok(run)
    }

    /// Goes on from a checkpoint.
    fn take_back(&mut self, restored: Restored<M>) -> Result<(), TrainError> {
        let mut state = restored.state;
        for (folder, hash) in self.method.others() {
            if state
                .others
                .get(&folder)
                .is_some_and(|before| *before != hash)
            {
                return Err(TrainError::Other {
                    key: format!("train.{}", self.session.plan.train.objective),
                    path: folder.into(),
                    problem: "its weights are others than when this run began".to_owned(),
                });
            }
        }
        self.optimizer = Optimizer::new(self.session.plan.train.optimizer.clone());
        self.optimizer.restore(
            restored.optimizer,
            std::mem::take(&mut state.optimizer),
            self.session.device,
        );
        self.method.restore(restored.method, self.session.device);
        self.average = average_kind(self.session.plan)
            .map(|kind| Average::resume(restored.model, kind, state.ema_updates));
        self.model = restored.live;
        self.for_clean = restored.for_clean.map(|model| {
            let own = named::graft(new_ids(&model), &model, named::is_buffer);
            named::graft(own, &self.model, |path| !named::is_norm(path))
        });
        self.clean_norm_ids = self.for_clean.as_ref().map_or_else(Vec::new, norm_ids);
        self.state = state;
        self.saved = true;
        Ok(())
    }

    /// Returns whether the run is over.
    fn train(&mut self) -> Result<bool, TrainError> {
        if self.state.ended.is_none() && self.epoch_end_is_due() && !self.end_epoch()? {
            return Ok(false);
        }
        while self.state.step < self.total && self.state.ended.is_none() {
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

    fn note(&mut self, text: &str) {
        self.sinks.send(self.session.sinks, &Event::Note(text));
    }

    fn epoch_end_is_due(&self) -> bool {
        let at_end = self.state.step > 0 && self.state.step.is_multiple_of(self.per_epoch);
        at_end && self.state.closed_at < self.state.step
    }

    fn validation_is_due(&self) -> bool {
        let epochs = self.state.step / self.per_epoch;
        let due = epochs.is_multiple_of(u64::from(self.session.plan.evaluate.every))
            || self.state.step == self.total;
        due && !self.session.splits.validation.is_empty()
    }

    /// Averages, validates and saves where that is due. Returns whether to go on.
    fn end_epoch(&mut self) -> Result<bool, TrainError> {
        let epochs = self.state.step / self.per_epoch;
        let epoch = epochs as u32 - 1;
        if self.state.averaged_at != Some(self.state.step) {
            self.take_average(epoch);
        }
        let mut is_best = false;
        if self.validation_is_due() {
            let Some(validation) = self.validate()? else {
                self.save(false)?;
                return Ok(false);
            };
            let masked = self.masks(epoch, &validation);
            if let Some(seen) = self.overfitting(&validation, masked) {
                return self.overfitted(epoch, &validation, seen);
            }
            self.state.masked = masked;
            is_best = self.report(epoch, &validation)?;
        }
        self.state.closed_at = self.state.step;
        self.saved = false;
        let patience = self.session.plan.train.early_stop.as_ref();
        if let Some(stop) = patience
            && self.state.stale >= stop.patience
            && self.state.step < self.total
        {
            let why = format!(
                "no validation was better than the best for {} in a row",
                self.state.stale
            );
            self.end(why);
        }
        let due = epochs.is_multiple_of(u64::from(self.session.plan.checkpoint.every_epochs))
            || self.state.step == self.total;
        if due || is_best || self.stopped() || self.state.ended.is_some() {
            self.save(is_best)?;
        }
        Ok(!self.stopped() || self.state.step == self.total || self.state.ended.is_some())
    }

    /// Ends the run before its last epoch.
    fn end(&mut self, why: String) {
        self.note(&format!("training ends at step {}: {why}", self.state.step));
        self.state.ended = Some(why);
        self.saved = false;
    }

    fn take_average(&mut self, epoch: u32) {
        self.state.averaged_at = Some(self.state.step);
        let Some(average) = &mut self.average else {
            return;
        };
        if average.after_epoch(&self.model, epoch) {
            let batches = self.loader.epoch(epoch, 0).map(|batch| batch.images);
            average.model = estimate_norm(&average.model, batches);
        }
    }

    fn validate(&mut self) -> Result<Option<Validation>, TrainError> {
        let plan = self.session.plan;
        let data = &self.session.splits.validation;
        let shipped = self.shipped();
        let (sinks, given, stop) = (&mut self.sinks, &mut *self.session.sinks, self.session.stop);
        let total = data.len();
        let attack = plan.validation_attack();
        let watched = plan.train.guard.overfitting != OnOverfitting::Ignore
            && !selects_by_clean(plan.train.objective);
        let single = watched.then(|| Pgd {
            steps: 1,
            step_size: attack.threat.eps.value(),
            restarts: 1,
            init: Init::Clean,
            keep: Keep::Last,
            ..attack.clone()
        });
        validate(
            &shipped,
            data,
            (&attack, single.as_ref()),
            plan.seed,
            plan.data.batch_size,
            self.session.device,
            |done| {
                sinks.send(given, &Event::Validating { done, total });
                !stop.load(Ordering::Relaxed)
            },
        )
    }

    /// Whether a validation saw nothing but a masked single step, after a whole epoch of the attack at full strength.
    fn masks(&self, epoch: u32, validation: &Validation) -> bool {
        let train = &self.session.plan.train;
        let first = u64::from(epoch) * self.per_epoch;
        let what = train.interleave.at(first, self.per_epoch);
        let full = self.pace(epoch, what.ramp).ramp >= 1.0
            && first >= u64::from(train.interleave.clean_epochs) * self.per_epoch;
        full && validation.seen().is_some_and(guard::masks)
    }

    /// What a validation saw, if it is catastrophic overfitting: a collapse, or the second in a row that is `masked`.
    fn overfitting(&self, validation: &Validation, masked: bool) -> Option<Seen> {
        let now = validation.seen()?;
        let best = self.state.seen?;
        ((masked && self.state.masked) || guard::overfits(best, now)).then_some(now)
    }

    /// Acts on catastrophic overfitting as configured. Returns whether to go on.
    fn overfitted(
        &mut self,
        epoch: u32,
        validation: &Validation,
        seen: Seen,
    ) -> Result<bool, TrainError> {
        let best = self.state.best.expect("a collapse has a best before it");
        let what = format!(
            "catastrophic overfitting at step {}: {:.1} % under PGD (best {:.1} %), {:.1} % under a single step",
            self.state.step,
            100.0 * seen.robust,
            100.0 * best.accuracy,
            100.0 * seen.single_step,
        );
        let action = match self.session.plan.train.guard.overfitting {
            OnOverfitting::RollBack if self.state.attempt >= guard::MAX_ATTEMPTS => {
                OnOverfitting::Stop
            }
            OnOverfitting::MultiStep if self.state.multi_step => OnOverfitting::Stop,
            action => action,
        };
        if matches!(action, OnOverfitting::Ignore | OnOverfitting::Stop) {
            self.report(epoch, validation)?;
            self.state.closed_at = self.state.step;
            self.end(what);
            self.save(false)?;
            return Ok(true);
        }
        let back = RollBack {
            attempt: self.state.attempt + 1,
            to_step: best.step,
            multi_step: self.state.multi_step || action == OnOverfitting::MultiStep,
        };
        let with = match back.multi_step {
            true => "an attack of several steps",
            false => "other noise",
        };
        let note = format!("{what}; going back to step {} with {with}", best.step);
        // From here on a run that dies goes back as well.
        checkpoint::write_roll_back(self.session.folder, back)?;
        checkpoint::discard_after(self.session.folder, back);
        let path = checkpoint::best(self.session.folder).expect("the best checkpoint is kept");
        self.method = objective::build(
            self.session.plan,
            self.session.description,
            back.multi_step,
            self.session.device,
        )?;
        let seconds = self.state.seconds + self.clock.elapsed().as_secs_f64();
        self.clock = Instant::now();
        self.take_back(checkpoint::restore(&path, &self.model)?)?;
        self.state.seconds = seconds;
        self.state.attempt = back.attempt;
        self.state.multi_step = back.multi_step;
        // The records of the attempt that failed are dropped, as those of a run that is resumed are.
        let mut notes = vec![note];
        self.sinks
            .reopen(self.session.folder, &self.state, &mut notes)?;
        for note in &notes {
            self.note(note);
        }
        Ok(!self.stopped())
    }

    /// Records a validation; returns whether it is the best so far.
    fn report(&mut self, epoch: u32, validation: &Validation) -> Result<bool, TrainError> {
        let plan = self.session.plan;
        let outcome = &validation.outcome;
        let (clean, robust) = (outcome.clean_accuracy(), outcome.robust_accuracy());
        let record = Record {
            step: self.state.step,
            epoch,
            split: Split::Validation,
            kind: Kind::Adversarial,
            loss: validation.loss,
            accuracy: clean,
            robust_accuracy: Some(robust),
            single_step_accuracy: validation.single_step,
            terms: Default::default(),
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
        let accuracy = if selects_by_clean(plan.train.objective) {
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
            self.state.seen = validation.seen();
            self.state.stale = 0;
        } else {
            self.state.stale += 1;
        }
        self.picture(epoch, validation);
        if let Some((class, share)) = guard::one_class(&outcome.clean, &outcome.labels) {
            let text = format!(
                "the network has collapsed: it takes {:.0} % of the validation images for `{}`; a lower learning rate, a warm-up or `train.interleave.ramp_epochs` often helps",
                100.0 * share,
                self.class_name(class)
            );
            self.note(&text);
        }
        Ok(best)
    }

    fn class_name(&self, class: u32) -> String {
        let classes = &self.session.splits.validation.classes;
        classes
            .get(class as usize)
            .cloned()
            .unwrap_or_else(|| "nothing".to_owned())
    }

    /// Shows the first samples of a validation.
    fn picture(&mut self, epoch: u32, validation: &Validation) {
        let outcome = &validation.outcome;
        let shown = validation.gallery.0.dims()[0];
        let examples: Vec<_> = (0..shown)
            .map(|i| Example {
                label: self.class_name(outcome.labels[i]),
                clean: self.class_name(outcome.clean[i]),
                adversarial: self.class_name(outcome.adversarial[i]),
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
            self.note(&format!("picture not written: {error}"));
        }
        let step = self.state.step;
        self.sinks.send(
            self.session.sinks,
            &Event::Picture {
                step,
                image: &image,
            },
        );
    }

    /// What would ship now.
    fn shipped(&self) -> M {
        let trained = match (self.session.plan.train.norm_layers, &self.for_clean) {
            (NormLayers::SplitClean, Some(for_clean)) => for_clean,
            _ => &self.model,
        };
        let average = self.average.as_ref().and_then(Average::shipped);
        average.map_or_else(|| trained.valid(), M::clone)
    }

    fn save(&mut self, is_best: bool) -> Result<(), TrainError> {
        if self.saved {
            return Ok(());
        }
        // The last checkpoint stays the last good one.
        if let Some(path) = awp::not_finite(&self.model) {
            return Err(TrainError::NotFinite {
                step: self.state.step,
                epoch: (self.state.step.saturating_sub(1) / self.per_epoch) as u32,
                kind: "all",
                term: format!("weights of {path}"),
                value: f32::NAN,
            });
        }
        let (tensors, times) = self.optimizer.state();
        self.state.optimizer = times;
        self.state.ema_updates = self.average.as_ref().map_or(0, |average| average.updates);
        self.state.seconds += self.clock.elapsed().as_secs_f64();
        self.clock = Instant::now();
        let shipped = self.shipped();
        let method = self.method.state();
        let differs = self.average.is_some() || self.for_clean.is_some();
        let snapshot = Snapshot {
            plan: self.session.plan,
            state: &self.state,
            description: self.session.description,
            model: &shipped,
            live: differs.then_some(&self.model),
            for_clean: self.for_clean.as_ref(),
            optimizer: &tensors,
            method: &method,
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

/// Whether the best checkpoint is that of the highest clean accuracy: methods that no attack is made for.
fn selects_by_clean(objective: Objective) -> bool {
    matches!(objective, Objective::Standard | Objective::Smoothing)
}

fn loader(plan: &Plan, splits: &Splits, device: &Device) -> Loader {
    let loader = Loader::new(
        splits.train.clone(),
        plan.data.batch_size,
        &plan.data.augment,
        plan.seed,
        device,
    );
    let loader = match &splits.extra {
        Some((extra, share)) => loader.with_extra(extra.clone(), *share),
        None => loader,
    };
    match plan.train.objective {
        Objective::Consistency => loader.with_second_view(),
        _ => loader,
    }
}

fn average_kind(plan: &Plan) -> Option<AverageKind> {
    let (ema, swa) = (&plan.train.ema, &plan.train.swa);
    let exponential = ema
        .as_ref()
        .map(|ema| AverageKind::Exponential { decay: ema.decay });
    exponential.or_else(|| {
        swa.as_ref().map(|swa| AverageKind::Equal {
            from_epoch: swa.from_epoch,
        })
    })
}

/// A deep copy whose parameters have ids of their own.
fn new_ids<M: Module>(model: &M) -> M {
    struct Fresh;
    impl burn::module::ModuleMapper for Fresh {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (_, value, mapper) = param.consume();
            Param::from_mapped_value(ParamId::new(), value, mapper)
        }
    }
    detached(model).map(&mut Fresh)
}

/// Ids of the scale and shift of all normalisation layers.
fn norm_ids<M: Module>(model: &M) -> Vec<ParamId> {
    let all = named::list(model).into_iter();
    all.filter(|tensor| named::is_norm(&tensor.path) && !tensor.buffer)
        .map(|tensor| tensor.id)
        .collect()
}
