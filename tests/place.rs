//! A folder for a test, and commands that are run in it.
#![allow(dead_code, reason = "not every test file uses all of it")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A small run.
pub(crate) const DIGITS: &str = r#"name = "small"
device = "cpu"

[data]
source = "digits"
validation = 200
batch_size = 64

[model]
arch = "mlp"
width = 32

[threat]
norm = "linf"
eps = 0.1

[train]
objective = "pgd"
epochs = 1
optimizer = { kind = "adam" }
schedule = { kind = "constant", rate = 0.01 }

[train.attack]
steps = 3

[evaluate]
baseline = true
attack = { steps = 3 }
final = { attack = { steps = 5, restarts = 1 }, samples = 100 }
"#;

/// A folder of its own for each test, with a config in it.
pub(crate) struct Place {
    folder: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        place.write("small.toml", DIGITS);
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gauntlet"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("GAUNTLET_DATA", self.path("data"))
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        Ended::from(self.command(arguments).output().unwrap())
    }

    /// Runs a command as it is typed; no word has a blank in it.
    pub(crate) fn line(&self, line: &str) -> Ended {
        self.run(&line.split_whitespace().collect::<Vec<_>>())
    }
}

/// What a command said, and how it ended.
pub(crate) struct Ended {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().expect("ended by itself"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ended {
    #[track_caller]
    pub(crate) fn done(self) -> Self {
        assert_eq!(self.status, 0, "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Failed on the way: exit status 1, these words on stderr.
    #[track_caller]
    pub(crate) fn failed(self, words: &[&str]) -> Self {
        assert_eq!(self.status, 1, "{}\n{}", self.stdout, self.stderr);
        for word in words {
            assert!(
                self.stderr.contains(word),
                "no `{word}` in:\n{}",
                self.stderr
            );
        }
        assert!(!self.stderr.contains("internal error"), "{}", self.stderr);
        self
    }

    /// Refused: exit status 2, these words on stderr, nothing on stdout, and no panic.
    #[track_caller]
    pub(crate) fn refused(self, words: &[&str]) -> Self {
        assert_eq!(self.status, 2, "{}\n{}", self.stdout, self.stderr);
        for word in words {
            assert!(
                self.stderr.contains(word),
                "no `{word}` in:\n{}",
                self.stderr
            );
        }
        assert_eq!(self.stdout, "");
        assert!(!self.stderr.contains("internal error"), "{}", self.stderr);
        self
    }

    /// Refused after some of the work: exit status 2 with words on stdout too.
    #[track_caller]
    pub(crate) fn refused_in_part(self, out: &str, words: &[&str]) {
        assert!(self.stdout.contains(out), "{}", self.stdout);
        let rest = Self {
            stdout: String::new(),
            ..self
        };
        rest.refused(words);
    }
}
