//! ONNX models: a graph of operators and the tensors it starts from. Read without trusting them, and written.
//!
//! Field numbers are those of `onnx.proto` (ONNX IR 3 to 10). Values of tensors are kept once: in memory there is at most the file and its
//! tensors.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::protobuf::{Fields, Message, Wire};
use crate::{Dtype, FormatError};

/// Largest file that is read: protocol buffers hold no more.
const MAX_FILE: u64 = 2 << 30;
/// Most operators and tensors of a graph that is read.
const MAX_NODES: usize = 100_000;
/// Most names of values in a graph, and most entries beside it.
const MAX_NAMES: usize = 1 << 20;
/// Most dimensions of a tensor.
const MAX_RANK: usize = 16;

/// A model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// Version of the format itself.
    pub ir_version: i64,
    /// Version of the standard operators.
    pub opset: i64,
    /// Name and version of the program that wrote it.
    pub producer: [String; 2],
    /// Names and values for people and programs.
    pub metadata: BTreeMap<String, String>,
    /// What is computed.
    pub graph: Graph,
}

/// What is computed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// Its name.
    pub name: String,
    /// The operators in the order of their computation.
    pub nodes: Vec<Node>,
    /// Tensors that are there from the start: weights and constants.
    pub initializers: Vec<Tensor>,
    /// What is to be given, without initializers.
    pub inputs: Vec<Port>,
    /// What comes out.
    pub outputs: Vec<Port>,
}

/// One operator.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Its name; may be empty.
    pub name: String,
    /// What it does: `Conv`, `Relu`, ...
    pub op: String,
    /// Whose operator it is; empty for the standard ones.
    pub domain: String,
    /// Names of what it takes; an empty one is left out.
    pub inputs: Vec<String>,
    /// Names of what it gives.
    pub outputs: Vec<String>,
    /// Its settings by name.
    pub attributes: BTreeMap<String, Attribute>,
}

/// A setting of an operator.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Attribute {
    Float(f32),
    Int(i64),
    Text(String),
    Tensor(Tensor),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    /// A graph or another kind that is not read.
    Other,
}

/// A tensor with its values.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its name; empty for the value of an attribute.
    pub name: String,
    /// Its sizes, outermost first.
    pub shape: Vec<usize>,
    /// Its values.
    pub values: Values,
}

/// Values of a tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Floating-point numbers of any width, as `f32`.
    Floats(Vec<f32>),
    /// Whole numbers of any width, and truth values.
    Ints(Vec<i64>),
}

/// Size of a dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Size {
    /// Always this.
    Fixed(usize),
    /// Any; perhaps named.
    Any(String),
}

/// Something that is given to a graph, or comes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Whether it is of 32-bit floating-point numbers.
    pub is_f32: bool,
    /// Its sizes, if they are told.
    pub shape: Option<Vec<Size>>,
}

/// Whether a file starts as an ONNX model does: with the version of the format, a small number in field 1.
pub fn is_onnx(head: &[u8]) -> bool {
    matches!(
        head,
        [
            0x08,
            1..=40,
            0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42,
            ..
        ]
    )
}

impl Model {
    /// Reads a file.
    ///
    /// # Errors
    /// [`FormatError`]: not a model, cut short, larger than 2 GiB, with tensors whose values are elsewhere, or with sizes that are not those of
    /// their values.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        if length > MAX_FILE {
            let problem = format!("{length} bytes are more than an ONNX file can have");
            return Err(FormatError::Unsupported(problem));
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes)?;
        Self::read(&bytes)
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn read(bytes: &[u8]) -> Result<Self, FormatError> {
        if !is_onnx(bytes) {
            return Err(FormatError::unsupported("not an ONNX model"));
        }
        let mut model = Self::default();
        let mut graph = None;
        let mut fields = Fields(bytes);
        while let Some((number, wire)) = fields.next()? {
            match number {
                1 => model.ir_version = wire.int()?,
                2 => model.producer[0] = wire.text()?,
                3 => model.producer[1] = wire.text()?,
                7 => graph = Some(wire.bytes()?),
                8 => {
                    let (domain, version) = opset(wire.bytes()?)?;
                    if domain.is_empty() || domain == "ai.onnx" {
                        model.opset = version;
                    }
                }
                14 => {
                    let (key, value) = entry(wire.bytes()?)?;
                    model.metadata.insert(key, value);
                    if model.metadata.len() > MAX_NODES {
                        return Err(FormatError::unsupported("too many entries of metadata"));
                    }
                }
                _ => {}
            }
        }
        let graph = graph.ok_or_else(|| FormatError::damaged("the model has no graph"))?;
        model.graph = Graph::read(graph)?;
        Ok(model)
    }

    /// The bytes of a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut model = Message::default();
        model.int(1, self.ir_version);
        model.bytes(2, self.producer[0].as_bytes());
        model.bytes(3, self.producer[1].as_bytes());
        model.message(7, &self.graph.message());
        let mut opset = Message::default();
        opset.bytes(1, b"");
        opset.int(2, self.opset);
        model.message(8, &opset);
        for (key, value) in &self.metadata {
            let mut entry = Message::default();
            entry.bytes(1, key.as_bytes());
            entry.bytes(2, value.as_bytes());
            model.message(14, &entry);
        }
        model.0
    }
}

impl Graph {
    fn read(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut graph = Self::default();
        let mut named = 0;
        let mut fields = Fields(bytes);
        while let Some((number, wire)) = fields.next()? {
            match number {
                1 => graph.nodes.push(Node::read(wire.bytes()?)?),
                2 => graph.name = wire.text()?,
                5 => graph.initializers.push(Tensor::read(wire.bytes()?)?),
                11 => graph.inputs.push(Port::read(wire.bytes()?)?),
                12 => graph.outputs.push(Port::read(wire.bytes()?)?),
                15 => {
                    return Err(FormatError::unsupported(
                        "it has sparse tensors, which are not read",
                    ));
                }
                _ => {}
            }
            let names =
                |node: &Node| node.inputs.len() + node.outputs.len() + node.attributes.len();
            if number == 1 {
                named += graph.nodes.last().map_or(0, names);
            }
            let lists = [
                graph.nodes.len(),
                graph.initializers.len(),
                graph.inputs.len(),
                graph.outputs.len(),
            ];
            if lists.iter().any(|&count| count > MAX_NODES) || named > MAX_NAMES {
                let problem = format!("it has more than {MAX_NODES} operators or tensors");
                return Err(FormatError::Unsupported(problem));
            }
        }
        // Until IR 3, initializers were listed as inputs too.
        let known: HashSet<&str> = graph.initializers.iter().map(|t| t.name.as_str()).collect();
        let is_given = |port: &Port| !known.contains(port.name.as_str());
        graph.inputs.retain(is_given);
        Ok(graph)
    }

    fn message(&self) -> Message {
        let mut graph = Message::default();
        for node in &self.nodes {
            graph.message(1, &node.message());
        }
        graph.bytes(2, self.name.as_bytes());
        for tensor in &self.initializers {
            graph.message(5, &tensor.message());
        }
        for port in &self.inputs {
            graph.message(11, &port.message());
        }
        for port in &self.outputs {
            graph.message(12, &port.message());
        }
        graph
    }
}

impl Node {
    fn read(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut node = Self::default();
        let mut fields = Fields(bytes);
        while let Some((number, wire)) = fields.next()? {
            match number {
                1 => node.inputs.push(wire.text()?),
                2 => node.outputs.push(wire.text()?),
                3 => node.name = wire.text()?,
                4 => node.op = wire.text()?,
                5 => {
                    let (name, attribute) = Attribute::read(wire.bytes()?)?;
                    node.attributes.insert(name, attribute);
                }
                7 => node.domain = wire.text()?,
                _ => {}
            }
            if node.inputs.len().max(node.outputs.len()) > MAX_NODES {
                let problem = format!("an operator with more than {MAX_NODES} inputs or outputs");
                return Err(FormatError::Unsupported(problem));
            }
        }
        if node.domain == "ai.onnx" {
            node.domain.clear();
        }
        Ok(node)
    }

    fn message(&self) -> Message {
        let mut node = Message::default();
        for input in &self.inputs {
            node.bytes(1, input.as_bytes());
        }
        for output in &self.outputs {
            node.bytes(2, output.as_bytes());
        }
        node.bytes(3, self.name.as_bytes());
        node.bytes(4, self.op.as_bytes());
        for (name, attribute) in &self.attributes {
            node.message(5, &attribute.message(name));
        }
        if !self.domain.is_empty() {
            node.bytes(7, self.domain.as_bytes());
        }
        node
    }
}

impl Attribute {
    fn read(bytes: &[u8]) -> Result<(String, Self), FormatError> {
        let (mut name, mut kind) = (String::new(), 0);
        let (mut float, mut int, mut text, mut tensor) = (None, None, None, None);
        let (mut floats, mut ints) = (Vec::new(), Vec::new());
        let mut fields = Fields(bytes);
        while let Some((number, wire)) = fields.next()? {
            match number {
                1 => name = wire.text()?,
                2 => float = Some(wire.float()?),
                3 => int = Some(wire.int()?),
                4 => text = Some(String::from_utf8_lossy(wire.bytes()?).into_owned()),
                5 => tensor = Some(Tensor::read(wire.bytes()?)?),
                7 => wire.floats(&mut floats)?,
                8 => wire.ints(&mut ints)?,
                20 => kind = wire.int()?,
                _ => {}
            }
        }
        // What is 0 or empty may be left out of a message.
        let attribute = match kind {
            1 => Self::Float(float.unwrap_or_default()),
            2 => Self::Int(int.unwrap_or_default()),
            3 => Self::Text(text.unwrap_or_default()),
            4 => tensor.map_or(Self::Other, Self::Tensor),
            6 => Self::Floats(floats),
            7 => Self::Ints(ints),
            _ => Self::Other,
        };
        Ok((name, attribute))
    }

    fn message(&self, name: &str) -> Message {
        let mut attribute = Message::default();
        attribute.bytes(1, name.as_bytes());
        let kind = match self {
            Self::Float(value) => {
                attribute.float(2, *value);
                1
            }
            Self::Int(value) => {
                attribute.int(3, *value);
                2
            }
            Self::Text(value) => {
                attribute.bytes(4, value.as_bytes());
                3
            }
            Self::Tensor(value) => {
                attribute.message(5, &value.message());
                4
            }
            Self::Floats(values) => {
                values.iter().for_each(|&value| attribute.float(7, value));
                6
            }
            Self::Ints(values) => {
                values.iter().for_each(|&value| attribute.int(8, value));
                7
            }
            Self::Other => 0,
        };
        attribute.int(20, kind);
        attribute
    }
}

impl Tensor {
    /// A tensor of `f32`.
    pub fn floats(name: impl Into<String>, shape: &[usize], values: Vec<f32>) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            values: Values::Floats(values),
        }
    }

    /// A list of whole numbers.
    pub fn ints(name: impl Into<String>, values: Vec<i64>) -> Self {
        Self {
            name: name.into(),
            shape: vec![values.len()],
            values: Values::Ints(values),
        }
    }

    fn read(bytes: &[u8]) -> Result<Self, FormatError> {
        let (mut name, mut kind, mut dims) = (String::new(), 0, Vec::new());
        let (mut floats, mut ints, mut doubles) = (Vec::new(), Vec::new(), Vec::new());
        let (mut raw, mut elsewhere) = (None, false);
        let mut fields = Fields(bytes);
        while let Some((number, wire)) = fields.next()? {
            match number {
                1 => wire.ints(&mut dims)?,
                2 => kind = wire.int()?,
                4 => wire.floats(&mut floats)?,
                5 | 7 | 11 => wire.ints(&mut ints)?,
                8 => name = wire.text()?,
                9 => raw = Some(wire.bytes()?),
                10 => doubles_of(wire, &mut doubles)?,
                13 => elsewhere = true,
                14 => elsewhere |= wire.int()? != 0,
                _ => {}
            }
        }
        let wrong = |problem: String| FormatError::Damaged(format!("tensor `{name}`: {problem}"));
        if elsewhere {
            return Err(FormatError::Unsupported(format!(
                "the values of tensor `{name}` are in another file, which is not read\n\n\
                 hint: `onnx.save_model(onnx.load(FILE), NEW)` puts all into one file"
            )));
        }
        if dims.len() > MAX_RANK {
            return Err(wrong(format!("{} dimensions", dims.len())));
        }
        let shape: Option<Vec<usize>> = dims
            .iter()
            .map(|&size| usize::try_from(size).ok())
            .collect();
        let shape = shape.ok_or_else(|| wrong(format!("a shape of {dims:?}")))?;
        // Sizes beside a zero count too: strides are their products.
        let room = shape
            .iter()
            .try_fold(1usize, |n, &size| n.checked_mul(size.max(1)));
        let count = room.map(|_| shape.iter().product::<usize>());
        let dtype = match kind {
            1 => Dtype::F32,
            2 => Dtype::U8,
            3 => Dtype::I8,
            5 => Dtype::I16,
            6 => Dtype::I32,
            7 => Dtype::I64,
            9 => Dtype::Bool,
            10 => Dtype::F16,
            11 => Dtype::F64,
            16 => Dtype::BF16,
            other => {
                return Err(FormatError::Unsupported(format!(
                    "the values of tensor `{name}` are of type {other}, which is not read"
                )));
            }
        };
        let values = match (raw, dtype) {
            (Some(raw), _) => {
                if count.and_then(|n| n.checked_mul(dtype.size())) != Some(raw.len()) {
                    return Err(wrong(format!(
                        "{} bytes for a shape of {shape:?}",
                        raw.len()
                    )));
                }
                dtype.values(raw)
            }
            (None, Dtype::F32) => Values::Floats(floats),
            (None, Dtype::F64) => Values::Floats(doubles),
            // Half precision is kept as the bits of whole numbers.
            (None, Dtype::F16 | Dtype::BF16) => {
                let bits: Vec<u8> = ints
                    .iter()
                    .flat_map(|&v| (v as u16).to_le_bytes())
                    .collect();
                dtype.values(&bits)
            }
            (None, _) => Values::Ints(ints),
        };
        let found = match &values {
            Values::Floats(values) => values.len(),
            Values::Ints(values) => values.len(),
        };
        if count != Some(found) {
            return Err(wrong(format!("{found} values for a shape of {shape:?}")));
        }
        Ok(Self {
            name,
            shape,
            values,
        })
    }

    fn message(&self) -> Message {
        let mut tensor = Message::default();
        for &size in &self.shape {
            tensor.int(1, size as i64);
        }
        let (kind, raw): (i64, Vec<u8>) = match &self.values {
            Values::Floats(values) => (1, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            Values::Ints(values) => (7, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        };
        tensor.int(2, kind);
        tensor.bytes(8, self.name.as_bytes());
        tensor.bytes(9, &raw);
        tensor
    }
}

impl Port {
    /// Something of 32-bit floating-point numbers.
    pub fn f32(name: &str, shape: Vec<Size>) -> Self {
        Self {
            name: name.to_owned(),
            is_f32: true,
            shape: Some(shape),
        }
    }

    fn read(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut port = Self {
            name: String::new(),
            is_f32: false,
            shape: None,
        };
        let mut fields = Fields(bytes);
        while let Some((number, wire)) = fields.next()? {
            match number {
                1 => port.name = wire.text()?,
                2 => {
                    let mut kinds = Fields(wire.bytes()?);
                    while let Some((number, wire)) = kinds.next()? {
                        if number == 1 {
                            port.read_type(wire.bytes()?)?;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(port)
    }

    fn read_type(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let mut fields = Fields(bytes);
        while let Some((number, wire)) = fields.next()? {
            match number {
                1 => self.is_f32 = wire.int()? == 1,
                2 => {
                    let mut shape = Vec::new();
                    let mut dims = Fields(wire.bytes()?);
                    while let Some((number, wire)) = dims.next()? {
                        if number != 1 {
                            continue;
                        }
                        shape.push(size(wire.bytes()?)?);
                        if shape.len() > MAX_RANK {
                            return Err(FormatError::damaged(format!(
                                "`{}` has too many dimensions",
                                self.name
                            )));
                        }
                    }
                    self.shape = Some(shape);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn message(&self) -> Message {
        let mut shape = Message::default();
        for size in self.shape.iter().flatten() {
            let mut dim = Message::default();
            match size {
                Size::Fixed(size) => dim.int(1, *size as i64),
                Size::Any(name) => dim.bytes(2, name.as_bytes()),
            }
            shape.message(1, &dim);
        }
        let mut tensor = Message::default();
        tensor.int(1, 1);
        tensor.message(2, &shape);
        let mut kind = Message::default();
        kind.message(1, &tensor);
        let mut port = Message::default();
        port.bytes(1, self.name.as_bytes());
        port.message(2, &kind);
        port
    }
}

impl Dtype {
    /// Little-endian bytes: floating-point numbers as `f32`, whole numbers as they are.
    fn values(self, bytes: &[u8]) -> Values {
        if self.is_float() {
            return Values::Floats(self.to_f32(bytes));
        }
        fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> i64) -> Vec<i64> {
            bytes.as_chunks().0.iter().map(|&raw| value(raw)).collect()
        }
        Values::Ints(match self {
            Self::I64 => each(bytes, i64::from_le_bytes),
            Self::I32 => each(bytes, |raw| i32::from_le_bytes(raw).into()),
            Self::I16 => each(bytes, |raw| i16::from_le_bytes(raw).into()),
            Self::I8 => each(bytes, |[raw]| (raw as i8).into()),
            _ => each(bytes, |[raw]| raw.into()),
        })
    }
}

fn doubles_of(wire: Wire<'_>, values: &mut Vec<f32>) -> Result<(), FormatError> {
    match wire {
        Wire::Bits64(bits) => values.push(f64::from_le_bytes(bits) as f32),
        Wire::Bytes(bytes) => values.extend(Dtype::F64.to_f32(bytes)),
        _ => {
            return Err(FormatError::damaged(
                "something else where a number should be",
            ));
        }
    }
    Ok(())
}

fn size(bytes: &[u8]) -> Result<Size, FormatError> {
    let mut size = Size::Any(String::new());
    let mut fields = Fields(bytes);
    while let Some((number, wire)) = fields.next()? {
        match number {
            // Negative and 0 are written by some for what may be any.
            1 => {
                let value = usize::try_from(wire.int()?).unwrap_or(0);
                if value > 0 {
                    size = Size::Fixed(value);
                }
            }
            2 => size = Size::Any(wire.text()?),
            _ => {}
        }
    }
    Ok(size)
}

fn opset(bytes: &[u8]) -> Result<(String, i64), FormatError> {
    let (mut domain, mut version) = (String::new(), 0);
    let mut fields = Fields(bytes);
    while let Some((number, wire)) = fields.next()? {
        match number {
            1 => domain = wire.text()?,
            2 => version = wire.int()?,
            _ => {}
        }
    }
    Ok((domain, version))
}

fn entry(bytes: &[u8]) -> Result<(String, String), FormatError> {
    let (mut key, mut value) = (String::new(), String::new());
    let mut fields = Fields(bytes);
    while let Some((number, wire)) = fields.next()? {
        match number {
            1 => key = wire.text()?,
            2 => value = wire.text()?,
            _ => {}
        }
    }
    Ok((key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        let weight = Tensor::floats("w", &[2, 3], (0..6).map(|v| v as f32).collect());
        let shape = Tensor::ints("shape", vec![-1, 6]);
        let value = Tensor::floats("", &[], vec![0.5]);
        Model {
            ir_version: 8,
            opset: 17,
            producer: ["p".to_owned(), "1".to_owned()],
            metadata: BTreeMap::from([("threat".to_owned(), "linf:8/255".to_owned())]),
            graph: Graph {
                name: "g".to_owned(),
                nodes: vec![Node {
                    name: "n".to_owned(),
                    op: "Gemm".to_owned(),
                    inputs: vec!["x".to_owned(), String::new()],
                    outputs: vec!["y".to_owned()],
                    attributes: BTreeMap::from([
                        ("alpha".to_owned(), Attribute::Float(0.0)),
                        ("transB".to_owned(), Attribute::Int(-3)),
                        ("pads".to_owned(), Attribute::Ints(vec![1, 0, 1, 0])),
                        ("scales".to_owned(), Attribute::Floats(vec![0.5, 2.0])),
                        ("mode".to_owned(), Attribute::Text("edge".to_owned())),
                        ("value".to_owned(), Attribute::Tensor(value)),
                    ]),
                    ..Node::default()
                }],
                initializers: vec![weight, shape],
                inputs: vec![Port::f32(
                    "x",
                    vec![Size::Any("batch".to_owned()), Size::Fixed(3)],
                )],
                outputs: vec![Port::f32(
                    "y",
                    vec![Size::Any("batch".to_owned()), Size::Fixed(2)],
                )],
            },
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = model().to_bytes();
        assert!(is_onnx(&bytes));
        assert_eq!(Model::read(&bytes).unwrap(), model());
    }

    #[test]
    fn lies_about_sizes_are_errors_and_take_no_memory() {
        let with = |shape: Vec<usize>| {
            let mut model = model();
            model.graph.initializers[0].shape = shape;
            Model::read(&model.to_bytes()).unwrap_err().to_string()
        };
        assert!(with(vec![1 << 40]).contains("tensor `w`: 24 bytes for a shape of"));
        assert!(with(vec![1 << 40, 1 << 40]).contains("`w`"));
        // Nothing in it, and strides beyond 64 bits.
        let mut empty = model();
        empty.graph.initializers[0] = Tensor::floats("w", &[0, 1 << 40, 1 << 40], Vec::new());
        let error = Model::read(&empty.to_bytes()).unwrap_err();
        assert!(error.to_string().contains("0 bytes for a shape of"));
        assert!(with(vec![1; 40]).contains("40 dimensions"));
        assert!(
            Model::read(b"\x08\x08\x12\x01p")
                .unwrap_err()
                .to_string()
                .contains("no graph")
        );
        for bad in [&b""[..], b"GIF89a", b"\x08\x08"] {
            assert!(Model::read(bad).is_err());
        }
        assert!(Model::open(Path::new("/nonexistent.onnx")).is_err());
    }

    #[test]
    fn models_without_end_are_refused() {
        let mut model = model();
        let node = Node {
            inputs: vec![String::new(); 30],
            ..Node::default()
        };
        model.graph.nodes = vec![node; 50_000];
        assert!(
            Model::read(&model.to_bytes())
                .unwrap_err()
                .to_string()
                .contains("more than")
        );
        model.graph.nodes = vec![Node::default(); MAX_NODES + 1];
        assert!(
            Model::read(&model.to_bytes())
                .unwrap_err()
                .to_string()
                .contains("more than")
        );
    }

    /// Every cut, and every byte changed in several ways.
    #[test]
    fn damaged_models_do_not_panic() {
        let good = model().to_bytes();
        for end in 0..good.len() {
            let _ = Model::read(&good[..end]);
        }
        for at in 0..good.len() {
            for value in [0, 0x7f, 0x80, 0xff, good[at] ^ 1, good[at].wrapping_add(8)] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = Model::read(&bad);
            }
        }
    }
}
