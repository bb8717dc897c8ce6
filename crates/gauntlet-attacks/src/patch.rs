use burn::tensor::{Int, Tensor};
use gauntlet_kernels::noise::Philox;
use gauntlet_kernels::perturb::choose;
use gauntlet_models::Classifier;
use rand::RngExt;

use crate::patch_threat::host;
use crate::rows::{Aim, indices, replace, standing};
use crate::universal::falling;
use crate::window::{Corner, Window, grid, largest_sum};
use crate::{Attack, AttackLoss, Goal, Noise, PatchThreat};

/// Where [`Patch`] looks for the place of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locations {
    /// The place of largest first-order gain, and so many others at random, for each sample and restart anew.
    Random(usize),
    /// The place of largest first-order gain, and all on a grid with so many pixels between its lines (at least 1), the last
    /// row and column among them.
    Grid(usize),
}

/// An adversarial patch for each image, at the place where it hurts most: projected gradient descent on the pixels of one
/// window in the whole range of legal values, after a search for the window (Rao, Stutz & Schiele 2020, "Adversarial training
/// against location-optimized adversarial patches").
///
/// The paper moves a patch by a few pixels between steps. Here places all over the image are probed with `probe_steps` steps
/// each from the same random content, and the best one is attacked in earnest: a patch that moves cannot cross a plain where
/// no place is worth anything. One of the places probed is that of the largest first-order gain, the sum over its values of
/// `max over v in [lo, hi] of g * (v - x)`, which is the optimum of a linear model.
#[derive(Clone, Debug)]
pub struct Patch {
    /// How large the patch is, and its legal values.
    pub threat: PatchThreat,
    /// What is sought.
    pub goal: Goal,
    /// What is ascended.
    pub loss: AttackLoss,
    /// Which places are probed.
    pub locations: Locations,
    /// Gradient steps at each place that is probed.
    pub probe_steps: usize,
    /// Gradient steps at the best of them.
    pub steps: usize,
    /// Length of a step on each value of the patch, in input units. At the best place it falls linearly to 0, so that the
    /// last steps settle.
    pub step_size: f32,
    /// Independent searches.
    pub restarts: usize,
}

impl Patch {
    /// 20 places, 5 steps at each, 100 at the best, one restart, steps of 0.25, and the margin, as cross-entropy has no
    /// gradient in `f32` where a model is sure by 17.
    ///
    /// The step crosses the whole range while a place is probed. With the paper's 0.05, places are judged by patches that are
    /// hardly better than random: of 200 digits of 8x8 pixels, under a patch of side 2, a small convolutional network still
    /// had 14.5 % right, with 0.25 it had 8.5 %; with every place probed (`Grid(1)`) 6.5 % and 1.5 % (steps of one length
    /// throughout).
    pub fn new(threat: PatchThreat) -> Self {
        Self {
            threat,
            goal: Goal::Untargeted,
            loss: AttackLoss::Margin,
            locations: Locations::Random(20),
            probe_steps: 5,
            steps: 100,
            step_size: 0.25,
            restarts: 1,
        }
    }

    /// One search for each row: the best example of all that were tried, and whether it reaches the goal.
    fn run(&self, scene: Scene, noise: &Noise) -> (Tensor<4>, Vec<bool>) {
        let (dims, (low, high)) = (scene.x.dims(), self.threat.bounds);
        let device = scene.x.device();
        let content = noise.key.uniform(&noise.samples, dims, low, high, &device);
        let mut best = Best::new(scene.x.clone());
        for corners in self.corners(&scene, noise) {
            let window = Window::new(&corners, self.threat.side, &scene.x);
            let start = window.paste(content.clone(), scene.x.clone());
            let steps = vec![self.step_size; self.probe_steps];
            best.keep(&scene.ascend(start, window, &steps));
        }
        let open = standing(&best.reached);
        let mut fell = vec![true; dims[0]];
        if open.is_empty() {
            return (best.x, fell);
        }
        let rows = indices(&open, &scene.x);
        let (scene, mut last) = (scene.select(&rows), best.select(&rows));
        let (start, window) = (last.x.clone(), last.window(self.threat.side));
        let steps = (0..self.steps).map(|step| falling(self.step_size, step, self.steps));
        last.keep(&scene.ascend(start, window, &Vec::from_iter(steps)));
        for (&row, reached) in open.iter().zip(host(&last.reached)) {
            fell[row] = reached > 0.5;
        }
        (replace(best.x, &open, last.x), fell)
    }

    /// The places to probe: in each round one for each row.
    fn corners(&self, scene: &Scene, noise: &Noise) -> Vec<Vec<Corner>> {
        let [_, _, height, width] = scene.x.dims();
        let (last_row, last_column) = (
            height.saturating_sub(self.threat.side),
            width.saturating_sub(self.threat.side),
        );
        let mut rounds = vec![self.steepest(scene)];
        match self.locations {
            Locations::Random(count) => {
                let key = noise.key.restart(PLACES + noise.key.restart);
                let mut rngs: Vec<_> = noise.samples.iter().map(|&id| key.rng(id)).collect();
                for _ in 0..count {
                    let corner = |rng: &mut Philox| {
                        let row = rng.random_range(0..=last_row);
                        (row, rng.random_range(0..=last_column))
                    };
                    rounds.push(rngs.iter_mut().map(corner).collect());
                }
            }
            Locations::Grid(stride) => {
                for row in grid(last_row, stride) {
                    for column in grid(last_column, stride) {
                        rounds.push(vec![(row, column); noise.samples.len()]);
                    }
                }
            }
        }
        rounds
    }

    /// The window of largest first-order gain of each row.
    fn steepest(&self, scene: &Scene) -> Vec<Corner> {
        let [_, _, height, width] = scene.x.dims();
        let (low, high) = self.threat.bounds;
        let (gradient, ..) = scene.aim().gradient(scene.x.clone(), &scene.y);
        let up = gradient.clone() * scene.x.clone().neg().add_scalar(high);
        let down = gradient * scene.x.clone().neg().add_scalar(low);
        let gains = host(&up.max_pair(down).sum_dim(1));
        let gains = gains.chunks_exact(height * width);
        gains
            .map(|gains| largest_sum(gains, width, self.threat.side))
            .collect()
    }
}

impl Attack<4> for Patch {
    fn perturb(
        &self,
        model: &dyn Classifier<4>,
        x: Tensor<4>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<4> {
        if x.dims().contains(&0) || self.threat.side == 0 {
            return x;
        }
        let reached = self.goal.reached(model.logits(x.clone()), y.clone());
        let mut standing = standing(&reached);
        let mut result = x.clone();
        for restart in 0..self.restarts.max(1) {
            if standing.is_empty() {
                break;
            }
            let rows = indices(&standing, &x);
            let noise = Noise {
                key: noise.key.restart(restart as u32),
                samples: standing.iter().map(|&row| noise.samples[row]).collect(),
            };
            let scene = Scene {
                attack: self,
                model,
                x: x.clone(),
                y: y.clone(),
            };
            let (found, fell) = self.run(scene.select(&rows), &noise);
            result = replace(result, &standing, found);
            let mut fell = fell.into_iter();
            standing.retain(|_| !fell.next().unwrap_or(true));
        }
        debug_assert_eq!(self.threat.verify(&x, &result), Ok(()));
        result
    }

    fn name(&self) -> String {
        match self.restarts {
            0 | 1 => format!("Patch-{}", self.steps),
            restarts => format!("Patch-{}x{restarts}", self.steps),
        }
    }
}

/// Places are drawn under restart numbers of their own, above any real one.
const PLACES: u32 = 2048;

/// The rows under attack.
struct Scene<'a> {
    attack: &'a Patch,
    model: &'a dyn Classifier<4>,
    x: Tensor<4>,
    y: Tensor<1, Int>,
}

impl<'a> Scene<'a> {
    fn select(&self, rows: &Tensor<1, Int>) -> Scene<'a> {
        Scene {
            x: self.x.clone().select(0, rows.clone()),
            y: self.y.clone().select(0, rows.clone()),
            ..*self
        }
    }

    fn aim(&self) -> Aim<'a> {
        Aim {
            model: self.model,
            goal: self.attack.goal,
            loss: self.attack.loss,
        }
    }

    /// Gradient steps of these lengths on the values in the window, and the best of the points they pass.
    fn ascend(&self, start: Tensor<4>, window: Window, steps: &[f32]) -> Best {
        let (low, high) = self.attack.threat.bounds;
        let mut best = Best::new(self.x.clone());
        let mut x = start;
        for &length in steps {
            let (gradient, loss, reached) = self.aim().gradient(x.clone(), &self.y);
            best.keep(&Best::at(x.clone(), loss, reached, &window));
            let step = gradient.sign().mul_scalar(length);
            x = window.paste((x + step).clamp(low, high), self.x.clone());
        }
        let (loss, reached) = self.aim().look(x.clone(), self.y.clone());
        best.keep(&Best::at(x, loss, reached, &window));
        best
    }
}

/// The best example of each row so far: one that reaches the goal, else the one of highest loss.
struct Best {
    x: Tensor<4>,
    loss: Tensor<1>,
    /// 1 where the goal is reached, else 0.
    reached: Tensor<1>,
    /// Corner of the window.
    top: Tensor<1>,
    left: Tensor<1>,
}

impl Best {
    /// Nothing but the clean input, which is worse than everything.
    fn new(x: Tensor<4>) -> Self {
        let zeros = Tensor::zeros([x.dims()[0]], &x.device());
        Self {
            x,
            loss: zeros.clone().add_scalar(f32::MIN),
            reached: zeros.clone(),
            top: zeros.clone(),
            left: zeros,
        }
    }

    fn at(x: Tensor<4>, loss: Tensor<1>, reached: Tensor<1>, window: &Window) -> Self {
        Self {
            x,
            loss,
            reached,
            top: window.top.clone(),
            left: window.left.clone(),
        }
    }

    fn select(&self, rows: &Tensor<1, Int>) -> Self {
        let part = |values: &Tensor<1>| values.clone().select(0, rows.clone());
        Self {
            x: self.x.clone().select(0, rows.clone()),
            loss: part(&self.loss),
            reached: part(&self.reached),
            top: part(&self.top),
            left: part(&self.left),
        }
    }

    fn window(&self, side: usize) -> Window {
        Window::at(self.top.clone(), self.left.clone(), side, self.x.dims())
    }

    /// Takes the rows in which `other` is better; a loss that is no number is not.
    fn keep(&mut self, other: &Self) {
        let gain = other.reached.clone() - self.reached.clone();
        let higher = other.loss.clone().greater(self.loss.clone()).float();
        // Reached beats not reached; between equals the loss decides.
        let better = (gain.mul_scalar(2.0) + higher).greater_elem(0.5).float();
        self.x = choose(&better, other.x.clone(), self.x.clone());
        for (mine, theirs) in [
            (&mut self.loss, &other.loss),
            (&mut self.reached, &other.reached),
            (&mut self.top, &other.top),
            (&mut self.left, &other.left),
        ] {
            *mine = choose(&better, theirs.clone(), mine.clone());
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::testing::{LinearImages, values};
    use crate::testing_images::{graded, images, labels, noise};

    /// The lowest margin of a sample of a linear model under any patch: for each rival and each window the best values.
    fn enumeration(
        rows: &[f32],
        clean: &[f32],
        class: usize,
        [height, width]: [usize; 2],
        side: usize,
    ) -> f32 {
        let inputs = clean.len();
        let row = |class: usize| &rows[class * inputs..][..inputs];
        let mut lowest = f32::INFINITY;
        for rival in (0..rows.len() / inputs).filter(|&rival| rival != class) {
            let slope = |i: usize| row(class)[i] - row(rival)[i];
            let margin: f32 = (0..inputs).map(|i| slope(i) * clean[i]).sum();
            for top in 0..=height.saturating_sub(side) {
                for left in 0..=width.saturating_sub(side) {
                    let change = |i: usize| {
                        let (r, c) = (i / width % height, i % width);
                        let inside =
                            (top..top + side).contains(&r) && (left..left + side).contains(&c);
                        let best = (slope(i) * (1.0 - clean[i])).min(slope(i) * -clean[i]);
                        if inside { best } else { 0.0 }
                    };
                    lowest = lowest.min(margin + (0..inputs).map(change).sum::<f32>());
                }
            }
        }
        lowest
    }

    #[test]
    fn what_reaches_the_goal_beats_what_has_a_higher_loss() {
        let x = images([4, 1, 2, 2]);
        let numbers = |values: [f32; 4]| Tensor::<1>::from_floats(values, &x.device());
        let window = Window::new(&[(0, 0); 4], 1, &x);
        let best = |loss, reached| Best::at(x.clone(), numbers(loss), numbers(reached), &window);
        let mut old = best([5.0, 1.0, 1.0, 2.0], [0.0, 1.0, 0.0, 0.0]);
        old.keep(&best([1.0, 5.0, 2.0, f32::NAN], [1.0, 0.0, 0.0, 0.0]));
        assert_eq!(values(old.loss), [1.0, 1.0, 2.0, 2.0]);
        assert_eq!(values(old.reached), [1.0, 1.0, 0.0, 0.0]);
    }

    /// Exactly the optimum: its place by first-order gain (`Random(0)`) or from the grid, its content by sign steps that
    /// cross the whole range. With two classes there is one optimum; a sample that has fallen needs no better.
    #[test]
    fn the_patch_of_a_linear_model_is_that_of_an_enumeration() {
        let (shape, side) = ([16, 2, 6, 7], 2);
        let (model, x, y) = graded(2, 2, shape, 0.25);
        let (rows, clean) = (values(model.rows.clone()), values(x.clone()));
        let classes: Vec<i64> = y.clone().try_into_vec_as().unwrap();
        for (locations, probe_steps) in [(Locations::Random(0), 1), (Locations::Grid(1), 25)] {
            let attack = Patch {
                locations,
                probe_steps,
                steps: 25,
                ..Patch::new(PatchThreat::new(side))
            };
            let found = attack.perturb(&model, x.clone(), y.clone(), &noise(0..16));
            assert_eq!(attack.threat.verify(&x, &found), Ok(()));
            let logits = values(model.logits(found));
            let mut counts = [0, 0];
            for i in 0..16 {
                let class = classes[i] as usize;
                let best = enumeration(&rows, &clean[i * 84..][..84], class, [6, 7], side);
                let margin = logits[2 * i + class] - logits[2 * i + 1 - class];
                counts[usize::from(best < 0.0)] += 1;
                if best < 0.0 {
                    assert!(margin < 0.0, "{i}: {margin} for {best}");
                } else {
                    assert!((margin - best).abs() < 1e-3, "{i}: {margin} for {best}");
                }
            }
            assert!(counts[0] > 2 && counts[1] > 2, "{counts:?}");
        }
    }

    /// The optimum over rivals too, which the gradient at the clean image does not know of: found by probing every place.
    #[test]
    fn with_several_classes_every_sample_falls_that_can() {
        let (shape, side) = ([24, 3, 5, 5], 2);
        let (model, x, y) = graded(3, 4, shape, 0.25);
        let (rows, clean) = (values(model.rows.clone()), values(x.clone()));
        let classes: Vec<i64> = y.clone().try_into_vec_as().unwrap();
        let attack = Patch {
            locations: Locations::Grid(1),
            probe_steps: 25,
            steps: 25,
            ..Patch::new(PatchThreat::new(side))
        };
        let found = attack.perturb(&model, x.clone(), y.clone(), &noise(0..24));
        let wrong = values(Goal::Untargeted.reached(model.logits(found), y));
        let best = |i: usize| {
            enumeration(
                &rows,
                &clean[i * 75..][..75],
                classes[i] as usize,
                [5, 5],
                side,
            )
        };
        let can = (0..24).filter(|&i| best(i) < 0.0).count();
        let fell = wrong.iter().filter(|&&wrong| wrong > 0.5).count();
        assert!(can > 4 && can < 24, "{can}");
        assert!((0..24).all(|i| wrong[i] < 0.5 || best(i) < 1e-3));
        assert_eq!(fell, can);
    }

    #[test]
    fn batch_mates_do_not_matter() {
        let shape = [4, 3, 9, 5];
        let model = LinearImages::random(4, 3, shape);
        let x = images(shape);
        let y = labels(&model, &x);
        for (side, locations) in [
            (1, Locations::Random(3)),
            (2, Locations::Grid(3)),
            (7, Locations::Random(2)),
        ] {
            let attack = Patch {
                locations,
                probe_steps: 2,
                steps: 6,
                restarts: 2,
                ..Patch::new(PatchThreat::new(side))
            };
            let all = attack.perturb(&model, x.clone(), y.clone(), &noise(10..14));
            assert_eq!(attack.threat.verify(&x, &all), Ok(()));
            let all = values(all);
            for i in 0..4 {
                let (x, y) = (x.clone().slice([i..i + 1]), y.clone().slice([i..i + 1]));
                let alone = attack.perturb(&model, x, y, &noise([10 + i as u32]));
                for (a, b) in values(alone).iter().zip(&all[i * 135..]) {
                    assert!((a - b).abs() < 1e-6, "side {side}, sample {i}");
                }
            }
        }
    }

    #[test]
    fn a_target_is_reached_and_what_is_won_or_void_stays() {
        let shape = [3, 3, 6, 6];
        let model = LinearImages::random(6, 3, shape);
        let x = images(shape);
        let y = labels(&model, &x).add_scalar(1).remainder_scalar(3);
        let attack = Patch {
            goal: Goal::Targeted,
            ..Patch::new(PatchThreat::new(5))
        };
        let found = attack.perturb(&model, x.clone(), y.clone(), &noise(0..3));
        let reached = Goal::Targeted.reached(model.logits(found), y.clone());
        assert_eq!(values(reached), [1.0; 3]);
        let untargeted = Patch::new(PatchThreat::new(5));
        let same = untargeted.perturb(&model, x.clone(), y.clone(), &noise(0..3));
        assert_eq!(values(same), values(x.clone()));
        let nothing = Patch::new(PatchThreat::new(0));
        let same = nothing.perturb(&model, x.clone(), labels(&model, &x), &noise(0..3));
        assert_eq!(values(same), values(x.clone()));
        let none = untargeted.perturb(&model, x.slice([0..0]), y.slice([0..0]), &noise([]));
        assert_eq!(none.dims()[0], 0);
    }

    #[test]
    fn models_without_gradient_or_number_leave_legal_images() {
        struct Void;
        impl Classifier<4> for Void {
            fn logits(&self, x: Tensor<4>) -> Tensor<2> {
                let sums = x.flatten::<2>(1, 3).sum_dim(1);
                Tensor::cat(vec![sums.clone() * f32::NAN, sums], 1)
            }
            fn features(&self, x: Tensor<4>) -> Tensor<2> {
                x.flatten(1, 3)
            }
        }
        let shape = [2, 1, 4, 4];
        let x = images(shape);
        let y = Tensor::<1, Int>::zeros([2], &x.device());
        let attack = Patch {
            steps: 3,
            ..Patch::new(PatchThreat::new(2))
        };
        let flat = LinearImages {
            rows: Tensor::zeros([2, 16], &x.device()),
        };
        for model in [&Void as &dyn Classifier<4>, &flat] {
            let found = attack.perturb(model, x.clone(), y.clone(), &noise(0..2));
            assert_eq!(attack.threat.verify(&x, &found), Ok(()));
        }
    }
}
