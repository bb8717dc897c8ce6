//! How networks apply a convolution, and what follows it.

use burn::nn::PaddingConfig2d;
use burn::nn::conv::Conv2d;
use burn::nn::pool::MaxPool2d;
use burn::tensor::Tensor;
use burn::tensor::ops::PadMode;
use gauntlet_kernels::{conv2d, conv2d_relu, conv2d_relu_pool};

use crate::Activation;

type Convolution = fn(Tensor<4>, Tensor<4>, Option<Tensor<1>>, [usize; 2], [usize; 2]) -> Tensor<4>;

/// `layer.forward(x)` by the kernels of this project, which are several times faster on the CPU.
pub(crate) fn convolve(layer: &Conv2d, x: Tensor<4>) -> Tensor<4> {
    by(conv2d, layer, x.clone()).unwrap_or_else(|| layer.forward(x))
}

/// [`convolve`] and the activation, together where the kernels can.
pub(crate) fn convolve_act(layer: &Conv2d, x: Tensor<4>, act: Activation) -> Tensor<4> {
    let fused = (act == Activation::Relu).then(|| by(conv2d_relu, layer, x.clone()));
    fused
        .flatten()
        .unwrap_or_else(|| act.apply(convolve(layer, x)))
}

/// [`convolve_act`] and pooling by two (`pool` says so too, where it is done apart).
pub(crate) fn convolve_act_pool(
    layer: &Conv2d,
    x: Tensor<4>,
    act: Activation,
    pool: &MaxPool2d,
) -> Tensor<4> {
    let fused = (act == Activation::Relu).then(|| by(conv2d_relu_pool, layer, x.clone()));
    fused
        .flatten()
        .unwrap_or_else(|| pool.forward(convolve_act(layer, x, act)))
}

/// By a kernel, if the layer is one that they know.
fn by(kernel: Convolution, layer: &Conv2d, x: Tensor<4>) -> Option<Tensor<4>> {
    match layer.padding {
        PaddingConfig2d::Explicit(top, left, bottom, right)
            if (top, left) == (bottom, right) && layer.groups == 1 && layer.dilation == [1, 1] =>
        {
            let bias = layer.bias.as_ref().map(|bias| bias.val());
            let weight = layer.weight.val();
            Some(kernel(x, weight, bias, layer.stride, [top, left]))
        }
        // Sides that differ: padded first.
        PaddingConfig2d::Explicit(top, left, bottom, right)
            if layer.groups == 1 && layer.dilation == [1, 1] =>
        {
            let x = x.pad((left, right, top, bottom), PadMode::Constant(0.0));
            let bias = layer.bias.as_ref().map(|bias| bias.val());
            Some(kernel(x, layer.weight.val(), bias, layer.stride, [0, 0]))
        }
        _ => None,
    }
}
