//! Checks a TOML table against the schema: all problems at once, where serde stops at the first.

use serde_json::Value as Json;
use toml::{Table, Value};

use super::join;
use super::schema::{alternatives, names, places_of, resolve, schema, tag, types};
use super::source::Part;
use super::words::{kind, list, lower, nearest, type_name};

/// Something wrong with one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// `train.epochs`
    pub(crate) path: String,
    /// Whether the key or the value is wrong.
    pub(crate) part: Part,
    /// What is wrong.
    pub(crate) text: String,
    /// What to do.
    pub(crate) hint: Option<String>,
    /// The key that was probably meant.
    pub(crate) meant: Option<String>,
}

impl Problem {
    pub(crate) fn value(path: &str, text: String) -> Self {
        Self {
            path: path.to_owned(),
            part: Part::Value,
            text,
            hint: None,
            meant: None,
        }
    }
}

/// Everything wrong with `table`.
pub(crate) fn problems(table: &Table) -> Vec<Problem> {
    let mut problems = Vec::new();
    check_table(schema(), table, "", &mut problems);
    problems
}

fn check(schema: &Json, value: &Value, path: &str, problems: &mut Vec<Problem>) {
    let schema = resolve(schema);
    if let Some(names) = names(schema) {
        return check_name(&names, value, path, problems);
    }
    match alternatives(schema).as_slice() {
        [] => check_plain(schema, value, path, problems),
        [only] => check(only, value, path, problems),
        several if tag(several[0]).is_some() => check_tagged(several, value, path, problems),
        several => check_any(several, value, path, problems),
    }
}

fn check_name(names: &[&str], value: &Value, path: &str, problems: &mut Vec<Problem>) {
    let Some(text) = value.as_str() else {
        let text = format!("`{path}` is one of {}, not {}", list(names), kind(value));
        problems.push(Problem::value(path, text));
        return;
    };
    if !names.contains(&text) {
        problems.push(Problem {
            hint: nearest(text, names).map(|name| format!("did you mean `\"{name}\"`?")),
            ..Problem::value(path, format!("`{path}` is one of {}", list(names)))
        });
    }
}

fn check_tagged(several: &[&Json], value: &Value, path: &str, problems: &mut Vec<Problem>) {
    let Some(table) = value.as_table() else {
        let text = format!("`{path}` is a table, not {}", kind(value));
        problems.push(Problem::value(path, text));
        return;
    };
    let tags: Vec<_> = several.iter().filter_map(|one| tag(one)).collect();
    let (key, _) = tags[0];
    let names: Vec<_> = tags.iter().map(|(_, name)| *name).collect();
    let Some(chosen) = table.get(key) else {
        let text = format!("`{path}` needs `{key}`: one of {}", list(&names));
        problems.push(Problem {
            part: Part::Key,
            ..Problem::value(path, text)
        });
        return;
    };
    let chosen = names.iter().position(|name| chosen.as_str() == Some(name));
    match chosen {
        Some(index) => check_table(several[index], table, path, problems),
        None => check_name(&names, &table[key], &join(path, key), problems),
    }
}

fn check_any(several: &[&Json], value: &Value, path: &str, problems: &mut Vec<Problem>) {
    match several
        .iter()
        .find(|one| types(one).iter().any(|name| is(name, value)))
    {
        Some(one) => check(one, value, path, problems),
        None => {
            let kinds: Vec<_> = several.iter().flat_map(|one| types(one)).collect();
            problems.push(wrong_type(&kinds, value, path));
        }
    }
}

/// Whether a value is of a JSON Schema type.
fn is(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_table(),
        "array" => value.is_array(),
        "string" => value.is_str(),
        "boolean" => value.is_bool(),
        "integer" => value.is_integer(),
        "number" => value.is_integer() || value.is_float(),
        _ => true,
    }
}

fn wrong_type(types: &[&str], value: &Value, path: &str) -> Problem {
    let wanted: Vec<_> = types.iter().map(|name| type_name(name)).collect();
    Problem::value(
        path,
        format!("`{path}` is {}, not {}", wanted.join(" or "), kind(value)),
    )
}

fn check_plain(schema: &Json, value: &Value, path: &str, problems: &mut Vec<Problem>) {
    let types = types(schema);
    if !types.is_empty() && !types.iter().any(|name| is(name, value)) {
        return problems.push(wrong_type(&types, value, path));
    }
    match value {
        Value::Table(table) => check_table(schema, table, path, problems),
        Value::Array(items) => check_array(schema, items, path, problems),
        Value::Integer(number) => check_range(schema, *number as f64, path, problems),
        Value::Float(number) => check_range(schema, *number, path, problems),
        _ => {}
    }
}

fn check_range(schema: &Json, number: f64, path: &str, problems: &mut Vec<Problem>) {
    if let Some(least) = schema["minimum"].as_f64()
        && number < least
    {
        problems.push(Problem::value(
            path,
            format!("`{path}` is {number}, but at least {least} is needed"),
        ));
    }
    if let Some(most) = schema["maximum"].as_f64()
        && number > most
    {
        problems.push(Problem::value(
            path,
            format!("`{path}` is {number}, but at most {most} is possible"),
        ));
    }
}

fn check_array(schema: &Json, items: &[Value], path: &str, problems: &mut Vec<Problem>) {
    let count = |key: &str| schema[key].as_u64().map(|count| count as usize);
    if let (Some(least), Some(most)) = (count("minItems"), count("maxItems"))
        && !(least..=most).contains(&items.len())
    {
        let text = format!(
            "`{path}` has {} values, but {least} are needed",
            items.len()
        );
        problems.push(Problem::value(path, text));
    }
    for (index, item) in items.iter().enumerate() {
        check(
            &schema["items"],
            item,
            &format!("{path}[{index}]"),
            problems,
        );
    }
}

fn check_table(schema: &Json, table: &Table, path: &str, problems: &mut Vec<Problem>) {
    let schema = resolve(schema);
    let Some(known) = schema["properties"].as_object() else {
        return;
    };
    for (key, value) in table {
        let here = join(path, key);
        match known.get(key) {
            Some(inner) if inner.get("const").is_some() => {}
            Some(inner) => check(inner, value, &here, problems),
            None => problems.push(unknown(key, &here, path, known.keys(), table)),
        }
    }
    let meant: Vec<_> = problems
        .iter()
        .filter_map(|problem| problem.meant.clone())
        .collect();
    for key in schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Json::as_str)
    {
        // A misspelt key is not missing besides.
        if !table.contains_key(key) && !meant.contains(&join(path, key)) {
            let here = join(path, key);
            let what = known[key]["description"]
                .as_str()
                .or_else(|| resolve(&known[key])["description"].as_str());
            problems.push(Problem {
                path: here.clone(),
                part: Part::Key,
                text: format!("`{here}` is missing"),
                hint: what.map(|text| format!("`{key}`: {}", lower(text))),
                meant: None,
            });
        }
    }
}

fn unknown<'a>(
    key: &str,
    here: &str,
    path: &str,
    known: impl Iterator<Item = &'a String>,
    table: &Table,
) -> Problem {
    let known: Vec<&str> = known.map(String::as_str).collect();
    // A key that is there already is hardly what was meant.
    let free: Vec<&str> = known
        .iter()
        .copied()
        .filter(|name| !table.contains_key(*name))
        .collect();
    let near = nearest(key, &free).or_else(|| nearest(key, &known));
    let hint = near
        .map(|name| format!("did you mean `{name}`?"))
        .or_else(|| {
            let mut places = Vec::new();
            places_of(key, schema(), "", 0, &mut places);
            places.dedup();
            (!places.is_empty()).then(|| {
                format!(
                    "there is {}",
                    list(&places.iter().map(String::as_str).collect::<Vec<_>>())
                )
            })
        });
    let place = if path.is_empty() {
        "a config".to_owned()
    } else {
        format!("`[{path}]`")
    };
    let hint = hint.unwrap_or_else(|| format!("{place} has {}", list(&known)));
    Problem {
        path: here.to_owned(),
        part: Part::Key,
        text: format!("unknown key `{key}` in {place}"),
        hint: Some(hint),
        meant: near.map(|name| join(path, name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        name = "a"
        data = { source = "digits", augment = ["crop"] }
        model = { arch = "mlp" }
        threat = { norm = "linf", eps = "8/255" }
        [train]
        objective = "pgd"
        epochs = 1
        clip_norm = 1
        optimizer = { kind = "adam", betas = [0.9, 0.99] }
        schedule = { kind = "piecewise", rate = 0.1, milestones = [0.5] }
    "#;

    fn found(change: &str) -> Vec<Problem> {
        let mut table: Table = GOOD.parse().unwrap();
        for line in change.lines() {
            line.parse::<super::super::sets::Set>()
                .unwrap()
                .apply(&mut table, false)
                .unwrap();
        }
        problems(&table)
    }

    fn only(change: &str) -> (String, String, String) {
        let mut found = found(change);
        assert_eq!(found.len(), 1, "{change}: {found:?}");
        let problem = found.remove(0);
        (problem.path, problem.text, problem.hint.unwrap_or_default())
    }

    #[test]
    fn a_good_config_has_no_problem() {
        assert_eq!(found(""), []);
    }

    #[test]
    fn unknown_keys_get_the_nearest_name_or_the_table_they_belong_to() {
        let (path, text, hint) = only("train.ema_decy=0.9");
        assert_eq!(
            (path.as_str(), text.as_str()),
            ("train.ema_decy", "unknown key `ema_decy` in `[train]`")
        );
        assert_eq!(hint, "did you mean `ema`?");
        assert_eq!(only("data.batchsize=3").2, "did you mean `batch_size`?");
        assert_eq!(
            only("train.optimizer.weigth_decay=0.1").2,
            "did you mean `weight_decay`?"
        );
        assert!(only("eps=0.1").2.contains("`threat.eps`"));
        assert!(only("train.optimizer.momentum=0.9").1.contains("momentum"));
    }

    #[test]
    fn wrong_values_are_named_with_what_is_needed() {
        assert_eq!(only("train.objective=pdg").2, "did you mean `\"pgd\"`?");
        assert_eq!(only("data.augment=[\"flop\"]").0, "data.augment[0]");
        assert_eq!(
            only("train.epochs=\"three\"").1,
            "`train.epochs` is a whole number, not text"
        );
        assert_eq!(
            only("train.epochs=1.5").1,
            "`train.epochs` is a whole number, not a fractional number"
        );
        assert!(only("train.epochs=-1").1.contains("at least 0"));
        assert_eq!(
            only("train.optimizer.kind=adm").2,
            "did you mean `\"adam\"`?"
        );
        assert_eq!(
            only("train.optimizer.betas=[0.9]").1,
            "`train.optimizer.betas` has 1 values, but 2 are needed"
        );
        assert!(only("threat.eps=-1").1.contains("at least 0"));
        assert_eq!(
            only("threat.eps=[1]").1,
            "`threat.eps` is a number or text, not a list"
        );
        assert_eq!(
            only("train.optimizer=3").1,
            "`train.optimizer` is a table, not a whole number"
        );
    }

    #[test]
    fn all_problems_are_found_at_once() {
        // The misspelt key is told once, not as unknown and as missing.
        let mut table: Table = GOOD.replace("epochs = 1", "epocs = 1").parse().unwrap();
        assert_eq!(problems(&table).len(), 1);
        table["train"].as_table_mut().unwrap().remove("epocs");
        assert_eq!(problems(&table)[0].text, "`train.epochs` is missing");
        let paths: Vec<_> = found("train.epocs=3\ndata.source=mnst\nmodel={}")
            .into_iter()
            .map(|problem| problem.path)
            .collect();
        assert_eq!(paths, ["data.source", "model.arch", "train.epocs"]);
    }
}
