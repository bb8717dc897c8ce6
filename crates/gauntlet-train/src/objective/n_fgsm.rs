use gauntlet_attacks::Pgd;

use super::single_step::SingleStep;
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
        let step = SingleStep {
            width: eps * self.noise as f32,
            ball: false,
            attack,
        };
        scene.mixed(eps, |x, y, noise| scene.perturb(&step, x, y, noise))
    }
}
