//! Tensors as pictures people can look at.

use std::io::Cursor;

use burn::tensor::{Device, Tensor, TensorData};
use font8x8::UnicodeFonts;
use gauntlet_kernels::{NoiseKey, Stream};
use image::imageops::{self, FilterType};
use image::{ImageFormat, Rgb};

use crate::corruptions::{Corruption, Severity, corrupt};

pub use image::RgbImage;

/// One row of a sample grid: an image before and after the attack, with what the model said.
#[derive(Clone, Debug)]
pub struct Example {
    /// Name of the true class.
    pub label: String,
    /// Predicted class of the clean image.
    pub clean: String,
    /// Predicted class of the adversarial image.
    pub adversarial: String,
}

const WHITE: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([40, 40, 40]);
const RIGHT: Rgb<u8> = Rgb([0, 110, 60]);
const WRONG: Rgb<u8> = Rgb([190, 20, 30]);

/// Side of an enlarged image, at least.
const CELL: u32 = 96;
const GAP: u32 = 8;
/// Side of a letter.
const LETTER: u32 = 8;
const LINE: u32 = LETTER + 6;

/// A picture with one row per sample: clean | perturbation, amplified to full range around grey | adversarial, each
/// enlarged to a readable size, with label and predictions written beside it where `examples` has them. RGB, ready to save as PNG.
///
/// # Shapes
/// `clean` and `adversarial`: `[n, channels, height, width]` with 1 or 3 channels, values in [0, 1]; `examples`: `n`, or none.
pub fn grid(clean: Tensor<4>, adversarial: Tensor<4>, examples: &[Example]) -> RgbImage {
    let dims = clean.dims();
    let scale = CELL.div_ceil(dims[2].max(dims[3]).max(1) as u32);
    let (cell_width, cell_height) = (dims[3] as u32 * scale, dims[2] as u32 * scale);
    let texts: Vec<[(String, Rgb<u8>); 3]> = examples.iter().map(lines).collect();
    let longest = texts
        .iter()
        .flatten()
        .map(|(text, _)| text.chars().count())
        .max()
        .unwrap_or(0) as u32;
    let row_height = cell_height.max(3 * LINE) + GAP;
    let header = LINE + GAP;
    let beside = if longest > 0 {
        longest * LETTER + GAP
    } else {
        0
    };
    let width = GAP + 3 * (cell_width + GAP) + beside;
    let mut picture = RgbImage::from_pixel(width, header + row_height * dims[0] as u32, WHITE);
    for (column, title) in ["clean", "change", "attacked"].into_iter().enumerate() {
        write(
            &mut picture,
            GAP + column as u32 * (cell_width + GAP),
            GAP / 2,
            title,
            INK,
        );
    }

    let size: usize = dims[1..].iter().product();
    let (clean, adversarial) = (host(clean), host(adversarial));
    for row in 0..dims[0] {
        let pixels = |values: &[f32]| values[row * size..(row + 1) * size].to_vec();
        let (before, after) = (pixels(&clean), pixels(&adversarial));
        let change: Vec<f32> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
        let largest = change
            .iter()
            .fold(0f32, |most, v| most.max(v.abs()))
            .max(1e-12);
        let amplified = change.iter().map(|v| 0.5 + 0.5 * v / largest).collect();
        let top = header + row as u32 * row_height;
        for (column, values) in [before, amplified, after].into_iter().enumerate() {
            let cell = enlarged(&values, [dims[1], dims[2], dims[3]], scale);
            imageops::replace(
                &mut picture,
                &cell,
                i64::from(GAP + column as u32 * (cell_width + GAP)),
                i64::from(top),
            );
        }
        for (line, (text, colour)) in texts.get(row).into_iter().flatten().enumerate() {
            let left = GAP + 3 * (cell_width + GAP);
            write(&mut picture, left, top + line as u32 * LINE, text, *colour);
        }
    }
    picture
}

/// Images side by side, `columns` in a row, each enlarged to a readable size.
///
/// # Shapes
/// `images: [n, channels, height, width]` with 1 or 3 channels, values in [0, 1].
pub fn contact_sheet(images: Tensor<4>, columns: usize) -> RgbImage {
    let [count, channels, height, width] = images.dims();
    let columns = columns.clamp(1, count.max(1));
    let scale = (CELL / 2).div_ceil(height.max(width).max(1) as u32);
    let (cell_width, cell_height) = (width as u32 * scale + 2, height as u32 * scale + 2);
    let rows = count.div_ceil(columns) as u32;
    let mut picture = RgbImage::from_pixel(columns as u32 * cell_width, rows * cell_height, WHITE);
    for (i, values) in host(images).chunks(channels * height * width).enumerate() {
        let cell = enlarged(values, [channels, height, width], scale);
        let (x, y) = (
            (i % columns) as u32 * cell_width,
            (i / columns) as u32 * cell_height,
        );
        imageops::replace(&mut picture, &cell, i64::from(x + 1), i64::from(y + 1));
    }
    picture
}

/// One image as a batch: `pixels` are `shape = [channels, height, width]`, flat.
///
/// # Panics
/// If there are not as many as the shape says.
pub fn image(pixels: Vec<f32>, shape: [usize; 3], device: &Device) -> Tensor<4> {
    let [channels, height, width] = shape;
    Tensor::from_data(
        TensorData::new(pixels, [1, channels, height, width]),
        device,
    )
}

/// One image in its own size as a PNG file, grey or in colour; values are rounded to 8 bits.
///
/// # Panics
/// If `pixels` are not `shape = [channels, height, width]`, flat.
pub fn png(pixels: &[f32], shape: [usize; 3]) -> Vec<u8> {
    let [channels, ..] = shape;
    let image = enlarged(pixels, shape, 1);
    if channels == 1 {
        let mut bytes = Cursor::new(Vec::new());
        imageops::grayscale(&image)
            .write_to(&mut bytes, ImageFormat::Png)
            .expect("memory takes any picture");
        bytes.into_inner()
    } else {
        png_bytes(&image)
    }
}

/// What common corruptions do to one image: a row for each family (name, the image as it is, severities 1 to 5).
///
/// # Shapes
/// `image`: `[channels, height, width] = shape` with 1 or 3 channels, values in [0, 1].
///
/// # Panics
/// If `image` is not of that size.
pub fn corruptions(
    image: &[f32],
    shape: [usize; 3],
    families: &[Corruption],
    seed: u64,
    sample: u32,
) -> RgbImage {
    let key = NoiseKey::new(seed, Stream::Corruption);
    let longest = families.iter().map(|family| family.name().len()).max();
    let left = GAP + longest.unwrap_or(0) as u32 * LETTER + GAP;
    let scale = (CELL / 2).div_ceil(shape[1].max(shape[2]).max(1) as u32);
    let (cell_width, cell_height) = (shape[2] as u32 * scale + 2, shape[1] as u32 * scale + 2);
    let columns = 1 + Severity::ALL.len() as u32;
    let header = LINE + GAP;
    let (width, height) = (
        left + columns * cell_width + GAP,
        header + families.len() as u32 * cell_height + GAP,
    );
    let mut picture = RgbImage::from_pixel(width, height, WHITE);
    let column = |i: usize| left + i as u32 * cell_width;
    write(&mut picture, column(0), GAP / 2, "clean", INK);
    for severity in Severity::ALL {
        let at = column(usize::from(severity.number()));
        write(&mut picture, at, GAP / 2, &severity.to_string(), INK);
    }
    for (row, &family) in families.iter().enumerate() {
        let top = header + row as u32 * cell_height;
        let middle = top + cell_height.saturating_sub(LETTER) / 2;
        write(&mut picture, GAP, middle, family.name(), INK);
        let corrupted =
            Severity::ALL.map(|severity| corrupt(image, shape, family, severity, key, &[sample]));
        for (i, values) in std::iter::once(image)
            .chain(corrupted.iter().map(Vec::as_slice))
            .enumerate()
        {
            let cell = enlarged(values, shape, scale);
            imageops::replace(&mut picture, &cell, i64::from(column(i)), i64::from(top));
        }
    }
    picture
}

/// The picture as a PNG file.
pub fn png_bytes(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, ImageFormat::Png)
        .expect("memory takes any picture");
    bytes.into_inner()
}

fn lines(example: &Example) -> [(String, Rgb<u8>); 3] {
    let judged = |said: &String| if *said == example.label { RIGHT } else { WRONG };
    [
        (format!("is       {}", example.label), INK),
        (
            format!("clean    {}", example.clean),
            judged(&example.clean),
        ),
        (
            format!("attacked {}", example.adversarial),
            judged(&example.adversarial),
        ),
    ]
}

fn host(images: Tensor<4>) -> Vec<f32> {
    images
        .try_into_vec_as()
        .expect("a float tensor that was computed")
}

fn enlarged(values: &[f32], [channels, height, width]: [usize; 3], scale: u32) -> RgbImage {
    let byte = |value: f32| (value.clamp(0.0, 1.0) * 255.0).round() as u8;
    let image = RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let at = |channel: usize| {
            byte(values[(channel.min(channels - 1) * height + y as usize) * width + x as usize])
        };
        Rgb([at(0), at(1), at(2)])
    });
    imageops::resize(
        &image,
        width as u32 * scale,
        height as u32 * scale,
        FilterType::Nearest,
    )
}

fn write(picture: &mut RgbImage, left: u32, top: u32, text: &str, colour: Rgb<u8>) {
    for (i, letter) in text.chars().enumerate() {
        let glyph = font8x8::BASIC_FONTS
            .get(letter)
            .or_else(|| font8x8::BASIC_FONTS.get('?'))
            .unwrap_or_default();
        for (y, bits) in glyph.iter().enumerate() {
            for x in (0..8).filter(|x| bits >> x & 1 == 1) {
                let (x, y) = (left + i as u32 * LETTER + x, top + y as u32);
                if x < picture.width() && y < picture.height() {
                    picture.put_pixel(x, y, colour);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(adversarial: &str) -> Example {
        Example {
            label: "cat".to_owned(),
            clean: "cat".to_owned(),
            adversarial: adversarial.to_owned(),
        }
    }

    #[test]
    fn cells_hold_the_clean_image_the_amplified_change_and_the_attacked_image() {
        let device = Device::flex();
        let clean = Tensor::<4>::from_floats([[[[0.0, 1.0], [0.5, 0.5]]]], &device);
        let adversarial = Tensor::<4>::from_floats([[[[0.1, 0.9], [0.5, 0.5]]]], &device);
        let picture = grid(clean.clone(), adversarial.clone(), &[example("dog")]);
        let top = LINE + GAP;
        let cell = |column: u32, x: u32, y: u32| {
            picture
                .get_pixel(GAP + column * (CELL + GAP) + x * 48 + 24, top + y * 48 + 24)
                .0
        };
        assert_eq!(
            [cell(0, 0, 0), cell(0, 1, 0), cell(0, 0, 1)],
            [[0; 3], [255; 3], [128; 3]]
        );
        // +0.1, -0.1 and 0 as the full range around grey.
        assert_eq!(
            [cell(1, 0, 0), cell(1, 1, 0), cell(1, 0, 1)],
            [[255; 3], [0; 3], [128; 3]]
        );
        assert_eq!([cell(2, 0, 0), cell(2, 1, 0)], [[26; 3], [230; 3]]);
        let has =
            |picture: &RgbImage, colour: Rgb<u8>| picture.pixels().any(|pixel| *pixel == colour);
        assert!(has(&picture, RIGHT) && has(&picture, WRONG));
        // Without texts the same cells, and nothing beside them.
        let bare = grid(clean, adversarial, &[]);
        assert_eq!(
            bare.dimensions(),
            (GAP + 3 * (CELL + GAP), picture.height())
        );
        assert!(!has(&bare, RIGHT) && !has(&bare, WRONG));
        let (x, y) = (GAP + 2 * (CELL + GAP) + 24, top + 24);
        assert_eq!(bare.get_pixel(x, y), picture.get_pixel(x, y));
    }

    #[test]
    fn a_right_answer_is_never_red_and_an_unchanged_image_is_grey() {
        let device = Device::flex();
        let image = Tensor::<4>::full([2, 3, 4, 5], 0.25, &device);
        let picture = grid(image.clone(), image, &[example("cat"), example("cat")]);
        assert!(!picture.pixels().any(|pixel| *pixel == WRONG));
        assert_eq!(
            picture.get_pixel(GAP + 100 + GAP + 10, LINE + GAP + 10).0,
            [128; 3]
        );
    }

    #[test]
    fn corruptions_are_shown_by_family_and_severity() {
        let families = [Corruption::Contrast, Corruption::Brightness];
        let picture = corruptions(&[0.2; 64], [1, 8, 8], &families, 0, 0);
        let left = GAP + 10 * LETTER + GAP;
        let pixel = |column: u32, row: u32| {
            let (x, y) = (left + column * 50 + 20, LINE + GAP + row * 50 + 20);
            picture.get_pixel(x, y).0[0]
        };
        let row = |row: u32| std::array::from_fn::<u8, 6, _>(|column| pixel(column as u32, row));
        assert_eq!(row(0), [51; 6]);
        // 255 (0.2 + 0.05, 0.1, 0.15, 0.2, 0.3)
        assert_eq!(row(1), [51, 64, 77, 89, 102, 128]);
    }

    #[test]
    fn colours_keep_their_channels_and_png_files_read_back() {
        let device = Device::flex();
        let red = Tensor::<4>::from_floats([[[[1.0]], [[0.0]], [[0.0]]]], &device);
        let sheet = contact_sheet(red.repeat_dim(0, 3), 2);
        assert_eq!(sheet.dimensions(), (100, 100));
        assert_eq!(sheet.get_pixel(20, 20).0, [255, 0, 0]);
        assert_eq!(
            sheet.get_pixel(80, 80).0,
            [255; 3],
            "the fourth place is empty"
        );
        let back = image::load_from_memory(&png_bytes(&sheet))
            .unwrap()
            .into_rgb8();
        assert_eq!(back, sheet);
    }
}
