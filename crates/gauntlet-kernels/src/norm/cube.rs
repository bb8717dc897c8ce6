//! BatchNorm as operations of burn's CubeCL backend, with their derivatives.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use crate::cube;

/// Whether the kernels can do this: a GPU, values that have a place in its matrix units, and something to compute.
pub(super) fn takes(x: &Tensor<4>, others: &[&Tensor<1>]) -> bool {
    let device = x.device().inner();
    matches!(device.as_dispatch(), DispatchDevice::Cube(_))
        && matches!(x.dtype(), DType::F32 | DType::BF16)
        && !x.dims().contains(&0)
        && others
            .iter()
            .all(|t| t.dtype() == DType::F32 && t.dims() == [x.dims()[1]])
}

/// By running statistics; nothing but `x` has a gradient.
pub(super) fn affine(
    x: Tensor<4>,
    [gamma, beta]: [Tensor<1>; 2],
    [mean, variance]: [Tensor<1>; 2],
    epsilon: f32,
    relu: bool,
) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Normal>::cube_affine(
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        mean.into_dispatch(),
        variance.into_dispatch(),
        epsilon,
        relu,
    ))
}

/// Mean and biased variance of each channel, of a tensor outside of the graph.
pub(super) fn moments(x: Tensor<4>) -> [Tensor<1>; 2] {
    let (mean, variance) = <Dispatch as Moments>::cube_moments(x.into_dispatch());
    [mean, variance].map(Tensor::from_dispatch)
}

/// By the statistics of `x` itself, [`moments`].
pub(super) fn normalise(
    x: Tensor<4>,
    [gamma, beta]: [Tensor<1>; 2],
    [mean, variance]: [Tensor<1>; 2],
    epsilon: f32,
    relu: bool,
) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Normal>::cube_normalise(
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        mean.into_dispatch(),
        variance.into_dispatch(),
        epsilon,
        relu,
    ))
}

#[backend_extension(Cube)]
trait Moments: Backend {
    fn cube_moments(x: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl Moments for CubeBackend {
    fn cube_moments(x: CubeTensor) -> (CubeTensor, CubeTensor) {
        cube::moments(x).into()
    }
}

#[backend_extension(Cube, Autodiff)]
trait Normal: Backend {
    fn cube_affine(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        epsilon: f32,
        relu: bool,
    ) -> FloatTensor<Self>;

    fn cube_normalise(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        epsilon: f32,
        relu: bool,
    ) -> FloatTensor<Self>;
}

impl Normal for CubeBackend {
    fn cube_affine(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        mean: CubeTensor,
        variance: CubeTensor,
        epsilon: f32,
        relu: bool,
    ) -> CubeTensor {
        let [scale, shift] = cube::constants([gamma, beta], [mean, variance], epsilon);
        cube::affine(x, scale, shift, relu)
    }

    fn cube_normalise(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        mean: CubeTensor,
        variance: CubeTensor,
        epsilon: f32,
        relu: bool,
    ) -> CubeTensor {
        Self::cube_affine(x, gamma, beta, mean, variance, epsilon, relu)
    }
}

/// What the backward pass of [`Normal::cube_affine`] needs: the scale, and the result where there was a `relu`.
#[derive(Clone, Debug)]
struct AffineState {
    scale: CubeTensor,
    y: Option<CubeTensor>,
}

#[derive(Debug)]
struct AffineBackward;

impl Backward<CubeBackend, 1> for AffineBackward {
    type State = AffineState;

    fn backward(self, ops: Ops<AffineState, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let AffineState { scale, y } = ops.state;
        let dy = grads.consume::<CubeBackend>(&ops.node);
        if let [Some(node)] = ops.parents {
            let dx = cube::affine_gradient(dy, y, scale);
            grads.register::<CubeBackend>(node.id, dx);
        }
    }
}

/// What the backward pass of [`Normal::cube_normalise`] needs.
#[derive(Clone, Debug)]
struct NormalState {
    x: NodeId,
    gamma: NodeId,
    moments: [CubeTensor; 2],
    epsilon: f32,
    y: Option<CubeTensor>,
}

#[derive(Debug)]
struct NormalBackward;

impl Backward<CubeBackend, 3> for NormalBackward {
    type State = NormalState;

    fn backward(
        self,
        ops: Ops<NormalState, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let state = ops.state;
        let dy = grads.consume::<CubeBackend>(&ops.node);
        let [x, gamma]: [CubeTensor; 2] =
            [state.x, state.gamma].map(|id| checkpointer.retrieve_node_output(id));
        let all = cube::normal_gradients(dy, state.y, x, gamma, state.moments, state.epsilon);
        for (node, gradient) in ops.parents.into_iter().zip(all) {
            if let Some(node) = node {
                grads.register::<CubeBackend>(node.id, gradient);
            }
        }
    }
}

impl<C: CheckpointStrategy> Normal for Autodiff<CubeBackend, C> {
    fn cube_affine(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        epsilon: f32,
        relu: bool,
    ) -> FloatTensor<Self> {
        let nodes = [x.node()];
        let layer = [gamma, beta].map(|t| t.into_primitive());
        let running = [mean, variance].map(|t| t.into_primitive());
        let [scale, shift] = cube::constants(layer, running, epsilon);
        let y = cube::affine(x.into_primitive(), scale.clone(), shift, relu);
        match AffineBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let state = AffineState {
                    scale,
                    y: relu.then(|| y.clone()),
                };
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn cube_normalise(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        epsilon: f32,
        relu: bool,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), gamma.node(), beta.node()];
        let moments = [mean, variance].map(|t| t.into_primitive());
        let compute = |x: CubeTensor, gamma, beta| {
            let [mean, variance] = moments.clone();
            CubeBackend::cube_normalise(x, gamma, beta, mean, variance, epsilon, relu)
        };
        match NormalBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let (kept_x, kept_gamma) = (prep.checkpoint(&x), prep.checkpoint(&gamma));
                let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
                let y = compute(x.into_primitive(), gamma, beta);
                let state = NormalState {
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
                prep.finish(compute(x.into_primitive(), gamma, beta))
            }
        }
    }
}
