//! Where attacks within a threat model start from.

use burn::tensor::Tensor;
use gauntlet_kernels::perturb::{
    l1_norms, per_sample, project_l1, project_l2, project_linf, unit_l2,
};

use crate::fgsm::no_gradient_step;
use crate::{Noise, Norm, ThreatModel};

/// Radii are drawn under restart numbers of their own, above any real one.
const RADIUS: u32 = 2048;

impl ThreatModel {
    /// A random legal point around `x`: uniform in the ball (L∞), or in a random direction at a uniform radius (L2, L1), then
    /// moved into the box.
    ///
    /// # Panics
    /// In L0.
    pub(crate) fn start<const D: usize>(
        &self,
        x: &Tensor<D>,
        noise: &Noise,
        restart: u32,
    ) -> Tensor<D> {
        let (shape, device) = (x.dims(), x.device());
        let key = noise.key.restart(restart);
        let (eps, bounds) = (self.eps.value(), self.bounds);
        if self.norm == Norm::Linf {
            let delta = key.uniform(&noise.samples, shape, -eps, eps, &device);
            return project_linf(x.clone() + delta, x.clone(), eps, bounds);
        }
        let radius_key = key.restart(RADIUS + restart);
        let radius = radius_key.uniform(&noise.samples, [shape[0]], 0.0, eps, &device);
        let delta = self.direction(shape, noise, restart, &device) * per_sample(radius, shape);
        match self.norm {
            Norm::L2 => project_l2(x.clone() + delta, x.clone(), eps, bounds),
            _ => project_l1(x.clone() + delta, x.clone(), eps, bounds),
        }
    }

    /// A random direction of length 1: signs (L∞), uniform on the sphere (L2), uniform on the cross-polytope (L1).
    ///
    /// # Panics
    /// In L0.
    pub(crate) fn direction<const D: usize>(
        &self,
        shape: [usize; D],
        noise: &Noise,
        restart: u32,
        device: &burn::tensor::Device,
    ) -> Tensor<D> {
        let key = noise.key.restart(restart);
        let flat = [shape[0], shape[1..].iter().product::<usize>()];
        match self.norm {
            Norm::Linf => key.normal(&noise.samples, shape, device).sign(),
            Norm::L2 => unit_l2(key.normal::<2>(&noise.samples, flat, device)).reshape(shape),
            Norm::L1 => {
                // Laplace noise by its inverse distribution function; 2^-25 is half of the least distance of a number to 1.
                let uniform = key.uniform(&noise.samples, shape, -1.0, 1.0, device);
                let left = uniform.clone().abs().neg().add_scalar(1.0);
                let laplace = left.clamp_min(0.5f32.powi(25)).log().neg() * uniform.sign();
                let lengths = l1_norms(laplace.clone()).clamp_min(f32::MIN_POSITIVE);
                laplace / per_sample(lengths, shape)
            }
            Norm::L0 => no_gradient_step(),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use gauntlet_kernels::{NoiseKey, Stream};

    use super::*;
    use crate::testing::values;

    /// Of a point that is uniform on the cross-polytope in `n` dimensions, the size of a value has mean 1 / n and mean square
    /// 2 / (n (n + 1)); signs are fair.
    #[test]
    fn directions_are_uniform_on_their_spheres() {
        let (rows, n) = (2000u32, 6);
        let noise = Noise {
            key: NoiseKey::new(5, Stream::EvalAttack),
            samples: (0..rows).collect(),
        };
        let (count, n_f) = (f64::from(rows) * n as f64, n as f64);
        for (norm, mean_size, mean_square) in [
            (Norm::Linf, 1.0, 1.0),
            (Norm::L2, f64::NAN, 1.0 / n_f),
            (Norm::L1, 1.0 / n_f, 2.0 / (n_f * (n_f + 1.0))),
        ] {
            let threat = ThreatModel::new(norm, "1".parse().unwrap());
            let shape = [rows as usize, n];
            let delta = threat.direction(shape, &noise, 0, &Device::flex());
            let lengths = values(norm.lengths(delta.clone()));
            assert!(lengths.iter().all(|length| (length - 1.0).abs() < 1e-5));
            let delta: Vec<f64> = values(delta).into_iter().map(f64::from).collect();
            let mean = |f: fn(f64) -> f64| delta.iter().copied().map(f).sum::<f64>() / count;
            assert!(mean(|d| d.signum()).abs() < 0.04, "{norm}");
            assert!((mean(|d| d * d) - mean_square).abs() < 0.03 * mean_square);
            if mean_size.is_finite() {
                assert!((mean(f64::abs) - mean_size).abs() < 0.03 * mean_size);
            }
        }
    }
}
