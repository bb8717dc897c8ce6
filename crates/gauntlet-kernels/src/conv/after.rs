//! What follows a convolution in most networks, done while its result is in the cache: `relu`, and pooling by two.
//!
//! Both only say which values go on. The way back needs no more than that: the result for `relu`, a byte a pooled value for
//! both together.

use super::lanes::{Lanes, Padded};

/// What is done with the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// Nothing.
    Nothing,
    /// Negative values become zero.
    Relu,
    /// Then each square of two by two becomes its largest; a last odd row or column is left out.
    ReluPool,
}

impl After {
    /// Size of what comes out of `size`.
    pub(super) fn size(self, size: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Nothing | Self::Relu => size,
            Self::ReluPool => size.map(|n| n / 2),
        }
    }
}

/// For each pooled value which of its four it is, in the order of rows, or [`NONE`]. Four images side by side, whatever the lanes
/// they were computed in.
pub(super) type Codes = Vec<[u8; 4]>;

/// All four were negative.
const NONE: u8 = 4;

/// The gradient by what came out after all.
#[derive(Clone, Copy, Debug)]
pub(super) enum Upstream<'a> {
    /// Of the convolution's result, or any other tensor.
    Plain(&'a [f32]),
    /// Behind `relu`, with what that gave.
    Relu(&'a [f32], &'a [f32]),
    /// Behind `relu` and pooling.
    ReluPool(&'a [f32], &'a [[u8; 4]]),
}

/// Some images of a tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    pub(super) values: Upstream<'a>,
    /// A multiple of four.
    pub(super) first: usize,
    pub(super) images: usize,
}

impl Source<'_> {
    /// The images turned into lanes with zeros around them, whatever was in `to`.
    #[inline(always)]
    pub(super) fn turn<const L: usize>(self, grid: &Padded, to: &mut [Lanes<L>]) {
        let part = |length: usize| self.first * length..(self.first + self.images) * length;
        match self.values {
            Upstream::Plain(values) => {
                grid.clear_around(to);
                grid.gather(&values[part(grid.image_len())], to);
            }
            Upstream::Relu(dy, y) => {
                let part = part(grid.image_len());
                let pairs = dy[part.clone()].iter().zip(&y[part]);
                let passed: Vec<f32> = pairs
                    .map(|(&dy, &y)| if y <= 0.0 { 0.0 } else { dy })
                    .collect();
                grid.clear_around(to);
                grid.gather(&passed, to);
            }
            Upstream::ReluPool(dy, codes) => {
                let pooled = After::ReluPool.size(grid.size);
                let small = Padded {
                    channels: grid.channels,
                    size: pooled,
                    before: [0, 0],
                    padded: pooled,
                };
                let length = small.image_len();
                to.fill([0.0; L]);
                let mut lanes = vec![[0.0; L]; length];
                small.gather(&dy[part(length)], &mut lanes);
                unpool(&lanes, &codes[self.first / 4 * length..], grid, to);
            }
        }
    }
}

/// Each value back where it came from.
#[inline(always)]
fn unpool<const L: usize>(
    from: &[Lanes<L>],
    codes: &[[u8; 4]],
    grid: &Padded,
    to: &mut [Lanes<L>],
) {
    let [rows, columns] = After::ReluPool.size(grid.size);
    let [above, left] = grid.before;
    let [height, width] = grid.padded;
    for row in 0..grid.channels * rows {
        let (channel, i) = (row / rows, row % rows);
        let start = (channel * height + above + 2 * i) * width + left;
        let (upper, lower) = to[start..].split_at_mut(width);
        let upper = upper[..2 * columns].as_chunks_mut::<2>().0;
        let lower = lower[..2 * columns].as_chunks_mut::<2>().0;
        for (j, (upper, lower)) in upper.iter_mut().zip(lower).enumerate() {
            let at = row * columns + j;
            let code = code_of::<L>(codes, at, from.len());
            for l in 0..L {
                let (value, code) = (from[at][l], code[l]);
                let pick = |which: u32| if code == which { value } else { 0.0 };
                upper[0][l] = pick(0);
                upper[1][l] = pick(1);
                lower[0][l] = pick(2);
                lower[1][l] = pick(3);
            }
        }
    }
}

/// The codes of value `at` of a block's images, `length` a four of images.
#[inline(always)]
fn code_of<const L: usize>(codes: &[[u8; 4]], at: usize, length: usize) -> [u32; L] {
    let mut code = [u32::from(NONE); L];
    for (four, code) in code.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        if let Some(found) = codes.get(four * length + at) {
            *code = found.map(u32::from);
        }
    }
    code
}

/// Negative values become zero; what is no number stays.
#[inline(always)]
pub(super) fn relu<const L: usize>(values: &mut [Lanes<L>]) {
    for value in values.as_flattened_mut() {
        *value = if *value <= 0.0 { 0.0 } else { *value };
    }
}

/// The largest of each two by two, or zero; and which it was.
#[inline(always)]
pub(super) fn relu_pool<const L: usize>(
    from: &[Lanes<L>],
    [height, width]: [usize; 2],
    to: &mut [Lanes<L>],
    codes: &mut [[u8; 4]],
) {
    let (length, [rows, columns]) = (to.len(), [height / 2, width / 2]);
    for at in 0..length {
        let (row, j) = (at / columns, at % columns);
        let (channel, i) = (row / rows, row % rows);
        let start = (channel * height + 2 * i) * width + 2 * j;
        let four = [start, start + 1, start + width, start + width + 1].map(|place| &from[place]);
        let (mut best, mut code) = ([0.0; L], [u32::from(NONE); L]);
        for (which, values) in four.into_iter().enumerate() {
            for l in 0..L {
                // The first of equals, as everyone has it; what is no number is passed on.
                let better = values[l] > best[l] || values[l].is_nan();
                best[l] = if better { values[l] } else { best[l] };
                code[l] = if better { which as u32 } else { code[l] };
            }
        }
        to[at] = best;
        for (four, code) in code.as_chunks::<4>().0.iter().enumerate() {
            if let Some(to) = codes.get_mut(four * length + at) {
                *to = code.map(|code| code as u8);
            }
        }
    }
}
