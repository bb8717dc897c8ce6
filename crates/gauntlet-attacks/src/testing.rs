//! Models small enough to know everything about.

use burn::module::{Module, Param};
use burn::nn::{BatchNorm, BatchNormConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use gauntlet_kernels::{NoiseKey, Stream};
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

/// Linear scores of images, `[batch, channels, height, width]`, with standard normal weights.
pub(crate) struct LinearImages {
    /// `[classes, channels * height * width]`
    pub(crate) rows: Tensor<2>,
}

impl LinearImages {
    pub(crate) fn random(seed: u32, classes: usize, shape: [usize; 4]) -> Self {
        let inputs = shape[1..].iter().product();
        Self {
            rows: normal_rows(seed, [classes, inputs]),
        }
    }
}

impl Classifier<4> for LinearImages {
    fn logits(&self, x: Tensor<4>) -> Tensor<2> {
        x.flatten::<2>(1, 3).matmul(self.rows.clone().transpose())
    }

    fn features(&self, x: Tensor<4>) -> Tensor<2> {
        x.flatten(1, 3)
    }
}

/// A random network of images that sees them rounded to eighths: its gradient is zero everywhere.
pub(crate) struct Stepped {
    hidden: Tensor<2>,
    output: Tensor<2>,
}

impl Stepped {
    pub(crate) fn random(seed: u32, classes: usize, shape: [usize; 4]) -> Self {
        let inputs = shape[1..].iter().product();
        Self {
            hidden: normal_rows(seed, [32, inputs]),
            output: normal_rows(seed + 1, [classes, 32]),
        }
    }
}

impl Classifier<4> for Stepped {
    fn logits(&self, x: Tensor<4>) -> Tensor<2> {
        self.features(x).matmul(self.output.clone().transpose())
    }

    fn features(&self, x: Tensor<4>) -> Tensor<2> {
        let eighths = x.mul_scalar(8.0).round().div_scalar(8.0);
        let hidden = eighths.flatten::<2>(1, 3);
        relu(hidden.matmul(self.hidden.clone().transpose()))
    }
}

fn normal_rows(seed: u32, shape: [usize; 2]) -> Tensor<2> {
    let rows: Vec<u32> = (0..shape[0] as u32).collect();
    NoiseKey::new(seed.into(), Stream::Init).normal(&rows, shape, &Device::flex())
}
