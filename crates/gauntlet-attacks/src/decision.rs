//! What decision-based attacks share: they see the predicted class and nothing else, and walk along the boundary towards the
//! clean input from a start that is adversarial, however far away.

use burn::tensor::{Int, Tensor};
use gauntlet_kernels::noise::Philox;
use rand::RngExt;

use crate::oracle::{Oracle, clip, distance, rows};
use crate::{Noise, Norm};

/// Where a decision-based attack starts. Where nothing adversarial is found, its result is the clean input.
#[derive(Clone, Debug)]
pub struct Start {
    /// Inputs, one a row, that may be adversarial: `[inputs, values]`, for images `images.flatten(1, 3)`. Those nearest to a
    /// sample are tried first. An attack with a target needs some of that class, for noise hardly ever is.
    pub inputs: Option<Tensor<2>>,
    /// Draws of uniform noise over the bounds that are tried after that.
    pub draws: usize,
}

impl Default for Start {
    /// 1000 draws of noise.
    fn default() -> Self {
        Self {
            inputs: None,
            draws: 1000,
        }
    }
}

/// Length of the shortest step among `n` values worth asking about, 10^-6 for each: `f32` resolves 6 * 10^-8 below 1.
pub(crate) fn shortest(n: usize) -> f32 {
    1e-6 * (n as f32).sqrt()
}

/// What is known of one sample.
pub(crate) struct Seeker {
    pub(crate) class: usize,
    pub(crate) clean: Vec<f32>,
    /// Nearest adversarial example that the model was asked about; the clean input where there is none.
    best: Vec<f32>,
    best_distance: f32,
    /// Where the walk stands; adversarial once there is a start.
    pub(crate) x: Vec<f32>,
    pub(crate) distance: f32,
    /// What the model is asked about next.
    pub(crate) candidate: Vec<f32>,
    pub(crate) direction: Vec<f32>,
    /// Sizes of steps, for the attack's use.
    pub(crate) steps: [f32; 2],
    /// Part of the way from the clean input to `x`: not adversarial, adversarial.
    span: [f32; 2],
    /// Advances with the sample's own queries only: who else is still searching changes nothing.
    pub(crate) rng: Philox,
    pub(crate) queries: usize,
}

/// The rules of a decision-based attack.
pub(crate) struct Hunt<'a, const D: usize> {
    pub(crate) oracle: Oracle<'a, D>,
    pub(crate) norm: Norm,
    pub(crate) bounds: (f32, f32),
    /// Queries of a sample, at most.
    pub(crate) queries: usize,
}

impl<const D: usize> Hunt<'_, D> {
    /// All samples, and for each whether there is something to walk from: not where the clean input is adversarial itself, nor
    /// where no start is found.
    pub(crate) fn begin(
        &self,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
        start: &Start,
    ) -> (Vec<Seeker>, Vec<bool>) {
        let samples = rows(x, y).into_iter().zip(&noise.samples);
        let mut seekers: Vec<Seeker> = samples
            .map(|((clean, class), &id)| Seeker {
                class,
                best: clean.clone(),
                best_distance: f32::INFINITY,
                x: clean.clone(),
                distance: f32::INFINITY,
                candidate: clean.clone(),
                direction: vec![0.0; clean.len()],
                steps: [0.0; 2],
                span: [0.0, 1.0],
                clean,
                rng: noise.key.rng(id),
                queries: 0,
            })
            .collect();
        let right = self.adversarial(seekers.iter().map(|s| (&s.clean[..], s.class)));
        let mut lost: Vec<&mut Seeker> = Vec::new();
        for (seeker, wrong) in seekers.iter_mut().zip(&right) {
            if !wrong {
                lost.push(seeker);
            }
        }
        self.try_inputs(&mut lost, start);
        self.try_noise(&mut lost, start.draws);
        let open = seekers.iter().map(|s| s.distance.is_finite()).collect();
        (seekers, open)
    }

    /// One input a round for each sample without a start, the nearest first.
    fn try_inputs(&self, lost: &mut Vec<&mut Seeker>, start: &Start) {
        let row = self.oracle.row();
        let fits = |inputs: &&Tensor<2>| inputs.dims()[0] > 0 && inputs.dims()[1] == row;
        let Some(inputs) = start.inputs.as_ref().filter(fits) else {
            return;
        };
        let inputs: Vec<f32> = inputs.clone().try_into_vec_as().expect("starting inputs");
        let inputs: Vec<f32> = inputs.into_iter().map(|v| clip(v, self.bounds)).collect();
        let by_distance = |seeker: &&mut Seeker| {
            let away = inputs.chunks_exact(row).enumerate();
            let mut order: Vec<(f32, usize)> = away
                .map(|(i, input)| (distance(self.norm, input, &seeker.clean), i))
                .collect();
            order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            order
        };
        let orders: Vec<Vec<(f32, usize)>> = lost.iter().map(by_distance).collect();
        for round in 0..inputs.len() / row {
            let mut asked = Vec::new();
            for (seeker, order) in lost.iter_mut().zip(&orders) {
                if seeker.distance.is_infinite() && self.left(seeker) > 0 {
                    let input = &inputs[order[round].1 * row..][..row];
                    seeker.candidate.copy_from_slice(input);
                    asked.push(&mut **seeker);
                }
            }
            if asked.is_empty() {
                break;
            }
            self.move_if_adversarial(&mut asked);
        }
        lost.retain(|seeker| seeker.distance.is_infinite());
    }

    /// Noise in rounds of 1, 2, 4, ... draws at once: most samples need few, and who needs many does not ask them one by one.
    fn try_noise(&self, lost: &mut Vec<&mut Seeker>, draws: usize) {
        const MOST: usize = 32;
        let (low, high) = self.bounds;
        let (mut drawn, mut many) = (0, 1);
        while drawn < draws && !lost.is_empty() {
            let mut candidates = Vec::new();
            for (i, seeker) in lost.iter_mut().enumerate() {
                for _ in 0..many.min(draws - drawn).min(self.left(seeker)) {
                    let mut draw = || low + (high - low) * seeker.rng.random::<f32>();
                    let input: Vec<f32> = seeker.clean.iter().map(|_| draw()).collect();
                    candidates.push((i, input));
                    seeker.queries += 1;
                }
            }
            if candidates.is_empty() {
                break;
            }
            let asked = candidates
                .iter()
                .map(|(i, input)| (&input[..], lost[*i].class));
            let adversarial = self.adversarial(asked);
            for ((i, input), adversarial) in candidates.into_iter().zip(adversarial) {
                if adversarial {
                    lost[i].offer(self.norm, &input);
                }
            }
            for seeker in lost.iter_mut().filter(|s| s.best_distance.is_finite()) {
                seeker.x.copy_from_slice(&seeker.best);
                seeker.distance = seeker.best_distance;
            }
            lost.retain(|seeker| seeker.distance.is_infinite());
            drawn += many;
            many = (2 * many).min(MOST);
        }
    }

    /// Queries that the sample may still ask.
    pub(crate) fn left(&self, seeker: &Seeker) -> usize {
        self.queries.saturating_sub(seeker.queries)
    }

    /// Whether each input is what the attacker wants. This is all that the model is asked.
    pub(crate) fn adversarial<'r>(
        &self,
        candidates: impl Iterator<Item = (&'r [f32], usize)>,
    ) -> Vec<bool> {
        let margins = self.oracle.margins(candidates).into_iter();
        margins.map(|margin| margin > 0.0).collect()
    }

    /// Asks about the candidate of each sample.
    pub(crate) fn ask(&self, seekers: &mut [&mut Seeker]) -> Vec<bool> {
        let answers = self.adversarial(seekers.iter().map(|s| (&s.candidate[..], s.class)));
        for (seeker, &adversarial) in seekers.iter_mut().zip(&answers) {
            seeker.queries += 1;
            if adversarial {
                let candidate = std::mem::take(&mut seeker.candidate);
                seeker.offer(self.norm, &candidate);
                seeker.candidate = candidate;
            }
        }
        answers
    }

    /// Asks, and moves the samples whose candidate is adversarial there.
    pub(crate) fn move_if_adversarial(&self, seekers: &mut [&mut Seeker]) -> Vec<bool> {
        let answers = self.ask(seekers);
        for (seeker, &adversarial) in seekers.iter_mut().zip(&answers) {
            if adversarial {
                std::mem::swap(&mut seeker.x, &mut seeker.candidate);
                seeker.distance = distance(self.norm, &seeker.x, &seeker.clean);
            }
        }
        answers
    }

    /// Moves each sample to the boundary, by bisection of the way back to the clean input until the last adversarial point on it
    /// is known to `tolerance`, a share of the way. In L∞ the way cuts all changes down to a size, in L2 it is straight.
    pub(crate) fn to_boundary(&self, seekers: &mut [&mut Seeker], way: Norm, tolerance: f32) {
        for seeker in seekers.iter_mut() {
            seeker.span = [0.0, 1.0];
        }
        loop {
            let mut asked: Vec<&mut Seeker> = Vec::new();
            for seeker in seekers.iter_mut() {
                let [outside, inside] = seeker.span;
                if inside - outside > tolerance && self.left(seeker) > 0 {
                    seeker.on_the_way(way, 0.5 * (outside + inside));
                    asked.push(seeker);
                }
            }
            if asked.is_empty() {
                break;
            }
            let answers = self.ask(&mut asked);
            for (seeker, adversarial) in asked.iter_mut().zip(answers) {
                let middle = 0.5 * (seeker.span[0] + seeker.span[1]);
                seeker.span[usize::from(adversarial)] = middle;
            }
        }
        for seeker in seekers {
            if seeker.span[1] < 1.0 {
                seeker.on_the_way(way, seeker.span[1]);
                std::mem::swap(&mut seeker.x, &mut seeker.candidate);
            }
            seeker.distance = distance(self.norm, &seeker.x, &seeker.clean);
        }
    }

    /// The nearest example of each sample, and its queries.
    pub(crate) fn end(self, seekers: Vec<Seeker>) -> (Tensor<D>, Vec<usize>) {
        let queries = seekers.iter().map(|seeker| seeker.queries).collect();
        let nearest = seekers.into_iter().map(|seeker| seeker.best);
        (self.oracle.tensor(nearest), queries)
    }
}

impl Seeker {
    /// Keeps an adversarial example if it is the nearest one.
    pub(crate) fn offer(&mut self, norm: Norm, example: &[f32]) {
        let distance = distance(norm, example, &self.clean);
        if distance < self.best_distance {
            self.best_distance = distance;
            self.best.copy_from_slice(example);
        }
    }

    /// Puts the point at this share of the way from the clean input to `x` in `candidate`.
    fn on_the_way(&mut self, way: Norm, share: f32) {
        let most = match way {
            Norm::Linf => share * distance(way, &self.x, &self.clean),
            _ => f32::INFINITY,
        };
        let points = self.x.iter().zip(&self.clean);
        for (candidate, (x, clean)) in self.candidate.iter_mut().zip(points) {
            *candidate = clean
                + match way {
                    Norm::Linf => (x - clean).clamp(-most, most),
                    _ => share * (x - clean),
                };
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::Goal;
    use crate::black_box::noise;
    use crate::testing::Linear;

    fn hunt<'a>(model: &'a Linear, x: &Tensor<2>, norm: Norm) -> Hunt<'a, 2> {
        Hunt {
            oracle: Oracle::new(model, x, Goal::Untargeted, 8),
            norm,
            bounds: (0.0, 1.0),
            queries: 100,
        }
    }

    /// Class 1 where the first value is above 0.5.
    fn threshold() -> Linear {
        Linear::new([[0.0, 0.0], [1.0, 0.0]], [0.5, 0.0], &Device::flex())
    }

    #[test]
    fn the_nearest_input_is_tried_first() {
        let device = Device::flex();
        let model = threshold();
        let x = Tensor::<2>::from_floats([[0.2, 0.2], [0.1, 0.9], [0.9, 0.5]], &device);
        let y = Tensor::<1, Int>::from_ints([0, 0, 0], &device);
        // In L∞ (0.7, 0.6) is nearest to the first sample, in L2 too; (0.6, 0.9) to the second; what is class 0 is passed over.
        let inputs = [[0.9, 0.9], [0.7, 0.6], [0.6, 0.9], [0.2, 0.3]];
        let start = Start {
            inputs: Some(Tensor::from_floats(inputs, &device)),
            draws: 0,
        };
        for norm in [Norm::Linf, Norm::L2] {
            let hunt = hunt(&model, &x, norm);
            let (seekers, open) = hunt.begin(x.clone(), y.clone(), &noise(0..3), &start);
            assert_eq!(
                open,
                [true, true, false],
                "the third is adversarial as it is"
            );
            assert_eq!((&seekers[0].x[..], seekers[0].queries), (&inputs[1][..], 2));
            assert_eq!((&seekers[1].x[..], seekers[1].queries), (&inputs[2][..], 1));
            assert_eq!(
                (&seekers[2].x[..], seekers[2].queries),
                (&[0.9, 0.5][..], 0)
            );
        }
    }

    /// By hand, from (0.2, 0.2) to (1, 0.6): the straight way crosses at (0.5, 0.35), the one that cuts changes at (0.5, 0.5).
    #[test]
    fn ways_back_end_where_they_cross_the_boundary() {
        let device = Device::flex();
        let model = threshold();
        let x = Tensor::<2>::from_floats([[0.2, 0.2]], &device);
        let y = Tensor::<1, Int>::from_ints([0], &device);
        let start = Start {
            inputs: Some(Tensor::from_floats([[1.0, 0.6]], &device)),
            draws: 0,
        };
        for (way, crossing) in [(Norm::L2, [0.5, 0.35]), (Norm::Linf, [0.5, 0.5])] {
            let hunt = hunt(&model, &x, way);
            let (mut seekers, _) = hunt.begin(x.clone(), y.clone(), &noise(0..1), &start);
            let mut active: Vec<&mut Seeker> = seekers.iter_mut().collect();
            hunt.to_boundary(&mut active, way, 1e-4);
            let seeker = &seekers[0];
            for (x, crossing) in seeker.x.iter().zip(crossing) {
                assert!((x - crossing).abs() < 1e-4, "{:?}", seeker.x);
            }
            assert!(seeker.x[0] > 0.5, "adversarial");
            assert_eq!(seeker.x, seeker.best);
            assert_eq!(
                seeker.queries,
                1 + 14,
                "2^-14 is the first power below 1e-4"
            );
        }
    }
}
