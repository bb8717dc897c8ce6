use gauntlet_attacks::KlPgd;

use super::{Crafted, Loss, Method, Scene, paced_divergence};
use crate::loss::{cross_entropy, divergence};

/// TRADES (Zhang et al. 2019, eq. 5): `CE(f(x), y) + beta KL(f(x) || f(x'))`, where `x'` is as far from the clean prediction as
/// the attack can bring it. Clean logits are computed once for the attack and once for the loss.
pub(crate) struct TradesTraining {
    pub(crate) attack: KlPgd,
    pub(crate) beta: f64,
}

impl Method for TradesTraining {
    fn craft(&mut self, scene: &Scene<'_>) -> Crafted {
        let attack = paced_divergence(&self.attack, scene.pace);
        let adversarial = scene.attack(&attack);
        let (x, y, smoothing) = (scene.x.clone(), scene.y.clone(), scene.label_smoothing);
        let beta = self.beta;
        Crafted {
            outer: Box::new(move |net| {
                let clean = net.clean(x.clone());
                let attacked = net.adversarial(adversarial.clone());
                let accuracy = cross_entropy(clean.clone(), y.clone(), smoothing);
                let robustness = divergence(clean, attacked.clone()).mul_scalar(beta);
                Loss {
                    terms: vec![("cross_entropy", accuracy), ("divergence", robustness)],
                    logits: attacked,
                    labels: y.clone(),
                }
            }),
            eps: attack.threat.eps.value(),
            watched: None,
        }
    }
}
