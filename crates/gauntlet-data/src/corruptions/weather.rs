//! Weather and light: `snow`, `frost`, `fog`, `brightness`.

use std::f32::consts::{FRAC_PI_3, TAU};

use super::Level;
use super::draw::Draw;
use super::noise::each;
use super::raster::{self, Border, Raster, truncated};

/// Constants of a severity of snow.
#[derive(Clone, Copy)]
pub(super) struct Snow {
    /// Mean and standard deviation of the field that flakes are peaks of.
    mean: f32,
    deviation: f32,
    /// How much a flake is enlarged.
    zoom: f64,
    /// Where peaks begin.
    threshold: f32,
    /// Of the motion blur.
    radius: f32,
    sigma: f32,
    /// Share of the image that is not paled.
    keep: f32,
}

/// Severities as rows: mean, deviation, zoom, threshold, radius, sigma, keep.
const fn snows(rows: [[f32; 7]; 5]) -> [Snow; 5] {
    const NONE: Snow = Snow {
        mean: 0.0,
        deviation: 0.0,
        zoom: 1.0,
        threshold: 0.0,
        radius: 0.0,
        sigma: 0.0,
        keep: 0.0,
    };
    let mut out = [NONE; 5];
    let mut i = 0;
    while i < 5 {
        let [mean, deviation, zoom, threshold, radius, sigma, keep] = rows[i];
        out[i] = Snow {
            mean,
            deviation,
            zoom: zoom as f64,
            threshold,
            radius,
            sigma,
            keep,
        };
        i += 1;
    }
    out
}

pub(super) const SNOW_CIFAR: [Snow; 5] = snows([
    [0.1, 0.2, 1.0, 0.6, 8.0, 3.0, 0.95],
    [0.1, 0.2, 1.0, 0.5, 10.0, 4.0, 0.9],
    [0.15, 0.3, 1.75, 0.55, 10.0, 4.0, 0.9],
    [0.25, 0.3, 2.25, 0.6, 12.0, 6.0, 0.85],
    [0.3, 0.3, 1.25, 0.65, 14.0, 12.0, 0.8],
]);

pub(super) const SNOW_IMAGENET: [Snow; 5] = snows([
    [0.1, 0.3, 3.0, 0.5, 10.0, 4.0, 0.8],
    [0.2, 0.3, 2.0, 0.5, 12.0, 4.0, 0.7],
    [0.55, 0.3, 4.0, 0.9, 12.0, 8.0, 0.7],
    [0.55, 0.3, 4.5, 0.85, 12.0, 8.0, 0.65],
    [0.55, 0.3, 2.5, 0.85, 12.0, 12.0, 0.55],
]);

/// Peaks of zoomed noise, blurred along a steep line, twice (once turned by half a circle) over a paled image.
pub(super) fn snow(image: &Raster, level: Level, draw: &mut Draw) -> Raster {
    let constants = level.of(SNOW_CIFAR, SNOW_IMAGENET);
    let field: Vec<f32> = (0..image.area())
        .map(|_| constants.mean + constants.deviation * draw.normal())
        .collect();
    snow_of(image, constants, &field, draw.between(-135.0, -45.0))
}

pub(super) fn snow_of(image: &Raster, constants: Snow, field: &[f32], angle: f32) -> Raster {
    let Snow {
        zoom,
        threshold,
        radius,
        sigma,
        keep,
        ..
    } = constants;
    let flakes: Vec<f32> = raster::zoom(field, image.width, zoom)
        .into_iter()
        .map(|value| {
            if value < threshold {
                0.0
            } else {
                truncated(value)
            }
        })
        .collect();
    let taps = raster::motion(radius, sigma, angle);
    let flakes = raster::correlate(&flakes, image.width, &taps, Border::Nearest);
    let luma = image.luma();
    image.map_planes(|plane| {
        let layer = flakes.iter().zip(flakes.iter().rev());
        let pixels = plane.iter().zip(&luma).zip(layer);
        pixels
            .map(|((&value, luma), (one, other))| {
                let pale = value.max(luma * 1.5 + 0.5);
                keep * value + (1.0 - keep) * pale + one + other
            })
            .collect()
    })
}

/// Mean colour of a photograph of ice, and the standard deviation of its crops.
type Ice = ([f32; 3], f32);

/// The five that the authors draw from (the second and third are one picture), measured on 32 pixels of a fifth of their size.
const ICE: [Ice; 5] = [
    ([0.30, 0.58, 0.65], 0.055),
    ([0.79, 0.81, 0.84], 0.066),
    ([0.79, 0.81, 0.84], 0.066),
    ([0.54, 0.60, 0.65], 0.104),
    ([0.44, 0.48, 0.53], 0.135),
];

/// a x + b ice
pub(super) fn frost(image: &Raster, level: Level, draw: &mut Draw) -> Raster {
    let (keep, share) = level.of(
        [
            (1.0, 0.2),
            (1.0, 0.3),
            (0.9, 0.4),
            (0.85, 0.4),
            (0.75, 0.45),
        ],
        [(1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
    );
    let (colour, contrast) = ICE[draw.below(5) as usize];
    // The authors shrink photographs to a fifth before they crop CIFAR's 32 pixels from them.
    let unit = if level.small { 0.2 } else { 1.0 };
    let pattern = ice(image.height, image.width, unit, draw);
    let mut out = image.clone();
    for (channel, plane) in out.values.chunks_mut(image.area()).enumerate() {
        let tone = image.tint(colour, channel);
        for (value, pattern) in plane.iter_mut().zip(&pattern) {
            let ice = (tone + contrast * pattern).clamp(0.0, 1.0);
            *value = keep * *value + share * ice;
        }
    }
    out
}

/// A pattern of ice of mean 0 and standard deviation 1: ferns over a plasma fractal. A fern is a stem with needles at 60 degrees
/// on both sides, shorter towards its tip; a line is bright on one side and dark on the other. Lengths are in units of `unit`
/// pixels.
pub(super) fn ice(height: usize, width: usize, unit: f32, draw: &mut Draw) -> Vec<f32> {
    let side = height.max(width).next_power_of_two();
    let haze = plasma(side, 1.7, &mut || draw.between(-1.0, 1.0));
    let pattern = (0..height * width).map(|i| 1.5 * (haze[i / width * side + i % width] - 0.5));
    let mut pane = Pane {
        values: pattern.collect(),
        height,
        width,
        unit,
    };
    // One fern over 20 x 20 units.
    let area = (height * width) as f32 / (unit * unit);
    for _ in 0..(area / 400.0).ceil() as usize {
        let start = [
            draw.uniform() * width as f32,
            draw.uniform() * height as f32,
        ];
        let (angle, length) = (draw.between(0.0, TAU), draw.between(20.0, 70.0));
        let light = draw.between(0.3, 1.0);
        pane.line(start, angle, length, light);
        let mut along = 3.0;
        while along < length {
            let from = [
                start[0] + along * unit * angle.cos(),
                start[1] + along * unit * angle.sin(),
            ];
            for turn in [-FRAC_PI_3, FRAC_PI_3] {
                let needle = 0.4 * (length - along) * draw.between(0.5, 1.0);
                pane.line(from, angle + turn, needle, light * draw.between(0.2, 1.0));
            }
            along += draw.between(3.0, 6.0);
        }
    }
    let n = pane.values.len() as f32;
    let mean = pane.values.iter().sum::<f32>() / n;
    let variance = pane.values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n;
    let scale = 1.0 / variance.sqrt().max(1e-6);
    pane.values
        .iter()
        .map(|value| (value - mean) * scale)
        .collect()
}

/// A window that ice is drawn on.
struct Pane {
    values: Vec<f32>,
    height: usize,
    width: usize,
    unit: f32,
}

impl Pane {
    fn line(&mut self, [x, y]: [f32; 2], angle: f32, length: f32, light: f32) {
        let (sin, cos) = angle.sin_cos();
        let pixels = (length * self.unit).ceil();
        for i in 0..=pixels as usize {
            let along = i as f32 / pixels.max(1.0) * length * self.unit;
            let (x, y) = (x + along * cos, y + along * sin);
            for (shift, light) in [(0.0, light), (1.0, -0.7 * light)] {
                let (x, y) = ((x - shift * sin).floor(), (y + shift * cos).floor());
                if x >= 0.0 && y >= 0.0 && x < self.width as f32 && y < self.height as f32 {
                    let value = &mut self.values[y as usize * self.width + x as usize];
                    *value += 0.6 * (light - *value);
                }
            }
        }
    }
}

/// (x + c plasma) max(x) / (max(x) + c)
pub(super) fn fog(image: &Raster, level: Level, draw: &mut Draw) -> Raster {
    let (amount, decay) = level.of(
        [(0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)],
        [(1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)],
    );
    let side = image.height.max(image.width).next_power_of_two();
    let clouds = plasma(side, decay, &mut || draw.between(-1.0, 1.0));
    fog_of(image, amount, &clouds, side)
}

pub(super) fn fog_of(image: &Raster, amount: f32, clouds: &[f32], side: usize) -> Raster {
    let brightest = image.values.iter().copied().fold(0.0, f32::max);
    let scale = brightest / (brightest + amount);
    image.map_planes(|plane| {
        let pixels = plane.iter().enumerate();
        pixels
            .map(|(i, value)| {
                let cloud = clouds[i / image.width * side + i % image.width];
                (value + amount * cloud) * scale
            })
            .collect()
    })
}

/// A height map by the diamond-square algorithm on a torus of `side` (a power of two) points a side, scaled to [0, 1]. The
/// displacement is `wibble` squared times a number of `uniform` (in [-1, 1)); `wibble` starts at 100 and is divided by
/// `decay` from one grid to the next finer one.
pub(super) fn plasma(side: usize, decay: f32, uniform: &mut impl FnMut() -> f32) -> Vec<f32> {
    let mut map = vec![0f32; side * side];
    let (mut step, mut wibble) = (side, 100f32);
    while step >= 2 {
        let half = step / 2;
        let grid = |i: usize| (i % side, (i + step) % side, (i + side - half) % side);
        let corners = || (0..side).step_by(step);
        let mut displaced = |sum: f32| sum / 4.0 + wibble * wibble * uniform();
        for y in corners() {
            for x in corners() {
                let ((top, bottom, _), (left, right, _)) = (grid(y), grid(x));
                let at = |y: usize, x: usize| map[y * side + x];
                let sum = at(top, left) + at(top, right) + at(bottom, left) + at(bottom, right);
                map[(y + half) * side + x + half] = displaced(sum);
            }
        }
        // Middles of upper edges first, then of left edges: each between two corners and two centres.
        for y in corners() {
            for x in corners() {
                let ((top, _, above), (left, right, _)) = (grid(y), grid(x));
                let at = |y: usize, x: usize| map[y * side + x];
                let centres = at(y + half, x + half) + at(above, x + half);
                map[y * side + x + half] = displaced(at(top, left) + at(top, right) + centres);
            }
        }
        for y in corners() {
            for x in corners() {
                let ((top, bottom, _), (left, _, before)) = (grid(y), grid(x));
                let at = |y: usize, x: usize| map[y * side + x];
                let centres = at(y + half, x + half) + at(y + half, before);
                map[(y + half) * side + x] = displaced(at(top, left) + at(bottom, left) + centres);
            }
        }
        step = half;
        wibble /= decay;
    }
    let low = map.iter().copied().fold(f32::INFINITY, f32::min);
    let high = map.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = 1.0 / (high - low).max(f32::MIN_POSITIVE);
    map.iter().map(|value| (value - low) * scale).collect()
}

/// More value in HSV: a pixel is scaled so that its largest channel grows by a constant, to 1 at most. Black becomes grey.
pub(super) fn brightness(image: &Raster, level: Level) -> Raster {
    let more = level.of([0.05, 0.1, 0.15, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4, 0.5]);
    if image.channels != 3 {
        return each(image, |value| (value + more).min(1.0));
    }
    let mut out = image.clone();
    let area = image.area();
    for pixel in 0..area {
        let channels = [0, 1, 2].map(|c| c * area + pixel);
        let value = channels
            .iter()
            .fold(0f32, |most, &at| most.max(image.values[at]));
        let brighter = (value + more).min(1.0);
        for at in channels {
            out.values[at] = if value > 0.0 {
                image.values[at] * (brighter / value)
            } else {
                brighter
            };
        }
    }
    out
}
