//! Checks a TOML table against the schema: all problems at once, where serde stops at the first.

use serde_json::Value as Json;
use toml::{Table, Value};

use super::join;
use super::schema::{alternatives, names, places_of, resolve, tag, types};
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

/// A kind of file, as its schema describes it.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// JSON Schema.
    pub(crate) schema: &'static Json,
    /// `a config`
    pub(crate) name: &'static str,
}

/// Everything wrong with `table`.
pub(crate) fn problems(shape: Shape, table: &Table) -> Vec<Problem> {
    let mut check = Check {
        root: shape.schema,
        name: shape.name,
        problems: Vec::new(),
    };
    check.table(shape.schema, table, "");
    check.problems
}

/// A path for people, who see the line and need no counting: `threat.attack.steps` for `threat[0].attack[2].steps`.
pub(super) fn shown(path: &str) -> String {
    let mut shown = String::new();
    for part in path.split_inclusive('.') {
        let name = match part.strip_suffix('.') {
            Some(table) => table.split('[').next().unwrap_or(table),
            None => part,
        };
        shown += name;
        if part.ends_with('.') {
            shown.push('.');
        }
    }
    shown
}

/// A check under way.
struct Check {
    /// The schema, which holds what others refer to.
    root: &'static Json,
    name: &'static str,
    problems: Vec<Problem>,
}

impl Check {
    fn value(&mut self, schema: &'static Json, value: &Value, path: &str) {
        let root = self.root;
        let schema = resolve(root, schema);
        if let Some(names) = names(root, schema) {
            return self.name(&names, value, path);
        }
        match alternatives(root, schema).as_slice() {
            [] => self.plain(schema, value, path),
            [only] => self.value(only, value, path),
            several if tag(root, several[0]).is_some() => self.tagged(several, value, path),
            several => self.any(several, value, path),
        }
    }

    fn wrong(&mut self, path: &str, text: String) {
        self.problems.push(Problem::value(path, text));
    }

    fn name(&mut self, names: &[&str], value: &Value, path: &str) {
        let here = shown(path);
        let Some(text) = value.as_str() else {
            let text = format!("`{here}` is one of {}, not {}", list(names), kind(value));
            return self.wrong(path, text);
        };
        if !names.contains(&text) {
            let text_of_names = format!("`{here}` is one of {}", list(names));
            self.problems.push(Problem {
                hint: nearest(text, names).map(|name| format!("did you mean `\"{name}\"`?")),
                ..Problem::value(path, text_of_names)
            });
        }
    }

    fn tagged(&mut self, several: &[&'static Json], value: &Value, path: &str) {
        let here = shown(path);
        let Some(table) = value.as_table() else {
            return self.wrong(path, format!("`{here}` is a table, not {}", kind(value)));
        };
        let tags: Vec<_> = several
            .iter()
            .filter_map(|one| tag(self.root, one))
            .collect();
        let (key, _) = tags[0];
        let names: Vec<_> = tags.iter().map(|(_, name)| *name).collect();
        let Some(chosen) = table.get(key) else {
            let text = format!("`{here}` needs `{key}`: one of {}", list(&names));
            self.problems.push(Problem {
                part: Part::Key,
                ..Problem::value(path, text)
            });
            return;
        };
        let chosen = names.iter().position(|name| chosen.as_str() == Some(name));
        match chosen {
            Some(index) => self.table(several[index], table, path),
            None => self.name(&names, &table[key], &join(path, key)),
        }
    }

    fn any(&mut self, several: &[&'static Json], value: &Value, path: &str) {
        let fits = |one: &&&'static Json| types(one).iter().any(|name| is(name, value));
        match several.iter().find(fits) {
            Some(one) => self.value(one, value, path),
            None => {
                let kinds: Vec<_> = several.iter().flat_map(|one| types(one)).collect();
                self.problems.push(wrong_type(&kinds, value, path));
            }
        }
    }

    fn plain(&mut self, schema: &'static Json, value: &Value, path: &str) {
        let types = types(schema);
        if !types.is_empty() && !types.iter().any(|name| is(name, value)) {
            return self.problems.push(wrong_type(&types, value, path));
        }
        match value {
            Value::Table(table) => self.table(schema, table, path),
            Value::Array(items) => self.array(schema, items, path),
            Value::Integer(number) => self.range(schema, *number as f64, path),
            Value::Float(number) => self.range(schema, *number, path),
            _ => {}
        }
    }

    fn range(&mut self, schema: &Json, number: f64, path: &str) {
        let here = shown(path);
        if let Some(least) = schema["minimum"].as_f64()
            && number < least
        {
            let text = format!("`{here}` is {number}, but at least {least} is needed");
            self.wrong(path, text);
        }
        if let Some(most) = schema["maximum"].as_f64()
            && number > most
        {
            let text = format!("`{here}` is {number}, but at most {most} is possible");
            self.wrong(path, text);
        }
    }

    fn array(&mut self, schema: &'static Json, items: &[Value], path: &str) {
        let count = |key: &str| schema[key].as_u64().map(|count| count as usize);
        if let (Some(least), Some(most)) = (count("minItems"), count("maxItems"))
            && !(least..=most).contains(&items.len())
        {
            let (here, count) = (shown(path), items.len());
            let text = format!("`{here}` has {count} values, but {least} are needed");
            self.wrong(path, text);
        }
        for (index, item) in items.iter().enumerate() {
            self.value(&schema["items"], item, &format!("{path}[{index}]"));
        }
    }

    fn table(&mut self, schema: &'static Json, table: &Table, path: &str) {
        let schema = resolve(self.root, schema);
        let Some(known) = schema["properties"].as_object() else {
            return;
        };
        for (key, value) in table {
            let here = join(path, key);
            match known.get(key) {
                Some(inner) if inner.get("const").is_some() => {}
                Some(inner) => self.value(inner, value, &here),
                None => {
                    let problem = self.unknown(key, path, known.keys(), table);
                    self.problems.push(problem);
                }
            }
        }
        let meant: Vec<_> = self
            .problems
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
                    .or_else(|| resolve(self.root, &known[key])["description"].as_str());
                self.problems.push(Problem {
                    part: Part::Key,
                    hint: what.map(|text| format!("`{key}`: {}", lower(text))),
                    ..Problem::value(&here, format!("`{}` is missing", shown(&here)))
                });
            }
        }
    }

    fn unknown<'a>(
        &self,
        key: &str,
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
                let places = places_of(self.root, key);
                let places: Vec<_> = places.iter().map(String::as_str).collect();
                (!places.is_empty()).then(|| format!("there is {}", list(&places)))
            });
        let place = match path.strip_suffix(']') {
            _ if path.is_empty() => self.name.to_owned(),
            // One of several tables of the same name.
            Some(_) => {
                let of = shown(path);
                format!("`[[{}]]`", of.split('[').next().unwrap_or(&of))
            }
            None => format!("`[{}]`", shown(path)),
        };
        let hint = hint.unwrap_or_else(|| format!("{place} has {}", list(&known)));
        Problem {
            part: Part::Key,
            hint: Some(hint),
            meant: near.map(|name| join(path, name)),
            ..Problem::value(&join(path, key), format!("unknown key `{key}` in {place}"))
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
    let here = shown(path);
    let text = format!("`{here}` is {}, not {}", wanted.join(" or "), kind(value));
    Problem {
        hint: (types == ["array"] && value.is_table())
            .then(|| format!("write `[[{here}]]`: there can be several")),
        ..Problem::value(path, text)
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema::{audit_schema, schema};
    use super::*;

    fn problems(table: &Table) -> Vec<Problem> {
        let schema = schema();
        super::problems(
            Shape {
                schema,
                name: "a config",
            },
            table,
        )
    }

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

    #[test]
    fn plans_of_audits_are_checked_by_the_same_rules() {
        let told = |text: &str| {
            let table: Table = format!("name = \"a\"\n{text}").parse().unwrap();
            let shape = Shape {
                schema: audit_schema(),
                name: "a plan",
            };
            let mut found = super::problems(shape, &table);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            let problem = found.remove(0);
            (problem.path, problem.text, problem.hint.unwrap_or_default())
        };
        let attack = |attack: &str| {
            told(&format!(
                "[[threat]]\nwithin = \"linf:0.1\"\n[[threat.attack]]\nkind = \"fgsm\"\n[[threat.attack]]\n{attack}"
            ))
        };
        let (path, text, hint) = attack("kind = \"pgd\"\nstesp = 5");
        assert_eq!(path, "threat[0].attack[1].stesp");
        assert_eq!(text, "unknown key `stesp` in `[[threat.attack]]`");
        assert_eq!(hint, "did you mean `steps`?");
        assert_eq!(attack("kind = \"pdg\"").2, "did you mean `\"pgd\"`?");
        assert!(
            attack("steps = 5")
                .1
                .contains("needs `kind`: one of `fgsm`")
        );
        assert_eq!(
            attack("kind = \"pgd\"\nsteps = \"5\"").1,
            "`threat.attack.steps` is a whole number, not text"
        );
        assert_eq!(
            told("[[threat]]\nsuite = \"quick\"").1,
            "`threat.within` is missing"
        );
        assert_eq!(
            told("[[threat]]\nwithin = [\"linf:1\", 3]").0,
            "threat[0].within[1]"
        );
        assert_eq!(
            told("[threat]\nwithin = \"linf:1\"").2,
            "write `[[threat]]`: there can be several"
        );
        assert_eq!(
            told("[corruptions]\nseverities = [9]").1,
            "`corruptions.severities[0]` is 9, but at most 5 is possible"
        );
        assert_eq!(
            told("[corruptions]\nfamilies = [\"fgo\"]").2,
            "did you mean `\"fog\"`?"
        );
    }
}
