use std::fmt;

use burn::tensor::Tensor;

use crate::Violation;
use crate::patch_threat::{host, legal};
use crate::warp::{Pose, warp_on_host};

/// How far an image may be shifted along each axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shift {
    /// By so many pixels.
    Pixels(f32),
    /// By so many hundredths of its height and width.
    Percent(f32),
}

/// An attacker who may turn and shift an image; what comes from outside of it is zero (Engstrom, Tran, Tsipras, Schmidt & Madry
/// 2019, "Exploring the landscape of spatial robustness").
#[derive(Clone, Debug, PartialEq)]
pub struct SpatialThreat {
    /// Largest angle, either way, in degrees.
    pub max_degrees: f32,
    /// Largest shift, either way.
    pub max_shift: Shift,
    /// Smallest and largest legal input value; zero is one.
    pub bounds: (f32, f32),
}

/// What the `f32` rendering of an image of a thousand pixels a side may be off.
const ROUNDING: f64 = 5e-4;

impl SpatialThreat {
    /// Values in [0, 1].
    pub fn new(max_degrees: f32, max_shift: Shift) -> Self {
        Self {
            max_degrees,
            max_shift,
            bounds: (0.0, 1.0),
        }
    }

    /// 30 degrees and 3 pixels: the paper's limits for MNIST and CIFAR-10.
    pub fn small_images() -> Self {
        Self::new(30.0, Shift::Pixels(3.0))
    }

    /// Largest shift down and to the right of an image, in pixels.
    pub fn shifts(&self, height: usize, width: usize) -> (f32, f32) {
        match self.max_shift {
            Shift::Pixels(pixels) => (pixels, pixels),
            Shift::Percent(percent) => {
                let share = percent / 100.0;
                (share * height as f32, share * width as f32)
            }
        }
    }

    /// Checks what images alone can tell: each sample is finite and in bounds, and none of its channels holds a value below
    /// the smallest or above the largest of the original's and zero, between which interpolation stays. Whether a pose within
    /// the limits explains an image, [`SpatialThreat::verify_poses`] can tell.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn verify(&self, original: &Tensor<4>, adversarial: &Tensor<4>) -> Result<(), Violation> {
        legal(original, adversarial, self.bounds)?;
        let [_, channels, height, width] = original.dims();
        if original.dims().contains(&0) {
            return Ok(());
        }
        let (original, adversarial) = (host(original), host(adversarial));
        let planes = original.chunks(height * width);
        let planes = planes.zip(adversarial.chunks(height * width));
        for (plane, (original, adversarial)) in planes.enumerate() {
            let low = original.iter().fold(0.0, |low: f32, &v| low.min(v));
            let high = original.iter().fold(0.0, |high: f32, &v| high.max(v));
            let slack = ROUNDING as f32;
            let outside = |v: &&f32| **v < low - slack || **v > high + slack;
            if let Some(value) = adversarial.iter().find(outside) {
                return Err(Violation {
                    sample: plane / channels,
                    problem: format!(
                        "channel {} holds {value}, which no rotation makes of values from {low} to {high}",
                        plane % channels
                    ),
                });
            }
        }
        Ok(())
    }

    /// Checks that each pose is within the limits and that each sample is what its pose makes of the original, rendered anew
    /// on the host.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn verify_poses(
        &self,
        original: &Tensor<4>,
        adversarial: &Tensor<4>,
        poses: &[Pose],
    ) -> Result<(), Violation> {
        legal(original, adversarial, self.bounds)?;
        let [batch, channels, height, width] = original.dims();
        if poses.len() != batch {
            return Err(Violation {
                sample: poses.len().min(batch),
                problem: format!("{} poses for {batch} images", poses.len()),
            });
        }
        if original.dims().contains(&0) {
            return Ok(());
        }
        let row = channels * height * width;
        let (original, adversarial) = (host(original), host(adversarial));
        let images = original.chunks(row).zip(adversarial.chunks(row));
        for (sample, (&pose, (original, adversarial))) in poses.iter().zip(images).enumerate() {
            if let Some(problem) = self.excess(pose, height, width) {
                return Err(Violation { sample, problem });
            }
            let expected = warp_on_host(original, [channels, height, width], pose);
            let errors = expected.iter().zip(adversarial);
            let error = errors
                .map(|(expected, found)| (expected - f64::from(*found)).abs())
                .fold(0.0, f64::max);
            if error > ROUNDING {
                return Err(Violation {
                    sample,
                    problem: format!("differs by {error} from the original in {pose:?}"),
                });
            }
        }
        Ok(())
    }

    fn excess(&self, pose: Pose, height: usize, width: usize) -> Option<String> {
        let (down, right) = self.shifts(height, width);
        let limits = [
            ("turned by degrees", pose.degrees, self.max_degrees),
            ("shifted down by pixels", pose.down, down),
            ("shifted right by pixels", pose.right, right),
        ];
        // A number that is none is within no limit.
        let within = |value: f32, limit: f32| value.abs() <= limit * (1.0 + 1e-6);
        let excess = limits
            .into_iter()
            .find(|&(_, value, limit)| !within(value, limit));
        excess.map(|(what, value, limit)| format!("{what}: {value}, the limit is {limit}"))
    }
}

impl fmt::Display for SpatialThreat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spatial:{}deg,", self.max_degrees)?;
        match self.max_shift {
            Shift::Pixels(pixels) => write!(f, "{pixels}px"),
            Shift::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use gauntlet_kernels::{NoiseKey, Stream};

    use super::*;
    use crate::warp::warp;

    fn pose(degrees: f32, down: f32, right: f32) -> Pose {
        Pose {
            degrees,
            down,
            right,
        }
    }

    #[test]
    fn only_what_a_legal_pose_makes_is_legal() {
        let device = Device::flex();
        let x = NoiseKey::new(5, Stream::Init).uniform(&[0, 1], [2, 3, 8, 6], 0.0, 1.0, &device);
        let threat = SpatialThreat::new(20.0, Shift::Percent(25.0));
        assert_eq!(threat.shifts(8, 6), (2.0, 1.5));
        let check = |second: Pose, claimed: Pose| {
            let warped = warp(x.clone(), &[Pose::IDENTITY, second]);
            threat.verify_poses(&x, &warped, &[Pose::IDENTITY, claimed])
        };
        for legal in [
            pose(20.0, -2.0, 1.5),
            pose(-20.0, 2.0, -1.5),
            pose(3.7, 0.1, -0.2),
        ] {
            assert_eq!(check(legal, legal), Ok(()));
        }
        for illegal in [
            pose(20.1, 0.0, 0.0),
            pose(0.0, 2.1, 0.0),
            pose(0.0, 0.0, -1.6),
            pose(f32::NAN, 0.0, 0.0),
        ] {
            assert_eq!(
                check(illegal, illegal).map_err(|v| v.sample),
                Err(1),
                "{illegal:?}"
            );
        }
        // Another pose than the one claimed, though both are legal.
        let error = check(pose(5.0, 1.0, 0.0), pose(5.0, 1.1, 0.0));
        assert_eq!(error.map_err(|v| v.sample), Err(1));
        assert!(threat.verify_poses(&x, &x, &[Pose::IDENTITY]).is_err());
        let none = x.slice([0..0]);
        assert_eq!(threat.verify_poses(&none, &none, &[]), Ok(()));
    }

    #[test]
    fn images_alone_tell_what_no_pose_can_make() {
        let device = Device::flex();
        let key = NoiseKey::new(5, Stream::Init);
        let x = key.uniform(&[0, 1], [2, 2, 6, 6], 0.2, 0.6, &device);
        let threat = SpatialThreat::small_images();
        let warped = warp(x.clone(), &[pose(12.0, 1.0, -2.5); 2]);
        assert_eq!(threat.verify(&x, &warped), Ok(()));
        for value in [0.7, -0.1, 1.1, f32::NAN] {
            let place = [1..2, 1..2, 3..4, 0..1];
            let bad = warped.clone().slice_fill(place, value);
            assert_eq!(
                threat.verify(&x, &bad).map_err(|v| v.sample),
                Err(1),
                "{value}"
            );
        }
        assert!(threat.verify(&x, &warped.slice([0..1])).is_err());
    }
}
