/// The largest value of each square of pixels, channel by channel. Squares lie side by side; what is left over at the lower and
/// right edge is not used.
#[derive(Debug)]
pub(super) struct Pool {
    /// Height, width and channels of its input.
    pub(super) input: [usize; 3],
    pub(super) side: usize,
}

impl Pool {
    /// Height and width of its output.
    pub(super) fn size(&self) -> [usize; 2] {
        [self.input[0] / self.side, self.input[1] / self.side]
    }

    /// The largest values, and the place of each in its image: the first of equal ones.
    pub(super) fn forward(&self, x: &[f32], count: usize) -> (Vec<f32>, Vec<u32>) {
        let [height, width] = self.size();
        let [_, across, channels] = self.input;
        let mut y = vec![f32::NEG_INFINITY; count * height * width * channels];
        let mut places = vec![0; y.len()];
        let images = x.chunks_exact(x.len() / count);
        let outputs = y
            .chunks_exact_mut(channels)
            .zip(places.chunks_exact_mut(channels));
        let squares = images.flat_map(|image| {
            (0..height * width)
                .map(move |at| (image, at / width * self.side, at % width * self.side))
        });
        for ((largest, places), (image, top, left)) in outputs.zip(squares) {
            for pixel in 0..self.side * self.side {
                let (row, column) = (top + pixel / self.side, left + pixel % self.side);
                let start = (row * across + column) * channels;
                let values = &image[start..start + channels];
                for (channel, value) in values.iter().enumerate() {
                    // What is no number is larger than all, so that it shows.
                    if pixel == 0 || *value > largest[channel] || value.is_nan() {
                        largest[channel] = *value;
                        places[channel] = (start + channel) as u32;
                    }
                }
            }
        }
        (y, places)
    }

    pub(super) fn backward(&self, gradient: &[f32], places: &[u32], count: usize) -> Vec<f32> {
        let image = self.input.iter().product::<usize>();
        let mut x = vec![0.0; count * image];
        let length = gradient.len() / count;
        let parts = gradient
            .chunks_exact(length)
            .zip(places.chunks_exact(length));
        for (x, (gradient, places)) in x.chunks_exact_mut(image).zip(parts) {
            for (gradient, place) in gradient.iter().zip(places) {
                x[*place as usize] += gradient;
            }
        }
        x
    }
}
