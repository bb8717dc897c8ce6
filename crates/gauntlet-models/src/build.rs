//! Layers with initial weights that are a pure function of the seed, the same on every backend.

use burn::module::Param;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Initializer, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor};
use gauntlet_kernels::{NoiseKey, Stream};

/// Makes layers one after another; each tensor takes the noise of its ordinal.
pub(crate) struct Builder<'a> {
    device: &'a Device,
    key: NoiseKey,
    next: u32,
}

impl<'a> Builder<'a> {
    pub(crate) fn new(seed: u64, device: &'a Device) -> Self {
        Self {
            device,
            key: NoiseKey::new(seed, Stream::Init),
            next: 0,
        }
    }

    /// A convolution with bias and PyTorch's default weights: U(-b, b) with b = 1/sqrt(fan_in).
    pub(crate) fn conv(
        &mut self,
        channels: [usize; 2],
        kernel: usize,
        stride: usize,
        pad: usize,
    ) -> Conv2d {
        let mut conv = self.bare_conv(channels, kernel, stride, pad, true);
        let bound = 1.0 / ((channels[0] * kernel * kernel) as f32).sqrt();
        conv.weight = self.uniform([channels[1], channels[0], kernel, kernel], bound);
        conv.bias = Some(self.uniform([channels[1]], bound));
        conv
    }

    /// A 3x3 or 1x1 convolution without bias that keeps the size (at stride 1), with He's normal weights by fan out
    /// (He et al. 2015), as residual networks have it.
    pub(crate) fn residual_conv(
        &mut self,
        channels: [usize; 2],
        kernel: usize,
        stride: usize,
    ) -> Conv2d {
        let mut conv = self.bare_conv(channels, kernel, stride, kernel / 2, false);
        let std = (2.0 / (channels[1] * kernel * kernel) as f32).sqrt();
        let shape = [channels[1], channels[0], kernel, kernel];
        conv.weight = self.normal(shape, std);
        conv
    }

    /// A linear layer with PyTorch's default weights. burn keeps its weight as [in, out].
    pub(crate) fn linear(&mut self, inputs: usize, outputs: usize) -> Linear {
        let mut linear = LinearConfig::new(inputs, outputs)
            .with_initializer(Initializer::Zeros)
            .init(self.device);
        let bound = 1.0 / (inputs as f32).sqrt();
        linear.weight = self.uniform([inputs, outputs], bound);
        linear.bias = Some(self.uniform([outputs], bound));
        linear
    }

    /// BatchNorm with weight 1 and bias 0. burn feeds its running variance with the biased batch variance.
    pub(crate) fn batch_norm(&mut self, channels: usize) -> BatchNorm {
        BatchNormConfig::new(channels).init(self.device)
    }

    /// The device of the layers.
    pub(crate) fn device(&self) -> &Device {
        self.device
    }

    /// Normal values around 0.
    pub(crate) fn normal<const D: usize>(
        &mut self,
        shape: [usize; D],
        std: f32,
    ) -> Param<Tensor<D>> {
        let ordinal = self.ordinal();
        let values = self
            .key
            .normal(&[ordinal], [1, shape.iter().product()], self.device);
        Param::from_tensor(values.reshape(shape).mul_scalar(std))
    }

    fn bare_conv(
        &self,
        channels: [usize; 2],
        kernel: usize,
        stride: usize,
        pad: usize,
        bias: bool,
    ) -> Conv2d {
        Conv2dConfig::new(channels, [kernel, kernel])
            .with_stride([stride, stride])
            .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
            .with_bias(bias)
            .with_initializer(Initializer::Zeros)
            .init(self.device)
    }

    fn uniform<const D: usize>(&mut self, shape: [usize; D], bound: f32) -> Param<Tensor<D>> {
        let ordinal = self.ordinal();
        let values = self.key.uniform(
            &[ordinal],
            [1, shape.iter().product()],
            -bound,
            bound,
            self.device,
        );
        Param::from_tensor(values.reshape(shape))
    }

    fn ordinal(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }
}
