use burn::tensor::{Int, Tensor};
use gauntlet_attacks::{Attack, AttackLoss, Noise, Pgd, input_gradient};
use gauntlet_models::Classifier;

use super::{Crafted, Method, Scene, paced};

/// N-FGSM (de Jorge et al. 2022, algorithm 1): noise from `[-k eps, k eps]`, one signed step, and no projection on the ball: what
/// is trained on lies up to `k eps + step` away, within [0, 1]. L-infinity only.
pub(crate) struct NFgsmTraining {
    pub(crate) attack: Pgd,
    /// k
    pub(crate) noise: f64,
}

impl Method for NFgsmTraining {
    fn craft(&mut self, scene: &Scene<'_>) -> Crafted {
        let attack = paced(&self.attack, scene.pace);
        let eps = attack.threat.eps.value();
        let step = Step {
            width: eps * self.noise as f32,
            attack,
        };
        scene.mixed(eps, |x, y, noise| scene.perturb(&step, x, y, noise))
    }
}

/// The step of N-FGSM. What it returns is not within the threat model, and is not meant to be.
struct Step {
    attack: Pgd,
    width: f32,
}

impl Attack<4> for Step {
    fn perturb(
        &self,
        model: &dyn Classifier<4>,
        x: Tensor<4>,
        y: Tensor<1, Int>,
        noise: &Noise,
    ) -> Tensor<4> {
        let (low, high) = self.attack.threat.bounds;
        let (shape, device) = (x.dims(), x.device());
        let wide = noise
            .key
            .uniform(&noise.samples, shape, -self.width, self.width, &device);
        let near = (x + wide).clamp(low, high);
        let (gradient, ..) = input_gradient(model, near.clone(), y, AttackLoss::CrossEntropy);
        (near + gradient.sign().mul_scalar(self.attack.step_size)).clamp(low, high)
    }

    fn name(&self) -> String {
        "N-FGSM".to_owned()
    }
}
