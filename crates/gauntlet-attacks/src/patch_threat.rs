use std::fmt;

use burn::tensor::Tensor;

use crate::Violation;

/// An attacker who may replace one square window of an image, by anything that is legal, wherever it hurts most.
#[derive(Clone, Debug, PartialEq)]
pub struct PatchThreat {
    /// Side of the window in pixels; where the image is smaller, the window ends with it.
    pub side: usize,
    /// Smallest and largest legal input value.
    pub bounds: (f32, f32),
}

impl PatchThreat {
    /// A window of `side` times `side` pixels with values in [0, 1].
    pub fn new(side: usize) -> Self {
        Self {
            side,
            bounds: (0.0, 1.0),
        }
    }

    /// Side of the smallest square window that holds all changed pixels of each sample; 0 where nothing changed.
    ///
    /// # Shapes
    /// Both `[batch, channels, height, width]`; images of different shapes have nothing to compare, so the result is empty.
    pub fn sizes(&self, original: &Tensor<4>, adversarial: &Tensor<4>) -> Vec<usize> {
        let dims = original.dims();
        if dims != adversarial.dims() || dims.contains(&0) {
            return vec![
                0;
                if dims == adversarial.dims() {
                    dims[0]
                } else {
                    0
                }
            ];
        }
        let row = dims[1..].iter().product();
        let (original, adversarial) = (host(original), host(adversarial));
        let pairs = original.chunks(row).zip(adversarial.chunks(row));
        pairs.map(|(a, b)| extent(a, b, dims[2], dims[3])).collect()
    }

    /// Checks that each sample is finite and in bounds, and that all its changed pixels lie in one window. What counts as
    /// unchanged is equal to the last bit.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn verify(&self, original: &Tensor<4>, adversarial: &Tensor<4>) -> Result<(), Violation> {
        legal(original, adversarial, self.bounds)?;
        let sizes = self.sizes(original, adversarial).into_iter().enumerate();
        for (sample, size) in sizes {
            if size > self.side {
                return Err(Violation {
                    sample,
                    problem: format!(
                        "changed pixels reach over {size} pixels, the patch's side is {}",
                        self.side
                    ),
                });
            }
        }
        Ok(())
    }
}

impl fmt::Display for PatchThreat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "patch:{}", self.side)
    }
}

/// Larger side of the bounding box of the pixels in which two images `[channels, height, width]` differ.
fn extent(original: &[f32], adversarial: &[f32], height: usize, width: usize) -> usize {
    let (mut rows, mut columns) = (height..0, width..0);
    for (i, (a, b)) in original.iter().zip(adversarial).enumerate() {
        if a != b {
            let (row, column) = (i / width % height, i % width);
            rows = rows.start.min(row)..rows.end.max(row + 1);
            columns = columns.start.min(column)..columns.end.max(column + 1);
        }
    }
    rows.len().max(columns.len())
}

/// Checks that two batches have one shape, and that each sample of the second is finite and in bounds.
pub(crate) fn legal<const D: usize>(
    original: &Tensor<D>,
    adversarial: &Tensor<D>,
    (low, high): (f32, f32),
) -> Result<(), Violation> {
    let dims = adversarial.dims();
    let violation = |sample, problem| Err(Violation { sample, problem });
    if dims != original.dims() {
        let shapes = format!("shape {dims:?} instead of {:?}", original.dims());
        return violation(0, shapes);
    }
    let row = dims[1..].iter().product::<usize>();
    for (i, value) in host(adversarial).into_iter().enumerate() {
        if !value.is_finite() {
            return violation(i / row, "the example is not finite".to_owned());
        }
        if value < low || value > high {
            let problem = format!("the value {value} is outside [{low}, {high}]");
            return violation(i / row, problem);
        }
    }
    Ok(())
}

pub(crate) fn host<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
    let values = x.clone().try_into_vec_as();
    values.expect("a float tensor that was computed")
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    /// Two images of 2x5x6 zeros, the second with ones at these (channel, row, column).
    fn changed(places: &[(usize, usize, usize)]) -> (Tensor<4>, Tensor<4>) {
        let device = Device::flex();
        let original = Tensor::<4>::zeros([2, 2, 5, 6], &device);
        let mut adversarial = original.clone();
        for &(channel, row, column) in places {
            let place = [1..2, channel..channel + 1, row..row + 1, column..column + 1];
            adversarial = adversarial.slice_fill(place, 1.0);
        }
        (original, adversarial)
    }

    #[test]
    fn the_window_holds_every_changed_pixel() {
        for (places, size) in [
            (&[][..], 0),
            (&[(0, 4, 5)], 1),
            (&[(0, 1, 2), (1, 1, 3)], 2),
            (&[(0, 1, 2), (1, 4, 2)], 4),
            (&[(0, 0, 0), (1, 2, 5)], 6),
        ] {
            let (original, adversarial) = changed(places);
            let sizes = PatchThreat::new(1).sizes(&original, &adversarial);
            assert_eq!(sizes, [0, size], "{places:?}");
            for side in 0..7 {
                let verdict = PatchThreat::new(side).verify(&original, &adversarial);
                assert_eq!(verdict.is_ok(), side >= size, "{places:?} in {side}");
                assert!(verdict.map_or_else(|error| error.sample, |()| 1) == 1);
            }
        }
    }

    #[test]
    fn values_and_shapes_are_checked() {
        let (original, adversarial) = changed(&[(0, 1, 1)]);
        let threat = PatchThreat::new(3);
        for (factor, legal) in [
            (1.0, true),
            (1.0001, false),
            (-0.1, false),
            (f32::NAN, false),
        ] {
            let verdict = threat.verify(&original, &adversarial.clone().mul_scalar(factor));
            assert_eq!(verdict.is_ok(), legal, "{factor}");
        }
        let narrow = adversarial.clone().slice([0..2, 0..2, 0..5, 0..5]);
        assert!(threat.verify(&original, &narrow).is_err());
        assert!(threat.sizes(&original, &narrow).is_empty());
        let none = original.slice([0..0]);
        assert_eq!(threat.verify(&none, &none), Ok(()));
    }
}
