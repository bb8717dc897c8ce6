use burn::tensor::{Int, Tensor};
use gauntlet_kernels::NoiseKey;
use gauntlet_models::Classifier;

/// Names the random numbers of one call of an attack: a key, and which data-set sample each row is.
#[derive(Clone, Debug)]
pub struct Noise {
    /// Run seed, stream, epoch, step.
    pub key: NoiseKey,
    /// Index in the data set of each row of the batch: a row's noise does not depend on its batch mates.
    pub samples: Vec<u32>,
}

/// Turns a batch into adversarial examples.
///
/// `model` must be untracked and in eval mode (`Module::valid`), so that no weight gradient is computed and no
/// BatchNorm statistic moves; `x` is a plain tensor, and so is the result. Attacks are values without state: several threads may
/// use one.
pub trait Attack<const D: usize>: Send + Sync {
    /// `x: [batch, ..]` in bounds, `y: [batch]` true classes. The result is within the threat model.
    fn perturb(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<D>;
    /// Name with its parameters, as reports print it: `PGD-20x5`.
    fn name(&self) -> String;
}
