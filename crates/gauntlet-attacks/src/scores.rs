//! A model as a search on the host sees it: images in, a score for each out.

use burn::tensor::{Device, Tensor, TensorData};
use gauntlet_kernels::host::batch_rows;
use gauntlet_models::Classifier;

use crate::Goal;

/// How far an image is from what the attacker wants; less is better. Infinite where a logit is no number, so that nothing is
/// won by it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Score {
    /// Below zero where the goal is reached: logit of the given class minus the largest other one, or towards a target the
    /// other way round.
    pub(crate) margin: f32,
    /// What a search makes small: the margin, or towards a target the cross-entropy with it (Croce et al. 2022, section 3.1).
    pub(crate) loss: f32,
}

impl Score {
    pub(crate) const NONE: Self = Self {
        margin: f32::INFINITY,
        loss: f32::INFINITY,
    };

    fn new(logits: &[f32], class: usize, goal: Goal) -> Self {
        let others = logits.iter().enumerate().filter(|&(i, _)| i != class);
        let largest = others.map(|(_, &v)| v).fold(f32::NEG_INFINITY, f32::max);
        let margin = logits[class] - largest;
        if margin.is_nan() || logits.iter().any(|logit| logit.is_nan()) {
            return Self::NONE;
        }
        match goal {
            Goal::Untargeted => Self {
                margin,
                loss: margin,
            },
            Goal::Targeted => {
                // log(sum(exp(z)) / exp(z_class)), with the exponents at most 0 where it matters.
                let most = largest.max(logits[class]);
                let sum: f32 = logits.iter().map(|logit| (logit - most).exp()).sum();
                Self {
                    margin: -margin,
                    loss: most + sum.ln() - logits[class],
                }
            }
        }
    }
}

/// The model, and what its answers mean.
pub(crate) struct Oracle<'a> {
    pub(crate) model: &'a dyn Classifier<4>,
    pub(crate) goal: Goal,
    pub(crate) device: Device,
    /// `[channels, height, width]`
    pub(crate) shape: [usize; 3],
    /// Rows of the batch under attack.
    pub(crate) batch: usize,
}

impl Oracle<'_> {
    /// The score of each image, given flat with its class; at most `batch` of them.
    pub(crate) fn scores<'i>(
        &self,
        images: impl ExactSizeIterator<Item = (&'i [f32], usize)>,
    ) -> Vec<Score> {
        let [channels, height, width] = self.shape;
        let rows = batch_rows(images.len(), self.batch, &self.device);
        let length = rows * channels * height * width;
        let mut values = Vec::with_capacity(length);
        let mut classes = Vec::with_capacity(images.len());
        for (image, class) in images {
            values.extend_from_slice(image);
            classes.push(class);
        }
        values.resize(length, 0.0);
        let data = TensorData::new(values, [rows, channels, height, width]);
        let logits = self.model.logits(Tensor::from_data(data, &self.device));
        let [_, width] = logits.dims();
        let logits: Vec<f32> = logits.try_into_vec_as().expect("computed logits");
        let rows = logits.chunks_exact(width.max(1)).zip(classes);
        rows.map(|(row, class)| Score::new(row, class, self.goal))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Int;

    use super::*;
    use crate::AttackLoss;
    use crate::testing::{LinearImages, values};

    #[test]
    fn scores_are_the_losses_of_gradient_attacks_with_their_sign_turned() {
        let device = Device::flex();
        let shape = [5, 2, 3, 3];
        let model = LinearImages::random(1, 4, shape);
        let x = Tensor::<4>::random(shape, burn::tensor::Distribution::Default, &device);
        let y = Tensor::<1, Int>::from_ints([0, 1, 2, 3, 0], &device);
        let logits = model.logits(x.clone());
        for (goal, loss) in [
            (Goal::Untargeted, AttackLoss::Margin),
            (Goal::Targeted, AttackLoss::CrossEntropy),
        ] {
            let oracle = Oracle {
                model: &model,
                goal,
                device: device.clone(),
                shape: [2, 3, 3],
                batch: 5,
            };
            let images = values(x.clone());
            let rows = images.chunks_exact(18).zip([0, 1, 2, 3, 0]);
            let found = oracle.scores(rows.collect::<Vec<_>>().into_iter());
            let ascended = values(goal.loss(loss, logits.clone(), y.clone()));
            let reached = values(goal.reached(logits.clone(), y.clone()));
            for ((score, ascended), reached) in found.iter().zip(ascended).zip(reached) {
                assert!((score.loss + ascended).abs() < 1e-4, "{goal:?}");
                assert_eq!(score.margin < 0.0, reached > 0.5, "{goal:?}");
            }
        }
        assert_eq!(
            Score::new(&[0.0, f32::NAN], 0, Goal::Untargeted),
            Score::NONE
        );
    }
}
