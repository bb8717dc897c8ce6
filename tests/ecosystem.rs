//! Models in from other tools and out to them, through the command.

mod place;

use std::fs;

use place::Place;
use serde_json::Value;

/// A perceptron for the digits as PyTorch would save it: `fc1.weight` is `[out, in]`.
fn weights(place: &Place, name: &str) {
    let sizes: [(&str, usize, usize); 3] = [("fc1", 16, 64), ("fc2", 16, 16), ("fc3", 10, 16)];
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    for (layer, rows, columns) in sizes {
        let tensors = [("weight", vec![rows, columns]), ("bias", vec![rows])];
        for (last, shape) in tensors {
            let start = data.len();
            for at in 0..shape.iter().product::<usize>() {
                let value = (1.7 * at as f32).sin() / (columns as f32).sqrt();
                data.extend(value.to_le_bytes());
            }
            let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] });
            header.insert(format!("module.{layer}.{last}"), entry);
        }
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    fs::write(place.path(name), file).unwrap();
}

#[test]
fn weights_of_others_are_imported_audited_trained_on_and_asked() {
    let place = Place::new();
    weights(&place, "net.safetensors");
    place
        .run(&["model", "import", "net.safetensors"])
        .refused(&["--data"]);
    place
        .run(&["model", "import", "net.safetensors", "--shape", "8x8"])
        .refused(&["3x32x32"]);
    place
        .run(&[
            "model",
            "import",
            "net.safetensors",
            "--data",
            "digits",
            "--arch",
            "mnist-cnn",
        ])
        .refused(&["`mnist-cnn` needs"]);
    let done = place
        .run(&[
            "model",
            "import",
            "net.safetensors",
            "--data",
            "digits",
            "--arch",
            "mlp",
            "--normalise",
            "half",
        ])
        .done();
    assert!(
        done.stdout.contains("models/net") && done.stdout.contains("1,482 parameters"),
        "{}",
        done.stdout
    );
    place
        .run(&["model", "import", "net.safetensors", "--data", "digits"])
        .failed(&["something in this folder already"]);
    let shown = place.run(&["model", "show", "models/net"]).done();
    assert!(
        shown.stdout.contains("mlp: 1,482 parameters"),
        "{}",
        shown.stdout
    );

    place
        .run(&[
            "audit",
            "models/net",
            "--data",
            "digits",
            "--threat",
            "linf:0.1",
            "--plan",
            "quick",
            "--samples",
            "20",
            "--no-diagnosis",
            "--device",
            "cpu",
        ])
        .done();

    place
        .run(&["data", "show", "digits", "--png", "sheet.png"])
        .done();
    fs::create_dir(place.path("pictures")).unwrap();
    fs::rename(place.path("sheet.png"), place.path("pictures/sheet.png")).unwrap();
    let lines = place
        .run(&[
            "predict",
            "models/net",
            "pictures",
            "--top",
            "3",
            "--logits",
            "--device",
            "cpu",
        ])
        .done();
    let line: Value = serde_json::from_str(lines.stdout.trim()).unwrap();
    assert_eq!(line["file"], "pictures/sheet.png");
    assert_eq!(line["top"].as_array().unwrap().len(), 3);
    assert_eq!(line["logits"].as_array().unwrap().len(), 10);
    assert!(
        line["resized_from"].is_array() && line["confidence"].as_f64().unwrap() > 0.0,
        "{line}"
    );
    place.write("pictures/broken.png", "no picture");
    let told = place
        .run(&["predict", "models/net", "pictures", "--device", "cpu"])
        .failed(&["1 of 2 files"]);
    let broken: Value = serde_json::from_str(told.stdout.lines().next().unwrap()).unwrap();
    assert_eq!(broken["file"], "pictures/broken.png");
    assert!(broken["error"].is_string());

    // Training starts from the imported weights: after no updates worth mentioning, they are still there.
    let start = [
        "train",
        "small.toml",
        "--set",
        "model.width=16",
        "--set",
        "model.weights=models/net",
        "--set",
        "train.schedule.rate=1e-12",
        "--set",
        "evaluate.baseline=false",
    ];
    place.run(&start).refused(&["which is not"]);
    let normalised = [
        &start[..],
        &["--set", "model.mean=[0.5]", "--set", "model.std=[0.5]"],
    ]
    .concat();
    place.run(&normalised).done();
    place
        .run(&[
            "model",
            "export",
            "runs/small",
            "--format",
            "safetensors",
            "--out",
            "after",
        ])
        .done();
    let (before, after) = (
        fs::read(place.path("net.safetensors")).unwrap(),
        fs::read(place.path("after/model.safetensors")).unwrap(),
    );
    let tail = |bytes: &[u8]| -> Vec<f32> {
        let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[start..]
            .as_chunks()
            .0
            .iter()
            .map(|&raw| f32::from_le_bytes(raw))
            .collect()
    };
    let (before, after) = (tail(&before), tail(&after));
    assert_eq!(before.len(), after.len());
    let sum = |values: &[f32]| values.iter().map(|v| f64::from(*v).abs()).sum::<f64>();
    assert!(
        (sum(&before) - sum(&after)).abs() < 1e-3,
        "training did not start from the weights"
    );
}
