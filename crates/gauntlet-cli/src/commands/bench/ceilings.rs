//! What the machine can do at most, measured in the same run as what is held against it.

use burn::tensor::{Distribution, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::clock::{Effort, measure};
use crate::devices::Picked;

/// Fastest of several tries: a ceiling is not an average.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ceilings {
    /// Bytes read and written by a copy from memory to memory, in GB/s.
    pub(crate) copy_gb_s: f64,
    /// A product of square `f32` matrices, in GFLOP/s.
    pub(crate) matmul_gflop_s: f64,
}

impl Ceilings {
    /// Measures them, on sizes that fit the patience: `quick` ones say little.
    pub(crate) fn measure(on: &Picked, quick: bool) -> Self {
        let effort = Effort {
            seconds: if quick { 0.05 } else { 1.5 },
            least: if quick { 2 } else { 5 },
            most: 50,
        };
        Self {
            copy_gb_s: copy(on, effort, if quick { 1 << 18 } else { 1 << 25 }),
            matmul_gflop_s: match (quick, on.is_cpu()) {
                (true, _) => matmul(on, effort, 128),
                // Wide products keep all threads busy, whatever tiles a library cuts them into.
                (false, true) => [1024, 1536]
                    .map(|n| matmul(on, effort, n))
                    .into_iter()
                    .fold(0.0, f64::max),
                (false, false) => [4096, 8192]
                    .map(|n| matmul(on, effort, n))
                    .into_iter()
                    .fold(0.0, f64::max),
            },
        }
    }
}

fn copy(on: &Picked, effort: Effort, values: usize) -> f64 {
    let bytes = (2 * 4 * values) as f64;
    let best = if on.is_cpu() {
        let from = vec![1.0f32; values];
        let mut to = vec![0.0f32; values];
        let chunk = values.div_ceil(rayon::current_num_threads());
        let mut work = || {
            let pairs = to.par_chunks_mut(chunk).zip(from.par_chunks(chunk));
            pairs.for_each(|(to, from)| to.copy_from_slice(from));
        };
        measure(&on.device, effort, &mut [&mut work])[0].best
    } else {
        let from = Tensor::<1>::ones([values], &on.device);
        let mut work = || drop(from.clone().mul_scalar(1.5));
        measure(&on.device, effort, &mut [&mut work])[0].best
    };
    bytes / best / 1e9
}

fn matmul(on: &Picked, effort: Effort, n: usize) -> f64 {
    let random = || Tensor::<2>::random([n, n], Distribution::Uniform(-1.0, 1.0), &on.device);
    let (a, b) = (random(), random());
    let mut work = || drop(a.clone().matmul(b.clone()));
    let best = measure(&on.device, effort, &mut [&mut work])[0].best;
    2.0 * (n as f64).powi(3) / best / 1e9
}
