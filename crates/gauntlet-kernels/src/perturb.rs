//! Steps and projections of perturbations. Dimension 0 is the batch; samples do not mix.
//!
//! Each is one pass over memory where it can be: over rows on the host, as one kernel on a GPU (feature `cube`). Else, and inside of
//! autodiff, they are plain tensor operations.

use burn::tensor::{Tensor, TensorData};

use crate::host::{CHEAP, Values, each_row_of, is_host, most_of, part, sum_of, upload, values};
use crate::reduce::{row_maxima, row_sums};

mod hyperplane;
mod l1;
mod momentum;

pub use hyperplane::move_to_hyperplane;
pub use l1::{l1_sparse_step, l1_step, project_l1};
pub use momentum::{l2_momentum_step, linf_momentum_step};

/// Gradients shorter than this have no direction: the L2 step leaves such samples where they are.
pub(crate) const TINY: f32 = 1e-12;

/// One L∞ step: `clip(x0 + clamp(x + step_size * sign(grad) - x0, -eps, eps), lo, hi)`.
///
/// # Shapes
/// All tensors `[batch, ..]`, alike.
pub fn linf_step<const D: usize>(
    x: Tensor<D>,
    x0: Tensor<D>,
    grad: Tensor<D>,
    step_size: f32,
    eps: f32,
    bounds: (f32, f32),
) -> Tensor<D> {
    #[cfg(feature = "cube")]
    if crate::cube::takes(&[&x, &x0, &grad]) {
        return crate::cube::linf_step(x, x0, grad, step_size, eps, bounds);
    }
    if !is_host(&x.device()) {
        return project_linf(x + grad.sign().mul_scalar(step_size), x0, eps, bounds);
    }
    by_rows(x, [x0, grad], |x, [x0, grad]| {
        for ((x, &x0), &grad) in x.iter_mut().zip(x0).zip(grad) {
            *x = near(*x + sign(grad) * step_size, x0, eps, bounds);
        }
    })
}

/// One L2 step of length `step_size` along the gradient of each sample, projected on the ball and the box.
///
/// A sample whose gradient is zero stays where it is (its direction would be 0/0).
///
/// # Shapes
/// All tensors `[batch, ..]`, alike.
pub fn l2_step<const D: usize>(
    x: Tensor<D>,
    x0: Tensor<D>,
    grad: Tensor<D>,
    step_size: f32,
    eps: f32,
    bounds: (f32, f32),
) -> Tensor<D> {
    #[cfg(feature = "cube")]
    if crate::cube::takes(&[&x, &x0, &grad]) {
        return crate::cube::l2_step(x, x0, grad, step_size, eps, bounds);
    }
    if !is_host(&x.device()) {
        return project_l2(x + unit_l2(grad).mul_scalar(step_size), x0, eps, bounds);
    }
    by_rows(x, [x0, grad], |x, [x0, grad]| {
        let factor = step_size * unit_factor(grad);
        for (x, g) in x.iter_mut().zip(grad) {
            *x += g * factor;
        }
        project_l2_row(x, x0, eps, bounds);
    })
}

/// Each sample scaled to L2 length 1; zero samples stay zero.
pub fn unit_l2<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    // Scaled by the largest value first: squares of small gradients would underflow.
    let x = x.clone() / per_sample(linf_norms(x.clone()).clamp_min(TINY), x.dims());
    let norms = l2_norms(x.clone()).clamp_min(TINY);
    let dims = x.dims();
    x / per_sample(norms, dims)
}

/// Projection of `x` on the L∞ ball of radius `eps` around `x0` and on the box.
pub fn project_linf<const D: usize>(
    x: Tensor<D>,
    x0: Tensor<D>,
    eps: f32,
    bounds: (f32, f32),
) -> Tensor<D> {
    if is_host(&x.device()) {
        return by_rows(x, [x0], |x, [x0]| {
            for (x, &x0) in x.iter_mut().zip(x0) {
                *x = near(*x, x0, eps, bounds);
            }
        });
    }
    #[cfg(feature = "cube")]
    if crate::cube::takes(&[&x, &x0]) {
        // A step of length 0, in whatever direction.
        return crate::cube::linf_step(x.clone(), x0, x, 0.0, eps, bounds);
    }
    let delta = (x - x0.clone()).clamp(-eps, eps);
    (x0 + delta).clamp(bounds.0, bounds.1)
}

/// Projection of `x` on the L2 ball of radius `eps` around `x0`, then on the box, which cannot lengthen the perturbation
/// of an `x0` inside it.
pub fn project_l2<const D: usize>(
    x: Tensor<D>,
    x0: Tensor<D>,
    eps: f32,
    bounds: (f32, f32),
) -> Tensor<D> {
    #[cfg(feature = "cube")]
    if crate::cube::takes(&[&x, &x0]) {
        return crate::cube::project_l2(x, x0, eps, bounds);
    }
    if is_host(&x.device()) {
        return by_rows(x, [x0], |x, [x0]| project_l2_row(x, x0, eps, bounds));
    }
    let delta = x - x0.clone();
    let dims = delta.dims();
    let norms = l2_norms(delta.clone()).clamp_min(TINY);
    let shrink = norms.recip().mul_scalar(eps).clamp_max(1.0);
    (x0 + delta * per_sample(shrink, dims)).clamp(bounds.0, bounds.1)
}

/// L2 norm of each sample: `[batch]`.
pub fn l2_norms<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    row_sums(rows(x).square()).sqrt()
}

/// L1 norm of each sample: `[batch]`.
pub fn l1_norms<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    row_sums(rows(x).abs())
}

/// How many places of each sample are not zero: `[batch]`. A place of an image (`[batch, channels, ..]`) is a pixel with all its
/// channels, one of a feature row (`[batch, features]`) a feature.
pub fn l0_norms<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let dims = x.dims();
    let places = match D {
        0..=2 => rows(x).abs(),
        _ => {
            let shape = [dims[0], dims[1], dims[2..].iter().product()];
            x.reshape(shape).abs().max_dim(1).squeeze_dim::<2>(1)
        }
    };
    row_sums(places.greater_elem(0.0).float())
}

/// L∞ norm of each sample: `[batch]`.
pub fn linf_norms<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    row_maxima(rows(x).abs())
}

/// One value for each sample, shaped to combine with a tensor of `dims`.
pub fn per_sample<const D: usize>(values: Tensor<1>, dims: [usize; D]) -> Tensor<D> {
    let mut shape = [1; D];
    shape[0] = dims[0];
    values.reshape(shape)
}

/// The rows of `yes` where `mask` is 1, of `no` where it is 0.
///
/// # Shapes
/// `mask: [batch]`, the others `[batch, ..]`, alike.
pub fn choose<const D: usize>(mask: &Tensor<1>, yes: Tensor<D>, no: Tensor<D>) -> Tensor<D> {
    if is_host(&no.device()) {
        return choose_rows(&values(mask.clone()), yes, no);
    }
    // Filled out by adding: comparing a tensor that was expanded without copying gives wrong masks on flex.
    let whole = no.zeros_like() + per_sample(mask.clone(), no.dims());
    no.mask_where(whole.greater_elem(0.5), yes)
}

/// [`choose`] row by row: most often it is all of them, or none.
fn choose_rows<const D: usize>(mask: &[f32], yes: Tensor<D>, no: Tensor<D>) -> Tensor<D> {
    let chosen = |mask: &f32| *mask > 0.5;
    if !mask.iter().any(chosen) {
        return no;
    }
    if mask.iter().all(chosen) {
        return yes;
    }
    let width = no.dims()[1..].iter().product::<usize>();
    let like = no.clone();
    let (yes, mut no) = (Values::from(yes), values(no));
    for row in (0..mask.len()).filter(|&row| chosen(&mask[row])) {
        let place = row * width..(row + 1) * width;
        no[place.clone()].copy_from_slice(&yes[place]);
    }
    upload(no, &like)
}

/// [`project_l2`] of one sample.
fn project_l2_row(x: &mut [f32], x0: &[f32], eps: f32, bounds: (f32, f32)) {
    let length = sum_of(x.len(), |i| (x[i] - x0[i]) * (x[i] - x0[i])).sqrt();
    let shrink = (length.max(TINY).recip() * eps).min(1.0);
    for (x, x0) in x.iter_mut().zip(x0) {
        *x = clamp(x0 + (*x - x0) * shrink, bounds);
    }
}

/// What a gradient is multiplied by to have L2 length 1.
fn unit_factor(grad: &[f32]) -> f32 {
    // Scaled by the largest value first: squares of small gradients would underflow.
    let largest = most_of(grad.len(), TINY, |i| grad[i].abs());
    let inverse = largest.recip();
    let squares = sum_of(grad.len(), |i| (grad[i] * inverse) * (grad[i] * inverse));
    inverse / squares.sqrt().max(TINY)
}

/// One value of a projection on the L∞ ball around `x0` and on the box.
#[inline(always)]
fn near(x: f32, x0: f32, eps: f32, bounds: (f32, f32)) -> f32 {
    clamp(x0 + clamp(x - x0, (-eps, eps)), bounds)
}

/// What is no number stays so. [`f32::clamp`] looks at its limits each time, which keeps a loop of it from becoming one of vectors.
#[inline(always)]
fn clamp(x: f32, (low, high): (f32, f32)) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

#[inline(always)]
fn sign(x: f32) -> f32 {
    let up = if x > 0.0 { 1.0 } else { 0.0 };
    let down = if x < 0.0 { 1.0 } else { 0.0 };
    up - down
}

/// `step` on each row of `x`, with the same rows of other tensors.
fn by_rows<const D: usize, const N: usize>(
    x: Tensor<D>,
    others: [Tensor<D>; N],
    step: impl Fn(&mut [f32], [&[f32]; N]) + Sync + Send,
) -> Tensor<D> {
    by_numbered_rows(x, others, |_, x, others| step(x, others))
}

/// [`by_rows`], and `step` is told which row it is.
fn by_numbered_rows<const D: usize, const N: usize>(
    x: Tensor<D>,
    others: [Tensor<D>; N],
    step: impl Fn(usize, &mut [f32], [&[f32]; N]) + Sync + Send,
) -> Tensor<D> {
    let (dims, device) = (x.dims(), x.device());
    let (mut x, others) = (values(x), others.map(Values::from));
    let others = others.each_ref().map(|other| &**other);
    each_row_of(CHEAP, &mut x, dims, |row, x| {
        step(row, x, others.map(|other| part(other, row, x.len())));
    });
    Tensor::from_data(TensorData::new(x, dims), &device)
}

/// `x` with zeros for what is no number or infinite.
pub fn finite<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !is_host(&x.device()) {
        let unknown = x.clone().is_finite().bool_not();
        return x.mask_fill(unknown, 0.0);
    }
    let (dims, device) = (x.dims(), x.device());
    let mut x = values(x);
    for x in &mut x {
        *x = if x.is_finite() { *x } else { 0.0 };
    }
    Tensor::from_data(TensorData::new(x, dims), &device)
}

/// `[batch, values]`
fn rows<const D: usize>(x: Tensor<D>) -> Tensor<2> {
    let dims = x.dims();
    x.reshape([dims[0], dims[1..].iter().product()])
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use proptest::prelude::*;

    use super::*;

    const BOX: (f32, f32) = (0.0, 1.0);

    fn tensor(values: &[f32], shape: [usize; 2]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
    }

    fn close(a: &[f32], b: &[f32]) {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() < 1e-6, "{a} != {b}");
        }
    }

    #[test]
    fn linf_step_follows_the_formula() {
        let x0 = tensor(&[0.5, 0.5, 0.05, 0.95], [1, 4]);
        let grad = tensor(&[3.0, -1e-9, -2.0, 1.0], [1, 4]);
        let once = linf_step(x0.clone(), x0.clone(), grad.clone(), 0.1, 0.15, BOX);
        close(&values(once.clone()), &[0.6, 0.4, 0.0, 1.0]);
        let twice = linf_step(once, x0, grad, 0.1, 0.15, BOX);
        close(&values(twice), &[0.65, 0.35, 0.0, 1.0]);
    }

    /// Row by row on the host, and in tensor operations, which tensors of an autodiff device take.
    #[test]
    fn rows_and_tensors_take_the_same_step() {
        let shape = [5, 2, 7, 9];
        let random = |low, high| crate::samples::uniform(shape, low, high);
        let x0 = random(-0.2, 1.2).clamp(0.0, 1.0);
        let x = (x0.clone() + random(-0.2, 0.2)).clamp(0.0, 1.0);
        let scales = Tensor::<1>::from_floats([1.0, 1e-9, 0.0, 1e9, 1e-4], &Device::flex());
        let grad = random(-1.0, 1.0) * per_sample(scales, shape);
        let graph = |t: &Tensor<4>| t.clone().autodiff();
        for eps in [0.15, 2.0] {
            let found = linf_step(x.clone(), x0.clone(), grad.clone(), 0.1, eps, BOX);
            let expected = linf_step(graph(&x), graph(&x0), graph(&grad), 0.1, eps, BOX);
            assert_eq!(values(found), values(expected.inner()), "to the bit");
            let found = l2_step(x.clone(), x0.clone(), grad.clone(), 0.7, eps, BOX);
            let expected = l2_step(graph(&x), graph(&x0), graph(&grad), 0.7, eps, BOX);
            close(&values(found), &values(expected.inner()));
            let found = project_l2(x.clone(), x0.clone(), eps, BOX);
            let expected = project_l2(graph(&x), graph(&x0), eps, BOX);
            close(&values(found), &values(expected.inner()));
        }
    }

    #[test]
    fn l2_step_has_its_length_and_zero_gradients_stay() {
        let x0 = tensor(&[0.5, 0.5, 0.5, 0.5], [2, 2]);
        let grad = tensor(&[3e-20, 4e-20, 0.0, 0.0], [2, 2]);
        let x = l2_step(x0.clone(), x0, grad, 0.1, 0.3, BOX);
        let moved = values(x);
        close(&moved[2..], &[0.5, 0.5]);
        assert!(moved.iter().all(|v| v.is_finite()));
        let grad = tensor(&[3e-7, 4e-7, 0.0, 0.0], [2, 2]);
        let x0 = tensor(&[0.5; 4], [2, 2]);
        close(
            &values(l2_step(x0.clone(), x0, grad, 0.1, 0.3, BOX)),
            &[0.56, 0.58, 0.5, 0.5],
        );
    }

    #[test]
    fn l0_counts_pixels_of_images_and_features_of_rows() {
        let device = Device::flex();
        // Two channels of 1x3; the second pixel changes in one of them, the third in both.
        let image = Tensor::<4>::from_floats([[[[0.0, 0.1, -0.2]], [[0.0, 0.0, 0.3]]]], &device);
        close(&values(l0_norms(image.clone())), &[2.0]);
        close(&values(l0_norms(image.clone().flatten::<2>(1, 3))), &[3.0]);
        close(&values(l1_norms(image)), &[0.6]);
    }

    #[test]
    fn rows_are_chosen_by_their_mask() {
        let (yes, no) = (
            tensor(&[1.0, 2.0, 3.0, 4.0], [2, 2]),
            tensor(&[5.0; 4], [2, 2]),
        );
        let device = Device::flex();
        for (mask, expected) in [
            ([0.0, 1.0], [5.0, 5.0, 3.0, 4.0]),
            ([1.0, f32::NAN], [1.0, 2.0, 5.0, 5.0]),
            ([1.0, 1.0], [1.0, 2.0, 3.0, 4.0]),
            ([0.0, 0.5], [5.0; 4]),
        ] {
            let mask = Tensor::<1>::from_floats(mask, &device);
            let found = choose(&mask, yes.clone(), no.clone());
            assert_eq!(values(found), expected);
            // Tensors of an autodiff device take the other way.
            let found = choose(
                &mask.autodiff(),
                yes.clone().autodiff(),
                no.clone().autodiff(),
            );
            assert_eq!(values(found.inner()), expected);
        }
        let none = Tensor::<1>::empty([0], &device);
        assert_eq!(
            choose(&none, tensor(&[], [0, 3]), tensor(&[], [0, 3])).dims(),
            [0, 3]
        );
    }

    #[test]
    fn what_is_not_finite_becomes_zero() {
        let x = tensor(
            &[
                1.0,
                f32::NAN,
                f32::INFINITY,
                f32::NEG_INFINITY,
                -0.5,
                f32::MAX,
            ],
            [2, 3],
        );
        let expected = [1.0, 0.0, 0.0, 0.0, -0.5, f32::MAX];
        assert_eq!(values(finite(x.clone())), expected);
        assert_eq!(values(finite(x.autodiff()).inner()), expected);
    }

    #[test]
    fn empty_and_strided_batches() {
        let none = tensor(&[], [0, 3]);
        assert_eq!(
            l2_step(none.clone(), none.clone(), none.clone(), 0.1, 0.3, BOX).dims(),
            [0, 3]
        );
        assert_eq!(
            linf_step(none.clone(), none.clone(), none, 0.1, 0.3, BOX).dims(),
            [0, 3]
        );
        let grad = tensor(&[1.0, -1.0, 2.0, -2.0, 3.0, -3.0], [3, 2]).transpose();
        let x0 = tensor(&[0.5; 6], [2, 3]);
        let stepped = linf_step(x0.clone(), x0, grad, 0.1, 0.3, BOX);
        close(&values(stepped), &[0.6, 0.6, 0.6, 0.4, 0.4, 0.4]);
    }

    proptest! {
        #[test]
        fn projections_land_in_the_set_and_stay(
            x0 in prop::collection::vec(0.0f32..1.0, 12),
            shift in prop::collection::vec(-2.0f32..2.0, 12),
            eps in 0.01f32..0.9,
        ) {
            let x: Vec<f32> = x0.iter().zip(&shift).map(|(a, b)| a + b).collect();
            let (x0, x) = (tensor(&x0, [3, 4]), tensor(&x, [3, 4]));
            let linf = project_linf(x.clone(), x0.clone(), eps, BOX);
            let l2 = project_l2(x, x0.clone(), eps, BOX);
            for (projected, again, norms) in [
                (linf.clone(), project_linf(linf.clone(), x0.clone(), eps, BOX), linf_norms(linf - x0.clone())),
                (l2.clone(), project_l2(l2.clone(), x0.clone(), eps, BOX), l2_norms(l2 - x0)),
            ] {
                prop_assert!(values(norms).iter().all(|&n| n <= eps * (1.0 + 1e-5) + 1e-6));
                let (projected, again) = (values(projected), values(again));
                prop_assert!(projected.iter().all(|v| (0.0..=1.0).contains(v)));
                prop_assert!(projected.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-6));
            }
        }

        #[test]
        fn a_step_does_not_depend_on_the_scale_of_the_gradient(
            grad in prop::collection::vec(prop_oneof![-1.0f32..-0.01, 0.01f32..1.0], 12),
            scale in 1e-4f32..1e4,
        ) {
            let x0 = tensor(&[0.5; 12], [3, 4]);
            let scaled: Vec<f32> = grad.iter().map(|g| g * scale).collect();
            let (grad, scaled) = (tensor(&grad, [3, 4]), tensor(&scaled, [3, 4]));
            for step in [linf_step::<2>, l2_step::<2>] {
                let a = values(step(x0.clone(), x0.clone(), grad.clone(), 0.1, 0.3, BOX));
                let b = values(step(x0.clone(), x0.clone(), scaled.clone(), 0.1, 0.3, BOX));
                prop_assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5));
            }
        }
    }
}
