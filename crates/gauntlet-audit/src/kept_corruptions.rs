//! What is kept of corruptions while they are tried.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use gauntlet_data::corruptions::{Corruption, Severity};
use gauntlet_data::files;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::AuditError;
use crate::kept::short_hash;

/// How many samples were classified correctly under each corruption that has been tried, in a JSON file that is replaced as a whole
/// after each. What makes two audits equal is part of the file's name.
#[derive(Serialize, Deserialize)]
pub(crate) struct KeptCorruptions {
    schema: u32,
    identity: Value,
    /// By `fog/3`.
    right: BTreeMap<String, usize>,
    #[serde(skip)]
    path: PathBuf,
}

impl KeptCorruptions {
    /// Opens what is there, or starts anew.
    pub(crate) fn open(folder: &Path, identity: Value) -> Result<Self, AuditError> {
        fs::create_dir_all(folder).map_err(|source| AuditError::Write {
            path: folder.to_owned(),
            source,
        })?;
        let path = folder.join(format!("corruptions-{}.json", short_hash(&identity)));
        let found: Option<Self> = fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .filter(|found: &Self| found.identity == identity);
        let right = found.map(|found| found.right).unwrap_or_default();
        Ok(Self {
            schema: 1,
            identity,
            right,
            path,
        })
    }

    pub(crate) fn get(&self, family: Corruption, severity: Severity) -> Option<usize> {
        self.right.get(&key(family, severity)).copied()
    }

    pub(crate) fn keep(
        &mut self,
        family: Corruption,
        severity: Severity,
        right: usize,
    ) -> Result<(), AuditError> {
        self.right.insert(key(family, severity), right);
        let text = serde_json::to_vec(self).expect("plain values serialise");
        files::write(&self.path, &text).map_err(|source| AuditError::Write {
            path: self.path.clone(),
            source,
        })
    }
}

fn key(family: Corruption, severity: Severity) -> String {
    format!("{}/{}", family.name(), severity.number())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_tried_is_there_again_and_is_nobody_else_s() {
        let folder = tempfile::tempdir().unwrap();
        let open = |seed: u32| KeptCorruptions::open(folder.path(), json!(seed)).unwrap();
        let [one, two, ..] = Severity::ALL;
        open(1).keep(Corruption::Fog, two, 7).unwrap();
        let again = open(1);
        assert_eq!(again.get(Corruption::Fog, two), Some(7));
        assert_eq!(again.get(Corruption::Fog, one), None);
        assert_eq!(open(2).get(Corruption::Fog, two), None);
    }
}
