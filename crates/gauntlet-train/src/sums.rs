use burn::tensor::Tensor;

/// How many values are added up at a time.
const MOST: usize = 64;

/// The sum of all values, always in the same order: `sum` may use float atomics, and the same run twice must be the same run.
/// A GPU has one thread go through what `sum_dim` takes together, which takes a tenth of a second for a layer of two million
/// weights; so sums of few are taken of sums of few.
pub(crate) fn total<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let mut sums = x.flatten::<1>(0, D - 1);
    loop {
        let [n] = sums.dims();
        let few = (2..=MOST).rev().find(|few| n.is_multiple_of(*few));
        match few {
            Some(few) if n > few => {
                sums = sums.reshape([n / few, few]).sum_dim(1).flatten::<1>(0, 1);
            }
            _ => return sums.sum_dim(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::total;

    #[test]
    fn nothing_is_left_out() {
        // Primes, powers, both, none; whole numbers, so that every order gives the same sum.
        for n in [0, 1, 63, 64, 65, 127, 128, 4097, 64 * 27, 9 * 64 * 64] {
            let values: Vec<f32> = (0..n).map(|i| (i % 13) as f32).collect();
            let sum: f32 = values.iter().sum();
            let x = Tensor::<1>::from_floats(values.as_slice(), &Device::flex());
            assert_eq!(total(x).into_scalar::<f32>(), sum, "{n}");
        }
        let x = Tensor::<3>::ones([3, 5, 7], &Device::flex());
        assert_eq!(total(x).into_scalar::<f32>(), 105.0);
    }
}
