//! What an `experiment.toml` may say.

use std::collections::{BTreeMap, BTreeSet};

use gauntlet_attacks::Budget;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use toml::Table;

use super::check::Problem;
use super::join;

/// An experiment, as a TOML file says it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Experiment {
    /// Name of the experiment, and of the folder of its runs.
    pub(crate) name: String,
    /// What is asked.
    pub(crate) about: String,
    /// The config that all methods start from, relative to this file.
    #[serde(default)]
    pub(crate) base: Option<String>,
    /// Keys of the config that every run changes: `"train.epochs" = 10`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Json>")]
    pub(crate) set: Table,
    /// What is compared.
    #[serde(rename = "method")]
    pub(crate) methods: Vec<Method>,
    /// Each method is run once with each.
    pub(crate) seeds: Vec<u64>,
    /// Further axes: a key of the config, and the values it takes in turn.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Json>")]
    pub(crate) matrix: Table,
    /// How each trained model is judged.
    #[serde(default)]
    pub(crate) audit: AuditSpec,
    /// Numbers of others, to be printed beside ours.
    #[serde(default, rename = "anchor")]
    pub(crate) anchors: Vec<Anchor>,
    /// What an hour of a device costs.
    #[serde(default)]
    pub(crate) cost: Option<Cost>,
    /// Options of `sbatch`: `partition = "gpu"`; and `setup`, a line of shell that comes before each run.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Json>")]
    pub(crate) slurm: Table,
}

/// One of the things compared.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Method {
    /// Its name in tables, and the beginning of the names of its runs.
    pub(crate) name: String,
    /// A config of its own, in place of the common one.
    #[serde(default)]
    pub(crate) base: Option<String>,
    /// Keys of the config that it changes, after those that every run changes.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Json>")]
    pub(crate) set: Table,
}

/// The `[audit]` table.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditSpec {
    /// Budgets, such as `"linf:8/255"`. Default: that of the run.
    #[serde(default)]
    pub(crate) threats: Vec<String>,
    /// `standard`, `quick`, or a plan of an audit, relative to this file. Default: standard.
    #[serde(default)]
    pub(crate) plan: Option<String>,
    /// Only the first so many test images. Default: all.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub(crate) samples: Option<usize>,
    /// Seed of the attacks' random numbers. Default: 0.
    #[serde(default)]
    pub(crate) seed: u64,
    /// Images attacked at a time. Default: 64 on the CPU, 512 on a GPU.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub(crate) batch_size: Option<usize>,
    /// Look for signs that a result is not what it seems. Default: true.
    #[serde(default)]
    pub(crate) diagnosis: Option<bool>,
}

/// A number of others.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Anchor {
    /// What was measured.
    pub(crate) name: String,
    /// Accuracy without attack, a share in [0, 1].
    #[serde(default)]
    #[schemars(range(min = 0, max = 1))]
    pub(crate) clean: Option<f64>,
    /// Accuracy under attack, a share in [0, 1].
    #[serde(default)]
    #[schemars(range(min = 0, max = 1))]
    pub(crate) robust: Option<f64>,
    /// The budget of `robust`. Default: the only one of the audit.
    #[serde(default)]
    pub(crate) threat: Option<String>,
    /// Where it was published: paper and table.
    pub(crate) source: String,
}

/// The `[cost]` table.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cost {
    /// What an hour of one device costs.
    #[schemars(range(min = 0))]
    pub(crate) per_hour: f64,
    /// In which currency.
    pub(crate) currency: String,
}

impl Experiment {
    /// What the schema cannot say.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        let mut wrong = |path: &str, text: String, hint: Option<&str>| {
            found.push(Problem {
                hint: hint.map(str::to_owned),
                ..Problem::value(path, text)
            });
        };
        let plain = "names become folders: letters, digits, `-`, `_` and `.`";
        if !is_plain(&self.name) {
            let text = format!("`name`: `{}` cannot be the name of a folder", self.name);
            wrong("name", text, Some(plain));
        }
        if self.methods.is_empty() {
            wrong("method", "there is no `[[method]]`".to_owned(), None);
        }
        if self.seeds.is_empty() {
            wrong("seeds", "`seeds` names none".to_owned(), None);
        }
        let mut seen = BTreeSet::new();
        for (number, seed) in self.seeds.iter().enumerate() {
            if !seen.insert(seed) {
                let text = format!("`seeds` has {seed} twice");
                wrong(&format!("seeds[{number}]"), text, None);
            }
        }
        let mut names = BTreeSet::new();
        for (number, method) in self.methods.iter().enumerate() {
            let at = format!("method[{number}].name");
            if !is_plain(&method.name) {
                let text = format!("`{}` cannot be the name of a method", method.name);
                wrong(&at, text, Some(plain));
            } else if !names.insert(method.name.to_lowercase()) {
                wrong(
                    &at,
                    format!("two methods are called `{}`", method.name),
                    None,
                );
            }
            if method.base.is_none() && self.base.is_none() {
                let text = format!("the method `{}` has no config to start from", method.name);
                wrong(&at, text, Some("`base` names one, here or for all methods"));
            }
        }
        let methods = self.methods.iter().enumerate();
        let methods = methods.map(|(n, method)| (format!("method[{n}].set"), &method.set));
        for (at, set) in [("set".to_owned(), &self.set)].into_iter().chain(methods) {
            for (key, value) in set {
                let path = join(&at, key);
                if let Some((text, hint)) = bad_key(key) {
                    wrong(&path, text, hint);
                } else if value.is_table() && !key.contains('.') {
                    let text = format!("this would replace the whole table `[{key}]`");
                    let hint = format!("quote the way to a key: `\"{key}.…\" = …`");
                    wrong(&path, text, Some(&hint));
                }
            }
        }
        for (key, values) in &self.matrix {
            let path = format!("matrix.{key}");
            if let Some((text, hint)) = bad_key(key) {
                wrong(&path, text, hint);
                continue;
            }
            match values.as_array() {
                Some(values) if !values.is_empty() => {}
                Some(_) => wrong(&path, format!("`{key}` has no values"), None),
                None if values.is_table() => {
                    let text = format!("`{key}` is a table, not a list of values");
                    let hint = format!("quote the way to a key: `\"{key}.…\" = […]`");
                    wrong(&path, text, Some(&hint));
                }
                None => {
                    let hint = format!("write `\"{key}\" = [{values}]`");
                    wrong(&path, format!("`{key}` is no list"), Some(&hint));
                }
            }
            for (number, method) in self.methods.iter().enumerate() {
                if method.set.contains_key(key) {
                    let text = format!(
                        "`{key}` is an axis of the matrix already: it cannot be of `{}` alone",
                        method.name
                    );
                    wrong(&format!("method[{number}].set.{key}"), text, None);
                }
            }
        }
        let single = self.audit.threats.len() <= 1;
        for (number, anchor) in self.anchors.iter().enumerate() {
            let at = format!("anchor[{number}]");
            if let Some(threat) = &anchor.threat {
                if let Err(problem) = threat.parse::<Budget>() {
                    wrong(&format!("{at}.threat"), problem.to_string(), None);
                }
            } else if anchor.robust.is_some() && !single {
                let text = format!("`{}`: within which budget is it robust?", anchor.name);
                wrong(
                    &format!("{at}.robust"),
                    text,
                    Some("`threat = \"linf:8/255\"` says it"),
                );
            }
        }
        found
    }
}

/// Whether a name can be a folder's.
pub(crate) fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && !name.starts_with(['.', '-']) && name.chars().all(plain)
}

/// A key that runs of an experiment cannot change.
fn bad_key(key: &str) -> Option<(String, Option<&'static str>)> {
    match key {
        "name" => Some(("`name` is what the experiment calls a run".to_owned(), None)),
        "seed" => Some((
            "`seed` is set by `seeds`".to_owned(),
            Some("`seeds = [0, 1, 2]` runs each method three times"),
        )),
        _ if key.is_empty() || key.split('.').any(str::is_empty) => Some((
            format!("`{key}` is no key"),
            Some("write the way to it through the tables, such as `\"train.epochs\"`"),
        )),
        _ => None,
    }
}
