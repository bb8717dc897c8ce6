use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::build::Builder;
use crate::lenet_madry::LenetMadry;
use crate::mlp::Mlp;
use crate::mnist_cnn::MnistCnn;
use crate::onnx::{Draft, OnnxNetwork, Value};
use crate::resnet::ResNet;
use crate::small_cnn::SmallCnn;
use crate::torch_resnet::{self, TorchResNet};
use crate::vgg::Vgg;
use crate::vit::Vit;
use crate::{Activation, Arch, Classifier, Description, ModelConfig, ModelError, folder, import};

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
pub(crate) type MeanStd = (Vec<f32>, Vec<f32>);

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one in a network")]
enum Body {
    Mlp(Mlp),
    MnistCnn(MnistCnn),
    SmallCnn(SmallCnn),
    LenetMadry(LenetMadry),
    ResNet(ResNet),
    TorchResNet(TorchResNet),
    Vgg(Vgg),
    Vit(Vit),
    Onnx(OnnxNetwork),
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
            Arch::PreactResnet18 | Arch::PreactResnet18Plain => {
                let plain = self.arch == Arch::PreactResnet18Plain;
                Body::ResNet(ResNet::preact18(build, shape, classes, plain)?)
            }
            Arch::WideResnet | Arch::WideResnetSame => {
                let (depth, width) = (self.depth.unwrap_or(28), self.width.unwrap_or(10));
                let same = self.arch == Arch::WideResnetSame;
                Body::ResNet(ResNet::wide(build, shape, classes, depth, width, same)?)
            }
            Arch::Resnet18 | Arch::Resnet34 | Arch::Resnet50 | Arch::Resnet18Cifar => {
                let kind = torch_resnet::Kind {
                    name: self.arch.name(),
                    blocks: match self.arch {
                        Arch::Resnet34 | Arch::Resnet50 => [3, 4, 6, 3],
                        _ => [2, 2, 2, 2],
                    },
                    bottleneck: self.arch == Arch::Resnet50,
                    small: self.arch == Arch::Resnet18Cifar,
                };
                Body::TorchResNet(TorchResNet::new(build, kind, shape, classes)?)
            }
            Arch::Vgg16Bn => Body::Vgg(Vgg::new(build, shape, classes)?),
            Arch::Vit => {
                let (depth, width) = (self.depth.unwrap_or(6), self.width.unwrap_or(192));
                Body::Vit(Vit::new(build, shape, classes, depth, width)?)
            }
            Arch::Onnx => Body::Onnx(self.onnx(shape, classes, device)?),
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
        if self.width.is_some() && !self.arch.has_width() {
            return refuse("width", "`mlp`, `wide-resnet` and `vit` do");
        }
        if self.depth.is_some() && !self.arch.has_depth() {
            return refuse("depth", "`wide-resnet` and `vit` do");
        }
        if self.activation != Activation::Relu && matches!(self.arch, Arch::Vit | Arch::Onnx) {
            return refuse("activation", "its nonlinearities are fixed");
        }
        if self.file.is_some() && self.arch != Arch::Onnx {
            return refuse("file", "`onnx` does");
        }
        if self.width == Some(0) {
            return Err(ModelError::Config {
                key: "width",
                problem: "must be at least 1".to_owned(),
            });
        }
        Ok(())
    }

    /// The network of `file`.
    fn onnx(
        &self,
        shape: [usize; 3],
        classes: usize,
        device: &Device,
    ) -> Result<OnnxNetwork, ModelError> {
        let Some(path) = &self.file else {
            return Err(ModelError::Config {
                key: "file",
                problem: "`onnx` needs it: the ONNX file that says what is computed".to_owned(),
            });
        };
        let network = OnnxNetwork::open(path, device)?;
        let found = (network.shape(), network.classes());
        if found != (shape, classes) {
            return Err(ModelError::Weights {
                path: path.clone(),
                problem: format!(
                    "the network takes images of {:?} in {} classes, these are {shape:?} in {classes}",
                    found.0, found.1
                ),
            });
        }
        Ok(network)
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

    /// The network that training starts from: that of `weights`, if the `[model]` table names some, else a new one.
    ///
    /// # Errors
    /// As [`ModelConfig::init`], and [`ModelError::Weights`] if the weights do not fit.
    pub fn start(&self, seed: u64, device: &Device) -> Result<Network, ModelError> {
        let Some(path) = &self.config.weights else {
            return self.init(seed, device);
        };
        let network = if path.is_dir() {
            folder::load_as(path, self, device)?
        } else {
            import::import(path, self, device)?
        };
        Ok(if device.is_autodiff() {
            network.train()
        } else {
            network
        })
    }
}

impl Network {
    fn normalised(&self, x: Tensor<4>) -> Tensor<4> {
        let Some((mean, std)) = &self.normalise else {
            return x;
        };
        let (device, dtype) = (x.device().inner(), x.dtype());
        let values = |v: Vec<f32>| {
            let values = Tensor::<1>::from_floats(v.as_slice(), &device).cast(dtype);
            values.reshape([1, v.len(), 1, 1])
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
            Body::TorchResNet(body) => body.head(features),
            Body::Vgg(body) => body.head(features),
            Body::Vit(body) => body.head(features),
            Body::Onnx(_) => unreachable!("its logits are computed as a whole"),
        }
    }

    /// Draws what the network computes, and the layers of a network that was drawn already.
    pub(crate) fn draw(&self, draft: &mut Draft, x: &Value) -> Value {
        let act = self.activation;
        match &self.body {
            Body::Mlp(body) => body.draw(draft, x, act),
            Body::MnistCnn(body) => body.draw(draft, x, act),
            Body::SmallCnn(body) => body.draw(draft, x, act),
            Body::LenetMadry(body) => body.draw(draft, x, act),
            Body::ResNet(body) => body.draw(draft, x, act),
            Body::TorchResNet(body) => body.draw(draft, x, act),
            Body::Vgg(body) => body.draw(draft, x, act),
            Body::Vit(body) => body.draw(draft, x),
            Body::Onnx(body) => body.draw(draft, x),
        }
    }

    /// What is subtracted from each channel, and what divides it.
    pub(crate) fn normalisation(&self) -> Option<&MeanStd> {
        self.normalise.as_ref()
    }

    /// The version of the standard operators that [`draw`](Self::draw) uses.
    pub(crate) fn opset(&self) -> i64 {
        match &self.body {
            Body::Onnx(body) => body.opset(),
            _ => crate::onnx::OPSET,
        }
    }

    /// Whether random masks are drawn in training mode.
    pub fn has_dropout(&self) -> bool {
        matches!(self.body, Body::SmallCnn(_))
    }
}

impl Classifier<4> for Network {
    fn logits(&self, x: Tensor<4>) -> Tensor<2> {
        match &self.body {
            Body::Onnx(body) => body.logits(self.normalised(x)),
            _ => self.head(self.features(x)),
        }
    }

    fn features(&self, x: Tensor<4>) -> Tensor<2> {
        let (x, act) = (self.normalised(x), self.activation);
        match &self.body {
            Body::Mlp(body) => body.features(x, act),
            Body::MnistCnn(body) => body.features(x, act),
            Body::SmallCnn(body) => body.features(x, act),
            Body::LenetMadry(body) => body.features(x, act),
            Body::ResNet(body) => body.features(x, act),
            Body::TorchResNet(body) => body.features(x, act),
            Body::Vgg(body) => body.features(x, act),
            Body::Vit(body) => body.features(x),
            Body::Onnx(body) => body.features(x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arch: Arch) -> ModelConfig {
        ModelConfig::of(arch)
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
        let vit = |depth| ModelConfig {
            depth: Some(depth),
            ..config(Arch::Vit)
        };
        for (config, shape, classes, parameters) in [
            // As torchvision counts its own.
            (config(Arch::Resnet18), [3, 224, 224], 1000, 11_689_512),
            (config(Arch::Resnet34), [3, 224, 224], 1000, 21_797_672),
            (config(Arch::Resnet50), [3, 224, 224], 1000, 25_557_032),
            // As PyTorch counts `scripts/peers/networks.py`.
            (vit(6), cifar, 10, 2_693_578),
        ]
        .into_iter()
        .chain(
            [
                (config(Arch::MnistCnn), mnist, 166_406),
                (config(Arch::SmallCnn), mnist, 312_202),
                (config(Arch::LenetMadry), mnist, 3_274_634),
                (config(Arch::PreactResnet18), cifar, 11_172_170),
                (config(Arch::PreactResnet18Plain), cifar, 11_171_146),
                (config(Arch::Resnet18Cifar), cifar, 11_173_962),
                (config(Arch::Vgg16Bn), cifar, 14_728_266),
                (wide(28, 10), cifar, 36_479_194),
                (wide(34, 10), cifar, 46_160_474),
            ]
            .map(|(config, shape, parameters)| (config, shape, 10, parameters)),
        ) {
            let model = config.init(shape, classes, 0, &device).unwrap();
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
            match arch {
                Arch::WideResnet | Arch::WideResnetSame => {
                    (config.depth, config.width) = (Some(10), Some(1));
                }
                Arch::Vit => (config.depth, config.width) = (Some(1), Some(64)),
                // That of a file has its own tests.
                Arch::Onnx => continue,
                _ => {}
            }
            if arch != Arch::Vit {
                config.activation = Activation::Silu;
            }
            let x = Tensor::<4>::full([2, 1, 32, 32], 0.5, &device);
            let logits = |seed| {
                let model = config.init([1, 32, 32], 7, seed, &device).unwrap();
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
        assert_eq!(key(config(Arch::Resnet18), [3, 16, 64]), "arch");
        assert_eq!(key(config(Arch::Vit), [3, 30, 32]), "arch");
        assert_eq!(key(config(Arch::Onnx), [3, 32, 32]), "file");
        let silu = ModelConfig {
            activation: Activation::Silu,
            ..config(Arch::Vit)
        };
        assert_eq!(key(silu, [3, 32, 32]), "activation");
    }
}
