//! Weights to and from safetensors files, with a SHA-256 for every tensor.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, TensorData};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use crate::{ModelError, named};

/// Largest weights file that is read: more than any network here, less than memory.
const MAX_BYTES: u64 = 8 << 30;

/// Writes every parameter and running statistic of `model` to a safetensors file and syncs it; returns the SHA-256 of each
/// tensor by path.
///
/// # Errors
/// [`ModelError::Write`] if the file cannot be written.
pub fn save<M: Module>(
    model: &M,
    metadata: &BTreeMap<String, String>,
    path: &Path,
) -> Result<BTreeMap<String, String>, ModelError> {
    save_tensors(&named::data(model), metadata, path)
}

/// Writes named `f32` tensors to a safetensors file and syncs it; returns the SHA-256 of each.
///
/// # Errors
/// [`ModelError::Write`] if the file cannot be written.
pub fn save_tensors(
    tensors: &BTreeMap<String, TensorData>,
    metadata: &BTreeMap<String, String>,
    path: &Path,
) -> Result<BTreeMap<String, String>, ModelError> {
    let wrong = |problem: String| ModelError::Weights {
        path: path.to_owned(),
        problem,
    };
    let bytes: BTreeMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, data)| (name, little_endian(data)))
        .collect();
    let views = tensors
        .iter()
        .map(|(name, data)| {
            Ok((
                name.clone(),
                TensorView::new(Dtype::F32, data.shape().to_vec(), &bytes[name])?,
            ))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|error| wrong(error.to_string()))?;
    let metadata: HashMap<String, String> = metadata.clone().into_iter().collect();
    let file =
        safetensors::serialize(views, Some(metadata)).map_err(|error| wrong(error.to_string()))?;
    let write = || {
        fs::write(path, &file)?;
        fs::File::open(path)?.sync_all()
    };
    write().map_err(|source| ModelError::Write {
        path: path.to_owned(),
        source,
    })?;
    Ok(bytes
        .into_iter()
        .map(|(name, bytes)| (name.clone(), sha256(&bytes)))
        .collect())
}

/// Loads what [`save`] wrote into a model of the same architecture, bit for bit. Nothing is loaded by halves: a missing or
/// unexpected tensor, a wrong shape, or a hash that differs from `expected` (where given) is an error that names it.
///
/// # Errors
/// [`ModelError::Weights`].
pub fn load<M: Module>(
    model: M,
    path: &Path,
    expected: Option<&BTreeMap<String, String>>,
) -> Result<M, ModelError> {
    let wrong = |problem: String| ModelError::Weights {
        path: path.to_owned(),
        problem,
    };
    let tensors = load_tensors(path, expected)?;
    let wanted = named::list(&model);
    for tensor in &wanted {
        match tensors.get(&tensor.path) {
            None => return Err(wrong(format!("tensor `{}` is missing", tensor.path))),
            Some(data) if data.shape().to_vec() != tensor.shape => {
                let problem = format!(
                    "tensor `{}` is {:?}, not {:?}",
                    tensor.path,
                    data.shape().to_vec(),
                    tensor.shape
                );
                return Err(wrong(problem));
            }
            Some(_) => {}
        }
    }
    if let Some(extra) = tensors
        .keys()
        .find(|name| !wanted.iter().any(|tensor| tensor.path == **name))
    {
        return Err(wrong(format!(
            "tensor `{extra}` has no place in this network"
        )));
    }
    let tracked = model.devices().iter().any(|device| device.is_autodiff());
    let loaded = named::with_data(&model, tensors);
    Ok(if tracked { loaded.train() } else { loaded })
}

/// Reads the named `f32` tensors of a safetensors file.
///
/// # Errors
/// [`ModelError::Weights`] if it cannot be read, holds another type, or a hash differs from `expected`.
pub fn load_tensors(
    path: &Path,
    expected: Option<&BTreeMap<String, String>>,
) -> Result<BTreeMap<String, TensorData>, ModelError> {
    let wrong = |problem: String| ModelError::Weights {
        path: path.to_owned(),
        problem,
    };
    let size = fs::metadata(path)
        .map_err(|error| wrong(error.to_string()))?
        .len();
    if size > MAX_BYTES {
        return Err(wrong(format!(
            "{size} bytes are more than any network here has"
        )));
    }
    let file = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let parsed = SafeTensors::deserialize(&file)
        .map_err(|error| wrong(format!("not a whole safetensors file ({error})")))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in parsed.iter() {
        if view.dtype() != Dtype::F32 {
            return Err(wrong(format!(
                "tensor `{name}` holds {:?}, not F32",
                view.dtype()
            )));
        }
        if let Some(hash) = expected.and_then(|hashes| hashes.get(name)) {
            let found = sha256(view.data());
            if found != *hash {
                return Err(wrong(format!(
                    "tensor `{name}` is damaged: SHA-256 {found}, not {hash}"
                )));
            }
        }
        let values: Vec<f32> = view
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect();
        tensors.insert(
            name.to_owned(),
            TensorData::new(values, view.shape().to_vec()),
        );
    }
    if let Some(missing) =
        expected.and_then(|hashes| hashes.keys().find(|name| !tensors.contains_key(*name)))
    {
        return Err(wrong(format!("tensor `{missing}` is missing")));
    }
    Ok(tensors)
}

/// SHA-256 of each tensor of `model` by path, independent of parameter ids and file layout.
pub fn hashes<M: Module>(model: &M) -> BTreeMap<String, String> {
    named::data(model)
        .iter()
        .map(|(name, data)| (name.clone(), sha256(&little_endian(data))))
        .collect()
}

fn little_endian(data: &TensorData) -> Vec<u8> {
    let data = data.clone().convert_dtype(DType::F32);
    let values: Vec<f32> = data.try_to_vec().expect("converted to f32");
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// SHA-256 of `bytes` in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::*;
    use crate::{Arch, Classifier, ModelConfig, Network};

    fn network(seed: u64, device: &Device) -> Network {
        let config: ModelConfig =
            serde_json::from_str(r#"{"arch":"wide-resnet","depth":10,"width":1}"#).unwrap();
        assert_eq!(config.arch, Arch::WideResnet);
        config.init([1, 8, 8], 3, seed, device).unwrap()
    }

    fn problem(result: Result<Network, ModelError>) -> String {
        result.expect_err("a bad file was loaded").to_string()
    }

    #[test]
    fn a_round_trip_is_exact_and_leaves_the_receiver_s_clones_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let device = Device::flex();
        let model = network(1, &device.clone().autodiff());
        model.logits(Tensor::<4>::full([4, 1, 8, 8], 0.3, &device).autodiff());
        let written = save(&model, &BTreeMap::new(), &path).unwrap();
        assert_eq!(written, hashes(&model));
        let other = network(2, &device.clone().autodiff());
        let before = hashes(&other);
        let loaded = load(other.clone(), &path, Some(&written)).unwrap();
        assert_eq!(hashes(&loaded), written);
        assert_eq!(hashes(&other), before, "loading wrote through a clone");
        assert!(loaded.devices().iter().any(|device| device.is_autodiff()));
    }

    #[test]
    fn bad_files_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let device = Device::flex();
        let model = network(1, &device);
        let hashes = save(&model, &BTreeMap::new(), &path).unwrap();
        let good = fs::read(&path).unwrap();

        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(&path, &flipped).unwrap();
        assert!(problem(load(model.clone(), &path, Some(&hashes))).contains("damaged"));

        for bad in [&good[..good.len() / 2], b"not weights", &[0xff; 64], &[]] {
            fs::write(&path, bad).unwrap();
            assert!(problem(load(model.clone(), &path, None)).contains("safetensors"));
        }

        let mut tensors = named::data(&model);
        let first = tensors.keys().next().unwrap().clone();
        tensors.insert("stray".to_owned(), TensorData::new(vec![1.0f32], [1]));
        save_tensors(&tensors, &BTreeMap::new(), &path).unwrap();
        assert!(problem(load(model.clone(), &path, None)).contains("`stray`"));
        tensors.remove("stray");
        tensors.insert(first.clone(), TensorData::new(vec![1.0f32], [1]));
        save_tensors(&tensors, &BTreeMap::new(), &path).unwrap();
        assert!(problem(load(model.clone(), &path, None)).contains(&first));
        tensors.remove(&first);
        save_tensors(&tensors, &BTreeMap::new(), &path).unwrap();
        assert!(problem(load(model, &path, None)).contains("missing"));
    }
}
