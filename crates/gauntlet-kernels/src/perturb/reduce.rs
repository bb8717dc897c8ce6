use burn::tensor::Tensor;

use crate::host::is_host;

/// How many values a GPU's thread goes through at a time.
const MOST: usize = 64;

/// The sum of each row: `[batch, values]` to `[batch]`.
pub fn row_sums(x: Tensor<2>) -> Tensor<1> {
    reduced(x, |x| x.sum_dim(1))
}

/// The largest value of each row: `[batch, values]` to `[batch]`.
pub(super) fn row_maxima(x: Tensor<2>) -> Tensor<1> {
    reduced(x, |x| x.max_dim(1))
}

/// In one go on the host. On a GPU one thread may take a whole row, and a batch of images is few rows of many values: first parts of
/// rows, then rows of what they gave.
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
