//! The jobs that Slurm was given, and what it says of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::folder::write;
use super::matrix::Matrix;
use crate::failure::Failure;

/// `slurm/jobs.json`
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Jobs {
    schema: u32,
    /// In the order they were submitted.
    jobs: Vec<Job>,
}

/// An array job.
#[derive(Debug, Serialize, Deserialize)]
struct Job {
    /// As `sbatch --parsable` printed it.
    id: String,
    /// Which run each task does.
    tasks: BTreeMap<usize, String>,
}

impl Jobs {
    /// Adds a job.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn add(
        mut self,
        matrix: &Matrix,
        id: &str,
        tasks: BTreeMap<usize, String>,
    ) -> Result<(), Failure> {
        self.schema = 1;
        self.jobs.push(Job {
            id: id.to_owned(),
            tasks,
        });
        let mut text = serde_json::to_vec_pretty(&self).expect("plain structs serialise");
        text.push(b'\n');
        write(&folder(matrix).join("jobs.json"), &text)
    }

    /// What was submitted.
    pub(crate) fn read(matrix: &Matrix) -> Self {
        let bytes = fs::read(folder(matrix).join("jobs.json")).ok();
        let jobs = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        jobs.unwrap_or_default()
    }

    /// Slurm's word on each run that was submitted, the newest submission of it: `("123_4", "PENDING")`.
    pub(crate) fn states(&self) -> BTreeMap<String, (String, String)> {
        let known = known(&self.jobs);
        let mut states = BTreeMap::new();
        for job in &self.jobs {
            // Of several clusters it is `id;cluster`.
            let id = job.id.split(';').next().unwrap_or(&job.id);
            for (place, run) in &job.tasks {
                let task = format!("{id}_{place}");
                let state = known.get(&task).cloned();
                let state = state.unwrap_or_else(|| "gone".to_owned());
                states.insert(run.clone(), (task, state));
            }
        }
        states
    }
}

/// Whether Slurm still has plans for a task in this state.
pub(crate) fn is_pending_or_running(state: &str) -> bool {
    let alive = [
        "PENDING",
        "RUNNING",
        "SUSPENDED",
        "REQUEUED",
        "REQUEUE_HOLD",
        "COMPLETING",
        "CONFIGURING",
        "STOPPED",
    ];
    alive.contains(&state)
}

/// State of each task that Slurm knows: what ended from `sacct` where there is accounting, what waits or runs from `squeue`.
fn known(jobs: &[Job]) -> BTreeMap<String, String> {
    let ids: Vec<_> = jobs
        .iter()
        .map(|job| job.id.split(';').next().unwrap_or(&job.id))
        .collect();
    let mut states = BTreeMap::new();
    if ids.is_empty() {
        return states;
    }
    let ids = ids.join(",");
    let mut ask = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        let Ok(output) = output else { return };
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            if let Some((task, state)) = line.trim().split_once('|') {
                // `CANCELLED by 1000`
                let state = state.split_whitespace().next().unwrap_or(state);
                states.insert(task.to_owned(), state.to_owned());
            }
        }
    };
    let accounting = ["-n", "-P", "-X", "-o", "JobID,State", "-j", &ids];
    ask("sacct", &accounting);
    let queue = ["-h", "-r", "-t", "all", "-o", "%i|%T", "-j", &ids];
    ask("squeue", &queue);
    states
}

/// Where the script, the jobs and their logs are.
pub(crate) fn folder(matrix: &Matrix) -> PathBuf {
    matrix.out.join("slurm")
}
