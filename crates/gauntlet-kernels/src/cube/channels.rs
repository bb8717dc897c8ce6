//! Activations with their channels last in memory, as convolutions by matrix units want them.

use burn::tensor::Shape;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::ops::permute;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::std::tensor::layout::linear::{LinearView, LinearViewMut};

use super::{elem, elementwise, vector_size};

/// `[n, c, h, w]` as `[n, h, w, c]`, one value after the other: free where memory is in that order already.
pub(crate) fn channels_last(x: CubeTensor) -> CubeTensor {
    into_contiguous(permute(x, &[0, 2, 3, 1]))
}

/// `[n, h, w, c]` shown as `[n, c, h, w]`.
pub(crate) fn channels_first(x: CubeTensor) -> CubeTensor {
    permute(x, &[0, 3, 1, 2])
}

fn like(x: &CubeTensor) -> CubeTensor {
    let (client, device) = (x.client.clone(), x.device.clone());
    empty_device_contiguous_dtype(client, device, x.meta.shape().clone(), x.dtype)
}

#[cube(launch, address_type = "dynamic")]
fn affine_kernel<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    scale: LinearView<'_, Vector<f32, N>>,
    shift: LinearView<'_, Vector<f32, N>>,
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
    let mut y = Vector::<f32, N>::cast_from(x.read(at)) * scale.read(channel) + shift.read(channel);
    if comptime!(relu) {
        y = max(y, Vector::new(0.0));
    }
    out.write(at, Vector::cast_from(y));
}

/// `x * scale + shift` for each channel, and `max(y, 0)` if `relu`, in one pass.
pub(crate) fn affine(
    x: CubeTensor,
    scale: CubeTensor,
    shift: CubeTensor,
    relu: bool,
) -> CubeTensor {
    let x = channels_last(x);
    let out = like(&x);
    if out.meta.num_elements() > 0 {
        let vector = vector_size(&[&x, &scale, &shift, &out]);
        let (count, dim) = elementwise(&out, vector);
        affine_kernel::launch(
            &out.client,
            count,
            dim,
            out.required_address_type(),
            vector,
            x.into_linear_view(),
            scale.clone().into_linear_view(),
            shift.into_linear_view(),
            out.clone().into_linear_view(),
            scale.meta.num_elements() / vector,
            relu,
            elem(out.dtype),
        );
    }
    channels_first(out)
}

#[cube(launch, address_type = "dynamic")]
fn affine_gradient_kernel<F: Float, N: Size>(
    dy: LinearView<'_, Vector<F, N>>,
    y: LinearView<'_, Vector<F, N>>,
    scale: LinearView<'_, Vector<f32, N>>,
    mut out: LinearViewMut<'_, Vector<F, N>>,
    channels: usize,
    #[comptime] relu: bool,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if !out.is_in_bounds(at) {
        terminate!();
    }
    let zero = Vector::<f32, N>::new(0.0);
    let mut dx = Vector::<f32, N>::cast_from(dy.read(at)) * scale.read(at % channels);
    if comptime!(relu) {
        let passed = Vector::<f32, N>::cast_from(y.read(at)).greater_than(&zero);
        dx = select_many(passed, dx, zero);
    }
    out.write(at, Vector::cast_from(dx));
}

/// The gradient of [`affine`] by `x`. `y` is its result, which `relu` asks for.
pub(crate) fn affine_gradient(
    dy: CubeTensor,
    y: Option<CubeTensor>,
    scale: CubeTensor,
) -> CubeTensor {
    let dy = channels_last(dy);
    let relu = y.is_some();
    let y = y.map_or_else(|| dy.clone(), channels_last);
    let out = like(&dy);
    if out.meta.num_elements() > 0 {
        let vector = vector_size(&[&dy, &y, &scale, &out]);
        let (count, dim) = elementwise(&out, vector);
        affine_gradient_kernel::launch(
            &out.client,
            count,
            dim,
            out.required_address_type(),
            vector,
            dy.into_linear_view(),
            y.into_linear_view(),
            scale.clone().into_linear_view(),
            out.clone().into_linear_view(),
            scale.meta.num_elements() / vector,
            relu,
            elem(out.dtype),
        );
    }
    channels_first(out)
}

#[cube(launch, address_type = "dynamic")]
fn patches_kernel<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    mut out: LinearViewMut<'_, Vector<F, N>>,
    channels: usize,
    height: usize,
    width: usize,
    out_height: usize,
    out_width: usize,
    pad_row: usize,
    pad_column: usize,
    kernel_rows: usize,
    kernel_columns: usize,
    stride_row: usize,
    stride_column: usize,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if !out.is_in_bounds(at) {
        terminate!();
    }
    let channel = at % channels;
    let taps = kernel_rows * kernel_columns;
    let tap = at / channels % taps;
    let pixel = at / channels / taps;
    // In the padded image.
    let column = pixel % out_width * stride_column + tap % kernel_columns;
    let row = pixel / out_width % out_height * stride_row + tap / kernel_columns;
    let image = pixel / out_width / out_height;
    let mut value = Vector::<F, N>::new(F::new(0.0));
    if row >= pad_row
        && row < pad_row + height
        && column >= pad_column
        && column < pad_column + width
    {
        let from = (image * height + row - pad_row) * width + column - pad_column;
        value = x.read(from * channels + channel);
    }
    out.write(at, value);
}

/// The pixels of `x: [n, h, w, c]` under a kernel at each of its `places`: `[n * places, kernel * c]`.
pub(crate) fn patches(
    x: CubeTensor,
    kernel: [usize; 2],
    places: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
) -> CubeTensor {
    let [batch, height, width, channels] = x.meta.shape().dims();
    let (client, device) = (x.client.clone(), x.device.clone());
    let rows = batch * places[0] * places[1];
    let shape = Shape::from([rows, kernel[0] * kernel[1], channels]);
    let out = empty_device_contiguous_dtype(client, device, shape, x.dtype);
    if out.meta.num_elements() > 0 {
        let vector = vector_size(&[&x, &out]);
        let (count, dim) = elementwise(&out, vector);
        patches_kernel::launch(
            &out.client,
            count,
            dim,
            out.required_address_type(),
            vector,
            x.into_linear_view(),
            out.clone().into_linear_view(),
            channels / vector,
            height,
            width,
            places[0],
            places[1],
            padding[0],
            padding[1],
            kernel[0],
            kernel[1],
            stride[0],
            stride[1],
            elem(out.dtype),
        );
    }
    out
}

#[cube(launch, address_type = "dynamic")]
fn spread_kernel<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    mut out: LinearViewMut<'_, Vector<F, N>>,
    channels: usize,
    from_height: usize,
    from_width: usize,
    height: usize,
    width: usize,
    stride_row: usize,
    stride_column: usize,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if !out.is_in_bounds(at) {
        terminate!();
    }
    let channel = at % channels;
    let pixel = at / channels;
    let column = pixel % width;
    let row = pixel / width % height;
    let image = pixel / width / height;
    let from_row = row / stride_row;
    let from_column = column / stride_column;
    let mut value = Vector::<F, N>::new(F::new(0.0));
    if from_row * stride_row == row
        && from_column * stride_column == column
        && from_row < from_height
        && from_column < from_width
    {
        let from = (image * from_height + from_row) * from_width + from_column;
        value = x.read(from * channels + channel);
    }
    out.write(at, value);
}

/// The pixels of `x: [n, h, w, c]`, `stride` apart in an image of `size`, with zeros between.
pub(crate) fn spread(x: CubeTensor, stride: [usize; 2], size: [usize; 2]) -> CubeTensor {
    let [batch, from_height, from_width, channels] = x.meta.shape().dims();
    let (client, device) = (x.client.clone(), x.device.clone());
    let shape = Shape::from([batch, size[0], size[1], channels]);
    let out = empty_device_contiguous_dtype(client, device, shape, x.dtype);
    if out.meta.num_elements() > 0 {
        let vector = vector_size(&[&x, &out]);
        let (count, dim) = elementwise(&out, vector);
        spread_kernel::launch(
            &out.client,
            count,
            dim,
            out.required_address_type(),
            vector,
            x.into_linear_view(),
            out.clone().into_linear_view(),
            channels / vector,
            from_height,
            from_width,
            size[0],
            size[1],
            stride[0],
            stride[1],
            elem(out.dtype),
        );
    }
    out
}
