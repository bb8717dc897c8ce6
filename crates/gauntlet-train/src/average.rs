//! Averages of the weights that share nothing with the weights they average.

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use gauntlet_models::{Classifier, detached, named};

/// A running average; untracked, in eval mode.
#[derive(Debug)]
pub(crate) struct Average<M> {
    /// The average. For a stochastic weight average that has taken in nothing yet, this is not to be used.
    pub(crate) model: M,
    kind: Kind,
    /// Weights taken in.
    pub(crate) updates: u64,
}

/// How much of the average stays when weights are taken in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Exponential moving average of every step (Polyak & Juditsky 1992; warm-up as TensorFlow has it).
    Exponential {
        /// Share that stays.
        decay: f64,
    },
    /// Equal average of the ends of epochs (Izmailov et al. 2018).
    Equal {
        /// The first epoch whose end counts.
        from_epoch: u32,
    },
}

impl<M: Module> Average<M> {
    /// Starts at the weights of `model`.
    pub(crate) fn new(model: &M, kind: Kind) -> Self {
        // A blend with itself is a deep copy, BatchNorm statistics included.
        Self::resume(named::lerp(model, model, 1.0), kind, 0)
    }

    /// Goes on from an average that made `updates` already.
    pub(crate) fn resume(model: M, kind: Kind, updates: u64) -> Self {
        Self {
            model,
            kind,
            updates,
        }
    }

    /// What ships, if there is an average yet.
    pub(crate) fn shipped(&self) -> Option<&M> {
        let begun = self.updates > 0 || matches!(self.kind, Kind::Exponential { .. });
        begun.then_some(&self.model)
    }

    /// After a step.
    pub(crate) fn after_step(&mut self, live: &M) {
        if let Kind::Exponential { decay } = self.kind {
            let t = self.updates as f64;
            self.take_in(live, decay.min((1.0 + t) / (10.0 + t)));
        }
    }

    /// After epoch `epoch`, counted from 0; returns whether the average took it in, so that BatchNorm has to be estimated anew.
    pub(crate) fn after_epoch(&mut self, live: &M, epoch: u32) -> bool {
        match self.kind {
            Kind::Equal { from_epoch } if epoch >= from_epoch => {
                let n = self.updates as f64;
                self.take_in(live, n / (n + 1.0));
                true
            }
            _ => false,
        }
    }

    fn take_in(&mut self, live: &M, keep: f64) {
        self.model = named::lerp(&self.model, live, keep);
        self.updates += 1;
    }
}

/// Replaces the BatchNorm statistics of `model` by the mean over `batches` of the statistics of each batch. Does nothing to a
/// model that has none.
///
/// burn moves running statistics by `old + m (batch - old)`, and a module does not tell its `m`. From two starts that differ by 1
/// the results differ by `1 - m`; from a start at 0 the result is `m * batch`.
pub(crate) fn estimate_norm<M: Module + Classifier<4>>(
    model: &M,
    batches: impl Iterator<Item = Tensor<4>>,
) -> M {
    let buffers: Vec<String> = named::list(model)
        .into_iter()
        .filter_map(|named| named.buffer.then_some(named.path))
        .collect();
    if buffers.is_empty() {
        return named::lerp(model, model, 1.0);
    }
    let started = |value: f32| {
        let mut tensors = named::data(model);
        for path in &buffers {
            let old = &tensors[path];
            let count = old.shape().num_elements();
            tensors.insert(
                path.clone(),
                TensorData::new(vec![value; count], old.shape().clone()),
            );
        }
        named::with_data(model, tensors)
    };
    let (zero, one) = (started(0.0), started(1.0));
    let after = |start: &M, x: Tensor<4>| {
        let probe = detached(start);
        probe.logits(x.autodiff());
        named::data_where(&probe, named::is_buffer)
    };
    let values = |data: &TensorData| data.try_to_vec::<f32>().expect("statistics are f32");
    let mut sums: Vec<Vec<f64>> = Vec::new();
    let (mut count, mut momentum) = (0usize, 0.1);
    for x in batches {
        let moved = after(&zero, x.clone());
        if count == 0 {
            let other = after(&one, x);
            let apart = values(&other[&buffers[0]])[0] - values(&moved[&buffers[0]])[0];
            momentum = 1.0 - f64::from(apart);
            sums = buffers
                .iter()
                .map(|path| vec![0.0; values(&moved[path]).len()])
                .collect();
        }
        for (sum, path) in sums.iter_mut().zip(&buffers) {
            for (sum, value) in sum.iter_mut().zip(values(&moved[path])) {
                *sum += f64::from(value);
            }
        }
        count += 1;
    }
    if count == 0 || momentum <= 0.0 {
        return named::lerp(model, model, 1.0);
    }
    let mut tensors = named::data(model);
    for (sum, path) in sums.iter().zip(&buffers) {
        let scale = 1.0 / (momentum * count as f64);
        let mean: Vec<f32> = sum.iter().map(|sum| (sum * scale) as f32).collect();
        let shape = tensors[path].shape().clone();
        tensors.insert(path.clone(), TensorData::new(mean, shape));
    }
    named::with_data(model, tensors)
}

#[cfg(test)]
mod tests {
    use burn::nn::{BatchNorm, BatchNormConfig, Initializer, Linear, LinearConfig};
    use burn::tensor::Device;

    use super::*;

    fn at(value: f64) -> Linear {
        LinearConfig::new(1, 1)
            .with_initializer(Initializer::Constant { value })
            .init(&Device::flex())
    }

    #[test]
    fn the_exponential_one_warms_up_and_then_keeps_its_decay() {
        let mut ema = Average::new(&at(0.0), Kind::Exponential { decay: 0.5 });
        let mut expected = 0.0;
        for (step, keep) in [0.1, 2.0 / 11.0, 3.0 / 12.0].into_iter().enumerate() {
            let value = step as f64 + 1.0;
            ema.after_step(&at(value));
            expected = expected * keep + value * (1.0 - keep);
        }
        let weight: f32 = ema.model.weight.val().into_scalar();
        assert!((f64::from(weight) - expected).abs() < 1e-6);
        ema.updates = 1000;
        ema.after_step(&at(0.0));
        let weight: f32 = ema.model.weight.val().into_scalar();
        assert!((f64::from(weight) - expected * 0.5).abs() < 1e-6);
    }

    #[test]
    fn the_equal_one_is_the_mean_of_the_epochs_that_count() {
        let mut swa = Average::new(&at(9.0), Kind::Equal { from_epoch: 1 });
        assert!(swa.shipped().is_none());
        for (epoch, value) in [7.0, 1.0, 2.0, 6.0].into_iter().enumerate() {
            swa.after_step(&at(-5.0));
            assert_eq!(swa.after_epoch(&at(value), epoch as u32), epoch >= 1);
        }
        let weight: f32 = swa.shipped().unwrap().weight.val().into_scalar();
        assert!((weight - 3.0).abs() < 1e-6, "{weight}");
    }

    #[derive(Module, Debug)]
    struct Normed {
        norm: BatchNorm,
    }

    impl Classifier<4> for Normed {
        fn logits(&self, x: Tensor<4>) -> Tensor<2> {
            self.features(x)
        }
        fn features(&self, x: Tensor<4>) -> Tensor<2> {
            self.norm.forward(x).flatten(1, 3)
        }
    }

    #[test]
    fn norms_are_estimated_as_the_mean_over_batches_whatever_their_momentum() {
        let device = Device::flex();
        for momentum in [0.1, 0.3] {
            let norm = BatchNormConfig::new(1).with_momentum(momentum);
            let model = Normed {
                norm: norm.init(&device.clone().autodiff()),
            };
            // Means 2 and 5, biased variances 1 and 4.
            let batches = [[1.0f32, 3.0], [3.0, 7.0]]
                .map(|pair| Tensor::<1>::from_floats(pair, &device).reshape([2, 1, 1, 1]));
            let before = named::data(&model);
            let found = named::data(&estimate_norm(&model, batches.into_iter()));
            let value = |path: &str| found[path].try_to_vec::<f32>().unwrap()[0];
            assert!((value("norm.running_mean") - 3.5).abs() < 1e-4, "{found:?}");
            assert!((value("norm.running_var") - 2.5).abs() < 1e-3, "{found:?}");
            assert_eq!(named::data(&model), before, "the model itself was moved");
        }
    }
}
