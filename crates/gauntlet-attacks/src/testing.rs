//! Models small enough to know everything about.

use burn::module::{Module, Param};
use burn::nn::{BatchNorm, BatchNormConfig};
use burn::tensor::{Device, Tensor};
use gauntlet_models::Classifier;

/// `x W^T + b` with given rows, parameters untracked.
#[derive(Module, Debug)]
pub(crate) struct Linear {
    rows: Param<Tensor<2>>,
    bias: Param<Tensor<1>>,
}

impl Linear {
    pub(crate) fn new<const C: usize, const N: usize>(
        rows: [[f32; N]; C],
        bias: [f32; C],
        device: &Device,
    ) -> Self {
        let model = Self {
            rows: Param::from_tensor(Tensor::from_floats(rows, device)),
            bias: Param::from_tensor(Tensor::from_floats(bias, device)),
        };
        model.valid()
    }
}

impl Classifier<2> for Linear {
    fn logits(&self, x: Tensor<2>) -> Tensor<2> {
        x.matmul(self.rows.val().transpose()) + self.bias.val().unsqueeze_dim(0)
    }

    fn features(&self, x: Tensor<2>) -> Tensor<2> {
        x
    }
}

/// A linear layer behind BatchNorm.
#[derive(Module, Debug)]
pub(crate) struct Normed {
    pub(crate) norm: BatchNorm,
    pub(crate) linear: burn::nn::Linear,
}

impl Normed {
    pub(crate) fn new(device: &Device) -> Self {
        let linear = burn::nn::LinearConfig::new(4, 3).init(device);
        Self {
            norm: BatchNormConfig::new(4).init(device),
            linear,
        }
    }
}

impl Classifier<2> for Normed {
    fn logits(&self, x: Tensor<2>) -> Tensor<2> {
        let x = self
            .norm
            .forward(x.unsqueeze_dim::<3>(2))
            .squeeze_dim::<2>(2);
        self.linear.forward(x)
    }

    fn features(&self, x: Tensor<2>) -> Tensor<2> {
        x
    }
}

pub(crate) fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.try_into_vec_as().unwrap()
}
