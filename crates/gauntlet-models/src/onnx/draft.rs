//! A graph that is being drawn, layer by layer.

use std::collections::{BTreeMap, HashMap};

use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, LayerNorm, Linear, PaddingConfig2d};
use burn::tensor::Tensor;
use gauntlet_formats::onnx::{Attribute, Graph, Node, Tensor as Stored};

use crate::Activation;

/// Name of something that the graph computes.
#[derive(Clone, Debug)]
pub(crate) struct Value(pub(crate) String);

/// Collects operators and weights. Weights are called as in PyTorch and lie as there.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) graph: Graph,
    /// By path in the network.
    names: HashMap<String, String>,
    counts: BTreeMap<String, usize>,
}

impl Draft {
    pub(crate) fn new(names: HashMap<String, String>) -> Self {
        Self {
            names,
            ..Self::default()
        }
    }

    /// Adds an operator with one result.
    pub(crate) fn op(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) -> Value {
        let count = self.counts.entry(op.to_owned()).or_default();
        let name = format!("{op}_{count}");
        *count += 1;
        let output = format!("{name}_out");
        self.graph.nodes.push(Node {
            name,
            op: op.to_owned(),
            inputs: inputs.iter().map(|&input| input.to_owned()).collect(),
            outputs: vec![output.clone()],
            attributes: attributes
                .iter()
                .map(|(name, attribute)| ((*name).to_owned(), attribute.clone()))
                .collect(),
            ..Node::default()
        });
        Value(output)
    }

    /// Adds a constant and returns its name.
    pub(crate) fn constant(&mut self, name: &str, shape: &[usize], values: Vec<f32>) -> String {
        let stored = Stored::floats(name, shape, values);
        self.graph.initializers.push(stored);
        name.to_owned()
    }

    /// A whole-number constant.
    pub(crate) fn ints(&mut self, values: &[i64]) -> String {
        let texts: Vec<_> = values.iter().map(i64::to_string).collect();
        let name = format!("ints_{}", texts.join("_"));
        if !self
            .graph
            .initializers
            .iter()
            .any(|known| known.name == name)
        {
            let stored = Stored::ints(name.clone(), values.to_vec());
            self.graph.initializers.push(stored);
        }
        name
    }

    /// A number.
    pub(crate) fn number(&mut self, value: f32) -> String {
        let name = format!("number_{value}");
        if !self
            .graph
            .initializers
            .iter()
            .any(|known| known.name == name)
        {
            self.constant(&name, &[], vec![value]);
        }
        name
    }

    /// The weight of a layer, under its name in PyTorch.
    fn weight<const D: usize>(&mut self, path: String, value: Tensor<D>) -> String {
        let name = self.names.get(&path).cloned().unwrap_or(path);
        let shape = value.dims();
        self.constant(&name, &shape, host(value))
    }

    /// A parameter that is no layer's.
    pub(crate) fn parameter<const D: usize>(&mut self, name: &str, value: Tensor<D>) -> String {
        self.weight(format!("body.{name}"), value)
    }

    pub(crate) fn conv(&mut self, layer: &str, conv: &Conv2d, x: &Value) -> Value {
        let mut inputs = vec![x.0.clone()];
        inputs.push(self.weight(format!("body.{layer}.weight"), conv.weight.val()));
        if let Some(bias) = &conv.bias {
            inputs.push(self.weight(format!("body.{layer}.bias"), bias.val()));
        }
        let ints = |values: &[usize]| Attribute::Ints(values.iter().map(|&v| v as i64).collect());
        let pads = match conv.padding {
            PaddingConfig2d::Explicit(top, left, bottom, right) => [top, left, bottom, right],
            // No network here has another.
            _ => [0; 4],
        };
        let kernel = conv.weight.dims();
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let attributes = [
            ("kernel_shape", ints(&kernel[2..])),
            ("strides", ints(&conv.stride)),
            ("pads", ints(&pads)),
        ];
        self.op("Conv", &inputs, &attributes)
    }

    /// A linear layer of rows.
    pub(crate) fn linear(&mut self, layer: &str, linear: &Linear, x: &Value) -> Value {
        let weight = linear.weight.val().transpose();
        let mut inputs = vec![
            x.0.clone(),
            self.weight(format!("body.{layer}.weight"), weight),
        ];
        if let Some(bias) = &linear.bias {
            inputs.push(self.weight(format!("body.{layer}.bias"), bias.val()));
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        self.op("Gemm", &inputs, &[("transB", Attribute::Int(1))])
    }

    /// A linear layer of the last dimension of several.
    pub(crate) fn dense(&mut self, layer: &str, linear: &Linear, x: &Value) -> Value {
        let weight = linear.weight.val();
        let name = self.names.get(&format!("body.{layer}.weight")).cloned();
        let name = format!("{}.transposed", name.unwrap_or_else(|| layer.to_owned()));
        let shape = weight.dims();
        let weight = self.constant(&name, &shape, host(weight));
        let mut y = self.op("MatMul", &[&x.0, &weight], &[]);
        if let Some(bias) = &linear.bias {
            let bias = self.weight(format!("body.{layer}.bias"), bias.val());
            y = self.op("Add", &[&y.0, &bias], &[]);
        }
        y
    }

    /// As in eval mode: with the running statistics.
    pub(crate) fn batch_norm(&mut self, layer: &str, norm: &BatchNorm, x: &Value) -> Value {
        let path = |last: &str| format!("body.{layer}.{last}");
        let inputs = [
            x.0.clone(),
            self.weight(path("gamma"), norm.gamma.val()),
            self.weight(path("beta"), norm.beta.val()),
            self.weight(path("running_mean"), norm.running_mean.value()),
            self.weight(path("running_var"), norm.running_var.value()),
        ];
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let epsilon = Attribute::Float(norm.epsilon as f32);
        self.op("BatchNormalization", &inputs, &[("epsilon", epsilon)])
    }

    /// Over the last dimension.
    pub(crate) fn layer_norm(
        &mut self,
        layer: &str,
        norm: &LayerNorm,
        epsilon: f64,
        x: &Value,
    ) -> Value {
        let path = |last: &str| format!("body.{layer}.{last}");
        let mut inputs = vec![x.0.clone(), self.weight(path("gamma"), norm.gamma.val())];
        if let Some(beta) = &norm.beta {
            inputs.push(self.weight(path("beta"), beta.val()));
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let attributes = [
            ("axis", Attribute::Int(-1)),
            ("epsilon", Attribute::Float(epsilon as f32)),
        ];
        self.op("LayerNormalization", &inputs, &attributes)
    }

    pub(crate) fn act(&mut self, act: Activation, x: &Value) -> Value {
        match act {
            Activation::Relu => self.op("Relu", &[&x.0], &[]),
            Activation::Silu => {
                let gate = self.op("Sigmoid", &[&x.0], &[]);
                self.op("Mul", &[&x.0, &gate.0], &[])
            }
        }
    }

    /// x Φ(x), by the error function.
    pub(crate) fn gelu(&mut self, x: &Value) -> Value {
        let (root, one, half) = (
            self.number(std::f32::consts::SQRT_2),
            self.number(1.0),
            self.number(0.5),
        );
        let scaled = self.op("Div", &[&x.0, &root], &[]);
        let erf = self.op("Erf", &[&scaled.0], &[]);
        let share = self.op("Add", &[&erf.0, &one], &[]);
        let twice = self.op("Mul", &[&x.0, &share.0], &[]);
        self.op("Mul", &[&twice.0, &half], &[])
    }

    pub(crate) fn max_pool(&mut self, kernel: i64, stride: i64, pad: i64, x: &Value) -> Value {
        let attributes = [
            ("kernel_shape", Attribute::Ints(vec![kernel; 2])),
            ("strides", Attribute::Ints(vec![stride; 2])),
            ("pads", Attribute::Ints(vec![pad; 4])),
        ];
        self.op("MaxPool", &[&x.0], &attributes)
    }

    pub(crate) fn flatten(&mut self, x: &Value) -> Value {
        self.op("Flatten", &[&x.0], &[("axis", Attribute::Int(1))])
    }

    /// Mean over rows and columns, as rows.
    pub(crate) fn average(&mut self, x: &Value) -> Value {
        let x = self.op("GlobalAveragePool", &[&x.0], &[]);
        self.flatten(&x)
    }

    pub(crate) fn add(&mut self, a: &Value, b: &Value) -> Value {
        self.op("Add", &[&a.0, &b.0], &[])
    }
}

/// The values of a tensor on the host.
pub(crate) fn host<const D: usize>(value: Tensor<D>) -> Vec<f32> {
    value.try_into_vec_as().expect("weights are numbers")
}
