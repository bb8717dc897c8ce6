//! Plans of audits: read and checked as configs are.

use std::path::Path;

use gauntlet_audit::{AuditPlan, PlanProblem};
use toml::Table;

use super::check::{self, Problem, Shape, shown};
use super::schema::audit_schema;
use super::source::Source;
use super::{Origin, text_of};
use crate::failure::Failure;

/// A plan that was read, with what is needed to point into its file.
#[derive(Debug)]
pub(crate) struct PlanFile {
    pub(crate) plan: AuditPlan,
    origin: Origin,
}

/// Whether a file with a mistake in it was meant as a plan of an audit rather than as a config.
pub(super) fn is_plan(table: &Table) -> bool {
    let config = ["train", "data", "model"];
    let several = |key: &str| table.get(key).is_some_and(toml::Value::is_array);
    !config.iter().any(|key| table.contains_key(*key))
        && (table.contains_key("corruptions") || table.contains_key("certify") || several("threat"))
}

impl PlanFile {
    /// Reads the plan in the file `path`.
    ///
    /// # Errors
    /// All that is wrong with it, by file and line.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let text = text_of(path, "configs/audits/")?;
        let (source, table) = Source::parse(path, text.clone()).map_err(Failure::request)?;
        let name = path.display();
        if table.contains_key("train") {
            return Err(Failure::request(format!(
                "{name} is no plan of an audit but a config\n\nhint: `gauntlet train {name}`"
            )));
        }
        let shape = Shape {
            schema: audit_schema(),
            name: "a plan",
        };
        let problems = check::problems(shape, &table);
        let origin = Origin {
            source,
            sets: Vec::new(),
        };
        if !problems.is_empty() {
            return Err(origin.report(&problems));
        }
        // What the schema cannot say: a budget that is none.
        let plan = toml::from_str::<AuditPlan>(&text).map_err(|error| {
            let range = error.span().unwrap_or(0..0);
            Failure::request(origin.source.show(&range, error.message().trim()))
        })?;
        Ok(Self { plan, origin })
    }

    /// The file.
    pub(crate) fn name(&self) -> &str {
        &self.origin.source.name
    }

    /// Checks it for models of `classes` classes.
    ///
    /// # Errors
    /// All that is wrong with it, by file and line.
    pub(crate) fn check(&self, classes: usize) -> Result<(), Failure> {
        match self.plan.problems(classes).as_slice() {
            [] => Ok(()),
            problems => Err(self.explain(problems)),
        }
    }

    /// `problems`, with the lines that caused them.
    pub(crate) fn explain(&self, problems: &[PlanProblem]) -> Failure {
        let told: Vec<_> = problems
            .iter()
            .map(|PlanProblem { path, problem }| {
                let (problem, hint) = match problem.split_once("\n\nhint: ") {
                    Some((problem, hint)) => (problem, Some(hint.to_owned())),
                    None => (problem.as_str(), None),
                };
                // Of a table the line says which; of a key its name is wanted.
                let text = match path.rsplit('.').next() {
                    Some(last) if !last.is_empty() && !last.ends_with(']') => {
                        format!("`{}`: {problem}", shown(path))
                    }
                    _ => problem.to_owned(),
                };
                Problem {
                    hint,
                    ..Problem::value(path, text)
                }
            })
            .collect();
        self.origin.report(&told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.toml");
        std::fs::write(&path, text).unwrap();
        let failure = PlanFile::read(&path).and_then(|file| file.check(10));
        let text = failure.expect_err("it was taken").to_string();
        let folder = format!("{}/", folder.path().display());
        text.replace(&folder, "")
    }

    #[test]
    fn problems_point_into_the_plan() {
        let text = told("name = \"a\"\n[[threat]]\nwithin = [\"linf:0.1\", \"linf\"]\n");
        assert!(
            text.starts_with("error: plan.toml:3:10: `linf` is no threat model"),
            "{text}"
        );
        let text = told(
            "name = \"a\"\n[[threat]]\nwithin = \"l0:5\"\n[[threat.attack]]\nkind = \"pgd\"\nsteps = 0\n",
        );
        let lines = [
            "plan.toml:4:1: `pgd` within l0:5: it works within linf, l2, l1\n  |\n4 | [[threat.attack]]",
            "plan.toml:6:9: `threat.attack.steps`: at least 1 is needed",
            "2 problems in plan.toml",
        ];
        for line in lines {
            assert!(text.contains(line), "no `{line}` in:\n{text}");
        }
        let text = told("name = \"a\"\n[[threat]]\nwithin = \"linf:8\"\n");
        assert!(
            text.contains("plan.toml:3:10: `threat.within`: linf:8 lets"),
            "{text}"
        );
        assert!(
            text.ends_with("\nhint: `linf:8/255` is 8 levels of 8 bits"),
            "{text}"
        );
    }

    #[test]
    fn a_config_is_no_plan_and_a_plan_no_config() {
        let text = told("name = \"a\"\n[train]\nepochs = 3\n");
        assert!(text.contains("hint: `gauntlet train plan.toml`"), "{text}");
        let plan = "name = \"a\"\n[[threat]]\nwithin = \"linf:1\"\n";
        let text = super::super::parse(Path::new("plan.toml"), plan.to_owned(), &[]);
        let text = text.unwrap_err().to_string();
        assert!(text.contains("--plan plan.toml"), "{text}");
    }
}
