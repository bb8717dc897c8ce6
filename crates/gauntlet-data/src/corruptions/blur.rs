//! Blurs of optics: `defocus-blur`, `glass-blur`, `motion-blur`, `zoom-blur`.

use super::Level;
use super::draw::Draw;
use super::raster::{self, Border, Raster, gaussian_weights};

/// Correlation with an antialiased disk.
pub(super) fn defocus(image: &Raster, level: Level) -> Raster {
    let (radius, alias) = level.of(
        [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)],
        [(3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5)],
    );
    let taps = disk(radius, alias);
    image.map_planes(|plane| raster::correlate(plane, image.width, &taps, Border::Mirror))
}

/// A disk of whole pixels, smoothed by a Gaussian of 3 x 3 pixels (5 x 5 above radius 8) with standard deviation `alias`. Weights
/// sum to one, where those published for radius 8 and 10 lighten the image by 1 % because their frame cuts the disk.
pub(super) fn disk(radius: f32, alias: f32) -> Vec<(isize, isize, f32)> {
    let smooth = if radius <= 8.0 { 1 } else { 2 };
    let weights = gaussian_weights(alias, smooth as usize);
    let reach = radius.ceil() as isize;
    let side = -(reach + smooth)..=reach + smooth;
    let inside = |x: isize, y: isize| ((x * x + y * y) as f32) <= radius * radius;
    let mut taps = Vec::new();
    for y in side.clone() {
        for x in side.clone() {
            let mut weight = 0.0;
            for (j, across) in weights.iter().enumerate() {
                for (i, down) in weights.iter().enumerate() {
                    if inside(x + j as isize - smooth, y + i as isize - smooth) {
                        weight += across * down;
                    }
                }
            }
            // Smoothing by a tenth of a pixel leaves 1e-22 around the disk.
            if weight > 1e-9 {
                taps.push((x, y, weight));
            }
        }
    }
    let total: f32 = taps.iter().map(|tap| tap.2).sum();
    taps.iter_mut().for_each(|tap| tap.2 /= total);
    taps
}

/// A Gaussian blur; pixels replaced by neighbours up to `reach` away; the blur again.
pub(super) fn glass(image: &Raster, level: Level, draw: &mut Draw) -> Raster {
    let (sigma, reach, rounds) = level.of(
        [
            (0.05, 1, 1),
            (0.25, 1, 1),
            (0.4, 1, 1),
            (0.25, 1, 2),
            (0.4, 1, 2),
        ],
        [
            (0.7, 1, 2),
            (0.9, 2, 1),
            (1.0, 2, 3),
            (1.1, 3, 2),
            (1.5, 4, 2),
        ],
    );
    let mut offset = || draw.below(2 * reach as u32) as isize - reach as isize;
    glass_of(image, sigma, reach, rounds, &mut offset)
}

/// As [`glass`], with offsets in `-reach..reach` (right, then down, for each pixel) given.
pub(super) fn glass_of(
    image: &Raster,
    sigma: f32,
    reach: usize,
    rounds: usize,
    offset: &mut impl FnMut() -> isize,
) -> Raster {
    let (height, width, area) = (image.height, image.width, image.area());
    let blur = |image: &Raster| {
        image.map_planes(|plane| raster::gaussian(plane, width, sigma, 4.0, Border::Nearest))
    };
    let mut glass = blur(image);
    glass
        .values
        .iter_mut()
        .for_each(|value| *value = raster::truncated(*value));
    for _ in 0..rounds {
        for y in (reach + 1..=height.saturating_sub(reach)).rev() {
            for x in (reach + 1..=width.saturating_sub(reach)).rev() {
                let (dx, dy) = (offset(), offset());
                let from = y.saturating_add_signed(dy) * width + x.saturating_add_signed(dx);
                for channel in 0..glass.channels {
                    glass.values[channel * area + y * width + x] =
                        glass.values[channel * area + from];
                }
            }
        }
    }
    blur(&glass)
}

/// Half a Gaussian along a line within 45 degrees of the horizontal.
pub(super) fn motion(image: &Raster, level: Level, draw: &mut Draw) -> Raster {
    let (radius, sigma) = level.of(
        [(6.0, 1.0), (6.0, 1.5), (6.0, 2.0), (8.0, 2.0), (9.0, 2.5)],
        [
            (10.0, 3.0),
            (15.0, 5.0),
            (15.0, 8.0),
            (15.0, 12.0),
            (20.0, 15.0),
        ],
    );
    let taps = raster::motion(radius, sigma, draw.between(-45.0, 45.0));
    image.map_planes(|plane| raster::correlate(plane, image.width, &taps, Border::Nearest))
}

/// The mean of the image, the image again (as published) and `count - 1` zooms of it, `step` apart.
pub(super) fn zoom(image: &Raster, level: Level) -> Raster {
    let (step, count) = level.of(
        // numpy's `arange` includes the end of some of these ranges, by rounding.
        [(0.01, 7), (0.01, 12), (0.01, 16), (0.01, 21), (0.01, 26)],
        [(0.01, 12), (0.01, 16), (0.02, 11), (0.02, 13), (0.03, 11)],
    );
    // As `arange` adds, too: whether 1.25 times 26 pixels are 32 or 33 hangs on the last bit.
    let step = (1.0 + step) - 1.0;
    image.map_planes(|plane| {
        let mut sum: Vec<f32> = plane.iter().map(|value| 2.0 * value).collect();
        for i in 1..count {
            let zoomed = raster::zoom(plane, image.width, 1.0 + f64::from(i) * step);
            sum.iter_mut()
                .zip(zoomed)
                .for_each(|(sum, value)| *sum += value);
        }
        let share = 1.0 / (count + 1) as f32;
        sum.iter().map(|value| value * share).collect()
    })
}
