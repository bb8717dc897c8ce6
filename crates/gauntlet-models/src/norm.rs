//! How networks normalise, and what follows it.

use burn::nn::BatchNorm;
use burn::tensor::Tensor;
use gauntlet_kernels::{batch_norm, batch_norm_train};

use crate::Activation;

/// `act(layer.forward(x))` by the kernels of this project, in one pass on the CPU.
pub(crate) fn normalise_act(layer: &BatchNorm, x: Tensor<4>, act: Activation) -> Tensor<4> {
    match act {
        Activation::Relu => by(layer, x, true),
        _ => act.apply(by(layer, x, false)),
    }
}

/// `layer.forward(x)`.
pub(crate) fn normalise(layer: &BatchNorm, x: Tensor<4>) -> Tensor<4> {
    by(layer, x, false)
}

fn by(layer: &BatchNorm, x: Tensor<4>, relu: bool) -> Tensor<4> {
    let (gamma, beta) = (layer.gamma.val(), layer.beta.val());
    // By burn's rule: the device says that a backward pass is possible, the flag that this layer takes part in it.
    if x.device().is_autodiff() && layer.training.is_enabled() {
        let (y, mean, variance) = batch_norm_train(x, gamma, beta, layer.epsilon, relu);
        let device = y.device();
        let running = |old: Tensor<1>, new: Tensor<1>| {
            let old = old.to_device(&device).mul_scalar(1.0 - layer.momentum);
            (old + new.mul_scalar(layer.momentum)).detach()
        };
        let (old_mean, old_variance) = (
            layer.running_mean.value_sync(),
            layer.running_var.value_sync(),
        );
        layer.running_mean.update(running(old_mean, mean));
        layer.running_var.update(running(old_variance, variance));
        y
    } else {
        let (mean, variance) = (layer.running_mean.value(), layer.running_var.value());
        batch_norm(x, gamma, beta, mean, variance, layer.epsilon, relu)
    }
}
