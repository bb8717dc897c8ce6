//! A network in a folder: `model.safetensors`, `model.json` that says what it is, and `MANIFEST.json` with the SHA-256 of each
//! tensor and of the description. Checkpoints of a training are such folders, with more in them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::Device;
use serde_json::{Value, json};

use crate::{Description, ModelError, Network, weights};

const MODEL: &str = "model.safetensors";
const DESCRIPTION: &str = "model.json";
const MANIFEST: &str = "MANIFEST.json";

/// Writes `network` to `folder`, which must not hold anything yet; returns the SHA-256 of each tensor by path. The folder is whole or not
/// there: it is filled beside its place and renamed.
///
/// # Errors
/// [`ModelError::Write`] if it is there already, or cannot be written.
pub fn save(
    network: &Network,
    description: &Description,
    folder: &Path,
) -> Result<BTreeMap<String, String>, ModelError> {
    let wrong = |source: std::io::Error| ModelError::Write {
        path: folder.to_owned(),
        source,
    };
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        let problem = "there is something in this folder already";
        return Err(wrong(std::io::Error::other(problem)));
    }
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let staging = folder.with_file_name(format!(".{name}.partial"));
    let _ = fs::remove_dir_all(&staging);
    let written = stage(network, description, &staging).and_then(|hashes| {
        let _ = fs::remove_dir(folder);
        fs::rename(&staging, folder).map_err(wrong)?;
        Ok(hashes)
    });
    if written.is_err() {
        let _ = fs::remove_dir_all(&staging);
    }
    written
}

fn stage(
    network: &Network,
    description: &Description,
    staging: &Path,
) -> Result<BTreeMap<String, String>, ModelError> {
    let write = |name: &str, bytes: &[u8]| {
        let path = staging.join(name);
        let write = || {
            fs::write(&path, bytes)?;
            fs::File::open(&path)?.sync_all()
        };
        write().map_err(|source| ModelError::Write {
            path: path.clone(),
            source,
        })
    };
    fs::create_dir_all(staging).map_err(|source| ModelError::Write {
        path: staging.to_owned(),
        source,
    })?;
    let hashes = weights::save(network, &BTreeMap::new(), &staging.join(MODEL))?;
    let text = pretty(&json!(description));
    write(DESCRIPTION, &text)?;
    let manifest = json!({
        "schema": 1,
        "version": env!("CARGO_PKG_VERSION"),
        "tensors": { MODEL: &hashes },
        "files": { DESCRIPTION: weights::sha256(&text) },
    });
    write(MANIFEST, &pretty(&manifest))?;
    Ok(hashes)
}

/// The network of a folder into `description`, which must describe the same network.
///
/// # Errors
/// [`ModelError::Weights`] naming what is missing, damaged or different.
pub fn load_as(
    folder: &Path,
    description: &Description,
    device: &Device,
) -> Result<Network, ModelError> {
    let wrong = |problem: String| ModelError::Weights {
        path: folder.to_owned(),
        problem,
    };
    let read =
        |name: &str| fs::read(folder.join(name)).map_err(|error| wrong(format!("{name}: {error}")));
    let parse = |name: &str, bytes: &[u8]| -> Result<Value, ModelError> {
        serde_json::from_slice(bytes).map_err(|error| wrong(format!("{name}: {error}")))
    };
    let manifest = parse(MANIFEST, &read(MANIFEST)?)?;
    let text = read(DESCRIPTION)?;
    if manifest["files"][DESCRIPTION] != weights::sha256(&text) {
        return Err(wrong(format!(
            "{DESCRIPTION} is damaged: it is not what {MANIFEST} says"
        )));
    }
    let found: Description = serde_json::from_value(parse(DESCRIPTION, &text)?)
        .map_err(|error| wrong(format!("{DESCRIPTION}: {error}")))?;
    let same = found.config.same_network(&description.config)
        && found.shape == description.shape
        && found.classes.len() == description.classes.len();
    if !same {
        return Err(wrong(format!(
            "it holds {}, which is not {}",
            described(&found),
            described(description)
        )));
    }
    let hashes: BTreeMap<String, String> =
        serde_json::from_value(manifest["tensors"][MODEL].clone())
            .map_err(|error| wrong(format!("{MANIFEST}: {error}")))?;
    let network = description.init(0, device)?;
    weights::load(network, &folder.join(MODEL), Some(&hashes))
}

/// `{"arch":"mlp"} for images of [1, 8, 8] in 10 classes`
fn described(description: &Description) -> String {
    let mut config = description.config.clone();
    config.weights = None;
    format!(
        "{} for images of {:?} in {} classes",
        json!(config),
        description.shape,
        description.classes.len()
    )
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("plain values serialise");
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arch, ModelConfig};

    fn description(arch: Arch) -> Description {
        Description {
            config: ModelConfig::of(arch),
            shape: [1, 8, 8],
            classes: vec!["a".to_owned(), "b".to_owned()],
        }
    }

    #[test]
    fn a_folder_is_read_as_what_it_is_and_training_starts_from_it() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("net");
        let device = Device::flex();
        let mlp = description(Arch::Mlp);
        let network = mlp.init(3, &device).unwrap();
        let hashes = save(&network, &mlp, &folder).unwrap();
        let loaded = load_as(&folder, &mlp, &device).unwrap();
        assert_eq!(weights::hashes(&loaded), hashes);
        assert!(
            save(&network, &mlp, &folder).is_err(),
            "it was written over"
        );

        for path in [folder.clone(), folder.join(MODEL)] {
            let mut start = mlp.clone();
            start.config.weights = Some(path);
            let started = start.start(7, &device.clone().autodiff()).unwrap();
            assert_eq!(weights::hashes(&started), hashes);
            let devices = burn::module::Module::devices(&started);
            assert!(devices.iter().all(Device::is_autodiff));
        }

        let other = load_as(&folder, &description(Arch::MnistCnn), &device);
        assert!(other.unwrap_err().to_string().contains("mnist-cnn"));
        fs::write(folder.join(DESCRIPTION), "{}").unwrap();
        let damaged = load_as(&folder, &mlp, &device).unwrap_err();
        assert!(damaged.to_string().contains("damaged"), "{damaged}");
    }
}
