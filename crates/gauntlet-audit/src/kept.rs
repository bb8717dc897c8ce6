//! What is kept of a suite while it runs, so that a kill loses one batch at most.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use gauntlet_data::files;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{AuditError, Example, Signs, Standing};

/// The state of one suite in a folder: a JSON file that is replaced as a whole after each batch, and a file of adversarial
/// examples that only grows. What makes two audits equal (model, data, budget, attacks, seed) is part of the files' name, so that
/// an audit never goes on from another one's state.
pub(crate) struct Kept {
    state: PathBuf,
    examples: PathBuf,
    identity: Value,
    /// Values of one example.
    values: usize,
    pub(crate) standing: Standing,
    pub(crate) signs: Option<Signs>,
}

#[derive(Serialize, Deserialize)]
struct State {
    schema: u32,
    identity: Value,
    standing: Standing,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signs: Option<Signs>,
}

impl Kept {
    /// Opens what is there of the suite with this identity, or starts anew.
    pub(crate) fn open(
        folder: &Path,
        name: &str,
        identity: Value,
        values: usize,
    ) -> Result<Self, AuditError> {
        fs::create_dir_all(folder).map_err(wrong(folder))?;
        let short = short_hash(&identity);
        let name = file_name(name);
        let state = folder.join(format!("{name}-{short}.json"));
        let examples = folder.join(format!("{name}-{short}.examples"));
        let found: Option<State> = fs::read(&state)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .filter(|found: &State| found.identity == identity);
        let kept = Self {
            state,
            examples,
            identity,
            values,
            standing: found
                .as_ref()
                .map_or_else(Standing::default, |found| found.standing.clone()),
            signs: found.and_then(|found| found.signs),
        };
        kept.trim()?;
        Ok(kept)
    }

    /// Cuts off a record that a crash left unfinished.
    fn trim(&self) -> Result<(), AuditError> {
        let Ok(found) = fs::metadata(&self.examples) else {
            return Ok(());
        };
        let whole = found.len() - found.len() % self.record();
        if whole < found.len() {
            let file = OpenOptions::new().write(true).open(&self.examples);
            file.and_then(|file| file.set_len(whole))
                .map_err(wrong(&self.examples))?;
        }
        Ok(())
    }

    /// Bytes of a record: the sample's place, then its pixels.
    fn record(&self) -> u64 {
        4 + 4 * self.values as u64
    }

    /// Adds examples, then replaces the state: an example is there before the state speaks of it.
    pub(crate) fn keep(&self, standing: &Standing, examples: &[Example]) -> Result<(), AuditError> {
        if !examples.is_empty() {
            let mut bytes = Vec::with_capacity(examples.len() * self.record() as usize);
            for example in examples {
                bytes.extend((example.sample as u32).to_le_bytes());
                bytes.extend(example.pixels.iter().flat_map(|value| value.to_le_bytes()));
            }
            let append = || {
                let mut file = File::options()
                    .create(true)
                    .append(true)
                    .open(&self.examples)?;
                file.write_all(&bytes)?;
                file.sync_data()
            };
            append().map_err(wrong(&self.examples))?;
        }
        self.write(standing, self.signs.as_ref())
    }

    pub(crate) fn keep_signs(&mut self, signs: Signs) -> Result<(), AuditError> {
        self.write(&self.standing, Some(&signs))?;
        self.signs = Some(signs);
        Ok(())
    }

    fn write(&self, standing: &Standing, signs: Option<&Signs>) -> Result<(), AuditError> {
        let state = State {
            schema: 1,
            identity: self.identity.clone(),
            standing: standing.clone(),
            signs: signs.cloned(),
        };
        let text = serde_json::to_vec(&state).expect("plain values serialise");
        files::write(&self.state, &text).map_err(wrong(&self.state))
    }

    /// The example that each fallen sample fell to, by its place.
    pub(crate) fn examples(&self) -> Result<BTreeMap<usize, Vec<f32>>, AuditError> {
        let mut found = BTreeMap::new();
        let mut bytes = Vec::new();
        match File::open(&self.examples) {
            Ok(mut file) => file
                .read_to_end(&mut bytes)
                .map_err(wrong(&self.examples))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(wrong(&self.examples)(error)),
        };
        for record in bytes.chunks_exact(self.record() as usize) {
            let (words, _) = record.as_chunks::<4>();
            let sample = u32::from_le_bytes(words[0]) as usize;
            let fell = self.standing.fell_to.get(sample).copied().flatten();
            if fell.is_some() {
                let pixels = words[1..].iter().map(|&word| f32::from_le_bytes(word));
                found.insert(sample, pixels.collect());
            }
        }
        Ok(found)
    }
}

/// Eight hex digits that tell identities apart in names of files.
pub(crate) fn short_hash(identity: &Value) -> String {
    let digest = Sha256::digest(identity.to_string());
    let short = digest[..4].iter();
    short.map(|byte| format!("{byte:02x}")).collect()
}

/// `linf-0.3+l2-2` for the budget `linf:0.3 + l2:2`: a name for files.
pub fn file_name(budget: &str) -> String {
    budget.replace(' ', "").replace([':', '/', ','], "-")
}

fn wrong(path: &Path) -> impl Fn(std::io::Error) -> AuditError {
    let path = path.to_owned();
    move |source| AuditError::Write {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn example(sample: usize) -> Example {
        Example {
            sample,
            pixels: vec![sample as f32, 0.5],
        }
    }

    #[test]
    fn state_and_examples_survive_a_crash_and_are_nobody_else_s() {
        let folder = tempfile::tempdir().unwrap();
        let open = |seed: u32| {
            Kept::open(folder.path(), "linf:8/255", json!({ "seed": seed }), 2).unwrap()
        };
        let kept = open(1);
        assert_eq!(kept.standing, Standing::default());
        let standing = Standing {
            fell_to: vec![Some(0), None, Some(2), None],
            ..Standing::default()
        };
        kept.keep(&standing, &[example(0), example(2)]).unwrap();
        // The state did not come to speak of the third example, and the fourth was cut short.
        let mut file = OpenOptions::new()
            .append(true)
            .open(&kept.examples)
            .unwrap();
        let mut torn = 3u32.to_le_bytes().to_vec();
        torn.extend([0; 8]);
        torn.extend(1u32.to_le_bytes());
        file.write_all(&torn).unwrap();

        let again = open(1);
        assert_eq!(again.standing, standing);
        again.keep(&standing, &[example(2)]).unwrap();
        let found = again.examples().unwrap();
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [0, 2]);
        assert_eq!(found[&2], [2.0, 0.5]);
        assert_eq!(open(2).standing, Standing::default());
    }

    #[test]
    fn numbers_in_an_identity_are_read_back_as_they_were() {
        // How CIFAR-10 is normalised; a reader that rounds the last digit takes 0.2471 for another number.
        let identity = || {
            json!({
                "mean": [0.4914f32, 0.4822f32, 0.4465f32],
                "std": [0.2471f32, 0.2435f32, 0.2616f32],
            })
        };
        let folder = tempfile::tempdir().unwrap();
        let open = || Kept::open(folder.path(), "linf:8/255", identity(), 2).unwrap();
        let standing = Standing {
            through: vec![1; 4],
            clean_confidence: (1..=9).map(|k| k as f32 / 9.0).collect(),
            ..Standing::default()
        };
        open().keep(&standing, &[]).unwrap();
        assert_eq!(open().standing, standing);
    }
}
