use std::path::{Path, PathBuf};

use burn::tensor::Device;
use gauntlet_models::import::Weights;
use gauntlet_models::{Arch, named};
use gauntlet_train::checkpoint;
use serde_json::json;

use crate::args::Model;
use crate::failure::Failure;
use crate::output::{self, thousands};

/// Lists architectures and shows checkpoints.
pub(crate) fn model(command: Model) -> Result<(), Failure> {
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
    }
    Ok(())
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
    let parameters: u64 = tensors
        .iter()
        .filter(|tensor| !tensor.buffer)
        .map(|tensor| count(&tensor.shape))
        .sum();
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
