//! Transfer: an attack on a model that the attacker has, tried on the one that is attacked (Papernot, McDaniel & Goodfellow
//! 2016, "Transferability in machine learning").

use std::sync::Arc;

use burn::tensor::{Int, Tensor};
use gauntlet_models::Classifier;

use crate::{Attack, Noise};

/// An attack on `surrogate` instead of the model it is given, which is asked nothing at all: zero queries, no gradient.
///
/// That the surrogate falls is no aim in itself. An attack that stops there, or returns the nearest example it finds, transfers
/// badly; one that goes on to the highest loss within the ball (PGD that keeps the last iterate, on the margin) transfers well.
pub struct Transfer<const D: usize> {
    /// The model that is differentiated: untracked, in eval mode, on the device of the inputs. Several are an [`Ensemble`].
    pub surrogate: Arc<dyn Classifier<D> + Send + Sync>,
    /// The attack on it.
    pub attack: Box<dyn Attack<D>>,
    /// What reports call the surrogate.
    pub surrogate_name: String,
}

impl<const D: usize> Transfer<D> {
    /// `attack` on `surrogate`.
    pub fn new(
        surrogate_name: impl Into<String>,
        surrogate: Arc<dyn Classifier<D> + Send + Sync>,
        attack: impl Attack<D> + 'static,
    ) -> Self {
        Self {
            surrogate,
            attack: Box::new(attack),
            surrogate_name: surrogate_name.into(),
        }
    }
}

impl<const D: usize> Attack<D> for Transfer<D> {
    fn perturb(
        &self,
        _: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<D> {
        self.attack.perturb(&*self.surrogate, x, y, noise)
    }

    fn name(&self) -> String {
        format!("{} on {}", self.attack.name(), self.surrogate_name)
    }
}

/// Several models as one, whose logits are the mean of theirs: what fools all of them transfers better (Liu, Chen, Liu & Song
/// 2017, "Delving into transferable adversarial examples and black-box attacks", which averages probabilities; Dong et al. 2018,
/// "Boosting adversarial attacks with momentum", found logits to be better).
#[derive(Clone)]
pub struct Ensemble<const D: usize> {
    first: Arc<dyn Classifier<D> + Send + Sync>,
    others: Vec<Arc<dyn Classifier<D> + Send + Sync>>,
}

impl<const D: usize> Ensemble<D> {
    /// Models of the same classes in the same order; at least one.
    pub fn new(
        first: Arc<dyn Classifier<D> + Send + Sync>,
        others: Vec<Arc<dyn Classifier<D> + Send + Sync>>,
    ) -> Self {
        Self { first, others }
    }
}

impl<const D: usize> Classifier<D> for Ensemble<D> {
    fn logits(&self, x: Tensor<D>) -> Tensor<2> {
        let mut sum = self.first.logits(x.clone());
        for model in &self.others {
            sum = sum + model.logits(x.clone());
        }
        sum.div_scalar(1.0 + self.others.len() as f32)
    }

    /// The features of all, side by side.
    fn features(&self, x: Tensor<D>) -> Tensor<2> {
        let mut features = vec![self.first.features(x.clone())];
        features.extend(self.others.iter().map(|model| model.features(x.clone())));
        Tensor::cat(features, 1)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::black_box::{fallen, images, labels, noise};
    use crate::testing::{Linear, LinearImages, values};
    use crate::{AttackLoss, Goal, Init, Keep, Pgd, ThreatModel};

    fn pgd(threat: &ThreatModel) -> Pgd {
        Pgd {
            threat: threat.clone(),
            loss: AttackLoss::Margin,
            steps: 20,
            step_size: threat.eps.value() / 4.0,
            restarts: 1,
            init: Init::Uniform,
            keep: Keep::Last,
            goal: Goal::Untargeted,
            sparsity: Pgd::SPARSITY,
        }
    }

    /// A target that cannot be asked.
    struct Closed;

    impl<const D: usize> Classifier<D> for Closed {
        fn logits(&self, _: Tensor<D>) -> Tensor<2> {
            panic!("the target is asked")
        }

        fn features(&self, _: Tensor<D>) -> Tensor<2> {
            panic!("the target is asked")
        }
    }

    /// A model that sees its input rounded to eighths: its gradient is zero everywhere.
    struct Rounded<M>(Arc<M>);

    impl<M: Classifier<4>> Classifier<4> for Rounded<M> {
        fn logits(&self, x: Tensor<4>) -> Tensor<2> {
            self.0.logits(x.mul_scalar(8.0).round().div_scalar(8.0))
        }

        fn features(&self, x: Tensor<4>) -> Tensor<2> {
            self.0.features(x)
        }
    }

    /// The model without its rounding is the surrogate of the one whose gradient is zero.
    #[test]
    fn a_masked_model_falls_to_its_surrogate() {
        let shape = [8, 3, 6, 6];
        let x = images(shape, 0.1, 0.9);
        let surrogate = Arc::new(LinearImages::random(2, 4, shape));
        let target = Rounded(surrogate.clone());
        let y = labels(&target, &x);
        let threat: ThreatModel = "linf:0.1".parse().unwrap();
        let direct = pgd(&threat).perturb(&target, x.clone(), y.clone(), &noise(0..8));
        let stands = |found| {
            let fallen = fallen(Goal::Untargeted, &target, found, &y);
            fallen.into_iter().filter(|fallen| !fallen).count()
        };
        let transfer = Transfer::new("smooth", surrogate.clone(), pgd(&threat));
        let found = transfer.perturb(&Closed, x.clone(), y.clone(), &noise(0..8));
        assert_eq!(threat.verify(&x, &found), Ok(()));
        let same = pgd(&threat).perturb(&*surrogate, x.clone(), y.clone(), &noise(0..8));
        assert_eq!(values(found.clone()), values(same));
        assert_eq!((stands(found), stands(direct) > 4), (0, true));
        assert_eq!(transfer.name(), "PGD-20 on smooth");
    }

    #[test]
    fn an_ensemble_is_the_mean_of_its_logits() {
        let device = Device::flex();
        let model = |a: f32| Arc::new(Linear::new([[a, 1.0], [0.0, a]], [a, 0.0], &device));
        let x = Tensor::<2>::from_floats([[0.5, 0.25]], &device);
        let both = Ensemble::new(model(1.0), vec![model(3.0)]);
        // a = 1: (1.75, 0.25); a = 3: (4.75, 0.75).
        assert_eq!(values(both.logits(x.clone())), [3.25, 0.5]);
        assert_eq!(values(both.features(x.clone())), [0.5, 0.25, 0.5, 0.25]);
        assert_eq!(
            values(Ensemble::new(model(1.0), vec![]).logits(x)),
            [1.75, 0.25]
        );
    }

    /// Networks as they are trained can be shared.
    #[test]
    fn networks_can_be_surrogates() {
        fn shared<M: Classifier<4> + Send + Sync>() {}
        shared::<gauntlet_models::Network>();
    }

    /// What fools the mean of two models is found through both of their gradients.
    #[test]
    fn an_ensemble_can_be_attacked() {
        let shape = [6, 1, 4, 4];
        let x = images(shape, 0.3, 0.7);
        let models = [1, 2].map(|seed| Arc::new(LinearImages::random(seed, 3, shape)));
        let [first, second] = models.clone();
        let both = Arc::new(Ensemble::new(first, vec![second]));
        let y = labels(&*both, &x);
        let threat: ThreatModel = "linf:0.3".parse().unwrap();
        let transfer = Transfer::new("two", both.clone(), pgd(&threat));
        let found = transfer.perturb(&Closed, x.clone(), y.clone(), &noise(0..6));
        let fallen = fallen(Goal::Untargeted, &*both, found, &y);
        assert!(fallen.iter().all(|&fallen| fallen));
    }
}
