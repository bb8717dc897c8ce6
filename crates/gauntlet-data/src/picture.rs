//! Tensors as pictures people can look at.

use burn::tensor::Tensor;

pub use image::RgbImage;

/// One row of a sample grid: an image before and after the attack, with what the model said.
#[derive(Clone, Debug)]
pub struct Example {
    /// Name of the true class.
    pub label: String,
    /// Predicted class of the clean image.
    pub clean: String,
    /// Predicted class of the adversarial image.
    pub adversarial: String,
}

/// A picture with one row per sample: clean | perturbation, amplified to full range around grey | adversarial, each
/// enlarged to a readable size, with label and predictions written beside it. RGB, ready to save as PNG.
pub fn grid(clean: Tensor<4>, adversarial: Tensor<4>, examples: &[Example]) -> RgbImage {
    let _ = (clean, adversarial, examples);
    todo!()
}
