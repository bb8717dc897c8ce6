//! One run of an experiment: `train` or `resume`, then `audit`, each as a process of its own. A process that dies takes nothing
//! else along, and the same steps serve on this machine and in a cluster.

use std::fs::File;
use std::io::Write;
use std::process::{Child, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use gauntlet_audit::Audit;

use super::folder::{Asked, Failed, Folder, PROMPT, unwritable};
use super::matrix::{Matrix, Run};
use crate::devices::Spec;
use crate::failure::{Failure, Status};
use crate::{interrupt, program};

/// How a run went.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Trained and judged; `true` if that had been done before.
    Judged(Box<Audit>, bool),
    /// Asked to stop; what was done is saved.
    Stopped,
    /// A command failed.
    Failed(Failed),
}

/// What a run may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// Over the config's `device`.
    pub(crate) device: Option<Spec>,
    /// Threads on the CPU.
    pub(crate) threads: usize,
    /// How many runs share the device at a time.
    pub(crate) shared_by: usize,
}

/// Looks at a stage under way, some times a second: its name.
pub(crate) type Watch<'a> = &'a mut dyn FnMut(&str);

/// Does what is not done yet of `run`.
///
/// # Errors
/// If its folder cannot be used. What goes wrong within its commands is [`Ended::Failed`].
pub(crate) fn work(
    matrix: &Matrix,
    run: &Run,
    share: Share,
    watch: Watch<'_>,
) -> Result<Ended, Failure> {
    let folder = Folder::of(matrix, run);
    let asked = Asked::of(matrix, run);
    let _held = folder.hold(&run.plan)?;
    if let Some(audit) = folder.judged(&asked).filter(|_| folder.is_trained()) {
        return Ok(Ended::Judged(Box::new(audit), true));
    }
    // A session that was killed leaves a command that is about to save.
    while folder.is_busy() {
        if interrupt::asked() {
            return Ok(Ended::Stopped);
        }
        watch("waiting for an earlier session to save");
        sleep(Duration::from_millis(200));
    }
    folder.change_note(|note| {
        note.failed = None;
        note.shared_by = share.shared_by;
    })?;
    if !folder.is_trained() {
        let arguments = training(&folder, share);
        if let Some(ended) = stage(&folder, &arguments, share, watch)? {
            return Ok(ended);
        }
    }
    let arguments = auditing(matrix, run, &folder, share);
    if let Some(ended) = stage(&folder, &arguments, share, watch)? {
        return Ok(ended);
    }
    folder.change_note(|note| note.audited = Some(asked.clone()))?;
    match folder.judged(&asked) {
        Some(audit) => Ok(Ended::Judged(Box::new(audit), false)),
        None => Err(Failure::running(format!(
            "{}: the audit wrote no audit.json that can be read",
            folder.audit().display()
        ))),
    }
}

/// Arguments that train, or go on.
fn training(folder: &Folder, share: Share) -> Vec<String> {
    let mut arguments = if folder.is_begun() {
        vec!["resume".to_owned(), folder.root.display().to_string()]
    } else {
        let out = folder.root.display().to_string();
        let plan = folder.plan.display().to_string();
        vec!["train".to_owned(), plan, "--out".to_owned(), out]
    };
    if let Some(device) = share.device {
        arguments.extend(["--set".to_owned(), format!("device={device}")]);
    }
    arguments
}

/// Arguments that judge.
fn auditing(matrix: &Matrix, run: &Run, folder: &Folder, share: Share) -> Vec<String> {
    let spec = &matrix.file.spec.audit;
    let mut arguments = vec!["audit".to_owned(), folder.root.display().to_string()];
    let mut add = |option: &str, value: String| {
        arguments.extend([option.to_owned(), value]);
    };
    add("--out", folder.audit().display().to_string());
    match matrix.file.audit_file() {
        Some(path) => add("--plan", path.display().to_string()),
        None => {
            add("--plan", spec.plan.clone().unwrap_or("standard".to_owned()));
            for threat in &spec.threats {
                add("--threat", threat.clone());
            }
        }
    }
    add("--seed", spec.seed.to_string());
    if let Some(samples) = spec.samples {
        add("--samples", samples.to_string());
    }
    if let Some(size) = spec.batch_size {
        add("--batch-size", size.to_string());
    }
    add("--jobs", share.threads.to_string());
    match share.device {
        Some(device) => add("--device", device.to_string()),
        None => add("--device", run.plan.device.clone()),
    }
    if spec.diagnosis == Some(false) {
        arguments.push("--no-diagnosis".to_owned());
    }
    arguments
}

/// Runs a command to its end; `None` if it did what it was to do.
fn stage(
    folder: &Folder,
    arguments: &[String],
    share: Share,
    watch: Watch<'_>,
) -> Result<Option<Ended>, Failure> {
    if interrupt::asked() {
        return Ok(Some(Ended::Stopped));
    }
    let mut log = folder.open_log()?;
    let length = |log: &File| log.metadata().map_or(0, |found| found.len());
    let from = length(&log);
    let _ = writeln!(log, "{PROMPT}{}", arguments.join(" "));
    let mut child = spawn(folder, arguments, share, log)?;
    let command = arguments[0].as_str();
    let status = wait(&mut child, &mut || watch(command))
        .map_err(|error| Failure::running(format!("`gauntlet {command}`: {error}")))?;
    if status.success() {
        return Ok(None);
    }
    if interrupt::asked() && status.code() == Some(Status::Interrupted as i32) {
        return Ok(Some(Ended::Stopped));
    }
    let failed = Failed {
        command: command.to_owned(),
        ended: ended(status),
        said: folder.complaint(from),
    };
    folder.change_note(|note| note.failed = Some(failed.clone()))?;
    Ok(Some(Ended::Failed(failed)))
}

fn spawn(folder: &Folder, arguments: &[String], share: Share, log: File) -> Result<Child, Failure> {
    let told = |error: std::io::Error| unwritable(&folder.log(), &error);
    let mut command = program::command()
        .map_err(|error| Failure::running(format!("this program's own file: {error}")))?;
    command
        .args(arguments)
        .env("RAYON_NUM_THREADS", share.threads.to_string())
        .env(interrupt::WITH_STDIN, "1")
        .stdin(Stdio::piped())
        .stdout(log.try_clone().map_err(told)?)
        .stderr(log);
    // Ctrl-C is for this process, which asks its children to save, once.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command
        .spawn()
        .map_err(|error| Failure::running(format!("`gauntlet {}`: {error}", arguments[0])))
}

/// Waits for a child. It is asked to save by the end of its standard input, which comes too if this process is killed.
fn wait(child: &mut Child, watch: &mut dyn FnMut()) -> std::io::Result<ExitStatus> {
    let mut input = child.stdin.take();
    let mut looked = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if interrupt::asked() {
            input = None;
        }
        if looked.elapsed() > Duration::from_millis(400) {
            looked = Instant::now();
            watch();
        }
        // `input` stays open until here.
        let _ = &input;
        sleep(Duration::from_millis(20));
    }
}

fn ended(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("signal {signal}");
    }
    match status.code() {
        Some(code) => format!("exit status {code}"),
        None => "no exit status".to_owned(),
    }
}
