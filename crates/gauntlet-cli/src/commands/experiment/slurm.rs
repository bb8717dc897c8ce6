//! Runs on a Slurm cluster: one array job, one task a run.

use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::folder::{unwritable, write};
use super::matrix::{Matrix, Run};
use super::slurm_jobs::{Jobs, folder};
use crate::devices::Spec;
use crate::failure::Failure;

/// What is submitted.
pub(crate) struct Submission<'a> {
    pub(crate) matrix: &'a Matrix,
    /// The runs to do, by their place in the matrix.
    pub(crate) runs: Vec<(usize, &'a Run)>,
    /// At most so many at a time.
    pub(crate) jobs: Option<usize>,
    pub(crate) device: Option<Spec>,
    /// `--sbatch KEY=VALUE`, over those of the file.
    pub(crate) options: Vec<(String, String)>,
}

/// Options that the script sets itself.
const OURS: [&str; 7] = [
    "array",
    "requeue",
    "signal",
    "open-mode",
    "output",
    "error",
    "parsable",
];

impl Submission<'_> {
    /// The script of the array job.
    ///
    /// # Errors
    /// If an option of `sbatch` cannot be used.
    pub(crate) fn script(&self) -> Result<String, Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::running(format!("this program's own file: {error}")))?;
        let (out, file) = (
            absolute(&self.matrix.out)?,
            absolute(&self.matrix.file.path)?,
        );
        let here = std::env::current_dir().map_err(|error| unwritable(Path::new("."), &error))?;
        let places: Vec<usize> = self.runs.iter().map(|(place, _)| *place).collect();
        let most = self
            .jobs
            .map_or_else(String::new, |jobs| format!("%{jobs}"));
        let name = &self.matrix.file.spec.name;
        let mut text = String::from("#!/bin/bash\n");
        let mut option = |option: &str| {
            let _ = writeln!(text, "#SBATCH --{option}");
        };
        option(&format!("array={}{most}", ranges(&places)));
        option("requeue");
        // The shell alone gets it, two minutes before the end of the time, and hands it on.
        option("signal=B:TERM@120");
        option("open-mode=append");
        option(&format!("output={}/slurm/%A_%a.log", out.display()));
        let (options, setup) = self.options()?;
        if !options.iter().any(|(key, _)| key == "job-name") {
            option(&format!("job-name={name}"));
        }
        for (key, value) in &options {
            match value.as_str() {
                "" => option(key),
                value => option(&format!("{key}={value}")),
            }
        }
        let device = self
            .device
            .map_or_else(String::new, |device| format!(" --device {device}"));
        let _ = write!(
            text,
            "\n# Written by `gauntlet experiment run --engine slurm`: one task a run of {name}.\n\
             declare -A runs=(\n"
        );
        for (place, run) in &self.runs {
            let _ = writeln!(text, "    [{place}]={}", run.name);
        }
        let _ = write!(
            text,
            ")\ncd {} || exit 2\n\
             # Slurm's wish to stop is handed on to the run.\n\
             task= stop=\n\
             trap 'stop=yes; [ -n \"$task\" ] && kill -TERM \"$task\" 2>/dev/null' TERM\n{setup}\n\
             status=143\n\
             if [ -z \"$stop\" ]; then\n    \
                 # In the background: only then the shell hears a signal while the run goes on.\n    \
                 {} experiment task {} \"${{runs[$SLURM_ARRAY_TASK_ID]}}\" --out {}{device} &\n    \
                 task=$!\n    \
                 wait \"$task\"; status=$?\n    \
                 # A signal ends the waiting, not the task, which is saving.\n    \
                 while kill -0 \"$task\" 2>/dev/null; do wait \"$task\"; status=$?; done\n\
             fi\n\
             \n\
             # Stopped (130: saved; 143: before it had begun): the run goes on in another slot of time, unless a person cancelled\n\
             # the job.\n\
             job=\"${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID\"\n\
             if [ \"$status\" -eq 130 ] || [ \"$status\" -eq 143 ]; then\n    \
                 [ \"$(squeue -h -j \"$job\" -o %T)\" = RUNNING ] && scontrol requeue \"$job\"\n\
             fi\n\
             exit \"$status\"\n",
            quoted(&here),
            quoted(&program),
            quoted(&file),
            quoted(&out),
        );
        Ok(text)
    }

    /// Options of `sbatch`, and the lines that come before each run.
    fn options(&self) -> Result<(Vec<(String, String)>, String), Failure> {
        let file = &self.matrix.file;
        let (mut options, mut setup): (Vec<(String, String)>, _) = (Vec::new(), String::new());
        let mut told = Vec::new();
        for (key, value) in &file.spec.slurm {
            let at = format!("slurm.{key}");
            let text = match value {
                toml::Value::String(text) => text.clone(),
                toml::Value::Boolean(true) => String::new(),
                toml::Value::Boolean(false) => continue,
                toml::Value::Integer(number) => number.to_string(),
                _ => {
                    told.push(file.tell(&at, format!("`{key}` is text, a number or `true`")));
                    continue;
                }
            };
            match key.as_str() {
                "setup" => setup = text,
                _ => match unusable(key, &text) {
                    Some(problem) => told.push(file.tell(&at, problem)),
                    None => options.push((key.clone(), text)),
                },
            }
        }
        for (key, value) in &self.options {
            match unusable(key, value) {
                Some(problem) => told.push(format!("--sbatch {key}={value}: {problem}")),
                None => {
                    options.retain(|(other, _)| other != key);
                    options.push((key.clone(), value.clone()));
                }
            }
        }
        match told.as_slice() {
            [] => Ok((options, setup)),
            told => Err(file.failure(told)),
        }
    }

    /// Writes the script and submits it; the id of the job.
    ///
    /// # Errors
    /// If there is no `sbatch`, or it refuses.
    pub(crate) fn submit(&self) -> Result<String, Failure> {
        let script = self.script()?;
        let folder = folder(self.matrix);
        fs::create_dir_all(&folder).map_err(|error| unwritable(&folder, &error))?;
        let path = folder.join("job.sh");
        write(&path, script.as_bytes())?;
        let output = Command::new("sbatch").arg("--parsable").arg(&path).output();
        let output = output.map_err(|error| match error.kind() {
            ErrorKind::NotFound => Failure::request(
                "`sbatch` is not here: this machine submits to no Slurm cluster\n\n\
                 hint: without `--engine slurm` the runs are done on this machine; `--dry-run` prints the script",
            ),
            _ => Failure::running(format!("`sbatch`: {error}")),
        })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::running(format!(
                "`sbatch {}` refused: {}",
                path.display(),
                said.trim()
            )));
        }
        let id = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let runs = self.runs.iter();
        let tasks = runs.map(|(place, run)| (*place, run.name.clone()));
        Jobs::read(self.matrix).add(self.matrix, &id, tasks.collect())?;
        Ok(id)
    }
}

/// Why an option of `sbatch` cannot be one of a script.
fn unusable(key: &str, value: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if key.is_empty() || key.starts_with('-') || !key.chars().all(plain) {
        return Some(format!(
            "`{key}` is no option of `sbatch`\n\nhint: write the long name without dashes before it, such as `partition`"
        ));
    }
    if OURS.contains(&key) {
        return Some(format!("`{key}` is set by the experiment itself"));
    }
    value
        .contains(['\n', '\r'])
        .then(|| format!("`{key}` has more than one line"))
}

/// `0-3,5`
fn ranges(places: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &place in places {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == place => *last = place,
            _ => parts.push((place, place)),
        }
    }
    let parts: Vec<_> = parts
        .into_iter()
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    parts.join(",")
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| unwritable(path, &error))
}

/// A path as a word of the shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,".contains(c);
    if text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Threads that Slurm gave to this task, if it runs in one.
pub(crate) fn threads() -> Option<usize> {
    let asked =
        std::env::var("SLURM_CPUS_PER_TASK").or_else(|_| std::env::var("SLURM_CPUS_ON_NODE"));
    asked.ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_written_in_short() {
        for (places, expected) in [
            (vec![0], "0"),
            (vec![0, 1, 2, 3], "0-3"),
            (vec![0, 2, 3, 7], "0,2-3,7"),
        ] {
            assert_eq!(ranges(&places), expected);
        }
    }

    #[test]
    fn paths_are_one_word_of_the_shell() {
        assert_eq!(quoted(Path::new("/a/b-1.x")), "/a/b-1.x");
        assert_eq!(quoted(Path::new("/a b/it's")), "'/a b/it'\\''s'");
    }

    #[test]
    fn options_that_would_break_the_script_are_refused() {
        for (key, value) in [
            ("array", "0-3"),
            ("--time", "1"),
            ("Time", "1"),
            ("", "x"),
            ("time", "1\nrm"),
        ] {
            assert!(unusable(key, value).is_some(), "{key}={value}");
        }
        assert_eq!(unusable("cpus-per-task", "4"), None);
    }
}
