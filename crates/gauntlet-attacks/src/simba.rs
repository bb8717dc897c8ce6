//! SimBA: one coordinate after the other, a step up or down where that helps (Guo, Gardner, You, Wilson & Weinberger 2019,
//! "Simple black-box adversarial attacks").

use std::f64::consts::PI;

use burn::tensor::{Int, Tensor};
use gauntlet_kernels::noise::Philox;
use gauntlet_models::Classifier;
use rand::RngExt;

use crate::oracle::{Oracle, project, rows};
use crate::{Attack, Goal, Noise, Norm, ThreatModel};

/// The coordinates that SimBA walks along.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Basis {
    /// Single values, in random order.
    Pixel,
    /// Waves of the discrete cosine transform (DCT-II) of each channel, low frequencies first. The last two dimensions are the
    /// image; rows of features are an image one value high.
    Dct {
        /// Share of the frequencies of each axis that come first, in random order; then those up to twice as high, and so on.
        /// In (0, 1].
        share: f32,
    },
}

/// SimBA (Guo et al. 2019, algorithm 1) for L∞ and L2, on the margin: asks the model for scores and never for a gradient.
///
/// Each sample walks through the basis in an order of its own: it asks about a step up along the coordinate, where that does not
/// raise the margin, about a step down, and keeps the first that does. A coordinate is not met again before all others were.
///
/// The paper bounds nothing but the number of steps. Here each candidate is projected on the ball and the box before the model
/// is asked, one that the projection sends back costs no query, and a walk through the whole basis without gain halves the step.
/// In L∞ waves get stuck where the ball cuts them off on one side: single values are the better basis there.
/// A sample is done as soon as it is adversarial; where the search fails, the result is where the walk ended.
#[derive(Clone, Debug)]
pub struct Simba {
    /// What the attacker may do.
    pub threat: ThreatModel,
    /// What the attacker wants.
    pub goal: Goal,
    /// The coordinates.
    pub basis: Basis,
    /// Size of a step in the norm of the threat model, in input units; above 0.
    pub step_size: f32,
    /// Queries of a sample, at most.
    pub queries: usize,
    /// Candidates the model is given at once; a matter of speed and memory only.
    pub query_batch: usize,
}

impl Simba {
    /// The paper's step of 0.2 in L2, at most eps; eps in L∞. 10,000 queries.
    pub fn new(threat: ThreatModel, basis: Basis) -> Self {
        let eps = threat.eps.value();
        Self {
            step_size: if threat.norm == Norm::L2 {
                eps.min(0.2)
            } else {
                eps
            },
            threat,
            goal: Goal::Untargeted,
            basis,
            queries: 10_000,
            query_batch: 256,
        }
    }

    /// The adversarial batch, and how many queries each sample took: the look at the clean input is none.
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
        let dims = x.dims();
        if dims.contains(&0) {
            return (x, vec![0; dims[0]]);
        }
        let waves = Waves::new(self.basis, self.threat.norm, &dims[1..]);
        let oracle = Oracle::new(model, &x, self.goal, self.query_batch);
        let rows = rows(x.clone(), y);
        let margins = oracle.margins(rows.iter().map(|(row, class)| (&row[..], *class)));
        let starts = rows.into_iter().zip(margins).zip(&noise.samples);
        let mut samples: Vec<Walker> = starts
            .map(|(((clean, class), margin), &id)| Walker {
                class,
                x: clean.clone(),
                candidate: clean.clone(),
                clean,
                margin,
                order: Vec::new(),
                next: 0,
                step: self.step_size,
                gained: true,
                rng: noise.key.rng(id),
                queries: 0,
            })
            .collect();
        let mut active: Vec<&mut Walker> = samples.iter_mut().collect();
        loop {
            // A tie is not yet won.
            active.retain_mut(|sample| {
                sample.margin <= 0.0
                    && sample.queries < self.queries
                    && self.propose(&waves, sample)
            });
            if active.is_empty() {
                break;
            }
            let margins = oracle.margins(active.iter().map(|s| (&s.candidate[..], s.class)));
            for (sample, margin) in active.iter_mut().zip(margins) {
                sample.judge(margin);
            }
        }
        let queries = samples.iter().map(|sample| sample.queries).collect();
        let result = oracle.tensor(samples.into_iter().map(|sample| sample.x));
        debug_assert_eq!(self.threat.verify(&x, &result), Ok(()));
        (result, queries)
    }

    /// The next candidate that differs from where the sample stands; false where there is none.
    fn propose(&self, waves: &Waves, sample: &mut Walker) -> bool {
        /// Steps below this share of the first one are of no use.
        const SMALLEST: f32 = 1.0 / 1024.0;
        loop {
            if sample.next == 2 * sample.order.len() {
                if !sample.gained {
                    sample.step /= 2.0;
                }
                let tiny = sample.step < SMALLEST * self.step_size || sample.step <= 0.0;
                if tiny || !sample.step.is_finite() {
                    return false;
                }
                sample.order = waves.order(&mut sample.rng);
                (sample.next, sample.gained) = (0, false);
            }
            let coordinate = sample.order[sample.next / 2];
            let sign = if sample.next.is_multiple_of(2) {
                1.0
            } else {
                -1.0
            };
            sample.next += 1;
            sample.candidate.copy_from_slice(&sample.x);
            waves.add(coordinate, sign * sample.step, &mut sample.candidate);
            project(&self.threat, &sample.clean, &mut sample.candidate);
            if sample.candidate != sample.x {
                return true;
            }
        }
    }
}

impl<const D: usize> Attack<D> for Simba {
    fn perturb(
        &self,
        model: &dyn Classifier<D>,
        x: Tensor<D>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<D> {
        self.search(model, x, y, noise).0
    }

    fn name(&self) -> String {
        match self.basis {
            Basis::Pixel => format!("SimBA-{}", self.queries),
            Basis::Dct { .. } => format!("SimBA-DCT-{}", self.queries),
        }
    }
}

/// One sample on its walk.
struct Walker {
    class: usize,
    clean: Vec<f32>,
    x: Vec<f32>,
    candidate: Vec<f32>,
    margin: f32,
    /// Coordinates of this walk.
    order: Vec<u32>,
    /// Twice the place in `order`, one more for a step down.
    next: usize,
    step: f32,
    /// Whether anything has been won in this walk.
    gained: bool,
    /// Advances with the sample's own walks only.
    rng: Philox,
    queries: usize,
}

impl Walker {
    fn judge(&mut self, margin: f32) {
        self.queries += 1;
        if margin > self.margin {
            self.margin = margin;
            self.gained = true;
            std::mem::swap(&mut self.x, &mut self.candidate);
            // Who went up does not go down again.
            self.next = self.next.next_multiple_of(2);
        }
    }
}

/// The coordinates of inputs of one shape, as products of a column and a row of values.
struct Waves {
    planes: usize,
    /// Waves of each axis, `[height][height]` and `[width][width]`; none where the coordinates are single values.
    axes: Option<[Vec<Vec<f32>>; 2]>,
    size: [usize; 2],
    /// Coordinates by rising frequency: those of one group come in any order.
    groups: Vec<Vec<u32>>,
}

impl Waves {
    /// `shape` is that of one input.
    fn new(basis: Basis, norm: Norm, shape: &[usize]) -> Self {
        let (planes, [height, width]) = match *shape {
            [ref planes @ .., height, width] => (planes.iter().product(), [height, width]),
            [width] => (1, [1, width]),
            [] => (1, [1, 1]),
        };
        let all = 0..(planes * height * width) as u32;
        let (axes, groups) = match basis {
            Basis::Pixel => (None, vec![all.collect()]),
            Basis::Dct { share } => {
                let group = |coordinate: &u32| {
                    let at = *coordinate as usize % (height * width);
                    let level = |k: usize, length| (k as f32 / (share * length as f32)) as usize;
                    level(at / width, height).max(level(at % width, width))
                };
                let mut sorted: Vec<u32> = all.collect();
                sorted.sort_by_key(group);
                let groups = sorted.chunk_by(|a, b| group(a) == group(b));
                let axes = [height, width].map(|length| cosines(length, norm));
                (Some(axes), groups.map(<[u32]>::to_vec).collect())
            }
        };
        Self {
            planes,
            axes,
            size: [height, width],
            groups,
        }
    }

    /// All coordinates in a new order.
    fn order(&self, rng: &mut Philox) -> Vec<u32> {
        let mut order = Vec::with_capacity(self.planes * self.size[0] * self.size[1]);
        for group in &self.groups {
            let first = order.len();
            order.extend_from_slice(group);
            let group = &mut order[first..];
            for last in (1..group.len()).rev() {
                group.swap(last, rng.random_range(0..=last));
            }
        }
        order
    }

    /// Adds `size` times the coordinate.
    fn add(&self, coordinate: u32, size: f32, x: &mut [f32]) {
        let coordinate = coordinate as usize;
        let Some([columns, rows]) = &self.axes else {
            x[coordinate] += size;
            return;
        };
        let [height, width] = self.size;
        let (plane, at) = (coordinate / (height * width), coordinate % (height * width));
        let plane = &mut x[plane * height * width..][..height * width];
        let row = &rows[at % width];
        for (x, column) in plane.chunks_exact_mut(width).zip(&columns[at / width]) {
            for (x, row) in x.iter_mut().zip(row) {
                *x += size * column * row;
            }
        }
    }
}

/// The waves of the DCT-II along an axis, `cos(pi (2 n + 1) k / (2 length))`, each at length 1 in `norm`.
fn cosines(length: usize, norm: Norm) -> Vec<Vec<f32>> {
    let wave = |k: usize| {
        let value = |n: usize| (PI * ((2 * n + 1) * k) as f64 / (2 * length) as f64).cos();
        let values: Vec<f64> = (0..length).map(value).collect();
        let size = match norm {
            Norm::Linf => values.iter().fold(0.0, |most: f64, v| most.max(v.abs())),
            _ => values.iter().map(|v| v * v).sum::<f64>().sqrt(),
        };
        values.into_iter().map(|v| (v / size) as f32).collect()
    };
    (0..length).map(wave).collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::black_box::{check_scores, noise};
    use crate::testing::values;

    fn simba(threat: &ThreatModel, basis: Basis) -> Simba {
        Simba {
            queries: 3000,
            ..Simba::new(threat.clone(), basis)
        }
    }

    const DCT: Basis = Basis::Dct { share: 0.25 };

    /// In L∞ single values at +eps or -eps reach the optimum of a linear model itself. Waves get stuck where many values are at
    /// the edge of the ball: to fool all of 10 models it was measured to need 1.75 times the distance.
    #[test]
    fn linear_and_masked_models_fall_to_scores() {
        for (basis, norm, enough) in [
            (Basis::Pixel, Norm::Linf, 1.02),
            (Basis::Pixel, Norm::L2, 1.1),
            (DCT, Norm::Linf, 2.0),
            (DCT, Norm::L2, 1.1),
        ] {
            check_scores(
                norm,
                enough,
                &|threat, goal, query_batch, model, x, y, noise| {
                    let attack = Simba {
                        goal,
                        query_batch,
                        ..simba(threat, basis)
                    };
                    attack.search(model, x, y, noise)
                },
            );
        }
    }

    fn wave(waves: &Waves, coordinate: u32, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        waves.add(coordinate, 1.0, &mut values);
        values
    }

    #[test]
    fn waves_are_an_orthonormal_basis_of_each_channel() {
        let waves = Waves::new(DCT, Norm::L2, &[2, 3, 4]);
        let all: Vec<Vec<f32>> = (0..24).map(|k| wave(&waves, k, 24)).collect();
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                let product: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                assert!(
                    (product - f32::from(u8::from(i == j))).abs() < 1e-6,
                    "{i} {j}"
                );
            }
        }
        // By hand: frequency 1 of 4 columns, constant over 3 rows, in the second channel.
        let cosines = [1.0f32, 3.0, 5.0, 7.0].map(|n| (n * std::f32::consts::PI / 8.0).cos());
        for (i, value) in all[13].iter().enumerate() {
            let expected = if i < 12 {
                0.0
            } else {
                cosines[i % 4] / 6f32.sqrt()
            };
            assert!((value - expected).abs() < 1e-6, "{i}");
        }
        let waves = Waves::new(DCT, Norm::Linf, &[2, 3, 4]);
        for k in 0..24 {
            let most = wave(&waves, k, 24)
                .iter()
                .fold(0.0, |most: f32, v| v.abs().max(most));
            assert!((most - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn low_frequencies_come_first_and_each_coordinate_once() {
        let mut rng = noise(0..1).key.rng(0);
        let waves = Waves::new(DCT, Norm::L2, &[3, 8, 8]);
        let order = waves.order(&mut rng);
        let level = |k: u32| (k % 64 / 8 / 2).max(k % 8 / 2);
        assert!(order.is_sorted_by_key(|&k| level(k)));
        assert!(
            order[..12].iter().all(|&k| level(k) == 0),
            "2 x 2 in 3 channels"
        );
        for waves in [waves, Waves::new(Basis::Pixel, Norm::L2, &[3, 8, 8])] {
            let (first, second) = (waves.order(&mut rng), waves.order(&mut rng));
            assert_ne!(first, second);
            let mut sorted = first;
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..192));
        }
        for share in [0.0, f32::NAN, 7.0] {
            let waves = Waves::new(Basis::Dct { share }, Norm::L2, &[1, 3, 3]);
            assert_eq!(waves.order(&mut rng).len(), 9, "{share}");
        }
    }

    /// The score is `x0 - x1 / 2`, class 0 wins while it is above 0.2; by hand, whatever the order: one value down or the other up.
    #[test]
    fn each_step_is_one_coordinate_that_helps() {
        let device = Device::flex();
        let model = crate::testing::Linear::new([[1.0, -0.5], [0.0, 0.0]], [-0.2, 0.0], &device);
        let x = Tensor::<2>::from_floats([[0.6, 0.2]], &device);
        let y = Tensor::<1, Int>::from_ints([0], &device);
        for seed in 0..8 {
            for queries in 1..=4 {
                let attack = Simba {
                    queries,
                    ..Simba::new("linf:0.1".parse().unwrap(), Basis::Pixel)
                };
                let found = attack.search(&model, x.clone(), y.clone(), &noise(seed..seed + 1));
                let moved = values(found.0 - x.clone());
                let near = |a: f32, b: f32| (a - b).abs() < 1e-6;
                assert!(near(moved[0], 0.0) || near(moved[0], -0.1), "{moved:?}");
                assert!(near(moved[1], 0.0) || near(moved[1], 0.1), "{moved:?}");
                // Up and down for the first value, up for the second: 3 queries, whatever comes first.
                let done = [moved[0] < -0.05, moved[1] > 0.05];
                match queries {
                    1 => assert!(!done[0]),
                    2 => assert!(done[0] != done[1]),
                    _ => assert_eq!(done, [true, true]),
                }
            }
        }
    }

    #[test]
    fn names_and_rows_of_features() {
        let threat: ThreatModel = "l2:1".parse().unwrap();
        let name = |basis| Attack::<4>::name(&Simba::new(threat.clone(), basis));
        assert_eq!(name(Basis::Pixel), "SimBA-10000");
        assert_eq!(name(DCT), "SimBA-DCT-10000");
        let waves = Waves::new(DCT, Norm::L2, &[5]);
        let flat = wave(&waves, 0, 5);
        assert!(flat.iter().all(|v| (v - 0.2f32.sqrt()).abs() < 1e-6));
    }
}
