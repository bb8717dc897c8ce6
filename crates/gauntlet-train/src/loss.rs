//! What training minimises: pure functions of logits and classes. All are means over the batch, of shape `[1]`.

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Int, Tensor};
use gauntlet_attacks::kl_divergence;

/// Mean cross-entropy with a share `smoothing` of the target spread evenly over all classes (Szegedy et al. 2016, eq. 8).
///
/// # Shapes
/// `logits: [batch, classes]`, `y: [batch]`; the result `[1]`.
pub fn cross_entropy(logits: Tensor<2>, y: Tensor<1, Int>, smoothing: f32) -> Tensor<1> {
    let log_p = log_softmax(logits, 1);
    let hit = log_p
        .clone()
        .gather(1, y.unsqueeze_dim::<2>(1))
        .squeeze_dim::<1>(1);
    let hit = hit.mean_dim(0).neg();
    if smoothing == 0.0 {
        return hit;
    }
    let all = log_p.mean_dim(1).squeeze_dim::<1>(1).mean_dim(0).neg();
    hit.mul_scalar(1.0 - smoothing) + all.mul_scalar(smoothing)
}

/// `KL(softmax clean || softmax adversarial)`, the regulariser of TRADES (Zhang et al. 2019, eq. 5). Gradients flow into both.
pub fn divergence(clean: Tensor<2>, adversarial: Tensor<2>) -> Tensor<1> {
    kl_divergence(log_softmax(clean, 1), log_softmax(adversarial, 1)).mean_dim(0)
}

/// Boosted cross-entropy on adversarial examples (Wang et al. 2020, eq. 8): `-ln p_y - ln(1 - max over k != y of p_k)`. As in
/// the published code 1.0001 stands for the 1, so that a sure mistake costs a finite amount.
pub fn boosted_cross_entropy(adversarial: Tensor<2>, y: Tensor<1, Int>) -> Tensor<1> {
    let truth = is_class(&adversarial, y.clone());
    let p = softmax(adversarial.clone(), 1);
    let other = p.mask_fill(truth, 0.0).max_dim(1).squeeze_dim::<1>(1);
    let margin = other.neg().add_scalar(1.0001).log().neg().mean_dim(0);
    cross_entropy(adversarial, y, 0.0) + margin
}

/// The divergence of each sample, weighted by how unsure the clean prediction is (Wang et al. 2020, eq. 10):
/// `KL(p || p') (1 - p_y)`. Gradients flow into both.
pub fn weighted_divergence(
    clean: Tensor<2>,
    adversarial: Tensor<2>,
    y: Tensor<1, Int>,
) -> Tensor<1> {
    let log_p = log_softmax(clean, 1);
    let each = kl_divergence(log_p.clone(), log_softmax(adversarial, 1));
    let sure = log_p
        .exp()
        .gather(1, y.unsqueeze_dim::<2>(1))
        .squeeze_dim::<1>(1);
    (each * sure.neg().add_scalar(1.0)).mean_dim(0)
}

/// Mean squared difference of the logits (Kannan et al. 2018, eq. 2; the mean is over classes too, as in their code).
pub fn logit_distance(clean: Tensor<2>, adversarial: Tensor<2>) -> Tensor<1> {
    let each = (clean - adversarial).square().mean_dim(1);
    each.squeeze_dim::<1>(1).mean_dim(0)
}

/// Jensen-Shannon divergence of two predictions at a temperature (Tack et al. 2022, eq. 5):
/// `(KL(p || m) + KL(q || m)) / 2` with `m = (p + q) / 2`.
pub fn jensen_shannon(first: Tensor<2>, second: Tensor<2>, temperature: f64) -> Tensor<1> {
    let log_p = log_softmax(first.div_scalar(temperature), 1);
    let log_q = log_softmax(second.div_scalar(temperature), 1);
    let middle = (log_p.clone().exp() + log_q.clone().exp()).mul_scalar(0.5);
    let log_m = middle.clamp_min(1e-12).log();
    let sum = kl_divergence(log_p, log_m.clone()) + kl_divergence(log_q, log_m);
    sum.mean_dim(0).mul_scalar(0.5)
}

/// Divergence from a teacher's softened prediction (Hinton et al. 2015): `T^2 KL(softmax(teacher / T) || softmax(student / T))`.
pub fn distillation(student: Tensor<2>, teacher: Tensor<2>, temperature: f64) -> Tensor<1> {
    let soft = |logits: Tensor<2>| log_softmax(logits.div_scalar(temperature), 1);
    kl_divergence(soft(teacher), soft(student))
        .mean_dim(0)
        .mul_scalar(temperature * temperature)
}

/// True at the class of each row.
fn is_class(logits: &Tensor<2>, y: Tensor<1, Int>) -> Tensor<2, burn::tensor::Bool> {
    let [batch, classes] = logits.dims();
    let index = Tensor::<1, Int>::arange(0..classes as i64, &logits.device());
    index
        .unsqueeze_dim::<2>(0)
        .repeat_dim(0, batch)
        .equal(y.unsqueeze_dim::<2>(1).repeat_dim(1, classes))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    const CLEAN: [[f32; 3]; 4] = [
        [2.0, -1.0, 0.5],
        [0.3, 0.2, -0.4],
        [-1.5, 0.0, 1.0],
        [0.1, 3.0, 0.2],
    ];
    const ADVERSARIAL: [[f32; 3]; 4] = [
        [0.5, 0.4, 0.2],
        [-0.6, 0.9, 0.1],
        [-1.0, 0.8, 0.6],
        [1.2, 0.7, -0.3],
    ];

    /// Checks value and gradients against PyTorch's: see scripts/golden/methods.py.
    fn check(
        name: &str,
        loss: impl Fn(Tensor<2>, Tensor<2>, Tensor<1, Int>) -> Tensor<1>,
        value: f32,
        clean_gradient: [f32; 12],
        adversarial_gradient: [f32; 12],
    ) {
        let device = Device::flex().autodiff();
        let clean = Tensor::<2>::from_floats(CLEAN, &device).require_grad();
        let adversarial = Tensor::<2>::from_floats(ADVERSARIAL, &device).require_grad();
        let y = Tensor::<1, Int>::from_ints([0, 1, 2, 1], &device);
        let found = loss(clean.clone(), adversarial.clone(), y);
        let gradients = found.clone().backward();
        let number: f32 = found.into_scalar();
        assert!(
            (number - value).abs() < 2e-6,
            "{name}: {number}, not {value}"
        );
        for (of, tensor, expected) in [
            ("clean", clean, clean_gradient),
            ("adversarial", adversarial, adversarial_gradient),
        ] {
            let found = match tensor.grad(&gradients) {
                Some(found) => found.try_into_vec_as::<f32>().unwrap(),
                None => vec![0.0; 12],
            };
            for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
                assert!(
                    (found - expected).abs() < 2e-6,
                    "{name}: gradient of {of} logit {at} is {found}, not {expected}"
                );
            }
        }
    }

    #[test]
    #[rustfmt::skip]
    fn losses_and_their_gradients_are_those_of_pytorch() {
        check("trades", |c, a, _| divergence(c, a), 0.385163,
            [0.0635892, -0.0251907, -0.0383985, 0.0929002, -0.0666573, -0.0262429, -0.0077075, -0.0535715, 0.0612791, -0.0386385, 0.0595416, -0.0209031],
            [-0.1019047, 0.075724, 0.0261807, -0.0707513, 0.0552824, 0.0154689, 0.0066757, 0.0625771, -0.0692529, 0.1243095, -0.1411731, 0.0168636]);
        check("boosted", |_, a, y| boosted_cross_entropy(a, y), 1.4248268, [0.0; 12],
            [-0.2046141, 0.1709914, 0.0336227, 0.0211025, -0.1554251, 0.1343226, -0.0003338, 0.251987, -0.2516532, 0.2732446, -0.2669931, -0.0062514]);
        check("weighted", weighted_divergence, 0.0913514,
            [-0.0035395, -0.0022681, 0.0058077, 0.0675403, -0.0559747, -0.0115656, -0.0008479, -0.0097051, 0.010553, 0.0040406, -0.010769, 0.0067284],
            [-0.0218487, 0.0162355, 0.0056132, -0.0440928, 0.0344524, 0.0096404, 0.0020717, 0.0194194, -0.0214911, 0.0129044, -0.014655, 0.0017506]);
        check("pairing", |c, a, _| logit_distance(c, a), 1.1375,
            [0.25, -0.2333333, 0.05, 0.15, -0.1166667, -0.0833333, -0.0833333, -0.1333333, 0.0666667, -0.1833333, 0.3833333, 0.0833333],
            [-0.25, 0.2333333, -0.05, -0.15, 0.1166667, 0.0833333, 0.0833333, 0.1333333, -0.0666667, 0.1833333, -0.3833333, -0.0833333]);
        check("consistency", |c, a, _| jensen_shannon(c, a, 0.5), 0.2093201,
            [0.0184074, -0.0026799, -0.0157275, 0.0603867, -0.0521186, -0.0082681, -0.0011364, -0.0367786, 0.037915, -0.0039143, 0.0058441, -0.0019298],
            [-0.0670952, 0.0463778, 0.0207174, -0.0205278, 0.0221489, -0.0016211, 0.0010548, 0.0575993, -0.0586541, 0.0724417, -0.0752124, 0.0027706]);
        check("distillation", |c, a, _| distillation(a, c, 2.0), 0.499813,
            [0.1055687, -0.0718556, -0.0337131, 0.0889058, -0.0586921, -0.0302138, -0.0143517, -0.0544126, 0.0687644, -0.1014298, 0.1414648, -0.0400349],
            [-0.1170855, 0.1033405, 0.013745, -0.0780312, 0.0542745, 0.0237567, 0.0122751, 0.0561179, -0.068393, 0.1429227, -0.1645945, 0.0216718]);
        check("smoothed", |_, a, y| cross_entropy(a, y, 0.1), 0.907452, [0.0; 12],
            [-0.1388388, 0.0771689, 0.0616699, 0.0250203, -0.0838528, 0.0588326, 0.0124953, 0.1176728, -0.1301682, 0.128304, -0.1504586, 0.0221546]);
    }

    #[test]
    fn label_smoothing_is_the_mean_negative_log_likelihood_of_the_smoothed_target() {
        let rows = [[2.0f64, -1.0, 0.5], [0.0, 3.0, 1.0]];
        let classes = [0usize, 2];
        for smoothing in [0.0, 0.1, 0.6] {
            let expected: f64 = rows
                .iter()
                .zip(classes)
                .map(|(row, class)| {
                    let log_sum = row.iter().map(|v| v.exp()).sum::<f64>().ln();
                    let target =
                        |k| smoothing / 3.0 + if k == class { 1.0 - smoothing } else { 0.0 };
                    (0..3).map(|k| target(k) * (log_sum - row[k])).sum::<f64>()
                })
                .sum::<f64>()
                / 2.0;
            let device = Device::flex();
            let logits = Tensor::<2>::from_floats(rows.map(|row| row.map(|v| v as f32)), &device);
            let y = Tensor::<1, Int>::from_ints([0, 2], &device);
            let loss: f32 = cross_entropy(logits, y, smoothing as f32).into_scalar();
            assert!(
                (f64::from(loss) - expected).abs() < 1e-5,
                "{loss} != {expected}"
            );
        }
    }
}
