//! Crops and mirror images, gathered in one pass.

use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::std::tensor::layout::linear::{LinearView, LinearViewMut};

use super::{elementwise, like};

/// `offsets` are three numbers an image: the first row and column of its crop of the padded image, and whether it is mirrored.
#[cube(launch, address_type = "dynamic")]
fn crop_kernel<I: Int>(
    images: LinearView<'_, f32>,
    offsets: LinearView<'_, I>,
    mut out: LinearViewMut<'_, f32>,
    channels: usize,
    height: usize,
    width: usize,
    pad: usize,
    #[define(I)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if !out.is_in_bounds(at) {
        terminate!();
    }
    let plane = at / (height * width);
    let row = at / width % height;
    let mut column = at % width;
    let image = plane / channels;
    let top = usize::cast_from(offsets.read(3 * image));
    let left = usize::cast_from(offsets.read(3 * image + 1));
    if u32::cast_from(offsets.read(3 * image + 2)) == 1 {
        column = width - 1 - column;
    }
    // In the padded image.
    let y = top + row;
    let x = left + column;
    let mut value = 0.0f32;
    if y >= pad && y < pad + height && x >= pad && x < pad + width {
        value = images.read((plane * height + y - pad) * width + x - pad);
    }
    out.write(at, value);
}

pub(super) fn crop(images: CubeTensor, offsets: CubeTensor, pad: u32) -> CubeTensor {
    let out = like(&images);
    if out.meta.num_elements() == 0 {
        return out;
    }
    let shape = out.meta.shape();
    let [channels, height, width] = [shape[1], shape[2], shape[3]];
    let (count, dim) = elementwise(&out, 1);
    let dtype = dtype_to_storage_type(offsets.dtype);
    crop_kernel::launch(
        &out.client,
        count,
        dim,
        out.required_address_type(),
        images.into_linear_view(),
        offsets.into_linear_view(),
        out.clone().into_linear_view(),
        channels,
        height,
        width,
        pad as usize,
        dtype,
    );
    out
}
