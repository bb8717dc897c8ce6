use std::path::PathBuf;

/// What went wrong with data. Each message names the file and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A data set is not on this machine yet.
    #[error("data set `{name}` is not here: {} is missing\n\nhint: `gauntlet data fetch {name}` downloads it; `--from DIR` takes local files", path.display())]
    Missing {
        /// Name of the data set.
        name: &'static str,
        /// The first file that is missing.
        path: PathBuf,
    },
    /// Anything else about one file.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and a hint.
        problem: String,
    },
    /// A key of the `[data]` table.
    #[error("`data.{key}`: {problem}")]
    Config {
        /// The key.
        key: &'static str,
        /// What is wrong, and a hint.
        problem: String,
    },
}
