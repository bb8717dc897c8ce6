//! Images for tests of attacks on images.

use burn::tensor::{Device, Int, Tensor};
use gauntlet_kernels::{NoiseKey, Stream};
use gauntlet_models::Classifier;

use crate::Noise;
use crate::evaluate::predictions;
use crate::testing::LinearImages;

pub(crate) fn noise(samples: impl IntoIterator<Item = u32>) -> Noise {
    Noise {
        key: NoiseKey::new(11, Stream::EvalAttack),
        samples: samples.into_iter().collect(),
    }
}

pub(crate) fn images(shape: [usize; 4]) -> Tensor<4> {
    uniform(shape, 0.0, 1.0)
}

pub(crate) fn uniform(shape: [usize; 4], low: f32, high: f32) -> Tensor<4> {
    let samples: Vec<u32> = (0..shape[0] as u32).collect();
    NoiseKey::new(5, Stream::Init).uniform(&samples, shape, low, high, &Device::flex())
}

/// What the model says, as labels: every sample stands at first.
pub(crate) fn labels(model: &dyn Classifier<4>, x: &Tensor<4>) -> Tensor<1, Int> {
    let classes = predictions(model.logits(x.clone())).into_iter();
    let classes: Vec<i64> = classes.map(i64::from).collect();
    Tensor::from_ints(classes.as_slice(), &x.device())
}

/// A random linear model, and images that it is the surer of the later they come, by up to `most` of the weights of their
/// class.
pub(crate) fn graded(
    seed: u32,
    classes: usize,
    shape: [usize; 4],
    most: f32,
) -> (LinearImages, Tensor<4>, Tensor<1, Int>) {
    let model = LinearImages::random(seed, classes, shape);
    let device = Device::flex();
    let class: Vec<i32> = (0..shape[0]).map(|i| (i % classes) as i32).collect();
    let rows = Tensor::<1, Int>::from_ints(class.as_slice(), &device);
    let weights = model.rows.clone().select(0, rows).reshape(shape);
    let sure: Vec<f32> = (0..shape[0])
        .map(|i| most * (i + 1) as f32 / shape[0] as f32)
        .collect();
    let sure = Tensor::<1>::from_floats(sure.as_slice(), &device);
    let x = uniform(shape, 0.3, 0.7) + weights * sure.reshape([shape[0], 1, 1, 1]);
    let x = x.clamp(0.0, 1.0);
    let y = labels(&model, &x);
    (model, x, y)
}
