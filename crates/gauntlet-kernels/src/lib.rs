//! Perturbation arithmetic on tensors, and nothing else: steps, projections, named noise, augmentation; and the matrix
//! product that networks run on when they are attacked on the CPU.
//!
//! This crate knows burn, but no model, no data set and no config.

pub mod augment;
pub mod host;
pub mod noise;
pub mod perturb;
pub mod product;

pub use noise::{NoiseKey, Stream};
