//! Audits, as people and scripts meet them: plans, budgets, interruptions, gates, and the files that are left.

mod place;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor, TensorData};
use gauntlet_attacks::evaluate::predictions;
use gauntlet_data::{DataConfig, Source};
use gauntlet_formats::npy::Array;
use gauntlet_formats::zip::Archive;
use gauntlet_models::Classifier;
use gauntlet_train::checkpoint;
use place::Place;
use serde_json::Value;

/// A place with a trained run in `runs/small`.
fn trained() -> Place {
    let place = Place::new();
    place
        .line("train small.toml --set evaluate.baseline=false --quiet")
        .done();
    place
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn share(value: &Value) -> f64 {
    value["robust_accuracy"].as_f64().unwrap()
}

/// A safetensors file, read by the letter of its format: names with types and values, and the metadata.
struct Outcomes {
    tensors: BTreeMap<String, (String, Vec<u8>)>,
    metadata: BTreeMap<String, String>,
}

impl Outcomes {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: BTreeMap<String, Value> =
            serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let data = &bytes[8 + length..];
        let metadata = header.remove("__metadata__").unwrap();
        let tensor = |(name, about): (String, Value)| {
            let at = |end: usize| about["data_offsets"][end].as_u64().unwrap() as usize;
            let kind = about["dtype"].as_str().unwrap().to_owned();
            (name, (kind, data[at(0)..at(1)].to_vec()))
        };
        Self {
            tensors: header.into_iter().map(tensor).collect(),
            metadata: serde_json::from_value(metadata).unwrap(),
        }
    }

    fn whole(&self, name: &str) -> Vec<i64> {
        let (kind, bytes) = &self.tensors[name];
        assert_eq!(kind, "I64", "{name}");
        let (values, _) = bytes.as_chunks::<8>();
        values.iter().map(|v| i64::from_le_bytes(*v)).collect()
    }

    fn real(&self, name: &str) -> Vec<f32> {
        let (kind, bytes) = &self.tensors[name];
        assert_eq!(kind, "F32", "{name}");
        let (values, _) = bytes.as_chunks::<4>();
        values.iter().map(|v| f32::from_le_bytes(*v)).collect()
    }
}

const CURVE: &str = r#"name = "curve"

[[threat]]
within = ["linf:0.1", "linf:1/50", "linf:0.05"]
suite = "quick"

[[threat]]
within = "l2:0.4"
attack = [{ kind = "deepfool" }]

[[threat]]
within = "linf:0.1 + l2:0.4"
attack = [{ kind = "msd", steps = 5 }]
"#;

#[test]
fn a_curve_falls_and_larger_budgets_begin_with_what_fell_within_smaller_ones() {
    let place = trained();
    place.write("curve.toml", CURVE);
    let audit = |plan: &str| {
        place.line(&format!(
            "audit runs/small --plan {plan} --samples 100 --out curve"
        ))
    };
    let done = audit("curve.toml").done();
    for word in ["linf:1/50", "what fell within linf:0.05", "DeepFool-50"] {
        assert!(
            done.stdout.contains(word),
            "no `{word}` in:\n{}",
            done.stdout
        );
    }
    let found = json(&place.path("curve/audit.json"));
    let threats = found["threats"].as_array().unwrap();
    let names: Vec<_> = threats.iter().map(|threat| &threat["threat"]).collect();
    let order = [
        "linf:0.1",
        "linf:1/50",
        "linf:0.05",
        "l2:0.4",
        "linf:0.1 + l2:0.4",
    ];
    assert_eq!(names, order, "the order is the plan's");
    let robust: Vec<_> = threats.iter().map(share).collect();
    assert!(
        robust[1] >= robust[2] && robust[2] >= robust[0],
        "{robust:?}"
    );
    assert!(
        robust[1] > robust[0] + 0.1,
        "no curve: {robust:?} would hold of any test"
    );
    assert!(robust[4] <= robust[0].min(robust[3]), "{robust:?}");
    let first = |threat: usize| threats[threat]["attacks"][0]["name"].as_str().unwrap();
    assert_eq!(first(1), "APGD-CE-50");
    assert_eq!(first(2), "what fell within linf:1/50");
    assert_eq!(first(0), "what fell within linf:0.05");
    assert_eq!(first(4), "what fell within linf:0.1, l2:0.4");

    let outcomes = Outcomes::read(&place.path("curve/outcomes.safetensors"));
    let labels = outcomes.whole("label");
    let clean = outcomes.whole("clean");
    assert_eq!(outcomes.whole("index"), (0..100).collect::<Vec<i64>>());
    assert!(
        outcomes
            .real("clean_confidence")
            .iter()
            .all(|p| (0.0..=1.0).contains(p))
    );
    let limits = [Some(0.1), Some(0.02), Some(0.05), Some(0.4), None];
    for ((name, robust), limit) in order.into_iter().zip(&robust).zip(limits) {
        let of = |tensor: &str| format!("{name}/{tensor}");
        let attacks = &outcomes.metadata[&of("attacks")];
        let attacks: Vec<String> = serde_json::from_str(attacks).unwrap();
        let fell_to = outcomes.whole(&of("fell_to"));
        let said = outcomes.whole(&of("said"));
        let distance = outcomes.real(&of("distance"));
        let confidence = outcomes.real(&of("confidence"));
        let mut standing = 0;
        for i in 0..100 {
            let fell = fell_to[i] >= 0;
            assert!(fell_to[i] < attacks.len() as i64);
            assert!(!fell || clean[i] == labels[i], "it was wrong already");
            standing += usize::from(!fell && clean[i] == labels[i]);
            assert_eq!(said[i] >= 0, fell, "{name}, sample {i}");
            assert!(said[i] != labels[i]);
            assert_eq!(!confidence[i].is_nan(), fell);
            match limit {
                Some(limit) if fell => assert!(distance[i] > 0.0 && distance[i] <= limit + 1e-5),
                _ => assert!(distance[i].is_nan()),
            }
        }
        assert_eq!(standing as f64 / 100.0, *robust, "{name}");
    }
    let fell = |name: &str, by: &dyn Fn(i64) -> bool| -> Vec<usize> {
        let fell_to = outcomes.whole(&format!("{name}/fell_to"));
        (0..100).filter(|&i| by(fell_to[i])).collect()
    };
    assert_eq!(
        fell("linf:0.1", &|attack| attack == 0),
        fell("linf:0.05", &|attack| attack >= 0),
        "what fell within less falls at once within more"
    );
    let page = fs::read_to_string(place.path("curve/audit.html")).unwrap();
    assert!(page.contains("--plan plan.toml"), "how to do it again");
    let plan = fs::read_to_string(place.path("curve/plan.toml")).unwrap();
    place.write("again.toml", &plan);
    audit("again.toml").done();
    // Done already, to the last digit of the times.
    assert_eq!(json(&place.path("curve/audit.json")), found);
}

/// Two attacks, the second of which takes some seconds.
const SLOW: &str = r#"name = "slow"

[[threat]]
within = "linf:0.05"

[[threat.attack]]
kind = "pgd"
steps = 5

[[threat.attack]]
kind = "pgd"
steps = 3000
loss = "margin"
"#;

/// The state of the only suite in a folder.
fn state(folder: &Path) -> Option<(PathBuf, Value)> {
    let entries = fs::read_dir(folder.join("state")).ok()?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let path = paths.find(|path| path.extension().is_some_and(|end| end == "json"))?;
    let state: Value = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
    Some((path, state))
}

/// How many samples have been through the second attack.
fn through_second(state: &Value) -> usize {
    let through = state["standing"]["through"].as_array().unwrap();
    through.iter().filter(|place| **place == 2).count()
}

/// Waits until more than `samples` have been through the second attack, and returns the state.
fn wait_for_second(child: &mut Child, folder: &Path, samples: usize) -> Value {
    let began = Instant::now();
    loop {
        if let Some((_, state)) = state(folder)
            && through_second(&state) > samples
        {
            return state;
        }
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it could be stopped"
        );
        assert!(began.elapsed() < Duration::from_secs(120), "no progress");
        sleep(Duration::from_millis(5));
    }
}

#[cfg(unix)]
#[test]
fn an_audit_that_is_interrupted_or_killed_goes_on_and_repeats_nothing() {
    let place = trained();
    place.write("slow.toml", SLOW);
    let audit = |out: &str| {
        let line = format!(
            "audit runs/small --plan slow.toml --device cpu --batch-size 8 --no-diagnosis --out {out}"
        );
        let words: Vec<_> = line.split(' ').collect();
        let mut command = place.command(&words);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    let (whole, parts) = (place.path("whole"), place.path("parts"));
    assert!(audit("whole").status().unwrap().success());

    let mut child = audit("parts").spawn().unwrap();
    wait_for_second(&mut child, &parts, 0);
    let second = audit("parts").output().unwrap();
    assert_eq!(second.status.code(), Some(2));
    let told = String::from_utf8(second.stderr).unwrap();
    assert!(
        told.contains("parts is in use by another process"),
        "{told}"
    );
    let asked = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(asked.unwrap().success());
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(told.contains("the same command goes on"), "{told}");

    let before = through_second(&state(&parts).unwrap().1);
    let mut child = audit("parts").spawn().unwrap();
    wait_for_second(&mut child, &parts, before);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!parts.join("audit.json").exists());
    let (path, killed) = state(&parts).unwrap();
    let third = audit("parts").output().unwrap();
    assert!(third.status.success());
    let told = String::from_utf8(third.stderr).unwrap();
    let before = through_second(&killed);
    assert!(
        told.contains(&format!("going on after {before} of ")),
        "{told}"
    );

    let (_, ended) = state(&parts).unwrap();
    let seconds = |state: &Value, attack: usize| state["standing"]["seconds"][attack].clone();
    assert_eq!(
        seconds(&ended, 0),
        seconds(&killed, 0),
        "a finished attack was done again"
    );
    assert!(seconds(&ended, 1).as_f64() > seconds(&killed, 1).as_f64());
    // Each record is the place of a sample and its 64 pixels. What fell before the kill has one: it was not attacked again.
    let examples = fs::read(path.with_extension("examples")).unwrap();
    let mut records: BTreeMap<u64, usize> = BTreeMap::new();
    for record in examples.chunks_exact(4 + 4 * 64) {
        let sample = u32::from_le_bytes(record[..4].try_into().unwrap());
        *records.entry(sample.into()).or_default() += 1;
    }
    let fell = killed["standing"]["fell_to"].as_array().unwrap();
    let fell: Vec<u64> = (0..fell.len())
        .filter(|&sample| !fell[sample].is_null())
        .map(|sample| sample as u64)
        .collect();
    assert!(fell.len() > 10, "{}", fell.len());
    for sample in fell {
        assert_eq!(records[&sample], 1, "sample {sample} was attacked twice");
    }

    let outcomes = |folder: &Path| fs::read(folder.join("outcomes.safetensors")).unwrap();
    assert!(outcomes(&parts) == outcomes(&whole), "outcomes differ");
    let robust = |folder: &Path| {
        let audit = json(&folder.join("audit.json"));
        let threat = &audit["threats"][0];
        let attacks = threat["attacks"].as_array().unwrap();
        let attacks: Vec<_> = attacks.iter().map(share).collect();
        (attacks, share(threat), threat["confusion"].clone())
    };
    assert_eq!(robust(&parts), robust(&whole));
}

#[test]
fn gates_hold_of_every_kind_of_budget() {
    let place = trained();
    let budgets = [
        "l1:1",
        "l0:3",
        "patch:2",
        "spatial:20deg,1px",
        "linf:0.05 + l2:0.3",
    ];
    let audit =
        "audit runs/small --plan quick --samples 20 --device cpu --out gates --no-diagnosis";
    let mut arguments: Vec<&str> = audit.split(' ').collect();
    for budget in &budgets {
        arguments.extend(["--threat", budget]);
    }
    let gate = |requirements: &[String]| {
        let mut arguments = arguments.clone();
        for requirement in requirements {
            arguments.extend(["--require", requirement]);
        }
        place.run(&arguments)
    };
    let all = |least: &str| {
        let requirement = |budget: &&str| format!("{budget}>={least}");
        budgets.iter().map(requirement).collect::<Vec<_>>()
    };
    gate(&all("0")).done();
    let missed = gate(&all("1"));
    assert_eq!(missed.status, 3, "{}", missed.stderr);
    for budget in budgets {
        let told = format!("{budget}: ");
        assert!(missed.stderr.contains(&told), "{budget}: {}", missed.stderr);
    }
    assert!(
        missed.stdout.contains("left standing"),
        "the result is told all the same"
    );
    // The same size in other words.
    gate(&["l1:2/2>=0".to_owned()]).done();
    gate(&["l2:1>=0".to_owned()]).refused(&["does not measure l2:1", "--threat 'l2:1'"]);
    gate(&["l3:1>=0".to_owned()]).refused(&["`l3:1` is no threat model"]);
}

#[test]
fn examples_fool_the_model_and_obey_the_budget() {
    let place = trained();
    let audit = |threats: &[&str], to: &str| {
        let threats = threats.join(" --threat ");
        place.line(&format!(
            "audit runs/small --plan quick --samples 80 --device cpu --no-diagnosis --out kept --examples {to} --threat {threats}"
        ))
    };
    let done = audit(&["linf:0.1"], "examples.npz").done();
    assert!(
        done.stdout.contains("examples  examples.npz"),
        "{}",
        done.stdout
    );
    let outcomes = Outcomes::read(&place.path("kept/outcomes.safetensors"));
    let fell: Vec<i64> = (0..80)
        .filter(|&i| outcomes.whole("linf:0.1/fell_to")[i as usize] >= 0)
        .collect();
    assert!(fell.len() > 20, "{}", fell.len());

    let file = fs::File::open(place.path("examples.npz")).unwrap();
    let mut archive = Archive::open(file).unwrap();
    let mut array = |name: &str| {
        let entry = archive.find(name).unwrap();
        let bytes = archive.read(&entry, 1 << 20).unwrap();
        Array::read(bytes.as_slice()).unwrap()
    };
    let (x, clean) = (array("x.npy"), array("clean.npy"));
    let (y, index) = (array("y.npy"), array("index.npy"));
    assert_eq!(x.shape, [fell.len(), 1, 8, 8]);
    let reals = |array: &Array| -> Vec<f32> {
        (0..array.len())
            .map(|place| array.float(place) as f32)
            .collect()
    };
    let wholes = |array: &Array| -> Vec<i64> {
        (0..array.len())
            .map(|place| array.whole(place).unwrap())
            .collect()
    };
    assert_eq!(wholes(&index), fell);
    let digits = gauntlet_data::load(&DataConfig::of(Source::Digits), Path::new(""), 0).unwrap();
    let (images, labels) = digits.test.batch(
        &fell.iter().map(|&i| i as usize).collect::<Vec<_>>(),
        &Device::flex(),
    );
    let images: Vec<f32> = images.try_into_vec_as().unwrap();
    assert_eq!(reals(&clean), images);
    let labels: Vec<i64> = labels.try_into_vec_as().unwrap();
    assert_eq!(wholes(&y), labels);
    for (attacked, clean) in reals(&x).iter().zip(&images) {
        assert!((0.0..=1.0).contains(attacked) && (attacked - clean).abs() <= 0.1 + 1e-6);
    }
    let audited = json(&place.path("kept/audit.json"));
    let best = place.path(audited["model"].as_str().unwrap());
    let (network, _) = checkpoint::load_network(&best, &Device::flex()).unwrap();
    let data = TensorData::new(reals(&x), [fell.len(), 1, 8, 8]);
    let said = predictions(network.logits(Tensor::from_data(data, &Device::flex())));
    assert!(
        said.iter()
            .zip(&labels)
            .all(|(&said, &label)| i64::from(said) != label),
        "an example fools nobody"
    );

    // As pictures, which the program takes for a data set: rounded to 8 bits nearly all still fool the model.
    audit(&["linf:0.1", "patch:2"], "pictures").done();
    let again = place
        .line(
            "audit runs/small --data pictures/linf-0.1 --threat linf:0.01 --plan quick --no-diagnosis --json - --out again",
        )
        .done();
    let again: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(again["data"]["samples"], fell.len());
    assert!(again["clean_accuracy"].as_f64().unwrap() < 0.1, "{again}");
    assert!(place.path("pictures/patch-2/test").is_dir());
    // Others are not mixed with them.
    let other = place.line(
        "audit runs/small --plan quick --samples 5 --threat linf:0.1 --out other --examples pictures",
    );
    assert_eq!(other.status, 1, "{}", other.stderr);
    assert!(
        other.stderr.contains("of another audit"),
        "{}",
        other.stderr
    );
}

#[test]
fn corruptions_are_a_table_and_are_kept() {
    let place = trained();
    place.write(
        "weather.toml",
        "name = \"weather\"\n[corruptions]\nfamilies = [\"fog\", \"gaussian-noise\"]\nseverities = [1, 5]\n",
    );
    let audit = "audit runs/small --plan weather.toml --out weather";
    let first = place.line(audit).done().stdout;
    for word in [
        "corruption",
        "severity 1",
        "severity 5",
        "fog",
        "mean over corruptions",
    ] {
        assert!(first.contains(word), "no `{word}` in:\n{first}");
    }
    assert!(
        !first.contains("outcomes.safetensors"),
        "nothing was attacked"
    );
    let found = json(&place.path("weather/audit.json"));
    let of: Vec<_> = found["corruptions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            (
                one["family"].as_str().unwrap(),
                one["severity"].as_u64().unwrap(),
            )
        })
        .collect();
    let families = ["fog", "gaussian-noise"];
    let pairs = families.map(|family| [(family, 1), (family, 5)]).concat();
    assert_eq!(of, pairs);
    let accuracy = |place: usize| found["corruptions"][place]["accuracy"].as_f64().unwrap();
    assert!(accuracy(1) < accuracy(0), "thick fog hides more: {found}");
    // What is kept is believed.
    let kept = fs::read_dir(place.path("weather/state")).unwrap();
    let kept = kept
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|end| end == "json"))
        .unwrap();
    let mut state = json(&kept);
    state["right"]["fog/5"] = 450.into();
    fs::write(&kept, state.to_string()).unwrap();
    assert!(place.line(audit).done().stdout.contains("100.00 %"));
}

#[test]
fn wrong_requests_are_told_before_anything_is_attacked() {
    let place = trained();
    let audit = |more: &str| place.line(&format!("audit runs/small --out none {more}"));
    place.write(
        "bad.toml",
        r#"name = "bad"
[[threat]]
within = "linf:0.1"
suit = "quick"
[[threat.attack]]
kind = "pdg"
[[threat.attack]]
kind = "pgd"
steps = "many"
[corruptions]
severities = [9]
"#,
    );
    audit("--plan bad.toml").refused(&[
        "bad.toml:4:1: unknown key `suit` in `[[threat]]`",
        "4 | suit = \"quick\"",
        "did you mean `suite`?",
        "bad.toml:6:8: `threat.attack.kind` is one of `fgsm`",
        "did you mean `\"pgd\"`?",
        "bad.toml:9:9: `threat.attack.steps` is a whole number, not text",
        "bad.toml:11:15: `corruptions.severities[0]` is 9",
        "4 problems in bad.toml",
    ]);
    place.write(
        "worse.toml",
        "name = \"worse\"\n[[threat]]\nwithin = [\"l0:5\", \"l0:5\"]\n[[threat.attack]]\nkind = \"pgd\"\nsteps = 0\n",
    );
    let told = audit("--plan worse.toml").refused(&[
        "worse.toml:3:10: `threat.within`: l0:5 is there twice",
        "worse.toml:4:1: `pgd` within l0:5: it works within linf, l2, l1",
        "worse.toml:6:9: `threat.attack.steps`: at least 1 is needed",
    ]);
    assert_eq!(
        told.stderr.matches("within l0:5").count(),
        1,
        "{}",
        told.stderr
    );
    place
        .line("config check small.toml worse.toml")
        .refused_in_part("small.toml: fine", &["1 of 2 files"]);
    audit("--plan small.toml").refused(&["no plan of an audit", "gauntlet train small.toml"]);
    audit("--plan nowhere.toml").refused(&["no such file", "configs/audits/"]);
    audit("--plan quik").refused(&["`quik` is no plan", "standard, quick"]);
    for (threat, words) in [
        ("linf", "linf:8/255"),
        ("l3:1", "is no threat model"),
        ("patch:0", "whole number of pixels"),
        ("patch:9", "more than an image of 8 x 8 pixels"),
        ("l0:2.5", "l0 counts pixels"),
        ("l0:65", "more than an image of 8 x 8 pixels"),
        ("linf:8", "`linf:8/255` is 8 levels"),
        ("spatial:30", "spatial:30deg,3px"),
        ("linf:0.1+l0:3", "a union of linf, l2 and l1"),
    ] {
        audit(&format!("--threat {threat}")).refused(&[words]);
    }
    audit("--threat linf:0.1 --threat linf:1/10").refused(&["is there twice"]);
    audit("--samples 0").refused(&["--samples"]);
    audit("--labels labels.npy").refused(&["--data"]);
    for option in ["--json", "--html", "--examples"] {
        let words = ["there is no folder nowhere", option];
        audit(&format!("{option} nowhere/file.npz")).refused(&words);
    }
    audit("--json runs").refused(&["this is a folder"]);
    audit("--examples small.toml").refused(&["ends in `.npz`"]);
    assert!(
        !place.path("none").exists(),
        "a refused audit left a folder"
    );
    let taken = place.line("audit runs/small --out small.toml/audit");
    assert_eq!(taken.status, 1, "{}", taken.stderr);
    assert!(taken.stderr.contains("--out DIR"), "{}", taken.stderr);
}

#[test]
fn pictures_of_some_classes_are_taken_for_those_classes() {
    let place = trained();
    let quick = "audit runs/small --plan quick --no-diagnosis";
    place
        .line(&format!(
            "{quick} --threat linf:0.3 --samples 60 --examples pictures"
        ))
        .done();
    let test = place.path("pictures/linf-0.3/test");
    let classes: BTreeSet<_> = fs::read_dir(&test)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    // Only the highest classes stay: by their order they would be taken for the lowest.
    let mut highest = classes.iter().rev();
    let kept: Vec<&String> = highest.by_ref().take(2).collect();
    for class in highest {
        fs::remove_dir_all(test.join(class)).unwrap();
    }
    assert!(classes.len() > 2, "{classes:?}");
    let some = format!("{quick} --threat linf:0.01 --data pictures/linf-0.3 --json - --out some");
    let found = place.line(&some).done().stdout;
    let found: Value = serde_json::from_str(&found).unwrap();
    for class in found["per_class"].as_array().unwrap() {
        let is_kept = kept.iter().any(|kept| class["name"] == **kept);
        assert_eq!(class["samples"] != 0, is_kept, "{class}");
    }
    fs::rename(test.join(kept[0]), test.join("eight")).unwrap();
    place
        .line(&some)
        .refused(&["a class `eight` that the model does not know"]);
}
