use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use burn::tensor::{Device, Int, Tensor, TensorData};
use gauntlet_kernels::augment::crop_flip;
use gauntlet_kernels::{NoiseKey, Stream};

use crate::{Augment, Dataset, shuffle};

/// One training batch on the device, augmented.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[batch, channels, height, width]` in [0, 1].
    pub images: Tensor<4>,
    /// `[batch]`
    pub labels: Tensor<1, Int>,
    /// Data-set index of each row.
    pub ids: Vec<u32>,
}

/// Ordered training batches: a pure function of (seed, epoch, step), prepared ahead on another thread.
#[derive(Debug)]
pub struct Loader {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dataset: Dataset,
    batch_size: usize,
    pad: usize,
    flip: bool,
    seed: u64,
    device: Device,
    /// All images as rows and all labels, on the device, where they fit.
    resident: Option<(Tensor<2>, Tensor<1, Int>)>,
}

/// Most bytes of images (as `f32`) that are kept on the device.
const RESIDENT_BYTES: usize = 2 << 30;

/// Batches that are prepared ahead.
const AHEAD: usize = 2;

impl Loader {
    /// A loader of full batches: the last examples of a shuffled epoch that fill no batch are left out of that epoch.
    /// A data set smaller than one batch is an error of the caller: check `steps_per_epoch() > 0`.
    pub fn new(
        dataset: Dataset,
        batch_size: usize,
        augment: &[Augment],
        seed: u64,
        device: &Device,
    ) -> Self {
        Self::with_limit(dataset, batch_size, augment, seed, device, RESIDENT_BYTES)
    }

    fn with_limit(
        dataset: Dataset,
        batch_size: usize,
        augment: &[Augment],
        seed: u64,
        device: &Device,
        limit: usize,
    ) -> Self {
        let side = dataset.shape[1].min(dataset.shape[2]);
        let pad = match side {
            _ if !augment.contains(&Augment::Crop) => 0,
            0..=8 => 1,
            9..32 => 2,
            _ => 4,
        };
        let flip = augment.contains(&Augment::Flip);
        let resident = (dataset.pixels.len() * 4 <= limit && !dataset.is_empty())
            .then(|| upload(&dataset, device));
        let device = device.clone();
        Self {
            inner: Arc::new(Inner {
                dataset,
                batch_size,
                pad,
                flip,
                seed,
                device,
                resident,
            }),
        }
    }

    /// Full batches in an epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.inner.dataset.len() / self.inner.batch_size
    }

    /// The batches of `epoch`, starting at step `first` of that epoch.
    pub fn epoch(&self, epoch: u32, first: usize) -> impl Iterator<Item = Batch> + use<> {
        let (inner, steps) = (Arc::clone(&self.inner), self.steps_per_epoch());
        let (sender, receiver) = sync_channel(AHEAD);
        let worker = std::thread::spawn(move || {
            let order = inner.order(epoch);
            for step in first..steps {
                let ids = order[step * inner.batch_size..(step + 1) * inner.batch_size].to_vec();
                // The receiver is gone when the epoch is left early.
                if sender.send(inner.batch(epoch, step, ids)).is_err() {
                    break;
                }
            }
        });
        Ahead {
            receiver: Some(receiver),
            worker: Some(worker),
        }
    }
}

impl Inner {
    fn order(&self, epoch: u32) -> Vec<u32> {
        let mut order = self.dataset.ids.to_vec();
        shuffle::shuffle(
            &mut order,
            &mut NoiseKey::new(self.seed, Stream::Order).at(epoch, 0).rng(0),
        );
        order
    }

    fn batch(&self, epoch: u32, step: usize, ids: Vec<u32>) -> Batch {
        let [channels, height, width] = self.dataset.shape;
        let (images, labels) = match &self.resident {
            Some((images, labels)) => {
                let index: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
                let index =
                    Tensor::<1, Int>::from_data(TensorData::new(index, [ids.len()]), &self.device);
                let images = images.clone().select(0, index.clone());
                (
                    images.reshape([ids.len(), channels, height, width]),
                    labels.clone().select(0, index),
                )
            }
            None => {
                let all = Dataset {
                    ids: Arc::new(ids.clone()),
                    ..self.dataset.clone()
                };
                all.batch(&(0..ids.len()).collect::<Vec<_>>(), &self.device)
            }
        };
        let key = NoiseKey::new(self.seed, Stream::Augment).at(epoch, step as u32);
        Batch {
            images: crop_flip(images, self.pad, self.flip, &key, &ids),
            labels,
            ids,
        }
    }
}

fn upload(dataset: &Dataset, device: &Device) -> (Tensor<2>, Tensor<1, Int>) {
    let scale = 1.0 / f32::from(dataset.max);
    let values: Vec<f32> = dataset
        .pixels
        .iter()
        .map(|&pixel| f32::from(pixel) * scale)
        .collect();
    let labels: Vec<i32> = dataset.labels.iter().map(|&label| label as i32).collect();
    let count = labels.len();
    let images = TensorData::new(values, [count, dataset.shape.iter().product()]);
    (
        Tensor::from_data(images, device),
        Tensor::from_data(TensorData::new(labels, [count]), device),
    )
}

/// Batches as they come from the worker.
struct Ahead {
    receiver: Option<Receiver<Batch>>,
    worker: Option<JoinHandle<()>>,
}

impl Iterator for Ahead {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        if let Ok(batch) = self.receiver.as_ref()?.recv() {
            return Some(batch);
        }
        // The end of the epoch, unless the worker panicked: that must not look like a short epoch.
        self.receiver = None;
        if let Err(panic) = self.worker.take()?.join() {
            std::panic::resume_unwind(panic);
        }
        None
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // Closing the channel ends a worker that waits in `send`.
        self.receiver = None;
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DataConfig, Source, load};

    fn train(validation: usize) -> Dataset {
        let config = DataConfig {
            source: Source::Digits,
            path: None,
            size: None,
            validation,
            limit: None,
            batch_size: 8,
            augment: Vec::new(),
        };
        load(&config, std::path::Path::new(""), 0).unwrap().train
    }

    fn values(batch: &Batch) -> (Vec<f32>, Vec<i64>) {
        (
            batch.images.clone().try_into_vec_as().unwrap(),
            batch.labels.clone().try_into_vec_as().unwrap(),
        )
    }

    #[test]
    fn an_epoch_that_starts_in_the_middle_is_the_rest_of_the_whole_one() {
        let device = Device::flex();
        let loader = Loader::new(train(0), 100, &[Augment::Crop], 7, &device);
        assert_eq!(loader.steps_per_epoch(), 13);
        let whole: Vec<_> = loader.epoch(2, 0).collect();
        let rest: Vec<_> = loader.epoch(2, 9).collect();
        assert_eq!((whole.len(), rest.len()), (13, 4));
        for (a, b) in whole[9..].iter().zip(&rest) {
            assert_eq!(a.ids, b.ids);
            assert_eq!(values(a), values(b));
        }
        let mut seen: Vec<u32> = whole.iter().flat_map(|batch| batch.ids.clone()).collect();
        let order = seen.clone();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 1300, "an example came twice");
        assert_ne!(
            order[..100],
            loader.epoch(3, 0).next().unwrap().ids,
            "epochs have orders of their own"
        );
    }

    #[test]
    fn images_are_the_same_whether_they_live_on_the_device_or_not() {
        let device = Device::flex();
        let augment = [Augment::Crop, Augment::Flip];
        let resident = Loader::new(train(100), 64, &augment, 1, &device);
        let streamed = Loader::with_limit(train(100), 64, &augment, 1, &device, 0);
        assert!(resident.inner.resident.is_some() && streamed.inner.resident.is_none());
        for (a, b) in resident.epoch(0, 0).zip(streamed.epoch(0, 0)) {
            assert_eq!(a.ids, b.ids);
            assert_eq!(values(&a), values(&b));
        }
    }

    #[test]
    fn rows_carry_the_pixels_and_labels_of_their_ids() {
        let data = train(100);
        let batch = Loader::new(data.clone(), 32, &[], 1, &Device::flex())
            .epoch(0, 3)
            .next()
            .unwrap();
        let (pixels, labels) = values(&batch);
        for (row, &id) in batch.ids.iter().enumerate() {
            assert!(data.ids.contains(&id));
            let expected = data.pixels[id as usize * 64..][..64]
                .iter()
                .map(|&p| f32::from(p) / 16.0);
            assert!(pixels[row * 64..][..64].iter().copied().eq(expected));
            assert_eq!(labels[row], i64::from(data.labels[id as usize]));
        }
    }

    #[test]
    fn leaving_an_epoch_early_does_not_hang() {
        let loader = Loader::new(train(0), 8, &[], 1, &Device::flex());
        for _ in 0..20 {
            assert!(loader.epoch(0, 0).next().is_some());
        }
        assert_eq!(
            Loader::new(train(0).take(5), 8, &[], 1, &Device::flex())
                .epoch(0, 0)
                .count(),
            0
        );
    }
}
