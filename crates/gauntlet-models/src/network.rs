use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::build::Builder;
use crate::lenet_madry::LenetMadry;
use crate::mlp::Mlp;
use crate::mnist_cnn::MnistCnn;
use crate::resnet::ResNet;
use crate::small_cnn::SmallCnn;
use crate::{Activation, Arch, Classifier, Description, ModelConfig, ModelError};

/// Any of the architectures, as one module type.
#[derive(Module, Debug)]
pub struct Network {
    body: Body,
    #[module(skip)]
    activation: Activation,
    /// Where they are not 0 and 1.
    #[module(skip)]
    normalise: Option<MeanStd>,
}

/// Mean and standard deviation of each channel.
type MeanStd = (Vec<f32>, Vec<f32>);

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one in a network")]
enum Body {
    Mlp(Mlp),
    MnistCnn(MnistCnn),
    SmallCnn(SmallCnn),
    LenetMadry(LenetMadry),
    ResNet(ResNet),
}

impl ModelConfig {
    /// Builds the network for images of `shape` = [channels, height, width] and `classes` classes; its parameters are tracked
    /// if `device` is an autodiff device. Initial weights are a pure function of `seed`: the same on every backend.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the first key that cannot be.
    pub fn init(
        &self,
        shape: [usize; 3],
        classes: usize,
        seed: u64,
        device: &Device,
    ) -> Result<Network, ModelError> {
        self.check_sizes()?;
        let normalise = self.normalisation(shape[0])?;
        let mut build = Builder::new(seed, device);
        let build = &mut build;
        let body = match self.arch {
            Arch::Mlp => Body::Mlp(Mlp::new(
                build,
                shape.iter().product(),
                self.width.unwrap_or(128),
                classes,
            )),
            Arch::MnistCnn => Body::MnistCnn(MnistCnn::new(build, shape, classes)?),
            Arch::SmallCnn => Body::SmallCnn(SmallCnn::new(build, shape, classes)?),
            Arch::LenetMadry => Body::LenetMadry(LenetMadry::new(build, shape, classes)?),
            Arch::PreactResnet18 => Body::ResNet(ResNet::preact18(build, shape, classes)?),
            Arch::WideResnet => {
                let (depth, width) = (self.depth.unwrap_or(28), self.width.unwrap_or(10));
                Body::ResNet(ResNet::wide(build, shape, classes, depth, width)?)
            }
        };
        Ok(Network {
            body,
            activation: self.activation,
            normalise,
        })
    }

    /// Whether `width` and `depth` are given only where the architecture has them.
    fn check_sizes(&self) -> Result<(), ModelError> {
        let refuse = |key: &'static str, has: &str| {
            Err(ModelError::Config {
                key,
                problem: format!("`{}` has no {key}; {has}", self.arch),
            })
        };
        if self.width.is_some() && !matches!(self.arch, Arch::Mlp | Arch::WideResnet) {
            return refuse("width", "`mlp` and `wide-resnet` do");
        }
        if self.depth.is_some() && self.arch != Arch::WideResnet {
            return refuse("depth", "`wide-resnet` does");
        }
        if self.width == Some(0) {
            return Err(ModelError::Config {
                key: "width",
                problem: "must be at least 1".to_owned(),
            });
        }
        Ok(())
    }

    fn normalisation(&self, channels: usize) -> Result<Option<MeanStd>, ModelError> {
        let channel_values = |key: &'static str, values: &Option<Vec<f32>>, default: f32| {
            let values = values.clone().unwrap_or_else(|| vec![default; channels]);
            if values.len() != channels {
                let problem = format!("{} values for {channels} channels", values.len());
                return Err(ModelError::Config { key, problem });
            }
            match values
                .iter()
                .find(|v| !v.is_finite() || (key == "std" && **v <= 0.0))
            {
                Some(value) => Err(ModelError::Config {
                    key,
                    problem: format!("{value} cannot be"),
                }),
                None => Ok(values),
            }
        };
        let mean = channel_values("mean", &self.mean, 0.0)?;
        let std = channel_values("std", &self.std, 1.0)?;
        let changes = mean.iter().any(|&m| m != 0.0) || std.iter().any(|&s| s != 1.0);
        Ok(changes.then_some((mean, std)))
    }
}

impl Description {
    /// Builds the described network; see [`ModelConfig::init`].
    ///
    /// # Errors
    /// As [`ModelConfig::init`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<Network, ModelError> {
        self.config
            .init(self.shape, self.classes.len(), seed, device)
    }
}

impl Network {
    fn normalised(&self, x: Tensor<4>) -> Tensor<4> {
        let Some((mean, std)) = &self.normalise else {
            return x;
        };
        let device = x.device().inner();
        let values = |v: Vec<f32>| {
            Tensor::<1>::from_floats(v.as_slice(), &device).reshape([1, v.len(), 1, 1])
        };
        let scale = std.iter().map(|s| 1.0 / s).collect();
        (x - values(mean.clone())) * values(scale)
    }

    fn head(&self, features: Tensor<2>) -> Tensor<2> {
        match &self.body {
            Body::Mlp(body) => body.head(features),
            Body::MnistCnn(body) => body.head(features),
            Body::SmallCnn(body) => body.head(features),
            Body::LenetMadry(body) => body.head(features),
            Body::ResNet(body) => body.head(features),
        }
    }

    /// Whether random masks are drawn in training mode.
    pub fn has_dropout(&self) -> bool {
        matches!(self.body, Body::SmallCnn(_))
    }
}

impl Classifier<4> for Network {
    fn logits(&self, x: Tensor<4>) -> Tensor<2> {
        self.head(self.features(x))
    }

    fn features(&self, x: Tensor<4>) -> Tensor<2> {
        let (x, act) = (self.normalised(x), self.activation);
        match &self.body {
            Body::Mlp(body) => body.features(x, act),
            Body::MnistCnn(body) => body.features(x, act),
            Body::SmallCnn(body) => body.features(x, act),
            Body::LenetMadry(body) => body.features(x, act),
            Body::ResNet(body) => body.features(x, act),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arch: Arch) -> ModelConfig {
        ModelConfig {
            arch,
            activation: Activation::Relu,
            width: None,
            depth: None,
            mean: None,
            std: None,
        }
    }

    /// Counts as published, or as PyTorch counts the papers' own code.
    #[test]
    fn parameter_counts_are_those_of_the_literature() {
        let device = Device::flex();
        let mnist = [1, 28, 28];
        let cifar = [3, 32, 32];
        let wide = |depth, width| ModelConfig {
            depth: Some(depth),
            width: Some(width),
            ..config(Arch::WideResnet)
        };
        for (config, shape, parameters) in [
            (config(Arch::MnistCnn), mnist, 166_406),
            (config(Arch::SmallCnn), mnist, 312_202),
            (config(Arch::LenetMadry), mnist, 3_274_634),
            (config(Arch::PreactResnet18), cifar, 11_172_170),
            (wide(28, 10), cifar, 36_479_194),
            (wide(34, 10), cifar, 46_160_474),
        ] {
            let model = config.init(shape, 10, 0, &device).unwrap();
            // Running statistics are counted by burn too, two for each weight and bias of BatchNorm.
            let tensors = crate::named::list(&model);
            let counted = tensors
                .iter()
                .filter(|t| !t.buffer)
                .map(|t| t.shape.iter().product::<usize>());
            assert_eq!(counted.sum::<usize>(), parameters, "{config:?}");
        }
    }

    #[test]
    fn every_architecture_scores_images_and_differs_by_seed() {
        let device = Device::flex();
        for arch in Arch::ALL {
            let mut config = config(arch);
            if arch == Arch::WideResnet {
                (config.depth, config.width) = (Some(10), Some(1));
            }
            config.activation = Activation::Silu;
            let x = Tensor::<4>::full([2, 1, 28, 28], 0.5, &device);
            let logits = |seed| {
                let model = config.init([1, 28, 28], 7, seed, &device).unwrap();
                let logits = model.logits(x.clone());
                assert_eq!(logits.dims(), [2, 7]);
                logits.try_into_vec_as::<f32>().unwrap()
            };
            assert_eq!(logits(0), logits(0));
            assert_ne!(logits(0), logits(1));
        }
    }

    #[test]
    fn normalisation_is_inside() {
        let device = Device::flex();
        let plain = config(Arch::Mlp);
        let normed = ModelConfig {
            mean: Some(vec![0.3, 0.4]),
            std: Some(vec![0.5, 0.2]),
            ..plain.clone()
        };
        let x = Tensor::<4>::random(
            [3, 2, 4, 4],
            burn::tensor::Distribution::Uniform(0.0, 1.0),
            &device,
        );
        let by_hand = Tensor::cat(
            vec![
                (x.clone().slice([0..3, 0..1]) - 0.3) / 0.5,
                (x.clone().slice([0..3, 1..2]) - 0.4) / 0.2,
            ],
            1,
        );
        let a = normed.init([2, 4, 4], 3, 0, &device).unwrap().logits(x);
        let b = plain
            .init([2, 4, 4], 3, 0, &device)
            .unwrap()
            .logits(by_hand);
        assert!(a.all_close(b, Some(1e-4), Some(1e-5)));
    }

    #[test]
    fn impossible_configs_name_their_key() {
        let device = Device::flex();
        let key = |config: ModelConfig, shape| match config.init(shape, 10, 0, &device) {
            Err(ModelError::Config { key, .. }) => key,
            other => panic!("{other:?}"),
        };
        let wide = config(Arch::WideResnet);
        assert_eq!(
            key(
                ModelConfig {
                    depth: Some(27),
                    ..wide.clone()
                },
                [3, 32, 32]
            ),
            "depth"
        );
        assert_eq!(
            key(
                ModelConfig {
                    width: Some(0),
                    ..wide.clone()
                },
                [3, 32, 32]
            ),
            "width"
        );
        assert_eq!(
            key(
                ModelConfig {
                    width: Some(3),
                    ..config(Arch::MnistCnn)
                },
                [1, 28, 28]
            ),
            "width"
        );
        assert_eq!(
            key(
                ModelConfig {
                    std: Some(vec![0.0]),
                    ..config(Arch::Mlp)
                },
                [1, 8, 8]
            ),
            "std"
        );
        assert_eq!(
            key(
                ModelConfig {
                    mean: Some(vec![0.0]),
                    ..config(Arch::Mlp)
                },
                [3, 8, 8]
            ),
            "mean"
        );
        assert_eq!(key(config(Arch::SmallCnn), [1, 8, 8]), "arch");
    }
}
