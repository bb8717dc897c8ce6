use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{BatchNorm, Linear};
use burn::tensor::Tensor;

use crate::build::Builder;
use crate::conv::convolve;
use crate::linear::connect;
use crate::norm::normalise_act;
use crate::onnx::{Draft, Value};
use crate::{Activation, ModelError};

/// Channels of each stage, and its convolutions.
const STAGES: [(usize, usize); 5] = [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)];

/// VGG-16 with BatchNorm (Simonyan & Zisserman 2015) in the form for 32×32 images: the convolutions of torchvision's `vgg16_bn` under its names, then a
/// global average and one linear layer in place of the three of 4,096.
#[derive(Module, Debug)]
pub(crate) struct Vgg {
    convs: Vec<Conv2d>,
    norms: Vec<BatchNorm>,
    pool: MaxPool2d,
    classifier: Linear,
}

impl Vgg {
    pub(crate) fn new(
        build: &mut Builder<'_>,
        shape: [usize; 3],
        classes: usize,
    ) -> Result<Self, ModelError> {
        if shape[1] < 32 || shape[2] < 32 {
            return Err(ModelError::too_small("vgg16-bn", shape, 32));
        }
        let (mut convs, mut norms, mut channels) = (Vec::new(), Vec::new(), shape[0]);
        for (out, count) in STAGES {
            for _ in 0..count {
                convs.push(build.conv([channels, out], 3, 1, 1));
                norms.push(build.batch_norm(out));
                channels = out;
            }
        }
        Ok(Self {
            convs,
            norms,
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            classifier: build.linear(channels, classes),
        })
    }

    pub(crate) fn features(&self, mut x: Tensor<4>, act: Activation) -> Tensor<2> {
        for (place, (conv, norm)) in self.convs.iter().zip(&self.norms).enumerate() {
            x = normalise_act(norm, convolve(conv, x), act);
            if ends_stage(place) {
                x = self.pool.forward(x);
            }
        }
        x.flatten::<3>(2, 3).mean_dim(2).squeeze_dim(2)
    }

    pub(crate) fn head(&self, features: Tensor<2>) -> Tensor<2> {
        connect(&self.classifier, features)
    }

    pub(crate) fn draw(&self, draft: &mut Draft, x: &Value, act: Activation) -> Value {
        let mut x = x.clone();
        for (place, (conv, norm)) in self.convs.iter().zip(&self.norms).enumerate() {
            x = draft.conv(&format!("convs.{place}"), conv, &x);
            x = draft.batch_norm(&format!("norms.{place}"), norm, &x);
            x = draft.act(act, &x);
            if ends_stage(place) {
                x = draft.max_pool(2, 2, 0, &x);
            }
        }
        let x = draft.average(&x);
        draft.linear("classifier", &self.classifier, &x)
    }
}

/// Whether a pool follows that convolution.
fn ends_stage(place: usize) -> bool {
    let mut last = 0;
    STAGES.iter().any(|(_, count)| {
        last += count;
        last == place + 1
    })
}

/// Place of a convolution in the `features` of torchvision: each is followed by a BatchNorm and a ReLU, each stage by a pool.
pub(crate) fn place_in_features(conv: usize) -> usize {
    3 * conv + (0..conv).filter(|&place| ends_stage(place)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `print(torchvision.models.vgg16_bn())` shows them.
    #[test]
    fn convolutions_are_where_torchvision_has_them() {
        let places: Vec<usize> = (0..13).map(place_in_features).collect();
        assert_eq!(places, [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]);
    }
}
