//! What training minimises.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};

/// Mean cross-entropy with a share `smoothing` of the target spread evenly over all classes (Szegedy et al. 2016, eq. 8).
///
/// # Shapes
/// `logits: [batch, classes]`, `y: [batch]`; the result `[1]`.
pub fn cross_entropy(logits: Tensor<2>, y: Tensor<1, Int>, smoothing: f32) -> Tensor<1> {
    let log_p = log_softmax(logits, 1);
    let hit = log_p
        .clone()
        .gather(1, y.unsqueeze_dim::<2>(1))
        .squeeze_dim::<1>(1);
    let hit = hit.mean_dim(0).neg();
    if smoothing == 0.0 {
        return hit;
    }
    let all = log_p.mean_dim(1).squeeze_dim::<1>(1).mean_dim(0).neg();
    hit.mul_scalar(1.0 - smoothing) + all.mul_scalar(smoothing)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn it_is_the_mean_negative_log_likelihood_of_the_smoothed_target() {
        let rows = [[2.0f64, -1.0, 0.5], [0.0, 3.0, 1.0]];
        let classes = [0usize, 2];
        for smoothing in [0.0, 0.1, 0.6] {
            let expected: f64 = rows
                .iter()
                .zip(classes)
                .map(|(row, class)| {
                    let log_sum = row.iter().map(|v| v.exp()).sum::<f64>().ln();
                    let target =
                        |k| smoothing / 3.0 + if k == class { 1.0 - smoothing } else { 0.0 };
                    (0..3).map(|k| target(k) * (log_sum - row[k])).sum::<f64>()
                })
                .sum::<f64>()
                / 2.0;
            let device = Device::flex();
            let logits = Tensor::<2>::from_floats(rows.map(|row| row.map(|v| v as f32)), &device);
            let y = Tensor::<1, Int>::from_ints([0, 2], &device);
            let loss: f32 = cross_entropy(logits, y, smoothing as f32).into_scalar();
            assert!(
                (f64::from(loss) - expected).abs() < 1e-5,
                "{loss} != {expected}"
            );
        }
    }
}
