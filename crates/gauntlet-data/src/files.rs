//! Files that are there whole or not at all.

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use tempfile::NamedTempFile;

/// A file in the folder of `path`, to be filled and then persisted as `path`; gone if it is dropped before.
///
/// # Errors
/// Of the file system.
pub fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    // As readable as any new file, not private as temporary files are.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder(path)).map_err(plain)
}

/// Writes beside, syncs, renames: a reader sees the old bytes or the new ones, never half of them, even after a crash. What
/// is no file (a pipe, `/dev/stdout`) is written to as it stands.
///
/// # Errors
/// Of the file system; what was there before stays.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return File::options().write(true).open(path)?.write_all(bytes);
    }
    let mut file = beside(path)?;
    file.write_all(bytes).map_err(plain)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(folder(path))?.sync_all()
}

/// An error without the name of the temporary file, of which nobody knows.
fn plain(error: io::Error) -> io::Error {
    let cause = error.source().and_then(<dyn Error>::downcast_ref);
    match cause.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        // `tempfile` keeps only the kind where others can see it.
        None if error.raw_os_error().is_none() && error.get_ref().is_some() => error.kind().into(),
        None => error,
    }
}

/// The folder that `path` is in; the current one for a plain name.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_bytes_replace_old_ones_or_leave_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        let mut dropped = beside(&path).unwrap();
        dropped.write_all(b"three").unwrap();
        drop(dropped);
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let error = write(&folder.path().join("none/a.txt"), b"").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!error.to_string().contains("none"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_stays_a_pipe() {
        use std::io::Read;
        use std::os::unix::fs::FileTypeExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        std::thread::scope(|scope| {
            scope.spawn(|| write(&path, b"bytes").unwrap());
            let mut read = String::new();
            File::open(&path)
                .and_then(|mut pipe| pipe.read_to_string(&mut read))
                .unwrap();
            assert_eq!(read, "bytes");
        });
        assert!(
            std::fs::metadata(&path).unwrap().file_type().is_fifo(),
            "it was replaced by a file"
        );
    }

    #[cfg(unix)]
    #[test]
    fn files_are_as_readable_as_any_new_one() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
        write(&ours, b"").unwrap();
        std::fs::write(&plain, b"").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }
}
