use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{FloatDType, Tensor};
use gauntlet_kernels::{on_host, ready};

use crate::Classifier;

/// A classifier that computes in another type: its input is cast to it, its scores and features back to `f32`. Weights stay as
/// they are and are cast where they are used, so that their gradients, and that of the input, are `f32`.
///
/// BatchNorm's statistics, scale and shift are `f32` in any case. Networks of convolutions and fully connected layers can do it,
/// see [`Arch::computes_in_bf16`](crate::Arch::computes_in_bf16).
pub struct Computing<'a, M: ?Sized> {
    /// The classifier.
    pub model: &'a M,
    /// In what it computes.
    pub dtype: FloatDType,
}

impl<const D: usize, M: Classifier<D> + ?Sized> Classifier<D> for Computing<'_, M> {
    fn logits(&self, x: Tensor<D>) -> Tensor<2> {
        self.model.logits(x.cast(self.dtype)).cast(FloatDType::F32)
    }

    fn features(&self, x: Tensor<D>) -> Tensor<2> {
        let features = self.model.features(x.cast(self.dtype));
        features.cast(FloatDType::F32)
    }
}

/// `model`, untracked, with the weights of its convolutions made ready for many passes in `dtype`: see
/// [`ready`](gauntlet_kernels::ready). On the CPU it is `model` itself.
pub fn made_ready<M: Module>(model: M, dtype: FloatDType) -> M {
    model.map(&mut Ready(dtype))
}

struct Ready(FloatDType);

impl ModuleMapper for Ready {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if D != 4 || on_host(&param.val().device()) {
            return param;
        }
        param.map(|weight| {
            let weight = Tensor::<4>::from_dispatch(weight.into_dispatch());
            Tensor::from_dispatch(ready(weight, self.0).into_dispatch())
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::tensor::Device;
    use gauntlet_kernels::{NoiseKey, Stream};

    use super::*;
    use crate::{Arch, ModelConfig};

    /// The same images each time.
    fn images(shape: [usize; 4]) -> Tensor<4> {
        let ids: Vec<u32> = (0..shape[0] as u32).collect();
        let key = NoiseKey::new(1, Stream::EvalAttack);
        key.uniform(&ids, shape, 0.0, 1.0, &Device::flex())
    }

    /// Scores, and the gradients of their spread for the input and for all weights.
    fn pass(
        model: &dyn Classifier<4>,
        x: &Tensor<4>,
    ) -> (Vec<f32>, Tensor<4>, burn::tensor::Gradients) {
        let x = x.clone().autodiff().require_grad();
        let logits = model.logits(x.clone());
        let first = logits.clone().slice([0..x.dims()[0], 0..1]);
        let value = (logits.clone() - first).powi_scalar(2).mean();
        let mut gradients = value.backward();
        let gradient = x.grad_remove(&mut gradients).expect("the input is tracked");
        let logits = logits.inner().try_into_vec_as::<f32>().unwrap();
        (logits, gradient, gradients)
    }

    /// Depth costs: at random weights 89 % of the signs agree in a VGG, 99 % in a perceptron.
    #[test]
    fn networks_compute_in_bf16_what_they_compute_in_f32() {
        let device = Device::flex();
        for arch in Arch::ALL.into_iter().filter(|arch| arch.computes_in_bf16()) {
            let mut config = ModelConfig::of(arch);
            if arch.has_depth() {
                (config.depth, config.width) = (Some(10), Some(2));
            }
            config.mean = Some(vec![0.4, 0.5, 0.6]);
            let model = config.init([3, 32, 32], 10, 0, &device.clone().autodiff());
            let frozen = model.unwrap().valid();
            let half = Computing {
                model: &frozen,
                dtype: FloatDType::BF16,
            };
            let x = images([8, 3, 32, 32]);
            let (exact, ascent, _) = pass(&frozen, &x);
            let (rough, half_ascent, _) = pass(&half, &x);
            let scale = exact.iter().fold(0f32, |most, v| most.max(v.abs()));
            let far = exact.iter().zip(&rough).map(|(a, b)| (a - b).abs());
            let far = far.fold(0f32, f32::max) / scale;
            assert!(
                far > 0.0 && far < 0.05,
                "{arch}: {far} of the largest score"
            );
            // What a step in L-infinity takes of it.
            assert_eq!(half_ascent.dtype(), FloatDType::F32.into());
            let agree = (ascent * half_ascent).greater_elem(0.0).float().mean();
            let agree = agree.into_scalar::<f32>();
            assert!(
                agree > 0.85,
                "{arch}: {agree} of the gradient's signs agree"
            );
        }
    }

    #[test]
    fn weights_have_gradients_in_f32() {
        let device = Device::flex().autodiff();
        let config = ModelConfig::of(Arch::PreactResnet18);
        let model = config.init([3, 32, 32], 10, 0, &device).unwrap();
        let x = images([16, 3, 32, 32]);
        let half = Computing {
            model: &model,
            dtype: FloatDType::BF16,
        };
        let (_, _, rough) = pass(&half, &x);
        let rough = burn::optim::GradientsParams::from_grads(rough, &model);
        let (_, _, exact) = pass(&model, &x);
        let exact = burn::optim::GradientsParams::from_grads(exact, &model);
        assert_eq!(rough.len(), exact.len());
        let mut seen = 0;
        for tensor in crate::named::list(&model)
            .iter()
            .filter(|t| t.shape.len() == 4)
        {
            let [rough, exact] = [&rough, &exact].map(|all| all.get::<4>(tensor.id).unwrap());
            assert_eq!(rough.dtype(), FloatDType::F32.into());
            let cosine = (rough.clone() * exact.clone()).sum().into_scalar::<f32>()
                / (rough.powi_scalar(2).sum() * exact.powi_scalar(2).sum())
                    .sqrt()
                    .into_scalar::<f32>();
            assert!(cosine > 0.8, "{}: {cosine}", tensor.path);
            seen += 1;
        }
        assert_eq!(seen, 20);
    }
}
