//! The folder of a run of an experiment: that of any run, with `log.txt`, `audit/`, and `experiment.json`, which says what the
//! experiment did with it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gauntlet_audit::Audit;
use gauntlet_data::files;
use gauntlet_train::{Plan, Record, RunDir};
use serde::{Deserialize, Serialize};

use super::matrix::{Matrix, Run};
use crate::commands::runs::flat;
use crate::config::reason;
use crate::failure::Failure;
use crate::records;

/// Paths of a run of an experiment, and what they hold.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    pub(crate) root: PathBuf,
    /// The run's resolved plan, which `train` starts from.
    pub(crate) plan: PathBuf,
}

/// `experiment.json`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Note {
    schema: u32,
    /// How many runs shared the device at a time; 1 where a run had it to itself.
    pub(crate) shared_by: usize,
    /// How the model was judged, once it was.
    #[serde(default)]
    pub(crate) audited: Option<Asked>,
    /// Why the last try ended before its end.
    #[serde(default)]
    pub(crate) failed: Option<Failed>,
}

/// What an audit depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Asked {
    plan: String,
    samples: Option<usize>,
    seed: u64,
    diagnosis: bool,
}

/// A try that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failed {
    /// `train`, `resume` or `audit`
    pub(crate) command: String,
    /// `exit status 1`, `signal 9`
    pub(crate) ended: String,
    /// The last line of the log.
    pub(crate) said: String,
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing is there yet.
    Waiting,
    /// A process works on it.
    Running,
    /// It stopped with this many steps saved.
    Saved(u64),
    /// Trained, not judged.
    Trained,
    /// Trained and judged as the experiment says.
    Judged,
    /// The last try failed.
    Failed(Failed),
}

impl Folder {
    pub(crate) fn of(matrix: &Matrix, run: &Run) -> Self {
        Self {
            root: matrix.out.join(&run.name),
            plan: matrix.out.join("plans").join(format!("{}.toml", run.name)),
        }
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.root.join("log.txt")
    }

    pub(crate) fn audit(&self) -> PathBuf {
        self.root.join("audit")
    }

    fn note_path(&self) -> PathBuf {
        self.root.join("experiment.json")
    }

    /// What the experiment noted, if it has come here.
    pub(crate) fn note(&self) -> Option<Note> {
        let bytes = fs::read(self.note_path()).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Changes what is noted.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn change_note(&self, change: impl FnOnce(&mut Note)) -> Result<(), Failure> {
        let mut note = self.note().unwrap_or(Note {
            schema: 1,
            shared_by: 1,
            audited: None,
            failed: None,
        });
        change(&mut note);
        let mut text = serde_json::to_vec_pretty(&note).expect("plain structs serialise");
        text.push(b'\n');
        write(&self.note_path(), &text)
    }

    /// Makes the folder, keeps others away from it, and writes the plan.
    ///
    /// # Errors
    /// If another process works on it, or of the file system.
    pub(crate) fn hold(&self, plan: &Plan) -> Result<File, Failure> {
        let folders = [&self.root, self.plan.parent().unwrap_or(&self.root)];
        for folder in folders {
            fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error))?;
        }
        let path = self.root.join(".experiment.lock");
        let file = File::create(&path).map_err(|error| unwritable(&path, &error))?;
        // Someone who asks how it goes holds it for an instant.
        for _ in 0..20 {
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(50)),
                // File systems that know no locks: the run's own lock is all there is.
                Ok(()) | Err(TryLockError::Error(_)) => {
                    let text = toml::to_string_pretty(plan).expect("a plan is plain tables");
                    write(&self.plan, text.as_bytes())?;
                    return Ok(file);
                }
            }
        }
        Err(Failure::request(format!(
            "{} is being worked on by another process",
            self.root.display()
        )))
    }

    /// Whether an experiment works on it. The locks of training and audit are left alone: asking would hold them for an
    /// instant, and who starts then would be refused.
    fn is_held(&self) -> bool {
        locked(&self.root.join(".experiment.lock"))
    }

    /// Whether training or auditing goes on in it, by whoever; to be asked by who [holds](Folder::hold) it.
    pub(crate) fn is_busy(&self) -> bool {
        locked(&self.root.join(".lock")) || locked(&self.audit().join("state/.lock"))
    }

    /// Whether `train` has begun: from then on `resume` goes on.
    pub(crate) fn is_begun(&self) -> bool {
        self.root.join("config.toml").exists()
    }

    pub(crate) fn is_trained(&self) -> bool {
        self.is_begun() && self.root.join("report.json").exists()
    }

    /// What was found, if it was looked for as the experiment says.
    pub(crate) fn judged(&self, asked: &Asked) -> Option<Audit> {
        let note = self.note()?;
        if note.audited.as_ref() != Some(asked) {
            return None;
        }
        let bytes = fs::read(self.audit().join("audit.json")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// How far the run is.
    pub(crate) fn state(&self, asked: &Asked) -> State {
        if self.is_held() {
            return State::Running;
        }
        if let Some(failed) = self.note().and_then(|note| note.failed) {
            return State::Failed(failed);
        }
        if self.is_trained() {
            return match self.judged(asked) {
                Some(_) => State::Judged,
                None => State::Trained,
            };
        }
        if self.is_begun() {
            return State::Saved(self.saved_step());
        }
        State::Waiting
    }

    /// The newest checkpoint's step.
    fn saved_step(&self) -> u64 {
        let entries = fs::read_dir(self.root.join("checkpoints"));
        let names = entries.into_iter().flatten().flatten();
        names
            .filter(|entry| entry.path().join("MANIFEST.json").exists())
            .filter_map(|entry| {
                let name = entry.file_name();
                name.to_str()?.strip_prefix("step-")?.parse().ok()
            })
            .max()
            .unwrap_or(0)
    }

    /// The records of its training.
    pub(crate) fn records(&self) -> Vec<Record> {
        records::read(&self.root)
    }

    /// The last line that its newest command wrote.
    pub(crate) fn last_line(&self) -> String {
        let tail = || -> std::io::Result<String> {
            let mut file = File::open(self.log())?;
            let from = file.metadata()?.len().saturating_sub(4096);
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let tail = tail().unwrap_or_default();
        let lines = tail.lines().rev().map(str::trim);
        let mut lines = lines.take_while(|line| !line.starts_with(PROMPT));
        let line = lines.find(|line| !line.is_empty());
        line.unwrap_or_default().to_owned()
    }

    /// The first error in what was written to the log from byte `from` on, else the last line.
    pub(crate) fn complaint(&self, from: u64) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(self.log())?;
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.take(1 << 20).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_default();
        let mut lines = text.lines();
        let error = lines.find(|line| line.contains("error: "));
        error.map_or_else(|| self.last_line(), |line| line.trim().to_owned())
    }

    /// Its log, to be written on.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn open_log(&self) -> Result<File, Failure> {
        let path = self.log();
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.map_err(|error| unwritable(&path, &error))
    }

    /// The key in which the plan of a run that has begun differs from what the experiment now says, told as a problem.
    pub(crate) fn changed(&self, plan: &Plan) -> Option<String> {
        let begun = match RunDir::plan(&self.root) {
            Ok(begun) => begun,
            Err(error) if self.is_begun() => return Some(error.to_string()),
            Err(_) => return None,
        };
        let (mut was, mut is) = (flat(&begun.resolved()), flat(plan));
        for values in [&mut was, &mut is] {
            // Where it is computed may change from session to session.
            values.remove("device");
        }
        let keys = was.keys().chain(is.keys());
        let mut keys: Vec<_> = keys.filter(|key| was.get(*key) != is.get(*key)).collect();
        keys.sort();
        keys.dedup();
        let value = |value: Option<&String>| value.map_or("not set", String::as_str).to_owned();
        let told: Vec<_> = keys
            .iter()
            .map(|key| {
                format!(
                    "`{key}` is {}, was {}",
                    value(is.get(*key)),
                    value(was.get(*key))
                )
            })
            .collect();
        (!told.is_empty()).then(|| format!("{}: {}", self.root.display(), told.join("; ")))
    }
}

impl Asked {
    pub(crate) fn of(matrix: &Matrix, run: &Run) -> Self {
        let spec = &matrix.file.spec.audit;
        Self {
            plan: toml::to_string(&run.audit).expect("a plan is plain tables and values"),
            samples: spec.samples,
            seed: spec.seed,
            diagnosis: spec.diagnosis.unwrap_or(true),
        }
    }
}

/// What a log has before each command.
pub(crate) const PROMPT: &str = "$ gauntlet ";

/// Whether someone else holds the lock in the file `path`.
fn locked(path: &Path) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Writes a file, whole or not at all.
///
/// # Errors
/// Naming the file.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    files::write(path, bytes).map_err(|error| unwritable(path, &error))
}

pub(crate) fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::running(format!("{}: {}", path.display(), reason(error)))
}
