use burn::tensor::Tensor;
use gauntlet_attacks::{AttackLoss, Keep, Msd, Pgd, ThreatModel, Union};
use gauntlet_kernels::perturb::choose;
use gauntlet_models::Classifier;

use super::{Crafted, Method, Scene, paced};
use crate::{Combine, MultiNorm};

/// Training against several threat models at once: on the worst example of each sample (max), on all examples (average), both
/// Tramèr & Boneh 2019; or on those of one attack that steps in the steepest norm (MSD, Maini et al. 2020).
pub(crate) struct MultiNormTraining {
    attacks: Vec<Pgd>,
    combine: Combine,
}

impl MultiNormTraining {
    /// One attack a threat model, with the steps of `attack` and 2.5 eps shared among them.
    pub(crate) fn new(config: &MultiNorm, attack: &Pgd) -> Self {
        let attacks = config.threats.iter().map(|text| {
            let threat: ThreatModel = text.parse().expect("the plan was checked");
            Pgd {
                step_size: 2.5 * threat.eps.value() / attack.steps.max(1) as f32,
                threat,
                ..attack.clone()
            }
        });
        Self {
            attacks: attacks.collect(),
            combine: config.combine,
        }
    }

    fn msd(attacks: &[Pgd]) -> Msd {
        let union = Union(attacks.iter().map(|attack| attack.threat.clone()).collect());
        Msd {
            keep: Keep::Last,
            ..Msd::new(union, attacks[0].steps)
        }
    }
}

impl Method for MultiNormTraining {
    fn craft(&mut self, scene: &Scene<'_>) -> Crafted {
        let attacks: Vec<Pgd> = self
            .attacks
            .iter()
            .map(|attack| paced(attack, scene.pace))
            .collect();
        let adversarial = match self.combine {
            Combine::Msd => scene.attack(&Self::msd(&attacks)),
            Combine::Max => worst(scene, &attacks),
            Combine::Average => Tensor::cat(
                attacks.iter().map(|attack| scene.attack(attack)).collect(),
                0,
            ),
        };
        let copies = adversarial.dims()[0] / scene.x.dims()[0].max(1);
        let y = Tensor::cat(vec![scene.y.clone(); copies.max(1)], 0);
        let eps = attacks[0].threat.eps.value();
        Crafted::cross_entropy(eps, y, scene.label_smoothing, move |net| {
            net.adversarial(adversarial.clone())
        })
    }
}

/// Of each sample the example with the highest cross-entropy.
fn worst(scene: &Scene<'_>, attacks: &[Pgd]) -> Tensor<4> {
    let mut best: Option<(Tensor<4>, Tensor<1>)> = None;
    for attack in attacks {
        let x = scene.attack(attack);
        let logits = Classifier::logits(scene.model, x.clone());
        let losses = AttackLoss::CrossEntropy.per_sample(logits, scene.y.clone());
        best = Some(match best {
            None => (x, losses),
            Some((old, old_losses)) => {
                let higher = losses.clone().greater(old_losses.clone()).float();
                (choose(&higher, x, old), choose(&higher, losses, old_losses))
            }
        });
    }
    best.map_or_else(|| scene.x.clone(), |(x, _)| x)
}
