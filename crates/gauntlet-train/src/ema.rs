//! A running average of the weights that shares nothing with the weights it averages.

use burn::module::Module;
use gauntlet_models::named;

/// Exponential moving average of every parameter and running statistic (Polyak & Juditsky 1992; warm-up as TensorFlow has it).
#[derive(Debug)]
pub(crate) struct Ema<M> {
    /// The average: untracked, in eval mode.
    pub(crate) model: M,
    decay: f64,
    /// Updates made.
    pub(crate) updates: u64,
}

impl<M: Module> Ema<M> {
    /// Starts at the weights of `model`.
    pub(crate) fn new(model: &M, decay: f64) -> Self {
        // A blend with itself is a deep copy, BatchNorm statistics included.
        Self {
            model: named::lerp(model, model, 1.0),
            decay,
            updates: 0,
        }
    }

    /// Goes on from an average that made `updates` already.
    pub(crate) fn resume(model: M, decay: f64, updates: u64) -> Self {
        Self {
            model,
            decay,
            updates,
        }
    }

    /// Takes in the weights of `live`.
    pub(crate) fn update(&mut self, live: &M) {
        let t = self.updates as f64;
        let keep = self.decay.min((1.0 + t) / (10.0 + t));
        self.model = named::lerp(&self.model, live, keep);
        self.updates += 1;
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{Initializer, LinearConfig};
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn it_warms_up_and_then_keeps_its_decay() {
        let device = Device::flex();
        let at = |value: f64| {
            LinearConfig::new(1, 1)
                .with_initializer(Initializer::Constant { value })
                .init(&device)
        };
        let mut ema = Ema::new(&at(0.0), 0.5);
        let mut expected = 0.0;
        for (step, keep) in [0.1, 2.0 / 11.0, 3.0 / 12.0].into_iter().enumerate() {
            let value = step as f64 + 1.0;
            ema.update(&at(value));
            expected = expected * keep + value * (1.0 - keep);
        }
        let weight: f32 = ema.model.weight.val().into_scalar();
        assert!((f64::from(weight) - expected).abs() < 1e-6);
        ema.updates = 1000;
        ema.update(&at(0.0));
        let weight: f32 = ema.model.weight.val().into_scalar();
        assert!((f64::from(weight) - expected * 0.5).abs() < 1e-6);
    }
}
