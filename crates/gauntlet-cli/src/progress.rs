//! How work that takes long looks on a terminal: a bar where a person watches, else a line now and then.

use std::time::{Duration, Instant};

use gauntlet_train::{Event, MetricSink, Record, Split};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::{duration, percent, say, thousands, watched};

/// Without a terminal, a line comes with each validation, and where there was none for this long.
const SILENCE: Duration = Duration::from_secs(30);

/// Shows a training. Give it to [`gauntlet_train::fit`].
pub(crate) struct Progress {
    quiet: bool,
    bar: Option<ProgressBar>,
    label: String,
    done: u64,
    total: u64,
    per_epoch: u64,
    /// Means over the epoch so far.
    epoch: Means,
    validation: Option<(f64, f64)>,
    /// When the last line was written.
    last_line: Instant,
    /// The step it was about.
    told: u64,
    began: Instant,
    began_at: u64,
}

/// Means over the records of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Means {
    epoch: u32,
    records: f64,
    loss: f64,
    accuracy: f64,
    images_per_second: f64,
}

impl Means {
    fn add(&mut self, record: &Record) {
        if record.epoch != self.epoch {
            *self = Self {
                epoch: record.epoch,
                ..Self::default()
            };
        }
        self.records += 1.0;
        self.loss += (record.loss - self.loss) / self.records;
        self.accuracy += (record.accuracy - self.accuracy) / self.records;
        // The first steps compile kernels: a running mean forgets them.
        if let Some(now) = record.images_per_second {
            let weight = 0.1f64.max(1.0 / self.records);
            self.images_per_second += weight * (now - self.images_per_second);
        }
    }
}

impl Progress {
    /// A display that tells nothing if `quiet`.
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            quiet,
            bar: None,
            label: String::new(),
            done: 0,
            total: 0,
            per_epoch: 1,
            epoch: Means::default(),
            validation: None,
            last_line: Instant::now(),
            told: 0,
            began: Instant::now(),
            began_at: 0,
        }
    }

    fn start(&mut self, label: &str, done: u64, total: u64, per_epoch: u64) {
        *self = Self::new(self.quiet);
        (self.label, self.done, self.total) = (label.to_owned(), done, total);
        (self.per_epoch, self.began_at, self.told) = (per_epoch.max(1), done, done);
        if !self.quiet && watched() && done < total {
            self.bar = Some(bar(label, done, total));
        }
    }

    /// A line that stays: above the bar, if there is one.
    fn line(&self, text: &str) {
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.println(text),
            None => say(text),
        }
    }

    /// Says how far training is.
    fn tell(&mut self, validation: &str) {
        let text = format!("{}{validation}, {}", self.training(), self.remaining());
        self.line(&text);
        (self.last_line, self.told) = (Instant::now(), self.done);
    }

    fn record(&mut self, record: &Record) {
        if record.split == Split::Validation {
            let robust = record.robust_accuracy.unwrap_or_default();
            self.validation = Some((record.accuracy, robust));
            self.tell(&format!(
                ", validation {} clean {} robust",
                percent(record.accuracy),
                percent(robust)
            ));
        } else {
            self.epoch.add(record);
            self.done = record.step;
            if self.bar.is_none() && self.last_line.elapsed() > SILENCE {
                self.tell("");
            }
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
            bar.set_message(self.training());
            if let Some((clean, robust)) = self.validation {
                // Short, so that it fits beside the bar on 80 columns.
                let text = format!(
                    "clean {:.1} % robust {:.1} %",
                    100.0 * clean,
                    100.0 * robust
                );
                bar.set_prefix(text);
            }
        }
    }

    /// `hardened: epoch 3/20, loss 0.4120, accuracy 91.20 %, 1,234 images/s`
    fn training(&self) -> String {
        let means = &self.epoch;
        let epochs = self.total / self.per_epoch;
        let mut text = format!("{}: epoch {}/{epochs}", self.label, means.epoch + 1);
        if means.records > 0.0 {
            text += &format!(
                ", loss {:.4}, accuracy {}",
                means.loss,
                percent(means.accuracy)
            );
        }
        if means.images_per_second > 0.0 {
            text += &format!(
                ", {} images/s",
                thousands(means.images_per_second.round() as u64)
            );
        }
        text
    }

    fn remaining(&self) -> String {
        let made = self.done - self.began_at;
        if made == 0 || self.done >= self.total {
            return format!("step {} of {}", thousands(self.done), thousands(self.total));
        }
        left(
            self.began.elapsed().as_secs_f64(),
            made,
            self.total - self.done,
        )
    }
}

impl MetricSink for Progress {
    fn event(&mut self, event: &Event<'_>) -> Result<(), String> {
        match *event {
            Event::Start {
                model,
                done,
                total,
                per_epoch,
            } => self.start(model, done, total, per_epoch),
            Event::Record(record) => self.record(record),
            Event::Validating { done, total } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("{}: validating {done}/{total}", self.label));
                }
            }
            Event::Checkpoint { step, best, .. } => {
                // One a second would drown the rest where epochs are short: only the best are worth a line.
                if best {
                    self.line(&format!(
                        "{}: best so far, saved at step {}",
                        self.label,
                        thousands(step)
                    ));
                }
            }
            Event::Picture { .. } => {}
            Event::Note(text) => self.line(&format!("{}: {text}", self.label)),
            Event::Finish => {
                if self.told < self.done && self.bar.is_none() {
                    self.tell("");
                }
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
            }
        }
        Ok(())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `12 min 30 s left`, if so many `more` are like those `made` in so many seconds.
fn left(seconds: f64, made: u64, more: u64) -> String {
    format!("{} left", duration(seconds / made as f64 * more as f64))
}

fn bar(label: &str, done: u64, total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(5));
    bar.set_style(style(
        "{wide_msg}\n{bar:20} {pos}/{len} steps, {eta} left  {prefix}",
    ));
    bar.set_message(label.to_owned());
    bar.set_position(done);
    // Steps of an earlier session say nothing about the speed of this one.
    bar.reset_eta();
    bar
}

/// A style from a template of this file.
pub(crate) fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("a constant template")
        .progress_chars("=> ")
}

/// A plain counter, for work without a loss: judging, attacking, fetching. Where nobody watches, it is a line now and then.
pub(crate) struct Counter {
    what: String,
    bar: ProgressBar,
    done: u64,
    total: Option<u64>,
    /// Whether lines are wanted.
    lines: bool,
    last_line: Instant,
    began: Instant,
    began_at: u64,
}

impl Counter {
    /// `what`, of `total` things, of which `done` were done before; nothing is told if `quiet`.
    pub(crate) fn new(
        what: &str,
        done: u64,
        total: Option<u64>,
        template: &str,
        quiet: bool,
    ) -> Self {
        let bar = if quiet || !watched() {
            ProgressBar::hidden()
        } else {
            ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(5))
        };
        bar.set_style(style(template));
        bar.set_message(what.to_owned());
        bar.set_position(done);
        bar.reset_eta();
        let now = Instant::now();
        Self {
            what: what.to_owned(),
            bar,
            done,
            total,
            lines: !quiet && !watched(),
            last_line: now,
            began: now,
            began_at: done,
        }
    }

    /// So many are done.
    pub(crate) fn set(&mut self, done: u64) {
        self.done = done;
        self.bar.set_position(done);
        let finished = self.total.is_some_and(|total| done >= total);
        if self.lines && !finished && self.last_line.elapsed() > SILENCE {
            say(self.text(self.began.elapsed().as_secs_f64()));
            self.last_line = Instant::now();
        }
    }

    /// So many more are done.
    pub(crate) fn advance(&mut self, more: u64) {
        self.set(self.done + more);
    }

    /// `hardened under attack: 1,200 of 10,000, 12 min 30 s left`, `seconds` after the beginning.
    fn text(&self, seconds: f64) -> String {
        let done = format!("{}: {}", self.what, thousands(self.done));
        let Some(total) = self.total else {
            return done;
        };
        let text = format!("{done} of {}", thousands(total));
        let made = self.done.saturating_sub(self.began_at);
        if made == 0 {
            return text;
        }
        let more = total.saturating_sub(self.done);
        format!("{text}, {}", left(seconds, made, more))
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use gauntlet_train::Kind;

    use super::*;

    fn record(step: u64, epoch: u32, loss: f64) -> Record {
        Record {
            step,
            epoch,
            split: Split::Train,
            kind: Kind::Adversarial,
            loss,
            accuracy: 0.5,
            robust_accuracy: None,
            single_step_accuracy: None,
            terms: Default::default(),
            adversarial: 1.0,
            eps: 0.1,
            learning_rate: 0.1,
            images_per_second: Some(1000.0),
        }
    }

    #[test]
    fn a_line_tells_the_means_of_the_epoch() {
        let mut progress = Progress::new(true);
        let start = Event::Start {
            model: "hardened",
            done: 0,
            total: 4,
            per_epoch: 2,
        };
        progress.event(&start).unwrap();
        for (step, epoch, loss) in [(1, 0, 9.0), (2, 0, 9.0), (3, 1, 1.0), (4, 1, 2.0)] {
            progress
                .event(&Event::Record(&record(step, epoch, loss)))
                .unwrap();
        }
        let expected = "hardened: epoch 2/2, loss 1.5000, accuracy 50.00 %, 1,000 images/s";
        assert_eq!(progress.training(), expected);
    }

    #[test]
    fn what_was_done_before_says_nothing_of_the_time_left() {
        let mut counter = Counter::new("Square", 60, Some(1142), "{msg}", true);
        assert_eq!(counter.text(5.0), "Square: 60 of 1,142");
        counter.advance(20);
        assert_eq!(counter.text(10.0), "Square: 80 of 1,142, 8 min 51 s left");
        counter.set(1142);
        assert_eq!(counter.text(10.0), "Square: 1,142 of 1,142, 0 s left");
    }
}
