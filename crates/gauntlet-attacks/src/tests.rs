//! Every attack against models whose weakest points are known in closed form.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use gauntlet_kernels::{NoiseKey, Stream};

use crate::evaluate::evaluate_batch;
use crate::testing::{Linear, Normed, values};
use crate::{
    Apgd, ApgdLoss, Attack, AttackLoss, Classifier, Eot, Fgsm, Goal, Init, Keep, MomentumFgsm, Msd,
    Noise, Norm, Pgd, RFgsm, ThreatModel, Union, input_gradient,
};

/// Norms that have a gradient step, with an eps for each.
const THREATS: [&str; 3] = ["linf:0.05", "l2:0.1", "l1:0.12"];

fn pgd(threat: &ThreatModel, init: Init, keep: Keep, restarts: usize) -> Pgd {
    Pgd {
        step_size: threat.eps.value() / 4.0,
        restarts,
        init,
        keep,
        ..Pgd::new(threat.clone(), 50)
    }
}

fn noise(samples: &[u32]) -> Noise {
    Noise {
        key: NoiseKey::new(3, Stream::EvalAttack),
        samples: samples.to_vec(),
    }
}

fn linear(device: &Device) -> Linear {
    Linear::new(
        [[1.0, -2.0, 0.5, 0.3], [0.5, 1.0, -1.0, 0.2]],
        [0.2, -0.1],
        device,
    )
}

fn batch(device: &Device) -> (Tensor<2>, Tensor<1, Int>) {
    let x = Tensor::from_floats(
        [
            [0.5, 0.4, 0.6, 0.5],
            [0.3, 0.7, 0.4, 0.6],
            [0.6, 0.5, 0.5, 0.4],
        ],
        device,
    );
    (x, Tensor::from_ints([0, 1, 0], device))
}

/// Attacks that reach the optimum of a linear model far from the bounds.
fn exact(threat: &ThreatModel, goal: Goal) -> Vec<Box<dyn Attack<2>>> {
    let pgd = |init, keep, restarts| Pgd {
        goal,
        ..pgd(threat, init, keep, restarts)
    };
    let mut attacks: Vec<Box<dyn Attack<2>>> = vec![
        Box::new(Fgsm {
            goal,
            ..Fgsm::new(threat.clone())
        }),
        Box::new(pgd(Init::Clean, Keep::Last, 1)),
        Box::new(pgd(Init::Uniform, Keep::Last, 1)),
        Box::new(pgd(Init::Uniform, Keep::Best, 3)),
        Box::new(MomentumFgsm {
            goal,
            ..MomentumFgsm::mi(threat.clone())
        }),
        Box::new(MomentumFgsm {
            goal,
            ..MomentumFgsm::ni(threat.clone())
        }),
        Box::new(Msd {
            goal,
            restarts: 2,
            ..Msd::new(Union(vec![threat.clone()]), 50)
        }),
    ];
    if threat.norm != Norm::L1 {
        // In L1 it never moves fewer than two of four values: see its own tests.
        attacks.push(Box::new(apgd(threat, goal)));
    }
    attacks
}

fn apgd(threat: &ThreatModel, goal: Goal) -> Apgd {
    Apgd {
        steps: 50,
        restarts: 2,
        goal,
        ..Apgd::new(threat.clone(), ApgdLoss::CrossEntropy)
    }
}

/// All of them.
fn attacks(threat: &ThreatModel) -> Vec<Box<dyn Attack<2>>> {
    let mut attacks = exact(threat, Goal::Untargeted);
    attacks.extend(exact(threat, Goal::Targeted));
    attacks.push(Box::new(RFgsm::new(threat.clone())));
    for (goal, larger_eps) in [(Goal::Untargeted, true), (Goal::Targeted, false)] {
        attacks.push(Box::new(Apgd {
            larger_eps,
            ..apgd(threat, goal)
        }));
    }
    attacks
}

/// The best move of a linear function with gradient `weights` from `x`: `eps * sign` in L∞, `eps * weights / |weights|` in L2
/// (both far from the bounds), and in L1 as much as there is room for on the value of the largest weight, then on the next.
fn optimum(threat: &ThreatModel, weights: &[f32], x: &[f32]) -> Vec<f32> {
    let eps = threat.eps.value();
    let length = weights.iter().map(|w| w * w).sum::<f32>().sqrt();
    let mut best: Vec<f32> = match threat.norm {
        Norm::Linf => weights.iter().map(|w| eps * w.signum()).collect(),
        Norm::L2 => weights.iter().map(|w| eps * w / length).collect(),
        _ => vec![0.0; x.len()],
    };
    if threat.norm == Norm::L1 {
        let mut order: Vec<usize> = (0..x.len()).collect();
        order.sort_by(|&a, &b| weights[b].abs().total_cmp(&weights[a].abs()));
        let mut left = eps;
        for at in order {
            let room = if weights[at] > 0.0 {
                1.0 - x[at]
            } else {
                x[at]
            };
            best[at] = room.min(left) * weights[at].signum();
            left -= room.min(left);
        }
    }
    best
}

/// The difference of the rows of [`linear`].
const DIFFERENCE: [f32; 4] = [-0.5, 3.0, -1.5, -0.1];

const MIDDLE: [[f32; 4]; 3] = [
    [0.5, 0.4, 0.6, 0.5],
    [0.3, 0.7, 0.4, 0.6],
    [0.6, 0.5, 0.5, 0.4],
];

#[test]
fn every_attack_finds_the_optimum_of_a_linear_model() {
    let device = Device::flex();
    let (model, x) = (linear(&device), Tensor::<2>::from_floats(MIDDLE, &device));
    // To flee the first class or to seek the second is the same here.
    let goals = [(Goal::Untargeted, [0, 1, 0]), (Goal::Targeted, [1, 0, 1])];
    for threat in THREATS {
        let threat: ThreatModel = threat.parse().unwrap();
        let eps = threat.eps.value();
        for (goal, y) in goals {
            let y = Tensor::<1, Int>::from_ints(y, &device);
            for attack in exact(&threat, goal) {
                let found = attack.perturb(&model, x.clone(), y.clone(), &noise(&[0, 1, 2]));
                assert_eq!(threat.verify(&x, &found), Ok(()));
                let moved = values(found - x.clone());
                for (row, toward) in [1.0f32, -1.0, 1.0].into_iter().enumerate() {
                    let best = optimum(&threat, &DIFFERENCE.map(|d| toward * d), &MIDDLE[row]);
                    for (found, best) in moved[row * 4..].iter().zip(best) {
                        assert!(
                            (found - best).abs() < 2e-3 * eps + 1e-6,
                            "{} {threat} {goal:?} row {row}: {found} for {best}",
                            attack.name()
                        );
                    }
                }
            }
        }
    }
}

/// Where the best value of an L1 perturbation has no room, the next ones take the rest. FGSM does that to the letter; where
/// steps have a fixed length, the last one may undo a part of it.
#[test]
fn in_l1_the_next_values_take_what_the_bounds_leave() {
    let device = Device::flex();
    let near = [
        [0.5, 0.98, 0.03, 0.5],
        [0.999, 0.0, 0.95, 0.6],
        [0.6, 1.0, 0.0, 0.4],
    ];
    let (model, x) = (linear(&device), Tensor::<2>::from_floats(near, &device));
    let y = Tensor::<1, Int>::from_ints([0, 1, 0], &device);
    let threat: ThreatModel = "l1:0.12".parse().unwrap();
    let slow = |init| Pgd {
        step_size: 0.003,
        init,
        ..Pgd::new(threat.clone(), 150)
    };
    let attacks: [(Box<dyn Attack<2>>, f32); 4] = [
        (Box::new(Fgsm::new(threat.clone())), 1e-4),
        (Box::new(slow(Init::Clean)), 0.02),
        (Box::new(slow(Init::Uniform)), 0.02),
        (Box::new(Msd::new(Union(vec![threat.clone()]), 100)), 0.02),
    ];
    for (attack, loss) in attacks {
        let found = attack.perturb(&model, x.clone(), y.clone(), &noise(&[0, 1, 2]));
        assert_eq!(threat.verify(&x, &found), Ok(()));
        let moved = values(found - x.clone());
        for (row, toward) in [1.0f32, -1.0, 1.0].into_iter().enumerate() {
            let weights = DIFFERENCE.map(|d| toward * d);
            let gain = |moved: &[f32]| moved.iter().zip(weights).map(|(m, w)| m * w).sum::<f32>();
            let (found, best) = (
                gain(&moved[row * 4..(row + 1) * 4]),
                gain(&optimum(&threat, &weights, &near[row])),
            );
            assert!(
                found > (1.0 - loss) * best,
                "{} row {row}: {found} of {best}",
                attack.name()
            );
        }
    }
}

#[test]
fn the_same_name_gives_the_same_example_and_batch_mates_do_not_matter() {
    let device = Device::flex();
    let model = linear(&device);
    let (x, y) = batch(&device);
    for threat in ["linf:0.3", "l2:0.8", "l1:0.9"] {
        let threat: ThreatModel = threat.parse().unwrap();
        for attack in attacks(&threat) {
            let all = values(attack.perturb(&model, x.clone(), y.clone(), &noise(&[4, 5, 6])));
            let again = values(attack.perturb(&model, x.clone(), y.clone(), &noise(&[4, 5, 6])));
            assert_eq!(all, again);
            let alone = attack.perturb(
                &model,
                x.clone().slice([1..2]),
                y.clone().slice([1..2]),
                &noise(&[5]),
            );
            for (a, b) in values(alone).iter().zip(&all[4..8]) {
                assert!((a - b).abs() < 1e-6, "{} {threat}", attack.name());
            }
        }
    }
}

#[test]
fn random_starts_lie_in_the_ball_and_differ() {
    let device = Device::flex();
    let x = Tensor::<2>::full([200, 16], 0.5, &device);
    let y = Tensor::<1, Int>::zeros([200], &device);
    let samples: Vec<u32> = (0..200).collect();
    let model = Linear::new([[0.0; 16]; 2], [0.0; 2], &device);
    let threats = [
        ("linf:0.1", 0.1 * 16.0 / 17.0),
        ("l2:0.1", 0.05),
        ("l1:0.1", 0.05),
    ];
    for (threat, mean_radius) in threats {
        let threat: ThreatModel = threat.parse().unwrap();
        let attack = Pgd {
            steps: 0,
            ..pgd(&threat, Init::Uniform, Keep::Last, 1)
        };
        let delta = attack.perturb(&model, x.clone(), y.clone(), &noise(&samples)) - x.clone();
        let radii = values(threat.norm.lengths(delta));
        let mean = radii.iter().sum::<f32>() / 200.0;
        assert!(
            (mean - mean_radius).abs() < 0.008,
            "{threat}: mean radius {mean}"
        );
    }
}

/// A model whose prediction flips only in a thin shell: the last iterate jumps over it, the best one is in it.
#[test]
fn the_best_iterate_is_kept_over_steps_and_restarts() {
    struct Shell;
    impl Classifier<2> for Shell {
        fn logits(&self, x: Tensor<2>) -> Tensor<2> {
            // Class 1 wins where x is within 0.03 of 0.58; the loss grows with x everywhere.
            let near = x
                .clone()
                .sub_scalar(0.58)
                .abs()
                .sub_scalar(0.03)
                .neg()
                .clamp_min(0.0)
                .mul_scalar(1e3);
            Tensor::cat(vec![x.mul_scalar(-1.0).add_scalar(5.0), near], 1)
        }
        fn features(&self, x: Tensor<2>) -> Tensor<2> {
            x
        }
    }
    let device = Device::flex();
    let x = Tensor::<2>::full([1, 1], 0.5, &device);
    let y = Tensor::<1, Int>::zeros([1], &device);
    let threat: ThreatModel = "linf:0.3".parse().unwrap();
    let attack = |keep| Pgd {
        steps: 4,
        step_size: 0.08,
        ..pgd(&threat, Init::Clean, keep, 1)
    };
    let stands = |keep| {
        let key = NoiseKey::new(0, Stream::EvalAttack);
        let (outcome, _) = evaluate_batch(
            &Shell,
            x.clone(),
            y.clone(),
            &[0],
            &attack(keep),
            &threat,
            key,
        )
        .unwrap();
        outcome.robust_accuracy()
    };
    assert_eq!(stands(Keep::Best), 0.0);
    assert_eq!(stands(Keep::Last), 1.0);
}

#[test]
fn attacks_leave_parameters_untracked_and_batch_norm_alone() {
    let device = Device::flex();
    let tracked = Normed::new(&device.clone().autodiff());
    let model = tracked.valid();
    let mean = values(model.norm.running_mean.value_sync());
    let (x, _) = batch(&device);
    let y = Tensor::<1, Int>::from_ints([0, 1, 2], &device);
    let threat: ThreatModel = "linf:0.1".parse().unwrap();
    let together = pgd(&threat, Init::Uniform, Keep::Best, 2).perturb(
        &model,
        x.clone(),
        y.clone(),
        &noise(&[0, 1, 2]),
    );
    assert_eq!(
        values(model.norm.running_mean.value_sync()),
        mean,
        "statistics moved"
    );
    assert_eq!(
        values(tracked.norm.running_mean.value_sync()),
        mean,
        "statistics of the live model moved"
    );
    // Batch statistics would make the first row depend on the others.
    let alone = pgd(&threat, Init::Uniform, Keep::Best, 2).perturb(
        &model,
        x.clone().slice([0..1]),
        y.clone().slice([0..1]),
        &noise(&[0]),
    );
    for (a, b) in values(alone).iter().zip(values(together)) {
        assert!((a - b).abs() < 1e-6);
    }
    // The graph holds the input's gradient and nothing of the parameters.
    assert!(
        !model.linear.weight.val().is_require_grad()
            && !model.linear.weight.val().device().is_autodiff()
    );
    let leaf = x.autodiff().require_grad();
    let losses = AttackLoss::CrossEntropy.per_sample(model.logits(leaf.clone()), y);
    let gradients = losses.sum_dim(0).backward();
    assert!(leaf.grad(&gradients).is_some());
    assert!(burn::optim::GradientsParams::from_grads(gradients, &model).is_empty());
}

#[test]
fn zero_gradients_do_not_become_nan() {
    let device = Device::flex();
    let model = Linear::new([[0.0; 4]; 2], [1.0, 0.0], &device);
    let (x, y) = batch(&device);
    for threat in THREATS {
        let threat: ThreatModel = threat.parse().unwrap();
        for attack in attacks(&threat) {
            let adversarial = attack.perturb(&model, x.clone(), y.clone(), &noise(&[0, 1, 2]));
            assert_eq!(threat.verify(&x, &adversarial), Ok(()));
        }
        let (gradient, ..) = input_gradient(&model, x.clone(), y.clone(), AttackLoss::CrossEntropy);
        assert!(values(gradient).iter().all(|&g| g == 0.0));
    }
}

/// A model that fails: its logits, and so its gradient, are no numbers.
#[test]
fn logits_that_are_no_numbers_leave_legal_examples() {
    struct Broken;
    impl Classifier<2> for Broken {
        fn logits(&self, x: Tensor<2>) -> Tensor<2> {
            let nothing = x.clone().zeros_like();
            Tensor::cat(vec![nothing.clone() / nothing, x], 1)
        }
        fn features(&self, x: Tensor<2>) -> Tensor<2> {
            x
        }
    }
    let (x, y) = batch(&Device::flex());
    for threat in THREATS {
        let threat: ThreatModel = threat.parse().unwrap();
        for attack in attacks(&threat) {
            let adversarial = attack.perturb(&Broken, x.clone(), y.clone(), &noise(&[0, 1, 2]));
            assert_eq!(threat.verify(&x, &adversarial), Ok(()), "{}", attack.name());
        }
    }
}

#[test]
fn empty_batches_come_back() {
    let device = Device::flex();
    let model = linear(&device);
    for threat in THREATS {
        for attack in attacks(&threat.parse().unwrap()) {
            let (x, y) = (
                Tensor::<2>::empty([0, 4], &device),
                Tensor::empty([0], &device),
            );
            assert_eq!(attack.perturb(&model, x, y, &noise(&[])).dims(), [0, 4]);
        }
    }
}

/// A targeted attack goes to its class though another is nearer.
#[test]
fn a_target_is_sought_where_another_class_is_nearer() {
    let device = Device::flex();
    let model = Linear::new(
        [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]],
        [0.6, 0.05, -0.05, 0.0],
        &device,
    );
    let x = Tensor::<2>::from_floats([[0.5, 0.5]], &device);
    let given = |class: i32| Tensor::<1, Int>::from_ints([class], &device);
    let class = |x: Tensor<2>| crate::evaluate::predictions(model.logits(x))[0];
    assert_eq!(class(x.clone()), 0);
    for threat in ["linf:0.25", "l2:0.25", "l1:0.25"] {
        let threat: ThreatModel = threat.parse().unwrap();
        let apgd = |loss, goal| Apgd {
            loss,
            ..apgd(&threat, goal)
        };
        let (to, from) = (Goal::Targeted, Goal::Untargeted);
        for loss in [ApgdLoss::CrossEntropy, ApgdLoss::Dlr] {
            let attack =
                |goal, y| apgd(loss, goal).perturb(&model, x.clone(), given(y), &noise(&[0]));
            assert_eq!(class(attack(to, 2)), 2, "{loss:?} {threat}");
            assert_ne!(class(attack(from, 0)), 0, "{loss:?} {threat}");
        }
        for attack in exact(&threat, to).into_iter().skip(1) {
            let found = attack.perturb(&model, x.clone(), given(2), &noise(&[0]));
            assert_eq!(class(found), 2, "{} {threat}", attack.name());
        }
    }
}

/// The wrapper of a model that draws nothing changes nothing.
#[test]
fn the_mean_of_equal_draws_is_one_of_them() {
    let device = Device::flex();
    let model = linear(&device);
    let (x, y) = batch(&device);
    for threat in THREATS {
        for attack in attacks(&threat.parse().unwrap()) {
            let run = |model: &dyn Classifier<2>| {
                values(attack.perturb(model, x.clone(), y.clone(), &noise(&[0, 1, 2])))
            };
            let (plain, mean) = (run(&model), run(&Eot::new(&model, 4)));
            for (a, b) in plain.into_iter().zip(mean) {
                assert!((a - b).abs() < 1e-5, "{}", attack.name());
            }
        }
    }
}

#[test]
fn l0_is_refused_by_the_documented_panic() {
    let device = Device::flex();
    let threat: ThreatModel = "l0:1".parse().unwrap();
    for attack in attacks(&threat) {
        let run = || {
            let (x, y) = batch(&device);
            attack.perturb(&linear(&device), x, y, &noise(&[0, 1, 2]))
        };
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
        let text = panic.downcast_ref::<&str>().copied().unwrap_or_default();
        assert!(
            text.contains("no gradient step"),
            "{}: {text}",
            attack.name()
        );
    }
}
