//! Image classifiers with normalisation inside, so that inputs and attack budgets are in `[0, 1]` everywhere.

mod classifier;
mod config;
mod network;
pub mod weights;

pub use classifier::{Classifier, detached};
pub use config::{Activation, Arch, ModelConfig, ModelError};
pub use network::Network;
