//! What each method makes of one batch: which examples it shows to which network, and how its loss is composed. The losses
//! themselves are compared with PyTorch's in `loss.rs`.

use std::sync::Mutex;

use burn::tensor::activation::sigmoid;

use gauntlet_kernels::Stream;
use gauntlet_models::ModelConfig;

use super::*;
use crate::loss::{
    boosted_cross_entropy, distillation, divergence, jensen_shannon, logit_distance,
    weighted_divergence,
};

/// A smooth network with three classes that remembers what it was asked.
#[derive(Default)]
struct Spy {
    seen: Mutex<Vec<Vec<f32>>>,
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.try_into_vec_as().unwrap()
}

fn number(x: Tensor<1>) -> f32 {
    x.into_scalar()
}

impl Spy {
    fn asked(&self) -> Vec<Vec<f32>> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl Classifier<4> for Spy {
    fn logits(&self, x: Tensor<4>) -> Tensor<2> {
        self.seen.lock().unwrap().push(values(x.clone().inner_if()));
        let device = x.device();
        let flat = x.flatten::<2>(1, 3);
        let weights = [
            [1.0f32, -2.0, 0.5],
            [-1.5, 1.0, 0.5],
            [0.3, 0.8, -1.2],
            [2.0, -0.7, -0.4],
        ];
        let weights = Tensor::<2>::from_floats(weights, &device.inner());
        sigmoid(flat.matmul(weights)).mul_scalar(4.0)
    }

    fn features(&self, x: Tensor<4>) -> Tensor<2> {
        x.flatten(1, 3)
    }
}

/// Plain values whether a tensor is on an autodiff device or not.
trait Plain {
    fn inner_if(self) -> Self;
}

impl Plain for Tensor<4> {
    fn inner_if(self) -> Self {
        if self.device().is_autodiff() {
            self.inner()
        } else {
            self
        }
    }
}

fn images() -> Tensor<4> {
    let rows = [
        [0.1f32, 0.5, 0.9, 0.4],
        [0.8, 0.2, 0.3, 0.6],
        [0.5, 0.5, 0.1, 0.7],
        [0.2, 0.9, 0.6, 0.3],
    ];
    Tensor::<2>::from_floats(rows, &Device::flex()).reshape([4, 1, 2, 2])
}

fn classes() -> Tensor<1, Int> {
    Tensor::from_ints([0, 1, 2, 1], &Device::flex())
}

fn scene(model: &(dyn Classifier<4> + Sync), attacked: usize) -> Scene<'_> {
    Scene {
        model,
        x: images(),
        second: Some(images().flip([3])),
        y: classes(),
        attacked,
        noise: Noise {
            key: NoiseKey::new(3, Stream::TrainAttack).at(1, 2),
            samples: vec![4, 7, 1, 9],
        },
        pace: FULL,
        label_smoothing: 0.1,
    }
}

const FULL: Pace = Pace {
    ramp: 1.0,
    steps: None,
};

fn pgd(steps: usize) -> Pgd {
    Pgd {
        keep: gauntlet_attacks::Keep::Last,
        ..Pgd::new("linf:0.2".parse().unwrap(), steps)
    }
}

fn kl(steps: usize) -> KlPgd {
    KlPgd::new("linf:0.2".parse().unwrap(), steps)
}

/// The loss of `method`, what it asked of one network for all, and what that is by hand from those inputs.
fn check(method: &mut dyn Method, attacked: usize, by_hand: impl Fn(&[Tensor<2>]) -> Tensor<1>) {
    let spy = Spy::default();
    let crafted = method.craft(&scene(&spy, attacked));
    spy.asked();
    let net = Net {
        main: &spy,
        for_clean: None,
    };
    let loss = (crafted.outer)(&net);
    let asked = spy.asked();
    let logits: Vec<Tensor<2>> = asked
        .iter()
        .map(|input| {
            let rows = input.len() / 4;
            let x = Tensor::<1>::from_floats(input.as_slice(), &Device::flex());
            spy.logits(x.reshape([rows, 1, 2, 2]))
        })
        .collect();
    let (found, expected) = (number(loss.total().inner()), number(by_hand(&logits)));
    assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
    // Asked again, as under weight perturbation, it is the same.
    let again = number((crafted.outer)(&net).total().inner());
    assert_eq!(found, again);
}

fn within(input: &[f32], eps: f32) -> bool {
    let x = values(images());
    let far = |a: &f32, b: &f32| (a - b).abs();
    let most = input
        .iter()
        .zip(&x)
        .map(|(a, b)| far(a, b))
        .fold(0.0, f32::max);
    most <= eps + 1e-6 && input.iter().all(|v| (0.0..=1.0).contains(v))
}

fn shown(method: &mut dyn Method, attacked: usize) -> Vec<Vec<f32>> {
    let spy = Spy::default();
    let crafted = method.craft(&scene(&spy, attacked));
    spy.asked();
    (crafted.outer)(&Net {
        main: &spy,
        for_clean: None,
    });
    spy.asked()
}

#[test]
fn pgd_shows_what_the_attack_made_and_leaves_the_rest_clean() {
    let mut method = pgd::PgdTraining { attack: pgd(3) };
    check(&mut method, 4, |logits| {
        cross_entropy(logits[0].clone(), classes(), 0.1)
    });
    let asked = shown(&mut method, 2);
    let x = values(images());
    assert!(within(&asked[0], 0.2));
    assert!(
        asked[0][..8] != x[..8] && asked[0][8..] == x[8..],
        "{asked:?}"
    );
}

#[test]
fn split_networks_are_each_shown_their_examples() {
    let mut method = pgd::PgdTraining { attack: pgd(3) };
    let (main, clean) = (Spy::default(), Spy::default());
    let crafted = method.craft(&scene(&main, 2));
    main.asked();
    (crafted.outer)(&Net {
        main: &main,
        for_clean: Some(&clean),
    });
    let x = values(images());
    assert_eq!(clean.asked(), [x[8..].to_vec()]);
    let attacked = main.asked();
    assert!(attacked.len() == 1 && attacked[0].len() == 8);

    let mut method = trades::TradesTraining {
        attack: kl(3),
        beta: 6.0,
    };
    let crafted = method.craft(&scene(&main, 4));
    main.asked();
    (crafted.outer)(&Net {
        main: &main,
        for_clean: Some(&clean),
    });
    assert_eq!(clean.asked(), [x]);
    assert_eq!(main.asked().len(), 1);
}

#[test]
fn trades_asks_clean_logits_once_and_weighs_the_divergence() {
    let mut method = trades::TradesTraining {
        attack: kl(3),
        beta: 6.0,
    };
    check(&mut method, 4, |logits| {
        let [clean, attacked] = [logits[0].clone(), logits[1].clone()];
        cross_entropy(clean.clone(), classes(), 0.1) + divergence(clean, attacked) * 6.0
    });
    let asked = shown(&mut method, 4);
    assert_eq!(asked.len(), 2);
    assert!(asked[0] == values(images()) && within(&asked[1], 0.2) && asked[1] != asked[0]);
    // In the attack: once clean, and once a step.
    let spy = Spy::default();
    method.craft(&scene(&spy, 4));
    assert_eq!(spy.asked().len(), 1 + 3);
}

#[test]
fn mart_and_alp_are_their_formulas() {
    let mut method = mart::MartTraining {
        attack: pgd(3),
        beta: 5.0,
    };
    check(&mut method, 4, |logits| {
        let [clean, attacked] = [logits[0].clone(), logits[1].clone()];
        boosted_cross_entropy(attacked.clone(), classes())
            + weighted_divergence(clean, attacked, classes()) * 5.0
    });
    let mut method = alp::AlpTraining {
        attack: pgd(3),
        weight: 0.5,
    };
    check(&mut method, 4, |logits| {
        let [clean, attacked] = [logits[0].clone(), logits[1].clone()];
        let both = cross_entropy(clean.clone(), classes(), 0.1)
            + cross_entropy(attacked.clone(), classes(), 0.1);
        both * 0.5 + logit_distance(clean, attacked) * 0.5
    });
}

fn other(seed: u64) -> Other {
    let config: ModelConfig = toml::from_str("arch = \"mlp\"\nwidth = 8").unwrap();
    let network = config.init([1, 2, 2], 3, seed, &Device::flex()).unwrap();
    Other {
        path: format!("other-{seed}"),
        network,
        hash: "0".to_owned(),
    }
}

#[test]
fn hat_labels_what_lies_beyond_as_its_helper_sees_the_adversarial_example() {
    let mut method = hat::HatTraining {
        attack: kl(3),
        helper: other(1),
        beta: 2.5,
        gamma: 0.5,
        reach: 2.0,
    };
    let asked = shown(&mut method, 4);
    let (x, adversarial, beyond) = (&asked[0], &asked[1], &asked[2]);
    for ((x, a), b) in x.iter().zip(adversarial).zip(beyond) {
        assert!((b - (x + 2.0 * (a - x))).abs() < 1e-6);
    }
    let input = Tensor::<1>::from_floats(adversarial.as_slice(), &Device::flex());
    let seen = other(1).network.logits(input.reshape([4, 1, 2, 2]));
    let seen = seen.argmax(1).squeeze_dim::<1>(1);
    check(&mut method, 4, |logits| {
        let [clean, attacked, helped] = [logits[0].clone(), logits[1].clone(), logits[2].clone()];
        cross_entropy(clean.clone(), classes(), 0.1)
            + divergence(clean, attacked) * 2.5
            + cross_entropy(helped, seen.clone(), 0.0) * 0.5
    });
}

#[test]
fn distillation_shares_its_weight_among_teachers_and_truth() {
    let teacher = |term, seed, weight| distill::Teacher {
        term,
        network: other(seed),
        weight,
    };
    let mut method = distill::DistillTraining {
        attack: pgd(3),
        teachers: vec![
            teacher("teacher", 1, 0.6),
            teacher("standard_teacher", 2, 0.1),
        ],
        temperature: 2.0,
    };
    let asked = shown(&mut method, 4);
    let input = Tensor::<1>::from_floats(asked[0].as_slice(), &Device::flex());
    let said = |seed| {
        other(seed)
            .network
            .logits(input.clone().reshape([4, 1, 2, 2]))
    };
    check(&mut method, 4, |logits| {
        let student = logits[0].clone();
        cross_entropy(student.clone(), classes(), 0.1) * 0.3
            + distillation(student.clone(), said(1), 2.0) * 0.6
            + distillation(student, said(2), 2.0) * 0.1
    });
}

#[test]
fn n_fgsm_goes_beyond_the_ball_but_not_beyond_the_pixels() {
    let mut method = n_fgsm::NFgsmTraining {
        attack: Pgd {
            step_size: 0.2,
            ..pgd(1)
        },
        noise: 2.0,
    };
    let mut beyond = false;
    let asked = shown(&mut method, 4);
    assert!(within(&asked[0], 0.6));
    for (a, b) in asked[0].iter().zip(values(images())) {
        beyond |= (a - b).abs() > 0.2 + 1e-6;
    }
    assert!(beyond, "noise of twice eps never left the ball: {asked:?}");
    let spy = Spy::default();
    method.craft(&scene(&spy, 4));
    let beyond = |start: &Vec<f32>| start.iter().any(|v| !(0.0..=1.0).contains(v));
    assert!(
        spy.asked().iter().any(beyond),
        "the gradient was taken within the pixels"
    );
}

/// Noise that leaves the pixels keeps what is clipped by the step from being the whole of eps: on black pixels a step up from
/// `u` in `[-eps, eps]` ends at `min(u + 1.25 eps, eps)`, which is less than eps for three of eight.
#[test]
fn fgsm_rs_stays_in_the_ball_and_its_noise_may_leave_the_pixels() {
    let step = single_step::SingleStep {
        attack: Pgd {
            step_size: 0.25,
            ..pgd(1)
        },
        width: 0.2,
        ball: true,
    };
    let (rows, device) = (500, Device::flex());
    let x = Tensor::<4>::zeros([rows, 1, 2, 2], &device);
    let y = Tensor::<1, Int>::zeros([rows], &device);
    let noise = Noise {
        key: NoiseKey::new(1, Stream::TrainAttack),
        samples: (0..rows as u32).collect(),
    };
    let spy = Spy::default();
    let found = values(step.perturb(&spy, x, y, &noise));
    let inside = |v: &&f32| **v > 0.05 - 1e-6 && **v < 0.2 - 1e-6;
    let up: Vec<f32> = found.into_iter().filter(|v| *v > 0.0).collect();
    assert!(up.iter().all(|v| *v <= 0.2 + 1e-6), "{up:?}");
    let share = up.iter().filter(inside).count() as f64 / up.len() as f64;
    assert!(
        up.len() >= 500 && (share - 0.375).abs() < 0.06,
        "{} {share}",
        up.len()
    );
    let started = spy.asked().concat();
    assert!(started.iter().any(|v| *v < -0.15) && started.iter().all(|v| v.abs() <= 0.2));
}

#[test]
fn free_carries_its_perturbation_over_and_climbs_by_the_gradient_of_the_update() {
    let mut method = free::FreeTraining::new(
        Pgd {
            step_size: 0.2,
            ..pgd(1)
        },
        4,
    );
    assert_eq!(method.replays(), 4);
    let spy = Spy::default();
    let mut before = values(images());
    for replay in 0..3 {
        let crafted = method.craft(&scene(&spy, 4));
        let watched = crafted.watched.clone().unwrap();
        assert_eq!(values(watched.clone().inner()), before, "replay {replay}");
        let loss = (crafted.outer)(&Net {
            main: &spy,
            for_clean: None,
        });
        let mut gradients = loss.total().backward();
        let gradient = watched.grad_remove(&mut gradients).unwrap();
        let signs = values(gradient.clone().sign());
        method.learn(gradient);
        // x' + eps sign(g), kept within eps of x and within [0, 1].
        let x = values(images());
        before = before
            .iter()
            .zip(&signs)
            .zip(&x)
            .map(|((at, sign), x)| (at + 0.2 * sign).clamp(x - 0.2, x + 0.2).clamp(0.0, 1.0))
            .collect();
        let device = Device::flex();
        let mut other = free::FreeTraining::new(method_attack(), 4);
        other.restore(method.state(), &device);
        let next = other.craft(&scene(&spy, 4)).watched.unwrap();
        for (a, b) in values(next.inner()).iter().zip(&before) {
            assert!((a - b).abs() < 1e-6);
        }
        before = values(method.craft(&scene(&spy, 4)).watched.unwrap().inner());
    }
}

fn method_attack() -> Pgd {
    Pgd {
        step_size: 0.2,
        ..pgd(1)
    }
}

#[test]
fn consistency_draws_two_attacked_views_together() {
    let mut method = consistency::ConsistencyTraining {
        attack: pgd(3),
        weight: 1.5,
        temperature: 0.5,
    };
    check(&mut method, 4, |logits| {
        let first = logits[0].clone().slice([0..4]);
        let second = logits[0].clone().slice([4..8]);
        let both = cross_entropy(first.clone(), classes(), 0.1)
            + cross_entropy(second.clone(), classes(), 0.1);
        both * 0.5 + jensen_shannon(first, second, 0.5) * 1.5
    });
    let asked = shown(&mut method, 4);
    assert!(within(&asked[0][..16], 0.2));
    let mirrored = values(images().flip([3]));
    for (a, b) in asked[0][16..].iter().zip(mirrored) {
        assert!((a - b).abs() <= 0.2 + 1e-6);
    }
}

#[test]
fn several_norms_are_joined_by_the_worst_by_the_mean_or_by_steepest_steps() {
    let config = |combine| crate::MultiNorm {
        threats: vec!["linf:0.1".to_owned(), "l2:0.3".to_owned()],
        combine,
    };
    let make = |combine| multi_norm::MultiNormTraining::new(&config(combine), &pgd(5));
    let average = shown(&mut make(crate::Combine::Average), 4);
    assert_eq!(average[0].len(), 32);
    assert!(within(&average[0][..16], 0.1) && !within(&average[0][16..], 0.1));
    // The worst of each sample is one of the two, and its loss is the larger.
    let worst = shown(&mut make(crate::Combine::Max), 4);
    let spy = Spy::default();
    let losses = |input: &[f32]| {
        let x = Tensor::<1>::from_floats(input, &Device::flex()).reshape([4, 1, 2, 2]);
        values(gauntlet_attacks::AttackLoss::CrossEntropy.per_sample(spy.logits(x), classes()))
    };
    let (first, second) = (losses(&average[0][..16]), losses(&average[0][16..]));
    for (row, loss) in losses(&worst[0]).into_iter().enumerate() {
        assert!((loss - first[row].max(second[row])).abs() < 1e-6);
    }
    let msd = shown(&mut make(crate::Combine::Msd), 4);
    assert_eq!(msd[0].len(), 16);
    let delta: Vec<f32> = msd[0]
        .iter()
        .zip(values(images()))
        .map(|(a, b)| a - b)
        .collect();
    for row in delta.chunks(4) {
        let linf = row.iter().map(|d| d.abs()).fold(0.0, f32::max);
        let l2 = row.iter().map(|d| d * d).sum::<f32>().sqrt();
        assert!(linf <= 0.1 + 1e-6 || l2 <= 0.3 + 1e-6, "{row:?}");
    }
}

#[test]
fn smoothing_adds_noise_of_its_width() {
    let mut method = smoothing::SmoothingTraining { sigma: 0.5 };
    let asked = shown(&mut method, 4);
    let noise: Vec<f32> = asked[0]
        .iter()
        .zip(values(images()))
        .map(|(a, b)| a - b)
        .collect();
    let square = noise.iter().map(|n| n * n).sum::<f32>() / 16.0;
    // 16 draws: the mean square is 0.25 give or take 0.09.
    assert!((0.05..0.6).contains(&square), "{square}");
}

/// Large batches are attacked in parts at the same time; the result is that of one after the other.
#[test]
fn parts_of_a_batch_are_attacked_as_the_whole_would_be() {
    let spy = Spy::default();
    let rows = 3 * PART.end + 5;
    let x = images().repeat_dim(0, rows / 4 + 1).slice([0..rows]);
    let y = classes().repeat_dim(0, rows / 4 + 1).slice([0..rows]);
    let noise = Noise {
        key: NoiseKey::new(3, Stream::TrainAttack),
        samples: (0..rows as u32).collect(),
    };
    let attack = pgd(3);
    let whole = attack.perturb(&spy, x.clone(), y.clone(), &noise);
    let parts = scene(&spy, 4).perturb(&attack, x, y, &noise);
    for (a, b) in values(whole).into_iter().zip(values(parts)) {
        assert!((a - b).abs() < 1e-6);
    }
}

#[test]
fn a_pace_shrinks_the_ball_and_keeps_the_reach_of_other_steps() {
    let attack = pgd(10);
    let half = paced(
        &attack,
        Pace {
            ramp: 0.5,
            steps: None,
        },
    );
    assert_eq!(half.threat.norm, Norm::Linf);
    assert!((half.threat.eps.value() - 0.1).abs() < 1e-7);
    assert!((half.step_size - 0.025).abs() < 1e-7);
    let few = paced(
        &attack,
        Pace {
            ramp: 1.0,
            steps: Some(2),
        },
    );
    assert_eq!(few.steps, 2);
    assert!((few.step_size - 0.25).abs() < 1e-6);
    assert_eq!(few.threat.eps, attack.threat.eps);
}
