//! Trains a small network on handwritten digits so that it withstands PGD, and attacks what comes out.
use gauntlet::prelude::*;

const PLAN: &str = r#"
    name = "example"
    data = { source = "digits", validation = 100, batch_size = 64 }
    model = { arch = "mlp", width = 64 }
    threat = { norm = "linf", eps = 0.1 }
    [train]
    objective = "pgd"
    epochs = 10
    interleave = { ramp_epochs = 2.0 }
    optimizer = { kind = "adam" }
    schedule = { kind = "one-cycle", peak = 0.01 }
"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The plan, the data, the network.
    let plan: Plan = PLAN.parse()?;
    let device = Device::flex();
    let splits = load(&plan.data, &default_root(), plan.seed)?;
    let (shape, classes) = (splits.train.shape, splits.train.classes.to_vec());
    let description = Description {
        config: plan.model.clone(),
        shape,
        classes,
    };
    let model = description.init(plan.seed, &device.clone().autodiff())?;

    // Harden it. The folder gets metrics, pictures, and checkpoints to go on from.
    let folder = std::env::temp_dir().join(format!("harden-{}", std::process::id()));
    let hardened = fit(
        model,
        Session::new(&plan, &description, &splits, &folder, &device),
    )?
    .model;

    // Attack it: PGD, 20 steps, 5 restarts, on the test images.
    let (attack, test) = (plan.final_attack(), &splits.test);
    let (x, y) = test.batch(&Vec::from_iter(0..test.len()), &device);
    let key = NoiseKey::new(plan.seed, Stream::EvalAttack);
    let judged = evaluate_batch(&hardened, x, y, &test.ids, &attack, &attack.threat, key)?.0;
    println!(
        "clean {:.3}, attacked {:.3}",
        judged.clean_accuracy(),
        judged.robust_accuracy()
    );
    assert!(judged.robust_accuracy() > 0.5);
    Ok(std::fs::remove_dir_all(folder)?)
}
