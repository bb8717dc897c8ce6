use gauntlet_attacks::Pgd;

use super::{Crafted, Method, Scene, paced};

/// Cross-entropy on adversarial examples (Madry et al. 2018, eq. 2.1): `min E max over |d| <= eps of CE(f(x + d), y)`.
pub(crate) struct PgdTraining {
    pub(crate) attack: Pgd,
}

impl Method for PgdTraining {
    fn craft(&mut self, scene: &Scene<'_>) -> Crafted {
        let attack = paced(&self.attack, scene.pace);
        scene.mixed(attack.threat.eps.value(), |x, y, noise| {
            scene.perturb(&attack, x, y, noise)
        })
    }
}
