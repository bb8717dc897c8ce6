use burn::tensor::{Int, Tensor};
use gauntlet_models::Classifier;
use rand::RngExt;

use crate::rows::Aim;
use crate::warp::{Pose, warp};
use crate::{Attack, AttackLoss, Goal, Noise, SpatialThreat};

/// Which poses [`Spatial`] tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poses {
    /// So many at random, for each sample its own.
    Random(usize),
    /// All of a grid over the limits, the same for all samples. An odd number along an axis has its middle at 0.
    Grid {
        /// Shifts along each axis.
        shifts: usize,
        /// Angles.
        angles: usize,
    },
}

/// The worst of some rotations and translations of each image (Engstrom, Tran, Tsipras, Schmidt & Madry 2019, "Exploring the
/// landscape of spatial robustness", section 3).
///
/// That is the first that reaches the goal, else that of highest loss, the image as it is among them. The attack asks for
/// scores only; the paper finds gradients along the pose no help, as the loss has many maxima.
#[derive(Clone, Debug)]
pub struct Spatial {
    /// How far images may be turned and shifted.
    pub threat: SpatialThreat,
    /// What is sought.
    pub goal: Goal,
    /// What makes a pose worse than another.
    pub loss: AttackLoss,
    /// The poses that are tried.
    pub poses: Poses,
}

impl Spatial {
    /// The worst of `tries` random poses, by margin; the paper takes 10, by cross-entropy, which in `f32` is 0 for all of
    /// them where a model is sure by 17.
    pub fn worst_of(tries: usize, threat: SpatialThreat) -> Self {
        Self {
            threat,
            goal: Goal::Untargeted,
            loss: AttackLoss::Margin,
            poses: Poses::Random(tries),
        }
    }

    /// The paper's grid: 5 shifts along each axis and 31 angles, 775 poses.
    pub fn grid(threat: SpatialThreat) -> Self {
        Self {
            poses: Poses::Grid {
                shifts: 5,
                angles: 31,
            },
            ..Self::worst_of(0, threat)
        }
    }

    /// The adversarial batch and the pose of each sample, to verify it by.
    ///
    /// # Shapes
    /// `x: [batch, channels, height, width]` in bounds, `y: [batch]`.
    pub fn search(
        &self,
        model: &dyn Classifier<4>,
        x: Tensor<4>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> (Tensor<4>, Vec<Pose>) {
        let [batch, _, height, width] = x.dims();
        if x.dims().contains(&0) {
            return (x, vec![Pose::IDENTITY; batch]);
        }
        let tried = self.tried(height, width, noise);
        let aim = Aim {
            model,
            goal: self.goal,
            loss: self.loss,
        };
        let chosen = aim.worst_of(
            &x,
            &y,
            &Pose::IDENTITY,
            tried.rounds(),
            |row, round| tried.pose(row, round),
            |x, poses| self.render(x, poses),
        );
        let result = self.render(x.clone(), &chosen);
        debug_assert_eq!(self.threat.verify_poses(&x, &result, &chosen), Ok(()));
        (result, chosen)
    }

    /// Rounding in the weights can lead out of the box by an ulp.
    fn render(&self, x: Tensor<4>, poses: &[Pose]) -> Tensor<4> {
        warp(x, poses).clamp(self.threat.bounds.0, self.threat.bounds.1)
    }

    fn tried(&self, height: usize, width: usize, noise: &Noise) -> Tried {
        let (down, right) = self.threat.shifts(height, width);
        let limits = [self.threat.max_degrees, down, right];
        match self.poses {
            Poses::Random(tries) => Tried::Each(
                noise
                    .samples
                    .iter()
                    .map(|&id| {
                        let mut rng = noise.key.rng(id);
                        let mut draw = |limit: f32| (rng.random::<f32>() * 2.0 - 1.0) * limit;
                        (0..tries).map(|_| pose(limits.map(&mut draw))).collect()
                    })
                    .collect(),
            ),
            Poses::Grid { shifts, angles } => {
                let mut poses = Vec::with_capacity(angles * shifts * shifts);
                for degrees in spread(limits[0], angles) {
                    for down in spread(limits[1], shifts) {
                        let row = spread(limits[2], shifts);
                        poses.extend(row.map(|right| pose([degrees, down, right])));
                    }
                }
                Tried::All(poses)
            }
        }
    }
}

impl Attack<4> for Spatial {
    fn perturb(
        &self,
        model: &dyn Classifier<4>,
        x: Tensor<4>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<4> {
        self.search(model, x, y, noise).0
    }

    fn name(&self) -> String {
        match self.poses {
            Poses::Random(tries) => format!("Spatial-{tries}"),
            Poses::Grid { shifts, angles } => format!("Spatial-{shifts}x{shifts}x{angles}"),
        }
    }
}

/// Poses to try, for each sample or for all alike.
enum Tried {
    Each(Vec<Vec<Pose>>),
    All(Vec<Pose>),
}

impl Tried {
    fn rounds(&self) -> usize {
        match self {
            Self::Each(poses) => poses.first().map_or(0, Vec::len),
            Self::All(poses) => poses.len(),
        }
    }

    fn pose(&self, row: usize, round: usize) -> Pose {
        match self {
            Self::Each(poses) => poses[row][round],
            Self::All(poses) => poses[round],
        }
    }
}

fn pose([degrees, down, right]: [f32; 3]) -> Pose {
    Pose {
        degrees,
        down,
        right,
    }
}

/// So many values from `-limit` to `limit`, evenly; a single one is 0.
fn spread(limit: f32, count: usize) -> impl Iterator<Item = f32> {
    let gaps = count.saturating_sub(1).max(1) as f32;
    (0..count).map(move |i| (2.0 * i as f32 - (count - 1) as f32) / gaps * limit)
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::testing::{LinearImages, values};
    use crate::testing_images::{images, labels, noise};
    use crate::{Shift, warp};

    #[test]
    fn the_grid_is_the_papers() {
        let threat = SpatialThreat::small_images();
        let Tried::All(poses) = Spatial::grid(threat).tried(28, 28, &noise([])) else {
            panic!("a grid is the same for all");
        };
        assert_eq!(poses.len(), 775);
        assert!(poses.contains(&Pose::IDENTITY));
        assert_eq!(poses[0], pose([-30.0, -3.0, -3.0]));
        assert_eq!(poses[774], pose([30.0, 3.0, 3.0]));
        assert_eq!(poses[1].right, -1.5);
        assert_eq!(poses[25].degrees, -28.0);
        assert_eq!(spread(7.0, 1).collect::<Vec<_>>(), [0.0]);
        assert_eq!(spread(7.0, 0).count(), 0);
    }

    #[test]
    fn random_poses_fill_the_limits() {
        let threat = SpatialThreat::new(30.0, Shift::Percent(10.0));
        let tried = Spatial::worst_of(50, threat).tried(30, 20, &noise(0..40));
        let Tried::Each(poses) = tried else {
            panic!("each sample has its own");
        };
        let poses = poses.concat();
        for (part, limit) in [
            ((|p: &Pose| p.degrees) as fn(&Pose) -> f32, 30.0),
            (|p| p.down, 3.0),
            (|p| p.right, 2.0),
        ] {
            let mean = poses.iter().map(part).sum::<f32>() / 2000.0;
            let most = poses.iter().map(|p| part(p).abs()).fold(0.0, f32::max);
            // Six standard errors of a uniform mean.
            assert!(
                mean.abs() < 6.0 * limit / 3f32.sqrt() / 2000f32.sqrt(),
                "{mean}"
            );
            assert!(most <= limit && most > 0.98 * limit, "{most} of {limit}");
        }
    }

    /// Every pose of a small grid, one after the other: a sample falls if one of them makes it, else has the worst of them.
    #[test]
    fn the_grid_finds_what_an_enumeration_finds() {
        let shape = [12, 2, 7, 6];
        let model = LinearImages::random(9, 3, shape);
        let x = images(shape);
        let y = labels(&model, &x);
        let attack = Spatial {
            poses: Poses::Grid {
                shifts: 3,
                angles: 3,
            },
            ..Spatial::grid(SpatialThreat::new(8.0, Shift::Pixels(0.5)))
        };
        let (found, poses) = attack.search(&model, x.clone(), y.clone(), &noise(0..12));
        assert_eq!(attack.threat.verify_poses(&x, &found, &poses), Ok(()));
        let look = |x: Tensor<4>| {
            let logits = model.logits(x);
            let loss = values(attack.goal.loss(attack.loss, logits.clone(), y.clone()));
            (loss, values(attack.goal.reached(logits, y.clone())))
        };
        let (loss, reached) = look(found);
        let (mut worst, mut can) = (vec![f32::MIN; 12], vec![0.0f32; 12]);
        for degrees in [-8.0, 0.0, 8.0] {
            for down in [-0.5, 0.0, 0.5] {
                for right in [-0.5, 0.0, 0.5] {
                    let (l, r) = look(warp(x.clone(), &[pose([degrees, down, right]); 12]));
                    for i in 0..12 {
                        (worst[i], can[i]) = (worst[i].max(l[i]), can[i].max(r[i]));
                    }
                }
            }
        }
        let fell = can.iter().filter(|&&can| can > 0.5).count();
        assert!(fell > 1 && fell < 11, "{fell}");
        assert_eq!(reached, can);
        for i in (0..12).filter(|&i| can[i] < 0.5) {
            assert!((loss[i] - worst[i]).abs() < 1e-5, "{i}");
        }
    }

    #[test]
    fn batch_mates_do_not_matter() {
        let shape = [5, 3, 9, 5];
        let model = LinearImages::random(4, 3, shape);
        let x = images(shape);
        let y = labels(&model, &x);
        let attack = Spatial::worst_of(6, SpatialThreat::small_images());
        let (all, poses) = attack.search(&model, x.clone(), y.clone(), &noise(10..15));
        assert_eq!(attack.threat.verify_poses(&x, &all, &poses), Ok(()));
        let all = values(all);
        for i in 0..5 {
            let (x, y) = (x.clone().slice([i..i + 1]), y.clone().slice([i..i + 1]));
            let (alone, pose) = attack.search(&model, x, y, &noise([10 + i as u32]));
            assert_eq!(pose, [poses[i]]);
            assert_eq!(values(alone), all[i * 135..][..135]);
        }
    }

    #[test]
    fn what_is_won_stays_and_a_target_is_sought() {
        let shape = [30, 1, 6, 6];
        let model = LinearImages::random(6, 3, shape);
        let x = images(shape);
        let y = labels(&model, &x).add_scalar(1).remainder_scalar(3);
        let threat = SpatialThreat::new(180.0, Shift::Pixels(3.0));
        let untargeted = Spatial::worst_of(5, threat.clone());
        let (same, poses) = untargeted.search(&model, x.clone(), y.clone(), &noise(0..30));
        assert_eq!(values(same), values(x.clone()));
        assert!(poses.iter().all(|&pose| pose == Pose::IDENTITY));
        let targeted = Spatial {
            goal: Goal::Targeted,
            ..Spatial::worst_of(60, threat)
        };
        let (found, _) = targeted.search(&model, x.clone(), y.clone(), &noise(0..30));
        let reached = values(Goal::Targeted.reached(model.logits(found), y.clone()));
        assert!(reached.iter().sum::<f32>() > 20.0, "{reached:?}");
        let none = untargeted.perturb(&model, x.slice([0..0]), y.slice([0..0]), &noise([]));
        assert_eq!(none.dims()[0], 0);
    }
}
