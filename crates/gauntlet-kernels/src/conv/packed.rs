//! Weights in the order that a convolution reads them in, kept while they stay what they are.
//!
//! An attack takes many gradients of a network that does not change. What was packed for the first of them serves the
//! others, and the update that follows, until burn frees or changes the weights.

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
