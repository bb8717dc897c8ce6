use std::collections::BTreeMap;

use burn::tensor::Tensor;
use gauntlet_attacks::Pgd;
use gauntlet_models::Classifier;

use super::{Crafted, Loss, Method, Other, Scene, paced};
use crate::loss::{cross_entropy, distillation};

/// Learning from a robust teacher, and if wanted from a standard one, on adversarial examples of the student (Chen et al. 2021,
/// "Robust overfitting may be mitigated by properly learned smoothening", eq. 2). With `train.swa` it is their whole recipe.
pub(crate) struct DistillTraining {
    pub(crate) attack: Pgd,
    pub(crate) teachers: Vec<Teacher>,
    pub(crate) temperature: f64,
}

/// A teacher and what its word counts.
pub(crate) struct Teacher {
    pub(crate) term: &'static str,
    pub(crate) network: Other,
    pub(crate) weight: f64,
}

impl Method for DistillTraining {
    fn craft(&mut self, scene: &Scene<'_>) -> Crafted {
        let attack = paced(&self.attack, scene.pace);
        let adversarial = scene.attack(&attack);
        let (y, smoothing, temperature) =
            (scene.y.clone(), scene.label_smoothing, self.temperature);
        let said: Vec<(&'static str, Tensor<2>, f64)> = self
            .teachers
            .iter()
            .map(|teacher| {
                let logits = teacher.network.network.logits(adversarial.clone());
                (teacher.term, logits, teacher.weight)
            })
            .collect();
        let left = 1.0 - said.iter().map(|(_, _, weight)| weight).sum::<f64>();
        Crafted {
            outer: Box::new(move |net| {
                let logits = net.adversarial(adversarial.clone());
                let truth = cross_entropy(logits.clone(), y.clone(), smoothing).mul_scalar(left);
                let mut terms = vec![("cross_entropy", truth)];
                for (term, teacher, weight) in &said {
                    let apart = distillation(logits.clone(), teacher.clone(), temperature);
                    terms.push((term, apart.mul_scalar(*weight)));
                }
                Loss {
                    terms,
                    logits,
                    labels: y.clone(),
                }
            }),
            eps: attack.threat.eps.value(),
            watched: None,
        }
    }

    fn others(&self) -> BTreeMap<String, String> {
        self.teachers
            .iter()
            .map(|teacher| teacher.network.entry())
            .collect()
    }
}
