//! Audits of networks that others trained and verified. Needs their weights and images, in the folder `GAUNTLET_FIXTURES`.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn fixtures() -> Option<PathBuf> {
    let folder = std::env::var_os("GAUNTLET_FIXTURES").map(PathBuf::from);
    if folder.is_none() {
        println!("SKIPPED: GAUNTLET_FIXTURES names no folder with reference networks");
    }
    folder
}

/// The quick plan on 200 images that verifiers share, as JSON. The network is imported first, by one command.
fn audit(fixtures: &Path, weights: &str, images: &str, threat: &str, more: &[&str]) -> Value {
    let out = tempfile::tempdir().unwrap();
    let file = |name: &str| fixtures.join(name);
    let network = out.path().join("network");
    let imported = Command::new(env!("CARGO_BIN_EXE_gauntlet"))
        .args(["model", "import"])
        .arg(file(weights))
        .args(["--arch", "mnist-cnn"])
        .args(more)
        .arg("--out")
        .arg(&network)
        .output()
        .unwrap();
    assert!(
        imported.status.success(),
        "{}",
        String::from_utf8_lossy(&imported.stderr)
    );
    let output = Command::new(env!("CARGO_BIN_EXE_gauntlet"))
        .arg("audit")
        .arg(&network)
        .arg("--data")
        .arg(file(&format!("{images}_x.npy")))
        .arg("--labels")
        .arg(file(&format!("{images}_y.npy")))
        .args(["--threat", threat])
        .args(["--plan", "quick", "--device", "cpu", "--json", "-"])
        .arg("--out")
        .arg(out.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Robust accuracy lies between what verifiers proved and what other attacks reached, and the model is honest: no finding.
fn lies_between(audit: &Value, clean: f64, proved: f64, reached: f64) {
    assert!(
        (audit["clean_accuracy"].as_f64().unwrap() - clean).abs() < 1e-9,
        "{audit}"
    );
    let robust = audit["threats"][0]["robust_accuracy"].as_f64().unwrap();
    assert!(
        (proved..=reached).contains(&robust),
        "{robust} is not in [{proved}, {reached}]"
    );
    assert!(audit["findings"].is_null(), "{}", audit["findings"]);
}

/// PGD-trained networks of the beta-CROWN benchmark (Wang et al. 2021): clean accuracies and what PGD leaves as measured with
/// PyTorch, bounds as published.
#[test]
fn networks_that_others_attacked_and_verified() {
    let Some(fixtures) = fixtures() else { return };
    let mnist = audit(
        &fixtures,
        "mnist_cnn_a_adv.pth",
        "mnist_sdp200",
        "linf:0.3",
        &["--data", "mnist"],
    );
    lies_between(&mnist, 0.975, 0.70, 0.775);
    let cifar = audit(
        &fixtures,
        "cifar_cnn_a_adv.pth",
        "cifar_sdp200",
        "linf:2/255",
        &[
            "--data", "cifar10", "--mean", "0.491372", "0.482353", "0.446667", "--std", "0.247059",
            "0.243529", "0.261569",
        ],
    );
    lies_between(&cifar, 0.70, 0.44, 0.51);
}
