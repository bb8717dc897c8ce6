//! Weights in the order that a convolution reads them in, kept while they stay what they are.
//!
//! An attack takes many gradients of a network that does not change. What was packed for the first of them serves the
//! others, and the update that follows, until burn frees or changes the weights. What was packed for weights that are gone is
//! freed when something else is kept.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::Bytes;

use super::lanes::{Geometry, Plan};

/// What the weights are packed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Forward,
    InputGradient,
}

struct Kept {
    /// The memory of the weights. While there is a `Weak` of it, `Arc` neither changes it in place nor gives its address away: who
    /// has the same address has the same values.
    weights: Weak<Bytes>,
    way: Way,
    geometry: Geometry,
    plan: Arc<Plan>,
}

static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

/// The plan for contiguous weights: one that was kept, or a new one, which is kept if `keep` says so.
pub(super) fn plan(
    weights: &FloatTensor<Flex>,
    way: Way,
    geometry: Geometry,
    keep: bool,
) -> Arc<Plan> {
    let memory = weights.data_arc();
    let find = |kept: &Kept| {
        std::ptr::eq(kept.weights.as_ptr(), Arc::as_ptr(&memory))
            && kept.way == way
            && kept.geometry == geometry
    };
    // Nothing in here panics halfway through a change.
    let lock = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kept) = lock().iter().find(|kept| find(kept)) {
        return kept.plan.clone();
    }
    let plan = Arc::new(match way {
        Way::Forward => Plan::forward(weights.storage(), geometry),
        Way::InputGradient => Plan::input_gradient(weights.storage(), geometry),
    });
    if keep {
        let mut all = lock();
        // Parts of a batch start together: another thread may have packed the same meanwhile.
        if let Some(kept) = all.iter().find(|kept| find(kept)) {
            return kept.plan.clone();
        }
        all.retain(|kept| kept.weights.strong_count() > 0);
        all.push(Kept {
            weights: Arc::downgrade(&memory),
            way,
            geometry,
            plan: plan.clone(),
        });
    }
    plan
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};

    use super::*;
    use crate::conv::{conv2d, plain};
    use crate::samples;

    const G: Geometry = Geometry {
        inputs: 3,
        outputs: 9,
        size: [6, 6],
        kernel: [3, 3],
        stride: [1, 1],
        padding: [1, 1],
    };

    fn weights() -> FloatTensor<Flex> {
        use burn::backend::ops::FloatTensorOps;
        Flex::float_from_data(
            TensorData::ones::<f32, _>([9, 3, 3, 3]),
            &Default::default(),
        )
    }

    #[test]
    fn what_was_packed_serves_again_until_the_weights_are_gone() {
        let (ours, others) = (weights(), weights());
        let first = plan(&ours, Way::Forward, G, true);
        assert!(Arc::ptr_eq(
            &first,
            &plan(&ours.clone(), Way::Forward, G, true)
        ));
        let padded = Geometry {
            padding: [0, 0],
            ..G
        };
        for (weights, way, geometry) in [
            (&ours, Way::InputGradient, G),
            (&ours, Way::Forward, padded),
            (&others, Way::Forward, G),
        ] {
            assert!(!Arc::ptr_eq(&first, &plan(weights, way, geometry, true)));
        }
        let kept = Arc::downgrade(&first);
        drop((first, ours));
        // What is gone is dropped when the next comes.
        plan(&weights(), Way::Forward, G, true);
        assert!(kept.upgrade().is_none());
    }

    #[test]
    fn threads_that_pack_at_the_same_time_share_one_plan() {
        let weights = weights();
        let made = std::thread::scope(|scope| {
            let pack = || plan(&weights, Way::Forward, G, true);
            let threads = [(); 8].map(|()| scope.spawn(pack));
            threads.map(|thread| thread.join().unwrap())
        });
        assert!(made.iter().all(|plan| Arc::ptr_eq(plan, &made[0])));
    }

    #[test]
    fn what_is_not_kept_is_packed_anew() {
        let weights = weights();
        let once = plan(&weights, Way::Forward, G, false);
        assert!(!Arc::ptr_eq(&once, &plan(&weights, Way::Forward, G, false)));
    }

    /// burn changes a tensor in place where nobody else holds it.
    #[test]
    fn weights_that_change_are_packed_anew() {
        let x = samples::uniform([5, 3, 6, 6], -1.0, 1.0);
        let mut weight = samples::uniform([9, 3, 3, 3], -1.0, 1.0);
        let changes: [fn(Tensor<4>) -> Tensor<4>; 5] = [
            |w| w.mul_scalar(1.5),
            |w| w.clamp(-0.5, 0.5),
            |w| w.clone() + w,
            |w| w.slice_assign([0..1], Tensor::ones([1, 3, 3, 3], &Device::flex())),
            |w| w.sin(),
        ];
        for (at, change) in changes.into_iter().cycle().take(20).enumerate() {
            for _ in 0..2 {
                let ours = conv2d(x.clone(), weight.clone(), None, [1, 1], [1, 1]);
                let burns = plain(x.clone(), weight.clone(), None, [1, 1], [1, 1]);
                let far = (ours - burns).abs().max().into_scalar::<f32>();
                assert!(far < 1e-4, "{far} after {at} changes");
            }
            weight = change(weight);
        }
    }
}
