use std::path::Path;

use gauntlet_attacks::{Budget, Norm};
use gauntlet_data::corruptions::{Corruption, Severity};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Certify;
use crate::Suite;
use crate::spec::{AttackSpec, Setting};

/// A plan of an audit, as a TOML file says it: budgets, the attacks within each, corruptions.
///
/// ```
/// let plan: gauntlet_audit::AuditPlan = toml::from_str(r#"
///     name = "curves"
///
///     [[threat]]                       # a suite within several budgets: a security curve
///     within = ["linf:2/255", "linf:4/255", "linf:8/255"]
///     suite = "quick"
///
///     [[threat]]                       # attacks of one's own choice
///     within = "l2:0.5"
///     [[threat.attack]]
///     kind = "pgd"
///     steps = 50
///     restarts = 5
///
///     [corruptions]
///     severities = [1, 3, 5]
/// "#)?;
/// assert_eq!(plan.threats[0].within.len(), 3);
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditPlan {
    /// What reports call it.
    pub name: String,
    /// Budgets and attacks.
    #[serde(default, rename = "threat")]
    pub threats: Vec<ThreatPlan>,
    /// Common corruptions; none unless the table is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corruptions: Option<CorruptionPlan>,
    /// Certificates of randomised smoothing; none unless the table is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certify: Option<Certify>,
}

/// Attacks within one budget or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ThreatPlan {
    /// A budget such as `linf:8/255`, `patch:5`, `spatial:30deg,3px` or `linf:0.3 + l2:2`, or a list of them.
    #[serde(deserialize_with = "one_or_more")]
    #[schemars(with = "OneOrMore")]
    pub within: Vec<Budget>,
    /// Attacks that come first. Default: those of the standard suite if `attack` is not given, else none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<SuiteName>,
    /// Attacks in turn, each on what is still standing.
    #[serde(default, rename = "attack", skip_serializing_if = "Vec::is_empty")]
    pub attacks: Vec<AttackSpec>,
    /// Evaluations that are averaged in each look an attack takes at the model: more than 1 for models that answer at random
    /// (expectation over transformation). What counts is one answer of the model itself. Default: 1.
    #[serde(default = "once")]
    pub eot: usize,
}

/// A suite that has a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SuiteName {
    /// AutoAttack's four attacks with its budgets.
    #[default]
    Standard,
    /// APGD on two losses with half the steps and a third of the targets.
    Quick,
}

/// Which corruptions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CorruptionPlan {
    /// Default: the 15 of Hendrycks & Dietterich (2019).
    #[serde(default = "standard_families")]
    pub families: Vec<Corruption>,
    /// From 1 to 5. Default: all.
    #[serde(default = "all_severities")]
    #[schemars(with = "Vec<u8>", inner(range(min = 1, max = 5)))]
    pub severities: Vec<Severity>,
}

/// Something wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{path}`: {problem}")]
pub struct PlanProblem {
    /// The way to the key through the tables: `threat[0].attack[2].steps`.
    pub path: String,
    /// What is wrong.
    pub problem: String,
}

impl PlanProblem {
    fn new(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            problem: problem.into(),
        }
    }
}

/// How a plan may write budgets, for its schema.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum OneOrMore {
    One(Budget),
    More(Vec<Budget>),
}

fn one_or_more<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Budget>, D::Error> {
    // As text: what is wrong with a budget would be lost behind "matches no variant".
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "a budget such as \"linf:8/255\", or a list of them"
    )]
    enum Text {
        One(String),
        More(Vec<String>),
    }
    let texts = match Text::deserialize(deserializer)? {
        Text::One(text) => vec![text],
        Text::More(texts) => texts,
    };
    texts
        .iter()
        .map(|text| text.parse().map_err(serde::de::Error::custom))
        .collect()
}

fn once() -> usize {
    1
}

fn standard_families() -> Vec<Corruption> {
    Corruption::STANDARD.to_vec()
}

fn all_severities() -> Vec<Severity> {
    Severity::ALL.to_vec()
}

impl AuditPlan {
    /// The named suite within each of the budgets.
    pub fn of(suite: SuiteName, within: Vec<Budget>) -> Self {
        Self {
            name: suite.name().to_owned(),
            threats: vec![ThreatPlan {
                within,
                suite: Some(suite),
                attacks: Vec::new(),
                eot: 1,
            }],
            corruptions: None,
            certify: None,
        }
    }

    /// What is wrong with it, as far as that can be told without the model, its training images and surrogates: budgets that are
    /// none or twice, attacks that do not work within theirs, numbers out of range.
    pub fn problems(&self, classes: usize) -> Vec<PlanProblem> {
        let mut found = Vec::new();
        let mut budgets: Vec<&Budget> = Vec::new();
        for (number, threat) in self.threats.iter().enumerate() {
            let path = format!("threat[{number}]");
            let within = format!("{path}.within");
            if threat.within.is_empty() {
                found.push(PlanProblem::new(&within, "it names no budget"));
            }
            for budget in &threat.within {
                if budgets.contains(&budget) {
                    let twice = format!("{budget} is there twice");
                    found.push(PlanProblem::new(&within, twice));
                }
                budgets.push(budget);
                if let Some(problem) = beyond(budget) {
                    found.push(PlanProblem::new(&within, problem));
                }
            }
            if threat.eot == 0 {
                found.push(PlanProblem::new(
                    format!("{path}.eot"),
                    "at least 1 is needed",
                ));
            }
            found.extend(threat.problems(&path, classes));
        }
        if let Some(corruptions) = &self.corruptions {
            found.extend(corruptions.problems());
        }
        if let Some(certify) = &self.certify {
            let problems = certify.problems().into_iter();
            found.extend(
                problems.map(|(key, problem)| PlanProblem::new(format!("certify.{key}"), problem)),
            );
        }
        if self.threats.is_empty() && self.corruptions.is_none() && self.certify.is_none() {
            let neither = "there is neither a `[[threat]]` nor `[corruptions]` nor `[certify]`";
            found.push(PlanProblem::new("", neither));
        }
        found
    }

    /// The suites, in the order of the plan.
    ///
    /// # Errors
    /// All that cannot be: [`AuditPlan::problems`], and attacks that need what cannot be had.
    pub fn suites(&self, setting: &Setting<'_>) -> Result<Vec<Suite>, Vec<PlanProblem>> {
        let mut problems = self.problems(setting.classes);
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut suites = Vec::new();
        for (number, threat) in self.threats.iter().enumerate() {
            for budget in &threat.within {
                match threat.suite(&format!("threat[{number}]"), budget, setting) {
                    Ok(suite) => suites.push(suite),
                    Err(problem) => problems.push(problem),
                }
            }
        }
        if problems.is_empty() {
            Ok(suites)
        } else {
            Err(problems)
        }
    }

    /// Reads a TOML file.
    ///
    /// # Errors
    /// That it cannot be read, or what is wrong with it and where.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
    }
}

impl ThreatPlan {
    /// The attacks of a budget, each with its key in the plan.
    fn specs(&self, path: &str, budget: &Budget, classes: usize) -> Vec<(String, AttackSpec)> {
        let usual = self.attacks.is_empty().then_some(SuiteName::Standard);
        let mut specs = Vec::new();
        if let Some(name) = self.suite.or(usual) {
            let named = name.attacks(budget, classes);
            specs.extend(named.into_iter().map(|spec| (path.to_owned(), spec)));
        }
        let own = self.attacks.iter().cloned().enumerate();
        specs.extend(own.map(|(place, spec)| (format!("{path}.attack[{place}]"), spec)));
        specs
    }

    fn problems(&self, path: &str, classes: usize) -> Vec<PlanProblem> {
        let numbers = self.attacks.iter().enumerate().flat_map(|(place, spec)| {
            let problems = spec.problems().into_iter();
            problems.map(move |(key, problem)| {
                PlanProblem::new(format!("{path}.attack[{place}].{key}"), problem)
            })
        });
        let mut found: Vec<PlanProblem> = numbers.collect();
        for budget in &self.within {
            for (path, spec) in self.specs(path, budget, classes) {
                if let Err(problem) = spec.fits(budget, classes) {
                    let problem = PlanProblem::new(path, problem);
                    // A budget that is there twice is a problem of its own.
                    if !found.contains(&problem) {
                        found.push(problem);
                    }
                }
            }
        }
        found
    }

    fn suite(
        &self,
        path: &str,
        budget: &Budget,
        setting: &Setting<'_>,
    ) -> Result<Suite, PlanProblem> {
        let specs = self.specs(path, budget, setting.classes).into_iter();
        let members = specs.map(|(path, spec)| {
            let built = spec.build(budget, setting);
            built.map_err(|problem| PlanProblem::new(path, problem))
        });
        Ok(Suite {
            budget: budget.clone(),
            members: members.collect::<Result<_, _>>()?,
            eot: self.eot,
        })
    }
}

impl CorruptionPlan {
    fn problems(&self) -> Vec<PlanProblem> {
        let lists = [
            ("families", repeats(&self.families)),
            ("severities", repeats(&self.severities)),
        ];
        let found = lists.into_iter().filter_map(|(key, problem)| {
            Some(PlanProblem::new(format!("corruptions.{key}"), problem?))
        });
        found.collect()
    }
}

fn repeats<T: PartialEq>(list: &[T]) -> Option<&'static str> {
    let again = |(place, value): (usize, &T)| list[..place].contains(value);
    match list {
        [] => Some("the list is empty"),
        _ if list.iter().enumerate().any(again) => Some("something is there twice"),
        _ => None,
    }
}

/// A ball that holds every image is a slip: `linf:8` for `linf:8/255`.
fn beyond(budget: &Budget) -> Option<String> {
    let balls = match budget {
        Budget::Norm(threat) => std::slice::from_ref(threat),
        Budget::Union(union) => &union.0,
        Budget::Patch(_) | Budget::Spatial(_) => return None,
    };
    let large = balls.iter().find(|threat| {
        let (low, high) = threat.bounds;
        threat.norm == Norm::Linf && threat.eps.value() > high - low
    })?;
    let (low, high) = large.bounds;
    Some(format!(
        "{large} lets any image become any other: values range from {low} to {high}\n\nhint: `linf:8/255` is 8 levels of 8 bits"
    ))
}

impl SuiteName {
    /// `standard`
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Quick => "quick",
        }
    }

    /// Its attacks within `budget`.
    pub fn attacks(self, budget: &Budget, classes: usize) -> Vec<AttackSpec> {
        let apgd = |loss, steps, restarts, targets| AttackSpec::Apgd {
            loss: Some(loss),
            steps: Some(steps),
            restarts: Some(restarts),
            targets,
        };
        use crate::spec::ApgdLossSpec::{CrossEntropy, TargetedDlr};
        let quick = self == Self::Quick;
        match budget {
            Budget::Norm(threat) if threat.norm == Norm::L0 => vec![AttackSpec::SparseRs {
                queries: Some(if quick { 1000 } else { 10_000 }),
                restarts: None,
            }],
            Budget::Norm(threat) => {
                let l1 = threat.norm == Norm::L1;
                let steps = if quick { 50 } else { 100 };
                let restarts = if l1 && !quick { 5 } else { 1 };
                let targets = match (quick, l1) {
                    (true, _) => 3,
                    (false, true) => 5,
                    (false, false) => 9,
                };
                let mut attacks = vec![apgd(CrossEntropy, steps, restarts, None)];
                // With fewer classes the ratio is not defined.
                if classes >= 4 {
                    attacks.push(apgd(TargetedDlr, steps, 1, Some(targets)));
                }
                if !quick {
                    attacks.push(AttackSpec::Fab {
                        steps: None,
                        restarts: None,
                        targets: None,
                    });
                    attacks.push(AttackSpec::Square {
                        queries: None,
                        restarts: None,
                    });
                }
                attacks
            }
            Budget::Patch(_) => vec![AttackSpec::Patch {
                steps: quick.then_some(50),
                places: None,
                restarts: None,
            }],
            Budget::Spatial(_) => vec![AttackSpec::Spatial {
                tries: quick.then_some(10),
            }],
            Budget::Union(_) => vec![AttackSpec::Msd {
                steps: quick.then_some(50),
                restarts: None,
            }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<(String, String)> {
        let plan: AuditPlan = toml::from_str(&format!("name = \"a\"\n{text}")).unwrap();
        let problems = plan.problems(10).into_iter();
        problems.map(|found| (found.path, found.problem)).collect()
    }

    fn attack(within: &str, attack: &str) -> Vec<(String, String)> {
        told(&format!(
            "[[threat]]\nwithin = \"{within}\"\nattack = [{{ kind = \"fgsm\" }}, {{ {attack} }}]"
        ))
    }

    #[test]
    fn what_cannot_be_is_told_with_its_key() {
        let one = |found: Vec<(String, String)>| {
            assert_eq!(found.len(), 1, "{found:?}");
            found.into_iter().next().unwrap()
        };
        let (path, problem) = one(told("[[threat]]\nwithin = [\"linf:0.1\", \"linf:1/10\"]"));
        assert_eq!(
            (path.as_str(), problem.as_str()),
            ("threat[0].within", "linf:1/10 is there twice")
        );
        for (text, path) in [
            ("", ""),
            ("[[threat]]\nwithin = []", "threat[0].within"),
            ("[[threat]]\nwithin = \"linf:8\"", "threat[0].within"),
            (
                "[[threat]]\nwithin = \"linf:0.1\"\neot = 0",
                "threat[0].eot",
            ),
            ("[corruptions]\nfamilies = []", "corruptions.families"),
            (
                "[corruptions]\nseverities = [1, 1]",
                "corruptions.severities",
            ),
        ] {
            assert_eq!(one(told(text)).0, path, "{text}");
        }
        for (within, spec, key) in [
            ("linf:0.1", "kind = \"pgd\", steps = 0", ".steps"),
            ("linf:0.1", "kind = \"pgd\", step_size = -1.0", ".step_size"),
            ("linf:0.1", "kind = \"pgd\", restarts = 1001", ".restarts"),
            ("linf:0.1", "kind = \"apgd\", restarts = 101", ".restarts"),
            ("linf:0.1", "kind = \"nes\", sigma = 0.0", ".sigma"),
            ("linf:0.1", "kind = \"sparse-rs\"", ""),
            ("linf:0.1", "kind = \"universal\", samples = 0", ".samples"),
            ("l1:2", "kind = \"universal\"", ""),
            (
                "linf:0.1",
                "kind = \"transfer\", surrogate = \"a\", attack = { kind = \"apgd\", steps = 0 }",
                ".attack.steps",
            ),
            (
                "linf:0.1",
                "kind = \"transfer\", surrogate = \"a\", attack = { kind = \"patch\" }",
                "",
            ),
        ] {
            let path = format!("threat[0].attack[1]{key}");
            assert_eq!(one(attack(within, spec)).0, path, "{spec}");
        }
        for spec in [
            "kind = \"fab\", targets = 0",
            "kind = \"universal\"",
            "kind = \"transfer\", surrogate = \"a\"",
        ] {
            assert_eq!(attack("linf:0.1", spec), [], "{spec}");
        }
        assert_eq!(
            told(
                "[[threat]]\nwithin = \"spatial:1deg,1px\"\nattack = [{ kind = \"spatial\", tries = 0 }]"
            ),
            []
        );
    }
}
