//! A projected gradient step with momentum, as Auto-PGD takes it.

use burn::tensor::Tensor;

use super::{
    near, per_sample, project_l2, project_l2_row, project_linf, sign, unit_factor, unit_l2,
};
use crate::host::{is_host, values};

/// A step of Auto-PGD in L∞ (Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
/// parameter-free attacks", equations 3 and 4): `ahead` is `x + step_size * sign(grad)`, projected; the result is
/// `x + (1 - momentum) * (ahead - x) + momentum * (x - before)`, projected.
///
/// # Shapes
/// `step_size: [batch]`, the other tensors `[batch, ..]`, alike.
#[allow(clippy::too_many_arguments, reason = "a formula of as many")]
pub fn linf_momentum_step<const D: usize>(
    x: Tensor<D>,
    x0: Tensor<D>,
    grad: Tensor<D>,
    before: Tensor<D>,
    step_size: Tensor<1>,
    momentum: f32,
    eps: f32,
    bounds: (f32, f32),
) -> Tensor<D> {
    #[cfg(feature = "cube")]
    if crate::cube::takes(&[&x, &x0, &grad, &before]) {
        return crate::cube::linf_momentum_step(
            x, x0, grad, before, step_size, momentum, eps, bounds,
        );
    }
    if !is_host(&x.device()) {
        let project = |z| project_linf(z, x0.clone(), eps, bounds);
        return momentum_step(&x, grad.sign(), &before, step_size, momentum, project);
    }
    by_rows(
        x,
        [x0, grad, before],
        step_size,
        |x, [x0, grad, before], size| {
            for (i, x) in x.iter_mut().enumerate() {
                let ahead = near(*x + sign(grad[i]) * size, x0[i], eps, bounds);
                let pull = (ahead - *x) * (1.0 - momentum);
                let drift = (*x - before[i]) * momentum;
                *x = near(*x + pull + drift, x0[i], eps, bounds);
            }
        },
    )
}

/// [`linf_momentum_step`] in L2: along the gradient of each sample, scaled to length 1.
///
/// # Shapes
/// `step_size: [batch]`, the other tensors `[batch, ..]`, alike.
#[allow(clippy::too_many_arguments, reason = "a formula of as many")]
pub fn l2_momentum_step<const D: usize>(
    x: Tensor<D>,
    x0: Tensor<D>,
    grad: Tensor<D>,
    before: Tensor<D>,
    step_size: Tensor<1>,
    momentum: f32,
    eps: f32,
    bounds: (f32, f32),
) -> Tensor<D> {
    #[cfg(feature = "cube")]
    if crate::cube::takes(&[&x, &x0, &grad, &before]) {
        return crate::cube::l2_momentum_step(
            x, x0, grad, before, step_size, momentum, eps, bounds,
        );
    }
    if !is_host(&x.device()) {
        let project = |z| project_l2(z, x0.clone(), eps, bounds);
        return momentum_step(&x, unit_l2(grad), &before, step_size, momentum, project);
    }
    let project = |z: &mut [f32], x0: &[f32]| project_l2_row(z, x0, eps, bounds);
    by_rows(
        x,
        [x0, grad, before],
        step_size,
        |x, [x0, grad, before], size| {
            let factor = size * unit_factor(grad);
            let mut ahead: Vec<f32> = x.iter().zip(grad).map(|(x, g)| x + g * factor).collect();
            project(&mut ahead, x0);
            for ((x, ahead), before) in x.iter_mut().zip(ahead).zip(before) {
                let pull = (ahead - *x) * (1.0 - momentum);
                *x = *x + pull + (*x - before) * momentum;
            }
            project(x, x0);
        },
    )
}

/// In tensor operations.
fn momentum_step<const D: usize>(
    x: &Tensor<D>,
    direction: Tensor<D>,
    before: &Tensor<D>,
    step_size: Tensor<1>,
    momentum: f32,
    project: impl Fn(Tensor<D>) -> Tensor<D>,
) -> Tensor<D> {
    let ahead = project(x.clone() + direction * per_sample(step_size, x.dims()));
    let pull = (ahead - x.clone()).mul_scalar(1.0 - momentum);
    let drift = (x.clone() - before.clone()).mul_scalar(momentum);
    project(x.clone() + pull + drift)
}

/// `step` on each row of `x`, with the same rows of three other tensors and its step size.
fn by_rows<const D: usize>(
    x: Tensor<D>,
    others: [Tensor<D>; 3],
    step_size: Tensor<1>,
    step: impl Fn(&mut [f32], [&[f32]; 3], f32) + Sync + Send,
) -> Tensor<D> {
    let sizes = values(step_size);
    let step = |row: usize, x: &mut [f32], others: [&[f32]; 3]| step(x, others, sizes[row]);
    super::by_numbered_rows(x, others, step)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::{NoiseKey, Stream};

    /// By rows and in tensor operations: images of which a third is on a face, gradients of any size, one without any.
    #[test]
    fn rows_and_tensors_agree() {
        let (samples, shape) = ([0u32, 1, 2, 3, 4], [5, 2, 7, 9]);
        let (key, device) = (NoiseKey::new(1, Stream::EvalAttack), Device::flex());
        let draw = |r: u32, low, high| {
            key.restart(r)
                .uniform::<4>(&samples, shape, low, high, &device)
        };
        let (x0, step) = (draw(0, -0.3, 1.3).clamp(0.0, 1.0), draw(1, -0.2, 0.2));
        let sizes = Tensor::<1>::from_floats([0.4, 1.0, 1e-3, 3.0, 0.0], &device);
        let scales = Tensor::<1>::from_floats([1.0, 1e-9, 0.0, 1e9, 1e-4], &device);
        let grad = key.normal::<4>(&samples, shape, &device) * per_sample(scales, shape);
        let bounds = (0.0, 1.0);
        for (eps, momentum) in [(0.3, 0.25), (1.5, 0.0)] {
            let x = project_linf(x0.clone() + step.clone(), x0.clone(), eps, bounds);
            let before = project_linf(x0.clone() - step.clone(), x0.clone(), eps, bounds);
            let given = || {
                (
                    x.clone(),
                    x0.clone(),
                    grad.clone(),
                    before.clone(),
                    sizes.clone(),
                )
            };
            let (a, b, c, d, e) = given();
            let found = linf_momentum_step(a, b, c, d, e, momentum, eps, bounds);
            let project = |z| project_linf(z, x0.clone(), eps, bounds);
            let expected = momentum_step(
                &x,
                grad.clone().sign(),
                &before,
                sizes.clone(),
                momentum,
                project,
            );
            assert_eq!(values(found), values(expected), "to the bit");

            let (a, b, c, d, e) = given();
            let found = l2_momentum_step(a, b, c, d, e, momentum, eps, bounds);
            let project = |z| project_l2(z, x0.clone(), eps, bounds);
            let expected = momentum_step(
                &x,
                unit_l2(grad.clone()),
                &before,
                sizes.clone(),
                momentum,
                project,
            );
            let off = values((found - expected).abs().max())[0];
            assert!(off < 1e-6, "{off}");
        }
    }
}
