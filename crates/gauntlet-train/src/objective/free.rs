use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use gauntlet_attacks::Pgd;
use gauntlet_models::named;

use super::{Crafted, Method, Scene, paced};

/// Free adversarial training (Shafahi et al. 2019, algorithm 1): every batch is used m times, and each backward pass moves both
/// the weights and the perturbation, which is carried over from batch to batch.
pub(crate) struct FreeTraining {
    attack: Pgd,
    replays: u32,
    delta: Option<Tensor<4>>,
    /// The clean and the perturbed batch of the pass under way, and the attack at its pace.
    at: Option<(Tensor<4>, Tensor<4>, Pgd)>,
}

impl FreeTraining {
    pub(crate) fn new(attack: Pgd, replays: u32) -> Self {
        Self {
            attack,
            replays,
            delta: None,
            at: None,
        }
    }
}

impl Method for FreeTraining {
    fn craft(&mut self, scene: &Scene<'_>) -> Crafted {
        let attack = paced(&self.attack, scene.pace);
        let x = scene.x.clone();
        let near = match &self.delta {
            Some(delta) => {
                let near = x.clone() + delta.clone();
                // A step of no length only projects.
                let none = x.zeros_like();
                attack
                    .threat
                    .step(near, x.clone(), none, 0.0, Pgd::SPARSITY)
            }
            None => x.clone(),
        };
        let watched = near.clone().autodiff().require_grad();
        self.at = Some((x, near, attack.clone()));
        let (input, y) = (watched.clone(), scene.y.clone());
        let eps = attack.threat.eps.value();
        Crafted {
            watched: Some(watched),
            ..Crafted::cross_entropy(eps, y, scene.label_smoothing, move |net| {
                net.adversarial(input.clone())
            })
        }
    }

    fn replays(&self) -> u32 {
        self.replays
    }

    fn learn(&mut self, gradient: Tensor<4>) {
        if let Some((x, near, attack)) = self.at.take() {
            let size = attack.step_size;
            let moved = attack
                .threat
                .step(near, x.clone(), gradient, size, Pgd::SPARSITY);
            self.delta = Some(moved - x);
        }
    }

    fn state(&self) -> BTreeMap<String, TensorData> {
        let delta = self.delta.clone().map(named::owned);
        delta
            .map(|delta| ("delta".to_owned(), delta))
            .into_iter()
            .collect()
    }

    fn restore(&mut self, mut state: BTreeMap<String, TensorData>, device: &Device) {
        self.delta = state
            .remove("delta")
            .map(|delta| Tensor::from_data(delta, device));
    }
}
