use std::path::PathBuf;

use burn::tensor::{Tensor, activation};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which network to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Arch {
    /// Multilayer perceptron, two hidden layers of `width` (default 128).
    Mlp,
    /// 16 4x4/2, 32 4x4/2, fc 100: the 166,406-parameter network of the literature.
    MnistCnn,
    /// The small network of the TRADES paper.
    SmallCnn,
    /// 5x5x32, 5x5x64, fc 1024 (Madry et al.).
    LenetMadry,
    /// Pre-activation ResNet-18.
    #[serde(rename = "preact-resnet18")]
    PreactResnet18,
    /// Pre-activation ResNet-18 as in RobustBench: without the last BatchNorm.
    #[serde(rename = "preact-resnet18-plain")]
    PreactResnet18Plain,
    /// Wide ResNet of `depth` and `width` (default 28, 10).
    WideResnet,
    /// Wide ResNet with TensorFlow's padding (Gowal et al. 2020).
    WideResnetSame,
    /// ResNet-18 of torchvision.
    #[serde(rename = "resnet18")]
    Resnet18,
    /// ResNet-34 of torchvision.
    #[serde(rename = "resnet34")]
    Resnet34,
    /// ResNet-50 of torchvision.
    #[serde(rename = "resnet50")]
    Resnet50,
    /// ResNet-18 for 32x32 images.
    #[serde(rename = "resnet18-cifar")]
    Resnet18Cifar,
    /// VGG-16 with BatchNorm for 32x32 images.
    #[serde(rename = "vgg16-bn")]
    Vgg16Bn,
    /// Vision transformer of `depth` and `width` (default 6, 192).
    Vit,
    /// A network of one's own from an ONNX `file`.
    Onnx,
}

impl Arch {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Mlp,
        Self::MnistCnn,
        Self::SmallCnn,
        Self::LenetMadry,
        Self::PreactResnet18,
        Self::PreactResnet18Plain,
        Self::WideResnet,
        Self::WideResnetSame,
        Self::Resnet18,
        Self::Resnet34,
        Self::Resnet50,
        Self::Resnet18Cifar,
        Self::Vgg16Bn,
        Self::Vit,
        Self::Onnx,
    ];

    /// Whether it comes in several widths.
    pub fn has_width(self) -> bool {
        self == Self::Mlp || self.has_depth()
    }

    /// Whether it comes in several depths.
    pub fn has_depth(self) -> bool {
        matches!(self, Self::WideResnet | Self::WideResnetSame | Self::Vit)
    }

    /// Whether its layers take the type of their input, as [`Computing`](crate::Computing) wants.
    pub fn computes_in_bf16(self) -> bool {
        !matches!(self, Self::Vit | Self::Onnx)
    }

    /// Its name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mlp => "mlp",
            Self::MnistCnn => "mnist-cnn",
            Self::SmallCnn => "small-cnn",
            Self::LenetMadry => "lenet-madry",
            Self::PreactResnet18 => "preact-resnet18",
            Self::PreactResnet18Plain => "preact-resnet18-plain",
            Self::WideResnet => "wide-resnet",
            Self::WideResnetSame => "wide-resnet-same",
            Self::Resnet18 => "resnet18",
            Self::Resnet34 => "resnet34",
            Self::Resnet50 => "resnet50",
            Self::Resnet18Cifar => "resnet18-cifar",
            Self::Vgg16Bn => "vgg16-bn",
            Self::Vit => "vit",
            Self::Onnx => "onnx",
        }
    }

    /// What it is, in one line.
    pub fn summary(self) -> &'static str {
        match self {
            Self::Mlp => "perceptron with two hidden layers of `width` (128)",
            Self::MnistCnn => "16 4x4/2, 32 4x4/2, fc 100 (Wong & Kolter 2018)",
            Self::SmallCnn => "four 3x3 convolutions, fc 200, 200 (Zhang et al. 2019, TRADES)",
            Self::LenetMadry => "5x5x32, 5x5x64, fc 1024 (Madry et al. 2018)",
            Self::PreactResnet18 => "pre-activation ResNet-18 (He et al. 2016)",
            Self::PreactResnet18Plain => {
                "the same as in RobustBench: no last BatchNorm, other shortcuts"
            }
            Self::WideResnetSame => {
                "the same with TensorFlow's padding (Gowal et al. 2020), usually with silu"
            }
            Self::Resnet18 => "ResNet-18 of torchvision (He et al. 2016)",
            Self::Resnet34 => "ResNet-34 of torchvision",
            Self::Resnet50 => "ResNet-50 of torchvision",
            Self::Resnet18Cifar => "ResNet-18 with the 3x3 stem for small images",
            Self::Vgg16Bn => "VGG-16 with BatchNorm for small images (Simonyan & Zisserman 2015)",
            Self::Vit => {
                "vision transformer of `depth` (6) and `width` (192) (Dosovitskiy et al. 2021)"
            }
            Self::Onnx => "a network of your own, from the ONNX `file`",
            Self::WideResnet => {
                "Wide ResNet of `depth` (28) and `width` (10) (Zagoruyko & Komodakis 2016)"
            }
        }
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Nonlinearity between layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// max(0, x)
    #[default]
    Relu,
    /// x * sigmoid(x)
    Silu,
}

impl Activation {
    pub(crate) fn apply<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Relu => activation::relu(x),
            Self::Silu => activation::silu(x),
        }
    }
}

/// The `[model]` table. What the data decides (channels, size, classes) is not here but given to `init`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The architecture.
    pub arch: Arch,
    /// Nonlinearity. Default: relu.
    #[serde(default)]
    pub activation: Activation,
    /// Hidden units of `mlp`, widening factor of `wide-resnet`, channels of `vit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Layers of `wide-resnet` (6n + 4), blocks of `vit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Mean of each channel in [0, 1] that the model subtracts first. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f32>>,
    /// Standard deviation of each channel that the model divides by. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<Vec<f32>>,
    /// Where training starts: a folder that `gauntlet model import` wrote, a checkpoint, or a weights file. Default: random weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
    /// The ONNX file of `onnx`: it says what is computed, and where training starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

impl ModelConfig {
    /// The architecture with everything else as by default.
    pub fn of(arch: Arch) -> Self {
        Self {
            arch,
            activation: Activation::default(),
            width: None,
            depth: None,
            mean: None,
            std: None,
            weights: None,
            file: None,
        }
    }

    /// Whether the same tensors mean the same network: all but where training starts.
    pub fn same_network(&self, other: &Self) -> bool {
        let bare = |config: &Self| Self {
            weights: None,
            ..config.clone()
        };
        bare(self) == bare(other)
    }
}

/// All that is needed to build a network again; kept beside its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// The `[model]` table.
    pub config: ModelConfig,
    /// Channels, height and width of its images.
    pub shape: [usize; 3],
    /// Names of the classes.
    pub classes: Vec<String>,
}

/// What is wrong with a model's configuration or its weights.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A key of the `[model]` table has a value that cannot be.
    #[error("`model.{key}`: {problem}")]
    Config {
        /// The key.
        key: &'static str,
        /// What is wrong, with a hint.
        problem: String,
    },
    /// A weights file cannot be written.
    #[error("{}: {source}", path.display())]
    Write {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A weights file cannot be read, or does not fit.
    #[error("{}: {problem}", path.display())]
    Weights {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong, naming the tensor.
        problem: String,
    },
}

impl ModelError {
    pub(crate) fn too_small(arch: &str, shape: [usize; 3], least: usize) -> Self {
        let [_, height, width] = shape;
        let problem = format!(
            "`{arch}` needs images of {least}x{least} or more, these are {height}x{width}; `mlp` takes any"
        );
        Self::Config {
            key: "arch",
            problem,
        }
    }
}
