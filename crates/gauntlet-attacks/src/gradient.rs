use burn::tensor::{Int, Tensor, activation::log_softmax};
use gauntlet_kernels::perturb::finite;
use gauntlet_models::Classifier;

/// What an attack ascends, per sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttackLoss {
    /// Cross-entropy with the true class.
    #[default]
    CrossEntropy,
    /// Largest other logit minus the true one (Carlini & Wagner 2017).
    Margin,
}

impl AttackLoss {
    /// Loss of each sample.
    ///
    /// # Shapes
    /// `logits: [batch, classes]`, `y: [batch]`; the result `[batch]`.
    pub fn per_sample(self, logits: Tensor<2>, y: Tensor<1, Int>) -> Tensor<1> {
        let truth = y.clone().unsqueeze_dim::<2>(1);
        match self {
            Self::CrossEntropy => log_softmax(logits, 1).gather(1, truth).neg().squeeze_dim(1),
            Self::Margin => {
                let others = without_true(logits.clone(), y);
                (others.max_dim(1) - logits.gather(1, truth)).squeeze_dim(1)
            }
        }
    }
}

/// The logits with the true class at -∞.
pub(crate) fn without_true(logits: Tensor<2>, y: Tensor<1, Int>) -> Tensor<2> {
    let [batch, classes] = logits.dims();
    let index = Tensor::<1, Int>::arange(0..classes as i64, &logits.device());
    let is_true = index
        .unsqueeze_dim::<2>(0)
        .repeat_dim(0, batch)
        .equal(y.unsqueeze_dim::<2>(1).repeat_dim(1, classes));
    logits.mask_fill(is_true, f32::NEG_INFINITY)
}

/// The gradient of the summed loss with respect to `x` alone, the loss of each sample, and the logits; all without autodiff.
///
/// Parameters of an untracked `model` are constants of the graph, so no weight gradient is computed. The sum, not the mean:
/// a sample's gradient does not depend on how many batch mates it has.
///
/// # Shapes
/// `x: [batch, ..]`, `y: [batch]`; results as `x`, `[batch]`, `[batch, classes]`.
pub fn input_gradient<const D: usize>(
    model: &dyn Classifier<D>,
    x: Tensor<D>,
    y: Tensor<1, Int>,
    loss: AttackLoss,
) -> (Tensor<D>, Tensor<1>, Tensor<2>) {
    input_gradient_of(model, x, |logits| loss.per_sample(logits, y))
}

/// [`input_gradient`] of any value of each sample: `value` maps `[batch, classes]` to `[batch]`, and rows do not mix.
pub fn input_gradient_of<const D: usize>(
    model: &dyn Classifier<D>,
    x: Tensor<D>,
    value: impl FnOnce(Tensor<2>) -> Tensor<1>,
) -> (Tensor<D>, Tensor<1>, Tensor<2>) {
    let x = x.autodiff().require_grad();
    // A model may leave the graph on its way, by a step that autodiff does not know.
    let logits = model.logits(x.clone()).autodiff();
    let values = value(logits.clone());
    // One that ignores its input has no gradient: that is a zero, not a crash.
    let gradient = values.is_tracked().then(|| {
        let mut gradients = values.clone().sum_dim(0).backward();
        x.grad_remove(&mut gradients)
    });
    let gradient = gradient
        .flatten()
        .unwrap_or_else(|| x.clone().inner().zeros_like());
    // What is no number says nothing of the way: a zero is passed over by every step, a NaN would end up in the example.
    (finite(gradient), values.inner(), logits.inner())
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::{Linear, values};

    #[test]
    fn losses_are_their_formulas() {
        let device = Device::flex();
        let logits = Tensor::<2>::from_floats([[1.0, 2.0, 0.5], [3.0, -1.0, 100.0]], &device);
        let y = Tensor::<1, Int>::from_ints([1, 0], &device);
        let ce = values(AttackLoss::CrossEntropy.per_sample(logits.clone(), y.clone()));
        let expected = (1f32.exp() + 2f32.exp() + 0.5f32.exp()).ln() - 2.0;
        assert!((ce[0] - expected).abs() < 1e-6);
        assert!((ce[1] - 97.0).abs() < 1e-4);
        assert_eq!(
            values(AttackLoss::Margin.per_sample(logits, y)),
            [-1.0, 97.0]
        );
    }

    /// Models that ignore their input, or compute where autodiff does not follow.
    #[test]
    fn what_has_no_gradient_has_a_gradient_of_zero() {
        struct Blind(fn(Tensor<2>) -> Tensor<2>);
        impl Classifier<2> for Blind {
            fn logits(&self, x: Tensor<2>) -> Tensor<2> {
                (self.0)(x)
            }
            fn features(&self, x: Tensor<2>) -> Tensor<2> {
                x
            }
        }
        let x = Tensor::<2>::from_floats([[0.2, 0.4, 0.1], [0.9, 0.1, 0.3]], &Device::flex());
        let y = Tensor::<1, Int>::from_ints([0, 1], &Device::flex());
        for model in [|x: Tensor<2>| x.ones_like(), Tensor::inner, Tensor::detach] {
            for loss in [AttackLoss::CrossEntropy, AttackLoss::Margin] {
                let (gradient, losses, logits) =
                    input_gradient(&Blind(model), x.clone(), y.clone(), loss);
                assert_eq!(values(gradient), [0.0; 6]);
                let expected = loss.per_sample(model(x.clone()), y.clone());
                assert_eq!(values(losses), values(expected));
                assert_eq!(values(logits), values(model(x.clone())));
            }
        }
    }

    #[test]
    fn the_gradient_of_a_linear_margin_is_the_difference_of_its_rows() {
        let device = Device::flex();
        let model = Linear::new([[1.0, -2.0], [0.5, 3.0]], [0.0, 0.1], &device);
        let x = Tensor::<2>::from_floats([[0.2, 0.4], [0.9, 0.1]], &device);
        let y = Tensor::<1, Int>::from_ints([0, 1], &device);
        let (gradient, losses, logits) = input_gradient(&model, x, y, AttackLoss::Margin);
        let expected = [-0.5, 5.0, 0.5, -5.0];
        assert!(
            values(gradient.clone())
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-6)
        );
        assert!(
            !gradient.device().is_autodiff()
                && !losses.device().is_autodiff()
                && !logits.device().is_autodiff()
        );
    }
}
