//! `experiment.toml`: read and checked as configs are.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use gauntlet_attacks::Budget;
use gauntlet_audit::{AuditPlan, SuiteName};
use gauntlet_train::Plan;
use serde_json::Value as Json;
use toml::Value;

use super::check::{self, Problem, Shape};
use super::experiment_spec::Experiment;
use super::sets::{Set, Shown};
use super::source::{Part, Source};
use super::{Config, Origin, PlanFile, reason, summary, text_of};
use crate::failure::Failure;

/// An experiment that was read, with what is needed to point into its file.
#[derive(Debug)]
pub(crate) struct ExperimentFile {
    pub(crate) path: PathBuf,
    pub(crate) spec: Experiment,
    origin: Origin,
}

fn experiment_schema() -> &'static Json {
    static SCHEMA: OnceLock<Json> = OnceLock::new();
    SCHEMA.get_or_init(|| schemars::schema_for!(Experiment).to_value())
}

impl ExperimentFile {
    /// Reads the experiment in the file `path`. What it says of configs is not looked at yet.
    ///
    /// # Errors
    /// All that is wrong with it, by file and line.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let text = text_of(path, "experiments/")?;
        let (source, table) = Source::parse(path, text.clone()).map_err(Failure::request)?;
        let name = path.display();
        if table.contains_key("train") {
            return Err(Failure::request(format!(
                "{name} is no experiment but a config\n\nhint: `gauntlet train {name}`"
            )));
        }
        let shape = Shape {
            schema: experiment_schema(),
            name: "an experiment",
        };
        let mut problems = check::problems(shape, &table);
        let origin = Origin {
            source,
            sets: Vec::new(),
        };
        let spec = toml::from_str::<Experiment>(&text);
        if let Ok(spec) = &spec {
            problems.extend(spec.problems());
        }
        if !problems.is_empty() {
            return Err(origin.report(&problems));
        }
        // What the schema cannot say.
        let spec = spec.map_err(|error| {
            let range = error.span().unwrap_or(0..0);
            Failure::request(origin.source.show(&range, error.message().trim()))
        })?;
        Ok(Self {
            path: path.to_owned(),
            spec,
            origin,
        })
    }

    /// The folder that paths in the file start from.
    pub(crate) fn folder(&self) -> PathBuf {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        match folder.as_os_str().is_empty() {
            true => PathBuf::from("."),
            false => folder.to_owned(),
        }
    }

    /// `problem`, with the line of `key` of this file.
    pub(crate) fn tell(&self, key: &str, problem: impl Into<String>) -> String {
        self.origin.tell(&Problem::value(key, problem.into()))
    }

    /// All that is wrong.
    pub(crate) fn failure(&self, told: &[String]) -> Failure {
        summary(told, &self.origin.source.name)
    }

    /// What the entry at `at` of this file makes of the key `key` of a config.
    pub(crate) fn set(&self, at: &str, key: &str, value: &Value) -> Set {
        let shown = self.origin.source.locate(at, Part::Value, "");
        let (head, frame) = shown.split_once('\n').unwrap_or((&shown, ""));
        Set {
            path: key.to_owned(),
            text: value.to_string(),
            place: Some(Shown {
                at: head.trim_end().trim_end_matches(':').to_owned(),
                frame: frame.to_owned(),
            }),
        }
    }

    /// The config `base` with `sets` over it; `at` is the key that names it.
    ///
    /// # Errors
    /// What is wrong with it, a text a problem.
    pub(crate) fn config(&self, base: &str, at: &str, sets: &[Set]) -> Result<Config, Vec<String>> {
        let path = self.folder().join(base);
        let path = tidy(&path);
        let text = fs::read_to_string(&path).map_err(|error| {
            let text = format!("{}: {}", path.display(), reason(&error));
            vec![self.tell(at, text)]
        })?;
        super::problems_of(&path, text, sets)
    }

    /// How a model of the run `plan` is judged.
    ///
    /// # Errors
    /// What is wrong with it, a text a problem.
    pub(crate) fn audit(&self, plan: &Plan, classes: usize) -> Result<AuditPlan, Vec<String>> {
        let spec = &self.spec.audit;
        if let Some(path) = self.audit_file() {
            if !spec.threats.is_empty() {
                let text = "`audit.threats` goes with `plan = \"standard\"` or `\"quick\"`: a plan file names its own budgets";
                return Err(vec![self.tell("audit.threats", text)]);
            }
            let wrong = |failure: Failure| vec![failure.message];
            let file = PlanFile::read(&path).map_err(wrong)?;
            file.check(classes).map_err(wrong)?;
            return Ok(file.plan);
        }
        let mut told = Vec::new();
        let mut budgets: Vec<Budget> = Vec::new();
        for (number, text) in spec.threats.iter().enumerate() {
            match text.parse() {
                Ok(budget) => budgets.push(budget),
                Err(problem) => {
                    told.push(self.tell(&format!("audit.threats[{number}]"), format!("{problem}")));
                }
            }
        }
        if budgets.is_empty() {
            budgets.push(plan.threat.model().into());
        }
        let suite = match spec.plan.as_deref() {
            None | Some("standard") => SuiteName::Standard,
            Some("quick") => SuiteName::Quick,
            Some(other) => {
                let text = format!(
                    "`{other}` is no plan: there are standard, quick, and files such as `plan.toml`"
                );
                told.push(self.tell("audit.plan", text));
                return Err(told);
            }
        };
        let plan = AuditPlan::of(suite, budgets);
        let problems = plan.problems(classes);
        told.extend(
            problems
                .into_iter()
                .map(|found| self.tell("audit.threats", found.problem)),
        );
        if told.is_empty() { Ok(plan) } else { Err(told) }
    }

    /// The plan of audits, if it is a file.
    pub(crate) fn audit_file(&self) -> Option<PathBuf> {
        let plan = self.spec.audit.plan.as_deref()?;
        plan.ends_with(".toml")
            .then(|| tidy(&self.folder().join(plan)))
    }
}

/// `a/../b` as `b`, where nothing but the text has to be looked at.
fn tidy(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut tidy = PathBuf::new();
    for part in path.components() {
        let last = tidy.components().next_back();
        match (part, last) {
            // Above a link lies another folder: those stay as they are.
            (Component::ParentDir, Some(Component::Normal(_))) if !tidy.is_symlink() => {
                tidy.pop();
            }
            (Component::CurDir, _) => {}
            _ => tidy.push(part),
        }
    }
    tidy
}
