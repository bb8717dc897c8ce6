//! What a network says of pictures.

use std::path::PathBuf;

use burn::tensor::{Device, Tensor, TensorData, activation};
use gauntlet_data::{picture_file, pictures_below};
use gauntlet_models::Classifier;
use serde_json::{Value, json};

use super::subject::Loaded;
use crate::args::Predict;
use crate::devices::{self, Spec};
use crate::failure::Failure;
use crate::output::{self, say};

/// Prints one JSON object a picture.
pub(crate) fn predict(args: Predict, quiet: bool) -> Result<(), Failure> {
    let device = devices::pick(args.device.unwrap_or(Spec::Auto))?;
    let takes = args.images.takes(args.weights.classes);
    let takes = takes.map_err(Failure::request)?;
    let loaded = args
        .weights
        .subject(&args.model, takes.as_ref())
        .load(&device.device)?;
    if !quiet {
        device.note.iter().chain(&loaded.notes).for_each(say);
    }
    let channels = loaded.description.shape[0];
    if channels != 1 && channels != 3 {
        return Err(Failure::request(format!(
            "the network takes images of {channels} channels; pictures have 1 or 3"
        )));
    }
    let files = files(&args.files)?;
    let mut unread = 0;
    for part in files.chunks(args.batch_size) {
        let lines = answer(&loaded, part, &args, &device.device);
        unread += lines.iter().filter(|line| !line["error"].is_null()).count();
        let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
        output::print(lines.join("\n"));
    }
    match unread {
        0 => Ok(()),
        _ => Err(Failure::running(format!(
            "{unread} of {} files could not be read; their lines say why",
            files.len()
        ))),
    }
}

/// Folders as the pictures in them.
fn files(named: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for path in named {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let found = pictures_below(path)?;
        if found.is_empty() {
            return Err(Failure::request(format!(
                "{} holds no .png, .jpg or .jpeg",
                path.display()
            )));
        }
        files.extend(found);
    }
    Ok(files)
}

/// A line for each file, in order.
fn answer(loaded: &Loaded, files: &[PathBuf], args: &Predict, device: &Device) -> Vec<Value> {
    let shape @ [channels, height, width] = loaded.description.shape;
    let read: Vec<_> = files
        .iter()
        .map(|file| picture_file(file, shape, args.resize))
        .collect();
    let whole: Vec<_> = read.iter().flatten().collect();
    let mut rows = Vec::new();
    if !whole.is_empty() {
        let pixels: Vec<f32> = whole
            .iter()
            .flat_map(|(pixels, _)| pixels.iter().map(|&byte| f32::from(byte) / 255.0))
            .collect();
        let data = TensorData::new(pixels, [whole.len(), channels, height, width]);
        let logits = loaded.network.logits(Tensor::from_data(data, device));
        let shares = activation::softmax(logits.clone(), 1);
        let host = |values: Tensor<2>| -> Vec<Vec<f32>> {
            let values: Vec<f32> = values.try_into_vec_as().expect("logits are numbers");
            let each = values.chunks(loaded.description.classes.len());
            each.map(<[f32]>::to_vec).collect()
        };
        rows.extend(host(shares).into_iter().zip(host(logits)));
    }
    let mut rows = rows.into_iter();
    let lines = files.iter().zip(read).map(|(file, read)| match read {
        Err(error) => json!({ "file": file, "error": error.to_string() }),
        Ok((_, size)) => {
            let (shares, logits) = rows.next().expect("one row for each picture that was read");
            let mut line = judged(&shares, &loaded.description.classes, args.top);
            if args.logits {
                line["logits"] = json!(logits);
            }
            line["file"] = json!(file);
            if size != [height, width] {
                line["resized_from"] = json!(size);
            }
            line
        }
    });
    lines.collect()
}

/// `class`, `label`, `confidence`, and the `top` likeliest.
fn judged(shares: &[f32], classes: &[String], top: usize) -> Value {
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]).then(a.cmp(&b)));
    let entry = |&class: &usize| json!({ "class": class, "label": classes[class], "confidence": shares[class] });
    if shares.iter().any(|share| !share.is_finite()) {
        return json!({ "error": "the network answers with what is no number" });
    }
    let mut line = order.first().map(entry).unwrap_or_default();
    line["top"] = order.iter().take(top.max(1)).map(entry).collect();
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_equals_by_their_number() {
        let classes = ["a", "b", "c"].map(str::to_owned);
        let line = judged(&[0.2, 0.4, 0.4], &classes, 2);
        assert_eq!((&line["class"], &line["label"]), (&json!(1), &json!("b")));
        assert_eq!(line["top"][1]["class"], 2);
        assert_eq!(line["top"].as_array().unwrap().len(), 2);
        assert!(judged(&[f32::NAN, 0.1, 0.2], &classes, 1)["error"].is_string());
    }
}
