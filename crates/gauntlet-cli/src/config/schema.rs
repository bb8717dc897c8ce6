//! The JSON Schemas of config files and of plans of audits, and what they say of a key.

use std::sync::OnceLock;

use gauntlet_audit::AuditPlan;
use gauntlet_train::Plan;
use serde_json::Value as Json;

use super::join;

/// The JSON Schema of a config file.
pub(crate) fn schema() -> &'static Json {
    static SCHEMA: OnceLock<Json> = OnceLock::new();
    SCHEMA.get_or_init(|| schemars::schema_for!(Plan).to_value())
}

/// The JSON Schema of a plan of an audit.
pub(crate) fn audit_schema() -> &'static Json {
    static SCHEMA: OnceLock<Json> = OnceLock::new();
    SCHEMA.get_or_init(|| schemars::schema_for!(AuditPlan).to_value())
}

/// Whether the value at `path` of a config is text, so that `--set name=1` means the text `1`.
pub(crate) fn is_text(path: &str) -> bool {
    let root = schema();
    let resolve = |at| resolve(root, at);
    let mut at = root;
    for key in path.split('.') {
        match resolve(at).get("properties").and_then(|keys| keys.get(key)) {
            Some(next) => at = next,
            None => return false,
        }
    }
    resolve(at)["type"] == "string"
}

/// Follows a reference within `root`.
pub(super) fn resolve<'a>(root: &'a Json, schema: &'a Json) -> &'a Json {
    match schema["$ref"]
        .as_str()
        .and_then(|path| path.strip_prefix('#'))
    {
        Some(pointer) => root
            .pointer(pointer)
            .map_or(schema, |found| resolve(root, found)),
        None => schema,
    }
}

/// The alternatives of a schema that are not `null`, which TOML cannot write.
pub(super) fn alternatives<'a>(root: &'a Json, schema: &'a Json) -> Vec<&'a Json> {
    let listed = schema.get("anyOf").or_else(|| schema.get("oneOf"));
    let all = listed.and_then(Json::as_array).into_iter().flatten();
    all.map(|one| resolve(root, one))
        .filter(|one| one["type"] != "null")
        .collect()
}

/// The texts a schema allows, if it is a list of such.
pub(super) fn names<'a>(root: &'a Json, schema: &'a Json) -> Option<Vec<&'a str>> {
    if let Some(constant) = schema["const"].as_str() {
        return Some(vec![constant]);
    }
    if let Some(list) = schema["enum"].as_array() {
        return list.iter().map(Json::as_str).collect();
    }
    let parts = alternatives(root, schema);
    if parts.is_empty() {
        return None;
    }
    let lists: Option<Vec<_>> = parts.into_iter().map(|part| names(root, part)).collect();
    Some(lists?.concat())
}

/// The key that tells alternatives apart, and its value in this one.
pub(super) fn tag<'a>(root: &'a Json, schema: &'a Json) -> Option<(&'a str, &'a str)> {
    let keys = resolve(root, schema)["properties"].as_object()?;
    let mut constants = keys
        .iter()
        .filter_map(|(key, value)| Some((key.as_str(), value["const"].as_str()?)));
    constants.next()
}

/// The types a schema allows.
pub(super) fn types(schema: &Json) -> Vec<&str> {
    match &schema["type"] {
        Json::String(one) => vec![one.as_str()],
        Json::Array(several) => several
            .iter()
            .filter_map(Json::as_str)
            .filter(|name| *name != "null")
            .collect(),
        _ => Vec::new(),
    }
}

/// Paths of all keys of `root` called `key`, in order.
pub(crate) fn places_of(root: &Json, key: &str) -> Vec<String> {
    let mut places = Vec::new();
    collect_places(root, key, root, "", 0, &mut places);
    places.dedup();
    places
}

fn collect_places(
    root: &Json,
    key: &str,
    schema: &Json,
    path: &str,
    depth: usize,
    places: &mut Vec<String>,
) {
    let schema = resolve(root, schema);
    if depth > 8 {
        return;
    }
    for one in alternatives(root, schema) {
        collect_places(root, key, one, path, depth + 1, places);
    }
    let known = schema["properties"].as_object().into_iter().flatten();
    for (name, inner) in known {
        let here = join(path, name);
        collect_places(root, key, inner, &here, depth + 1, places);
        if name == key {
            places.push(here);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_hold_text_are_known() {
        for path in ["name", "device"] {
            assert!(is_text(path), "{path}");
        }
        for path in ["seed", "train", "train.epochs", "nowhere"] {
            assert!(!is_text(path), "{path}");
        }
    }

    #[test]
    fn a_key_is_found_in_every_table_that_has_it() {
        let places = places_of(schema(), "momentum");
        assert_eq!(places, ["train.optimizer.momentum"]);
    }
}
