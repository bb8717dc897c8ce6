//! Networks out to other tools: state dicts of PyTorch in safetensors files, and ONNX models.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::Module;
use burn::tensor::TensorData;
use gauntlet_formats::onnx::{Model, Port, Size};

use crate::import::names;
use crate::onnx::{Draft, Value};
use crate::{Arch, Description, ModelError, Network, named, weights};

/// The tensors of `network` as PyTorch's state dicts have them: names of the repository that the architecture is known from, linear weights `[out, in]`.
/// Counters of BatchNorm are left out: PyTorch's strict loading does without.
///
/// # Errors
/// [`ModelError::Config`] for a network that came from an ONNX file: its layers have no names in PyTorch.
pub fn state_dict(
    network: &Network,
    description: &Description,
) -> Result<BTreeMap<String, TensorData>, ModelError> {
    let all = named::list(network);
    let arch = description.config.arch;
    let theirs = names::outward(&all, arch).ok_or_else(|| ModelError::Config {
        key: "arch",
        problem: format!("`{arch}` has no names in PyTorch; export it as ONNX"),
    })?;
    let mut data = named::data(network);
    let mut dict = BTreeMap::new();
    for (tensor, name) in all.iter().zip(theirs) {
        let Some(values) = data.remove(&tensor.path) else {
            continue;
        };
        let values = match tensor.shape[..] {
            [inputs, outputs] => turned(&values, inputs, outputs),
            _ => values,
        };
        dict.insert(name, values);
    }
    Ok(dict)
}

/// Writes [`state_dict`] to a safetensors file, with `about` in its metadata under `gauntlet`; returns the SHA-256 of each tensor.
///
/// # Errors
/// As [`state_dict`], and [`ModelError::Write`].
pub fn safetensors(
    network: &Network,
    description: &Description,
    about: String,
    path: &Path,
) -> Result<BTreeMap<String, String>, ModelError> {
    // One entry only: safetensors writes several in no fixed order.
    let metadata = BTreeMap::from([("gauntlet".to_owned(), about)]);
    weights::save_tensors(&state_dict(network, description)?, &metadata, path)
}

/// The network as an ONNX model in eval mode: input `input` in [0, 1] of any number of images, normalisation inside, output `logits`.
pub fn onnx(
    network: &Network,
    description: &Description,
    metadata: BTreeMap<String, String>,
) -> Model {
    // Statistics of BatchNorm are current in the copy only.
    let network = network.valid();
    let all = named::list(&network);
    let theirs = names::outward(&all, description.config.arch).unwrap_or_default();
    let theirs: HashMap<String, String> = all
        .into_iter()
        .zip(theirs)
        .map(|(tensor, name)| (tensor.path, name))
        .collect();
    let mut draft = Draft::new(theirs);
    let mut x = Value(INPUT.to_owned());
    if let Some((mean, std)) = network.normalisation() {
        let shape = [1, mean.len(), 1, 1];
        let mean = draft.constant("normalise.mean", &shape, mean.clone());
        let std = draft.constant("normalise.std", &shape, std.clone());
        x = draft.op("Sub", &[&x.0, &mean], &[]);
        x = draft.op("Div", &[&x.0, &std], &[]);
    }
    let logits = network.draw(&mut draft, &x);
    let mut graph = draft.graph;
    graph.name = description.config.arch.to_string();
    // The last operator gives what the graph gives.
    for node in &mut graph.nodes {
        let names = node.inputs.iter_mut().chain(&mut node.outputs);
        names
            .filter(|name| **name == logits.0)
            .for_each(|name| *name = OUTPUT.to_owned());
    }
    let batch = || Size::Any("batch".to_owned());
    let image = description.shape.map(Size::Fixed);
    graph.inputs = vec![Port::f32(
        INPUT,
        std::iter::once(batch()).chain(image).collect(),
    )];
    let classes = Size::Fixed(description.classes.len());
    graph.outputs = vec![Port::f32(OUTPUT, vec![batch(), classes])];
    Model {
        ir_version: 8,
        opset: network.opset(),
        producer: ["gauntlet".to_owned(), env!("CARGO_PKG_VERSION").to_owned()],
        metadata,
        graph,
    }
}

const INPUT: &str = "input";
const OUTPUT: &str = "logits";

/// Whether PyTorch has names for the layers of an architecture.
pub fn has_state_dict(arch: Arch) -> bool {
    arch != Arch::Onnx
}

/// `[inputs, outputs]` as `[outputs, inputs]`.
fn turned(data: &TensorData, inputs: usize, outputs: usize) -> TensorData {
    let values: Vec<f32> = data.try_to_vec().expect("weights are f32");
    let turned = (0..outputs).flat_map(|output| {
        let values = &values;
        (0..inputs).map(move |input| values[input * outputs + output])
    });
    TensorData::new(turned.collect::<Vec<f32>>(), [outputs, inputs])
}
