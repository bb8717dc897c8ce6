//! Image data sets: bytes in, ordered batches out.

mod config;
mod dataset;
mod error;
pub mod fetch;
pub mod image_folder;
mod loader;
pub mod picture;
pub mod sources;

pub use config::{Augment, DataConfig, Source};
pub use dataset::{Dataset, Splits, load};
pub use error::DataError;
pub use loader::{Batch, Loader};
