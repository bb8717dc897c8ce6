//! What BatchNorm by the statistics of a batch needs: sums over all pixels of a channel, and what is made of them.
//!
//! Sums are made in rounds: each round's units add up some rows each, always the same and in the same order.

use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::ops::reshape;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::std::tensor::layout::linear::{LinearView, LinearViewMut};

use super::channels::{channels_first, channels_last};
use super::{elem, elementwise, vector_size};

/// Rows that a unit adds up.
const ROWS: usize = 32;

/// A tensor of `f32` beside `x`.
fn floats<const D: usize>(x: &CubeTensor, shape: [usize; D]) -> CubeTensor {
    let (client, device) = (x.client.clone(), x.device.clone());
    empty_device_contiguous_dtype(client, device, Shape::from(shape), DType::F32)
}

#[cube(launch, address_type = "dynamic")]
fn fold_kernel<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    center: LinearView<'_, Vector<f32, N>>,
    mut out: LinearViewMut<'_, Vector<f32, N>>,
    rows: usize,
    columns: usize,
    each: usize,
    #[comptime] squared: bool,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if !out.is_in_bounds(at) {
        terminate!();
    }
    let column = at % columns;
    let first = at / columns * each;
    let mut sum = Vector::<f32, N>::new(0.0);
    for i in 0..each {
        let row = first + i;
        if row < rows {
            let value = Vector::<f32, N>::cast_from(x.read(row * columns + column));
            if comptime!(squared) {
                let off = value - center.read(column);
                sum += off * off;
            } else {
                sum += value;
            }
        }
    }
    out.write(at, sum);
}

/// One round of sums over the rows of `x: [rows, columns]`, of squares of what is off a `center` if there is one.
fn round(x: CubeTensor, center: Option<&CubeTensor>, [rows, columns]: [usize; 2]) -> CubeTensor {
    let out = floats(&x, [rows.div_ceil(ROWS), columns]);
    let dtype = elem(x.dtype);
    let middle = center.unwrap_or(&out).clone();
    let vector = vector_size(&[&x, &middle, &out]);
    let (count, dim) = elementwise(&out, vector);
    fold_kernel::launch(
        &out.client,
        count,
        dim,
        out.required_address_type(),
        vector,
        x.into_linear_view(),
        middle.into_linear_view(),
        out.clone().into_linear_view(),
        rows,
        columns / vector,
        ROWS,
        center.is_some(),
        dtype,
    );
    out
}

fn fold_with(x: CubeTensor, center: Option<&CubeTensor>, shape: [usize; 2]) -> CubeTensor {
    let [mut rows, columns] = shape;
    let mut sums = round(reshape(x, Shape::from(shape)), center, shape);
    rows = rows.div_ceil(ROWS);
    while rows > 1 {
        sums = round(sums, None, [rows, columns]);
        rows = rows.div_ceil(ROWS);
    }
    reshape(sums, Shape::from([columns]))
}

/// The sums of the columns of `x: [rows, columns]`, in the type of `x`.
pub(crate) fn fold(x: CubeTensor, shape: [usize; 2]) -> CubeTensor {
    let dtype = x.dtype;
    burn_cubecl::kernel::cast(fold_with(x, None, shape), dtype)
}

#[cube(launch, address_type = "dynamic")]
fn scaled_kernel(sums: LinearView<'_, f32>, mut out: LinearViewMut<'_, f32>, factor: f32) {
    let at = ABSOLUTE_POS;
    if !out.is_in_bounds(at) {
        terminate!();
    }
    out.write(at, sums.read(at) * factor);
}

fn scaled(sums: CubeTensor, factor: f32) -> CubeTensor {
    let out = floats(&sums, [sums.meta.num_elements()]);
    let (count, dim) = elementwise(&out, 1);
    scaled_kernel::launch(
        &out.client,
        count,
        dim,
        out.required_address_type(),
        sums.into_linear_view(),
        out.clone().into_linear_view(),
        factor,
    );
    out
}

/// Mean and biased variance of each channel of `x: [n, c, h, w]`.
pub(crate) fn moments(x: CubeTensor) -> [CubeTensor; 2] {
    let x = channels_last(x);
    let [batch, height, width, channels] = x.meta.shape().dims();
    let rows = batch * height * width;
    let share = 1.0 / rows as f32;
    let mean = scaled(fold_with(x.clone(), None, [rows, channels]), share);
    let variance = scaled(fold_with(x, Some(&mean), [rows, channels]), share);
    [mean, variance]
}

#[cube(launch, address_type = "dynamic")]
fn constants_kernel(
    gamma: LinearView<'_, f32>,
    beta: LinearView<'_, f32>,
    mean: LinearView<'_, f32>,
    variance: LinearView<'_, f32>,
    mut scale: LinearViewMut<'_, f32>,
    mut shift: LinearViewMut<'_, f32>,
    epsilon: f32,
) {
    let at = ABSOLUTE_POS;
    if !scale.is_in_bounds(at) {
        terminate!();
    }
    let factor = gamma.read(at) / (variance.read(at) + epsilon).sqrt();
    scale.write(at, factor);
    shift.write(at, beta.read(at) - mean.read(at) * factor);
}

/// What a normalisation multiplies by and what it adds.
pub(crate) fn constants(
    [gamma, beta]: [CubeTensor; 2],
    [mean, variance]: [CubeTensor; 2],
    epsilon: f32,
) -> [CubeTensor; 2] {
    let channels = gamma.meta.num_elements();
    let out = [floats(&gamma, [channels]), floats(&gamma, [channels])];
    let (count, dim) = elementwise(&out[0], 1);
    constants_kernel::launch(
        &out[0].client,
        count,
        dim,
        out[0].required_address_type(),
        gamma.into_linear_view(),
        beta.into_linear_view(),
        mean.into_linear_view(),
        variance.into_linear_view(),
        out[0].clone().into_linear_view(),
        out[1].clone().into_linear_view(),
        epsilon,
    );
    out
}

#[cube(launch, address_type = "dynamic")]
fn slopes_kernel<F: Float, N: Size>(
    dy: LinearView<'_, Vector<F, N>>,
    y: LinearView<'_, Vector<F, N>>,
    x: LinearView<'_, Vector<F, N>>,
    mean: LinearView<'_, Vector<f32, N>>,
    mut plain: LinearViewMut<'_, Vector<f32, N>>,
    mut weighted: LinearViewMut<'_, Vector<f32, N>>,
    rows: usize,
    columns: usize,
    each: usize,
    #[comptime] relu: bool,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if !plain.is_in_bounds(at) {
        terminate!();
    }
    let column = at % columns;
    let first = at / columns * each;
    let zero = Vector::<f32, N>::new(0.0);
    let middle = mean.read(column);
    let mut sum = zero;
    let mut product = zero;
    for i in 0..each {
        let row = first + i;
        if row < rows {
            let from = row * columns + column;
            let mut value = Vector::<f32, N>::cast_from(dy.read(from));
            if comptime!(relu) {
                let passed = Vector::<f32, N>::cast_from(y.read(from)).greater_than(&zero);
                value = select_many(passed, value, zero);
            }
            sum += value;
            product += value * (Vector::<f32, N>::cast_from(x.read(from)) - middle);
        }
    }
    plain.write(at, sum);
    weighted.write(at, product);
}

#[cube(launch, address_type = "dynamic")]
fn parts_kernel(
    gamma: LinearView<'_, f32>,
    mean: LinearView<'_, f32>,
    variance: LinearView<'_, f32>,
    plain: LinearView<'_, f32>,
    weighted: LinearView<'_, f32>,
    mut of_dy: LinearViewMut<'_, f32>,
    mut of_x: LinearViewMut<'_, f32>,
    mut constant: LinearViewMut<'_, f32>,
    mut of_gamma: LinearViewMut<'_, f32>,
    epsilon: f32,
    share: f32,
) {
    let at = ABSOLUTE_POS;
    if !of_dy.is_in_bounds(at) {
        terminate!();
    }
    let inverse = 1.0 / (variance.read(at) + epsilon).sqrt();
    let scale = gamma.read(at) * inverse;
    let slope = -scale * inverse * inverse * weighted.read(at) * share;
    of_dy.write(at, scale);
    of_x.write(at, slope);
    constant.write(at, -scale * plain.read(at) * share - slope * mean.read(at));
    of_gamma.write(at, weighted.read(at) * inverse);
}

#[cube(launch, address_type = "dynamic")]
fn combination_kernel<F: Float, N: Size>(
    dy: LinearView<'_, Vector<F, N>>,
    y: LinearView<'_, Vector<F, N>>,
    x: LinearView<'_, Vector<F, N>>,
    of_dy: LinearView<'_, Vector<f32, N>>,
    of_x: LinearView<'_, Vector<f32, N>>,
    constant: LinearView<'_, Vector<f32, N>>,
    mut out: LinearViewMut<'_, Vector<F, N>>,
    channels: usize,
    #[comptime] relu: bool,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if !out.is_in_bounds(at) {
        terminate!();
    }
    let channel = at % channels;
    let zero = Vector::<f32, N>::new(0.0);
    let mut value = Vector::<f32, N>::cast_from(dy.read(at));
    if comptime!(relu) {
        let passed = Vector::<f32, N>::cast_from(y.read(at)).greater_than(&zero);
        value = select_many(passed, value, zero);
    }
    let from_x = Vector::<f32, N>::cast_from(x.read(at)) * of_x.read(channel);
    let dx = value * of_dy.read(channel) + from_x + constant.read(channel);
    out.write(at, Vector::cast_from(dx));
}

/// Gradients of a normalisation by the statistics of `x` itself: of `x`, gamma and beta. `y` is its result, which `relu` asks for.
///
/// Ioffe & Szegedy 2015, section 3: with `u = (x - mean) / std`, the gradient by `x` is `gamma / std (dy - mean(dy) - u mean(dy u))`.
pub(crate) fn normal_gradients(
    dy: CubeTensor,
    y: Option<CubeTensor>,
    x: CubeTensor,
    gamma: CubeTensor,
    [mean, variance]: [CubeTensor; 2],
    epsilon: f32,
) -> [CubeTensor; 3] {
    let (dy, x) = (channels_last(dy), channels_last(x));
    let relu = y.is_some();
    let y = y.map_or_else(|| dy.clone(), channels_last);
    let [batch, height, width, channels] = x.meta.shape().dims();
    let rows = batch * height * width;

    let partial = [rows.div_ceil(ROWS), channels];
    let sums = [floats(&x, partial), floats(&x, partial)];
    let vector = vector_size(&[&dy, &y, &x, &mean, &sums[0]]);
    let (count, dim) = elementwise(&sums[0], vector);
    slopes_kernel::launch(
        &x.client,
        count,
        dim,
        x.required_address_type(),
        vector,
        dy.clone().into_linear_view(),
        y.clone().into_linear_view(),
        x.clone().into_linear_view(),
        mean.clone().into_linear_view(),
        sums[0].clone().into_linear_view(),
        sums[1].clone().into_linear_view(),
        rows,
        channels / vector,
        ROWS,
        relu,
        elem(x.dtype),
    );
    let [plain, weighted] = sums.map(|sums| fold_with(sums, None, partial));

    let [of_dy, of_x, constant, of_gamma] = [(); 4].map(|()| floats(&x, [channels]));
    let (count, dim) = elementwise(&of_dy, 1);
    parts_kernel::launch(
        &x.client,
        count,
        dim,
        of_dy.required_address_type(),
        gamma.into_linear_view(),
        mean.into_linear_view(),
        variance.into_linear_view(),
        plain.clone().into_linear_view(),
        weighted.into_linear_view(),
        of_dy.clone().into_linear_view(),
        of_x.clone().into_linear_view(),
        constant.clone().into_linear_view(),
        of_gamma.clone().into_linear_view(),
        epsilon,
        1.0 / rows as f32,
    );

    let (client, device) = (x.client.clone(), x.device.clone());
    let out = empty_device_contiguous_dtype(client, device, x.meta.shape().clone(), x.dtype);
    let vector = vector_size(&[&dy, &y, &x, &of_dy, &out]);
    let (count, dim) = elementwise(&out, vector);
    combination_kernel::launch(
        &out.client,
        count,
        dim,
        out.required_address_type(),
        vector,
        dy.into_linear_view(),
        y.into_linear_view(),
        x.into_linear_view(),
        of_dy.into_linear_view(),
        of_x.into_linear_view(),
        constant.into_linear_view(),
        out.clone().into_linear_view(),
        channels / vector,
        relu,
        elem(out.dtype),
    );
    [channels_first(out), of_gamma, plain]
}
