use burn::tensor::{Device, Int, Tensor};

use crate::{Augment, Dataset};

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
    // dataset (resident on the device when it fits), batch size, seed, augment, device
}

impl Loader {
    /// A loader of full batches: the last examples of a shuffled epoch that fill no batch are left out of that epoch.
    /// A data set smaller than one batch is an error of the caller: check `steps_per_epoch() > 0`.
    pub fn new(dataset: Dataset, batch_size: usize, augment: &[Augment], seed: u64, device: &Device) -> Self {
        let _ = (dataset, batch_size, augment, seed, device);
        todo!()
    }
    /// Full batches in an epoch.
    pub fn steps_per_epoch(&self) -> usize {
        todo!()
    }
    /// The batches of `epoch`, starting at step `first` of that epoch.
    pub fn epoch(&self, epoch: u32, first: usize) -> impl Iterator<Item = Batch> + '_ {
        let _ = (epoch, first);
        std::iter::empty()
    }
}
