use super::{Crafted, Method, Scene};

/// Cross-entropy under Gaussian noise (Cohen et al. 2019, section 3.3): what a classifier needs to be smoothed. The noise is not
/// clipped to [0, 1], as at certification.
pub(crate) struct SmoothingTraining {
    pub(crate) sigma: f32,
}

impl Method for SmoothingTraining {
    fn craft(&mut self, scene: &Scene<'_>) -> Crafted {
        let sigma = self.sigma * scene.pace.ramp as f32;
        scene.mixed(sigma, |x, _, noise| {
            let normal = noise.key.normal(&noise.samples, x.dims(), &x.device());
            x + normal.mul_scalar(sigma)
        })
    }
}
