//! What attacks share that minimise `distance + c * shortfall` and search for `c` (Carlini & Wagner 2017, section V).

use burn::tensor::{Int, Tensor};
use gauntlet_kernels::perturb::choose;

use crate::minimal::{Nearest, row_index, row_order, split_rows};
use crate::{AttackLoss, Goal};

/// Upper end of the search before an example was found.
const NO_LIMIT: f32 = 1e10;

/// A row stalls where a tenth of a round's steps lowers its objective to no less than this share (the authors' code).
const STALLED: f32 = 0.9999;

/// Factor of `c` while no example was found.
const GROWTH: f32 = 10.0;

/// The factor `c` of each sample, and between which values the search for it has come.
pub(crate) struct Penalty {
    pub(crate) c: Tensor<1>,
    low: Tensor<1>,
    high: Tensor<1>,
}

impl Penalty {
    /// Begins with `c` for each row of `like`.
    pub(crate) fn new(c: f32, like: &Tensor<1>) -> Self {
        Self {
            c: like.zeros_like() + c,
            low: like.zeros_like(),
            high: like.zeros_like() + NO_LIMIT,
        }
    }

    /// Halves the interval: below `c` where it gave an example (`won` is 1), else above. Without an upper end `c` grows
    /// tenfold.
    pub(crate) fn update(&mut self, won: &Tensor<1>) {
        let c = self.c.clone();
        self.high = choose(
            won,
            self.high.clone().min_pair(c.clone()),
            self.high.clone(),
        );
        self.low = choose(won, self.low.clone(), self.low.clone().max_pair(c.clone()));
        let middle = (self.low.clone() + self.high.clone()).mul_scalar(0.5);
        let bounded = self.high.clone().lower_elem(NO_LIMIT).float();
        self.c = choose(&bounded, middle, c.mul_scalar(GROWTH).clamp_max(NO_LIMIT));
    }
}

/// Rows of a batch that such an attack works on.
pub(crate) struct Rows<const D: usize> {
    /// Where each row was in the batch.
    pub(crate) places: Vec<usize>,
    pub(crate) nearest: Nearest<D>,
    pub(crate) penalty: Penalty,
    /// 1 where the present `c` gave an example.
    pub(crate) won: Tensor<1>,
}

impl<const D: usize> Rows<D> {
    pub(crate) fn new(nearest: Nearest<D>, c: f32) -> Self {
        Self {
            places: (0..nearest.distance.dims()[0]).collect(),
            penalty: Penalty::new(c, &nearest.distance),
            won: nearest.distance.zeros_like(),
            nearest,
        }
    }

    /// Ends a round with one `c`.
    pub(crate) fn next_round(&mut self) {
        self.penalty.update(&self.won);
        self.won = self.won.zeros_like();
    }

    pub(crate) fn select(&self, rows: &[usize]) -> Self {
        let index = row_index(rows, &self.won.device());
        let of = |value: &Tensor<1>| value.clone().select(0, index.clone());
        Self {
            places: rows.iter().map(|&row| self.places[row]).collect(),
            nearest: self.nearest.select(index.clone()),
            penalty: Penalty {
                c: of(&self.penalty.c),
                low: of(&self.penalty.low),
                high: of(&self.penalty.high),
            },
            won: of(&self.won),
        }
    }

    fn followed_by(mut self, other: Self) -> Self {
        let both = |a: Tensor<1>, b: Tensor<1>| Tensor::cat(vec![a, b], 0);
        self.places.extend(other.places);
        Self {
            places: self.places,
            nearest: self.nearest.followed_by(other.nearest),
            penalty: Penalty {
                c: both(self.penalty.c, other.penalty.c),
                low: both(self.penalty.low, other.penalty.low),
                high: both(self.penalty.high, other.penalty.high),
            },
            won: both(self.won, other.won),
        }
    }
}

/// Which rows go on within a round: those whose objective fell in the last tenth of the steps.
pub(crate) struct Stall<const D: usize> {
    /// Steps between looks, each of which waits for the device. `None`: all rows go on.
    period: Option<usize>,
    before: Tensor<1>,
    /// Rows whose round is over.
    over: Option<Rows<D>>,
}

impl<const D: usize> Stall<D> {
    pub(crate) fn new(abort_early: bool, steps: usize, rows: &Rows<D>) -> Self {
        Self {
            period: abort_early.then_some((steps / 10).max(1)),
            before: rows.won.zeros_like() + f32::MAX,
            over: None,
        }
    }

    /// The rows that go on; `None` if all do. `objective: [rows]`.
    pub(crate) fn look(&mut self, step: usize, objective: Tensor<1>) -> Option<Vec<usize>> {
        if !step.is_multiple_of(self.period?) {
            return None;
        }
        let limit = self.before.clone().mul_scalar(STALLED);
        let (going, stalled) = split_rows(objective.clone().lower(limit).float());
        self.before = objective;
        (!stalled.is_empty()).then_some(going)
    }

    /// Leaves those of `rows` that go on.
    pub(crate) fn set_aside(&mut self, rows: Rows<D>, going: &[usize]) -> Rows<D> {
        let mut goes = vec![false; rows.places.len()];
        going.iter().for_each(|&row| goes[row] = true);
        let stalled: Vec<usize> = (0..goes.len()).filter(|&row| !goes[row]).collect();
        let stalled = rows.select(&stalled);
        self.over = Some(match self.over.take() {
            None => stalled,
            Some(over) => over.followed_by(stalled),
        });
        self.before = self
            .before
            .clone()
            .select(0, row_index(going, &self.before.device()));
        rows.select(going)
    }

    /// All rows as they were at the start of the round.
    pub(crate) fn all(self, rows: Rows<D>) -> Rows<D> {
        match self.over {
            None => rows,
            Some(over) => {
                let all = over.followed_by(rows);
                all.select(&row_order(&all.places))
            }
        }
    }
}

/// How much the margin lacks to `confidence`: the `f` of the paper without its constant, `max(confidence - margin, 0)`.
pub(crate) fn shortfall(
    goal: Goal,
    logits: Tensor<2>,
    y: Tensor<1, Int>,
    confidence: f32,
) -> Tensor<1> {
    let margin = goal.loss(AttackLoss::Margin, logits, y);
    (margin.neg() + confidence).clamp_min(0.0)
}

/// The logits with `confidence` given to (or taken from) class `y`: who wins with these wins with a margin above `confidence`.
pub(crate) fn handicapped(
    goal: Goal,
    logits: Tensor<2>,
    y: Tensor<1, Int>,
    confidence: f32,
) -> Tensor<2> {
    let shift = match goal {
        Goal::Untargeted => confidence,
        Goal::Targeted => -confidence,
    };
    let [batch, _] = logits.dims();
    let shift = Tensor::full([batch, 1], shift, &logits.device());
    logits.scatter(
        1,
        y.unsqueeze_dim(1),
        shift,
        burn::tensor::IndexingUpdateOp::Add,
    )
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::*;
    use crate::testing::values;

    #[test]
    fn the_search_grows_tenfold_and_then_halves() {
        let device = Device::flex();
        let like = Tensor::<1>::zeros([2], &device);
        let mut penalty = Penalty::new(0.001, &like);
        let mut seen = Vec::new();
        // The first needs 0.03, the second wins always.
        for _ in 0..6 {
            let c = values(penalty.c.clone());
            seen.push(c[0]);
            let won = [f32::from(c[0] >= 0.03), 1.0];
            penalty.update(&Tensor::from_floats(won, &device));
        }
        let expected = [0.001, 0.01, 0.1, 0.055, 0.0325, 0.02125];
        for (seen, expected) in seen.into_iter().zip(expected) {
            assert!(
                (seen / expected - 1.0).abs() < 1e-5,
                "{seen} for {expected}"
            );
        }
        let second = values(penalty.c)[1];
        assert!((second / (0.001 / 64.0) - 1.0).abs() < 1e-5, "{second}");
    }

    #[test]
    fn a_handicap_moves_the_line_that_margins_must_cross() {
        let device = Device::flex();
        let logits = Tensor::<2>::from_floats([[1.0, 2.0, 0.0], [1.0, 1.4, 0.0]], &device);
        for (goal, y) in [(Goal::Untargeted, [0, 0]), (Goal::Targeted, [1, 1])] {
            let y = Tensor::<1, Int>::from_ints(y, &device);
            let lack = values(shortfall(goal, logits.clone(), y.clone(), 0.5));
            assert!(lack[0] == 0.0 && (lack[1] - 0.1).abs() < 1e-6);
            let shifted = handicapped(goal, logits.clone(), y.clone(), 0.5);
            assert_eq!(values(goal.reached(shifted, y)), [1.0, 0.0]);
        }
    }
}
