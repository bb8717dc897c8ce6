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
