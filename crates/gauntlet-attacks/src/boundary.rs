//! Boundary Attack: a random walk along the boundary that drifts towards the clean input (Brendel, Rauber & Bethge 2018,
//! "Decision-based adversarial attacks: reliable attacks against black-box machine learning models").

use burn::tensor::{Int, Tensor};
use gauntlet_models::Classifier;

use crate::decision::{Hunt, Seeker, Start, shortest};
use crate::oracle::{Oracle, clip, distance, normal};
use crate::{Goal, MinimumNorm, Noise, Norm};

/// Boundary Attack (Brendel et al. 2018, algorithm 1) for L2: sees the predicted class and nothing else.
///
/// A candidate is a random step of `orthogonal_step * d` across the direction of the clean input, put back on the sphere at the
/// distance `d` from it, and a step of `source_step * d` towards it; it is taken if it is adversarial. Both shares adapt to each
/// sample: every fifth time, the point on the sphere is asked about too, and the first share rises or falls so that half of these
/// are adversarial; the second, so that a quarter of the candidates are. The paper describes the aim and leaves the rule
/// open.
///
/// The walk does not begin at the start itself but where the straight way from there to the clean input crosses the boundary,
/// which saves queries. Measured on random linear models, as multiples of the distance of the boundary: after 1,000, 5,000 and
/// 25,000 queries 2.2, 1.18 and 1.01 among 784 values, 4.0, 1.94 and 1.11 among 3072.
#[derive(Clone, Debug)]
pub struct Boundary {
    /// What the attacker wants.
    pub goal: Goal,
    /// Smallest and largest legal input value.
    pub bounds: (f32, f32),
    /// Where the walk starts.
    pub start: Start,
    /// Queries of a sample, at most, those for the start among them.
    pub queries: usize,
    /// First size of a step across, as a share of the distance; above 0.
    pub orthogonal_step: f32,
    /// First size of a step towards the clean input, as a share of the distance, in (0, 1).
    pub source_step: f32,
    /// Candidates the model is given at once; a matter of speed and memory only.
    pub query_batch: usize,
}

/// How often the point on the sphere is asked about.
const SPHERE_EVERY: usize = 5;

/// A step towards the clean input that is shorter than this share of the shortest step across leads nowhere: the walk has
/// converged.
const CONVERGED: f32 = 1e-3;

impl Boundary {
    /// Both steps at 0.01 of the distance, as in the authors' code, and 25,000 queries; inputs in [0, 1].
    pub fn new() -> Self {
        Self {
            goal: Goal::Untargeted,
            bounds: (0.0, 1.0),
            start: Start::default(),
            queries: 25_000,
            orthogonal_step: 0.01,
            source_step: 0.01,
            query_batch: 256,
        }
    }

    /// The nearest examples, the clean input where there is none, and how many queries each sample took: the look at the clean
    /// input is none.
    ///
    /// # Shapes
    /// `x: [batch, ..]` in bounds, `y: [batch]`.
    pub fn search<const D: usize>(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> (Tensor<D>, Vec<usize>) {
        if x.dims().contains(&0) {
            let batch = x.dims()[0];
            return (x, vec![0; batch]);
        }
        let hunt = Hunt {
            oracle: Oracle::new(model, &x, self.goal, self.query_batch),
            norm: Norm::L2,
            bounds: self.bounds,
            queries: self.queries,
        };
        let (mut seekers, open) = hunt.begin(x, y, noise, &self.start);
        let walking = seekers.iter_mut().zip(open).filter(|(_, open)| *open);
        let mut active: Vec<&mut Seeker> = walking.map(|(seeker, _)| seeker).collect();
        hunt.to_boundary(&mut active, Norm::L2, 1e-3);
        for seeker in &mut active {
            seeker.steps = [self.orthogonal_step, self.source_step];
        }
        let shortest = shortest(hunt.oracle.row());
        for round in 0.. {
            active.retain(|seeker| {
                seeker.steps[1] * seeker.distance > CONVERGED * shortest && hunt.left(seeker) > 0
            });
            if active.is_empty() {
                break;
            }
            if round % SPHERE_EVERY == 0 {
                active.iter_mut().for_each(|s| self.propose(s, 0.0));
                let answers = hunt.ask(&mut active);
                for (seeker, adversarial) in active.iter_mut().zip(answers) {
                    adapt(&mut seeker.steps[0], adversarial, 0.5, 0.5);
                    // Shorter ones are lost in rounding, fail, and would shrink for ever.
                    seeker.steps[0] = seeker.steps[0].max((shortest / seeker.distance).min(0.5));
                }
                active.retain(|seeker| hunt.left(seeker) > 0);
            }
            active.iter_mut().for_each(|s| self.propose(s, s.steps[1]));
            let answers = hunt.move_if_adversarial(&mut active);
            for (seeker, adversarial) in active.iter_mut().zip(answers) {
                adapt(&mut seeker.steps[1], adversarial, 0.25, 0.2);
            }
        }
        hunt.end(seekers)
    }

    /// A step across, back to the sphere, and by the share `closer` towards the clean input.
    fn propose(&self, seeker: &mut Seeker, closer: f32) {
        normal(&mut seeker.rng, &mut seeker.candidate);
        let points = seeker.x.iter().zip(&seeker.clean);
        let along: f64 = { points.zip(&seeker.candidate) }
            .map(|((x, clean), step)| f64::from((x - clean) * step))
            .sum();
        let along = along as f32 / (seeker.distance * seeker.distance);
        let points = seeker.x.iter().zip(&seeker.clean);
        for (step, (x, clean)) in seeker.candidate.iter_mut().zip(points) {
            *step -= along * (x - clean);
        }
        let across = distance(
            Norm::L2,
            &seeker.candidate,
            &vec![0.0; seeker.candidate.len()],
        );
        let length = seeker.steps[0] * seeker.distance / across.max(f32::MIN_POSITIVE);
        // What is orthogonal lengthens a step of 1 to sqrt(1 + orthogonal²).
        let shrink = (1.0 - closer) / seeker.steps[0].hypot(1.0);
        let points = seeker.x.iter().zip(&seeker.clean);
        for (candidate, (x, clean)) in seeker.candidate.iter_mut().zip(points) {
            let moved = (x - clean + length * *candidate) * shrink;
            *candidate = clip(clean + moved, self.bounds);
        }
    }
}

/// Raises the step after a success and lowers it after a failure: it stands still where `share` of all are successes.
fn adapt(step: &mut f32, success: bool, share: f32, rate: f32) {
    let success = f32::from(u8::from(success));
    *step = (*step * (rate * (success - share)).exp()).min(0.5);
}

impl Default for Boundary {
    fn default() -> Self {
        Self::new()
    }
}

impl<const D: usize> MinimumNorm<D> for Boundary {
    fn minimal(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<D> {
        self.search(model, x, y, noise).0
    }

    fn norm(&self) -> Norm {
        Norm::L2
    }

    fn name(&self) -> String {
        format!("Boundary-{}", self.queries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::black_box::{Decides, check_decisions, images, labels, noise};
    use crate::testing::LinearImages;

    #[test]
    fn the_boundary_is_reached_by_decisions() {
        check_decisions(
            Norm::L2,
            1000,
            &|goal, start, queries, query_batch, model, x, y, noise| {
                let attack = Boundary {
                    goal,
                    start: start.clone(),
                    queries,
                    query_batch,
                    ..Boundary::new()
                };
                attack.search(model, x, y, noise)
            },
        );
    }

    /// On the sphere: the distance stays, and the way to the old point is `2 sin(atan(step) / 2)` distances long. Towards the
    /// clean input: nearer by the share.
    #[test]
    fn candidates_lie_where_the_paper_puts_them() {
        let shape = [1, 1, 5, 5];
        let x = images(shape, 0.49, 0.51);
        let model = Decides(LinearImages::random(1, 2, shape));
        let y = labels(&model, &x);
        let attack = Boundary::new();
        let hunt = Hunt {
            oracle: Oracle::new(&model, &x, Goal::Untargeted, 8),
            norm: Norm::L2,
            bounds: (0.0, 1.0),
            queries: 1000,
        };
        let (mut seekers, open) = hunt.begin(x, y, &noise(0..1), &Start::default());
        assert_eq!(open, [true]);
        let mut active: Vec<&mut Seeker> = seekers.iter_mut().collect();
        hunt.to_boundary(&mut active, Norm::L2, 1e-3);
        let seeker = &mut *active[0];
        let away = |seeker: &Seeker| {
            distance(Norm::L2, &seeker.candidate, &seeker.clean) / seeker.distance
        };
        for step in [0.01f32, 0.1, 0.3] {
            seeker.steps = [step, 0.05];
            attack.propose(seeker, 0.0);
            assert!((away(seeker) - 1.0).abs() < 1e-5);
            let moved = distance(Norm::L2, &seeker.candidate, &seeker.x) / seeker.distance;
            assert!((moved - 2.0 * (step.atan() / 2.0).sin()).abs() < 1e-5);
            attack.propose(seeker, 0.05);
            assert!((away(seeker) - 0.95).abs() < 1e-5);
        }
    }

    /// Rates of success at which a step stands still, by drawing.
    #[test]
    fn steps_settle_where_the_wanted_share_succeeds() {
        use rand::RngExt;
        let mut rng = noise(0..1).key.rng(0);
        for (share, rate) in [(0.5, 0.5), (0.25, 0.2)] {
            let mut step = 0.01f32;
            let (mut wins, all) = (0, 20_000);
            for _ in 0..all {
                // Success gets rarer with the step: exp(-10 step) of the time.
                let success = rng.random::<f32>() < (-10.0 * step).exp();
                wins += i32::from(success);
                adapt(&mut step, success, share, rate);
            }
            let found = wins as f32 / all as f32;
            assert!((found - share).abs() < 0.02, "{found} for {share}");
        }
        let mut step = 0.4;
        adapt(&mut step, true, 0.25, 9.0);
        assert_eq!(step, 0.5);
        assert_eq!(
            MinimumNorm::<4>::name(&Boundary::default()),
            "Boundary-25000"
        );
    }
}
