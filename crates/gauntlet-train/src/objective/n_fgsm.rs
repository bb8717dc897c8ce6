use gauntlet_attacks::{AttackLoss, Pgd, input_gradient};

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
        let (eps, (low, high)) = (attack.threat.eps.value(), attack.threat.bounds);
        let width = eps * self.noise as f32;
        scene.mixed(eps, |x, y, noise| {
            let wide = noise
                .key
                .uniform(&noise.samples, x.dims(), -width, width, &x.device());
            let near = (x + wide).clamp(low, high);
            let (gradient, ..) =
                input_gradient(scene.model, near.clone(), y, AttackLoss::CrossEntropy);
            (near + gradient.sign().mul_scalar(attack.step_size)).clamp(low, high)
        })
    }
}
