//! A run that is killed without warning goes on, finishes, and is the run it would have been.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Enough steps to be killed among; momentum, an average, augmentation and attack noise all have state or draws to lose.
const CONFIG: &str = r#"name = "killed"
device = "cpu"
data = { source = "digits", validation = 100, limit = 640, batch_size = 64, augment = ["crop"] }
model = { arch = "mlp", width = 32 }
threat = { norm = "linf", eps = 0.1 }

[train]
objective = "pgd"
epochs = 40
interleave = { pattern = "mixed", adversarial = 0.5, clean_epochs = 1, ramp_epochs = 3.0 }
optimizer = { kind = "adam" }
schedule = { kind = "one-cycle", peak = 0.01 }
ema = { decay = 0.99 }
attack = { steps = 5 }

[evaluate]
every = 4
attack = { steps = 3 }
final = { attack = { steps = 5, restarts = 1 }, samples = 100 }

[checkpoint]
every_steps = 7
keep = 2
"#;

fn gauntlet(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gauntlet"));
    command
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn done(mut command: Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    stderr
}

/// Whole checkpoints, oldest first.
fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(run.join("checkpoints"));
    let paths = entries
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path());
    // One that is being written has another name.
    let whole = |path: &PathBuf| {
        path.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("step-")
    };
    let mut found: Vec<_> = paths.filter(whole).collect();
    found.sort();
    found
}

fn newest_step(run: &Path) -> u64 {
    let newest = checkpoints(run).pop();
    newest.map_or(0, |path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.trim_start_matches("step-").parse().unwrap()
    })
}

/// The safetensors files of the newest checkpoint, byte for byte.
fn tensors(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let newest = checkpoints(run).pop().unwrap();
    let files = fs::read_dir(newest)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    files
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "safetensors")
        })
        .map(|path| {
            (
                path.file_name().unwrap().to_str().unwrap().to_owned(),
                fs::read(path).unwrap(),
            )
        })
        .collect()
}

/// Metric lines without the one value that is a time.
fn records(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut record: Value = serde_json::from_str(line).unwrap();
            record.as_object_mut().unwrap().remove("images_per_second");
            record
        })
        .collect()
}

#[test]
fn a_killed_run_goes_on_to_the_same_end() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("killed.toml"), CONFIG).unwrap();
    done(gauntlet(
        folder.path(),
        &["train", "killed.toml", "--out", "whole"],
    ));

    // Killed twice: at the start of the schedule, and again in the resumed run.
    let run = folder.path().join("killed");
    for (arguments, after) in [
        (&["train", "killed.toml", "--out", "killed"][..], 50),
        (&["resume", "killed"][..], 180),
    ] {
        let mut child = gauntlet(folder.path(), arguments).spawn().unwrap();
        let began = Instant::now();
        while newest_step(&run) < after {
            assert!(
                child.try_wait().unwrap().is_none(),
                "it ended before it could be killed"
            );
            assert!(
                began.elapsed() < Duration::from_secs(300),
                "no progress in five minutes"
            );
            sleep(Duration::from_millis(2));
        }
        // SIGKILL: no handler runs, nothing is flushed.
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().code(), None, "it ended by itself");
        assert!(!run.join("report.json").exists());
    }
    let talk = done(gauntlet(folder.path(), &["resume", "killed"]));
    assert!(talk.contains("going on from step"), "{talk}");

    let whole = folder.path().join("whole");
    assert_eq!(newest_step(&run), 400);
    assert_eq!(
        tensors(&run),
        tensors(&whole),
        "weights, average and moments, bit for bit"
    );
    assert_eq!(records(&run), records(&whole));
    let judged = |run: &Path| -> Value {
        let report: Value =
            serde_json::from_slice(&fs::read(run.join("report.json")).unwrap()).unwrap();
        report["threats"][0]["robust_accuracy"].clone()
    };
    assert!(judged(&run).is_f64());
    assert_eq!(judged(&run), judged(&whole));
}

/// Kills at random moments, fifty times, many of them while a checkpoint is written: one is written at every step.
#[test]
fn a_run_that_is_killed_fifty_times_at_random_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = CONFIG.replace("every_steps = 7", "every_steps = 1");
    fs::write(folder.path().join("killed.toml"), config).unwrap();
    done(gauntlet(
        folder.path(),
        &["train", "killed.toml", "--out", "whole"],
    ));

    let run = folder.path().join("killed");
    let mut draws = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: u64| {
        // Marsaglia's xorshift: any spread of moments will do.
        draws ^= draws << 13;
        draws ^= draws >> 7;
        draws ^= draws << 17;
        draws % below
    };
    let (mut kills, mut torn, mut progress) = (0, 0, 0);
    while kills < 50 {
        let before = newest_step(&run);
        let arguments = match run.join("config.toml").exists() {
            true => &["resume", "killed"][..],
            false => &["train", "killed.toml", "--out", "killed"],
        };
        let mut child = gauntlet(folder.path(), arguments).spawn().unwrap();
        // Some die while they start, most while they work.
        let moment = Instant::now() + Duration::from_millis(random(40));
        let started = Instant::now();
        while newest_step(&run) == before
            && random(200) != 0
            && started.elapsed() < Duration::from_secs(60)
            && child.try_wait().unwrap().is_none()
        {
            sleep(Duration::from_millis(3));
        }
        sleep(moment.saturating_duration_since(Instant::now()));
        sleep(Duration::from_micros(random(8000)));
        child.kill().unwrap();
        if child.wait().unwrap().code().is_some() {
            break;
        }
        kills += 1;
        let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten();
        let partial = |entry: fs::DirEntry| {
            let name = entry.file_name();
            name.to_string_lossy().ends_with(".partial")
        };
        torn += usize::from(entries.flatten().any(partial));
        let after = newest_step(&run);
        assert!(
            after >= before,
            "kill {kills}: step {before} became {after}"
        );
        progress += u64::from(after > before);
    }
    assert_eq!(kills, 50, "the run ended after {kills} kills");
    assert!(
        progress >= 10 && torn >= 1,
        "{progress} sessions made steps, {torn} died writing"
    );
    done(gauntlet(folder.path(), &["resume", "killed"]));
    let whole = folder.path().join("whole");
    assert_eq!(tensors(&run), tensors(&whole));
    assert_eq!(records(&run), records(&whole));
}

/// A request to terminate saves, like Ctrl-C, and says so by exit status 130.
#[cfg(unix)]
#[test]
fn a_run_that_is_asked_to_end_saves_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let config = CONFIG.replace("every_steps = 7", "every_steps = 100000");
    let config = config.replace("[checkpoint]", "[checkpoint]\nevery_epochs = 100");
    fs::write(folder.path().join("asked.toml"), config).unwrap();
    let run = folder.path().join("asked");
    for signal in ["-TERM", "-INT"] {
        let arguments = match run.join("config.toml").exists() {
            true => &["resume", "asked"][..],
            false => &["train", "asked.toml", "--out", "asked"],
        };
        let before = newest_step(&run);
        let lines =
            || fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |t| t.lines().count());
        let first = lines();
        let mut child = gauntlet(folder.path(), arguments).spawn().unwrap();
        while lines() <= first + 2 {
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
            sleep(Duration::from_millis(2));
        }
        let id = child.id().to_string();
        Command::new("kill").args([signal, &id]).status().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{signal}");
        assert!(newest_step(&run) > before, "{signal}");
    }
}

/// What may change on the way, and what is refused by name.
#[test]
fn a_changed_config_is_refused_by_its_keys_unless_it_is_exact_or_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let config = CONFIG.replace("epochs = 40", "epochs = 6").replace(
        "kind = \"one-cycle\", peak = 0.01",
        "kind = \"constant\", rate = 0.01",
    );
    fs::write(folder.path().join("changed.toml"), config).unwrap();
    done(gauntlet(
        folder.path(),
        &["train", "changed.toml", "--out", "changed"],
    ));
    let run = folder.path().join("changed");
    let refused = |arguments: &[&str]| {
        let output = gauntlet(folder.path(), arguments).output().unwrap();
        let talk = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{talk}");
        talk
    };
    let set = [
        "resume",
        "changed",
        "--set",
        "train.clip_norm=1",
        "--set",
        "seed=4",
    ];
    let talk = refused(&set);
    assert!(
        talk.contains("`train.clip_norm` was nothing and is 1.0")
            && talk.contains("`seed` was 0 and is 4")
            && talk.contains("--allow-inexact"),
        "{talk}"
    );
    let before = fs::read_to_string(run.join("config.toml")).unwrap();
    assert!(!before.contains("clip_norm"));

    // More epochs at a constant rate are what they would have been.
    done(gauntlet(
        folder.path(),
        &["resume", "changed", "--set", "train.epochs=8"],
    ));
    assert_eq!(newest_step(&run), 80);
    done(gauntlet(
        folder.path(),
        &[
            "train",
            "changed.toml",
            "--out",
            "longer",
            "--set",
            "train.epochs=8",
        ],
    ));
    assert_eq!(tensors(&run), tensors(&folder.path().join("longer")));

    // So is a config that was edited by hand.
    let edited = fs::read_to_string(run.join("config.toml"))
        .unwrap()
        .replace("seed = 0", "seed = 9");
    fs::write(run.join("config.toml"), edited).unwrap();
    let talk = refused(&["resume", "changed", "--set", "train.epochs=9"]);
    assert!(talk.contains("`seed` was 0 and is 9"), "{talk}");
    let mut allowed = vec!["resume", "changed", "--allow-inexact"];
    allowed.extend(["--set", "train.epochs=9"]);
    let talk = done(gauntlet(folder.path(), &allowed));
    assert!(
        talk.contains("not exact any more: `seed` was 0 and is 9"),
        "{talk}"
    );
}

/// A limit on the size of files stands for a full disk: writes fail half-way.
#[cfg(unix)]
#[test]
fn a_checkpoint_that_cannot_be_written_stops_the_run_and_leaves_no_half() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("killed.toml"), CONFIG).unwrap();
    let run = folder.path().join("killed");
    let train = |blocks: &str| {
        let mut command = Command::new("sh");
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        command
            .args(["-c", &script, env!("CARGO_BIN_EXE_gauntlet")])
            .args([
                "train",
                "killed.toml",
                "--out",
                "killed",
                "--set",
                "train.epochs=8",
                "--set",
                "model.width=512",
            ])
            .current_dir(folder.path());
        command.output().unwrap()
    };
    let output = train("256");
    let talk = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{talk}");
    assert!(
        talk.contains(".safetensors: ") && talk.contains("gauntlet resume"),
        "{talk}"
    );
    let left: Vec<_> = fs::read_dir(run.join("checkpoints")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    done(gauntlet(folder.path(), &["resume", "killed"]));
    assert!(run.join("report.json").exists());
}
