//! TensorBoard event files.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use gauntlet_data::picture::RgbImage;
use tensorboard_rs::summary_writer::SummaryWriter;

use crate::{Event, Kind, MetricSink, Record, Split};

/// Writes scalars and pictures for TensorBoard.
///
/// `tensorboard-rs` panics where a write fails, in its `Drop` too: each call is caught, and a writer that failed is leaked
/// rather than dropped.
pub(crate) struct TensorBoard {
    writer: Option<SummaryWriter>,
}

impl TensorBoard {
    /// A new event file in `folder`.
    pub(crate) fn new(folder: &Path) -> Result<Self, String> {
        let writer = catch_unwind(|| SummaryWriter::new(folder)).map_err(|_| {
            format!(
                "{}: no TensorBoard file can be written there",
                folder.display()
            )
        })?;
        Ok(Self {
            writer: Some(writer),
        })
    }

    fn attempt(&mut self, act: impl FnOnce(&mut SummaryWriter)) -> Result<(), String> {
        let Some(mut writer) = self.writer.take() else {
            return Ok(());
        };
        let done = catch_unwind(AssertUnwindSafe(|| act(&mut writer)));
        if done.is_err() {
            std::mem::forget(writer);
            return Err("TensorBoard curves end here: the event file cannot be written".to_owned());
        }
        self.writer = Some(writer);
        Ok(())
    }

    fn record(&mut self, record: &Record) -> Result<(), String> {
        self.attempt(|writer| {
            let step = record.step as usize;
            let mut scalar = |tag: &str, value: f64| writer.add_scalar(tag, value as f32, step);
            match record.split {
                Split::Train => {
                    let kind = match record.kind {
                        Kind::Clean => "clean",
                        Kind::Adversarial => "adversarial",
                        Kind::Mixed => "mixed",
                    };
                    scalar(&format!("train/loss_{kind}"), record.loss);
                    scalar(&format!("train/accuracy_{kind}"), record.accuracy);
                    for (term, value) in &record.terms {
                        scalar(&format!("train/term_{term}"), *value);
                    }
                    scalar("train/learning_rate", record.learning_rate);
                    scalar("train/eps", record.eps);
                    if let Some(speed) = record.images_per_second {
                        scalar("train/images_per_second", speed);
                    }
                }
                Split::Validation => {
                    scalar("validation/loss", record.loss);
                    scalar("validation/clean_accuracy", record.accuracy);
                    if let Some(robust) = record.robust_accuracy {
                        scalar("validation/robust_accuracy", robust);
                    }
                    if let Some(single) = record.single_step_accuracy {
                        scalar("validation/single_step_accuracy", single);
                    }
                }
            }
        })
    }

    fn picture(&mut self, step: u64, image: &RgbImage) -> Result<(), String> {
        // `add_image` takes height for width: a square is the same either way.
        let side = image.width().max(image.height());
        let mut square = RgbImage::from_pixel(side, side, [255; 3].into());
        for (x, y, pixel) in image.enumerate_pixels() {
            square.put_pixel(x, y, *pixel);
        }
        let dims = [3, side as usize, side as usize];
        self.attempt(|writer| writer.add_image("validation/samples", &square, &dims, step as usize))
    }
}

impl MetricSink for TensorBoard {
    fn event(&mut self, event: &Event<'_>) -> Result<(), String> {
        match event {
            Event::Record(record) => self.record(record),
            Event::Picture { step, image } => self.picture(*step, image),
            Event::Checkpoint { .. } | Event::Finish => self.attempt(SummaryWriter::flush),
            _ => Ok(()),
        }
    }
}

impl Drop for TensorBoard {
    fn drop(&mut self) {
        let writer = self.writer.take();
        let _ = catch_unwind(AssertUnwindSafe(move || drop(writer)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_vanished_is_an_error_and_not_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"in the way").unwrap();
        assert!(TensorBoard::new(&file.join("below")).is_err());
    }

    #[test]
    fn scalars_and_pictures_of_any_shape_reach_the_event_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::new(folder.path()).unwrap();
        let record = Record {
            step: 3,
            epoch: 0,
            split: Split::Validation,
            kind: Kind::Clean,
            loss: 1.0,
            accuracy: 0.5,
            robust_accuracy: Some(0.25),
            single_step_accuracy: None,
            terms: Default::default(),
            adversarial: 0.0,
            eps: 0.0,
            learning_rate: 0.1,
            images_per_second: None,
        };
        board.event(&Event::Record(&record)).unwrap();
        board
            .event(&Event::Picture {
                step: 3,
                image: &RgbImage::new(31, 7),
            })
            .unwrap();
        board.event(&Event::Finish).unwrap();
        drop(board);
        let file = std::fs::read_dir(folder.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let bytes = std::fs::read(file).unwrap();
        let holds = |text: &str| {
            bytes
                .windows(text.len())
                .any(|window| window == text.as_bytes())
        };
        assert!(holds("validation/robust_accuracy") && holds("validation/samples") && holds("PNG"));
    }
}
