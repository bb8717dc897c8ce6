//! Matrix products on the CPU whose left factor is read where it lies, so that a convolution needs no copy of its patches.
//!
//! A tile of a few rows and one panel of columns stays in registers while the depth is gone through; each value of a row meets a
//! vector of weights. The best instructions of the machine are chosen when the program runs. One core of an AMD EPYC (Zen 4) does
//! 108 GFLOP/s in the 4×4 convolution from 16 to 32 channels that takes most of `mnist-cnn`, of about 115 that it could.
//!
//! Each value of the result is one sum from the first row of the weights to the last: it depends neither on how many rows the
//! left factor has nor on the width of the machine's vectors.

use bytemuck::{bytes_of, cast_slice, cast_slice_mut, pod_read_unaligned};
use macerator::{AutoArch, Scalar, Simd, Vector, WithSimd};

/// The right factor, `[depth, width]`, laid out for this machine: panels of one or two vectors of columns, each with all its depth.
#[derive(Clone, Debug)]
pub struct Weights {
    depth: usize,
    width: usize,
    panels: Vec<Panel>,
}

#[derive(Clone, Debug)]
struct Panel {
    /// Its first column.
    first: usize,
    vectors: usize,
    /// `[depth, vectors, lanes]`; zeros beyond the last column.
    values: Vec<f32>,
    /// What sums start from, a value a column.
    bias: Vec<f32>,
}

/// The left factor. Row `m` is `values[starts[m] + runs[0]..]`, so many values, then as many of `values[starts[m] + runs[1]..]`,
/// and so on: together the depth of the weights.
///
/// A matrix that lies in memory row by row has one run, 0, and multiples of its depth as starts.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Where all values are.
    pub values: &'a [f32],
    /// A place for each row.
    pub starts: &'a [usize],
    /// Where the parts of a row are, counted from its start. All are of one length.
    pub runs: &'a [usize],
}

impl Weights {
    /// Of `values`, row by row, with `bias` (`width` values) to be added to each row of a product.
    ///
    /// # Panics
    /// If the numbers of values do not fit.
    pub fn new(values: &[f32], width: usize, bias: Option<&[f32]>) -> Self {
        let depth = values.len() / width.max(1);
        assert_eq!(values.len(), depth * width, "whole rows of weights");
        assert!(
            bias.is_none_or(|bias| bias.len() == width),
            "a bias for each column"
        );
        let lanes = AutoArch::new().dispatch(Lanes);
        let mut panels = Vec::new();
        let mut first = 0;
        while first < width {
            let vectors = if width - first > lanes { 2 } else { 1 };
            let columns = vectors * lanes;
            let filled = columns.min(width - first);
            let mut panel = Panel {
                first,
                vectors,
                values: vec![0.0; depth * columns],
                bias: vec![0.0; columns],
            };
            for (to, from) in panel
                .values
                .chunks_exact_mut(columns)
                .zip(values.chunks_exact(width))
            {
                to[..filled].copy_from_slice(&from[first..first + filled]);
            }
            if let Some(bias) = bias {
                panel.bias[..filled].copy_from_slice(&bias[first..first + filled]);
            }
            panels.push(panel);
            first += columns;
        }
        Self {
            depth,
            width,
            panels,
        }
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// `rows` times these weights, plus their bias, into `out`: `[rows, width]`.
    ///
    /// # Panics
    /// If a row reaches beyond its values, the runs do not share the depth evenly, or `out` has another size.
    pub fn product(&self, rows: Rows<'_>, out: &mut [f32]) {
        let runs = rows.runs.len().max(1);
        assert!(self.depth.is_multiple_of(runs), "runs of one length");
        assert_eq!(
            out.len(),
            rows.starts.len() * self.width,
            "a place for the product"
        );
        AutoArch::new().dispatch(Product {
            weights: self,
            rows,
            length: self.depth / runs,
            out,
        });
    }
}

/// How many numbers the machine works on at a time.
struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self) -> usize {
        f32::lanes::<S>()
    }
}

struct Product<'a> {
    weights: &'a Weights,
    rows: Rows<'a>,
    /// Of a run.
    length: usize,
    out: &'a mut [f32],
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self) {
        let weights = self.weights;
        for panel in &weights.panels {
            // Sums, weights and a value must fit into the registers: 32 of AVX-512, 16 of AVX2.
            match (panel.vectors, f32::lanes::<S>()) {
                (1, 16..) => self.panel::<S, 8, 1>(panel),
                (1, _) => self.panel::<S, 6, 1>(panel),
                (_, 16..) => self.panel::<S, 8, 2>(panel),
                (_, _) => self.panel::<S, 6, 2>(panel),
            }
        }
    }
}

impl Product<'_> {
    /// All rows with one panel of `VECTORS` vectors, in tiles of `ROWS` rows.
    #[inline(always)]
    fn panel<S: Simd, const ROWS: usize, const VECTORS: usize>(&mut self, panel: &Panel) {
        let total = self.rows.starts.len();
        let mut row = 0;
        while total - row >= ROWS {
            self.tile::<S, ROWS, VECTORS>(panel, row);
            row += ROWS;
        }
        while total - row >= 2 {
            self.tile::<S, 2, VECTORS>(panel, row);
            row += 2;
        }
        if row < total {
            self.tile::<S, 1, VECTORS>(panel, row);
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
        &mut self,
        panel: &Panel,
        first: usize,
    ) {
        let (length, lanes) = (self.length, f32::lanes::<S>());
        let vectors = |values: &[f32]| -> [Vector<S, f32>; VECTORS] {
            std::array::from_fn(|v| load(&values[v * lanes..(v + 1) * lanes]))
        };
        let starts = &self.rows.starts[first..first + ROWS];
        let mut sums = [vectors(&panel.bias); ROWS];
        let columns = VECTORS * lanes;
        let parts = panel.values.chunks_exact((length * columns).max(1));
        for (&run, weights) in self.rows.runs.iter().zip(parts) {
            let rows: [&[f32]; ROWS] =
                std::array::from_fn(|i| &self.rows.values[starts[i] + run..][..length]);
            for (at, weights) in weights.chunks_exact(columns).enumerate() {
                // Never so; with it, the compiler need not look at each row.
                if at >= length {
                    break;
                }
                let weights = vectors(weights);
                for (sums, row) in sums.iter_mut().zip(&rows) {
                    let value = row[at].splat::<S>();
                    for (sum, weights) in sums.iter_mut().zip(weights) {
                        *sum = value.mul_add(weights, *sum);
                    }
                }
            }
        }
        let width = self.weights.width;
        let filled = columns.min(width - panel.first);
        for (i, sums) in sums.iter().enumerate() {
            let out = &mut self.out[(first + i) * width + panel.first..][..filled];
            for (out, sum) in out.chunks_mut(lanes).zip(sums) {
                store(out, sum);
            }
        }
    }
}

#[inline(always)]
fn load<S: Simd>(values: &[f32]) -> Vector<S, f32> {
    pod_read_unaligned(cast_slice(values))
}

/// As many of the vector's numbers as there is room for.
#[inline(always)]
fn store<S: Simd>(out: &mut [f32], vector: &Vector<S, f32>) {
    let (out, bytes): (&mut [u8], _) = (cast_slice_mut(out), bytes_of(vector));
    // In one instruction where all of them are wanted.
    if out.len() == bytes.len() {
        out.copy_from_slice(bytes);
    } else {
        out.copy_from_slice(&bytes[..out.len()]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Small whole numbers: their sums are exact in any order.
    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count)
            .map(|i| ((i * 7919 + seed * 104_729) % 17) as f32 - 8.0)
            .collect()
    }

    proptest! {
        /// Against the definition, in `f64`: all remainders of tiles and panels.
        #[test]
        fn products_are_sums_of_products(
            rows in 0usize..40,
            width in 1usize..80,
            length in 1usize..9,
            runs in 1usize..4,
            stride in 1usize..5,
        ) {
            let depth = runs * length;
            // Runs overlap, and rows do.
            let runs: Vec<usize> = (0..runs).map(|run| run * (length + 3) / 2).collect();
            let starts: Vec<usize> = (0..rows).rev().map(|row| row * stride).collect();
            let values = numbers(rows * stride + 4 * length + 12, 1);
            let (weights, bias) = (numbers(depth * width, 2), numbers(width, 3));
            let left = Rows { values: &values, starts: &starts, runs: &runs };
            let mut found = vec![f32::NAN; rows * width];
            Weights::new(&weights, width, Some(&bias)).product(left, &mut found);
            for (row, start) in starts.iter().enumerate() {
                for column in 0..width {
                    let terms = (0..depth).map(|k| {
                        let value = values[start + runs[k / length] + k % length];
                        f64::from(value) * f64::from(weights[k * width + column])
                    });
                    let expected = f64::from(bias[column]) + terms.sum::<f64>();
                    prop_assert_eq!(f64::from(found[row * width + column]), expected);
                }
            }
        }
    }

    /// What a row comes to is the same to the bit alone and among others.
    #[test]
    fn rows_do_not_depend_on_each_other() {
        let (depth, width, rows) = (50, 21, 13);
        let values: Vec<f32> = (0..rows * depth).map(|i| (i as f32 * 0.37).sin()).collect();
        let weights: Vec<f32> = (0..depth * width)
            .map(|i| (i as f32 * 0.11).cos())
            .collect();
        let weights = Weights::new(&weights, width, None);
        let product = |starts: &[usize]| {
            let mut out = vec![0.0; starts.len() * width];
            let rows = Rows {
                values: &values,
                starts,
                runs: &[0],
            };
            weights.product(rows, &mut out);
            out
        };
        let starts: Vec<usize> = (0..rows).map(|row| row * depth).collect();
        let alone: Vec<f32> = starts.iter().flat_map(|&start| product(&[start])).collect();
        assert_eq!(product(&starts), alone);
    }

    #[test]
    fn what_is_no_number_stays_none_in_its_row() {
        let weights = Weights::new(&[1.0, 0.0, 0.0, 1.0], 2, None);
        let values = [1.0, f32::NAN, 3.0, 4.0];
        let mut out = [0.0; 4];
        let rows = Rows {
            values: &values,
            starts: &[0, 2],
            runs: &[0],
        };
        weights.product(rows, &mut out);
        assert!(out[0].is_nan() && out[1].is_nan());
        assert_eq!(out[2..], [3.0, 4.0]);
    }
}
