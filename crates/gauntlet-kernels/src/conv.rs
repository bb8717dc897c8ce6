//! Convolution of images, the operation that small networks spend their time in.
//!
//! burn's CPU backend computes a convolution image by image, which leaves small ones far from what the machine can do.
//! On that backend [`conv2d`] uses kernels of this crate (feature `flex`); on every other one, and for types other than
//! `f32`, it is burn's own operation. Results agree to rounding.
//!
//! Weights and bias are taken in the type of `x`: a network whose weights are `f32` computes in `bf16` on inputs of that type, and
//! its weights' gradients are `f32`.

use burn::tensor::activation::relu;
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};
use burn::tensor::{FloatDType, Tensor, module};

#[cfg(feature = "flex")]
use after::After;

#[cfg(feature = "flex")]
mod after;
#[cfg(feature = "flex")]
mod flex;
#[cfg(all(feature = "cube", not(feature = "fusion")))]
mod gemm;
#[cfg(feature = "flex")]
mod lanes;
#[cfg(feature = "flex")]
mod packed;
#[cfg(all(feature = "cube", not(feature = "fusion")))]
mod tiles;

/// Two-dimensional convolution with zeros around the image: `y[n,o] = b[o] + sum_c w[o,c] * x[n,c]`.
///
/// Differentiable in all three tensors. A gradient is computed for those that are tracked, and for no other.
/// The result for one image does not depend on the others in the batch, to the last bit (on the CPU backend).
///
/// # Shapes
///
/// - `x`: `[batch, channels, height, width]`
/// - `weight`: `[outputs, channels, kernel height, kernel width]`
/// - `bias`: `[outputs]`
/// - result: `[batch, outputs, (height + 2 padding - kernel height) / stride + 1, ..]`
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: [usize; 2],
    padding: [usize; 2],
) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if flex::takes(&x, &weight, stride, padding, After::Nothing) {
        return flex::conv2d(x, weight, bias, stride, padding, After::Nothing);
    }
    plain(x, weight, bias, stride, padding)
}

/// [`conv2d`], and `max(y, 0)`.
///
/// On the CPU backend both are one pass over memory, in either direction; elsewhere they are two operations.
///
/// # Shapes
/// Those of [`conv2d`].
pub fn conv2d_relu(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: [usize; 2],
    padding: [usize; 2],
) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if flex::takes(&x, &weight, stride, padding, After::Relu) {
        return flex::conv2d(x, weight, bias, stride, padding, After::Relu);
    }
    relu(plain(x, weight, bias, stride, padding))
}

/// [`conv2d_relu`], and the largest of each two by two; a last odd row or column is left out.
///
/// On the CPU backend all are one pass over memory, in either direction; elsewhere they are three operations. Where several are
/// largest, the gradient goes to the first.
///
/// # Shapes
/// Those of [`conv2d`], with half the height and width in the result.
pub fn conv2d_relu_pool(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: [usize; 2],
    padding: [usize; 2],
) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if flex::takes(&x, &weight, stride, padding, After::ReluPool) {
        return flex::conv2d(x, weight, bias, stride, padding, After::ReluPool);
    }
    pool(relu(plain(x, weight, bias, stride, padding)))
}

/// The weights of a convolution in another type, and in the order in memory that convolutions on their device like best: what many
/// passes use unchanged need not be made ready in each.
pub fn ready(weight: Tensor<4>, dtype: FloatDType) -> Tensor<4> {
    let weight = weight.cast(dtype);
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    if crate::cube::is_cube(&weight.device()) {
        return crate::cube::reorder(weight);
    }
    weight
}

fn pool(y: Tensor<4>) -> Tensor<4> {
    module::max_pool2d(y, MaxPoolOptions::new([2, 2]))
}

fn plain(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: [usize; 2],
    padding: [usize; 2],
) -> Tensor<4> {
    let dtype = x.dtype();
    let (weight, bias) = (weight.cast(dtype), bias.map(|bias| bias.cast(dtype)));
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    if gemm::takes(&x, &weight, padding) {
        let y = gemm::conv2d(x, weight, stride, padding);
        return match bias {
            Some(bias) => y + bias.reshape([1, -1, 1, 1]),
            None => y,
        };
    }
    let options = ConvOptions::new(stride, padding, [1, 1], 1);
    module::conv2d(x, weight, bias, options)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::{DType, Device};

    use super::*;
    use crate::samples;

    #[derive(Clone, Copy, Debug)]
    struct Case {
        batch: usize,
        channels: [usize; 2],
        size: [usize; 2],
        kernel: [usize; 2],
        stride: [usize; 2],
        padding: [usize; 2],
    }

    fn case(
        batch: usize,
        channels: [usize; 2],
        size: [usize; 2],
        kernel: [usize; 2],
        stride: [usize; 2],
        padding: [usize; 2],
    ) -> Case {
        Case {
            batch,
            channels,
            size,
            kernel,
            stride,
            padding,
        }
    }

    fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        samples::uniform(shape, -1.0, 1.0)
    }

    impl Case {
        fn x(&self) -> Tensor<4> {
            random([self.batch, self.channels[0], self.size[0], self.size[1]])
        }

        fn weight(&self) -> Tensor<4> {
            let [inputs, outputs] = self.channels;
            random([outputs, inputs, self.kernel[0], self.kernel[1]])
        }

        fn ours(&self, x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>) -> Tensor<4> {
            assert!(flex::takes(
                &x,
                &weight,
                self.stride,
                self.padding,
                After::Nothing
            ));
            conv2d(x, weight, bias, self.stride, self.padding)
        }

        /// Products that are added for a value of the result, of the input gradient, and of the gradients of weight and bias.
        fn terms(&self) -> [usize; 3] {
            let taps = self.kernel[0] * self.kernel[1];
            let places = [0, 1].map(|d| {
                (self.size[d] + 2 * self.padding[d] - self.kernel[d]) / self.stride[d] + 1
            });
            let [inputs, outputs] = self.channels;
            let weight = self.batch * places[0] * places[1];
            [inputs * taps, outputs * taps, weight]
        }

        /// In f64, so that what is found to differ is the rounding of ours alone.
        fn burns(&self, x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>) -> Tensor<4> {
            let options = ConvOptions::new(self.stride, self.padding, [1, 1], 1);
            let [x, weight] = [x, weight].map(|t| t.cast(DType::F64));
            let bias = bias.map(|t| t.cast(DType::F64));
            module::conv2d(x, weight, bias, options).cast(DType::F32)
        }
    }

    /// Of `terms` numbers added in some order, each addition rounds by up to half an ulp of a sum no larger than the largest result:
    /// as independent errors these come to a standard deviation of less than `sqrt(terms) * 2^-24 / sqrt(3)` of that. The bound is at more
    /// than five of them, which leaves room for how burn and a processor without fused operations round.
    fn assert_close<const D: usize>(
        ours: Tensor<D>,
        exact: Tensor<D>,
        terms: usize,
        what: &str,
        case: Case,
    ) {
        assert_eq!(ours.dims(), exact.dims(), "{what} of {case:?}");
        let [ours, exact] = [ours, exact].map(|t| t.try_into_vec_as::<f32>().unwrap());
        let scale = exact.iter().fold(1.0f32, |m, v| m.max(v.abs()));
        let bound = 3.0 * (terms.max(8) as f32).sqrt() * 2f32.powi(-24);
        for (i, (a, b)) in ours.iter().zip(&exact).enumerate() {
            let far = (a - b).abs() / scale;
            assert!(far <= bound, "{what} of {case:?} at {i}: {a}, not {b}");
        }
    }

    fn cases() -> Vec<Case> {
        let mut cases = vec![
            // The networks' own layers, at batches that fill blocks and that do not.
            case(19, [1, 16], [28, 28], [4, 4], [2, 2], [1, 1]),
            case(37, [16, 32], [14, 14], [4, 4], [2, 2], [1, 1]),
            case(8, [1, 32], [28, 28], [5, 5], [1, 1], [2, 2]),
            case(5, [3, 16], [32, 32], [3, 3], [1, 1], [1, 1]),
            case(3, [8, 12], [8, 8], [1, 1], [2, 2], [0, 0]),
            case(2, [64, 64], [4, 4], [3, 3], [1, 1], [1, 1]),
            // So many channels that sums are taken in parts: of channels together, and of one alone.
            case(9, [170, 13], [6, 7], [3, 3], [1, 1], [1, 1]),
            case(9, [13, 170], [6, 7], [3, 3], [1, 1], [1, 1]),
            case(9, [170, 13], [6, 7], [4, 4], [2, 2], [1, 1]),
            // One pixel; a kernel as large as the image; one smaller than its stride; rows unlike columns.
            case(1, [1, 1], [1, 1], [1, 1], [1, 1], [0, 0]),
            case(6, [2, 5], [6, 5], [6, 5], [1, 1], [0, 0]),
            case(4, [2, 6], [9, 11], [2, 1], [3, 3], [1, 0]),
            case(17, [3, 7], [5, 9], [3, 2], [2, 1], [0, 2]),
            // More padding than kernel, and pixels that no output sees.
            case(2, [1, 4], [3, 3], [2, 2], [3, 3], [2, 2]),
            case(3, [2, 3], [8, 8], [3, 3], [3, 3], [0, 0]),
        ];
        for stride in 1..=3 {
            for padding in 0..=2 {
                for channels in [[1, 4], [3, 5]] {
                    let (stride, padding) = ([stride; 2], [padding; 2]);
                    cases.push(case(9, channels, [7, 10], [3, 3], stride, padding));
                    cases.push(case(1, channels, [7, 10], [3, 3], stride, padding));
                }
            }
        }
        cases
    }

    #[test]
    fn results_and_gradients_are_those_of_burn() {
        for case in cases() {
            let (x, weight, terms) = (case.x(), case.weight(), case.terms());
            let bias = random([case.channels[1]]);
            let plain = case.ours(x.clone(), weight.clone(), None);
            let dy = random(plain.dims());
            let burns = case.burns(x.clone(), weight.clone(), None);
            assert_close(plain, burns, terms[0], "result without bias", case);

            let [ours, burns] = [Case::ours, Case::burns].map(|conv| {
                let x = x.clone().autodiff().require_grad();
                let weight = weight.clone().autodiff().require_grad();
                let bias = bias.clone().autodiff().require_grad();
                let y = conv(&case, x.clone(), weight.clone(), Some(bias.clone()));
                let grads = (y.clone() * dy.clone().autodiff()).sum().backward();
                let [dx, dw] = [x, weight].map(|t| t.grad(&grads).unwrap());
                (y.inner(), dx, dw, bias.grad(&grads).unwrap())
            });
            assert_close(ours.0, burns.0, terms[0], "result", case);
            assert_close(ours.1, burns.1, terms[1], "input gradient", case);
            assert_close(ours.2, burns.2, terms[2], "weight gradient", case);
            assert_close(ours.3, burns.3, terms[2], "bias gradient", case);
        }
    }

    type Convolution =
        fn(Tensor<4>, Tensor<4>, Option<Tensor<1>>, [usize; 2], [usize; 2]) -> Tensor<4>;

    /// The fused ways and what they stand for: result and gradients, at odd sizes, and batches that fill no block.
    #[test]
    fn what_follows_is_that_of_burn() {
        let pooled: Convolution = conv2d_relu_pool;
        for case in cases() {
            for (fused, pools) in [(conv2d_relu as Convolution, false), (pooled, true)] {
                let out = [0, 1].map(|d| {
                    (case.size[d] + 2 * case.padding[d] - case.kernel[d]) / case.stride[d] + 1
                });
                if pools && out.contains(&1) {
                    continue;
                }
                let (x, weight, terms) = (case.x(), case.weight(), case.terms());
                let bias = random([case.channels[1]]);
                let [rows, columns] = if pools { out.map(|n| n / 2) } else { out };
                let dy = random([case.batch, case.channels[1], rows, columns]);
                let [ours, burns] = [true, false].map(|ours| {
                    let x = x.clone().autodiff().require_grad();
                    let weight = weight.clone().autodiff().require_grad();
                    let bias = bias.clone().autodiff().require_grad();
                    let given = (x.clone(), weight.clone(), Some(bias.clone()));
                    let y = match ours {
                        true => fused(given.0, given.1, given.2, case.stride, case.padding),
                        false => {
                            let y = relu(case.burns(given.0, given.1, given.2));
                            if pools { pool(y) } else { y }
                        }
                    };
                    let grads = (y.clone() * dy.clone().autodiff()).sum().backward();
                    let [dx, dw] = [x, weight].map(|t| t.grad(&grads).unwrap());
                    (y.inner(), dx, dw, bias.grad(&grads).unwrap())
                });
                assert_close(ours.0, burns.0, terms[0], "result", case);
                assert_close(ours.1, burns.1, terms[1], "input gradient", case);
                assert_close(ours.2, burns.2, terms[2], "weight gradient", case);
                assert_close(ours.3, burns.3, terms[2], "bias gradient", case);
            }
        }
    }

    #[test]
    fn equals_share_no_gradient_and_what_is_no_number_is_passed_on() {
        let device = Device::flex();
        let x = Tensor::<1>::from_floats(
            [
                2.0,
                2.0,
                -1.0,
                -2.0,
                2.0,
                1.0,
                -3.0,
                -4.0,
                0.0,
                0.0,
                f32::NAN,
                5.0,
                0.0,
                0.0,
                1.0,
                7.0,
            ],
            &device,
        );
        let x = x.reshape([1, 1, 4, 4]).autodiff().require_grad();
        let one = Tensor::<4>::ones([1, 1, 1, 1], &device);
        let y = conv2d_relu_pool(x.clone(), one, None, [1, 1], [0, 0]);
        let values: Vec<f32> = y.clone().inner().try_into_vec_as().unwrap();
        assert_eq!(values[..3], [2.0, 0.0, 0.0]);
        assert!(values[3].is_nan());
        let grads = y.sum().backward();
        let dx: Vec<f32> = x.grad(&grads).unwrap().try_into_vec_as().unwrap();
        let expected = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0];
        assert_eq!(dx[..11], expected);
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_batch() {
        for case in [
            case(37, [1, 6], [9, 10], [4, 4], [2, 2], [1, 1]),
            case(37, [3, 8], [6, 5], [3, 3], [1, 1], [0, 0]),
        ] {
            let (x, weight, bias) = (case.x(), case.weight(), random([case.channels[1]]));
            let both = |x: Tensor<4>| {
                let x = x.autodiff().require_grad();
                let y = case.ours(x.clone(), weight.clone(), Some(bias.clone()));
                let grads = (y.clone() * y.clone()).sum().backward();
                [y.inner(), x.grad(&grads).unwrap()]
            };
            let whole = both(x.clone());
            // Every size of block, and rows in other lanes.
            for (from, to) in [(0, 1), (3, 7), (1, 6), (30, 37), (5, 16), (2, 18), (9, 37)] {
                let part = both(x.clone().slice([from..to]));
                for (part, whole) in part.into_iter().zip(whole.clone()) {
                    let same = whole.slice([from..to]).into_data();
                    part.into_data().assert_eq(&same, true);
                }
            }
        }
    }

    #[test]
    fn an_empty_batch_stays_empty() {
        let case = case(0, [2, 3], [5, 5], [3, 3], [1, 1], [1, 1]);
        let (x, weight) = (case.x().autodiff().require_grad(), case.weight());
        let weight = weight.autodiff().require_grad();
        let y = case.ours(x.clone(), weight.clone(), None);
        assert_eq!(y.dims(), [0, 3, 5, 5]);
        let grads = y.sum().backward();
        assert_eq!(x.grad(&grads).unwrap().dims(), [0, 2, 5, 5]);
        let dw = weight.grad(&grads).unwrap();
        assert_close(dw.clone(), dw.zeros_like(), 0, "weight gradient", case);
    }

    #[test]
    fn views_are_read_in_their_order() {
        let case = case(5, [3, 4], [6, 7], [3, 2], [2, 1], [1, 1]);
        let views = [
            random([5, 6, 7, 3]).permute([0, 3, 1, 2]),
            random([7, 3, 6, 9]).slice([1..6, 0..3, 0..6, 1..8]),
            random([1, 3, 6, 7]).expand([5, 3, 6, 7]),
            random([5, 3, 6, 7]).flip([0, 3]),
        ];
        for x in views {
            let weight = random([3, 4, 2, 3]).permute([1, 0, 3, 2]);
            let bias = random([9]).slice([2..6]);
            let ours = case.ours(x.clone(), weight.clone(), Some(bias.clone()));
            let burns = case.burns(x, weight, Some(bias));
            assert_close(ours, burns, case.terms()[0], "result of a view", case);
        }
    }

    #[test]
    fn only_tracked_tensors_have_gradients_however_often_they_are_used() {
        let case = case(6, [4, 4], [5, 5], [3, 3], [1, 1], [1, 1]);
        let (x, weight) = (case.x(), case.weight());
        for [track_x, track_weight] in [[true, false], [false, true], [true, true]] {
            let [ours, burns] = [Case::ours, Case::burns].map(|conv| {
                let leaf = |t: &Tensor<4>, tracked| match tracked {
                    true => t.clone().autodiff().require_grad(),
                    false => t.clone(),
                };
                let (x, weight) = (leaf(&x, track_x), leaf(&weight, track_weight));
                let once = conv(&case, x.clone(), weight.clone(), None);
                let twice = conv(&case, once.clone().tanh(), weight.clone(), None);
                let grads = (twice + once * conv(&case, x.clone(), weight.clone(), None))
                    .sum()
                    .backward();
                [(x, track_x), (weight, track_weight)].map(|(leaf, tracked)| {
                    // An untracked tensor has no place for a gradient at all.
                    tracked.then(|| leaf.grad(&grads).unwrap())
                })
            });
            for (ours, burns) in ours.into_iter().zip(burns).filter_map(|(a, b)| a.zip(b)) {
                // Three convolutions after one another and their gradients.
                let terms = 6 * case.terms().into_iter().max().unwrap();
                assert_close(ours, burns, terms, "gradient of a leaf used twice", case);
            }
        }
    }

    #[test]
    fn what_the_kernels_do_not_take_is_left_to_burn() {
        let (x, weight) = (random([1, 2, 4, 4]), random([3, 2, 3, 3]));
        let takes = |x: &Tensor<4>, weight: &Tensor<4>, after| {
            flex::takes(x, weight, [1, 1], [0, 0], after)
        };
        assert!(takes(&x, &weight, After::ReluPool));
        assert!(!takes(&x, &random([3, 2, 5, 3]), After::Nothing));
        assert!(!takes(&x, &random([3, 1, 3, 3]), After::Nothing));
        // One row is no square.
        assert!(takes(&x, &random([3, 2, 4, 3]), After::Relu));
        assert!(!takes(&x, &random([3, 2, 4, 3]), After::ReluPool));
        let double = x.clone().cast(DType::F64);
        assert!(!takes(&double, &weight, After::Nothing));
    }
}
