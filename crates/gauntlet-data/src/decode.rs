//! File formats of the known data sets, from bytes to pixels and labels.

use std::io::Read;
use std::sync::Arc;

use flate2::read::GzDecoder;

/// Images of one part of a data set, as bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    /// `[n, channels, height, width]`
    pub(crate) pixels: Arc<Vec<u8>>,
    pub(crate) labels: Arc<Vec<u32>>,
}

/// The embedded digits: all of them, in the order of the file.
pub(crate) fn digits() -> Part {
    let mut text = String::new();
    let file = include_bytes!("../data/digits.csv.gz");
    GzDecoder::new(&file[..])
        .read_to_string(&mut text)
        .expect("the embedded file is whole");
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut values: Vec<u8> = line
            .split(',')
            .map(|value| value.parse().expect("a number"))
            .collect();
        labels.push(u32::from(values.pop().expect("64 pixels and a class")));
        pixels.extend(values);
    }
    Part {
        pixels: Arc::new(pixels),
        labels: Arc::new(labels),
    }
}

/// Images of an IDX file (magic 0x0803): count, height, width, bytes.
pub(crate) fn idx_images(bytes: &[u8], shape: [usize; 3]) -> Result<Vec<u8>, String> {
    let [count, height, width] = idx_header::<3>(bytes, 0x0803)?;
    if [1, height, width] != shape {
        return Err(format!(
            "images of {height}x{width}, not {}x{}",
            shape[1], shape[2]
        ));
    }
    exactly(bytes, 16, count * height * width)
}

/// Labels of an IDX file (magic 0x0801), checked to be below `classes`.
pub(crate) fn idx_labels(bytes: &[u8], classes: usize) -> Result<Vec<u32>, String> {
    let [count] = idx_header::<1>(bytes, 0x0801)?;
    let labels = exactly(bytes, 8, count)?;
    labels
        .into_iter()
        .enumerate()
        .map(|(i, label)| checked(i, label, classes))
        .collect()
}

/// Records of a CIFAR binary file: `label_bytes` (the last one counts), then 3x32x32 pixels.
pub(crate) fn cifar(
    bytes: &[u8],
    label_bytes: usize,
    classes: usize,
) -> Result<(Vec<u8>, Vec<u32>), String> {
    let record = label_bytes + 3 * 32 * 32;
    if bytes.is_empty() || !bytes.len().is_multiple_of(record) {
        return Err(format!(
            "{} bytes are no whole number of records of {record}",
            bytes.len()
        ));
    }
    let (mut pixels, mut labels) = (Vec::with_capacity(bytes.len()), Vec::new());
    for (i, record) in bytes.chunks(record).enumerate() {
        labels.push(checked(i, record[label_bytes - 1], classes)?);
        pixels.extend_from_slice(&record[label_bytes..]);
    }
    Ok((pixels, labels))
}

fn checked(sample: usize, label: u8, classes: usize) -> Result<u32, String> {
    let fits = usize::from(label) < classes;
    fits.then_some(u32::from(label))
        .ok_or_else(|| format!("sample {sample}: class {label}, but there are {classes}"))
}

fn idx_header<const D: usize>(bytes: &[u8], magic: u32) -> Result<[usize; D], String> {
    let word = |i: usize| {
        bytes
            .get(4 * i..4 * i + 4)
            .map(|word| u32::from_be_bytes(word.try_into().expect("four bytes")))
    };
    match word(0) {
        Some(found) if found == magic => {}
        Some(found) => {
            return Err(format!(
                "no IDX file of this kind: it begins with {found:#010x}, not {magic:#010x}"
            ));
        }
        None => return Err("too short for an IDX file".to_owned()),
    }
    let mut sizes = [0; D];
    for (i, size) in sizes.iter_mut().enumerate() {
        *size = word(i + 1).ok_or("too short for an IDX file")? as usize;
    }
    Ok(sizes)
}

fn exactly(bytes: &[u8], header: usize, count: usize) -> Result<Vec<u8>, String> {
    let body = bytes.get(header..).unwrap_or_default();
    if body.len() != count {
        return Err(format!(
            "{} bytes after the header, which announces {count}",
            body.len()
        ));
    }
    Ok(body.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_the_published_ones() {
        let digits = digits();
        assert_eq!(digits.labels.len(), 1797);
        assert_eq!(digits.pixels.len(), 1797 * 64);
        let counts: Vec<_> = (0..10)
            .map(|class| {
                digits
                    .labels
                    .iter()
                    .filter(|&&label| label == class)
                    .count()
            })
            .collect();
        // As the data set's description states them.
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
        assert_eq!(
            digits.pixels[..16],
            [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0]
        );
        assert_eq!(*digits.pixels.iter().max().unwrap(), 16);
    }

    #[test]
    fn idx_files_are_read_and_bad_ones_refused() {
        let images = [
            &[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3][..],
            &[1, 2, 3, 4, 5, 6],
        ]
        .concat();
        assert_eq!(idx_images(&images, [1, 1, 3]).unwrap(), [1, 2, 3, 4, 5, 6]);
        assert!(idx_images(&images, [1, 3, 1]).unwrap_err().contains("1x3"));
        assert!(
            idx_images(&images[..20], [1, 1, 3])
                .unwrap_err()
                .contains("announces 6")
        );
        assert!(idx_images(&images[..7], [1, 1, 3]).is_err());
        assert!(idx_images(&[], [1, 1, 3]).is_err());
        let labels = [0, 0, 8, 1, 0, 0, 0, 3, 7, 0, 9];
        assert_eq!(idx_labels(&labels, 10).unwrap(), [7, 0, 9]);
        assert!(idx_labels(&labels, 9).unwrap_err().contains("sample 2"));
        assert!(idx_labels(&images, 10).is_err(), "images are no labels");
    }

    #[test]
    fn cifar_records_are_label_then_planes() {
        let mut bytes = vec![3];
        bytes.extend((0..3072).map(|i| (i % 251) as u8));
        let (pixels, labels) = cifar(&bytes, 1, 10).unwrap();
        assert_eq!(labels, [3]);
        assert_eq!(pixels, bytes[1..]);
        assert!(cifar(&bytes[..3000], 1, 10).is_err());
        assert!(cifar(&bytes, 1, 3).unwrap_err().contains("sample 0"));
        // CIFAR-100 has a coarse label before the fine one.
        bytes.insert(0, 19);
        assert_eq!(cifar(&bytes, 2, 100).unwrap().1, [3]);
    }
}
