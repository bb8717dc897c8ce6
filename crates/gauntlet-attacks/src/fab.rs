use burn::tensor::{Bool, Int, Tensor};
use gauntlet_kernels::perturb::{linf_norms, per_sample, unit_l2};
use gauntlet_models::Classifier;

use crate::box_projection::{Hyperplane, move_to};
use crate::gradient::{input_gradient_of, without_true};
use crate::{Attack, AttackLoss, Noise, Norm, ThreatModel};

/// Moves shorter than this count as this long when their lengths are compared.
const SHORTEST: f32 = 1e-8;

/// Distance of what has not been found.
const NOWHERE: f32 = f32::MAX;

/// Steps of the final search.
const SEARCH_STEPS: usize = 3;

/// Fast adaptive boundary attack (Croce & Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary
/// attack", algorithm 1) for L∞ and L2: it looks for the *nearest* adversarial example, not for one inside a ball.
///
/// Each step takes the boundary between the true class and a rival for a hyperplane, moves towards it from the iterate, biased
/// towards the nearest point of it to the clean input, and goes back towards the clean input from where it finds itself
/// misclassified. A restart ends with the paper's final search along the segment from the clean input to the best example.
///
/// A step costs one forward pass and one with a backward pass (untargeted: one of those for each class).
#[derive(Clone, Debug)]
pub struct Fab {
    /// The norm that is made small, the legal values, and the size of random starts. [`Attack::perturb`] gives only examples
    /// within its eps.
    pub threat: ThreatModel,
    /// How many classes are attacked one after another, those with the highest logits of the clean input first (at most all
    /// but the true one). `None`: in each step the class whose boundary is nearest.
    pub targets: Option<usize>,
    /// Steps of a run.
    pub steps: usize,
    /// Runs against each target. The first starts at the clean input, the others in random directions from it (those of a run are
    /// the same for every target), at half the distance of the best example so far or half of eps, whichever is less.
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
            targets: None,
            steps: 100,
            restarts: 1,
            alpha_max: 0.1,
            eta: 1.05,
            beta: 0.9,
        }
    }

    /// The nearest adversarial example found for each sample, however far away it is. The clean input where none was found, and
    /// where it is misclassified itself: the model tells the two apart.
    ///
    /// # Shapes
    /// `x: [batch, ..]` in bounds, `y: [batch]` true classes; the result as `x`.
    pub fn minimal<const D: usize>(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<D> {
        let dims = x.dims();
        if dims.contains(&0) {
            return x;
        }
        let clean = x.reshape([dims[0], dims[1..].iter().product()]);
        let mut search = Search::new(self, model, dims, clean, y);
        for target in self.rivals(search.clean_logits.clone(), search.y.clone()) {
            for restart in 0..self.restarts.max(1) {
                search.run(target.as_ref(), restart as u32, noise);
            }
        }
        search.nearest.x.reshape(dims)
    }

    /// The target of each sample in each round; `None` for any class.
    fn rivals(&self, logits: Tensor<2>, y: Tensor<1, Int>) -> Vec<Option<Tensor<1, Int>>> {
        let [batch, classes] = logits.dims();
        let Some(targets) = self.targets else {
            return vec![None];
        };
        let others = without_true(logits, y);
        let ranked = others.argsort_descending(1);
        (0..targets.min(classes.saturating_sub(1)))
            .map(|rank| {
                let column = ranked.clone().slice([0..batch, rank..rank + 1]);
                Some(column.squeeze_dim(1))
            })
            .collect()
    }
}

impl<const D: usize> Attack<D> for Fab {
    /// The example of [`Fab::minimal`] where it is within eps, else the clean input: a farther one is never cut down to eps.
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
        let nearest = self.minimal(model, x.clone(), y, noise);
        let dims = x.dims();
        let values = dims[1..].iter().product();
        let sizes = self
            .threat
            .norm
            .lengths((nearest.clone() - x.clone()).reshape([dims[0], values]));
        let too_far = rows_where(sizes.greater_elem(self.threat.eps.value()), &x);
        let result = nearest.mask_where(too_far, x.clone());
        debug_assert_eq!(self.threat.verify(&x, &result), Ok(()));
        result
    }

    fn name(&self) -> String {
        let kind = if self.targets.is_some() {
            "FAB-T"
        } else {
            "FAB"
        };
        match self.restarts {
            0 | 1 => format!("{kind}-{}", self.steps),
            restarts => format!("{kind}-{}x{restarts}", self.steps),
        }
    }
}

/// One attack on one batch, whose samples are rows.
struct Search<'a, const D: usize> {
    fab: &'a Fab,
    model: &'a dyn Classifier<D>,
    dims: [usize; D],
    clean: Tensor<2>,
    clean_logits: Tensor<2>,
    y: Tensor<1, Int>,
    nearest: Nearest,
}

/// The nearest adversarial example of each sample so far.
struct Nearest {
    /// The clean input where there is none.
    x: Tensor<2>,
    /// [`NOWHERE`] where there is none; 0 where the clean input is one.
    distance: Tensor<1>,
}

impl<'a, const D: usize> Search<'a, D> {
    fn new(
        fab: &'a Fab,
        model: &'a dyn Classifier<D>,
        dims: [usize; D],
        clean: Tensor<2>,
        y: Tensor<1, Int>,
    ) -> Self {
        let clean_logits = model.logits(clean.clone().reshape(dims));
        let wrong = misclassified(clean_logits.clone(), y.clone());
        let nearest = Nearest {
            x: clean.clone(),
            distance: wrong
                .clone()
                .float()
                .zeros_like()
                .mask_fill(wrong.bool_not(), NOWHERE),
        };
        Self {
            fab,
            model,
            dims,
            clean,
            clean_logits,
            y,
            nearest,
        }
    }

    fn run(&mut self, target: Option<&Tensor<1, Int>>, restart: u32, noise: &Noise) {
        let mut x = self.start(restart, noise);
        for _ in 0..self.fab.steps {
            let boundary = match target {
                Some(target) => self.boundary(x.clone(), target.clone()),
                None => self.nearest_boundary(x.clone()),
            };
            x = self.toward(boundary, x);
            let logits = self.logits(x.clone());
            let wrong = self.keep(x.clone(), logits);
            let back = (x.clone() - self.clean.clone()).mul_scalar(self.fab.beta);
            let wrong = rows_where(wrong, &x);
            x = x.mask_where(wrong, self.clean.clone() + back);
        }
        self.final_search();
    }

    fn start(&self, restart: u32, noise: &Noise) -> Tensor<2> {
        if restart == 0 {
            return self.clean.clone();
        }
        let (shape, device) = (self.clean.dims(), self.clean.device());
        let key = noise.key.restart(restart);
        let direction = match self.fab.threat.norm {
            Norm::Linf => {
                let cube = key.uniform(&noise.samples, shape, -1.0, 1.0, &device);
                let longest = linf_norms(cube.clone()).clamp_min(SHORTEST);
                cube / per_sample(longest, shape)
            }
            Norm::L2 => unit_l2(key.normal(&noise.samples, shape, &device)),
            Norm::L1 | Norm::L0 => unimplemented!("FAB in {}", self.fab.threat.norm),
        };
        let eps = self.fab.threat.eps.value();
        let radius = self.nearest.distance.clone().clamp_max(eps).mul_scalar(0.5);
        self.in_box(self.clean.clone() + direction * per_sample(radius, shape))
    }

    /// The linearised boundary at `x` between the true class and `target`.
    fn boundary(&self, x: Tensor<2>, target: Tensor<1, Int>) -> Hyperplane {
        let (gradient, surplus, _) =
            input_gradient_of(self.model, x.clone().reshape(self.dims), |logits| {
                surplus(logits, target, self.y.clone())
            });
        Hyperplane::new(surplus, gradient.reshape(x.dims()))
    }

    /// The linearised boundary at `x` with the class whose hyperplane is nearest.
    fn nearest_boundary(&self, x: Tensor<2>) -> Hyperplane {
        let [batch, classes] = self.clean_logits.dims();
        let mut nearest: Option<(Hyperplane, Tensor<1>)> = None;
        for class in 0..classes as i64 {
            let target = Tensor::full([batch], class, &self.y.device());
            let rival = self.boundary(x.clone(), target);
            let away = rival
                .distance(self.fab.threat.norm)
                .mask_fill(self.y.clone().equal_elem(class), NOWHERE);
            nearest = Some(match nearest.take() {
                None => (rival, away),
                Some((old, least)) => {
                    let nearer = away.clone().lower(least.clone());
                    let mask = rows_where(nearer.clone(), &x);
                    let plane = Hyperplane {
                        gap: old.gap.mask_where(nearer.clone(), rival.gap),
                        normal: old.normal.mask_where(mask, rival.normal),
                    };
                    (plane, least.mask_where(nearer, away))
                }
            });
        }
        nearest.expect("a model has classes").0
    }

    /// The projections of the iterate and of the clean input on the boundary, both overshot, weighted by how far each had to go.
    fn toward(&self, boundary: Hyperplane, x: Tensor<2>) -> Tensor<2> {
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

    /// Keeps `x` where it is misclassified and nearer than what was found before; returns where it is misclassified.
    fn keep(&mut self, x: Tensor<2>, logits: Tensor<2>) -> Tensor<1, Bool> {
        let wrong = misclassified(logits, self.y.clone());
        let distance = self.fab.threat.norm.lengths(x.clone() - self.clean.clone());
        let Nearest {
            x: old,
            distance: least,
        } = &self.nearest;
        let nearer = distance
            .clone()
            .lower(least.clone())
            .bool_and(wrong.clone());
        self.nearest = Nearest {
            x: old.clone().mask_where(rows_where(nearer.clone(), &x), x),
            distance: least.clone().mask_where(nearer, distance),
        };
        wrong
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
            let below = surplus(near_logits.clone(), rival.clone(), self.y.clone());
            let above = surplus(far_logits.clone(), rival, self.y.clone());
            let part = below.clone().neg() / (above - below).add_scalar(1e-10);
            let outside = part
                .clone()
                .lower_elem(0.0)
                .bool_or(part.clone().greater_elem(1.0));
            let at = near.clone() + part.mask_fill(outside, 1.0) * (far.clone() - near.clone());

            let x = self.in_box(self.clean.clone() + best.clone() * per_sample(at.clone(), dims));
            let logits = self.logits(x.clone());
            let wrong = self.keep(x, logits.clone());
            let wrong_logits = rows_where(wrong.clone(), &logits);
            far = far.mask_where(wrong.clone(), at.clone());
            far_logits = far_logits.mask_where(wrong_logits.clone(), logits.clone());
            near = near.mask_where(wrong.bool_not(), at);
            near_logits = near_logits.mask_where(wrong_logits.bool_not(), logits);
        }
    }

    fn logits(&self, x: Tensor<2>) -> Tensor<2> {
        self.model.logits(x.reshape(self.dims))
    }

    fn in_box(&self, x: Tensor<2>) -> Tensor<2> {
        let (low, high) = self.fab.threat.bounds;
        x.clamp(low, high)
    }
}

/// Logit of `rival` minus logit of the true class: `[batch]`.
fn surplus(logits: Tensor<2>, rival: Tensor<1, Int>, y: Tensor<1, Int>) -> Tensor<1> {
    let of = |class: Tensor<1, Int>| logits.clone().gather(1, class.unsqueeze_dim(1));
    (of(rival) - of(y)).squeeze_dim(1)
}

/// Where another class has a higher logit than the true one.
fn misclassified(logits: Tensor<2>, y: Tensor<1, Int>) -> Tensor<1, Bool> {
    AttackLoss::Margin.per_sample(logits, y).greater_elem(0.0)
}

/// First and second half of the rows.
fn halves<const D: usize>(x: Tensor<D>) -> [Tensor<D>; 2] {
    let rows = x.dims()[0];
    [0..rows / 2, rows / 2..rows].map(|half| x.clone().slice([half]))
}

/// A mask of whole samples, of the shape of `like`. Comparing after the sum, because an expanded tensor must not be compared.
fn rows_where<const D: usize>(rows: Tensor<1, Bool>, like: &Tensor<D>) -> Tensor<D, Bool> {
    (like.zeros_like() + per_sample(rows.float(), like.dims())).greater_elem(0.5)
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

    /// Distance of `x` to the nearest boundary of class `y`, far from the faces: margin over the dual norm of the difference of rows.
    fn closed_form(x: &[f32], y: usize, norm: Norm) -> f32 {
        let logit = |class: usize| -> f32 {
            BIAS[class] + ROWS[class].iter().zip(x).map(|(w, v)| w * v).sum::<f32>()
        };
        (0..3)
            .filter(|class| *class != y)
            .map(|class| {
                let difference = (0..4).map(|i| ROWS[class][i] - ROWS[y][i]);
                let dual = match norm {
                    Norm::Linf => difference.map(f32::abs).sum::<f32>(),
                    Norm::L2 => difference.map(|d| d * d).sum::<f32>().sqrt(),
                    Norm::L1 | Norm::L0 => unimplemented!("distances in {norm}"),
                };
                (logit(y) - logit(class)) / dual
            })
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
        let mask = misclassified(model.logits(x), y).float();
        values(mask).into_iter().map(|v| v > 0.5).collect()
    }

    #[test]
    fn linear_boundaries_are_found_at_their_distance() {
        let model = Linear::new(ROWS, BIAS, &Device::flex());
        let (x, y) = points(40, &model);
        let classes: Vec<i64> = y.clone().try_into_vec_as().unwrap();
        let inputs = values(x.clone());
        for threat in ["linf:0.1", "l2:0.1"] {
            for fab in attacks(threat) {
                let name = Attack::<2>::name(&fab);
                let norm = fab.threat.norm;
                let found = fab.minimal(&model, x.clone(), y.clone(), &noise(0..40));
                assert!(wrong(&model, found.clone(), y.clone()).iter().all(|w| *w));
                for (i, d) in distances(x.clone(), found, norm).into_iter().enumerate() {
                    let least = closed_form(&inputs[4 * i..4 * i + 4], classes[i] as usize, norm);
                    assert!(
                        d >= least * 0.9999 - 1e-6 && d <= least * 1.02 + 1e-5,
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
        for norm in [Norm::Linf, Norm::L2] {
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
                    if least[i] > eps || least[i] * 1.02 + 1e-5 < eps {
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
        // x2 stops at 1, so x1 must reach 0.5: a move of (0.4, 0.1) in either norm.
        for (threat, least) in [("linf:1", 0.4), ("l2:1", 0.17f32.sqrt())] {
            for fab in attacks(threat) {
                let found = fab.minimal(&model, x.clone(), y.clone(), &noise([0]));
                let size = distances(x.clone(), found, fab.threat.norm)[0];
                assert!(
                    size >= least - 1e-5 && size <= least * 1.02,
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
            (false, "linf:1", [0.2, 0.05, 0.05]),
            (false, "l2:1", [0.2, 0.05, 0.05]),
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
    const GOLDEN: [(Norm, bool, [f32; 10]); 4] = [
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
        for threat in ["linf:0.1", "l2:0.1"] {
            for fab in attacks(threat) {
                let all = values(fab.minimal(&model, x.clone(), y.clone(), &noise(10..17)));
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
                            values(fab.minimal(&model, x, y, &noise(ids)))
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
        for threat in ["linf:0.3", "l2:0.3"] {
            for fab in attacks(threat) {
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
        for threat in ["linf:0.3", "l2:0.3"] {
            for fab in attacks(threat) {
                let found = fab.perturb(&Holes, x.clone(), y.clone(), &noise(0..2));
                assert_eq!(values(found), [0.5, 0.6]);
            }
        }
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
        assert_eq!(Attack::<4>::name(&Fab::untargeted(threat)), "FAB-100");
    }
}
