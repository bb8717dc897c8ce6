//! What the guards do when training goes wrong, with a network that goes wrong on command.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use gauntlet_models::{Classifier, Description};

use crate::tests::{StopAfter, left, records, splits};
use crate::{
    Event, Fitted, MetricSink, OnNotFinite, OnOverfitting, Plan, Session, Split, TrainError,
    checkpoint, fit,
};

/// Tells bright left halves from bright right ones, and grows more sure of it with every update. Once `w` has grown past a
/// threshold it masks its gradients: whatever is no multiple of 1/255 it takes for the other class. A single step along a
/// gradient of zero stays on the clean image; an attack from a random start breaks everything.
#[derive(Module, Debug)]
struct Treacherous {
    w: Param<Tensor<1>>,
    #[module(skip)]
    threshold: f32,
    /// Above it the loss is no number.
    #[module(skip)]
    breaks: f32,
}

impl Classifier<4> for Treacherous {
    fn logits(&self, x: Tensor<4>) -> Tensor<2> {
        let [batch, ..] = x.dims();
        let half = |from: usize| {
            let part = x.clone().slice([0..batch, 0..1, 0..8, from..from + 4]);
            part.flatten::<2>(1, 3).mean_dim(1)
        };
        let mut margin = half(0) - half(4);
        let w: f32 = self.w.val().inner().into_scalar();
        if w > self.breaks {
            margin = margin * f32::NAN;
        }
        if w > self.threshold {
            let plain = x.clone().detach().flatten::<2>(1, 3).mul_scalar(255.0);
            let off = (plain.clone() - plain.round()).abs().max_dim(1);
            let trusted = off
                .greater_elem(0.05)
                .float()
                .mul_scalar(-2.0)
                .add_scalar(1.0);
            margin = margin.detach() * trusted;
        }
        let grows = if w > self.threshold { 0.0 } else { 1.0 };
        let scale = (self.w.val() * grows + 1.0).reshape([1, 1]);
        let margin = margin * scale * 4.0;
        Tensor::cat(vec![margin.clone(), margin.neg()], 1)
    }

    fn features(&self, x: Tensor<4>) -> Tensor<2> {
        x.flatten(1, 3)
    }
}

const PLAN: &str = r#"
    name = "treacherous"
    seed = 3
    data = { source = "digits", batch_size = 8 }
    model = { arch = "mlp" }
    threat = { norm = "linf", eps = 0.1 }
    [train]
    objective = "fgsm-rs"
    epochs = 8
    optimizer = { kind = "sgd", momentum = 0.0 }
    schedule = { kind = "constant", rate = 0.5 }
    [evaluate]
    attack = { steps = 2, restarts = 2 }
    [checkpoint]
    every_steps = 4
    keep = 2
"#;

fn plan(change: impl Fn(&mut Plan)) -> Plan {
    let mut plan: Plan = toml::from_str(PLAN).unwrap();
    change(&mut plan);
    plan.check().unwrap();
    plan.resolved()
}

/// Keeps what people are told.
struct Notes(Arc<std::sync::Mutex<Vec<String>>>);

impl MetricSink for Notes {
    fn event(&mut self, event: &Event<'_>) -> Result<(), String> {
        if let Event::Note(note) = event {
            self.0.lock().unwrap().push((*note).to_owned());
        }
        Ok(())
    }
}

type Outcome = (Result<Fitted<Treacherous>, TrainError>, Vec<String>);

fn run(
    folder: &Path,
    plan: &Plan,
    [threshold, breaks]: [f32; 2],
    stop_after: Option<u64>,
) -> Outcome {
    let device = Device::flex();
    let splits = splits();
    let description = Description {
        config: plan.model.clone(),
        shape: splits.train.shape,
        classes: splits.train.classes.to_vec(),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let notes = Arc::default();
    let mut sinks: Vec<Box<dyn MetricSink>> = vec![Box::new(Notes(Arc::clone(&notes)))];
    if let Some(step) = stop_after {
        sinks.push(Box::new(StopAfter(step, Arc::clone(&stop))));
    }
    let model = Treacherous {
        w: Param::from_tensor(Tensor::zeros([1], &device.clone().autodiff())),
        threshold,
        breaks,
    };
    let mut session = Session::new(plan, &description, &splits, folder, &device);
    session.sinks = &mut sinks;
    session.stop = &stop;
    let fitted = fit(model, session);
    let notes = notes.lock().unwrap().clone();
    (fitted, notes)
}

const NEVER: f32 = f32::INFINITY;

/// A value of `w` that is passed in the third epoch.
fn threshold() -> f32 {
    let folder = tempfile::tempdir().unwrap();
    let short = plan(|plan| {
        plan.train.epochs = 2;
        plan.evaluate.every = 2;
    });
    let (fitted, _) = run(folder.path(), &short, [NEVER, NEVER], None);
    let w: f32 = fitted.unwrap().model.w.val().into_scalar();
    assert!(w > 0.0);
    w + 1e-4
}

#[test]
fn catastrophic_overfitting_ends_the_run_and_ships_the_best() {
    let folder = tempfile::tempdir().unwrap();
    let (fitted, notes) = run(folder.path(), &plan(|_| ()), [threshold(), NEVER], None);
    let fitted = fitted.unwrap();
    assert!(fitted.finished);
    let why = fitted.ended.clone().unwrap();
    assert!(
        why.starts_with("catastrophic overfitting at step 18: 0.0 % under PGD"),
        "{why}"
    );
    assert!(
        notes
            .iter()
            .any(|note| note.contains("training ends at step 18")),
        "{notes:?}"
    );
    let w: f32 = fitted.model.w.val().into_scalar();
    assert!(w < threshold(), "the best came before the collapse");
    let seen: Vec<_> = records(folder.path())
        .into_iter()
        .filter(|record| record.split == Split::Validation)
        .map(|record| {
            (
                record.robust_accuracy.unwrap(),
                record.single_step_accuracy.unwrap(),
            )
        })
        .collect();
    assert_eq!(seen.len(), 3);
    assert!(
        seen[1].0 > 0.9 && seen[2].0 < 0.1 && seen[2].1 > 0.9,
        "{seen:?}"
    );
    // It is over, also for one who resumes it.
    let (again, _) = run(folder.path(), &plan(|_| ()), [threshold(), NEVER], None);
    let again = again.unwrap();
    assert!(again.finished && again.ended == fitted.ended && again.step == fitted.step);

    // Where it is not looked for, the run goes to its end.
    let folder = tempfile::tempdir().unwrap();
    let ignoring = plan(|plan| plan.train.guard.overfitting = OnOverfitting::Ignore);
    let (fitted, _) = run(folder.path(), &ignoring, [threshold(), NEVER], None);
    assert!(fitted.unwrap().ended.is_none());
    assert!(
        records(folder.path())
            .iter()
            .all(|record| record.single_step_accuracy.is_none())
    );
}

/// It never was any good, so there is nothing to fall from.
#[test]
fn a_run_that_masks_from_the_start_ends_at_the_second_sight_of_it() {
    let whole = tempfile::tempdir().unwrap();
    let (fitted, _) = run(whole.path(), &plan(|_| ()), [-1.0, NEVER], None);
    let why = fitted.unwrap().ended.unwrap();
    assert!(
        why.starts_with(
            "catastrophic overfitting at step 12: 0.0 % under PGD (best 0.0 %), 100.0 %"
        ),
        "{why}"
    );
    // What was seen first is not forgotten by one who resumes.
    let pieces = tempfile::tempdir().unwrap();
    for stop in [Some(8), None] {
        run(pieces.path(), &plan(|_| ()), [-1.0, NEVER], stop)
            .0
            .unwrap();
    }
    assert!(left(pieces.path()) == left(whole.path()));

    // While the attack grows, this is no news: full strength begins with the fourth epoch, and the fifth is the second sight.
    let folder = tempfile::tempdir().unwrap();
    let ramp = plan(|plan| plan.train.interleave.ramp_epochs = 3.0);
    let (fitted, _) = run(folder.path(), &ramp, [-1.0, NEVER], None);
    let why = fitted.unwrap().ended.unwrap();
    assert!(why.contains("overfitting at step 30:"), "{why}");
}

#[test]
fn a_run_goes_back_with_other_noise_three_times_and_in_pieces_to_the_same_end() {
    let back = plan(|plan| plan.train.guard.overfitting = OnOverfitting::RollBack);
    let whole = tempfile::tempdir().unwrap();
    let at = [threshold(), NEVER];
    let (fitted, notes) = run(whole.path(), &back, at, None);
    let fitted = fitted.unwrap();
    let count = |notes: &[String], text: &str| notes.iter().filter(|n| n.contains(text)).count();
    assert_eq!(count(&notes, "going back to step"), 3, "{notes:?}");
    assert!(
        fitted
            .ended
            .unwrap()
            .starts_with("catastrophic overfitting")
    );

    // Interrupted in the first attempt, right after going back, and in a later attempt.
    let pieces = tempfile::tempdir().unwrap();
    for stop in [10, 14, 15, 16] {
        let (fitted, _) = run(pieces.path(), &back, at, Some(stop));
        assert!(!fitted.unwrap().finished, "stop at {stop}");
    }
    let (found, _) = run(pieces.path(), &back, at, None);
    assert!(found.unwrap().finished);
    assert!(left(pieces.path()) == left(whole.path()));
}

#[test]
fn a_run_goes_back_and_on_with_several_steps() {
    let folder = tempfile::tempdir().unwrap();
    let several = plan(|plan| plan.train.guard.overfitting = OnOverfitting::MultiStep);
    let (fitted, notes) = run(folder.path(), &several, [threshold(), NEVER], None);
    assert!(fitted.unwrap().finished);
    let told = notes
        .iter()
        .any(|note| note.contains("with an attack of several steps"));
    assert!(told, "{notes:?}");
    assert!(folder.path().join("roll-back.json").exists());
}

#[test]
fn a_loss_that_is_no_number_names_its_term_and_leaves_the_checkpoint_whole() {
    let folder = tempfile::tempdir().unwrap();
    let trades = plan(|plan| {
        plan.train.objective = crate::Objective::Trades;
        plan.train.attack = Default::default();
        plan.checkpoint.every_steps = Some(1);
    });
    let (fitted, _) = run(folder.path(), &trades, [NEVER, threshold()], None);
    let Err(TrainError::NotFinite { step, term, .. }) = fitted else {
        panic!("{fitted:?}");
    };
    assert_eq!(term, "cross_entropy");
    let (saved, path) = checkpoint::list(folder.path()).pop().unwrap();
    assert!(saved > 0 && saved <= step);
    assert!(path.join("MANIFEST.json").exists());
}

#[test]
fn single_steps_are_passed_over_and_ten_in_a_row_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let skipping = plan(|plan| plan.train.guard.not_finite = OnNotFinite::Skip);
    let (fitted, notes) = run(folder.path(), &skipping, [NEVER, threshold()], None);
    assert!(
        matches!(fitted, Err(TrainError::NotFinite { .. })),
        "{fitted:?}"
    );
    let passed: Vec<_> = notes
        .iter()
        .filter(|note| note.contains("is passed over"))
        .collect();
    assert_eq!(passed.len(), 9, "{notes:?}");
    assert!(passed[0].contains("`loss` is NaN"), "{passed:?}");
}

#[test]
fn training_ends_when_nothing_gets_better() {
    let folder = tempfile::tempdir().unwrap();
    let patient = plan(|plan| plan.train.early_stop = Some(crate::EarlyStopConfig { patience: 2 }));
    let (fitted, _) = run(folder.path(), &patient, [NEVER, NEVER], None);
    let fitted = fitted.unwrap();
    // Everything stands from the first validation on.
    assert_eq!((fitted.step, fitted.finished), (6, true));
    assert!(fitted.ended.unwrap().contains("for 2 in a row"));
}

/// Networks that a method leans on are found, checked, and must stay what they were.
#[test]
fn a_teacher_that_is_missing_or_has_changed_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let distill = |teacher: &Path| {
        let mut text = PLAN.replace("\"fgsm-rs\"", "\"distill\"");
        text = text.replace(
            "epochs = 8",
            &format!(
                "epochs = 8\ndistill = {{ teacher = {:?} }}",
                teacher.display().to_string()
            ),
        );
        let plan: Plan = toml::from_str(&text).unwrap();
        plan.check().unwrap();
        plan.resolved()
    };
    let nowhere = distill(Path::new("no/such/run"));
    let (fitted, _) = run(folder.path(), &nowhere, [NEVER, NEVER], None);
    let error = fitted.unwrap_err().to_string();
    assert!(
        error.contains("`train.distill.teacher`: no/such/run"),
        "{error}"
    );
}
