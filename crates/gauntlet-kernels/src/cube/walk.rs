use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::like;
use super::steps::{UNITS, View, ViewMut, cubes, of_cube};
use crate::perturb::TINIEST;

/// How one value takes part in a walk.
#[derive(CubeType, Clone, Copy)]
struct Walker {
    /// Where it goes: -1, 0 or 1.
    direction: f32,
    /// What a unit of its way closes of the gap.
    size: f32,
    speed: f32,
    /// How far it is to its face.
    room: f32,
}

#[cube]
fn walker(x: f32, normal: f32, gap: f32, low: f32, high: f32, #[comptime] steep: bool) -> Walker {
    let slope = normal * gap;
    // What is no number goes nowhere.
    let down = f32::cast_from(slope > 0.0f32);
    let up = f32::cast_from(slope < 0.0f32);
    let mut size = 0.0f32;
    if slope != 0.0f32 {
        size = (up + down) * normal.abs();
    }
    let mut speed = 1.0f32;
    if comptime!(steep) {
        speed = size;
    }
    Walker {
        direction: up - down,
        size,
        speed,
        room: up * (high - x) + down * (x - low),
    }
}

/// See [`crate::perturb::walk`]: a cube of units for each row, all steps of Newton's method in its shared memory.
#[cube(launch, address_type = "dynamic")]
fn walk_kernel(
    x: View<'_>,
    normal: View<'_>,
    gap: View<'_>,
    mut out: ViewMut<'_>,
    width: usize,
    low: f32,
    high: f32,
    #[comptime] steep: bool,
    #[comptime] steps: u32,
) {
    let mut shared = Shared::new_slice(comptime!(UNITS as usize));
    let units = CUBE_DIM as usize;
    let start = CUBE_POS * width;
    if !out.is_in_bounds(start) {
        terminate!();
    }
    let end = start + width;
    let first = start + UNIT_POS as usize;
    let gap = gap.read(CUBE_POS);
    let mut time = 0.0f32;
    for _ in 0..steps {
        let mut slope = 0.0f32;
        let mut closed = 0.0f32;
        for at in range_stepped(first, end, units) {
            let this = walker(x.read(at), normal.read(at), gap, low, high, steep);
            if this.room / max(this.speed, f32::new(TINIEST)) > time {
                slope += this.size * this.speed;
            } else {
                closed += this.size * this.room;
            }
        }
        let slope = of_cube(slope, &mut shared, false);
        let closed = of_cube(closed, &mut shared, false);
        let root = (gap.abs() - closed) / max(slope, f32::new(TINIEST));
        time = min(max(time, root), 1.0f32 / f32::new(TINIEST));
    }
    for at in range_stepped(first, end, units) {
        let this = walker(x.read(at), normal.read(at), gap, low, high, steep);
        out.write(at, this.direction * min(this.speed * time, this.room));
    }
}

pub(super) fn walk(
    x: CubeTensor,
    normal: CubeTensor,
    gap: CubeTensor,
    (low, high): (f32, f32),
    steep: bool,
    steps: u32,
) -> CubeTensor {
    let out = like(&x);
    let rows = out.meta.shape()[0];
    if out.meta.num_elements() == 0 {
        return out;
    }
    walk_kernel::launch(
        &out.client,
        cubes(&out),
        CubeDim::new_1d(UNITS),
        out.required_address_type(),
        x.into_linear_view_like(&out),
        normal.into_linear_view_like(&out),
        gap.into_linear_view(),
        out.clone().into_linear_view(),
        out.meta.num_elements() / rows,
        low,
        high,
        steep,
        steps,
    );
    out
}
