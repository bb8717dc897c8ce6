use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::{Classifier, ModelConfig, ModelError};

/// Any of the architectures, as one module type.
#[derive(Module, Debug)]
pub struct Network {
    placeholder: burn::nn::Linear,
}

impl ModelConfig {
    /// Builds the network for images of `shape` = [channels, height, width] and `classes` classes, its parameters tracked
    /// if `device` is an autodiff device. Initial weights are a pure function of `seed`: the same on every backend.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the first key that cannot be.
    pub fn init(&self, shape: [usize; 3], classes: usize, seed: u64, device: &Device) -> Result<Network, ModelError> {
        let _ = (shape, classes, seed, device);
        todo!()
    }
}

impl Classifier<4> for Network {
    fn logits(&self, x: Tensor<4>) -> Tensor<2> {
        let _ = x;
        todo!()
    }
    fn features(&self, x: Tensor<4>) -> Tensor<2> {
        let _ = x;
        todo!()
    }
}
