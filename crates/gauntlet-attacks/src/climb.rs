//! Ascent along gradients that are estimated from differences of scores: what SPSA and NES share.

use burn::tensor::{Int, Tensor};
use gauntlet_kernels::noise::Philox;
use gauntlet_models::Classifier;

use crate::oracle::{Oracle, clip, project, rows};
use crate::{Goal, Noise, ThreatModel};

/// How an attack of this family estimates and steps.
pub(crate) trait Estimator {
    /// Fills `direction` with a random one.
    fn draw(&self, rng: &mut Philox, direction: &mut [f32]);
    /// Adds what one pair of queries tells: the margin is `rise` higher at `plus` than at `minus`.
    fn add(&self, gradient: &mut [f32], rise: f32, plus: &[f32], minus: &[f32]);
    /// Moves `sample.x` by its gradient, the sum over all pairs; it is projected after that. Steps count from 1.
    fn step(&self, sample: &mut Climber, step: usize);
}

/// One sample on its way.
pub(crate) struct Climber {
    class: usize,
    clean: Vec<f32>,
    /// Where it stands.
    pub(crate) x: Vec<f32>,
    pub(crate) gradient: Vec<f32>,
    /// Running means of the gradient and its square, for the estimator's use.
    pub(crate) mean: Vec<f32>,
    pub(crate) square: Vec<f32>,
    margin: f32,
    best: Vec<f32>,
    /// Advances with the sample's own queries only: who else is still searching changes nothing.
    rng: Philox,
    queries: usize,
}

impl Climber {
    pub(crate) fn new(clean: Vec<f32>, class: usize, margin: f32, rng: Philox) -> Self {
        let zeros = vec![0.0; clean.len()];
        Self {
            class,
            x: clean.clone(),
            gradient: zeros.clone(),
            mean: zeros.clone(),
            square: zeros,
            margin,
            best: clean.clone(),
            clean,
            rng,
            queries: 0,
        }
    }
}

/// What SPSA and NES are told alike.
pub(crate) struct Climb<'a> {
    pub(crate) threat: &'a ThreatModel,
    pub(crate) goal: Goal,
    pub(crate) steps: usize,
    /// Pairs of queries a step.
    pub(crate) pairs: usize,
    /// Length of a direction in input units.
    pub(crate) radius: f32,
    pub(crate) query_batch: usize,
}

impl Climb<'_> {
    /// The adversarial batch, and the queries of each sample. The look at the clean input is none.
    pub(crate) fn search<const D: usize>(
        &self,
        estimator: &impl Estimator,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> (Tensor<D>, Vec<usize>) {
        if x.dims().contains(&0) {
            let batch = x.dims()[0];
            return (x, vec![0; batch]);
        }
        let oracle = Oracle::new(model, &x, self.goal, self.query_batch);
        let rows = rows(x.clone(), y);
        let margins = oracle.margins(rows.iter().map(|(row, class)| (&row[..], *class)));
        let starts = rows.into_iter().zip(margins).zip(&noise.samples);
        let mut samples: Vec<Climber> = starts
            .map(|(((clean, class), margin), &id)| {
                Climber::new(clean, class, margin, noise.key.rng(id))
            })
            .collect();
        let mut active: Vec<&mut Climber> = samples.iter_mut().collect();
        for step in 1..=self.steps {
            // A tie is not yet won.
            active.retain(|sample| sample.margin <= 0.0);
            if active.is_empty() {
                break;
            }
            self.estimate(estimator, &oracle, &mut active);
            for sample in &mut active {
                estimator.step(sample, step);
                project(self.threat, &sample.clean, &mut sample.x);
            }
            let margins = oracle.margins(active.iter().map(|s| (&s.x[..], s.class)));
            for (sample, margin) in active.iter_mut().zip(margins) {
                sample.queries += 1;
                if margin > sample.margin {
                    sample.margin = margin;
                    sample.best.copy_from_slice(&sample.x);
                }
            }
        }
        let queries = samples.iter().map(|sample| sample.queries).collect();
        let result = oracle.tensor(samples.into_iter().map(|sample| sample.best));
        debug_assert_eq!(self.threat.verify(&x, &result), Ok(()));
        (result, queries)
    }

    /// Sums up the gradient of each sample over its pairs, as many pairs at once as the model takes.
    fn estimate<const D: usize>(
        &self,
        estimator: &impl Estimator,
        oracle: &Oracle<D>,
        active: &mut [&mut Climber],
    ) {
        let row = oracle.row();
        let at_once = (self.query_batch / 2).max(1);
        let all = active.len() * self.pairs;
        let mut direction = vec![0.0; row];
        let mut candidates = Vec::with_capacity(2 * row * at_once.min(all));
        for sample in active.iter_mut() {
            sample.gradient.fill(0.0);
        }
        for first in (0..all).step_by(at_once) {
            let pairs = first..all.min(first + at_once);
            candidates.clear();
            for pair in pairs.clone() {
                let sample = &mut active[pair / self.pairs];
                estimator.draw(&mut sample.rng, &mut direction);
                for radius in [self.radius, -self.radius] {
                    let moved = sample.x.iter().zip(&direction);
                    candidates.extend(moved.map(|(x, u)| clip(x + radius * u, self.threat.bounds)));
                }
                sample.queries += 2;
            }
            let classes =
                (2 * pairs.start..2 * pairs.end).map(|i| active[i / 2 / self.pairs].class);
            let margins = oracle.margins(candidates.chunks_exact(row).zip(classes));
            let answers = candidates
                .chunks_exact(2 * row)
                .zip(margins.chunks_exact(2));
            for (pair, (candidates, margins)) in pairs.zip(answers) {
                let rise = margins[0] - margins[1];
                if rise.is_finite() {
                    let (plus, minus) = candidates.split_at(row);
                    estimator.add(&mut active[pair / self.pairs].gradient, rise, plus, minus);
                }
            }
        }
    }
}
