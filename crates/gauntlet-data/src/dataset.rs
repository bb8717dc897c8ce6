use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use gauntlet_kernels::{NoiseKey, Stream};
use sha2::{Digest, Sha256};

use crate::corruptions::{Corruption, Severity, corrupt};
use crate::decode::{self, Part};
use crate::{DataConfig, DataError, Source, fetch, image_folder, shuffle};

/// Images as bytes, with labels. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// `digits`, `mnist`, ...
    pub name: String,
    /// `train`, `validation` or `test`.
    pub split: &'static str,
    /// Pixels of all images of the underlying part, row-major `[n, channels, height, width]`.
    pub pixels: Arc<Vec<u8>>,
    /// Value that means 1.0 (255; 16 for digits).
    pub max: u8,
    /// Channels, height, width.
    pub shape: [usize; 3],
    /// Class of each image of the underlying part.
    pub labels: Arc<Vec<u32>>,
    /// Which images of the underlying part belong to this split, in order. These are the sample ids.
    pub ids: Arc<Vec<u32>>,
    /// Names of the classes.
    pub classes: Arc<Vec<String>>,
    /// SHA-256 of `pixels` and labels, as hex: what a run records.
    pub sha256: String,
}

impl Dataset {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The first `n` samples (all, if there are fewer).
    pub fn take(&self, n: usize) -> Self {
        let ids = self.ids.iter().take(n).copied().collect();
        Self {
            ids: Arc::new(ids),
            ..self.clone()
        }
    }

    /// How many samples each class has.
    pub fn class_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        for &id in self.ids.iter() {
            counts[self.labels[id as usize] as usize] += 1;
        }
        counts
    }

    /// Samples at `positions` (indices into this split) on `device`: images in [0, 1] `[n, c, h, w]`, labels `[n]`.
    ///
    /// # Panics
    /// If a position is not below [`len`](Self::len).
    pub fn batch(&self, positions: &[usize], device: &Device) -> (Tensor<4>, Tensor<1, Int>) {
        let ids = self.ids_at(positions);
        self.upload(self.values(&ids), &ids, device)
    }

    /// Like [`batch`](Self::batch), with a corruption of each image that is named by `key` and its sample id.
    ///
    /// # Panics
    /// If a position is not below [`len`](Self::len).
    pub fn corrupted_batch(
        &self,
        positions: &[usize],
        corruption: Corruption,
        severity: Severity,
        key: NoiseKey,
        device: &Device,
    ) -> (Tensor<4>, Tensor<1, Int>) {
        let ids = self.ids_at(positions);
        let values = corrupt(
            &self.values(&ids),
            self.shape,
            corruption,
            severity,
            key,
            &ids,
        );
        self.upload(values, &ids, device)
    }

    fn ids_at(&self, positions: &[usize]) -> Vec<u32> {
        positions
            .iter()
            .map(|&position| self.ids[position])
            .collect()
    }

    /// Rows of pixels in [0, 1].
    fn values(&self, ids: &[u32]) -> Vec<f32> {
        let size: usize = self.shape.iter().product();
        let scale = 1.0 / f32::from(self.max);
        ids.iter()
            .flat_map(|&id| &self.pixels[id as usize * size..(id as usize + 1) * size])
            .map(|&pixel| f32::from(pixel) * scale)
            .collect()
    }

    fn upload(
        &self,
        values: Vec<f32>,
        ids: &[u32],
        device: &Device,
    ) -> (Tensor<4>, Tensor<1, Int>) {
        let [channels, height, width] = self.shape;
        let labels: Vec<i32> = ids
            .iter()
            .map(|&id| self.labels[id as usize] as i32)
            .collect();
        let images = TensorData::new(values, [ids.len(), channels, height, width]);
        let count = labels.len();
        (
            Tensor::from_data(images, device),
            Tensor::from_data(TensorData::new(labels, [count]), device),
        )
    }
}

/// The parts of a data set.
#[derive(Clone, Debug)]
pub struct Splits {
    /// What is trained on.
    pub train: Dataset,
    /// Held out of the training part, for selection. Empty if `validation = 0`.
    pub validation: Dataset,
    /// Never used for selection.
    pub test: Dataset,
    /// Extra or generated examples to train on, and their share of each batch.
    pub extra: Option<(Dataset, f64)>,
}

/// Loads a data set from the cache folder (`root`; [`crate::fetch::default_root`] unless told otherwise), checks it,
/// and splits it: which training examples are held out is a pure function of `seed`.
///
/// # Errors
/// [`DataError::Missing`] with the command that fetches it; a damaged file by name with both hashes.
pub fn load(config: &DataConfig, root: &Path, seed: u64) -> Result<Splits, DataError> {
    let mut splits = load_source(config, root, seed)?;
    if let Some(extra) = &config.extra {
        let set = crate::arrays::load(&extra.path, None, splits.train.classes.len())?;
        let (theirs, ours) = (set.shape, splits.train.shape);
        if theirs != ours {
            let problem = format!(
                "its images are {theirs:?}, those of {} are {ours:?}",
                splits.train.name
            );
            let path = extra.path.clone();
            return Err(DataError::File { path, problem });
        }
        let set = Dataset {
            split: "extra",
            classes: Arc::clone(&splits.train.classes),
            ..set
        };
        splits.extra = Some((set, extra.share));
    }
    Ok(splits)
}

fn load_source(config: &DataConfig, root: &Path, seed: u64) -> Result<Splits, DataError> {
    let source = config.source;
    if source == Source::ImageFolder {
        let images = image_folder::load(config, seed)?;
        return split(
            config,
            seed,
            images.train,
            images.test,
            255,
            images.shape,
            images.classes,
        );
    }
    let shape = source.info().shape.expect("the known sources have one");
    let (train, test, max) = match source {
        Source::Digits => {
            let all = decode::digits();
            let cut = all.labels.len() - 450;
            let part = |range: std::ops::Range<usize>| Part {
                pixels: Arc::new(all.pixels[range.start * 64..range.end * 64].to_vec()),
                labels: Arc::new(all.labels[range].to_vec()),
            };
            (part(0..cut), part(cut..all.labels.len()), 16)
        }
        Source::Mnist | Source::FashionMnist => {
            let part = |images: usize, labels: usize| {
                let pixels = read(source, images, root, |bytes| {
                    decode::idx_images(bytes, shape)
                })?;
                let labels = read(source, labels, root, |bytes| decode::idx_labels(bytes, 10))?;
                Ok(Part {
                    pixels: Arc::new(pixels),
                    labels: Arc::new(labels),
                })
            };
            (part(0, 1)?, part(2, 3)?, 255)
        }
        Source::Cifar10 | Source::Cifar100 => {
            let (label_bytes, classes) = if source == Source::Cifar10 {
                (1, 10)
            } else {
                (2, 100)
            };
            let part = |files: std::ops::Range<usize>| {
                let (mut pixels, mut labels) = (Vec::new(), Vec::new());
                for file in files {
                    let (more, of) = read(source, file, root, |bytes| {
                        decode::cifar(bytes, label_bytes, classes)
                    })?;
                    pixels.extend(more);
                    labels.extend(of);
                }
                Ok(Part {
                    pixels: Arc::new(pixels),
                    labels: Arc::new(labels),
                })
            };
            let test = source.info().files.len() - 1;
            (part(0..test)?, part(test..test + 1)?, 255)
        }
        Source::ImageFolder => unreachable!("returned above"),
    };
    split(config, seed, train, test, max, shape, source.classes())
}

/// Loads the test part of a data set, as [`load`] does. A folder of images may have `test/CLASS/` alone here.
///
/// # Errors
/// As [`load`].
pub fn load_test(config: &DataConfig, root: &Path, seed: u64) -> Result<Dataset, DataError> {
    if let (Source::ImageFolder, Some(folder)) = (config.source, &config.path)
        && !folder.join("train").exists()
        && folder.join("test").is_dir()
    {
        let image_folder::Images {
            test,
            shape,
            classes,
            ..
        } = image_folder::load_test(config, folder)?;
        return Ok(Dataset {
            name: config.source.name().to_owned(),
            split: "test",
            max: 255,
            shape,
            ids: Arc::new((0..test.labels.len() as u32).collect()),
            classes: Arc::new(classes),
            sha256: hash(&test),
            pixels: test.pixels,
            labels: test.labels,
        });
    }
    Ok(load(config, root, seed)?.test)
}

/// Reads, verifies and decodes one file of a known data set.
fn read<T>(
    source: Source,
    file: usize,
    root: &Path,
    decode: impl Fn(&[u8]) -> Result<T, String>,
) -> Result<T, DataError> {
    let (path, bytes) = fetch::read_verified(source, &source.info().files[file], root)?;
    decode(&bytes).map_err(|problem| DataError::File { path, problem })
}

fn split(
    config: &DataConfig,
    seed: u64,
    train: Part,
    test: Part,
    max: u8,
    shape: [usize; 3],
    classes: Vec<String>,
) -> Result<Splits, DataError> {
    let examples = train.labels.len();
    if config.validation >= examples {
        let problem = format!(
            "{} held out of {examples} leave nothing to train on",
            config.validation
        );
        return Err(DataError::Config {
            key: "validation",
            problem,
        });
    }
    let mut order: Vec<u32> = (0..examples as u32).collect();
    shuffle::shuffle(&mut order, &mut NoiseKey::new(seed, Stream::Split).rng(0));
    let mut held_out = order.split_off(examples - config.validation);
    held_out.sort_unstable();
    order.sort_unstable();
    order.truncate(config.limit.unwrap_or(examples));

    let classes = Arc::new(classes);
    let dataset = |part: &Part, split: &'static str, ids: Vec<u32>| Dataset {
        name: config.source.name().to_owned(),
        split,
        pixels: Arc::clone(&part.pixels),
        max,
        shape,
        labels: Arc::clone(&part.labels),
        ids: Arc::new(ids),
        classes: Arc::clone(&classes),
        sha256: hash(part),
    };
    let all = (0..test.labels.len() as u32).collect();
    Ok(Splits {
        train: dataset(&train, "train", order),
        validation: dataset(&train, "validation", held_out),
        test: dataset(&test, "test", all),
        extra: None,
    })
}

pub(crate) fn hash(part: &Part) -> String {
    let mut hasher = Sha256::new();
    hasher.update(&*part.pixels);
    for label in part.labels.iter() {
        hasher.update(label.to_le_bytes());
    }
    crate::hex(&hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(validation: usize) -> DataConfig {
        DataConfig {
            source: Source::Digits,
            path: None,
            size: None,
            validation,
            limit: None,
            batch_size: 8,
            augment: Vec::new(),
            extra: None,
        }
    }

    fn digits(validation: usize, seed: u64) -> Splits {
        load(&config(validation), Path::new("/nonexistent"), seed).unwrap()
    }

    #[test]
    fn parts_are_disjoint_complete_and_chosen_by_seed() {
        let splits = digits(200, 1);
        assert_eq!(
            (
                splits.train.len(),
                splits.validation.len(),
                splits.test.len()
            ),
            (1147, 200, 450)
        );
        let mut all: Vec<u32> = splits
            .train
            .ids
            .iter()
            .chain(splits.validation.ids.iter())
            .copied()
            .collect();
        all.sort_unstable();
        assert_eq!(all, (0..1347).collect::<Vec<_>>());
        assert_eq!(digits(200, 1).validation.ids, splits.validation.ids);
        assert_ne!(digits(200, 2).validation.ids, splits.validation.ids);
        assert!(
            splits.validation.ids.iter().any(|&id| id > 700)
                && splits.validation.ids.iter().any(|&id| id < 600)
        );
    }

    #[test]
    fn a_limit_leaves_what_is_held_out_alone() {
        let whole = digits(100, 0);
        let few = load(
            &DataConfig {
                limit: Some(50),
                ..config(100)
            },
            Path::new(""),
            0,
        )
        .unwrap();
        assert_eq!(few.validation.ids, whole.validation.ids);
        assert_eq!(few.train.ids[..], whole.train.ids[..50]);
        let none_left = load(&config(1347), Path::new(""), 0).unwrap_err();
        assert!(
            none_left.to_string().contains("data.validation"),
            "{none_left}"
        );
    }

    #[test]
    fn batches_are_scaled_pixels_in_the_order_asked_for() {
        let test = digits(0, 0).test;
        let (x, y) = test.batch(&[3, 0, 3], &Device::flex());
        assert_eq!(x.dims(), [3, 1, 8, 8]);
        let values: Vec<f32> = x.try_into_vec_as().unwrap();
        let expected: Vec<f32> = test.pixels[3 * 64..4 * 64]
            .iter()
            .map(|&p| f32::from(p) / 16.0)
            .collect();
        assert_eq!(values[..64], expected);
        assert_eq!(values[128..], expected);
        let labels: Vec<i64> = y.try_into_vec_as().unwrap();
        assert_eq!(labels[0], i64::from(test.labels[3]));
        assert_eq!(test.class_counts().iter().sum::<usize>(), 450);
    }

    #[test]
    fn corrupted_batches_name_their_noise_by_sample_id() {
        let test = digits(0, 0).test;
        let part = Dataset {
            ids: Arc::new(test.ids[5..9].to_vec()),
            ..test.clone()
        };
        let key = NoiseKey::new(3, Stream::Corruption);
        let batch = |set: &Dataset, positions: &[usize]| {
            let (family, severity) = (Corruption::ShotNoise, Severity::ALL[4]);
            let (x, y) = set.corrupted_batch(positions, family, severity, key, &Device::flex());
            (
                x.try_into_vec_as::<f32>().unwrap(),
                y.try_into_vec_as::<i64>().unwrap(),
            )
        };
        let (x, y) = batch(&test, &[8, 6]);
        assert_eq!(
            (x.len(), y),
            (128, [8, 6].map(|i| i64::from(test.labels[i])).into())
        );
        assert_eq!(batch(&part, &[1]).0, x[64..]);
        let clean: Vec<f32> = test
            .batch(&[8, 6], &Device::flex())
            .0
            .try_into_vec_as()
            .unwrap();
        assert_ne!(x, clean);
    }
}
