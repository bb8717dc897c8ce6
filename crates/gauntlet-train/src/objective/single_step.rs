use burn::tensor::{Int, Tensor};
use gauntlet_attacks::{Attack, AttackLoss, Noise, Pgd, input_gradient};
use gauntlet_models::Classifier;

/// One signed step from uniform noise, in L-infinity. What it gives is within the pixels; within the ball only if `ball` says so. The
/// noise itself may leave the pixels: clipped, it would be no noise where a pixel is black already.
pub(super) struct SingleStep {
    /// eps, step size and bounds.
    pub(super) attack: Pgd,
    /// The noise is drawn from `[-width, width]`.
    pub(super) width: f32,
    /// Whether the sum of noise and step is clipped to the ball: by FGSM-RS it is, by N-FGSM not.
    pub(super) ball: bool,
}

impl Attack<4> for SingleStep {
    fn perturb(
        &self,
        model: &dyn Classifier<4>,
        x: Tensor<4>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<4> {
        let threat = &self.attack.threat;
        let ((low, high), eps) = (threat.bounds, threat.eps.value());
        let (shape, device, width) = (x.dims(), x.device(), self.width);
        let wide = noise
            .key
            .uniform(&noise.samples, shape, -width, width, &device);
        let near = x.clone() + wide;
        let (gradient, ..) = input_gradient(model, near.clone(), y, AttackLoss::CrossEntropy);
        let far = near + gradient.sign().mul_scalar(self.attack.step_size);
        let far = if self.ball {
            x.clone() + (far - x).clamp(-eps, eps)
        } else {
            far
        };
        far.clamp(low, high)
    }

    fn name(&self) -> String {
        let name = if self.ball { "FGSM-RS" } else { "N-FGSM" };
        name.to_owned()
    }
}
