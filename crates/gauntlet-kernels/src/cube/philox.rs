//! The noise of [`NoiseKey`](crate::NoiseKey), drawn on the device: only the samples' numbers travel there.

use std::f32::consts::{LN_2, SQRT_2, TAU};

use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;
use cubecl::std::tensor::layout::linear::{LinearView, LinearViewMut};

use crate::noise::Words;

/// [`Words`], without the sample.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Name {
    key_0: u32,
    key_1: u32,
    restart: u32,
    step: u32,
    epoch: u32,
}

/// Philox4x32 with ten rounds.
#[cube]
fn philox(name: &Name, block: u32, sample: u32) -> (u32, u32, u32, u32) {
    let mut key_0 = name.key_0;
    let mut key_1 = name.key_1;
    let mut a = name.restart + block;
    let mut b = sample;
    let mut c = name.step;
    let mut d = name.epoch;
    #[unroll]
    for round in 0..10 {
        if comptime!(round > 0) {
            key_0 += 0x9E37_79B9u32;
            key_1 += 0xBB67_AE85u32;
        }
        let first_high = a.mul_hi(0xD251_1F53u32);
        let first_low = a * 0xD251_1F53u32;
        let second_high = c.mul_hi(0xCD9E_8D57u32);
        let second_low = c * 0xCD9E_8D57u32;
        a = second_high ^ b ^ key_0;
        b = second_low;
        c = first_high ^ d ^ key_1;
        d = first_low;
    }
    (a, b, c, d)
}

/// 24 random bits as a number in [0, 1).
#[cube]
fn unit(word: u32) -> f32 {
    f32::cast_from(word >> 8) * 5.960_464_5e-8f32
}

/// The natural logarithm of a number in (0, 1], to 1e-7. That of a GPU may be wrong by 5e-7 near 1, where the radius of a normal
/// number is the root of it.
#[cube]
fn logarithm(x: f32) -> f32 {
    let bits = u32::reinterpret(x);
    let mut exponent = f32::cast_from(bits >> 23) - 127.0f32;
    let mut mantissa = f32::reinterpret((bits & 0x007F_FFFFu32) | 0x3F80_0000u32);
    if mantissa > f32::new(SQRT_2) {
        mantissa *= 0.5f32;
        exponent += 1.0f32;
    }
    // ln m = 2 artanh((m - 1) / (m + 1))
    let s = (mantissa - 1.0f32) / (mantissa + 1.0f32);
    let q = s * s;
    let series = 1.0f32 + q * (1.0f32 / 3.0f32 + q * (0.2f32 + q * (1.0f32 / 7.0f32 + q / 9.0f32)));
    exponent * f32::new(LN_2) + 2.0f32 * s * series
}

/// Cosine and sine of a part of a turn in [0, 1), to 1e-7. Those of a GPU may be wrong by 5e-4.
#[cube]
fn cos_sin(turn: f32) -> (f32, f32) {
    let quarter = (turn * 4.0f32 + 0.5f32).floor();
    let angle = (turn - quarter * 0.25f32) * f32::new(TAU);
    let q = angle * angle;
    let c =
        1.0f32 + q * (-0.5f32 + q * (1.0f32 / 24.0f32 + q * (-1.0f32 / 720.0f32 + q / 40320.0f32)));
    let s = angle * (1.0f32 + q * (-1.0f32 / 6.0f32 + q * (1.0f32 / 120.0f32 - q / 5040.0f32)));
    let quarter = u32::cast_from(quarter) % 4;
    let across = quarter % 2 == 1;
    let (mut x, mut y) = (select(across, s, c), select(across, c, s));
    if quarter == 1 || quarter == 2 {
        x = -x;
    }
    if quarter >= 2 {
        y = -y;
    }
    (x, y)
}

/// Two normal numbers of two uniform ones (Box and Muller).
#[cube]
fn pair(first: u32, second: u32) -> (f32, f32) {
    let radius = (-2.0f32 * logarithm(1.0f32 - unit(first))).sqrt();
    let (x, y) = cos_sin(unit(second));
    (radius * x, radius * y)
}

/// Each unit draws one block of four values of a row of `width`.
#[cube(launch, address_type = "dynamic")]
fn noise_kernel<I: Int>(
    samples: LinearView<'_, I>,
    mut out: LinearViewMut<'_, f32>,
    name: Name,
    width: usize,
    low: f32,
    scale: f32,
    #[comptime] normal: bool,
    #[define(I)] _dtype: ElemType,
) {
    let blocks = width.div_ceil(4);
    let row = ABSOLUTE_POS / blocks;
    let block = ABSOLUTE_POS % blocks;
    if !out.is_in_bounds(row * width) {
        terminate!();
    }
    let (a, b, c, d) = philox(&name, block as u32, u32::cast_from(samples.read(row)));
    let mut four = Array::<f32>::new(4usize);
    if comptime!(normal) {
        let (w, x) = pair(a, b);
        let (y, z) = pair(c, d);
        four[0] = w;
        four[1] = x;
        four[2] = y;
        four[3] = z;
    } else {
        four[0] = low + scale * unit(a);
        four[1] = low + scale * unit(b);
        four[2] = low + scale * unit(c);
        four[3] = low + scale * unit(d);
    }
    let start = row * width + block * 4;
    #[unroll]
    for i in 0..4usize {
        if block * 4 + i < width {
            out.write(start + i, four[i]);
        }
    }
}

/// Uniform numbers from `low` on, or normal ones without a range.
pub(super) fn draw(
    samples: CubeTensor,
    words: Words,
    shape: Vec<usize>,
    range: Option<(f32, f32)>,
) -> CubeTensor {
    let out = empty_device_contiguous_dtype(
        samples.client.clone(),
        samples.device.clone(),
        Shape::from(shape),
        DType::F32,
    );
    let values = out.meta.num_elements();
    if values == 0 {
        return out;
    }
    let rows = out.meta.shape()[0];
    let width = values / rows;
    let units = rows * width.div_ceil(4);
    let dim = CubeDim::new(&out.client, units);
    let [restart, _, step, epoch] = words.counter;
    let (low, scale) = range.unwrap_or_default();
    noise_kernel::launch(
        &out.client,
        calculate_cube_count_elemwise(&out.client, units, dim),
        dim,
        out.required_address_type(),
        samples.clone().into_linear_view(),
        out.clone().into_linear_view(),
        NameLaunch::new(words.key[0], words.key[1], restart, step, epoch),
        width,
        low,
        scale,
        range.is_none(),
        dtype_to_storage_type(samples.dtype),
    );
    out
}
