//! Common corruptions: what sensors, weather and file formats do to images, without an adversary.
//!
//! The 15 families of CIFAR-10-C and ImageNet-C and the 4 that the authors keep for validation, in 5 severities, after
//! Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (ICLR 2019,
//! arXiv:1903.12261) and the code they generated their data with. Images up to 64 pixels wide and high take the constants of
//! CIFAR-10-C, larger ones those of ImageNet-C. Lengths are in pixels, as published; what is published as a share of
//! the image's side scales with it.
//!
//! Where this differs from the published data:
//!
//! * *Frost* lays a drawn pattern of ice over the image, not a photograph (see [`Corruption::Frost`]).
//! * Random numbers are named ([`NoiseKey`]): a corrupted image is a function of (seed, family, severity, sample id).
//! * Results are not rounded to 8 bits, and not stored as JPEG a second time as ImageNet-C is.
//! * Grey images stay grey: colours of overlays become their brightness, and [`Corruption::Saturate`] does nothing.
//!   The authors have colour images only.

mod blur;
mod digital;
mod draw;
mod extra;
mod jpeg;
mod noise;
mod raster;
mod spatter;
mod weather;

use std::borrow::Cow;
use std::fmt;
use std::num::NonZero;
use std::str::FromStr;
use std::thread;

use gauntlet_kernels::NoiseKey;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use draw::Draw;
use raster::Raster;

/// A family of corruptions.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
#[repr(u32)]
pub enum Corruption {
    /// Normal noise, independent in each value: low light.
    GaussianNoise = 0,
    /// Poisson noise: light comes in photons.
    ShotNoise = 1,
    /// Values that are stuck at 0 or 1: bit errors.
    ImpulseNoise = 2,
    /// Blur by a disk: out of focus.
    DefocusBlur = 3,
    /// Pixels that take their neighbours' values between two blurs: frosted glass.
    ///
    /// The paper speaks of shuffled pixels. The published code, and so its data, copies instead of swapping, which is done here.
    GlassBlur = 4,
    /// Blur along a line.
    MotionBlur = 5,
    /// Mean of the image at growing zoom: the camera moves towards it.
    ZoomBlur = 6,
    /// Bright streaks over a paled image.
    Snow = 7,
    /// Ice crystals on a window.
    ///
    /// The authors blend images with crops of five photographs. Here ice is drawn: fern-like crystals over a fractal haze, in the
    /// tones and with the contrast of those photographs, blended with the published weights.
    Frost = 8,
    /// A plasma fractal that lightens the image and takes its contrast.
    Fog = 9,
    /// More value in HSV.
    Brightness = 10,
    /// Less distance from the mean of each channel.
    Contrast = 11,
    /// A random affine map and a smooth random displacement of pixels.
    ElasticTransform = 12,
    /// A resize to fewer pixels and back.
    Pixelate = 13,
    /// What JPEG loses, with colour at half resolution.
    JpegCompression = 14,
    /// Normal noise in proportion to the value. For validation.
    SpeckleNoise = 15,
    /// Blur by a Gaussian. For validation.
    GaussianBlur = 16,
    /// Drops of water (severity 1-3) or mud (4-5) on the lens. For validation.
    Spatter = 17,
    /// Less (severity 1-2) or more (3-5) saturation in HSV. For validation. Grey images stay as they are.
    Saturate = 18,
}

impl Corruption {
    /// The families that the mean corruption error is taken over, in the order of the paper.
    pub const STANDARD: [Self; 15] = [
        Self::GaussianNoise,
        Self::ShotNoise,
        Self::ImpulseNoise,
        Self::DefocusBlur,
        Self::GlassBlur,
        Self::MotionBlur,
        Self::ZoomBlur,
        Self::Snow,
        Self::Frost,
        Self::Fog,
        Self::Brightness,
        Self::Contrast,
        Self::ElasticTransform,
        Self::Pixelate,
        Self::JpegCompression,
    ];

    /// The families kept apart, to choose by without looking at the others.
    pub const EXTRA: [Self; 4] = [
        Self::SpeckleNoise,
        Self::GaussianBlur,
        Self::Spatter,
        Self::Saturate,
    ];

    /// Both.
    pub const ALL: [Self; 19] = {
        let mut all = [Self::GaussianNoise; 19];
        let mut i = 0;
        while i < 19 {
            all[i] = if i < 15 {
                Self::STANDARD[i]
            } else {
                Self::EXTRA[i - 15]
            };
            i += 1;
        }
        all
    };

    /// `gaussian-noise`
    pub fn name(self) -> &'static str {
        match self {
            Self::GaussianNoise => "gaussian-noise",
            Self::ShotNoise => "shot-noise",
            Self::ImpulseNoise => "impulse-noise",
            Self::DefocusBlur => "defocus-blur",
            Self::GlassBlur => "glass-blur",
            Self::MotionBlur => "motion-blur",
            Self::ZoomBlur => "zoom-blur",
            Self::Snow => "snow",
            Self::Frost => "frost",
            Self::Fog => "fog",
            Self::Brightness => "brightness",
            Self::Contrast => "contrast",
            Self::ElasticTransform => "elastic-transform",
            Self::Pixelate => "pixelate",
            Self::JpegCompression => "jpeg-compression",
            Self::SpeckleNoise => "speckle-noise",
            Self::GaussianBlur => "gaussian-blur",
            Self::Spatter => "spatter",
            Self::Saturate => "saturate",
        }
    }

    /// Whether it changes images of so many channels: saturation is a matter of three.
    pub fn applies_to(self, channels: usize) -> bool {
        self != Self::Saturate || channels == 3
    }

    fn apply(self, image: &Raster, level: Level, draw: &mut Draw) -> Raster {
        match self {
            Self::GaussianNoise => noise::gaussian(image, level, draw),
            Self::ShotNoise => noise::shot(image, level, draw),
            Self::ImpulseNoise => noise::impulse(image, level, draw),
            Self::DefocusBlur => blur::defocus(image, level),
            Self::GlassBlur => blur::glass(image, level, draw),
            Self::MotionBlur => blur::motion(image, level, draw),
            Self::ZoomBlur => blur::zoom(image, level),
            Self::Snow => weather::snow(image, level, draw),
            Self::Frost => weather::frost(image, level, draw),
            Self::Fog => weather::fog(image, level, draw),
            Self::Brightness => weather::brightness(image, level),
            Self::Contrast => digital::contrast(image, level),
            Self::ElasticTransform => digital::elastic(image, level, draw),
            Self::Pixelate => digital::pixelate(image, level),
            Self::JpegCompression => jpeg::compression(image, level),
            Self::SpeckleNoise => extra::speckle(image, level, draw),
            Self::GaussianBlur => extra::gaussian_blur(image, level),
            Self::Spatter => spatter::spatter(image, level, draw),
            Self::Saturate => extra::saturate(image, level),
        }
    }
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Corruption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|family| family.name() == text);
        found.ok_or_else(|| format!("`{text}` is no corruption; there are {}", names()))
    }
}

/// How strong a corruption is: 1 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Severity(u8);

impl Severity {
    /// 1, 2, 3, 4, 5.
    pub const ALL: [Self; 5] = [Self(1), Self(2), Self(3), Self(4), Self(5)];

    /// The severity of this number, if it is one.
    pub fn new(number: u8) -> Option<Self> {
        (1..=5).contains(&number).then_some(Self(number))
    }

    /// Its number, from 1 to 5.
    pub fn number(self) -> u8 {
        self.0
    }
}

impl From<Severity> for u8 {
    fn from(severity: Severity) -> Self {
        severity.0
    }
}

impl TryFrom<u8> for Severity {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        Self::new(number).ok_or_else(|| format!("severity {number} is not one of 1, 2, 3, 4, 5"))
    }
}

impl FromStr for Severity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse::<u8>().ok().and_then(Self::new);
        number.ok_or_else(|| format!("severity `{text}` is not one of 1, 2, 3, 4, 5"))
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl JsonSchema for Severity {
    fn schema_name() -> Cow<'static, str> {
        "Severity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 1, "maximum": 5 })
    }
}

/// Longest side of an image that takes the constants of CIFAR-10-C.
const SMALL: usize = 64;

/// Which of the published constants are meant.
#[derive(Clone, Copy, Debug)]
struct Level {
    severity: Severity,
    small: bool,
}

impl Level {
    /// The constant of this severity, out of those of CIFAR-10-C or of ImageNet-C.
    fn of<T: Copy>(self, cifar: [T; 5], imagenet: [T; 5]) -> T {
        let constants = if self.small { cifar } else { imagenet };
        constants[usize::from(self.severity.0) - 1]
    }
}

/// Images with a corruption, on all cores. Row `i` depends on the seed, epoch and step of `key`, on the family, the severity
/// and `samples[i]` alone; the key's restart is set here, a number for each family and severity.
///
/// # Shapes
/// `images`: one row of `shape = [channels, height, width]` for each sample, values in [0, 1]; the result is the same.
///
/// # Panics
/// If `images` does not hold `samples.len()` rows.
///
/// ```
/// use gauntlet_data::corruptions::{Corruption, Severity, corrupt};
/// use gauntlet_kernels::{NoiseKey, Stream};
///
/// let key = NoiseKey::new(0, Stream::Corruption);
/// let grey = vec![0.5; 2 * 64];
/// let foggy = corrupt(&grey, [1, 8, 8], Corruption::Fog, Severity::ALL[2], key, &[0, 1]);
/// assert_eq!(foggy.len(), grey.len());
/// ```
pub fn corrupt(
    images: &[f32],
    shape: [usize; 3],
    corruption: Corruption,
    severity: Severity,
    key: NoiseKey,
    samples: &[u32],
) -> Vec<f32> {
    let size: usize = shape.iter().product();
    assert_eq!(
        images.len(),
        size * samples.len(),
        "one row for each sample"
    );
    let mut out = images.to_vec();
    if size == 0 || samples.is_empty() || !corruption.applies_to(shape[0]) {
        return out;
    }
    let level = Level {
        severity,
        small: shape[1].max(shape[2]) <= SMALL,
    };
    let key = key.restart(corruption as u32 * 8 + u32::from(severity.0));
    let work = |rows: &mut [f32], samples: &[u32]| {
        for (row, &sample) in rows.chunks_mut(size).zip(samples) {
            let mut draw = Draw::new(key, sample);
            let image = corruption.apply(&Raster::new(row, shape), level, &mut draw);
            for (to, from) in row.iter_mut().zip(image.values) {
                *to = from.clamp(0.0, 1.0);
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let share = samples.len().div_ceil(threads);
    thread::scope(|scope| {
        let mut parts = out.chunks_mut(share * size).zip(samples.chunks(share));
        let own = parts.next();
        for (rows, samples) in parts {
            scope.spawn(move || work(rows, samples));
        }
        if let Some((rows, samples)) = own {
            work(rows, samples);
        }
    });
    out
}

#[cfg(test)]
mod tests;
