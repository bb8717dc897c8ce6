use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where images come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// UCI 8x8 handwritten digits, embedded.
    Digits,
    /// MNIST.
    Mnist,
    /// Fashion-MNIST.
    FashionMnist,
    /// CIFAR-10.
    Cifar10,
    /// CIFAR-100 (fine labels).
    Cifar100,
    /// PNG or JPEG files in one folder a class.
    ImageFolder,
}

/// A random change of training images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Augment {
    /// Zero-pad by 4 pixels (2 below 32, 1 at 8x8) and crop back at a random place.
    Crop,
    /// Mirror left and right with probability 1/2.
    Flip,
}

/// The `[data]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The data set.
    pub source: Source,
    /// The folder of `image-folder`, with `train/CLASS/*.png` and optionally `test/CLASS/*.png`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Height and width that `image-folder` pictures are resized to. Default: that of the first picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<[usize; 2]>,
    /// Training examples held out for selection, chosen by seed.
    #[serde(default)]
    pub validation: usize,
    /// Use only the first so many training examples (after the split). Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Examples in a batch. Default: 128.
    #[serde(default = "default_batch_size")]
    pub batch_size: usize,
    /// Random changes of training images. Default: none.
    #[serde(default)]
    pub augment: Vec<Augment>,
    /// More examples to train on, such as generated ones. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<ExtraConfig>,
}

/// The `[data.extra]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtraConfig {
    /// A `.npz` file with `image` and `label`, as the field publishes generated data (or `x` and `y`).
    pub path: PathBuf,
    /// Its share of each batch, in (0, 1). An epoch has as many steps as without it.
    pub share: f64,
}

impl DataConfig {
    /// A data set with nothing held out and everything else as by default.
    pub fn of(source: Source) -> Self {
        Self {
            source,
            path: None,
            size: None,
            validation: 0,
            limit: None,
            batch_size: default_batch_size(),
            augment: Vec::new(),
            extra: None,
        }
    }
}

fn default_batch_size() -> usize {
    128
}
