//! Random numbers on the host, one by one. Written out, because an image must stay what it is when a library changes its own.

use gauntlet_kernels::NoiseKey;
use gauntlet_kernels::noise::Philox;
use rand::Rng;

/// The random numbers of one sample.
pub(super) struct Draw {
    words: Philox,
    spare: Option<f32>,
}

impl Draw {
    pub(super) fn new(key: NoiseKey, sample: u32) -> Self {
        Self {
            words: key.rng(sample),
            spare: None,
        }
    }

    /// Uniform in [0, 1).
    pub(super) fn uniform(&mut self) -> f32 {
        (self.words.next_u32() >> 8) as f32 * (1.0 / (1 << 24) as f32)
    }

    /// Uniform in [low, high).
    pub(super) fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.uniform()
    }

    /// A whole number below `end`, each equally likely up to 1 in 2^32.
    pub(super) fn below(&mut self, end: u32) -> u32 {
        ((u64::from(self.words.next_u32()) * u64::from(end)) >> 32) as u32
    }

    /// Standard normal, by Box and Muller's transform.
    pub(super) fn normal(&mut self) -> f32 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        // 1 - u is in (0, 1], where the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * self.uniform()).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }

    /// Poisson, by inversion: probabilities are taken off one uniform number from the mode outwards, which ends after about
    /// the square root of `mean` terms.
    pub(super) fn poisson(&mut self, mean: f64) -> f64 {
        if mean <= 0.0 {
            return 0.0;
        }
        let mode = mean.floor();
        let at_mode = (mode * mean.ln() - mean - ln_factorial(mode)).exp();
        let mut left = (f64::from(self.words.next_u32()) + 0.5) / (1u64 << 32) as f64 - at_mode;
        let (mut above, mut below) = (mode, mode);
        let (mut p_above, mut p_below) = (at_mode, at_mode);
        while left >= 0.0 {
            above += 1.0;
            p_above *= mean / above;
            left -= p_above;
            if left < 0.0 {
                return above;
            }
            p_below *= below / mean;
            below = (below - 1.0).max(0.0);
            left -= p_below;
            if left < 0.0 {
                return below;
            }
            // What rounding left over of a total of 1.
            if p_above + p_below < 1e-14 {
                break;
            }
        }
        mode
    }
}

/// ln n!, by Stirling's series from 10 on (error below 1e-8).
fn ln_factorial(n: f64) -> f64 {
    if n < 10.0 {
        return (2..=n as u32).map(|i| f64::from(i).ln()).sum();
    }
    (n + 0.5) * n.ln() - n + 0.5 * std::f64::consts::TAU.ln() + 1.0 / (12.0 * n)
        - 1.0 / (360.0 * n.powi(3))
}

#[cfg(test)]
mod tests {
    use gauntlet_kernels::Stream;

    use super::*;

    fn draw() -> Draw {
        Draw::new(NoiseKey::new(1, Stream::Corruption), 0)
    }

    #[test]
    fn poisson_numbers_have_the_probabilities_of_the_distribution() {
        let mut draw = draw();
        for mean in [0.3, 3.0, 12.5] {
            let count = 40_000;
            let mut seen = [0u32; 64];
            for _ in 0..count {
                seen[draw.poisson(mean) as usize] += 1;
            }
            let mut p = (-mean).exp();
            for (k, &times) in seen.iter().enumerate() {
                let expected = p * f64::from(count);
                // Five standard deviations of a count.
                assert!(
                    (f64::from(times) - expected).abs() <= 5.0 * expected.sqrt() + 1.0,
                    "{times} of {k}, not {expected} (mean {mean})"
                );
                p *= mean / (k + 1) as f64;
            }
        }
    }

    #[test]
    fn mean_and_variance_of_poisson_numbers_are_their_parameter() {
        let mut draw = draw();
        for mean in [50.0, 497.3] {
            let values: Vec<f64> = (0..20_000).map(|_| draw.poisson(mean)).collect();
            let n = values.len() as f64;
            let average = values.iter().sum::<f64>() / n;
            let variance = values.iter().map(|v| (v - average).powi(2)).sum::<f64>() / n;
            assert!(
                (average / mean - 1.0).abs() < 5.0 / (mean * n).sqrt(),
                "{average}"
            );
            assert!(
                (variance / mean - 1.0).abs() < 0.05,
                "{variance} for {mean}"
            );
        }
        assert_eq!(draw.poisson(0.0), 0.0);
    }

    #[test]
    fn whole_numbers_stay_below_their_end_and_reach_it() {
        let mut draw = draw();
        let seen: Vec<u32> = (0..200).map(|_| draw.below(3)).collect();
        assert!((0..3).all(|value| seen.contains(&value)) && seen.iter().all(|&v| v < 3));
    }
}
