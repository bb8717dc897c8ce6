//! A network of one's own, hardened and attacked. `Classifier` on a burn module is all that attacks and training ask for.
//!
//!     cargo run --release -p own-network

use std::error::Error;
use std::path::Path;

use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::relu;
use gauntlet::attacks::Budget;
use gauntlet::audit::{AuditPlan, Auditor, Setting, Subject, SuiteName};
use gauntlet::prelude::*;

/// Two convolutions and a linear layer for the 8×8 digits.
#[derive(Module, Debug)]
struct Own {
    first: Conv2d,
    second: Conv2d,
    last: Linear,
}

impl Own {
    fn new(device: &Device) -> Self {
        let conv = |channels| {
            Conv2dConfig::new(channels, [3, 3])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .with_stride([2, 2])
                .init(device)
        };
        Self {
            first: conv([1, 16]),
            second: conv([16, 32]),
            last: LinearConfig::new(32 * 2 * 2, 10).init(device),
        }
    }
}

impl Classifier<4> for Own {
    fn logits(&self, x: Tensor<4>) -> Tensor<2> {
        self.last.forward(self.features(x))
    }

    fn features(&self, x: Tensor<4>) -> Tensor<2> {
        // Inputs are in [0, 1]; whatever normalisation a network wants belongs here.
        let x = (x - 0.3) / 0.4;
        relu(self.second.forward(relu(self.first.forward(x)))).flatten(1, 3)
    }
}

/// `model` is not looked at: the network is built above. Its table is kept beside the checkpoints.
const PLAN: &str = r#"
    name = "own-network"
    data = { source = "digits", validation = 100, batch_size = 64 }
    model = { arch = "mlp" }
    threat = { norm = "linf", eps = 0.1 }
    [train]
    objective = "pgd"
    epochs = 12
    interleave = { ramp_epochs = 2.0 }
    optimizer = { kind = "adam" }
    schedule = { kind = "one-cycle", peak = 0.01 }
"#;

/// Hardens the network in `folder`, audits it, and gives the shares of test images that it is right about: clean, and after all attacks.
fn harden(folder: &Path) -> Result<(f64, f64), Box<dyn Error>> {
    let plan: Plan = PLAN.parse()?;
    let device = Device::flex();
    let splits = load(&plan.data, &default_root(), plan.seed)?;
    let description = Description {
        config: plan.model.clone(),
        shape: splits.train.shape,
        classes: splits.train.classes.to_vec(),
    };
    let own = Own::new(&device.clone().autodiff());
    let session = Session::new(&plan, &description, &splits, folder, &device);
    let hardened = fit(own, session)?.model;

    // The attacks of `gauntlet audit --plan quick`, on the test images.
    let budget = Budget::from(plan.threat.model());
    let setting = Setting {
        classes: 10,
        load: &|_| Err("no surrogates here".to_owned()),
        fit: None,
    };
    let suites = AuditPlan::of(SuiteName::Quick, vec![budget]).suites(&setting);
    let suites = suites.map_err(|problems| format!("{problems:?}"))?;
    let test = &splits.test;
    let mut auditor = Auditor {
        subject: Subject {
            model: &hardened,
            data: test,
            device: &device,
            seed: plan.seed,
            batch_size: 64,
            workers: 2,
        },
        suites,
        corruptions: Vec::new(),
        certify: None,
        diagnose: false,
        identity: "own-network, first version".into(),
        folder: &folder.join("audit"),
    };
    std::fs::create_dir_all(auditor.folder)?;
    let found = auditor.run(&mut |_| true)?.expect("nobody stops it");
    let standing = &found[0].standing;
    let right = (0..test.len())
        .filter(|&i| standing.is_right(test, i))
        .count();
    let clean = right as f64 / test.len() as f64;
    Ok((clean, found[0].threat.robust_accuracy))
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("own-network-{}", std::process::id()));
    let (clean, robust) = harden(&folder)?;
    println!("clean {clean:.3}, attacked {robust:.3}");
    Ok(std::fs::remove_dir_all(folder)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_learns_to_withstand() -> Result<(), Box<dyn Error>> {
        let folder = std::env::temp_dir().join(format!("own-network-test-{}", std::process::id()));
        let (clean, robust) = harden(&folder)?;
        std::fs::remove_dir_all(folder)?;
        assert!(
            clean > 0.8 && robust > 0.5,
            "clean {clean}, attacked {robust}"
        );
        Ok(())
    }
}
