//! PNG and JPEG files in one folder a class.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gauntlet_kernels::{NoiseKey, Stream};
use image::imageops::FilterType;
use image::{DynamicImage, ImageReader};

use crate::decode::Part;
use crate::{DataConfig, DataError, shuffle};

pub(crate) struct Images {
    pub(crate) train: Part,
    pub(crate) test: Part,
    pub(crate) shape: [usize; 3],
    pub(crate) classes: Vec<String>,
}

/// Reads `PATH/train/CLASS/*` and `PATH/test/CLASS/*`; without a `test` folder, a tenth of the pictures, chosen by seed, is
/// the test set. Pictures are grey if every one is, else all are read as colour.
pub(crate) fn load(config: &DataConfig, seed: u64) -> Result<Images, DataError> {
    let Some(root) = &config.path else {
        let problem = "`image-folder` needs the folder with `train/CLASS/*.png`".to_owned();
        return Err(DataError::Config {
            key: "path",
            problem,
        });
    };
    let folder = root.join("train");
    let classes = subfolders(&folder)?;
    if classes.len() < 2 {
        let problem = format!(
            "{} classes: one folder for each of at least two is needed",
            classes.len()
        );
        return Err(DataError::File {
            path: folder,
            problem,
        });
    }
    let mut train = pictures(&folder, &classes)?;
    let test_folder = root.join("test");
    let test = if test_folder.is_dir() {
        for name in subfolders(&test_folder)? {
            if !classes.contains(&name) {
                let problem = "a class that `train` does not have".to_owned();
                return Err(DataError::File {
                    path: test_folder.join(name),
                    problem,
                });
            }
        }
        pictures(&test_folder, &classes)?
    } else {
        // Restart 1: the validation split draws under restart 0.
        let key = NoiseKey::new(seed, Stream::Split).restart(1);
        shuffle::shuffle(&mut train, &mut key.rng(0));
        let mut test = train.split_off(train.len() - train.len() / 10);
        train.sort_unstable();
        test.sort_unstable();
        test
    };
    let open = |files: Vec<(PathBuf, u32)>| {
        let opened = files
            .into_iter()
            .map(|(path, class)| Ok((read(&path)?, class)));
        opened.collect::<Result<Vec<_>, DataError>>()
    };
    let (train, test) = (open(train)?, open(test)?);
    let first = &train.first().expect("every class has a picture").0;
    let [height, width] = config
        .size
        .unwrap_or([first.height() as usize, first.width() as usize]);
    let grey = train
        .iter()
        .chain(&test)
        .all(|(image, _)| !image.color().has_color());
    let shape = [if grey { 1 } else { 3 }, height, width];
    Ok(Images {
        train: part(&train, shape),
        test: part(&test, shape),
        shape,
        classes,
    })
}

/// Reads `PATH/test/CLASS/*` alone, where there is no `train` folder beside it.
pub(crate) fn load_test(config: &DataConfig, root: &Path) -> Result<Images, DataError> {
    let folder = root.join("test");
    let classes = subfolders(&folder)?;
    let pictures = pictures(&folder, &classes)?.into_iter();
    let test = pictures.map(|(path, class)| Ok((read(&path)?, class)));
    let test = test.collect::<Result<Vec<_>, DataError>>()?;
    let Some((first, _)) = test.first() else {
        return Err(DataError::File {
            path: folder,
            problem: "there is no class in it".to_owned(),
        });
    };
    let [height, width] = config
        .size
        .unwrap_or([first.height() as usize, first.width() as usize]);
    let grey = test.iter().all(|(image, _)| !image.color().has_color());
    let shape = [if grey { 1 } else { 3 }, height, width];
    Ok(Images {
        train: part(&[], shape),
        test: part(&test, shape),
        shape,
        classes,
    })
}

fn subfolders(folder: &Path) -> Result<Vec<String>, DataError> {
    let mut names: Vec<String> = entries(folder)?
        .into_iter()
        .filter(|path| path.is_dir())
        .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

fn pictures(folder: &Path, classes: &[String]) -> Result<Vec<(PathBuf, u32)>, DataError> {
    let mut found = Vec::new();
    for (class, name) in classes.iter().enumerate() {
        let folder = folder.join(name);
        if !folder.is_dir() {
            continue;
        }
        let entries = entries(&folder)?.into_iter();
        let mut files: Vec<_> = entries.filter(|path| is_picture(path)).collect();
        if files.is_empty() {
            return Err(DataError::File {
                path: folder,
                problem: "holds no .png, .jpg or .jpeg".to_owned(),
            });
        }
        files.sort();
        found.extend(files.into_iter().map(|path| (path, class as u32)));
    }
    Ok(found)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let wrong = |error: std::io::Error| {
        let problem = format!(
            "{error}\n\nhint: pictures lie in `train/CLASS/` and, optionally, `test/CLASS/`"
        );
        DataError::File {
            path: folder.to_owned(),
            problem,
        }
    };
    fs::read_dir(folder)
        .map_err(wrong)?
        .map(|entry| entry.map(|entry| entry.path()).map_err(wrong))
        .collect()
}

fn read(path: &Path) -> Result<DynamicImage, DataError> {
    let wrong = |problem: String| DataError::File {
        path: path.to_owned(),
        problem,
    };
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
    reader
        .map_err(|error| wrong(error.to_string()))?
        .decode()
        .map_err(|error| wrong(error.to_string()))
}

/// What is done with a picture of another size than is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resize {
    /// It is stretched to the size with a triangle filter, as pictures of a data set are.
    #[default]
    Stretch,
    /// It is scaled until its shorter side fits, with the same filter, and its middle is taken.
    Crop,
    /// It is refused.
    Refuse,
}

/// One PNG or JPEG file as bytes `[channels, height, width]` of `shape`, and the height and width that it had. Grey pictures have one
/// channel, all others three; transparency is dropped.
///
/// # Errors
/// [`DataError::File`] if it cannot be decoded, or has another size where that is to be refused.
pub fn picture(
    path: &Path,
    shape: [usize; 3],
    resize: Resize,
) -> Result<(Vec<u8>, [usize; 2]), DataError> {
    let image = read(path)?;
    let [_, height, width] = shape;
    let size = [image.height() as usize, image.width() as usize];
    let image = match resize {
        _ if size == [height, width] => image,
        Resize::Stretch => image,
        Resize::Crop => image.resize_to_fill(width as u32, height as u32, FilterType::Triangle),
        Resize::Refuse => {
            return Err(DataError::File {
                path: path.to_owned(),
                problem: format!("is {} x {}, not {height} x {width}", size[0], size[1]),
            });
        }
    };
    let mut pixels = Vec::new();
    planes(&image, shape, &mut pixels);
    Ok((pixels, size))
}

/// PNG and JPEG files below `folder`, at any depth, sorted.
///
/// # Errors
/// [`DataError::File`] if a folder cannot be read.
pub fn pictures_below(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let wrong = |error: std::io::Error| DataError::File {
            path: folder.clone(),
            problem: error.to_string(),
        };
        for entry in fs::read_dir(&folder).map_err(wrong)? {
            let entry = entry.map_err(wrong)?;
            let path = entry.path();
            // Links to folders are not followed: they may lead back.
            if entry.file_type().map_err(wrong)?.is_dir() {
                folders.push(path);
            } else if is_picture(&path) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn is_picture(path: &Path) -> bool {
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .map(str::to_lowercase);
    matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg"))
}

/// Appends an image, stretched to the size of `shape` if it has another.
fn planes(image: &DynamicImage, [channels, height, width]: [usize; 3], pixels: &mut Vec<u8>) {
    let fits = (image.height() as usize, image.width() as usize) == (height, width);
    let sized = if fits {
        image.clone()
    } else {
        image.resize_exact(width as u32, height as u32, FilterType::Triangle)
    };
    if channels == 1 {
        pixels.extend(sized.into_luma8().into_raw());
    } else {
        let rgb = sized.into_rgb8().into_raw();
        // From pixel after pixel to plane after plane.
        pixels.extend((0..3).flat_map(|channel| rgb.iter().skip(channel).step_by(3)));
    }
}

fn part(images: &[(DynamicImage, u32)], shape: [usize; 3]) -> Part {
    let mut pixels = Vec::with_capacity(images.len() * shape.iter().product::<usize>());
    for (image, _) in images {
        planes(image, shape, &mut pixels);
    }
    Part {
        pixels: Arc::new(pixels),
        labels: Arc::new(images.iter().map(|(_, class)| *class).collect()),
    }
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma, Rgb, RgbImage};

    use super::*;
    use crate::{Source, load};

    fn config(path: &Path) -> DataConfig {
        DataConfig {
            source: Source::ImageFolder,
            path: Some(path.to_owned()),
            size: None,
            validation: 0,
            limit: None,
            batch_size: 1,
            augment: Vec::new(),
            extra: None,
        }
    }

    fn folders(root: &Path) {
        for class in ["train/cat", "train/dog", "test/dog"] {
            fs::create_dir_all(root.join(class)).unwrap();
        }
    }

    #[test]
    fn a_picture_of_another_size_is_stretched_cropped_or_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        let path = root.path().join("a/b/wide.PNG");
        // Left half black, right half white: 2 x 8.
        let wide = GrayImage::from_fn(8, 2, |x, _| Luma([if x < 4 { 0 } else { 255 }]));
        wide.save_with_format(&path, image::ImageFormat::Png)
            .unwrap();
        fs::write(root.path().join("notes.txt"), "").unwrap();
        assert_eq!(
            pictures_below(root.path()).unwrap(),
            std::slice::from_ref(&path)
        );
        let (same, size) = picture(&path, [1, 2, 8], Resize::Refuse).unwrap();
        assert_eq!((same, size), (wide.into_raw(), [2, 8]));
        let (colour, _) = picture(&path, [3, 2, 8], Resize::Refuse).unwrap();
        assert_eq!(colour.len(), 48);
        let refused = picture(&path, [1, 2, 2], Resize::Refuse).unwrap_err();
        assert!(
            refused.to_string().contains("2 x 8, not 2 x 2"),
            "{refused}"
        );
        let (stretched, _) = picture(&path, [1, 2, 2], Resize::Stretch).unwrap();
        let (cropped, size) = picture(&path, [1, 2, 2], Resize::Crop).unwrap();
        assert_eq!((cropped, size), (vec![0, 255, 0, 255], [2, 8]));
        assert_eq!(stretched.len(), 4);
        fs::write(&path, "no picture").unwrap();
        assert!(picture(&path, [1, 2, 2], Resize::Stretch).is_err());
    }

    #[test]
    fn grey_and_colour_pictures_become_planes_of_one_size() {
        let root = tempfile::tempdir().unwrap();
        folders(root.path());
        let at = |name: &str| root.path().join(name);
        RgbImage::from_fn(2, 1, |x, _| Rgb([x as u8, 10 + x as u8, 20 + x as u8]))
            .save(at("train/cat/b.png"))
            .unwrap();
        GrayImage::from_pixel(4, 2, Luma([7]))
            .save(at("train/dog/a.PNG"))
            .unwrap();
        GrayImage::from_pixel(2, 1, Luma([9]))
            .save(at("test/dog/c.png"))
            .unwrap();
        fs::write(at("train/cat/notes.txt"), "no picture").unwrap();
        let splits = load(&config(root.path()), Path::new(""), 0).unwrap();
        assert_eq!(splits.train.shape, [3, 1, 2]);
        assert_eq!(*splits.train.classes, ["cat", "dog"]);
        assert_eq!(*splits.train.labels, [0, 1]);
        assert_eq!(
            *splits.train.pixels,
            [0, 1, 10, 11, 20, 21, 7, 7, 7, 7, 7, 7]
        );
        assert_eq!(*splits.test.pixels, [9; 6]);
        assert_eq!(*splits.test.labels, [1]);
    }

    #[test]
    fn a_test_folder_can_stand_alone_where_nothing_is_trained() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("test/dog");
        fs::create_dir_all(&folder).unwrap();
        GrayImage::from_pixel(2, 1, Luma([9]))
            .save(folder.join("c.png"))
            .unwrap();
        let config = config(root.path());
        let test = crate::load_test(&config, Path::new(""), 0).unwrap();
        assert_eq!((test.shape, test.len()), ([1, 1, 2], 1));
        assert_eq!((&*test.pixels, &*test.labels), (&vec![9, 9], &vec![0]));
        assert_eq!(*test.classes, ["dog"]);
        assert!(load(&config, Path::new(""), 0).is_err());
        fs::remove_dir_all(folder).unwrap();
        assert!(crate::load_test(&config, Path::new(""), 0).is_err());
    }

    #[test]
    fn without_a_test_folder_a_tenth_is_held_out_by_seed() {
        let root = tempfile::tempdir().unwrap();
        for (class, value) in [("a", 0), ("b", 100)] {
            let folder = root.path().join("train").join(class);
            fs::create_dir_all(&folder).unwrap();
            for i in 0..20 {
                GrayImage::from_pixel(1, 1, Luma([value + i]))
                    .save(folder.join(format!("{i:02}.png")))
                    .unwrap();
            }
        }
        let tests = |seed| {
            load(&config(root.path()), Path::new(""), seed)
                .unwrap()
                .test
                .pixels
        };
        assert_eq!(tests(0).len(), 4);
        assert_eq!(tests(0), tests(0));
        assert!((1..5).any(|seed| tests(seed) != tests(0)));
    }

    #[test]
    fn bad_pictures_are_named() {
        let root = tempfile::tempdir().unwrap();
        folders(root.path());
        GrayImage::new(1, 1)
            .save(root.path().join("train/cat/a.png"))
            .unwrap();
        fs::write(root.path().join("train/dog/broken.png"), b"\x89PNG no").unwrap();
        fs::remove_dir(root.path().join("test/dog")).unwrap();
        let error = load(&config(root.path()), Path::new(""), 0)
            .unwrap_err()
            .to_string();
        assert!(error.contains("broken.png"), "{error}");
        let error = load(&config(&root.path().join("train")), Path::new(""), 0)
            .unwrap_err()
            .to_string();
        assert!(error.contains("train/CLASS"), "{error}");
    }
}
