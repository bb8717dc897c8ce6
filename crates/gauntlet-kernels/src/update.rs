//! Updates of weights, each one pass over memory.
//!
//! In plain tensor operations an update of SGD with momentum and weight decay is six passes, one of Adam a dozen, and on burn's CPU
//! backend each is one thread's.

use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::host::{CHEAP, Values, is_host, upload, values};

/// Stochastic gradient descent with momentum.
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    /// Learning rate.
    pub rate: f32,
    /// Share of the velocity that stays. With 0 there is no velocity.
    pub momentum: f32,
    /// Whether a weight moves by what the velocity will be (Nesterov's form), not by what it is.
    pub nesterov: bool,
    /// Times the weight, this is added to its gradient.
    pub decay: f32,
}

/// Adam (Kingma & Ba 2015, algorithm 1), with either kind of weight decay.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    /// Learning rate.
    pub rate: f32,
    /// Shares of the first and second moment that stay.
    pub betas: [f32; 2],
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Times the weight, this is added to its gradient.
    pub decay: f32,
    /// Share of the weight that stays (AdamW).
    pub keep: f32,
    /// What the first and second moment are divided by: `1 - beta^t` at update `t`, from 1.
    pub corrections: [f32; 2],
}

/// Moments below 1e-27 become zero when this is added and taken away. Those of weights whose gradient has stayed zero decay into
/// denormal numbers, and CPUs compute those many times slower; no update would be seen of them beside Adam's epsilon.
pub(crate) const SEEN: f32 = 1e-20;

/// Values that one thread updates at a time: 64 kB of each tensor.
const CHUNK: usize = 1 << 14;

impl Sgd {
    /// The weights and their velocity after one update, in PyTorch's form: the first velocity is the gradient itself.
    ///
    /// # Shapes
    /// All tensors `[values]`.
    pub fn update(
        &self,
        weights: Tensor<1>,
        gradient: Tensor<1>,
        velocity: Option<Tensor<1>>,
    ) -> (Tensor<1>, Option<Tensor<1>>) {
        let here = is_host(&weights.device());
        match velocity {
            _ if self.momentum == 0.0 => (self.plain(weights, gradient, None).0, None),
            Some(velocity) if here => {
                let (weights, velocity) = self.by_chunks(weights, gradient, velocity);
                (weights, Some(velocity))
            }
            #[cfg(feature = "cube")]
            Some(velocity) if crate::cube::takes(&[&weights, &gradient, &velocity]) => {
                let (weights, velocity) = crate::cube::sgd(weights, gradient, velocity, *self);
                (weights, Some(velocity))
            }
            velocity => self.plain(weights, gradient, velocity),
        }
    }

    fn by_chunks(
        &self,
        weights: Tensor<1>,
        gradient: Tensor<1>,
        velocity: Tensor<1>,
    ) -> (Tensor<1>, Tensor<1>) {
        let Self {
            rate,
            momentum,
            nesterov,
            decay,
        } = *self;
        let gradient = Values::from(gradient);
        let [weights, velocity] = changed([weights, velocity], &gradient, |[w, v], g| {
            for i in 0..g.len() {
                let g = g[i] + w[i] * decay;
                v[i] = v[i] * momentum + g;
                let direction = if nesterov { v[i] * momentum + g } else { v[i] };
                w[i] -= direction * rate;
            }
        });
        (weights, velocity)
    }

    /// In tensor operations.
    fn plain(
        &self,
        weights: Tensor<1>,
        gradient: Tensor<1>,
        velocity: Option<Tensor<1>>,
    ) -> (Tensor<1>, Option<Tensor<1>>) {
        let gradient = decayed(&weights, gradient, self.decay);
        if self.momentum == 0.0 {
            return (weights - gradient.mul_scalar(self.rate), None);
        }
        let velocity = match velocity {
            Some(velocity) => velocity.mul_scalar(self.momentum) + gradient.clone(),
            None => gradient.clone(),
        };
        let direction = match self.nesterov {
            true => velocity.clone().mul_scalar(self.momentum) + gradient,
            false => velocity.clone(),
        };
        (weights - direction.mul_scalar(self.rate), Some(velocity))
    }
}

impl Adam {
    /// The weights and their two moments after one update.
    ///
    /// # Shapes
    /// All tensors `[values]`.
    pub fn update(
        &self,
        weights: Tensor<1>,
        gradient: Tensor<1>,
        moments: Option<[Tensor<1>; 2]>,
    ) -> (Tensor<1>, [Tensor<1>; 2]) {
        let here = is_host(&weights.device());
        let moments = moments.unwrap_or_else(|| [(); 2].map(|()| weights.zeros_like()));
        if here {
            return self.by_chunks(weights, gradient, moments);
        }
        #[cfg(feature = "cube")]
        if crate::cube::takes(&[&weights, &gradient, &moments[0], &moments[1]]) {
            return crate::cube::adam(weights, gradient, moments, *self);
        }
        self.plain(weights, gradient, moments)
    }

    fn by_chunks(
        &self,
        weights: Tensor<1>,
        gradient: Tensor<1>,
        [first, second]: [Tensor<1>; 2],
    ) -> (Tensor<1>, [Tensor<1>; 2]) {
        let Self {
            rate,
            epsilon,
            decay,
            keep,
            ..
        } = *self;
        let ([beta1, beta2], [correct1, correct2]) = (self.betas, self.corrections);
        let gradient = Values::from(gradient);
        let [weights, first, second] =
            changed([weights, first, second], &gradient, |[w, m, v], g| {
                for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
                    let g = g + *w * decay;
                    *m = *m * beta1 + g * (1.0 - beta1) + SEEN - SEEN;
                    *v = *v * beta2 + g * g * (1.0 - beta2) + SEEN - SEEN;
                    let direction = *m / correct1 / ((*v / correct2).sqrt() + epsilon);
                    *w = *w * keep - direction * rate;
                }
            });
        (weights, [first, second])
    }

    /// In tensor operations.
    fn plain(
        &self,
        weights: Tensor<1>,
        gradient: Tensor<1>,
        [first, second]: [Tensor<1>; 2],
    ) -> (Tensor<1>, [Tensor<1>; 2]) {
        let gradient = decayed(&weights, gradient, self.decay);
        let blend = |old: Tensor<1>, new: Tensor<1>, beta: f32| {
            let blended = old.mul_scalar(beta) + new.mul_scalar(1.0 - beta);
            blended.add_scalar(SEEN).sub_scalar(SEEN)
        };
        let first = blend(first, gradient.clone(), self.betas[0]);
        let second = blend(second, gradient.square(), self.betas[1]);
        let denominator = second.clone().div_scalar(self.corrections[1]).sqrt();
        let direction =
            first.clone().div_scalar(self.corrections[0]) / denominator.add_scalar(self.epsilon);
        let weights = weights.mul_scalar(self.keep) - direction.mul_scalar(self.rate);
        (weights, [first, second])
    }
}

/// `old * keep + new * (1 - keep)`, a step of a running average. `old` and `new` stay as they are.
///
/// On the CPU these are tensor operations: a pass of our own was slower for a million values, and hardly faster for eleven.
///
/// # Shapes
/// `old` and `new` alike.
pub fn blend<const D: usize>(old: Tensor<D>, new: Tensor<D>, keep: f64) -> Tensor<D> {
    let (kept, added) = (keep as f32, (1.0 - keep) as f32);
    #[cfg(feature = "cube")]
    if crate::cube::takes(&[&old, &new]) {
        return crate::cube::blend(old, new, kept, added);
    }
    old.mul_scalar(kept) + new.mul_scalar(added)
}

fn decayed(weights: &Tensor<1>, gradient: Tensor<1>, decay: f32) -> Tensor<1> {
    match decay == 0.0 {
        true => gradient,
        false => gradient + weights.clone().mul_scalar(decay),
    }
}

/// Tensors on the host after `change` was made to each chunk of all of them, with the same chunk of `given`.
fn changed<const N: usize>(
    tensors: [Tensor<1>; N],
    given: &[f32],
    change: impl Fn([&mut [f32]; N], &[f32]) + Sync,
) -> [Tensor<1>; N] {
    let device = tensors[0].device();
    let mut all = tensors.map(values);
    let mut parts = all.each_mut().map(|all| all.chunks_mut(CHUNK));
    let parts = given.chunks(CHUNK).map(|given| {
        let parts = parts
            .each_mut()
            .map(|parts| parts.next().expect("of one length"));
        (parts, given)
    });
    let mut parts: Vec<_> = parts.collect();
    let run = |(parts, given): &mut ([&mut [f32]; N], &[f32])| {
        change(parts.each_mut().map(|part| &mut **part), given);
    };
    match given.len() {
        0..CHEAP => parts.iter_mut().for_each(run),
        _ => parts.par_iter_mut().for_each(run),
    }
    let like = Tensor::empty([given.len()], &device);
    all.map(|values| upload(values, &like))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::samples;

    fn random(length: usize) -> Tensor<1> {
        samples::uniform([length], -1.0, 1.0)
    }

    fn same(ours: &Tensor<1>, plain: &Tensor<1>, what: &str) {
        let [ours, plain] = [ours, plain].map(|x| values(x.clone()));
        assert_eq!(ours, plain, "{what}, to the bit");
    }

    /// Nothing, less than a chunk, some chunks and a rest.
    const LENGTHS: [usize; 3] = [0, 37, CHEAP + 5];

    #[test]
    fn sgd_does_what_tensor_operations_do() {
        for length in LENGTHS {
            for (momentum, nesterov, decay) in [
                (0.9, false, 0.0),
                (0.9, true, 5e-4),
                (0.5, false, 0.1),
                (0.0, false, 0.1),
            ] {
                let sgd = Sgd {
                    rate: 0.1,
                    momentum,
                    nesterov,
                    decay,
                };
                let mut ours = (random(length), None);
                let mut plain = ours.clone();
                for step in 0..3 {
                    let gradient = random(length);
                    ours = sgd.update(ours.0, gradient.clone(), ours.1);
                    plain = sgd.plain(plain.0, gradient, plain.1);
                    same(&ours.0, &plain.0, &format!("{sgd:?}, step {step}"));
                    assert_eq!(ours.1.is_some(), momentum != 0.0);
                    if let (Some(ours), Some(plain)) = (&ours.1, &plain.1) {
                        same(ours, plain, "velocity");
                    }
                }
            }
        }
    }

    #[test]
    fn adam_does_what_tensor_operations_do() {
        for length in LENGTHS {
            for (decay, keep) in [(0.0, 1.0), (0.1, 1.0), (0.0, 0.99)] {
                let mut ours = (random(length), None);
                let mut plain = (ours.0.clone(), [(); 2].map(|()| ours.0.zeros_like()));
                for time in 1..4 {
                    let adam = Adam {
                        rate: 0.01,
                        betas: [0.9, 0.999],
                        epsilon: 1e-8,
                        decay,
                        keep,
                        corrections: [0.9f32, 0.999].map(|beta| 1.0 - beta.powi(time)),
                    };
                    let gradient = random(length);
                    let (weights, moments) = adam.update(ours.0, gradient.clone(), ours.1);
                    plain = adam.plain(plain.0, gradient, plain.1);
                    same(&weights, &plain.0, &format!("{adam:?}"));
                    same(&moments[0], &plain.1[0], "first moment");
                    same(&moments[1], &plain.1[1], "second moment");
                    ours = (weights, Some(moments));
                }
            }
        }
    }

    #[test]
    fn moments_that_nothing_feeds_become_zero() {
        let adam = Adam {
            rate: 0.01,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            decay: 0.0,
            keep: 1.0,
            corrections: [1.0; 2],
        };
        let tiny = Tensor::<1>::from_floats([1e-38, -1e-30, 1e-12], &Device::flex());
        let zero = tiny.zeros_like();
        let (_, [first, _]) = adam.update(zero.clone(), zero, Some([tiny.clone(), tiny]));
        let first = values(first);
        assert_eq!(first[..2], [0.0, 0.0]);
        assert!(first[2] > 8e-13);
    }

    #[test]
    fn a_blend_leaves_what_it_was_made_of() {
        let (old, new) = (random(9).reshape([3, 3]), random(9).reshape([3, 3]));
        let before = [&old, &new].map(|x: &Tensor<2>| values(x.clone()));
        let blended = blend(old.clone(), new.clone(), 0.25);
        let blended = values(blended);
        for (i, blended) in blended.into_iter().enumerate() {
            let expected = before[0][i] * 0.25 + before[1][i] * 0.75;
            assert!((blended - expected).abs() < 1e-6);
        }
        assert_eq!([old, new].map(values), before);
        // With the whole of the old, what comes out is a copy.
        let old = random(5);
        let copy = blend(old.clone(), old.clone(), 1.0);
        same(&copy, &old, "copy");
    }
}
