use burn::tensor::{Int, Tensor};
use gauntlet_kernels::perturb::{project_l2, project_linf, unit_l2};
use gauntlet_models::Classifier;

use crate::gradient::input_gradient_of;
use crate::{Attack, AttackLoss, Goal, Noise, Norm, ThreatModel};

/// Why nothing could be fitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FitError {
    /// No batch, or none with a sample in it.
    #[error("there is nothing to fit on: give at least one sample and one epoch")]
    NoSamples,
    /// Images of several shapes.
    #[error("images of {found:?} channels, height, width came after images of {expected:?}")]
    Shape {
        /// `[channels, height, width]` of the first batch.
        expected: [usize; 3],
        /// Of the one that differs.
        found: [usize; 3],
    },
    /// A norm in which there is no step.
    #[error("universal perturbations are fitted in linf and l2, not in {0}")]
    Norm(Norm),
    /// A window that the images do not hold.
    #[error("a patch of side {side} is none, or larger than images of {height} x {width}")]
    Side {
        /// Of the patch.
        side: usize,
        /// Of the images.
        height: usize,
        /// Of the images.
        width: usize,
    },
}

/// Finds one perturbation for all images (Moosavi-Dezfooli et al. 2017, "Universal adversarial perturbations") by projected
/// gradient ascent on the mean loss over batches (Shafahi et al. 2020, "Universal adversarial training", algorithm 1):
///
/// `delta <- project(delta + step_size * direction(mean over the batch of d/d delta min(loss(clip(x + delta)), cap)))`
///
/// with the sign as direction in L∞ and the unit vector in L2. The cap on the loss is the paper's idea: no sample, once lost,
/// outweighs the others. The step falls linearly over the epochs, so that the last ones settle.
#[derive(Clone, Debug)]
pub struct UniversalFit {
    /// What the attacker may do; in L∞ or L2.
    pub threat: ThreatModel,
    /// What is sought.
    pub goal: Goal,
    /// What is ascended.
    pub loss: AttackLoss,
    /// Where the loss of a sample stops to count.
    pub cap: f32,
    /// Passes over the data.
    pub epochs: usize,
    /// Length of a step in the first epoch, in input units.
    pub step_size: f32,
}

impl UniversalFit {
    /// Ten epochs, steps of a quarter of eps (enough to cross the ball with one batch an epoch), and the paper's loss,
    /// cross-entropy, capped at 9. Where a model is sure of every sample by 17, that has no gradient in `f32`: take the margin,
    /// which was between 4 points stronger and 18 weaker on four small networks for digits.
    pub fn new(threat: ThreatModel) -> Self {
        let step_size = threat.eps.value() / 4.0;
        Self {
            threat,
            goal: Goal::Untargeted,
            loss: AttackLoss::CrossEntropy,
            cap: 9.0,
            epochs: 10,
            step_size,
        }
    }

    /// The perturbation, starting from none. `batches(epoch)` gives the images in bounds and the classes of an epoch from 0:
    /// true ones or, with [`Goal::Targeted`], targets.
    ///
    /// # Shapes
    /// Images `[batch, channels, height, width]`, classes `[batch]`; the perturbation `[1, channels, height, width]`.
    ///
    /// # Errors
    /// No samples, images of several shapes, or another norm.
    pub fn fit<I>(
        &self,
        model: &dyn Classifier<4>,
        mut batches: impl FnMut(usize) -> I,
    ) -> Result<Universal, FitError>
    where
        I: IntoIterator<Item = (Tensor<4>, Tensor<1, Int>)>,
    {
        if !matches!(self.threat.norm, Norm::Linf | Norm::L2) {
            return Err(FitError::Norm(self.threat.norm));
        }
        let mut delta: Option<Tensor<4>> = None;
        for epoch in 0..self.epochs {
            let step_size = falling(self.step_size, epoch, self.epochs);
            for (x, y) in batches(epoch) {
                let [batch, channels, height, width] = x.dims();
                if x.dims().contains(&0) {
                    continue;
                }
                let shape = [1, channels, height, width];
                let old = delta
                    .take()
                    .unwrap_or_else(|| Tensor::zeros(shape, &x.device()));
                same_shape(&old, &x)?;
                let moved = x + old.clone();
                let (low, high) = self.threat.bounds;
                let gradient = self.gradient(model, moved.clone().clamp(low, high), y);
                // What is cut off at the box does not move with delta.
                let cut = moved
                    .clone()
                    .lower_elem(low)
                    .bool_or(moved.greater_elem(high));
                let gradient = gradient.mask_fill(cut, 0.0);
                let mean = gradient.sum_dim(0).div_scalar(batch as f32);
                delta = Some(self.step(old, mean, step_size));
            }
        }
        let delta = delta.ok_or(FitError::NoSamples)?;
        Ok(Universal {
            threat: self.threat.clone(),
            delta,
        })
    }

    fn gradient(&self, model: &dyn Classifier<4>, x: Tensor<4>, y: Tensor<1, Int>) -> Tensor<4> {
        capped_gradient(model, x, |logits| {
            self.goal.loss(self.loss, logits, y).clamp_max(self.cap)
        })
    }

    fn step(&self, delta: Tensor<4>, gradient: Tensor<4>, size: f32) -> Tensor<4> {
        let (none, eps) = (delta.zeros_like(), self.threat.eps.value());
        // The box belongs to the images, not to their difference.
        let free = (-eps, eps);
        match self.threat.norm {
            Norm::L2 => project_l2(delta + unit_l2(gradient).mul_scalar(size), none, eps, free),
            _ => project_linf(delta + gradient.sign().mul_scalar(size), none, eps, free),
        }
    }
}

/// The gradient of a value of each sample, zero where it is no number: one such sample must not spoil a mean.
pub(crate) fn capped_gradient(
    model: &dyn Classifier<4>,
    x: Tensor<4>,
    value: impl FnOnce(Tensor<2>) -> Tensor<1>,
) -> Tensor<4> {
    let (gradient, ..) = input_gradient_of(model, x, value);
    let no_number = gradient.clone().is_nan();
    gradient.mask_fill(no_number, 0.0)
}

/// Linearly from `first` at 0 to `first / count` in the last of `count`.
pub(crate) fn falling(first: f32, i: usize, count: usize) -> f32 {
    first * (1.0 - i as f32 / count as f32)
}

pub(crate) fn same_shape(first: &Tensor<4>, x: &Tensor<4>) -> Result<(), FitError> {
    let shape = |x: &Tensor<4>| {
        let [_, channels, height, width] = x.dims();
        [channels, height, width]
    };
    let (expected, found) = (shape(first), shape(x));
    if expected == found {
        return Ok(());
    }
    Err(FitError::Shape { expected, found })
}

/// One perturbation on every image, clipped to the box; what [`UniversalFit`] finds.
#[derive(Clone, Debug)]
pub struct Universal {
    /// What the attacker may do. The perturbation is within it.
    pub threat: ThreatModel,
    /// `[1, channels, height, width]`
    pub delta: Tensor<4>,
}

impl Attack<4> for Universal {
    /// # Panics
    /// If the images are not of the shape of the perturbation.
    fn perturb(
        &self,
        _model: &dyn Classifier<4>,
        x: Tensor<4>,
        _y: Tensor<1, Int>,
        _noise: &Noise,
    ) -> Tensor<4> {
        if x.dims().contains(&0) {
            return x;
        }
        let (low, high) = self.threat.bounds;
        let delta = self.delta.clone().to_device(&x.device());
        let result = (x.clone() + delta).clamp(low, high);
        debug_assert_eq!(self.threat.verify(&x, &result), Ok(()));
        result
    }

    fn name(&self) -> String {
        "Universal".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::{LinearImages, values};
    use crate::testing_images::{noise, uniform};

    /// Of one class, far from the box, every sample of a linear model has the same best direction: the sign, or the unit
    /// vector, of the difference of the rows.
    #[test]
    fn the_perturbation_of_one_class_is_the_closed_form() {
        let shape = [40, 2, 5, 4];
        let model = LinearImages::random(7, 2, shape);
        let rows = values(model.rows.clone());
        let difference: Vec<f32> = (0..40).map(|i| rows[40 + i] - rows[i]).collect();
        let length = difference.iter().map(|d| d * d).sum::<f32>().sqrt();
        let x = uniform(shape, 0.4, 0.6);
        let y = Tensor::<1, Int>::zeros([40], &x.device());
        for (text, eps) in [("linf:0.1", 0.1), ("l2:0.3", 0.3)] {
            let fit = UniversalFit {
                cap: 100.0,
                ..UniversalFit::new(text.parse().unwrap())
            };
            let batches = |epoch: usize| {
                let (x, y) = (x.clone(), y.clone());
                // Another cut into batches in each epoch, the last one empty.
                let cut = 7 + epoch;
                [(0, cut), (cut, 40), (40, 40)]
                    .map(|(a, b)| (x.clone().slice([a..b]), y.clone().slice([a..b])))
            };
            let found = fit.fit(&model, batches).unwrap();
            for (delta, d) in values(found.delta.clone()).into_iter().zip(&difference) {
                let best = if text.starts_with("linf") {
                    eps * d.signum()
                } else {
                    eps * d / length
                };
                assert!(
                    (delta - best).abs() < 0.01 * eps,
                    "{text}: {delta} for {best}"
                );
            }
            let moved = found.perturb(&model, x.clone(), y.clone(), &noise(0..40));
            assert_eq!(found.threat.verify(&x, &moved), Ok(()));
        }
    }

    /// Of two classes that pull in opposite directions, the one with more samples wins; towards a target all pull alike.
    #[test]
    fn the_mean_decides_and_targets_attract() {
        let device = Device::flex();
        let model = LinearImages {
            rows: Tensor::from_floats([[1.0, 2.0], [-1.0, -2.0]], &device),
        };
        let x = uniform([10, 1, 1, 2], 0.4, 0.6);
        let y = Tensor::<1, Int>::from_ints([1, 1, 1, 1, 1, 1, 1, 0, 0, 0], &device);
        let fit = UniversalFit::new("linf:0.1".parse().unwrap());
        let towards_0 = [0.1, 0.1];
        let found = fit.fit(&model, |_| [(x.clone(), y.clone())]).unwrap();
        assert_eq!(values(found.delta), towards_0);
        let targeted = UniversalFit {
            goal: Goal::Targeted,
            ..fit
        };
        let ones = Tensor::<1, Int>::ones([10], &device);
        let found = targeted.fit(&model, |_| [(x.clone(), ones.clone())]);
        assert_eq!(values(found.unwrap().delta), towards_0.map(|v: f32| -v));
    }

    /// A sample beyond the cap no longer counts: without it the one lost sample, of large slope, would decide.
    #[test]
    fn lost_samples_do_not_outweigh_the_others() {
        struct Steep;
        impl Classifier<4> for Steep {
            fn logits(&self, x: Tensor<4>) -> Tensor<2> {
                // Class 1 by 100 (v - 0.5) where x has its second pixel set, else class 1 by -v.
                let pixels = x.flatten::<2>(1, 3);
                let rows = pixels.dims()[0];
                let v = pixels.clone().slice([0..rows, 0..1]);
                let set = pixels.slice([0..rows, 1..2]).greater_elem(0.5).float();
                let steep = v.clone().sub_scalar(0.5).mul_scalar(100.0) * set.clone();
                let score = steep - v * set.neg().add_scalar(1.0);
                Tensor::cat(vec![score.zeros_like(), score], 1)
            }
            fn features(&self, x: Tensor<4>) -> Tensor<2> {
                x.flatten(1, 3)
            }
        }
        let device = Device::flex();
        let pixels = [[0.9, 1.0], [0.6, 0.0], [0.6, 0.0]];
        let x = Tensor::<2>::from_floats(pixels, &device).reshape([3, 1, 1, 2]);
        let y = Tensor::<1, Int>::zeros([3], &device);
        let first = |cap| {
            let fit = UniversalFit {
                cap,
                ..UniversalFit::new("linf:0.1".parse().unwrap())
            };
            let found = fit.fit(&Steep, |_| [(x.clone(), y.clone())]).unwrap();
            values(found.delta)[0]
        };
        assert!(first(1000.0) > 0.09 && first(9.0) < -0.09);
    }

    /// Two samples at the box pull upwards and one within pulls downwards. Once the two are cut off they cannot pull any
    /// more; were their gradient taken for real, it would win.
    #[test]
    fn what_is_cut_off_at_the_box_does_not_pull() {
        let device = Device::flex();
        let model = LinearImages {
            rows: Tensor::from_floats([[-1.0], [1.0]], &device),
        };
        let x = Tensor::<1>::from_floats([1.0, 1.0, 0.5], &device).reshape([3, 1, 1, 1]);
        let y = Tensor::<1, Int>::from_ints([0, 0, 1], &device);
        let fit = UniversalFit {
            loss: AttackLoss::Margin,
            epochs: 41,
            ..UniversalFit::new("linf:0.2".parse().unwrap())
        };
        let found = fit.fit(&model, |_| [(x.clone(), y.clone())]).unwrap();
        let delta = values(found.delta)[0];
        assert!(delta.abs() < 0.05, "{delta}");
    }

    #[test]
    fn what_cannot_be_fitted_is_told() {
        let model = LinearImages::random(1, 2, [1, 1, 2, 2]);
        let batch = |width| {
            let x = uniform([2, 1, 2, width], 0.0, 1.0);
            let y = Tensor::<1, Int>::zeros([2], &x.device());
            (x, y)
        };
        let fit = UniversalFit::new("linf:0.1".parse().unwrap());
        let none: [(Tensor<4>, Tensor<1, Int>); 0] = [];
        let error = fit.fit(&model, |_| none.clone()).unwrap_err();
        assert_eq!(error, FitError::NoSamples);
        let error = fit.fit(&model, |_| [batch(2), batch(3)]).unwrap_err();
        let (expected, found) = ([1, 2, 2], [1, 2, 3]);
        assert_eq!(error, FitError::Shape { expected, found });
        let sparse = UniversalFit::new("l0:3".parse().unwrap());
        assert_eq!(
            sparse.fit(&model, |_| [batch(2)]).unwrap_err(),
            FitError::Norm(Norm::L0)
        );
    }

    #[test]
    fn values_end_at_the_box_and_gradients_that_are_no_numbers_count_nothing() {
        struct Half(LinearImages);
        impl Classifier<4> for Half {
            fn logits(&self, x: Tensor<4>) -> Tensor<2> {
                let rows = x.dims()[0];
                let logits = self.0.logits(x);
                let spoilt = logits.clone().slice([0..1, 0..2]).mul_scalar(f32::NAN);
                Tensor::cat(vec![spoilt, logits.slice([1..rows, 0..2])], 0)
            }
            fn features(&self, x: Tensor<4>) -> Tensor<2> {
                x.flatten(1, 3)
            }
        }
        let shape = [3, 1, 3, 3];
        let model = Half(LinearImages::random(2, 2, shape));
        let x = uniform(shape, 0.0, 1.0).round();
        let y = Tensor::<1, Int>::zeros([3], &x.device());
        let fit = UniversalFit::new("l2:2".parse().unwrap());
        let found = fit.fit(&model, |_| [(x.clone(), y.clone())]).unwrap();
        assert!(values(found.delta.clone()).iter().any(|&v| v.abs() > 0.1));
        let moved = found.perturb(&model, x.clone(), y.clone(), &noise(0..3));
        assert_eq!(found.threat.verify(&x, &moved), Ok(()));
        let none = found.perturb(&model, x.slice([0..0]), y.slice([0..0]), &noise([]));
        assert_eq!(none.dims()[0], 0);
    }
}
