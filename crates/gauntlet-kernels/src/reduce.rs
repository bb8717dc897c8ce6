//! Sums and maxima, always in the same order: burn's `sum` may use float atomics, and the same run twice must be the same run.
//!
//! On a GPU burn has one thread go through all that `sum_dim` takes together. That is a tenth of a second for a layer of two million
//! weights, so there it is done in parts: sums of a few values, then sums of a few of those.

use burn::tensor::Tensor;

use crate::host::is_host;

/// How many values a GPU's thread goes through at a time.
const MOST: usize = 64;

/// The sum of all values: `[1]`.
pub fn total<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let values = x.dims().iter().product();
    row_sums(x.reshape([1, values]))
}

/// The sum of each row: `[batch, values]` to `[batch]`.
pub fn row_sums(x: Tensor<2>) -> Tensor<1> {
    reduced(x, |x| x.sum_dim(1))
}

/// The largest value of each row: `[batch, values]` to `[batch]`.
pub fn row_maxima(x: Tensor<2>) -> Tensor<1> {
    reduced(x, |x| x.max_dim(1))
}

fn reduced(mut x: Tensor<2>, reduce: impl Fn(Tensor<2>) -> Tensor<2>) -> Tensor<1> {
    let [rows, _] = x.dims();
    if !is_host(&x.device()) {
        while let Some(few) = part_of(x.dims()[1]) {
            let parts = x.dims()[1] / few;
            x = reduce(x.reshape([rows * parts, few])).reshape([rows, parts]);
        }
    }
    reduce(x).squeeze_dim(1)
}

/// The largest divisor of `n` up to [`MOST`], if it divides `n` into several parts of several values.
fn part_of(n: usize) -> Option<usize> {
    (2..=MOST)
        .rev()
        .find(|few| n > *few && n.is_multiple_of(*few))
}

#[cfg(test)]
mod tests {
    use super::part_of;

    #[test]
    fn parts_are_several_and_divide() {
        // A row of an image: 3072 is 48 parts of 64, and those are a part.
        assert_eq!(part_of(3072), Some(64));
        assert_eq!(part_of(64), Some(32));
        assert_eq!(part_of(3 * 127), Some(3));
        for n in [0, 1, 2, 3, 61, 127] {
            assert_eq!(part_of(n), None, "{n}");
        }
    }
}
