use gauntlet_attacks::Pgd;

use super::{Crafted, Loss, Method, Scene, paced};
use crate::loss::{cross_entropy, logit_distance};

/// Adversarial logit pairing (Kannan et al. 2018, eq. 2): cross-entropy on clean and adversarial examples, half each, and the
/// squared distance between the logits of each pair. On its own it is known to mask gradients (Engstrom et al. 2018): audit it.
pub(crate) struct AlpTraining {
    pub(crate) attack: Pgd,
    pub(crate) weight: f64,
}

impl Method for AlpTraining {
    fn craft(&mut self, scene: &Scene<'_>) -> Crafted {
        let attack = paced(&self.attack, scene.pace);
        let adversarial = scene.attack(&attack);
        let (x, y, smoothing) = (scene.x.clone(), scene.y.clone(), scene.label_smoothing);
        let weight = self.weight;
        Crafted {
            outer: Box::new(move |net| {
                let clean = net.clean(x.clone());
                let attacked = net.adversarial(adversarial.clone());
                let half = |logits| cross_entropy(logits, y.clone(), smoothing).mul_scalar(0.5);
                Loss {
                    terms: vec![
                        ("clean_cross_entropy", half(clean.clone())),
                        ("cross_entropy", half(attacked.clone())),
                        (
                            "pairing",
                            logit_distance(clean, attacked.clone()).mul_scalar(weight),
                        ),
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
