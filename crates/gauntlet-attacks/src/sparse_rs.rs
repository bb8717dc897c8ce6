use burn::tensor::{Int, Tensor, TensorData};
use gauntlet_kernels::noise::Philox;
use gauntlet_models::Classifier;
use rand::RngExt;

use crate::scores::{Oracle, Score};
use crate::{Attack, Goal, Noise, Norm, ThreatModel};

/// Sparse-RS for L0 (Croce, Andriushchenko, Singh, Flammarion & Hein 2022, "Sparse-RS: a versatile framework for
/// query-efficient sparse black-box adversarial attacks", algorithms 1 and 2): random search over which pixels change, and to
/// which corners of the colour cube. It asks the model for scores and never for a gradient.
///
/// A candidate gives up a share alpha of the changed pixels and draws as many others, of random colours; it is kept where its
/// loss is lower. A sample is done as soon as its goal is reached; where the search fails, the result is what had the lowest
/// loss.
///
/// Two details make every pixel count. A colour is drawn from those that differ from the clean pixel. And a pixel that is
/// given up may be drawn again at once, with another colour: by the paper's rule a pixel in the right place with the wrong
/// colour is stuck where no other is better than it is now. On linear models of 3x5x6 images that rule misses the best two
/// pixels of an enumeration; on 64 images of 3x12x12, with 2000 queries at most, it takes 1020 instead of 988 on
/// average with 4 pixels, 620 instead of 580 with 8.
#[derive(Clone, Debug)]
pub struct SparseRs {
    /// How many pixels may change, and between which values. In L0 only.
    pub threat: ThreatModel,
    /// What is sought.
    pub goal: Goal,
    /// Candidates of a restart; the starting point is the first.
    pub queries: usize,
    /// Independent searches from new starting points.
    pub restarts: usize,
    /// Share of the pixels that the first candidates replace, in (0, 1].
    pub alpha_init: f32,
}

impl SparseRs {
    /// 10,000 queries, one restart, alpha 0.3: the paper's setting for untargeted attacks (towards a class it takes 0.1).
    pub fn new(threat: ThreatModel) -> Self {
        Self {
            threat,
            goal: Goal::Untargeted,
            queries: 10_000,
            restarts: 1,
            alpha_init: 0.3,
        }
    }

    /// The adversarial batch, and how many queries each sample took, at most `restarts * queries`; the look at the clean input
    /// is none.
    ///
    /// # Shapes
    /// `x: [batch, channels, height, width]` in bounds, `y: [batch]`.
    pub fn search(
        &self,
        model: &dyn Classifier<4>,
        x: Tensor<4>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> (Tensor<4>, Vec<usize>) {
        if self.threat.norm != Norm::L0 {
            unimplemented!("Sparse-RS in {}", self.threat.norm);
        }
        let dims @ [batch, channels, height, width] = x.dims();
        let pixels = (self.threat.eps.value() as usize).min(height * width);
        if dims.contains(&0) || pixels == 0 {
            return (x, vec![0; batch]);
        }
        let device = x.device();
        let oracle = Oracle {
            model,
            goal: self.goal,
            device: device.clone(),
            shape: [channels, height, width],
            batch,
        };
        let canvas = Canvas {
            area: height * width,
            channels,
            pixels,
            bounds: self.threat.bounds,
        };
        let mut samples = samples(x.clone(), y, noise);
        let clean = oracle.scores(samples.iter().map(|s| (s.clean.as_slice(), s.class)));
        for (sample, score) in samples.iter_mut().zip(clean) {
            sample.best_score = score;
        }
        for restart in 0..self.restarts.max(1) {
            self.run(&oracle, &canvas, &mut samples, noise, restart as u32);
        }
        let queries = samples.iter().map(|sample| sample.queries).collect();
        let values: Vec<f32> = samples.into_iter().flat_map(|s| s.best).collect();
        let result = Tensor::from_data(TensorData::new(values, dims), &device);
        debug_assert_eq!(self.threat.verify(&x, &result), Ok(()));
        (result, queries)
    }

    /// One search for each sample that has not reached the goal.
    fn run(
        &self,
        oracle: &Oracle,
        canvas: &Canvas,
        samples: &mut [Sample],
        noise: &Noise,
        restart: u32,
    ) {
        let key = noise.key.restart(restart);
        let mut active = Vec::new();
        for (sample, &id) in samples.iter_mut().zip(&noise.samples) {
            if sample.best_score.margin >= 0.0 {
                sample.begin(canvas, key.rng(id));
                active.push(sample);
            }
        }
        for query in 0..self.queries {
            if active.is_empty() {
                break;
            }
            let replaced = match query {
                0 => canvas.pixels,
                _ => self.replaced(query, canvas.pixels),
            };
            active.iter_mut().for_each(|s| s.propose(canvas, replaced));
            let scores = oracle.scores(active.iter().map(|s| (s.image.as_slice(), s.class)));
            for (sample, score) in active.iter_mut().zip(scores) {
                sample.judge(score);
            }
            active.retain(|sample| sample.score.margin >= 0.0);
        }
        for sample in samples {
            sample.keep();
        }
    }

    /// How many of the changed pixels query `query` (from 1) replaces: alpha of them, at least one. Alpha falls as the paper's
    /// appendix has it for 10,000 queries, stretched to the number there is.
    fn replaced(&self, query: usize, pixels: usize) -> usize {
        const DIVISORS: [(usize, f32); 10] = [
            (0, 1.0),
            (50, 2.0),
            (200, 4.0),
            (500, 5.0),
            (1000, 6.0),
            (2000, 8.0),
            (4000, 10.0),
            (6000, 12.0),
            (8000, 15.0),
            (usize::MAX, 20.0),
        ];
        let query = query * 10_000 / self.queries.max(1);
        let divisor = DIVISORS.iter().find(|(last, _)| query <= *last);
        let alpha = self.alpha_init / divisor.map_or(20.0, |(_, divisor)| *divisor);
        ((alpha * pixels as f32) as usize).clamp(1, pixels)
    }
}

impl Attack<4> for SparseRs {
    fn perturb(
        &self,
        model: &dyn Classifier<4>,
        x: Tensor<4>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<4> {
        self.search(model, x, y, noise).0
    }

    fn name(&self) -> String {
        match self.restarts {
            0 | 1 => format!("Sparse-RS-{}", self.queries),
            restarts => format!("Sparse-RS-{}x{restarts}", self.queries),
        }
    }
}

/// Size of the images, and what may change.
struct Canvas {
    /// Pixels of an image.
    area: usize,
    channels: usize,
    /// How many may change, at least 1.
    pixels: usize,
    bounds: (f32, f32),
}

/// What the search knows of one sample. Images are `[channels, height, width]`, flat.
struct Sample {
    class: usize,
    clean: Vec<f32>,
    /// What had the lowest loss of all: at first the clean image.
    best: Vec<f32>,
    best_score: Score,
    /// What the model is asked about next: what had the lowest loss of this restart, with `changes` made to it.
    image: Vec<f32>,
    score: Score,
    /// All pixels, those that are changed first.
    order: Vec<u32>,
    /// What takes the last candidate back: exchanged places of `order`, and values of `image` with where they were.
    exchanged: Vec<(usize, usize)>,
    changes: Vec<(usize, f32)>,
    /// Advances with the sample's own queries only: who else is still searching changes nothing.
    rng: Philox,
    queries: usize,
}

fn samples(x: Tensor<4>, y: Tensor<1, Int>, noise: &Noise) -> Vec<Sample> {
    let row = x.dims()[1..].iter().product::<usize>();
    let values: Vec<f32> = x.try_into_vec_as().expect("images that were computed");
    let classes: Vec<i64> = y.try_into_vec_as().expect("labels");
    let rows = values.chunks_exact(row).zip(classes);
    rows.zip(&noise.samples)
        .map(|((clean, class), &id)| Sample {
            class: class as usize,
            clean: clean.to_vec(),
            best: clean.to_vec(),
            best_score: Score::NONE,
            image: clean.to_vec(),
            score: Score::NONE,
            order: Vec::new(),
            exchanged: Vec::new(),
            changes: Vec::new(),
            rng: noise.key.rng(id),
            queries: 0,
        })
        .collect()
}

impl Sample {
    fn begin(&mut self, canvas: &Canvas, rng: Philox) {
        self.rng = rng;
        self.score = Score::NONE;
        self.image.copy_from_slice(&self.clean);
        self.order = (0..canvas.area as u32).collect();
    }

    /// Gives up `count` of the changed pixels, and changes as many of those that are then clean (algorithm 2).
    fn propose(&mut self, canvas: &Canvas, count: usize) {
        self.exchanged.clear();
        self.changes.clear();
        // Those given up move to the end of the changed ones, next to the clean ones: the new ones are drawn from both.
        let kept = canvas.pixels - count;
        for last in (kept..canvas.pixels).rev() {
            let chosen = self.rng.random_range(0..=last);
            self.exchange(chosen, last);
            self.paint(canvas, self.order[last], None);
        }
        for place in kept..canvas.pixels {
            let chosen = self.rng.random_range(place..canvas.area);
            self.exchange(place, chosen);
            let colour = self.colour(canvas, self.order[place]);
            self.paint(canvas, self.order[place], Some(colour));
        }
    }

    fn exchange(&mut self, a: usize, b: usize) {
        self.order.swap(a, b);
        self.exchanged.push((a, b));
    }

    /// Gives a pixel the corner whose bits are `colour`, or its clean value.
    fn paint(&mut self, canvas: &Canvas, pixel: u32, colour: Option<u64>) {
        for channel in 0..canvas.channels {
            let i = channel * canvas.area + pixel as usize;
            self.changes.push((i, self.image[i]));
            self.image[i] = match colour {
                Some(bits) => canvas.corner(bits, channel),
                None => self.clean[i],
            };
        }
    }

    /// A corner of the colour cube other than the clean pixel, all alike.
    fn colour(&mut self, canvas: &Canvas, pixel: u32) -> u64 {
        // One is left over in two draws at the least, unless the cube is a point.
        for _ in 0..64 {
            let bits: u64 = self.rng.random();
            let differs = (0..canvas.channels).any(|channel| {
                let clean = self.clean[channel * canvas.area + pixel as usize];
                canvas.corner(bits, channel) != clean
            });
            if differs {
                return bits;
            }
        }
        0
    }

    /// Keeps the candidate where its loss is lower or it reaches the goal, else takes it back.
    fn judge(&mut self, score: Score) {
        self.queries += 1;
        if score.loss < self.score.loss || score.margin < 0.0 {
            self.score = score;
            return;
        }
        for (i, value) in self.changes.drain(..).rev() {
            self.image[i] = value;
        }
        for (a, b) in self.exchanged.drain(..).rev() {
            self.order.swap(a, b);
        }
    }

    fn keep(&mut self) {
        let lower = self.score.loss < self.best_score.loss;
        if self.best_score.margin >= 0.0 && (lower || self.score.margin < 0.0) {
            self.best_score = self.score;
            self.best.copy_from_slice(&self.image);
        }
    }
}

impl Canvas {
    /// The value of a channel in the corner `bits`; channels beyond the 64th share the bits of the first ones.
    fn corner(&self, bits: u64, channel: usize) -> f32 {
        match bits >> (channel % 64) & 1 {
            0 => self.bounds.0,
            _ => self.bounds.1,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::{LinearImages, values};
    use crate::testing_images::{graded, images, labels, noise};

    fn attack(pixels: usize, queries: usize) -> SparseRs {
        SparseRs {
            queries,
            ..SparseRs::new(format!("l0:{pixels}").parse().unwrap())
        }
    }

    /// The lowest margin that `pixels` changed pixels can give a sample of a linear model: for each rival the best sets of
    /// pixels and of corners, all of them tried one after another.
    fn brute_force(rows: &[f32], clean: &[f32], class: usize, shape: [usize; 3]) -> f32 {
        let [channels, height, width] = shape;
        let (area, inputs) = (height * width, clean.len());
        let row = |class: usize| &rows[class * inputs..][..inputs];
        let mut lowest = f32::INFINITY;
        for rival in (0..rows.len() / inputs).filter(|&rival| rival != class) {
            let slope: Vec<f32> = std::iter::zip(row(class), row(rival))
                .map(|(a, b)| a - b)
                .collect();
            let margin: f32 = std::iter::zip(&slope, clean).map(|(s, x)| s * x).sum();
            let change = |pixel: usize| {
                let corners = 0..1u32 << channels;
                let value = |bits: u32| {
                    (0..channels)
                        .map(|c| {
                            let i = c * area + pixel;
                            slope[i] * ((bits >> c & 1) as f32 - clean[i])
                        })
                        .sum::<f32>()
                };
                corners.map(value).fold(f32::INFINITY, f32::min)
            };
            for a in 0..area {
                for b in 0..a {
                    lowest = lowest.min(margin + change(a) + change(b));
                }
            }
        }
        lowest
    }

    /// Within 1500 queries the search reaches the goal wherever two pixels can, and comes within 1 % of the best margin
    /// elsewhere.
    #[test]
    fn two_pixels_are_found_as_by_brute_force() {
        let shape = [48, 3, 5, 6];
        let (model, x, y) = graded(2, 3, shape, 0.15);
        let (found, queries) = attack(2, 1500).search(&model, x.clone(), y.clone(), &noise(0..48));
        let rows = values(model.rows.clone());
        let classes: Vec<i64> = y.clone().try_into_vec_as().unwrap();
        let wrong = values(Goal::Untargeted.reached(model.logits(found.clone()), y.clone()));
        let margins =
            values(Goal::Untargeted.loss(crate::AttackLoss::Margin, model.logits(found), y));
        let clean = values(x);
        let mut counts = [0, 0];
        for i in 0..48 {
            let clean = &clean[i * 90..][..90];
            let best = brute_force(&rows, clean, classes[i] as usize, [3, 5, 6]);
            counts[usize::from(best < 0.0)] += 1;
            if best.abs() < 1e-3 {
                continue;
            }
            assert_eq!(wrong[i] > 0.5, best < 0.0, "sample {i}: {best}");
            if best > 0.0 {
                assert_eq!(queries[i], 1500);
                assert!(-margins[i] < best + 0.01 * best.abs().max(1.0), "{i}");
            }
        }
        assert!(counts[0] >= 8 && counts[1] >= 8, "{counts:?}");
    }

    #[test]
    fn alpha_falls_as_in_the_paper() {
        let at = |query| attack(1, 10_000).replaced(query, 6000);
        let table = [
            (1, 900),
            (50, 900),
            (51, 450),
            (201, 360),
            (501, 300),
            (1001, 225),
            (2001, 180),
            (4001, 150),
            (6001, 120),
            (8001, 90),
            (9999, 90),
        ];
        for (query, replaced) in table {
            assert_eq!(at(query), replaced, "query {query}");
        }
        let short = attack(1, 1000);
        assert_eq!(
            (short.replaced(5, 6000), short.replaced(6, 6000)),
            (900, 450)
        );
        assert_eq!(at(9000).min(attack(1, 10_000).replaced(9000, 3)), 1);
    }

    /// On images whose values are corners already, half of all corners would leave a pixel of one channel as it was.
    #[test]
    fn as_many_pixels_change_as_may() {
        let shape = [6, 1, 5, 3];
        let model = LinearImages::random(3, 2, shape);
        let x = images(shape).round();
        let y = labels(&model, &x);
        for pixels in [1, 4, 15, 40] {
            let attack = attack(pixels, 1);
            let (found, queries) =
                attack.search(&model, x.clone(), y.clone(), &noise([3, 1, 4, 5, 9, 2]));
            assert_eq!(queries, [1; 6]);
            let sizes = attack.threat.sizes(found.clone() - x.clone());
            // What made things worse than they were is not the best there is.
            let kept = sizes.iter().filter(|&&size| size == pixels.min(15) as f32);
            let clean = sizes.iter().filter(|&&size| size == 0.0);
            assert_eq!(kept.clone().count() + clean.count(), 6, "{sizes:?}");
            assert!(kept.count() > 0);
        }
    }

    #[test]
    fn batch_mates_do_not_matter_and_restarts_add_queries() {
        let shape = [5, 3, 7, 4];
        let (model, x, y) = graded(4, 3, shape, 0.2);
        let attack = SparseRs {
            restarts: 2,
            ..attack(3, 60)
        };
        let (all, queries) = attack.search(&model, x.clone(), y.clone(), &noise(10..15));
        assert!(queries.iter().all(|&q| q <= 120) && queries.iter().any(|&q| q > 60));
        let all = values(all);
        for i in 0..5 {
            let (x, y) = (x.clone().slice([i..i + 1]), y.clone().slice([i..i + 1]));
            let (alone, asked) = attack.search(&model, x, y, &noise([10 + i as u32]));
            assert_eq!(values(alone), all[i * 84..][..84]);
            assert_eq!(asked, [queries[i]]);
        }
    }

    #[test]
    fn a_target_is_reached_and_what_is_won_or_void_stays() {
        let shape = [4, 3, 6, 6];
        let model = LinearImages::random(6, 3, shape);
        let x = images(shape);
        let y = labels(&model, &x).add_scalar(1).remainder_scalar(3);
        let towards = SparseRs {
            goal: Goal::Targeted,
            ..attack(12, 2000)
        };
        let (found, _) = towards.search(&model, x.clone(), y.clone(), &noise(0..4));
        let reached = values(Goal::Targeted.reached(model.logits(found.clone()), y.clone()));
        assert_eq!(reached, [1.0; 4]);
        // Untargeted, `y` is not what the model says: nothing to do.
        let (same, queries) = attack(12, 9).search(&model, x.clone(), y.clone(), &noise(0..4));
        assert_eq!((values(same), queries), (values(x.clone()), vec![0; 4]));
        // No pixels, no images.
        let (same, queries) = attack(0, 9).search(&model, x.clone(), y, &noise(0..4));
        assert_eq!((values(same), queries), (values(x), vec![0; 4]));
        let device = Device::flex();
        let none = Tensor::<4>::zeros([0, 3, 6, 6], &device);
        let y = Tensor::<1, Int>::zeros([0], &device);
        assert_eq!(
            attack(2, 9).search(&model, none, y, &noise([])).0.dims()[0],
            0
        );
    }

    #[test]
    fn nothing_is_won_by_scores_that_are_no_numbers() {
        struct Void;
        impl Classifier<4> for Void {
            fn logits(&self, x: Tensor<4>) -> Tensor<2> {
                Tensor::full([x.dims()[0], 3], f32::NAN, &x.device())
            }
            fn features(&self, x: Tensor<4>) -> Tensor<2> {
                x.flatten(1, 3)
            }
        }
        let x = images([2, 1, 3, 3]);
        let y = Tensor::<1, Int>::zeros([2], &x.device());
        let (found, queries) = attack(2, 5).search(&Void, x.clone(), y, &noise(0..2));
        assert_eq!((values(found), queries), (values(x), vec![5; 2]));
    }
}
