//! Every config that comes with the program: it parses, says what it is, and bears the name of its place.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use gauntlet_audit::{AuditPlan, Fit, Setting};
use gauntlet_data::{DataConfig, Source};
use gauntlet_models::ModelConfig;
use gauntlet_train::Plan;

fn files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let mut found = Vec::new();
    for data in std::fs::read_dir(root).unwrap() {
        found.extend(files_in(&data.unwrap().path()));
    }
    found.retain(|path| !path.parent().unwrap().ends_with("audits"));
    found.sort();
    found
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

fn plans() -> Vec<PathBuf> {
    files_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/audits"))
}

fn header(text: &str) -> Vec<&str> {
    let lines = text.lines();
    lines.take_while(|line| line.starts_with("# ")).collect()
}

#[test]
fn every_config_is_sound_and_says_what_it_is() {
    let files = files();
    assert!(files.len() >= 10, "{files:?}");
    for file in files {
        let name = file.display();
        let text = std::fs::read_to_string(&file).unwrap();
        let plan: Plan = toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        plan.check()
            .unwrap_or_else(|error| panic!("{name}: {error}"));

        let data = file
            .parent()
            .unwrap()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap();
        let method = file.file_stem().unwrap().to_str().unwrap();
        assert_eq!(plan.name, format!("{data}-{method}"), "{name}");
        assert_eq!(plan.data.source.name(), data, "{name}");

        let header = header(&text);
        assert!(
            header.len() >= 2,
            "{name}: what is it, and what did it measure?"
        );
        assert!(
            header.iter().any(|line| line.starts_with("# Measured: ")),
            "{name}"
        );
        assert!(!text.contains("(pending)"), "{name}: nothing measured yet");
    }
}

#[test]
fn a_plan_with_its_defaults_written_out_is_the_same_plan() {
    for file in files() {
        let plan: Plan = toml::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let resolved = plan.resolved();
        let text = toml::to_string_pretty(&resolved).unwrap();
        let again: Plan = toml::from_str(&text).unwrap();
        assert_eq!(again, resolved, "{}", file.display());
        assert_eq!(again.clone().resolved(), resolved, "{}", file.display());
    }
}

#[test]
fn every_plan_of_an_audit_is_sound_and_says_what_it_is() {
    let files = plans();
    assert!(files.len() >= 6, "{files:?}");
    let digits = gauntlet_data::load(&DataConfig::of(Source::Digits), Path::new(""), 0).unwrap();
    let model: ModelConfig = serde_json::from_str(r#"{"arch":"mlp","width":8}"#).unwrap();
    let device = Device::flex();
    let model = model.init([1, 8, 8], 10, 0, &device).unwrap();
    let setting = Setting {
        classes: 10,
        load: &|path| Err(format!("{} is not there", path.display())),
        fit: Some(Fit {
            model: &model,
            training: &|| Ok(digits.train.clone().take(50)),
            device: &device,
            seed: 0,
        }),
    };
    for file in files {
        let name = file.display();
        let text = std::fs::read_to_string(&file).unwrap();
        let plan = AuditPlan::read(&file).unwrap_or_else(|problem| panic!("{problem}"));
        let stem = file.file_stem().unwrap().to_str().unwrap();
        assert_eq!(plan.name, stem, "{name}");
        let header = header(&text);
        assert!(header.len() >= 2, "{name}: what is it for?");
        let costs = header.iter().any(|line| line.starts_with("# Costs "));
        assert!(costs, "{name}: what does it cost?");
        assert!(!text.contains("COST"), "{name}: nothing measured yet");

        let suites = plan.suites(&setting);
        let suites = suites.unwrap_or_else(|problems| panic!("{name}: {problems:?}"));
        let budgets = plan.threats.iter().map(|threat| threat.within.len());
        assert_eq!(suites.len(), budgets.sum::<usize>(), "{name}");
        let written = toml::to_string(&plan).unwrap();
        assert_eq!(toml::from_str(&written), Ok(plan), "{name}");
    }
}

/// Names of all kinds of attacks that plans know.
fn kinds() -> BTreeSet<String> {
    let schema = schemars::schema_for!(AuditPlan).to_value();
    let kinds = schema["$defs"]["AttackSpec"]["oneOf"].as_array().unwrap();
    let kind = |one: &serde_json::Value| {
        one["properties"]["kind"]["const"]
            .as_str()
            .map(str::to_owned)
    };
    let kinds: BTreeSet<String> = kinds.iter().filter_map(kind).collect();
    assert!(kinds.len() >= 24, "{kinds:?}");
    kinds
}

#[test]
fn the_plan_of_everything_has_every_attack() {
    let everything = plans()
        .into_iter()
        .find(|path| path.ends_with("everything.toml"))
        .unwrap();
    let plan = AuditPlan::read(&everything).unwrap();
    let attacks = plan.threats.iter().flat_map(|threat| &threat.attacks);
    let mut used: BTreeSet<String> = attacks.map(gauntlet_audit::AttackSpec::kind).collect();
    // It needs a second model; the file shows it in a comment.
    let text = std::fs::read_to_string(&everything).unwrap();
    assert!(text.contains("# kind = \"transfer\""));
    used.insert("transfer".to_owned());
    assert_eq!(used, kinds());
    let corruptions = plan.corruptions.unwrap().families;
    assert_eq!(
        corruptions.iter().collect::<BTreeSet<_>>().len(),
        gauntlet_data::corruptions::Corruption::ALL.len()
    );
}

#[test]
fn every_attack_has_a_row_in_the_list_of_attacks() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gauntlet-attacks/README.md");
    let list = std::fs::read_to_string(root).unwrap();
    let row = |kind: &String| format!("| `{kind}` |");
    let missing: Vec<_> = kinds()
        .into_iter()
        .filter(|kind| !list.contains(&row(kind)))
        .collect();
    assert!(missing.is_empty(), "no row of {missing:?}");
}

#[test]
fn every_key_of_an_audit_s_json_is_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gauntlet-audit/OUTPUT.md");
    let document = std::fs::read_to_string(root).unwrap();
    let schema = schemars::schema_for!(gauntlet_audit::Audit).to_value();
    let tables = schema["$defs"].as_object().unwrap().values();
    let keys = tables
        .chain([&schema])
        .filter_map(|table| table["properties"].as_object())
        .flat_map(|keys| keys.keys());
    let missing: BTreeSet<_> = keys
        .filter(|key| !document.contains(&format!("`{key}`")))
        .collect();
    assert!(missing.is_empty(), "no word of {missing:?}");
}
