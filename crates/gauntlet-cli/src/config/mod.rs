//! Config files: read, changed by `--set`, checked; every problem told at once with its place. Plans of audits are read the
//! same way.

mod audit_plan;
mod check;
mod experiment;
mod experiment_spec;
mod schema;
mod sets;
mod source;
mod words;

use std::fs;
use std::path::Path;

use gauntlet_data::DataError;
use gauntlet_models::ModelError;
use gauntlet_train::{Plan, PlanError, TrainError};
use serde::Deserialize;
use toml::Table;

use crate::devices::Spec;
use crate::failure::Failure;
use check::{Problem, Shape};
use source::Source;

pub(crate) use audit_plan::PlanFile;
pub(crate) use experiment::ExperimentFile;
pub(crate) use experiment_spec::{Anchor, Cost, Method};
pub(crate) use schema::{audit_schema, places_of, schema};
pub(crate) use sets::Set;
pub(crate) use words::nearest;

/// A config that was read, with what is needed to point into it.
#[derive(Debug)]
pub(crate) struct Config {
    /// The plan, checked and with every default written out.
    pub(crate) plan: Plan,
    origin: Origin,
}

/// Where values came from.
#[derive(Debug)]
struct Origin {
    source: Source,
    sets: Vec<Set>,
}

/// Reads the config file `path` and applies `sets` over it.
///
/// # Errors
/// All that is wrong with it, by file and line.
pub(crate) fn read(path: &Path, sets: &[Set]) -> Result<Config, Failure> {
    let text = text_of(path, "configs/")?;
    parse(path, text, sets)
}

/// Checks the file `path`: a config, with `sets` over it, or a plan of an audit.
///
/// # Errors
/// All that is wrong with it, by file and line.
pub(crate) fn check(path: &Path, sets: &[Set]) -> Result<(), Failure> {
    let table = fs::read_to_string(path).ok();
    let table = table.and_then(|text| text.parse::<Table>().ok());
    if table.is_some_and(|table| audit_plan::is_plan(&table)) {
        // Problems that depend on the number of classes are for the audit to tell.
        return PlanFile::read(path)?.check(10);
    }
    read(path, sets).map(drop)
}

/// The text of a file that a person wrote; ready-made ones are in `folder`.
fn text_of(path: &Path, folder: &str) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => {
                format!("\n\nhint: ready-made ones are in `{folder}`")
            }
            _ => String::new(),
        };
        Failure::request(format!("{}: {}{hint}", path.display(), reason(&error)))
    })
}

/// An I/O error in plain words.
pub(crate) fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::IsADirectory => "this is a folder".to_owned(),
        _ => error.to_string(),
    }
}

/// A plan that was read from a run, changed by `sets`.
///
/// # Errors
/// All that is wrong with the result.
pub(crate) fn change(plan: &Plan, path: &Path, sets: &[Set]) -> Result<Config, Failure> {
    let text = toml::to_string_pretty(plan).expect("a plan is plain tables and values");
    parse(path, text, sets)
}

fn parse(path: &Path, text: String, sets: &[Set]) -> Result<Config, Failure> {
    let name = path.display().to_string();
    problems_of(path, text, sets).map_err(|told| summary(&told, &name))
}

/// A config, or what is wrong with it, a text a problem.
fn problems_of(path: &Path, text: String, sets: &[Set]) -> Result<Config, Vec<String>> {
    let (source, mut table) = Source::parse(path, text).map_err(|problem| vec![problem])?;
    let origin = Origin {
        source,
        sets: sets.to_vec(),
    };
    for set in sets {
        set.apply(&mut table, schema::is_text(&set.path))
            .map_err(|problem| vec![set.tell(&problem)])?;
    }
    if audit_plan::is_plan(&table) {
        let name = &origin.source.name;
        return Err(vec![format!(
            "{name} is no config but a plan of an audit\n\nhint: `gauntlet audit RUN --plan {name}`"
        )]);
    }
    if table.contains_key("method") && !table.contains_key("train") {
        let name = &origin.source.name;
        return Err(vec![format!(
            "{name} is no config but an experiment\n\nhint: `gauntlet experiment run {name} --dry-run` checks it"
        )]);
    }
    let shape = Shape {
        schema: schema(),
        name: "a config",
    };
    let problems = check::problems(shape, &table);
    if !problems.is_empty() {
        return Err(origin.told(&problems));
    }
    let plan = origin.plan(table)?;
    plan.check()
        .map_err(|error| origin.told(&of_plan(&error)))?;
    let plan = plan.resolved();
    let config = Config { plan, origin };
    if let Err(problem) = config.plan.device.parse::<Spec>() {
        return Err(config.origin.told(&[Problem::value("device", problem)]));
    }
    Ok(config)
}

/// All that is wrong with a file, as one message.
fn summary(told: &[String], name: &str) -> Failure {
    let summary = match told.len() {
        1 => String::new(),
        several => format!("\n\n{several} problems in {name}"),
    };
    Failure::request(format!("{}{summary}", told.join("\n\n")))
}

fn of_plan(error: &PlanError) -> Vec<Problem> {
    let problems = error.problems.iter();
    problems
        .map(|(key, problem)| checked(key, problem))
        .collect()
}

impl Config {
    /// Where the config wants to compute.
    ///
    /// # Errors
    /// If its `device` is none.
    pub(crate) fn device(&self) -> Result<Spec, Failure> {
        let spec = self.plan.device.parse::<Spec>();
        spec.map_err(|problem| self.origin.report(&[Problem::value("device", problem)]))
    }

    /// `error`, with the line of the config that caused it where one did.
    pub(crate) fn explain(&self, error: impl Into<TrainError>) -> Failure {
        let (key, problem) = match error.into() {
            TrainError::Plan(error) => return self.origin.report(&of_plan(&error)),
            TrainError::Data(DataError::Config { key, problem }) => {
                (format!("data.{key}"), problem)
            }
            TrainError::Model(ModelError::Config { key, problem }) => {
                (format!("model.{key}"), problem)
            }
            TrainError::TooFewExamples { batch, examples } => {
                let problem = format!("{batch} examples a batch, but only {examples} to train on");
                ("data.batch_size".to_owned(), problem)
            }
            other => return other.into(),
        };
        self.origin.report(&[checked(&key, &problem)])
    }
}

impl Origin {
    fn plan(&self, table: Table) -> Result<Plan, Vec<String>> {
        // What the schema cannot say (`eps = "8/0"`) is found one table after another, so that the table can be named.
        let whole = match Plan::deserialize(table.clone()) {
            Ok(plan) => return Ok(plan),
            Err(error) => error,
        };
        let text = whole.message().trim().to_owned();
        let path = blame(&table, &text);
        Err(self.told(&[Problem::value(&path, text)]))
    }

    fn report(&self, problems: &[Problem]) -> Failure {
        summary(&self.told(problems), &self.source.name)
    }

    /// Each problem with its place, in the order of the file.
    fn told(&self, problems: &[Problem]) -> Vec<String> {
        let mut problems: Vec<_> = problems.iter().collect();
        problems.sort_by_key(|problem| {
            (
                self.set(problem).is_some(),
                self.source.position(&problem.path),
            )
        });
        problems.iter().map(|problem| self.tell(problem)).collect()
    }

    /// The `--set` that made a problem.
    fn set(&self, problem: &Problem) -> Option<&Set> {
        self.sets.iter().rev().find(|set| set.covers(&problem.path))
    }

    fn tell(&self, problem: &Problem) -> String {
        let text = match self.set(problem) {
            Some(set) => set.tell(&problem.text),
            None => self
                .source
                .locate(&problem.path, problem.part, &problem.text),
        };
        match &problem.hint {
            Some(hint) => format!("{text}\nhint: {hint}"),
            None => text,
        }
    }
}

fn checked(key: &str, problem: &str) -> Problem {
    let (problem, hint) = match problem.split_once("\n\nhint: ") {
        Some((problem, hint)) => (problem, Some(hint.to_owned())),
        None => (problem, None),
    };
    Problem {
        hint,
        ..Problem::value(key, format!("`{key}`: {problem}"))
    }
}

/// The path of the value that a message quotes: `` `8/0` is no size ``.
fn blame(table: &Table, message: &str) -> String {
    fn find(table: &Table, above: &str, message: &str) -> Option<String> {
        table.iter().find_map(|(key, value)| {
            let path = join(above, key);
            match value {
                toml::Value::Table(inner) => find(inner, &path, message),
                toml::Value::String(text) => message.contains(&format!("`{text}`")).then_some(path),
                toml::Value::Integer(_) | toml::Value::Float(_) => {
                    message.contains(&format!("`{value}`")).then_some(path)
                }
                _ => None,
            }
        })
    }
    find(table, "", message).unwrap_or_default()
}

/// `above.key`
fn join(above: &str, key: &str) -> String {
    if above.is_empty() {
        key.to_owned()
    } else {
        format!("{above}.{key}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"name = "a"
data = { source = "digits" }
model = { arch = "mlp" }
[threat]
norm = "linf"
eps = 0.1
[train]
objective = "pgd"
epochs = 1
optimizer = { kind = "sgd" }
schedule = { kind = "constant", rate = 0.1 }
"#;

    fn told(text: &str, sets: &[&str]) -> String {
        let sets: Vec<Set> = sets.iter().map(|set| set.parse().unwrap()).collect();
        parse(Path::new("run.toml"), text.to_owned(), &sets)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn sets_change_the_plan() {
        let sets = [
            "train.epochs=7".parse().unwrap(),
            "name=12".parse().unwrap(),
        ];
        let config = parse(Path::new("run.toml"), GOOD.to_owned(), &sets).unwrap();
        assert_eq!(
            (config.plan.train.epochs, config.plan.name.as_str()),
            (7, "12")
        );
        assert_eq!(
            config.plan.train.attack.steps,
            Some(10),
            "defaults are written out"
        );
    }

    #[test]
    fn problems_point_into_the_file_or_to_the_argument() {
        let text = told(
            &GOOD.replace("epochs = 1", "epocs = 1"),
            &["data.batch_size=0.5"],
        );
        assert!(
            text.contains(
                "run.toml:9:1: unknown key `epocs` in `[train]`\n  |\n9 | epocs = 1\n  | ^^^^^"
            ),
            "{text}"
        );
        assert!(text.contains("hint: did you mean `epochs`?"), "{text}");
        assert!(
            text.contains("--set data.batch_size=0.5: `data.batch_size` is a whole number"),
            "{text}"
        );
        assert!(text.ends_with("2 problems in run.toml"), "{text}");
    }

    #[test]
    fn sizes_and_ranges_are_told_with_their_line() {
        let text = told(&GOOD.replace("eps = 0.1", "eps = \"8/0\""), &[]);
        assert!(text.contains("run.toml:6:7: `8/0` is no size"), "{text}");
        let text = told(
            &GOOD.replace("epochs = 1", "epochs = 0"),
            &["data.batch_size=0"],
        );
        assert!(text.contains("run.toml:9:10: `train.epochs`"), "{text}");
        assert!(
            text.contains("--set data.batch_size=0: `data.batch_size`"),
            "{text}"
        );
    }

    #[test]
    fn errors_of_data_and_model_point_into_the_file_too() {
        let config = parse(Path::new("run.toml"), GOOD.to_owned(), &[]).unwrap();
        let error = ModelError::Config {
            key: "arch",
            problem: "too small".to_owned(),
        };
        let text = config.explain(error).to_string();
        assert!(
            text.contains("run.toml:3:18: `model.arch`: too small"),
            "{text}"
        );
    }
}
