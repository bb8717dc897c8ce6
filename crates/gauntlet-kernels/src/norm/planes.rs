//! Loops over the planes (an image's channel) of `[batch, channels, height, width]` on the CPU.

use rayon::prelude::*;

use crate::host::sum_of;

/// The sizes of a tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planes {
    pub(super) channels: usize,
    /// Values of a plane.
    pub(super) area: usize,
}

impl Planes {
    /// Fewer values than this are not worth a second thread.
    const SMALL: usize = 1 << 15;

    /// Calls `work` with the channel, the place and the values of each plane of `to`.
    fn each(self, to: &mut [f32], work: impl Fn(usize, usize, &mut [f32]) + Sync + Send) {
        let (area, channels) = (self.area.max(1), self.channels);
        let run = |(plane, to): (usize, &mut [f32])| work(plane % channels, plane * area, to);
        if to.len() < Self::SMALL {
            return to.chunks_mut(area).enumerate().for_each(run);
        }
        let least = Self::SMALL.div_ceil(2 * area);
        let planes = to.par_chunks_mut(area).enumerate();
        planes.with_min_len(least).for_each(run);
    }

    /// What `of` makes of each channel.
    fn channels<T: Send>(self, of: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
        (0..self.channels).into_par_iter().map(of).collect()
    }

    /// The sum over a channel of what `of` gives for a plane's range; planes in their order, so that no sum depends on threads.
    fn over(
        self,
        length: usize,
        channel: usize,
        of: impl Fn(std::ops::Range<usize>) -> f32,
    ) -> f64 {
        let stride = self.channels * self.area;
        let starts = (channel * self.area..length).step_by(stride.max(1));
        starts
            .map(|start| f64::from(of(start..start + self.area)))
            .sum()
    }

    /// Mean and biased variance of each channel: the means, then the variances.
    pub(super) fn moments(self, x: &[f32]) -> Vec<f32> {
        let count = (x.len() / self.channels.max(1)) as f64;
        let both = self.channels(|channel| {
            let mean = self.over(x.len(), channel, |plane| {
                let x = &x[plane];
                sum_of(x.len(), |i| x[i])
            }) / count;
            let middle = mean as f32;
            let variance = self.over(x.len(), channel, |plane| {
                let x = &x[plane];
                sum_of(x.len(), |i| (x[i] - middle) * (x[i] - middle))
            }) / count;
            (middle, variance as f32)
        });
        let (mut means, variances): (Vec<f32>, Vec<f32>) = both.into_iter().unzip();
        means.extend(variances);
        means
    }

    /// `x * scale + shift`, and zero for what is negative if `relu`.
    pub(super) fn affine(self, x: &[f32], scale: &[f32], shift: &[f32], relu: bool) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        self.each(&mut y, |channel, start, y| {
            let (scale, shift) = (scale[channel], shift[channel]);
            let values = y.iter_mut().zip(&x[start..]);
            match relu {
                true => values.for_each(|(y, x)| {
                    let value = x * scale + shift;
                    *y = if value <= 0.0 { 0.0 } else { value };
                }),
                false => values.for_each(|(y, x)| *y = x * scale + shift),
            }
        });
        y
    }

    /// The gradient before `relu` by the one after it.
    pub(super) fn before_relu(self, dy: &[f32], y: &[f32]) -> Vec<f32> {
        let mut before = vec![0.0; dy.len()];
        self.each(&mut before, |_, start, to| {
            for ((to, dy), y) in to.iter_mut().zip(&dy[start..]).zip(&y[start..]) {
                *to = if *y <= 0.0 { 0.0 } else { *dy };
            }
        });
        before
    }

    /// The gradient of [`Self::affine`] by `x`; `y` is what it gave, if there was a `relu`.
    pub(super) fn affine_input_gradient(
        self,
        dy: &[f32],
        y: Option<&[f32]>,
        scale: &[f32],
    ) -> Vec<f32> {
        let mut dx = vec![0.0; dy.len()];
        self.each(&mut dx, |channel, start, to| {
            let scale = scale[channel];
            let values = to.iter_mut().zip(&dy[start..]);
            match y {
                Some(y) => values.zip(&y[start..]).for_each(|((to, dy), y)| {
                    *to = if *y <= 0.0 { 0.0 } else { dy * scale };
                }),
                None => values.for_each(|(to, dy)| *to = dy * scale),
            }
        });
        dx
    }

    /// For each channel the sums of `dy` and of `dy * (x - middle)`.
    pub(super) fn sums(
        self,
        dy: &[f32],
        x: &[f32],
        middle: impl Fn(usize) -> f32 + Sync,
    ) -> Vec<[f32; 2]> {
        self.channels(|channel| {
            let middle = middle(channel);
            let plain = self.over(dy.len(), channel, |plane| {
                let dy = &dy[plane];
                sum_of(dy.len(), |i| dy[i])
            });
            let weighted = self.over(dy.len(), channel, |plane| {
                let (dy, x) = (&dy[plane.clone()], &x[plane]);
                sum_of(dy.len(), |i| dy[i] * (x[i] - middle))
            });
            [plain as f32, weighted as f32]
        })
    }

    /// `a dy + b x + c`, each of a channel: the gradient of a normalisation by its own statistics.
    pub(super) fn combination(self, dy: &[f32], x: &[f32], parts: &[[f32; 3]]) -> Vec<f32> {
        let mut to = vec![0.0; dy.len()];
        self.each(&mut to, |channel, start, to| {
            let [a, b, c] = parts[channel];
            for ((to, dy), x) in to.iter_mut().zip(&dy[start..]).zip(&x[start..]) {
                *to = a * dy + b * x + c;
            }
        });
        to
    }
}
