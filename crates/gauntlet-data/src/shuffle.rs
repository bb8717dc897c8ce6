//! Permutations that stay what they are: an order is part of a run, and a library may change its own between versions.

use rand::RngExt;

/// Fisher and Yates' shuffle: every order is equally likely.
pub(crate) fn shuffle<T>(items: &mut [T], rng: &mut impl rand::Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, rng.random_range(0..=last));
    }
}
