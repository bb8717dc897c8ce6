//! Arithmetic on tensors, and nothing else: steps, projections, named noise, augmentation, updates of weights, sums, convolution and
//! BatchNorm.
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
pub mod reduce;
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

/// Random tensors for tests, the same in every run: burn's generator is one of the process, which tests share in an order of chance.
#[cfg(test)]
mod samples {
    use std::cell::RefCell;

    use burn::tensor::{Device, Tensor, TensorData};
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    thread_local! {
        // Each test has a thread of its own.
        static NUMBERS: RefCell<StdRng> = RefCell::new(StdRng::seed_from_u64(0));
    }

    pub(crate) fn uniform<const D: usize>(shape: [usize; D], low: f32, high: f32) -> Tensor<D> {
        let values = NUMBERS.with_borrow_mut(|numbers| {
            let count = shape.iter().product();
            (0..count)
                .map(|_| numbers.random_range(low..high))
                .collect::<Vec<f32>>()
        });
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }
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
