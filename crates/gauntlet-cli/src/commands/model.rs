use std::path::{Path, PathBuf};

use burn::tensor::Device;
use gauntlet_models::import::Weights;
use gauntlet_models::{Arch, Network, folder, named};
use gauntlet_train::checkpoint;
use serde_json::json;

use super::export::export;
use super::subject::Origin;
use crate::args::{Import, Model};
use crate::failure::Failure;
use crate::output::{self, say, thousands};

/// Lists architectures and shows checkpoints.
pub(crate) fn model(command: Model, quiet: bool) -> Result<(), Failure> {
    match command {
        Model::List { json } if json.json => {
            let list =
                Arch::ALL.map(|arch| json!({ "arch": arch.name(), "summary": arch.summary() }));
            output::print_json(&list);
        }
        Model::List { .. } => {
            let mut table = output::table(&["arch", "what it is"]);
            for arch in Arch::ALL {
                table.add_row([arch.name(), arch.summary()]);
            }
            output::print(table.trim_fmt());
        }
        Model::Show { path, json } => show(&path, json.json)?,
        Model::Import(args) => import(&args, quiet)?,
        Model::Export(args) => export(&args, quiet)?,
    }
    Ok(())
}

/// Takes in a weights file of another tool.
fn import(args: &Import, quiet: bool) -> Result<(), Failure> {
    let takes = args.images.takes(args.weights.classes);
    let takes = takes.map_err(Failure::request)?;
    let subject = args.weights.subject(&args.file, takes.as_ref());
    if let Origin::Checkpoint(folder) = subject.origin()? {
        return Err(Failure::request(format!(
            "{} is a checkpoint already: every command takes it as it is",
            folder.display()
        )));
    }
    let loaded = subject.load(&Device::flex())?;
    if loaded.description.config.arch == Arch::Onnx {
        return Err(Failure::request(format!(
            "{} is a whole network already: `audit`, `predict` and `model export` take it as it is, training by \
             `model = {{ arch = \"onnx\", file = ... }}`",
            args.file.display()
        )));
    }
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| Path::new("models").join(args.file.file_stem().unwrap_or_default()));
    if let Some(parent) = out.parent() {
        std::fs::create_dir_all(parent)
            .map_err(|error| Failure::running(format!("{}: {error}", parent.display())))?;
    }
    folder::save(&loaded.network, &loaded.description, &out)?;
    let parameters = parameters(&loaded.network);
    if args.json.json {
        output::print_json(&json!({
            "schema": 1,
            "folder": out,
            "model": loaded.description,
            "parameters": parameters,
            "notes": loaded.notes,
        }));
        return Ok(());
    }
    if !quiet {
        loaded.notes.iter().for_each(say);
    }
    let [channels, height, width] = loaded.description.shape;
    output::print(format!(
        "{}: {} parameters, images of {channels} x {height} x {width}, {} classes\n{}",
        loaded.description.config.arch,
        thousands(parameters),
        loaded.description.classes.len(),
        out.display()
    ));
    Ok(())
}

/// How many values are trained.
pub(super) fn parameters(network: &Network) -> u64 {
    let trained = named::list(network)
        .into_iter()
        .filter(|tensor| !tensor.buffer);
    trained
        .map(|tensor| tensor.shape.iter().product::<usize>() as u64)
        .sum()
}

/// Lists the tensors of a weights file of another tool.
fn show_file(path: &Path, json: bool) -> Result<(), Failure> {
    let tensors = Weights::open(path, None)?.list();
    if json {
        let tensors: Vec<_> = tensors
            .iter()
            .map(|tensor| json!({ "path": tensor.name, "shape": tensor.shape, "dtype": tensor.dtype }))
            .collect();
        output::print_json(&json!({ "schema": 1, "file": path, "tensors": tensors }));
        return Ok(());
    }
    let mut table = output::table(&["tensor", "shape", "type", ">values"]);
    let mut total = 0;
    for tensor in &tensors {
        let shape: Vec<_> = tensor.shape.iter().map(usize::to_string).collect();
        let values = tensor.shape.iter().product::<usize>() as u64;
        total += values;
        table.add_row([
            &tensor.name,
            &shape.join(" x "),
            &tensor.dtype,
            &thousands(values),
        ]);
    }
    output::print(format!(
        "{}\n{} tensors, {} values\n{}",
        table.trim_fmt(),
        tensors.len(),
        thousands(total),
        path.display()
    ));
    Ok(())
}

fn show(path: &Path, json: bool) -> Result<(), Failure> {
    if path.is_file() {
        return show_file(path, json);
    }
    let folder = checkpoint_in(path)?;
    let (network, description) = checkpoint::load_network(&folder, &Device::flex())?;
    let tensors = named::list(&network);
    let count = |shape: &[usize]| shape.iter().product::<usize>() as u64;
    let parameters = parameters(&network);
    if json {
        let tensors: Vec<_> = tensors
            .iter()
            .map(|tensor| json!({ "path": tensor.path, "shape": tensor.shape, "buffer": tensor.buffer }))
            .collect();
        output::print_json(&json!({
            "schema": 1,
            "checkpoint": folder,
            "model": description,
            "parameters": parameters,
            "tensors": tensors,
        }));
        return Ok(());
    }
    let mut table = output::table(&["tensor", "shape", ">values"]);
    for tensor in &tensors {
        let shape: Vec<_> = tensor.shape.iter().map(usize::to_string).collect();
        let role = if tensor.buffer { " (statistic)" } else { "" };
        let name = format!("{}{role}", tensor.path);
        table.add_row([name, shape.join(" x "), thousands(count(&tensor.shape))]);
    }
    let [channels, height, width] = description.shape;
    output::print(format!(
        "{}\n{}: {} parameters, images of {channels} x {height} x {width}, {} classes\n{}",
        table.trim_fmt(),
        description.config.arch,
        thousands(parameters),
        description.classes.len(),
        folder.display()
    ));
    Ok(())
}

/// The checkpoint that `path` means: itself, or the best of the run it is.
pub(crate) fn checkpoint_in(path: &Path) -> Result<PathBuf, Failure> {
    if path.join("MANIFEST.json").exists() {
        return Ok(path.to_owned());
    }
    checkpoint::best(path).ok_or_else(|| {
        Failure::request(format!(
            "{} holds no checkpoint\n\nhint: give a run's folder or one of its `checkpoints/step-…`",
            path.display()
        ))
    })
}
