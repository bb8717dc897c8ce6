use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use gauntlet_audit::Audit;
use gauntlet_train::{Objective, Plan, Record, RunDir, Split};
use serde::Serialize;

use crate::args::Runs;
use crate::config::reason;
use crate::failure::Failure;
use crate::output::{self, duration, percent, table};
use crate::records;

/// Lists, shows and compares runs.
pub(crate) fn runs(command: Runs) -> Result<(), Failure> {
    match command {
        Runs::List { folder, json } => list(&folder, json.json),
        Runs::Show { run, json } => show(&run, json.json),
        Runs::Compare { runs, json } => compare(&runs, json.json),
    }
}

/// What there is to say of a run in a line. Shares are in [0, 1].
#[derive(Clone, Debug, Serialize)]
struct Summary {
    run: PathBuf,
    name: String,
    data: String,
    arch: String,
    objective: Objective,
    threat: String,
    epochs: u32,
    /// Epochs begun so far.
    epoch: u32,
    step: u64,
    /// Whether it was judged: without that, the accuracies are those on validation data.
    finished: bool,
    clean_accuracy: Option<f64>,
    robust_accuracy: Option<f64>,
    /// The standard twin's.
    standard_clean_accuracy: Option<f64>,
    standard_robust_accuracy: Option<f64>,
    train_seconds: Option<f64>,
}

impl Summary {
    fn read(run: &Path) -> Result<(Self, Plan), Failure> {
        let plan = RunDir::plan(run)?;
        let records = records::read(run);
        let report = fs::read(run.join("report.json")).ok();
        let audit: Option<Audit> = report.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let robust = audit
            .as_ref()
            .and_then(|audit| Some(audit.threats.first()?.robust_accuracy));
        let twin = audit.as_ref().and_then(|audit| audit.standard.as_ref());
        // As training chooses: by what the run is for, the earliest of equals.
        let merit = |record: &Record| match plan.train.objective {
            Objective::Standard => record.accuracy,
            _ => record.robust_accuracy.unwrap_or_default(),
        };
        let best = records
            .iter()
            .rev()
            .filter(|record| record.split == Split::Validation)
            .max_by(|a, b| merit(a).total_cmp(&merit(b)));
        let last = records.last();
        let summary = Self {
            run: run.to_owned(),
            name: plan.name.clone(),
            data: serde_plain(&plan.data.source),
            arch: plan.model.arch.to_string(),
            objective: plan.train.objective,
            threat: plan.threat.model().to_string(),
            epochs: plan.train.epochs,
            epoch: last.map_or(0, |record| record.epoch + 1),
            step: last.map_or(0, |record| record.step),
            finished: audit.is_some(),
            clean_accuracy: audit
                .as_ref()
                .map(|audit| audit.clean_accuracy)
                .or_else(|| Some(best?.accuracy)),
            robust_accuracy: robust.or_else(|| best?.robust_accuracy),
            standard_clean_accuracy: twin.map(|twin| twin.clean_accuracy),
            standard_robust_accuracy: twin.map(|twin| twin.robust_accuracy),
            train_seconds: audit.as_ref().and_then(|audit| audit.train_seconds),
        };
        Ok((summary, plan))
    }

    fn state(&self) -> String {
        match (self.finished, self.epoch) {
            (true, _) => "finished".to_owned(),
            (false, 0) => "just begun".to_owned(),
            (false, epoch) => format!("epoch {epoch} of {}", self.epochs),
        }
    }

    /// An accuracy for people; `*` marks one on validation data.
    fn accuracy(&self, value: Option<f64>) -> String {
        let mark = if self.finished { "" } else { " *" };
        value.map_or_else(
            || "-".to_owned(),
            |value| format!("{}{mark}", percent(value)),
        )
    }

    fn seconds(&self) -> String {
        self.train_seconds.map_or_else(|| "-".to_owned(), duration)
    }
}

/// The name a unit variant has in files.
fn serde_plain(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

const FOOTNOTE: &str = "* on validation data; a finished run is judged on test data";

fn list(folder: &Path, json: bool) -> Result<(), Failure> {
    let entries = fs::read_dir(folder)
        .map_err(|error| Failure::request(format!("{}: {}", folder.display(), reason(&error))))?;
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.retain(|path| path.join("config.toml").exists());
    paths.sort();
    let (mut summaries, mut damaged) = (Vec::new(), Vec::new());
    for path in &paths {
        match Summary::read(path) {
            Ok((summary, _)) => summaries.push(summary),
            Err(failure) => damaged.push(failure),
        }
    }
    if json {
        output::print_json(&summaries);
    } else if summaries.is_empty() {
        output::say(format!("{} holds no runs", folder.display()));
    } else {
        let mut table = table(&[
            "run",
            "data",
            "arch",
            "objective",
            "threat",
            "state",
            ">clean",
            ">robust",
            ">training",
        ]);
        for summary in &summaries {
            table.add_row([
                summary.run.display().to_string(),
                summary.data.clone(),
                summary.arch.clone(),
                serde_plain(&summary.objective),
                summary.threat.clone(),
                summary.state(),
                summary.accuracy(summary.clean_accuracy),
                summary.accuracy(summary.robust_accuracy),
                summary.seconds(),
            ]);
        }
        output::print(table.trim_fmt());
        if summaries
            .iter()
            .any(|summary| !summary.finished && summary.clean_accuracy.is_some())
        {
            output::say(FOOTNOTE);
        }
    }
    for failure in &damaged {
        output::say(failure.to_string());
    }
    Ok(())
}

/// Means of an epoch, and what validation said after it.
#[derive(Clone, Debug, Default, Serialize)]
struct Epoch {
    epoch: u32,
    steps: u64,
    loss: f64,
    accuracy: f64,
    eps: f64,
    learning_rate: f64,
    validation_clean: Option<f64>,
    validation_robust: Option<f64>,
}

fn epochs(run: &Path) -> Vec<Epoch> {
    let mut epochs: BTreeMap<u32, Epoch> = BTreeMap::new();
    for record in records::read(run) {
        let epoch = epochs.entry(record.epoch).or_default();
        epoch.epoch = record.epoch + 1;
        if record.split == Split::Validation {
            epoch.validation_clean = Some(record.accuracy);
            epoch.validation_robust = record.robust_accuracy;
        } else {
            epoch.steps += 1;
            epoch.loss += (record.loss - epoch.loss) / epoch.steps as f64;
            epoch.accuracy += (record.accuracy - epoch.accuracy) / epoch.steps as f64;
            epoch.eps = record.eps;
            epoch.learning_rate = record.learning_rate;
        }
    }
    epochs.into_values().collect()
}

fn show(run: &Path, json: bool) -> Result<(), Failure> {
    let (summary, _) = Summary::read(run)?;
    let epochs = epochs(run);
    if json {
        output::print_json(&serde_json::json!({ "schema": 1, "run": summary, "epochs": epochs }));
        return Ok(());
    }
    let standard = match summary.standard_robust_accuracy {
        Some(robust) => format!(
            "\nstandard twin: {} clean, {} robust",
            summary.accuracy(summary.standard_clean_accuracy),
            summary.accuracy(Some(robust))
        ),
        None => String::new(),
    };
    output::print(format!(
        "{}: {} on {}, {} against {}, {}\n{} clean, {} robust{standard}",
        summary.name,
        summary.arch,
        summary.data,
        serde_plain(&summary.objective),
        summary.threat,
        summary.state(),
        summary.accuracy(summary.clean_accuracy),
        summary.accuracy(summary.robust_accuracy),
    ));
    let mut table = table(&[
        ">epoch",
        ">loss",
        ">accuracy",
        ">eps",
        ">learning rate",
        ">validation clean",
        ">validation robust",
    ]);
    let share = |value: Option<f64>| value.map_or_else(String::new, percent);
    for epoch in &epochs {
        table.add_row([
            epoch.epoch.to_string(),
            format!("{:.4}", epoch.loss),
            percent(epoch.accuracy),
            format!("{:.4}", epoch.eps),
            format!("{:.2e}", epoch.learning_rate),
            share(epoch.validation_clean),
            share(epoch.validation_robust),
        ]);
    }
    output::print(table.trim_fmt());
    if !summary.finished && summary.clean_accuracy.is_some() {
        output::say(FOOTNOTE);
    }
    Ok(())
}

fn compare(runs: &[PathBuf], json: bool) -> Result<(), Failure> {
    let read: Vec<_> = runs
        .iter()
        .map(|run| Summary::read(run))
        .collect::<Result<_, _>>()?;
    let configs: Vec<_> = read.iter().map(|(_, plan)| flat(plan)).collect();
    let differing = differences(&configs);
    if json {
        let summaries: Vec<_> = read.iter().map(|(summary, _)| summary).collect();
        output::print_json(
            &serde_json::json!({ "schema": 1, "runs": summaries, "differences": differing }),
        );
        return Ok(());
    }
    let heads: Vec<_> = std::iter::once(String::new())
        .chain(runs.iter().map(|run| format!(">{}", run.display())))
        .collect();
    let mut table = table(&heads.iter().map(String::as_str).collect::<Vec<_>>());
    let mut row = |name: &str, value: &dyn Fn(&Summary) -> String| {
        let cells = read.iter().map(|(summary, _)| value(summary));
        table.add_row(std::iter::once(name.to_owned()).chain(cells));
    };
    row("state", &Summary::state);
    row("clean accuracy", &|summary| {
        summary.accuracy(summary.clean_accuracy)
    });
    row("robust accuracy", &|summary| {
        summary.accuracy(summary.robust_accuracy)
    });
    row("threat", &|summary| summary.threat.clone());
    row("training time", &Summary::seconds);
    for (key, values) in &differing {
        let cells = values
            .iter()
            .map(|value| value.clone().unwrap_or_else(|| "-".to_owned()));
        table.add_row(std::iter::once(key.clone()).chain(cells));
    }
    output::print(table.trim_fmt());
    if read.iter().any(|(summary, _)| !summary.finished) {
        output::say(FOOTNOTE);
    }
    Ok(())
}

/// `train.epochs` to `3`, for every value of a plan.
pub(super) fn flat(plan: &Plan) -> BTreeMap<String, String> {
    fn walk(value: &toml::Value, path: String, flat: &mut BTreeMap<String, String>) {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    let dot = if path.is_empty() { "" } else { "." };
                    walk(value, format!("{path}{dot}{key}"), flat);
                }
            }
            value => {
                flat.insert(path, value.to_string());
            }
        }
    }
    let mut values = BTreeMap::new();
    let table = toml::Value::try_from(plan).expect("a plan is plain tables and values");
    walk(&table, String::new(), &mut values);
    values
}

/// The keys in which configs differ, with the value of each.
fn differences(configs: &[BTreeMap<String, String>]) -> BTreeMap<String, Vec<Option<String>>> {
    let keys = configs.iter().flat_map(BTreeMap::keys);
    let row = |key: &String| {
        configs
            .iter()
            .map(|config| config.get(key).cloned())
            .collect::<Vec<_>>()
    };
    let rows = keys.map(|key| (key.clone(), row(key)));
    rows.filter(|(key, values)| key != "name" && values.iter().any(|value| *value != values[0]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_compared() {
        let config = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect()
        };
        let a = config(&[("name", "a"), ("seed", "0"), ("train.epochs", "3")]);
        let b = config(&[
            ("name", "b"),
            ("seed", "0"),
            ("train.epochs", "4"),
            ("train.ema.decay", "0.9"),
        ]);
        let differing = differences(&[a, b]);
        let keys: Vec<_> = differing.keys().map(String::as_str).collect();
        assert_eq!(keys, ["train.ema.decay", "train.epochs"]);
        assert_eq!(differing["train.ema.decay"], [None, Some("0.9".to_owned())]);
    }
}
