use gauntlet_attacks::Pgd;

use super::single_step::SingleStep;
use super::{Crafted, Method, Scene, paced};

/// FGSM from a random start (Wong et al. 2020, algorithm 3): noise from `[-eps, eps]`, one signed step of more than eps, projected.
/// The noise may leave the pixels, and only the result is clipped to them. That matters where many pixels are black: noise clipped to
/// `[0, eps]` there and a step of 1.25 eps would end at exactly eps wherever the gradient is positive, and training on that overfits to
/// the single step.
pub(crate) struct FgsmRsTraining {
    pub(crate) attack: Pgd,
}

impl Method for FgsmRsTraining {
    fn craft(&mut self, scene: &Scene<'_>) -> Crafted {
        let attack = paced(&self.attack, scene.pace);
        let eps = attack.threat.eps.value();
        let step = SingleStep {
            width: eps,
            ball: true,
            attack,
        };
        scene.mixed(eps, |x, y, noise| scene.perturb(&step, x, y, noise))
    }
}
