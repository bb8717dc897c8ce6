//! `RESULTS.md`: what was asked, how it was measured, what came out, for people.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::Value as Json;

use super::folder::{unwritable, write};
use super::matrix::Matrix;
use super::results::{Measured, Results};
use super::table::{code, dash, markdown, short, table};
use crate::failure::Failure;
use crate::output::{duration, percent, thousands};

/// What stands after this line was written by hand and stays.
pub(crate) const NOTES: &str = "<!-- notes -->";

/// Writes the document to `path`, and the plots beside it.
///
/// # Errors
/// Of the file system.
pub(crate) fn write_document(
    matrix: &Matrix,
    results: &Results,
    path: &Path,
) -> Result<(), Failure> {
    let notes = match fs::read_to_string(path) {
        Ok(text) => text.split_once(NOTES).map(|(_, notes)| notes.to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(unwritable(path, &error)),
    };
    for (name, _, svg) in results.plots() {
        write(&path.with_file_name(name), svg.as_bytes())?;
    }
    let mut text = document(matrix, results);
    text.push_str(NOTES);
    text.push_str(notes.as_deref().unwrap_or("\n"));
    write(path, text.as_bytes())
}

fn document(matrix: &Matrix, results: &Results) -> String {
    let mut text = format!("# {}\n\n**Asked:** {}\n\n", results.name, results.about);
    text += &table(results);
    text += "\nMeans over seeds, ± the sample standard deviation; n is the number of runs. Under a budget: what the whole attack \
             list leaves standing. Device-hours are those of one run, training and audit together.\n";
    let missing: Vec<_> = results
        .runs
        .iter()
        .filter(|run| run.audit.is_none())
        .collect();
    if !missing.is_empty() {
        let names = missing
            .iter()
            .map(|run| format!("{} ({})", code(&run.run), run.state));
        let names: Vec<_> = names.collect();
        let _ = write!(
            text,
            "\n**Not finished:** {} of {} runs are not in these numbers: {}.\n",
            missing.len(),
            results.runs.len(),
            names.join(", ")
        );
    }
    if results.judged().next().is_some() {
        for (name, title, _) in results.plots() {
            let _ = write!(text, "\n![{title}]({name})\n");
        }
    }
    text += "\n## Protocol\n\n";
    for line in protocol(matrix, results) {
        let _ = writeln!(text, "* {line}");
    }
    text += "\n## Methods\n\n";
    text += &methods(matrix);
    text += "\n## Runs\n\n";
    text += &runs(results);
    text += "\nWritten by `gauntlet experiment` from the files of the runs. What is below the mark in this file's source is kept when it \
             is written anew.\n\n";
    text
}

/// How it was measured, a line a fact.
fn protocol(matrix: &Matrix, results: &Results) -> Vec<String> {
    let mut lines = Vec::new();
    let environments = || results.judged().map(|(run, _)| &run.environment);
    let count = |part: &Json| thousands(part["samples"].as_u64().unwrap_or_default());
    let data = environments().map(|found| {
        let data = &found["data"];
        format!(
            "{}, {} images to train on, {} to select by",
            data["name"].as_str().unwrap_or("unknown data"),
            count(&data["train"]),
            count(&data["validation"])
        )
    });
    lines.extend(distinct(data).map(|data| format!("Data: {data}.")));
    let judged = results.judged().map(|(_, audit)| {
        let (data, hash) = (&audit.data, audit.data.sha256.get(..12).unwrap_or_default());
        format!(
            "the first {} {} images of {} (SHA-256 {hash}…), attack seed {}, plan {}",
            thousands(data.samples as u64),
            data.split,
            data.name,
            audit.seed,
            code(audit.plan.as_deref().unwrap_or("-"))
        )
    });
    lines.extend(distinct(judged).map(|data| format!("Judged on {data}.")));
    let attacks = results
        .judged()
        .flat_map(|(_, audit)| &audit.threats)
        .map(|threat| {
            let attacks = threat.attacks.iter().map(|attack| match attack.restarts {
                1 => format!("{} ({} steps)", attack.name, attack.steps),
                n => format!("{} ({} steps, {n} restarts)", attack.name, attack.steps),
            });
            let attacks: Vec<_> = attacks.collect();
            format!("{}: {}", code(&threat.threat), attacks.join(", "))
        });
    let each = "each attack on what those before it left standing";
    lines.extend(distinct(attacks).map(|attacks| format!("Within {attacks}; {each}.")));
    let seeds: Vec<_> = matrix.file.spec.seeds.iter().map(u64::to_string).collect();
    lines.push(format!("Seeds: {}.", seeds.join(", ")));
    let devices = results.judged().map(|(run, audit)| {
        let trained = run.environment["device"]
            .as_str()
            .unwrap_or("an unknown device");
        match trained == audit.device {
            true => trained.to_owned(),
            false => format!("{trained} (training), {} (audit)", audit.device),
        }
    });
    lines.extend(distinct(devices).map(|device| format!("Device: {device}.")));
    let sharing = results.judged().filter(|(run, _)| run.shared_by > 1);
    let sharing = sharing.map(|(run, _)| format!("{} runs at a time shared it", run.shared_by));
    lines.extend(distinct(sharing).map(|text| {
        format!("{text}: each took longer than alone, and is charged its part of the device.")
    }));
    let versions = results.judged().map(|(_, audit)| audit.version.clone());
    lines.extend(distinct(versions).map(|version| format!("gauntlet {version}.")));
    let spent: f64 = results.runs.iter().filter_map(|run| run.device_hours).sum();
    let mut total = format!("In all {} device-hours", short(spent));
    if let Some(cost) = &results.cost {
        let money = short(spent * cost.per_hour);
        let (currency, rate) = (&cost.currency, short(cost.per_hour));
        let _ = write!(total, ", {money} {currency} at {rate} {currency} an hour");
    }
    lines.push(format!("{total}."));
    let plan = matrix
        .file
        .path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    lines.push(format!(
        "Repeat it: `gauntlet experiment run {plan}` in the folder of [{plan}]({plan})."
    ));
    lines
}

/// Each text once, in order of appearance.
fn distinct(texts: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
    let mut seen = BTreeSet::new();
    texts.filter(move |text| seen.insert(text.clone()))
}

/// What each method changes.
fn methods(matrix: &Matrix) -> String {
    let spec = &matrix.file.spec;
    let changes = |set: &toml::Table| {
        let changes: Vec<_> = set
            .iter()
            .map(|(key, value)| code(&format!("{key} = {value}")))
            .collect();
        if changes.is_empty() {
            dash()
        } else {
            changes.join(", ")
        }
    };
    let base = |base: &Option<String>| {
        base.as_deref()
            .map_or_else(dash, |base| format!("[{base}]({base})"))
    };
    let rows: Vec<_> = spec
        .methods
        .iter()
        .map(|method| {
            let from = if method.base.is_some() {
                &method.base
            } else {
                &spec.base
            };
            vec![code(&method.name), base(from), changes(&method.set)]
        })
        .collect();
    let mut text = markdown(&["method", "config", "changes"].map(str::to_owned), &rows);
    if !spec.set.is_empty() {
        let _ = write!(text, "\nAll of them: {}.\n", changes(&spec.set));
    }
    for (key, values) in &spec.matrix {
        let _ = write!(
            text,
            "\nEach with {}.\n",
            code(&format!("{key} in {values}"))
        );
    }
    text
}

fn runs(results: &Results) -> String {
    let mut heads = vec!["run".to_owned(), "clean".to_owned()];
    heads.extend(results.threats.iter().map(|threat| code(threat)));
    heads.extend(["training", "audit", "signs that a number misleads"].map(str::to_owned));
    let rows: Vec<_> = results
        .runs
        .iter()
        .map(|run| run_row(run, &results.threats))
        .collect();
    markdown(&heads, &rows)
}

fn run_row(run: &Measured, threats: &[String]) -> Vec<String> {
    let seconds = |value: Option<f64>| value.map_or_else(dash, duration);
    let share = |value: Option<f64>| value.map_or_else(dash, percent);
    let audit = run.audit.as_ref();
    let mut cells = vec![
        code(&run.run),
        audit.map_or_else(|| run.state.clone(), |audit| percent(audit.clean_accuracy)),
    ];
    cells.extend(threats.iter().map(|threat| share(run.robust(threat))));
    cells.push(seconds(run.train_seconds));
    cells.push(seconds(run.audit_seconds));
    let findings = audit.map(|audit| {
        let codes: Vec<_> = audit
            .findings
            .iter()
            .map(|found| code(&found.code))
            .collect();
        match (codes.is_empty(), audit.checks.is_empty()) {
            (false, _) => codes.join(", "),
            (true, false) => "none".to_owned(),
            (true, true) => "not looked for".to_owned(),
        }
    });
    cells.push(findings.unwrap_or_else(dash));
    cells
}
