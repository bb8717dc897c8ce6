//! `spatter`: drops on the lens.
//!
//! Water is lit by an image of its edges' distance, which takes a few classical steps of image processing: Canny's edges, a
//! chamfer distance, the equalisation of a histogram. They work on bytes, as in OpenCV.

use super::Level;
use super::draw::Draw;
use super::raster::{self, Border, Raster};

/// Pale turquoise.
const WATER: [f32; 3] = [175.0 / 255.0, 238.0 / 255.0, 238.0 / 255.0];
/// Brown.
const MUD: [f32; 3] = [63.0 / 255.0, 42.0 / 255.0, 20.0 / 255.0];

/// Constants of a severity of spatter.
#[derive(Clone, Copy)]
pub(super) struct Spatter {
    /// Mean and standard deviation of the field that drops are peaks of.
    pub(super) mean: f32,
    pub(super) deviation: f32,
    /// Of the blur of the field.
    pub(super) sigma: f32,
    /// Where peaks begin.
    pub(super) threshold: f32,
    /// Brightness of water; standard deviation of the blur of mud.
    pub(super) strength: f32,
    pub(super) mud: bool,
}

const fn of(
    mean: f32,
    deviation: f32,
    sigma: f32,
    threshold: f32,
    strength: f32,
    mud: bool,
) -> Spatter {
    Spatter {
        mean,
        deviation,
        sigma,
        threshold,
        strength,
        mud,
    }
}

pub(super) const CIFAR: [Spatter; 5] = [
    of(0.62, 0.1, 0.7, 0.7, 0.5, false),
    of(0.65, 0.1, 0.8, 0.7, 0.5, false),
    of(0.65, 0.3, 1.0, 0.69, 0.5, false),
    of(0.65, 0.1, 0.7, 0.69, 0.6, true),
    of(0.65, 0.1, 0.5, 0.68, 0.6, true),
];

pub(super) const IMAGENET: [Spatter; 5] = [
    of(0.65, 0.3, 4.0, 0.69, 0.6, false),
    of(0.65, 0.3, 3.0, 0.68, 0.6, false),
    of(0.65, 0.3, 2.0, 0.68, 0.5, false),
    of(0.65, 0.3, 1.0, 0.65, 1.5, true),
    of(0.67, 0.4, 1.0, 0.65, 1.5, true),
];

/// Peaks of smooth noise as drops of water or mud.
pub(super) fn spatter(image: &Raster, level: Level, draw: &mut Draw) -> Raster {
    let constants = level.of(CIFAR, IMAGENET);
    let field: Vec<f32> = (0..image.area())
        .map(|_| constants.mean + constants.deviation * draw.normal())
        .collect();
    spatter_of(image, constants, &field)
}

pub(super) fn spatter_of(image: &Raster, constants: Spatter, field: &[f32]) -> Raster {
    let width = image.width;
    let drops = raster::gaussian(field, width, constants.sigma, 4.0, Border::Nearest);
    let (colour, cover) = if constants.mud {
        let thick = |value: &f32| f32::from(*value > constants.threshold);
        let mud: Vec<f32> = drops.iter().map(thick).collect();
        let mut mud = raster::gaussian(&mud, width, constants.strength, 4.0, Border::Nearest);
        mud.iter_mut()
            .filter(|value| **value < 0.8)
            .for_each(|value| *value = 0.0);
        (MUD, mud)
    } else {
        let byte = |value: &f32| match *value < constants.threshold {
            true => 0,
            false => (value * 255.0).clamp(0.0, 255.0) as u8,
        };
        let bytes: Vec<u8> = drops.iter().map(byte).collect();
        (WATER, shine(&bytes, width, constants.strength))
    };
    let mut out = image.clone();
    for (channel, plane) in out.values.chunks_mut(image.area()).enumerate() {
        let tone = image.tint(colour, channel);
        for (value, cover) in plane.iter_mut().zip(&cover) {
            let keep = if constants.mud { 1.0 - cover } else { 1.0 };
            *value = *value * keep + cover * tone;
        }
    }
    out
}

/// How bright water of these depths is: depth times light, at most `strength`. The light is embossed from the distance to
/// the drops' edges.
fn shine(depth: &[u8], width: usize, strength: f32) -> Vec<f32> {
    let distance = distances(&edges(depth, width, 50, 150), width);
    let capped: Vec<f32> = distance.iter().map(|&d| d.min(20.0)).collect();
    let smooth = boxed(&capped, width);
    let mut light: Vec<u8> = smooth.iter().map(|&value| value as u8).collect();
    equalise(&mut light);
    let light: Vec<f32> = light.iter().map(|&value| f32::from(value)).collect();
    #[rustfmt::skip]
    let emboss: [(isize, isize, f32); 7] = [
        (-1, -1, -2.0), (0, -1, -1.0), (-1, 0, -1.0), (0, 0, 1.0), (1, 0, 1.0), (0, 1, 1.0), (1, 1, 2.0),
    ];
    let mut light = raster::correlate(&light, width, &emboss, Border::Mirror);
    light
        .iter_mut()
        .for_each(|value| *value = value.clamp(0.0, 255.0));
    let light = boxed(&light, width);
    let mut lit: Vec<f32> = depth
        .iter()
        .zip(light)
        .map(|(&d, l)| f32::from(d) * l.round())
        .collect();
    let most = lit.iter().copied().fold(0.0, f32::max);
    // No drop, no shine.
    let scale = if most > 0.0 { strength / most } else { 0.0 };
    lit.iter_mut().for_each(|value| *value *= scale);
    lit
}

/// Means of 3 x 3 pixels.
fn boxed(plane: &[f32], width: usize) -> Vec<f32> {
    let taps: Vec<_> = (0..9).map(|i| (i % 3 - 1, i / 3 - 1, 1.0 / 9.0)).collect();
    raster::correlate(plane, width, &taps, Border::Mirror)
}

/// Canny's edges (IEEE TPAMI 8(6), 1986): ridges of the gradient (Sobel's, in |dx| + |dy|) above `low` that hang together with
/// some above `high`.
fn edges(bytes: &[u8], width: usize, low: i32, high: i32) -> Vec<bool> {
    let height = bytes.len() / width;
    let at = |y: isize, x: isize| {
        let (y, x) = (
            Border::Nearest.index(y, height),
            Border::Nearest.index(x, width),
        );
        i32::from(bytes[y * width + x])
    };
    let gradient = |y: isize, x: isize| {
        let column = |x: isize| at(y - 1, x) + 2 * at(y, x) + at(y + 1, x);
        let row = |y: isize| at(y, x - 1) + 2 * at(y, x) + at(y, x + 1);
        (column(x + 1) - column(x - 1), row(y + 1) - row(y - 1))
    };
    let inside =
        |y: isize, x: isize| (0..height as isize).contains(&y) && (0..width as isize).contains(&x);
    let gradients: Vec<(i32, i32)> = (0..bytes.len())
        .map(|i| gradient((i / width) as isize, (i % width) as isize))
        .collect();
    let size = |y: isize, x: isize| {
        if !inside(y, x) {
            return 0;
        }
        let (dx, dy) = gradients[y as usize * width + x as usize];
        dx.abs() + dy.abs()
    };

    let mut ridge = vec![false; bytes.len()];
    let mut found = vec![false; bytes.len()];
    let mut open = Vec::new();
    for i in 0..bytes.len() {
        let (y, x) = ((i / width) as isize, (i % width) as isize);
        let (dx, dy) = gradients[i];
        let here = size(y, x);
        if here <= low {
            continue;
        }
        // The tangents of 22.5 and 67.5 degrees part the directions. Of two equal neighbours along an axis, the first counts.
        let (across, along) = (f64::from(dx.abs()), f64::from(dy.abs()));
        let tangent = std::f64::consts::SQRT_2 - 1.0;
        ridge[i] = if along < across * tangent {
            here > size(y, x - 1) && here >= size(y, x + 1)
        } else if along > across * (tangent + 2.0) {
            here > size(y - 1, x) && here >= size(y + 1, x)
        } else {
            let s = if (dx < 0) == (dy < 0) { 1 } else { -1 };
            here > size(y - 1, x - s) && here > size(y + 1, x + s)
        };
        if ridge[i] && here > high {
            found[i] = true;
            open.push(i);
        }
    }
    while let Some(i) = open.pop() {
        let (y, x) = ((i / width) as isize, (i % width) as isize);
        for (dy, dx) in (0..9).map(|k| (k / 3 - 1, k % 3 - 1)) {
            if inside(y + dy, x + dx) {
                let next = (y + dy) as usize * width + (x + dx) as usize;
                if ridge[next] && !found[next] {
                    found[next] = true;
                    open.push(next);
                }
            }
        }
    }
    found
}

/// Distance of each pixel to the nearest marked one by the 5 x 5 chamfer of Borgefors (CVGIP 34(3), 1986): steps of 1, 1.4 and
/// 2.1969. Infinite without one.
fn distances(marked: &[bool], width: usize) -> Vec<f32> {
    const STEPS: [(isize, isize, f32); 8] = [
        (0, -1, 1.0),
        (-1, 0, 1.0),
        (-1, -1, 1.4),
        (-1, 1, 1.4),
        (-1, -2, 2.1969),
        (-1, 2, 2.1969),
        (-2, -1, 2.1969),
        (-2, 1, 2.1969),
    ];
    let height = (marked.len() / width) as isize;
    let mut out: Vec<f32> = marked
        .iter()
        .map(|&m| if m { 0.0 } else { f32::INFINITY })
        .collect();
    let mut pass = |i: usize, sign: isize| {
        let (y, x) = ((i / width) as isize, (i % width) as isize);
        for (dy, dx, length) in STEPS {
            let (y, x) = (y + sign * dy, x + sign * dx);
            if (0..height).contains(&y) && (0..width as isize).contains(&x) {
                let through = out[y as usize * width + x as usize] + length;
                out[i] = out[i].min(through);
            }
        }
    };
    (0..marked.len()).for_each(|i| pass(i, 1));
    (0..marked.len()).rev().for_each(|i| pass(i, -1));
    out
}

/// Bytes mapped so that their cumulative histogram is a straight line. A constant stays.
fn equalise(bytes: &mut [u8]) {
    let mut counts = [0u32; 256];
    bytes
        .iter()
        .for_each(|&byte| counts[usize::from(byte)] += 1);
    let Some(first) = counts.iter().position(|&count| count > 0) else {
        return;
    };
    let others = bytes.len() as u32 - counts[first];
    if others == 0 {
        return;
    }
    let scale = 255.0 / others as f32;
    let mut sum = 0;
    let mut table = [0u8; 256];
    for value in first + 1..256 {
        sum += counts[value];
        table[value] = (sum as f32 * scale).round_ties_even() as u8;
    }
    bytes
        .iter_mut()
        .for_each(|byte| *byte = table[usize::from(*byte)]);
}
