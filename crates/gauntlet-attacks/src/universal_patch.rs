use burn::tensor::{Int, Tensor, TensorData};
use gauntlet_kernels::NoiseKey;
use gauntlet_models::Classifier;
use rand::RngExt;

use crate::rows::Aim;
use crate::universal::{FitError, capped_gradient, falling, same_shape};
use crate::window::Corner;
use crate::{Attack, AttackLoss, Goal, Noise, PatchThreat};

/// Finds one patch that works on any image in any place (Brown et al. 2017, "Adversarial patch"): gradient ascent on the
/// expected loss over images and places,
///
/// `patch <- clip(patch + step_size * sign(mean over the batch of d/d patch min(loss(paste(patch, x, place)), cap)))`
///
/// with a random place for each image of each batch. The paper also turns and scales the patch.
#[derive(Clone, Debug)]
pub struct UniversalPatchFit {
    /// How large the patch is, and its legal values.
    pub threat: PatchThreat,
    /// What is sought; the paper's patches seek a target.
    pub goal: Goal,
    /// What is ascended.
    pub loss: AttackLoss,
    /// Where the loss of a sample stops to count.
    pub cap: f32,
    /// Passes over the data.
    pub epochs: usize,
    /// Length of a step on each value in the first epoch, in input units; it falls linearly.
    pub step_size: f32,
}

impl UniversalPatchFit {
    /// Ten epochs, steps of 0.05, and cross-entropy, capped at 9. Where a model is sure of every sample by 17, that has no
    /// gradient in `f32`: take the margin.
    pub fn new(threat: PatchThreat) -> Self {
        Self {
            threat,
            goal: Goal::Untargeted,
            loss: AttackLoss::CrossEntropy,
            cap: 9.0,
            epochs: 10,
            step_size: 0.05,
        }
    }

    /// The patch, from a random start. `batches(epoch)` gives the images in bounds and the classes of an epoch from 0: true
    /// ones or, with [`Goal::Targeted`], targets. Start and places depend on `key` and the order of the batches.
    ///
    /// # Shapes
    /// Images `[batch, channels, height, width]`, classes `[batch]`; the patch `[1, channels, side, side]`.
    ///
    /// # Errors
    /// No samples, images of several shapes, or smaller than the patch.
    pub fn fit<I>(
        &self,
        model: &dyn Classifier<4>,
        mut batches: impl FnMut(usize) -> I,
        key: NoiseKey,
    ) -> Result<UniversalPatch, FitError>
    where
        I: IntoIterator<Item = (Tensor<4>, Tensor<1, Int>)>,
    {
        let (low, high) = self.threat.bounds;
        let side = self.threat.side;
        let mut state: Option<(Tensor<4>, Tensor<4>)> = None;
        for epoch in 0..self.epochs {
            let step_size = falling(self.step_size, epoch, self.epochs);
            for (step, (x, y)) in batches(epoch).into_iter().enumerate() {
                let [batch, channels, height, width] = x.dims();
                if x.dims().contains(&0) {
                    continue;
                }
                if side == 0 || side > height.min(width) {
                    return Err(FitError::Side {
                        side,
                        height,
                        width,
                    });
                }
                let (first, patch) = state.take().unwrap_or_else(|| {
                    let shape = [1, channels, side, side];
                    let patch = key.uniform(&[0], shape, low, high, &x.device());
                    (x.clone(), patch)
                });
                same_shape(&first, &x)?;
                let places = key.at(epoch as u32, step as u32).restart(PLACES);
                let rows = 0..batch as u32;
                let corners: Vec<Option<Corner>> = rows
                    .map(|row| Some(random_corner(&mut places.rng(row), side, height, width)))
                    .collect();
                let pasted = paste(x, &patch, &corners);
                let gradient = capped_gradient(model, pasted, |logits| {
                    self.goal.loss(self.loss, logits, y).clamp_max(self.cap)
                });
                let mean = cut(gradient, side, &corners).sum_dim(0);
                let moved = patch + mean.sign().mul_scalar(step_size);
                state = Some((first, moved.clamp(low, high)));
            }
        }
        let (_, patch) = state.ok_or(FitError::NoSamples)?;
        Ok(UniversalPatch {
            threat: self.threat.clone(),
            patch,
            goal: self.goal,
            loss: self.loss,
            places: 1,
        })
    }
}

/// Places are drawn under a restart number of their own.
const PLACES: u32 = 1;

fn random_corner(rng: &mut impl rand::Rng, side: usize, height: usize, width: usize) -> Corner {
    let top = rng.random_range(0..=height - side);
    (top, rng.random_range(0..=width - side))
}

/// `patch` `[1, channels, side, side]` on each image that has a corner for it.
fn paste(x: Tensor<4>, patch: &Tensor<4>, corners: &[Option<Corner>]) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let side = patch.dims()[2];
    // Behind the pixels of each image stand those of the patch: a pasted image is a choice among both.
    let area = (height * width) as i32;
    let mut index = Vec::with_capacity(batch * height * width);
    for corner in corners {
        let start = index.len();
        index.extend(0..area);
        let Some((top, left)) = corner else { continue };
        for row in 0..side {
            for column in 0..side {
                let pixel = (top + row) * width + left + column;
                index[start + pixel] = area + (row * side + column) as i32;
            }
        }
    }
    let pixels = x.reshape([batch, channels, height * width]);
    let patch = patch.clone().reshape([1, channels, side * side]);
    let all = Tensor::cat(vec![pixels, patch.repeat_dim(0, batch)], 2);
    choice(all, index, [height, width])
}

/// The windows of `x` at the corners, of which there is one an image: `[batch, channels, side, side]`.
fn cut(x: Tensor<4>, side: usize, corners: &[Option<Corner>]) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let mut index = Vec::with_capacity(batch * side * side);
    for &(top, left) in corners.iter().flatten() {
        for row in top..top + side {
            let start = row * width + left;
            index.extend((start..start + side).map(|pixel| pixel as i32));
        }
    }
    choice(
        x.reshape([batch, channels, height * width]),
        index,
        [side, side],
    )
}

/// Of the pixels `[batch, channels, pixels]` those with the numbers `index`, for each image in turn.
fn choice(x: Tensor<3>, index: Vec<i32>, [height, width]: [usize; 2]) -> Tensor<4> {
    let [batch, channels, _] = x.dims();
    let data = TensorData::new(index, [batch, 1, height * width]);
    let index = Tensor::<3, Int>::from_data(data, &x.device()).repeat_dim(1, channels);
    x.gather(2, index).reshape([batch, channels, height, width])
}

/// One patch on every image, at the worst of some random places of its own; what [`UniversalPatchFit`] finds.
#[derive(Clone, Debug)]
pub struct UniversalPatch {
    /// How large the patch is, and its legal values.
    pub threat: PatchThreat,
    /// `[1, channels, side, side]`
    pub patch: Tensor<4>,
    /// What makes a place better than another, with `loss`.
    pub goal: Goal,
    /// The first place that reaches the goal is taken, else that of highest loss.
    pub loss: AttackLoss,
    /// Random places tried on each image, at least 1. An image to which none does harm stays as it is.
    pub places: usize,
}

impl Attack<4> for UniversalPatch {
    /// # Panics
    /// If the images have other channels than the patch or are smaller.
    fn perturb(
        &self,
        model: &dyn Classifier<4>,
        x: Tensor<4>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        if x.dims().contains(&0) {
            return x;
        }
        let side = self.threat.side;
        let corners: Vec<Vec<Corner>> = noise
            .samples
            .iter()
            .map(|&id| {
                let mut rng = noise.key.rng(id);
                (0..self.places.max(1))
                    .map(|_| random_corner(&mut rng, side, height, width))
                    .collect()
            })
            .collect();
        let aim = Aim {
            model,
            goal: self.goal,
            loss: self.loss,
        };
        let patch = self.patch.clone().to_device(&x.device());
        let chosen = aim.worst_of(
            &x,
            &y,
            &None,
            self.places.max(1),
            |row, round| Some(corners[row][round]),
            |x, corners| paste(x, &patch, corners),
        );
        let result = paste(x.clone(), &patch, &chosen);
        debug_assert_eq!(self.threat.verify(&x, &result), Ok(()));
        result
    }

    fn name(&self) -> String {
        match self.places {
            0 | 1 => "Universal-Patch".to_owned(),
            places => format!("Universal-Patch-{places}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use gauntlet_kernels::Stream;

    use super::*;
    use crate::testing::{LinearImages, values};
    use crate::testing_images::{images, noise};

    /// On a linear model the gain of a value of the patch, averaged over places, is the mean of the weights that it can meet:
    /// the best patch is 1 where that is positive, else 0.
    #[test]
    fn the_patch_of_a_linear_model_is_the_mean_of_its_weights_over_places() {
        let shape = [60, 2, 5, 4];
        let model = LinearImages::random(7, 2, shape);
        let rows = values(model.rows.clone());
        let x = images(shape);
        let y = Tensor::<1, Int>::zeros([60], &x.device());
        let fit = UniversalPatchFit {
            cap: 1000.0,
            loss: AttackLoss::Margin,
            epochs: 40,
            ..UniversalPatchFit::new(PatchThreat::new(3))
        };
        let batches = |epoch: usize| {
            let cut = 20 + epoch % 20;
            [(0, cut), (cut, 60), (60, 60)]
                .map(|(a, b)| (x.clone().slice([a..b]), y.clone().slice([a..b])))
        };
        let key = NoiseKey::new(3, Stream::TrainAttack);
        let found = fit.fit(&model, batches, key).unwrap();
        let mut sure = 0;
        for (i, value) in values(found.patch.clone()).into_iter().enumerate() {
            let (channel, row, column) = (i / 9, i / 3 % 3, i % 3);
            let gain = |top: usize, left: usize| {
                let place = (channel * 5 + top + row) * 4 + left + column;
                rows[40 + place] - rows[place]
            };
            let places = (0..3).flat_map(|top| (0..2).map(move |left| (top, left)));
            let mean = places.map(|(top, left)| gain(top, left)).sum::<f32>() / 6.0;
            // Of 30 places a batch the mean is off by 0.25 or so.
            if mean.abs() > 0.25 {
                sure += 1;
                let best = if mean > 0.0 { 1.0 } else { 0.0 };
                assert!((value - best).abs() < 0.05, "{i}: {value} for {mean}");
            }
        }
        assert!(sure > 9, "{sure}");
        let again = fit.fit(&model, batches, key).unwrap();
        assert_eq!(values(again.patch), values(found.patch));
    }

    /// A model that looks for a colour wherever it is: the patch learnt on some images works on others, of another size and
    /// in other places, where a random one does not.
    #[test]
    fn a_patch_works_on_images_it_has_not_seen() {
        struct Detector;
        impl Classifier<4> for Detector {
            fn logits(&self, x: Tensor<4>) -> Tensor<2> {
                let weights = [2.0, -2.0, 1.0];
                let [rows, _, height, width] = x.dims();
                let channel = |c: usize| x.clone().slice([0..rows, c..c + 1, 0..height, 0..width]);
                let colour = (0..3)
                    .map(|c| channel(c).mul_scalar(weights[c]))
                    .reduce(|a, b| a + b)
                    .unwrap();
                // A pixel of the best colour counts e^6; 77 random ones are worth two of them, nine of the patch are needed
                // by six.
                let sum = colour.mul_scalar(2.0).exp().flatten::<2>(1, 3).sum_dim(1);
                let score = sum.log().sub_scalar(6.0 + 6f32.ln());
                Tensor::cat(vec![score.zeros_like(), score], 1)
            }

            fn features(&self, x: Tensor<4>) -> Tensor<2> {
                x.flatten(1, 3)
            }
        }
        let (device, model) = (Device::flex(), Detector);
        let x = images([24, 3, 9, 8]);
        let fit = UniversalPatchFit {
            epochs: 40,
            ..UniversalPatchFit::new(PatchThreat::new(3))
        };
        let y = Tensor::<1, Int>::zeros([24], &device);
        let key = NoiseKey::new(3, Stream::TrainAttack);
        let found = fit.fit(&model, |_| [(x.clone(), y.clone())], key).unwrap();
        let key = NoiseKey::new(6, Stream::Init);
        let samples: Vec<u32> = (0..20).collect();
        let others = key.uniform(&samples, [20, 3, 7, 11], 0.0, 1.0, &device);
        let y = Tensor::<1, Int>::zeros([20], &device);
        let fooled = |x: Tensor<4>| {
            let reached = Goal::Untargeted.reached(model.logits(x), y.clone());
            values(reached).iter().sum::<f32>()
        };
        let patched = found.perturb(&model, others.clone(), y.clone(), &noise(0..20));
        assert_eq!(found.threat.verify(&others, &patched), Ok(()));
        let random = UniversalPatch {
            patch: key.uniform(&[99], [1, 3, 3, 3], 0.0, 1.0, &device),
            ..found.clone()
        };
        let control = random.perturb(&model, others.clone(), y.clone(), &noise(0..20));
        assert_eq!(
            [fooled(others), fooled(control), fooled(patched)],
            [0.0, 0.0, 20.0]
        );
    }

    #[test]
    fn pasting_and_cutting_are_inverse_and_move_no_other_bit() {
        let x = images([3, 2, 5, 6]);
        let patch =
            NoiseKey::new(9, Stream::Init).uniform(&[0], [1, 2, 2, 2], 2.0, 3.0, &x.device());
        let corners = [Some((0, 0)), Some((3, 4)), Some((1, 2))];
        let pasted = paste(x.clone(), &patch, &corners);
        let windows = cut(pasted.clone(), 2, &corners);
        assert_eq!(values(windows), values(patch.clone().repeat_dim(0, 3)));
        let back = values(pasted).into_iter().zip(values(x.clone()));
        let changed = back.filter(|(new, old)| new != old).count();
        assert_eq!(changed, 3 * 2 * 4);
        assert_eq!(values(paste(x.clone(), &patch, &[None; 3])), values(x));
    }

    /// More places can only do more harm, and each sample's are its own.
    #[test]
    fn the_worst_of_the_places_is_taken_whoever_is_beside() {
        let shape = [16, 1, 6, 5];
        let model = LinearImages::random(8, 2, shape);
        let x = images(shape);
        let y = Tensor::<1, Int>::zeros([16], &x.device());
        let attack = |places| UniversalPatch {
            threat: PatchThreat::new(2),
            patch: Tensor::ones([1, 1, 2, 2], &x.device()),
            goal: Goal::Untargeted,
            loss: AttackLoss::Margin,
            places,
        };
        let run = |places| attack(places).perturb(&model, x.clone(), y.clone(), &noise(0..16));
        let loss = |x: Tensor<4>| values(AttackLoss::Margin.per_sample(model.logits(x), y.clone()));
        let (clean, one, six) = (loss(x.clone()), loss(run(1)), loss(run(6)));
        for i in (0..16).filter(|&i| clean[i] < 0.0) {
            assert!(one[i] >= clean[i], "{i}");
            assert!(
                six[i] >= one[i].min(0.0),
                "{i}: {} after {}",
                six[i],
                one[i]
            );
        }
        let all = values(run(6));
        for i in 0..16 {
            let (x, y) = (x.clone().slice([i..i + 1]), y.clone().slice([i..i + 1]));
            let alone = attack(6).perturb(&model, x, y, &noise([i as u32]));
            assert_eq!(values(alone), all[i * 30..][..30]);
        }
    }

    #[test]
    fn what_cannot_be_fitted_is_told() {
        let model = LinearImages::random(1, 2, [1, 1, 4, 3]);
        let x = images([2, 1, 4, 3]);
        let y = Tensor::<1, Int>::zeros([2], &x.device());
        let key = NoiseKey::new(3, Stream::TrainAttack);
        for side in [0, 4] {
            let fit = UniversalPatchFit::new(PatchThreat::new(side));
            let error = fit
                .fit(&model, |_| [(x.clone(), y.clone())], key)
                .unwrap_err();
            let (height, width) = (4, 3);
            let expected = FitError::Side {
                side,
                height,
                width,
            };
            assert_eq!(error, expected);
        }
        let fit = UniversalPatchFit::new(PatchThreat::new(2));
        let none: [(Tensor<4>, Tensor<1, Int>); 0] = [];
        assert_eq!(
            fit.fit(&model, |_| none.clone(), key).unwrap_err(),
            FitError::NoSamples
        );
    }
}
