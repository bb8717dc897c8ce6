//! Work on those rows of a batch that still stand.

use burn::tensor::{Int, Tensor};
use gauntlet_models::Classifier;

use crate::gradient::input_gradient_of;
use crate::patch_threat::host;
use crate::{AttackLoss, Goal};

/// Rows in which a value of 0 or 1 is 0.
pub(crate) fn standing(reached: &Tensor<1>) -> Vec<usize> {
    let reached = host(reached).into_iter().enumerate();
    reached
        .filter(|(_, reached)| *reached < 0.5)
        .map(|(row, _)| row)
        .collect()
}

pub(crate) fn indices(rows: &[usize], like: &Tensor<4>) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    Tensor::from_ints(rows.as_slice(), &like.device())
}

/// `x` with `parts` in place of the rows `places`.
pub(crate) fn replace(x: Tensor<4>, places: &[usize], parts: Tensor<4>) -> Tensor<4> {
    let batch = x.dims()[0];
    let mut rows: Vec<usize> = (0..batch).collect();
    for (part, &place) in places.iter().enumerate() {
        rows[place] = batch + part;
    }
    let rows = indices(&rows, &x);
    Tensor::cat(vec![x, parts], 0).select(0, rows)
}

/// What makes an example better than another.
#[derive(Clone, Copy)]
pub(crate) struct Aim<'a> {
    pub(crate) model: &'a dyn Classifier<4>,
    pub(crate) goal: Goal,
    pub(crate) loss: AttackLoss,
}

impl Aim<'_> {
    /// The loss of each row, and 1 where the goal is reached, else 0.
    pub(crate) fn look(&self, x: Tensor<4>, y: Tensor<1, Int>) -> (Tensor<1>, Tensor<1>) {
        let logits = self.model.logits(x);
        let loss = self.goal.loss(self.loss, logits.clone(), y.clone());
        (loss, self.goal.reached(logits, y))
    }

    /// The gradient of the loss of each row with respect to its image, zero where it is no number; and what [`Self::look`]
    /// sees.
    pub(crate) fn gradient(
        &self,
        x: Tensor<4>,
        y: &Tensor<1, Int>,
    ) -> (Tensor<4>, Tensor<1>, Tensor<1>) {
        let (gradient, loss, logits) = input_gradient_of(self.model, x, |logits| {
            self.goal.loss(self.loss, logits, y.clone())
        });
        let no_number = gradient.clone().is_nan();
        let gradient = gradient.mask_fill(no_number, 0.0);
        (gradient, loss, self.goal.reached(logits, y.clone()))
    }

    /// Of some candidates for each row, `candidate(row, round)` in each of `rounds`, the first that reaches the goal, else
    /// that of highest loss; `none`, which is what a row is without any, where no loss is a number that is higher. A row that
    /// has fallen is looked at no more.
    pub(crate) fn worst_of<P: Clone>(
        &self,
        x: &Tensor<4>,
        y: &Tensor<1, Int>,
        none: &P,
        rounds: usize,
        candidate: impl Fn(usize, usize) -> P,
        render: impl Fn(Tensor<4>, &[P]) -> Tensor<4>,
    ) -> Vec<P> {
        let batch = x.dims()[0];
        let (loss, reached) = self.look(x.clone(), y.clone());
        let mut chosen = vec![none.clone(); batch];
        let mut highest = host(&loss);
        let mut fell: Vec<bool> = host(&reached)
            .iter()
            .map(|&reached| reached > 0.5)
            .collect();
        let mut rows: Vec<usize> = (0..batch).collect();
        let (mut x, mut y) = (x.clone(), y.clone());
        for round in 0..rounds {
            let open = rows.iter().filter(|&&row| !fell[row]).count();
            if open == 0 {
                break;
            }
            // Not for every row that falls: to select is to copy, and each size is a new shape to a device.
            if open * 8 <= rows.len() * 7 {
                let kept: Vec<usize> = (0..rows.len()).filter(|&i| !fell[rows[i]]).collect();
                let index = indices(&kept, &x);
                (x, y) = (x.select(0, index.clone()), y.select(0, index));
                rows = kept.into_iter().map(|i| rows[i]).collect();
            }
            let candidates: Vec<P> = rows.iter().map(|&row| candidate(row, round)).collect();
            let (loss, reached) = self.look(render(x.clone(), &candidates), y.clone());
            let found = host(&loss).into_iter().zip(host(&reached));
            for ((&row, candidate), (loss, reached)) in rows.iter().zip(candidates).zip(found) {
                let higher = loss > highest[row] || (highest[row].is_nan() && !loss.is_nan());
                if !fell[row] && (higher || reached > 0.5) {
                    chosen[row] = candidate;
                    highest[row] = loss;
                    fell[row] = reached > 0.5;
                }
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::values;

    #[test]
    fn rows_are_replaced_where_they_were() {
        let device = Device::flex();
        let x = Tensor::<1>::from_floats([0.0, 1.0, 2.0, 3.0], &device).reshape([4, 1, 1, 1]);
        let parts = Tensor::<1>::from_floats([9.0, 8.0], &device).reshape([2, 1, 1, 1]);
        assert_eq!(values(replace(x, &[3, 1], parts)), [0.0, 8.0, 2.0, 9.0]);
        assert_eq!(
            standing(&Tensor::from_floats([0.0, 1.0, 0.0], &device)),
            [0, 2]
        );
    }

    /// The margin is the value itself minus 10. Row 0 falls in round 1, row 1 never, row 2 has fallen as it is.
    #[test]
    fn the_worst_candidate_of_each_row_is_chosen() {
        struct Threshold;
        impl Classifier<4> for Threshold {
            fn logits(&self, x: Tensor<4>) -> Tensor<2> {
                let x = x.flatten::<2>(1, 3);
                Tensor::cat(vec![x.zeros_like().add_scalar(10.0), x], 1)
            }
            fn features(&self, x: Tensor<4>) -> Tensor<2> {
                x.flatten(1, 3)
            }
        }
        let device = Device::flex();
        let x = Tensor::<1>::from_floats([0.0, 0.0, 11.0], &device).reshape([3, 1, 1, 1]);
        let y = Tensor::<1, Int>::zeros([3], &device);
        let aim = Aim {
            model: &Threshold,
            goal: Goal::Untargeted,
            loss: AttackLoss::Margin,
        };
        let table = [[3.0, 12.0, 15.0], [4.0, f32::NAN, 2.0], [20.0, 30.0, 40.0]];
        let asked = std::cell::RefCell::new(Vec::new());
        let chosen = aim.worst_of(
            &x,
            &y,
            &0.0,
            3,
            |row, round| {
                asked.borrow_mut().push((row, round));
                table[row][round]
            },
            |x, add| {
                let add = Tensor::<1>::from_floats(add, &x.device());
                x.clone() + add.reshape(x.dims())
            },
        );
        assert_eq!(chosen, [12.0, 4.0, 0.0]);
        let asked = asked.into_inner();
        assert_eq!(asked, [(0, 0), (1, 0), (0, 1), (1, 1), (1, 2)]);
    }

    /// One row of ten has fallen, too few to go on without it: what it is shown afterwards changes nothing.
    #[test]
    fn a_row_that_has_fallen_keeps_what_it_fell_to() {
        struct Sums;
        impl Classifier<4> for Sums {
            fn logits(&self, x: Tensor<4>) -> Tensor<2> {
                let x = x.flatten::<2>(1, 3);
                Tensor::cat(vec![x.zeros_like(), x.sub_scalar(10.0)], 1)
            }
            fn features(&self, x: Tensor<4>) -> Tensor<2> {
                x.flatten(1, 3)
            }
        }
        let device = Device::flex();
        let x = Tensor::<4>::zeros([10, 1, 1, 1], &device);
        let y = Tensor::<1, Int>::zeros([10], &device);
        let aim = Aim {
            model: &Sums,
            goal: Goal::Untargeted,
            loss: AttackLoss::Margin,
        };
        let candidate = |row, round| match (row, round) {
            (0, _) => 11.0 + round as f32,
            (_, round) => round as f32,
        };
        let render = |x: Tensor<4>, add: &[f32]| {
            let add = Tensor::<1>::from_floats(add, &x.device());
            x.clone() + add.reshape(x.dims())
        };
        let chosen = aim.worst_of(&x, &y, &0.0, 4, candidate, render);
        assert_eq!((chosen[0], chosen[9]), (11.0, 3.0));
    }
}
