//! The sinks of a run: its own, and those of the caller.

use std::path::Path;

use crate::checkpoint::State;
use crate::jsonl::Jsonl;
use crate::tensorboard::TensorBoard;
use crate::{Event, MetricSink, TrainError};

/// The run's own sinks. A sink that fails is named once and left out from then on.
pub(crate) struct Sinks {
    own: Vec<Box<dyn MetricSink>>,
    /// Which of the caller's sinks failed.
    failed: Vec<usize>,
}

impl Sinks {
    /// Before a run knows where it starts.
    pub(crate) fn none() -> Self {
        Self {
            own: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Opens the run's own sinks anew, for a run that went back.
    pub(crate) fn reopen(
        &mut self,
        folder: &Path,
        state: &State,
        notes: &mut Vec<String>,
    ) -> Result<(), TrainError> {
        self.own = Self::open(folder, state, notes)?.own;
        Ok(())
    }

    pub(crate) fn open(
        folder: &Path,
        state: &State,
        notes: &mut Vec<String>,
    ) -> Result<Self, TrainError> {
        let mut own: Vec<Box<dyn MetricSink>> = Vec::new();
        own.push(Box::new(Jsonl::open(
            &folder.join("metrics.jsonl"),
            state.step,
            state.validated_at,
        )?));
        match TensorBoard::new(&folder.join("tensorboard")) {
            Ok(board) => own.push(Box::new(board)),
            Err(problem) => notes.push(problem),
        }
        Ok(Self {
            own,
            failed: Vec::new(),
        })
    }

    pub(crate) fn send(&mut self, given: &mut [Box<dyn MetricSink>], event: &Event<'_>) {
        let mut problems = Vec::new();
        self.own.retain_mut(|sink| {
            sink.event(event)
                .map_err(|problem| problems.push(problem))
                .is_ok()
        });
        for (i, sink) in given.iter_mut().enumerate() {
            if !self.failed.contains(&i)
                && sink
                    .event(event)
                    .map_err(|problem| problems.push(problem))
                    .is_err()
            {
                self.failed.push(i);
            }
        }
        for problem in problems {
            self.send(given, &Event::Note(&problem));
        }
    }

    pub(crate) fn finish(mut self, given: &mut [Box<dyn MetricSink>]) {
        self.send(given, &Event::Finish);
    }
}
