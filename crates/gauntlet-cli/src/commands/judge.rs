//! The last act of a run: both models under attack on test data, the table, the report.

use std::path::Path;

use gauntlet_audit::{AuditError, Curve, Evaluation, RunReport, evaluate};
use gauntlet_models::Network;
use gauntlet_train::{Fitted, Objective, RunDir, Split, checkpoint};

use super::train::{Job, interrupted};
use crate::failure::Failure;
use crate::interrupt;
use crate::output::{print, say};
use crate::progress::Counter;
use crate::records;

/// Judges the run's model and, if there is one, its standard twin alike; writes the report and prints the table.
pub(crate) fn judge(
    job: &Job,
    run: &RunDir,
    hardened: &Fitted<Network>,
    twin: Option<&Fitted<Network>>,
) -> Result<(), Failure> {
    let (plan, splits, device, quiet) = job.parts();
    let test = match plan.evaluate.at_end.samples {
        Some(samples) => splits.test.take(samples),
        None => splits.test.clone(),
    };
    if test.is_empty() {
        say("there are no test images, so nothing is judged");
        print_paths(run.root());
        return Ok(());
    }
    let attack = plan.final_attack();
    let evaluation = |label: &str, model: &Network| -> Result<Evaluation, Failure> {
        let template = "{msg} {wide_bar} {pos}/{len} images, {eta} left";
        let mut counter = Counter::new(
            &format!("{label} under attack"),
            0,
            Some(test.len() as u64),
            template,
            quiet,
        );
        let mut progress = |done: usize, _total: usize| {
            counter.set(done as u64);
            !interrupt::asked()
        };
        let judged: Result<_, AuditError> = evaluate(
            model,
            &test,
            &attack,
            plan.seed,
            plan.data.batch_size,
            &device.device,
            &mut progress,
        );
        judged?.ok_or_else(|| interrupted(run.root(), "the training is saved"))
    };
    let label = if plan.train.objective == Objective::Standard {
        "standard"
    } else {
        "hardened"
    };
    let report = RunReport {
        name: plan.name.clone(),
        label: label.to_owned(),
        hardened: evaluation(label, &hardened.model)?,
        standard: twin
            .map(|twin| evaluation("standard", &twin.model))
            .transpose()?,
        curves: curves(run.root(), splits.train.len() / plan.data.batch_size),
        classes: test.classes.to_vec(),
        config: toml::to_string_pretty(plan).expect("a plan is plain tables and values"),
        data: (
            test.name.clone(),
            test.split.to_owned(),
            test.len(),
            test.sha256.clone(),
        ),
        seed: plan.seed,
        device: device.label(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        train_seconds: hardened.seconds,
    };
    report.write(run.root())?;
    print(report.table());
    print_paths(run.root());
    Ok(())
}

fn print_paths(run: &Path) {
    let report = run.join("report.html");
    if report.exists() {
        print(format!("report      {}", report.display()));
    }
    if let Some(checkpoint) = checkpoint::best(run) {
        print(format!("checkpoint  {}", checkpoint.display()));
    }
}

/// The curves of a run and its twin, by plot.
fn curves(run: &Path, per_epoch: usize) -> Vec<(String, Vec<Curve>)> {
    let (mut accuracy, mut loss, mut rate) = (Vec::new(), Vec::new(), Vec::new());
    for (folder, prefix) in [
        (run.to_owned(), ""),
        (run.join("baseline"), "standard twin: "),
    ] {
        let records = records::read(&folder);
        let curve = |name: &str, points: Vec<(f64, f64)>| Curve {
            name: format!("{prefix}{name}"),
            points,
        };
        let at = |step: u64| step as f64 / per_epoch.max(1) as f64;
        let of = |split: Split| records.iter().filter(move |record| record.split == split);
        let train = |value: fn(&gauntlet_train::Record) -> f64| {
            thinned(
                of(Split::Train)
                    .map(|record| (at(record.step), value(record)))
                    .collect(),
            )
        };
        accuracy.push(curve("training", train(|record| record.accuracy)));
        loss.push(curve("training", train(|record| record.loss)));
        let validation = || of(Split::Validation);
        let clean = validation().map(|record| (at(record.step), record.accuracy));
        accuracy.push(curve("validation, clean", clean.collect()));
        let robust =
            validation().filter_map(|record| Some((at(record.step), record.robust_accuracy?)));
        accuracy.push(curve("validation, under attack", robust.collect()));
        let clean_loss = validation().map(|record| (at(record.step), record.loss));
        loss.push(curve("validation, clean", clean_loss.collect()));
        if prefix.is_empty() {
            rate.push(curve("learning rate", train(|record| record.learning_rate)));
        }
    }
    let plots = [
        ("Accuracy", accuracy),
        ("Loss", loss),
        ("Learning rate", rate),
    ];
    plots
        .into_iter()
        .map(|(title, curves)| {
            (
                title.to_owned(),
                curves
                    .into_iter()
                    .filter(|curve| !curve.points.is_empty())
                    .collect(),
            )
        })
        .collect()
}

/// A plot has room for this many points.
const POINTS: usize = 300;

/// Means over equal stretches: what a plot can show of a value a step.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let stretch = points.len().div_ceil(POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        let (x, y) = part
            .iter()
            .fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (x / n, y / n)
    };
    points.chunks(stretch).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_the_mean_and_short_curves() {
        let short: Vec<_> = (0..POINTS).map(|i| (i as f64, 2.0)).collect();
        assert_eq!(thinned(short.clone()), short);
        let long: Vec<_> = (0..4 * POINTS)
            .map(|i| (i as f64, (i % 2) as f64))
            .collect();
        let thin = thinned(long);
        assert_eq!(thin.len(), POINTS);
        assert!(thin.iter().all(|point| point.1 == 0.5));
        assert_eq!(thin[0].0, 1.5);
        assert_eq!(thinned(Vec::new()), []);
    }
}
