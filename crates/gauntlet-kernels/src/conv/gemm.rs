//! Convolution on GPUs by matrix units, as an operation of burn's CubeCL backend with its derivatives.
//!
//! burn's own way there is to try what it has and keep the fastest, which takes minutes on first use and may choose another way on
//! the next machine; without that it takes a plain loop. Here one kernel is chosen by rule: an implicit matrix product of
//! CubeK's, that asks nothing and gives the same bits each time. `f32` is multiplied in TF32, as PyTorch does by default.
//! A device without matrix units has burn's plain loop in its place.
//!
//! Activations lie in memory as `[batch, height, width, channels]`, whatever order their dimensions are shown in.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::ConvOptions;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, Dispatch, DispatchDevice, TensorMetadata, backend_extension,
};
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::kernel::conv::{ConvStrategy, conv_data_backward, conv_forward};
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::ops::{permute, reshape};
use burn_cubecl::tensor::CubeTensor;
use cubek::convolution::{
    AcceleratedTileKind, ConvAlgorithm, ConvolutionArgs, ConvolutionInputs, Strategy, launch_ref,
};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::std::InputBinding;

use super::tiles::{self, Product};
use crate::cube::{channels_first, channels_last, elem, fold, patches, spread};

/// Whether the kernels can do this: a GPU, one type for both, and something to compute.
pub(super) fn takes(x: &Tensor<4>, weight: &Tensor<4>, padding: [usize; 2]) -> bool {
    let device = x.device().inner();
    let [x_shape, w_shape] = [x.dims(), weight.dims()];
    matches!(device.as_dispatch(), DispatchDevice::Cube(_))
        && matches!(x.dtype(), DType::F32 | DType::BF16)
        && x_shape[1] == w_shape[1]
        && x_shape.iter().chain(&w_shape).all(|&n| n > 0)
        && (0..2).all(|d| x_shape[2 + d] + 2 * padding[d] >= w_shape[2 + d])
}

pub(super) fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    stride: [usize; 2],
    padding: [usize; 2],
) -> Tensor<4> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(<Dispatch as GemmConv>::gemm_conv2d(
        x, weight, stride, padding,
    ))
}

#[backend_extension(Cube, Autodiff)]
trait GemmConv: Backend {
    fn gemm_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        stride: [usize; 2],
        padding: [usize; 2],
    ) -> FloatTensor<Self>;
}

/// Where and how far a kernel goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) stride: [usize; 2],
    pub(super) padding: [usize; 2],
}

impl Window {
    fn burns(self) -> ConvOptions<2> {
        ConvOptions::new(self.stride, self.padding, [1, 1], 1)
    }

    fn cubeks(self) -> ConvolutionArgs<2> {
        ConvolutionArgs {
            stride: self.stride,
            padding: self.padding,
            dilation: [1, 1],
        }
    }
}

/// CubeK's own ways to multiply, for devices on which ours is none, the best first.
const WAYS: [(ConvAlgorithm, AcceleratedTileKind); 3] = [
    (ConvAlgorithm::SimpleAsyncStrided, AcceleratedTileKind::Mma),
    (ConvAlgorithm::SimpleSyncStrided, AcceleratedTileKind::Mma),
    (ConvAlgorithm::SimpleSyncCyclic, AcceleratedTileKind::Cmma),
];

/// Has the first of the ways that takes the operands do it. `None` if none does.
fn multiply(
    product: Product,
    [lhs, rhs]: [&CubeTensor; 2],
    out: CubeTensor,
    window: Window,
) -> Option<CubeTensor> {
    if tiles::convolve(product, [lhs, rhs, &out], window) {
        return Some(out);
    }
    let elems = [lhs, rhs, &out].map(|x| elem(x.dtype));
    let [lhs_elem, rhs_elem, out_elem]: [ElemType; 3] = elems;
    let dtypes = MatmulElems::from_globals(&MatmulGlobalElems {
        lhs: lhs_elem,
        rhs: rhs_elem,
        out: out_elem,
    });
    let took = WAYS.iter().any(|&(algorithm, tile_kind)| {
        let bound = [(lhs, lhs_elem), (rhs, rhs_elem)]
            .map(|(x, elem)| InputBinding::new(x.clone().binding(), elem));
        let strategy = Strategy::Inferred {
            algorithm,
            tile_kind,
        };
        let client = out.client.clone();
        let ([x, kernels], out) = (bound, out.clone().binding());
        let inputs = match product {
            Product::Forward => ConvolutionInputs::Forward {
                input: x,
                weight: kernels,
                bias: None,
                out,
            },
            Product::InputGradient => ConvolutionInputs::BackwardData {
                out_grad: x,
                weights: kernels,
                in_grad: out,
            },
        };
        launch_ref::<2>(&strategy, &client, inputs, window.cubeks(), dtypes.clone()).is_ok()
    });
    took.then_some(out)
}

/// A product is cut into parts until there are [`SQUARES`] of this width, about: so many that every multiprocessor of a large GPU has
/// several groups of units at work.
const SQUARE: usize = 128;
const SQUARES: usize = 264;

fn empty<const D: usize>(like: &CubeTensor, shape: [usize; D]) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, Shape::from(shape), like.dtype)
}

fn forward(x: CubeTensor, weight: CubeTensor, window: Window) -> CubeTensor {
    let (images, kernels) = (channels_last(x.clone()), channels_last(weight.clone()));
    let [batch, height, width, _] = images.shape().dims();
    let [outputs, rows, columns, _] = kernels.shape().dims();
    let size = |length: usize, kernel: usize, d: usize| {
        (length + 2 * window.padding[d] - kernel) / window.stride[d] + 1
    };
    let shape = [
        batch,
        size(height, rows, 0),
        size(width, columns, 1),
        outputs,
    ];
    let out = empty(&images, shape);
    let done = multiply(Product::Forward, [&images, &kernels], out, window);
    done.map(channels_first).unwrap_or_else(|| {
        conv_forward(x, weight, None, window.burns(), ConvStrategy::Direct)
            .unwrap_or_else(|error| panic!("convolution: {error:?}"))
    })
}

fn input_gradient(dy: CubeTensor, weight: CubeTensor, x: Shape, window: Window) -> CubeTensor {
    let [batch, inputs, height, width] = x.dims();
    let kernels = channels_last(weight.clone());
    let [_, rows, columns, _] = kernels.shape().dims();
    // With strides: that of the convolution without, most of whose results were not kept.
    let size = [(height, rows, 0), (width, columns, 1)]
        .map(|(length, kernel, d)| length + 2 * window.padding[d] - kernel + 1);
    let upstream = channels_last(dy.clone());
    let upstream = match window.stride {
        [1, 1] => upstream,
        stride => spread(upstream, stride, size),
    };
    let every = Window {
        stride: [1, 1],
        ..window
    };
    let out = empty(&upstream, [batch, height, width, inputs]);
    let done = multiply(Product::InputGradient, [&upstream, &kernels], out, every);
    done.map(channels_first).unwrap_or_else(|| {
        let upstream = channels_first(upstream.clone());
        conv_data_backward(upstream, weight, x, every.burns(), ConvStrategy::Direct)
            .unwrap_or_else(|error| panic!("input gradient of a convolution: {error:?}"))
    })
}

/// One product whose inner dimension is all pixels of the batch would leave most of a GPU without work: it is cut into parts of the
/// batch, which are added up in the end.
fn weight_gradient(x: CubeTensor, dy: CubeTensor, weight: Shape, window: Window) -> CubeTensor {
    let [outputs, inputs, rows, columns] = weight.dims();
    let upstream = channels_last(dy);
    let [batch, height, width, _] = upstream.shape().dims();
    let taps = rows * columns * inputs;
    let squares = outputs.div_ceil(SQUARE) * taps.div_ceil(SQUARE);
    let parts = (1..=SQUARES.div_ceil(squares).min(batch))
        .rev()
        .find(|parts| batch.is_multiple_of(*parts))
        .unwrap_or(1);
    let pixels = batch / parts * height * width;
    let patches = patches(
        channels_last(x),
        [rows, columns],
        [height, width],
        window.stride,
        window.padding,
    );
    let patches = reshape(patches, Shape::from([parts, pixels, taps]));
    let upstream = reshape(upstream, Shape::from([parts, pixels, outputs]));
    let upstream = permute(upstream, &[0, 2, 1]);
    let products = empty(&patches, [parts, outputs, taps]);
    let products = if tiles::multiply([&upstream, &patches, &products]) {
        products
    } else {
        let (dtype, strategy) = (patches.dtype, MatmulStrategy::default());
        matmul(upstream, patches, Some(products), strategy, dtype)
            .unwrap_or_else(|error| panic!("weight gradient of a convolution: {error:?}"))
    };
    let sum = fold(products, [parts, outputs * taps]);
    channels_first(reshape(sum, Shape::from([outputs, rows, columns, inputs])))
}

impl GemmConv for CubeBackend {
    fn gemm_conv2d(
        x: CubeTensor,
        weight: CubeTensor,
        stride: [usize; 2],
        padding: [usize; 2],
    ) -> CubeTensor {
        forward(x, weight, Window { stride, padding })
    }
}

/// What the backward pass needs, and no more: `x` where the weight is tracked, the weight where `x` is.
#[derive(Clone, Debug)]
struct State {
    window: Window,
    x: Option<NodeId>,
    x_shape: Shape,
    weight: Option<NodeId>,
    weight_shape: Shape,
}

#[derive(Debug)]
struct GemmConvBackward;

impl Backward<CubeBackend, 2> for GemmConvBackward {
    type State = State;

    fn backward(self, ops: Ops<State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let state = ops.state;
        let [x_node, weight_node] = ops.parents;
        let dy = grads.consume::<CubeBackend>(&ops.node);
        if let (Some(node), Some(id)) = (x_node, state.weight) {
            let weight: CubeTensor = checkpointer.retrieve_node_output(id);
            let dx = input_gradient(dy.clone(), weight, state.x_shape, state.window);
            grads.register::<CubeBackend>(node.id, dx);
        }
        if let (Some(node), Some(id)) = (weight_node, state.x) {
            let x: CubeTensor = checkpointer.retrieve_node_output(id);
            let dw = weight_gradient(x, dy, state.weight_shape, state.window);
            grads.register::<CubeBackend>(node.id, dw);
        }
    }
}

impl<C: CheckpointStrategy> GemmConv for Autodiff<CubeBackend, C> {
    fn gemm_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        stride: [usize; 2],
        padding: [usize; 2],
    ) -> FloatTensor<Self> {
        let window = Window { stride, padding };
        let (x_shape, weight_shape) = (x.primitive().shape(), weight.primitive().shape());
        match GemmConvBackward
            .prepare::<C>([x.node(), weight.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let state = State {
                    window,
                    x: weight.is_tracked().then(|| prep.checkpoint(&x)),
                    x_shape,
                    weight: x.is_tracked().then(|| prep.checkpoint(&weight)),
                    weight_shape,
                };
                let y = forward(x.into_primitive(), weight.into_primitive(), window);
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(forward(x.into_primitive(), weight.into_primitive(), window))
            }
        }
    }
}
