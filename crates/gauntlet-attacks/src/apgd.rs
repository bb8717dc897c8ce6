use burn::tensor::{Int, Tensor};
use gauntlet_kernels::perturb::{
    choose, linf_norms, per_sample, project_l2, project_linf, unit_l2,
};
use gauntlet_models::Classifier;

use crate::gradient::{input_gradient_of, without_true};
use crate::{Attack, AttackLoss, Noise, Norm, ThreatModel};

/// What [`Apgd`] ascends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApgdLoss {
    /// Cross-entropy with the true class.
    CrossEntropy,
    /// Difference of logits ratio: the margin, scaled so that no scaling of the logits hides it (Croce & Hein 2020,
    /// eq. 6). Needs three classes.
    Dlr,
    /// The same towards one class (eq. 7), for so many classes in turn: those with the highest clean logits. Needs four
    /// classes.
    TargetedDlr {
        /// How many.
        targets: usize,
    },
}

/// Auto-PGD (Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
/// attacks", algorithm 1) for L∞ and L2: momentum, and a step that is halved where it stops to help.
///
/// Rows that fell under one restart or target are left out of the next. A row that stands comes back as the point of highest
/// loss of the last run.
#[derive(Clone, Debug)]
pub struct Apgd {
    /// What the attacker may do.
    pub threat: ThreatModel,
    /// What is ascended.
    pub loss: ApgdLoss,
    /// Gradient steps of a run.
    pub steps: usize,
    /// Runs from new random starts, for each target.
    pub restarts: usize,
}

impl<const D: usize> Attack<D> for Apgd {
    fn perturb(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<D> {
        if x.dims()[0] == 0 {
            return x;
        }
        let ranking = ranking(model.logits(x.clone()), &y);
        let targets = match self.loss {
            ApgdLoss::TargetedDlr { targets } => targets.min(ranking.dims()[1] - 1),
            _ => 1,
        };
        let mut standing = Rows::all(x.clone(), y, noise);
        let mut fallen: Vec<(Vec<usize>, Tensor<D>)> = Vec::new();
        let mut last = x.clone();
        for run in 0..targets * self.restarts.max(1) {
            let rank = run / self.restarts.max(1);
            let target = ranking
                .clone()
                .slice([0..ranking.dims()[0], rank..rank + 1])
                .squeeze_dim::<1>(1)
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

impl Apgd {
    /// One run from a random start. Returns a misclassified point of each row or, where none was found, that of highest loss;
    /// and which rows fell.
    fn run<const D: usize>(
        &self,
        model: &dyn Classifier<D>,
        rows: &Rows<D>,
        target: Tensor<1, Int>,
        run: u32,
    ) -> (Tensor<D>, Vec<bool>) {
        let measure = |x: &Tensor<D>| {
            let (gradient, loss, logits) = input_gradient_of(model, x.clone(), |logits| {
                self.loss.per_sample(logits, &rows.y, &target)
            });
            let wrong = AttackLoss::Margin
                .per_sample(logits, rows.y.clone())
                .greater_elem(0.0)
                .float();
            (gradient, loss, wrong)
        };
        let mut x = self.start(rows, run);
        let (mut gradient, loss, mut fell) = measure(&x);
        let (mut best, mut best_gradient, mut best_loss) =
            (x.clone(), gradient.clone(), loss.clone());
        let (mut found, mut before) = (x.clone(), x.clone());
        let mut step = loss.ones_like().mul_scalar(2.0 * self.threat.eps.value());
        let mut check = Check::new(&loss);
        let checkpoints = checkpoints(self.steps);
        for made in 1..=self.steps {
            // The momentum of the first step would be that of no step.
            let momentum = if made == 1 { 0.0 } else { 0.25 };
            let moved = self.step(&x, &rows.x, gradient, &before, &step, momentum);
            before = std::mem::replace(&mut x, moved);
            let (new_gradient, loss, wrong) = measure(&x);
            gradient = new_gradient;
            found = choose(&wrong, x.clone(), found);
            fell = fell.max_pair(wrong);
            let higher = loss.clone().greater(best_loss.clone()).float();
            best = choose(&higher, x.clone(), best);
            best_gradient = choose(&higher, gradient.clone(), best_gradient);
            best_loss = choose(&higher, loss.clone(), best_loss);
            check.add(loss);
            if checkpoints.contains(&made) {
                let halve = check.due(&best_loss);
                step = step * halve.clone().mul_scalar(-0.5).add_scalar(1.0);
                x = choose(&halve, best.clone(), x);
                gradient = choose(&halve, best_gradient.clone(), gradient);
                if host(fell.clone()).iter().all(|&fell| fell > 0.5) {
                    break;
                }
            }
        }
        let result = choose(&fell, found, best);
        (
            result,
            host(fell).into_iter().map(|fell| fell > 0.5).collect(),
        )
    }

    /// A random point on the surface of the ball, clipped to the box.
    fn start<const D: usize>(&self, rows: &Rows<D>, run: u32) -> Tensor<D> {
        let (shape, device) = (rows.x.dims(), rows.x.device());
        let (key, samples) = (rows.noise.key.restart(run), &rows.noise.samples);
        let eps = self.threat.eps.value();
        let (low, high) = self.threat.bounds;
        let direction = match self.threat.norm {
            Norm::Linf => {
                let delta = key.uniform(samples, shape, -1.0, 1.0, &device);
                let largest = linf_norms(delta.clone()).clamp_min(1e-12);
                delta / per_sample(largest, shape)
            }
            Norm::L2 => {
                let values = shape[1..].iter().product::<usize>();
                unit_l2(key.normal(samples, [shape[0], values], &device)).reshape(shape)
            }
            Norm::L1 | Norm::L0 => unimplemented!("APGD in {}", self.threat.norm),
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
        let project = |z: Tensor<D>| match self.threat.norm {
            Norm::Linf => project_linf(z, x0.clone(), eps, bounds),
            Norm::L2 => project_l2(z, x0.clone(), eps, bounds),
            Norm::L1 | Norm::L0 => unimplemented!("APGD in {}", self.threat.norm),
        };
        let direction = match self.threat.norm {
            Norm::Linf => gradient.sign(),
            Norm::L2 => unit_l2(gradient),
            Norm::L1 | Norm::L0 => unimplemented!("APGD in {}", self.threat.norm),
        };
        let ahead = project(x.clone() + direction * per_sample(size.clone(), x.dims()));
        let pull = (ahead - x.clone()).mul_scalar(1.0 - momentum);
        let drift = (x.clone() - before.clone()).mul_scalar(momentum);
        project(x.clone() + pull + drift)
    }
}

impl ApgdLoss {
    /// Loss of each row; `target` is used by the targeted one only.
    fn per_sample(
        self,
        logits: Tensor<2>,
        y: &Tensor<1, Int>,
        target: &Tensor<1, Int>,
    ) -> Tensor<1> {
        if self == Self::CrossEntropy {
            return AttackLoss::CrossEntropy.per_sample(logits, y.clone());
        }
        let order = logits.clone().inner().argsort_descending(1);
        let [rows, classes] = logits.dims();
        assert!(
            classes >= 4 || (self == Self::Dlr && classes == 3),
            "DLR needs more classes"
        );
        let at = |class: Tensor<2, Int>| logits.clone().gather(1, class);
        let ranked = |rank: usize| at(order.clone().slice([0..rows, rank..rank + 1]));
        let truth = at(y.clone().unsqueeze_dim(1));
        let (margin, scale) = match self {
            Self::TargetedDlr { .. } => {
                let third_and_fourth = (ranked(2) + ranked(3)).mul_scalar(0.5);
                (
                    truth - at(target.clone().unsqueeze_dim(1)),
                    ranked(0) - third_and_fourth,
                )
            }
            _ => {
                let first = order.clone().slice([0..rows, 0..1]);
                let is_first = first.equal(y.clone().unsqueeze_dim(1)).float();
                let is_first = Tensor::from_inner(is_first);
                let other =
                    ranked(1) * is_first.clone() + ranked(0) * is_first.neg().add_scalar(1.0);
                (truth - other, ranked(0) - ranked(2))
            }
        };
        (margin.neg() / scale.add_scalar(1e-12)).squeeze_dim(1)
    }
}

/// Steps after which the step size is looked at: periods of 22 % of all, then ever 3 % shorter, but no less than 6 %.
fn checkpoints(steps: usize) -> Vec<usize> {
    let share = |hundredths: usize| (steps * hundredths / 100).max(1);
    let (mut period, mut at, mut found) = (share(22), 0, Vec::new());
    while at + period <= steps {
        at += period;
        found.push(at);
        period = period.saturating_sub(share(3)).max(share(6));
    }
    found
}

/// What is remembered between checkpoints, a value a row.
struct Check {
    /// How often the loss rose.
    rises: Tensor<1>,
    steps: usize,
    /// The loss of the step before.
    loss: Tensor<1>,
    best: Tensor<1>,
    /// Whether the step was halved at the last one.
    halved: Tensor<1>,
}

impl Check {
    fn new(loss: &Tensor<1>) -> Self {
        Self {
            rises: loss.zeros_like(),
            steps: 0,
            // As the authors' code has it: the first loss is compared with zero.
            loss: loss.zeros_like(),
            best: loss.clone(),
            halved: loss.ones_like(),
        }
    }

    fn add(&mut self, loss: Tensor<1>) {
        self.rises = self.rises.clone() + loss.clone().greater(self.loss.clone()).float();
        self.loss = loss;
        self.steps += 1;
    }

    /// 1 for rows whose step is to be halved: the loss rose in three quarters of the steps or less (condition 1), or the step
    /// was kept last time and the best loss is still what it was (condition 2).
    fn due(&mut self, best: &Tensor<1>) -> Tensor<1> {
        let few = 0.75 * self.steps as f32;
        let oscillates = self.rises.clone().lower_equal_elem(few).float();
        let stalls = self.best.clone().greater_equal(best.clone()).float();
        let kept = self.halved.clone().neg().add_scalar(1.0);
        let halve = oscillates.max_pair(kept * stalls);
        self.halved = halve.clone();
        self.best = best.clone();
        self.rises = self.rises.zeros_like();
        self.steps = 0;
        halve
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
    use gauntlet_kernels::{NoiseKey, Stream};

    use super::*;
    use crate::testing::{Linear, values};

    #[test]
    fn step_sizes_are_looked_at_when_the_paper_does() {
        // Section 3.1: p_j for 100 iterations.
        assert_eq!(checkpoints(100), [22, 41, 57, 70, 80, 87, 93, 99]);
        assert_eq!(checkpoints(1), [1]);
        assert!(checkpoints(0).is_empty());
    }

    #[test]
    fn ratios_are_their_formulas() {
        let device = Device::flex();
        let logits = [[1.0, 2.0, 0.5, -1.0], [1.0, 2.0, 0.5, -1.0]];
        let logits = Tensor::<2>::from_floats(logits, &device).autodiff();
        let y = Tensor::<1, Int>::from_ints([1, 0], &device);
        let target = Tensor::<1, Int>::from_ints([2, 1], &device);
        let close = |loss: ApgdLoss, expected: [f32; 2]| {
            let found = values(loss.per_sample(logits.clone(), &y, &target).inner());
            let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
            assert!(off.fold(0.0, f32::max) < 1e-6, "{loss:?}: {found:?}");
        };
        close(ApgdLoss::Dlr, [-1.0 / 1.5, 1.0 / 1.5]);
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
            for threat in ["linf:0.08", "l2:0.08"] {
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
                    let attack = Apgd {
                        threat: threat.clone(),
                        loss,
                        steps: 100,
                        restarts: 1,
                    };
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
}
