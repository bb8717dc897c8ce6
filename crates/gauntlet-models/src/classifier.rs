use burn::module::Module;
use burn::tensor::Tensor;

/// A model that scores inputs in `[0, 1]`. Images are `D = 4` (`[batch, channels, height, width]`), feature rows `D = 2`.
///
/// Object-safe: attacks take `&dyn Classifier<D>`. Normalisation lives inside.
pub trait Classifier<const D: usize> {
    /// Unnormalised class scores, `[batch, classes]`.
    fn logits(&self, x: Tensor<D>) -> Tensor<2>;
    /// The input of the last linear layer, `[batch, features]`.
    fn features(&self, x: Tensor<D>) -> Tensor<2>;
}

/// A deep copy in training mode: shares no BatchNorm buffers with `model`, keeps parameter ids.
///
/// `Module::clone` shares running statistics through an `Arc`; use this for EMA, weight averaging and proxies.
pub fn detached<M: Module>(model: &M) -> M {
    model.valid().train()
}
