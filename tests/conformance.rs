//! Vulkan against the CPU backend, step by step: random numbers, kernels, losses, gradients, attacks, training.
//!
//! The comparison runs in a child process of this test. By default that is on a software Vulkan driver, SwiftShader or the one
//! that `VK_DRIVER_FILES` names, below the layer of `scripts/vulkan` (which says why). With `GAUNTLET_VULKAN=hardware` it is
//! on this machine's GPU as it is. Without a driver the test says that it skips, or fails if `GAUNTLET_VULKAN=required`.
//!
//! Tolerances. Both backends compute in f32 and sum in different orders: values agree to 1e-4 of the largest in their tensor
//! (1e-3 after several optimizer steps). An L-inf step takes the sign of the gradient, so where a gradient is zero to
//! rounding, a pixel may go either way: up to 1 % of pixels may differ, and the loss reached must still agree.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ThreadId;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, DeviceKind, FloatDType, Int, Tensor};
use gauntlet_attacks::{
    Apgd, ApgdLoss, Attack, AttackLoss, Fab, Init, Keep, MinimumNorm, Noise, Pgd, input_gradient,
};
use gauntlet_audit::{AuditPlan, Setting, Standing, Subject};
use gauntlet_data::load;
use gauntlet_kernels::augment::crop_flip;
use gauntlet_kernels::perturb::{
    l0_norms, l1_norms, l2_momentum_step, l2_norms, l2_step, linf_momentum_step, linf_norms,
    linf_step, move_to_hyperplane, project_l2, project_linf,
};
use gauntlet_kernels::reduce::total;
use gauntlet_kernels::update::{Adam, Sgd, blend};
use gauntlet_kernels::{NoiseKey, Stream, conv2d};
use gauntlet_models::{Classifier, Description, ModelConfig, Network, named};
use gauntlet_train::{
    Optimizer, OptimizerConfig, Plan, Record, Session, clip_global_norm, cross_entropy, fit,
};

const SWIFTSHADER: &str = "/usr/lib/chromium/vk_swiftshader_icd.json";
const CHILD: &str = "GAUNTLET_CONFORMANCE_CHILD";

#[test]
fn vulkan_agrees_with_the_cpu_step_by_step() {
    if std::env::var_os(CHILD).is_some() {
        return compare(&Device::vulkan(DeviceKind::DefaultDevice));
    }
    let wish = std::env::var("GAUNTLET_VULKAN").unwrap_or_default();
    let runtime = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args([
            "vulkan_agrees_with_the_cpu_step_by_step",
            "--exact",
            "--nocapture",
        ])
        .env(CHILD, "1");
    if wish != "hardware" {
        let named = std::env::var_os("VK_DRIVER_FILES");
        let driver = named.or_else(|| Path::new(SWIFTSHADER).exists().then(|| SWIFTSHADER.into()));
        let ready = driver.ok_or("no software Vulkan driver".to_owned());
        match ready.and_then(|driver| layer(runtime.path()).map(|()| driver)) {
            Ok(driver) => child
                .env("VK_DRIVER_FILES", driver)
                .env("VK_LAYER_PATH", runtime.path())
                .env("VK_INSTANCE_LAYERS", "VK_LAYER_GAUNTLET_plain_shaders")
                .env("XDG_RUNTIME_DIR", runtime.path()),
            Err(problem) => {
                let hint = format!("{problem}: `scripts/setup --tests` installs what is missing");
                assert!(wish != "required", "{hint}");
                return println!("SKIPPED: {hint}");
            }
        };
    }
    let output = child.output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    // SwiftShader writes thousands of such lines about SPIR-V that it takes all the same.
    let talk = String::from_utf8_lossy(&output.stderr);
    let talk: Vec<_> = talk
        .lines()
        .filter(|line| !line.contains("TypePointer"))
        .collect();
    assert!(
        output.status.success(),
        "{}",
        talk[talk.len().saturating_sub(60)..].join("\n")
    );
}

/// The same on CUDA, where the test is asked to: its kernels are compiled on the way, which takes a minute.
#[cfg(feature = "cuda")]
#[test]
fn cuda_agrees_with_the_cpu_step_by_step() {
    match std::env::var_os("GAUNTLET_CUDA") {
        Some(_) => {
            ROUGH.store(true, Ordering::Relaxed);
            compare(&Device::cuda(0));
        }
        None => println!("SKIPPED: GAUNTLET_CUDA=1 runs it"),
    }
}

/// Whether products are made in TF32, which keeps 10 of 23 bits.
static ROUGH: AtomicBool = AtomicBool::new(false);

fn rough() -> bool {
    ROUGH.load(Ordering::Relaxed)
}

/// Builds the layer that makes CubeCL compile through WGSL.
fn layer(folder: &Path) -> Result<(), String> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/vulkan");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let library = folder.join("libplain_shaders.so");
    let mut compile = Command::new(compiler);
    compile
        .args(["-shared", "-fPIC", "-O2", "-o"])
        .arg(library)
        .arg(sources.join("plain_shaders.c"));
    let built = compile
        .output()
        .map_err(|error| format!("no C compiler ({error})"))?;
    if !built.status.success() {
        return Err(format!(
            "the Vulkan layer does not build: {}",
            String::from_utf8_lossy(&built.stderr)
        ));
    }
    std::fs::copy(
        sources.join("plain_shaders.json"),
        folder.join("plain_shaders.json"),
    )
    .map(drop)
    .map_err(|error| error.to_string())
}

fn compare(vulkan: &Device) {
    let flex = Device::flex();
    random_numbers_are_the_same(&flex, vulkan);
    kernels_agree(&flex, vulkan);
    for model in [
        r#"{"arch":"mlp","width":16}"#,
        r#"{"arch":"mnist-cnn","activation":"silu","mean":[0.5],"std":[0.25]}"#,
        r#"{"arch":"wide-resnet","depth":10,"width":1}"#,
    ] {
        println!("{model}");
        let model: ModelConfig = serde_json::from_str(model).unwrap();
        gradients_and_attacks_agree(&model, &flex, vulkan);
        updates_agree(&model, &flex, vulkan);
    }
    audits_agree(&flex, vulkan);
    whole_runs_agree(&flex, vulkan);
}

fn random_numbers_are_the_same(flex: &Device, vulkan: &Device) {
    let key = NoiseKey::new(5, Stream::TrainAttack).at(2, 7);
    let many: Vec<u32> = (0..300).map(|i| i * 7919).collect();
    for samples in [&[0u32, 9, u32::MAX][..], &[], &many] {
        let uniform = |device: &Device, low, high| {
            host(key.uniform(samples, [samples.len(), 7], low, high, device))
        };
        assert_eq!(uniform(flex, 0.0, 1.0), uniform(vulkan, 0.0, 1.0));
        // The range is a product and a sum, which a device may round once.
        let [a, b] = [flex, vulkan].map(|device| uniform(device, -0.3, 0.3));
        close(&a, &b, 2e-7, "uniform numbers");
        let normal = |device: &Device| host(key.normal(samples, [samples.len(), 2, 45], device));
        close(&normal(flex), &normal(vulkan), 1e-6, "normal numbers");
    }
}

fn kernels_agree(flex: &Device, vulkan: &Device) {
    type Kernel = fn(Tensor<4>, Tensor<4>, Tensor<4>) -> Tensor<4>;
    let kernels: [(&str, Kernel); 8] = [
        ("linf_step", |x, x0, g| {
            linf_step(x, x0, g, 0.1, 0.2, (0.0, 1.0))
        }),
        ("l2_step", |x, x0, g| {
            l2_step(x, x0, g, 0.3, 0.5, (0.0, 1.0))
        }),
        ("project_linf", |x, x0, _| {
            project_linf(x, x0, 0.2, (0.0, 1.0))
        }),
        ("project_l2", |x, x0, _| project_l2(x, x0, 0.2, (0.0, 1.0))),
        ("crop_flip", |x, _, _| {
            let ids: Vec<u32> = (0..x.dims()[0] as u32).collect();
            crop_flip(x, 2, true, &NoiseKey::new(1, Stream::Augment), &ids)
        }),
        ("linf_momentum_step", |x, x0, g| {
            let sizes = Tensor::arange(1..x.dims()[0] as i64 + 1, &x.device());
            let (sizes, before) = (sizes.float().mul_scalar(0.1), x0.clone());
            linf_momentum_step(x, x0, g, before, sizes, 0.25, 0.2, (0.0, 1.0))
        }),
        ("l2_momentum_step", |x, x0, g| {
            let sizes = Tensor::arange(1..x.dims()[0] as i64 + 1, &x.device());
            let (sizes, before) = (sizes.float().mul_scalar(0.1), x0.clone());
            l2_momentum_step(x, x0, g, before, sizes, 0.25, 0.5, (0.0, 1.0))
        }),
        ("blend", |x, x0, _| blend(x, x0, 0.9)),
    ];
    // An odd size, a single value, an empty batch, rows longer than a cube has units; each as it is, as the transposed view of another,
    // and as one row for all.
    for shape in [[3, 2, 5, 7], [1, 1, 1, 1], [0, 1, 4, 4], [2, 3, 20, 20]] {
        for layout in ["plain", "transposed", "expanded"] {
            for (name, kernel) in kernels {
                let run = |device: &Device| {
                    let [n, c, h, w] = shape;
                    let values = |step: u32, low: f32| {
                        let ids: Vec<u32> = (0..n as u32).collect();
                        let key = NoiseKey::new(3, Stream::TrainAttack).at(0, step);
                        let draw = |ids, shape| key.uniform::<4>(ids, shape, low, 1.0, device);
                        match layout {
                            "transposed" => draw(&ids, [n, c, w, h]).swap_dims(2, 3),
                            "expanded" if step == 1 && n > 0 => {
                                draw(&[0], [1, c, h, w]).expand(shape)
                            }
                            _ => draw(&ids, shape),
                        }
                    };
                    host(kernel(values(0, 0.0), values(1, 0.0), values(2, -1.0)))
                };
                let what = format!("{name} {shape:?} {layout}");
                close(&run(flex), &run(vulkan), 1e-5, &what);
            }
        }
    }
    // More rows than a grid has cubes in one dimension.
    let many = |device: &Device| {
        let x0 = Tensor::<2>::full([70_000, 2], 0.5, device);
        let grad = x0.clone().mul_scalar(3.0);
        host(l2_step(x0.clone(), x0, grad, 0.1, 0.05, (0.0, 1.0)))
    };
    close(&many(flex), &many(vulkan), 1e-5, "l2_step of many rows");
    convolutions_agree(flex, vulkan);
    norms_agree(flex, vulkan);
    moves_to_hyperplanes_close_gaps(vulkan);
    for length in [1, 37, 1000] {
        let steps = |device: &Device| {
            let key = NoiseKey::new(4, Stream::TrainAttack);
            let draw = |step| {
                let drawn = key
                    .at(0, step)
                    .uniform::<2>(&[0], [1, length], -1.0, 1.0, device);
                drawn.flatten::<1>(0, 1)
            };
            let sgd = Sgd {
                rate: 0.1,
                momentum: 0.9,
                nesterov: true,
                decay: 5e-4,
            };
            let adam = Adam {
                rate: 0.1,
                betas: [0.9, 0.999],
                epsilon: 1e-8,
                decay: 0.01,
                keep: 0.99,
                corrections: [0.19, 0.002],
            };
            let (weights, velocity) = sgd.update(draw(0), draw(1), Some(draw(2)));
            let moments = [draw(2), draw(3).square()];
            let (other, [first, second]) = adam.update(draw(0), draw(1), Some(moments));
            [weights, velocity.unwrap(), other, first, second].map(host)
        };
        for (ours, theirs) in steps(flex).iter().zip(&steps(vulkan)) {
            close(ours, theirs, 1e-5, &format!("updates of {length}"));
        }
    }
}

/// Convolutions and their gradients: few channels and many, sizes that fill no tile, strides, kernels of one pixel and of five.
fn convolutions_agree(flex: &Device, vulkan: &Device) {
    // batch, channels in and out, height, width, kernel, stride, padding
    for shape @ [n, inputs, outputs, h, w, k, stride, pad] in [
        [5, 3, 64, 9, 7, 3, 1, 1],
        [8, 64, 32, 8, 8, 3, 2, 1],
        [8, 16, 40, 6, 6, 1, 2, 0],
        [4, 128, 96, 4, 4, 3, 1, 1],
        [2, 1, 10, 14, 14, 5, 1, 2],
    ] {
        let run = |device: &Device, dtype: FloatDType| {
            let draw = |step, shape: [usize; 4]| {
                let ids: Vec<u32> = (0..shape[0] as u32).collect();
                let key = NoiseKey::new(8, Stream::TrainAttack).at(0, step);
                key.uniform::<4>(&ids, shape, -1.0, 1.0, device)
            };
            let x = draw(0, [n, inputs, h, w]).autodiff().require_grad();
            let weight = draw(1, [outputs, inputs, k, k]).autodiff().require_grad();
            let (cast_x, cast_weight) = (x.clone().cast(dtype), weight.clone().cast(dtype));
            let y = conv2d(cast_x, cast_weight, None, [stride; 2], [pad; 2]).cast(FloatDType::F32);
            let upstream = Tensor::from_inner(draw(2, y.dims()));
            let result = host(y.clone().inner());
            let gradients = (y * upstream).sum().backward();
            let of = |leaf: &Tensor<4>| host(leaf.grad(&gradients).expect("a leaf's gradient"));
            [result, of(&x), of(&weight)]
        };
        let exact = run(flex, FloatDType::F32);
        let hold = |dtype: FloatDType, share: f32| {
            let found = run(vulkan, dtype);
            for (what, (exact, found)) in ["", "input gradient of ", "weight gradient of "]
                .iter()
                .zip(exact.iter().zip(&found))
            {
                let what = format!("{what}a convolution {shape:?} in {dtype:?}");
                let (apart, scale) = apart(exact, found, &what);
                println!("{what}: {apart:e} of {scale}");
                assert!(apart <= share * scale, "{what}: {apart} of {scale}");
            }
        };
        // Operands keep 11 bits in TF32 and 8 in bf16: some units of the last.
        hold(FloatDType::F32, if rough() { 2e-3 } else { 1e-5 });
        if rough() {
            hold(FloatDType::BF16, 2e-2);
        }
    }
}

/// Rows of one value, of a prime number of them, and more than one thread goes through.
fn norms_agree(flex: &Device, vulkan: &Device) {
    type Norms = fn(Tensor<4>) -> Tensor<1>;
    let norms: [(&str, Norms); 4] = [
        ("linf_norms", linf_norms),
        ("l2_norms", l2_norms),
        ("l1_norms", l1_norms),
        ("l0_norms", l0_norms),
    ];
    for shape in [[3, 1, 1, 1], [2, 1, 1, 127], [2, 3, 32, 32], [0, 1, 4, 4]] {
        for (name, norm) in norms {
            let run = |device: &Device| {
                let ids: Vec<u32> = (0..shape[0] as u32).collect();
                let key = NoiseKey::new(6, Stream::TrainAttack);
                let x = key.uniform::<4>(&ids, shape, -1.0, 1.0, device);
                // Half of the values are zero.
                host(norm(x.clamp_min(0.0)))
            };
            close(&run(flex), &run(vulkan), 1e-6, &format!("{name} {shape:?}"));
        }
        if shape[0] == 0 {
            continue;
        }
        let all = |device: &Device| {
            let shape: [usize; 4] = shape;
            let key = NoiseKey::new(6, Stream::TrainAttack);
            let ids: Vec<u32> = (0..shape[0] as u32).collect();
            host(total(key.uniform::<4>(&ids, shape, 0.0, 1.0, device)))
        };
        close(
            &all(flex),
            &all(vulkan),
            1e-6,
            &format!("total of {shape:?}"),
        );
    }
}

/// Moves against bisection in `f64`: a hyperplane in the middle of the box, one that cuts off a corner, and one out of reach.
fn moves_to_hyperplanes_close_gaps(device: &Device) {
    for width in [1, 37, 700] {
        let ids = [0, 1, 2, 3];
        let key = NoiseKey::new(7, Stream::TrainAttack);
        let draw = |step, low| {
            key.at(0, step)
                .uniform::<2>(&ids, [4, width], low, 1.0, device)
        };
        let (x, normal) = (draw(0, 0.0), draw(1, -1.0).powi_scalar(3));
        let gaps = [0.01, -0.02, 0.1, 10.0].map(|share: f32| share * width as f32);
        let gap = Tensor::<1>::from_floats(gaps, device);
        let (places, slopes) = (host(x.clone()), host(normal.clone()));
        for along_normal in [false, true] {
            let Some(moves) = move_to_hyperplane(&x, &normal, &gap, (0.0, 1.0), along_normal, 18)
            else {
                return println!("no kernel for moves to hyperplanes");
            };
            let moves = host(moves);
            let ways: Vec<_> = std::iter::zip(&places, &slopes)
                .enumerate()
                .map(|(at, (&x, &slope))| {
                    let falls = f64::from(slope * gaps[at / width]) > 0.0;
                    let room = f64::from(if falls { x } else { 1.0 - x });
                    let size = f64::from(slope).abs();
                    let speed = if along_normal { size } else { 1.0 };
                    (if falls { -1.0 } else { 1.0 }, size, speed, room)
                })
                .collect();
            for (row, gap) in gaps.iter().enumerate() {
                let ways = &ways[row * width..(row + 1) * width];
                let closed = |time: f64| -> f64 {
                    let gone = ways
                        .iter()
                        .map(|(_, size, v, room)| size * (v * time).min(*room));
                    gone.sum()
                };
                let (mut low, mut high) = (0.0, 1e30);
                for _ in 0..200 {
                    let middle = (low + high) / 2.0;
                    if closed(middle) < f64::from(gap.abs()) {
                        low = middle;
                    } else {
                        high = middle;
                    }
                }
                let want: Vec<f32> = ways
                    .iter()
                    .map(|(way, _, v, room)| (way * (v * high).min(*room)) as f32)
                    .collect();
                let what = format!("move {row} of {width}, along_normal {along_normal}");
                close(&want, &moves[row * width..(row + 1) * width], 1e-5, &what);
            }
        }
    }
}

/// A batch of 8x8 images with soft structure, the same on every device.
fn batch(device: &Device) -> (Tensor<4>, Tensor<1, Int>, Vec<u32>) {
    let ids: Vec<u32> = (0..6).collect();
    let images = NoiseKey::new(11, Stream::Augment).uniform(&ids, [6, 1, 8, 8], 0.0, 1.0, device);
    (images, Tensor::from_ints([0, 1, 2, 0, 1, 2], device), ids)
}

fn network(config: &ModelConfig, device: &Device) -> Network {
    config
        .init([1, 8, 8], 3, 4, &device.clone().autodiff())
        .unwrap()
}

fn gradients_and_attacks_agree(config: &ModelConfig, flex: &Device, vulkan: &Device) {
    struct Seen {
        weights: BTreeMap<String, Vec<f32>>,
        logits: Vec<f32>,
        losses: Vec<f32>,
        input_gradient: Vec<f32>,
        l2: Vec<f32>,
        apgd: Vec<f32>,
        fab: Vec<f32>,
        linf: Vec<f32>,
        linf_losses: Vec<f32>,
    }
    let see = |device: &Device| {
        let model = network(config, device);
        let frozen = model.valid();
        let (x, y, ids) = batch(device);
        let (gradient, losses, logits) =
            input_gradient(&frozen, x.clone(), y.clone(), AttackLoss::CrossEntropy);
        let attack = |threat: &str, keep| {
            let threat: gauntlet_attacks::ThreatModel = threat.parse().unwrap();
            let pgd = Pgd {
                step_size: threat.eps.value() / 4.0,
                restarts: 2,
                init: Init::Uniform,
                keep,
                ..Pgd::new(threat, 3)
            };
            let noise = Noise {
                key: NoiseKey::new(2, Stream::EvalAttack),
                samples: ids.clone(),
            };
            pgd.perturb(&frozen, x.clone(), y.clone(), &noise)
        };
        let noise = Noise {
            key: NoiseKey::new(2, Stream::EvalAttack),
            samples: ids.clone(),
        };
        let threat: gauntlet_attacks::ThreatModel = "l2:0.5".parse().unwrap();
        let apgd = Apgd {
            steps: 2,
            ..Apgd::new(threat, ApgdLoss::CrossEntropy)
        };
        // Away from what the network says: all of it is there to be found.
        let said: Tensor<1, Int> = frozen.logits(x.clone()).argmax(1).squeeze_dim(1);
        let fab = |threat: &str| {
            let fab = Fab {
                steps: 10,
                ..Fab::targeted(threat.parse().unwrap())
            };
            host(fab.minimal(&frozen, x.clone(), said.clone(), &noise) - x.clone())
        };
        let linf = attack("linf:0.1", Keep::Last);
        let best = attack("linf:0.1", Keep::Best);
        Seen {
            weights: named::data(&model)
                .into_iter()
                .map(|(path, data)| (path, data.try_to_vec().unwrap()))
                .collect(),
            logits: host(logits),
            losses: host(losses),
            input_gradient: host(gradient),
            l2: host(attack("l2:0.5", Keep::Last)),
            apgd: host(apgd.perturb(&frozen, x.clone(), y.clone(), &noise)),
            fab: ["linf:0.1", "l2:0.5"].map(fab).concat(),
            linf: host(linf),
            linf_losses: host(AttackLoss::CrossEntropy.per_sample(frozen.logits(best), y)),
        }
    };
    let (a, b) = (see(flex), see(vulkan));
    assert_eq!(a.weights, b.weights, "initial weights");
    close(&a.logits, &b.logits, 1e-4, "logits");
    close(&a.losses, &b.losses, 1e-4, "losses");
    gradients_close(&a.input_gradient, &b.input_gradient, 1e-4, "input gradient");
    close(&a.l2, &b.l2, 1e-4, "L2 examples");
    close(&a.apgd, &b.apgd, 1e-3, "APGD examples");
    assert!(a.fab.iter().any(|moved| *moved != 0.0), "FAB found nothing");
    if rough() {
        // Boundaries are crossed elsewhere, and as near.
        let [ours, theirs] = [&a.fab, &b.fab].map(|moves| length(moves));
        close(&[ours], &[theirs], 1e-3, "length of FAB's moves");
    } else {
        close(&a.fab, &b.fab, 1e-3, "FAB's moves");
    }
    let flipped = a
        .linf
        .iter()
        .zip(&b.linf)
        .filter(|(a, b)| (*a - *b).abs() > 1e-5)
        .count();
    println!(
        "L-inf examples: {flipped} of {} pixels differ",
        a.linf.len()
    );
    assert!(
        flipped * if rough() { 10 } else { 100 } <= a.linf.len(),
        "L-inf examples: {flipped} of {} pixels differ",
        a.linf.len()
    );
    close(
        &a.linf_losses,
        &b.linf_losses,
        1e-3,
        "losses of L-inf examples",
    );
}

fn updates_agree(config: &ModelConfig, flex: &Device, vulkan: &Device) {
    let optimizers = [
        r#"{"kind":"sgd","nesterov":true,"weight_decay":0.01}"#,
        r#"{"kind":"adam-w","epsilon":1e-3}"#,
    ];
    // In TF32 the second step of a network with BatchNorm starts elsewhere: weights that are rounded to it before each step, on the
    // CPU, move a gradient of the second step by 10 % of its length with SGD and by 35 % with AdamW.
    let (kinds, steps) = if rough() { (1, 1) } else { (2, 3) };
    for optimizer in &optimizers[..kinds] {
        // Adam divides by the size of a gradient; a larger epsilon keeps gradients that are zero to rounding from being
        // blown up to full steps of either sign.
        let train = |device: &Device| {
            let mut model = network(config, device);
            let mut optimizer =
                Optimizer::new(serde_json::from_str::<OptimizerConfig>(optimizer).unwrap());
            let (x, y, _) = batch(device);
            let mut trace = Vec::new();
            for _ in 0..steps {
                let loss = cross_entropy(model.logits(x.clone().autodiff()), y.clone(), 0.1);
                let value = host(loss.clone().inner());
                let gradients = GradientsParams::from_grads(loss.backward(), &model);
                let gradients = clip_global_norm(&model, gradients, 1.0);
                let seen = by_path(&model, &gradients);
                model = optimizer.step(0.05, model, gradients);
                trace.push((value, seen, named::data(&model)));
            }
            trace
        };
        for (step, (a, b)) in train(flex).into_iter().zip(train(vulkan)).enumerate() {
            close(&a.0, &b.0, 1e-3, &format!("loss at step {step}"));
            assert_eq!(
                a.1.keys().collect::<Vec<_>>(),
                b.1.keys().collect::<Vec<_>>()
            );
            for (path, gradient) in &a.1 {
                let share = if step == 0 { 1e-4 } else { 1e-3 };
                let what = format!("gradient of {path} at step {step}");
                gradients_close(gradient, &b.1[path], share, &what);
            }
            for (path, weights) in &a.2 {
                let values = |data: &burn::tensor::TensorData| data.try_to_vec::<f32>().unwrap();
                close(
                    &values(weights),
                    &values(&b.2[path]),
                    1e-3,
                    &format!("{path} after step {step}"),
                );
            }
        }
    }
}

/// An audit of few images computes few rows, where it was called from, and finds the same.
fn audits_agree(flex: &Device, vulkan: &Device) {
    struct Watched {
        model: Network,
        caller: ThreadId,
        most: AtomicUsize,
    }
    impl Classifier<4> for Watched {
        fn logits(&self, x: Tensor<4>) -> Tensor<2> {
            let here = std::thread::current().id();
            assert_eq!(here, self.caller, "another thread than the weights'");
            self.most.fetch_max(x.dims()[0], Ordering::Relaxed);
            self.model.logits(x)
        }
        fn features(&self, x: Tensor<4>) -> Tensor<2> {
            self.model.features(x)
        }
    }
    let plan: AuditPlan = toml::from_str(
        r#"
        name = "few"
        [[threat]]
        within = "linf:0.1"
        [[threat.attack]]
        kind = "apgd"
        steps = 3
        "#,
    )
    .unwrap();
    let setting = Setting {
        classes: 10,
        load: &|_| Err("there is none".to_owned()),
        fit: None,
    };
    let suite = plan.suites(&setting).unwrap().remove(0);
    let config = serde_json::from_str(r#"{"source":"digits"}"#).unwrap();
    let data = load(&config, Path::new(""), 0).unwrap().test.take(37);
    let config: ModelConfig = serde_json::from_str(r#"{"arch":"mlp","width":16}"#).unwrap();
    let run = |device: &Device| {
        let model = Watched {
            model: config.init([1, 8, 8], 10, 0, device).unwrap(),
            caller: std::thread::current().id(),
            most: AtomicUsize::new(0),
        };
        let subject = Subject {
            model: &model,
            data: &data,
            device,
            seed: 1,
            batch_size: 512,
            workers: 1,
        };
        let mut standing = Standing::default();
        let done = suite.run(&subject, &mut standing, &mut |_, _| Ok(true));
        assert!(done.unwrap());
        (
            standing.clean,
            standing.fell_to,
            model.most.load(Ordering::Relaxed),
        )
    };
    let (on_cpu, on_gpu) = (run(flex), run(vulkan));
    assert_eq!((&on_cpu.0, &on_cpu.1), (&on_gpu.0, &on_gpu.1), "an audit");
    assert!(on_gpu.1.iter().any(Option::is_some), "nothing fell");
    assert_eq!(
        (on_cpu.2, on_gpu.2),
        (37, 40),
        "rows of an audit of 37 images"
    );
}

/// The whole trainer: loader, augmentation, attack, average of the weights, validation.
fn whole_runs_agree(flex: &Device, vulkan: &Device) {
    run_agrees(r#"{ arch = "mlp", width = 16 }"#, flex, vulkan);
    // A network of which every layer trains; too slow for a software driver.
    if rough() {
        run_agrees(r#"{ arch = "preact-resnet18" }"#, flex, vulkan);
    }
}

fn run_agrees(model: &str, flex: &Device, vulkan: &Device) {
    let plan: Plan = toml::from_str(&format!(
        r#"
        name = "conformance"
        data = {{ source = "digits", validation = 16, limit = 32, batch_size = 16, augment = ["crop", "flip"] }}
        model = {model}
        threat = {{ norm = "l2", eps = 0.5 }}
        [train]
        objective = "pgd"
        epochs = 2
        interleave = {{ pattern = "mixed", adversarial = 0.5 }}
        optimizer = {{ kind = "sgd" }}
        schedule = {{ kind = "constant", rate = {rate} }}
        ema = {{ decay = 0.9 }}
        attack = {{ steps = 2 }}
        [evaluate]
        attack = {{ steps = 2 }}
        "#,
        rate = if model.contains("mlp") { 0.1 } else { 0.01 },
    ))
    .unwrap();
    let plan = plan.resolved();
    let splits = load(&plan.data, Path::new(""), plan.seed).unwrap();
    let run_in = |device: &Device, folder: &Path, epochs: u32| {
        let mut plan = plan.clone();
        plan.train.epochs = epochs;
        let description = Description {
            config: plan.model.clone(),
            shape: splits.train.shape,
            classes: splits.train.classes.to_vec(),
        };
        let model = description
            .init(plan.seed, &device.clone().autodiff())
            .unwrap();
        let session = Session {
            plan: &plan,
            description: &description,
            folder,
            label: "hardened",
            splits: &splits,
            device,
            sinks: &mut [],
            stop: &AtomicBool::new(false),
            allow_inexact: false,
        };
        let fitted = fit(model, session).unwrap();
        let metrics = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
        let records: Vec<Record> = metrics
            .lines()
            .map(|line| Record {
                images_per_second: None,
                ..serde_json::from_str(line).unwrap()
            })
            .collect();
        (records, named::data(&fitted.model))
    };
    let run = |device: &Device| run_in(device, tempfile::tempdir().unwrap().path(), 2);
    let (a, b) = (run(flex), run(vulkan));
    // No float atomics, no kernel chosen by the clock: twice the same is the same to the bit.
    assert_eq!(b.1, run(vulkan).1, "the same run twice on one device");
    let folder = tempfile::tempdir().unwrap();
    run_in(vulkan, folder.path(), 1);
    let resumed = run_in(vulkan, folder.path(), 2);
    assert_eq!(
        b, resumed,
        "a run that was interrupted after half of its steps"
    );
    assert_eq!(a.0.len(), 6, "four steps and two validations");
    for (a, b) in a.0.iter().zip(&b.0) {
        if rough() {
            close(&[a.loss as f32], &[b.loss as f32], 1e-3, "loss of a run");
            continue;
        }
        assert_eq!(
            (a.step, a.kind, a.accuracy, a.robust_accuracy),
            (b.step, b.kind, b.accuracy, b.robust_accuracy)
        );
        close(&[a.loss as f32], &[b.loss as f32], 1e-3, "loss of a run");
    }
    if rough() {
        return;
    }
    for (path, weights) in &a.1 {
        let values = |data: &burn::tensor::TensorData| data.try_to_vec::<f32>().unwrap();
        close(&values(weights), &values(&b.1[path]), 1e-3, path);
    }
}

/// Gradients by the path of their parameter.
fn by_path(model: &Network, gradients: &GradientsParams) -> BTreeMap<String, Vec<f32>> {
    struct Collect<'a>(named::Path, &'a GradientsParams, BTreeMap<String, Vec<f32>>);
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.1.get::<D>(param.id) {
                self.2.insert(self.0.name(), host(gradient));
            }
        }
    }
    let mut collect = Collect(named::Path::default(), gradients, BTreeMap::new());
    model.visit(&mut collect);
    assert!(!collect.2.is_empty());
    collect.2
}

fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.try_into_vec_as().unwrap()
}

/// [`close`], or in TF32 to a tenth of the length: where a `relu` is zero to rounding it may open or shut, and single values of a
/// gradient move by several percent of the largest. (Weights rounded to TF32 on the CPU, and nothing else, do that.)
fn gradients_close(a: &[f32], b: &[f32], share: f32, what: &str) {
    if !rough() {
        return close(a, b, share, what);
    }
    assert_eq!(a.len(), b.len(), "{what}");
    let apart: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let (apart, whole) = (length(&apart), length(a));
    println!("{what}: {apart:e} of its length {whole:e}");
    assert!(apart <= 0.1 * whole + 1e-6, "{what}: {apart} of {whole}");
}

fn length(values: &[f32]) -> f32 {
    values.iter().map(|v| v * v).sum::<f32>().sqrt()
}

/// The largest difference (not a number if there is one that is none), and the largest value.
fn apart(a: &[f32], b: &[f32], what: &str) -> (f32, f32) {
    assert_eq!(a.len(), b.len(), "{what}");
    let scale = a.iter().fold(1e-3f32, |most, v| most.max(v.abs()));
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    let apart = differences.fold(
        0f32,
        |most, d| if d > most || d.is_nan() { d } else { most },
    );
    (apart, scale)
}

/// Agreement to `share` of the largest value.
fn close(a: &[f32], b: &[f32], share: f32, what: &str) {
    let (apart, scale) = apart(a, b, what);
    let share = match rough() && share >= 1e-4 {
        true => 100.0 * share,
        false => share,
    };
    if std::env::var_os("GAUNTLET_TALK").is_some() {
        println!("{what}: {apart:e} of {scale}, {share:e} allowed");
    }
    assert!(
        apart <= share * scale,
        "{what}: {apart} apart, with values up to {scale}"
    );
}
