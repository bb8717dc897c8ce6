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
    /// The same samples with an augmentation of their own, where [`Loader::with_second_view`] asked for it.
    pub second: Option<Tensor<4>>,
    /// `[batch]`
    pub labels: Tensor<1, Int>,
    /// Data-set index of each row. Extra examples are counted on from the last one of the data set.
    pub ids: Vec<u32>,
}

/// Ordered training batches: a pure function of (seed, epoch, step), prepared ahead on another thread.
#[derive(Clone, Debug)]
pub struct Loader {
    inner: Arc<Inner>,
}

#[derive(Clone, Debug)]
struct Inner {
    main: Part,
    extra: Option<Part>,
    batch_size: usize,
    /// Rows of each batch that are extra examples.
    extra_rows: usize,
    pad: usize,
    flip: bool,
    second_view: bool,
    seed: u64,
    device: Device,
}

/// A data set and its images on the device.
#[derive(Clone, Debug)]
struct Part {
    dataset: Dataset,
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
        Self {
            inner: Arc::new(Inner {
                main: Part::new(dataset, limit, device),
                extra: None,
                batch_size,
                extra_rows: 0,
                pad,
                flip,
                second_view: false,
                seed,
                device: device.clone(),
            }),
        }
    }

    /// The same with a share of each batch from `extra`, in an order of its own. An epoch keeps its number of steps, so a pass
    /// over the data set takes longer than one.
    pub fn with_extra(self, extra: Dataset, share: f64) -> Self {
        let mut inner = Inner::clone(&self.inner);
        let rows = (share * inner.batch_size as f64).round() as usize;
        inner.extra_rows = rows.min(inner.batch_size);
        inner.extra = (inner.extra_rows > 0 && !extra.is_empty())
            .then(|| Part::new(extra, RESIDENT_BYTES, &inner.device));
        if inner.extra.is_none() {
            inner.extra_rows = 0;
        }
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The same with two augmentations of each sample.
    pub fn with_second_view(self) -> Self {
        let inner = Inner {
            second_view: true,
            ..Inner::clone(&self.inner)
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Full batches in an epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.inner.main.dataset.len() / self.inner.batch_size
    }

    /// The batches of `epoch`, starting at step `first` of that epoch.
    pub fn epoch(&self, epoch: u32, first: usize) -> impl Iterator<Item = Batch> + use<> {
        let (inner, steps) = (Arc::clone(&self.inner), self.steps_per_epoch());
        let (sender, receiver) = sync_channel(AHEAD);
        let worker = std::thread::spawn(move || {
            let mut orders = Orders::default();
            for step in first..steps {
                let rows = inner.rows(&mut orders, epoch, step, steps);
                // The receiver is gone when the epoch is left early.
                if sender.send(inner.batch(epoch, step, rows)).is_err() {
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

/// Shuffled passes over a data set and over the extra examples, by their number; the last ones used.
#[derive(Default)]
struct Orders {
    main: Option<(u32, Vec<u32>)>,
    extra: Option<(u32, Vec<u32>)>,
}

/// Rows `from..from + count` of passes over `ids`, one after the other, each in an order of its own.
fn cycle(
    known: &mut Option<(u32, Vec<u32>)>,
    ids: &[u32],
    key: &NoiseKey,
    from: u64,
    count: usize,
) -> Vec<u32> {
    let length = ids.len() as u64;
    let mut rows = Vec::with_capacity(count);
    for at in from..from + count as u64 {
        let pass = (at / length) as u32;
        if known.as_ref().is_none_or(|(known, _)| *known != pass) {
            *known = Some((pass, order(ids, key, pass)));
        }
        let (_, order) = known.as_ref().expect("made above");
        rows.push(order[(at % length) as usize]);
    }
    rows
}

fn order(ids: &[u32], key: &NoiseKey, pass: u32) -> Vec<u32> {
    let mut order = ids.to_vec();
    shuffle::shuffle(&mut order, &mut key.at(pass, 0).rng(0));
    order
}

impl Inner {
    /// Which samples step `step` of `epoch` has: of the data set, and extra ones.
    fn rows(
        &self,
        orders: &mut Orders,
        epoch: u32,
        step: usize,
        steps: usize,
    ) -> (Vec<u32>, Vec<u32>) {
        let key = NoiseKey::new(self.seed, Stream::Order);
        let ids = &self.main.dataset.ids;
        let Some(extra) = &self.extra else {
            // Every epoch is a pass of its own.
            let from = u64::from(epoch) * ids.len() as u64 + (step * self.batch_size) as u64;
            let rows = cycle(&mut orders.main, ids, &key, from, self.batch_size);
            return (rows, Vec::new());
        };
        let number = u64::from(epoch) * steps as u64 + step as u64;
        let (more, count) = (self.extra_rows, self.batch_size - self.extra_rows);
        let main = cycle(&mut orders.main, ids, &key, number * count as u64, count);
        let from = number * more as u64;
        let ids = &extra.dataset.ids;
        let other = key.restart(1);
        (main, cycle(&mut orders.extra, ids, &other, from, more))
    }

    fn batch(&self, epoch: u32, step: usize, (rows, extra_rows): (Vec<u32>, Vec<u32>)) -> Batch {
        let (mut images, mut labels) = self.main.select(&rows, &self.device);
        let mut ids = rows;
        if let Some(extra) = &self.extra {
            let (more, of) = extra.select(&extra_rows, &self.device);
            images = Tensor::cat(vec![images, more], 0);
            labels = Tensor::cat(vec![labels, of], 0);
            // Noise is named by sample: extra examples have names of their own.
            let first = self.main.dataset.labels.len() as u32;
            ids.extend(extra_rows.iter().map(|row| first + row));
        }
        let key = NoiseKey::new(self.seed, Stream::Augment).at(epoch, step as u32);
        let view =
            |images: Tensor<4>, key: &NoiseKey| crop_flip(images, self.pad, self.flip, key, &ids);
        let second = self
            .second_view
            .then(|| view(images.clone(), &key.restart(1)));
        Batch {
            images: view(images, &key),
            second,
            labels,
            ids,
        }
    }
}

impl Part {
    fn new(dataset: Dataset, limit: usize, device: &Device) -> Self {
        let resident = (dataset.pixels.len() * 4 <= limit && !dataset.is_empty())
            .then(|| upload(&dataset, device));
        Self { dataset, resident }
    }

    fn select(&self, ids: &[u32], device: &Device) -> (Tensor<4>, Tensor<1, Int>) {
        let [channels, height, width] = self.dataset.shape;
        match &self.resident {
            Some((images, labels)) => {
                let index: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
                let index =
                    Tensor::<1, Int>::from_data(TensorData::new(index, [ids.len()]), device);
                let images = images.clone().select(0, index.clone());
                (
                    images.reshape([ids.len(), channels, height, width]),
                    labels.clone().select(0, index),
                )
            }
            None => {
                let all = Dataset {
                    ids: Arc::new(ids.to_vec()),
                    ..self.dataset.clone()
                };
                all.batch(&(0..ids.len()).collect::<Vec<_>>(), device)
            }
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
            extra: None,
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
        assert!(resident.inner.main.resident.is_some() && streamed.inner.main.resident.is_none());
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
    fn extra_examples_have_their_share_of_each_batch_and_cycles_of_their_own() {
        let device = Device::flex();
        let (main, extra) = (train(0).take(100), train(0).take(30));
        let first = main.labels.len() as u32;
        let loader = Loader::new(main, 20, &[Augment::Crop], 7, &device).with_extra(extra, 0.25);
        assert_eq!(loader.steps_per_epoch(), 5);
        let batches: Vec<_> = (0..4).flat_map(|epoch| loader.epoch(epoch, 0)).collect();
        let split = |batch: &Batch| batch.ids.iter().filter(|&&id| id >= first).count();
        assert!(batches.iter().all(|batch| split(batch) == 5));
        // 20 steps of 15 and 5: three passes over 100, three and a third over 30.
        let seen = |from: u32, to: u32| {
            let ids = batches.iter().flat_map(|batch| batch.ids.clone());
            let mut counts = std::collections::BTreeMap::new();
            for id in ids.filter(|id| (from..to).contains(id)) {
                *counts.entry(id).or_insert(0) += 1;
            }
            counts.into_values().collect::<Vec<i32>>()
        };
        assert_eq!(seen(0, first), [3; 100]);
        let extras = seen(first, u32::MAX);
        assert!(
            extras.len() == 30 && extras.iter().all(|n| (3..=4).contains(n)),
            "{extras:?}"
        );
        // An epoch that starts in the middle is the rest of the whole one.
        let rest: Vec<_> = loader.epoch(2, 3).collect();
        for (a, b) in rest.iter().zip(&batches[13..15]) {
            assert_eq!(values(a), values(b));
        }
    }

    #[test]
    fn a_second_view_is_another_crop_of_the_same_samples() {
        let device = Device::flex();
        let plain = Loader::new(train(0), 50, &[Augment::Crop], 7, &device);
        let both = plain.clone().with_second_view();
        let (one, two) = (
            plain.epoch(1, 2).next().unwrap(),
            both.epoch(1, 2).next().unwrap(),
        );
        assert_eq!(values(&one), values(&two));
        let second: Vec<f32> = two.second.unwrap().try_into_vec_as().unwrap();
        assert_ne!(values(&one).0, second);
        assert!(one.second.is_none());
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
