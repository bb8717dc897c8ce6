use std::path::Path;

use gauntlet_attacks::{Budget, Norm};
use gauntlet_data::corruptions::{Corruption, Severity};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
}

/// Attacks within one budget or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ThreatPlan {
    /// A budget such as `linf:8/255`, `patch:5`, `spatial:30deg,3px` or `linf:0.3 + l2:2`, or a list of them.
    #[serde(deserialize_with = "one_or_more")]
    #[schemars(with = "Vec<Budget>")]
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
    #[schemars(with = "Vec<u8>")]
    pub severities: Vec<Severity>,
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
        let name = match suite {
            SuiteName::Standard => "standard",
            SuiteName::Quick => "quick",
        };
        Self {
            name: name.to_owned(),
            threats: vec![ThreatPlan {
                within,
                suite: Some(suite),
                attacks: Vec::new(),
                eot: 1,
            }],
            corruptions: None,
        }
    }

    /// The suites, in the order of the plan.
    ///
    /// # Errors
    /// All that cannot be: budgets that are empty or twice, attacks that do not work within their budget.
    pub fn suites(&self, setting: &Setting<'_>) -> Result<Vec<Suite>, Vec<String>> {
        let (mut suites, mut problems) = (Vec::<Suite>::new(), Vec::new());
        for (number, threat) in self.threats.iter().enumerate() {
            let number = number + 1;
            if threat.within.is_empty() {
                problems.push(format!("`threat` {number}: `within` names no budget"));
            }
            for budget in &threat.within {
                if suites.iter().any(|suite| suite.budget == *budget) {
                    problems.push(format!("`threat` {number}: {budget} is there twice"));
                }
                match threat.suite(budget, setting) {
                    Ok(suite) => suites.push(suite),
                    Err(of) => {
                        let of = of.into_iter();
                        problems.extend(of.map(|problem| format!("`threat` {number}: {problem}")));
                    }
                }
            }
        }
        if self.threats.is_empty() && self.corruptions.is_none() {
            problems.push("there is neither a `[[threat]]` nor `[corruptions]`".to_owned());
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
    fn suite(&self, budget: &Budget, setting: &Setting<'_>) -> Result<Suite, Vec<String>> {
        let usual = self.attacks.is_empty().then_some(SuiteName::Standard);
        let mut specs = match self.suite.or(usual) {
            Some(name) => name.attacks(budget, setting.classes).map_err(|p| vec![p])?,
            None => Vec::new(),
        };
        specs.extend(self.attacks.clone());
        let built = specs.iter().map(|spec| spec.build(budget, setting));
        let (good, bad): (Vec<_>, Vec<_>) = built.partition(Result::is_ok);
        if bad.is_empty() {
            Ok(Suite {
                budget: budget.clone(),
                members: good.into_iter().flatten().collect(),
                eot: self.eot.max(1),
            })
        } else {
            Err(bad.into_iter().filter_map(Result::err).collect())
        }
    }
}

impl SuiteName {
    /// Its attacks within `budget`.
    ///
    /// # Errors
    /// That there is no such suite within this kind of budget.
    pub fn attacks(self, budget: &Budget, classes: usize) -> Result<Vec<AttackSpec>, String> {
        let apgd = |loss, steps, restarts, targets| AttackSpec::Apgd {
            loss: Some(loss),
            steps: Some(steps),
            restarts: Some(restarts),
            targets,
        };
        use crate::spec::ApgdLossSpec::{CrossEntropy, TargetedDlr};
        let quick = self == Self::Quick;
        Ok(match budget {
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
        })
    }
}
