//! [`planes`](super::planes) as operations of burn's CPU backend, with their derivatives.

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

use super::planes::Planes;

/// Whether the loops can do this: burn's CPU backend, and `f32`.
pub(super) fn takes(x: &Tensor<4>, others: &[&Tensor<1>]) -> bool {
    let device = x.device().inner();
    let channels = x.dims()[1];
    matches!(device.as_dispatch(), DispatchDevice::Flex(_))
        && x.dtype() == DType::F32
        && others
            .iter()
            .all(|other| other.dtype() == DType::F32 && other.dims() == [channels])
}

pub(super) fn moments(x: Tensor<4>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as Statistics>::channel_moments(x.into_dispatch()))
}

pub(super) fn affine(x: Tensor<4>, scale: Tensor<1>, shift: Tensor<1>, relu: bool) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Normalise>::channel_affine(
        x.into_dispatch(),
        scale.into_dispatch(),
        shift.into_dispatch(),
        relu,
    ))
}

pub(super) fn normalise(
    x: Tensor<4>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    moments: Tensor<2>,
    epsilon: f32,
    relu: bool,
) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Normalise>::batch_normalise(
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        moments.into_dispatch(),
        epsilon,
        relu,
    ))
}

#[backend_extension(Flex)]
trait Statistics: Backend {
    fn channel_moments(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

#[backend_extension(Flex, Autodiff)]
trait Normalise: Backend {
    fn channel_affine(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        relu: bool,
    ) -> FloatTensor<Self>;

    /// `moments` are those of `x`; they take no part in the graph, for the derivative knows what they are.
    fn batch_normalise(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        epsilon: f32,
        relu: bool,
    ) -> FloatTensor<Self>;
}

type Primitive = FloatTensor<Flex>;

fn planes(x: &Primitive) -> Planes {
    let [_, channels, height, width] = x.shape().dims();
    Planes {
        channels,
        area: height * width,
    }
}

fn like(values: Vec<f32>, x: &Primitive) -> Primitive {
    Flex::float_from_data(TensorData::new(values, x.shape()), &Default::default())
}

fn row(values: Vec<f32>) -> Primitive {
    let length = values.len();
    Flex::float_from_data(TensorData::new(values, [length]), &Default::default())
}

/// What a normalisation multiplies and adds, and what it divides by.
fn constants(gamma: &[f32], beta: &[f32], moments: &[f32], epsilon: f32) -> [Vec<f32>; 3] {
    let (mean, variance) = moments.split_at(gamma.len());
    let inverse: Vec<f32> = variance
        .iter()
        .map(|v| (v + epsilon).sqrt().recip())
        .collect();
    let scale: Vec<f32> = gamma.iter().zip(&inverse).map(|(g, i)| g * i).collect();
    let shift = (0..gamma.len())
        .map(|c| beta[c] - mean[c] * scale[c])
        .collect();
    [scale, shift, inverse]
}

impl Statistics for Flex {
    fn channel_moments(x: Primitive) -> Primitive {
        let x = x.to_contiguous();
        let planes = planes(&x);
        let moments = planes.moments(x.storage());
        let data = TensorData::new(moments, [2, planes.channels]);
        Flex::float_from_data(data, &Default::default())
    }
}

impl Normalise for Flex {
    fn channel_affine(x: Primitive, scale: Primitive, shift: Primitive, relu: bool) -> Primitive {
        let (x, scale, shift) = (
            x.to_contiguous(),
            scale.to_contiguous(),
            shift.to_contiguous(),
        );
        let y = planes(&x).affine(x.storage(), scale.storage(), shift.storage(), relu);
        like(y, &x)
    }

    fn batch_normalise(
        x: Primitive,
        gamma: Primitive,
        beta: Primitive,
        moments: Primitive,
        epsilon: f32,
        relu: bool,
    ) -> Primitive {
        let (gamma, beta) = (gamma.to_contiguous(), beta.to_contiguous());
        let moments = moments.to_contiguous();
        let [scale, shift, _] =
            constants(gamma.storage(), beta.storage(), moments.storage(), epsilon);
        Self::channel_affine(x, row(scale), row(shift), relu)
    }
}

/// What the backward pass of [`Normalise::channel_affine`] needs: `x` where scale or shift are tracked, the scale where `x` is,
/// the result where there was a `relu`.
#[derive(Clone, Debug)]
struct AffineState {
    x: Option<NodeId>,
    scale: Option<NodeId>,
    y: Option<Primitive>,
}

#[derive(Debug)]
struct AffineBackward;

impl Backward<Flex, 3> for AffineBackward {
    type State = AffineState;

    fn backward(
        self,
        ops: Ops<AffineState, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let AffineState { x, scale, y } = ops.state;
        let [x_node, scale_node, shift_node] = ops.parents;
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let planes = planes(&dy);
        let mut kept = |id: NodeId| {
            let kept: Primitive = checkpointer.retrieve_node_output(id);
            kept.to_contiguous()
        };
        if let (Some(node), Some(scale)) = (x_node, scale.map(&mut kept)) {
            let y = y.as_ref().map(|y| y.storage());
            let dx = planes.affine_input_gradient(dy.storage(), y, scale.storage());
            grads.register::<Flex>(node.id, like(dx, &dy));
        }
        if let Some(x) = x.map(kept) {
            let before = y.map(|y| planes.before_relu(dy.storage(), y.storage()));
            let before = before.as_deref().unwrap_or(dy.storage());
            let sums = planes.sums(before, x.storage(), |_| 0.0);
            if let Some(node) = scale_node {
                grads.register::<Flex>(node.id, row(sums.iter().map(|sums| sums[1]).collect()));
            }
            if let Some(node) = shift_node {
                grads.register::<Flex>(node.id, row(sums.iter().map(|sums| sums[0]).collect()));
            }
        }
    }
}

/// What the backward pass of [`Normalise::batch_normalise`] needs.
#[derive(Clone, Debug)]
struct NormState {
    x: NodeId,
    gamma: NodeId,
    moments: Primitive,
    epsilon: f32,
    y: Option<Primitive>,
}

#[derive(Debug)]
struct NormBackward;

impl Backward<Flex, 3> for NormBackward {
    type State = NormState;

    /// Ioffe & Szegedy 2015, section 3: with `u = (x - mean) / std`, the gradient by `x` is
    /// `gamma / std (dy - mean(dy) - u mean(dy u))`.
    fn backward(
        self,
        ops: Ops<NormState, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let state = ops.state;
        let [x_node, gamma_node, beta_node] = ops.parents;
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let planes = planes(&dy);
        let mut kept = |id: NodeId| {
            let kept: Primitive = checkpointer.retrieve_node_output(id);
            kept.to_contiguous()
        };
        let (x, gamma) = (kept(state.x), kept(state.gamma));
        let moments = state.moments.to_contiguous();
        let [scale, _, inverse] = constants(
            gamma.storage(),
            gamma.storage(),
            moments.storage(),
            state.epsilon,
        );
        let mean = &moments.storage::<f32>()[..planes.channels];
        let before = state
            .y
            .map(|y| planes.before_relu(dy.storage(), y.storage()));
        let before = before.as_deref().unwrap_or(dy.storage());
        let sums = planes.sums(before, x.storage(), |channel| mean[channel]);
        if let Some(node) = x_node {
            let count = (before.len() / planes.channels.max(1)) as f32;
            let parts: Vec<[f32; 3]> = (0..planes.channels)
                .map(|c| {
                    let [plain, weighted] = sums[c].map(|sum| sum / count);
                    let slope = -scale[c] * inverse[c] * inverse[c] * weighted;
                    [scale[c], slope, -scale[c] * plain - slope * mean[c]]
                })
                .collect();
            let dx = planes.combination(before, x.storage(), &parts);
            grads.register::<Flex>(node.id, like(dx, &dy));
        }
        if let Some(node) = gamma_node {
            let gradient = sums
                .iter()
                .zip(&inverse)
                .map(|(sums, inverse)| sums[1] * inverse);
            grads.register::<Flex>(node.id, row(gradient.collect()));
        }
        if let Some(node) = beta_node {
            grads.register::<Flex>(node.id, row(sums.iter().map(|sums| sums[0]).collect()));
        }
    }
}

impl<C: CheckpointStrategy> Normalise for Autodiff<Flex, C> {
    fn channel_affine(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        relu: bool,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), scale.node(), shift.node()];
        match AffineBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let constants = scale.is_tracked() || shift.is_tracked();
                let kept_x = constants.then(|| prep.checkpoint(&x));
                let kept_scale = x.is_tracked().then(|| prep.checkpoint(&scale));
                let (scale, shift) = (scale.into_primitive(), shift.into_primitive());
                let y = Flex::channel_affine(x.into_primitive(), scale, shift, relu);
                let state = AffineState {
                    x: kept_x,
                    scale: kept_scale,
                    y: relu.then(|| y.clone()),
                };
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => {
                let (scale, shift) = (scale.into_primitive(), shift.into_primitive());
                prep.finish(Flex::channel_affine(x.into_primitive(), scale, shift, relu))
            }
        }
    }

    fn batch_normalise(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        epsilon: f32,
        relu: bool,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), gamma.node(), beta.node()];
        let moments = moments.into_primitive();
        match NormBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let (kept_x, kept_gamma) = (prep.checkpoint(&x), prep.checkpoint(&gamma));
                let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
                let x = x.into_primitive();
                let y = Flex::batch_normalise(x, gamma, beta, moments.clone(), epsilon, relu);
                let state = NormState {
                    x: kept_x,
                    gamma: kept_gamma,
                    moments,
                    epsilon,
                    y: relu.then(|| y.clone()),
                };
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => {
                let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
                let x = x.into_primitive();
                prep.finish(Flex::batch_normalise(
                    x, gamma, beta, moments, epsilon, relu,
                ))
            }
        }
    }
}
