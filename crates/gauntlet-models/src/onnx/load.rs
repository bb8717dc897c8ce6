//! From an ONNX graph to a program: what is needed for the logits, in order, with a place for each value.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use gauntlet_formats::onnx::{Attribute, Graph, Model, Node, Port, Size, Tensor, Values};

use super::run::OPERATORS;

/// What is run.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) steps: Vec<Step>,
    pub(crate) input: usize,
    pub(crate) output: usize,
    /// What the last linear layer takes.
    pub(crate) features: Option<usize>,
    /// Tensors that are not trained, and where they go.
    pub(crate) constants: Vec<(usize, Tensor)>,
    /// Where the trained tensors go.
    pub(crate) weights: Vec<usize>,
    /// Channels, height and width.
    pub(crate) shape: [usize; 3],
    pub(crate) opset: i64,
    /// Names of the values, by place.
    pub(crate) names: Vec<String>,
}

/// One operator.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) node: Node,
    /// Places of what it takes; `None` where an input is left out.
    pub(crate) inputs: Vec<Option<usize>>,
    /// Places of what it gives; `None` where nobody needs it.
    pub(crate) outputs: Vec<Option<usize>>,
    /// Which of the BatchNorms it is.
    pub(crate) norm: Option<usize>,
    /// Values that nobody needs afterwards.
    pub(crate) free: Vec<usize>,
}

/// A BatchNorm whose four tensors are in the file.
#[derive(Debug)]
pub(crate) struct StoredNorm {
    pub(crate) name: String,
    /// Weight, bias, mean, variance.
    pub(crate) tensors: [Tensor; 4],
    pub(crate) epsilon: f32,
    /// The share of the old average that is kept.
    pub(crate) momentum: f32,
}

/// A program with the tensors that are to be trained.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) program: Program,
    pub(crate) weights: Vec<Tensor>,
    pub(crate) norms: Vec<StoredNorm>,
    /// For people.
    pub(crate) notes: Vec<String>,
}

/// How people know an operator.
pub(crate) fn called(node: &Node) -> String {
    match node.name.as_str() {
        "" => format!("`{}`", node.op),
        name => format!("`{}` (`{name}`)", node.op),
    }
}

pub(crate) fn load(model: Model) -> Result<Loaded, String> {
    if !(7..=25).contains(&model.opset) {
        return Err(format!(
            "its operators are of version {}; 7 to 25 are known",
            model.opset
        ));
    }
    let mut notes = Vec::new();
    let mut graph = model.graph;
    constants_to_initializers(&mut graph);
    let (input, shape) = image_input(&graph)?;
    let Some(output) = graph.outputs.first() else {
        return Err("nothing comes out of its graph".to_owned());
    };
    let mut output = output.name.clone();
    if graph.outputs.len() > 1 {
        notes.push(format!(
            "of its {} results the first, `{output}`, is taken for the logits",
            graph.outputs.len()
        ));
    }
    if let Some(node) = giver(&graph, &output)
        && matches!(node.op.as_str(), "Softmax" | "LogSoftmax")
        && let [logits] = &node.inputs[..]
    {
        notes.push(format!(
            "the {} at its end is left out: attacks and training need what it takes, the logits",
            called(node)
        ));
        output = logits.clone();
    }
    let nodes = needed(graph.nodes, &output)?;
    let features = last_linear(&nodes, &output);
    let tensors = by_name(graph.initializers)?;
    let roles = Roles::of(&nodes, &tensors);
    let mut program = Program {
        steps: Vec::new(),
        input: 0,
        output: 0,
        features: None,
        constants: Vec::new(),
        weights: Vec::new(),
        shape,
        opset: model.opset,
        names: Vec::new(),
    };
    let mut places = Places::default();
    program.input = places.put(&input);
    let used: BTreeSet<&String> = nodes.iter().flat_map(|node| &node.inputs).collect();
    let mut weights = Vec::new();
    for (name, tensor) in &tensors {
        if !used.contains(name) || roles.norms.values().any(|norm| norm.takes(name)) {
            continue;
        }
        let at = places.put(name);
        if roles.trained.contains(name) {
            program.weights.push(at);
            weights.push(tensor.clone());
        } else {
            program.constants.push((at, tensor.clone()));
        }
    }
    let last_use = last_uses(&nodes);
    let mut norms = Vec::new();
    for (number, node) in nodes.into_iter().enumerate() {
        let norm = roles.norms.get(&number);
        let mut inputs = Vec::new();
        for (at, name) in node.inputs.iter().enumerate() {
            if name.is_empty() || norm.is_some() && at > 0 {
                inputs.push(None);
                continue;
            }
            let Some(place) = places.find(name) else {
                return Err(format!(
                    "the operator {} takes `{name}`, which nothing before it gives",
                    called(&node)
                ));
            };
            inputs.push(Some(place));
        }
        let mut outputs = Vec::new();
        for name in &node.outputs {
            let wanted = last_use.contains_key(name) || *name == output;
            if wanted && places.find(name).is_some() {
                return Err(format!("`{name}` is given twice"));
            }
            outputs.push(wanted.then(|| places.put(name)));
        }
        let mut free: Vec<usize> = node
            .inputs
            .iter()
            .filter(|name| {
                last_use.get(*name) == Some(&number)
                    && **name != output
                    && Some(*name) != features.as_ref()
            })
            .filter_map(|name| places.find(name))
            .collect();
        free.sort_unstable();
        free.dedup();
        let norm = norm.map(|norm| {
            norms.push(norm.stored(&tensors, &node, norms.len()));
            norms.len() - 1
        });
        program.steps.push(Step {
            node,
            inputs,
            outputs,
            norm,
            free,
        });
    }
    let Some(at) = places.find(&output) else {
        return Err(format!("nothing gives `{output}`, its result"));
    };
    if !last_use.contains_key(&input) {
        return Err(format!("its result does not depend on its input `{input}`"));
    }
    program.output = at;
    program.features = features.and_then(|name| places.find(&name));
    program.names = places.names;
    Ok(Loaded {
        program,
        weights,
        norms,
        notes,
    })
}

/// Where values are.
#[derive(Default)]
struct Places {
    names: Vec<String>,
    at: HashMap<String, usize>,
}

impl Places {
    /// Makes a place for a value.
    fn put(&mut self, name: &str) -> usize {
        let at = self.names.len();
        self.names.push(name.to_owned());
        self.at.insert(name.to_owned(), at);
        at
    }

    /// The place of a value that is there already.
    fn find(&self, name: &str) -> Option<usize> {
        self.at.get(name).copied()
    }
}

/// `Constant` operators are initializers by another name.
fn constants_to_initializers(graph: &mut Graph) {
    let nodes = std::mem::take(&mut graph.nodes);
    for mut node in nodes {
        let [output] = &node.outputs[..] else {
            graph.nodes.push(node);
            continue;
        };
        let name = output.clone();
        let list = |values: Values, shape: Vec<usize>| Tensor {
            name: name.clone(),
            shape,
            values,
        };
        let tensor = if node.op == "Constant" && node.attributes.len() == 1 {
            match node.attributes.pop_first().map(|(_, attribute)| attribute) {
                Some(Attribute::Tensor(tensor)) => Some(list(tensor.values, tensor.shape)),
                Some(Attribute::Float(value)) => {
                    Some(list(Values::Floats(vec![value]), Vec::new()))
                }
                Some(Attribute::Int(value)) => Some(list(Values::Ints(vec![value]), Vec::new())),
                Some(Attribute::Floats(values)) => {
                    let shape = vec![values.len()];
                    Some(list(Values::Floats(values), shape))
                }
                Some(Attribute::Ints(values)) => {
                    let shape = vec![values.len()];
                    Some(list(Values::Ints(values), shape))
                }
                _ => None,
            }
        } else {
            None
        };
        match tensor {
            Some(tensor) => graph.initializers.push(tensor),
            None => graph.nodes.push(node),
        }
    }
}

/// Name of the images and their shape.
fn image_input(graph: &Graph) -> Result<(String, [usize; 3]), String> {
    let [input] = &graph.inputs[..] else {
        let names: Vec<_> = graph
            .inputs
            .iter()
            .map(|input| format!("`{}`", input.name))
            .collect();
        return Err(format!(
            "it takes {}, and not one input: images",
            if names.is_empty() {
                "nothing".to_owned()
            } else {
                names.join(", ")
            }
        ));
    };
    let Port {
        name,
        is_f32,
        shape,
    } = input;
    if !is_f32 {
        return Err(format!(
            "its input `{name}` is not of 32-bit floating-point numbers"
        ));
    }
    let image = match shape.as_deref() {
        Some(
            [
                _,
                Size::Fixed(channels),
                Size::Fixed(height),
                Size::Fixed(width),
            ],
        ) => [*channels, *height, *width],
        _ => {
            return Err(format!(
                "its input `{name}` is no batch of images of one size\n\n\
                 hint: export it with an example of shape [1, channels, height, width], where only the batch is dynamic"
            ));
        }
    };
    if image[2] <= 4 && image[0] > 4 {
        return Err(format!(
            "its input `{name}` of {image:?} has the channels last; they have to come first, as PyTorch has them"
        ));
    }
    if image.iter().any(|&size| size > 1 << 14) {
        return Err(format!(
            "its input `{name}` is for images of {image:?}, which is too much"
        ));
    }
    Ok((name.clone(), image))
}

fn giver<'a>(graph: &'a Graph, name: &str) -> Option<&'a Node> {
    graph
        .nodes
        .iter()
        .find(|node| node.outputs.iter().any(|output| output == name))
}

/// The operators that the output needs, in order; all of them known.
fn needed(nodes: Vec<Node>, output: &str) -> Result<Vec<Node>, String> {
    let mut wanted: HashSet<String> = HashSet::from([output.to_owned()]);
    let mut kept: Vec<Node> = Vec::new();
    for node in nodes.into_iter().rev() {
        if !node
            .outputs
            .iter()
            .any(|output| !output.is_empty() && wanted.contains(output))
        {
            continue;
        }
        if !node.domain.is_empty() || OPERATORS.binary_search(&node.op.as_str()).is_err() {
            let domain = match node.domain.as_str() {
                "" => String::new(),
                domain => format!(" of `{domain}`"),
            };
            return Err(format!(
                "the operator {}{domain} is not computed here\n\nhint: known are {}",
                called(&node),
                OPERATORS.join(", ")
            ));
        }
        wanted.extend(node.inputs.iter().cloned());
        kept.push(node);
    }
    kept.reverse();
    Ok(kept)
}

/// What the linear layer that gives the output takes.
fn last_linear(nodes: &[Node], output: &str) -> Option<String> {
    let giver = |name: &str| {
        nodes
            .iter()
            .find(|node| node.outputs.first().is_some_and(|o| o == name))
    };
    let mut node = giver(output)?;
    if node.op == "Add" {
        node = node
            .inputs
            .iter()
            .find_map(|name| giver(name).filter(|node| node.op == "MatMul"))?;
    }
    matches!(node.op.as_str(), "Gemm" | "MatMul").then(|| node.inputs.first().cloned())?
}

fn by_name(initializers: Vec<Tensor>) -> Result<BTreeMap<String, Tensor>, String> {
    let mut tensors = BTreeMap::new();
    for tensor in initializers {
        if let Values::Floats(values) = &tensor.values
            && let Some(value) = values.iter().find(|value| value.is_nan())
        {
            return Err(format!("tensor `{}` has {value}", tensor.name));
        }
        let name = tensor.name.clone();
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(format!("two tensors are called `{name}`"));
        }
    }
    Ok(tensors)
}

/// By which operator each value is needed last.
fn last_uses(nodes: &[Node]) -> HashMap<String, usize> {
    let mut last = HashMap::new();
    for (number, node) in nodes.iter().enumerate() {
        for name in &node.inputs {
            last.insert(name.clone(), number);
        }
    }
    last
}

/// What the tensors of the file are for.
struct Roles {
    trained: BTreeSet<String>,
    /// By number of the operator.
    norms: BTreeMap<usize, NormNames>,
}

struct NormNames([String; 4]);

impl Roles {
    /// Weights and biases of layers are trained; other constants (means of a normalisation, scales) are not.
    fn of(nodes: &[Node], tensors: &BTreeMap<String, Tensor>) -> Self {
        let mut uses: HashMap<&str, usize> = HashMap::new();
        for name in nodes.iter().flat_map(|node| &node.inputs) {
            *uses.entry(name).or_default() += 1;
        }
        let mut roles = Self {
            trained: BTreeSet::new(),
            norms: BTreeMap::new(),
        };
        for (number, node) in nodes.iter().enumerate() {
            if node.op == "BatchNormalization" && node.inputs.len() == 5 {
                let own = |name: &String| tensors.contains_key(name) && uses[name.as_str()] == 1;
                if node.inputs[1..].iter().all(own) {
                    let names = std::array::from_fn(|at| node.inputs[at + 1].clone());
                    roles.norms.insert(number, NormNames(names));
                }
                continue;
            }
            for (at, name) in node.inputs.iter().enumerate() {
                let Some(tensor) = tensors.get(name) else {
                    continue;
                };
                let values = tensor.shape.iter().product::<usize>();
                let is_layer = match node.op.as_str() {
                    "Conv" | "Gemm" | "LayerNormalization" | "PRelu" => at > 0,
                    "MatMul" => true,
                    "Add" => values > 1 && tensor.shape.len() < 4,
                    _ => false,
                };
                let fits = matches!(tensor.values, Values::Floats(_))
                    && (1..=4).contains(&tensor.shape.len());
                if is_layer && fits && values > 0 {
                    roles.trained.insert(name.clone());
                }
            }
        }
        roles
    }
}

impl NormNames {
    fn takes(&self, name: &str) -> bool {
        self.0.iter().any(|own| own == name)
    }

    fn stored(&self, tensors: &BTreeMap<String, Tensor>, node: &Node, number: usize) -> StoredNorm {
        let name = match self.0[0].rsplit_once('.') {
            Some((layer, _)) => layer.to_owned(),
            None => format!("norm{number}"),
        };
        let number = |name: &str, default| match node.attributes.get(name) {
            Some(Attribute::Float(value)) => *value,
            _ => default,
        };
        StoredNorm {
            name,
            tensors: std::array::from_fn(|at| tensors[&self.0[at]].clone()),
            epsilon: number("epsilon", 1e-5),
            momentum: number("momentum", 0.9),
        }
    }
}
