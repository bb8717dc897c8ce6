use burn::tensor::{Int, Tensor};
use gauntlet_kernels::perturb::{
    choose, l1_sparse_step, l2_momentum_step, linf_momentum_step, linf_norms, per_sample,
    project_l1, unit_l2,
};
use gauntlet_models::Classifier;

use crate::apgd_pace::Pace;
use crate::fgsm::no_gradient_step;
use crate::gradient::{input_gradient_of, without_true};
use crate::{Attack, AttackLoss, Goal, Noise, Norm, ThreatModel};

/// What [`Apgd`] ascends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApgdLoss {
    /// Cross-entropy with the class given.
    CrossEntropy,
    /// Difference of logits ratio: the margin, scaled so that no scaling of the logits hides it (Croce & Hein 2020,
    /// eq. 6). Needs three classes. Towards a target, its lead over the highest other logit, scaled as in eq. 7; needs four.
    Dlr,
    /// The same towards one class (eq. 7), for so many classes in turn: those with the highest clean logits. Needs four
    /// classes.
    ///
    /// A way to any other class than the true one: the goal is untargeted, whatever [`Apgd::goal`] says.
    TargetedDlr {
        /// How many; no more than there are other classes.
        targets: usize,
    },
}

/// Auto-PGD: a gradient attack that finds its own step sizes.
///
/// In L∞ and L2 (Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
/// attacks", algorithm 1) it has momentum, and a step that is halved where it stops to help.
///
/// In L1 (Croce & Hein 2021, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", algorithm 1) it has
/// no momentum. A step moves as many values as the best point found has changed, over 1.5; while that number falls the step
/// stays long, else it shrinks. Projections are exact.
///
/// Rows that fell under one restart or target are left out of the next. A row that stands comes back as the point of highest
/// loss of the last run.
///
/// # Panics
/// `perturb` panics in L0, which has no gradient step, and where the loss needs more classes.
#[derive(Clone, Debug)]
pub struct Apgd {
    /// What the attacker may do: L∞, L2 or L1.
    pub threat: ThreatModel,
    /// What is ascended.
    pub loss: ApgdLoss,
    /// Gradient steps of a run.
    pub steps: usize,
    /// Runs from new random starts, for each target.
    pub restarts: usize,
    /// What the attacker wants.
    pub goal: Goal,
    /// In L1, whether a run has three stages: 30 % of its steps within 3 eps, 30 % within 2 eps, and the rest within eps, each
    /// from the best point of the one before, projected (the L1 paper's multi-eps scheme; AutoAttack's `use_largereps`). Other
    /// norms do not use it.
    pub larger_eps: bool,
}

impl Apgd {
    /// As in AutoAttack: 100 steps, one restart, untargeted, stages in L1. (AutoAttack restarts cross-entropy 5 times in L1,
    /// and takes 5 targets instead of 9.)
    pub fn new(threat: ThreatModel, loss: ApgdLoss) -> Self {
        Self {
            threat,
            loss,
            steps: 100,
            restarts: 1,
            goal: Goal::Untargeted,
            larger_eps: true,
        }
    }
}

impl<const D: usize> Attack<D> for Apgd {
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
        let targets = match self.loss {
            ApgdLoss::TargetedDlr { targets } => {
                let ranking = ranking(model.logits(x.clone()), &y);
                let [rows, others] = ranking.dims();
                let target = |rank| ranking.clone().slice([0..rows, rank..rank + 1]);
                (0..targets.min(others))
                    .map(|rank| target(rank).squeeze_dim::<1>(1))
                    .collect()
            }
            _ => vec![y.clone()],
        };
        let restarts = self.restarts.max(1);
        let mut standing = Rows::all(x.clone(), y, noise);
        let mut fallen: Vec<(Vec<usize>, Tensor<D>)> = Vec::new();
        let mut last = x.clone();
        for run in 0..targets.len() * restarts {
            let target = targets[run / restarts]
                .clone()
                .select(0, standing.index(&x));
            let (found, fell) = self.run(model, &standing, target, run as u32);
            let (down, up): (Vec<_>, Vec<_>) = (0..fell.len()).partition(|&row| fell[row]);
            if !down.is_empty() {
                let places = down.iter().map(|&row| standing.places[row]).collect();
                fallen.push((places, found.clone().select(0, index(&down, &x))));
            }
            last = found.select(0, index(&up, &x));
            standing = standing.select(&up);
            if standing.places.is_empty() {
                break;
            }
        }
        fallen.push((standing.places, last));
        let result = in_place(fallen);
        debug_assert_eq!(self.threat.verify(&x, &result), Ok(()));
        result
    }

    fn name(&self) -> String {
        let loss = match self.loss {
            ApgdLoss::CrossEntropy => "CE".to_owned(),
            ApgdLoss::Dlr => "DLR".to_owned(),
            ApgdLoss::TargetedDlr { targets } => format!("T{targets}"),
        };
        match self.restarts {
            0 | 1 => format!("APGD-{loss}-{}", self.steps),
            restarts => format!("APGD-{loss}-{}x{restarts}", self.steps),
        }
    }
}

/// What a climb came to.
struct Climbed<const D: usize> {
    /// The point of highest loss.
    best: Tensor<D>,
    /// The last point that was what the attacker wants, where one was.
    found: Tensor<D>,
    /// 1 where one was.
    fell: Tensor<1>,
}

impl Apgd {
    /// One run from a random start. Returns a point of each row that is what the attacker wants or, where none was found, that
    /// of highest loss; and which rows fell.
    fn run<const D: usize>(
        &self,
        model: &dyn Classifier<D>,
        rows: &Rows<D>,
        target: Tensor<1, Int>,
        run: u32,
    ) -> (Tensor<D>, Vec<bool>) {
        let stages = self.stages();
        let mut x = self.start(rows, run, stages[0].0);
        let mut climbed = None;
        for (stage, &(eps, steps)) in stages.iter().enumerate() {
            if stage > 0 {
                x = project_l1(x, rows.x.clone(), eps, self.threat.bounds);
            }
            // Only in the last stage a point that is misclassified is legal, and ends the search for its row.
            let last = stage + 1 == stages.len();
            let end = self.climb(model, rows, &target, x, (eps, steps), last);
            x = end.best.clone();
            climbed = Some(end);
        }
        let Climbed { best, found, fell } = climbed.expect("there is a stage");
        let result = choose(&fell, found, best);
        (
            result,
            host(fell).into_iter().map(|fell| fell > 0.5).collect(),
        )
    }

    /// Radius of the ball and steps of each stage of a run.
    fn stages(&self) -> Vec<(f32, usize)> {
        let eps = self.threat.eps.value();
        if self.threat.norm != Norm::L1 || !self.larger_eps {
            return vec![(eps, self.steps)];
        }
        let third = (self.steps * 3).div_ceil(10);
        let second = third.min(self.steps - third);
        vec![
            (3.0 * eps, third),
            (2.0 * eps, second),
            (eps, self.steps - third - second),
        ]
    }

    /// So many steps within `eps` from `x`. Where `may_end`, it stops once all rows fell.
    fn climb<const D: usize>(
        &self,
        model: &dyn Classifier<D>,
        rows: &Rows<D>,
        target: &Tensor<1, Int>,
        mut x: Tensor<D>,
        (eps, steps): (f32, usize),
        may_end: bool,
    ) -> Climbed<D> {
        let goal = match self.loss {
            ApgdLoss::TargetedDlr { .. } => Goal::Untargeted,
            _ => self.goal,
        };
        let measure = |x: &Tensor<D>| {
            let (gradient, loss, logits) = input_gradient_of(model, x.clone(), |logits| {
                self.loss.per_sample(goal, logits, &rows.y, target)
            });
            (gradient, loss, goal.reached(logits, rows.y.clone()))
        };
        let (mut gradient, loss, mut fell) = measure(&x);
        let (mut best, mut best_gradient, mut best_loss) =
            (x.clone(), gradient.clone(), loss.clone());
        let (mut found, mut before) = (x.clone(), x.clone());
        let mut pace = match self.threat.norm {
            Norm::L1 => Pace::sparse(&x, &rows.x, eps, steps, self.stages().len() > 1),
            _ => Pace::halving(&loss, eps, steps),
        };
        for made in 1..=steps {
            let moved = match self.threat.norm {
                Norm::L1 => self.sparse_step(&x, &rows.x, gradient, &pace, eps),
                _ => {
                    // The momentum of the first step would be that of no step.
                    let momentum = if made == 1 { 0.0 } else { 0.25 };
                    self.step(&x, &rows.x, gradient, &before, pace.step(), momentum)
                }
            };
            before = std::mem::replace(&mut x, moved);
            let (new_gradient, loss, reached) = measure(&x);
            gradient = new_gradient;
            found = choose(&reached, x.clone(), found);
            fell = fell.max_pair(reached);
            let higher = loss.clone().greater(best_loss.clone()).float();
            best = choose(&higher, x.clone(), best);
            best_gradient = choose(&higher, gradient.clone(), best_gradient);
            best_loss = choose(&higher, loss.clone(), best_loss);
            if let Some(back) = pace.after_step(made, loss, &best_loss, &best, &rows.x) {
                x = choose(&back, best.clone(), x);
                gradient = choose(&back, best_gradient.clone(), gradient);
                if may_end && host(fell.clone()).iter().all(|&fell| fell > 0.5) {
                    break;
                }
            }
        }
        Climbed { best, found, fell }
    }

    /// A random point on the surface of the ball, clipped to the box (L∞, L2); the legal point nearest to normal noise (L1).
    fn start<const D: usize>(&self, rows: &Rows<D>, run: u32, eps: f32) -> Tensor<D> {
        let (shape, device) = (rows.x.dims(), rows.x.device());
        let (key, samples) = (rows.noise.key.restart(run), &rows.noise.samples);
        let (low, high) = self.threat.bounds;
        let flat = [shape[0], shape[1..].iter().product::<usize>()];
        let direction = match self.threat.norm {
            Norm::Linf => {
                let delta = key.uniform(samples, shape, -1.0, 1.0, &device);
                let largest = linf_norms(delta.clone()).clamp_min(1e-12);
                delta / per_sample(largest, shape)
            }
            Norm::L2 => unit_l2(key.normal::<2>(samples, flat, &device)).reshape(shape),
            Norm::L1 => {
                let far = rows.x.clone() + key.normal(samples, shape, &device);
                return project_l1(far, rows.x.clone(), eps, self.threat.bounds);
            }
            Norm::L0 => no_gradient_step(),
        };
        (rows.x.clone() + direction.mul_scalar(eps)).clamp(low, high)
    }

    /// Equations 3 and 4: a step of `size` along the gradient, then towards it with momentum, each projected.
    fn step<const D: usize>(
        &self,
        x: &Tensor<D>,
        x0: &Tensor<D>,
        gradient: Tensor<D>,
        before: &Tensor<D>,
        size: &Tensor<1>,
        momentum: f32,
    ) -> Tensor<D> {
        let (eps, bounds) = (self.threat.eps.value(), self.threat.bounds);
        let (x, x0, before, size) = (x.clone(), x0.clone(), before.clone(), size.clone());
        match self.threat.norm {
            Norm::Linf => linf_momentum_step(x, x0, gradient, before, size, momentum, eps, bounds),
            _ => l2_momentum_step(x, x0, gradient, before, size, momentum, eps, bounds),
        }
    }

    /// The L1 step: along the signs of the gradient's largest values, projected.
    fn sparse_step<const D: usize>(
        &self,
        x: &Tensor<D>,
        x0: &Tensor<D>,
        gradient: Tensor<D>,
        pace: &Pace,
        eps: f32,
    ) -> Tensor<D> {
        let (size, count) = (pace.step().clone(), pace.moved());
        let (x, x0, bounds) = (x.clone(), x0.clone(), self.threat.bounds);
        l1_sparse_step(x, x0, gradient, size, count, eps, bounds)
    }
}

impl ApgdLoss {
    /// Loss of each row, as the attacker ascends it; `target` is used by the targeted one only.
    fn per_sample(
        self,
        goal: Goal,
        logits: Tensor<2>,
        y: &Tensor<1, Int>,
        target: &Tensor<1, Int>,
    ) -> Tensor<1> {
        if self == Self::CrossEntropy {
            return goal.loss(AttackLoss::CrossEntropy, logits, y.clone());
        }
        let order = logits.clone().inner().argsort_descending(1);
        let [rows, classes] = logits.dims();
        assert!(
            classes >= 4 || (self == Self::Dlr && goal == Goal::Untargeted && classes == 3),
            "DLR needs more classes"
        );
        let at = |class: Tensor<2, Int>| logits.clone().gather(1, class);
        let ranked = |rank: usize| at(order.clone().slice([0..rows, rank..rank + 1]));
        let given = at(y.clone().unsqueeze_dim(1));
        let third_and_fourth = || (ranked(2) + ranked(3)).mul_scalar(0.5);
        let (margin, scale) = match self {
            Self::TargetedDlr { .. } => {
                let target = at(target.clone().unsqueeze_dim(1));
                (given - target, ranked(0) - third_and_fourth())
            }
            _ => {
                let first = order.clone().slice([0..rows, 0..1]);
                let is_first = first.equal(y.clone().unsqueeze_dim(1)).float();
                let is_first = Tensor::from_inner(is_first);
                let other =
                    ranked(1) * is_first.clone() + ranked(0) * is_first.neg().add_scalar(1.0);
                match goal {
                    Goal::Untargeted => (given - other, ranked(0) - ranked(2)),
                    // Were the target the third, equation 6 would be -1 whatever the logits.
                    Goal::Targeted => (other - given, ranked(0) - third_and_fourth()),
                }
            }
        };
        (margin.neg() / scale.add_scalar(1e-12)).squeeze_dim(1)
    }
}

/// Rows of a batch that still stand.
struct Rows<const D: usize> {
    /// Where they were in the batch.
    places: Vec<usize>,
    x: Tensor<D>,
    y: Tensor<1, Int>,
    noise: Noise,
}

impl<const D: usize> Rows<D> {
    fn all(x: Tensor<D>, y: Tensor<1, Int>, noise: &Noise) -> Self {
        Self {
            places: (0..x.dims()[0]).collect(),
            x,
            y,
            noise: noise.clone(),
        }
    }

    fn select(&self, rows: &[usize]) -> Self {
        let chosen = index(rows, &self.x);
        Self {
            places: rows.iter().map(|&row| self.places[row]).collect(),
            x: self.x.clone().select(0, chosen.clone()),
            y: self.y.clone().select(0, chosen),
            noise: Noise {
                key: self.noise.key,
                samples: rows.iter().map(|&row| self.noise.samples[row]).collect(),
            },
        }
    }

    fn index(&self, like: &Tensor<D>) -> Tensor<1, Int> {
        index(&self.places, like)
    }
}

pub(crate) fn index<const D: usize>(rows: &[usize], like: &Tensor<D>) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    Tensor::from_ints(rows.as_slice(), &like.device())
}

/// Puts parts of a batch back to where their rows were.
pub(crate) fn in_place<const D: usize>(parts: Vec<(Vec<usize>, Tensor<D>)>) -> Tensor<D> {
    let places: Vec<usize> = parts
        .iter()
        .flat_map(|(places, _)| places)
        .copied()
        .collect();
    let mut rows = vec![0; places.len()];
    for (row, place) in places.into_iter().enumerate() {
        rows[place] = row;
    }
    let parts: Vec<_> = parts
        .into_iter()
        .filter(|(places, _)| !places.is_empty())
        .collect();
    let together = Tensor::cat(parts.into_iter().map(|(_, part)| part).collect(), 0);
    let order = index(&rows, &together);
    together.select(0, order)
}

/// Classes other than the true one, by falling logit: `[batch, classes - 1]`.
fn ranking(logits: Tensor<2>, y: &Tensor<1, Int>) -> Tensor<2, Int> {
    let [rows, classes] = logits.dims();
    without_true(logits, y.clone())
        .argsort_descending(1)
        .slice([0..rows, 0..classes - 1])
}

fn host(x: Tensor<1>) -> Vec<f32> {
    x.try_into_vec_as()
        .expect("a float tensor that was computed")
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use burn::tensor::activation::relu;
    use gauntlet_kernels::{NoiseKey, Stream};

    use super::*;
    use crate::Pgd;
    use crate::testing::{Linear, values};

    #[test]
    fn stages_use_the_given_steps() {
        let stages = |threat: &str, steps, larger_eps| {
            let attack = Apgd {
                steps,
                larger_eps,
                ..Apgd::new(threat.parse().unwrap(), ApgdLoss::Dlr)
            };
            attack.stages()
        };
        assert_eq!(stages("l1:2", 100, true), [(6.0, 30), (4.0, 30), (2.0, 40)]);
        assert_eq!(stages("l1:2", 25, true), [(6.0, 8), (4.0, 8), (2.0, 9)]);
        assert_eq!(stages("l1:2", 1, true), [(6.0, 1), (4.0, 0), (2.0, 0)]);
        assert_eq!(stages("l1:2", 0, true), [(6.0, 0), (4.0, 0), (2.0, 0)]);
        assert_eq!(stages("l1:2", 100, false), [(2.0, 100)]);
        assert_eq!(stages("linf:2", 100, true), [(2.0, 100)]);
    }

    /// Each target is a class other than the true one, and all of them are tried if so many are asked for.
    #[test]
    fn every_other_class_can_be_a_target() {
        let device = Device::flex();
        let x = Tensor::<2>::full([1, 1], 0.5, &device);
        let y = Tensor::<1, Int>::zeros([1], &device);
        // No class is within reach, and each has its own slope: the point of highest loss of the last run is that of the last
        // target, the class of lowest logit. Its slope leads up, that of all others down.
        let model = Linear::new(
            [[0.0], [-1.0], [-1.0], [1.0]],
            [9.0, 2.0, 1.0, -3.0],
            &device,
        );
        let noise = Noise {
            key: NoiseKey::new(1, Stream::EvalAttack),
            samples: vec![0],
        };
        for (targets, end) in [(1, 0.4), (2, 0.4), (3, 0.6), (9, 0.6)] {
            let attack = Apgd::new(
                "linf:0.1".parse().unwrap(),
                ApgdLoss::TargetedDlr { targets },
            );
            let found = values(attack.perturb(&model, x.clone(), y.clone(), &noise));
            assert!((found[0] - end).abs() < 1e-3, "{targets}: {found:?}");
        }
    }

    #[test]
    fn ratios_are_their_formulas() {
        let device = Device::flex();
        let logits = [[1.0, 2.0, 0.5, -1.0], [1.0, 2.0, 0.5, -1.0]];
        let logits = Tensor::<2>::from_floats(logits, &device).autodiff();
        let y = Tensor::<1, Int>::from_ints([1, 0], &device);
        let target = Tensor::<1, Int>::from_ints([2, 1], &device);
        let close_to = |loss: ApgdLoss, goal, expected: [f32; 2]| {
            let found = values(loss.per_sample(goal, logits.clone(), &y, &target).inner());
            let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
            assert!(off.fold(0.0, f32::max) < 1e-6, "{loss:?}: {found:?}");
        };
        let close = |loss, expected| close_to(loss, Goal::Untargeted, expected);
        close(ApgdLoss::Dlr, [-1.0 / 1.5, 1.0 / 1.5]);
        close_to(ApgdLoss::Dlr, Goal::Targeted, [1.0 / 2.25, -1.0 / 2.25]);
        close(
            ApgdLoss::TargetedDlr { targets: 3 },
            [-1.5 / 2.25, 1.0 / 2.25],
        );
    }

    /// Of four classes with known boundaries, those whose boundary is within eps are reached, and no other: under every
    /// loss, whatever the scale of the logits.
    #[test]
    fn exactly_the_rows_within_reach_fall() {
        let device = Device::flex();
        let rows = [[1.0f32, 0.0], [0.0, 1.0], [-1.0, 0.2], [0.1, -1.0]];
        let bias = [0.0f32, 0.05, 0.3, 0.2];
        let points = [
            [0.55f32, 0.45],
            [0.8, 0.3],
            [0.3, 0.75],
            [0.52, 0.47],
            [0.9, 0.5],
            [0.5, 0.9],
        ];
        let logit = |p: [f32; 2], c: usize| rows[c][0] * p[0] + rows[c][1] * p[1] + bias[c];
        let truth = points.map(|p| {
            (0..4)
                .max_by(|a, b| logit(p, *a).total_cmp(&logit(p, *b)))
                .unwrap()
        });
        let y: Vec<i32> = truth.iter().map(|&class| class as i32).collect();
        for scale in [1.0, 1000.0] {
            let model = Linear::new(
                rows.map(|row| row.map(|w| w * scale)),
                bias.map(|b| b * scale),
                &device,
            );
            for threat in ["linf:0.08", "l2:0.08", "l1:0.08"] {
                let threat: ThreatModel = threat.parse().unwrap();
                // Distance to the nearest boundary, in the norm dual to that of the rows' difference.
                let distances = points.iter().zip(truth).map(|(&p, t)| {
                    let to = (0..4).filter(|&c| c != t).map(|c| {
                        let (a, b) = (rows[t][0] - rows[c][0], rows[t][1] - rows[c][1]);
                        let length = match threat.norm {
                            Norm::Linf => a.abs() + b.abs(),
                            Norm::L2 => a.hypot(b),
                            Norm::L1 => a.abs().max(b.abs()),
                            Norm::L0 => unreachable!("not among the threats"),
                        };
                        (logit(p, t) - logit(p, c)) / length
                    });
                    to.fold(f32::INFINITY, f32::min)
                });
                let within: Vec<bool> = distances.map(|distance| distance < 0.08).collect();
                assert!(within.contains(&true) && within.contains(&false));
                let targeted = ApgdLoss::TargetedDlr { targets: 3 };
                for loss in [ApgdLoss::CrossEntropy, ApgdLoss::Dlr, targeted] {
                    if loss == ApgdLoss::CrossEntropy && scale > 1.0 {
                        // Its gradient underflows: what DLR is for.
                        continue;
                    }
                    let attack = Apgd::new(threat.clone(), loss);
                    let x = Tensor::<2>::from_floats(points, &device);
                    let y = Tensor::<1, Int>::from_ints(y.as_slice(), &device);
                    let noise = Noise {
                        key: NoiseKey::new(1, Stream::EvalAttack),
                        samples: (0..6).collect(),
                    };
                    let found = attack.perturb(&model, x, y.clone(), &noise);
                    let margins = values(AttackLoss::Margin.per_sample(model.logits(found), y));
                    let fell: Vec<bool> = margins.iter().map(|&margin| margin > 0.0).collect();
                    assert_eq!(fell, within, "{loss:?} {threat} x{scale}");
                }
            }
        }
    }

    /// A linear function of 300 values, more of which have no room than are needed. The best gain is the greedy one.
    #[test]
    fn in_l1_nearly_all_of_what_a_linear_model_gives_is_taken() {
        let (device, n, rows) = (Device::flex(), 300, 4);
        let key = NoiseKey::new(6, Stream::EvalAttack);
        let samples: Vec<u32> = (0..rows as u32).collect();
        let weights = key.normal(&[9], [1, n], &device);
        let x = key
            .restart(1)
            .uniform(&samples, [rows, n], -0.5, 1.5, &device);
        let x = x.clamp(0.0, 1.0);
        struct Slope(Tensor<2>);
        impl Classifier<2> for Slope {
            // The ratio is the second logit, less 100, over 1100.
            fn logits(&self, x: Tensor<2>) -> Tensor<2> {
                let score = x.matmul(self.0.clone().transpose());
                let no = score.zeros_like();
                Tensor::cat(vec![no.clone() + 100.0, score, no - 1000.0], 1)
            }
            fn features(&self, x: Tensor<2>) -> Tensor<2> {
                x
            }
        }
        let (model, y) = (Slope(weights.clone()), Tensor::zeros([rows], &device));
        let noise = Noise {
            key: NoiseKey::new(1, Stream::EvalAttack),
            samples,
        };
        let (w, clean) = (values(weights.clone()), values(x.clone()));
        let best: Vec<f32> = clean
            .chunks(n)
            .map(|x| {
                let mut order: Vec<usize> = (0..n).collect();
                order.sort_by(|&a, &b| w[b].abs().total_cmp(&w[a].abs()));
                let (mut left, mut gain) = (6.0f32, 0.0);
                for at in order {
                    let room = if w[at] > 0.0 { 1.0 - x[at] } else { x[at] };
                    gain += w[at].abs() * room.min(left);
                    left -= room.min(left);
                }
                gain
            })
            .collect();
        for larger_eps in [false, true] {
            let attack = Apgd {
                larger_eps,
                ..Apgd::new("l1:6".parse().unwrap(), ApgdLoss::Dlr)
            };
            let moved = attack.perturb(&model, x.clone(), y.clone(), &noise) - x.clone();
            let gains = values((moved * weights.clone()).sum_dim(1));
            for (gain, best) in gains.iter().zip(&best) {
                assert!(*gain > 0.96 * best, "{larger_eps}: {gain} of {best}");
            }
        }
    }

    /// On a random network it fools no fewer inputs than PGD with as many steps; in L1, where it finds the sparsity, more.
    #[test]
    fn it_is_stronger_than_fixed_steps() {
        struct Network {
            hidden: Tensor<2>,
            output: Tensor<2>,
        }
        impl Classifier<2> for Network {
            fn logits(&self, x: Tensor<2>) -> Tensor<2> {
                self.features(x).matmul(self.output.clone())
            }
            fn features(&self, x: Tensor<2>) -> Tensor<2> {
                relu(x.sub_scalar(0.5).matmul(self.hidden.clone()))
            }
        }
        let (device, n, width, rows) = (Device::flex(), 196, 64, 200);
        let key = NoiseKey::new(8, Stream::Init);
        let ids = |n: usize| (0..n as u32).collect::<Vec<_>>();
        let model = Network {
            hidden: key.normal(&ids(n), [n, width], &device),
            output: key.restart(1).normal(&ids(width), [width, 10], &device),
        };
        let x = key
            .restart(2)
            .uniform(&ids(rows), [rows, n], -0.5, 1.5, &device);
        let x = x.clamp(0.0, 1.0);
        let y = model.logits(x.clone()).argmax(1).squeeze_dim::<1>(1);
        let noise = Noise {
            key: NoiseKey::new(1, Stream::EvalAttack),
            samples: ids(rows),
        };
        for (threat, more) in [("linf:0.004", 0), ("l2:0.1", 0), ("l1:1", 5)] {
            let threat: ThreatModel = threat.parse().unwrap();
            let fooled = |attack: &dyn Attack<2>| {
                let found = attack.perturb(&model, x.clone(), y.clone(), &noise);
                assert_eq!(threat.verify(&x, &found), Ok(()));
                let margins = AttackLoss::Margin.per_sample(model.logits(found), y.clone());
                values(margins).iter().filter(|&&m| m > 0.0).count()
            };
            let pgd = fooled(&Pgd::new(threat.clone(), 40));
            for larger_eps in [false, true] {
                let apgd = fooled(&Apgd {
                    steps: 40,
                    larger_eps,
                    ..Apgd::new(threat.clone(), ApgdLoss::CrossEntropy)
                });
                assert!(apgd >= pgd + more, "{threat}: {apgd} and {pgd}");
            }
            assert!((rows / 10..rows).contains(&pgd), "{threat}: {pgd}");
        }
    }
}
