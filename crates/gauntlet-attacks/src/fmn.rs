use burn::tensor::{Int, Tensor};
use gauntlet_kernels::perturb::{choose, l1_norms, l2_norms, linf_norms, per_sample, unit_l2};
use gauntlet_models::Classifier;

use crate::box_projection::sums;
use crate::minimal::{Nearest, cosine};
use crate::{AttackLoss, Goal, MinimumNorm, Noise, Norm, input_gradient};

/// Divisors are at least this.
const TINY: f32 = 1e-12;

/// Steps of the searches for thresholds. In L1 the first of them are [`HALVINGS`], the others Newton's.
const SEARCH_STEPS: usize = 24;

/// So many halvings leave few values that might change sides.
const HALVINGS: usize = 18;

/// Solutions for the scale in L2, each with more values at a face.
const SCALE_STEPS: usize = 10;

/// Halvings between the clean input and a start.
const START_STEPS: usize = 10;

/// Fast minimum-norm attack (Pintor et al. 2021, "Fast minimum-norm adversarial attacks through adaptive norm constraints",
/// algorithm 1) for all four norms.
///
/// Each step follows the gradient of the margin (divided by its L2 norm) and is projected on a ball around the clean input.
/// While no example is known, its radius is the distance to the boundary as the gradient has it, `|δ|_p + margin /
/// |gradient|_q`; then it shrinks by `1 - gamma` where the example is adversarial and grows by `1 + gamma` where it is not. In
/// L0 it is a number of pixels, begins with 1, and changes by 1 at least.
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
    /// 1000 steps, `gamma` from 0.05 to 0.001, for inputs in [0, 1]. Steps go from 1 to 0.01 in L1 and L2 and from 10 to 0.1 in
    /// L∞ and L0.
    ///
    /// Of step sizes from 0.3 to 300, with 200 steps on the first 20 images of three networks (two robust ones of MNIST, one of
    /// CIFAR-10), mean ratios to the nearest example that any of them found: in L1 and L2 steps of 1 gave 1.08 to 1.47 and
    /// steps of 10 1.04 to 1.46, with the worst of all being 2.5 and 4.0. In L0 steps of 10 gave 1.22 to 1.35 and steps of 1 up
    /// to 2.1. In L∞ steps of 10 gave 1.11 to 1.37 and steps of 1 up to 2.3; MNIST alone would have it 100.
    pub fn new(norm: Norm, goal: Goal) -> Self {
        let step_size = match norm {
            Norm::L1 | Norm::L2 => 1.0,
            Norm::Linf | Norm::L0 => 10.0,
        };
        Self {
            norm,
            goal,
            bounds: (0.0, 1.0),
            steps: 1000,
            step_size,
            final_step_size: 0.01 * step_size,
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

    /// The nearest perturbation in the ball of each row's radius that raises a value by no more than `up` and lowers it by no
    /// more than `down`.
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

/// The nearest point to `size` of an L2 length of at most `radius` and with values in [0, `room`]: `min(s * size, room)` for
/// the largest `s` up to 1 with which it fits. Solving for `s` with those values at their room that were there before gives a
/// larger `s`, still not too large, until nothing changes.
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
        let used = sums((room.clone() * (free.clone().neg() + 1.0)).square());
        let slope = sums((size.clone() * free).square()).clamp_min(TINY * TINY);
        let root = ((squares.clone() - used).clamp_min(0.0) / slope).sqrt();
        scale = scale.max_pair(root).clamp_max(1.0);
    }
    (size * scale).min_pair(room).reshape(dims)
}

/// The nearest point to `size` with a sum of at most `radius` and values in [0, `room`]: `min(max(size - t, 0), room)` for the
/// least `t` with which it fits. `t` is searched for by halving an interval, then by Newton's method in it, which is exact once
/// no value changes sides; sorting, which the host does for GPU backends, is not needed.
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
        let excess = sums(above.min_pair(room.clone())) - radius.clone();
        let over = excess.clone().greater_elem(0.0).float().squeeze_dim::<1>(1);
        low = choose(&over, t.clone(), low);
        high = choose(&over, high, t.clone());
        let newton = t + excess / sums(inside).clamp_min(1.0);
        let middle = (low.clone() + high.clone()).mul_scalar(0.5);
        t = if step < HALVINGS {
            middle
        } else {
            let out = newton.clone().lower(low.clone()).float()
                + newton.clone().greater(high.clone()).float();
            choose(&out.squeeze_dim::<1>(1), middle, newton)
        };
    }
    let found = at(&t).min_pair(room);
    let sum = sums(found.clone()).clamp_min(TINY);
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
        let many = sums(above(&middle)).greater(radius.clone()).float();
        let many = many.squeeze_dim::<1>(1);
        low = choose(&many, middle.clone(), low);
        high = choose(&many, high, middle);
    }
    let sure = above(&high);
    let equal = above(&low) - sure.clone();
    let left = radius - sums(sure.clone());
    let first = (equal.clone().cumsum(1) - left)
        .lower_equal_elem(0.0)
        .float();
    let keep: Tensor<3> = (sure + equal * first).unsqueeze_dim(1);
    (kept.reshape(shape) * keep).reshape(dims)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use gauntlet_kernels::{NoiseKey, Stream};

    use super::*;
    use crate::testing::{Linear, LinearImages, values};

    const ROWS: usize = 60;
    const N: usize = 12;

    /// Sizes up to 1, rooms of which a fifth are 0, and radii from none to more than enough for the `longest`.
    fn problems(longest: f32) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let key = NoiseKey::new(4, Stream::EvalAttack);
        let rows: Vec<u32> = (0..ROWS as u32).collect();
        let draw = |r, low| {
            let shape = [ROWS, N];
            values(
                key.restart(r)
                    .uniform(&rows, shape, low, 1.0, &Device::flex()),
            )
        };
        let room = draw(1, -0.25).into_iter().map(|v| v.max(0.0)).collect();
        let radius = (0..ROWS).map(|i| longest * i as f32 / ROWS as f32);
        (draw(0, 0.0), room, radius.collect())
    }

    type Project = fn(Tensor<2>, Tensor<2>, &Tensor<1>) -> Tensor<2>;

    fn projected(project: Project, size: &[f32], room: &[f32], radius: &[f32]) -> Vec<f32> {
        let device = Device::flex();
        let tensor = |v: &[f32]| {
            let data = TensorData::new(v.to_vec(), [radius.len(), v.len() / radius.len()]);
            Tensor::<2>::from_data(data, &device)
        };
        let radius = Tensor::from_floats(radius, &device);
        values(project(tensor(size), tensor(room), &radius))
    }

    /// The optimality conditions leave one number open in each norm, which is bisected in `f64`: how much is subtracted in L1,
    /// by what sizes are scaled in L2.
    #[test]
    fn projections_are_those_of_the_optimality_conditions() {
        type Point = fn(f64, f64, f64) -> f64;
        type Size = fn(f64) -> f64;
        let cases: [(Project, f32, Point, Size); 2] = [
            (
                project_l1,
                6.0,
                |v, room, t| (v - t).max(0.0).min(room),
                |v| v,
            ),
            (
                project_l2,
                2.0,
                |v, room, t| (v * (1.0 - t)).min(room),
                |v| v * v,
            ),
        ];
        for (case, (project, longest, point, size_of)) in cases.into_iter().enumerate() {
            let (size, room, radius) = problems(longest);
            let found = projected(project, &size, &room, &radius);
            for row in 0..ROWS {
                let at = |t: f64| -> Vec<f64> {
                    let of = |i: usize| point(f64::from(size[i]), f64::from(room[i]), t);
                    (row * N..(row + 1) * N).map(of).collect()
                };
                let most = f64::from(radius[row]).powi(case as i32 + 1);
                let length = |v: Vec<f64>| v.into_iter().map(size_of).sum::<f64>();
                let (mut low, mut high) = (0.0, 1.0);
                if length(at(0.0)) <= most {
                    high = 0.0;
                }
                for _ in 0..60 {
                    let middle = 0.5 * (low + high);
                    if length(at(middle)) > most {
                        low = middle;
                    } else {
                        high = middle;
                    }
                }
                for (found, expected) in found[row * N..].iter().zip(at(high)) {
                    let off = (f64::from(*found) - expected).abs();
                    assert!(off < 1e-5, "case {case} row {row}: {found} for {expected}");
                }
            }
        }
    }

    /// All subsets of so many places, by brute force.
    #[test]
    fn in_l0_the_nearest_of_all_subsets_is_kept() {
        let (size, room, _) = problems(1.0);
        let radius: Vec<f32> = (0..ROWS).map(|row| (row % 5) as f32 * 3.0).collect();
        let found = projected(project_l0, &size, &room, &radius);
        for row in 0..ROWS {
            let at = |i: usize| (size[row * N + i], room[row * N + i], found[row * N + i]);
            let nearest = (0u32..1 << N)
                .filter(|set| set.count_ones() as f32 <= radius[row])
                .map(|set| {
                    let off = |i: usize| {
                        let (size, room, _) = at(i);
                        size - if set >> i & 1 == 1 {
                            size.min(room)
                        } else {
                            0.0
                        }
                    };
                    (0..N).map(|i| off(i).powi(2)).sum::<f32>()
                })
                .fold(f32::INFINITY, f32::min);
            let distance: f32 = (0..N).map(|i| (at(i).0 - at(i).2).powi(2)).sum();
            let places = (0..N).filter(|i| at(*i).2 > 0.0).count();
            assert!(places as f32 <= radius[row] && (0..N).all(|i| at(i).2 <= at(i).1));
            assert!(
                (distance - nearest).abs() < 1e-5,
                "{distance} for {nearest}"
            );
        }
    }

    #[test]
    fn of_equal_places_the_first_are_kept() {
        let found = projected(project_l0, &[1.0; 6], &[0.5; 6], &[2.0]);
        assert_eq!(found, [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]);
    }

    /// A pixel of a linear model gains what its channels gain on the way to their faces; the best come first.
    #[test]
    fn in_l0_pixels_are_counted_with_all_channels() {
        let shape = [10, 3, 4, 4];
        let model = LinearImages::random(5, 2, shape);
        let ids: Vec<u32> = (0..10).collect();
        let key = NoiseKey::new(6, Stream::EvalAttack);
        let x = key.uniform(&ids, shape, 0.0, 1.0, &Device::flex());
        let logits = model.logits(x.clone());
        let y: Tensor<1, Int> = logits.clone().argmax(1).squeeze_dim(1);
        let noise = Noise { key, samples: ids };
        let attack = Fmn {
            steps: 200,
            ..Fmn::new(Norm::L0, Goal::Untargeted)
        };
        let found = attack.minimal(&model, x.clone(), y.clone(), &noise);
        let won = values(Goal::Untargeted.reached(model.logits(found.clone()), y));
        assert_eq!(won, [1.0; 10]);
        let counts = values(Norm::L0.lengths(found - x.clone()));
        let (x, rows, logits) = (values(x), values(model.rows), values(logits));
        for (row, count) in counts.into_iter().enumerate() {
            let mut gap = logits[2 * row] - logits[2 * row + 1];
            let toward = gap.signum();
            let gain = |i: usize| {
                let (slope, x) = ((rows[48 + i] - rows[i]) * toward, x[48 * row + i]);
                slope.max(0.0) * (1.0 - x) - slope.min(0.0) * x
            };
            let mut gains: Vec<f32> = (0..16)
                .map(|pixel| (0..3).map(|channel| gain(16 * channel + pixel)).sum())
                .collect();
            gains.sort_by(|a, b| b.total_cmp(a));
            gap = gap.abs();
            let least = gains.into_iter().take_while(|gain| {
                let open = gap > 0.0;
                gap -= gain;
                open
            });
            assert_eq!(count, least.count() as f32, "image {row}");
        }
    }

    /// Class 1 above 0.6 of the first value; no gradient below 0.55.
    struct Plateau;

    impl Classifier<2> for Plateau {
        fn logits(&self, x: Tensor<2>) -> Tensor<2> {
            let batch = x.dims()[0];
            let first = x.slice([0..batch, 0..1]);
            let value = (first - 0.55).clamp_min(0.0) - 0.05;
            Tensor::cat(vec![value.zeros_like(), value], 1)
        }
        fn features(&self, x: Tensor<2>) -> Tensor<2> {
            x
        }
    }

    #[test]
    fn a_known_example_leads_over_a_plateau() {
        let device = Device::flex();
        let x = Tensor::<2>::from_floats([[0.3, 0.5], [0.2, 0.4]], &device);
        let y = Tensor::<1, Int>::zeros([2], &device);
        // The second start is none: what comes back is the clean input.
        let start = Tensor::<2>::from_floats([[0.9, 1.0], [0.5, 0.4]], &device);
        for norm in Norm::ALL {
            let fmn = Fmn::new(norm, Goal::Untargeted);
            let noise = Noise {
                key: NoiseKey::new(0, Stream::EvalAttack),
                samples: vec![0, 1],
            };
            let alone = fmn.minimal(&Plateau, x.clone(), y.clone(), &noise);
            assert_eq!(values(alone), values(x.clone()));
            let found = fmn.minimal_from(&Plateau, x.clone(), y.clone(), start.clone());
            let sizes = values(norm.lengths(found - x.clone()));
            let least = if norm == Norm::L0 { 1.0 } else { 0.3 };
            assert!((sizes[0] / least - 1.0).abs() < 0.05, "{norm}: {sizes:?}");
            assert_eq!(sizes[1], 0.0);
        }
    }

    #[test]
    fn the_first_radius_is_the_distance_of_the_hyperplane() {
        let device = Device::flex();
        let model = Linear::new([[0.0, 0.0], [3.0, 4.0]], [0.0, -4.5], &device);
        let x = Tensor::<2>::from_floats([[0.5, 0.5]], &device);
        let y = Tensor::<1, Int>::zeros([1], &device);
        let noise = Noise {
            key: NoiseKey::new(0, Stream::EvalAttack),
            samples: vec![0],
        };
        // The margin is -1; the dual norms of (3, 4) are 7, 5 and 4.
        for (norm, dual) in [(Norm::Linf, 7.0), (Norm::L2, 5.0), (Norm::L1, 4.0)] {
            let fmn = Fmn {
                steps: 1,
                step_size: 100.0,
                ..Fmn::new(norm, Goal::Untargeted)
            };
            let found = fmn.minimal(&model, x.clone(), y.clone(), &noise);
            let size = values(norm.lengths(found - x.clone()))[0];
            assert!((size - 1.05 / dual).abs() < 1e-5, "{norm}: {size}");
        }
    }
}
