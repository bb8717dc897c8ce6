//! `run-in-tract model.onnx 7x1x28x28 < values > logits`: little-endian f32 in, little-endian f32 out.

use std::error::Error;
use std::io::{Read, Write};

use tract_onnx::prelude::*;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, shape] = arguments.as_slice() else {
        return Err("two arguments: a model and the shape of its input, as 7x1x28x28".into());
    };
    let shape = shape
        .split('x')
        .map(str::parse)
        .collect::<Result<Vec<usize>, _>>()?;
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    let floats = bytes.chunks_exact(4);
    let values: Vec<f32> = floats
        .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
        .collect();
    let input = Tensor::from_shape(&shape, &values)?;
    let plan = tract_onnx::onnx()
        .model_for_path(model)?
        .into_optimized()?
        .into_runnable()?;
    let outputs = plan.run(tvec!(input.into()))?;
    let logits = outputs[0].try_as_plain_ram()?;
    let logits: Vec<u8> = logits
        .as_slice::<f32>()?
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    std::io::stdout().write_all(&logits)?;
    Ok(())
}
