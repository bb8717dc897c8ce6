use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, Param, RunningState};
use burn::nn::{BatchNorm, BatchNormConfig};
use burn::tensor::{Device, Tensor, TensorData};
use gauntlet_formats::onnx::{Model, Node, Tensor as Stored, Values};

use super::draft::{Draft, Value, host};
use super::load::{self, Program, StoredNorm};
use super::named_modules::NamedModules;
use super::run;
use super::value::Float;
use crate::{Classifier, ModelError};

/// A network that an ONNX file describes. Weights and biases of its layers are parameters under their names in the file and can be trained;
/// BatchNorm trains as elsewhere. Inputs are what the file's graph takes: in [0, 1], unless a normalisation stands before.
#[derive(Module, Debug)]
pub struct OnnxNetwork {
    weights: NamedModules<Weight>,
    norms: NamedModules<BatchNorm>,
    #[module(skip)]
    program: Arc<Program>,
    #[module(skip)]
    classes: usize,
    /// What the last layer takes of each image.
    #[module(skip)]
    width: usize,
    #[module(skip)]
    notes: Vec<String>,
}

/// A tensor of one of the ranks that layers have.
#[derive(Module, Debug)]
pub(crate) enum Weight {
    One(Param<Tensor<1>>),
    Two(Param<Tensor<2>>),
    Three(Param<Tensor<3>>),
    Four(Param<Tensor<4>>),
}

impl OnnxNetwork {
    /// Reads a file and runs it on some images, so that what it cannot do is told now.
    ///
    /// # Errors
    /// [`ModelError::Weights`]: no such file or a damaged one, an operator that is not computed here (by name), not one input of images, or not one row of
    /// logits for each image.
    pub fn open(path: &Path, device: &Device) -> Result<Self, ModelError> {
        let wrong = |problem: String| ModelError::Weights {
            path: path.to_owned(),
            problem,
        };
        let model = Model::open(path).map_err(|error| wrong(error.to_string()))?;
        Self::new(model, device).map_err(wrong)
    }

    /// The network of a model.
    pub(crate) fn new(model: Model, device: &Device) -> Result<Self, String> {
        let loaded = load::load(model)?;
        let weights = loaded.weights.into_iter();
        let weights = weights.map(|stored| Ok((stored.name.clone(), Weight::new(stored, device)?)));
        let weights = weights.collect::<Result<Vec<_>, String>>()?;
        let mut names = HashSet::new();
        let mut norms = Vec::new();
        for (number, stored) in loaded.norms.into_iter().enumerate() {
            let mut name = stored.name.clone();
            if !names.insert(name.clone()) {
                name = format!("{name}.{number}");
                names.insert(name.clone());
            }
            norms.push((name, batch_norm(stored, device)?));
        }
        let mut network = Self {
            weights: NamedModules(weights),
            norms: NamedModules(norms),
            program: Arc::new(loaded.program),
            classes: 0,
            width: 0,
            notes: loaded.notes,
        };
        let tried = network.valid().try_out(&device.clone().inner())?;
        (network.classes, network.width) = tried;
        Ok(network)
    }

    /// Channels, height and width of its images.
    pub fn shape(&self) -> [usize; 3] {
        self.program.shape
    }

    /// How many classes it scores.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// What a person should know of how it was read.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    pub(crate) fn opset(&self) -> i64 {
        self.program.opset
    }

    fn run(&self, x: Tensor<4>, until: Option<usize>) -> Result<Tensor<2>, String> {
        let weights: Vec<Float> = self
            .weights
            .0
            .iter()
            .map(|(_, weight)| weight.value())
            .collect();
        let norms: Vec<&BatchNorm> = self.norms.0.iter().map(|(_, norm)| norm).collect();
        run::run(&self.program, weights, &norms, x, until)
    }

    /// Runs it on batches of one and of three images: what comes out has to be a row for each, which does not depend on the others.
    fn try_out(&self, device: &Device) -> Result<(usize, usize), String> {
        let [channels, height, width] = self.program.shape;
        let pixels = channels * height * width;
        let value = |i: usize| (0.5 + 0.5 * (0.37 * i as f64).sin()) as f32;
        let images = |count: usize| {
            let values: Vec<f32> = (0..count * pixels).map(value).collect();
            Tensor::<4>::from_data(
                TensorData::new(values, [count, channels, height, width]),
                device,
            )
        };
        let fixed = "\n\nhint: a graph for batches of one size only does not do: export it with a dynamic batch";
        let several = self
            .run(images(3), None)
            .map_err(|problem| format!("{problem}{fixed}"))?;
        let [rows, classes] = several.dims();
        if rows != 3 || classes < 2 {
            return Err(format!(
                "3 images give {rows} rows of {classes}, not 3 rows of logits{fixed}"
            ));
        }
        let one = self
            .run(images(1), None)
            .map_err(|problem| format!("{problem}{fixed}"))?;
        if one.dims() != [1, classes] {
            return Err(format!("one image gives {:?}{fixed}", one.dims()));
        }
        let (one, several) = (host(one), host(several));
        let off = one
            .iter()
            .zip(&several)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        let size = one
            .iter()
            .fold(1.0, |most: f32, value| most.max(value.abs()));
        if off > 1e-3 * size {
            return Err("what it says of an image depends on the others in the batch".to_owned());
        }
        match self.run(images(3), self.program.features)?.dims() {
            [3, width] => Ok((classes, width)),
            _ => Err("its last layer does not take a row for each image".to_owned()),
        }
    }

    /// Draws its graph again, with the weights as they are now.
    pub(crate) fn draw(&self, draft: &mut Draft, x: &Value) -> Value {
        let program = &self.program;
        // No name of the file meets one that is drawn.
        let name = |at: usize| match at {
            at if at == program.input => x.0.clone(),
            at => format!("net.{}", program.names[at]),
        };
        for (at, stored) in &program.constants {
            let stored = Stored {
                name: name(*at),
                ..stored.clone()
            };
            draft.graph.initializers.push(stored);
        }
        for (at, (_, weight)) in program.weights.iter().zip(&self.weights.0) {
            let value = weight.value();
            draft.constant(&name(*at), &value.shape(), host(value.data));
        }
        for (number, step) in program.steps.iter().enumerate() {
            let mut inputs: Vec<String> = step
                .inputs
                .iter()
                .map(|at| at.map(name).unwrap_or_default())
                .collect();
            if let Some((layer, norm)) = step.norm.map(|at| &self.norms.0[at]) {
                let tensors = [
                    ("weight", norm.gamma.val()),
                    ("bias", norm.beta.val()),
                    ("running_mean", norm.running_mean.value()),
                    ("running_var", norm.running_var.value()),
                ];
                for (place, (last, value)) in tensors.into_iter().enumerate() {
                    let channels = value.dims();
                    let name = format!("net.{layer}.{last}");
                    inputs[place + 1] = draft.constant(&name, &channels, host(value));
                }
            }
            let outputs = step
                .outputs
                .iter()
                .map(|at| at.map(name).unwrap_or_default());
            draft.graph.nodes.push(Node {
                name: format!("net.{number}"),
                inputs,
                outputs: outputs.collect(),
                ..step.node.clone()
            });
        }
        Value(name(program.output))
    }
}

impl Classifier<4> for OnnxNetwork {
    fn logits(&self, x: Tensor<4>) -> Tensor<2> {
        if x.dims()[0] == 0 {
            return Tensor::zeros([0, self.classes], &x.device());
        }
        self.run(x, None).expect("it ran when it was read")
    }

    fn features(&self, x: Tensor<4>) -> Tensor<2> {
        if x.dims()[0] == 0 {
            return Tensor::zeros([0, self.width], &x.device());
        }
        self.run(x, self.program.features)
            .expect("it ran when it was read")
    }
}

impl Weight {
    fn new(stored: Stored, device: &Device) -> Result<Self, String> {
        let shape = stored.shape;
        let Values::Floats(values) = stored.values else {
            return Err(format!("`{}` is no weight", stored.name));
        };
        let data = TensorData::new(values, shape.clone());
        Ok(match shape.len() {
            1 => Self::One(Param::from_data(data, device)),
            2 => Self::Two(Param::from_data(data, device)),
            3 => Self::Three(Param::from_data(data, device)),
            _ => Self::Four(Param::from_data(data, device)),
        })
    }

    fn value(&self) -> Float {
        match self {
            Self::One(weight) => Float::of(weight.val()),
            Self::Two(weight) => Float::of(weight.val()),
            Self::Three(weight) => Float::of(weight.val()),
            Self::Four(weight) => Float::of(weight.val()),
        }
    }
}

fn batch_norm(stored: StoredNorm, device: &Device) -> Result<BatchNorm, String> {
    let wrong = |what: &str| format!("BatchNorm `{}`: {what}", stored.name);
    let channels = stored.tensors[0].shape.iter().product::<usize>();
    if channels == 0
        || stored
            .tensors
            .iter()
            .any(|tensor| tensor.shape != [channels])
    {
        return Err(wrong("its tensors are not of one length"));
    }
    let (epsilon, momentum) = (f64::from(stored.epsilon), 1.0 - f64::from(stored.momentum));
    if !(epsilon.is_finite() && epsilon > 0.0 && (0.0..=1.0).contains(&momentum)) {
        return Err(wrong("its epsilon or momentum cannot be"));
    }
    let mut values = Vec::new();
    for tensor in &stored.tensors {
        match &tensor.values {
            Values::Floats(floats) => values.push(TensorData::new(floats.clone(), [channels])),
            Values::Ints(_) => return Err(wrong("its tensors are no weights")),
        }
    }
    let plain = device.clone().inner();
    let mut norm = BatchNormConfig::new(channels)
        .with_epsilon(epsilon)
        .with_momentum(momentum)
        .init(device);
    let mut next = values.into_iter();
    let mut take = || next.next().expect("there are four");
    norm.gamma = Param::from_data(take(), device);
    norm.beta = Param::from_data(take(), device);
    norm.running_mean = RunningState::new(Tensor::from_data(take(), &plain));
    norm.running_var = RunningState::new(Tensor::from_data(take(), &plain));
    Ok(norm)
}
