//! What processing does: `contrast`, `elastic-transform`, `pixelate`.

use super::Level;
use super::draw::Draw;
use super::raster::{self, Border, Raster};

/// mean + c (x - mean), by channel
pub(super) fn contrast(image: &Raster, level: Level) -> Raster {
    let keep = level.of([0.75, 0.5, 0.4, 0.3, 0.15], [0.4, 0.3, 0.2, 0.1, 0.05]);
    image.map_planes(|plane| {
        let mean = plane.iter().sum::<f32>() / plane.len() as f32;
        plane
            .iter()
            .map(|value| mean + keep * (value - mean))
            .collect()
    })
}

/// An affine map that moves three points at random, then a displacement of each pixel by smooth noise.
pub(super) fn elastic(image: &Raster, level: Level, draw: &mut Draw) -> Raster {
    // Of the image's side. ImageNet-C has 244 pixels of a side of 224.
    let slip = 244.0 / 224.0;
    let (strength, sigma, affine) = level.of(
        [
            (0.0, 0.0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ],
        [
            (2.0 * slip, 0.7 * slip, 0.1 * slip),
            (2.0 * slip, 0.08 * slip, 0.2 * slip),
            (0.05 * slip, 0.01 * slip, 0.02 * slip),
            (0.07 * slip, 0.01 * slip, 0.02 * slip),
            (0.12 * slip, 0.01 * slip, 0.02 * slip),
        ],
    );
    let side = image.height.min(image.width) as f32;
    let mut moves = [[0f32; 2]; 3];
    for at in moves.iter_mut().flatten() {
        *at = draw.between(-affine * side, affine * side);
    }
    let mut field = || -> Vec<f32> {
        let noise: Vec<f32> = (0..image.area()).map(|_| draw.between(-1.0, 1.0)).collect();
        smooth(&noise, image.width, sigma * side, strength * side)
    };
    let (right, down) = (field(), field());
    elastic_of(image, moves, &right, &down)
}

/// Noise blurred by `sigma` pixels and scaled.
pub(super) fn smooth(noise: &[f32], width: usize, sigma: f32, strength: f32) -> Vec<f32> {
    if strength == 0.0 {
        return vec![0.0; noise.len()];
    }
    let smooth = raster::gaussian(noise, width, sigma, 3.0, Border::Reflect);
    smooth.iter().map(|value| value * strength).collect()
}

/// `moves`: of the three points, in x and y; `right`, `down`: of where each pixel is read, in pixels.
pub(super) fn elastic_of(
    image: &Raster,
    moves: [[f32; 2]; 3],
    right: &[f32],
    down: &[f32],
) -> Raster {
    let (height, width) = (image.height, image.width);
    let centre = [(width / 2) as f32, (height / 2) as f32];
    let arm = (height.min(width) / 3) as f32;
    let from = [[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]
        .map(|[x, y]: [f32; 2]| [centre[0] + arm * x, centre[1] + arm * y]);
    let to: [[f32; 2]; 3] =
        std::array::from_fn(|i| [from[i][0] + moves[i][0], from[i][1] + moves[i][1]]);
    let back = Affine::between(to, from);
    image.map_planes(|plane| {
        let mut mapped = Vec::with_capacity(plane.len());
        for y in 0..height {
            for x in 0..width {
                let [x, y] = back.map([x as f32, y as f32]);
                mapped.push(raster::bilinear(plane, width, y, x, Border::Mirror));
            }
        }
        let pixels = (0..height * width).map(|i| {
            let (y, x) = ((i / width) as f32 + down[i], (i % width) as f32 + right[i]);
            raster::bilinear(&mapped, width, y, x, Border::Reflect)
        });
        pixels.collect()
    })
}

/// An affine map of the plane.
struct Affine {
    origin: [f32; 2],
    target: [f32; 2],
    matrix: [[f32; 2]; 2],
}

impl Affine {
    /// That which takes three points to three others; the identity if the former are on one line.
    fn between(from: [[f32; 2]; 3], to: [[f32; 2]; 3]) -> Self {
        let edge = |points: [[f32; 2]; 3], i: usize| {
            [points[i][0] - points[0][0], points[i][1] - points[0][1]]
        };
        let ([a, c], [b, d]) = (edge(from, 1), edge(from, 2));
        let (one, two) = (edge(to, 1), edge(to, 2));
        let area = a * d - b * c;
        if area.abs() < 1e-6 {
            return Self {
                origin: [0.0; 2],
                target: [0.0; 2],
                matrix: [[1.0, 0.0], [0.0, 1.0]],
            };
        }
        let row = |i: usize| {
            [
                (one[i] * d - two[i] * c) / area,
                (two[i] * a - one[i] * b) / area,
            ]
        };
        Self {
            origin: from[0],
            target: to[0],
            matrix: [row(0), row(1)],
        }
    }

    fn map(&self, point: [f32; 2]) -> [f32; 2] {
        let [x, y] = [point[0] - self.origin[0], point[1] - self.origin[1]];
        std::array::from_fn(|i| self.target[i] + self.matrix[i][0] * x + self.matrix[i][1] * y)
    }
}

/// A resize to a share of the pixels of a side, and back, each pixel the mean of those whose centres lie in it.
pub(super) fn pixelate(image: &Raster, level: Level) -> Raster {
    let share = level.of([0.95, 0.9, 0.85, 0.75, 0.65], [0.6, 0.5, 0.4, 0.3, 0.25]);
    let less = |length: usize| ((length as f64 * share) as usize).max(1);
    let (height, width) = (image.height, image.width);
    let (few_rows, few_columns) = (less(height), less(width));
    image.map_planes(|plane| {
        let small = resized(plane, [height, width], [few_rows, few_columns]);
        resized(&small, [few_rows, few_columns], [height, width])
    })
}

/// A plane resized with a box filter, as Pillow's `BOX` has it.
fn resized(plane: &[f32], [height, width]: [usize; 2], [rows, columns]: [usize; 2]) -> Vec<f32> {
    let (down, across) = (windows(height, rows), windows(width, columns));
    let mut out = Vec::with_capacity(rows * columns);
    for &(top, bottom) in &down {
        for &(left, right) in &across {
            let lines = (top..bottom).map(|y| &plane[y * width + left..y * width + right]);
            let sum: f32 = lines.flatten().sum();
            out.push(sum / ((bottom - top) * (right - left)) as f32);
        }
    }
    out
}

/// For each of `count` cells over `length` pixels, the pixels whose centres lie in it; between pixels, the nearest.
fn windows(length: usize, count: usize) -> Vec<(usize, usize)> {
    let scale = length as f64 / count as f64;
    let reach = 0.5 * scale.max(1.0);
    (0..count)
        .map(|i| {
            let centre = (i as f64 + 0.5) * scale;
            let first = ((centre - reach + 0.5) as usize).min(length - 1);
            let end = ((centre + reach + 0.5) as usize).min(length);
            (first, end.max(first + 1))
        })
        .collect()
}
