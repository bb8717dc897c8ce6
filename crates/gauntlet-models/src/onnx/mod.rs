//! ONNX: networks drawn as graphs, and graphs run as networks.

mod draft;
mod load;
mod named_modules;
mod network;
mod ops;
mod run;
#[cfg(test)]
mod tests;
mod value;

pub(crate) use draft::{Draft, Value};
pub use network::OnnxNetwork;

/// The version of the standard operators that networks are exported with.
pub const OPSET: i64 = 17;
