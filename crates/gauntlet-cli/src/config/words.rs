//! Words for people: the nearest name, lists, kinds of values.

use toml::Value;

/// The name most like `text`, if one is like it.
pub(crate) fn nearest<'a>(text: &str, names: &[&'a str]) -> Option<&'a str> {
    let text = text.to_lowercase().replace('_', "-");
    let likeness = |name: &str| strsim::jaro_winkler(&text, &name.replace('_', "-"));
    let best = names
        .iter()
        .copied()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    if likeness(best) > 0.8 {
        return Some(best);
    }
    // Short words with two letters swapped are not alike by that measure: `pdg`.
    let swapped =
        |name: &&str| text.len() > 2 && strsim::osa_distance(&text, &name.replace('_', "-")) == 1;
    names.iter().copied().find(swapped)
}

pub(super) fn list(names: &[&str]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

pub(super) fn lower(text: &str) -> String {
    let line = text
        .lines()
        .next()
        .unwrap_or_default()
        .trim_end_matches('.');
    let mut chars = line.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(chars).collect()
    })
}

pub(super) fn type_name(name: &str) -> &'static str {
    match name {
        "object" => "a table",
        "array" => "a list",
        "string" => "text",
        "boolean" => "`true` or `false`",
        "integer" => "a whole number",
        _ => "a number",
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a fractional number",
        Value::Boolean(_) => "a truth value",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_like_what_was_typed() {
        let names = ["standard", "pgd", "batch_size", "mnist"];
        for (typed, meant) in [
            ("pdg", "pgd"),
            ("PGD", "pgd"),
            ("batch-size", "batch_size"),
            ("mnsit", "mnist"),
            ("standart", "standard"),
        ] {
            assert_eq!(nearest(typed, &names), Some(meant), "{typed}");
        }
        for typed in ["", "x", "trades", "learning_rate"] {
            assert_eq!(nearest(typed, &names), None, "{typed}");
        }
    }
}
