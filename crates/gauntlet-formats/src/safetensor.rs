//! The list of tensors of a safetensors file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};

use crate::weights::Place;
use crate::{Dtype, FormatError, Stored};

/// Largest header that is read: some hundred bytes a tensor.
const MAX_HEADER: u64 = 16 << 20;

/// Reads the header and checks that the tensors lie in the file, one after another, and fill it.
pub(crate) fn open(file: &mut File, length: u64) -> Result<BTreeMap<String, Stored>, FormatError> {
    file.rewind()?;
    let mut size = [0; 8];
    file.read_exact(&mut size)?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER || size + 8 > length {
        return Err(FormatError::damaged(format!(
            "not a safetensors file: its header has {size} bytes"
        )));
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header)?;
    let metadata: safetensors::tensor::Metadata = serde_json::from_slice(&header)
        .map_err(|error| FormatError::Damaged(format!("its safetensors header: {error}")))?;
    let start = size + 8;
    if start.checked_add(metadata.data_len() as u64) != Some(length) {
        return Err(FormatError::damaged(
            "its tensors do not fill the safetensors file, or do not fit into it",
        ));
    }
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let stored = Stored {
            shape: info.shape.clone(),
            dtype: dtype(info.dtype),
            place: Place::At(start + info.data_offsets.0 as u64),
        };
        (name, stored)
    });
    Ok(tensors.collect())
}

fn dtype(dtype: safetensors::Dtype) -> Option<Dtype> {
    use safetensors::Dtype as Theirs;
    Some(match dtype {
        Theirs::F64 => Dtype::F64,
        Theirs::F32 => Dtype::F32,
        Theirs::F16 => Dtype::F16,
        Theirs::BF16 => Dtype::BF16,
        Theirs::I64 => Dtype::I64,
        Theirs::I32 => Dtype::I32,
        Theirs::I16 => Dtype::I16,
        Theirs::I8 => Dtype::I8,
        Theirs::U8 => Dtype::U8,
        Theirs::BOOL => Dtype::Bool,
        _ => return None,
    })
}
