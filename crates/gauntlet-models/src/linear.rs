//! How networks apply a fully connected layer.

use burn::nn::Linear;
use burn::tensor::{Tensor, module};

/// `layer.forward(x)` in the type of `x`, whatever that of the weights.
pub(crate) fn connect(layer: &Linear, x: Tensor<2>) -> Tensor<2> {
    let dtype = x.dtype();
    let weight = layer.weight.val().cast(dtype);
    let bias = layer.bias.as_ref().map(|bias| bias.val().cast(dtype));
    module::linear(x, weight, bias)
}
