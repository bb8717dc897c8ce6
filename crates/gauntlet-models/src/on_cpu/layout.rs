//! From burn's layers to those of this module.

use burn::module::Param;
use burn::nn::conv::Conv2d;
use burn::nn::pool::MaxPool2d;
use burn::nn::{BatchNorm, Linear, PaddingConfig2d};
use burn::tensor::Tensor;
use gauntlet_kernels::product::Weights;

use super::conv::Conv;
use super::layer::{Dense, Layer};
use super::pool::Pool;
use super::{host, turned};
use crate::Activation;

/// The layers so far, and the shape of what comes out of them.
pub(crate) struct Layout {
    layers: Vec<Layer>,
    /// Height, width, channels.
    shape: [usize; 3],
}

impl Layout {
    /// For images of `[channels, height, width]`.
    pub(crate) fn new([channels, height, width]: [usize; 3]) -> Self {
        Self::branch([height, width, channels])
    }

    fn branch(shape: [usize; 3]) -> Self {
        Self {
            layers: Vec::new(),
            shape,
        }
    }

    /// The layers, and how many values come out of them.
    pub(super) fn done(self) -> (Vec<Layer>, usize) {
        (self.layers, self.shape.iter().product())
    }

    /// `x * scale + shift`, channel by channel.
    pub(crate) fn affine(&mut self, scale: Vec<f32>, shift: Vec<f32>) {
        self.layers.push(Layer::Affine(scale, shift));
    }

    pub(crate) fn activation(&mut self, kind: Activation) {
        self.layers.push(Layer::Activation(kind));
    }

    pub(crate) fn conv(&mut self, conv: &Conv2d) {
        let weight = conv.weight.val();
        let [outputs, channels, height, width] = weight.dims();
        assert!(
            conv.groups == 1 && conv.dilation == [1, 1] && channels == self.shape[2],
            "a plain convolution of what there is"
        );
        let padding = match conv.padding {
            PaddingConfig2d::Explicit(top, left, bottom, right)
                if (top, left) == (bottom, right) =>
            {
                [top, left]
            }
            PaddingConfig2d::Valid => [0, 0],
            _ => unreachable!("convolutions are padded alike on either side"),
        };
        // [outputs, patch], a patch being [height, width, channels].
        let rows = turned(&host(weight), channels, height * width);
        let columns = turned(&rows, outputs, rows.len() / outputs);
        let bias = conv.bias.as_ref().map(|bias| host(bias.val()));
        let conv = Conv {
            input: self.shape,
            kernel: [height, width],
            stride: conv.stride,
            padding,
            forward: Weights::new(&columns, outputs, bias.as_deref()),
            backward: Weights::new(&rows, rows.len() / outputs, None),
        };
        let [height, width] = conv.size();
        self.shape = [height, width, outputs];
        self.layers.push(Layer::Conv(conv));
    }

    /// A linear layer on all values. Its weights are those of `[channels, height, width]`.
    pub(crate) fn linear(&mut self, linear: &Linear) {
        let weight = linear.weight.val();
        let [inputs, outputs] = weight.dims();
        let [height, width, channels] = self.shape;
        assert_eq!(inputs, height * width * channels, "a weight for each value");
        // Rows of the matrix, from [channels, pixels] to [pixels, channels].
        let values = host(weight);
        let row = |pixel: usize, channel: usize| {
            let row = channel * height * width + pixel;
            &values[row * outputs..(row + 1) * outputs]
        };
        let pixels = 0..height * width;
        let forward: Vec<f32> = pixels
            .flat_map(|pixel| (0..channels).flat_map(move |channel| row(pixel, channel)))
            .copied()
            .collect();
        let backward = turned(&forward, inputs, outputs);
        let bias = linear.bias.as_ref().map(|bias| host(bias.val()));
        self.layers.push(Layer::Dense(Dense {
            forward: Weights::new(&forward, outputs, bias.as_deref()),
            backward: Weights::new(&backward, inputs, None),
        }));
        self.shape = [1, 1, outputs];
    }

    pub(crate) fn max_pool(&mut self, pool: &MaxPool2d) {
        let [side, other] = pool.kernel_size;
        assert!(
            side == other && pool.stride == pool.kernel_size && !pool.ceil_mode,
            "squares side by side"
        );
        let pool = Pool {
            input: self.shape,
            side,
        };
        let [height, width] = pool.size();
        self.shape = [height, width, self.shape[2]];
        self.layers.push(Layer::Pool(pool));
    }

    /// As in eval mode: by the running statistics.
    pub(crate) fn batch_norm(&mut self, norm: &BatchNorm) {
        let of = |param: &Param<Tensor<1>>| host(param.val());
        let (gamma, beta) = (of(&norm.gamma), of(&norm.beta));
        let mean = host(norm.running_mean.value_sync());
        let variance = host(norm.running_var.value_sync());
        let scale = gamma.iter().zip(variance);
        let scale: Vec<f32> = scale
            .map(|(gamma, variance)| gamma / (variance + norm.epsilon as f32).sqrt())
            .collect();
        let shift = beta.iter().zip(mean).zip(&scale);
        let shift = shift.map(|((beta, mean), scale)| beta - mean * scale);
        self.affine(scale.clone(), shift.collect());
    }

    /// The mean of all pixels.
    pub(crate) fn mean(&mut self) {
        let [height, width, channels] = self.shape;
        self.layers.push(Layer::Mean(height * width, channels));
        self.shape = [1, 1, channels];
    }

    /// The sum of what two branches make of what there is.
    pub(crate) fn sum(&mut self, first: impl FnOnce(&mut Self), second: impl FnOnce(&mut Self)) {
        let (mut a, mut b) = (Self::branch(self.shape), Self::branch(self.shape));
        first(&mut a);
        second(&mut b);
        assert_eq!(a.shape, b.shape, "branches that can be added");
        self.shape = a.shape;
        self.layers.push(Layer::Sum(a.layers, b.layers));
    }
}
