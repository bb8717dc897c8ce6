//! Images turned and shifted.

use burn::tensor::Tensor;

/// A rotation about the centre of an image, then a shift.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pose {
    /// Counter-clockwise as one sees the image.
    pub degrees: f32,
    /// Pixels downwards.
    pub down: f32,
    /// Pixels to the right.
    pub right: f32,
}

impl Pose {
    /// Leaves an image as it is, to the bit.
    pub const IDENTITY: Self = Self {
        degrees: 0.0,
        down: 0.0,
        right: 0.0,
    };

    /// Cosine and sine; those of quarter turns are exact, so that they only move pixels.
    fn cos_sin(self) -> (f64, f64) {
        let degrees = f64::from(self.degrees) % 360.0;
        match degrees.rem_euclid(360.0) {
            0.0 => (1.0, 0.0),
            90.0 => (0.0, 1.0),
            180.0 => (-1.0, 0.0),
            270.0 => (0.0, -1.0),
            _ => (degrees.to_radians().cos(), degrees.to_radians().sin()),
        }
    }
}

/// Each image in its pose, by bilinear interpolation; what comes from outside the image is zero. Runs on the device of `x`.
///
/// The pixel at `(row, column)` shows the place `c + R (row - c - down, column - c - right)` of the image, where c is its
/// centre and R turns clockwise by the angle of the pose (Engstrom et al. 2019, equation 1).
///
/// # Shapes
/// `x: [batch, channels, height, width]`, one pose an image; the result as `x`.
///
/// # Panics
/// If there are more or fewer poses than images.
pub fn warp(x: Tensor<4>, poses: &[Pose]) -> Tensor<4> {
    assert_eq!(x.dims()[0], poses.len(), "one pose for each image");
    if x.dims().contains(&0) {
        return x;
    }
    let device = x.device();
    let column = |value: fn(&Pose) -> f32| {
        let values: Vec<f32> = poses.iter().map(value).collect();
        Tensor::<1>::from_floats(values.as_slice(), &device)
    };
    let turn = Turn {
        cos: column(|pose| pose.cos_sin().0 as f32),
        sin: column(|pose| pose.cos_sin().1 as f32),
        down: column(|pose| pose.down),
        right: column(|pose| pose.right),
    };
    turn.apply(x)
}

/// The numbers of poses, `[batch]` each. The result of [`Turn::apply`] can be differentiated by them.
struct Turn {
    cos: Tensor<1>,
    sin: Tensor<1>,
    down: Tensor<1>,
    right: Tensor<1>,
}

/// The two pixels along an axis between which each place lies: where, and with what weight.
struct Neighbours {
    index: [Tensor<3>; 2],
    weight: [Tensor<3>; 2],
}

impl Neighbours {
    /// `place: [batch, height, width]`, in pixels along an axis of `length`.
    fn of(place: Tensor<3>, length: usize) -> Self {
        let last = length as f32 - 1.0;
        let below = place.clone().floor();
        let share = place - below.clone();
        let side = |index: Tensor<3>, weight: Tensor<3>| {
            let inside = index.clone().greater_elem(-0.5).float();
            let inside = inside * index.clone().lower_elem(last + 0.5).float();
            (index.clamp(0.0, last), weight * inside)
        };
        let (first, near) = side(below.clone(), share.clone().neg().add_scalar(1.0));
        let (second, far) = side(below.add_scalar(1.0), share);
        Self {
            index: [first, second],
            weight: [near, far],
        }
    }
}

impl Turn {
    fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let each = |values: &Tensor<1>| values.clone().reshape([batch, 1, 1]);
        let (cos, sin) = (each(&self.cos), each(&self.sin));
        let (middle_row, middle_column) = (height as f32 / 2.0 - 0.5, width as f32 / 2.0 - 0.5);
        let axis = |length: usize, middle: f32| {
            let places: Vec<f32> = (0..length).map(|place| place as f32 - middle).collect();
            Tensor::<1>::from_floats(places.as_slice(), &x.device())
        };
        let down = axis(height, middle_row).reshape([1, height, 1]) - each(&self.down);
        let right = axis(width, middle_column).reshape([1, 1, width]) - each(&self.right);
        let row = right.clone() * sin.clone() + down.clone() * cos.clone();
        let column = right * cos - down * sin;
        let rows = Neighbours::of(row.add_scalar(middle_row), height);
        let columns = Neighbours::of(column.add_scalar(middle_column), width);
        let pixels = x.reshape([batch, channels, height * width]);
        let flat = |values: Tensor<3>| values.reshape([batch, 1, height * width]);
        let mut sum: Option<Tensor<3>> = None;
        for (row, row_weight) in rows.index.iter().zip(&rows.weight) {
            for (column, column_weight) in columns.index.iter().zip(&columns.weight) {
                // As integers: `row * width` is exact in f32 up to 2^24 only.
                let index = row.clone().int().mul_scalar(width as i64) + column.clone().int();
                let index = index.reshape([batch, 1, height * width]);
                let weight = flat(row_weight.clone() * column_weight.clone());
                let part = pixels.clone().gather(2, index.repeat_dim(1, channels)) * weight;
                sum = Some(match sum {
                    Some(sum) => sum + part,
                    None => part,
                });
            }
        }
        let sum = sum.expect("four neighbours");
        sum.reshape([batch, channels, height, width])
    }
}

/// [`warp`] of one image in `f64` on the host, to check it against: `image` is `[channels, height, width]`, flat.
pub(crate) fn warp_on_host(
    image: &[f32],
    [channels, height, width]: [usize; 3],
    pose: Pose,
) -> Vec<f64> {
    let (cos, sin) = pose.cos_sin();
    let (middle_row, middle_column) = ((height as f64 - 1.0) / 2.0, (width as f64 - 1.0) / 2.0);
    let pixel = |channel: usize, row: f64, column: f64| {
        let inside = (0.0..height as f64).contains(&row) && (0.0..width as f64).contains(&column);
        if inside {
            f64::from(image[(channel * height + row as usize) * width + column as usize])
        } else {
            0.0
        }
    };
    let mut result = Vec::with_capacity(image.len());
    for channel in 0..channels {
        for i in 0..height * width {
            // Back by the shift, then clockwise about the centre.
            let y = (i / width) as f64 - f64::from(pose.down) - middle_row;
            let x = (i % width) as f64 - f64::from(pose.right) - middle_column;
            let row = y * cos + x * sin + middle_row;
            let column = x * cos - y * sin + middle_column;
            let (top, left) = (row.floor(), column.floor());
            let mix = |row: f64| {
                let share = column - left;
                pixel(channel, row, left) * (1.0 - share) + pixel(channel, row, left + 1.0) * share
            };
            let share = row - top;
            result.push(mix(top) * (1.0 - share) + mix(top + 1.0) * share);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use gauntlet_kernels::{NoiseKey, Stream};

    use super::*;
    use crate::testing::values;

    fn images(shape: [usize; 4]) -> Tensor<4> {
        let samples: Vec<u32> = (0..shape[0] as u32).collect();
        NoiseKey::new(5, Stream::Init).uniform(&samples, shape, 0.0, 1.0, &Device::flex())
    }

    fn turned(degrees: f32) -> Pose {
        Pose {
            degrees,
            ..Pose::IDENTITY
        }
    }

    #[test]
    fn the_identity_and_whole_turns_change_no_bit() {
        for shape in [[2, 3, 5, 8], [2, 1, 1, 1], [2, 2, 7, 7]] {
            let x = images(shape);
            let same = warp(x.clone(), &[Pose::IDENTITY, turned(-720.0)]);
            assert_eq!(values(same), values(x));
        }
    }

    /// Counter-clockwise: the last column becomes the first row.
    #[test]
    fn quarter_turns_are_permutations() {
        for edge in [4, 5] {
            let x = images([4, 2, edge, edge]);
            let quarter = |x: Tensor<4>| x.permute([0, 1, 3, 2]).flip([2]);
            let mut expected = x.clone();
            for degrees in [90.0, 180.0, 270.0, 360.0] {
                expected = quarter(expected);
                let poses = [turned(degrees); 4];
                assert_eq!(values(warp(x.clone(), &poses)), values(expected.clone()));
                let back = [turned(degrees - 360.0); 4];
                assert_eq!(values(warp(x.clone(), &back)), values(expected.clone()));
            }
        }
        let mut x = images([1, 1, 3, 3]);
        x = x.slice_fill([0..1, 0..1, 0..3, 2..3], 0.5);
        let top = warp(x, &[turned(90.0)]).slice([0..1, 0..1, 0..1, 0..3]);
        assert_eq!(values(top), [0.5; 3]);
    }

    #[test]
    fn whole_shifts_are_slices_with_zeros() {
        let x = images([3, 2, 5, 7]);
        let pose = |down, right| Pose {
            degrees: 0.0,
            down,
            right,
        };
        let poses = [pose(2.0, 0.0), pose(-1.0, 3.0), pose(9.0, 0.0)];
        let shifted = values(warp(x.clone(), &poses));
        let x = values(x);
        for (i, value) in shifted.into_iter().enumerate() {
            let (sample, row, column) = (i / 70, (i / 7 % 5) as f32, (i % 7) as f32);
            let (row, column) = (row - poses[sample].down, column - poses[sample].right);
            let inside = (0.0..5.0).contains(&row) && (0.0..7.0).contains(&column);
            let source = i / 35 * 35 + (row * 7.0 + column) as usize % 35;
            assert_eq!(value, if inside { x[source] } else { 0.0 }, "{i}");
        }
    }

    /// A quarter of a pixel to the right: three quarters of a pixel and a quarter of its left neighbour.
    #[test]
    fn parts_of_a_pixel_are_interpolated() {
        let x = Tensor::<1>::from_floats([0.8, 0.4, 1.0], &Device::flex()).reshape([1, 1, 1, 3]);
        let pose = Pose {
            right: 0.25,
            ..Pose::IDENTITY
        };
        let expected = [0.6, 0.5, 0.85];
        let found = values(warp(x, &[pose]));
        assert!(
            found
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-6)
        );
    }

    #[test]
    fn the_device_agrees_with_the_host_and_batch_mates_do_not_matter() {
        for shape in [[6, 3, 28, 28], [6, 1, 9, 14], [6, 2, 1, 5]] {
            let x = images(shape);
            let poses: Vec<Pose> = (0..6)
                .map(|i| Pose {
                    degrees: i as f32 * 37.3 - 90.0,
                    down: i as f32 * 0.7 - 1.3,
                    right: 2.0 - i as f32 * 0.9,
                })
                .collect();
            let row = shape[1..].iter().product();
            let (all, images) = (values(warp(x.clone(), &poses)), values(x.clone()));
            for (i, &pose) in poses.iter().enumerate() {
                let host = warp_on_host(
                    &images[i * row..][..row],
                    [shape[1], shape[2], shape[3]],
                    pose,
                );
                let device = &all[i * row..][..row];
                assert!(
                    host.iter()
                        .zip(device)
                        .all(|(a, b)| (a - f64::from(*b)).abs() < 1e-5)
                );
                let alone = warp(x.clone().slice([i..i + 1]), &[pose]);
                assert_eq!(values(alone), device);
            }
        }
    }

    /// On a ramp along the columns, a shift to the right by one pixel takes off the slope of every pixel within.
    #[test]
    fn the_result_can_be_differentiated_by_the_shift() {
        let device = Device::flex();
        let ramp: Vec<f32> = (0..30).map(|i| (i % 6) as f32 * 0.1).collect();
        let x = Tensor::<1>::from_floats(ramp.as_slice(), &device).reshape([1, 1, 5, 6]);
        let number = |value: f32| Tensor::<1>::from_floats([value], &device);
        let right = number(0.25).autodiff().require_grad();
        let turn = Turn {
            cos: number(1.0),
            sin: number(0.0),
            down: number(0.0),
            right: right.clone(),
        };
        let middle = turn.apply(x).slice([0..1, 0..1, 1..4, 2..5]);
        let gradients = middle.reshape([9]).sum_dim(0).backward();
        let slope = values(right.grad(&gradients).expect("a gradient"))[0];
        assert!((slope + 0.9).abs() < 1e-5, "{slope}");
    }
}
