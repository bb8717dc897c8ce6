//! Noise of sensors: `gaussian-noise`, `shot-noise`, `impulse-noise`.

use super::Level;
use super::draw::Draw;
use super::raster::Raster;

/// x + sigma N(0, 1)
pub(super) fn gaussian(image: &Raster, level: Level, draw: &mut Draw) -> Raster {
    let sigma = level.of(
        [0.04, 0.06, 0.08, 0.09, 0.10],
        [0.08, 0.12, 0.18, 0.26, 0.38],
    );
    each(image, |value| value + sigma * draw.normal())
}

/// Poisson(c x) / c: `c` photons are full light.
pub(super) fn shot(image: &Raster, level: Level, draw: &mut Draw) -> Raster {
    let photons = level.of(
        [500.0, 250.0, 100.0, 75.0, 50.0],
        [60.0, 25.0, 12.0, 5.0, 3.0],
    );
    each(image, |value| {
        (draw.poisson(f64::from(value) * photons) / photons) as f32
    })
}

/// A share of all values becomes 0 or 1, each equally often.
pub(super) fn impulse(image: &Raster, level: Level, draw: &mut Draw) -> Raster {
    let share = level.of(
        [0.01, 0.02, 0.03, 0.05, 0.07],
        [0.03, 0.06, 0.09, 0.17, 0.27],
    );
    each(image, |value| {
        let place = draw.uniform();
        if place < share / 2.0 {
            0.0
        } else if place < share {
            1.0
        } else {
            value
        }
    })
}

/// `change` applied to each value.
pub(super) fn each(image: &Raster, mut change: impl FnMut(f32) -> f32) -> Raster {
    image.map_planes(|plane| plane.iter().map(|&value| change(value)).collect())
}
