//! The runs on this machine: one after another, or several at once.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Instant;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget};

use super::child::{self, Ended, Share};
use super::folder::Folder;
use super::matrix::{Matrix, Run};
use crate::devices::Spec;
use crate::failure::Failure;
use crate::interrupt;
use crate::output::{duration, percent, say, watched};
use crate::progress::style;

/// What became of the runs that were to be done.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Judged now.
    pub(crate) done: usize,
    /// Judged before.
    pub(crate) before: usize,
    /// `NAME: why`
    pub(crate) failed: Vec<String>,
    /// Stopped by request, before or after they had begun.
    pub(crate) stopped: usize,
}

/// Does what is not done yet of all runs, `jobs` at a time. With several devices they take turns.
pub(crate) fn work(matrix: &Matrix, jobs: usize, devices: &[Spec], quiet: bool) -> Tally {
    interrupt::catch("asking the runs to save");
    let jobs = jobs.clamp(1, matrix.runs.len().max(1));
    let display = Display::new(matrix, jobs, quiet);
    let waiting: Mutex<VecDeque<&Run>> = Mutex::new(matrix.runs.iter().collect());
    let tally = Mutex::new(Tally::default());
    let shares = shares(jobs, devices);
    std::thread::scope(|scope| {
        for (slot, &share) in shares.iter().enumerate() {
            let (display, waiting, tally) = (&display, &waiting, &tally);
            let next = move || waiting.lock().ok()?.pop_front();
            scope.spawn(move || {
                while let Some(run) = next() {
                    let result = if interrupt::asked() {
                        Ok(Ended::Stopped)
                    } else {
                        one(matrix, run, share, display, slot)
                    };
                    if let Ok(mut tally) = tally.lock() {
                        tally.add(run, &result);
                    }
                    display.ended(slot, run, &result);
                }
            });
        }
    });
    display.close();
    tally.into_inner().unwrap_or_default()
}

fn one(
    matrix: &Matrix,
    run: &Run,
    share: Share,
    display: &Display,
    slot: usize,
) -> Result<Ended, Failure> {
    let folder = Folder::of(matrix, run);
    let (mut told, began) = (String::new(), Instant::now());
    child::work(matrix, run, share, &mut |stage| {
        if told != stage {
            stage.clone_into(&mut told);
            display.began(run, stage);
        }
        let line = match folder.last_line() {
            line if line.is_empty() => line,
            line => format!(": {line}"),
        };
        let since = duration(began.elapsed().as_secs_f64());
        display.show(slot, &format!("{}: {stage}, {since}{line}", run.name));
    })
}

/// What each of `jobs` runs at a time may use.
fn shares(jobs: usize, devices: &[Spec]) -> Vec<Share> {
    let threads = (cores() / jobs).max(1);
    let share = |slot: usize| Share {
        device: match devices {
            [] => None,
            devices => Some(devices[slot % devices.len()]),
        },
        threads,
        shared_by: jobs.div_ceil(devices.len().max(1)),
    };
    (0..jobs).map(share).collect()
}

/// Threads that this process may keep busy.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Tally {
    fn add(&mut self, run: &Run, result: &Result<Ended, Failure>) {
        match result {
            Ok(Ended::Judged(_, false)) => self.done += 1,
            Ok(Ended::Judged(_, true)) => self.before += 1,
            Ok(Ended::Stopped) => self.stopped += 1,
            Ok(Ended::Failed(failed)) => {
                let (command, ended) = (&failed.command, &failed.ended);
                let text = format!(
                    "{}: {command} ended with {ended}: {}",
                    run.name, failed.said
                );
                self.failed.push(text);
            }
            Err(failure) => self
                .failed
                .push(format!("{}: {}", run.name, failure.message)),
        }
    }
}

/// One view of all runs: a bar and a line a running run where a person watches, else a line now and then.
struct Display {
    quiet: bool,
    all: Option<MultiProgress>,
    total: ProgressBar,
    slots: Vec<ProgressBar>,
}

impl Display {
    fn new(matrix: &Matrix, jobs: usize, quiet: bool) -> Self {
        let (name, runs) = (&matrix.file.spec.name, matrix.runs.len() as u64);
        let watched = !quiet && watched();
        let all =
            watched.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(5)));
        let bar = |length: Option<u64>, template: &str| {
            let bar = match &all {
                Some(all) => all.add(ProgressBar::new(length.unwrap_or(0))),
                None => ProgressBar::hidden(),
            };
            bar.set_style(style(template));
            bar
        };
        let total = bar(Some(runs), "{msg} {wide_bar} {pos}/{len} runs, {elapsed}");
        total.set_message(name.clone());
        let slots = (0..jobs).map(|_| bar(None, "  {wide_msg}")).collect();
        Self {
            quiet,
            all,
            total,
            slots,
        }
    }

    /// A line that stays.
    fn line(&self, text: &str) {
        match &self.all {
            _ if self.quiet => {}
            Some(all) => drop(all.println(text)),
            None => say(text),
        }
    }

    fn show(&self, slot: usize, text: &str) {
        self.slots[slot].set_message(text.to_owned());
        self.total.tick();
    }

    fn began(&self, run: &Run, stage: &str) {
        if self.all.is_none() {
            self.line(&format!("{}: {stage}", run.name));
        }
    }

    fn ended(&self, slot: usize, run: &Run, result: &Result<Ended, Failure>) {
        let name = &run.name;
        match result {
            // Told once, together.
            Ok(Ended::Judged(_, true) | Ended::Stopped) => {}
            Ok(Ended::Judged(audit, false)) => {
                let threats = audit.threats.iter();
                let robust: String = threats
                    .map(|threat| {
                        format!(
                            ", {} within {}",
                            percent(threat.robust_accuracy),
                            threat.threat
                        )
                    })
                    .collect();
                let clean = percent(audit.clean_accuracy);
                self.line(&format!("{name}: {clean} clean{robust}"));
            }
            Ok(Ended::Failed(failed)) => {
                let (command, ended, said) = (&failed.command, &failed.ended, &failed.said);
                self.line(&format!("{name}: {command} failed ({ended}): {said}"));
            }
            Err(failure) => self.line(&format!("{name}: {}", failure.message)),
        }
        self.slots[slot].set_message("");
        self.total.inc(1);
    }

    fn close(&self) {
        for slot in &self.slots {
            slot.finish_and_clear();
        }
        self.total.finish_and_clear();
    }
}
