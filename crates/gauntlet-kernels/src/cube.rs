//! Kernels for GPUs, written once in CubeCL for CUDA, Vulkan, Metal and ROCm.
//!
//! The functions of this crate use them for `f32` tensors on a device of burn's CubeCL backend (feature `cube`) and outside of
//! autodiff. Plain tensor operations, which they take everywhere else, are the reference that tests hold them against.

#![allow(clippy::too_many_arguments, reason = "formulas of as many")]

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchDevice, TensorMetadata, backend_extension};
use burn::tensor::{DType, Device, Int, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::ir::{ElemType, FloatKind};
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::cubecl::{calculate_cube_count_elemwise, tensor_vector_size_parallel};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

use crate::noise::Words;
use crate::update::{Adam, Sgd};

#[cfg_attr(
    feature = "fusion",
    allow(unused_imports, reason = "burn fuses its own")
)]
pub(crate) use channels::{
    affine, affine_gradient, channels_first, channels_last, patches, spread,
};
#[cfg(not(feature = "fusion"))]
pub(crate) use moments::{constants, fold, moments, normal_gradients};

#[cfg_attr(feature = "fusion", allow(dead_code, reason = "burn fuses its own"))]
mod channels;
mod crop;
mod hyperplane;
#[cfg(not(feature = "fusion"))]
mod moments;
mod philox;
mod steps;
mod updates;

/// Whether there are kernels for tensors of this device.
pub(crate) fn is_cube(device: &Device) -> bool {
    !device.is_autodiff() && matches!(device.as_dispatch(), DispatchDevice::Cube(_))
}

/// [`is_cube`], and all of these are `f32`.
pub(crate) fn takes<const D: usize>(tensors: &[&Tensor<D>]) -> bool {
    tensors
        .iter()
        .all(|x| is_cube(&x.device()) && x.dtype() == DType::F32)
}

#[cfg_attr(feature = "fusion", allow(dead_code, reason = "burn fuses its own"))]
#[backend_extension(Cube, Fusion: cfg(feature = "fusion"))]
trait Kernels: Backend {
    #[fusion(dtype = x, shape = x)]
    fn linf_step(
        x: FloatTensor<Self>,
        x0: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        step_size: f32,
        eps: f32,
        bounds: (f32, f32),
    ) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = x)]
    fn l2_step(
        x: FloatTensor<Self>,
        x0: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        step_size: f32,
        eps: f32,
        bounds: (f32, f32),
    ) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = x)]
    fn project_l2(
        x: FloatTensor<Self>,
        x0: FloatTensor<Self>,
        eps: f32,
        bounds: (f32, f32),
    ) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = x)]
    fn linf_momentum_step(
        x: FloatTensor<Self>,
        x0: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        before: FloatTensor<Self>,
        step_size: FloatTensor<Self>,
        momentum: f32,
        eps: f32,
        bounds: (f32, f32),
    ) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = x)]
    fn l2_momentum_step(
        x: FloatTensor<Self>,
        x0: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        before: FloatTensor<Self>,
        step_size: FloatTensor<Self>,
        momentum: f32,
        eps: f32,
        bounds: (f32, f32),
    ) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = x)]
    fn move_to_hyperplane(
        x: FloatTensor<Self>,
        normal: FloatTensor<Self>,
        gap: FloatTensor<Self>,
        bounds: (f32, f32),
        along_normal: bool,
        steps: u32,
    ) -> FloatTensor<Self>;

    #[fusion(dtype = DType::F32, shape = burn::tensor::Shape::from(shape.clone()))]
    fn philox_uniform(
        samples: IntTensor<Self>,
        words: Words,
        shape: Vec<usize>,
        low: f32,
        width: f32,
    ) -> FloatTensor<Self>;

    #[fusion(dtype = DType::F32, shape = burn::tensor::Shape::from(shape.clone()))]
    fn philox_normal(
        samples: IntTensor<Self>,
        words: Words,
        shape: Vec<usize>,
    ) -> FloatTensor<Self>;

    #[fusion(dtype = images, shape = images)]
    fn crop(images: FloatTensor<Self>, offsets: IntTensor<Self>, pad: u32) -> FloatTensor<Self>;

    #[fusion(meta = |weights, _, velocity, _| (weights.clone(), velocity.clone()))]
    fn sgd(
        weights: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        velocity: FloatTensor<Self>,
        by: Sgd,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |weights, _, first, second, _| (weights.clone(), first.clone(), second.clone()))]
    fn adam(
        weights: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        by: Adam,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(dtype = x, shape = x)]
    fn reorder(x: FloatTensor<Self>) -> FloatTensor<Self>;

    #[fusion(dtype = old, shape = old)]
    fn blend(
        old: FloatTensor<Self>,
        new: FloatTensor<Self>,
        kept: f32,
        added: f32,
    ) -> FloatTensor<Self>;
}

impl Kernels for CubeBackend {
    fn linf_step(
        x: CubeTensor,
        x0: CubeTensor,
        grad: CubeTensor,
        step_size: f32,
        eps: f32,
        bounds: (f32, f32),
    ) -> CubeTensor {
        steps::linf_step(x, x0, grad, step_size, eps, bounds)
    }

    fn l2_step(
        x: CubeTensor,
        x0: CubeTensor,
        grad: CubeTensor,
        step_size: f32,
        eps: f32,
        bounds: (f32, f32),
    ) -> CubeTensor {
        steps::l2_step(x, x0, Some(grad), step_size, eps, bounds)
    }

    fn project_l2(x: CubeTensor, x0: CubeTensor, eps: f32, bounds: (f32, f32)) -> CubeTensor {
        steps::l2_step(x, x0, None, 0.0, eps, bounds)
    }

    fn linf_momentum_step(
        x: CubeTensor,
        x0: CubeTensor,
        grad: CubeTensor,
        before: CubeTensor,
        step_size: CubeTensor,
        momentum: f32,
        eps: f32,
        bounds: (f32, f32),
    ) -> CubeTensor {
        steps::linf_momentum_step(x, x0, grad, before, step_size, momentum, eps, bounds)
    }

    fn l2_momentum_step(
        x: CubeTensor,
        x0: CubeTensor,
        grad: CubeTensor,
        before: CubeTensor,
        step_size: CubeTensor,
        momentum: f32,
        eps: f32,
        bounds: (f32, f32),
    ) -> CubeTensor {
        steps::l2_momentum_step(x, x0, grad, before, step_size, momentum, eps, bounds)
    }

    fn move_to_hyperplane(
        x: CubeTensor,
        normal: CubeTensor,
        gap: CubeTensor,
        bounds: (f32, f32),
        along_normal: bool,
        steps: u32,
    ) -> CubeTensor {
        hyperplane::move_to_hyperplane(x, normal, gap, bounds, along_normal, steps)
    }

    fn philox_uniform(
        samples: CubeTensor,
        words: Words,
        shape: Vec<usize>,
        low: f32,
        width: f32,
    ) -> CubeTensor {
        philox::draw(samples, words, shape, Some((low, width)))
    }

    fn philox_normal(samples: CubeTensor, words: Words, shape: Vec<usize>) -> CubeTensor {
        philox::draw(samples, words, shape, None)
    }

    fn crop(images: CubeTensor, offsets: CubeTensor, pad: u32) -> CubeTensor {
        crop::crop(images, offsets, pad)
    }

    fn sgd(
        weights: CubeTensor,
        gradient: CubeTensor,
        velocity: CubeTensor,
        by: Sgd,
    ) -> (CubeTensor, CubeTensor) {
        updates::sgd(weights, gradient, velocity, by)
    }

    fn adam(
        weights: CubeTensor,
        gradient: CubeTensor,
        first: CubeTensor,
        second: CubeTensor,
        by: Adam,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        updates::adam(weights, gradient, first, second, by)
    }

    fn reorder(x: CubeTensor) -> CubeTensor {
        channels_first(channels_last(x))
    }

    fn blend(old: CubeTensor, new: CubeTensor, kept: f32, added: f32) -> CubeTensor {
        updates::blend(old, new, kept, added)
    }
}

pub(crate) fn linf_step<const D: usize>(
    x: Tensor<D>,
    x0: Tensor<D>,
    grad: Tensor<D>,
    step_size: f32,
    eps: f32,
    bounds: (f32, f32),
) -> Tensor<D> {
    let [x, x0, grad] = [x, x0, grad].map(Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as Kernels>::linf_step(
        x, x0, grad, step_size, eps, bounds,
    ))
}

pub(crate) fn l2_step<const D: usize>(
    x: Tensor<D>,
    x0: Tensor<D>,
    grad: Tensor<D>,
    step_size: f32,
    eps: f32,
    bounds: (f32, f32),
) -> Tensor<D> {
    let [x, x0, grad] = [x, x0, grad].map(Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as Kernels>::l2_step(
        x, x0, grad, step_size, eps, bounds,
    ))
}

pub(crate) fn project_l2<const D: usize>(
    x: Tensor<D>,
    x0: Tensor<D>,
    eps: f32,
    bounds: (f32, f32),
) -> Tensor<D> {
    let [x, x0] = [x, x0].map(Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as Kernels>::project_l2(x, x0, eps, bounds))
}

pub(crate) fn linf_momentum_step<const D: usize>(
    x: Tensor<D>,
    x0: Tensor<D>,
    grad: Tensor<D>,
    before: Tensor<D>,
    step_size: Tensor<1>,
    momentum: f32,
    eps: f32,
    bounds: (f32, f32),
) -> Tensor<D> {
    let [x, x0, grad, before] = [x, x0, grad, before].map(Tensor::into_dispatch);
    let step_size = step_size.into_dispatch();
    Tensor::from_dispatch(<Dispatch as Kernels>::linf_momentum_step(
        x, x0, grad, before, step_size, momentum, eps, bounds,
    ))
}

pub(crate) fn l2_momentum_step<const D: usize>(
    x: Tensor<D>,
    x0: Tensor<D>,
    grad: Tensor<D>,
    before: Tensor<D>,
    step_size: Tensor<1>,
    momentum: f32,
    eps: f32,
    bounds: (f32, f32),
) -> Tensor<D> {
    let [x, x0, grad, before] = [x, x0, grad, before].map(Tensor::into_dispatch);
    let step_size = step_size.into_dispatch();
    Tensor::from_dispatch(<Dispatch as Kernels>::l2_momentum_step(
        x, x0, grad, before, step_size, momentum, eps, bounds,
    ))
}

pub(crate) fn move_to_hyperplane(
    x: Tensor<2>,
    normal: Tensor<2>,
    gap: Tensor<1>,
    bounds: (f32, f32),
    along_normal: bool,
    steps: u32,
) -> Tensor<2> {
    let [x, normal] = [x, normal].map(Tensor::into_dispatch);
    let gap = gap.into_dispatch();
    Tensor::from_dispatch(<Dispatch as Kernels>::move_to_hyperplane(
        x,
        normal,
        gap,
        bounds,
        along_normal,
        steps,
    ))
}

/// Uniform numbers of a range `(low, width)`, or normal ones without it.
pub(crate) fn noise<const D: usize>(
    samples: Tensor<1, Int>,
    words: Words,
    shape: [usize; D],
    range: Option<(f32, f32)>,
) -> Tensor<D> {
    let (samples, shape) = (samples.into_dispatch(), shape.to_vec());
    Tensor::from_dispatch(match range {
        Some((low, width)) => {
            <Dispatch as Kernels>::philox_uniform(samples, words, shape, low, width)
        }
        None => <Dispatch as Kernels>::philox_normal(samples, words, shape),
    })
}

/// `offsets: [batch, 3]`: the first row and column of each crop of a padded image, and 1 if it is mirrored.
pub(crate) fn crop(images: Tensor<4>, offsets: Tensor<2, Int>, pad: usize) -> Tensor<4> {
    let (images, offsets) = (images.into_dispatch(), offsets.into_dispatch());
    Tensor::from_dispatch(<Dispatch as Kernels>::crop(images, offsets, pad as u32))
}

pub(crate) fn sgd(
    weights: Tensor<1>,
    gradient: Tensor<1>,
    velocity: Tensor<1>,
    by: Sgd,
) -> (Tensor<1>, Tensor<1>) {
    let [weights, gradient, velocity] = [weights, gradient, velocity].map(Tensor::into_dispatch);
    let (weights, velocity) = <Dispatch as Kernels>::sgd(weights, gradient, velocity, by);
    (
        Tensor::from_dispatch(weights),
        Tensor::from_dispatch(velocity),
    )
}

pub(crate) fn adam(
    weights: Tensor<1>,
    gradient: Tensor<1>,
    moments: [Tensor<1>; 2],
    by: Adam,
) -> (Tensor<1>, [Tensor<1>; 2]) {
    let [weights, gradient] = [weights, gradient].map(Tensor::into_dispatch);
    let [first, second] = moments.map(Tensor::into_dispatch);
    let (weights, first, second) =
        <Dispatch as Kernels>::adam(weights, gradient, first, second, by);
    let moments = [first, second].map(Tensor::from_dispatch);
    (Tensor::from_dispatch(weights), moments)
}

pub(crate) fn blend<const D: usize>(
    old: Tensor<D>,
    new: Tensor<D>,
    kept: f32,
    added: f32,
) -> Tensor<D> {
    let [old, new] = [old, new].map(Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as Kernels>::blend(old, new, kept, added))
}

/// The same values, in the order of [`channels_last`] in memory.
#[cfg(not(feature = "fusion"))]
pub(crate) fn reorder(x: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Kernels>::reorder(x.into_dispatch()))
}

/// A new tensor of the same shape.
fn like(x: &CubeTensor) -> CubeTensor {
    empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), x.shape(), x.dtype)
}

/// What CubeCL calls the type of floats.
pub(crate) fn elem(dtype: DType) -> ElemType {
    match dtype {
        DType::BF16 => ElemType::Float(FloatKind::BF16),
        DType::F32 => ElemType::Float(FloatKind::F32),
        other => unreachable!("kernels take f32 and bf16, not {other:?}"),
    }
}

/// How many values at a time all of these can be read and written by.
fn vector_size(tensors: &[&CubeTensor]) -> usize {
    let sizes = tensors.iter().map(|x| {
        let sizes = x.client.io_optimized_vector_sizes(x.dtype.size());
        let (shape, strides) = (x.meta.shape(), x.meta.strides());
        tensor_vector_size_parallel(sizes, shape, strides, shape.num_dims() - 1)
    });
    sizes.min().unwrap_or(1)
}

/// A unit for each `vector` values.
fn elementwise(out: &CubeTensor, vector: usize) -> (CubeCount, CubeDim) {
    let units = out.meta.num_elements() / vector;
    let dim = CubeDim::new(&out.client, units);
    (calculate_cube_count_elemwise(&out.client, units, dim), dim)
}
