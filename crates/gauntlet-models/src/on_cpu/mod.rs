//! Networks for attacks on the CPU.
//!
//! An attack asks for logits and input gradients of one frozen network, thousands of times. What is here answers without
//! autodiff: weights are laid out once for [`gauntlet_kernels::product`], images are `[height, width, channels]` so that a
//! convolution reads its patches where they lie, and a few images at a time go through all layers, in cache.

mod conv;
mod layer;
mod layout;
mod pool;

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use crate::classifier::Pullback;
use crate::{Classifier, Network};
use layer::{Layer, Saved, backward, forward};
pub(crate) use layout::Layout;

/// Images that go through the layers together, at most: their values stay in cache, and each weight that is read serves all of
/// them.
const TOGETHER: usize = 16;

/// A [`Network`] laid out for attacks on the CPU: the same logits and input gradients up to rounding, several times faster than on
/// burn's CPU backend. An image's do not depend on its batch mates.
///
/// It is a copy of the weights as they were. Tensors that live on an autodiff device, and features, are left to the network itself.
///
/// ```
/// # use burn::tensor::{Device, Tensor};
/// # use gauntlet_models::{Classifier, ModelConfig};
/// # let config: ModelConfig = serde_json::from_str(r#"{ "arch": "mnist-cnn" }"#)?;
/// let shape = [1, 28, 28];
/// let network = config.init(shape, 10, 0, &Device::flex())?;
/// let (logits, back) = network.on_cpu(shape).pullback(Tensor::zeros([2, 1, 28, 28], &Device::flex()));
/// let gradient = back(logits.ones_like());
/// assert_eq!(gradient.dims(), [2, 1, 28, 28]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct OnCpu<'a> {
    network: &'a Network,
    layers: Vec<Layer>,
    /// `[channels, height, width]`
    shape: [usize; 3],
    classes: usize,
}

impl Network {
    /// This network laid out for attacks on the CPU, for images of `shape`: `[channels, height, width]`. It must be in eval mode.
    pub fn on_cpu(&self, shape: [usize; 3]) -> OnCpu<'_> {
        let mut layout = Layout::new(shape);
        self.lay_out(&mut layout);
        let (layers, classes) = layout.done();
        OnCpu {
            network: self,
            layers,
            shape,
            classes,
        }
    }
}

impl Classifier<4> for OnCpu<'_> {
    fn logits(&self, x: Tensor<4>) -> Tensor<2> {
        if x.device().is_autodiff() {
            return self.network.logits(x);
        }
        let (device, values) = (x.device(), host(x));
        let parts = self.parts(&values, |part| forward(&self.layers, part, None));
        self.scores(parts, &device)
    }

    fn features(&self, x: Tensor<4>) -> Tensor<2> {
        self.network.features(x)
    }

    fn pullback(&self, x: Tensor<4>) -> (Tensor<2>, Pullback<'_, 4>) {
        if x.device().is_autodiff() {
            return self.network.pullback(x);
        }
        let (device, dims, values) = (x.device(), x.dims(), host(x));
        let parts = self.parts(&values, |part| {
            let mut tape = Vec::with_capacity(self.layers.len());
            let logits = forward(&self.layers, part, Some(&mut tape));
            (logits, tape)
        });
        let (logits, tapes): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let logits = self.scores(logits, &device);
        let back = move |gradient: Tensor<2>| {
            let gradient = host(gradient);
            let share = together(dims[0]) * self.classes;
            let parts = gradient.chunks(share).map(<[f32]>::to_vec);
            let parts = each(parts.zip(tapes).collect(), |(gradient, tape)| {
                self.back(gradient, tape)
            });
            Tensor::from_data(TensorData::new(parts.concat(), dims), &device)
        };
        (logits, Box::new(back))
    }
}

impl OnCpu<'_> {
    /// `work` on each few images, in `[images, height, width, channels]`.
    fn parts<T: Send>(&self, values: &[f32], work: impl Fn(Images) -> T + Sync + Send) -> Vec<T> {
        let length = self.shape.iter().product::<usize>();
        let together = together(values.len() / length);
        each(values.chunks(together * length).collect(), |part| {
            let [channels, height, width] = self.shape;
            work(Images {
                count: part.len() / length,
                values: turned(part, channels, height * width),
            })
        })
    }

    fn back(&self, gradient: Vec<f32>, tape: Vec<Saved>) -> Vec<f32> {
        let [channels, height, width] = self.shape;
        let images = Images {
            count: gradient.len() / self.classes,
            values: gradient,
        };
        let gradient = backward(&self.layers, images, tape);
        turned(&gradient.values, height * width, channels)
    }

    fn scores(&self, parts: Vec<impl AsRef<[f32]>>, device: &Device) -> Tensor<2> {
        let values: Vec<f32> = parts
            .iter()
            .flat_map(|part| part.as_ref())
            .copied()
            .collect();
        let shape = [values.len() / self.classes, self.classes];
        Tensor::from_data(TensorData::new(values, shape), device)
    }
}

/// Some images, or what layers made of them, one behind the other: each `[height, width, channels]`.
struct Images {
    count: usize,
    values: Vec<f32>,
}

impl AsRef<[f32]> for Images {
    fn as_ref(&self) -> &[f32] {
        &self.values
    }
}

/// Of so many images, how many go together: shares of one size.
fn together(images: usize) -> usize {
    let shares = images.div_ceil(TOGETHER).max(1);
    images.div_ceil(shares).max(1)
}

/// `work` on each item, on several threads if there are several.
fn each<I: Send, T: Send>(items: Vec<I>, work: impl Fn(I) -> T + Sync + Send) -> Vec<T> {
    match items.len() {
        0 | 1 => items.into_iter().map(work).collect(),
        _ => items.into_par_iter().map(work).collect(),
    }
}

/// Matrices of `rows` by `columns`, each transposed.
fn turned(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    if rows == 1 || columns == 1 {
        return values.to_vec();
    }
    let mut turned = vec![0.0; values.len()];
    let matrices = values.chunks_exact(rows * columns);
    for (to, from) in turned.chunks_exact_mut(rows * columns).zip(matrices) {
        for (row, from) in from.chunks_exact(columns).enumerate() {
            for (column, value) in from.iter().enumerate() {
                to[column * rows + row] = *value;
            }
        }
    }
    turned
}

fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.try_into_vec_as().expect("a float tensor")
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::tensor::Distribution;

    use super::*;
    use crate::{Activation, Arch, ModelConfig};

    fn config(arch: Arch) -> ModelConfig {
        ModelConfig {
            arch,
            activation: Activation::Relu,
            width: (arch == Arch::WideResnet).then_some(1),
            depth: (arch == Arch::WideResnet).then_some(10),
            mean: None,
            std: None,
        }
    }

    fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        Tensor::random(shape, Distribution::Uniform(0.0, 1.0), &Device::flex())
    }

    /// Largest difference, in units of the largest value.
    fn off<const D: usize>(found: Tensor<D>, expected: Tensor<D>) -> f32 {
        assert_eq!(found.dims(), expected.dims());
        let largest = expected.clone().abs().max().into_scalar::<f32>();
        (found - expected).abs().max().into_scalar::<f32>() / largest
    }

    /// Against burn's layers and its autodiff.
    fn agrees(config: &ModelConfig, shape: [usize; 3], batch: usize) {
        let network = config.init(shape, 7, 3, &Device::flex()).unwrap().valid();
        let on_cpu = network.on_cpu(shape);
        let [channels, height, width] = shape;
        let x = random([batch, channels, height, width]);
        let (logits, back) = on_cpu.pullback(x.clone());
        let (expected, expected_back) = network.pullback(x.clone());
        let what = format!("{config:?} on {shape:?}");
        let error = off(logits.clone(), expected);
        assert!(error < 3e-5, "{what}: {error}");
        let alike = on_cpu.logits(x).equal(logits).all().into_scalar::<bool>();
        assert!(alike, "{what}: logits with and without a way back");
        let slope = random([batch, 7]).sub_scalar(0.5);
        let gradient = back(slope.clone());
        let expected = expected_back(slope);
        let error = off(gradient, expected);
        assert!(error < 1e-4, "{what}: gradient {error}");
    }

    #[test]
    fn all_architectures_are_what_they_are_on_burn() {
        for arch in Arch::ALL {
            agrees(&config(arch), [1, 28, 28], 3);
            agrees(&config(arch), [3, 21, 18], 2);
        }
        agrees(&config(Arch::MnistCnn), [1, 28, 28], 2 * TOGETHER + 5);
    }

    #[test]
    fn normalisation_and_other_activations_are_inside() {
        for arch in [Arch::MnistCnn, Arch::PreactResnet18] {
            let config = ModelConfig {
                activation: Activation::Silu,
                mean: Some(vec![0.3, 0.1, 0.5]),
                std: Some(vec![0.5, 0.2, 3.0]),
                ..config(arch)
            };
            agrees(&config, [3, 16, 16], 4);
        }
    }

    /// BatchNorm with statistics and weights of its own in each channel.
    #[test]
    fn batch_norm_is_that_of_a_trained_network() {
        let shape = [2, 12, 12];
        let device = Device::flex().autodiff();
        let network = config(Arch::WideResnet).init(shape, 4, 1, &device).unwrap();
        for _ in 0..3 {
            network.logits(random([8, 2, 12, 12]).mul_scalar(2.0).autodiff());
        }
        let network = network.valid();
        let x = random([5, 2, 12, 12]);
        let on_cpu = network.on_cpu(shape);
        assert!(off(on_cpu.logits(x.clone()), network.logits(x.clone())) < 1e-5);
        let slope = random([5, 4]);
        let back = |model: &dyn Classifier<4>| model.pullback(x.clone()).1(slope.clone());
        assert!(off(back(&on_cpu), back(&network)) < 1e-4);
    }

    #[test]
    fn an_image_does_not_depend_on_its_batch_mates() {
        let shape = [1, 28, 28];
        let network = config(Arch::MnistCnn)
            .init(shape, 10, 0, &Device::flex())
            .unwrap();
        let on_cpu = network.on_cpu(shape);
        let x = random([TOGETHER + 3, 1, 28, 28]);
        let run = |x: Tensor<4>| {
            let (logits, back) = on_cpu.pullback(x);
            (host(logits.clone()), host(back(logits)))
        };
        let (logits, gradients) = run(x.clone());
        for image in [0, 7, TOGETHER, TOGETHER + 2] {
            let (alone, gradient) = run(x.clone().slice([image..image + 1]));
            assert_eq!(alone, logits[image * 10..][..10]);
            assert_eq!(gradient, gradients[image * 784..][..784]);
        }
    }

    #[test]
    fn empty_batches_broken_images_and_autodiff() {
        let shape = [1, 28, 28];
        let network = config(Arch::LenetMadry)
            .init(shape, 10, 0, &Device::flex())
            .unwrap();
        let on_cpu = network.on_cpu(shape);
        let none = Tensor::<4>::empty([0, 1, 28, 28], &Device::flex());
        let (logits, back) = on_cpu.pullback(none);
        assert_eq!(logits.dims(), [0, 10]);
        assert_eq!(back(logits).dims(), [0, 1, 28, 28]);

        let broken = Tensor::<4>::full([1, 1, 28, 28], f32::NAN, &Device::flex());
        let logits = host(on_cpu.logits(Tensor::cat(vec![broken, random([1, 1, 28, 28])], 0)));
        assert!(logits[..10].iter().all(|logit| logit.is_nan()));
        assert!(logits[10..].iter().all(|logit| logit.is_finite()));

        let x = random([2, 1, 28, 28]).autodiff().require_grad();
        let gradients = on_cpu.logits(x.clone()).sum_dim(1).sum_dim(0).backward();
        assert!(x.grad(&gradients).is_some());
    }
}
