//! Models out to other tools.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use gauntlet_data::files;
use gauntlet_models::{export as out, weights};
use gauntlet_train::Plan;
use serde_json::{Value, json};

use super::audit::run_of;
use super::card::Card;
use super::subject::{Loaded, Origin};
use crate::args::{Export, Format};
use crate::config::reason;
use crate::failure::Failure;
use crate::output::{self, say};

/// PyTorch modules that the weights load into.
const NETWORKS: &str = include_str!("../../../../scripts/peers/networks.py");

/// Writes a model for other tools.
pub(crate) fn export(args: &Export, quiet: bool) -> Result<(), Failure> {
    let takes = args.images.takes(args.weights.classes);
    let takes = takes.map_err(Failure::request)?;
    let subject = args.weights.subject(&args.model, takes.as_ref());
    let loaded = subject.load(&Device::flex())?;
    if !quiet {
        loaded.notes.iter().for_each(say);
    }
    let plan = run_of(&args.model);
    let audit = audit(args, &loaded.origin)?;
    let about = About {
        loaded: &loaded,
        plan: plan.as_ref(),
        audit: audit.as_ref(),
        hash: hash(&weights::hashes(&loaded.network)),
        name: name(&args.model),
    };
    let folder = args
        .out
        .clone()
        .unwrap_or_else(|| Path::new("exports").join(&about.name));
    fs::create_dir_all(&folder)
        .map_err(|error| Failure::running(format!("{}: {}", folder.display(), reason(&error))))?;
    let mut written: Vec<PathBuf> = Vec::new();
    let mut write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        files::write(&path, bytes)
            .map_err(|error| Failure::running(format!("{}: {}", path.display(), reason(&error))))?;
        written.push(path);
        Ok::<_, Failure>(())
    };
    let wanted = |format: Format| args.format == format || args.format == Format::All;
    let named = out::has_state_dict(loaded.description.config.arch);
    if args.format == Format::Safetensors || args.format == Format::All && named {
        let staging = tempfile_in(&folder)?;
        let description = &loaded.description;
        out::safetensors(
            &loaded.network,
            description,
            about.metadata().to_string(),
            &staging,
        )?;
        let bytes = fs::read(&staging).map_err(|error| Failure::running(error.to_string()));
        let _ = fs::remove_file(&staging);
        write("model.safetensors", &bytes?)?;
        write("networks.py", NETWORKS.as_bytes())?;
    }
    if wanted(Format::Onnx) {
        let model = out::onnx(&loaded.network, &loaded.description, about.properties());
        write("model.onnx", &model.to_bytes())?;
    }
    if wanted(Format::Card) {
        write("README.md", about.card(named).to_string().as_bytes())?;
    }
    let lines: Vec<_> = written
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    output::print(lines.join("\n"));
    Ok(())
}

/// A name for weights that are being written.
fn tempfile_in(folder: &Path) -> Result<PathBuf, Failure> {
    Ok(folder.join(".model.safetensors.partial"))
}

/// The run's name rather than the checkpoint's.
fn name(model: &Path) -> String {
    let whole = model.canonicalize().unwrap_or_else(|_| model.to_owned());
    let step = |path: &Path| {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        (name.starts_with("step-"), name)
    };
    match step(&whole) {
        (true, _) => {
            let run = whole.ancestors().nth(2).unwrap_or(&whole);
            step(run).1
        }
        (false, _) => whole
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    }
}

/// The audit that was named, else the one that is kept with the checkpoint.
fn audit(args: &Export, origin: &Origin) -> Result<Option<Value>, Failure> {
    let wrong =
        |path: &Path, problem: String| Failure::request(format!("{}: {problem}", path.display()));
    let path = match (&args.audit, origin) {
        (Some(path), _) => path.clone(),
        (None, Origin::Checkpoint(folder)) => folder.join("audit/audit.json"),
        (None, Origin::File(_)) => return Ok(None),
    };
    if args.audit.is_none() && !path.exists() {
        return Ok(None);
    }
    let text = fs::read(&path).map_err(|error| wrong(&path, reason(&error)))?;
    let audit: Value =
        serde_json::from_slice(&text).map_err(|error| wrong(&path, error.to_string()))?;
    if audit["schema"] != 1 || !audit["threats"].is_array() {
        return Err(wrong(&path, "this is no audit.json".to_owned()));
    }
    Ok(Some(audit))
}

/// SHA-256 of the lines `NAME HASH` of all tensors, sorted by name: one number for all weights, whatever file they are in.
fn hash(tensors: &BTreeMap<String, String>) -> String {
    let lines: String = tensors
        .iter()
        .map(|(name, hash)| format!("{name} {hash}\n"))
        .collect();
    gauntlet_models::weights::sha256(lines.as_bytes())
}

/// What is known of a model.
struct About<'a> {
    loaded: &'a Loaded,
    plan: Option<&'a Plan>,
    audit: Option<&'a Value>,
    hash: String,
    name: String,
}

impl About<'_> {
    /// For the safetensors file: all that `networks.py` needs.
    fn metadata(&self) -> Value {
        json!({
            "schema": 1,
            "version": env!("CARGO_PKG_VERSION"),
            "name": self.name,
            "model": self.loaded.description,
            "weights_sha256": self.hash,
        })
    }

    /// For the ONNX model.
    fn properties(&self) -> BTreeMap<String, String> {
        let description = &self.loaded.description;
        let mut properties = BTreeMap::from([
            ("name".to_owned(), self.name.clone()),
            (
                "architecture".to_owned(),
                description.config.arch.to_string(),
            ),
            ("input_range".to_owned(), "[0, 1]".to_owned()),
            ("classes".to_owned(), json!(description.classes).to_string()),
            ("weights_sha256".to_owned(), self.hash.clone()),
            (
                "exported_by".to_owned(),
                format!("gauntlet {}", env!("CARGO_PKG_VERSION")),
            ),
        ]);
        if let Some(plan) = self.plan {
            let threat = plan.threat.model().to_string();
            properties.insert("trained_against".to_owned(), threat);
        }
        if let Some(audit) = self.audit {
            let mut short = serde_json::Map::new();
            for key in [
                "data",
                "clean_accuracy",
                "seed",
                "device",
                "version",
                "plan",
            ] {
                if let Some(value) = audit.get(key) {
                    short.insert(key.to_owned(), value.clone());
                }
            }
            let threats = audit["threats"].as_array().into_iter().flatten();
            let threats = threats.map(|threat| {
                json!({ "threat": threat["threat"], "robust_accuracy": threat["robust_accuracy"] })
            });
            short.insert("threats".to_owned(), threats.collect());
            properties.insert("audit".to_owned(), Value::Object(short).to_string());
        }
        properties
    }

    fn card(&self, pytorch: bool) -> Card<'_> {
        Card {
            name: &self.name,
            description: &self.loaded.description,
            parameters: super::model::parameters(&self.loaded.network),
            plan: self.plan,
            audit: self.audit,
            hash: &self.hash,
            pytorch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_named_after_the_run() {
        for (path, expected) in [
            ("runs/a/checkpoints/step-00000010", "a"),
            ("runs/a", "a"),
            ("nets/b.pth", "b"),
        ] {
            assert_eq!(name(Path::new(path)), expected);
        }
    }
}
