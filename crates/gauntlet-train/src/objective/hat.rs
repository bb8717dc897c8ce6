use std::collections::BTreeMap;

use gauntlet_attacks::KlPgd;
use gauntlet_models::Classifier;

use super::{Crafted, Loss, Method, Other, Scene, paced_divergence};
use crate::loss::{cross_entropy, divergence};

/// Helper-based adversarial training (Rade & Moosavi-Dezfooli 2022, eq. 5): TRADES, and cross-entropy on helper examples
/// `x + reach (x' - x)` with the class that a standard model sees in `x'`. They keep the margin from growing where it need not.
pub(crate) struct HatTraining {
    pub(crate) attack: KlPgd,
    pub(crate) helper: Other,
    pub(crate) beta: f64,
    pub(crate) gamma: f64,
    pub(crate) reach: f64,
}

impl Method for HatTraining {
    fn craft(&mut self, scene: &Scene<'_>) -> Crafted {
        let attack = paced_divergence(&self.attack, scene.pace);
        let adversarial = scene.attack(&attack);
        let (x, y, smoothing) = (scene.x.clone(), scene.y.clone(), scene.label_smoothing);
        let seen = self.helper.network.logits(adversarial.clone());
        let seen = seen.argmax(1).squeeze_dim::<1>(1);
        let beyond = x.clone() + (adversarial.clone() - x.clone()).mul_scalar(self.reach);
        let (beta, gamma) = (self.beta, self.gamma);
        Crafted {
            outer: Box::new(move |net| {
                let clean = net.clean(x.clone());
                let attacked = net.adversarial(adversarial.clone());
                let helped = net.adversarial(beyond.clone());
                let accuracy = cross_entropy(clean.clone(), y.clone(), smoothing);
                let robustness = divergence(clean, attacked.clone()).mul_scalar(beta);
                let help = cross_entropy(helped, seen.clone(), 0.0).mul_scalar(gamma);
                Loss {
                    terms: vec![
                        ("cross_entropy", accuracy),
                        ("divergence", robustness),
                        ("helper", help),
                    ],
                    logits: attacked,
                    labels: y.clone(),
                }
            }),
            eps: attack.threat.eps.value(),
            watched: None,
        }
    }

    fn others(&self) -> BTreeMap<String, String> {
        BTreeMap::from([self.helper.entry()])
    }
}
