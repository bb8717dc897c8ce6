//! Families kept for validation: `speckle-noise`, `gaussian-blur`, `saturate` (`spatter` has its own file).

use super::Level;
use super::draw::Draw;
use super::noise::each;
use super::raster::{self, Border, Raster};

/// x + x sigma N(0, 1)
pub(super) fn speckle(image: &Raster, level: Level, draw: &mut Draw) -> Raster {
    let sigma = level.of([0.06, 0.1, 0.12, 0.16, 0.2], [0.15, 0.2, 0.35, 0.45, 0.6]);
    each(image, |value| value + value * sigma * draw.normal())
}

/// A Gaussian, cut off after 4 standard deviations; the edge is continued.
pub(super) fn gaussian_blur(image: &Raster, level: Level) -> Raster {
    let sigma = level.of([0.4, 0.6, 0.7, 0.8, 1.0], [1.0, 2.0, 3.0, 4.0, 6.0]);
    image.map_planes(|plane| raster::gaussian(plane, image.width, sigma, 4.0, Border::Nearest))
}

/// Saturation in HSV times a factor plus a constant, in [0, 1]: channels move away from the largest one, which stays.
pub(super) fn saturate(image: &Raster, level: Level) -> Raster {
    let (factor, more) = level.of(
        [(0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)],
        [(0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2)],
    );
    let mut out = image.clone();
    let area = image.area();
    for pixel in 0..area {
        let channels = [0, 1, 2].map(|c| c * area + pixel);
        let rgb = channels.map(|at| image.values[at]);
        let value = rgb.into_iter().fold(0f32, f32::max);
        let range = value - rgb.into_iter().fold(f32::INFINITY, f32::min);
        let saturation = if value > 0.0 { range / value } else { 0.0 };
        let wanted = (saturation * factor + more).clamp(0.0, 1.0);
        for (channel, at) in channels.into_iter().enumerate() {
            out.values[at] = if range > 0.0 {
                value - (value - rgb[channel]) * (wanted / saturation)
            } else if channel == 0 {
                // Grey has the hue of red, as in the published code.
                value
            } else {
                value * (1.0 - wanted)
            };
        }
    }
    out
}
