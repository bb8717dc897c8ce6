//! Every attack against models whose weakest points are known in closed form.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use gauntlet_kernels::perturb::{l2_norms, linf_norms};
use gauntlet_kernels::{NoiseKey, Stream};

use crate::evaluate::evaluate_batch;
use crate::testing::{Linear, Normed, values};
use crate::{
    Apgd, ApgdLoss, Attack, AttackLoss, Classifier, Fgsm, Init, Keep, Noise, Norm, Pgd,
    ThreatModel, input_gradient,
};

fn pgd(threat: &ThreatModel, init: Init, keep: Keep, restarts: usize) -> Pgd {
    let step_size = threat.eps.value() / 4.0;
    Pgd {
        threat: threat.clone(),
        loss: AttackLoss::CrossEntropy,
        steps: 50,
        step_size,
        restarts,
        init,
        keep,
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

fn attacks(threat: &ThreatModel) -> Vec<Box<dyn Attack<2>>> {
    vec![
        Box::new(Fgsm {
            threat: threat.clone(),
        }),
        Box::new(pgd(threat, Init::Clean, Keep::Last, 1)),
        Box::new(pgd(threat, Init::Uniform, Keep::Last, 1)),
        Box::new(pgd(threat, Init::Uniform, Keep::Best, 3)),
        Box::new(Apgd {
            threat: threat.clone(),
            loss: ApgdLoss::CrossEntropy,
            steps: 50,
            restarts: 2,
        }),
    ]
}

/// On a linear model of two classes the optimum moves along the difference of the rows: by `eps * sign` in L∞, by
/// `eps * difference / |difference|` in L2 (far from the bounds).
#[test]
fn every_attack_finds_the_optimum_of_a_linear_model() {
    let device = Device::flex();
    let model = linear(&device);
    let (x, y) = batch(&device);
    let difference = [-0.5f32, 3.0, -1.5, -0.1];
    let length = difference.iter().map(|d| d * d).sum::<f32>().sqrt();
    for threat in ["linf:0.05", "l2:0.1"] {
        let threat: ThreatModel = threat.parse().unwrap();
        let eps = threat.eps.value();
        for attack in attacks(&threat) {
            let adversarial = attack.perturb(&model, x.clone(), y.clone(), &noise(&[0, 1, 2]));
            assert_eq!(threat.verify(&x, &adversarial), Ok(()));
            let moved = values(adversarial - x.clone());
            for (row, toward) in [1.0f32, -1.0, 1.0].into_iter().enumerate() {
                for (column, d) in difference.into_iter().enumerate() {
                    let optimum = toward
                        * eps
                        * if threat.norm == Norm::Linf {
                            d.signum()
                        } else {
                            d / length
                        };
                    let found = moved[row * 4 + column];
                    assert!(
                        (found - optimum).abs() < 2e-3 * eps + 1e-6,
                        "{} {threat}: {found} for {optimum}",
                        attack.name()
                    );
                }
            }
        }
    }
}

#[test]
fn the_same_name_gives_the_same_example_and_batch_mates_do_not_matter() {
    let device = Device::flex();
    let model = linear(&device);
    let (x, y) = batch(&device);
    for threat in ["linf:0.3", "l2:0.8"] {
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
    for (threat, mean_radius) in [("linf:0.1", 0.1 * 16.0 / 17.0), ("l2:0.1", 0.05)] {
        let threat: ThreatModel = threat.parse().unwrap();
        let attack = Pgd {
            steps: 0,
            ..pgd(&threat, Init::Uniform, Keep::Last, 1)
        };
        let delta = attack.perturb(&model, x.clone(), y.clone(), &noise(&samples)) - x.clone();
        let radii = values(if threat.norm == Norm::Linf {
            linf_norms(delta)
        } else {
            l2_norms(delta)
        });
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
    for threat in ["linf:0.1", "l2:0.1"] {
        let threat: ThreatModel = threat.parse().unwrap();
        for attack in attacks(&threat) {
            let adversarial = attack.perturb(&model, x.clone(), y.clone(), &noise(&[0, 1, 2]));
            assert_eq!(threat.verify(&x, &adversarial), Ok(()));
        }
        let (gradient, ..) = input_gradient(&model, x.clone(), y.clone(), AttackLoss::CrossEntropy);
        assert!(values(gradient).iter().all(|&g| g == 0.0));
    }
}
