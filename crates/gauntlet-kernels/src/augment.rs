//! Augmentation on the device, from offsets drawn on the host.

use burn::tensor::{Int, Tensor, TensorData};
use rand::RngExt;

use crate::NoiseKey;
use crate::host::{CHEAP, Values, each_row_of, is_host};

/// Zero-pads images by `pad` pixels and crops each back to its size at a random place; mirrors each left to right with
/// probability 1/2 if `flip`. Row `i` depends on `key` and `samples[i]` alone.
///
/// # Shapes
/// `images: [batch, channels, height, width]`, one sample a row; the result is of the same shape.
pub fn crop_flip(
    images: Tensor<4>,
    pad: usize,
    flip: bool,
    key: &NoiseKey,
    samples: &[u32],
) -> Tensor<4> {
    let [batch, channels, height, width] = images.dims();
    assert_eq!(batch, samples.len(), "one sample a row");
    if batch == 0 || (pad == 0 && !flip) {
        return images;
    }
    let device = images.device();
    let offsets = samples.iter().map(|&sample| {
        let mut rng = key.rng(sample);
        let top = rng.random_range(0..=2 * pad);
        let left = rng.random_range(0..=2 * pad);
        (top, left, flip && rng.random::<bool>())
    });
    #[cfg(feature = "cube")]
    if crate::cube::takes(&[&images]) {
        let offsets = offsets.flat_map(|(top, left, mirrored)| [top, left, mirrored.into()]);
        let offsets: Vec<i32> = offsets.map(|offset| offset as i32).collect();
        let offsets = Tensor::from_data(TensorData::new(offsets, [batch, 3]), &device);
        return crate::cube::crop(images, offsets, pad);
    }
    if is_host(&device) {
        let offsets: Vec<_> = offsets.collect();
        let source = Values::from(images);
        let source = &*source;
        let dims = [batch, channels, height, width];
        let mut crops = vec![0.0; source.len()];
        each_row_of(CHEAP, &mut crops, dims, |image, crop| {
            let (top, left, mirrored) = offsets[image];
            // What of a row does not lie beside the image.
            let first = pad.saturating_sub(left);
            let end = (width + pad).saturating_sub(left).min(width);
            for (row, crop) in crop.chunks_mut(width).enumerate() {
                let (channel, y) = (row / height, top + row % height);
                if (pad..pad + height).contains(&y) && first < end {
                    let start = ((image * channels + channel) * height + y - pad) * width;
                    let from = start + left + first - pad;
                    crop[first..end].copy_from_slice(&source[from..from + end - first]);
                }
                if mirrored {
                    crop.reverse();
                }
            }
        });
        return Tensor::from_data(TensorData::new(crops, dims), &device);
    }
    let padded_width = width + 2 * pad;
    let mut indices = Vec::with_capacity(batch * height * width);
    for (top, left, mirrored) in offsets {
        for row in 0..height {
            let start = (top + row) * padded_width + left;
            for column in 0..width {
                let column = if mirrored { width - 1 - column } else { column };
                indices.push((start + column) as i32);
            }
        }
    }
    let indices = Tensor::<3, Int>::from_data(
        TensorData::new(indices, [batch, 1, height * width]),
        &device,
    );
    let padded = if pad == 0 {
        images
    } else {
        images.pad((pad, pad, pad, pad), 0.0)
    };
    padded
        .reshape([batch, channels, (height + 2 * pad) * padded_width])
        .gather(2, indices.repeat_dim(1, channels))
        .reshape([batch, channels, height, width])
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::Stream;

    fn images(batch: usize, channels: usize, height: usize, width: usize) -> Tensor<4> {
        let values: Vec<f32> = (0..batch * channels * height * width)
            .map(|i| 1.0 + i as f32)
            .collect();
        Tensor::from_data(
            TensorData::new(values, [batch, channels, height, width]),
            &Device::flex(),
        )
    }

    fn values(x: Tensor<4>) -> Vec<f32> {
        x.try_into_vec_as().unwrap()
    }

    /// Every crop of one image, mirrored or not, pixel by pixel.
    fn all_crops(image: &[f32], dims: [usize; 3], pad: usize, flip: bool) -> Vec<Vec<f32>> {
        let [channels, height, width] = dims;
        let at = |c: usize, y: isize, x: isize| {
            let inside = (0..height as isize).contains(&y) && (0..width as isize).contains(&x);
            if inside {
                image[(c * height + y as usize) * width + x as usize]
            } else {
                0.0
            }
        };
        let mut crops = Vec::new();
        for top in 0..=2 * pad {
            for left in 0..=2 * pad {
                for mirrored in if flip { vec![false, true] } else { vec![false] } {
                    let mut crop = Vec::new();
                    for c in 0..channels {
                        for y in 0..height {
                            for x in 0..width {
                                let x = if mirrored { width - 1 - x } else { x };
                                crop.push(at(
                                    c,
                                    (top + y) as isize - pad as isize,
                                    (left + x) as isize - pad as isize,
                                ));
                            }
                        }
                    }
                    crops.push(crop);
                }
            }
        }
        crops
    }

    /// Row by row on the host, and gathered, as tensors of an autodiff device are.
    #[test]
    fn rows_and_tensors_give_the_same_crops() {
        let samples: Vec<u32> = (0..50).collect();
        let key = NoiseKey::new(2, Stream::Augment);
        for (channels, height, width, pad, flip) in
            [(1, 3, 5, 1, true), (3, 4, 4, 2, false), (2, 3, 2, 4, true)]
        {
            let x = images(samples.len(), channels, height, width);
            let rows = crop_flip(x.clone(), pad, flip, &key, &samples);
            let gathered = crop_flip(x.autodiff(), pad, flip, &key, &samples);
            assert_eq!(values(rows), values(gathered.inner()));
        }
    }

    #[test]
    fn every_row_is_one_of_the_possible_crops_and_all_occur() {
        for (channels, height, width, pad, flip) in
            [(1, 3, 5, 1, true), (3, 4, 4, 2, false), (2, 3, 3, 0, true)]
        {
            let batch = 400;
            let original = images(1, channels, height, width);
            let crops = all_crops(
                &values(original.clone()),
                [channels, height, width],
                pad,
                flip,
            );
            let samples: Vec<u32> = (0..batch as u32).collect();
            let key = NoiseKey::new(1, Stream::Augment);
            let augmented = crop_flip(original.repeat_dim(0, batch), pad, flip, &key, &samples);
            let mut seen = vec![0; crops.len()];
            for row in values(augmented).chunks(channels * height * width) {
                let which = crops
                    .iter()
                    .position(|crop| crop == row)
                    .expect("a row that is no crop");
                seen[which] += 1;
            }
            assert!(seen.iter().all(|&n| n > 0), "{seen:?}");
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_batch_mates() {
        let key = NoiseKey::new(1, Stream::Augment).at(2, 9);
        let both = images(2, 1, 5, 4);
        let second = both.clone().slice([1..2]);
        let all = values(crop_flip(both, 2, true, &key, &[10, 77]));
        assert_eq!(all[20..], values(crop_flip(second, 2, true, &key, &[77])));
    }
}
