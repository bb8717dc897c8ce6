//! Getting data sets onto this machine.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use lzma_rust2::XzReader;
use sha2::{Digest, Sha256};

use crate::sources::{DataFile, Origin};
use crate::{DataError, Source, download, files};

/// `$GAUNTLET_DATA`, else `gauntlet/data` in the user's cache folder.
pub fn default_root() -> PathBuf {
    if let Some(root) = std::env::var_os("GAUNTLET_DATA").filter(|root| !root.is_empty()) {
        return root.into();
    }
    let cache = directories::BaseDirs::new().map(|dirs| dirs.cache_dir().to_owned());
    cache
        .unwrap_or_else(|| PathBuf::from(".cache"))
        .join("gauntlet")
        .join("data")
}

/// What `fetch` tells while it works. All bytes are of the file being transferred.
pub trait Progress {
    /// A file begins; its size if known.
    fn start(&mut self, file: &str, bytes: Option<u64>);
    /// So many bytes of it are here.
    fn advance(&mut self, bytes: u64);
    /// It is complete and verified.
    fn finish(&mut self);
}

/// A [`Progress`] that says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&mut self, _: &str, _: Option<u64>) {}
    fn advance(&mut self, _: u64) {}
    fn finish(&mut self) {}
}

/// Puts the files of `source` under `root`, verified by SHA-256: from `from` (plain, `.gz` or `.xz`) if given, else from an
/// installed Debian package, else from the official address and its mirrors, resuming a partial download.
/// Nothing half-written is left under its final name.
///
/// # Errors
/// [`DataError`] naming the file; a wrong hash names both.
pub fn fetch(
    source: Source,
    root: &Path,
    from: Option<&Path>,
    progress: &mut dyn Progress,
) -> Result<(), DataError> {
    let info = source.info();
    let folder = root.join(source.name());
    let missing: Vec<&DataFile> = match from {
        Some(_) => info.files.iter().collect(),
        None => info
            .files
            .iter()
            .filter(|file| verify(&folder.join(file.name), file).is_err())
            .collect(),
    };
    if missing.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(&folder).map_err(|error| failed(&folder, error))?;
    let installed = info.installed.map(Path::new).filter(|path| path.is_dir());
    if let Some(local) = from.or(installed) {
        return from_folder(source, &missing, local, &folder, progress);
    }
    match info.origin {
        Origin::Files(mirrors) => {
            for file in missing {
                download::file(mirrors, file, &folder, progress)?;
            }
            Ok(())
        }
        Origin::Archive(name, mirrors) => {
            download::archive(mirrors, name, &missing, &folder, progress)
        }
        Origin::Embedded | Origin::Folder => Ok(()),
    }
}

/// One file of a data set from the cache, else from an installed package; verified.
pub(crate) fn read_verified(
    source: Source,
    file: &DataFile,
    root: &Path,
) -> Result<(PathBuf, Vec<u8>), DataError> {
    let cached = root.join(source.name()).join(file.name);
    let installed = source
        .info()
        .installed
        .and_then(|folder| find(Path::new(folder), file.name));
    let path = if cached.exists() {
        cached
    } else {
        installed.ok_or(DataError::Missing {
            name: source.name(),
            path: cached,
        })?
    };
    let mut bytes = Vec::new();
    open(&path)
        .and_then(|mut reader| reader.read_to_end(&mut bytes))
        .map_err(|error| failed(&path, error))?;
    let found = crate::hex(&Sha256::digest(&bytes));
    if found != file.sha256 {
        let hint = format!(
            "hint: `gauntlet data fetch {}` gets it again",
            source.name()
        );
        return Err(DataError::File {
            problem: format!("{}\n\n{hint}", wrong_hash(&found, file)),
            path,
        });
    }
    Ok((path, bytes))
}

fn verify(path: &Path, file: &DataFile) -> Result<(), String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let found = crate::hex(&Sha256::digest(bytes));
    if found == file.sha256 {
        Ok(())
    } else {
        Err(wrong_hash(&found, file))
    }
}

fn wrong_hash(found: &str, file: &DataFile) -> String {
    format!(
        "damaged or altered: its content has SHA-256\n  {found}, not\n  {}",
        file.sha256
    )
}

/// Takes files from a local folder: as they are, compressed, or inside their archive.
fn from_folder(
    source: Source,
    files: &[&DataFile],
    from: &Path,
    folder: &Path,
    progress: &mut dyn Progress,
) -> Result<(), DataError> {
    if let Origin::Archive(name, _) = source.info().origin {
        let stem = name.trim_end_matches(".gz");
        let archive = [name, stem]
            .into_iter()
            .map(|name| from.join(name))
            .find(|path| path.is_file());
        if let Some(archive) = archive {
            return from_archive(&archive, files, folder, progress);
        }
    }
    // All are found before the first is touched: half a data set helps nobody.
    let found = files.iter().map(|file| {
        find(from, file.name)
            .map(|path| (*file, path))
            .ok_or_else(|| DataError::File {
                path: from.join(file.name),
                problem: "not there, nor with `.gz` or `.xz`".to_owned(),
            })
    });
    for (file, path) in found.collect::<Result<Vec<_>, _>>()? {
        let reader = open(&path).map_err(|error| failed(&path, error))?;
        store(reader, file, &path, folder, progress)?;
    }
    Ok(())
}

/// Takes files out of a `.tar` or `.tar.gz`.
pub(crate) fn from_archive(
    archive: &Path,
    files: &[&DataFile],
    folder: &Path,
    progress: &mut dyn Progress,
) -> Result<(), DataError> {
    let reader = open(archive).map_err(|error| failed(archive, error))?;
    let mut tar = tar::Archive::new(reader);
    let mut left = files.to_vec();
    for entry in tar.entries().map_err(|error| failed(archive, error))? {
        let entry = entry.map_err(|error| failed(archive, error))?;
        let path = entry
            .path()
            .map_err(|error| failed(archive, error))?
            .into_owned();
        if let Some(at) = left
            .iter()
            .position(|file| path.file_name().is_some_and(|name| name == file.name))
        {
            let file = left.remove(at);
            store(entry, file, &archive.join(&path), folder, progress)?;
        }
    }
    match left.first() {
        Some(file) => Err(DataError::File {
            path: archive.to_owned(),
            problem: format!("holds no file `{}`", file.name),
        }),
        None => Ok(()),
    }
}

/// Copies `reader` to its place in `folder`, if its hash is the right one. `path` is what errors name.
pub(crate) fn store(
    mut reader: impl Read,
    file: &DataFile,
    path: &Path,
    folder: &Path,
    progress: &mut dyn Progress,
) -> Result<(), DataError> {
    progress.start(file.name, None);
    let place = folder.join(file.name);
    let mut target = files::beside(&place).map_err(|error| failed(&place, error))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = reader
            .read(&mut buffer)
            .map_err(|error| failed(path, error))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        target
            .write_all(&buffer[..read])
            .map_err(|error| failed(&place, error))?;
        progress.advance(read as u64);
    }
    let found = crate::hex(&hasher.finalize());
    if found != file.sha256 {
        return Err(DataError::File {
            path: path.to_owned(),
            problem: wrong_hash(&found, file),
        });
    }
    let publish = || {
        target.as_file().sync_all()?;
        target.persist(&place).map_err(|error| error.error)?;
        Ok(())
    };
    publish().map_err(|error: io::Error| failed(&place, error))?;
    progress.finish();
    Ok(())
}

/// `name` in `folder` or one folder below, under any of the names it goes by, compressed or not.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    // `train-images-idx3-ubyte` is also distributed as `train-images.idx3-ubyte`.
    let dotted = name.replacen("-idx", ".idx", 1);
    let mut folders = vec![folder.to_owned()];
    let below = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let mut below: Vec<_> = below.filter(|path| path.is_dir()).collect();
    below.sort();
    folders.extend(below);
    let names = [name, &dotted]
        .into_iter()
        .flat_map(|name| ["", ".gz", ".xz"].map(|end| format!("{name}{end}")));
    let names: Vec<_> = names.collect();
    folders
        .iter()
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
        .find(|path| path.is_file())
}

/// Opens a file for reading, decompressed by its extension.
pub(crate) fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    let file = BufReader::with_capacity(1 << 16, File::open(path)?);
    Ok(
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => Box::new(GzDecoder::new(file)),
            Some("xz") => Box::new(XzReader::new(file, true)),
            _ => Box::new(file),
        },
    )
}

pub(crate) fn failed(path: &Path, error: io::Error) -> DataError {
    DataError::File {
        path: path.to_owned(),
        problem: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    /// SHA-256 of `abc`, from FIPS 180-4.
    const ABC: DataFile = DataFile {
        name: "abc-idx1",
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    };

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn take(from: &Path, to: &Path) -> Result<(), DataError> {
        from_folder(Source::Mnist, &[&ABC], from, to, &mut Silent)
    }

    fn left_in(folder: &Path) -> Vec<String> {
        fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn plain_and_compressed_files_are_taken_under_all_their_names() {
        // What `printf abc | xz --check=crc32` writes.
        let xz = [
            0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00,
            0x21, 0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x02, 0x61,
            0x62, 0x63, 0x00, 0x00, 0xc2, 0x41, 0x24, 0x35, 0x00, 0x01, 0x17, 0x03, 0x07, 0x60,
            0x0c, 0xbc, 0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
        ];
        let cases: [(&str, Vec<u8>); 5] = [
            ("abc-idx1", b"abc".to_vec()),
            ("abc.idx1", b"abc".to_vec()),
            ("abc-idx1.gz", gz(b"abc")),
            ("below/abc-idx1.gz", gz(b"abc")),
            ("abc-idx1.xz", xz.to_vec()),
        ];
        for (name, bytes) in cases {
            let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            fs::create_dir(from.path().join("below")).unwrap();
            fs::write(from.path().join(name), bytes).unwrap();
            take(from.path(), to.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(
                fs::read(to.path().join("abc-idx1")).unwrap(),
                b"abc",
                "{name}"
            );
        }
    }

    #[test]
    fn altered_truncated_and_missing_files_are_refused_by_name_and_leave_nothing() {
        for bytes in [gz(b"abd"), gz(b"abc")[..12].to_vec(), b"abc".to_vec()] {
            let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            fs::write(from.path().join("abc-idx1.gz"), bytes).unwrap();
            let error = take(from.path(), to.path()).unwrap_err().to_string();
            assert!(error.contains("abc-idx1.gz"), "{error}");
            assert!(left_in(to.path()).is_empty(), "{:?}", left_in(to.path()));
        }
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("abc-idx1"), b"abd").unwrap();
        let error = take(from.path(), to.path()).unwrap_err().to_string();
        // SHA-256 of `abd`, by sha256sum.
        assert!(
            error.contains("a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9"),
            "{error}"
        );
        assert!(error.contains(ABC.sha256), "{error}");
        let empty = tempfile::tempdir().unwrap();
        assert!(
            take(empty.path(), to.path())
                .unwrap_err()
                .to_string()
                .contains("abc-idx1")
        );
    }

    #[test]
    fn archives_are_searched_for_their_files() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in [
            ("data/readme.txt", &b"hello"[..]),
            ("data/abc-idx1", b"abc"),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            tar.append_data(&mut header, name, bytes).unwrap();
        }
        let archive = from.path().join("cifar-10-binary.tar.gz");
        fs::write(&archive, gz(&tar.into_inner().unwrap())).unwrap();
        from_folder(
            Source::Cifar10,
            &[&ABC],
            from.path(),
            to.path(),
            &mut Silent,
        )
        .unwrap();
        assert_eq!(left_in(to.path()), ["abc-idx1"]);
        let other = DataFile {
            name: "other",
            ..ABC
        };
        let error = from_archive(&archive, &[&other], to.path(), &mut Silent)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`other`") && error.contains("cifar-10-binary"),
            "{error}"
        );
    }
}
