//! The runs of an experiment: methods x axes x seeds, each with its checked plan.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use gauntlet_audit::AuditPlan;
use gauntlet_data::{Source, fetch};
use gauntlet_models::Description;
use gauntlet_train::{Plan, TrainError};
use toml::Value;

use crate::commands::audit::too_large;
use crate::config::{Config, ExperimentFile, Method, Set};
use crate::failure::Failure;

/// One run of the matrix.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// `trades-eps0.1-s0`: its folder.
    pub(crate) name: String,
    /// `trades-eps0.1`: runs of a group differ by seed only.
    pub(crate) group: String,
    /// The method's name.
    pub(crate) method: String,
    /// Where it stands on the axes: key and value.
    pub(crate) axes: Vec<(String, Value)>,
    pub(crate) seed: u64,
    pub(crate) plan: Plan,
    /// How the model is judged.
    pub(crate) audit: AuditPlan,
}

/// An experiment with all its runs, checked.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) file: ExperimentFile,
    pub(crate) runs: Vec<Run>,
    /// Where the runs' folders are.
    pub(crate) out: PathBuf,
}

/// Values of the axes: key, value, label.
type Point = Vec<(String, Value, String)>;

impl Matrix {
    /// Reads the experiment in `path`; its runs are in `out`, or in `runs/NAME`.
    ///
    /// # Errors
    /// All that is wrong with it and with the configs of its runs, by file and line.
    pub(crate) fn read(path: &Path, out: Option<PathBuf>) -> Result<Self, Failure> {
        let file = ExperimentFile::read(path)?;
        let points = points(&file);
        let mut runs = Vec::new();
        let (mut told, mut names) = (Vec::new(), BTreeMap::new());
        for (number, method) in file.spec.methods.iter().enumerate() {
            for point in &points {
                for &seed in &file.spec.seeds {
                    match run(&file, number, method, point, seed) {
                        Ok(run) => {
                            let name = run.name.to_lowercase();
                            if let Some(other) = names.insert(name, number) {
                                let text = twice(&file, &run.name, other, number);
                                add(&mut told, [text]);
                            }
                            runs.push(run);
                        }
                        // The same for every seed, and for most points: told once.
                        Err(problems) => add(&mut told, problems),
                    }
                }
            }
        }
        if !told.is_empty() {
            return Err(file.failure(&told));
        }
        let out = out.unwrap_or_else(|| Path::new("runs").join(&file.spec.name));
        Ok(Self { file, runs, out })
    }

    /// Loads the data and builds the networks of all runs once, to see that it can be done.
    ///
    /// # Errors
    /// All that cannot.
    pub(crate) fn rehearse(&self) -> Result<(), Failure> {
        let (mut told, mut seen) = (Vec::new(), BTreeSet::new());
        for run in &self.runs {
            let parts = serde_json::json!([run.plan.data, run.plan.model]);
            if !seen.insert(parts.to_string()) {
                continue;
            }
            let number = self.method(&run.method);
            let config = config(&self.file, number, &run.axes, run.seed);
            let config = config.map_err(|problems| self.file.failure(&problems))?;
            if let Err(failure) = rehearse(&config) {
                add(&mut told, [failure.message]);
            }
        }
        match told.as_slice() {
            [] => Ok(()),
            told => Err(self.file.failure(told)),
        }
    }

    /// The run of this name or, if it is a number, at this place.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn find(&self, which: &str) -> Result<&Run, Failure> {
        let by_name = self.runs.iter().find(|run| run.name == which);
        let by_place = || self.runs.get(which.parse::<usize>().ok()?);
        by_name.or_else(by_place).ok_or_else(|| {
            Failure::request(format!(
                "{}: there is no run `{which}`; its {} runs are {} to {}",
                self.file.path.display(),
                self.runs.len(),
                self.runs[0].name,
                self.runs[self.runs.len() - 1].name,
            ))
        })
    }

    fn method(&self, name: &str) -> usize {
        let mut methods = self.file.spec.methods.iter();
        let found = methods.position(|method| method.name == name);
        found.expect("runs are of methods")
    }
}

fn add(told: &mut Vec<String>, more: impl IntoIterator<Item = String>) {
    for text in more {
        if !told.contains(&text) {
            told.push(text);
        }
    }
}

fn twice(file: &ExperimentFile, name: &str, first: usize, second: usize) -> String {
    let methods = &file.spec.methods;
    let of = match first == second {
        true => format!("of `{}`", methods[first].name),
        false => format!(
            "of `{}` and of `{}`",
            methods[first].name, methods[second].name
        ),
    };
    let at = match first == second {
        true => "matrix".to_owned(),
        false => format!("method[{second}].name"),
    };
    file.tell(&at, format!("two runs, {of}, would be called `{name}`"))
}

/// Every combination of the values of the axes; one empty combination if there are none.
fn points(file: &ExperimentFile) -> Vec<Point> {
    let mut points: Vec<Point> = vec![Vec::new()];
    for (key, values) in &file.spec.matrix {
        let values = values.as_array().map(Vec::as_slice).unwrap_or_default();
        let longer = |point: &Point| {
            let longer = |(place, value): (usize, &Value)| {
                let step = (key.clone(), value.clone(), label(key, place, value));
                point.iter().cloned().chain([step]).collect()
            };
            values.iter().enumerate().map(longer).collect::<Vec<_>>()
        };
        points = points.iter().flat_map(longer).collect();
    }
    points
}

/// `eps0.1` for the value 0.1 of `threat.eps`; of a table its `kind`, else its place in the list.
fn label(key: &str, place: usize, value: &Value) -> String {
    let name = key.rsplit('.').next().unwrap_or(key);
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Table(table) => match table.get("kind").and_then(Value::as_str) {
            Some(kind) => format!("-{kind}"),
            None => place.to_string(),
        },
        Value::Array(_) => place.to_string(),
        plain => plain.to_string(),
    };
    let plain = |c: char| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' => c,
        _ => '_',
    };
    let text: String = text.chars().map(plain).collect();
    format!("{name}{text}")
}

/// The config of a run of the method at place `number`.
fn config(
    file: &ExperimentFile,
    number: usize,
    axes: &[(String, Value)],
    seed: u64,
) -> Result<Config, Vec<String>> {
    let spec = &file.spec;
    let method = &spec.methods[number];
    let mut sets: Vec<Set> = Vec::new();
    for (key, value) in &spec.set {
        sets.push(file.set(&format!("set.{key}"), key, value));
    }
    for (key, value) in &method.set {
        sets.push(file.set(&format!("method[{number}].set.{key}"), key, value));
    }
    for (key, value) in axes {
        sets.push(file.set(&format!("matrix.{key}"), key, value));
    }
    let seed = Value::Integer(i64::try_from(seed).unwrap_or(i64::MAX));
    sets.push(file.set("seeds", "seed", &seed));
    let at = match method.base {
        Some(_) => format!("method[{number}].base"),
        None => "base".to_owned(),
    };
    let base = method.base.as_ref().or(spec.base.as_ref());
    file.config(base.map_or("", String::as_str), &at, &sets)
}

fn run(
    file: &ExperimentFile,
    number: usize,
    method: &Method,
    point: &Point,
    seed: u64,
) -> Result<Run, Vec<String>> {
    let axes: Vec<_> = point
        .iter()
        .map(|(key, value, _)| (key.clone(), value.clone()))
        .collect();
    let mut plan = config(file, number, &axes, seed)?.plan;
    let mut parts = vec![method.name.clone()];
    parts.extend(point.iter().map(|(_, _, label)| label.clone()));
    let group = parts.join("-");
    let name = format!("{group}-s{seed}");
    plan.name.clone_from(&name);
    let info = plan.data.source.info();
    let classes = plan.data.source.classes().len();
    // Of a folder of images the number is not known yet.
    let audit = file.audit(&plan, if classes == 0 { 10 } else { classes })?;
    if let Some(shape) = info.shape {
        let budgets = audit.threats.iter().flat_map(|threat| &threat.within);
        let problems: Vec<_> = budgets
            .filter_map(|budget| too_large(budget, shape).err())
            .map(|failure| file.tell("audit.threats", failure.message))
            .collect();
        if !problems.is_empty() {
            return Err(problems);
        }
    }
    Ok(Run {
        axes,
        name,
        group,
        method: method.name.clone(),
        seed,
        plan,
        audit,
    })
}

fn rehearse(config: &Config) -> Result<(), Failure> {
    let plan = &config.plan;
    // A folder of images can be large: its run tells.
    if plan.data.source == Source::ImageFolder {
        return Ok(());
    }
    let splits = gauntlet_data::load(&plan.data, &fetch::default_root(), plan.seed)
        .map_err(|error| config.explain(error))?;
    let (batch, examples) = (plan.data.batch_size, splits.train.len());
    if examples < batch {
        return Err(config.explain(TrainError::TooFewExamples { batch, examples }));
    }
    let description = Description {
        config: plan.model.clone(),
        shape: splits.train.shape,
        classes: splits.train.classes.to_vec(),
    };
    let network = description.init(plan.seed, &Device::flex());
    network.map(drop).map_err(|error| config.explain(error))
}

#[cfg(test)]
mod tests {
    #[test]
    fn labels_are_short_and_fit_for_folders() {
        let label = |text: &str| {
            let table: toml::Table = text.parse().unwrap();
            let (key, value) = table.into_iter().next().unwrap();
            super::label(&key, 2, &value)
        };
        for (text, expected) in [
            ("\"threat.eps\" = 0.1", "eps0.1"),
            ("\"threat.eps\" = \"8/255\"", "eps8_255"),
            ("\"train.epochs\" = 30", "epochs30"),
            ("\"train.ema\" = { decay = 0.9 }", "ema2"),
            ("\"train.optimizer\" = { kind = \"sgd\" }", "optimizer-sgd"),
            ("\"data.augment\" = [\"crop\"]", "augment2"),
        ] {
            assert_eq!(label(text), expected, "{text}");
        }
    }
}
