//! What differs between the plan a run was trained by and the one it is to go on by.

use toml::{Table, Value};

use crate::Plan;

/// A key whose value is another.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Its path in the config: `train.optimizer.momentum`.
    pub key: String,
    /// As the run was trained, in TOML; nothing where the key was not there.
    pub before: Option<String>,
    /// As it is to go on.
    pub after: Option<String>,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        write!(
            f,
            "`{}` was {} and is {}",
            self.key,
            shown(&self.before),
            shown(&self.after)
        )
    }
}

/// All keys of the resolved plans that differ.
pub fn changes(before: &Plan, after: &Plan) -> Vec<Change> {
    let table = |plan: &Plan| Table::try_from(plan.resolved()).expect("a plan is plain tables");
    let mut found = Vec::new();
    compare("", &table(before), &table(after), &mut found);
    found
}

fn compare(path: &str, before: &Table, after: &Table, found: &mut Vec<Change>) {
    let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        let path = match path {
            "" => key.clone(),
            path => format!("{path}.{key}"),
        };
        match (before.get(key), after.get(key)) {
            (Some(Value::Table(before)), Some(Value::Table(after))) => {
                compare(&path, before, after, found);
            }
            (before, after) if before != after => found.push(Change {
                key: path,
                before: before.map(Value::to_string),
                after: after.map(Value::to_string),
            }),
            _ => {}
        }
    }
}

/// The changes after which a run that made `done` steps is no longer the run it would have been by the new plan from the start:
/// all but those of where it computes, how it is judged, when it is saved, and its name. More epochs are fine where the schedule
/// gave the steps that are made the rates that it would have given them.
pub(crate) fn inexact(before: &Plan, after: &Plan, done: u64, per_epoch: u64) -> Vec<Change> {
    let total = |plan: &Plan| per_epoch * u64::from(plan.train.epochs);
    let (old, new) = (total(before), total(after));
    let schedule = &after.train.schedule;
    let same_rates =
        new >= done && (0..done).all(|step| schedule.rate(step, old) == schedule.rate(step, new));
    changes(before, after)
        .into_iter()
        .filter(|change| {
            let table = change.key.split('.').next().unwrap_or_default();
            match table {
                "name" | "device" | "checkpoint" | "evaluate" => false,
                _ => change.key != "train.epochs" || !same_rates,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ScheduleConfig;

    fn plan() -> Plan {
        r#"
            name = "example"
            data = { source = "digits" }
            model = { arch = "mlp" }
            threat = { norm = "linf", eps = "8/255" }
            [train]
            objective = "pgd"
            epochs = 5
            optimizer = { kind = "adam" }
            schedule = { kind = "constant", rate = 0.001 }
        "#
        .parse()
        .unwrap()
    }

    fn keys(changes: Vec<Change>) -> Vec<String> {
        changes.into_iter().map(|change| change.key).collect()
    }

    #[test]
    fn changes_are_named_by_key_with_both_values() {
        let mut other = plan();
        other.train.clip_norm = Some(1.0);
        other.data.batch_size = 64;
        let found = changes(&plan(), &other);
        assert_eq!(found[0].to_string(), "`data.batch_size` was 128 and is 64");
        assert_eq!(
            found[1].to_string(),
            "`train.clip_norm` was nothing and is 1.0"
        );
        assert_eq!(found.len(), 2);
        assert!(changes(&plan(), &plan()).is_empty());
    }

    #[test]
    fn where_and_how_it_is_judged_may_change_and_what_it_learns_by_may_not() {
        let mut other = plan();
        other.device = "cpu".to_owned();
        other.checkpoint.keep = 7;
        other.evaluate.every = 3;
        assert!(inexact(&plan(), &other, 100, 10).is_empty());
        other.seed = 1;
        other.train.attack.steps = Some(3);
        let found = keys(inexact(&plan(), &other, 100, 10));
        assert_eq!(found, ["seed", "train.attack.steps"]);
    }

    #[test]
    fn more_epochs_are_fine_where_the_schedule_has_not_looked_ahead() {
        let longer = |plan: &Plan| Plan {
            train: crate::TrainConfig {
                epochs: 9,
                ..plan.train.clone()
            },
            ..plan.clone()
        };
        let constant = plan();
        assert!(inexact(&constant, &longer(&constant), 50, 10).is_empty());
        let mut steps = plan();
        steps.train.schedule = ScheduleConfig::Piecewise {
            rate: 0.1,
            milestones: vec![0.9],
            factor: 0.1,
        };
        // 45 of 50 steps come before the milestone, which moves to step 81 of 90.
        assert!(inexact(&steps, &longer(&steps), 45, 10).is_empty());
        assert_eq!(
            keys(inexact(&steps, &longer(&steps), 46, 10)),
            ["train.epochs"]
        );
        let mut cosine = plan();
        cosine.train.schedule = ScheduleConfig::Cosine {
            rate: 0.1,
            warmup: 0.0,
        };
        assert_eq!(
            keys(inexact(&cosine, &longer(&cosine), 2, 10)),
            ["train.epochs"]
        );
        // Fewer than were made is no plan to go on by.
        let shorter = Plan {
            train: crate::TrainConfig {
                epochs: 2,
                ..constant.train.clone()
            },
            ..constant.clone()
        };
        assert_eq!(keys(inexact(&constant, &shorter, 30, 10)), ["train.epochs"]);
    }
}
