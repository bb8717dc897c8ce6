//! Image classifiers with normalisation inside, so that inputs and attack budgets are in `[0, 1]` everywhere.

mod build;
mod classifier;
mod config;
mod conv;
pub mod export;
pub mod folder;
pub mod import;
mod lenet_madry;
mod linear;
mod mlp;
mod mnist_cnn;
pub mod named;
mod network;
mod norm;
pub mod onnx;
mod precision;
mod resnet;
mod small_cnn;
mod torch_resnet;
mod vgg;
mod vit;
pub mod weights;

pub use classifier::{Classifier, detached};
pub use config::{Activation, Arch, Description, ModelConfig, ModelError};
pub use network::Network;
pub use precision::{Computing, made_ready};
