use burn::tensor::Tensor;
use gauntlet_attacks::{Noise, Pgd};

use super::{Crafted, Loss, Method, Scene, apart, paced};
use crate::loss::{cross_entropy, jensen_shannon};

/// Consistency regularisation (Tack et al. 2022, eq. 6): two augmentations of each sample are attacked, each by itself; their
/// cross-entropies are averaged and their predictions are drawn together.
pub(crate) struct ConsistencyTraining {
    pub(crate) attack: Pgd,
    pub(crate) weight: f64,
    pub(crate) temperature: f64,
}

impl Method for ConsistencyTraining {
    fn craft(&mut self, scene: &Scene<'_>) -> Crafted {
        let attack = paced(&self.attack, scene.pace);
        let first = scene.attack(&attack);
        let second = scene.second.clone().unwrap_or_else(|| scene.x.clone());
        // Starting points of its own.
        let noise = Noise {
            key: apart(scene.noise.key, u32::MAX),
            samples: scene.noise.samples.clone(),
        };
        let second = scene.perturb(&attack, second, scene.y.clone(), &noise);
        let (y, smoothing, size) = (scene.y.clone(), scene.label_smoothing, first.dims()[0]);
        let both = Tensor::cat(vec![first, second], 0);
        let (weight, temperature) = (self.weight, self.temperature);
        Crafted {
            outer: Box::new(move |net| {
                let logits = net.adversarial(both.clone());
                let labels = Tensor::cat(vec![y.clone(), y.clone()], 0);
                let term = cross_entropy(logits.clone(), labels, smoothing);
                let first = logits.clone().slice([0..size]);
                let second = logits.slice([size..2 * size]);
                let apart = jensen_shannon(first.clone(), second, temperature);
                Loss {
                    terms: vec![
                        ("cross_entropy", term),
                        ("consistency", apart.mul_scalar(weight)),
                    ],
                    logits: first,
                    labels: y.clone(),
                }
            }),
            eps: attack.threat.eps.value(),
            watched: None,
        }
    }
}
