//! What an experiment measured, read from the files of its runs and from nothing else.

use std::collections::BTreeMap;
use std::fs;

use gauntlet_audit::{Audit, Cloud, Curve, file_name, over_epochs, scatter};
use gauntlet_train::{Record, Split};
use serde::Serialize;
use serde_json::Value as Json;

use super::folder::{Asked, Folder, State, write};
use super::matrix::{Matrix, Run};
use super::stats::Mean;
use crate::config::{Anchor, Cost};
use crate::failure::Failure;

/// `results.json`. Accuracies are shares in [0, 1].
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    /// Version of this layout: 1.
    pub(crate) schema: u32,
    pub(crate) name: String,
    pub(crate) about: String,
    /// Budgets that any run was audited within, in order.
    pub(crate) threats: Vec<String>,
    /// Methods at each place of the axes, over their seeds.
    pub(crate) groups: Vec<Group>,
    /// Numbers of others.
    pub(crate) anchors: Vec<Anchor>,
    pub(crate) cost: Option<Cost>,
    pub(crate) runs: Vec<Measured>,
}

/// Runs that differ by seed only.
#[derive(Debug, Serialize)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) method: String,
    pub(crate) axes: BTreeMap<String, Json>,
    pub(crate) clean: Option<Mean>,
    /// By budget.
    pub(crate) robust: BTreeMap<String, Mean>,
    pub(crate) train_seconds: Option<Mean>,
    pub(crate) audit_seconds: Option<Mean>,
    pub(crate) device_hours: Option<Mean>,
}

/// One run.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) run: String,
    pub(crate) group: String,
    pub(crate) seed: u64,
    /// `judged`, or how far it is.
    pub(crate) state: String,
    pub(crate) train_seconds: Option<f64>,
    /// Of all attacks together.
    pub(crate) audit_seconds: Option<f64>,
    /// Time of training and audit, over the number of runs that shared the device.
    pub(crate) device_hours: Option<f64>,
    /// How many runs shared the device at a time.
    pub(crate) shared_by: usize,
    pub(crate) audit: Option<Audit>,
    /// `environment.json`
    #[serde(skip)]
    pub(crate) environment: Json,
    #[serde(skip)]
    pub(crate) records: Vec<Record>,
}

/// The name of a state in tables and JSON.
pub(crate) fn state_name(state: &State) -> String {
    match state {
        State::Waiting => "waiting".to_owned(),
        State::Running => "running".to_owned(),
        State::Saved(step) => format!("saved at step {step}"),
        State::Trained => "trained".to_owned(),
        State::Judged => "judged".to_owned(),
        State::Failed(_) => "failed".to_owned(),
    }
}

impl Measured {
    fn read(matrix: &Matrix, run: &Run) -> Self {
        let folder = Folder::of(matrix, run);
        let asked = Asked::of(matrix, run);
        let json = |name: &str| {
            let bytes = fs::read(folder.root.join(name)).ok();
            bytes.and_then(|bytes| serde_json::from_slice::<Json>(&bytes).ok())
        };
        // A run of another plan is none of this experiment.
        let ours = folder.changed(&run.plan).is_none();
        let audit = folder
            .judged(&asked)
            .filter(|_| ours && folder.is_trained());
        let report = json("report.json").unwrap_or_default();
        let train_seconds = report["train_seconds"].as_f64().filter(|_| ours);
        let audit_seconds = audit.as_ref().map(|audit| {
            let attacks = audit.threats.iter().flat_map(|threat| &threat.attacks);
            attacks.map(|attack| attack.seconds).sum::<f64>()
        });
        let shared_by = folder.note().map_or(1, |note| note.shared_by.max(1));
        let seconds = train_seconds.and_then(|train| Some(train + audit_seconds?));
        Self {
            run: run.name.clone(),
            group: run.group.clone(),
            seed: run.seed,
            state: match ours {
                true => state_name(&folder.state(&asked)),
                false => "of another plan".to_owned(),
            },
            train_seconds,
            audit_seconds,
            device_hours: seconds.map(|seconds| seconds / 3600.0 / shared_by as f64),
            shared_by,
            audit,
            environment: json("environment.json").unwrap_or_default(),
            records: folder.records(),
        }
    }

    /// Accuracy within a budget.
    pub(crate) fn robust(&self, threat: &str) -> Option<f64> {
        let mut threats = self.audit.as_ref()?.threats.iter();
        let found = threats.find(|found| found.threat == threat)?;
        Some(found.robust_accuracy)
    }
}

impl Results {
    /// Reads what there is.
    pub(crate) fn read(matrix: &Matrix) -> Self {
        let runs: Vec<_> = matrix
            .runs
            .iter()
            .map(|run| Measured::read(matrix, run))
            .collect();
        let mut threats: Vec<String> = Vec::new();
        for audit in runs.iter().filter_map(|run| run.audit.as_ref()) {
            for threat in &audit.threats {
                if !threats.contains(&threat.threat) {
                    threats.push(threat.threat.clone());
                }
            }
        }
        let mut groups: Vec<Group> = Vec::new();
        for run in &matrix.runs {
            if groups.iter().all(|group| group.name != run.group) {
                groups.push(Group::of(run, &runs, &threats));
            }
        }
        let spec = &matrix.file.spec;
        Self {
            schema: 1,
            name: spec.name.clone(),
            about: spec.about.trim().to_owned(),
            threats,
            groups,
            anchors: spec.anchors.clone(),
            cost: spec.cost.clone(),
            runs,
        }
    }

    /// Runs that were trained and judged as the experiment says.
    pub(crate) fn judged(&self) -> impl Iterator<Item = (&Measured, &Audit)> {
        let runs = self.runs.iter();
        runs.filter_map(|run| Some((run, run.audit.as_ref()?)))
    }

    fn of<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = &'a Measured> {
        let runs = self.runs.iter();
        runs.filter(|run| run.group == group.name && run.audit.is_some())
    }

    /// The plots: name of the file, what it shows, SVG.
    pub(crate) fn plots(&self) -> Vec<(String, String, String)> {
        let mut plots = Vec::new();
        for threat in &self.threats {
            let cloud = |group: &Group| {
                let point = |run: &Measured| {
                    Some((run.audit.as_ref()?.clean_accuracy, run.robust(threat)?))
                };
                Cloud {
                    name: group.name.clone(),
                    points: self.of(group).filter_map(point).collect(),
                }
            };
            let clouds: Vec<_> = self.groups.iter().map(cloud).collect();
            let name = format!("accuracy-{}.svg", file_name(threat));
            let title = format!("Accuracy within {threat} against accuracy without attack");
            plots.push((name, title, scatter(threat, &clouds)));
        }
        let validation: [Value; 2] = [
            |record| Some(record.accuracy),
            |record| record.robust_accuracy,
        ];
        let names = [
            (
                "validation-clean",
                "validation accuracy",
                "Accuracy on validation images",
            ),
            (
                "validation-attacked",
                "validation accuracy under attack",
                "Accuracy on validation images under attack",
            ),
        ];
        for ((name, axis, title), value) in names.into_iter().zip(validation) {
            let curve = |group: &Group| Curve {
                name: group.name.clone(),
                points: mean_curve(&self.of(group).collect::<Vec<_>>(), value),
            };
            let mut curves: Vec<_> = self.groups.iter().map(curve).collect();
            curves.retain(|curve| !curve.points.is_empty());
            if !curves.is_empty() {
                let svg = over_epochs(axis, &curves);
                plots.push((format!("{name}.svg"), format!("{title} over epochs"), svg));
            }
        }
        plots
    }

    /// Writes `results.json` and the plots to the folder of the experiment's runs.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn write(&self, matrix: &Matrix) -> Result<(), Failure> {
        let mut text = serde_json::to_vec_pretty(self).expect("plain structs serialise");
        text.push(b'\n');
        write(&matrix.out.join("results.json"), &text)?;
        for (name, _, svg) in self.plots() {
            write(&matrix.out.join(name), svg.as_bytes())?;
        }
        Ok(())
    }
}

impl Group {
    fn of(run: &Run, runs: &[Measured], threats: &[String]) -> Self {
        let judged: Vec<_> = runs
            .iter()
            .filter(|other| other.group == run.group && other.audit.is_some())
            .collect();
        let mean = |value: &dyn Fn(&Measured) -> Option<f64>| {
            Mean::of(judged.iter().filter_map(|run| value(run)))
        };
        let robust = threats.iter().filter_map(|threat| {
            let mean = mean(&|run| run.robust(threat))?;
            Some((threat.clone(), mean))
        });
        let axes = run.axes.iter();
        Self {
            name: run.group.clone(),
            method: run.method.clone(),
            axes: axes
                .map(|(key, value)| {
                    let value = serde_json::to_value(value).unwrap_or_default();
                    (key.clone(), value)
                })
                .collect(),
            clean: mean(&|run| Some(run.audit.as_ref()?.clean_accuracy)),
            robust: robust.collect(),
            train_seconds: mean(&|run| run.train_seconds),
            audit_seconds: mean(&|run| run.audit_seconds),
            device_hours: mean(&|run| run.device_hours),
        }
    }
}

/// What a curve shows of a record.
type Value = fn(&Record) -> Option<f64>;

/// The mean over runs of what validation said after each epoch that all of them validated.
fn mean_curve(runs: &[&Measured], value: Value) -> Vec<(f64, f64)> {
    let mut epochs: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    for run in runs {
        let validation = run.records.iter();
        for record in validation.filter(|record| record.split == Split::Validation) {
            if let Some(value) = value(record) {
                epochs.entry(record.epoch + 1).or_default().push(value);
            }
        }
    }
    let whole = epochs
        .into_iter()
        .filter(|(_, values)| values.len() == runs.len());
    whole
        .filter_map(|(epoch, values)| Some((f64::from(epoch), Mean::of(values)?.mean)))
        .collect()
}
