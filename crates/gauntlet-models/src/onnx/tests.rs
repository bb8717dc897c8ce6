use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use gauntlet_formats::onnx::{Attribute, Graph, Model, Node, Port, Size, Tensor as Stored, Values};

use super::run::OPERATORS;
use super::*;
use crate::{Arch, Classifier, Description, ModelConfig, export, named};

fn node(op: &str, inputs: &[&str], output: &str, attributes: &[(&str, Attribute)]) -> Node {
    Node {
        name: format!("the {op}"),
        op: op.to_owned(),
        inputs: inputs.iter().map(|&name| name.to_owned()).collect(),
        outputs: vec![output.to_owned()],
        attributes: attributes
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect(),
        ..Node::default()
    }
}

fn any(shape: &[usize]) -> Vec<Size> {
    let sizes = shape.iter().map(|&size| Size::Fixed(size));
    std::iter::once(Size::Any("n".to_owned()))
        .chain(sizes)
        .collect()
}

fn model(nodes: Vec<Node>, initializers: Vec<Stored>, shape: [usize; 3]) -> Model {
    Model {
        ir_version: 8,
        opset: 17,
        graph: Graph {
            nodes,
            initializers,
            inputs: vec![Port::f32("x", any(&shape))],
            outputs: vec![Port::f32("y", Vec::new())],
            ..Graph::default()
        },
        ..Model::default()
    }
}

/// Flattens two pixels and applies a matrix of two rows.
fn linear(more: Vec<Node>, initializers: Vec<Stored>) -> Model {
    let mut nodes = vec![
        node("Flatten", &["x"], "rows", &[]),
        node("MatMul", &["rows", "w"], "scores", &[]),
    ];
    nodes.extend(more);
    let mut tensors = vec![Stored::floats("w", &[2, 2], vec![1.0, 2.0, 3.0, 4.0])];
    tensors.extend(initializers);
    model(nodes, tensors, [1, 1, 2])
}

fn problem(model: Model) -> String {
    OnnxNetwork::new(model, &Device::flex()).expect_err("it was read")
}

fn scores(model: Model) -> Vec<f32> {
    let network = OnnxNetwork::new(model, &Device::flex()).unwrap();
    let x = Tensor::<4>::from_floats([[[[1.0, 10.0]]], [[[0.0, -1.0]]]], &Device::flex());
    network.logits(x).try_into_vec_as().unwrap()
}

#[test]
fn operators_are_sorted_for_the_search() {
    assert!(OPERATORS.is_sorted());
    let page = include_str!("../../INTEROP.md");
    let list = &page[page.find("Operators (versions").unwrap()..];
    let list = &list[..list.find("Another one").unwrap()];
    let told: std::collections::BTreeSet<&str> = list[list.find(':').unwrap() + 1..]
        .split([',', '.'])
        .map(str::trim)
        .filter(|name| !name.is_empty() && *name != "Constant")
        .collect();
    assert_eq!(told, OPERATORS.into_iter().collect());
}

/// By hand: [1, 10] W = [31, 42], [0, -1] W = [-3, -4].
#[test]
fn operators_compute_what_the_reference_says() {
    let plain = [31.0, 42.0, -3.0, -4.0];
    let ending = |nodes: Vec<Node>, tensors: Vec<Stored>| scores(linear(nodes, tensors));
    let ints = |values: &[i64]| Attribute::Ints(values.to_vec());
    let one = |op: &str, attributes: &[(&str, Attribute)]| {
        ending(vec![node(op, &["scores"], "y", attributes)], Vec::new())
    };
    assert_eq!(one("Identity", &[]), plain);
    assert_eq!(one("Relu", &[]), [31.0, 42.0, 0.0, 0.0]);
    assert_eq!(
        one("LeakyRelu", &[("alpha", Attribute::Float(0.5))]),
        [31.0, 42.0, -1.5, -2.0]
    );
    assert_eq!(one("Neg", &[]), plain.map(|v: f32| -v));
    let elu = one("Elu", &[]);
    assert!((elu[2] - ((-3.0f32).exp() - 1.0)).abs() < 1e-6 && elu[1] == 42.0);
    let clipped = vec![node("Clip", &["scores", "", "most"], "y", &[])];
    assert_eq!(
        ending(clipped, vec![Stored::floats("most", &[], vec![30.0])]),
        [30.0, 30.0, -3.0, -4.0]
    );
    let pow = vec![node("Pow", &["scores", "two"], "y", &[])];
    assert_eq!(
        ending(pow, vec![Stored::floats("two", &[], vec![2.0])]),
        [961.0, 1764.0, 9.0, 16.0]
    );
    // The softmax at the end is left out; one in the middle is not.
    assert_eq!(one("Softmax", &[]), plain);
    let inside = vec![
        node("Softmax", &["scores"], "shares", &[]),
        node("Identity", &["shares"], "y", &[]),
    ];
    let shares = ending(inside, Vec::new());
    let share = 1.0 / (1.0 + (-11.0f32).exp());
    assert!((shares[1] - share).abs() < 1e-6, "{shares:?}");
    // Shapes, as exporters with a dynamic batch write them.
    let shapes = vec![
        node("Shape", &["x"], "shape", &[]),
        node("Gather", &["shape", "first"], "n", &[]),
        node("Unsqueeze", &["n", "first_list"], "ns", &[]),
        node(
            "Concat",
            &["ns", "two"],
            "target",
            &[("axis", Attribute::Int(0))],
        ),
        node("Reshape", &["scores", "target"], "cube", &[]),
        node(
            "Transpose",
            &["cube"],
            "turned",
            &[("perm", ints(&[0, 2, 1]))],
        ),
        node("Slice", &["turned", "from", "to", "axis"], "part", &[]),
        node("Squeeze", &["part", "axis"], "half", &[]),
        node(
            "Concat",
            &["half", "half"],
            "y",
            &[("axis", Attribute::Int(-1))],
        ),
    ];
    let tensors = vec![
        Stored {
            shape: Vec::new(),
            ..Stored::ints("first", vec![0])
        },
        Stored::ints("first_list", vec![0]),
        Stored::ints("two", vec![1, 2]),
        Stored::ints("from", vec![1]),
        Stored::ints("to", vec![i64::MAX]),
        Stored::ints("axis", vec![1]),
    ];
    assert_eq!(ending(shapes, tensors), [42.0, 42.0, -4.0, -4.0]);
    let gathered = vec![node(
        "Gather",
        &["scores", "swap"],
        "y",
        &[("axis", Attribute::Int(1))],
    )];
    assert_eq!(
        ending(gathered, vec![Stored::ints("swap", vec![1, -2])]),
        [42.0, 31.0, -4.0, -3.0]
    );
    let split = vec![
        Node {
            outputs: vec!["a".to_owned(), "b".to_owned()],
            ..node("Split", &["scores"], "", &[("axis", Attribute::Int(1))])
        },
        node("Concat", &["b", "a"], "y", &[("axis", Attribute::Int(1))]),
    ];
    assert_eq!(ending(split, Vec::new()), [42.0, 31.0, -4.0, -3.0]);
    let mean = vec![
        node(
            "ReduceMean",
            &["scores"],
            "mean",
            &[("axes", ints(&[1])), ("keepdims", Attribute::Int(1))],
        ),
        node("Sub", &["scores", "mean"], "y", &[]),
    ];
    assert_eq!(ending(mean, Vec::new()), [-5.5, 5.5, 0.5, -0.5]);
    let padded = vec![node("Pad", &["scores", "pads"], "y", &[])];
    let pads = vec![Stored::ints("pads", vec![0, 1, 0, 0])];
    assert_eq!(ending(padded, pads), [0.0, 31.0, 42.0, 0.0, -3.0, -4.0]);
}

/// Uneven padding, groups, dilation: against sums written out.
#[test]
fn convolutions_and_pools_of_all_kinds() {
    let ints = |values: &[i64]| Attribute::Ints(values.to_vec());
    let image: Vec<f32> = (0..2 * 16).map(|i| ((i * i) % 7) as f32 - 2.0).collect();
    let run = |op: &str, kernel: Option<(&[usize], Vec<f32>)>, attributes: &[(&str, Attribute)]| {
        let inputs: &[&str] = if kernel.is_some() {
            &["x", "w"]
        } else {
            &["x"]
        };
        let nodes = vec![
            node(op, inputs, "maps", attributes),
            node("Flatten", &["maps"], "y", &[]),
        ];
        let tensors = kernel.map(|(shape, values)| Stored::floats("w", shape, values));
        let network = OnnxNetwork::new(
            model(nodes, tensors.into_iter().collect(), [2, 4, 4]),
            &Device::flex(),
        );
        let data = TensorData::new(image.clone(), [1, 2, 4, 4]);
        let y = network
            .unwrap()
            .logits(Tensor::from_data(data, &Device::flex()));
        y.try_into_vec_as::<f32>().unwrap()
    };
    let at = |c: usize, i: isize, j: isize| {
        let inside = (0..4).contains(&i) && (0..4).contains(&j);
        inside.then(|| image[c * 16 + i as usize * 4 + j as usize])
    };
    // Below and to the right only, stride 2, each channel for itself.
    let kernel: Vec<f32> = (0..18).map(|i| i as f32 * 0.5 - 4.0).collect();
    let found = run(
        "Conv",
        Some((&[2, 1, 3, 3], kernel.clone())),
        &[
            ("group", Attribute::Int(2)),
            ("strides", ints(&[2, 2])),
            ("pads", ints(&[0, 0, 1, 1])),
        ],
    );
    let mut expected = Vec::new();
    for c in 0..2 {
        for (i, j) in [(0, 0), (0, 2), (2, 0), (2, 2)] {
            let terms = (0..9)
                .map(|k| at(c, i + k / 3, j + k % 3).unwrap_or(0.0) * kernel[c * 9 + k as usize]);
            expected.push(terms.sum::<f32>());
        }
    }
    assert_eq!(found, expected);
    // SAME_UPPER at stride 2 is the same padding; dilation 2 reaches over the edge.
    let same = run(
        "Conv",
        Some((&[2, 1, 3, 3], kernel.clone())),
        &[
            ("group", Attribute::Int(2)),
            ("strides", ints(&[2, 2])),
            ("auto_pad", Attribute::Text("SAME_UPPER".to_owned())),
        ],
    );
    assert_eq!(same, expected);
    let wide = run(
        "Conv",
        Some((&[2, 2, 2, 2], vec![1.0; 16])),
        &[("dilations", ints(&[3, 3]))],
    );
    let corners = [(0, 0), (0, 3), (3, 0), (3, 3)];
    let sum: f32 = (0..2)
        .flat_map(|c| corners.map(|(i, j)| at(c, i, j).unwrap()))
        .sum();
    assert_eq!(wide, [sum, sum]);
    let largest = run(
        "MaxPool",
        None,
        &[
            ("kernel_shape", ints(&[3, 3])),
            ("pads", ints(&[0, 0, 1, 1])),
            ("strides", ints(&[2, 2])),
        ],
    );
    let mean = run(
        "AveragePool",
        None,
        &[
            ("kernel_shape", ints(&[3, 3])),
            ("pads", ints(&[1, 1, 1, 1])),
            ("strides", ints(&[3, 3])),
        ],
    );
    let window =
        |c: usize, i: isize, j: isize| (0..9).filter_map(move |k| at(c, i + k / 3, j + k % 3));
    let starts = [(0, 0), (0, 2), (2, 0), (2, 2)];
    let expected: Vec<f32> = (0..2)
        .flat_map(|c| starts.map(|(i, j)| window(c, i, j).fold(f32::MIN, f32::max)))
        .collect();
    assert_eq!(largest, expected);
    let starts = [(-1, -1), (-1, 2), (2, -1), (2, 2)];
    let means = (0..2).flat_map(|c| {
        starts.map(|(i, j)| window(c, i, j).sum::<f32>() / window(c, i, j).count() as f32)
    });
    for (found, expected) in mean.iter().zip(means) {
        assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
    }
}

#[test]
fn what_cannot_be_run_is_told_by_name() {
    let ends = |ending: Node| problem(linear(vec![ending], Vec::new()));
    let unknown = ends(node("LSTM", &["scores"], "y", &[]));
    assert!(
        unknown.contains("`LSTM` (`the LSTM`)") && unknown.contains("known are"),
        "{unknown}"
    );
    let foreign = Node {
        domain: "com.microsoft".to_owned(),
        ..node("Gelu", &["scores"], "y", &[])
    };
    assert!(ends(foreign).contains("`com.microsoft`"));
    assert!(ends(node("Relu", &["nothing"], "y", &[])).contains("`nothing`"));
    assert!(ends(node("Relu", &["scores"], "z", &[])).contains("`y`"));
    let fixed = problem(linear(
        vec![node("Reshape", &["scores", "shape"], "y", &[])],
        vec![Stored::ints("shape", vec![1, 2])],
    ));
    assert!(
        fixed.contains("`Reshape`") && fixed.contains("dynamic batch"),
        "{fixed}"
    );
    let mixed = problem(linear(
        vec![
            node(
                "ReduceMean",
                &["scores"],
                "mean",
                &[("axes", Attribute::Ints(vec![0]))],
            ),
            node("Sub", &["scores", "mean"], "y", &[]),
        ],
        Vec::new(),
    ));
    assert!(mixed.contains("depends on the others"), "{mixed}");
    let mut nan = linear(vec![node("Relu", &["scores"], "y", &[])], Vec::new());
    nan.graph.initializers[0].values = Values::Floats(vec![f32::NAN; 4]);
    assert!(problem(nan).contains("`w` has NaN"));
    let mut last = linear(vec![node("Relu", &["scores"], "y", &[])], Vec::new());
    last.graph.inputs[0] = Port::f32("x", any(&[224, 224, 3]));
    assert!(problem(last).contains("channels last"));
    let large = problem(linear(
        vec![node("Expand", &["scores", "shape"], "y", &[])],
        vec![Stored::ints("shape", vec![1 << 40, 1, 2])],
    ));
    assert!(large.contains("more than"), "{large}");
}

fn description(model: &str, shape: [usize; 3]) -> Description {
    Description {
        config: serde_json::from_str(model).unwrap(),
        shape,
        classes: ["a", "b", "c"].map(str::to_owned).to_vec(),
    }
}

/// What is drawn of a network is run as the network, with the same gradients, and drawn again.
#[test]
fn networks_come_back_as_they_went() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.onnx");
    for text in [
        r#"{"arch":"wide-resnet","depth":10,"width":1,"activation":"silu","mean":[0.4],"std":[0.3]}"#,
        r#"{"arch":"vit","depth":1,"width":64}"#,
    ] {
        let described = description(text, [1, 8, 8]);
        let network = described.init(2, &device.clone().autodiff()).unwrap();
        // BatchNorm with statistics of its own.
        network.logits(Tensor::<4>::full([3, 1, 8, 8], 0.7, &device).autodiff());
        let model = export::onnx(&network, &described, BTreeMap::new());
        std::fs::write(&path, model.to_bytes()).unwrap();
        let mut again = description(r#"{"arch":"onnx"}"#, [1, 8, 8]);
        again.config.file = Some(path.clone());
        let read = again.start(0, &device.clone().autodiff()).unwrap();
        let is_tracked =
            |network: &crate::Network| network.devices().iter().all(Device::is_autodiff);
        assert!(is_tracked(&read));
        let values: Vec<f32> = (0..128).map(|i| ((i * 37) % 101) as f32 / 100.0).collect();
        let data = TensorData::new(values, [2, 1, 8, 8]);
        let both = [network.valid(), read.valid()].map(|network| {
            let x = Tensor::<4>::from_data(data.clone(), &device)
                .autodiff()
                .require_grad();
            let logits = network.logits(x.clone());
            let features = network.features(x.clone()).inner();
            let scale = Tensor::<2>::from_floats([[1.0, -2.0, 3.0]], &device);
            let total = (logits.clone() * scale).sum_dim(0).sum_dim(1).reshape([1]);
            (logits.inner(), features, x.grad(&total.backward()).unwrap())
        });
        let [(a, f, da), (b, g, db)] = both;
        assert!(a.all_close(b, Some(1e-5), Some(1e-5)));
        assert!(f.all_close(g, Some(1e-5), Some(1e-5)));
        assert!(da.all_close(db, Some(1e-4), Some(1e-5)));
        // Every weight is a parameter under its name, except what a graph cannot tell from constants.
        let names: Vec<String> = named::list(&read)
            .into_iter()
            .map(|tensor| tensor.path)
            .collect();
        let own = named::list(&network).len();
        assert!(names.len() >= own, "{names:?}");
        // Drawn again from the interpreter, it is the same network.
        let second = export::onnx(&read, &again, BTreeMap::new());
        let second = OnnxNetwork::new(second, &device).unwrap();
        let x = Tensor::<4>::from_data(data, &device);
        let once = read.valid().logits(x.clone());
        assert!(second.logits(x).all_close(once, Some(1e-6), Some(1e-6)));
    }
}

#[test]
fn weights_that_came_from_a_file_are_trained() {
    use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
    let device = Device::flex().autodiff();
    let described = description(r#"{"arch":"wide-resnet","depth":10,"width":1}"#, [1, 8, 8]);
    let network = described.init(2, &device).unwrap();
    let model = export::onnx(&network, &described, BTreeMap::new());
    let network = OnnxNetwork::new(model, &device).unwrap();
    let before = named::data(&network);
    let x = Tensor::<4>::full([4, 1, 8, 8], 0.3, &Device::flex()).autodiff();
    let loss = network
        .logits(x)
        .slice([0..4, 0..1])
        .sum_dim(0)
        .reshape([1]);
    let gradients = GradientsParams::from_grads(loss.backward(), &network);
    let mut optimizer: ModuleOptimizer = SgdConfig::new().init();
    let network = optimizer.step(0.1, network, gradients);
    let after = named::data(&network);
    let moved = |name: &str| before[name] != after[name];
    assert!(moved("weights.conv1.weight") && moved("weights.fc.weight"));
    assert!(
        moved("norms.bn1.running_mean"),
        "BatchNorm does not learn its statistics"
    );
}

/// Changed bytes of a real model: an error or another network, no panic.
#[test]
fn damaged_models_do_not_panic() {
    let described = Description {
        config: ModelConfig {
            depth: Some(1),
            width: Some(64),
            ..ModelConfig::of(Arch::Vit)
        },
        ..description(r#"{"arch":"mlp"}"#, [1, 4, 4])
    };
    let network = described.init(0, &Device::flex()).unwrap();
    let mut model = export::onnx(&network, &described, BTreeMap::new());
    // Without the weights' bytes there is more graph in the bytes.
    let mut seed = 1u64;
    let mut random = |below: usize| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    for round in 0..300 {
        let mut changed = model.clone();
        let graph = &mut changed.graph;
        let at = random(graph.nodes.len());
        match round % 6 {
            0 => drop(graph.nodes.remove(at)),
            1 => graph.nodes[at].op = OPERATORS[random(OPERATORS.len())].to_owned(),
            2 => {
                let other = graph.nodes[random(graph.nodes.len())].outputs[0].clone();
                if let Some(input) = graph.nodes[at].inputs.first_mut() {
                    *input = other;
                }
            }
            3 => {
                for attribute in graph.nodes[at].attributes.values_mut() {
                    if let Attribute::Ints(values) = attribute {
                        values.iter_mut().for_each(|v| *v = random(9) as i64 - 3);
                    }
                    if let Attribute::Int(value) = attribute {
                        *value = random(9) as i64 - 4;
                    }
                }
            }
            4 => {
                let at = random(graph.initializers.len());
                if let Values::Ints(values) = &mut graph.initializers[at].values {
                    values.iter_mut().for_each(|v| *v = random(70) as i64 - 3);
                } else {
                    graph.initializers[at].shape.reverse();
                }
            }
            _ => {
                let input = graph.initializers[random(graph.initializers.len())]
                    .name
                    .clone();
                if let Some(last) = graph.nodes[at].inputs.last_mut() {
                    *last = input;
                }
            }
        }
        let _ = OnnxNetwork::new(changed, &Device::flex());
    }
    model.opset = 3;
    assert!(problem(model).contains("version 3"));
}
