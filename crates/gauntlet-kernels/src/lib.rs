//! Perturbation arithmetic on tensors, and nothing else: steps, projections, named noise, augmentation.
//!
//! This crate knows burn, but no model, no data set and no config.

pub mod augment;
pub mod noise;
pub mod perturb;

pub use noise::{NoiseKey, Stream};
