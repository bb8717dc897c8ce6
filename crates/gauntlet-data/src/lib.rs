//! Image data sets: bytes in, ordered batches out.

pub mod arrays;
mod config;
pub mod corruptions;
mod dataset;
mod decode;
mod download;
mod error;
pub mod fetch;
pub mod files;
mod image_folder;
mod loader;
pub mod picture;
mod shuffle;
pub mod sources;

pub use config::{Augment, DataConfig, ExtraConfig, Source};
pub use dataset::{Dataset, Splits, load, load_test};
pub use error::DataError;
pub use image_folder::{Resize, picture as picture_file, pictures_below};
pub use loader::{Batch, Loader};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
