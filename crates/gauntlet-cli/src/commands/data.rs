use std::path::{Path, PathBuf};

use gauntlet_data::corruptions::Corruption;
use gauntlet_data::picture::{self, RgbImage};
use gauntlet_data::{DataConfig, DataError, Dataset, Source, Splits, fetch};
use serde_json::json;

use crate::args::Data;
use crate::config::nearest;
use crate::failure::Failure;
use crate::output::{print, print_json, say, table, thousands};
use crate::progress::Counter;

/// The data sets that have a name: all but the user's own folders.
fn named() -> impl Iterator<Item = Source> {
    Source::ALL
        .into_iter()
        .filter(|source| *source != Source::ImageFolder)
}

/// Lists, fetches and shows data sets.
pub(crate) fn data(command: Data, quiet: bool) -> Result<(), Failure> {
    match command {
        Data::List { json } => list(json.json),
        Data::Fetch { name, from } => get(&name, from.as_deref(), quiet),
        Data::Show {
            name,
            png,
            corruption,
            json,
        } => {
            let families = match corruption {
                Some(name) => Some(families(&name)?),
                None => None,
            };
            show(&name, png, families, json.json)
        }
    }
}

fn source(name: &str) -> Result<Source, Failure> {
    let names: Vec<_> = named().map(Source::name).collect();
    named().find(|source| source.name() == name).ok_or_else(|| {
        let hint = match nearest(name, &names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are {}", names.join(", ")),
        };
        Failure::request(format!("`{name}` is no data set\n\nhint: {hint}"))
    })
}

/// What a run loads with only the source named.
fn plain(source: Source, path: Option<PathBuf>) -> DataConfig {
    DataConfig {
        source,
        path,
        size: None,
        validation: 0,
        limit: None,
        batch_size: 1,
        augment: Vec::new(),
        extra: None,
    }
}

fn list(json: bool) -> Result<(), Failure> {
    let root = fetch::default_root();
    let state = |source: Source| {
        if present(source, &root) {
            "here"
        } else {
            "not here"
        }
    };
    if json {
        let row = |source: Source| {
            let info = source.info();
            json!({
                "name": source.name(),
                "summary": info.summary,
                "here": present(source, &root),
                "shape": info.shape,
                "examples": info.examples,
                "classes": source.classes(),
                "licence": info.licence,
                "citation": info.citation,
            })
        };
        let rows: Vec<_> = named().map(row).collect();
        print_json(&json!({ "schema": 1, "root": root, "data": rows }));
        return Ok(());
    }
    let mut table = table(&[
        "data set",
        "what it is",
        ">training",
        ">test",
        ">classes",
        "licence",
        "state",
    ]);
    for source in named() {
        let info = source.info();
        let [train, test] = info
            .examples
            .unwrap_or_default()
            .map(|count| thousands(count as u64));
        table.add_row([
            source.name(),
            info.summary,
            &train,
            &test,
            &source.classes().len().to_string(),
            info.licence,
            state(source),
        ]);
    }
    print(table.trim_fmt());
    say(format!(
        "in {}; `gauntlet data fetch NAME` gets one",
        root.display()
    ));
    Ok(())
}

/// Whether the files of a data set are there, fetched or from a system package; loading verifies them.
fn present(source: Source, root: &Path) -> bool {
    let info = source.info();
    let folder = root.join(source.name());
    let installed = info
        .installed
        .is_some_and(|folder| Path::new(folder).is_dir());
    installed
        || info
            .files
            .iter()
            .all(|file| folder.join(file.name).exists())
}

/// Shows a transfer on the terminal.
struct Transfer {
    quiet: bool,
    file: String,
    counter: Option<Counter>,
}

impl fetch::Progress for Transfer {
    fn start(&mut self, file: &str, bytes: Option<u64>) {
        let template = "{msg} {wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
        file.clone_into(&mut self.file);
        self.counter = Some(Counter::new(file, 0, bytes, template, self.quiet));
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(counter) = &mut self.counter {
            counter.advance(bytes);
        }
    }

    fn finish(&mut self) {
        self.counter = None;
        if !self.quiet {
            say(format!("{}: complete, SHA-256 verified", self.file));
        }
    }
}

fn get(name: &str, from: Option<&Path>, quiet: bool) -> Result<(), Failure> {
    let source = source(name)?;
    if let Some(folder) = from
        && !folder.is_dir()
    {
        return Err(Failure::request(format!(
            "--from {}: no such folder",
            folder.display()
        )));
    }
    let mut transfer = Transfer {
        quiet,
        file: String::new(),
        counter: None,
    };
    let root = fetch::default_root();
    fetch::fetch(source, &root, from, &mut transfer).map_err(|error| match (from, &error) {
        // A download that fails is no fault of the request.
        (None, DataError::File { .. }) => Failure::running(error.to_string()),
        _ => error.into(),
    })?;
    print(format!("{name} is here"));
    Ok(())
}

/// The corruption of this name, or all.
fn families(name: &str) -> Result<Vec<Corruption>, Failure> {
    if name == "all" {
        return Ok(Corruption::ALL.into());
    }
    name.parse().map(|family| vec![family]).map_err(|_| {
        let names = Corruption::ALL.map(Corruption::name);
        let hint = match nearest(name, &names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("`all`, or one of {}", names.join(", ")),
        };
        Failure::request(format!("`{name}` is no corruption\n\nhint: {hint}"))
    })
}

fn show(
    name: &str,
    png: Option<PathBuf>,
    corruptions: Option<Vec<Corruption>>,
    json: bool,
) -> Result<(), Failure> {
    let config = if Path::new(name).is_dir() && source(name).is_err() {
        plain(Source::ImageFolder, Some(name.into()))
    } else {
        plain(source(name)?, None)
    };
    let splits = gauntlet_data::load(&config, &fetch::default_root(), 0)?;
    let counts = [&splits.train, &splits.test].map(Dataset::class_counts);
    if json {
        print_json(&describe(&splits, &counts));
    } else {
        let [channels, height, width] = splits.train.shape;
        print(format!(
            "{}: {} training and {} test images of {channels} x {height} x {width}, {} classes\nSHA-256 {} (training), {} (test)",
            splits.train.name,
            thousands(splits.train.len() as u64),
            thousands(splits.test.len() as u64),
            splits.train.classes.len(),
            splits.train.sha256,
            splits.test.sha256,
        ));
        let mut table = table(&["class", ">training", ">test"]);
        for (class, name) in splits.train.classes.iter().enumerate() {
            let count = |part: usize| thousands(counts[part][class] as u64);
            table.add_row([name.clone(), count(0), count(1)]);
        }
        print(table.trim_fmt());
    }
    if let Some(path) = png {
        let (image, what) = match corruptions {
            Some(families) => (corrupted(&splits.test, &families)?, "corruptions"),
            None => (sheet(&splits.train), "images of each class"),
        };
        image
            .save(&path)
            .map_err(|error| Failure::running(format!("{}: {error}", path.display())))?;
        say(format!("{what} in {}", path.display()));
    }
    Ok(())
}

fn describe(splits: &Splits, counts: &[Vec<usize>; 2]) -> serde_json::Value {
    let part = |set: &Dataset, counts: &[usize]| json!({ "samples": set.len(), "sha256": set.sha256, "per_class": counts });
    json!({
        "schema": 1,
        "name": splits.train.name,
        "shape": splits.train.shape,
        "classes": *splits.train.classes,
        "train": part(&splits.train, &counts[0]),
        "test": part(&splits.test, &counts[1]),
    })
}

/// The first image of a set under corruptions.
fn corrupted(set: &Dataset, families: &[Corruption]) -> Result<RgbImage, Failure> {
    let Some(&id) = set.ids.first() else {
        return Err(Failure::request(format!("{} has no test image", set.name)));
    };
    let size: usize = set.shape.iter().product();
    let pixels = &set.pixels[id as usize * size..][..size];
    let scale = 1.0 / f32::from(set.max.max(1));
    let image: Vec<f32> = pixels.iter().map(|&p| f32::from(p) * scale).collect();
    Ok(picture::corruptions(&image, set.shape, families, 0, id))
}

/// Images across the sheet.
const ACROSS: usize = 10;
/// The sheet shows this many classes at most.
const DOWN: usize = 40;
/// Images are enlarged by whole factors to about this size.
const SIZE: usize = 64;

/// The first images of each class, a row each.
fn sheet(set: &Dataset) -> RgbImage {
    let [channels, height, width] = set.shape;
    let zoom = (SIZE / height.max(width)).max(1);
    let rows = set.classes.len().min(DOWN);
    let (cell_width, cell_height) = (width * zoom + 2, height * zoom + 2);
    let (sheet_width, sheet_height) = (ACROSS * cell_width, rows * cell_height);
    let mut bytes = vec![32u8; sheet_width * sheet_height * 3];
    let mut filled = vec![0; rows];
    for &id in set.ids.iter() {
        let id = id as usize;
        let row = set.labels[id] as usize;
        if row >= rows || filled[row] == ACROSS {
            continue;
        }
        let (left, top) = (filled[row] * cell_width + 1, row * cell_height + 1);
        filled[row] += 1;
        let image = &set.pixels[id * channels * height * width..][..channels * height * width];
        for y in 0..height * zoom {
            for x in 0..width * zoom {
                let at = ((top + y) * sheet_width + left + x) * 3;
                for colour in 0..3 {
                    // One channel is grey; a fourth (alpha) is left out.
                    let channel = if channels < 3 { 0 } else { colour };
                    let value = image[(channel * height + y / zoom) * width + x / zoom];
                    let value = u32::from(value) * 255 / u32::from(set.max.max(1));
                    bytes[at + colour] = value.min(255) as u8;
                }
            }
        }
    }
    RgbImage::from_raw(sheet_width as u32, sheet_height as u32, bytes).expect("three bytes a pixel")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn names_are_known_or_the_nearest_is_told() {
        assert_eq!(source("fashion-mnist").unwrap(), Source::FashionMnist);
        for (wrong, near) in [
            ("fashion_mnist", "`fashion-mnist`"),
            ("cifar-10", "`cifar10`"),
            ("image-folder", "there are"),
        ] {
            let text = source(wrong).unwrap_err().to_string();
            assert!(text.contains(near), "{text}");
        }
    }

    #[test]
    fn corruptions_are_one_or_all_or_the_nearest_is_told() {
        assert_eq!(families("fog").unwrap(), [Corruption::Fog]);
        assert_eq!(families("all").unwrap().len(), 19);
        let text = families("shot-nose").unwrap_err().to_string();
        assert!(text.contains("`shot-noise`"), "{text}");
    }

    #[test]
    fn the_sheet_shows_each_class_in_its_row() {
        let set = Dataset {
            name: "two".to_owned(),
            split: "train",
            pixels: Arc::new(vec![0, 16, 8, 4]),
            max: 16,
            shape: [1, 1, 1],
            labels: Arc::new(vec![1, 0, 1, 0]),
            ids: Arc::new(vec![0, 1, 2]),
            classes: Arc::new(vec!["a".to_owned(), "b".to_owned()]),
            sha256: String::new(),
        };
        let image = sheet(&set);
        let cell = SIZE + 2;
        assert_eq!(
            image.dimensions(),
            ((ACROSS * cell) as u32, (2 * cell) as u32)
        );
        let pixel = |column: usize, row: usize| {
            image
                .get_pixel((column * cell + 5) as u32, (row * cell + 5) as u32)
                .0[0]
        };
        assert_eq!(
            (pixel(0, 0), pixel(0, 1), pixel(1, 1), pixel(1, 0)),
            (255, 0, 127, 32)
        );
    }
}
