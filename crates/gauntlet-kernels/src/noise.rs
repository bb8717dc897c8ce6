//! Counter-based noise: every random number has a name.
//!
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a 128-bit counter and a 64-bit
//! key to four 32-bit words. Here the key is drawn from (seed, stream), and the counter says which words of it are meant:
//!
//! | word | holds |
//! |---|---|
//! | 0 | block of four words within a sample (low 20 bits), restart (high 12 bits) |
//! | 1 | sample: its index in the data set |
//! | 2 | step |
//! | 3 | epoch |
//!
//! There is no state to save: a resumed run asks for the same names and gets the same numbers. The words are the same on every backend;
//! the numbers made of them agree to rounding.

use std::convert::Infallible;

use burn::tensor::{Device, Tensor, TensorData};
use macerator::{AutoArch, Simd, WithSimd};
use rand::TryRng;

use crate::host::each_row;

/// What a random number is for. Streams never share numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Stream {
    /// Initial weights.
    Init = 1,
    /// Which training examples are held out for validation.
    Split = 2,
    /// The order of examples in an epoch.
    Order = 3,
    /// Crops and flips.
    Augment = 4,
    /// Starting points of attacks while training.
    TrainAttack = 5,
    /// Starting points of attacks while validating and evaluating.
    EvalAttack = 6,
    /// Dropout masks.
    Dropout = 7,
    /// Common corruptions of images.
    Corruption = 8,
    /// Noise of randomised smoothing at certification.
    Smoothing = 9,
}

/// The name of a block of random numbers: same key, same words, on every backend and machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NoiseKey {
    /// Seed of the run.
    pub seed: u64,
    /// What the numbers are for.
    pub stream: Stream,
    /// Epoch, from 0.
    pub epoch: u32,
    /// Step since the start of the run, from 0.
    pub step: u32,
    /// Restart of an attack, from 0; below 4096.
    pub restart: u32,
}

/// Bits of the first counter word that number the blocks of a sample: 2^20 blocks are 4 million values.
const BLOCK_BITS: u32 = 20;

impl NoiseKey {
    /// The key of `stream` at epoch, step and restart 0.
    pub fn new(seed: u64, stream: Stream) -> Self {
        Self {
            seed,
            stream,
            epoch: 0,
            step: 0,
            restart: 0,
        }
    }

    /// The same key at another epoch and step.
    pub fn at(self, epoch: u32, step: u32) -> Self {
        Self {
            epoch,
            step,
            ..self
        }
    }

    /// The same key for restart `restart` of an attack.
    pub fn restart(self, restart: u32) -> Self {
        Self { restart, ..self }
    }

    /// A single number that stands for this key, for generators that take only a seed.
    pub fn seed(&self) -> u64 {
        let words = self.words(0).block(0);
        u64::from(words[0]) | u64::from(words[1]) << 32
    }

    /// A generator for choices made on the host (permutations, offsets), to use with the `rand` crate.
    pub fn rng(&self, sample: u32) -> Philox {
        Philox {
            words: self.words(sample),
            block: 0,
            buffer: [0; 4],
            used: 4,
        }
    }

    /// Uniform numbers in `[low, high)`. Row `i` depends on the key and `samples[i]` alone.
    ///
    /// # Shapes
    /// `shape[0]` is `samples.len()`.
    ///
    /// # Panics
    /// If it is not.
    pub fn uniform<const D: usize>(
        &self,
        samples: &[u32],
        shape: [usize; D],
        low: f32,
        high: f32,
        device: &Device,
    ) -> Tensor<D> {
        let width = high - low;
        #[cfg(feature = "cube")]
        if crate::cube::is_cube(device) {
            return self.draw(samples, shape, Some((low, width)), device);
        }
        self.fill(samples, shape, device, |words| {
            words.map(|word| low + width * unit(word))
        })
    }

    /// Standard normal numbers by Box and Muller's transform. Row `i` depends on the key and `samples[i]` alone.
    ///
    /// # Shapes
    /// `shape[0]` is `samples.len()`.
    ///
    /// # Panics
    /// If it is not.
    pub fn normal<const D: usize>(
        &self,
        samples: &[u32],
        shape: [usize; D],
        device: &Device,
    ) -> Tensor<D> {
        #[cfg(feature = "cube")]
        if crate::cube::is_cube(device) {
            return self.draw(samples, shape, None, device);
        }
        self.fill(samples, shape, device, |[a, b, c, d]| {
            let pair = |first: u32, second: u32| {
                // 1 - u is in (0, 1], where the logarithm is finite.
                let radius = (-2.0 * (1.0 - unit(first)).ln()).sqrt();
                let (sin, cos) = (std::f32::consts::TAU * unit(second)).sin_cos();
                (radius * cos, radius * sin)
            };
            let ((w, x), (y, z)) = (pair(a, b), pair(c, d));
            [w, x, y, z]
        })
    }

    /// On the device.
    #[cfg(feature = "cube")]
    fn draw<const D: usize>(
        &self,
        samples: &[u32],
        shape: [usize; D],
        range: Option<(f32, f32)>,
        device: &Device,
    ) -> Tensor<D> {
        assert_eq!(shape[0], samples.len(), "one row of noise for each sample");
        let samples: Vec<i32> = samples.iter().map(|&sample| sample as i32).collect();
        let samples = TensorData::new(samples, [shape[0]]);
        crate::cube::noise(
            Tensor::from_data(samples, device),
            self.words(0),
            shape,
            range,
        )
    }

    fn fill<const D: usize>(
        &self,
        samples: &[u32],
        shape: [usize; D],
        device: &Device,
        convert: impl Fn([u32; 4]) -> [f32; 4] + Sync + Send,
    ) -> Tensor<D> {
        assert_eq!(shape[0], samples.len(), "one row of noise for each sample");
        let mut values = vec![0.0; shape.iter().product()];
        each_row(&mut values, shape, |row, values| {
            let words = self.words(samples[row]);
            for (place, values) in values.chunks_mut(4 * LANES).enumerate() {
                let blocks = words.blocks((place * LANES) as u32);
                for (values, words) in values.chunks_mut(4).zip(blocks) {
                    values.copy_from_slice(&convert(words)[..values.len()]);
                }
            }
        });
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn words(&self, sample: u32) -> Words {
        debug_assert!(self.restart < 1 << (32 - BLOCK_BITS));
        let seed = [self.seed as u32, (self.seed >> 32) as u32];
        let key = philox([self.stream as u32, 0, 0, 0], seed);
        Words {
            key: [key[0], key[1]],
            counter: [self.restart << BLOCK_BITS, sample, self.step, self.epoch],
        }
    }
}

/// The words of one key and sample.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words {
    pub(crate) key: [u32; 2],
    pub(crate) counter: [u32; 4],
}

impl Words {
    fn block(&self, block: u32) -> [u32; 4] {
        let [first, rest @ ..] = self.counter;
        philox([first + block, rest[0], rest[1], rest[2]], self.key)
    }

    /// Blocks from `first` on.
    fn blocks(&self, first: u32) -> [[u32; 4]; LANES] {
        AutoArch::new().dispatch(Blocks {
            words: *self,
            first,
        })
    }
}

/// Blocks from one on, in vectors as wide as this machine has them.
struct Blocks {
    words: Words,
    first: u32,
}

impl WithSimd for Blocks {
    type Output = [[u32; 4]; LANES];

    #[inline(always)]
    fn with_simd<S: Simd>(self) -> Self::Output {
        let [mut a, mut b, mut c, mut d] = self.words.counter.map(|word| [word; LANES]);
        for (lane, word) in a.iter_mut().enumerate() {
            *word = word.wrapping_add(self.first + lane as u32);
        }
        let mut key = self.words.key;
        for _ in 0..10 {
            for lane in 0..LANES {
                [a[lane], b[lane], c[lane], d[lane]] =
                    mixed([a[lane], b[lane], c[lane], d[lane]], key);
            }
            key = next_key(key);
        }
        std::array::from_fn(|lane| [a[lane], b[lane], c[lane], d[lane]])
    }
}

/// Blocks that are computed together.
const LANES: usize = 16;

/// 24 random bits as a number in [0, 1), exact in `f32`.
fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// Philox4x32 with ten rounds.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        counter = mixed(counter, key);
        key = next_key(key);
    }
    counter
}

/// One round.
#[inline(always)]
fn mixed([a, b, c, d]: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let first = u64::from(0xD251_1F53_u32) * u64::from(a);
    let second = u64::from(0xCD9E_8D57_u32) * u64::from(c);
    [
        (second >> 32) as u32 ^ b ^ key[0],
        second as u32,
        (first >> 32) as u32 ^ d ^ key[1],
        first as u32,
    ]
}

fn next_key([a, b]: [u32; 2]) -> [u32; 2] {
    [a.wrapping_add(0x9E37_79B9), b.wrapping_add(0xBB67_AE85)]
}

/// The words of one [`NoiseKey`] and sample as a generator for the `rand` crate.
#[derive(Clone, Debug)]
pub struct Philox {
    words: Words,
    block: u32,
    buffer: [u32; 4],
    used: usize,
}

impl Philox {
    fn next(&mut self) -> u32 {
        if self.used == 4 {
            self.buffer = self.words.block(self.block);
            self.block += 1;
            self.used = 0;
        }
        self.used += 1;
        self.buffer[self.used - 1]
    }
}

impl TryRng for Philox {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.next())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from(self.next()) | u64::from(self.next()) << 32)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(4) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_known_answers() {
        // Random123's `kat_vectors`, philox4x32 10.
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    fn key() -> NoiseKey {
        NoiseKey::new(7, Stream::TrainAttack).at(3, 11)
    }

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.try_into_vec_as().unwrap()
    }

    #[test]
    fn blocks_together_are_blocks_one_by_one() {
        let words = key().restart(3).words(77);
        let together = words.blocks(5);
        let one_by_one = (5..).map(|block| words.block(block));
        assert!(together.into_iter().eq(one_by_one.take(LANES)));
    }

    #[test]
    fn a_row_depends_on_its_sample_alone() {
        let device = Device::flex();
        let both = values(key().uniform(&[5, 9], [2, 7], -1.0, 1.0, &device));
        let swapped = values(key().uniform(&[9, 5], [2, 7], -1.0, 1.0, &device));
        assert_eq!(both[..7], swapped[7..]);
        assert_eq!(both[7..], swapped[..7]);
    }

    #[test]
    fn every_part_of_the_name_changes_the_numbers() {
        let device = Device::flex();
        let draw = |key: NoiseKey| values(key.uniform(&[1], [1, 4], 0.0, 1.0, &device));
        let names = [
            key(),
            NoiseKey { seed: 8, ..key() },
            NoiseKey {
                stream: Stream::EvalAttack,
                ..key()
            },
            key().at(4, 11),
            key().at(3, 12),
            key().restart(1),
        ];
        let drawn: Vec<_> = names.map(draw).into();
        for (i, a) in drawn.iter().enumerate() {
            assert!(
                drawn[..i].iter().all(|b| a != b),
                "name {i} repeats another"
            );
        }
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let device = Device::flex();
        let samples: Vec<u32> = (0..100).collect();
        let moments = |values: Vec<f32>| {
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let var = values
                .iter()
                .map(|&v| (f64::from(v) - mean).powi(2))
                .sum::<f64>()
                / n;
            (mean, var)
        };
        // 100,000 numbers: a mean is off by 0.003 (one sigma) at most, five of which are allowed.
        let (mean, var) = moments(values(key().uniform(
            &samples,
            [100, 1000],
            -0.3,
            0.3,
            &device,
        )));
        assert!(
            mean.abs() < 0.003 && (var - 0.03).abs() < 0.001,
            "{mean} {var}"
        );
        let (mean, var) = moments(values(key().normal(&samples, [100, 1000], &device)));
        assert!(
            mean.abs() < 0.016 && (var - 1.0).abs() < 0.025,
            "{mean} {var}"
        );
    }

    #[test]
    fn empty_batches_are_fine() {
        let noise = key().uniform(&[], [0, 3], 0.0, 1.0, &Device::flex());
        assert_eq!(noise.dims(), [0, 3]);
    }
}
