//! Networks whose robustness is what it seems must be accused of nothing; networks that only hide their gradients, and plans
//! that are too weak, of what they are.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use burn::module::Module;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Tensor};
use gauntlet_attacks::{Attack, AttackLoss, Budget, Classifier, Init, Keep, Noise, Pgd};
use gauntlet_data::{DataConfig, Loader, Splits, load};
use gauntlet_kernels::{NoiseKey, Stream};
use gauntlet_models::{ModelConfig, Network};
use serde_json::Value;

use crate::{AttackSpec, AuditPlan, Auditor, Found, Setting, Signs, Standing, Subject, SuiteName};

fn digits() -> &'static Splits {
    static DIGITS: OnceLock<Splits> = OnceLock::new();
    DIGITS.get_or_init(|| {
        let config: DataConfig = serde_json::from_str(r#"{"source":"digits"}"#).unwrap();
        load(&config, Path::new(""), 0).unwrap()
    })
}

/// A perceptron that 400 steps taught the digits, on what `attack` makes of them.
fn trained(attack: Option<Pgd>) -> Network {
    let device = Device::flex();
    let config: ModelConfig = serde_json::from_str(r#"{"arch":"mlp","width":64}"#).unwrap();
    let tracked = device.clone().autodiff();
    let mut model = config.init([1, 8, 8], 10, 0, &tracked).unwrap();
    let mut optimizer = AdamConfig::new().init();
    let loader = Loader::new(digits().train.clone(), 128, &[], 0, &device);
    let epochs = 400_usize.div_ceil(loader.steps_per_epoch()) as u32;
    for epoch in 0..epochs {
        for (step, batch) in loader.epoch(epoch, 0).enumerate() {
            let noise = Noise {
                key: NoiseKey::new(0, Stream::TrainAttack).at(epoch, step as u32),
                samples: batch.ids,
            };
            let (x, y) = (batch.images, batch.labels);
            let x = match &attack {
                Some(attack) => attack.perturb(&model.valid(), x, y.clone(), &noise),
                None => x,
            };
            let loss = AttackLoss::CrossEntropy.per_sample(model.logits(x.autodiff()), y);
            let gradients = GradientsParams::from_grads(loss.mean().backward(), &model);
            model = optimizer.step(5e-3, model, gradients);
        }
    }
    model.valid()
}

/// Trained without attack.
fn standard() -> &'static Network {
    static NETWORK: OnceLock<Network> = OnceLock::new();
    NETWORK.get_or_init(|| trained(None))
}

/// Trained on PGD with seven steps, within [`BALLS`].
fn hardened(ball: usize) -> &'static Network {
    static NETWORKS: [OnceLock<Network>; 3] = [const { OnceLock::new() }; 3];
    NETWORKS[ball].get_or_init(|| {
        trained(Some(Pgd {
            keep: Keep::Last,
            ..Pgd::new(BALLS[ball].parse().unwrap(), 7)
        }))
    })
}

const BALLS: [&str; 3] = ["linf:0.15", "l2:0.8", "l1:3"];

/// What comes between a network and those who ask it.
enum Mask {
    /// Inputs are rounded to so many steps.
    Quantised(f32),
    /// Logits are multiplied.
    Scaled(f32),
    /// Normal noise of this size is added to inputs.
    Noisy(f32),
    /// Waves of this frequency and height are added to inputs.
    Waves(f32, f32),
    /// A root whose derivative at 0 is infinite.
    Root,
    /// The answer is always the same.
    Constant,
    /// Another network answers every sixteenth call.
    Changing(&'static Network),
}

struct Masked {
    network: &'static Network,
    mask: Mask,
    calls: AtomicU32,
}

fn masked(network: &'static Network, mask: Mask) -> Masked {
    Masked {
        network,
        mask,
        calls: AtomicU32::new(0),
    }
}

impl Classifier<4> for Masked {
    fn logits(&self, x: Tensor<4>) -> Tensor<2> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let network = |x| self.network.logits(x);
        match self.mask {
            Mask::Quantised(steps) => network(x.mul_scalar(steps).round().div_scalar(steps)),
            Mask::Scaled(factor) => network(x).mul_scalar(factor),
            Mask::Noisy(size) => {
                let rows: Vec<u32> = (0..x.dims()[0] as u32).collect();
                let key = NoiseKey::new(0, Stream::Dropout).at(0, call);
                let noise = key.normal(&rows, x.dims(), &x.device().inner());
                network(x + Tensor::from_inner(noise.mul_scalar(size)))
            }
            Mask::Waves(frequency, height) => {
                let waves = x.clone().mul_scalar(frequency).sin().mul_scalar(height);
                network(x + waves)
            }
            Mask::Root => {
                let logits = network(x);
                logits.clone() + logits.mul_scalar(0.0).sqrt()
            }
            Mask::Constant => network(x.ones_like()),
            Mask::Changing(other) if call % 16 == 15 => other.logits(x),
            Mask::Changing(_) => network(x),
        }
    }

    fn features(&self, x: Tensor<4>) -> Tensor<2> {
        self.network.features(x)
    }
}

fn plan(name: SuiteName, within: &str) -> AuditPlan {
    AuditPlan::of(name, vec![within.parse().unwrap()])
}

/// What `plan` finds on the first test images.
fn audit(model: &(dyn Classifier<4> + Sync), plan: &AuditPlan, samples: usize) -> Vec<Found> {
    let setting = Setting {
        classes: 10,
        load: &|_| Err("there is none".to_owned()),
        fit: None,
    };
    let folder = tempfile::tempdir().unwrap();
    let device = Device::flex();
    let mut auditor = Auditor {
        subject: Subject {
            model,
            data: &digits().test.take(samples),
            device: &device,
            seed: 0,
            batch_size: 100,
            // The order of calls decides what a random model draws.
            workers: 1,
        },
        suites: plan.suites(&setting).unwrap(),
        corruptions: Vec::new(),
        certify: None,
        diagnose: true,
        identity: Value::Null,
        folder: folder.path(),
    };
    auditor.run(&mut |_| true).unwrap().unwrap()
}

fn codes(found: &Found) -> Vec<&str> {
    found.findings.iter().map(|f| f.code.as_str()).collect()
}

/// The codes of what a named suite finds on 200 images, and the signs it measured.
fn found(
    model: &(dyn Classifier<4> + Sync),
    name: SuiteName,
    within: &str,
) -> (Vec<String>, Signs) {
    let found = audit(model, &plan(name, within), 200).remove(0);
    let codes = codes(&found).into_iter().map(str::to_owned).collect();
    (codes, found.signs.unwrap())
}

#[test]
fn honest_networks_are_accused_of_nothing() {
    let networks = [standard(), hardened(0), hardened(1), hardened(2)];
    for (place, network) in networks.into_iter().enumerate() {
        // In L1, half the steps of the standard plan are too few, and the audit says so.
        for (name, within) in [
            (SuiteName::Quick, BALLS[0]),
            (SuiteName::Quick, BALLS[1]),
            (SuiteName::Standard, BALLS[2]),
            // Far beyond what they were trained for nothing stands, and nothing is wrong with that.
            (SuiteName::Quick, "linf:0.5"),
        ] {
            let (codes, signs) = found(network, name, within);
            assert!(
                codes.is_empty(),
                "network {place}, {within}: {codes:?} {signs:?}"
            );
        }
    }
    for (network, within) in [(standard(), BALLS[0]), (hardened(0), BALLS[0])] {
        let (codes, signs) = found(network, SuiteName::Standard, within);
        assert!(codes.is_empty(), "{codes:?} {signs:?}");
    }
}

#[test]
fn signs_depend_on_neither_batches_nor_threads() {
    let (data, device) = (digits().test.take(150), Device::flex());
    let setting = Setting {
        classes: 10,
        load: &|_| Err("there is none".to_owned()),
        fit: None,
    };
    let suite = plan(SuiteName::Quick, BALLS[0])
        .suites(&setting)
        .unwrap()
        .remove(0);
    let measured = |batch_size, workers| {
        let subject = Subject {
            model: hardened(0),
            data: &data,
            device: &device,
            seed: 0,
            batch_size,
            workers,
        };
        let mut standing = Standing::default();
        suite
            .run(&subject, &mut standing, &mut |_, _| Ok(true))
            .unwrap();
        Signs::measure(&subject, &BALLS[0].parse().unwrap(), &suite, &standing)
    };
    let signs = measured(200, 1);
    assert_eq!(measured(32, 3), signs);
    // 150 images, of which more than half stand.
    assert!(signs.samples > 120 && signs.effort.0 > 75 && signs.fgsm > signs.pgd);
}

#[test]
fn rounded_inputs_hide_gradients_from_all_but_black_boxes() {
    let model = masked(hardened(0), Mask::Quantised(4.0));
    let (codes, signs) = found(&model, SuiteName::Standard, BALLS[0]);
    let expected = [
        "gradients-vanish",
        "rough-landscape",
        "black-box-beats-white-box",
        "does-not-fall-to-zero",
    ];
    assert_eq!(codes, expected, "{signs:?}");
}

/// The ratio's gradient is as good as ever, so that nothing else is wrong.
#[test]
fn saturated_logits_hide_the_gradient_of_the_cross_entropy() {
    for within in BALLS {
        let model = masked(hardened(0), Mask::Scaled(1000.0));
        let (codes, signs) = found(&model, SuiteName::Quick, within);
        assert_eq!(
            codes,
            ["gradients-vanish", "does-not-fall-to-zero"],
            "{signs:?}"
        );
    }
}

#[test]
fn gradients_that_are_no_numbers_have_vanished() {
    let model = masked(standard(), Mask::Root);
    let (codes, signs) = found(&model, SuiteName::Quick, BALLS[1]);
    assert!(codes.contains(&"gradients-vanish".to_owned()), "{signs:?}");
    assert_eq!(signs.without_gradient, signs.samples);
}

#[test]
fn a_model_that_does_not_look_is_found_out() {
    let model = masked(standard(), Mask::Constant);
    let (codes, signs) = found(&model, SuiteName::Quick, BALLS[0]);
    let expected = [
        "gradients-vanish",
        "rough-landscape",
        "does-not-fall-to-zero",
    ];
    assert_eq!(codes, expected, "{signs:?}");
}

/// With as many draws averaged as the plan says, the looks see a landscape that is no longer rough, and the answers are as
/// random as before.
#[test]
fn noise_is_seen_and_averaged_where_the_plan_averages() {
    let mut plan = plan(SuiteName::Quick, BALLS[0]);
    let signs = [1, 8].map(|eot| {
        plan.threats[0].eot = eot;
        let model = masked(hardened(0), Mask::Noisy(0.2));
        let found = audit(&model, &plan, 120).remove(0);
        assert_eq!(codes(&found)[0], "randomised-outputs");
        let rough = codes(&found).contains(&"rough-landscape");
        assert_eq!(rough, eot == 1, "{:?}", found.signs);
        found.signs.unwrap()
    });
    let [once, averaged] = signs;
    assert!(
        averaged.random_wins * 3 < once.random_wins,
        "{once:?} {averaged:?}"
    );
    assert!(averaged.difference > 0.1);
}

/// Eight passes of two batches are sixteen calls; two passes would most likely not see it.
#[test]
fn a_model_that_changes_now_and_then_answers_at_random() {
    let model = masked(standard(), Mask::Changing(hardened(0)));
    let (codes, signs) = found(&model, SuiteName::Quick, BALLS[0]);
    assert!(
        codes.contains(&"randomised-outputs".to_owned()),
        "{signs:?}"
    );
}

#[test]
fn waves_shatter_gradients() {
    let model = masked(hardened(0), Mask::Waves(50.0, 0.1));
    let (codes, signs) = found(&model, SuiteName::Quick, BALLS[0]);
    for code in ["rough-landscape", "fgsm-beats-pgd"] {
        assert!(codes.contains(&code.to_owned()), "{codes:?} {signs:?}");
    }
    // What one step of FGSM overcomes, PGD does not: its steps are shorter than a wave.
    let model = masked(standard(), Mask::Waves(200.0, 0.05));
    let (codes, signs) = found(&model, SuiteName::Standard, BALLS[0]);
    for code in ["black-box-beats-white-box", "fgsm-beats-pgd"] {
        assert!(codes.contains(&code.to_owned()), "{codes:?} {signs:?}");
    }
}

#[test]
fn a_plan_of_two_steps_is_too_weak() {
    let mut plan = plan(SuiteName::Quick, BALLS[1]);
    plan.threats[0].suite = None;
    plan.threats[0].attacks = vec![AttackSpec::Pgd {
        steps: Some(2),
        step_size: None,
        restarts: None,
        loss: None,
        random_start: None,
    }];
    let found = audit(hardened(1), &plan, 200).remove(0);
    assert_eq!(codes(&found), ["more-effort-helps"], "{:?}", found.signs);
}

/// One FGSM step of 0.3 a batch, the recipe that tips over.
#[test]
fn training_on_one_long_step_overfits_to_it() {
    let network = trained(Some(Pgd {
        step_size: 0.3,
        init: Init::Clean,
        keep: Keep::Last,
        ..Pgd::new("linf:0.3".parse().unwrap(), 1)
    }));
    let (codes, signs) = found(&network, SuiteName::Quick, "linf:0.3");
    assert_eq!(codes, ["catastrophic-overfitting"], "{signs:?}");
}

#[test]
fn budgets_without_signs_have_none() {
    for within in ["l0:3", "patch:2", "spatial:10deg,1px", "linf:0.1 + l2:0.5"] {
        let found = audit(standard(), &plan(SuiteName::Quick, within), 20).remove(0);
        assert!(
            found.signs.is_none() && found.findings.is_empty(),
            "{within}"
        );
    }
    let found = audit(standard(), &plan(SuiteName::Quick, "linf:0"), 20).remove(0);
    assert!(found.findings.is_empty() && found.signs.unwrap().growing.is_empty());
    let found = audit(standard(), &plan(SuiteName::Quick, BALLS[0]), 0).remove(0);
    assert!(found.findings.is_empty());
}

/// Examples that are carried over from a smaller ball are no attack with gradients that later attacks could beat.
#[test]
fn a_black_box_alone_beats_no_white_box() {
    let mut plan = plan(SuiteName::Quick, "linf:0.05");
    plan.threats[0]
        .within
        .push("linf:0.15".parse::<Budget>().unwrap());
    plan.threats[0].suite = None;
    plan.threats[0].attacks = vec![AttackSpec::Square {
        queries: Some(200),
        restarts: None,
    }];
    let found = audit(standard(), &plan, 60);
    let fell = |found: &Found| found.standing.fell_to.iter().flatten().count();
    assert!(fell(&found[1]) > fell(&found[0]) + 10);
    for found in &found {
        assert_eq!(found.signs.as_ref().unwrap().black_box, (0, 0));
        assert!(!codes(found).contains(&"black-box-beats-white-box"));
    }
}
