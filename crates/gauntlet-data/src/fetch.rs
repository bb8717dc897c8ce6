//! Getting data sets onto this machine.

use std::path::{Path, PathBuf};

use crate::{DataError, Source};

/// `$GAUNTLET_DATA`, else `gauntlet/data` in the user's cache folder.
pub fn default_root() -> PathBuf {
    todo!()
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

/// Puts the files of `source` under `root`, verified by SHA-256: from `from` (plain, `.gz` or `.xz`) if given, else from an
/// installed Debian package, else from the official address and its mirrors, resuming a partial download.
/// Nothing half-written is left under its final name.
///
/// # Errors
/// [`DataError`] naming the file; a wrong hash names both.
pub fn fetch(source: Source, root: &Path, from: Option<&Path>, progress: &mut dyn Progress) -> Result<(), DataError> {
    let _ = (source, root, from, progress);
    todo!()
}
