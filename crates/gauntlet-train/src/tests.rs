//! What a whole run keeps to: the same run twice, in one go or in pieces, is the same run.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{DType, Device};
use gauntlet_data::{Dataset, Splits};
use gauntlet_models::{Classifier, Description, Network, weights};

use crate::{
    Event, Fitted, MetricSink, Objective, Plan, Precision, Record, Session, Split, TrainError,
    checkpoint, fit,
};

/// Two classes of 1x8x8 images, bright left or bright right, with a little texture.
pub(crate) fn dataset(split: &'static str, samples: usize) -> Dataset {
    let pixel = |sample: usize, i: usize| {
        let bright = (i % 8 < 4) == sample.is_multiple_of(2);
        let texture = (sample * 31 + i * 17) % 40;
        (if bright { 180 } else { 40 } + texture) as u8
    };
    Dataset {
        name: "halves".to_owned(),
        split,
        pixels: Arc::new(
            (0..samples)
                .flat_map(|sample| (0..64).map(move |i| pixel(sample, i)))
                .collect(),
        ),
        max: 255,
        shape: [1, 8, 8],
        labels: Arc::new((0..samples as u32).map(|sample| sample % 2).collect()),
        ids: Arc::new((0..samples as u32).collect()),
        classes: Arc::new(vec!["left".to_owned(), "right".to_owned()]),
        sha256: String::new(),
    }
}

pub(crate) fn splits() -> Splits {
    Splits {
        train: dataset("train", 48),
        validation: dataset("validation", 20),
        test: dataset("test", 20),
        extra: None,
    }
}

/// BatchNorm, an average of the weights and momentum: everything that a checkpoint must carry.
const PLAN: &str = r#"
    name = "halves"
    seed = 3
    data = { source = "digits", batch_size = 8, augment = ["crop"] }
    model = { arch = "wide-resnet", depth = 10, width = 1 }
    threat = { norm = "linf", eps = 0.1 }
    [train]
    objective = "pgd"
    epochs = 3
    interleave = { pattern = "mixed", adversarial = 0.5, ramp_epochs = 1.0 }
    optimizer = { kind = "sgd", momentum = 0.9, nesterov = true, weight_decay = 5e-4 }
    schedule = { kind = "one-cycle", peak = 0.05 }
    clip_norm = 1.0
    label_smoothing = 0.1
    ema = { decay = 0.9 }
    attack = { steps = 2 }
    [evaluate]
    attack = { steps = 2 }
"#;

fn plan(change: impl Fn(&mut Plan)) -> Plan {
    let mut plan: Plan = toml::from_str(PLAN).unwrap();
    change(&mut plan);
    plan.check().unwrap();
    plan.resolved()
}

/// Sets the stop flag after so many training steps, as Ctrl-C would.
pub(crate) struct StopAfter(pub(crate) u64, pub(crate) Arc<AtomicBool>);

impl MetricSink for StopAfter {
    fn event(&mut self, event: &Event<'_>) -> Result<(), String> {
        if matches!(event, Event::Record(record) if record.split == Split::Train && record.step == self.0)
        {
            self.1.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// A sink that fails at once and must not be asked again.
struct Broken(u32);

impl MetricSink for Broken {
    fn event(&mut self, _: &Event<'_>) -> Result<(), String> {
        assert_eq!(self.0, 0, "a failed sink was used again");
        self.0 += 1;
        Err("no space left".to_owned())
    }
}

fn run(folder: &Path, plan: &Plan, stop_after: Option<u64>) -> Result<Fitted<Network>, TrainError> {
    let device = Device::flex();
    let splits = splits();
    let description = Description {
        config: plan.model.clone(),
        shape: splits.train.shape,
        classes: splits.train.classes.to_vec(),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let mut sinks: Vec<Box<dyn MetricSink>> = vec![Box::new(Broken(0))];
    if let Some(step) = stop_after {
        sinks.push(Box::new(StopAfter(step, Arc::clone(&stop))));
    }
    let model = description
        .init(plan.seed, &device.clone().autodiff())
        .unwrap();
    fit(
        model,
        Session {
            plan,
            description: &description,
            folder,
            label: "hardened",
            splits: &splits,
            device: &device,
            sinks: &mut sinks,
            stop: &stop,
            allow_inexact: false,
        },
    )
}

pub(crate) fn records(folder: &Path) -> Vec<Record> {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_run_in_pieces_is_the_run_in_one_go_bit_for_bit() {
    let (whole, pieces) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plan = plan(|plan| plan.checkpoint.every_steps = Some(4));
    let expected = run(whole.path(), &plan, None).unwrap();
    assert!(expected.finished);

    // In the middle of an epoch, at its last step (validation is still to come), and inside the next.
    for stop in [2, 6, 9] {
        assert!(!run(pieces.path(), &plan, Some(stop)).unwrap().finished);
        assert_eq!(
            checkpoint::list(pieces.path()).last().unwrap().0,
            stop,
            "Ctrl-C saves first"
        );
    }
    let found = run(pieces.path(), &plan, None).unwrap();
    assert!(found.finished);
    assert_eq!(found.step, expected.step);
    assert_eq!(
        weights::hashes(&found.model),
        weights::hashes(&expected.model)
    );
    let bytes = |folder: &Path| std::fs::read(folder.join("metrics.jsonl")).unwrap();
    assert!(
        bytes(pieces.path()) == bytes(whole.path()),
        "metrics differ"
    );
    let last = |folder: &Path| checkpoint::list(folder).last().unwrap().1.clone();
    for file in [
        "model.safetensors",
        "live.safetensors",
        "optimizer.safetensors",
    ] {
        let bytes = |folder: &Path| std::fs::read(last(folder).join(file)).unwrap();
        assert!(
            bytes(pieces.path()) == bytes(whole.path()),
            "{file} differs"
        );
    }
    // Once more: there is nothing left to do, and nothing changes.
    assert!(run(pieces.path(), &plan, None).unwrap().finished);
    assert!(
        bytes(pieces.path()) == bytes(whole.path()),
        "metrics differ"
    );
}

/// What a finished run left: weights, optimizer, state of the method, metrics.
pub(crate) fn left(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let newest = checkpoint::list(folder).last().unwrap().1.clone();
    let mut files: Vec<_> = std::fs::read_dir(newest)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.push(folder.join("metrics.jsonl"));
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect()
}

/// Every method, and everything that goes around methods, with a network that has BatchNorm.
#[test]
fn every_method_in_pieces_is_the_method_in_one_go_bit_for_bit() {
    let teacher = tempfile::tempdir().unwrap();
    let of = teacher.path().display().to_string();
    run(teacher.path(), &plan(|plan| plan.train.epochs = 1), None).unwrap();
    let cases: Vec<(Objective, String)> = Objective::ALL
        .into_iter()
        .map(|objective| {
            let table = match objective {
                Objective::Hat => format!("hat = {{ helper = {of:?} }}"),
                Objective::Distill => {
                    format!("distill = {{ teacher = {of:?}, standard_teacher = {of:?} }}")
                }
                Objective::MultiNorm => {
                    "multi-norm = { threats = [\"linf:0.1\", \"l2:0.5\"], combine = \"max\" }"
                        .to_owned()
                }
                Objective::Free => "free = { replays = 3 }".to_owned(),
                _ => String::new(),
            };
            (objective, table)
        })
        .chain([
            (
                Objective::Pgd,
                "awp = { gamma = 0.01, warmup_epochs = 1 }".to_owned(),
            ),
            (
                Objective::Pgd,
                "norm_layers = \"split-adversarial\"\nawp = {}".to_owned(),
            ),
            (
                Objective::Trades,
                "norm_layers = \"split-clean\"".to_owned(),
            ),
            (Objective::Trades, "swa = { from_epoch = 1 }".to_owned()),
            (Objective::Pgd, "precision = \"bf16\"".to_owned()),
            (Objective::Trades, "precision = \"bf16-attack\"".to_owned()),
            (
                Objective::Pgd,
                "curriculum = [{ epoch = 0, steps = 1, eps = 0.5 }, { epoch = 1, steps = 3 }]"
                    .to_owned(),
            ),
        ])
        .collect();
    for (objective, table) in cases {
        let mut text = PLAN.replace(
            "objective = \"pgd\"",
            &format!("objective = \"{objective}\"\n{table}"),
        );
        let steps = if objective.is_single_step() { 1 } else { 2 };
        text = text.replacen(
            "attack = { steps = 2 }",
            &format!("attack = {{ steps = {steps} }}"),
            1,
        );
        if !objective.mixes() {
            let pattern =
                "interleave = { pattern = \"mixed\", adversarial = 0.5, ramp_epochs = 1.0 }";
            let other = match objective {
                Objective::Standard => "",
                _ => {
                    "interleave = { pattern = \"alternate\", adversarial = 0.7, ramp_epochs = 1.0 }"
                }
            };
            text = text.replace(pattern, other);
        }
        if table.contains("swa") || table.contains("split-clean") {
            text = text.replace("ema = { decay = 0.9 }", "");
        }
        let plan: Plan = toml::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        plan.check()
            .unwrap_or_else(|error| panic!("{objective} {table}: {error}"));
        let plan = plan.resolved();
        let (whole, pieces) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let expected = run(whole.path(), &plan, None).unwrap();
        for stop in [3, 6, 11] {
            assert!(!run(pieces.path(), &plan, Some(stop)).unwrap().finished);
        }
        let found = run(pieces.path(), &plan, None).unwrap();
        assert_eq!(found.step, expected.step, "{objective} {table}");
        let (whole, pieces) = (left(whole.path()), left(pieces.path()));
        for ((name, expected), (_, found)) in whole.iter().zip(&pieces) {
            assert!(expected == found, "{objective} {table}: {name} differs");
        }
        assert_eq!(whole.len(), pieces.len());
    }
}

/// Arithmetic in `bf16` is another run, that begins as the same does; checkpoints hold `f32`.
#[test]
fn a_run_in_bf16_begins_as_one_in_f32_and_keeps_f32() {
    let trained = |precision: Precision| {
        let folder = tempfile::tempdir().unwrap();
        let plan = plan(|plan| plan.train.precision = precision);
        let fitted = run(folder.path(), &plan, None).unwrap();
        let data = gauntlet_models::named::data(&fitted.model);
        assert!(data.values().all(|data| data.dtype() == DType::F32));
        let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        let first: Record = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        (weights::hashes(&fitted.model), first.loss)
    };
    let exact = trained(Precision::F32);
    let [attack, all] = [Precision::Bf16Attack, Precision::Bf16].map(trained);
    assert!(exact.0 != attack.0 && attack.0 != all.0 && exact.0 != all.0);
    for (_, loss) in [attack, all] {
        let off = (loss - exact.1).abs() / exact.1;
        assert!(off < 0.02, "a first loss of {loss}, not {}", exact.1);
    }
}

/// The same plan twice is the same run; another seed is another.
#[test]
fn the_seed_decides() {
    let metrics = |seed: u64| {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), &plan(|plan| plan.seed = seed), None).unwrap();
        std::fs::read(folder.path().join("metrics.jsonl")).unwrap()
    };
    let (first, again, other) = (metrics(3), metrics(3), metrics(4));
    assert!(first == again);
    assert!(first != other);
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(|plan| plan.checkpoint.keep = 3);
    let expected = weights::hashes(&run(folder.path(), &plan, None).unwrap().model);
    let all = checkpoint::list(folder.path());
    let weights = all.last().unwrap().1.join("model.safetensors");
    let good = std::fs::read(&weights).unwrap();

    let mut flipped = good.clone();
    let middle = flipped.len() - 40;
    flipped[middle] ^= 0x10;
    for bad in [&flipped[..], &good[..good.len() / 3], &[]] {
        std::fs::write(&weights, bad).unwrap();
        let fitted = run(folder.path(), &plan, None).unwrap();
        assert_eq!(weights::hashes(&fitted.model), expected);
        assert!(
            std::fs::read(&weights).unwrap() == good,
            "the step was not trained again"
        );
    }

    for (_, path) in checkpoint::list(folder.path()) {
        std::fs::write(path.join("model.safetensors"), b"").unwrap();
    }
    let error = run(folder.path(), &plan, None).unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
}

#[test]
fn a_checkpoint_that_was_never_finished_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(|_| ());
    let partial = folder.path().join("checkpoints/.step-00000099.partial");
    std::fs::create_dir_all(&partial).unwrap();
    std::fs::write(partial.join("model.safetensors"), b"half").unwrap();
    assert!(run(folder.path(), &plan, None).unwrap().finished);
    assert!(!partial.exists());
}

#[test]
fn the_best_is_kept_beside_the_newest_and_is_what_ships() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(|plan| {
        plan.checkpoint.keep = 1;
        plan.train.epochs = 6;
    });
    let fitted = run(folder.path(), &plan, None).unwrap();
    let validations: Vec<_> = records(folder.path())
        .into_iter()
        .filter(|r| r.split == Split::Validation)
        .collect();
    assert_eq!(validations.len(), 6);
    let top = validations
        .iter()
        .map(|r| r.robust_accuracy.unwrap())
        .fold(0.0, f64::max);
    let first_top = validations
        .iter()
        .find(|r| r.robust_accuracy == Some(top))
        .unwrap();
    assert_eq!(fitted.step, first_top.step);
    let best = checkpoint::best(folder.path()).unwrap();
    assert!(
        best.ends_with(format!("step-{:08}", fitted.step)),
        "{}",
        best.display()
    );
    let (loaded, description) = checkpoint::load_network(&best, &Device::flex()).unwrap();
    assert_eq!(weights::hashes(&loaded), weights::hashes(&fitted.model));
    assert_eq!(description.classes, ["left", "right"]);
    assert!(checkpoint::list(folder.path()).len() <= 2);
}

#[test]
fn records_say_what_each_step_was() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(|plan| plan.train.interleave.clean_epochs = 1);
    run(folder.path(), &plan, None).unwrap();
    let train: Vec<_> = records(folder.path())
        .into_iter()
        .filter(|r| r.split == Split::Train)
        .collect();
    assert_eq!(train.len(), 18);
    let shares: Vec<_> = train.iter().map(|r| r.adversarial).collect();
    assert!(
        shares[..6].iter().all(|&share| share == 0.0)
            && shares[6..].iter().all(|&share| share == 0.5)
    );
    let eps: Vec<_> = train.iter().map(|r| r.eps).collect();
    assert!(eps[..6].iter().all(|&eps| eps == 0.0));
    for (i, eps) in eps[6..].iter().enumerate() {
        let expected = 0.1 * ((i + 1) as f64 / 6.0).min(1.0);
        assert!((eps - expected).abs() < 1e-6, "step {i} of the ramp: {eps}");
    }
}

#[test]
fn a_standard_run_learns_and_an_exploding_one_stops_with_its_checkpoints_whole() {
    let folder = tempfile::tempdir().unwrap();
    let standard = plan(|_| ()).baseline();
    let fitted = run(folder.path(), &standard, None).unwrap();
    let device = Device::flex();
    let test = splits().test;
    let (x, y) = test.batch(&(0..20).collect::<Vec<_>>(), &device);
    let hits: f32 = fitted
        .model
        .logits(x)
        .argmax(1)
        .squeeze_dim::<1>(1)
        .equal(y)
        .float()
        .mean()
        .into_scalar();
    assert!(hits > 0.9, "{hits}");

    let folder = tempfile::tempdir().unwrap();
    let exploding = plan(|plan| {
        plan.train.clip_norm = None;
        plan.train.schedule = crate::ScheduleConfig::Constant { rate: 1e20 };
        plan.checkpoint.every_steps = Some(1);
    });
    let error = run(folder.path(), &exploding, None).unwrap_err();
    let TrainError::NotFinite { step, .. } = error else {
        panic!("{error}")
    };
    let (saved, path) = checkpoint::list(folder.path()).pop().unwrap();
    assert_eq!(saved, step);
    checkpoint::load_network(&path, &device).unwrap();
}

/// The tensors of a file of the newest checkpoint, by name.
fn saved(folder: &Path, file: &str) -> std::collections::BTreeMap<String, Vec<f32>> {
    let (_, path) = checkpoint::list(folder).pop().unwrap();
    let bytes = std::fs::read(path.join(file)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let floats = |bytes: &[u8]| {
        let each = bytes.chunks_exact(4);
        each.map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    };
    let all = tensors.iter();
    all.map(|(name, view)| (name.to_owned(), floats(view.data())))
        .collect()
}

/// Weights that are moved by next to nothing give the run that does not move them. BatchNorm would tell: were its statistics moved
/// by the pass that looks for the direction, or by none, they would be others.
#[test]
fn a_perturbation_of_no_size_changes_nothing_not_even_the_statistics() {
    let run_of = |awp: Option<f64>| {
        let folder = tempfile::tempdir().unwrap();
        let plan = plan(|plan| {
            plan.train.ema = None;
            plan.train.awp = awp.map(|gamma| crate::AwpConfig {
                gamma,
                warmup_epochs: 0,
            });
        });
        run(folder.path(), &plan, None).unwrap();
        saved(folder.path(), "model.safetensors")
    };
    let (without, tiny, large) = (run_of(None), run_of(Some(1e-9)), run_of(Some(0.01)));
    let apart = |other: &std::collections::BTreeMap<String, Vec<f32>>, statistics: bool| {
        let mut most = 0.0f32;
        for (name, values) in &without {
            if name.contains("running") == statistics {
                let pairs = values.iter().zip(&other[name]);
                most = pairs.map(|(a, b)| (a - b).abs()).fold(most, f32::max);
            }
        }
        most
    };
    for statistics in [false, true] {
        let (tiny, large) = (apart(&tiny, statistics), apart(&large, statistics));
        assert!(
            tiny < 1e-3 && large > 10.0 * tiny.max(1e-4),
            "{tiny} {large}"
        );
    }
}

/// Xie et al. 2020: statistics, scale and shift of their own for clean examples; everything else is one network.
#[test]
fn split_normalisation_splits_normalisation_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let split = plan(|plan| {
        plan.train.norm_layers = crate::NormLayers::SplitAdversarial;
        plan.train.ema = None;
        plan.threat.eps = "0.4".parse().unwrap();
    });
    run(folder.path(), &split, None).unwrap();
    let [main, clean] =
        ["live.safetensors", "clean.safetensors"].map(|file| saved(folder.path(), file));
    assert!(main.keys().eq(clean.keys()));
    for (name, values) in &main {
        let norm = ["gamma", "beta", "running_mean", "running_var", "norm"];
        let of_norm = norm.iter().any(|part| name.contains(part));
        assert_eq!(values != &clean[name], of_norm, "{name}");
    }
}
