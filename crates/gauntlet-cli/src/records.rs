//! `metrics.jsonl`, read back.

use std::fs;
use std::path::Path;

use gauntlet_train::Record;

/// The records of the run in `folder`; a line that a crash cut short is left out.
pub(crate) fn read(folder: &Path) -> Vec<Record> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}
