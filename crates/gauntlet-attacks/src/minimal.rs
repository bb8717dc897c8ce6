use burn::tensor::{Int, Tensor};
use gauntlet_kernels::perturb::choose;
use gauntlet_models::Classifier;

use crate::{Attack, Goal, Noise, Norm, ThreatModel};

/// An attack that looks for the *nearest* adversarial example of each sample, whatever its distance.
pub trait MinimumNorm<const D: usize>: Send + Sync {
    /// The nearest adversarial example found, in bounds. The clean input where none was found, and where it is one itself: the
    /// model tells the two apart.
    ///
    /// # Shapes
    /// `x: [batch, ..]` in bounds, `y: [batch]`; the result as `x`.
    fn minimal(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<D>;
    /// The norm that is made small.
    fn norm(&self) -> Norm;
    /// Name with its parameters, as reports print it: `DDN-100`.
    fn name(&self) -> String;
}

/// A [`MinimumNorm`] attack as one within a threat model: its example where it is near enough, else the clean input. An example
/// that is too far away is never cut down to eps.
#[derive(Clone, Debug)]
pub struct Within<A> {
    /// How near is near enough. The attack makes this norm small, or one that bounds it.
    pub threat: ThreatModel,
    /// The attack.
    pub attack: A,
}

impl<const D: usize, A: MinimumNorm<D>> Attack<D> for Within<A> {
    fn perturb(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<D> {
        if x.dims().contains(&0) {
            return x;
        }
        let nearest = self.attack.minimal(model, x.clone(), y, noise);
        let sizes = self.threat.norm.lengths(nearest.clone() - x.clone());
        let near = sizes.lower_equal_elem(self.threat.eps.value()).float();
        let result = choose(&near, nearest, x.clone());
        debug_assert_eq!(self.threat.verify(&x, &result), Ok(()));
        result
    }

    fn name(&self) -> String {
        self.attack.name()
    }
}

/// Distance of what has not been found.
const NOWHERE: f32 = f32::MAX;

/// The nearest adversarial example of each sample so far.
pub(crate) struct Nearest<const D: usize> {
    norm: Norm,
    goal: Goal,
    clean: Tensor<D>,
    y: Tensor<1, Int>,
    /// The clean input where there is none.
    pub(crate) x: Tensor<D>,
    /// `f32::MAX` where there is none; 0 where the clean input is one.
    pub(crate) distance: Tensor<1>,
}

impl<const D: usize> Nearest<D> {
    /// `logits` are those of `clean`.
    pub(crate) fn new(
        norm: Norm,
        goal: Goal,
        clean: Tensor<D>,
        y: Tensor<1, Int>,
        logits: Tensor<2>,
    ) -> Self {
        let open = goal.reached(logits, y.clone()).neg().add_scalar(1.0);
        Self {
            norm,
            goal,
            x: clean.clone(),
            clean,
            y,
            distance: open.mul_scalar(NOWHERE),
        }
    }

    /// Keeps `x` (in bounds) where it is adversarial and nearer than what was found before. Returns where it is adversarial, as 1
    /// and 0, and how far `x` is from the clean input.
    pub(crate) fn keep(&mut self, x: Tensor<D>, logits: Tensor<2>) -> (Tensor<1>, Tensor<1>) {
        let reached = self.goal.reached(logits, self.y.clone());
        let distance = self.norm.lengths(x.clone() - self.clean.clone());
        let nearer = distance.clone().lower(self.distance.clone()).float() * reached.clone();
        self.x = choose(&nearer, x, self.x.clone());
        self.distance = choose(&nearer, distance.clone(), self.distance.clone());
        (reached, distance)
    }

    /// 1 where an adversarial example is known, else 0.
    pub(crate) fn found(&self) -> Tensor<1> {
        self.distance.clone().lower_elem(NOWHERE).float()
    }
}
