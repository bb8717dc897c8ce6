use burn::tensor::{Int, Tensor};
use gauntlet_kernels::host::{each_row, is_host, part, sum_of, upload, values};
use gauntlet_kernels::perturb::{choose, l1_norms, linf_norms, per_sample, unit_l2};
use gauntlet_models::Classifier;

use crate::apgd::{in_place, index};
use crate::box_projection::{Hyperplane, Row, move_to};
use crate::gradient::{input_gradient_of, without_true};
use crate::minimal::Nearest;
use crate::{Attack, AttackLoss, Goal, MinimumNorm, Noise, Norm, ThreatModel};

/// Moves shorter than this count as this long when their lengths are compared.
const SHORTEST: f32 = 1e-8;

/// Distance of the class that is not to be reached.
const NOWHERE: f32 = f32::MAX;

/// Steps of the final search.
const SEARCH_STEPS: usize = 3;

/// Fast adaptive boundary attack (Croce & Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary
/// attack", algorithm 1) for L∞, L2 and L1: it looks for the *nearest* adversarial example, not for one inside a ball.
///
/// Each step takes the boundary between the true class and a rival for a hyperplane, moves towards it from the iterate, biased
/// towards the nearest point of it to the clean input, and goes back towards the clean input from where it finds itself
/// misclassified. A restart ends with the paper's final search along the segment from the clean input to the best example.
///
/// A step costs one forward pass and one with a backward pass (untargeted: one of those for each class).
///
/// [`MinimumNorm::minimal`] looks for the nearest example with every run. [`Attack::perturb`] gives examples within eps, and a
/// sample that has one is left out of the runs that follow, as in AutoAttack: it need not be the nearest.
///
/// # Panics
/// Both panic in L0, for which there is no such attack.
#[derive(Clone, Debug)]
pub struct Fab {
    /// The norm that is made small, the legal values, and the size of random starts. [`Attack::perturb`] gives only examples
    /// within its eps.
    pub threat: ThreatModel,
    /// Whether the classes given are to be left or to be reached. The paper's attacks, its targeted one too, leave the true class;
    /// towards a given class, the hyperplane of a step is that of the margin of this class over the largest other one. Where the
    /// nearest point is a corner between several classes, what L1 finds may be a third farther away.
    pub goal: Goal,
    /// How many classes are attacked one after another, those with the highest logits of the clean input first (at most all
    /// but the true one). `None`: in each step the class whose boundary is nearest. Of no use with [`Goal::Targeted`].
    pub targets: Option<usize>,
    /// Steps of a run.
    pub steps: usize,
    /// Runs against each target. The first starts at the clean input, the others in random directions from it, uniform on the
    /// sphere of the norm (those of a run are the same for every target), at half the distance of the best example so far or half
    /// of eps, whichever is less.
    pub restarts: usize,
    /// Largest weight of the clean input's projection in a step, in [0, 1].
    pub alpha_max: f32,
    /// Length of a step in units of the way to the hyperplane, at least 1.
    pub eta: f32,
    /// Share of the perturbation that is left after a step back, in (0, 1).
    pub beta: f32,
}

impl Fab {
    /// FAB-T as AutoAttack's standard version runs it (Croce & Hein 2020, "Reliable evaluation ..."): 9 targets, 100 steps, one
    /// run against each; plus the final search, which can only shorten what is found.
    pub fn targeted(threat: ThreatModel) -> Self {
        Self {
            targets: Some(9),
            ..Self::untargeted(threat)
        }
    }

    /// The attack on the nearest boundary: 100 steps, one run, `alpha_max` 0.1, `eta` 1.05, `beta` 0.9.
    pub fn untargeted(threat: ThreatModel) -> Self {
        Self {
            threat,
            goal: Goal::Untargeted,
            targets: None,
            steps: 100,
            restarts: 1,
            alpha_max: 0.1,
            eta: 1.05,
            beta: 0.9,
        }
    }

    /// The best example of each sample, the clean input where there is none. A sample with an example at a distance of `enough` or
    /// less takes no part in further runs.
    fn search<const D: usize>(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
        enough: f32,
    ) -> Tensor<D> {
        let dims = x.dims();
        if dims.contains(&0) {
            return x;
        }
        let mut done = Vec::new();
        let search = Search::new(self, model, x, y, noise);
        let (targets, restarts) = (search.targets(), self.restarts.max(1));
        let mut open = search.release(enough, &mut done);
        for run in 0..targets * restarts {
            let Some(mut search) = open.take() else {
                break;
            };
            search.run(run / restarts, (run % restarts) as u32);
            open = search.release(enough, &mut done);
        }
        done.extend(open.map(|search| (search.places, search.nearest.x)));
        in_place(done).reshape(dims)
    }

    fn label(&self) -> String {
        let kind = match (self.goal, self.targets) {
            (Goal::Untargeted, Some(_)) => "FAB-T",
            _ => "FAB",
        };
        match self.restarts {
            0 | 1 => format!("{kind}-{}", self.steps),
            restarts => format!("{kind}-{}x{restarts}", self.steps),
        }
    }
}

impl<const D: usize> MinimumNorm<D> for Fab {
    fn minimal(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<D> {
        // Nothing is nearer than a clean input that is an example itself.
        self.search(model, x, y, noise, 0.0)
    }

    fn norm(&self) -> Norm {
        self.threat.norm
    }

    fn name(&self) -> String {
        self.label()
    }
}

impl<const D: usize> Attack<D> for Fab {
    /// An example within eps where one was found, else the clean input: a farther one is never cut down to eps.
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
        let eps = self.threat.eps.value();
        let found = self.search(model, x.clone(), y, noise, eps);
        let sizes = self.threat.norm.lengths(found.clone() - x.clone());
        let near = sizes.lower_equal_elem(eps).float();
        let result = choose(&near, found, x.clone());
        debug_assert_eq!(self.threat.verify(&x, &result), Ok(()));
        result
    }

    fn name(&self) -> String {
        self.label()
    }
}

/// The attack on the samples that take part, as rows.
struct Search<'a, const D: usize> {
    fab: &'a Fab,
    model: &'a dyn Classifier<D>,
    /// Shape of the batch as it was given.
    shape: [usize; D],
    /// Where the rows were in that batch.
    places: Vec<usize>,
    noise: Noise,
    clean: Tensor<2>,
    clean_logits: Tensor<2>,
    y: Tensor<1, Int>,
    nearest: Nearest<2>,
}

impl<'a, const D: usize> Search<'a, D> {
    fn new(
        fab: &'a Fab,
        model: &'a dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Self {
        let (shape, norm) = (x.dims(), fab.threat.norm);
        assert!(norm != Norm::L0, "FAB has no version for {norm}");
        let clean_logits = model.logits(x.clone());
        let clean = x.reshape([shape[0], shape[1..].iter().product()]);
        let nearest = Nearest::new(
            norm,
            fab.goal,
            clean.clone(),
            y.clone(),
            clean_logits.clone(),
        );
        Self {
            fab,
            model,
            shape,
            places: (0..shape[0]).collect(),
            noise: noise.clone(),
            clean,
            clean_logits,
            y,
            nearest,
        }
    }

    /// Moves rows with an example at a distance of `enough` or less to `done`. `None` where that is all of them.
    fn release(self, enough: f32, done: &mut Vec<(Vec<usize>, Tensor<2>)>) -> Option<Self> {
        let distances = self.nearest.distance.clone().try_into_vec_as::<f32>();
        let distances = distances.expect("distances that were computed");
        let (near, far): (Vec<_>, Vec<_>) =
            (0..distances.len()).partition(|&row| distances[row] <= enough);
        if near.is_empty() {
            return Some(self);
        }
        let places = near.iter().map(|&row| self.places[row]).collect();
        let chosen = index(&near, &self.clean);
        done.push((places, self.nearest.x.clone().select(0, chosen)));
        (!far.is_empty()).then(|| self.select(&far))
    }

    fn select(self, rows: &[usize]) -> Self {
        let chosen = index(rows, &self.clean);
        let clean = self.clean.select(0, chosen.clone());
        let clean_logits = self.clean_logits.select(0, chosen.clone());
        let y = self.y.select(0, chosen.clone());
        let (norm, goal) = (self.fab.threat.norm, self.fab.goal);
        let mut nearest = Nearest::new(norm, goal, clean.clone(), y.clone(), clean_logits.clone());
        nearest.x = self.nearest.x.select(0, chosen.clone());
        nearest.distance = self.nearest.distance.select(0, chosen);
        Self {
            places: rows.iter().map(|&row| self.places[row]).collect(),
            noise: Noise {
                key: self.noise.key,
                samples: rows.iter().map(|&row| self.noise.samples[row]).collect(),
            },
            clean,
            clean_logits,
            y,
            nearest,
            ..self
        }
    }

    /// How many classes are attacked in turn.
    fn targets(&self) -> usize {
        let others = self.clean_logits.dims()[1].saturating_sub(1);
        match self.fab.goal {
            Goal::Untargeted => self.fab.targets.map_or(1, |targets| targets.min(others)),
            Goal::Targeted => 1,
        }
    }

    fn run(&mut self, rank: usize, restart: u32) {
        let rival = match (self.fab.goal, self.fab.targets) {
            (Goal::Targeted, _) => Some(self.y.clone()),
            (Goal::Untargeted, Some(_)) => Some(self.rival(rank)),
            (Goal::Untargeted, None) => None,
        };
        let mut x = self.start(restart);
        for _ in 0..self.fab.steps {
            let boundary = match &rival {
                Some(rival) => self.boundary(x.clone(), rival),
                None => self.nearest_boundary(x.clone()),
            };
            x = self.toward(boundary, x);
            let logits = self.logits(x.clone());
            let (reached, _) = self.nearest.keep(x.clone(), logits);
            x = self.back(x, &reached);
        }
        self.final_search();
    }

    /// The class other than the true one that has the `rank`-th highest clean logit.
    fn rival(&self, rank: usize) -> Tensor<1, Int> {
        let others = without_true(self.clean_logits.clone(), self.y.clone());
        let ranked = others.argsort_descending(1);
        let rows = ranked.dims()[0];
        ranked.slice([0..rows, rank..rank + 1]).squeeze_dim(1)
    }

    fn start(&self, restart: u32) -> Tensor<2> {
        if restart == 0 {
            return self.clean.clone();
        }
        let (shape, device) = (self.clean.dims(), self.clean.device());
        let key = self.noise.key.restart(restart);
        let cube = || key.uniform(&self.noise.samples, shape, -1.0, 1.0, &device);
        let over =
            |x: Tensor<2>, lengths: Tensor<1>| x / per_sample(lengths.clamp_min(SHORTEST), shape);
        let direction = match self.fab.threat.norm {
            Norm::Linf => {
                let cube = cube();
                over(cube.clone(), linf_norms(cube))
            }
            Norm::L2 => unit_l2(key.normal(&self.noise.samples, shape, &device)),
            Norm::L1 => {
                // A sign and an exponentially distributed size: what Laplace's distribution gives is uniform on the sphere.
                let cube = cube();
                let sizes = cube.clone().abs().clamp_min(SHORTEST).log().neg();
                let laplace = cube.sign() * sizes;
                over(laplace.clone(), l1_norms(laplace))
            }
            Norm::L0 => unimplemented!("FAB in L0"),
        };
        let eps = self.fab.threat.eps.value();
        let radius = self.nearest.distance.clone().clamp_max(eps).mul_scalar(0.5);
        self.in_box(self.clean.clone() + direction * per_sample(radius, shape))
    }

    /// What is above zero on the attacker's side of the boundary, of each row.
    fn surplus(&self, logits: Tensor<2>, rival: &Tensor<1, Int>) -> Tensor<1> {
        let of = |class: &Tensor<1, Int>| logits.clone().gather(1, class.clone().unsqueeze_dim(1));
        match self.fab.goal {
            Goal::Untargeted => (of(rival) - of(&self.y)).squeeze_dim(1),
            Goal::Targeted => AttackLoss::Margin.per_sample(logits, self.y.clone()).neg(),
        }
    }

    /// The linearised boundary at `x` between the true class and `rival`.
    fn boundary(&self, x: Tensor<2>, rival: &Tensor<1, Int>) -> Hyperplane {
        let (gradient, surplus, _) =
            input_gradient_of(self.model, self.shaped(x.clone()), |logits| {
                self.surplus(logits, rival)
            });
        Hyperplane::new(surplus, gradient.reshape(x.dims()))
    }

    /// The linearised boundary at `x` with the class whose hyperplane is nearest.
    fn nearest_boundary(&self, x: Tensor<2>) -> Hyperplane {
        let [batch, classes] = self.clean_logits.dims();
        let mut nearest: Option<(Hyperplane, Tensor<1>)> = None;
        for class in 0..classes as i64 {
            let plane = self.boundary(x.clone(), &Tensor::full([batch], class, &self.y.device()));
            let away = plane
                .distance(self.fab.threat.norm)
                .mask_fill(self.y.clone().equal_elem(class), NOWHERE);
            nearest = Some(match nearest.take() {
                None => (plane, away),
                Some((old, least)) => {
                    let nearer = away.clone().lower(least.clone()).float();
                    let plane = Hyperplane {
                        gap: choose(&nearer, plane.gap, old.gap),
                        normal: choose(&nearer, plane.normal, old.normal),
                    };
                    (plane, choose(&nearer, away, least))
                }
            });
        }
        nearest.expect("a model has classes").0
    }

    /// The projections of the iterate and of the clean input on the boundary, both overshot, weighted by how far each had to go.
    fn toward(&self, boundary: Hyperplane, x: Tensor<2>) -> Tensor<2> {
        if is_host(&x.device()) {
            return self.toward_by_rows(boundary, x);
        }
        let (dims, threat) = (x.dims(), &self.fab.threat);
        let from_clean = boundary.seen_from(x.clone(), self.clean.clone());
        let moves = move_to(
            boundary.stacked(from_clean),
            Tensor::cat(vec![x.clone(), self.clean.clone()], 0),
            threat.norm,
            threat.bounds,
        );
        let sizes = threat.norm.lengths(moves.clone()).clamp_min(SHORTEST);
        let [size, clean_size] = halves(sizes);
        let [shift, clean_shift] = halves(moves.mul_scalar(self.fab.eta));
        let alpha = (size.clone() / (size + clean_size)).clamp_max(self.fab.alpha_max);
        let alpha = per_sample(alpha, dims);
        let clean = self.clean.clone() + clean_shift;
        self.in_box((x + shift) * (alpha.clone().neg() + 1.0) + clean * alpha)
    }

    /// [`Search::toward`] row by row.
    fn toward_by_rows(&self, boundary: Hyperplane, x: Tensor<2>) -> Tensor<2> {
        let Fab {
            threat,
            eta,
            alpha_max,
            ..
        } = self.fab;
        let (norm, bounds @ (low, high)) = (threat.norm, threat.bounds);
        let (gaps, normals) = (values(boundary.gap), values(boundary.normal));
        let (like, dims, all_clean) = (x.clone(), x.dims(), values(self.clean.clone()));
        let mut x = values(x);
        each_row(&mut x, dims, |row, x| {
            let (gap, normal) = (gaps[row], part(&normals, row, x.len()));
            let clean = part(&all_clean, row, x.len());
            let from_clean = gap + sum_of(x.len(), |i| normal[i] * (clean[i] - x[i]));
            let (mut way, mut clean_way) = (Row::default(), Row::default());
            let shift = way.moved(x, normal, gap, norm, bounds);
            let clean_shift = clean_way.moved(clean, normal, from_clean, norm, bounds);
            let size = |shift: &[f32]| norm.length(shift).max(SHORTEST);
            let (size, clean_size) = (size(shift), size(clean_shift));
            let alpha = (size / (size + clean_size)).min(*alpha_max);
            for (i, x) in x.iter_mut().enumerate() {
                let (there, clean) = (*x + eta * shift[i], clean[i] + eta * clean_shift[i]);
                *x = (there * (1.0 - alpha) + clean * alpha).clamp(low, high);
            }
        });
        upload(x, &like)
    }

    /// `x`, closer to the clean input where it is an example.
    fn back(&self, x: Tensor<2>, reached: &Tensor<1>) -> Tensor<2> {
        let beta = self.fab.beta;
        if !is_host(&x.device()) {
            let back = (x.clone() - self.clean.clone()).mul_scalar(beta);
            return choose(reached, self.clean.clone() + back, x);
        }
        let (like, dims) = (x.clone(), x.dims());
        let (mut x, clean, reached) = (
            values(x),
            values(self.clean.clone()),
            values(reached.clone()),
        );
        each_row(&mut x, dims, |row, x| {
            let clean = part(&clean, row, x.len());
            if reached[row] > 0.5 {
                x.iter_mut()
                    .zip(clean)
                    .for_each(|(x, clean)| *x = clean + (*x - clean) * beta);
            }
        });
        upload(x, &like)
    }

    /// Looks for the boundary between the clean input and the best example, where the margin, taken as linear between the
    /// nearest points known on either side, is zero.
    fn final_search(&mut self) {
        let best = self.nearest.x.clone() - self.clean.clone();
        let dims = best.dims();
        // Shares of `best`: the farthest that is classified correctly, the least that is not.
        let mut near = self.nearest.distance.zeros_like();
        let mut far = self.nearest.distance.ones_like();
        let mut near_logits = self.clean_logits.clone();
        let mut far_logits = self.logits(self.nearest.x.clone());
        for _ in 0..SEARCH_STEPS {
            let rival: Tensor<1, Int> = far_logits.clone().argmax(1).squeeze_dim(1);
            let below = self.surplus(near_logits.clone(), &rival);
            let above = self.surplus(far_logits.clone(), &rival);
            let part = below.clone().neg() / (above - below).add_scalar(1e-10);
            let outside = part
                .clone()
                .lower_elem(0.0)
                .bool_or(part.clone().greater_elem(1.0));
            let at = near.clone() + part.mask_fill(outside, 1.0) * (far.clone() - near.clone());

            let x = self.in_box(self.clean.clone() + best.clone() * per_sample(at.clone(), dims));
            let logits = self.logits(x.clone());
            let (reached, _) = self.nearest.keep(x, logits.clone());
            far = choose(&reached, at.clone(), far);
            far_logits = choose(&reached, logits.clone(), far_logits);
            near = choose(&reached, near, at);
            near_logits = choose(&reached, near_logits, logits);
        }
    }

    fn logits(&self, x: Tensor<2>) -> Tensor<2> {
        self.model.logits(self.shaped(x))
    }

    /// Rows as the model takes them.
    fn shaped(&self, x: Tensor<2>) -> Tensor<D> {
        let mut shape = self.shape;
        shape[0] = x.dims()[0];
        x.reshape(shape)
    }

    fn in_box(&self, x: Tensor<2>) -> Tensor<2> {
        let (low, high) = self.fab.threat.bounds;
        x.clamp(low, high)
    }
}

/// First and second half of the rows.
fn halves<const D: usize>(x: Tensor<D>) -> [Tensor<D>; 2] {
    let rows = x.dims()[0];
    [0..rows / 2, rows / 2..rows].map(|half| x.clone().slice([half]))
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use gauntlet_kernels::{NoiseKey, Stream};

    use super::*;
    use crate::testing::{Linear, values};

    const ROWS: [[f32; 4]; 3] = [
        [1.0, -2.0, 0.5, 0.3],
        [0.5, 1.0, -1.0, 0.2],
        [-0.7, 0.4, 0.9, -1.1],
    ];
    const BIAS: [f32; 3] = [0.2, -0.1, 0.05];

    fn noise(samples: impl IntoIterator<Item = u32>) -> Noise {
        Noise {
            key: NoiseKey::new(3, Stream::EvalAttack),
            samples: samples.into_iter().collect(),
        }
    }

    fn attacks(norm: &str) -> Vec<Fab> {
        let threat: ThreatModel = norm.parse().unwrap();
        let more = |fab: Fab| Fab {
            restarts: 3,
            steps: 30,
            ..fab
        };
        vec![
            Fab::targeted(threat.clone()),
            Fab::untargeted(threat.clone()),
            more(Fab::targeted(threat.clone())),
            more(Fab::untargeted(threat)),
        ]
    }

    /// Points near the middle of the box, and the class the linear model gives each of them.
    fn points(count: u32, model: &Linear) -> (Tensor<2>, Tensor<1, Int>) {
        let key = NoiseKey::new(8, Stream::EvalAttack);
        let samples: Vec<u32> = (0..count).collect();
        let x = key.uniform(&samples, [count as usize, 4], 0.45, 0.55, &Device::flex());
        let y = model.logits(x.clone()).argmax(1).squeeze_dim(1);
        (x, y)
    }

    fn logit(x: &[f32], class: usize) -> f32 {
        BIAS[class] + ROWS[class].iter().zip(x).map(|(w, v)| w * v).sum::<f32>()
    }

    /// Distance of `x` to the boundary between class `y` and another, far from the faces: margin over the dual norm of the
    /// difference of rows. Negative on the other side.
    fn away(x: &[f32], y: usize, class: usize, norm: Norm) -> f32 {
        let difference = (0..4).map(|i| ROWS[class][i] - ROWS[y][i]);
        (logit(x, y) - logit(x, class)) / dual(difference, norm)
    }

    fn dual(row: impl Iterator<Item = f32>, norm: Norm) -> f32 {
        match norm {
            Norm::Linf => row.map(f32::abs).sum(),
            Norm::L2 => row.map(|w| w * w).sum::<f32>().sqrt(),
            Norm::L1 => row.map(f32::abs).fold(0.0, f32::max),
            Norm::L0 => unreachable!(),
        }
    }

    /// Distance of `x` to the nearest boundary of class `y`.
    fn closed_form(x: &[f32], y: usize, norm: Norm) -> f32 {
        (0..3)
            .filter(|class| *class != y)
            .map(|class| away(x, y, class, norm))
            .fold(f32::INFINITY, f32::min)
    }

    fn distances<const D: usize>(x: Tensor<D>, found: Tensor<D>, norm: Norm) -> Vec<f32> {
        values(norm.lengths(found - x))
    }

    fn wrong<const D: usize>(
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
    ) -> Vec<bool> {
        let reached = Goal::Untargeted.reached(model.logits(x), y);
        values(reached).into_iter().map(|v| v > 0.5).collect()
    }

    #[test]
    fn linear_boundaries_are_found_at_their_distance() {
        let model = Linear::new(ROWS, BIAS, &Device::flex());
        let (x, y) = points(40, &model);
        let classes: Vec<i64> = y.clone().try_into_vec_as().unwrap();
        let inputs = values(x.clone());
        for threat in ["linf:0.1", "l2:0.1", "l1:0.1"] {
            for fab in attacks(threat) {
                let name = Attack::<2>::name(&fab);
                let norm = fab.threat.norm;
                let found = fab.minimal(&model, x.clone(), y.clone(), &noise(0..40));
                assert!(wrong(&model, found.clone(), y.clone()).iter().all(|w| *w));
                for (i, d) in distances(x.clone(), found, norm).into_iter().enumerate() {
                    let least = closed_form(&inputs[4 * i..4 * i + 4], classes[i] as usize, norm);
                    assert!(
                        d >= least * 0.9999 - 1e-6 && d <= least * 1.01 + 1e-5,
                        "{name} {threat}: {d} for {least}"
                    );
                }
            }
        }
    }

    #[test]
    fn perturb_gives_what_is_within_eps_and_else_the_clean_input() {
        let model = Linear::new(ROWS, BIAS, &Device::flex());
        let (x, y) = points(40, &model);
        let classes: Vec<i64> = y.clone().try_into_vec_as().unwrap();
        let inputs = values(x.clone());
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            let least: Vec<f32> = (0..40)
                .map(|i| closed_form(&inputs[4 * i..4 * i + 4], classes[i] as usize, norm))
                .collect();
            let mut sorted = least.clone();
            sorted.sort_by(f32::total_cmp);
            let threat = format!("{norm}:{}", 0.5 * (sorted[19] + sorted[20]));
            for fab in attacks(&threat) {
                let eps = fab.threat.eps.value();
                let found = fab.perturb(&model, x.clone(), y.clone(), &noise(0..40));
                assert_eq!(fab.threat.verify(&x, &found), Ok(()));
                let fooled = wrong(&model, found.clone(), y.clone());
                let sizes = distances(x.clone(), found, norm);
                for i in 0..40 {
                    assert!(sizes[i] <= eps);
                    assert!(fooled[i] || sizes[i] == 0.0);
                    if least[i] > eps || least[i] * 1.01 + 1e-5 < eps {
                        assert_eq!(fooled[i], least[i] < eps, "{threat}: {}", least[i]);
                    }
                }
            }
        }
    }

    /// The boundary is within reach only along two faces of the box; closed forms of a two-class model with row difference (1, 4).
    #[test]
    fn the_box_bends_the_way() {
        let model = Linear::new([[0.0, 0.0], [1.0, 4.0]], [0.0, -4.5], &Device::flex());
        let x = Tensor::<2>::from_floats([[0.1, 0.9]], &Device::flex());
        let y = Tensor::<1, Int>::from_ints([0], &Device::flex());
        // x2 stops at 1, so x1 must reach 0.5: a move of (0.4, 0.1) in each norm.
        for (threat, least) in [("linf:1", 0.4), ("l2:1", 0.17f32.sqrt()), ("l1:1", 0.5)] {
            for fab in attacks(threat) {
                let found = fab.minimal(&model, x.clone(), y.clone(), &noise([0]));
                let size = distances(x.clone(), found, fab.threat.norm)[0];
                assert!(
                    size >= least - 1e-5 && size <= least * 1.01,
                    "{threat}: {size}"
                );
            }
        }
    }

    /// Two ReLU networks: class 1 where the smaller (a corner, entered only through both boundaries) or the larger of two linear
    /// functions is positive.
    struct Corner {
        smaller: bool,
    }

    impl Classifier<2> for Corner {
        fn logits(&self, x: Tensor<2>) -> Tensor<2> {
            let batch = x.dims()[0];
            let a = x.clone().slice([0..batch, 0..1]) - 0.7;
            let b = x.clone().slice([0..batch, 1..2]) - 0.6;
            let value = if self.smaller {
                a.clone() - burn::tensor::activation::relu(a - b)
            } else {
                a.clone() + burn::tensor::activation::relu(b - a)
            };
            Tensor::cat(vec![value.zeros_like(), value], 1)
        }
        fn features(&self, x: Tensor<2>) -> Tensor<2> {
            x
        }
    }

    #[test]
    fn corners_of_a_relu_network_are_found() {
        let x = Tensor::<2>::from_floats([[0.3, 0.4], [0.1, 0.55], [0.65, 0.1]], &Device::flex());
        let y = Tensor::<1, Int>::zeros([3], &Device::flex());
        // To the corner (0.7, 0.6) of a > 0 and b > 0; to the nearer side of a > 0 or b > 0.
        let l2 = [0.2f32.sqrt(), 0.3625f32.sqrt(), 0.2525f32.sqrt()];
        for (smaller, threat, least) in [
            (true, "linf:1", [0.4, 0.6, 0.5]),
            (true, "l2:1", l2),
            (true, "l1:1", [0.6, 0.65, 0.55]),
            (false, "linf:1", [0.2, 0.05, 0.05]),
            (false, "l2:1", [0.2, 0.05, 0.05]),
            (false, "l1:1", [0.2, 0.05, 0.05]),
        ] {
            for fab in attacks(threat) {
                let model = Corner { smaller };
                let found = fab.minimal(&model, x.clone(), y.clone(), &noise(0..3));
                for (size, least) in distances(x.clone(), found, fab.threat.norm)
                    .into_iter()
                    .zip(least)
                {
                    assert!(size >= least - 1e-5 && size <= least * 1.25 + 1e-5);
                }
            }
        }
    }

    /// Two layers with ReLU between them.
    struct TwoLayers(Linear, Linear);

    impl Classifier<2> for TwoLayers {
        fn logits(&self, x: Tensor<2>) -> Tensor<2> {
            self.1.logits(self.features(x))
        }
        fn features(&self, x: Tensor<2>) -> Tensor<2> {
            burn::tensor::activation::relu(self.0.logits(x))
        }
    }

    fn sines<const R: usize, const C: usize>(size: f64, step: f64, shift: f64) -> [[f32; C]; R] {
        let at = |r: usize, c: usize| size * (step * (r * C + c) as f64 + shift).sin();
        std::array::from_fn(|r| std::array::from_fn(|c| at(r, c) as f32))
    }

    /// Distances by `scripts/golden/fab.py`, which has no final search. The search gains less than 1 % here; where the network is
    /// linear it lands on the boundary itself, and rounding decides on which side.
    #[test]
    fn an_implementation_in_numpy_finds_the_same_distances() {
        let device = Device::flex();
        let first = sines::<16, 12>(0.8, 1.7, 0.3);
        let bias = std::array::from_fn(|i| {
            0.4 * (2.3 * i as f32).cos() - 0.5 * first[i].iter().sum::<f32>() + 0.2
        });
        let model = TwoLayers(
            Linear::new(first, bias, &device),
            Linear::new(
                sines::<5, 16>(1.0, 2.9, 1.1),
                std::array::from_fn(|i| 0.1 * (1.3 * i as f32).cos()),
                &device,
            ),
        );
        let x = Tensor::<2>::from_floats(sines::<10, 12>(0.5, 3.1, 0.7), &device) + 0.5;
        let y: Tensor<1, Int> = model.logits(x.clone()).argmax(1).squeeze_dim(1);
        for (norm, targeted, expected) in GOLDEN {
            let threat: ThreatModel = format!("{norm}:1").parse().unwrap();
            let fab = if targeted {
                Fab::targeted(threat)
            } else {
                Fab::untargeted(threat)
            };
            let found = fab.minimal(&model, x.clone(), y.clone(), &noise(0..10));
            for (size, expected) in distances(x.clone(), found, norm).into_iter().zip(expected) {
                assert!(
                    size <= 1.0001 * expected && size >= 0.99 * expected,
                    "{} {norm}: {size} for {expected}",
                    Attack::<2>::name(&fab)
                );
            }
        }
    }

    /// Norm, whether targeted, distance of each sample.
    const GOLDEN: [(Norm, bool, [f32; 10]); 6] = [
        (
            Norm::Linf,
            true,
            [
                0.026149, 0.055505, 0.045887, 0.019676, 0.01114, 0.012523, 0.036168, 0.046293,
                0.012851, 0.008183,
            ],
        ),
        (
            Norm::Linf,
            false,
            [
                0.026149, 0.055508, 0.085761, 0.019676, 0.01114, 0.012523, 0.081169, 0.046293,
                0.012851, 0.008183,
            ],
        ),
        (
            Norm::L2,
            true,
            [
                0.08091, 0.170295, 0.141993, 0.060885, 0.02731, 0.038722, 0.108908, 0.14235,
                0.039729, 0.025527,
            ],
        ),
        (
            Norm::L2,
            false,
            [
                0.08091, 0.169618, 0.257685, 0.060885, 0.02731, 0.038722, 0.245346, 0.142324,
                0.039729, 0.025527,
            ],
        ),
        (
            Norm::L1,
            true,
            [
                0.191089, 0.412154, 0.333343, 0.143157, 0.056772, 0.094706, 0.260595, 0.338035,
                0.094057, 0.062069,
            ],
        ),
        (
            Norm::L1,
            false,
            [
                0.191089, 0.412154, 0.631799, 0.143157, 0.056772, 0.094706, 0.577008, 0.338035,
                0.094057, 0.062069,
            ],
        ),
    ];

    /// Class 1 above 0.5, by a margin that is concave: interpolation lands on the side of class 1 each time.
    struct Concave;

    impl Classifier<2> for Concave {
        fn logits(&self, x: Tensor<2>) -> Tensor<2> {
            let margin = (x.neg() + 1.0).square().neg() + 0.25;
            Tensor::cat(vec![margin.zeros_like(), margin], 1)
        }
        fn features(&self, x: Tensor<2>) -> Tensor<2> {
            x
        }
    }

    #[test]
    fn the_final_search_interpolates_the_margin_three_times() {
        let x = Tensor::<2>::from_floats([[0.2]], &Device::flex());
        let y = Tensor::<1, Int>::zeros([1], &Device::flex());
        // One step: 1.5 times the way to the root of the tangent, to 0.565625. Then three secants from 0.2.
        let margin = |x: f32| 0.25 - (1.0 - x) * (1.0 - x);
        let secant = |far: f32| 0.2 + (far - 0.2) * margin(0.2) / (margin(0.2) - margin(far));
        let expected = secant(secant(secant(0.565625)));
        for fab in attacks("linf:1") {
            let fab = Fab {
                steps: 1,
                restarts: 1,
                eta: 1.5,
                ..fab
            };
            let found = values(fab.minimal(&Concave, x.clone(), y.clone(), &noise([0])));
            assert!((found[0] - expected).abs() < 1e-5, "{found:?}: {expected}");
        }
    }

    #[test]
    fn batch_mates_do_not_matter() {
        let model = Linear::new(ROWS, BIAS, &Device::flex());
        let (x, y) = points(7, &model);
        // With eps 0.03 some of the samples fall to the first run and some to none.
        for (threat, nearest) in ["linf", "l2", "l1"].into_iter().flat_map(|norm| {
            let threat = format!("{norm}:0.03");
            [(threat.clone(), true), (threat, false)]
        }) {
            for fab in attacks(&threat) {
                let fab = Fab { steps: 10, ..fab };
                let attack = |x: Tensor<2>, y: Tensor<1, Int>, noise: &Noise| match nearest {
                    true => fab.minimal(&model, x, y, noise),
                    false => fab.perturb(&model, x, y, noise),
                };
                let all = values(attack(x.clone(), y.clone(), &noise(10..17)));
                for size in [1, 3] {
                    let parts: Vec<f32> = (0..7)
                        .step_by(size)
                        .flat_map(|at| {
                            let rows = at..(at + size).min(7);
                            let (x, y) = (
                                x.clone().slice([rows.clone()]),
                                y.clone().slice([rows.clone()]),
                            );
                            let ids = rows.map(|row| 10 + row as u32);
                            values(attack(x, y, &noise(ids)))
                        })
                        .collect();
                    assert_eq!(
                        parts,
                        all,
                        "{} in batches of {size}",
                        Attack::<2>::name(&fab)
                    );
                }
            }
        }
    }

    #[test]
    fn samples_that_are_wrong_or_out_of_reach_come_back_as_they_were() {
        let device = Device::flex();
        let x = Tensor::<2>::from_floats([[0.5, 0.5], [0.2, 0.0], [1.0, 0.7]], &device);
        let y = Tensor::<1, Int>::from_ints([0, 1, 0], &device);
        // Constant logits: class 0 is right on two samples and never loses them; sample 1 is wrong from the start.
        let constant = Linear::new([[0.0; 2]; 3], [1.0, 0.0, 0.5], &device);
        // A boundary outside the box.
        let far = Linear::new(
            [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]],
            [5.0, 0.0, 0.0],
            &device,
        );
        for threat in ["linf:0.3", "l2:0.3", "l1:0.3"] {
            for fab in attacks(threat) {
                let fab = Fab { steps: 20, ..fab };
                for model in [&constant, &far] {
                    for found in [
                        fab.minimal(model, x.clone(), y.clone(), &noise(0..3)),
                        fab.perturb(model, x.clone(), y.clone(), &noise(0..3)),
                    ] {
                        assert_eq!(values(found), values(x.clone()));
                    }
                }
            }
        }
    }

    /// Right where it is finite, and no number above 0.52.
    struct Holes;

    impl Classifier<2> for Holes {
        fn logits(&self, x: Tensor<2>) -> Tensor<2> {
            let hole = (x.clone().neg() + 0.52).sqrt();
            Tensor::cat(vec![hole.zeros_like() + 1.0, hole], 1)
        }
        fn features(&self, x: Tensor<2>) -> Tensor<2> {
            x
        }
    }

    #[test]
    fn what_is_no_number_does_not_leak() {
        let x = Tensor::<2>::from_floats([[0.5], [0.6]], &Device::flex());
        let y = Tensor::<1, Int>::from_ints([0, 1], &Device::flex());
        for threat in ["linf:0.3", "l2:0.3", "l1:0.3"] {
            for fab in attacks(threat) {
                let found = fab.perturb(&Holes, x.clone(), y.clone(), &noise(0..2));
                assert_eq!(values(found), [0.5, 0.6]);
            }
        }
    }

    /// How many rows the model behind it was asked about.
    struct Counted<'a>(&'a Linear, std::cell::Cell<usize>);

    impl Classifier<2> for Counted<'_> {
        fn logits(&self, x: Tensor<2>) -> Tensor<2> {
            self.1.set(self.1.get() + x.dims()[0]);
            self.0.logits(x)
        }
        fn features(&self, x: Tensor<2>) -> Tensor<2> {
            x
        }
    }

    #[test]
    fn within_eps_a_row_that_fell_takes_part_in_no_further_run() {
        let model = Linear::new(ROWS, BIAS, &Device::flex());
        let (x, y) = points(40, &model);
        let (classes, inputs): (Vec<i64>, _) =
            (y.clone().try_into_vec_as().unwrap(), values(x.clone()));
        // The first four samples are taken for another class: they are wrong from the start.
        let y = Tensor::cat(
            vec![
                (y.clone().slice([0..4]) + 1).remainder_scalar(3),
                y.slice([4..40]),
            ],
            0,
        );
        let steps = 10;
        let fab = |threat: &str| Fab {
            steps,
            ..Fab::targeted(threat.parse().unwrap())
        };
        let asked = |attack: &dyn Fn(&Counted)| {
            let model = Counted(&model, Default::default());
            attack(&model);
            model.1.get()
        };
        // A run asks twice in each step, and in its final search at the start and three times more.
        let run = 2 * steps + 1 + SEARCH_STEPS;
        let all = asked(&|m| drop(fab("l2:0.02").minimal(m, x.clone(), y.clone(), &noise(0..40))));
        assert_eq!(all, 40 + 2 * 36 * run);
        for threat in ["l2:10", "l2:0.02"] {
            let fab = fab(threat);
            let eps = fab.threat.eps.value();
            let few = asked(&|m| drop(fab.perturb(m, x.clone(), y.clone(), &noise(0..40))));
            // The first target is the class with the highest other logit.
            let stands = (4..40).filter(|&i| {
                let (x, y) = (&inputs[4 * i..4 * i + 4], classes[i] as usize);
                let mut others: Vec<usize> = (0..3).filter(|class| *class != y).collect();
                others.sort_by(|a, b| logit(x, *b).total_cmp(&logit(x, *a)));
                away(x, y, others[0], Norm::L2) > eps
            });
            assert_eq!(few, 40 + (36 + stands.count()) * run, "{threat}");
        }
    }

    #[test]
    fn starts_are_on_the_sphere_and_in_every_direction() {
        let device = Device::flex();
        let samples: Vec<u32> = (0..300).collect();
        let x = Tensor::<2>::full([300, 8], 0.5, &device);
        let y = Tensor::<1, Int>::zeros([300], &device);
        let model = Linear::new([[0.0; 8]; 2], [1.0, 0.0], &device);
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            let fab = Fab::targeted(format!("{norm}:0.2").parse().unwrap());
            let search = Search::new(&fab, &model, x.clone(), y.clone(), &noise(samples.clone()));
            let moved = search.start(1) - x.clone();
            for length in values(norm.lengths(moved.clone())) {
                assert!((length - 0.1).abs() < 1e-5, "{norm}: {length}");
            }
            // Half of the 300 to either side, in each value, give or take four standard deviations.
            for up in values(moved.clone().greater_elem(0.0).float().sum_dim(0)) {
                assert!((up - 150.0).abs() < 35.0, "{norm}: {up}");
            }
            // On the sphere of L1 in n dimensions the mean of the squares is 2 / (n (n + 1)); a normal distribution, brought to
            // length 1, gives 0.023 for 0.028.
            if norm == Norm::L1 {
                let squares = values(moved.div_scalar(0.1).square().mean_dim(0).mean_dim(1))[0];
                assert!((squares - 2.0 / 72.0).abs() < 0.001, "{squares}");
            }
            assert_eq!(values(search.start(0)), values(x.clone()));
        }
    }

    /// Distance of `x` to the region of class 2, far from the faces: by duality the largest, over all positive combinations of
    /// the two margins that it takes, of the combined margin over the dual norm of the combined rows. Here over 2001 angles.
    fn to_class_2(x: &[f32], norm: Norm) -> f32 {
        let mut least = 0f32;
        for step in 0..=2000 {
            let (a, b) = (step as f32 / 2000.0 * std::f32::consts::FRAC_PI_2).sin_cos();
            let margin = a * (logit(x, 0) - logit(x, 2)) + b * (logit(x, 1) - logit(x, 2));
            let row = (0..4).map(|i| a * (ROWS[2][i] - ROWS[0][i]) + b * (ROWS[2][i] - ROWS[1][i]));
            least = least.max(margin / dual(row, norm));
        }
        least
    }

    #[test]
    fn a_given_class_is_reached_and_near() {
        let device = Device::flex();
        let model = Linear::new(ROWS, BIAS, &device);
        let (x, y) = points(40, &model);
        let (inputs, from): (_, Vec<i64>) = (values(x.clone()), y.try_into_vec_as().unwrap());
        let target = Tensor::<1, Int>::full([40], 2, &device);
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            let fab = Fab {
                goal: Goal::Targeted,
                restarts: 3,
                ..Fab::untargeted(format!("{norm}:0.3").parse().unwrap())
            };
            let found = fab.minimal(&model, x.clone(), target.clone(), &noise(0..40));
            let sizes = distances(x.clone(), found.clone(), norm);
            let reached = values(Goal::Targeted.reached(model.logits(found), target.clone()));
            let mut worst = 0f32;
            for i in 0..40 {
                let least = to_class_2(&inputs[4 * i..4 * i + 4], norm);
                assert_eq!(reached[i], 1.0, "{norm}");
                assert_eq!(sizes[i] == 0.0, from[i] == 2);
                assert!(
                    sizes[i] >= least * 0.999 - 1e-6,
                    "{norm}: {} {least}",
                    sizes[i]
                );
                worst = worst.max(sizes[i] / least.max(1e-3));
            }
            // A step of L1 changes as few values as it can, and does not see that others serve both margins.
            let enough = if norm == Norm::L1 { 1.4 } else { 1.01 };
            assert!(worst < enough, "{norm}: {worst}");
        }
    }

    #[test]
    #[should_panic(expected = "no version for l0")]
    fn there_is_none_in_l0() {
        let model = Linear::new(ROWS, BIAS, &Device::flex());
        let (x, y) = points(2, &model);
        Fab::targeted("l0:3".parse().unwrap()).perturb(&model, x, y, &noise(0..2));
    }

    /// Images, as a linear model of their pixels.
    struct Flat(Linear);

    impl Classifier<4> for Flat {
        fn logits(&self, x: Tensor<4>) -> Tensor<2> {
            self.0.logits(x.flatten(1, 3))
        }
        fn features(&self, x: Tensor<4>) -> Tensor<2> {
            x.flatten(1, 3)
        }
    }

    #[test]
    fn images_empty_batches_and_names() {
        let model = Linear::new(ROWS, BIAS, &Device::flex());
        let (x, y) = points(5, &model);
        let images = x.clone().reshape([5, 1, 2, 2]);
        let threat: ThreatModel = "l2:0.5".parse().unwrap();
        let fab = Fab::targeted(threat.clone());
        let flat = fab.perturb(&model, x.clone(), y.clone(), &noise(0..5));
        let model = Flat(model);
        let found = fab.perturb(&model, images, y, &noise(0..5));
        assert_eq!(found.dims(), [5, 1, 2, 2]);
        assert_eq!(values(found), values(flat));

        let none = Tensor::<4>::from_data(
            TensorData::new(Vec::<f32>::new(), [0, 1, 2, 2]),
            &x.device(),
        );
        let y = Tensor::<1, Int>::from_data(TensorData::new(Vec::<i64>::new(), [0]), &x.device());
        assert_eq!(
            fab.perturb(&model, none, y, &noise([])).dims(),
            [0, 1, 2, 2]
        );

        assert_eq!(Attack::<4>::name(&fab), "FAB-T-100");
        let fab = Fab::untargeted(threat);
        assert_eq!(MinimumNorm::<4>::name(&fab), "FAB-100");
        assert_eq!(MinimumNorm::<4>::norm(&fab), Norm::L2);
    }
}
