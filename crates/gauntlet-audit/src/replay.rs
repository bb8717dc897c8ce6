use std::collections::BTreeMap;

use burn::tensor::{Int, Tensor, TensorData};
use gauntlet_attacks::{Attack, Noise};
use gauntlet_models::Classifier;
use sha2::{Digest, Sha256};

/// How the name of a replay begins.
pub(crate) const REPLAYED: &str = "what fell within";

/// Examples that were found before, within a smaller budget: what fell there falls here, at no cost.
pub(crate) struct Replay {
    /// The budget they were found within: `linf:4/255`.
    pub(crate) from: String,
    /// `[channels, height, width]`, flat, by the sample's index in the data set.
    pub(crate) examples: BTreeMap<u32, Vec<f32>>,
}

impl Replay {
    /// SHA-256 of the examples, as hex: others come to another result.
    pub(crate) fn hash(&self) -> String {
        let mut hash = Sha256::new();
        for (sample, example) in &self.examples {
            hash.update(sample.to_le_bytes());
            for value in example {
                hash.update(value.to_le_bytes());
            }
        }
        let digest = hash.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Attack<4> for Replay {
    fn perturb(
        &self,
        _model: &dyn Classifier<4>,
        x: Tensor<4>,
        _y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<4> {
        let (dims, device) = (x.dims(), x.device());
        let length = dims[1..].iter().product::<usize>();
        let mut values: Vec<f32> = x.try_into_vec_as().expect("images that were computed");
        for (row, sample) in noise.samples.iter().enumerate() {
            if let Some(example) = self.examples.get(sample) {
                values[row * length..(row + 1) * length].copy_from_slice(example);
            }
        }
        Tensor::from_data(TensorData::new(values, dims), &device)
    }

    fn name(&self) -> String {
        format!("{REPLAYED} {}", self.from)
    }
}
