//! What black-box searches share: a model that answers questions about candidates. The searches run on the host, one small
//! state a sample; the device sees nothing but batches of candidates.

use burn::tensor::{Device, Int, Tensor, TensorData};
use gauntlet_kernels::host::batch_rows;
use gauntlet_kernels::noise::Philox;
use gauntlet_models::Classifier;
use rand::RngExt;

use crate::{Goal, Norm, ThreatModel};

/// The model as a black-box search sees it.
pub(crate) struct Oracle<'a, const D: usize> {
    model: &'a dyn Classifier<D>,
    device: Device,
    /// Of the batch under attack.
    dims: [usize; D],
    goal: Goal,
    /// Rows the model is given at once, at most.
    most: usize,
}

impl<'a, const D: usize> Oracle<'a, D> {
    pub(crate) fn new(
        model: &'a dyn Classifier<D>,
        x: &Tensor<D>,
        goal: Goal,
        query_batch: usize,
    ) -> Self {
        Self {
            model,
            device: x.device(),
            dims: x.dims(),
            goal,
            most: query_batch.max(1),
        }
    }

    /// Values of one input.
    pub(crate) fn row(&self) -> usize {
        self.dims[1..].iter().product()
    }

    /// The [`margin`] of each candidate with its class.
    pub(crate) fn margins<'r>(
        &self,
        candidates: impl Iterator<Item = (&'r [f32], usize)>,
    ) -> Vec<f32> {
        let mut margins = Vec::new();
        let (mut values, mut classes) = (Vec::new(), Vec::new());
        for (candidate, class) in candidates {
            values.extend_from_slice(candidate);
            classes.push(class);
            if classes.len() == self.most {
                self.ask(&mut values, &mut classes, &mut margins);
            }
        }
        if !classes.is_empty() {
            self.ask(&mut values, &mut classes, &mut margins);
        }
        margins
    }

    fn ask(&self, values: &mut Vec<f32>, classes: &mut Vec<usize>, margins: &mut Vec<f32>) {
        let mut dims = self.dims;
        dims[0] = batch_rows(classes.len(), self.most, &self.device);
        values.resize(dims.iter().product(), 0.0);
        let data = TensorData::new(std::mem::take(values), dims);
        let logits = self.model.logits(Tensor::from_data(data, &self.device));
        let [_, scores] = logits.dims();
        let logits: Vec<f32> = logits.try_into_vec_as().expect("computed logits");
        let rows = logits.chunks_exact(scores.max(1)).zip(classes.drain(..));
        margins.extend(rows.map(|(row, class)| margin(self.goal, row, class)));
    }

    /// Rows on the host as a tensor shaped like the batch.
    pub(crate) fn tensor(&self, rows: impl Iterator<Item = Vec<f32>>) -> Tensor<D> {
        let values: Vec<f32> = rows.flatten().collect();
        Tensor::from_data(TensorData::new(values, self.dims), &self.device)
    }
}

/// [`AttackLoss::Margin`](crate::AttackLoss::Margin) as an attacker with this goal ascends it, above 0 where the goal is
/// reached. -∞ where a score is no number or there is no such class: nothing is won by that.
fn margin(goal: Goal, logits: &[f32], class: usize) -> f32 {
    let Some(&own) = logits.get(class) else {
        return f32::NEG_INFINITY;
    };
    let mut largest = f32::NEG_INFINITY;
    for (other, &logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return f32::NEG_INFINITY;
        }
        if other != class {
            largest = largest.max(logit);
        }
    }
    let margin = match goal {
        Goal::Untargeted => largest - own,
        Goal::Targeted => own - largest,
    };
    if margin.is_nan() {
        f32::NEG_INFINITY
    } else {
        margin
    }
}

/// The rows of a batch on the host, with their classes. A class below 0 becomes one that no model has.
pub(crate) fn rows<const D: usize>(x: Tensor<D>, y: Tensor<1, Int>) -> Vec<(Vec<f32>, usize)> {
    let row = x.dims()[1..].iter().product::<usize>().max(1);
    let values: Vec<f32> = x.try_into_vec_as().expect("inputs that were computed");
    let classes: Vec<i64> = y.try_into_vec_as().expect("labels");
    let classes = classes
        .into_iter()
        .map(|class| usize::try_from(class).unwrap_or(usize::MAX));
    let rows = values.chunks_exact(row).map(<[f32]>::to_vec);
    rows.zip(classes).collect()
}

/// Fills with standard normal numbers by Box and Muller's transform.
pub(crate) fn normal(rng: &mut Philox, values: &mut [f32]) {
    for pair in values.chunks_mut(2) {
        // 1 - u is in (0, 1], where the logarithm is finite.
        let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * rng.random::<f32>()).sin_cos();
        pair[0] = radius * cos;
        if let Some(second) = pair.get_mut(1) {
            *second = radius * sin;
        }
    }
}

/// Fills with 1 and -1, each as likely.
pub(crate) fn rademacher(rng: &mut Philox, values: &mut [f32]) {
    for word in values.chunks_mut(32) {
        let mut bits = rng.random::<u32>();
        for value in word {
            *value = if bits & 1 == 0 { 1.0 } else { -1.0 };
            bits >>= 1;
        }
    }
}

/// `value` in the bounds; what is no number becomes the lower one.
pub(crate) fn clip(value: f32, (low, high): (f32, f32)) -> f32 {
    value.max(low).min(high)
}

/// Size of `a - b` in L∞ or L2.
pub(crate) fn distance(norm: Norm, a: &[f32], b: &[f32]) -> f32 {
    match norm {
        Norm::Linf => { a.iter().zip(b) }.fold(0.0, |most, (a, b)| (a - b).abs().max(most)),
        Norm::L2 => {
            // Eight sums that the compiler can run at once.
            let mut lanes = [0.0f32; 8];
            for (a, b) in a.chunks(8).zip(b.chunks(8)) {
                for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
                    *lane += (a - b) * (a - b);
                }
            }
            lanes.iter().sum::<f32>().sqrt()
        }
        Norm::L1 | Norm::L0 => unimplemented!("black-box search in {norm}"),
    }
}

/// Scales to L2 length 1; what has no direction becomes 0.
pub(crate) fn unit(values: &mut [f32]) {
    let largest = values.iter().fold(0.0f32, |most, v| v.abs().max(most));
    if !(largest > 0.0 && largest.is_finite()) {
        return values.fill(0.0);
    }
    // Scaled by the largest value first: squares of small ones would underflow.
    values.iter_mut().for_each(|value| *value /= largest);
    let sum: f64 = values.iter().map(|v| f64::from(v * v)).sum();
    let length = sum.sqrt() as f32;
    values.iter_mut().for_each(|value| *value /= length);
}

/// Projection of `x` on the L∞ or L2 ball around `clean`, then on the box, which cannot lengthen the perturbation.
pub(crate) fn project(threat: &ThreatModel, clean: &[f32], x: &mut [f32]) {
    let eps = threat.eps.value();
    match threat.norm {
        Norm::Linf => {
            for (x, clean) in x.iter_mut().zip(clean) {
                *x = clip(clean + (*x - clean).clamp(-eps, eps), threat.bounds);
            }
        }
        Norm::L2 => {
            let length = distance(Norm::L2, x, clean);
            let shrink = if length > eps { eps / length } else { 1.0 };
            for (x, clean) in x.iter_mut().zip(clean) {
                *x = clip(clean + (*x - clean) * shrink, threat.bounds);
            }
        }
        norm @ (Norm::L1 | Norm::L0) => unimplemented!("black-box search in {norm}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::black_box::{images, noise};
    use crate::testing::{LinearImages, values};

    #[test]
    fn margins_are_those_of_the_goal_and_no_number_wins_nothing() {
        for (goal, sign) in [(Goal::Untargeted, 1.0), (Goal::Targeted, -1.0)] {
            assert_eq!(margin(goal, &[2.0, 5.0, 3.0], 0), sign * 3.0);
            let nothing = [[f32::NAN, 1.0], [1.0, f32::NAN], [f32::INFINITY; 2]];
            for logits in nothing {
                assert_eq!(margin(goal, &logits, 0), f32::NEG_INFINITY);
            }
            assert_eq!(margin(goal, &[1.0, 2.0], usize::MAX), f32::NEG_INFINITY);
        }
    }

    /// Rows come back in order, whatever they travel in.
    #[test]
    fn answers_do_not_depend_on_how_many_are_asked_at_once() {
        let shape = [7, 1, 3, 3];
        let x = images(shape, 0.0, 1.0);
        let model = LinearImages::random(4, 3, shape);
        let y = Tensor::<1, Int>::from_ints([0, 1, 2, 0, 1, 2, 0], &x.device());
        let expected = values(Goal::Untargeted.loss(
            crate::AttackLoss::Margin,
            model.logits(x.clone()),
            y.clone(),
        ));
        let rows = rows(x.clone(), y);
        for most in [0, 1, 2, 3, 7, 100] {
            let oracle = Oracle::new(&model, &x, Goal::Untargeted, most);
            assert_eq!(oracle.row(), 9);
            let margins = oracle.margins(rows.iter().map(|(row, class)| (&row[..], *class)));
            assert_eq!(margins, expected, "{most} at once");
        }
    }

    #[test]
    fn draws_have_the_moments_of_their_distributions() {
        let mut rng = noise(0..1).key.rng(0);
        let mut values = vec![0.0; 100_001];
        let mut moments = |draw: fn(&mut Philox, &mut [f32])| {
            draw(&mut rng, &mut values);
            let mean = |power: i32| values.iter().map(|v| v.powi(power)).sum::<f32>() / 1e5;
            [mean(1), mean(2), mean(4)]
        };
        for (found, fourth) in [(moments(normal), 3.0), (moments(rademacher), 1.0)] {
            assert!(
                found[0].abs() < 0.016 && (found[1] - 1.0).abs() < 0.025,
                "{found:?}"
            );
            assert!((found[2] - fourth).abs() < 0.2, "{found:?}");
        }
    }

    #[test]
    fn units_and_projections() {
        let mut tiny = [3e-30, -4e-30];
        unit(&mut tiny);
        assert!((tiny[0] - 0.6).abs() < 1e-6 && (tiny[1] + 0.8).abs() < 1e-6);
        for none in [[0.0, 0.0], [f32::INFINITY, 1.0]] {
            let mut values = none;
            unit(&mut values);
            assert_eq!(values, [0.0, 0.0]);
        }
        let mut x = [0.9, 0.9];
        project(&"l2:0.5".parse().unwrap(), &[0.6, 0.5], &mut x);
        assert!((x[0] - 0.9).abs() < 1e-6 && (x[1] - 0.9).abs() < 1e-6);
        project(&"l2:0.25".parse().unwrap(), &[0.6, 0.5], &mut x);
        assert!((x[0] - 0.75).abs() < 1e-6 && (x[1] - 0.7).abs() < 1e-6);
        project(&"linf:0.1".parse().unwrap(), &[0.6, 0.95], &mut x);
        assert!((x[0] - 0.7).abs() < 1e-6 && (x[1] - 0.85).abs() < 1e-6);
        assert_eq!(distance(Norm::Linf, &[0.0; 9], &[0.25; 9]), 0.25);
        assert_eq!(distance(Norm::L2, &[0.0; 9], &[0.25; 9]), 0.75);
    }
}
