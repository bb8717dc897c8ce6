//! Normalisation of channels and the `relu` behind it, which residual networks do as often as they convolve.
//!
//! In plain tensor operations they are six passes over an activation, and on burn's CPU backend each is one thread's. Loops of this
//! crate (feature `flex`) make them one, on all threads. On GPUs (feature `cube`) they are kernels too; with `fusion` they are
//! burn's own operations.
//!
//! Scale, shift and statistics are `f32` whatever the type of `x`.

use burn::tensor::activation;
use burn::tensor::{Tensor, module};

#[cfg(all(feature = "cube", not(feature = "fusion")))]
mod cube;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "flex")]
mod planes;

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta`, and `max(y, 0)` if `relu`: BatchNorm by running statistics, as an
/// attack sees it. Differentiable in `x`, `gamma` and `beta`.
///
/// # Shapes
/// `x: [batch, channels, height, width]`, the others `[channels]`; the result as `x`.
pub fn batch_norm(
    x: Tensor<4>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    mean: Tensor<1>,
    variance: Tensor<1>,
    epsilon: f64,
    relu: bool,
) -> Tensor<4> {
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    if cube::takes(&x, &[&gamma, &beta, &mean, &variance])
        && ![&gamma, &beta].iter().any(|t| t.is_tracked())
    {
        return cube::affine(x, [gamma, beta], [mean, variance], epsilon as f32, relu);
    }
    #[cfg(feature = "flex")]
    let ours = flex::takes(&x, &[&gamma, &beta, &mean, &variance]);
    let scale = gamma * variance.add_scalar(epsilon).sqrt().recip();
    let shift = beta - mean * scale.clone();
    #[cfg(feature = "flex")]
    if ours {
        return flex::affine(x, scale, shift, relu);
    }
    let (channels, dtype) = (x.dims()[1], x.dtype());
    let [scale, shift] = [scale, shift].map(|t| t.cast(dtype).reshape([1, channels, 1, 1]));
    let y = x * scale + shift;
    if relu { activation::relu(y) } else { y }
}

/// [`batch_norm`] by the statistics of the batch itself, which are returned too: mean and biased variance, outside of the graph.
///
/// # Shapes
/// `x: [batch, channels, height, width]`, `gamma` and `beta` `[channels]`; results as `x`, `[channels]`, `[channels]`.
pub fn batch_norm_train(
    x: Tensor<4>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
    relu: bool,
) -> (Tensor<4>, Tensor<1>, Tensor<1>) {
    #[cfg(feature = "flex")]
    if flex::takes(&x, &[&gamma, &beta]) && !x.dims().contains(&0) {
        let channels = x.dims()[1];
        let moments = flex::moments(plain(x.clone()));
        let part = |i: usize| {
            let row = moments.clone().slice([i..i + 1, 0..channels]);
            row.squeeze_dim::<1>(0)
        };
        let (mean, variance) = (part(0), part(1));
        let y = flex::normalise(x, gamma, beta, moments, epsilon as f32, relu);
        return (y, mean, variance);
    }
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    if cube::takes(&x, &[&gamma, &beta]) {
        let moments = cube::moments(plain(x.clone()));
        let y = cube::normalise(x, [gamma, beta], moments.clone(), epsilon as f32, relu);
        let [mean, variance] = moments;
        return (y, mean, variance);
    }
    let dtype = x.dtype();
    let result = module::batch_norm_train(x.cast(gamma.dtype()), gamma, beta, epsilon);
    let y = match relu {
        true => activation::relu(result.output),
        false => result.output,
    };
    (y.cast(dtype), plain(result.mean), plain(result.variance))
}

/// Outside of the graph, if there is one.
fn plain<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.device().is_autodiff() {
        true => x.inner(),
        false => x,
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::samples::uniform as random;

    fn assert_close<const D: usize>(ours: Tensor<D>, burns: Tensor<D>, what: &str) {
        assert_eq!(ours.dims(), burns.dims(), "{what}");
        let [ours, burns] = [ours, burns].map(|t| t.try_into_vec_as::<f32>().unwrap());
        let scale = burns.iter().fold(1.0f32, |m, v| m.max(v.abs()));
        for (i, (a, b)) in ours.iter().zip(&burns).enumerate() {
            assert!((a - b).abs() / scale <= 5e-6, "{what} at {i}: {a}, not {b}");
        }
    }

    /// One plane, odd sizes, one that is worth all threads.
    const SHAPES: [[usize; 4]; 4] = [[1, 1, 1, 2], [3, 5, 3, 7], [2, 3, 1, 1], [8, 16, 20, 20]];

    #[test]
    fn running_statistics_give_what_burn_gives() {
        for shape in SHAPES {
            for relu in [false, true] {
                let channels = [shape[1]];
                let (x, dy) = (random(shape, -1.0, 2.0), random(shape, -1.0, 1.0));
                let (gamma, beta) = (random(channels, -1.0, 1.0), random(channels, -0.5, 0.5));
                let (mean, variance) = (random(channels, -0.5, 0.5), random(channels, 0.1, 2.0));
                let [ours, burns] = [true, false].map(|ours| {
                    let x = x.clone().autodiff().require_grad();
                    let gamma = gamma.clone().autodiff().require_grad();
                    let beta = beta.clone().autodiff().require_grad();
                    let (g, b) = (gamma.clone(), beta.clone());
                    let (m, v) = (mean.clone(), variance.clone());
                    let y = match ours {
                        true => batch_norm(x.clone(), g, b, m, v, 1e-5, relu),
                        false => {
                            let (m, v) = (m.autodiff(), v.autodiff());
                            let y = module::batch_norm(x.clone(), g, b, m, v, 1e-5);
                            if relu { activation::relu(y) } else { y }
                        }
                    };
                    let grads = (y.clone() * dy.clone().autodiff()).sum().backward();
                    let [gamma, beta] = [gamma, beta].map(|t| t.grad(&grads).unwrap());
                    (y.inner(), x.grad(&grads).unwrap(), gamma, beta)
                });
                let what = format!("{shape:?}, relu {relu}");
                assert_close(ours.0, burns.0, &format!("result of {what}"));
                assert_close(
                    ours.1,
                    burns.1.clone(),
                    &format!("input gradient of {what}"),
                );
                assert_close(ours.2, burns.2, &format!("gamma gradient of {what}"));
                assert_close(ours.3, burns.3, &format!("beta gradient of {what}"));
                // Constants have no gradient, and x still has its own.
                let x = x.autodiff().require_grad();
                let y = batch_norm(x.clone(), gamma, beta, mean, variance, 1e-5, relu);
                let grads = (y * dy.autodiff()).sum().backward();
                assert_close(x.grad(&grads).unwrap(), burns.1, &what);
            }
        }
    }

    #[test]
    fn statistics_of_the_batch_give_what_burn_gives() {
        for shape in [SHAPES[1], SHAPES[3], [4, 2, 1, 1]] {
            for relu in [false, true] {
                let channels = [shape[1]];
                // Far from zero, where squares less the square of the mean would be lost.
                let (x, dy) = (random(shape, 29.0, 32.0), random(shape, -1.0, 1.0));
                let (gamma, beta) = (random(channels, -1.0, 1.0), random(channels, -0.5, 0.5));
                let [ours, burns] = [true, false].map(|ours| {
                    let x = x.clone().autodiff().require_grad();
                    let gamma = gamma.clone().autodiff().require_grad();
                    let beta = beta.clone().autodiff().require_grad();
                    let (g, b) = (gamma.clone(), beta.clone());
                    let (y, mean, variance) = match ours {
                        true => batch_norm_train(x.clone(), g, b, 1e-5, relu),
                        false => {
                            let found = module::batch_norm_train(x.clone(), g, b, 1e-5);
                            let y = found.output;
                            let y = if relu { activation::relu(y) } else { y };
                            (y, found.mean.inner(), found.variance.inner())
                        }
                    };
                    let grads = (y.clone() * dy.clone().autodiff()).sum().backward();
                    let [gamma, beta] = [gamma, beta].map(|t| t.grad(&grads).unwrap());
                    let dx = x.grad(&grads).unwrap();
                    (y.inner(), dx, gamma, beta, mean, variance)
                });
                let what = format!("{shape:?}, relu {relu}");
                assert_close(ours.0 * 0.02, burns.0 * 0.02, &format!("result of {what}"));
                assert_close(
                    ours.1 * 0.02,
                    burns.1 * 0.02,
                    &format!("input gradient of {what}"),
                );
                assert_close(
                    ours.2 * 0.02,
                    burns.2 * 0.02,
                    &format!("gamma gradient of {what}"),
                );
                assert_close(ours.3, burns.3, &format!("beta gradient of {what}"));
                assert_close(ours.4, burns.4, &format!("mean of {what}"));
                assert_close(ours.5, burns.5, &format!("variance of {what}"));
            }
        }
    }

    #[test]
    fn empty_batches_and_views() {
        let device = Device::flex();
        let one = || Tensor::<1>::ones([3], &device);
        let none = batch_norm(
            random([0, 3, 2, 2], 0.0, 1.0),
            one(),
            one(),
            one(),
            one(),
            1e-5,
            true,
        );
        assert_eq!(none.dims(), [0, 3, 2, 2]);
        let view = random([4, 5, 2, 3], -1.0, 1.0).permute([0, 3, 1, 2]);
        let ours = batch_norm(view.clone(), one(), one(), one(), one(), 1e-5, true);
        let burns = module::batch_norm(view, one(), one(), one(), one(), 1e-5);
        assert_close(ours, activation::relu(burns), "a view");
    }
}
