//! Steps and projections of perturbations, each one kernel.
//!
//! Where a sample's norm is needed, a cube of units works on each sample, and adds up in its shared memory.

use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;
use cubecl::std::tensor::layout::linear::{LinearView, LinearViewMut};

use super::{elementwise, like, vector_size};
use crate::perturb::TINY;

/// Units that work on one sample together.
pub(super) const UNITS: u32 = 256;

pub(super) type View<'a> = LinearView<'a, f32>;
pub(super) type ViewMut<'a> = LinearViewMut<'a, f32>;

/// What a perturbation may be: within `eps` of the clean image, values from `low` to `high`.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Ball {
    eps: f32,
    low: f32,
    high: f32,
}

fn ball(eps: f32, (low, high): (f32, f32)) -> BallLaunch {
    BallLaunch::new(eps, low, high)
}

#[cube]
fn project<N: Size>(z: Vector<f32, N>, x0: Vector<f32, N>, ball: &Ball) -> Vector<f32, N> {
    let delta = clamp(z - x0, Vector::new(-ball.eps), Vector::new(ball.eps));
    clamp(x0 + delta, Vector::new(ball.low), Vector::new(ball.high))
}

#[cube]
fn sign<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let zero = Vector::new(0.0);
    Vector::cast_from(x > zero) - Vector::cast_from(x < zero)
}

#[cube(launch, address_type = "dynamic")]
fn linf_kernel<N: Size>(
    x: LinearView<'_, Vector<f32, N>>,
    x0: LinearView<'_, Vector<f32, N>>,
    grad: LinearView<'_, Vector<f32, N>>,
    mut out: LinearViewMut<'_, Vector<f32, N>>,
    step_size: f32,
    ball: Ball,
) {
    let at = ABSOLUTE_POS;
    if !out.is_in_bounds(at) {
        terminate!();
    }
    let moved = x.read(at) + sign::<N>(grad.read(at)) * Vector::new(step_size);
    out.write(at, project::<N>(moved, x0.read(at), &ball));
}

pub(super) fn linf_step(
    x: CubeTensor,
    x0: CubeTensor,
    grad: CubeTensor,
    step_size: f32,
    eps: f32,
    bounds: (f32, f32),
) -> CubeTensor {
    let out = like(&x);
    if out.meta.num_elements() == 0 {
        return out;
    }
    let vector = vector_size(&[&x, &x0, &grad, &out]);
    let (count, dim) = elementwise(&out, vector);
    linf_kernel::launch(
        &out.client,
        count,
        dim,
        out.required_address_type(),
        vector,
        x.into_linear_view_like(&out),
        x0.into_linear_view_like(&out),
        grad.into_linear_view_like(&out),
        out.clone().into_linear_view(),
        step_size,
        ball(eps, bounds),
    );
    out
}

/// The sum of what all units of a cube bring, or the largest of it, to each of them.
#[cube]
pub(super) fn of_cube(mine: f32, shared: &mut Shared<[f32]>, #[comptime] largest: bool) -> f32 {
    let unit = UNIT_POS as usize;
    shared[unit] = mine;
    sync_cube();
    let mut half = CUBE_DIM as usize / 2;
    while half > 0 {
        if unit < half {
            if comptime!(largest) {
                shared[unit] = max(shared[unit], shared[unit + half]);
            } else {
                shared[unit] += shared[unit + half];
            }
        }
        sync_cube();
        half /= 2;
    }
    let joined = shared[0];
    // Nobody begins the next before all have read this one.
    sync_cube();
    joined
}

/// What a gradient is multiplied by to have length 1. Scaled by its largest value first: squares of small values would underflow.
#[cube]
fn unit_factor(grad: &View<'_>, row: &Row, shared: &mut Shared<[f32]>) -> f32 {
    let units = CUBE_DIM as usize;
    let mut most = f32::new(TINY);
    for at in range_stepped(row.first, row.end, units) {
        most = max(most, grad.read(at).abs());
    }
    let inverse = 1.0f32 / of_cube(most, shared, true);
    let mut squares = 0.0f32;
    for at in range_stepped(row.first, row.end, units) {
        let g = grad.read(at) * inverse;
        squares += g * g;
    }
    inverse / max(of_cube(squares, shared, false).sqrt(), TINY)
}

/// Where a sample's values are in memory.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Row {
    pub(super) start: usize,
    /// The first value of this unit; the next are as many further on as there are units.
    pub(super) first: usize,
    pub(super) end: usize,
}

/// That of this cube's sample.
#[cube]
pub(super) fn row(width: usize) -> Row {
    let start = CUBE_POS * width;
    Row {
        start,
        first: start + UNIT_POS as usize,
        end: start + width,
    }
}

/// A cube for each sample, or a few more where they fill no grid.
pub(super) fn cubes(out: &CubeTensor) -> CubeCount {
    let units = out.meta.shape()[0] * UNITS as usize;
    calculate_cube_count_elemwise(&out.client, units, CubeDim::new_1d(UNITS))
}

#[cube]
fn shrink(squares: f32, eps: f32) -> f32 {
    min(eps / max(squares.sqrt(), TINY), 1.0f32)
}

#[cube(launch, address_type = "dynamic")]
fn l2_kernel(
    x: View<'_>,
    x0: View<'_>,
    grad: View<'_>,
    mut out: ViewMut<'_>,
    width: usize,
    step_size: f32,
    ball: Ball,
    #[comptime] step: bool,
) {
    let mut shared = Shared::new_slice(comptime!(UNITS as usize));
    let units = CUBE_DIM as usize;
    let row = row(width);
    if !out.is_in_bounds(row.start) {
        terminate!();
    }
    let mut factor = 0.0f32;
    if comptime!(step) {
        factor = step_size * unit_factor(&grad, &row, &mut shared);
    }
    let mut squares = 0.0f32;
    for at in range_stepped(row.first, row.end, units) {
        let mut delta = x.read(at) - x0.read(at);
        if comptime!(step) {
            delta += grad.read(at) * factor;
        }
        squares += delta * delta;
    }
    let shrink = shrink(of_cube(squares, &mut shared, false), ball.eps);
    for at in range_stepped(row.first, row.end, units) {
        let clean = x0.read(at);
        let mut delta = x.read(at) - clean;
        if comptime!(step) {
            delta += grad.read(at) * factor;
        }
        out.write(at, clamp(clean + delta * shrink, ball.low, ball.high));
    }
}

/// One L2 step; without a gradient the projection alone.
pub(super) fn l2_step(
    x: CubeTensor,
    x0: CubeTensor,
    grad: Option<CubeTensor>,
    step_size: f32,
    eps: f32,
    bounds: (f32, f32),
) -> CubeTensor {
    let out = like(&x);
    let rows = out.meta.shape()[0];
    if out.meta.num_elements() == 0 {
        return out;
    }
    let step = grad.is_some();
    let grad = grad.unwrap_or_else(|| x.clone());
    l2_kernel::launch(
        &out.client,
        cubes(&out),
        CubeDim::new_1d(UNITS),
        out.required_address_type(),
        x.into_linear_view_like(&out),
        x0.into_linear_view_like(&out),
        grad.into_linear_view_like(&out),
        out.clone().into_linear_view(),
        out.meta.num_elements() / rows,
        step_size,
        ball(eps, bounds),
        step,
    );
    out
}

#[cube(launch, address_type = "dynamic")]
fn linf_momentum_kernel<N: Size>(
    x: LinearView<'_, Vector<f32, N>>,
    x0: LinearView<'_, Vector<f32, N>>,
    grad: LinearView<'_, Vector<f32, N>>,
    before: LinearView<'_, Vector<f32, N>>,
    step_size: View<'_>,
    mut out: LinearViewMut<'_, Vector<f32, N>>,
    width: usize,
    momentum: f32,
    ball: Ball,
) {
    let at = ABSOLUTE_POS;
    if !out.is_in_bounds(at) {
        terminate!();
    }
    let size = step_size.read(at * N::value() / width);
    let (x, x0) = (x.read(at), x0.read(at));
    let moved = x + sign::<N>(grad.read(at)) * Vector::new(size);
    let ahead = project::<N>(moved, x0, &ball);
    let pull = (ahead - x) * Vector::new(1.0 - momentum);
    let drift = (x - before.read(at)) * Vector::new(momentum);
    out.write(at, project::<N>(x + pull + drift, x0, &ball));
}

pub(super) fn linf_momentum_step(
    x: CubeTensor,
    x0: CubeTensor,
    grad: CubeTensor,
    before: CubeTensor,
    step_size: CubeTensor,
    momentum: f32,
    eps: f32,
    bounds: (f32, f32),
) -> CubeTensor {
    let out = like(&x);
    if out.meta.num_elements() == 0 {
        return out;
    }
    let width = out.meta.num_elements() / out.meta.shape()[0];
    // Of one row, the last dimension's at most: no vector lies in two.
    let vector = vector_size(&[&x, &x0, &grad, &before, &out]);
    let (count, dim) = elementwise(&out, vector);
    linf_momentum_kernel::launch(
        &out.client,
        count,
        dim,
        out.required_address_type(),
        vector,
        x.into_linear_view_like(&out),
        x0.into_linear_view_like(&out),
        grad.into_linear_view_like(&out),
        before.into_linear_view_like(&out),
        step_size.into_linear_view(),
        out.clone().into_linear_view(),
        width,
        momentum,
        ball(eps, bounds),
    );
    out
}

#[cube(launch, address_type = "dynamic")]
fn l2_momentum_kernel(
    x: View<'_>,
    x0: View<'_>,
    grad: View<'_>,
    before: View<'_>,
    step_size: View<'_>,
    mut out: ViewMut<'_>,
    width: usize,
    momentum: f32,
    ball: Ball,
) {
    let mut shared = Shared::new_slice(comptime!(UNITS as usize));
    let units = CUBE_DIM as usize;
    let row = row(width);
    if !out.is_in_bounds(row.start) {
        terminate!();
    }
    let factor = step_size.read(CUBE_POS) * unit_factor(&grad, &row, &mut shared);
    let mut squares = 0.0f32;
    for at in range_stepped(row.first, row.end, units) {
        let delta = x.read(at) - x0.read(at) + grad.read(at) * factor;
        squares += delta * delta;
    }
    let once = shrink(of_cube(squares, &mut shared, false), ball.eps);
    let mut squares = 0.0f32;
    for at in range_stepped(row.first, row.end, units) {
        let (here, clean) = (x.read(at), x0.read(at));
        let delta = here - clean + grad.read(at) * factor;
        let ahead = clamp(clean + delta * once, ball.low, ball.high);
        let pull = (ahead - here) * (1.0 - momentum);
        let moved = here + pull + (here - before.read(at)) * momentum;
        squares += (moved - clean) * (moved - clean);
        out.write(at, moved);
    }
    // Each unit reads below what it wrote itself.
    let twice = shrink(of_cube(squares, &mut shared, false), ball.eps);
    for at in range_stepped(row.first, row.end, units) {
        let clean = x0.read(at);
        let z = clean + (out.read(at) - clean) * twice;
        out.write(at, clamp(z, ball.low, ball.high));
    }
}

pub(super) fn l2_momentum_step(
    x: CubeTensor,
    x0: CubeTensor,
    grad: CubeTensor,
    before: CubeTensor,
    step_size: CubeTensor,
    momentum: f32,
    eps: f32,
    bounds: (f32, f32),
) -> CubeTensor {
    let out = like(&x);
    if out.meta.num_elements() == 0 {
        return out;
    }
    let rows = out.meta.shape()[0];
    l2_momentum_kernel::launch(
        &out.client,
        cubes(&out),
        CubeDim::new_1d(UNITS),
        out.required_address_type(),
        x.into_linear_view_like(&out),
        x0.into_linear_view_like(&out),
        grad.into_linear_view_like(&out),
        before.into_linear_view_like(&out),
        step_size.into_linear_view(),
        out.clone().into_linear_view(),
        out.meta.num_elements() / rows,
        momentum,
        ball(eps, bounds),
    );
    out
}
