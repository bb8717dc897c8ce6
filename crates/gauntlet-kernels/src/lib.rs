//! Arithmetic on tensors, and nothing else: steps, projections, named noise, augmentation, convolution on the CPU.
//!
//! This crate knows burn, but no model, no data set and no config.

pub mod augment;
mod conv;
pub mod noise;
pub mod perturb;

pub use conv::conv2d;
pub use noise::{NoiseKey, Stream};
