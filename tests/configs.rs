//! Every config that comes with the program: it parses, says what it is, and bears the name of its place.

use std::path::{Path, PathBuf};

use gauntlet_train::Plan;

fn files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let mut found = Vec::new();
    for data in std::fs::read_dir(root).unwrap() {
        for file in std::fs::read_dir(data.unwrap().path()).unwrap() {
            found.push(file.unwrap().path());
        }
    }
    found.sort();
    found
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

        let header: Vec<_> = text
            .lines()
            .take_while(|line| line.starts_with("# "))
            .collect();
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
