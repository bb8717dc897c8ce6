//! Square windows of images.

use burn::tensor::{Int, Tensor};

/// Upper left corner of a window: row, column.
pub(crate) type Corner = (usize, usize);

/// A window of each row.
pub(crate) struct Window {
    pub(crate) top: Tensor<1>,
    pub(crate) left: Tensor<1>,
    /// 1 inside, 0 outside: `[batch, 1, height, width]`.
    mask: Tensor<4>,
}

impl Window {
    pub(crate) fn new(corners: &[Corner], side: usize, like: &Tensor<4>) -> Self {
        let device = like.device();
        let part = |part: fn(&Corner) -> usize| {
            let values: Vec<f32> = corners.iter().map(|corner| part(corner) as f32).collect();
            Tensor::<1>::from_floats(values.as_slice(), &device)
        };
        Self::at(part(|c| c.0), part(|c| c.1), side, like.dims())
    }

    pub(crate) fn at(top: Tensor<1>, left: Tensor<1>, side: usize, dims: [usize; 4]) -> Self {
        let [batch, _, height, width] = dims;
        let inside = |start: &Tensor<1>, length: usize| {
            let device = start.device();
            let index = Tensor::<1, Int>::arange(0..length as i64, &device).float();
            let far = index.reshape([1, length]) - start.clone().reshape([batch, 1]);
            let past = far.clone().lower_elem(side as f32 - 0.5).float();
            far.greater_elem(-0.5).float() * past
        };
        let rows = inside(&top, height).reshape([batch, 1, height, 1]);
        let columns = inside(&left, width).reshape([batch, 1, 1, width]);
        Self {
            mask: rows * columns,
            top,
            left,
        }
    }

    /// `patch` inside, `x` outside, both to the bit: a product with 1 and a sum with 0 are exact.
    pub(crate) fn paste(&self, patch: Tensor<4>, x: Tensor<4>) -> Tensor<4> {
        let outside = self.mask.clone().neg().add_scalar(1.0);
        x * outside + patch * self.mask.clone()
    }
}

/// 0, stride, 2 stride, ..., and `last`.
pub(crate) fn grid(last: usize, stride: usize) -> impl Iterator<Item = usize> + Clone {
    let stride = stride.max(1);
    (0..last).step_by(stride).chain([last])
}

/// Upper left corner of the square window with the largest sum, by a table of sums of all rectangles from the origin.
pub(crate) fn largest_sum(values: &[f32], width: usize, side: usize) -> Corner {
    let height = values.len() / width;
    let mut sums = vec![0.0f64; (height + 1) * (width + 1)];
    for row in 0..height {
        let mut line = 0.0;
        for column in 0..width {
            let value = f64::from(values[row * width + column]);
            line += if value.is_finite() { value } else { 0.0 };
            sums[(row + 1) * (width + 1) + column + 1] =
                sums[row * (width + 1) + column + 1] + line;
        }
    }
    let (tall, wide) = (side.min(height), side.min(width));
    let mut best = (f64::NEG_INFINITY, (0, 0));
    for top in 0..=height - tall {
        for left in 0..=width - wide {
            let at = |row: usize, column: usize| sums[row * (width + 1) + column];
            let (bottom, right) = (top + tall, left + wide);
            let sum = at(bottom, right) - at(top, right) - at(bottom, left) + at(top, left);
            if sum > best.0 {
                best = (sum, (top, left));
            }
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::values;

    #[test]
    fn a_window_is_pasted_to_the_bit() {
        let device = Device::flex();
        let x = Tensor::<4>::full([3, 2, 4, 5], 0.1, &device);
        let corners = [(0, 0), (2, 3), (1, 2)];
        let window = Window::new(&corners, 2, &x);
        let pasted = values(window.paste(x.ones_like().mul_scalar(0.7), x));
        for (i, value) in pasted.into_iter().enumerate() {
            let (sample, row, column) = (i / 40, i / 5 % 4, i % 5);
            let (top, left) = corners[sample];
            let inside = (top..top + 2).contains(&row) && (left..left + 2).contains(&column);
            assert_eq!(
                value,
                if inside { 0.7 } else { 0.1 },
                "{sample} {row} {column}"
            );
        }
    }

    #[test]
    fn the_largest_sum_is_that_of_an_enumeration() {
        let values: Vec<f32> = (0..35).map(|i| ((i * i * 7 + 3 * i) % 23) as f32).collect();
        for side in 1..9 {
            let (tall, wide) = (side.min(5), side.min(7));
            let sum = |(top, left): Corner| {
                let rows = top..top + tall;
                rows.map(|row| values[row * 7 + left..][..wide].iter().sum::<f32>())
                    .sum::<f32>()
            };
            let corners =
                (0..=5 - tall).flat_map(|top| (0..=7 - wide).map(move |left| (top, left)));
            let best = corners.map(sum).fold(f32::MIN, f32::max);
            assert_eq!(sum(largest_sum(&values, 7, side)), best, "side {side}");
        }
    }

    #[test]
    fn a_grid_ends_with_the_last_place() {
        for (last, stride, places) in [
            (6, 4, vec![0, 4, 6]),
            (4, 2, vec![0, 2, 4]),
            (0, 0, vec![0]),
        ] {
            assert_eq!(grid(last, stride).collect::<Vec<_>>(), places);
        }
    }
}
