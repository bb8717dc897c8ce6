use gauntlet_kernels::product::{Rows, Weights};

/// Pixels of a gradient that are turned into patches together, which then lie in cache.
const PATCHES: usize = 64;

/// A convolution of images `[height, width, channels]`, without dilation or groups.
#[derive(Debug)]
pub(super) struct Conv {
    /// Height, width and channels of its input.
    pub(super) input: [usize; 3],
    /// Height and width of a kernel.
    pub(super) kernel: [usize; 2],
    pub(super) stride: [usize; 2],
    /// Zeros around the input, on either side.
    pub(super) padding: [usize; 2],
    /// From patches, `[kernel height, kernel width, channels]`, to channels of the output.
    pub(super) forward: Weights,
    /// From channels of the output to patches.
    pub(super) backward: Weights,
}

impl Conv {
    /// Height and width of its output.
    pub(super) fn size(&self) -> [usize; 2] {
        let along =
            |d: usize| (self.input[d] + 2 * self.padding[d] - self.kernel[d]) / self.stride[d] + 1;
        [along(0), along(1)]
    }

    /// Height and width of its input with the zeros around it.
    fn padded(&self) -> [usize; 2] {
        [0, 1].map(|d| self.input[d] + 2 * self.padding[d])
    }

    /// Where the patch of each pixel of the output begins in a padded image.
    fn patches(&self) -> Vec<usize> {
        let ([height, width], [_, padded_width]) = (self.size(), self.padded());
        let [down, right] = self.stride;
        let place = |y: usize, x: usize| (y * down * padded_width + x * right) * self.input[2];
        let row = |y| (0..width).map(move |x| place(y, x));
        (0..height).flat_map(row).collect()
    }

    /// Where the rows of a patch begin, counted from its start; and their length.
    fn rows(&self) -> (Vec<usize>, usize) {
        let ([_, width], channels) = (self.padded(), self.input[2]);
        let starts = (0..self.kernel[0]).map(|row| row * width * channels);
        (starts.collect(), self.kernel[1] * channels)
    }

    pub(super) fn forward(&self, x: Vec<f32>, count: usize) -> Vec<f32> {
        let padded = self.padded();
        let x = match self.padding {
            [0, 0] => x,
            _ => {
                let mut wide = vec![0.0; count * padded[0] * padded[1] * self.input[2]];
                self.inner_rows(count)
                    .zip(x.chunks_exact(self.input[1] * self.input[2]))
                    .for_each(|(at, row)| wide[at..at + row.len()].copy_from_slice(row));
                wide
            }
        };
        let image = x.len() / count;
        let patches = self.patches();
        let starts: Vec<usize> = (0..count)
            .flat_map(|i| patches.iter().map(move |patch| i * image + patch))
            .collect();
        let mut y = vec![0.0; starts.len() * self.forward.width()];
        let rows = Rows {
            values: &x,
            starts: &starts,
            runs: &self.rows().0,
        };
        self.forward.product(rows, &mut y);
        y
    }

    /// Each pixel of the gradient becomes a patch, and patches are added where they overlap.
    pub(super) fn backward(&self, gradient: &[f32], count: usize) -> Vec<f32> {
        let ([height, width], channels) = (self.padded(), self.input[2]);
        let image = height * width * channels;
        let mut wide = vec![0.0; count * image];
        let (patches, (rows, length)) = (self.patches(), self.rows());
        let patch = rows.len() * length;
        let depth = gradient.len() / (count * patches.len());
        let mut made = vec![0.0; PATCHES.min(patches.len()) * patch];
        let pixels: Vec<usize> = (0..PATCHES).map(|pixel| pixel * depth).collect();
        let gradients = gradient.chunks_exact(patches.len() * depth);
        for (wide, gradient) in wide.chunks_exact_mut(image).zip(gradients) {
            let parts = gradient.chunks(PATCHES * depth);
            for (values, places) in parts.zip(patches.chunks(PATCHES)) {
                let made = &mut made[..places.len() * patch];
                let left = Rows {
                    values,
                    starts: &pixels[..places.len()],
                    runs: &[0],
                };
                self.backward.product(left, made);
                for (made, place) in made.chunks_exact(patch).zip(places) {
                    for (made, row) in made.chunks_exact(length).zip(&rows) {
                        let to = &mut wide[place + row..][..length];
                        to.iter_mut().zip(made).for_each(|(to, made)| *to += made);
                    }
                }
            }
        }
        if self.padding == [0, 0] {
            return wide;
        }
        let length = self.input[1] * channels;
        let mut x = Vec::with_capacity(count * self.input[0] * length);
        self.inner_rows(count)
            .for_each(|at| x.extend_from_slice(&wide[at..at + length]));
        x
    }

    /// Where the rows of the input begin among padded images.
    fn inner_rows(&self, count: usize) -> impl Iterator<Item = usize> + use<> {
        let ([height, width], channels) = (self.padded(), self.input[2]);
        let ([top, left], rows) = (self.padding, self.input[0]);
        let of = move |image: usize| {
            (0..rows).map(move |row| ((image * height + top + row) * width + left) * channels)
        };
        (0..count).flat_map(of)
    }
}
