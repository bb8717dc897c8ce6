//! Files of other tools, read without trusting them: PyTorch checkpoints, safetensors, ONNX models, NumPy arrays, and the ZIP archives that
//! two of them are. Knows nothing of tensors on devices.
//!
//! No length that a file states is allocated before that many bytes have arrived or are known to lie in the file, and nothing
//! that a pickle asks for is run.

pub mod npy;
pub mod onnx;
mod pickle;
mod protobuf;
mod safetensor;
mod torch;
pub mod weights;
pub mod zip;

pub use weights::{Dtype, Stored, WeightsFile};

/// What is wrong with a file; the caller knows which one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The file system's word.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// It contradicts itself or ends too early.
    #[error("damaged or cut short: {0}")]
    Damaged(String),
    /// It is whole, as far as one can see, but of a kind that is not read.
    #[error("{0}")]
    Unsupported(String),
    /// A pickle names something other than plain data.
    #[error(
        "its pickle asks for `{0}`, which is not plain data; nothing of it was run\n\n\
         hint: load it where you trust it and save the tensors alone, `torch.save(model.state_dict(), ...)`"
    )]
    Refused(String),
}

impl FormatError {
    pub(crate) fn damaged(problem: impl Into<String>) -> Self {
        Self::Damaged(problem.into())
    }

    pub(crate) fn unsupported(problem: impl Into<String>) -> Self {
        Self::Unsupported(problem.into())
    }
}

/// The `N` bytes at `at`, if they are there.
pub(crate) fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
