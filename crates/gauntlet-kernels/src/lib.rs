//! Arithmetic on tensors, and nothing else: steps, projections, named noise, augmentation, updates of weights, and convolution and
//! BatchNorm on the CPU.
//!
//! This crate knows burn, but no model, no data set and no config.

pub mod augment;
mod conv;
#[cfg(feature = "cube")]
mod cube;
pub mod host;
pub mod noise;
mod norm;
pub mod perturb;
pub mod update;

pub use conv::{conv2d, conv2d_relu, conv2d_relu_pool, ready};
pub use noise::{NoiseKey, Stream};
pub use norm::{batch_norm, batch_norm_train};

/// Whether tensors of `device` lie in the host's memory and are computed there (burn's `flex`), so that a round trip is a copy
/// and a loop over rows may be faster than passes over whole tensors.
///
/// burn tells the kind of a device only to crates that enable its backend; its debug text says it to all.
pub fn on_host(device: &burn::tensor::Device) -> bool {
    format!("{device:?}").contains("Flex")
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    #[test]
    fn the_cpu_backend_is_known_with_and_without_autodiff() {
        assert!(super::on_host(&Device::flex()));
        assert!(super::on_host(&Device::flex().autodiff()));
    }
}
