use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::like;
use super::steps::{UNITS, View, ViewMut, cubes, of_cube, row};

/// Divisors are at least this, and times at most its inverse.
const TINIEST: f32 = 1e-30;

/// How one value takes part.
#[derive(CubeType, Clone, Copy)]
struct Way {
    /// -1, 0 or 1.
    direction: f32,
    /// What a unit of it closes of the gap.
    size: f32,
    speed: f32,
    /// How far it is to the face.
    room: f32,
}

#[cube]
fn way(x: f32, normal: f32, gap: f32, low: f32, high: f32, #[comptime] along_normal: bool) -> Way {
    let down = f32::cast_from(normal * gap > 0.0f32);
    let up = f32::cast_from(normal * gap < 0.0f32);
    let size = normal.abs();
    let mut speed = 1.0f32;
    if comptime!(along_normal) {
        speed = size;
    }
    Way {
        direction: up - down,
        size,
        speed,
        room: up * (high - x) + down * (x - low),
    }
}

/// A cube of units for each row, all steps of Newton's method in its shared memory.
#[cube(launch, address_type = "dynamic")]
fn hyperplane_kernel(
    x: View<'_>,
    normal: View<'_>,
    gap: View<'_>,
    mut out: ViewMut<'_>,
    width: usize,
    low: f32,
    high: f32,
    #[comptime] along_normal: bool,
    #[comptime] steps: u32,
) {
    let mut shared = Shared::new_slice(comptime!(UNITS as usize));
    let units = CUBE_DIM as usize;
    let row = row(width);
    if !out.is_in_bounds(row.start) {
        terminate!();
    }
    let gap = gap.read(CUBE_POS);
    let mut time = 0.0f32;
    for _ in 0..steps {
        let mut slope = 0.0f32;
        let mut closed = 0.0f32;
        for at in range_stepped(row.first, row.end, units) {
            let this = way(x.read(at), normal.read(at), gap, low, high, along_normal);
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
    for at in range_stepped(row.first, row.end, units) {
        let this = way(x.read(at), normal.read(at), gap, low, high, along_normal);
        out.write(at, this.direction * min(this.speed * time, this.room));
    }
}

pub(super) fn move_to_hyperplane(
    x: CubeTensor,
    normal: CubeTensor,
    gap: CubeTensor,
    (low, high): (f32, f32),
    along_normal: bool,
    steps: u32,
) -> CubeTensor {
    let out = like(&x);
    let rows = out.meta.shape()[0];
    if out.meta.num_elements() == 0 {
        return out;
    }
    hyperplane_kernel::launch(
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
        along_normal,
        steps,
    );
    out
}
