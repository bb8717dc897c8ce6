use gauntlet_attacks::Pgd;

use super::{Crafted, Loss, Method, Scene, paced};
use crate::loss::{boosted_cross_entropy, weighted_divergence};

/// MART (Wang et al. 2020, eq. 11): boosted cross-entropy on adversarial examples, and the divergence from the clean prediction
/// with more weight where that is wrong.
pub(crate) struct MartTraining {
    pub(crate) attack: Pgd,
    pub(crate) beta: f64,
}

impl Method for MartTraining {
    fn craft(&mut self, scene: &Scene<'_>) -> Crafted {
        let attack = paced(&self.attack, scene.pace);
        let adversarial = scene.attack(&attack);
        let (x, y, beta) = (scene.x.clone(), scene.y.clone(), self.beta);
        Crafted {
            outer: Box::new(move |net| {
                let clean = net.clean(x.clone());
                let attacked = net.adversarial(adversarial.clone());
                let boosted = boosted_cross_entropy(attacked.clone(), y.clone());
                let weighted = weighted_divergence(clean, attacked.clone(), y.clone());
                Loss {
                    terms: vec![
                        ("boosted_cross_entropy", boosted),
                        ("divergence", weighted.mul_scalar(beta)),
                    ],
                    logits: attacked,
                    labels: y.clone(),
                }
            }),
            eps: attack.threat.eps.value(),
            watched: None,
        }
    }
}
