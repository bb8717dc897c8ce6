use burn::tensor::{Device, Int, Tensor};
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

    /// Keeps `x` (in bounds) where it is adversarial and nearer than what was found before. Returns where it is adversarial, as
    /// 1 and 0, and how far `x` is from the clean input.
    pub(crate) fn keep(&mut self, x: Tensor<D>, logits: Tensor<2>) -> (Tensor<1>, Tensor<1>) {
        let distance = self.norm.lengths(x.clone() - self.clean.clone());
        let reached = self.keep_at(distance.clone(), x, logits);
        (reached, distance)
    }

    /// [`Nearest::keep`] by any measure of distance; it must be the same at every call.
    pub(crate) fn keep_at(
        &mut self,
        distance: Tensor<1>,
        x: Tensor<D>,
        logits: Tensor<2>,
    ) -> Tensor<1> {
        let reached = self.goal.reached(logits, self.y.clone());
        let nearer = distance.clone().lower(self.distance.clone()).float() * reached.clone();
        self.x = choose(&nearer, x, self.x.clone());
        self.distance = choose(&nearer, distance, self.distance.clone());
        reached
    }

    /// 1 where an adversarial example is known, else 0.
    pub(crate) fn found(&self) -> Tensor<1> {
        self.distance.clone().lower_elem(NOWHERE).float()
    }

    pub(crate) fn clean(&self) -> Tensor<D> {
        self.clean.clone()
    }

    pub(crate) fn y(&self) -> Tensor<1, Int> {
        self.y.clone()
    }

    /// These rows of the batch.
    pub(crate) fn select(&self, rows: Tensor<1, Int>) -> Self {
        Self {
            norm: self.norm,
            goal: self.goal,
            clean: self.clean.clone().select(0, rows.clone()),
            y: self.y.clone().select(0, rows.clone()),
            x: self.x.clone().select(0, rows.clone()),
            distance: self.distance.clone().select(0, rows),
        }
    }

    /// One batch behind the other.
    pub(crate) fn followed_by(self, other: Self) -> Self {
        Self {
            norm: self.norm,
            goal: self.goal,
            clean: Tensor::cat(vec![self.clean, other.clean], 0),
            y: Tensor::cat(vec![self.y, other.y], 0),
            x: Tensor::cat(vec![self.x, other.x], 0),
            distance: Tensor::cat(vec![self.distance, other.distance], 0),
        }
    }
}

/// From `first` to `last` along half a cosine, at step `step` of `steps`.
pub(crate) fn cosine(first: f32, last: f32, step: usize, steps: usize) -> f32 {
    let share = step as f32 / steps.max(1) as f32;
    last + 0.5 * (first - last) * (1.0 + (std::f32::consts::PI * share).cos())
}

/// Row numbers as a tensor.
pub(crate) fn row_index(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    Tensor::from_ints(rows.as_slice(), device)
}

/// Rows where `mask` is 1, and rows where it is not. Waits for the device.
pub(crate) fn split_rows(mask: Tensor<1>) -> (Vec<usize>, Vec<usize>) {
    let mask: Vec<f32> = mask.try_into_vec_as().expect("a mask that was computed");
    (0..mask.len()).partition(|&row| mask[row] > 0.5)
}

/// `places[row]` is where `row` belongs; returns the row that belongs at each place.
pub(crate) fn row_order(places: &[usize]) -> Vec<usize> {
    let mut rows = vec![0; places.len()];
    for (row, &place) in places.iter().enumerate() {
        rows[place] = row;
    }
    rows
}
