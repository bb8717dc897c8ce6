//! Experiments: a matrix of runs that is checked first, killed in the middle, gone on with, and told of the same way twice.
#![cfg(unix)]

mod place;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use place::{Ended, Place};
use serde_json::Value;

const EXPERIMENT: &str = r#"name = "two"
about = "Is it done?"
base = "small.toml"
seeds = [0, 1]

[set]
"evaluate.baseline" = false

[[method]]
name = "pgd"

[[method]]
name = "standard"
set = { "train.objective" = "standard" }

[audit]
threats = ["linf:0.1"]
plan = "quick"
samples = 20

[[anchor]]
name = "Theirs"
clean = 0.87
robust = 0.5
source = "a paper, table 1"

[cost]
per_hour = 2.0
currency = "EUR"
"#;

const RUNS: [&str; 4] = ["pgd-s0", "pgd-s1", "standard-s0", "standard-s1"];

fn place() -> Place {
    let place = Place::new();
    place.write("experiment.toml", EXPERIMENT);
    place
}

fn json(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

/// State of each run, by `gauntlet experiment status`.
fn states(place: &Place, line: &str) -> Vec<(String, String)> {
    let told = place
        .line(&format!("experiment status {line} --json"))
        .done();
    let status: Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!(status["schema"], 1);
    let rows = status["runs"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    rows.iter()
        .map(|row| (text(&row["run"]), text(&row["state"])))
        .collect()
}

fn wait_until(child: &mut Child, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(child.try_wait().unwrap().is_none(), "it ended too early");
        assert!(began.elapsed() < Duration::from_secs(120));
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_experiment_ends_in_a_table_plots_and_a_document_that_can_be_written_anew() {
    let place = place();
    let told = place.line("experiment run experiment.toml --jobs 2").done();
    for run in RUNS {
        let folder = place.path("runs/two").join(run);
        for name in [
            "config.toml",
            "metrics.jsonl",
            "report.json",
            "audit/audit.json",
            "log.txt",
        ] {
            assert!(folder.join(name).exists(), "{run}/{name}");
        }
        let audit = json(&folder.join("audit/audit.json"));
        assert_eq!(audit["data"]["samples"], 20);
        assert!(told.stderr.contains(&format!("{run}: ")), "{}", told.stderr);
    }
    assert!(!place.path("runs/two/pgd-s0/baseline").exists());

    // The table's numbers are those of the files.
    let results = json(&place.path("runs/two/results.json"));
    let clean = |run: &str| {
        let path = place.path("runs/two").join(run).join("audit/audit.json");
        json(&path)["clean_accuracy"].as_f64().unwrap()
    };
    let (a, b) = (clean("pgd-s0"), clean("pgd-s1"));
    let group = &results["groups"][0];
    assert_eq!(
        (&group["name"], &group["clean"]["n"]),
        (&"pgd".into(), &2.into())
    );
    let near = |value: &Value, expected: f64| (value.as_f64().unwrap() - expected).abs() < 1e-12;
    assert!(near(&group["clean"]["mean"], (a + b) / 2.0), "{group}");
    // Of two values the sample standard deviation is their distance over the root of 2.
    assert!(
        near(&group["clean"]["sd"], (a - b).abs() / 2f64.sqrt()),
        "{group}"
    );
    let shown = format!(
        "{:.2} % ± {:.2}",
        50.0 * (a + b),
        100.0 * (a - b).abs() / 2f64.sqrt()
    );
    let row = told.stdout.lines().find(|line| line.starts_with("| `pgd`"));
    assert!(
        row.is_some_and(|row| row.contains(&shown)),
        "{shown}\n{}",
        told.stdout
    );
    assert!(told.stdout.contains("cost (EUR)"), "{}", told.stdout);
    assert!(
        told.stdout
            .contains("| *Theirs [1]* | - | *87.00 %* | *50.00 %* |"),
        "{}",
        told.stdout
    );

    let document = || fs::read_to_string(place.path("RESULTS.md")).unwrap();
    let first = document();
    for words in [
        "# two",
        "**Asked:** Is it done?",
        "the first 20 test images of digits",
        "APGD-CE-50",
        "Seeds: 0, 1.",
        "[1] from the literature, not measured here: a paper, table 1",
        "`train.objective = \"standard\"`",
        "| `standard-s1` |",
    ] {
        assert!(first.contains(words), "no `{words}` in:\n{first}");
    }
    for part in first.split("](").skip(1) {
        let name = part.split(')').next().unwrap();
        assert!(place.path(name).exists(), "{name}");
    }
    let svg = fs::read_to_string(place.path("accuracy-linf-0.1.svg")).unwrap();
    assert!(svg.contains("standard") && svg.contains("</svg>"));

    // Notes stay, all else is written as it was.
    place.write(
        "RESULTS.md",
        &format!("{first}\nThe seed matters little.\n"),
    );
    let again = place.line("experiment results experiment.toml").done();
    assert_eq!(document(), format!("{first}\nThe seed matters little.\n"));
    let numbers = |text: &str| text.lines().filter(|line| line.starts_with('|')).count();
    assert_eq!(numbers(&again.stdout), numbers(&told.stdout));

    // Nothing is done twice.
    let log = fs::read(place.path("runs/two/pgd-s0/log.txt")).unwrap();
    let told = place.line("experiment run experiment.toml").done();
    assert!(
        told.stderr.contains("4 runs are done already"),
        "{}",
        told.stderr
    );
    assert_eq!(
        fs::read(place.path("runs/two/pgd-s0/log.txt")).unwrap(),
        log
    );
    assert!(
        states(&place, "experiment.toml")
            .iter()
            .all(|(_, state)| state == "judged")
    );

    // Judging differently is no other training.
    let harder = EXPERIMENT.replace("samples = 20", "samples = 30");
    place.write("experiment.toml", &harder);
    assert!(
        states(&place, "experiment.toml")
            .iter()
            .all(|(_, state)| state == "trained")
    );
    let weights = |run: &str| fs::metadata(place.path("runs/two").join(run).join("metrics.jsonl"));
    let before = weights("pgd-s1").unwrap().modified().unwrap();
    place.line("experiment run experiment.toml").done();
    assert_eq!(weights("pgd-s1").unwrap().modified().unwrap(), before);
    let audit = json(&place.path("runs/two/pgd-s1/audit/audit.json"));
    assert_eq!(audit["data"]["samples"], 30);

    // Training differently is: nothing is mixed.
    let other = harder.replace(
        "\"train.objective\" =",
        "\"train.epochs\" = 2, \"train.objective\" =",
    );
    place.write("experiment.toml", &other);
    let told = place.line("experiment run experiment.toml").refused(&[
        "standard-s0: `train.epochs` is 2, was 1",
        "standard-s1: `train.epochs` is 2, was 1",
        "--out DIR",
    ]);
    assert!(!told.stderr.contains("pgd-s0"), "{}", told.stderr);
}

#[test]
fn everything_wrong_is_told_at_once_before_anything_runs() {
    let place = place();
    let bad = EXPERIMENT
        .replace("about =", "abuot =")
        .replace("samples = 20", "samples = 0")
        .replace("seeds = [0, 1]", "seeds = \"0\"");
    place.write("keys.toml", &bad);
    place.line("experiment run keys.toml").refused(&[
        "keys.toml:2:1: unknown key `abuot` in an experiment",
        "did you mean `about`?",
        "`audit.samples` is 0, but at least 1 is needed",
        "`seeds` is a list, not text",
        "3 problems in keys.toml",
    ]);
    let bad = EXPERIMENT
        .replace(
            "\"evaluate.baseline\" = false",
            "\"evaluate.baselin\" = false\nseed = 3\ntrain = { epochs = 1 }",
        )
        .replace("name = \"standard\"", "name = \"PGD\"")
        .replace("seeds = [0, 1]", "seeds = [0, 0]")
        .replace("robust = 0.5", "robust = 50");
    place.write("more.toml", &bad);
    place.line("experiment run more.toml").refused(&[
        "more.toml:8:8: `seed` is set by `seeds`",
        "this would replace the whole table `[train]`",
        "two methods are called `PGD`",
        "`seeds` has 0 twice",
        "`anchor.robust` is 50, but at most 1 is possible",
        "5 problems in more.toml",
    ]);
    // What is wrong with the configs of methods points to where it was said, once for all seeds.
    let bad = EXPERIMENT
        .replace(
            "\"train.objective\" = \"standard\"",
            "\"train.objective\" = \"trads\"",
        )
        .replace(
            "[[anchor]]",
            "[matrix]\n\"threat.eps\" = [0.1, \"8/0\"]\n\"train.epocs\" = [1]\n[[anchor]]",
        )
        .replace("linf:0.1", "linf");
    place.write("methods.toml", &bad);
    let told = place.line("experiment run methods.toml").refused(&[
        "methods.toml:14:29: `train.objective` is one of",
        "14 | set = { \"train.objective\" = \"trads\" }",
        "unknown key `epocs` in `[train]`",
        "did you mean `epochs`?",
    ]);
    assert_eq!(
        told.stderr.matches("unknown key").count(),
        1,
        "{}",
        told.stderr
    );
    place.write(
        "small.toml",
        &place::DIGITS.replace("batch_size = 64", "batch_size = 64000"),
    );
    place
        .line("experiment run experiment.toml")
        .refused(&["small.toml:7:14: `data.batch_size`: 64000 examples a batch"]);
    place.write(
        "based.toml",
        &EXPERIMENT.replace("small.toml", "nowhere.toml"),
    );
    place
        .line("experiment run based.toml")
        .refused(&["based.toml:3:8: nowhere.toml: no such file"]);
    let twice = EXPERIMENT.replace("[audit]", "[matrix]\n\"threat.eps\" = [0.1, 0.1]\n[audit]");
    place.write("twice.toml", &twice);
    place
        .line("experiment run twice.toml")
        .refused(&["two runs, of `pgd`, would be called `pgd-eps0.1-s0`"]);
    place.line("train experiment.toml").refused(&[
        "no config but an experiment",
        "experiment run experiment.toml --dry-run",
    ]);
    assert!(!place.path("runs").exists(), "something ran");
}

#[test]
fn every_experiment_that_comes_with_the_program_is_sound() {
    let place = Place::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments");
    let mut found = 0;
    for folder in fs::read_dir(root).unwrap() {
        let file = folder.unwrap().path().join("experiment.toml");
        if file.exists() {
            found += 1;
            let line = format!("experiment status {} --json", file.display());
            let told = place.line(&line).done();
            let status: Value = serde_json::from_str(&told.stdout).unwrap();
            assert!(!status["runs"].as_array().unwrap().is_empty(), "{line}");
        }
    }
    assert!(found >= 1);
}

#[test]
fn a_killed_experiment_goes_on_and_does_nothing_twice() {
    let place = place();
    // The first run is short, those after it are not.
    let long = EXPERIMENT.replace(
        "\"train.objective\" = \"standard\"",
        "\"train.epochs\" = 60, \"train.attack.steps\" = 10",
    );
    place.write("experiment.toml", &long);
    let spawn = || {
        let line = ["experiment", "run", "experiment.toml", "--jobs", "2"];
        let mut command = place.command(&line);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let run = place.path("runs/two/standard-s0");
    // A program whose file is gone, as while a build replaces it, starts its commands all the same.
    let program = place.path("program");
    fs::copy(env!("CARGO_BIN_EXE_gauntlet"), &program).unwrap();
    let mut child = Command::new(&program)
        .args(["experiment", "run", "experiment.toml", "--jobs", "2"])
        .current_dir(place.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until(&mut child, || {
        place.path("runs/two/pgd-s0/log.txt").exists()
    });
    fs::remove_file(&program).unwrap();
    let some = |name: &str| {
        let text = fs::read_to_string(run.join(name)).unwrap_or_default();
        text.lines().count()
    };
    wait_until(&mut child, || some("metrics.jsonl") > 40);
    child.kill().unwrap();
    child.wait().unwrap();
    // Its children see that it is gone, and save.
    let began = Instant::now();
    while !fs::read_to_string(run.join("log.txt"))
        .unwrap()
        .contains("interrupted, saved")
    {
        assert!(began.elapsed() < Duration::from_secs(60));
        sleep(Duration::from_millis(50));
    }
    let state = states(&place, "experiment.toml");
    assert_eq!(state[0], ("pgd-s0".to_owned(), "judged".to_owned()));
    assert!(state[2].1.starts_with("saved at step "), "{state:?}");
    let judged = fs::read(place.path("runs/two/pgd-s0/log.txt")).unwrap();

    // Asked to stop, it lets them save.
    let mut child = spawn();
    let records = some("metrics.jsonl");
    wait_until(&mut child, || some("metrics.jsonl") > records + 20);
    let asked = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status();
    assert!(asked.unwrap().success());
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(
        told.contains("gauntlet experiment run experiment.toml"),
        "{told}"
    );

    place.line("experiment run experiment.toml --jobs 2").done();
    assert_eq!(
        fs::read(place.path("runs/two/pgd-s0/log.txt")).unwrap(),
        judged
    );
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let steps = text
        .lines()
        .filter(|line| line.contains("\"train\""))
        .count();
    assert_eq!(steps, 60 * 17, "each step once");
    let log = fs::read_to_string(run.join("log.txt")).unwrap();
    let commands: Vec<_> = log
        .lines()
        .filter_map(|line| line.strip_prefix("$ gauntlet "))
        .collect();
    let verbs: Vec<_> = commands
        .iter()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(verbs, ["train", "resume", "resume", "audit"]);
    assert_eq!(
        json(&place.path("runs/two/results.json"))["groups"][1]["clean"]["n"],
        2
    );
}

#[test]
fn a_failed_run_is_told_and_tried_again_next_time() {
    let place = place();
    let folder = place.path("runs/two/pgd-s1");
    fs::create_dir_all(&folder).unwrap();
    // A file stands where a folder is needed.
    fs::write(folder.join("checkpoints"), "").unwrap();
    let told = place.line("experiment run experiment.toml");
    assert_eq!(told.status, 1, "{}", told.stderr);
    for words in [
        "1 of 4 runs failed",
        "pgd-s1: train ended with exit status 1: error: ",
        "checkpoints",
    ] {
        assert!(
            told.stderr.contains(words),
            "no `{words}` in:\n{}",
            told.stderr
        );
    }
    let document = fs::read_to_string(place.path("RESULTS.md")).unwrap();
    assert!(
        document.contains("**Not finished:** 1 of 4 runs"),
        "{document}"
    );
    assert!(told.stdout.contains("| `pgd` | 1 |"), "{}", told.stdout);
    let state = states(&place, "experiment.toml");
    assert_eq!(state[1], ("pgd-s1".to_owned(), "failed".to_owned()));
    fs::remove_file(folder.join("checkpoints")).unwrap();
    let told = place.line("experiment run experiment.toml").done();
    assert!(told.stdout.contains("| `pgd` | 2 |"), "{}", told.stdout);
}

/// A Slurm for the command line alone: it notes what it is asked, and says that tasks wait.
fn fake_slurm(place: &Place) -> String {
    let folder = place.path("bin");
    fs::create_dir_all(&folder).unwrap();
    let programs = [
        (
            "sbatch",
            "cp \"$2\" submitted.sh; echo \"sbatch $1\" >> asked.txt; echo 77",
        ),
        ("squeue", "cat queue.txt 2>/dev/null"),
        ("sacct", "cat account.txt 2>/dev/null"),
        ("scontrol", "echo \"scontrol $*\" >> asked.txt"),
    ];
    for (name, body) in programs {
        let path = folder.join(name);
        let place = place.path("").display().to_string();
        fs::write(&path, format!("#!/bin/bash\ncd '{place}'\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap())
}

#[test]
fn slurm_gets_an_array_of_what_is_open_and_its_tasks_requeue_themselves() {
    let place = place();
    let path = fake_slurm(&place);
    let run = |line: &str| -> Ended {
        let words: Vec<_> = line.split_whitespace().collect();
        Ended::from(place.command(&words).env("PATH", &path).output().unwrap())
    };
    let text = format!(
        "{EXPERIMENT}\n[slurm]\npartition = \"gpu\"\ncpus-per-task = 1\nsetup = \"export FROM_SETUP=1\"\n"
    );
    place.write("experiment.toml", &text);
    // One run is done here.
    place.line("experiment task experiment.toml 2").done();
    let submit = "experiment run experiment.toml --engine slurm --jobs 2 --sbatch time=01:00:00";
    let script = run(&format!("{submit} --dry-run")).done().stdout;
    assert!(!place.path("submitted.sh").exists());
    for line in [
        "#SBATCH --array=0-1,3%2",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:TERM@120",
        "#SBATCH --open-mode=append",
        "#SBATCH --partition=gpu",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --time=01:00:00",
        "    [3]=standard-s1",
        "export FROM_SETUP=1",
    ] {
        assert!(
            script.lines().any(|other| other == line),
            "no `{line}` in:\n{script}"
        );
    }
    assert_eq!(run(submit).done().stdout, "77\n");
    assert_eq!(
        fs::read_to_string(place.path("submitted.sh"))
            .unwrap()
            .trim(),
        script.trim()
    );
    let jobs = json(&place.path("runs/two/slurm/jobs.json"));
    assert_eq!(
        (&jobs["jobs"][0]["id"], &jobs["jobs"][0]["tasks"]["3"]),
        (&"77".into(), &"standard-s1".into())
    );

    // What waits is not submitted again; what was cancelled is.
    place.write("queue.txt", "77_0|PENDING\n77_1|RUNNING\n");
    place.write("account.txt", "77_0|PENDING\n77_3|CANCELLED by 1000\n");
    let status = run("experiment status experiment.toml").done().stdout;
    for (name, words) in [
        ("pgd-s0", "PENDING"),
        ("pgd-s1", "RUNNING"),
        ("standard-s1", "CANCELLED"),
    ] {
        let row = status.lines().find(|line| line.contains(name)).unwrap();
        assert!(row.contains("waiting") && row.contains(words), "{status}");
    }
    let told = run(submit).done();
    assert!(
        told.stderr.contains("2 runs are in the queue already"),
        "{}",
        told.stderr
    );
    let script = fs::read_to_string(place.path("submitted.sh")).unwrap();
    assert!(script.contains("#SBATCH --array=3%2\n"), "{script}");

    // The script, as Slurm would run a task of it.
    let task = || {
        let mut child = Command::new("bash")
            .arg(place.path("submitted.sh"))
            .env("PATH", &path)
            .env("GAUNTLET_DATA", place.path("data"))
            .envs([("SLURM_ARRAY_TASK_ID", "3"), ("SLURM_ARRAY_JOB_ID", "77")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let records = || {
            fs::read(place.path("runs/two/standard-s1/metrics.jsonl")).map_or(0, |text| text.len())
        };
        let before = records();
        wait_until(&mut child, || records() > before);
        let asked = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status();
        assert!(asked.unwrap().success());
        child.wait().unwrap().code()
    };
    let asked = || fs::read_to_string(place.path("asked.txt")).unwrap();
    // It has been asked to stop: while its job is running it is put back, not if it was cancelled.
    let long = text.replace(
        "\"train.objective\" =",
        "\"train.epochs\" = 400, \"train.objective\" =",
    );
    place.write("experiment.toml", &long);
    fs::remove_dir_all(place.path("runs/two/standard-s0")).unwrap();
    place.write("queue.txt", "CANCELLED\n");
    assert_eq!(task(), Some(130));
    assert!(!asked().contains("scontrol"), "{}", asked());
    place.write("queue.txt", "RUNNING\n");
    assert_eq!(task(), Some(130));
    assert!(asked().contains("scontrol requeue 77_3"), "{}", asked());
    assert!(
        states(&place, "experiment.toml")[3]
            .1
            .starts_with("saved at step ")
    );

    let told = place.line("experiment run experiment.toml --sbatch time=1");
    told.refused(&["`--sbatch time=1` is for `--engine slurm`"]);
    run(&format!("{submit} --sbatch array=1 --sbatch X=1"))
        .refused(&["`array` is set by", "`X` is no option"]);
    let none = place
        .command(&submit.split(' ').collect::<Vec<_>>())
        .env("PATH", place.path("none"))
        .output();
    Ended::from(none.unwrap()).refused(&["`sbatch` is not here", "--dry-run"]);
}
