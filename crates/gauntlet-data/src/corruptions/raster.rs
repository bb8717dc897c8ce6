//! Filters and interpolation on planes of pixels.

/// One image: planes `[channels, height, width]`, values in [0, 1].
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Raster {
    pub(super) values: Vec<f32>,
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

impl Raster {
    pub(super) fn new(values: &[f32], [channels, height, width]: [usize; 3]) -> Self {
        debug_assert_eq!(values.len(), channels * height * width);
        Self {
            values: values.to_vec(),
            channels,
            height,
            width,
        }
    }

    /// Pixels of a plane.
    pub(super) fn area(&self) -> usize {
        self.height * self.width
    }

    pub(super) fn planes(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks(self.area())
    }

    /// The same with each plane replaced.
    pub(super) fn map_planes(&self, change: impl FnMut(&[f32]) -> Vec<f32>) -> Self {
        let values: Vec<f32> = self.planes().flat_map(change).collect();
        Self { values, ..*self }
    }

    /// Brightness of each pixel as BT.601 has it; of images that are not of three channels, their mean.
    pub(super) fn luma(&self) -> Vec<f32> {
        let area = self.area();
        let at = |channel: usize, pixel: usize| self.values[channel * area + pixel];
        (0..area)
            .map(|pixel| match self.channels {
                3 => luma([at(0, pixel), at(1, pixel), at(2, pixel)]),
                channels => (0..channels).map(|c| at(c, pixel)).sum::<f32>() / channels as f32,
            })
            .collect()
    }

    /// What `colour` is in `channel` of this image: its brightness, unless there are three channels.
    pub(super) fn tint(&self, colour: [f32; 3], channel: usize) -> f32 {
        if self.channels == 3 {
            colour[channel]
        } else {
            luma(colour)
        }
    }
}

/// Brightness of a colour, ITU-R BT.601.
pub(super) fn luma([red, green, blue]: [f32; 3]) -> f32 {
    0.299 * red + 0.587 * green + 0.114 * blue
}

/// What lies beyond the edge of `abcd`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Border {
    /// `aaa|abcd|ddd`
    Nearest,
    /// `cba|abcd|dcb`
    Reflect,
    /// `dcb|abcd|cba`
    Mirror,
}

impl Border {
    /// The index below `length` that stands for `index`.
    pub(super) fn index(self, index: isize, length: usize) -> usize {
        let n = length as isize;
        if (0..n).contains(&index) {
            return index as usize;
        }
        let folded = match self {
            Self::Nearest => index.clamp(0, n - 1),
            Self::Reflect => {
                let at = index.rem_euclid(2 * n);
                at.min(2 * n - 1 - at)
            }
            Self::Mirror if n == 1 => 0,
            Self::Mirror => {
                let at = index.rem_euclid(2 * n - 2);
                at.min(2 * n - 2 - at)
            }
        };
        folded as usize
    }
}

/// Weights of a normal distribution at whole numbers from `-radius` to `radius`; they sum to one.
pub(super) fn gaussian_weights(sigma: f32, radius: usize) -> Vec<f32> {
    let weights: Vec<f64> = (0..=2 * radius)
        .map(|i| {
            let distance = i as f64 - radius as f64;
            (-distance * distance / (2.0 * f64::from(sigma).powi(2))).exp()
        })
        .collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| (w / total) as f32).collect()
}

/// A plane blurred by a Gaussian that is cut off after `truncate` standard deviations.
pub(super) fn gaussian(
    plane: &[f32],
    width: usize,
    sigma: f32,
    truncate: f32,
    border: Border,
) -> Vec<f32> {
    let radius = (truncate * sigma + 0.5) as usize;
    if radius == 0 {
        return plane.to_vec();
    }
    let weights = gaussian_weights(sigma, radius);
    let height = plane.len() / width;
    let mut across = Vec::with_capacity(plane.len());
    let mut padded = vec![0.0; width + 2 * radius];
    for row in plane.chunks(width) {
        for (i, value) in padded.iter_mut().enumerate() {
            *value = row[border.index(i as isize - radius as isize, width)];
        }
        across.extend(
            padded
                .windows(weights.len())
                .map(|window| dot(window, &weights)),
        );
    }
    let mut out = vec![0.0; plane.len()];
    for (y, row) in out.chunks_mut(width).enumerate() {
        for (i, &weight) in weights.iter().enumerate() {
            let from = border.index((y + i) as isize - radius as isize, height) * width;
            for (value, source) in row.iter_mut().zip(&across[from..from + width]) {
                *value += weight * source;
            }
        }
    }
    out
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A plane correlated with weights at offsets `(dx, dy)`.
pub(super) fn correlate(
    plane: &[f32],
    width: usize,
    taps: &[(isize, isize, f32)],
    border: Border,
) -> Vec<f32> {
    let height = plane.len() / width;
    let mut out = vec![0.0; plane.len()];
    for &(dx, dy, weight) in taps {
        for y in 0..height {
            let from = border.index(y as isize + dy, height) * width;
            let source = &plane[from..from + width];
            let row = &mut out[y * width..(y + 1) * width];
            // Columns whose source lies inside, as slices; the others one by one.
            let first = (-dx).clamp(0, width as isize) as usize;
            let end = (width as isize - dx).clamp(first as isize, width as isize) as usize;
            if first < end {
                let inside = &source[(first as isize + dx) as usize..][..end - first];
                for (value, source) in row[first..end].iter_mut().zip(inside) {
                    *value += weight * source;
                }
            }
            for x in (0..first).chain(end..width) {
                row[x] += weight * source[border.index(x as isize + dx, width)];
            }
        }
    }
    out
}

/// A plane between its pixels, linear in both directions.
pub(super) fn bilinear(plane: &[f32], width: usize, y: f32, x: f32, border: Border) -> f32 {
    let height = plane.len() / width;
    let (top, left) = (y.floor(), x.floor());
    let (down, right) = (y - top, x - left);
    let at = |dy: isize, dx: isize| {
        let row = border.index(top as isize + dy, height);
        plane[row * width + border.index(left as isize + dx, width)]
    };
    let upper = at(0, 0) + (at(0, 1) - at(0, 0)) * right;
    let lower = at(1, 0) + (at(1, 1) - at(1, 0)) * right;
    upper + (lower - upper) * down
}

/// The middle of a plane, enlarged by `factor` to the size of the whole: `ceil(n / factor)` pixels are stretched linearly, end
/// to end, over `round(factor * ceil(n / factor))`, of which the middle `n` are kept.
pub(super) fn zoom(plane: &[f32], width: usize, factor: f64) -> Vec<f32> {
    let height = plane.len() / width;
    let axis = |length: usize| -> Vec<(usize, usize, f32)> {
        let inside = (length as f64 / factor).ceil() as usize;
        let first = (length - inside) / 2;
        let stretched = ((inside as f64 * factor).round_ties_even() as usize).max(length);
        let trim = (stretched - length) / 2;
        let ratio = inside.saturating_sub(1) as f64 / (stretched.max(2) - 1) as f64;
        (trim..trim + length)
            .map(|i| {
                let place = i as f64 * ratio;
                let left = (place as usize).min(inside - 1);
                let right = (left + 1).min(inside - 1);
                (first + left, first + right, (place - left as f64) as f32)
            })
            .collect()
    };
    let (rows, columns) = (axis(height), axis(width));
    let mut out = Vec::with_capacity(plane.len());
    for &(top, bottom, down) in &rows {
        for &(left, right, along) in &columns {
            let mix = |row: usize| {
                let (a, b) = (plane[row * width + left], plane[row * width + right]);
                a + (b - a) * along
            };
            let (upper, lower) = (mix(top), mix(bottom));
            out.push(upper + (lower - upper) * down);
        }
    }
    out
}

/// Weights of a motion blur: half a Gaussian along `angle` (degrees), one tap a pixel of its length, as ImageMagick has it.
pub(super) fn motion(radius: f32, sigma: f32, angle: f32) -> Vec<(isize, isize, f32)> {
    let length = 2 * radius.ceil() as usize + 1;
    let weights: Vec<f64> = (0..length)
        .map(|i| (-((i * i) as f64) / (2.0 * f64::from(sigma).powi(2))).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    let (sin, cos) = f64::from(angle).to_radians().sin_cos();
    let step = |i: usize, share: f64| (i as f64 * share - 0.5).ceil() as isize;
    let taps = weights.iter().enumerate();
    taps.map(|(i, weight)| (step(i, cos), step(i, sin), (weight / total) as f32))
        .collect()
}

/// Values as 8 bits have them, rounded towards zero: what the published code does to intermediate images.
pub(super) fn truncated(value: f32) -> f32 {
    (value.clamp(0.0, 1.0) * 255.0).floor() / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders_continue_the_line_as_their_docs_draw_it() {
        let line = ['a', 'b', 'c', 'd'];
        let text = |border: Border| {
            (-3..7)
                .map(|i| line[border.index(i, 4)])
                .collect::<String>()
        };
        assert_eq!(text(Border::Nearest), "aaaabcdddd");
        assert_eq!(text(Border::Reflect), "cbaabcddcb");
        assert_eq!(text(Border::Mirror), "dcbabcdcba");
        for border in [Border::Nearest, Border::Reflect, Border::Mirror] {
            assert!((-9..9).all(|i| border.index(i, 1) == 0 && border.index(i, 2) < 2));
        }
    }

    #[test]
    fn filters_keep_a_constant_plane() {
        let plane = vec![0.37; 7 * 5];
        let same = |out: Vec<f32>| out.iter().all(|v| (v - 0.37).abs() < 1e-6);
        for border in [Border::Nearest, Border::Reflect, Border::Mirror] {
            assert!(same(gaussian(&plane, 5, 1.3, 4.0, border)));
            assert!(same(correlate(&plane, 5, &motion(9.0, 2.5, -37.0), border)));
        }
        assert!(
            [1.0, 1.04, 1.3, 4.5]
                .into_iter()
                .all(|factor| same(zoom(&plane, 5, factor)))
        );
    }

    #[test]
    fn weights_sum_to_one_and_have_the_spread_they_should() {
        for sigma in [0.4, 1.0, 2.5] {
            let radius = (4.0 * sigma + 0.5) as usize;
            let weights = gaussian_weights(sigma, radius);
            let total: f32 = weights.iter().sum();
            assert!((total - 1.0).abs() < 1e-6);
            let spread: f32 = (0..weights.len())
                .map(|i| weights[i] * (i as f32 - radius as f32).powi(2))
                .sum();
            if sigma >= 1.0 {
                assert!((spread.sqrt() / sigma - 1.0).abs() < 0.01, "{spread}");
            }
        }
        for (radius, sigma) in [(6.0, 1.0), (9.0, 2.5), (20.0, 15.0)] {
            let total: f32 = motion(radius, sigma, 23.0).iter().map(|tap| tap.2).sum();
            assert!((total - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn correlation_takes_what_lies_at_the_offset() {
        let plane: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let right = correlate(&plane, 4, &[(1, 0, 1.0)], Border::Nearest);
        assert_eq!(right[..4], [1.0, 2.0, 3.0, 3.0]);
        let far = correlate(&plane, 4, &[(-9, 1, 1.0)], Border::Nearest);
        assert_eq!(far[..4], [4.0; 4]);
        assert_eq!(bilinear(&plane, 4, 0.5, 1.25, Border::Mirror), 3.25);
    }
}
