//! [`lanes`](super::lanes) as an operation of burn's CPU backend, with its derivatives.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, Dispatch, DispatchDevice, Flex, TensorMetadata, backend_extension,
};
use burn::tensor::{DType, Tensor, TensorData};

use super::lanes::{self, Geometry};

/// Whether the kernels can do this: burn's CPU backend, `f32`, and something to compute.
pub(super) fn takes(
    x: &Tensor<4>,
    weight: &Tensor<4>,
    stride: [usize; 2],
    padding: [usize; 2],
) -> bool {
    let device = x.device().inner();
    let [x_shape, w_shape] = [x.dims(), weight.dims()];
    matches!(device.as_dispatch(), DispatchDevice::Flex(_))
        && x.dtype() == DType::F32
        && weight.dtype() == DType::F32
        && x_shape[1] == w_shape[1]
        && x_shape[1..]
            .iter()
            .chain(&w_shape)
            .chain(&stride)
            .all(|&n| n > 0)
        && (0..2).all(|d| x_shape[2 + d] + 2 * padding[d] >= w_shape[2 + d])
}

pub(super) fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: [usize; 2],
    padding: [usize; 2],
) -> Tensor<4> {
    // An absent bias is a constant of zeros.
    let bias = bias.unwrap_or_else(|| Tensor::zeros([weight.dims()[0]], &x.device().inner()));
    Tensor::from_dispatch(<Dispatch as LaneConv>::lane_conv2d(
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
        stride,
        padding,
    ))
}

#[backend_extension(Flex, Autodiff)]
trait LaneConv: Backend {
    fn lane_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stride: [usize; 2],
        padding: [usize; 2],
    ) -> FloatTensor<Self>;
}

type Primitive = FloatTensor<Flex>;
type Tracked = FloatTensor<Autodiff<Flex>>;

fn geometry(
    x: &Primitive,
    weight: &Primitive,
    stride: [usize; 2],
    padding: [usize; 2],
) -> Geometry {
    let [_, inputs, height, width] = x.shape().dims();
    let [outputs, _, rows, columns] = weight.shape().dims();
    Geometry {
        inputs,
        outputs,
        size: [height, width],
        kernel: [rows, columns],
        stride,
        padding,
    }
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Primitive {
    Flex::float_from_data(TensorData::new(values, shape), &Default::default())
}

impl LaneConv for Flex {
    fn lane_conv2d(
        x: Primitive,
        weight: Primitive,
        bias: Primitive,
        stride: [usize; 2],
        padding: [usize; 2],
    ) -> Primitive {
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        let bias = bias.to_contiguous();
        let g = geometry(&x, &weight, stride, padding);
        let y = lanes::forward(x.storage(), weight.storage(), bias.storage(), g);
        let [rows, columns] = g.output_size();
        tensor(y, [x.shape()[0], g.outputs, rows, columns])
    }
}

/// What the backward pass needs, and no more: `x` where a weight is tracked, the weight where `x` is.
#[derive(Clone, Debug)]
struct State {
    images: usize,
    geometry: Geometry,
    x: Option<NodeId>,
    weight: Option<NodeId>,
}

#[derive(Debug)]
struct LaneConvBackward;

impl Backward<Flex, 3> for LaneConvBackward {
    type State = State;

    fn backward(self, ops: Ops<State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let State {
            images,
            geometry: g,
            x,
            weight,
        } = ops.state;
        let [x_node, weight_node, bias_node] = ops.parents;
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let mut kept = |id: NodeId| {
            let kept: Primitive = checkpointer.retrieve_node_output(id);
            kept.to_contiguous()
        };
        if let (Some(node), Some(weight)) = (x_node, weight.map(&mut kept)) {
            let dx = lanes::input_gradient(dy.storage(), weight.storage(), g);
            let shape = [images, g.inputs, g.size[0], g.size[1]];
            grads.register::<Flex>(node.id, tensor(dx, shape));
        }
        if let Some(x) = x.map(kept) {
            let (dw, db) = lanes::weight_gradient(x.storage(), dy.storage(), g);
            if let Some(node) = weight_node {
                let shape = [g.outputs, g.inputs, g.kernel[0], g.kernel[1]];
                grads.register::<Flex>(node.id, tensor(dw, shape));
            }
            if let Some(node) = bias_node {
                grads.register::<Flex>(node.id, tensor(db, [g.outputs]));
            }
        }
    }
}

impl<C: CheckpointStrategy> LaneConv for Autodiff<Flex, C> {
    fn lane_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stride: [usize; 2],
        padding: [usize; 2],
    ) -> FloatTensor<Self> {
        let geometry = geometry(x.primitive(), weight.primitive(), stride, padding);
        let images = x.primitive().shape()[0];
        let nodes = [x.node(), weight.node(), bias.node()];
        match LaneConvBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let weights = weight.is_tracked() || bias.is_tracked();
                let state = State {
                    images,
                    geometry,
                    x: weights.then(|| prep.checkpoint(&x)),
                    weight: x.is_tracked().then(|| prep.checkpoint(&weight)),
                };
                prep.finish(state, run(x, weight, bias, stride, padding))
            }
            OpsKind::UnTracked(prep) => prep.finish(run(x, weight, bias, stride, padding)),
        }
    }
}

fn run(
    x: Tracked,
    weight: Tracked,
    bias: Tracked,
    stride: [usize; 2],
    padding: [usize; 2],
) -> Primitive {
    let bias = bias.into_primitive();
    Flex::lane_conv2d(
        x.into_primitive(),
        weight.into_primitive(),
        bias,
        stride,
        padding,
    )
}
