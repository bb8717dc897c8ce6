//! `jpeg-compression`: what a baseline JPEG loses.
//!
//! An image is coded in blocks of 8 x 8 by rounded cosine coefficients; what comes after that (Huffman codes) loses nothing and is
//! left out. As in libjpeg: BT.601 colours, colour at half resolution (4:2:0) and its triangle filter on the way back, the
//! tables of ITU-T T.81 annex K scaled by quality. The encoder of the `image` crate keeps colour at full resolution, where
//! Pillow, which the published data were made with, does not.

use std::f32::consts::{FRAC_1_SQRT_2, PI};

use super::Level;
use super::raster::Raster;

#[rustfmt::skip]
const LUMA: [u16; 64] = [
    16, 11, 10, 16, 24, 40, 51, 61,
    12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77,
    24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
];

#[rustfmt::skip]
const CHROMA: [u16; 64] = [
    17, 18, 24, 47, 99, 99, 99, 99,
    18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99,
];

/// The image after compression at a quality of 80 to 40 (25 to 7 if large).
pub(super) fn compression(image: &Raster, level: Level) -> Raster {
    compressed(image, level.of([80, 65, 58, 50, 40], [25, 18, 15, 10, 7]))
}

pub(super) fn compressed(image: &Raster, quality: u16) -> Raster {
    let transform = Transform::new();
    let bytes = image.map_planes(|plane| plane.iter().map(|v| byte(v * 255.0)).collect());
    let (height, width) = (image.height, image.width);
    let (luma, chroma) = (scaled(&LUMA, quality), scaled(&CHROMA, quality));
    let mut out = if image.channels == 3 {
        let [y, blue, red] = to_ycc(&bytes);
        let y = transform.coded(&y, [height, width], &luma);
        let colour = |plane: &[f32]| {
            let half = halved(plane, [height, width]);
            let size = [height.div_ceil(2), width.div_ceil(2)];
            let half = transform.coded(&half, size, &chroma);
            doubled(&half, size, [height, width])
        };
        Raster {
            values: to_rgb(&y, &colour(&blue), &colour(&red)),
            ..*image
        }
    } else {
        bytes.map_planes(|plane| transform.coded(plane, [height, width], &luma))
    };
    out.values.iter_mut().for_each(|value| *value /= 255.0);
    out
}

fn byte(value: f32) -> f32 {
    value.round().clamp(0.0, 255.0)
}

/// libjpeg's rule: 50 is the table itself, 100 all ones.
fn scaled(table: &[u16; 64], quality: u16) -> [f32; 64] {
    let quality = u32::from(quality.clamp(1, 100));
    let percent = if quality < 50 {
        5000 / quality
    } else {
        200 - 2 * quality
    };
    table.map(|step| ((u32::from(step) * percent + 50) / 100).clamp(1, 255) as f32)
}

fn to_ycc(rgb: &Raster) -> [Vec<f32>; 3] {
    let area = rgb.area();
    let plane = |weights: [f32; 3], offset: f32| -> Vec<f32> {
        let value =
            |i: usize| -> f32 { (0..3).map(|c| weights[c] * rgb.values[c * area + i]).sum() };
        (0..area).map(|i| byte(value(i) + offset)).collect()
    };
    [
        plane([0.299, 0.587, 0.114], 0.0),
        plane([-0.168_736, -0.331_264, 0.5], 128.0),
        plane([0.5, -0.418_688, -0.081_312], 128.0),
    ]
}

fn to_rgb(y: &[f32], blue: &[f32], red: &[f32]) -> Vec<f32> {
    let pixels = || {
        y.iter()
            .zip(blue.iter().zip(red))
            .map(|(y, (b, r))| (y, b - 128.0, r - 128.0))
    };
    let values = pixels()
        .map(|(y, _, r)| y + 1.402 * r)
        .chain(pixels().map(|(y, b, r)| y - 0.344_136 * b - 0.714_136 * r))
        .chain(pixels().map(|(y, b, _)| y + 1.772 * b));
    values.map(byte).collect()
}

/// Means of 2 x 2 pixels, the edge repeated; halves are rounded down and up in turn.
fn halved(plane: &[f32], [height, width]: [usize; 2]) -> Vec<f32> {
    let (rows, columns) = (height.div_ceil(2), width.div_ceil(2));
    let at = |y: usize, x: usize| plane[y.min(height - 1) * width + x.min(width - 1)];
    let mean = |i: usize| {
        let (y, x) = (i / columns * 2, i % columns * 2);
        let sum = at(y, x) + at(y, x + 1) + at(y + 1, x) + at(y + 1, x + 1);
        ((sum + 1.0 + (x / 2 % 2) as f32) / 4.0).floor()
    };
    (0..rows * columns).map(mean).collect()
}

/// Twice the pixels of a side: 3/4 of the nearer and 1/4 of the farther in both directions.
fn doubled(plane: &[f32], [rows, columns]: [usize; 2], [height, width]: [usize; 2]) -> Vec<f32> {
    let pair = |i: usize, count: usize| {
        let (near, even) = (i / 2, i.is_multiple_of(2));
        let far = if even {
            near.saturating_sub(1)
        } else {
            (near + 1).min(count - 1)
        };
        (near, far)
    };
    let mut out = Vec::with_capacity(height * width);
    for y in 0..height {
        let (near, far) = pair(y, rows);
        for x in 0..width {
            let (close, away) = pair(x, columns);
            let column = |x: usize| 3.0 * plane[near * columns + x] + plane[far * columns + x];
            // Halves are rounded up on the left and down on the right.
            let bias = if x.is_multiple_of(2) { 8.0 } else { 7.0 };
            out.push(((3.0 * column(close) + column(away) + bias) / 16.0).floor());
        }
    }
    out
}

/// The cosine transform of 8 x 8 values.
struct Transform {
    /// `basis[k][i]`: cosine `k` at point `i`; the rows are orthonormal.
    basis: [[f32; 8]; 8],
}

impl Transform {
    fn new() -> Self {
        let value = |k: usize, i: usize| {
            let norm = if k == 0 { FRAC_1_SQRT_2 } else { 1.0 };
            0.5 * norm * ((2 * i + 1) as f32 * k as f32 * PI / 16.0).cos()
        };
        Self {
            basis: std::array::from_fn(|k| std::array::from_fn(|i| value(k, i))),
        }
    }

    /// A plane of bytes after its coefficients were rounded to multiples of `steps`. Blocks beyond the edge repeat it.
    fn coded(&self, plane: &[f32], [height, width]: [usize; 2], steps: &[f32; 64]) -> Vec<f32> {
        let mut out = vec![0.0; plane.len()];
        for top in (0..height).step_by(8) {
            for left in (0..width).step_by(8) {
                let mut block: [f32; 64] = std::array::from_fn(|i| {
                    let (y, x) = ((top + i / 8).min(height - 1), (left + i % 8).min(width - 1));
                    plane[y * width + x] - 128.0
                });
                block = self.along_rows(&self.along_rows(&block, false), false);
                for (value, step) in block.iter_mut().zip(steps) {
                    *value = (*value / step).round() * step;
                }
                block = self.along_rows(&self.along_rows(&block, true), true);
                for y in top..height.min(top + 8) {
                    for x in left..width.min(left + 8) {
                        out[y * width + x] = byte(block[(y - top) * 8 + x - left] + 128.0);
                    }
                }
            }
        }
        out
    }

    /// Transforms each row (back, if `inverse`) and transposes the block.
    fn along_rows(&self, block: &[f32; 64], inverse: bool) -> [f32; 64] {
        let mut out = [0.0; 64];
        for row in 0..8 {
            for k in 0..8 {
                let weight = |i: usize| {
                    if inverse {
                        self.basis[i][k]
                    } else {
                        self.basis[k][i]
                    }
                };
                out[k * 8 + row] = (0..8).map(|i| weight(i) * block[row * 8 + i]).sum();
            }
        }
        out
    }
}
