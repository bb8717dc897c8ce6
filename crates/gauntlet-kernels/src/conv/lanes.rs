//! Convolution on the CPU with images as the lanes of a vector.
//!
//! Images are taken in blocks of as many as a vector has lanes, and turned so that one pixel of the whole block is one
//! vector. Every product of a convolution is then "one weight times one vector", whatever the kernel, stride and number
//! of channels: no im2col, no edges inside a vector, and one image in three channels fills the machine as well as 64.
//! Each output is summed over its taps in one order, in its own lane: a row's result has the same bits in any batch.
//!
//! Forward pass and input gradient are the same operation, a sum of shifted copies ([`Plan`]); a strided input gradient
//! is one such sum for each phase of the stride. Sums are taken over some input channels at a time, as many as stay in a near
//! cache: an output is a sum that goes on, which changes none of its bits. The loops over arrays are plain Rust that LLVM turns into vectors;
//! `macerator`, which burn's CPU backend uses too, compiles them for each instruction set and picks one at run time.

use std::cell::Cell;
use std::ops::Range;

use macerator::{AutoArch, Scalar, Simd, Vector, WithSimd};
use rayon::prelude::*;

use super::after::{self, After, Codes, Source, Upstream};
use crate::host::threads;

/// One number of each image of a block.
pub(super) type Lanes<const L: usize> = [f32; L];

/// Output channels computed together. Four by two columns are eight independent sums: enough to hide the latency of
/// fused multiply-adds, few enough for the 16 registers of AVX2.
const CHANNELS: usize = 4;

/// As many where vectors have 16 lanes: there are 32 registers then, and a pixel that was read serves twice as many products.
const MORE_CHANNELS: usize = 8;

/// The sizes of a two-dimensional convolution; pairs are (rows, columns).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) size: [usize; 2],
    pub(super) kernel: [usize; 2],
    pub(super) stride: [usize; 2],
    pub(super) padding: [usize; 2],
}

impl Geometry {
    pub(super) fn output_size(&self) -> [usize; 2] {
        [0, 1].map(|d| (self.size[d] + 2 * self.padding[d] - self.kernel[d]) / self.stride[d] + 1)
    }

    /// Numbers of an image before.
    fn input_len(&self) -> usize {
        self.inputs * self.size[0] * self.size[1]
    }

    /// Numbers of an image after all.
    pub(super) fn output_len(&self, after: After) -> usize {
        let [rows, columns] = after.size(self.output_size());
        self.outputs * rows * columns
    }

    fn taps(&self) -> usize {
        self.inputs * self.kernel[0] * self.kernel[1]
    }

    fn padded_input(&self) -> Padded {
        Padded {
            channels: self.inputs,
            size: self.size,
            before: self.padding,
            padded: [0, 1].map(|d| self.size[d] + 2 * self.padding[d]),
        }
    }

    /// Where the kernel's numbers lie, in the order of a weight's memory.
    fn tap_offsets(&self, input: &Padded) -> Vec<usize> {
        let mut taps = Vec::with_capacity(self.taps());
        for c in 0..self.inputs {
            for k in 0..self.kernel[0] {
                taps.extend(
                    (0..self.kernel[1]).map(|l| (c * input.padded[0] + k) * input.padded[1] + l),
                );
            }
        }
        taps
    }
}

/// `y[o] = b[o] + sum_{c,k,l} w[o,c,k,l] x[c, s i + k - p, s j + l - p]` for each image, and what comes `after`. The `plan` is
/// [`Plan::forward`] of `w`.
pub(super) fn forward(
    x: &[f32],
    plan: &Plan,
    b: &[f32],
    g: Geometry,
    after: After,
) -> (Vec<f32>, Codes) {
    let images = x.len() / plan.input.image_len();
    let pooled = g.output_len(after);
    let mut y = vec![0.0; images * pooled];
    let coded = if after == After::ReluPool { pooled } else { 0 };
    let mut codes = vec![[0; 4]; images.div_ceil(4) * coded];
    let lanes = block_size(images, threads());
    // Without codes there is nothing to cut, and a block has none.
    let mut parts: Vec<&mut [[u8; 4]]> = codes.chunks_mut((lanes / 4 * coded).max(1)).collect();
    parts.resize_with(images.div_ceil(lanes), Default::default);
    y.par_chunks_mut(lanes * pooled)
        .zip(x.par_chunks(lanes * plan.input.image_len()))
        .zip(parts)
        .for_each(|((y, x), codes)| {
            let source = Source {
                values: Upstream::Plain(x),
                first: 0,
                images: x.len() / plan.input.image_len(),
            };
            AutoArch::new().dispatch(Block {
                plan,
                bias: b,
                source,
                after,
                to: y,
                codes,
            })
        });
    (y, codes)
}

/// The gradient by `x` of `sum(y * dy)`. The `plan` is [`Plan::input_gradient`] of `w`.
pub(super) fn input_gradient(dy: Upstream<'_>, images: usize, plan: &Plan) -> Vec<f32> {
    let bias = vec![0.0; plan.channels];
    let mut dx = vec![0.0; images * plan.out_len()];
    let lanes = block_size(images, threads());
    dx.par_chunks_mut(lanes * plan.out_len())
        .enumerate()
        .for_each(|(block, to)| {
            let source = Source {
                values: dy,
                first: block * lanes,
                images: to.len() / plan.out_len(),
            };
            AutoArch::new().dispatch(Block {
                plan,
                bias: &bias,
                source,
                after: After::Nothing,
                to,
                codes: &mut [],
            })
        });
    dx
}

/// The gradients by `w` and `b` of `sum(y * dy)`.
pub(super) fn weight_gradient(x: &[f32], dy: Upstream<'_>, g: Geometry) -> (Vec<f32>, Vec<f32>) {
    let images = x.len() / g.input_len();
    let x = Upstream::Plain(x);
    match block_size(images, 1) {
        4 => weight_gradient_by::<4>(x, dy, images, g),
        8 => weight_gradient_by::<8>(x, dy, images, g),
        _ => weight_gradient_by::<16>(x, dy, images, g),
    }
}

/// Each sum runs over all images in one order: it depends on no number of threads.
fn weight_gradient_by<const L: usize>(
    x: Upstream<'_>,
    dy: Upstream<'_>,
    images: usize,
    g: Geometry,
) -> (Vec<f32>, Vec<f32>) {
    let input = g.padded_input();
    let size = g.output_size();
    let output = Padded {
        channels: g.outputs,
        size,
        before: [0, 0],
        padded: size,
    };
    let turned = |values, first, grid| {
        let images = L.min(images - first);
        let source = Source {
            values,
            first,
            images,
        };
        AutoArch::new().dispatch(Turn::<L> { source, grid })
    };
    let blocks: Vec<_> = (0..images.div_ceil(L))
        .into_par_iter()
        .map(|block| [turned(x, block * L, &input), turned(dy, block * L, &output)])
        .collect();
    let taps = g.tap_offsets(&input);
    let (mut dw, mut db) = (vec![0.0; g.outputs * taps.len()], vec![0.0; g.outputs]);
    // Groups of channels that are summed by one thread read what it has in its cache; each thread has two jobs at least.
    let groups = g.outputs.div_ceil(CHANNELS) / (2 * threads());
    let channels = CHANNELS * groups.clamp(1, GROUPS);
    dw.par_chunks_mut(channels * taps.len())
        .zip(db.par_chunks_mut(channels))
        .enumerate()
        .for_each(|(job, (dw, db))| {
            AutoArch::new().dispatch(Dots {
                blocks: &blocks,
                taps: &taps,
                first: job * channels,
                size,
                steps: [g.stride[0] * input.padded[1], g.stride[1]],
                dw,
                db,
            })
        });
    (dw, db)
}

/// A grid of numbers per channel with zeros around it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Padded {
    pub(super) channels: usize,
    pub(super) size: [usize; 2],
    pub(super) before: [usize; 2],
    pub(super) padded: [usize; 2],
}

impl Padded {
    fn len(&self) -> usize {
        self.channels * self.padded[0] * self.padded[1]
    }

    pub(super) fn image_len(&self) -> usize {
        self.channels * self.size[0] * self.size[1]
    }

    /// Zeros around the images.
    #[inline(always)]
    pub(super) fn clear_around<const L: usize>(&self, to: &mut [Lanes<L>]) {
        if self.padded == self.size {
            return;
        }
        let [above, left] = self.before;
        let [rows, columns] = self.size;
        for (row, to) in to.chunks_exact_mut(self.padded[1].max(1)).enumerate() {
            let row = row % self.padded[0];
            if row < above || row >= above + rows {
                to.fill([0.0; L]);
            } else {
                to[..left].fill([0.0; L]);
                to[left + columns..].fill([0.0; L]);
            }
        }
    }

    /// The images `from` (at most `L`) turned into lanes; lanes without an image are zero.
    #[inline(always)]
    pub(super) fn gather<const L: usize>(&self, from: &[f32], to: &mut [Lanes<L>]) {
        if self.padded == self.size && self.size[0] * self.channels > 1 {
            // Without zeros in between it is one long row.
            let size = [1, self.image_len()];
            let row = Self {
                channels: 1,
                size,
                before: [0, 0],
                padded: size,
            };
            return row.gather_rows(from, to);
        }
        self.gather_rows(from, to);
    }

    #[inline(always)]
    fn gather_rows<const L: usize>(&self, from: &[f32], to: &mut [Lanes<L>]) {
        let [rows, columns] = self.size;
        let zeros = vec![0.0; columns];
        let stride = self.image_len();
        let images = from.len() / stride;
        for row in 0..self.channels * rows {
            let (channel, i) = (row / rows, row % rows);
            let start =
                (channel * self.padded[0] + i + self.before[0]) * self.padded[1] + self.before[1];
            let to = &mut to[start..start + columns];
            for quarter in 0..L / 4 {
                let mut source = [&zeros[..columns]; 4];
                for (q, source) in source.iter_mut().enumerate() {
                    let image = quarter * 4 + q;
                    if image < images {
                        *source = &from[image * stride + row * columns..][..columns];
                    }
                }
                if columns < 4 {
                    for (at, to) in to.iter_mut().enumerate() {
                        for (q, source) in source.iter().enumerate() {
                            to[quarter * 4 + q] = source[at];
                        }
                    }
                    continue;
                }
                let mut at = 0;
                while at < columns {
                    // The last four overlap those before them.
                    let first = at.min(columns - 4);
                    let [a, b, c, d] = source;
                    let four = transpose(
                        four(a, first),
                        four(b, first),
                        four(c, first),
                        four(d, first),
                    );
                    for (to, four) in to[first..first + 4].iter_mut().zip(four) {
                        to[quarter * 4..quarter * 4 + 4].copy_from_slice(&four);
                    }
                    at = first + 4;
                }
            }
        }
    }
}

/// Lanes turned back into the images of `to` (at most `L`).
#[inline(always)]
fn scatter<const L: usize>(from: &[Lanes<L>], to: &mut [f32]) {
    let length = from.len();
    let mut images = to.chunks_exact_mut(length);
    for quarter in 0..L / 4 {
        let mut rest = images.by_ref().take(4);
        match [rest.next(), rest.next(), rest.next(), rest.next()] {
            [Some(a), Some(b), Some(c), Some(d)] if length >= 4 => {
                let mut at = 0;
                while at < length {
                    let first = at.min(length - 4);
                    let (block, q) = (&from[first..first + 4], quarter * 4);
                    let turned = transpose(
                        four(&block[0], q),
                        four(&block[1], q),
                        four(&block[2], q),
                        four(&block[3], q),
                    );
                    a[first..first + 4].copy_from_slice(&turned[0]);
                    b[first..first + 4].copy_from_slice(&turned[1]);
                    c[first..first + 4].copy_from_slice(&turned[2]);
                    d[first..first + 4].copy_from_slice(&turned[3]);
                    at = first + 4;
                }
            }
            few => {
                for (q, to) in few.into_iter().flatten().enumerate() {
                    for (to, from) in to.iter_mut().zip(from) {
                        *to = from[quarter * 4 + q];
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn four(values: &[f32], at: usize) -> [f32; 4] {
    let v = &values[at..at + 4];
    [v[0], v[1], v[2], v[3]]
}

/// In two steps of pairs, which LLVM recognises as shuffles.
#[inline(always)]
fn transpose(a: [f32; 4], b: [f32; 4], c: [f32; 4], d: [f32; 4]) -> [[f32; 4]; 4] {
    let (ab, ab2) = ([a[0], b[0], a[1], b[1]], [a[2], b[2], a[3], b[3]]);
    let (cd, cd2) = ([c[0], d[0], c[1], d[1]], [c[2], d[2], c[3], d[3]]);
    [
        [ab[0], ab[1], cd[0], cd[1]],
        [ab[2], ab[3], cd[2], cd[3]],
        [ab2[0], ab2[1], cd2[0], cd2[1]],
        [ab2[2], ab2[3], cd2[2], cd2[3]],
    ]
}

/// Weighted sums of shifted copies of a padded input:
/// `out[o, start + i row + j column] = bias[o] + sum_t weight[o,t] in[t + i in_row + j in_column]`.
#[derive(Debug)]
struct Sweep {
    /// Offsets into the padded input.
    taps: Vec<usize>,
    /// So many taps each are one beside the other.
    run: usize,
    /// `[block of channels][tap][channel of the block]`, blocks as [`together`] says; channels that fill no block follow,
    /// `[channel][tap]`.
    weights: Vec<f32>,
    size: [usize; 2],
    in_steps: [usize; 2],
    start: usize,
    out_steps: [usize; 2],
}

/// The weights of a sweep, from those of a convolution: tap `t` of channel `c` is `w[firsts[t] + c stride]`.
fn pack(w: &[f32], channels: usize, firsts: &[usize], stride: usize) -> Vec<f32> {
    match together(channels) {
        MORE_CHANNELS => pack_by::<MORE_CHANNELS>(w, channels, firsts, stride),
        _ => pack_by::<CHANNELS>(w, channels, firsts, stride),
    }
}

fn pack_by<const C: usize>(
    w: &[f32],
    channels: usize,
    firsts: &[usize],
    stride: usize,
) -> Vec<f32> {
    let (taps, whole) = (firsts.len(), channels - channels % C);
    let mut packed = vec![0.0; channels * taps];
    let (blocks, single) = packed.split_at_mut(whole * taps);
    let block = |(block, to): (usize, &mut [f32])| {
        for (to, first) in to.as_chunks_mut::<C>().0.iter_mut().zip(firsts) {
            let from = &w[first + block * C * stride..][..(C - 1) * stride + 1];
            *to = std::array::from_fn(|c| from[c * stride]);
        }
    };
    let length = (C * taps).max(1);
    // The weights of a small layer are packed sooner than another thread wakes.
    match blocks.len() {
        0..SMALL => blocks.chunks_mut(length).enumerate().for_each(block),
        _ => blocks.par_chunks_mut(length).enumerate().for_each(block),
    }
    for (c, to) in single.chunks_exact_mut(taps.max(1)).enumerate() {
        for (to, first) in to.iter_mut().zip(firsts) {
            *to = w[first + (whole + c) * stride];
        }
    }
    packed
}

/// How many of so many channels are computed together on this machine.
fn together(channels: usize) -> usize {
    match (widest(), channels) {
        (16.., MORE_CHANNELS..) => MORE_CHANNELS,
        _ => CHANNELS,
    }
}

/// Not fewer taps than this are summed up at a time.
const LEAST_TAPS: usize = 64;

/// Bytes of input that are sure to stay in the second cache, which has 256 kB or more.
const NEAR: usize = 128 << 10;

/// The same of the first cache, of 32 kB or more.
const NEAREST: usize = 24 << 10;

/// Sums of a weight gradient are read and written for each part of the output: not for fewer positions.
const LEAST_POSITIONS: usize = 64;

/// Groups of channels that go through the same taps together, as many as are worth it.
const GROUPS: usize = 4;

/// Groups of taps whose sums are held at a time.
const TAPS_AT_A_TIME: usize = 64;

/// Fewer weights than this are packed by one thread.
const SMALL: usize = 1 << 15;

/// What is done to each block of images: pad, sweep, write.
#[derive(Debug)]
pub(super) struct Plan {
    input: Padded,
    channels: usize,
    out_size: [usize; 2],
    sweeps: Vec<Sweep>,
}

impl Plan {
    /// That of a convolution with weights `w`.
    pub(super) fn forward(w: &[f32], g: Geometry) -> Self {
        let input = g.padded_input();
        let out_size = g.output_size();
        let taps = g.tap_offsets(&input);
        let sweep = Sweep {
            weights: pack(
                w,
                g.outputs,
                &(0..taps.len()).collect::<Vec<_>>(),
                taps.len(),
            ),
            taps,
            run: g.kernel[1],
            size: out_size,
            in_steps: [g.stride[0] * input.padded[1], g.stride[1]],
            start: 0,
            out_steps: [out_size[1], 1],
        };
        Self {
            input,
            channels: g.outputs,
            out_size,
            sweeps: vec![sweep],
        }
    }

    /// That of the gradient by its input.
    ///
    /// Pixel `i` of the input meets kernel row `k` at output row `(i + p - k) / s` where that is whole. The pixels with
    /// `(i + p) mod s = a` meet the rows `k = a + s m` only: at output rows `(i + p - a) / s - m`, a convolution without
    /// stride of the padded output gradient.
    pub(super) fn input_gradient(w: &[f32], g: Geometry) -> Self {
        let out = g.output_size();
        // m is at most this, and so many zeros stand before the first row.
        let before = [0, 1].map(|d| g.kernel[d].div_ceil(g.stride[d]) - 1);
        let padded = [0, 1].map(|d| {
            let last = (g.size[d] - 1 + g.padding[d]) / g.stride[d];
            before[d] + out[d].max(last + 1)
        });
        let input = Padded {
            channels: g.outputs,
            size: out,
            before,
            padded,
        };
        let mut sweeps = Vec::new();
        for a in 0..g.stride[0] {
            for b in 0..g.stride[1] {
                sweeps.extend(Self::phase(w, g, &input, [a, b]));
            }
        }
        Self {
            input,
            channels: g.inputs,
            out_size: g.size,
            sweeps,
        }
    }

    fn phase(w: &[f32], g: Geometry, input: &Padded, phase: [usize; 2]) -> Option<Sweep> {
        // The first pixel of this phase, and the output row that it meets with m = 0.
        let first =
            [0, 1].map(|d| (phase[d] + g.stride[d] - g.padding[d] % g.stride[d]) % g.stride[d]);
        let meets = [0, 1].map(|d| (first[d] + g.padding[d] - phase[d]) / g.stride[d]);
        let size = [0, 1].map(|d| g.size[d].saturating_sub(first[d]).div_ceil(g.stride[d]));
        if size.contains(&0) {
            return None;
        }
        let [rows, columns] = [0, 1].map(|d| {
            let kernel = (phase[d]..g.kernel[d]).step_by(g.stride[d]);
            let place = meets[d] + input.before[d];
            let meets = kernel.enumerate().map(move |(m, k)| (k, place - m));
            // From left to right, as they lie in memory.
            meets.rev().collect::<Vec<_>>()
        });
        let area = g.kernel[0] * g.kernel[1];
        let (mut taps, mut firsts) = (Vec::new(), Vec::new());
        for o in 0..g.outputs {
            for &(k, i) in &rows {
                for &(l, j) in &columns {
                    taps.push((o * input.padded[0] + i) * input.padded[1] + j);
                    firsts.push(o * g.inputs * area + k * g.kernel[1] + l);
                }
            }
        }
        Some(Sweep {
            weights: pack(w, g.inputs, &firsts, area),
            taps,
            run: columns.len(),
            size,
            in_steps: [input.padded[1], 1],
            start: first[0] * g.size[1] + first[1],
            out_steps: [g.stride[0] * g.size[1], g.stride[1]],
        })
    }

    fn out_len(&self) -> usize {
        self.channels * self.out_size[0] * self.out_size[1]
    }
}

/// Numbers in the widest vector of this machine.
fn widest() -> usize {
    struct Width;
    impl WithSimd for Width {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self) -> usize {
            f32::lanes::<S>()
        }
    }
    AutoArch::new().dispatch(Width)
}

/// Lanes of the blocks that `images` are cut into: a vector's. Vectors of 16 lanes are left for two of 8 where that makes up to `parts`
/// blocks, since many machines do a wide one in two halves, and where they would be half empty. Less than 8 are for machines
/// that have no more: elsewhere a block of 4 takes no less time than one of 8.
fn block_size(images: usize, parts: usize) -> usize {
    match widest() {
        16.. if images > 8 && images.div_ceil(16) >= parts => 16,
        8.. => 8,
        _ => 4,
    }
}

/// `a * b + c`, in one instruction where there is one: elsewhere it would be a call of a slow function.
#[inline(always)]
fn mul_add<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if f32::lanes::<S>() >= 8 || cfg!(target_arch = "aarch64") {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

thread_local! {
    /// Memory for the blocks of a thread, kept from one to the next: from the system it comes page by page and zeroed.
    static SPARE: Cell<[Vec<f32>; 2]> = const { Cell::new([Vec::new(), Vec::new()]) };
}

/// So many lanes of spare memory, whatever is in them.
fn lent<const L: usize>(spare: &mut Vec<f32>, length: usize) -> &mut [Lanes<L>] {
    spare.resize(length * L, 0.0);
    spare.as_chunks_mut().0
}

/// A block of at most 16 images.
struct Block<'a> {
    plan: &'a Plan,
    /// Of each channel.
    bias: &'a [f32],
    source: Source<'a>,
    after: After,
    to: &'a mut [f32],
    codes: &'a mut [[u8; 4]],
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        match self.source.images {
            0..=4 if f32::lanes::<S>() < 8 => self.run::<S, 4>(),
            0..=8 => self.run::<S, 8>(),
            _ => self.run::<S, 16>(),
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn run<S: Simd, const L: usize>(self) {
        let plan = self.plan;
        let [mut first, mut second] = SPARE.take();
        let input = lent::<L>(&mut first, plan.input.len());
        self.source.turn(&plan.input, input);
        let output = lent::<L>(&mut second, plan.out_len());
        if plan.sweeps.iter().any(|sweep| sweep.taps.is_empty()) {
            output.fill([0.0; L]);
        }
        for sweep in &plan.sweeps {
            match together(plan.channels) {
                MORE_CHANNELS => {
                    plan.sweep::<S, L, MORE_CHANNELS>(sweep, self.bias, input, output);
                }
                _ => plan.sweep::<S, L, CHANNELS>(sweep, self.bias, input, output),
            }
        }
        match self.after {
            After::Nothing => scatter(output, self.to),
            After::Relu => {
                after::relu(output);
                scatter(output, self.to);
            }
            After::ReluPool => {
                // The pooled output takes the place of the input.
                let pooled = lent::<L>(&mut first, self.to.len() / self.source.images);
                after::relu_pool(output, plan.out_size, pooled, self.codes);
                scatter(pooled, self.to);
            }
        }
        SPARE.set([first, second]);
    }
}

impl Plan {
    /// How many taps are summed up at a time, so that what they read of the input, for one row or for all, stays in so many bytes.
    #[inline(always)]
    fn part<const L: usize>(&self, sweep: &Sweep, all_rows: bool, room: usize) -> usize {
        let of_channel = (sweep.taps.len() / self.input.channels.max(1)).max(1);
        let plane = self.input.padded[0] * self.input.padded[1];
        let length = match all_rows {
            true => plane,
            // From the first number of the first tap to the last of the last.
            false => {
                let taps = &sweep.taps[..of_channel.min(sweep.taps.len())];
                let (low, high) = (taps.iter().min(), taps.iter().max());
                let across = sweep.size[1] * sweep.in_steps[1];
                high.zip(low).map_or(0, |(high, low)| high - low) + across
            }
        };
        let channels = room / (length * size_of::<Lanes<L>>()).max(1);
        // Sums are read and written for each part: not for a few taps.
        of_channel * channels.max(LEAST_TAPS.div_ceil(of_channel))
    }

    #[inline(always)]
    fn sweep<S: Simd, const L: usize, const C: usize>(
        &self,
        sweep: &Sweep,
        bias: &[f32],
        input: &[Lanes<L>],
        out: &mut [Lanes<L>],
    ) {
        let taps = sweep.taps.len();
        let blocks = self.channels / C;
        let (packed, single) = sweep.weights.split_at(blocks * C * taps);
        let rows = sweep.size[0];
        let area = self.out_size[0] * self.out_size[1];
        // What is larger is read once: the weights of many channels, or the rows of a large image.
        let weights_once = packed.len() > input.len() * L;
        let part = self.part::<L>(sweep, weights_once, NEAR);
        for start in (0..taps.max(1)).step_by(part) {
            let part = start..taps.min(start + part);
            for n in 0..rows * blocks {
                let (block, i) = if weights_once {
                    (n / rows, n % rows)
                } else {
                    (n % blocks, n / blocks)
                };
                let weights = packed[block * C * taps..].as_chunks::<C>().0;
                let row = Row {
                    sweep,
                    taps: &sweep.taps[part.clone()],
                    weights: &weights[part.clone()],
                    bias: bias.as_chunks::<C>().0[block],
                    goes_on: start > 0,
                    input: &input[i * sweep.in_steps[0]..],
                    area,
                };
                row.run_block::<S>(
                    &mut out[block * C * area + sweep.start + i * sweep.out_steps[0]..],
                );
            }
        }
        // One channel alone reads much for each sum: from the first cache.
        let part = match single.is_empty() {
            true => taps.max(1),
            false => self.part::<L>(sweep, false, NEAREST),
        };
        for start in (0..taps.max(1)).step_by(part) {
            let part = start..taps.min(start + part);
            for (c, weights) in single.chunks_exact(taps.max(1)).enumerate() {
                let o = blocks * C + c;
                for i in 0..rows {
                    let row = Row {
                        sweep,
                        taps: &sweep.taps[part.clone()],
                        weights: &weights.as_chunks::<1>().0[part.clone()],
                        bias: [bias[o]],
                        goes_on: start > 0,
                        input: &input[i * sweep.in_steps[0]..],
                        area,
                    };
                    row.run_single::<S>(
                        &mut out[o * area + sweep.start + i * sweep.out_steps[0]..],
                    );
                }
            }
        }
    }
}

/// One output row of `C` channels, or of some of the taps' part in it.
struct Row<'a, const L: usize, const C: usize> {
    sweep: &'a Sweep,
    taps: &'a [usize],
    weights: &'a [[f32; C]],
    bias: [f32; C],
    /// Whether the sums of earlier taps are there already.
    goes_on: bool,
    input: &'a [Lanes<L>],
    area: usize,
}

impl<const L: usize, const C: usize> Row<'_, L, C> {
    /// Of one channel.
    #[inline(always)]
    fn run_single<S: Simd>(&self, out: &mut [Lanes<L>]) {
        let columns = self.sweep.size[1];
        let mut at = 0;
        while columns - at >= 8 {
            self.columns::<S, 8>(at, out);
            at += 8;
        }
        while columns - at >= 4 {
            self.columns::<S, 4>(at, out);
            at += 4;
        }
        while at < columns {
            self.columns::<S, 1>(at, out);
            at += 1;
        }
    }

    /// Two columns at a time. With three, AVX2 has no register left for what they read in common.
    #[inline(always)]
    fn run_block<S: Simd>(&self, out: &mut [Lanes<L>]) {
        let columns = self.sweep.size[1];
        let mut at = 0;
        while columns - at >= 2 {
            self.columns::<S, 2>(at, out);
            at += 2;
        }
        if at < columns {
            self.columns::<S, 1>(at, out);
        }
    }

    /// `P` columns from `first` on.
    #[inline(always)]
    fn columns<S: Simd, const P: usize>(&self, first: usize, out: &mut [Lanes<L>]) {
        let in_step = self.sweep.in_steps[1];
        let input = &self.input[first * in_step..];
        let out = &mut out[first * self.sweep.out_steps[1]..];
        match (f32::lanes::<S>() == L, in_step, self.sweep.run) {
            (false, ..) => self.tile_of_lanes::<S, P>(input, out),
            (true, 1, 2 | 4) => self.tile_of_runs::<S, P, 2, 1>(input, out),
            (true, 1, 3) => self.tile_of_runs::<S, P, 3, 1>(input, out),
            (true, 1, 5) => self.tile_of_runs::<S, P, 5, 1>(input, out),
            (true, 2, 2 | 4) => self.tile_of_runs::<S, P, 2, 2>(input, out),
            (true, 2, 3) => self.tile_of_runs::<S, P, 3, 2>(input, out),
            (true, ..) => self.tile_of_vectors::<S, P>(input, out),
        }
    }

    /// What the sums begin with.
    #[inline(always)]
    fn begun<S: Simd, const P: usize>(&self, out: &[Lanes<L>]) -> [[Vector<S, f32>; P]; C] {
        let mut sums = [[0.0.splat::<S>(); P]; C];
        for c in 0..C {
            for p in 0..P {
                sums[c][p] = match self.goes_on {
                    true => vector::<S, L>(&out[c * self.area + p * self.sweep.out_steps[1]]),
                    false => self.bias[c].splat::<S>(),
                };
            }
        }
        sums
    }

    #[inline(always)]
    fn write<S: Simd, const P: usize>(&self, sums: [[Vector<S, f32>; P]; C], out: &mut [Lanes<L>]) {
        for c in 0..C {
            for p in 0..P {
                out[c * self.area + p * self.sweep.out_steps[1]] = lanes::<S, L>(sums[c][p]);
            }
        }
    }

    /// Vectors by name: of so many sums in arrays, LLVM makes no registers.
    #[inline(always)]
    fn tile_of_vectors<S: Simd, const P: usize>(&self, input: &[Lanes<L>], out: &mut [Lanes<L>]) {
        let step = self.sweep.in_steps[1];
        let mut sums = self.begun::<S, P>(out);
        for (&tap, weights) in self.taps.iter().zip(self.weights) {
            let window = &input[tap..=tap + (P - 1) * step];
            let mut here = [0.0.splat::<S>(); P];
            for p in 0..P {
                here[p] = vector::<S, L>(&window[p * step]);
            }
            for c in 0..C {
                let weight = weights[c].splat::<S>();
                for p in 0..P {
                    sums[c][p] = weight.mul_add(here[p], sums[c][p]);
                }
            }
        }
        self.write(sums, out);
    }

    /// [`Self::tile_of_vectors`] with `R` taps at a time, for columns `T` apart: they read most of their inputs in common, and are found to be
    /// within bounds once.
    #[inline(always)]
    fn tile_of_runs<S: Simd, const P: usize, const R: usize, const T: usize>(
        &self,
        input: &[Lanes<L>],
        out: &mut [Lanes<L>],
    ) {
        let mut sums = self.begun::<S, P>(out);
        let taps = self.taps.as_chunks::<R>().0.iter();
        for (taps, weights) in taps.zip(self.weights.as_chunks::<R>().0) {
            let window = &input[taps[0]..][..R + (P - 1) * T];
            for r in 0..R {
                let mut here = [0.0.splat::<S>(); P];
                for p in 0..P {
                    here[p] = vector::<S, L>(&window[r + p * T]);
                }
                for c in 0..C {
                    let weight = weights[r][c].splat::<S>();
                    for p in 0..P {
                        sums[c][p] = weight.mul_add(here[p], sums[c][p]);
                    }
                }
            }
        }
        self.write(sums, out);
    }

    #[inline(always)]
    fn tile_of_lanes<S: Simd, const P: usize>(&self, input: &[Lanes<L>], out: &mut [Lanes<L>]) {
        let (step, out_step) = (self.sweep.in_steps[1], self.sweep.out_steps[1]);
        let mut sums = [[[0.0; L]; P]; C];
        for (c, sums) in sums.iter_mut().enumerate() {
            for (p, sum) in sums.iter_mut().enumerate() {
                *sum = match self.goes_on {
                    true => out[c * self.area + p * out_step],
                    false => [self.bias[c]; L],
                };
            }
        }
        for (&tap, weights) in self.taps.iter().zip(self.weights) {
            let window = &input[tap..=tap + (P - 1) * step];
            for p in 0..P {
                let x = window[p * step];
                for c in 0..C {
                    for l in 0..L {
                        sums[c][p][l] = mul_add::<S>(weights[c], x[l], sums[c][p][l]);
                    }
                }
            }
        }
        for (c, sums) in sums.iter().enumerate() {
            for (p, sum) in sums.iter().enumerate() {
                out[c * self.area + p * out_step] = *sum;
            }
        }
    }
}

/// As many lanes as a vector has, as one.
#[inline(always)]
fn vector<S: Simd, const L: usize>(lanes: &Lanes<L>) -> Vector<S, f32> {
    bytemuck::pod_read_unaligned(bytemuck::bytes_of(lanes))
}

#[inline(always)]
fn lanes<S: Simd, const L: usize>(vector: Vector<S, f32>) -> Lanes<L> {
    bytemuck::pod_read_unaligned(bytemuck::bytes_of(&vector))
}

/// Images turned into lanes.
struct Turn<'a, const L: usize> {
    source: Source<'a>,
    grid: &'a Padded,
}

impl<const L: usize> WithSimd for Turn<'_, L> {
    type Output = Vec<Lanes<L>>;

    #[inline(always)]
    fn with_simd<S: Simd>(self) -> Self::Output {
        let mut lanes = vec![[0.0; L]; self.grid.len()];
        self.source.turn(self.grid, &mut lanes);
        lanes
    }
}

/// Sums over all images, positions and lanes of `dy[channel] * x[tap]`, for some channels and each tap; and of `dy[channel]`.
struct Dots<'a, const L: usize> {
    /// `x` and `dy` of each block.
    blocks: &'a [[Vec<Lanes<L>>; 2]],
    taps: &'a [usize],
    /// The first channel.
    first: usize,
    size: [usize; 2],
    steps: [usize; 2],
    dw: &'a mut [f32],
    db: &'a mut [f32],
}

impl<const L: usize> WithSimd for Dots<'_, L> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        // Four channels by five taps fill the registers of AVX-512, by two those of AVX2.
        match (f32::lanes::<S>() == L, L) {
            (true, 16) => self.run::<S, 5>(),
            _ => self.run::<S, 2>(),
        }
    }
}

impl<const L: usize> Dots<'_, L> {
    #[inline(always)]
    fn run<S: Simd, const T: usize>(self) {
        let area = self.size[0] * self.size[1];
        let channels = self.db.len();
        for (c, db) in self.db.iter_mut().enumerate() {
            let mut sum = [0.0; L];
            for [_, dy] in self.blocks {
                for pixel in &dy[(self.first + c) * area..][..area] {
                    sum.iter_mut().zip(pixel).for_each(|(sum, dy)| *sum += dy);
                }
            }
            *db = total(sum);
        }
        // What is missing in a last group of taps, or of channels, is computed twice rather than apart.
        let groups: Vec<[usize; CHANNELS]> = (0..channels)
            .step_by(CHANNELS)
            .map(|group| {
                std::array::from_fn(|c| (self.first + (group + c).min(channels - 1)) * area)
            })
            .collect();
        let all = self.taps.len();
        for first in (0..all).step_by(T * TAPS_AT_A_TIME) {
            let taps = &self.taps[first..all.min(first + T * TAPS_AT_A_TIME)];
            let length = taps.len().div_ceil(T);
            let mut sums = vec![[[[0.0; L]; CHANNELS]; T]; groups.len() * length];
            for part in self.parts() {
                for (sums, group) in sums.chunks_exact_mut(length).zip(&groups) {
                    for (sums, chosen) in sums.iter_mut().zip(taps.chunks(T)) {
                        let taps = std::array::from_fn(|i| chosen[i.min(chosen.len() - 1)]);
                        match f32::lanes::<S>() == L {
                            true => part.dot::<S, T>(taps, *group, sums),
                            false => part.dot_of_lanes::<S, T>(taps, *group, sums),
                        }
                    }
                }
            }
            let groups = self.dw.chunks_mut(CHANNELS * all);
            for (sums, dw) in sums.chunks_exact(length).zip(groups) {
                for (t, at) in (first..first + taps.len()).enumerate() {
                    let totals = totals(&sums[t / T][t % T]);
                    for (dw, total) in dw[at..].iter_mut().step_by(all).zip(totals) {
                        *dw = total;
                    }
                }
            }
        }
    }

    /// All rows of all blocks, in order, in parts whose `dy` stays in the first cache while tap after tap is gone through.
    fn parts(&self) -> impl Iterator<Item = Part<'_, L>> {
        let [rows, columns] = self.size;
        let row = CHANNELS * columns * size_of::<Lanes<L>>();
        let fit = (NEAREST / 2 / row).max(LEAST_POSITIONS.div_ceil(columns));
        let (blocks, rows_at_once) = ((fit / rows).max(1), fit.min(rows));
        self.blocks.chunks(blocks).flat_map(move |blocks| {
            (0..rows).step_by(rows_at_once).map(move |row| Part {
                blocks,
                rows: row..rows.min(row + rows_at_once),
                columns,
                steps: self.steps,
            })
        })
    }
}

/// Rows of the output, the same ones of some blocks.
struct Part<'a, const L: usize> {
    blocks: &'a [[Vec<Lanes<L>>; 2]],
    rows: Range<usize>,
    columns: usize,
    steps: [usize; 2],
}

impl<const L: usize> Part<'_, L> {
    /// Goes on with the sums of `dy[channel] * x[tap]`.
    #[inline(always)]
    fn dot<S: Simd, const T: usize>(
        &self,
        taps: [usize; T],
        channels: [usize; CHANNELS],
        to: &mut [[Lanes<L>; CHANNELS]; T],
    ) {
        let (columns, [row, column]) = (self.columns, self.steps);
        // Vectors by name: of so many sums in arrays, LLVM makes no registers.
        let mut sums = [[0.0.splat::<S>(); T]; CHANNELS];
        for c in 0..CHANNELS {
            for t in 0..T {
                sums[c][t] = vector::<S, L>(&to[t][c]);
            }
        }
        for [x, dy] in self.blocks {
            for i in self.rows.clone() {
                let (at, window) = (i * row, (columns - 1) * column + 1);
                let mut x_rows = [&x[..window]; T];
                for t in 0..T {
                    x_rows[t] = &x[taps[t] + at..][..window];
                }
                let mut rows = [&dy[..columns]; CHANNELS];
                for c in 0..CHANNELS {
                    rows[c] = &dy[channels[c] + i * columns..][..columns];
                }
                for j in 0..columns {
                    let mut here = [0.0.splat::<S>(); T];
                    for t in 0..T {
                        here[t] = vector::<S, L>(&x_rows[t][j * column]);
                    }
                    for c in 0..CHANNELS {
                        let dy = vector::<S, L>(&rows[c][j]);
                        for t in 0..T {
                            sums[c][t] = dy.mul_add(here[t], sums[c][t]);
                        }
                    }
                }
            }
        }
        for c in 0..CHANNELS {
            for t in 0..T {
                to[t][c] = lanes::<S, L>(sums[c][t]);
            }
        }
    }

    /// [`Self::dot`] where the lanes are no vector of this machine.
    #[inline(always)]
    fn dot_of_lanes<S: Simd, const T: usize>(
        &self,
        taps: [usize; T],
        channels: [usize; CHANNELS],
        to: &mut [[Lanes<L>; CHANNELS]; T],
    ) {
        let (columns, [row, column]) = (self.columns, self.steps);
        let mut sums = *to;
        for [x, dy] in self.blocks {
            for i in self.rows.clone() {
                let (at, window) = (i * row, (columns - 1) * column + 1);
                let mut x_rows = [&x[..window]; T];
                for t in 0..T {
                    x_rows[t] = &x[taps[t] + at..][..window];
                }
                let mut rows = [&dy[..columns]; CHANNELS];
                for c in 0..CHANNELS {
                    rows[c] = &dy[channels[c] + i * columns..][..columns];
                }
                for j in 0..columns {
                    for c in 0..CHANNELS {
                        let dy = rows[c][j];
                        for t in 0..T {
                            let x = x_rows[t][j * column];
                            for l in 0..L {
                                sums[t][c][l] = mul_add::<S>(dy[l], x[l], sums[t][c][l]);
                            }
                        }
                    }
                }
            }
        }
        *to = sums;
    }
}

/// [`total`] of each, together.
#[inline(always)]
fn totals<const L: usize>(sums: &[Lanes<L>; CHANNELS]) -> [f32; CHANNELS] {
    let mut sums = *sums;
    let mut half = L / 2;
    while half >= 4 {
        for sum in &mut sums {
            for l in 0..half {
                sum[l] += sum[l + half];
            }
        }
        half /= 2;
    }
    let [a, b, c, d] = sums.map(|sum| four(&sum, 0));
    let lanes = transpose(a, b, c, d);
    std::array::from_fn(|i| (lanes[0][i] + lanes[2][i]) + (lanes[1][i] + lanes[3][i]))
}

/// The sum of a vector's lanes, by halves: one after the other would take as long as all products of a small image.
#[inline(always)]
fn total<const L: usize>(mut lanes: Lanes<L>) -> f32 {
    let mut half = L / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
        half /= 2;
    }
    lanes[0]
}
