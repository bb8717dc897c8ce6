//! Data sets as NumPy arrays (`.npy`, `.npz`), and attacked examples written as such.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use gauntlet_formats::npy::{self, Array, Kind};
use gauntlet_formats::{FormatError, zip};

use crate::dataset::hash;
use crate::decode::Part;
use crate::{DataError, Dataset, files};

/// In which order an array of images has its dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[n, channels, height, width]`, PyTorch's.
    Nchw,
    /// `[n, height, width, channels]`, TensorFlow's and matplotlib's.
    Nhwc,
}

/// How far from a multiple of 1/255 a float may be, in units of 1/255.
const TOLERANCE: f64 = 1e-3;

/// Loads a test set: images and labels from two `.npy` files, or both from a `.npz`. See [`load_as`]; the layout is found from
/// the one dimension that is 1 or 3.
///
/// # Errors
/// As [`load_as`].
pub fn load(images: &Path, labels: Option<&Path>, classes: usize) -> Result<Dataset, DataError> {
    load_as(images, labels, classes, None)
}

/// Loads a test set: images and labels from two `.npy` files, or both from a `.npz`, where they are called `x` and `y`, `images` and
/// `labels` (or `image` and `label`), `x_test` and `y_test`, or are the only arrays of images and of labels.
///
/// Images are `uint8`, or floats in [0, 1] that are multiples of 1/255, as pictures are: a [`Dataset`] keeps bytes, and nothing is
/// rounded. Labels are whole numbers below `classes`.
///
/// # Shapes
/// Images `[n, channels, height, width]`, `[n, height, width, channels]` or, of one channel, `[n, height, width]`; labels `[n]` or
/// `[n, 1]`.
///
/// # Errors
/// [`DataError::File`] naming the array, and the first sample that cannot be.
pub fn load_as(
    images: &Path,
    labels: Option<&Path>,
    classes: usize,
    layout: Option<Layout>,
) -> Result<Dataset, DataError> {
    let name = images
        .file_stem()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let (x, y) = match labels {
        Some(labels) => (read_npy(images)?, (read_npy(labels)?, labels)),
        None => {
            let (x, y) = read_npz(images).map_err(|error| wrong(images, error))?;
            (x, (y, images))
        }
    };
    let (pixels, shape, count) = pixels(&x, layout).map_err(|problem| wrong(images, problem))?;
    drop(x);
    let (y, place) = y;
    let labels = whole_labels(&y, count, classes).map_err(|problem| wrong(place, problem))?;
    let part = Part {
        pixels: Arc::new(pixels),
        labels: Arc::new(labels),
    };
    Ok(Dataset {
        name,
        split: "test",
        max: 255,
        shape,
        ids: Arc::new((0..count as u32).collect()),
        classes: Arc::new((0..classes).map(|class| class.to_string()).collect()),
        sha256: hash(&part),
        pixels: part.pixels,
        labels: part.labels,
    })
}

fn wrong(path: &Path, problem: impl ToString) -> DataError {
    DataError::File {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

fn read_npy(path: &Path) -> Result<Array, DataError> {
    let read = || {
        let mut file = File::open(path)?;
        let mut start = [0; 4];
        let is_npz = file.read_exact(&mut start).is_ok() && start == *b"PK\x03\x04";
        if is_npz {
            return Err(FormatError::Unsupported(
                "an archive of arrays\n\nhint: a .npz has images and labels; give it alone"
                    .to_owned(),
            ));
        }
        file.seek(SeekFrom::Start(0))?;
        Array::read(BufReader::new(file))
    };
    read().map_err(|error| wrong(path, error))
}

/// The images and the labels of an archive.
fn read_npz(path: &Path) -> Result<(Array, Array), FormatError> {
    let mut file = File::open(path)?;
    let mut start = [0; 6];
    if file.read_exact(&mut start).is_ok() && start == *b"\x93NUMPY" {
        return Err(FormatError::Unsupported(
            "a single array\n\nhint: give the file of the labels too".to_owned(),
        ));
    }
    if !start.starts_with(b"PK\x03\x04") {
        return Err(FormatError::Unsupported(
            "not NumPy arrays (.npz or .npy)".to_owned(),
        ));
    }
    let mut archive = zip::Archive::open(BufReader::new(file))?;
    let entries: BTreeMap<String, zip::Entry> = archive
        .entries()
        .iter()
        .filter_map(|entry| Some((entry.name.strip_suffix(".npy")?.to_owned(), entry.clone())))
        .collect();
    // Only what is used is kept: others may be large.
    let mut read = |name: &str| {
        let bytes = archive.read(&entries[name], npy::MAX_ARRAY)?;
        Array::read(bytes.as_slice())
            .map_err(|error| FormatError::Unsupported(format!("`{name}`: {error}")))
    };
    for (x, y) in [
        ("x", "y"),
        ("images", "labels"),
        ("image", "label"),
        ("x_test", "y_test"),
    ] {
        if entries.contains_key(x) && entries.contains_key(y) {
            return Ok((read(x)?, read(y)?));
        }
    }
    let names = || {
        entries
            .keys()
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let (mut images, mut labels) = (Vec::new(), Vec::new());
    for name in entries.keys() {
        let array = read(name)?;
        match array.shape.len() {
            3 | 4 => images.push(array),
            1 => labels.push(array),
            _ => {}
        }
    }
    match (images.len(), labels.len()) {
        (1, 1) => Ok((images.remove(0), labels.remove(0))),
        _ => Err(FormatError::Unsupported(format!(
            "it is not plain which arrays are images and labels; there are {}\n\nhint: call them `x` and `y`",
            names()
        ))),
    }
}

/// Bytes as a data set has them, the shape of an image, and how many there are.
fn pixels(array: &Array, layout: Option<Layout>) -> Result<(Vec<u8>, [usize; 3], usize), String> {
    let strides = array.strides();
    let is_colour = |size: usize| matches!(size, 1 | 3);
    let ([count, channels, height, width], strides) = match (array.shape.as_slice(), layout) {
        (&[n, h, w], _) => ([n, 1, h, w], [strides[0], 0, strides[1], strides[2]]),
        (&[n, a, b, c], layout) => {
            let layout = match (layout, is_colour(a), is_colour(c)) {
                (Some(layout), ..) => layout,
                (None, true, false) => Layout::Nchw,
                (None, false, true) => Layout::Nhwc,
                (None, true, true) => return Err(ambiguous(&array.shape)),
                (None, false, false) => {
                    return Err(format!(
                        "shape {:?} has neither 1 nor 3 channels, first or last of an image",
                        array.shape
                    ));
                }
            };
            match layout {
                Layout::Nchw => (
                    [n, a, b, c],
                    [strides[0], strides[1], strides[2], strides[3]],
                ),
                Layout::Nhwc => (
                    [n, c, a, b],
                    [strides[0], strides[3], strides[1], strides[2]],
                ),
            }
        }
        _ => return Err(format!("shape {:?} is not that of images", array.shape)),
    };
    if [count, channels, height, width].contains(&0) {
        return Err(format!("shape {:?} has no images", array.shape));
    }
    if u32::try_from(count).is_err() {
        return Err(format!("{count} images are more than fit a data set"));
    }
    if matches!(
        (array.kind, array.size),
        (Kind::Signed, _) | (Kind::Unsigned, 2..)
    ) {
        return Err(
            "images are `uint8`, or floats in [0, 1]; these are other whole numbers".to_owned(),
        );
    }
    let mut pixels = Vec::with_capacity(array.len());
    for sample in 0..count {
        for channel in 0..channels {
            for row in 0..height {
                for column in 0..width {
                    let at = [sample, channel, row, column];
                    let place = at.iter().zip(&strides).map(|(i, stride)| i * stride).sum();
                    let value = array.float(place);
                    pixels.push(match array.kind {
                        Kind::Float => {
                            byte(value).map_err(|problem| format!("image {sample}: {problem}"))?
                        }
                        _ => value as u8,
                    });
                }
            }
        }
    }
    Ok((pixels, [channels, height, width], count))
}

fn ambiguous(shape: &[usize]) -> String {
    format!(
        "shape {shape:?} could be [n, channels, height, width] or [n, height, width, channels]: say which"
    )
}

/// The byte that a float in [0, 1] stands for.
fn byte(value: f64) -> Result<u8, String> {
    let scaled = value * 255.0;
    let near = scaled.round();
    let shown = value as f32;
    if !(-TOLERANCE..=255.0 + TOLERANCE).contains(&scaled) {
        let hint = if (0.0..=255.0).contains(&value) && value.fract() == 0.0 {
            "\n\nhint: divide by 255, or save bytes as `uint8`"
        } else {
            "\n\nhint: undo the normalisation; a model's own goes with the model"
        };
        return Err(format!("{shown} is not in [0, 1]{hint}"));
    }
    if (scaled - near).abs() > TOLERANCE {
        return Err(format!(
            "{shown} is not a multiple of 1/255, as the pixels of pictures are; data sets here are bytes\n\n\
             hint: `np.round(x * 255).astype(np.uint8)`, where rounding is harmless"
        ));
    }
    Ok(near as u8)
}

fn whole_labels(array: &Array, count: usize, classes: usize) -> Result<Vec<u32>, String> {
    let found = match array.shape[..] {
        [n] | [n, 1] => n,
        _ => {
            return Err(format!(
                "shape {:?} is not that of labels, [n]",
                array.shape
            ));
        }
    };
    if found != count {
        return Err(format!("{found} labels for {count} images"));
    }
    let label = |i: usize| match array.whole(i) {
        Some(label) if (0..classes as i64).contains(&label) => Ok(label as u32),
        _ => Err(format!(
            "label {i} is {}, not a class from 0 to {}",
            array.float(i),
            classes.saturating_sub(1)
        )),
    };
    (0..count).map(label).collect()
}

/// Attacked examples on the host, to be written for other tools.
#[derive(Clone, Copy, Debug)]
pub struct Examples<'a> {
    /// Channels, height and width of each.
    pub shape: [usize; 3],
    /// Images after the attack, in [0, 1], row-major `[n, channels, height, width]`.
    pub attacked: &'a [f32],
    /// The images before, likewise.
    pub clean: &'a [f32],
    /// True class of each.
    pub labels: &'a [i64],
    /// Which sample of its data set each is.
    pub index: &'a [i64],
}

/// Writes examples to a `.npz`, whole or not at all: `x` (attacked) and `clean` as `float32` `[n, channels, height, width]`, `y` and
/// `index` as `int64` `[n]`. Equal examples make equal files.
///
/// # Errors
/// [`DataError::File`] if the file cannot be written, or the numbers of values do not agree.
pub fn write_npz(path: &Path, examples: &Examples<'_>) -> Result<(), DataError> {
    let count = examples.labels.len();
    let [channels, height, width] = examples.shape;
    let values = count * channels * height * width;
    if examples.index.len() != count
        || [examples.attacked, examples.clean]
            .iter()
            .any(|x| x.len() != values)
    {
        let problem = format!(
            "{count} labels, {} indices, {} and {} pixels of images of {:?} do not belong together",
            examples.index.len(),
            examples.attacked.len(),
            examples.clean.len(),
            examples.shape
        );
        return Err(wrong(path, problem));
    }
    let write = || {
        let mut file = files::beside(path)?;
        let mut archive = zip::Writer::new(BufWriter::new(file.as_file_mut()));
        let image = npy::header("<f4", &[count, channels, height, width]);
        let number = npy::header("<i8", &[count]);
        let floats = |values: &[f32]| -> Vec<u8> {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        };
        let numbers = |values: &[i64]| -> Vec<u8> {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        };
        archive.add("x.npy", &[&image, &floats(examples.attacked)])?;
        archive.add("y.npy", &[&number, &numbers(examples.labels)])?;
        archive.add("clean.npy", &[&image, &floats(examples.clean)])?;
        archive.add("index.npy", &[&number, &numbers(examples.index)])?;
        archive.finish()?.flush()?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok::<_, std::io::Error>(())
    };
    write().map_err(|error| wrong(path, error))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(name)
    }

    /// A `.npy` file of little-endian values.
    fn write<const N: usize>(
        path: &Path,
        descr: &str,
        shape: &[usize],
        values: impl Iterator<Item = [u8; N]>,
    ) {
        let mut bytes = npy::header(descr, shape);
        bytes.extend(values.flatten());
        std::fs::write(path, bytes).unwrap();
    }

    fn floats(path: &Path, shape: &[usize], values: &[f32]) {
        write(
            path,
            "<f4",
            shape,
            values.iter().map(|value| value.to_le_bytes()),
        );
    }

    /// The same two pictures in each file, as `scripts/golden/formats.py` had NumPy write them.
    #[test]
    fn arrays_of_every_layout_and_type_are_one_data_set() {
        let labels = golden("labels.npy");
        let expected: Vec<u8> = (0..2)
            .flat_map(|n| {
                (0..3).flat_map(move |c| (0..20).map(move |p| (60 * n + 3 * p + c) as u8))
            })
            .collect();
        for (file, labels) in [
            ("nhwc-u1.npy", Some(labels.as_path())),
            ("nchw-f4.npz", None),
            ("fortran-f8.npz", None),
        ] {
            let data = load(&golden(file), labels, 3).unwrap();
            assert_eq!(data.shape, [3, 4, 5], "{file}");
            assert_eq!(*data.pixels, expected, "{file}");
            assert_eq!(*data.labels, [2, 0]);
            assert_eq!((data.max, data.split, data.len()), (255, "test", 2));
            assert_eq!(*data.classes, ["0", "1", "2"]);
        }
        let hashes = ["nchw-f4.npz", "fortran-f8.npz"]
            .map(|file| load(&golden(file), None, 3).unwrap().sha256);
        assert_eq!(hashes[0], hashes[1]);
    }

    #[test]
    fn what_is_no_data_set_is_refused_with_the_sample() {
        let folder = tempfile::tempdir().unwrap();
        let (x, y) = (folder.path().join("x.npy"), folder.path().join("y.npy"));
        let problem = |x: &Path, y: Option<&Path>| load(x, y, 3).unwrap_err().to_string();
        write(
            &y,
            "<i8",
            &[2],
            [1_i64, 2].into_iter().map(i64::to_le_bytes),
        );
        let images = |shape: &[usize], at: usize, value: f32| {
            let mut values = vec![0.2; shape.iter().product()];
            values[at] = value;
            floats(&x, shape, &values);
            problem(&x, Some(&y))
        };
        let shape = [2, 1, 4, 4];
        assert!(images(&shape, 20, 0.5).contains("image 1: 0.5 is not a multiple"));
        assert!(images(&shape, 3, 1.01).contains("image 0: 1.01"));
        assert!(images(&shape, 3, -0.3).contains("normalisation"));
        assert!(images(&shape, 3, 255.0).contains("divide by 255"));
        assert!(images(&shape, 3, f32::NAN).contains("NaN"));
        assert!(images(&[2, 3, 4, 3], 0, 0.2).contains("say which"));
        assert!(images(&[2, 2, 4, 4], 0, 0.2).contains("channels"));
        assert!(images(&[2, 16], 0, 0.2).contains("images"));
        assert!(images(&[3, 1, 4, 4], 0, 0.2).contains("2 labels for 3 images"));
        floats(&x, &[2, 3, 4, 3], &[0.2; 72]);
        let shape = |layout| load_as(&x, Some(&y), 3, Some(layout)).unwrap().shape;
        assert_eq!(
            (shape(Layout::Nchw), shape(Layout::Nhwc)),
            ([3, 4, 3], [3, 3, 4])
        );

        floats(&x, &[2, 4, 4], &[0.2; 32]);
        assert_eq!(load(&x, Some(&y), 3).unwrap().shape, [1, 4, 4]);
        for label in [3_i64, -1] {
            write(
                &y,
                "<i8",
                &[2],
                [0, label].into_iter().map(i64::to_le_bytes),
            );
            assert!(problem(&x, Some(&y)).contains(&format!("label 1 is {label}")));
        }
        floats(&y, &[2], &[1.0, 0.5]);
        assert!(problem(&x, Some(&y)).contains("label 1 is 0.5"));
        write(&x, "<i4", &[2, 4, 4], (0..32_i32).map(i32::to_le_bytes));
        assert!(problem(&x, Some(&y)).contains("uint8"));
        assert!(problem(&x, None).contains("labels too"));
        assert!(problem(&golden("nchw-f4.npz"), Some(&y)).contains("alone"));
        std::fs::write(&x, b"neither").unwrap();
        assert!(problem(&x, None).contains("not NumPy arrays"));
        assert!(problem(&folder.path().join("absent.npz"), None).contains("absent.npz"));
        let whole = std::fs::read(golden("nchw-f4.npz")).unwrap();
        for end in (0..whole.len()).step_by(31) {
            std::fs::write(&x, &whole[..end]).unwrap();
            problem(&x, None);
        }
    }

    #[test]
    fn examples_are_written_whole_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("examples.npz");
        let attacked: Vec<f32> = (0..2 * 3 * 4 * 5).map(|i| i as f32 / 255.0).collect();
        let clean = vec![0.0; attacked.len()];
        let examples = Examples {
            shape: [3, 4, 5],
            attacked: &attacked,
            clean: &clean,
            labels: &[2, 0],
            index: &[17, 4],
        };
        write_npz(&path, &examples).unwrap();
        let first = std::fs::read(&path).unwrap();
        write_npz(&path, &examples).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let data = load(&path, None, 3).unwrap();
        assert_eq!(*data.pixels, Vec::from_iter(0..120));
        assert_eq!(*data.labels, [2, 0]);
        let mut archive = zip::Archive::open(File::open(&path).unwrap()).unwrap();
        let index = archive.find("index.npy").unwrap();
        let index = Array::read(archive.read(&index, 1 << 20).unwrap().as_slice()).unwrap();
        assert_eq!([index.whole(0), index.whole(1)], [Some(17), Some(4)]);
        let short = Examples {
            index: &[17],
            ..examples
        };
        assert!(
            write_npz(&path, &short)
                .unwrap_err()
                .to_string()
                .contains("belong together")
        );
        assert_eq!(std::fs::read(&path).unwrap(), first);
    }
}
