use burn::tensor::{Int, Tensor};
use gauntlet_kernels::perturb::{choose, l1_norms, l2_norms, linf_norms, per_sample, unit_l2};
use gauntlet_models::Classifier;

use crate::minimal::{Nearest, cosine};
use crate::{AttackLoss, Goal, MinimumNorm, Noise, Norm, input_gradient};

/// Divisors are at least this.
const TINY: f32 = 1e-12;

/// Steps of the searches for thresholds. Those in L1 are Newton's and halvings in turn.
const SEARCH_STEPS: usize = 24;

/// Solutions for the scale in L2, each with more values at a face.
const SCALE_STEPS: usize = 10;

/// Halvings between the clean input and a start.
const START_STEPS: usize = 10;

/// Fast minimum-norm attack (Pintor et al. 2021, "Fast minimum-norm adversarial attacks through adaptive norm constraints",
/// algorithm 1) for all four norms.
///
/// Each step follows the gradient of the margin (divided by its L2 norm) and is projected on a ball around the clean input. While
/// no example is known, its radius is the distance to the boundary as the gradient has it, `|δ|_p + margin / |gradient|_q`; then
/// it shrinks by `1 - gamma` where the example is adversarial and grows by `1 + gamma` where it is not. In L0 it is a number of
/// pixels, begins with 1, and changes by 1 at least.
///
/// Differs from the paper in three points. A step is projected on what ball and box have in common, not on one after the other:
/// near the faces, values that can go no farther would else keep the others from being used. The first radii are by `gamma`
/// longer than the distance to the boundary, which would else be approached for ever and not crossed. And L0 counts pixels with
/// all their channels, as [`Norm::L0`] does.
///
/// A step costs one forward and one backward pass. The host never waits within a run.
#[derive(Clone, Debug)]
pub struct Fmn {
    /// The norm that is made small.
    pub norm: Norm,
    /// What is looked for.
    pub goal: Goal,
    /// Smallest and largest legal input value.
    pub bounds: (f32, f32),
    /// Gradient steps.
    pub steps: usize,
    /// Length of the first step, in input units (L2).
    pub step_size: f32,
    /// Length that steps come down to, along half a cosine.
    pub final_step_size: f32,
    /// How fast the radius changes at first, in (0, 1).
    pub gamma: f32,
    /// How fast it changes in the end, as `gamma`'s last value along half a cosine.
    pub final_gamma: f32,
}

impl Fmn {
    /// 1000 steps of length 1 to 0.01, `gamma` 0.05 to 0.001, for inputs in [0, 1].
    pub fn new(norm: Norm, goal: Goal) -> Self {
        Self {
            norm,
            goal,
            bounds: (0.0, 1.0),
            steps: 1000,
            step_size: 1.0,
            final_step_size: 0.01,
            gamma: 0.05,
            final_gamma: 0.001,
        }
    }

    /// [`MinimumNorm::minimal`] that begins at a known example: where `start` is adversarial, at the boundary between the clean
    /// input and it, found by halving. What comes back is no farther than the point it began with.
    ///
    /// # Shapes
    /// `x` and `start`: `[batch, ..]` in bounds, `y: [batch]`; the result as `x`.
    pub fn minimal_from<const D: usize>(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        start: Tensor<D>,
    ) -> Tensor<D> {
        if x.dims().contains(&0) {
            return x;
        }
        let mut nearest = self.nearest(model, &x, &y);
        let whole = start - x.clone();
        let point = |share: &Tensor<1>| {
            let part = whole.clone() * per_sample(share.clone(), x.dims());
            (x.clone() + part).clamp(self.bounds.0, self.bounds.1)
        };
        let mut far = nearest.distance.ones_like();
        let mut near = far.zeros_like();
        let logits = model.logits(point(&far));
        let (adversarial, _) = nearest.keep(point(&far), logits);
        for _ in 0..START_STEPS {
            let middle = (near.clone() + far.clone()).mul_scalar(0.5);
            let logits = model.logits(point(&middle));
            let (reached, _) = nearest.keep(point(&middle), logits);
            far = choose(&reached, middle.clone(), far);
            near = choose(&reached, near, middle);
        }
        let first = choose(&adversarial, point(&far), x.clone());
        self.run(model, first, nearest)
    }

    fn nearest<const D: usize>(
        &self,
        model: &dyn Classifier<D>,
        x: &Tensor<D>,
        y: &Tensor<1, Int>,
    ) -> Nearest<D> {
        let logits = model.logits(x.clone());
        Nearest::new(self.norm, self.goal, x.clone(), y.clone(), logits)
    }

    fn run<const D: usize>(
        &self,
        model: &dyn Classifier<D>,
        first: Tensor<D>,
        mut nearest: Nearest<D>,
    ) -> Tensor<D> {
        let (x, y) = (nearest.clean(), nearest.y());
        let up = x.clone().neg() + self.bounds.1;
        let down = x.clone() - self.bounds.0;
        let longest = self.longest(up.clone().max_pair(down.clone()));
        let mut radius = match self.norm {
            Norm::L0 => longest.ones_like(),
            _ => longest.clone(),
        };
        let mut point = first;
        for step in 0..self.steps {
            let (gradient, margin, logits) =
                input_gradient(model, point.clone(), y.clone(), AttackLoss::Margin);
            let gradient = match self.goal {
                Goal::Untargeted => gradient,
                Goal::Targeted => gradient.neg(),
            };
            let known = nearest.found();
            let (reached, size) = nearest.keep(point.clone(), logits);
            let gamma = cosine(self.gamma, self.final_gamma, step, self.steps);
            let shrunk = self
                .shrunk(&radius, gamma)
                .min_pair(nearest.distance.clone());
            let way = margin.abs() / self.dual(gradient.clone()).clamp_min(TINY);
            let grown = self.grown(&radius, gamma, &known, size + way);
            radius = choose(&reached, shrunk, grown).min_pair(longest.clone());

            let length = cosine(self.step_size, self.final_step_size, step, self.steps);
            let delta = point - x.clone() + unit_l2(gradient).mul_scalar(length);
            let delta = self.project(delta, &radius, &up, &down);
            point = (x.clone() + delta).clamp(self.bounds.0, self.bounds.1);
        }
        let logits = model.logits(point.clone());
        nearest.keep(point, logits);
        nearest.x
    }

    fn shrunk(&self, radius: &Tensor<1>, gamma: f32) -> Tensor<1> {
        let share = radius.clone().mul_scalar(1.0 - gamma);
        match self.norm {
            Norm::L0 => (radius.clone() - 1.0)
                .min_pair(share.floor())
                .clamp_min(1.0),
            _ => share,
        }
    }

    fn grown(
        &self,
        radius: &Tensor<1>,
        gamma: f32,
        known: &Tensor<1>,
        boundary: Tensor<1>,
    ) -> Tensor<1> {
        let share = radius.clone().mul_scalar(1.0 + gamma);
        match self.norm {
            Norm::L0 => (radius.clone() + 1.0).max_pair(share.floor()),
            _ => choose(known, share, boundary.mul_scalar(1.0 + gamma)),
        }
    }

    /// The largest perturbation that stays in the box, which reaches `room` far: a radius beyond it would grow without end.
    fn longest<const D: usize>(&self, room: Tensor<D>) -> Tensor<1> {
        match self.norm {
            Norm::Linf => linf_norms(room),
            Norm::L2 => l2_norms(room),
            Norm::L1 => l1_norms(room),
            Norm::L0 => {
                let [_, _, places] = by_place(room.dims());
                linf_norms(room).zeros_like() + places as f32
            }
        }
    }

    /// The norm of a gradient that tells how far a boundary is. None is needed in L0.
    fn dual<const D: usize>(&self, gradient: Tensor<D>) -> Tensor<1> {
        match self.norm {
            Norm::Linf => l1_norms(gradient),
            Norm::L2 | Norm::L0 => l2_norms(gradient),
            Norm::L1 => linf_norms(gradient),
        }
    }

    /// The nearest perturbation in the ball of each row's radius that raises a value by no more than `up` and lowers it by no more
    /// than `down`.
    fn project<const D: usize>(
        &self,
        delta: Tensor<D>,
        radius: &Tensor<1>,
        up: &Tensor<D>,
        down: &Tensor<D>,
    ) -> Tensor<D> {
        let sign = delta.clone().sign();
        let room = up.clone() * sign.clone().clamp_min(0.0)
            + down.clone() * sign.clone().neg().clamp_min(0.0);
        let size = delta.abs();
        let size = match self.norm {
            Norm::Linf => project_linf(size, room, radius),
            Norm::L2 => project_l2(size, room, radius),
            Norm::L1 => project_l1(size, room, radius),
            Norm::L0 => project_l0(size, room, radius),
        };
        size * sign
    }
}

impl<const D: usize> MinimumNorm<D> for Fmn {
    fn minimal(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        _noise: &Noise,
    ) -> Tensor<D> {
        if x.dims().contains(&0) {
            return x;
        }
        let nearest = self.nearest(model, &x, &y);
        self.run(model, x, nearest)
    }

    fn norm(&self) -> Norm {
        self.norm
    }

    fn name(&self) -> String {
        format!("FMN-{}", self.steps)
    }
}

/// `[batch, channels, places]` of a batch of images, `[batch, 1, features]` of one of rows.
fn by_place<const D: usize>(dims: [usize; D]) -> [usize; 3] {
    match D {
        0..=2 => [dims[0], 1, dims[1..].iter().product()],
        _ => [dims[0], dims[1], dims[2..].iter().product()],
    }
}

/// The nearest point to `size` with values in [0, `room`] and of at most `radius`.
///
/// # Shapes
/// `size` and `room`: `[batch, ..]`, not negative; `radius: [batch]`.
fn project_linf<const D: usize>(size: Tensor<D>, room: Tensor<D>, radius: &Tensor<1>) -> Tensor<D> {
    let most = size.zeros_like() + per_sample(radius.clone(), size.dims());
    size.min_pair(room).min_pair(most)
}

/// The nearest point to `size` of an L2 length of at most `radius` and with values in [0, `room`]: `min(s * size, room)` for the
/// largest `s` up to 1 with which it fits. Solving for `s` with those values at their room that were there before gives a larger
/// `s`, still not too large, until nothing changes.
///
/// # Shapes
/// As [`project_linf`].
fn project_l2<const D: usize>(size: Tensor<D>, room: Tensor<D>, radius: &Tensor<1>) -> Tensor<D> {
    let dims = size.dims();
    let shape = [dims[0], dims[1..].iter().product()];
    let (size, room) = (size.reshape(shape), room.reshape(shape));
    let squares = radius.clone().unsqueeze_dim::<2>(1).square();
    let mut scale = squares.zeros_like();
    for _ in 0..SCALE_STEPS {
        let free = (room.clone() - size.clone() * scale.clone())
            .greater_elem(0.0)
            .float();
        let used = (room.clone() * (free.clone().neg() + 1.0))
            .square()
            .sum_dim(1);
        let slope = (size.clone() * free)
            .square()
            .sum_dim(1)
            .clamp_min(TINY * TINY);
        let root = ((squares.clone() - used).clamp_min(0.0) / slope).sqrt();
        scale = scale.max_pair(root).clamp_max(1.0);
    }
    (size * scale).min_pair(room).reshape(dims)
}

/// The nearest point to `size` with a sum of at most `radius` and values in [0, `room`]: `min(max(size - t, 0), room)` for the
/// least `t` with which it fits. `t` is searched for by Newton's method (exact once no value changes sides) within an interval
/// that is halved now and then; sorting, which the host does for GPU backends, is not needed.
///
/// # Shapes
/// As [`project_linf`].
fn project_l1<const D: usize>(size: Tensor<D>, room: Tensor<D>, radius: &Tensor<1>) -> Tensor<D> {
    let dims = size.dims();
    let shape = [dims[0], dims[1..].iter().product()];
    let (size, room) = (size.reshape(shape), room.reshape(shape));
    let radius = radius.clone().unsqueeze_dim::<2>(1);
    let at = |t: &Tensor<2>| (size.clone() - t.clone()).clamp_min(0.0);
    let mut low = radius.zeros_like();
    let mut high = size.clone().max_dim(1);
    let mut t = low.clone();
    for step in 0..SEARCH_STEPS {
        let above = at(&t);
        let inside = above.clone().greater_elem(0.0).float()
            * (room.clone() - above.clone()).greater_elem(0.0).float();
        let excess = above.min_pair(room.clone()).sum_dim(1) - radius.clone();
        let over = excess.clone().greater_elem(0.0).float().squeeze_dim::<1>(1);
        low = choose(&over, t.clone(), low);
        high = choose(&over, high, t.clone());
        let newton = t + excess / inside.sum_dim(1).clamp_min(1.0);
        let middle = (low.clone() + high.clone()).mul_scalar(0.5);
        t = if step % 3 == 2 {
            middle
        } else {
            let out = newton.clone().lower(low.clone()).float()
                + newton.clone().greater(high.clone()).float();
            choose(&out.squeeze_dim::<1>(1), middle, newton)
        };
    }
    let found = at(&t).min_pair(room);
    let sum = found.clone().sum_dim(1).clamp_min(TINY);
    // What rounding, or a search that came to no end, left over.
    let scale = (radius / sum).clamp_max(1.0);
    (found * scale).reshape(dims)
}

/// The nearest point to `size` with no more than `radius` places that are not zero, and values in [0, `room`]: a place is kept
/// by how much nearer it comes, the sum of `size² - (size - kept)²` over its channels; of equal ones the first.
///
/// The threshold is found by halving; places that no halving tells apart are equal.
///
/// # Shapes
/// As [`project_linf`].
fn project_l0<const D: usize>(size: Tensor<D>, room: Tensor<D>, radius: &Tensor<1>) -> Tensor<D> {
    let dims = size.dims();
    let shape = by_place(dims);
    let kept = size.clone().min_pair(room);
    let gain = kept.clone() * (size.mul_scalar(2.0) - kept.clone());
    let gain: Tensor<2> = gain.reshape(shape).sum_dim(1).squeeze_dim(1);
    let radius = radius.clone().unsqueeze_dim::<2>(1);
    let above = |t: &Tensor<2>| (gain.clone() - t.clone()).greater_elem(0.0).float();
    let mut high = gain.clone().max_dim(1);
    let mut low = high.zeros_like();
    for _ in 0..SEARCH_STEPS {
        let middle = (low.clone() + high.clone()).mul_scalar(0.5);
        let many = above(&middle).sum_dim(1).greater(radius.clone()).float();
        let many = many.squeeze_dim::<1>(1);
        low = choose(&many, middle.clone(), low);
        high = choose(&many, high, middle);
    }
    let sure = above(&high);
    let equal = above(&low) - sure.clone();
    let left = radius - sure.clone().sum_dim(1);
    let first = (equal.clone().cumsum(1) - left)
        .lower_equal_elem(0.0)
        .float();
    let keep: Tensor<3> = (sure + equal * first).unsqueeze_dim(1);
    (kept.reshape(shape) * keep).reshape(dims)
}
