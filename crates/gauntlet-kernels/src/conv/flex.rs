//! [`lanes`](super::lanes) as an operation of burn's CPU backend, with its derivatives.

use std::sync::Arc;

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

use super::after::{After, Codes, Upstream};
use super::lanes::{self, Geometry};
use super::packed::{self, Way};

/// Whether the kernels can do this: burn's CPU backend, `f32`, and something to compute.
pub(super) fn takes(
    x: &Tensor<4>,
    weight: &Tensor<4>,
    stride: [usize; 2],
    padding: [usize; 2],
    after: After,
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
        && (0..2).all(|d| {
            let length = (x_shape[2 + d] + 2 * padding[d] - w_shape[2 + d]) / stride[d] + 1;
            after.size([length; 2])[0] > 0
        })
}

pub(super) fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: [usize; 2],
    padding: [usize; 2],
    after: After,
) -> Tensor<4> {
    // An absent bias is a constant of zeros.
    let bias = bias.unwrap_or_else(|| Tensor::zeros([weight.dims()[0]], &x.device().inner()));
    Tensor::from_dispatch(<Dispatch as LaneConv>::lane_conv2d(
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
        stride,
        padding,
        after,
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
        after: After,
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
        after: After,
    ) -> Primitive {
        let g = geometry(&x, &weight, stride, padding);
        run(x, weight, bias, g, after, true).0
    }
}

/// `keep` says whether the packed weights may serve again.
fn run(
    x: Primitive,
    weight: Primitive,
    bias: Primitive,
    g: Geometry,
    after: After,
    keep: bool,
) -> (Primitive, Codes) {
    let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
    let bias = bias.to_contiguous();
    let plan = packed::plan(&weight, Way::Forward, g, keep);
    let (y, codes) = lanes::forward(x.storage(), &plan, bias.storage(), g, after);
    let [rows, columns] = after.size(g.output_size());
    (tensor(y, [x.shape()[0], g.outputs, rows, columns]), codes)
}

/// What the backward pass needs, and no more: `x` where a weight is tracked, the weight where `x` is.
#[derive(Clone, Debug)]
struct State {
    images: usize,
    geometry: Geometry,
    x: Option<NodeId>,
    weight: Option<NodeId>,
    passed: Passed,
}

/// Which values went on.
#[derive(Clone, Debug)]
enum Passed {
    All,
    /// Those that are not zero here.
    Positive(Primitive),
    Coded(Arc<Codes>),
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
            passed,
        } = ops.state;
        let [x_node, weight_node, bias_node] = ops.parents;
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let dy = match &passed {
            Passed::All => Upstream::Plain(dy.storage()),
            Passed::Positive(y) => Upstream::Relu(dy.storage(), y.storage()),
            Passed::Coded(codes) => Upstream::ReluPool(dy.storage(), codes),
        };
        let mut kept = |id: NodeId| {
            let kept: Primitive = checkpointer.retrieve_node_output(id);
            kept.to_contiguous()
        };
        if let (Some(node), Some(weight)) = (x_node, weight.map(&mut kept)) {
            let plan = packed::plan(&weight, Way::InputGradient, g, weight_node.is_none());
            let dx = lanes::input_gradient(dy, images, &plan);
            let shape = [images, g.inputs, g.size[0], g.size[1]];
            grads.register::<Flex>(node.id, tensor(dx, shape));
        }
        if let Some(x) = x.map(kept) {
            let (dw, db) = lanes::weight_gradient(x.storage(), dy, g);
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
        after: After,
    ) -> FloatTensor<Self> {
        let geometry = geometry(x.primitive(), weight.primitive(), stride, padding);
        let images = x.primitive().shape()[0];
        let nodes = [x.node(), weight.node(), bias.node()];
        let keep = !weight.is_tracked();
        let primitives = |x: Tracked, weight: Tracked, bias: Tracked| {
            let (x, weight) = (x.into_primitive(), weight.into_primitive());
            run(x, weight, bias.into_primitive(), geometry, after, keep)
        };
        match LaneConvBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let weights = weight.is_tracked() || bias.is_tracked();
                let kept_x = weights.then(|| prep.checkpoint(&x));
                let kept_weight = x.is_tracked().then(|| prep.checkpoint(&weight));
                let (y, codes) = primitives(x, weight, bias);
                let state = State {
                    images,
                    geometry,
                    x: kept_x,
                    weight: kept_weight,
                    passed: match after {
                        After::Nothing => Passed::All,
                        After::Relu => Passed::Positive(y.clone()),
                        After::ReluPool => Passed::Coded(Arc::new(codes)),
                    },
                };
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(primitives(x, weight, bias).0),
        }
    }
}
