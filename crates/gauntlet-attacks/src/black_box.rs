//! What every black-box attack must do, against models of which everything is known. Each attack's own tests call these.

use std::cell::Cell;

use burn::tensor::{Device, Int, Tensor, TensorData};
use gauntlet_kernels::{NoiseKey, Stream};
use gauntlet_models::Classifier;

use crate::oracle::{distance, rows};
use crate::testing::{LinearImages, Stepped, values};
use crate::{Attack, AttackLoss, Eps, Goal, Init, Keep, Noise, Norm, Pgd, Start, ThreatModel};

/// A model that must not be differentiated.
pub(crate) struct Sealed<M>(pub(crate) M);

impl<const D: usize, M: Classifier<D>> Classifier<D> for Sealed<M> {
    fn logits(&self, x: Tensor<D>) -> Tensor<2> {
        assert!(!x.device().is_autodiff(), "a gradient is asked for");
        self.0.logits(x)
    }

    fn features(&self, x: Tensor<D>) -> Tensor<2> {
        self.0.features(x)
    }
}

/// A model that tells the class it predicts and nothing else; must not be differentiated either.
pub(crate) struct Decides<M>(pub(crate) M);

impl<const D: usize, M: Classifier<D>> Classifier<D> for Decides<M> {
    fn logits(&self, x: Tensor<D>) -> Tensor<2> {
        assert!(!x.device().is_autodiff(), "a gradient is asked for");
        let logits = self.0.logits(x);
        let [_, classes] = logits.dims();
        // Two that are best are both told: no class is predicted.
        let best = logits.clone().max_dim(1).repeat_dim(1, classes);
        logits.equal(best).float()
    }

    fn features(&self, x: Tensor<D>) -> Tensor<2> {
        self.0.features(x)
    }
}

/// A model that looks at one row at a time: what a row is told does not depend on its batch mates to the last bit, as the
/// order of additions in a matrix product does.
struct OneByOne<M>(M);

impl<const D: usize, M: Classifier<D>> Classifier<D> for OneByOne<M> {
    fn logits(&self, x: Tensor<D>) -> Tensor<2> {
        let rows = x.split(1, 0).into_iter().map(|row| self.0.logits(row));
        Tensor::cat(rows.collect(), 0)
    }

    fn features(&self, x: Tensor<D>) -> Tensor<2> {
        self.0.features(x)
    }
}

/// A model whose scores are no numbers.
pub(crate) struct Broken;

impl<const D: usize> Classifier<D> for Broken {
    fn logits(&self, x: Tensor<D>) -> Tensor<2> {
        Tensor::full([x.dims()[0], 3], f32::NAN, &x.device())
    }

    fn features(&self, x: Tensor<D>) -> Tensor<2> {
        Classifier::<D>::logits(self, x)
    }
}

pub(crate) fn noise(samples: std::ops::Range<u32>) -> Noise {
    Noise {
        key: NoiseKey::new(17, Stream::EvalAttack),
        samples: samples.collect(),
    }
}

pub(crate) fn images(shape: [usize; 4], low: f32, high: f32) -> Tensor<4> {
    let samples: Vec<u32> = (0..shape[0] as u32).collect();
    let key = NoiseKey::new(23, Stream::Init);
    key.uniform(&samples, shape, low, high, &Device::flex())
}

/// What the model says, as labels: every sample stands at first.
pub(crate) fn labels<const D: usize>(model: &dyn Classifier<D>, x: &Tensor<D>) -> Tensor<1, Int> {
    model.logits(x.clone()).argmax(1).squeeze_dim(1)
}

/// Whether each sample is what an attacker wants.
pub(crate) fn fallen<const D: usize>(
    goal: Goal,
    model: &dyn Classifier<D>,
    x: Tensor<D>,
    y: &Tensor<1, Int>,
) -> Vec<bool> {
    let reached = values(goal.reached(model.logits(x), y.clone()));
    reached.into_iter().map(|reached| reached == 1.0).collect()
}

/// Distance of each image from the boundary of two linear classes: |margin| / |w0 - w1|, in L1 length for L∞ and in L2
/// length for L2.
pub(crate) fn distances(norm: Norm, model: &LinearImages, x: &Tensor<4>) -> Vec<f32> {
    let weights = values(model.rows.clone());
    let (first, second) = weights.split_at(weights.len() / 2);
    let difference = first.iter().zip(second).map(|(a, b)| f64::from(a - b));
    let length = match norm {
        Norm::Linf => difference.map(f64::abs).sum::<f64>(),
        _ => difference.map(|d| d * d).sum::<f64>().sqrt(),
    };
    let logits = values(model.logits(x.clone()));
    let margins = logits.chunks(2).map(|two| f64::from(two[0] - two[1]).abs());
    margins.map(|margin| (margin / length) as f32).collect()
}

/// Runs a search on the whole batch and on parts of it: the results must be the same to the bit.
pub(crate) fn parts_agree<const D: usize>(
    x: &Tensor<D>,
    y: &Tensor<1, Int>,
    search: impl Fn(Tensor<D>, Tensor<1, Int>, &Noise) -> (Tensor<D>, Vec<usize>),
) -> (Vec<f32>, Vec<usize>) {
    let batch = x.dims()[0];
    let run = |from: usize, to: usize| {
        let part = (x.clone().slice([from..to]), y.clone().slice([from..to]));
        let (found, queries) = search(part.0, part.1, &noise(from as u32..to as u32));
        (values(found), queries)
    };
    let whole = run(0, batch);
    assert!(
        run(0, batch) == whole,
        "the same name gives the same example"
    );
    let mut joined = (Vec::new(), Vec::new());
    for (from, to) in [(0, 1), (1, batch / 2), (batch / 2, batch)] {
        let part = run(from, to);
        joined.0.extend(part.0);
        joined.1.extend(part.1);
    }
    assert_eq!(joined.1, whole.1, "batch mates do not matter");
    assert!(joined.0 == whole.0, "batch mates do not matter");
    whole
}

/// A model that counts the rows it is asked about.
pub(crate) struct Counted<'a, const D: usize>(
    pub(crate) &'a dyn Classifier<D>,
    pub(crate) Cell<usize>,
);

impl<const D: usize> Classifier<D> for Counted<'_, D> {
    fn logits(&self, x: Tensor<D>) -> Tensor<2> {
        self.1.set(self.1.get() + x.dims()[0]);
        self.0.logits(x)
    }

    fn features(&self, x: Tensor<D>) -> Tensor<2> {
        self.0.features(x)
    }
}

/// A search with scores: threat model, goal, candidates at once, model, batch, noise.
pub(crate) type Scores<'a> = &'a dyn Fn(
    &ThreatModel,
    Goal,
    usize,
    &dyn Classifier<4>,
    Tensor<4>,
    Tensor<1, Int>,
    &Noise,
) -> (Tensor<4>, Vec<usize>);

fn threat(norm: Norm, eps: f32) -> ThreatModel {
    ThreatModel::new(norm, Eps::try_from(f64::from(eps)).unwrap())
}

/// What every score-based attack must do. `enough` is the multiple of the distance of the boundary at which every linear
/// model falls.
pub(crate) fn check_scores(norm: Norm, enough: f32, search: Scores) {
    linear_models_fall_beyond_their_distance_and_never_before(norm, enough, search);
    a_masked_gradient_does_not_help(norm, search);
    nothing_is_done_where_nothing_is_to_do(norm, search);
}

fn linear_models_fall_beyond_their_distance_and_never_before(
    norm: Norm,
    enough: f32,
    search: Scores,
) {
    for seed in 0..6 {
        let shape = [1, 1 + seed as usize % 2 * 2, 6, 6];
        let model = LinearImages::random(seed, 2, shape);
        let x = images(shape, 0.35, 0.65);
        let y = labels(&model, &x);
        let other = y.clone().neg().add_scalar(1);
        let distance = distances(norm, &model, &x)[0];
        let model = Sealed(model);
        for (factor, falls) in [(0.98, false), (enough, true)] {
            let threat = threat(norm, factor * distance);
            let noise = noise(seed..seed + 1);
            let run = |goal, y| search(&threat, goal, 64, &model, x.clone(), y, &noise);
            let (found, queries) = run(Goal::Untargeted, y.clone());
            assert_eq!(threat.verify(&x, &found), Ok(()));
            let what = format!("{norm}, model {seed} at {factor}: {queries:?}");
            assert_eq!(
                fallen(Goal::Untargeted, &model, found.clone(), &y),
                [falls],
                "{what}"
            );
            // To flee one of two classes is to seek the other.
            let (same, _) = run(Goal::Targeted, other.clone());
            assert_eq!(values(same), values(found), "{what}");
        }
    }
}

/// A network whose gradient is zero everywhere: PGD stays where it is.
fn a_masked_gradient_does_not_help(norm: Norm, search: Scores) {
    let shape = [8, 3, 6, 6];
    let x = images(shape, 0.1, 0.9);
    let model = Stepped::random(2, 4, shape);
    let y = labels(&model, &x);
    let threat = threat(norm, if norm == Norm::Linf { 0.15 } else { 1.5 });
    let pgd = Pgd {
        threat: threat.clone(),
        loss: AttackLoss::Margin,
        steps: 20,
        step_size: threat.eps.value() / 4.0,
        restarts: 1,
        init: Init::Clean,
        keep: Keep::Best,
        goal: Goal::Untargeted,
        sparsity: Pgd::SPARSITY,
    };
    let unmoved = pgd.perturb(&model, x.clone(), y.clone(), &noise(0..8));
    assert_eq!(values(unmoved), values(x.clone()));
    let model = Sealed(OneByOne(model));
    let (found, queries) = parts_agree(&x, &y, |x, y, noise| {
        search(&threat, Goal::Untargeted, 16, &model, x, y, noise)
    });
    let found = Tensor::from_data(TensorData::new(found, shape), &x.device());
    assert_eq!(threat.verify(&x, &found), Ok(()));
    let stands = fallen(Goal::Untargeted, &model, found, &y);
    assert!(stands.iter().all(|&fallen| fallen), "{norm}: {queries:?}");
    // Every row is a query, but for one look at each clean input.
    let counted = Counted(&model, Cell::new(0));
    let one = x.clone().slice([0..2]);
    let (_, queries) = search(
        &threat,
        Goal::Untargeted,
        1,
        &counted,
        one,
        y.clone().slice([0..2]),
        &noise(0..2),
    );
    assert_eq!(counted.1.get(), 2 + queries.iter().sum::<usize>());
    // A class that is no neighbour: the second best of each sample is sought.
    let second = without_best(&model, &x, &y);
    let wide = self::threat(norm, 2.0 * threat.eps.value());
    let (found, queries) = search(
        &wide,
        Goal::Targeted,
        16,
        &model,
        x.clone(),
        second.clone(),
        &noise(0..8),
    );
    assert_eq!(wide.verify(&x, &found), Ok(()));
    let reached = fallen(Goal::Targeted, &model, found, &second);
    assert!(
        reached.iter().all(|&reached| reached),
        "{norm}: {queries:?}"
    );
}

/// The second best class of each sample.
fn without_best(model: &dyn Classifier<4>, x: &Tensor<4>, y: &Tensor<1, Int>) -> Tensor<1, Int> {
    crate::gradient::without_true(model.logits(x.clone()), y.clone())
        .argmax(1)
        .squeeze_dim(1)
}

fn nothing_is_done_where_nothing_is_to_do(norm: Norm, search: Scores) {
    let shape = [4, 1, 4, 4];
    let x = images(shape, 0.0, 1.0);
    let model = LinearImages::random(3, 3, shape);
    let right = labels(&model, &x);
    let wrong = right.add_scalar(1).remainder_scalar(3);
    let threat = threat(norm, 0.1);
    let run = |model: &dyn Classifier<4>, x: &Tensor<4>, y: Tensor<1, Int>| {
        let batch = x.dims()[0] as u32;
        search(
            &threat,
            Goal::Untargeted,
            8,
            model,
            x.clone(),
            y,
            &noise(0..batch),
        )
    };
    let (found, queries) = run(&model, &x, wrong.clone());
    assert_eq!((values(found), queries), (values(x.clone()), vec![0; 4]));
    // Scores that are no numbers, and classes that do not exist, win nothing.
    for (model, y) in [
        (&Broken as &dyn Classifier<4>, wrong.clone()),
        (&model, wrong.clone().full_like(9)),
        (&model, wrong.full_like(-1)),
    ] {
        let (found, _) = run(model, &x, y);
        assert_eq!(values(found), values(x.clone()));
    }
    let none = Tensor::<4>::zeros([0, 1, 4, 4], &x.device());
    let y = Tensor::<1, Int>::zeros([0], &x.device());
    let (found, queries) = run(&model, &none, y);
    assert_eq!((found.dims(), queries), (none.dims(), vec![]));
}

/// A search with decisions: goal, start, queries, candidates at once, model, batch, noise.
pub(crate) type Decisions<'a> = &'a dyn Fn(
    Goal,
    &Start,
    usize,
    usize,
    &dyn Classifier<4>,
    Tensor<4>,
    Tensor<1, Int>,
    &Noise,
) -> (Tensor<4>, Vec<usize>);

/// What every decision-based attack must do. `budget` queries find an example within 1.25 times the distance of the boundary
/// of linear models of 16 and 48 values, twice as many where the boundary bends.
pub(crate) fn check_decisions(norm: Norm, budget: usize, search: Decisions) {
    the_boundary_of_linear_models_is_reached(norm, budget, search);
    the_edge_of_a_ball_is_reached(norm, 2 * budget, search);
    decisions_of_a_masked_model_suffice(norm, search);
    a_target_is_reached_from_a_given_start(search);
    no_start_is_no_example(search);
}

fn the_boundary_of_linear_models_is_reached(norm: Norm, budget: usize, search: Decisions) {
    for seed in 0..4 {
        let shape = [4, 1 + seed as usize % 2 * 2, 4, 4];
        let model = LinearImages::random(seed, 2, shape);
        let x = images(shape, 0.3, 0.7);
        let y = labels(&model, &x);
        let nearest = distances(norm, &model, &x);
        let start = Start::default();
        let run = |model: &dyn Classifier<4>| {
            let (x, y) = (x.clone(), y.clone());
            search(
                Goal::Untargeted,
                &start,
                budget,
                64,
                model,
                x,
                y,
                &noise(0..4),
            )
        };
        let (found, queries) = run(&model);
        let reached = fallen(Goal::Untargeted, &model, found.clone(), &y);
        assert!(reached.iter().all(|&reached| reached));
        let sizes = values(norm.lengths(found.clone() - x.clone()));
        for (size, nearest) in sizes.iter().zip(nearest) {
            let ratio = size / nearest;
            assert!(
                (0.999..1.25).contains(&ratio),
                "{norm}, model {seed}: {ratio}"
            );
        }
        assert!(queries.iter().all(|&asked| asked <= budget), "{queries:?}");
        // What the scores are makes no difference.
        let (same, counts) = run(&Decides(model));
        assert_eq!((values(same), counts), (values(found), queries));
    }
}

/// Class 0 in a ball of the norm around 0.5, class 1 outside.
struct Ball(Norm, f32);

impl Classifier<4> for Ball {
    fn logits(&self, x: Tensor<4>) -> Tensor<2> {
        let away = self.0.lengths(x.sub_scalar(0.5)).unsqueeze_dim::<2>(1);
        Tensor::cat(vec![away.full_like(self.1), away], 1)
    }

    fn features(&self, x: Tensor<4>) -> Tensor<2> {
        x.flatten(1, 3)
    }
}

/// The way out is as long as the radius minus the distance from the centre: a boundary that bends, or has corners.
fn the_edge_of_a_ball_is_reached(norm: Norm, budget: usize, search: Decisions) {
    let x = images([4, 1, 4, 4], 0.45, 0.6);
    let y = Tensor::<1, Int>::zeros([4], &x.device());
    let radius = if norm == Norm::Linf { 0.3 } else { 0.6 };
    let nearest = values(norm.lengths(x.clone().sub_scalar(0.5)));
    let start = Start::default();
    let model = Decides(Ball(norm, radius));
    let (goal, noise) = (Goal::Untargeted, noise(0..4));
    let (found, _) = search(
        goal,
        &start,
        budget,
        64,
        &model,
        x.clone(),
        y.clone(),
        &noise,
    );
    assert_eq!(fallen(goal, &model, found.clone(), &y), [true; 4]);
    let sizes = values(norm.lengths(found - x));
    for (size, inside) in sizes.into_iter().zip(nearest) {
        let ratio = size / (radius - inside);

        assert!((0.999..1.25).contains(&ratio), "{norm}: {ratio}");
    }
}

fn decisions_of_a_masked_model_suffice(norm: Norm, search: Decisions) {
    let shape = [6, 3, 5, 5];
    let x = images(shape, 0.1, 0.9);
    let model = Decides(OneByOne(Stepped::random(2, 4, shape)));
    let y = labels(&model, &x);
    let start = Start::default();
    let (found, queries) = parts_agree(&x, &y, |x, y, noise| {
        search(Goal::Untargeted, &start, 600, 16, &model, x, y, noise)
    });
    let found = Tensor::<4>::from_data(TensorData::new(found, shape), &x.device());
    let bounds: ThreatModel = "linf:1".parse().unwrap();
    assert_eq!(bounds.verify(&x, &found), Ok(()));
    let stands = fallen(Goal::Untargeted, &model, found.clone(), &y);
    assert!(stands.iter().all(|&fallen| fallen), "{queries:?}");
    // The start alone is noise.
    let (first, _) = search(
        Goal::Untargeted,
        &start,
        1,
        16,
        &model,
        x.clone(),
        y.clone(),
        &noise(0..6),
    );
    let away = |found: Tensor<4>| values(norm.lengths(found - x.clone()));
    let started = fallen(Goal::Untargeted, &model, first.clone(), &y);
    assert!(started.iter().any(|&fallen| fallen));
    for ((near, far), started) in away(found).into_iter().zip(away(first)).zip(started) {
        assert!(near > 0.0 && (!started || near < 0.5 * far), "{near} {far}");
    }
    // Every row is a query, but for one look at each clean input.
    let counted = Counted(&model, Cell::new(0));
    let (two, y) = (x.clone().slice([0..2]), y.slice([0..2]));
    let (_, queries) = search(
        Goal::Untargeted,
        &start,
        150,
        1,
        &counted,
        two,
        y,
        &noise(0..2),
    );
    assert_eq!(counted.1.get(), 2 + queries.iter().sum::<usize>());
    assert_eq!(queries, [150; 2]);
}

fn a_target_is_reached_from_a_given_start(search: Decisions) {
    let pool = images([40, 1, 4, 4], 0.1, 0.9);
    let model = LinearImages::random(7, 3, pool.dims());
    let classes_of_pool = labels(&model, &pool);
    let x = pool.clone().slice([0..12]);
    let classes = labels(&model, &x);
    let targets = classes.clone().add_scalar(1).remainder_scalar(3);
    let model = Decides(model);
    let inputs = pool.clone().flatten::<2>(1, 3);
    let start = |inputs| Start { inputs, draws: 0 };
    let run = |start: &Start| {
        let (x, y) = (x.clone(), targets.clone());
        search(Goal::Targeted, start, 400, 64, &model, x, y, &noise(0..12))
    };
    let (found, queries) = run(&start(Some(inputs.clone())));
    let reached = fallen(Goal::Targeted, &model, found.clone(), &targets);
    assert!(reached.iter().all(|&reached| reached), "{queries:?}");
    // Nearer than the nearest input of that class, which is where it started.
    let sizes = values(Norm::L2.lengths(found - x.clone()));
    let others: Vec<(Vec<f32>, usize)> = rows(pool, classes_of_pool);
    for ((row, target), size) in rows(x.clone(), targets.clone()).iter().zip(sizes) {
        let same = others.iter().filter(|(_, class)| class == target);
        let away = same.map(|(other, _)| distance(Norm::L2, row, other));
        assert!(size < away.fold(f32::INFINITY, f32::min));
    }
    // Inputs of another shape are none.
    for inputs in [
        None,
        Some(inputs.clone().slice([0..40, 0..5])),
        Some(inputs.slice([0..0])),
    ] {
        let (found, queries) = run(&start(inputs));
        assert_eq!((values(found), queries), (values(x.clone()), vec![0; 12]));
    }
}

fn no_start_is_no_example(search: Decisions) {
    let x = images([3, 1, 4, 4], 0.0, 1.0);
    let y = Tensor::<1, Int>::from_ints([0, 1, 2], &x.device());
    let start = Start {
        inputs: Some(x.clone().flatten(1, 3)),
        draws: 40,
    };
    let run = |model: &dyn Classifier<4>, queries, y: &Tensor<1, Int>| {
        let (x, y) = (x.clone(), y.clone());
        let noise = noise(0..3);
        search(Goal::Untargeted, &start, queries, 8, model, x, y, &noise)
    };
    let model = LinearImages::random(3, 3, [3, 1, 4, 4]);
    let nowhere = y.full_like(-1);
    for (model, y) in [(&Broken as &dyn Classifier<4>, &y), (&model, &nowhere)] {
        let (found, queries) = run(model, 1000, y);
        assert_eq!((values(found), queries), (values(x.clone()), vec![43; 3]));
        let (found, queries) = run(model, 10, y);
        assert_eq!((values(found), queries), (values(x.clone()), vec![10; 3]));
    }
    // What is adversarial as it is stays as it is.
    let wrong = labels(&model, &x).add_scalar(1).remainder_scalar(3);
    let (found, queries) = run(&model, 1000, &wrong);
    assert_eq!((values(found), queries), (values(x.clone()), vec![0; 3]));
    let none = Tensor::<4>::zeros([0, 1, 4, 4], &x.device());
    let y = Tensor::<1, Int>::zeros([0], &x.device());
    let goal = Goal::Untargeted;
    let (found, _) = search(goal, &start, 10, 8, &model, none.clone(), y, &noise(0..0));
    assert_eq!(found.dims(), none.dims());
}
