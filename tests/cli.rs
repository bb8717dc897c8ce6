//! The command line, as people and scripts meet it: what it says, where, and with which exit status.

mod place;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use place::{DIGITS, Place};
use serde_json::Value;

#[test]
fn help_is_complete_and_fast() {
    let place = Place::new();
    let began = Instant::now();
    let help = place.run(&["--help"]).done();
    // It takes a hundredth of a second; opening a GPU would take many.
    assert!(began.elapsed() < Duration::from_secs(3));
    for command in [
        "train",
        "resume",
        "experiment",
        "data",
        "model",
        "runs",
        "config",
        "bench",
        "devices",
        "completions",
    ] {
        assert!(
            help.stdout.contains(&format!("  {command} ")),
            "{command}\n{}",
            help.stdout
        );
        assert!(
            place
                .run(&[command, "--help"])
                .done()
                .stdout
                .contains("Usage: gauntlet")
        );
    }
    assert!(!help.stdout.contains("probe"), "the hidden command shows");
    let version = place.run(&["--version"]).done();
    assert_eq!(
        version.stdout,
        format!("gauntlet {}\n", env!("CARGO_PKG_VERSION"))
    );
}

/// The README's first command is `cargo run`, which asks which one where there are several.
#[test]
fn there_is_one_program_to_run() {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let all: Value = serde_json::from_slice(&cargo.stdout).unwrap();
    let default = all["workspace_default_members"].as_array().unwrap();
    let packages = all["packages"].as_array().unwrap().iter();
    let programs: Vec<_> = packages
        .filter(|package| default.contains(&package["id"]))
        .flat_map(|package| package["targets"].as_array().unwrap())
        .filter(|target| target["kind"][0] == "bin")
        .map(|target| &target["name"])
        .collect();
    assert_eq!(programs, ["gauntlet"]);
}

#[test]
fn wrong_arguments_are_refused() {
    let place = Place::new();
    place
        .run(&["train", "small.toml", "--sett", "a=b"])
        .refused(&["--sett", "--set"]);
    place
        .run(&["train", "small.toml", "--set", "epochs"])
        .refused(&["KEY=VALUE"]);
    place
        .run(&["train", "small.toml", "--device", "gpu"])
        .refused(&["`gpu` is no device", "vulkan:N"]);
    place
        .run(&["trian", "small.toml"])
        .refused(&["trian", "train"]);
    place
        .run(&["train", "nowhere.toml"])
        .refused(&["nowhere.toml", "no such file"]);
    place
        .run(&["resume", "nowhere"])
        .refused(&["nowhere", "no run"]);
    place
        .run(&["runs", "show", "nowhere"])
        .refused(&["nowhere", "no run"]);
    place
        .run(&["data", "show", "mnsit"])
        .refused(&["mnsit", "did you mean `mnist`"]);
    place
        .run(&["model", "show", "nowhere"])
        .refused(&["nowhere", "no checkpoint"]);
}

#[test]
fn problems_of_a_config_are_told_together_with_their_lines() {
    let place = Place::new();
    let bad = DIGITS
        .replace("epochs = 1", "epocs = 1")
        .replace("batch_size = 64", "batch_size = \"many\"")
        .replace("arch = \"mlp\"", "arch = \"mpl\"");
    place.write("bad.toml", &bad);
    let told = place.run(&["train", "bad.toml"]).refused(&[
        "bad.toml:19:1: unknown key `epocs` in `[train]`",
        "19 | epocs = 1",
        "did you mean `epochs`?",
        "bad.toml:7:14: `data.batch_size` is a whole number, not text",
        "7 | batch_size = \"many\"",
        "bad.toml:10:8: `model.arch` is one of",
        "did you mean `\"mlp\"`?",
        "3 problems in bad.toml",
    ]);
    assert!(!told.stderr.contains("missing"), "{}", told.stderr);
    place.write(
        "ranges.toml",
        &DIGITS
            .replace("epochs = 1", "epochs = 0")
            .replace("eps = 0.1", "eps = \"8/\""),
    );
    place
        .run(&["train", "ranges.toml"])
        .refused(&["ranges.toml:15:7: `8/` is no size"]);
    place
        .run(&[
            "train",
            "small.toml",
            "--set",
            "train.epochs=0",
            "--set",
            "evaluate.every=0",
        ])
        .refused(&[
            "--set train.epochs=0: `train.epochs`",
            "--set evaluate.every=0: `evaluate.every`",
        ]);
    place.write("broken.toml", "name = \"a\"\nseed = = 3\n");
    place
        .run(&["config", "check", "broken.toml"])
        .refused(&["broken.toml:2:8"]);
    place
        .run(&[
            "train",
            "small.toml",
            "--set",
            "model.arch=lenet-madry",
            "--set",
            "model.width=3",
        ])
        .refused(&["--set model.width=3: `model.width`"]);
    assert!(!place.path("runs").exists(), "a refused run left a folder");
}

#[test]
fn configs_are_checked_shown_and_described() {
    let place = Place::new();
    assert_eq!(
        place.run(&["config", "check", "small.toml"]).done().stdout,
        "small.toml: fine\n"
    );
    let shown = place
        .run(&["config", "show", "small.toml", "--set", "seed=7"])
        .done()
        .stdout;
    let shown_table: toml::Table = shown.parse().unwrap();
    assert_eq!(shown_table["seed"].as_integer(), Some(7));
    assert_eq!(
        shown_table["train"]["interleave"]["pattern"].as_str(),
        Some("adversarial"),
        "defaults are written out"
    );
    place.write("again.toml", &shown);
    assert_eq!(
        place.run(&["config", "show", "again.toml"]).done().stdout,
        shown
    );
    let schema: Value =
        serde_json::from_str(&place.run(&["config", "schema"]).done().stdout).unwrap();
    assert!(schema["properties"]["train"].is_object());
}

#[test]
fn missing_data_name_the_command_that_gets_them() {
    let place = Place::new();
    place.write("mnist.toml", &DIGITS.replace("\"digits\"", "\"mnist\""));
    place
        .run(&["train", "mnist.toml"])
        .refused(&["`mnist`", "gauntlet data fetch mnist"]);
    place
        .run(&["data", "show", "mnist"])
        .refused(&["gauntlet data fetch mnist"]);
    place
        .run(&["data", "fetch", "mnist", "--from", "nowhere"])
        .refused(&["nowhere"]);
    assert!(!place.path("runs").exists());
}

#[test]
fn data_and_models_are_listed_and_shown() {
    let place = Place::new();
    let list = place.run(&["data", "list"]).done().stdout;
    for name in ["digits", "mnist", "fashion-mnist", "cifar10", "cifar100"] {
        assert!(list.contains(name), "{name}\n{list}");
    }
    let listed: Value =
        serde_json::from_str(&place.run(&["data", "list", "--json"]).done().stdout).unwrap();
    let here: Vec<_> = listed["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (&row["name"], &row["here"]))
        .collect();
    assert_eq!(
        (here[0].0.as_str(), here[0].1.as_bool()),
        (Some("digits"), Some(true)),
        "{here:?}"
    );
    assert_eq!(
        (here[1].0.as_str(), here[1].1.as_bool()),
        (Some("mnist"), Some(false)),
        "{here:?}"
    );

    let shown = place
        .run(&["data", "show", "digits", "--json", "--png", "digits.png"])
        .done()
        .stdout;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let count = |part: &str| shown[part]["samples"].as_u64().unwrap();
    // UCI's optical recognition of handwritten digits, as scikit-learn ships it.
    assert_eq!(count("train") + count("test"), 1797);
    assert_eq!(shown["shape"], serde_json::json!([1, 8, 8]));
    assert!(
        fs::read(place.path("digits.png"))
            .unwrap()
            .starts_with(b"\x89PNG")
    );
    assert!(
        place
            .run(&["data", "show", "digits"])
            .done()
            .stdout
            .contains("10 classes")
    );
    assert!(
        place
            .run(&["model", "list"])
            .done()
            .stdout
            .contains("preact-resnet18")
    );
}

#[test]
fn devices_list_the_cpu_and_say_why_others_are_missing() {
    let place = Place::new();
    let listed = place.run(&["devices", "--json"]).done().stdout;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let backends = listed.as_array().unwrap();
    assert_eq!(backends[0]["devices"][0]["id"], "cpu");
    for backend in &backends[1..] {
        let devices = backend["devices"].as_array().unwrap();
        assert!(
            !devices.is_empty() || backend["unavailable"].is_string(),
            "{backend}"
        );
    }
    assert!(place.run(&["devices"]).done().stdout.contains("cpu"));
}

#[test]
fn completions_are_a_script_and_a_closed_pipe_is_no_error() {
    let place = Place::new();
    for (shell, word) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef gauntlet"),
        ("fish", "complete -c gauntlet"),
    ] {
        assert!(
            place
                .run(&["completions", shell])
                .done()
                .stdout
                .contains(word),
            "{shell}"
        );
    }
    for arguments in [
        &["completions", "zsh"][..],
        &["config", "schema"],
        &["data", "list"],
    ] {
        let mut child = place
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Closed before anything is written.
        drop(child.stdout.take());
        let mut stderr = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        assert_eq!(
            child.wait().unwrap().code(),
            Some(0),
            "{arguments:?}: {stderr}"
        );
        assert!(!stderr.contains("error"), "{stderr}");
    }
}

/// Every file below `folder` with its bytes.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(run.join("checkpoints")) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.join("MANIFEST.json").exists());
    found.sort();
    found
}

#[test]
fn a_training_leaves_all_it_promises_and_is_never_overwritten() {
    let place = Place::new();
    let trained = place.run(&["train", "small.toml"]).done();
    for word in [
        "standard",
        "hardened",
        "PGD-5",
        "runs/small/report.html",
        "runs/small/checkpoints/step-",
    ] {
        assert!(
            trained.stdout.contains(word),
            "no `{word}` in:\n{}",
            trained.stdout
        );
    }
    let run = place.path("runs/small");
    let html = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(
        html.contains("small") && !html.contains("<script src"),
        "the report is one file"
    );
    let report: Value =
        serde_json::from_slice(&fs::read(run.join("report.json")).unwrap()).unwrap();
    for key in ["schema", "seed", "device", "version", "data"] {
        assert!(!report[key].is_null(), "{key}: {report}");
    }
    let robust = &report["threats"][0]["robust_accuracy"];
    let attack = &report["threats"][0]["attacks"][0];
    assert_eq!(
        (&attack["steps"], &attack["restarts"]),
        (&5.into(), &1.into())
    );
    assert_eq!(report["threats"][0]["threat"], "linf:0.1");
    assert_eq!(report["data"]["samples"], 100);
    for share in [
        robust,
        &report["clean_accuracy"],
        &report["standard"]["robust_accuracy"],
    ] {
        // Shares of 100 samples.
        let hundredths = 100.0 * share.as_f64().unwrap_or_else(|| panic!("{report}"));
        assert!(
            (0.0..=100.0).contains(&hundredths) && (hundredths - hundredths.round()).abs() < 1e-9
        );
    }
    let records = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let records: Vec<Value> = records
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for record in &records {
        for key in ["step", "epoch", "split", "kind", "loss", "accuracy"] {
            assert!(!record[key].is_null(), "{key}: {record}");
        }
    }
    let steps: Vec<_> = records
        .iter()
        .filter(|record| record["split"] == "train")
        .map(|record| record["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>());
    assert!(!checkpoints(&run).is_empty() && !checkpoints(&run.join("baseline")).is_empty());
    assert!(
        fs::read_dir(run.join("tensorboard"))
            .unwrap()
            .next()
            .is_some()
    );
    assert!(fs::read_dir(run.join("samples")).unwrap().next().is_some());
    let environment: Value =
        serde_json::from_slice(&fs::read(run.join("environment.json")).unwrap()).unwrap();
    assert_eq!(environment["data"]["name"], "digits");
    assert_eq!(environment["sessions"].as_array().map(Vec::len), Some(1));

    let before = contents(&run);
    place
        .run(&["train", "small.toml"])
        .refused(&["runs/small", "gauntlet resume"]);
    let resumed = place.run(&["resume", "runs/small"]).done();
    assert!(resumed.stderr.contains("finished"), "{}", resumed.stderr);
    assert!(
        contents(&run) == before,
        "a refused or finished run was changed"
    );
    place
        .run(&["resume", "runs/small", "--set", "train.clip_norm=9"])
        .refused(&[
            "`train.clip_norm` was nothing and is 9.0",
            "--allow-inexact",
        ]);
    assert!(
        contents(&run) == before,
        "a refused change was written down"
    );

    let shown = place.run(&["runs", "show", "runs/small"]).done().stdout;
    assert!(
        shown.contains("finished") && shown.contains("standard twin"),
        "{shown}"
    );
    let list: Value =
        serde_json::from_str(&place.run(&["runs", "list", "--json"]).done().stdout).unwrap();
    assert_eq!(list[0]["robust_accuracy"], *robust);
    let model = place
        .run(&["model", "show", "runs/small", "--json"])
        .done()
        .stdout;
    let model: Value = serde_json::from_str(&model).unwrap();
    // 64 x 32 + 32, 32 x 32 + 32, 32 x 10 + 10.
    assert_eq!(model["parameters"], 3466);

    place
        .run(&[
            "train",
            "small.toml",
            "--set",
            "name=other",
            "--set",
            "evaluate.baseline=false",
            "--quiet",
        ])
        .done();
    let compared = place
        .run(&["runs", "compare", "runs/small", "runs/other"])
        .done()
        .stdout;
    assert!(
        compared.contains("evaluate.baseline") && !compared.contains("train.epochs"),
        "{compared}"
    );
}

#[test]
fn an_audit_says_what_stands_and_is_a_gate() {
    let place = Place::new();
    place.run(&["train", "small.toml", "--quiet"]).done();
    let audit = [
        "audit",
        "runs/small",
        "--plan",
        "quick",
        "--samples",
        "60",
        "--threat",
        "linf:0.05",
        "--threat",
        "l2:0.3",
        "--json",
        "-",
    ];
    let first = place.run(&audit).done().stdout;
    let found: Value = serde_json::from_str(&first).unwrap();
    for key in [
        "schema",
        "model",
        "clean_accuracy",
        "seed",
        "device",
        "version",
        "warnings",
    ] {
        assert!(!found[key].is_null(), "{key}: {found}");
    }
    assert_eq!(
        found["data"],
        serde_json::json!({
            "name": "digits",
            "split": "test",
            "samples": 60,
            "sha256": found["data"]["sha256"],
        })
    );
    for (index, threat) in ["linf:0.05", "l2:0.3"].into_iter().enumerate() {
        let found = &found["threats"][index];
        assert_eq!(found["threat"], threat);
        let attacks = found["attacks"].as_array().unwrap();
        let shares: Vec<_> = attacks
            .iter()
            .map(|attack| attack["robust_accuracy"].as_f64().unwrap())
            .collect();
        assert!(shares.is_sorted_by(|a, b| a >= b), "{shares:?}");
        assert_eq!(found["robust_accuracy"].as_f64(), shares.last().copied());
        assert!(
            attacks
                .iter()
                .all(|attack| attack["steps"].is_u64() && attack["seconds"].is_f64())
        );
    }
    // What is done is not done again: times are the same to the last digit.
    let mut to_file = audit;
    to_file[to_file.len() - 1] = "audit.json";
    place.run(&to_file).done();
    assert_eq!(fs::read_to_string(place.path("audit.json")).unwrap(), first);
    assert_eq!(place.run(&audit).done().stdout, first);

    let gate = |least: &str| {
        let requirement = format!("linf:0.05>={least}");
        place.run(&[
            "audit",
            "runs/small",
            "--plan",
            "quick",
            "--samples",
            "60",
            "--threat",
            "linf:0.05",
            "--require",
            &requirement,
        ])
    };
    gate("0.0").done();
    let missed = gate("1.0");
    assert_eq!(missed.status, 3, "{}", missed.stderr);
    assert!(missed.stderr.contains("linf:0.05") && missed.stderr.contains("100.00 % required"));
    assert!(missed.stdout.contains("left standing"));
    place
        .run(&["audit", "runs/small", "--require", "linf:0.05"])
        .refused(&["linf:8/255>=0.45"]);
    place
        .run(&["audit", "runs/small", "--data", "mnsit"])
        .refused(&["mnsit"]);
    place
        .run(&["audit", "nowhere"])
        .refused(&["nowhere: there is no such file or folder"]);
}

/// Waits until the child has written a checkpoint.
fn wait_for_checkpoint(run: &Path, child: &mut Child) {
    let began = Instant::now();
    while checkpoints(run).is_empty() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it could be interrupted"
        );
        assert!(
            began.elapsed() < Duration::from_secs(120),
            "no checkpoint after two minutes"
        );
        sleep(Duration::from_millis(20));
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_training_is_saved_and_goes_on() {
    let place = Place::new();
    let run = place.path("long");
    let arguments = [
        "train",
        "small.toml",
        "--out",
        "long",
        "--set",
        "train.epochs=100",
        "--set",
        "evaluate.every=100",
        "--set",
        "checkpoint.every_epochs=5",
    ];
    let mut child = place
        .command(&arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_checkpoint(&run, &mut child);
    place
        .run(&["resume", "long"])
        .refused(&["in use by another process"]);
    let stopped = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(stopped.success());
    let stderr: Vec<_> = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .collect();
    let stderr = stderr.join("\n");
    assert_eq!(child.wait().unwrap().code(), Some(130), "{stderr}");
    assert!(
        stderr.contains("press Ctrl-C again") && stderr.contains("gauntlet resume long"),
        "{stderr}"
    );
    assert!(!run.join("report.json").exists());
    let saved = checkpoints(&run).len();
    assert!(saved > 0);
    let records = fs::read_to_string(run.join("metrics.jsonl"))
        .unwrap()
        .lines()
        .count();

    let list = place.run(&["runs", "show", "long", "--json"]).done().stdout;
    let shown: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(shown["run"]["finished"], false);
    place
        .run(&["resume", "long", "--set", "device=cpu", "--quiet"])
        .done();
    assert!(run.join("report.json").exists());
    let resumed = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert!(resumed.lines().count() > records);
    let steps = resumed
        .lines()
        .filter(|line| line.contains("\"train\""))
        .count();
    // Of 1,347 training images 200 are held out: 17 full batches of 64, each trained once an epoch.
    assert_eq!(steps, 100 * 17);
    let environment: Value =
        serde_json::from_slice(&fs::read(run.join("environment.json")).unwrap()).unwrap();
    assert_eq!(environment["sessions"].as_array().map(Vec::len), Some(2));
}

/// Nothing here looks at a time: that everything runs, and that what other programs read is there.
#[test]
fn speed_is_measured_written_and_compared() {
    let place = Place::new();
    let ended = place
        .line("bench kernels --quick --device cpu --json kernels.json")
        .done();
    assert!(
        ended.stdout.starts_with("| what ") && ended.stdout.contains("matrix product"),
        "{}",
        ended.stdout
    );
    let text = fs::read_to_string(place.path("kernels.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["schema"], 1);
    let entries = report["entries"].as_array().unwrap();
    let has = |name: &str| {
        let mut names = entries.iter().map(|entry| entry["name"].as_str().unwrap());
        names.any(|found| found.starts_with(&format!("kernels/{name}/")))
    };
    for name in [
        "linf-step",
        "l2-step",
        "l1-step",
        "l1-projection",
        "l2-norms",
        "philox-uniform",
        "margin-gradient",
        "crop-flip",
        "conv",
        "conv+input-gradient",
        "conv+weight-gradient",
    ] {
        assert!(has(name), "{name}\n{text}");
    }
    for entry in entries {
        for key in [
            "batch",
            "median_s",
            "spread_s",
            "images_per_s",
            "bound_share",
        ] {
            assert!(entry[key].is_number(), "{key}\n{entry}");
        }
    }

    // Against itself every ratio is 1.
    place
        .line("bench compare kernels.json kernels.json --require ratio>=1")
        .done();
    let missed = place.line("bench compare kernels.json kernels.json --require linf>=1.5");
    assert_eq!(missed.status, 3, "{}", missed.stderr);
    assert!(
        missed.stderr.contains("is less than 1.5"),
        "{}",
        missed.stderr
    );
    place
        .line("bench kernels --quick --device cpu --filter nothing-like-it")
        .refused(&["--filter"]);
    place
        .line("bench compare kernels.json small.toml")
        .refused(&["small.toml", "--json"]);

    let ended = place
        .line("bench train --quick --device cpu --threads 1 --model mnist-cnn --objective standard --objective pgd-1 --batch 4 --steps 2 --warmup 0 --json -")
        .done();
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["threads"], 1);
    assert_eq!(report["entries"][1]["name"], "train/pgd-1/mnist-cnn");
    place
        .line("bench train --objective pgd-0")
        .refused(&["pgd-0", "pgd-STEPS"]);
}
