//! HopSkipJump: the direction of the boundary from decisions around a point on it (Chen, Jordan & Wainwright 2020,
//! "HopSkipJumpAttack: a query-efficient decision-based attack").

use burn::tensor::{Int, Tensor};
use gauntlet_models::Classifier;

use crate::decision::{Hunt, Seeker, Start, shortest};
use crate::oracle::{Oracle, clip, normal, unit};
use crate::{Goal, MinimumNorm, Noise, Norm};
use rand::RngExt;

/// HopSkipJump (Chen et al. 2020, algorithm 2) for L2 and L∞: sees the predicted class and nothing else.
///
/// Each step starts from a point on the boundary, at distance `d` of the clean input among `n` values.
///
/// 1. Direction: of `gradient_queries * sqrt(step)` points at distance `delta` in random directions, the mean of
///    those that are adversarial minus the mean of those that are not, which is the paper's estimate with its baseline, but for
///    a factor. `delta` is `sqrt(n) theta d` in L2, `n theta d` in L∞,
///    with the bisection's tolerance `theta` of `n^-3/2` and `n^-2`; in the first step a tenth of the box, as in the authors'
///    code.
/// 2. Jump: `d / sqrt(step)` along it, in L∞ along its signs, halved until the point is adversarial.
/// 3. Bisection back to the boundary.
///
/// Distances below what `f32` resolves are not asked about: `theta` is at least 2^-20, and `delta` such that a value moves by
/// 10^-6. The result is the nearest example that the model was asked about, not the last.
///
/// Measured on random linear models, as multiples of the distance of the boundary:
///
/// | queries | L2, 784 values | L2, 3072 values | L∞, 784 values | L∞, 3072 values |
/// |---:|---:|---:|---:|---:|
/// | 1,000 | 1.7 | 2.8 | 2.2 | 4.0 |
/// | 5,000 | 1.14 | 1.47 | 1.39 | 2.03 |
/// | 25,000 | 1.04 | 1.11 | 1.11 | 1.34 |
#[derive(Clone, Debug)]
pub struct HopSkipJump {
    /// What is made small: [`Norm::L2`] or [`Norm::Linf`].
    pub norm: Norm,
    /// What the attacker wants.
    pub goal: Goal,
    /// Smallest and largest legal input value.
    pub bounds: (f32, f32),
    /// Where the walk starts.
    pub start: Start,
    /// Steps, at most.
    pub steps: usize,
    /// Queries of a sample, at most, those for the start among them.
    pub queries: usize,
    /// Queries for the direction of the first step; later steps ask `sqrt(step)` times as many, 10,000 at most.
    pub gradient_queries: usize,
    /// Candidates the model is given at once; a matter of speed and memory only.
    pub query_batch: usize,
}

/// Queries for one direction, at most (the paper's value).
const MOST_GRADIENT_QUERIES: usize = 10_000;

/// A jump that is still not adversarial after so many halvings is given up.
const HALVINGS: usize = 24;

impl HopSkipJump {
    /// The paper's 100 queries for the first direction; 25,000 queries, as in its figures, which end after about 50 of 64 steps;
    /// inputs in [0, 1].
    pub fn new(norm: Norm) -> Self {
        Self {
            norm,
            goal: Goal::Untargeted,
            bounds: (0.0, 1.0),
            start: Start::default(),
            steps: 64,
            queries: 25_000,
            gradient_queries: 100,
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
            norm: self.norm,
            bounds: self.bounds,
            queries: self.queries,
        };
        let (mut seekers, open) = hunt.begin(x, y, noise, &self.start);
        let walking = seekers.iter_mut().zip(open).filter(|(_, open)| *open);
        let mut active: Vec<&mut Seeker> = walking.map(|(seeker, _)| seeker).collect();
        let theta = self.theta(hunt.oracle.row());
        // The straight way back comes first in L∞ too: all values of noise differ, and to cut them leaves noise.
        hunt.to_boundary(&mut active, Norm::L2, theta.max(1e-3));
        hunt.to_boundary(&mut active, self.norm, theta);
        for step in 1..=self.steps {
            active.retain(|seeker| seeker.distance > 0.0 && hunt.left(seeker) > 0);
            if active.is_empty() {
                break;
            }
            self.find_direction(&hunt, &mut active, step);
            self.jump(&hunt, &mut active, step);
            hunt.to_boundary(&mut active, self.norm, theta);
        }
        hunt.end(seekers)
    }

    /// Tolerance of the bisection, as a share of the way, among `n` values.
    fn theta(&self, n: usize) -> f32 {
        let power = if self.norm == Norm::Linf { -2.0 } else { -1.5 };
        (n as f32).powf(power).max(1.0 / (1 << 20) as f32).min(0.1)
    }

    /// Distance of the points that are asked about for a direction.
    fn delta(&self, n: usize, distance: f32, step: usize) -> f32 {
        if step == 1 {
            return 0.1 * (self.bounds.1 - self.bounds.0);
        }
        let shortest = shortest(n);
        let n = n as f32;
        let share = if self.norm == Norm::Linf { n } else { n.sqrt() } * self.theta(n as usize);
        (share * distance).max(shortest)
    }

    /// Fills `direction` with the unit vector (L2) or signs (L∞) that lead into the adversarial region.
    fn find_direction<const D: usize>(
        &self,
        hunt: &Hunt<D>,
        active: &mut [&mut Seeker],
        step: usize,
    ) {
        let row = hunt.oracle.row();
        let wanted = (self.gradient_queries.max(1) as f64 * (step as f64).sqrt()) as usize;
        let wanted = wanted.min(MOST_GRADIENT_QUERIES);
        // Which sample asks each query.
        let mut asking = Vec::new();
        for (i, seeker) in active.iter().enumerate() {
            asking.resize(asking.len() + wanted.min(hunt.left(seeker)), i);
        }
        let mut sums: Vec<[Sum; 2]> = active
            .iter()
            .map(|_| [Sum::new(row), Sum::new(row)])
            .collect();
        let mut candidates = Vec::new();
        for asking in asking.chunks(self.query_batch.max(1)) {
            candidates.clear();
            for &i in asking {
                let seeker = &mut *active[i];
                self.draw(seeker);
                let delta = self.delta(row, seeker.distance, step);
                let points = seeker.x.iter().zip(&seeker.direction);
                candidates.extend(points.map(|(x, u)| clip(x + delta * u, self.bounds)));
                seeker.queries += 1;
            }
            let classes = asking.iter().map(|&i| active[i].class);
            let answers = hunt.adversarial(candidates.chunks_exact(row).zip(classes));
            for ((&i, candidate), adversarial) in
                asking.iter().zip(candidates.chunks_exact(row)).zip(answers)
            {
                if adversarial {
                    active[i].offer(self.norm, candidate);
                }
                // What the box has left of the direction counts.
                sums[i][usize::from(adversarial)].add(candidate, &active[i].x);
            }
        }
        for (seeker, [outside, inside]) in active.iter_mut().zip(&sums) {
            // With one side empty, away from the other (as the authors' code does).
            for (i, direction) in seeker.direction.iter_mut().enumerate() {
                *direction = inside.mean(i) - outside.mean(i);
            }
            unit(&mut seeker.direction);
            if self.norm == Norm::Linf {
                let signs = seeker.direction.iter_mut();
                signs.for_each(|d| *d = f32::from(*d > 0.0) - f32::from(*d < 0.0));
            }
        }
    }

    /// A random direction of L2 length 1: normal in L2, uniform in a cube in L∞.
    fn draw(&self, seeker: &mut Seeker) {
        match self.norm {
            Norm::Linf => {
                let values = seeker.direction.iter_mut();
                values.for_each(|value| *value = 2.0 * seeker.rng.random::<f32>() - 1.0);
            }
            _ => normal(&mut seeker.rng, &mut seeker.direction),
        }
        unit(&mut seeker.direction);
    }

    /// Moves along the direction, as far as the point is adversarial.
    fn jump<const D: usize>(&self, hunt: &Hunt<D>, active: &mut [&mut Seeker], step: usize) {
        for seeker in active.iter_mut() {
            seeker.steps[0] = seeker.distance / (step as f32).sqrt();
        }
        let mut jumping: Vec<&mut Seeker> = active.iter_mut().map(|seeker| &mut **seeker).collect();
        for _ in 0..HALVINGS {
            jumping.retain(|seeker| hunt.left(seeker) > 0);
            if jumping.is_empty() {
                break;
            }
            for seeker in &mut jumping {
                let points = seeker.x.iter().zip(&seeker.direction);
                for (candidate, (x, direction)) in seeker.candidate.iter_mut().zip(points) {
                    *candidate = clip(x + seeker.steps[0] * direction, self.bounds);
                }
                seeker.steps[0] /= 2.0;
            }
            let mut landed = hunt.move_if_adversarial(&mut jumping).into_iter();
            jumping.retain(|_| landed.next() == Some(false));
        }
    }
}

/// Points on one side of the boundary, as seen from the boundary.
struct Sum {
    values: Vec<f32>,
    count: usize,
}

impl Sum {
    fn new(row: usize) -> Self {
        Self {
            values: vec![0.0; row],
            count: 0,
        }
    }

    fn add(&mut self, point: &[f32], from: &[f32]) {
        self.count += 1;
        for (sum, (point, from)) in self.values.iter_mut().zip(point.iter().zip(from)) {
            *sum += point - from;
        }
    }

    fn mean(&self, i: usize) -> f32 {
        self.values[i] / self.count.max(1) as f32
    }
}

impl<const D: usize> MinimumNorm<D> for HopSkipJump {
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
        self.norm
    }

    fn name(&self) -> String {
        format!("HSJ-{}", self.queries)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::black_box::{Decides, check_decisions, images, labels, noise};
    use crate::testing::{LinearImages, values};
    use crate::{Attack, Within};

    /// Measured over the 16 images of linear models: 1.01 to 1.07 times the distance in L2, 1.00 to 1.09 in L∞.
    #[test]
    fn the_boundary_is_reached_by_decisions() {
        for (norm, budget) in [(Norm::L2, 1000), (Norm::Linf, 1500)] {
            check_decisions(
                norm,
                budget,
                &|goal, start, queries, query_batch, model, x, y, noise| {
                    let attack = HopSkipJump {
                        goal,
                        start: start.clone(),
                        queries,
                        query_batch,
                        ..HopSkipJump::new(norm)
                    };
                    attack.search(model, x, y, noise)
                },
            );
        }
    }

    /// The paper proves that the direction converges to that of the gradient, which a linear model has everywhere.
    #[test]
    fn the_direction_is_that_of_the_gradient() {
        let shape = [1, 1, 4, 4];
        let model = LinearImages::random(5, 2, shape);
        let x = images(shape, 0.4, 0.6);
        let y = labels(&model, &x);
        let weights = values(model.rows.clone());
        let sign = if values(y.clone().float()) == [0.0] {
            -1.0
        } else {
            1.0
        };
        let mut toward: Vec<f32> = (0..16)
            .map(|i| sign * (weights[i] - weights[16 + i]))
            .collect();
        unit(&mut toward);
        let model = Decides(model);
        for (norm, step) in [(Norm::L2, 1), (Norm::L2, 2), (Norm::Linf, 2)] {
            let attack = HopSkipJump {
                gradient_queries: 3000,
                ..HopSkipJump::new(norm)
            };
            let hunt = Hunt {
                oracle: Oracle::new(&model, &x, Goal::Untargeted, 100),
                norm,
                bounds: (0.0, 1.0),
                queries: 100_000,
            };
            let (mut seekers, _) = hunt.begin(x.clone(), y.clone(), &noise(0..1), &attack.start);
            let mut active: Vec<&mut Seeker> = seekers.iter_mut().collect();
            hunt.to_boundary(&mut active, Norm::L2, attack.theta(16));
            let before = active[0].queries;
            attack.find_direction(&hunt, &mut active, step);
            let asked = (3000.0 * (step as f64).sqrt()) as usize;
            assert_eq!(active[0].queries - before, asked);
            let cosine: f32 = active[0]
                .direction
                .iter()
                .zip(&toward)
                .map(|(a, b)| a * b)
                .sum();
            match norm {
                Norm::L2 => assert!(cosine > 0.98, "{norm} {step}: {cosine}"),
                // Signs: the cosine is the L1 length of the unit vector, but for values near 0.
                _ => {
                    let best: f32 = toward.iter().map(|v| v.abs()).sum();
                    assert!(cosine > 0.98 * best, "{cosine} of {best}");
                    assert!(active[0].direction.iter().all(|d| d.abs() == 1.0));
                }
            }
        }
    }

    #[test]
    fn sizes_are_those_of_the_paper() {
        let (l2, linf) = (HopSkipJump::new(Norm::L2), HopSkipJump::new(Norm::Linf));
        assert!((l2.theta(100) - 1e-3).abs() < 1e-8 && (linf.theta(100) - 1e-4).abs() < 1e-9);
        assert!((l2.delta(100, 0.5, 2) - 5e-3).abs() < 1e-7);
        assert!((linf.delta(100, 0.5, 2) - 5e-3).abs() < 1e-7);
        assert_eq!(l2.delta(100, 0.5, 1), 0.1);
        // An ImageNet picture: what f32 cannot tell apart is not asked.
        let n = 3 * 224 * 224;
        assert_eq!(linf.theta(n), 1.0 / (1 << 20) as f32);
        assert!(linf.delta(n, 0.03, 9) / (n as f32).sqrt() >= 0.99e-6);
    }

    /// A jump that finds nothing is given up, and the walk goes on.
    #[test]
    fn an_island_is_left_only_as_far_as_it_goes() {
        /// Class 1 in a cube of side 0.2 around 0.8, class 0 elsewhere.
        struct Island;
        impl Classifier<2> for Island {
            fn logits(&self, x: Tensor<2>) -> Tensor<2> {
                let away = x.sub_scalar(0.8).abs().max_dim(1);
                Tensor::cat(
                    vec![away.full_like(0.1), away.mul_scalar(-1.0).add_scalar(0.2)],
                    1,
                )
            }
            fn features(&self, x: Tensor<2>) -> Tensor<2> {
                x
            }
        }
        let device = Device::flex();
        let x = Tensor::<2>::full([1, 3], 0.2, &device);
        let y = Tensor::<1, Int>::from_ints([0], &device);
        for (norm, nearest) in [(Norm::Linf, 0.5), (Norm::L2, 0.5 * 3f32.sqrt())] {
            let attack = HopSkipJump {
                queries: 3000,
                ..HopSkipJump::new(norm)
            };
            let (found, _) = attack.search(&Island, x.clone(), y.clone(), &noise(4..5));
            let size = values(norm.lengths(found - x.clone()))[0];
            assert!(
                size > 0.999 * nearest && size < 1.05 * nearest,
                "{norm}: {size} for {nearest}"
            );
        }
    }

    #[test]
    fn as_an_attack_within_a_threat_model() {
        let shape = [4, 1, 4, 4];
        let x = images(shape, 0.3, 0.7);
        let model = LinearImages::random(1, 2, shape);
        let y = labels(&model, &x);
        let attack = Within {
            threat: "l2:0.2".parse().unwrap(),
            attack: HopSkipJump {
                queries: 600,
                ..HopSkipJump::new(Norm::L2)
            },
        };
        let found = attack.perturb(&model, x.clone(), y, &noise(0..4));
        assert_eq!(attack.threat.verify(&x, &found), Ok(()));
        assert_eq!(Attack::<4>::name(&attack), "HSJ-600");
        assert_eq!(MinimumNorm::<4>::norm(&attack.attack), Norm::L2);
    }
}
