//! A closer look at some samples, for [`crate::Signs`].

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::{Int, Tensor};
use gauntlet_attacks::{
    Attack, AttackLoss, Classifier, Eot, Eps, Init, Noise, Pgd, ThreatModel, input_gradient,
};
use gauntlet_kernels::perturb::{choose, linf_norms};
use gauntlet_kernels::{NoiseKey, Stream};

use crate::Subject;

/// Streams of random numbers, beside those of the suite's attacks.
const SIGNS: u32 = u32::MAX;

/// Samples to look at, through the model as the suite's attacks see it.
pub(crate) struct Look<'a> {
    pub(crate) subject: &'a Subject<'a>,
    /// Evaluations that are averaged, as in [`crate::Suite::eot`].
    pub(crate) eot: usize,
    /// Places in the data set.
    pub(crate) positions: &'a [usize],
}

/// Some of the samples, on the device.
struct Batch<'a> {
    model: &'a dyn Classifier<4>,
    x: Tensor<4>,
    y: Tensor<1, Int>,
    noise: Noise,
}

/// What a sample withstands.
pub(crate) struct OneAndMany {
    /// One step of full size.
    pub(crate) fgsm: bool,
    /// PGD.
    pub(crate) pgd: bool,
    /// PGD within half of eps.
    pub(crate) half: bool,
}

impl Look<'_> {
    /// What `job` finds in each batch, in order; batches on the subject's threads.
    fn each<T: Send>(&self, job: impl Fn(&Batch<'_>) -> Vec<T> + Sync) -> Vec<T> {
        let Subject {
            model,
            data,
            device,
            seed,
            ..
        } = *self.subject;
        let workers = self.subject.workers.max(1);
        let size = self.subject.batch_size.max(1);
        let size = size.min(self.positions.len().div_ceil(workers).max(1));
        let parts: Vec<&[usize]> = self.positions.chunks(size).collect();
        let next = AtomicUsize::new(0);
        let found = Mutex::new(Vec::new());
        let work = || {
            let mean = Eot::new(model, self.eot);
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let Some(part) = parts.get(place) else { break };
                let (x, y) = data.batch(part, device);
                let result = job(&Batch {
                    model: if self.eot > 1 { &mean } else { model },
                    x,
                    y,
                    noise: Noise {
                        key: NoiseKey::new(seed, Stream::EvalAttack).at(0, SIGNS),
                        samples: part.iter().map(|&i| data.ids[i]).collect(),
                    },
                });
                found
                    .lock()
                    .expect("no holder panics")
                    .push((place, result));
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..workers {
                scope.spawn(work);
            }
            work();
        });
        let mut found = found.into_inner().expect("no holder panics");
        found.sort_by_key(|(place, _)| *place);
        found.into_iter().flat_map(|(_, result)| result).collect()
    }

    /// Largest difference between the logits of `passes` passes of the model itself, relative to the largest logit.
    pub(crate) fn difference(&self, passes: usize) -> f64 {
        let model = self.subject.model;
        let found = self.each(|batch| {
            let logits = || host(model.logits(batch.x.clone()));
            let first = logits();
            let largest = first.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            let apart = (1..passes).map(|_| {
                let again = logits();
                let apart = first.iter().zip(&again).map(|(a, b)| (a - b).abs());
                apart.fold(0.0, f32::max)
            });
            vec![(apart.fold(0.0, f32::max), largest)]
        });
        let most = |of: fn(&(f32, f32)) -> f32| found.iter().map(of).fold(0.0, f32::max);
        f64::from(most(|pair| pair.0)) / f64::from(most(|pair| pair.1)).max(1e-12)
    }

    /// Samples whose gradient of the cross-entropy is zero, or no number, in every value.
    pub(crate) fn without_gradient(&self) -> usize {
        let sizes = self.each(|batch| {
            let gradient = batch.gradient(AttackLoss::CrossEntropy);
            host(linf_norms(gradient))
        });
        let none = |size: &&f32| **size == 0.0 || !size.is_finite();
        sizes.iter().filter(none).count()
    }

    /// Samples that stand after a step of full size along the margin's gradient, and for which one in one of so many random
    /// directions raises the margin at least as much.
    ///
    /// The margin's gradient, not that of the cross-entropy: where only the loss is flat ([`Look::without_gradient`]), the
    /// landscape need not be rough. And where the gradient's step succeeds, it has led where it should: in a ball that holds
    /// half of the box, honest networks lose to random directions for a quarter of the samples, with all of them misclassified.
    pub(crate) fn random_wins(&self, threat: &ThreatModel, directions: u32) -> usize {
        let won = self.each(|batch| {
            let guided = batch.margins(batch.step(threat, batch.gradient(AttackLoss::Margin)));
            let mut best = guided.full_like(f32::NEG_INFINITY);
            for r in 0..directions {
                let (key, samples) = (batch.noise.key.restart(r), &batch.noise.samples);
                let direction = key.normal(samples, batch.x.dims(), self.subject.device);
                let found = batch.margins(batch.step(threat, direction));
                let higher = found.clone().greater(best.clone()).float();
                best = choose(&higher, found, best);
            }
            let pairs = host(guided).into_iter().zip(host(best));
            pairs
                .map(|(guided, best)| guided <= 0.0 && best >= guided)
                .collect()
        });
        won.into_iter().filter(|won| *won).count()
    }

    /// One step of full size, and so many of PGD from the clean input.
    ///
    /// In L1 that step moves as many values as one of PGD's: on few values, the longest step is another attack.
    pub(crate) fn one_and_many(&self, threat: &ThreatModel, steps: usize) -> Vec<OneAndMany> {
        let pgd = |eps: f32| {
            let eps = Eps::try_from(f64::from(eps)).expect("a finite size");
            let threat = ThreatModel {
                eps,
                ..threat.clone()
            };
            Pgd {
                init: Init::Clean,
                ..Pgd::new(threat, steps)
            }
        };
        let eps = threat.eps.value();
        let (whole, half) = (pgd(eps), pgd(eps / 2.0));
        self.each(|batch| {
            let one = batch.step(threat, batch.gradient(AttackLoss::CrossEntropy));
            let one = batch.stand(one).into_iter();
            let many = [&whole, &half].map(|pgd| batch.stand(batch.attacked(pgd)));
            let [whole, half] = many;
            let stand = one.zip(whole).zip(half);
            stand
                .map(|((fgsm, pgd), half)| OneAndMany { fgsm, pgd, half })
                .collect()
        })
    }

    /// Samples that stand after all of the attacks, each given what those before it left.
    pub(crate) fn stand_after(&self, attacks: &[&dyn Attack<4>]) -> usize {
        let stand = self.each(|batch| {
            let mut stand = batch.stand(batch.attacked(attacks[0]));
            for attack in &attacks[1..] {
                if !stand.contains(&true) {
                    break;
                }
                let again = batch.stand(batch.attacked(*attack));
                stand.iter_mut().zip(again).for_each(|(a, b)| *a &= b);
            }
            stand
        });
        stand.into_iter().filter(|stands| *stands).count()
    }
}

impl Batch<'_> {
    fn gradient(&self, loss: AttackLoss) -> Tensor<4> {
        input_gradient(self.model, self.x.clone(), self.y.clone(), loss).0
    }

    /// One step of full size from the clean input.
    fn step(&self, threat: &ThreatModel, direction: Tensor<4>) -> Tensor<4> {
        let (x, eps) = (self.x.clone(), threat.eps.value());
        threat.step(x.clone(), x, direction, eps, Pgd::SPARSITY)
    }

    fn attacked(&self, attack: &dyn Attack<4>) -> Tensor<4> {
        attack.perturb(self.model, self.x.clone(), self.y.clone(), &self.noise)
    }

    fn margins(&self, x: Tensor<4>) -> Tensor<1> {
        AttackLoss::Margin.per_sample(self.model.logits(x), self.y.clone())
    }

    /// Which samples are classified correctly at `x`. Logits that are no numbers are no class.
    fn stand(&self, x: Tensor<4>) -> Vec<bool> {
        let margins = host(self.margins(x));
        margins.into_iter().map(|margin| margin <= 0.0).collect()
    }
}

fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.try_into_vec_as()
        .expect("a float tensor that was computed")
}
