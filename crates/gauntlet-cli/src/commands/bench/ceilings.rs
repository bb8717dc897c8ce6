//! What the machine can do at most, measured in the same run as what is held against it.

use burn::tensor::{Distribution, FloatDType, Tensor};
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
    /// The same in `bf16`, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) matmul_bf16_gflop_s: Option<f64>,
}

impl Ceilings {
    /// Measures them, on sizes that fit the patience: `quick` ones say little.
    pub(crate) fn measure(on: &Picked, quick: bool, bf16: bool) -> Self {
        let effort = Effort {
            seconds: if quick { 0.05 } else { 1.5 },
            least: if quick { 2 } else { 5 },
            most: 50,
            between: 0.0,
        }
        .on(on);
        // Wide products keep all threads busy, whatever tiles a library cuts them into.
        let sizes: &[usize] = match (quick, on.is_cpu()) {
            (true, _) => &[128],
            (false, true) => &[1024, 1536],
            (false, false) => &[4096, 8192],
        };
        let product = |dtype| {
            let rates = sizes.iter().map(|&n| matmul(on, effort, n, dtype));
            rates.fold(0.0, f64::max)
        };
        // Far more than any cache holds.
        let values = match (quick, on.is_cpu()) {
            (true, _) => 1 << 18,
            (false, true) => 1 << 25,
            (false, false) => 1 << 28,
        };
        Self {
            copy_gb_s: copy(on, effort, values),
            matmul_gflop_s: product(FloatDType::F32),
            matmul_bf16_gflop_s: bf16.then(|| product(FloatDType::BF16)),
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

fn matmul(on: &Picked, effort: Effort, n: usize, dtype: FloatDType) -> f64 {
    let random = || {
        let values = Distribution::Uniform(-1.0, 1.0);
        Tensor::<2>::random([n, n], values, &on.device).cast(dtype)
    };
    let (a, b) = (random(), random());
    let mut work = || drop(a.clone().matmul(b.clone()));
    let best = measure(&on.device, effort, &mut [&mut work])[0].best;
    2.0 * (n as f64).powi(3) / best / 1e9
}
