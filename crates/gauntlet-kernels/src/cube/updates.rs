//! Updates of weights and averages, each one kernel.

use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::std::tensor::layout::linear::{LinearView, LinearViewMut};

use super::{elementwise, like, vector_size};
use crate::update::{Adam, SEEN, Sgd};

#[cube(launch, address_type = "dynamic")]
fn sgd_kernel<N: Size>(
    weights: LinearView<'_, Vector<f32, N>>,
    gradient: LinearView<'_, Vector<f32, N>>,
    velocity: LinearView<'_, Vector<f32, N>>,
    mut new_weights: LinearViewMut<'_, Vector<f32, N>>,
    mut new_velocity: LinearViewMut<'_, Vector<f32, N>>,
    rate: f32,
    momentum: f32,
    decay: f32,
    #[comptime] nesterov: bool,
) {
    let at = ABSOLUTE_POS;
    if !new_weights.is_in_bounds(at) {
        terminate!();
    }
    let w = weights.read(at);
    let g = gradient.read(at) + w * Vector::new(decay);
    let v = velocity.read(at) * Vector::new(momentum) + g;
    let mut direction = v;
    if comptime!(nesterov) {
        direction = v * Vector::new(momentum) + g;
    }
    new_velocity.write(at, v);
    new_weights.write(at, w - direction * Vector::new(rate));
}

pub(super) fn sgd(
    weights: CubeTensor,
    gradient: CubeTensor,
    velocity: CubeTensor,
    by: Sgd,
) -> (CubeTensor, CubeTensor) {
    let out = [like(&weights), like(&weights)];
    if out[0].meta.num_elements() > 0 {
        let vector = vector_size(&[&weights, &gradient, &velocity, &out[0]]);
        let (count, dim) = elementwise(&out[0], vector);
        sgd_kernel::launch(
            &out[0].client,
            count,
            dim,
            out[0].required_address_type(),
            vector,
            weights.into_linear_view(),
            gradient.into_linear_view(),
            velocity.into_linear_view(),
            out[0].clone().into_linear_view(),
            out[1].clone().into_linear_view(),
            by.rate,
            by.momentum,
            by.decay,
            by.nesterov,
        );
    }
    out.into()
}

#[cube(launch, address_type = "dynamic")]
fn adam_kernel<N: Size>(
    weights: LinearView<'_, Vector<f32, N>>,
    gradient: LinearView<'_, Vector<f32, N>>,
    first: LinearView<'_, Vector<f32, N>>,
    second: LinearView<'_, Vector<f32, N>>,
    mut new_weights: LinearViewMut<'_, Vector<f32, N>>,
    mut new_first: LinearViewMut<'_, Vector<f32, N>>,
    mut new_second: LinearViewMut<'_, Vector<f32, N>>,
    rate: f32,
    beta_1: f32,
    beta_2: f32,
    epsilon: f32,
    decay: f32,
    keep: f32,
    correct_1: f32,
    correct_2: f32,
) {
    let at = ABSOLUTE_POS;
    if !new_weights.is_in_bounds(at) {
        terminate!();
    }
    let seen = Vector::<f32, N>::new(SEEN);
    let w = weights.read(at);
    let g = gradient.read(at) + w * Vector::new(decay);
    let m = first.read(at) * Vector::new(beta_1) + g * Vector::new(1.0 - beta_1) + seen - seen;
    let v = second.read(at) * Vector::new(beta_2) + g * g * Vector::new(1.0 - beta_2) + seen - seen;
    let root = (v / Vector::new(correct_2)).sqrt() + Vector::new(epsilon);
    let direction = m / Vector::new(correct_1) / root;
    new_first.write(at, m);
    new_second.write(at, v);
    new_weights.write(at, w * Vector::new(keep) - direction * Vector::new(rate));
}

pub(super) fn adam(
    weights: CubeTensor,
    gradient: CubeTensor,
    first: CubeTensor,
    second: CubeTensor,
    by: Adam,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let out = [like(&weights), like(&weights), like(&weights)];
    if out[0].meta.num_elements() > 0 {
        let vector = vector_size(&[&weights, &gradient, &first, &second, &out[0]]);
        let (count, dim) = elementwise(&out[0], vector);
        adam_kernel::launch(
            &out[0].client,
            count,
            dim,
            out[0].required_address_type(),
            vector,
            weights.into_linear_view(),
            gradient.into_linear_view(),
            first.into_linear_view(),
            second.into_linear_view(),
            out[0].clone().into_linear_view(),
            out[1].clone().into_linear_view(),
            out[2].clone().into_linear_view(),
            by.rate,
            by.betas[0],
            by.betas[1],
            by.epsilon,
            by.decay,
            by.keep,
            by.corrections[0],
            by.corrections[1],
        );
    }
    out.into()
}

#[cube(launch, address_type = "dynamic")]
fn blend_kernel<N: Size>(
    old: LinearView<'_, Vector<f32, N>>,
    new: LinearView<'_, Vector<f32, N>>,
    mut out: LinearViewMut<'_, Vector<f32, N>>,
    kept: f32,
    added: f32,
) {
    let at = ABSOLUTE_POS;
    if !out.is_in_bounds(at) {
        terminate!();
    }
    let (old, new) = (old.read(at), new.read(at));
    out.write(at, old * Vector::new(kept) + new * Vector::new(added));
}

pub(super) fn blend(old: CubeTensor, new: CubeTensor, kept: f32, added: f32) -> CubeTensor {
    let out = like(&old);
    if out.meta.num_elements() > 0 {
        let vector = vector_size(&[&old, &new, &out]);
        let (count, dim) = elementwise(&out, vector);
        blend_kernel::launch(
            &out.client,
            count,
            dim,
            out.required_address_type(),
            vector,
            old.into_linear_view_like(&out),
            new.into_linear_view_like(&out),
            out.clone().into_linear_view(),
            kept,
            added,
        );
    }
    out
}
