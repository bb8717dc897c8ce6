use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;
use gauntlet_models::Classifier;

/// What [`Eot`] averages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Average {
    /// Logits: the margin between two classes, and its gradient, are the means of theirs.
    #[default]
    Logits,
    /// Probabilities, given as their logarithms: what an ensemble of the draws predicts. Cross-entropy is then that of the mean
    /// probability (Salman et al. 2019, "Provably robust deep learning via adversarially trained smoothed classifiers").
    Probabilities,
}

/// A model that draws random numbers, as the mean of so many draws: expectation over transformation (Athalye et al. 2018,
/// "Synthesizing robust adversarial examples"; "Obfuscated gradients give a false sense of security").
///
/// A defence that randomises its input or itself gives each gradient a noise of its own, in which an attack loses its way, and
/// each prediction a second chance. Here every attack sees the mean of `draws` evaluations, in what it ascends and in what it
/// counts as misclassified. The model makes its draws itself: each call of its `logits` must be a new one.
///
/// ```
/// # use burn::tensor::{Int, Tensor};
/// # use gauntlet_attacks::{Attack, Classifier, Eot, Noise, Pgd};
/// # fn attack(model: &dyn Classifier<4>, x: Tensor<4>, y: Tensor<1, Int>, noise: &Noise) -> Tensor<4> {
/// let pgd = Pgd::new("linf:8/255".parse().unwrap(), 20);
/// pgd.perturb(&Eot::new(model, 16), x, y, noise)
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct Eot<'a, const D: usize> {
    /// The model.
    pub model: &'a dyn Classifier<D>,
    /// Evaluations for each call; at least 1 is made.
    pub draws: usize,
    /// What is averaged.
    pub average: Average,
}

impl<'a, const D: usize> Eot<'a, D> {
    /// The mean logits of `draws` evaluations.
    pub fn new(model: &'a dyn Classifier<D>, draws: usize) -> Self {
        Self {
            model,
            draws,
            average: Average::Logits,
        }
    }

    fn mean(&self, draw: impl Fn() -> Tensor<2>) -> Tensor<2> {
        let draws = self.draws.max(1);
        let sum = (1..draws).fold(draw(), |sum, _| sum + draw());
        sum.div_scalar(draws as f32)
    }
}

impl<const D: usize> Classifier<D> for Eot<'_, D> {
    fn logits(&self, x: Tensor<D>) -> Tensor<2> {
        match self.average {
            Average::Logits => self.mean(|| self.model.logits(x.clone())),
            Average::Probabilities => {
                let mean = self.mean(|| log_softmax(self.model.logits(x.clone()), 1).exp());
                // A probability of 0 has a logarithm far below all others instead of none.
                mean.clamp_min(1e-30).log()
            }
        }
    }

    fn features(&self, x: Tensor<D>) -> Tensor<2> {
        self.mean(|| self.model.features(x.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use burn::tensor::{Device, Int};
    use gauntlet_kernels::{NoiseKey, Stream};

    use super::*;
    use crate::testing::{Linear, values};
    use crate::{Attack, AttackLoss, Keep, Noise, Pgd, input_gradient};

    /// A linear model whose weights get new normal noise, of five times their size, in every call.
    struct Noisy {
        rows: Tensor<2>,
        calls: Cell<u32>,
    }

    impl Noisy {
        fn new(rows: [[f32; 4]; 2]) -> Self {
            Self {
                rows: Tensor::from_floats(rows, &Device::flex()),
                calls: Cell::new(0),
            }
        }
    }

    impl Classifier<2> for Noisy {
        fn logits(&self, x: Tensor<2>) -> Tensor<2> {
            let call = self.calls.replace(self.calls.get() + 1);
            let key = NoiseKey::new(1, Stream::Dropout).at(0, call);
            let noise = key.normal(&[0, 1], [2, 4], &x.device()).mul_scalar(5.0);
            x.matmul((self.rows.clone() + noise).transpose())
        }

        fn features(&self, x: Tensor<2>) -> Tensor<2> {
            x
        }
    }

    const ROWS: [[f32; 4]; 2] = [[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0]];

    #[test]
    fn means_are_those_of_the_draws() {
        let device = Device::flex();
        let x = Tensor::<2>::from_floats([[0.2, 0.9, 0.4, 0.1]], &device);
        let one_by_one = Noisy::new(ROWS);
        let draws: Vec<Vec<f32>> = (0..3)
            .map(|_| values(one_by_one.logits(x.clone())))
            .collect();
        let noisy = Noisy::new(ROWS);
        let mean = values(Eot::new(&noisy, 3).logits(x.clone()));
        assert_eq!(noisy.calls.get(), 3);
        for class in 0..2 {
            let expected = draws.iter().map(|draw| draw[class]).sum::<f32>() / 3.0;
            assert!((mean[class] - expected).abs() < 1e-5);
        }
        let noisy = Noisy::new(ROWS);
        let mut ensemble = Eot::new(&noisy, 3);
        ensemble.average = Average::Probabilities;
        let log = values(ensemble.logits(x));
        for class in 0..2 {
            let share = |draw: &Vec<f32>| 1.0 / (1.0 + (draw[1 - class] - draw[class]).exp());
            let expected = draws.iter().map(share).sum::<f32>() / 3.0;
            assert!((log[class].exp() - expected).abs() < 1e-5);
        }
        assert_eq!(
            values(
                Eot::<2>::new(&Linear::new(ROWS, [0.0; 2], &device), 0)
                    .features(Tensor::ones([1, 4], &device))
            ),
            [1.0; 4]
        );
    }

    /// The gradient's error falls with the square root of the draws, and signs come out right.
    #[test]
    fn gradients_of_the_mean_find_the_way_that_single_ones_lose() {
        let device = Device::flex();
        let x = Tensor::<2>::full([1, 4], 0.5, &device);
        let y = Tensor::<1, Int>::zeros([1], &device);
        let noise = Noise {
            key: NoiseKey::new(3, Stream::EvalAttack),
            samples: vec![0],
        };
        let noisy = Noisy::new(ROWS);
        let gradient = |draws| {
            let eot = Eot::new(&noisy, draws);
            let (gradient, ..) = input_gradient(&eot, x.clone(), y.clone(), AttackLoss::Margin);
            values(gradient)
        };
        let truth = [-2.0, 2.0, -2.0, 2.0];
        let error = |draws| {
            let squares = (0..30).flat_map(|_| gradient(draws)).enumerate();
            let squares = squares.map(|(i, g)| (g - truth[i % 4]).powi(2));
            (squares.sum::<f32>() / 120.0).sqrt()
        };
        // The difference of two rows of noise 5 has deviation 7.07.
        let (one, many) = (error(1), error(100));
        assert!(
            (one - 7.07).abs() < 1.4 && (many - 0.707).abs() < 0.14,
            "{one} {many}"
        );

        let attack = Pgd {
            keep: Keep::Last,
            ..Pgd::new("linf:0.1".parse().unwrap(), 1)
        };
        let found = attack.perturb(&Eot::new(&noisy, 400), x.clone(), y, &noise) - x;
        for (moved, truth) in values(found).iter().zip(truth) {
            assert!((moved - 0.1 * truth.signum()).abs() < 1e-6);
        }
    }
}
