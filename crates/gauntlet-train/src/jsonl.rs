//! `metrics.jsonl`: one line a record.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::run_dir::write_atomic;
use crate::{Event, MetricSink, Record, Split, TrainError};

/// Appends every record to a file.
pub(crate) struct Jsonl {
    path: PathBuf,
    file: File,
}

impl Jsonl {
    /// Opens `path` and drops the records that a run which goes on at `step` will write again.
    pub(crate) fn open(path: &Path, step: u64, validated_at: u64) -> Result<Self, TrainError> {
        let fail = |source| TrainError::Io {
            path: path.to_owned(),
            source,
        };
        if path.exists() {
            let text = std::fs::read_to_string(path).map_err(fail)?;
            let kept: String = text
                .lines()
                .filter(|line| {
                    // A line that was cut off by a crash is no record.
                    serde_json::from_str::<Record>(line).is_ok_and(|record| match record.split {
                        Split::Train => record.step <= step,
                        Split::Validation => record.step <= validated_at,
                    })
                })
                .flat_map(|line| [line, "\n"])
                .collect();
            if kept.len() != text.len() {
                write_atomic(path, kept.as_bytes())?;
            }
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(fail)?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }
}

impl MetricSink for Jsonl {
    fn event(&mut self, event: &Event<'_>) -> Result<(), String> {
        let Event::Record(record) = event else {
            return Ok(());
        };
        let mut line = serde_json::to_vec(record).map_err(|error| error.to_string())?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .map_err(|error| format!("{}: {error}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn a_resumed_run_drops_what_it_will_write_again_and_half_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let record = |step, split| Record {
            step,
            epoch: 0,
            split,
            kind: Kind::Clean,
            loss: 1.0,
            accuracy: 0.5,
            robust_accuracy: None,
            single_step_accuracy: None,
            terms: Default::default(),
            adversarial: 0.0,
            eps: 0.0,
            learning_rate: 0.1,
            images_per_second: Some(7.0),
        };
        let mut sink = Jsonl::open(&path, 0, 0).unwrap();
        for step in 1..=3 {
            sink.event(&Event::Record(&record(step, Split::Train)))
                .unwrap();
        }
        sink.event(&Event::Record(&record(2, Split::Validation)))
            .unwrap();
        sink.event(&Event::Record(&record(3, Split::Validation)))
            .unwrap();
        drop(sink);
        OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"step\":1,\"ep")
            .unwrap();

        drop(Jsonl::open(&path, 3, 2).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        let kept: Vec<Record> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let kept: Vec<_> = kept
            .iter()
            .map(|record| (record.step, record.split))
            .collect();
        let expected = [
            (1, Split::Train),
            (2, Split::Train),
            (3, Split::Train),
            (2, Split::Validation),
        ];
        assert_eq!(kept, expected);
        assert!(
            !text.contains("images_per_second"),
            "wall-clock in a file that two equal runs share"
        );
    }
}
