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
    /// Wide ResNet of `depth` and `width` (default 28, 10).
    WideResnet,
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

/// The `[model]` table. What the data decides (channels, size, classes) is not here but given to `init`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The architecture.
    pub arch: Arch,
    /// Nonlinearity. Default: relu.
    #[serde(default)]
    pub activation: Activation,
    /// Hidden units of `mlp`, widening factor of `wide-resnet`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Layers of `wide-resnet` (6n + 4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Mean of each channel in [0, 1] that the model subtracts first. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f32>>,
    /// Standard deviation of each channel that the model divides by. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<Vec<f32>>,
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
    /// A weights file cannot be read, or does not fit.
    #[error("{}: {problem}", path.display())]
    Weights {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong, naming the tensor.
        problem: String,
    },
}
