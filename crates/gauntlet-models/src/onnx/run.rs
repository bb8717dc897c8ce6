//! Runs a program.

use burn::nn::BatchNorm;
use burn::tensor::{Tensor, TensorData};
use gauntlet_formats::onnx::{Attribute, Values};

use super::load::{Program, called};
use super::ops::Call;
use super::value::{Float, Flow, Ints};

/// What is computed, sorted.
pub(crate) const OPERATORS: [&str; 53] = [
    "Abs",
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Clip",
    "Concat",
    "Conv",
    "Div",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Gather",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "MatMul",
    "MaxPool",
    "Mul",
    "Neg",
    "PRelu",
    "Pad",
    "Pow",
    "Reciprocal",
    "ReduceMax",
    "ReduceMean",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Shape",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Softplus",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Tanh",
    "Transpose",
    "Unsqueeze",
];

/// Most values at once for each image.
const MOST: usize = 1 << 26;

/// The logits of `x`, or the value at `until`, which are rows.
pub(crate) fn run(
    program: &Program,
    weights: Vec<Float>,
    norms: &[&BatchNorm],
    x: Tensor<4>,
    until: Option<usize>,
) -> Result<Tensor<2>, String> {
    let until = until.unwrap_or(program.output);
    let device = x.device().inner();
    let most = MOST.saturating_mul(x.dims()[0].max(1));
    let mut values: Vec<Option<Flow>> = vec![None; program.names.len()];
    for (at, stored) in &program.constants {
        values[*at] = Some(match &stored.values {
            Values::Ints(values) => Flow::Ints(Ints {
                values: values.clone(),
                is_list: !stored.shape.is_empty(),
            }),
            Values::Floats(floats) => {
                let data = TensorData::new(floats.clone(), [floats.len()]);
                let flat = Float::of(Tensor::<1>::from_data(data, &device));
                Flow::Float(flat.reshaped(&stored.shape)?)
            }
        });
    }
    for (at, weight) in program.weights.iter().zip(weights) {
        values[*at] = Some(Flow::Float(weight));
    }
    values[program.input] = Some(Flow::Float(Float::of(x)));
    for step in &program.steps {
        if values[until].is_some() {
            break;
        }
        let inputs = step
            .inputs
            .iter()
            .map(|at| values[(*at)?].clone())
            .collect();
        let call = Call {
            node: &step.node,
            opset: program.opset,
            most,
            inputs,
            outputs: step.outputs.len(),
            norm: step.norm.map(|at| norms[at]),
        };
        let given = call
            .answer()
            .map_err(|problem| format!("the operator {}: {problem}", called(&step.node)))?;
        for (at, given) in step.outputs.iter().zip(given) {
            if let Some(at) = at {
                values[*at] = Some(given);
            }
        }
        for &at in step.free.iter().filter(|&&at| at != until) {
            values[at] = None;
        }
    }
    match values[until].take() {
        Some(Flow::Float(float)) if float.rank == 2 => float.as_rank(),
        Some(Flow::Float(float)) => Err(format!(
            "its result has the shape {:?}, not rows of logits",
            float.shape()
        )),
        _ => Err("its result is not made of numbers".to_owned()),
    }
}

impl Call<'_> {
    /// What the operator gives.
    fn answer(&self) -> Result<Vec<Flow>, String> {
        // Whole numbers are shapes: there is little to do with them.
        if let Some(flow) = self.on_ints()? {
            return Ok(vec![flow]);
        }
        let one = |float: Float| Ok(vec![Flow::Float(float)]);
        match self.node.op.as_str() {
            "Identity" | "Dropout" | "Cast" => one(self.x()?.clone()),
            "BatchNormalization" => one(self.batch_norm()?),
            "Conv" => one(self.conv()?),
            "Gemm" => one(self.gemm()?),
            "MatMul" => one(self.mat_mul()?),
            "MaxPool" | "AveragePool" => one(self.pool()?),
            "GlobalAveragePool" | "GlobalMaxPool" => one(self.global_pool()?),
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "PRelu" => one(self.pair()?),
            "Sum" => one(self.sum()?),
            "Softmax" | "LogSoftmax" => one(self.softmax()?),
            "LayerNormalization" => one(self.layer_norm()?),
            "Clip" => one(self.clip()?),
            "ReduceMean" | "ReduceSum" | "ReduceMax" => one(self.reduce()?),
            "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" | "Expand" => one(self.reshape()?),
            "Transpose" => one(self.transpose()?),
            "Concat" => one(self.concat()?),
            "Gather" => one(self.gather()?),
            "Slice" => one(self.slice()?),
            "Pad" => one(self.pad()?),
            "Split" => Ok(self.split()?.into_iter().map(Flow::Float).collect()),
            "Shape" => {
                let shape = self.x()?.shape();
                let (from, to) = self.part_of(shape.len());
                let sizes = shape[from..to.max(from)].iter().map(|&size| size as i64);
                Ok(vec![Flow::Ints(Ints::list(sizes.collect()))])
            }
            _ => one(self.unary()?),
        }
    }

    /// `start` and `end` of `Shape`.
    fn part_of(&self, rank: usize) -> (usize, usize) {
        let at = |name: &str, default: usize| match self.node.attributes.get(name) {
            Some(Attribute::Int(at)) if *at < 0 => rank.saturating_sub(at.unsigned_abs() as usize),
            Some(Attribute::Int(at)) => (*at as usize).min(rank),
            _ => default,
        };
        (at("start", 0), at("end", rank))
    }
}
