//! Checkpoints: folders that are whole or not there.
//!
//! A checkpoint is staged beside its place, synced, and renamed: a reader sees all of it or nothing. `MANIFEST.json` holds
//! the SHA-256 of every tensor by path and of every other file; a checkpoint that does not fit its manifest is not used.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, TensorData};
use gauntlet_models::{Description, Network, weights};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::changes::inexact;
use crate::guard::{RollBack, Seen};
use crate::run_dir::{write_atomic, write_json};
use crate::{Plan, TrainError};

/// Numbers of a run that are no tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Version of this layout: 1.
    pub(crate) schema: u32,
    /// Updates made.
    pub(crate) step: u64,
    /// Updates at the last validation.
    pub(crate) validated_at: u64,
    /// Updates at the last end of an epoch that was seen through.
    #[serde(default)]
    pub(crate) closed_at: u64,
    /// Updates when the average of epochs was last asked to take weights in.
    #[serde(default)]
    pub(crate) averaged_at: Option<u64>,
    /// The best checkpoint so far.
    pub(crate) best: Option<Best>,
    /// Seconds of training so far.
    pub(crate) seconds: f64,
    /// Updates of the average of the weights.
    pub(crate) ema_updates: u64,
    /// How often the run went back to an earlier checkpoint.
    #[serde(default)]
    pub(crate) attempt: u32,
    /// Whether the guard changed the attack for one of several steps.
    #[serde(default)]
    pub(crate) multi_step: bool,
    /// Steps in a row that changed nothing, because the loss was no number.
    #[serde(default)]
    pub(crate) skipped: u32,
    /// Validations since the best.
    #[serde(default)]
    pub(crate) stale: u32,
    /// What the best validation under attack saw.
    #[serde(default)]
    pub(crate) seen: Option<Seen>,
    /// Whether the last validation, with the attack of training at full strength, saw a single step fail and PGD win.
    #[serde(default)]
    pub(crate) masked: bool,
    /// Why the run is over before its last epoch.
    #[serde(default)]
    pub(crate) ended: Option<String>,
    /// Hashes of the networks that the method leans on, by folder.
    #[serde(default)]
    pub(crate) others: BTreeMap<String, String>,
    /// Updates of each parameter, as the optimizer counts them.
    pub(crate) optimizer: BTreeMap<String, u64>,
}

/// Which checkpoint is best, and why.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    pub(crate) step: u64,
    /// What it was selected by: validation accuracy, under attack if the run trains against one.
    pub(crate) accuracy: f64,
}

/// SHA-256 of everything in a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    schema: u32,
    version: String,
    /// By safetensors file, by path of the tensor.
    tensors: BTreeMap<String, BTreeMap<String, String>>,
    files: BTreeMap<String, String>,
}

/// What a checkpoint holds, in memory.
pub(crate) struct Snapshot<'a, M> {
    /// What the run has been doing so far.
    pub(crate) plan: &'a Plan,
    pub(crate) state: &'a State,
    pub(crate) description: &'a Description,
    /// The weights that ship: the average, if there is one.
    pub(crate) model: &'a M,
    /// The weights that are trained, if they are others.
    pub(crate) live: Option<&'a M>,
    /// The network as clean examples see it, if that is another.
    pub(crate) for_clean: Option<&'a M>,
    pub(crate) optimizer: &'a BTreeMap<String, TensorData>,
    /// State of the training method.
    pub(crate) method: &'a BTreeMap<String, TensorData>,
}

const MODEL: &str = "model.safetensors";
const LIVE: &str = "live.safetensors";
const FOR_CLEAN: &str = "clean.safetensors";
const METHOD: &str = "method.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const DESCRIPTION: &str = "model.json";
const PLAN: &str = "config.toml";
const MANIFEST: &str = "MANIFEST.json";
const ROLL_BACK: &str = "roll-back.json";

fn folder(run: &Path, step: u64) -> PathBuf {
    run.join("checkpoints").join(format!("step-{step:08}"))
}

/// The checkpoint folders of a run, oldest first, with their steps.
pub fn list(run: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = fs::read_dir(run.join("checkpoints")) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let step = path
                .file_name()?
                .to_str()?
                .strip_prefix("step-")?
                .parse()
                .ok()?;
            Some((step, path))
        })
        .collect();
    found.sort();
    found
}

/// The best checkpoint of a run by validation robust accuracy, else the newest.
pub fn best(run: &Path) -> Option<PathBuf> {
    let all = list(run);
    let newest = all.last()?.1.clone();
    let state: Option<State> = read_json(&newest.join(STATE)).ok();
    let chosen = state
        .and_then(|state| state.best)
        .map(|best| folder(run, best.step))
        .filter(|path| path.is_dir());
    Some(chosen.unwrap_or(newest))
}

/// The network of a checkpoint folder, untracked, verified against its manifest.
///
/// # Errors
/// [`TrainError::Checkpoint`] naming the damaged file or tensor.
pub fn load_network(
    checkpoint: &Path,
    device: &Device,
) -> Result<(Network, Description), TrainError> {
    let manifest = read_manifest(checkpoint)?;
    let description: Description = read_verified(checkpoint, DESCRIPTION, &manifest)?;
    let network = load_weights(checkpoint, description.init(0, device)?)?;
    Ok((network, description))
}

/// Loads the weights that ship into a network of the same architecture.
pub(crate) fn load_weights<M: Module>(checkpoint: &Path, model: M) -> Result<M, TrainError> {
    load_file(checkpoint, MODEL, &read_manifest(checkpoint)?, model)
}

/// Whether a run can go on by `plan` as the run it is, judged by its newest whole checkpoint. `per_epoch`: steps in an epoch.
///
/// # Errors
/// [`TrainError::Changed`] naming the keys that differ.
pub fn check_changes(run: &Path, plan: &Plan, per_epoch: u64) -> Result<(), TrainError> {
    for (_, path) in list(run).into_iter().rev() {
        let Ok(manifest) = read_manifest(&path) else {
            continue;
        };
        let state = read_verified::<State>(&path, STATE, &manifest);
        let (Ok(state), Ok(before)) = (state, read_plan(&path, &manifest)) else {
            continue;
        };
        let changes = before.map_or_else(Vec::new, |before| {
            inexact(&before, plan, state.step, per_epoch)
        });
        if changes.is_empty() {
            return Ok(());
        }
        return Err(TrainError::Changed { changes });
    }
    Ok(())
}

/// The plan in a checkpoint; those of older versions have none.
fn read_plan(path: &Path, manifest: &Manifest) -> Result<Option<Plan>, TrainError> {
    if !manifest.files.contains_key(PLAN) {
        return Ok(None);
    }
    verify(path, PLAN, manifest)?;
    let text = fs::read_to_string(path.join(PLAN)).map_err(|error| damage(path, error))?;
    let plan = toml::from_str(&text).map_err(|error| damage(path, error))?;
    Ok(Some(plan))
}

/// Writes a checkpoint and returns its folder. Where it fails, what was written of it is removed.
pub(crate) fn write<M: Module>(
    run: &Path,
    snapshot: &Snapshot<'_, M>,
) -> Result<PathBuf, TrainError> {
    let place = folder(run, snapshot.state.step);
    let staging = run
        .join("checkpoints")
        .join(format!(".step-{:08}.partial", snapshot.state.step));
    let written = stage(&staging, snapshot).and_then(|()| {
        let publish = || {
            if place.exists() {
                // Left by a run that was killed after this step and goes on from an earlier, whole checkpoint.
                fs::remove_dir_all(&place)?;
            }
            fs::rename(&staging, &place)?;
            File::open(run.join("checkpoints"))?.sync_all()
        };
        publish().map_err(|source| TrainError::Io {
            path: place.clone(),
            source,
        })
    });
    if written.is_err() {
        let _ = fs::remove_dir_all(&staging);
    }
    written.map(|()| place)
}

fn stage<M: Module>(staging: &Path, snapshot: &Snapshot<'_, M>) -> Result<(), TrainError> {
    let _ = fs::remove_dir_all(staging);
    fs::create_dir_all(staging).map_err(|source| TrainError::Io {
        path: staging.to_owned(),
        source,
    })?;
    // One entry only: safetensors writes several in no fixed order, and equal checkpoints should be equal files.
    let about = BTreeMap::from([("step".to_owned(), snapshot.state.step.to_string())]);
    let mut tensors = BTreeMap::new();
    tensors.insert(
        MODEL.to_owned(),
        weights::save(snapshot.model, &about, &staging.join(MODEL))?,
    );
    for (name, module) in [(LIVE, snapshot.live), (FOR_CLEAN, snapshot.for_clean)] {
        if let Some(module) = module {
            let hashes = weights::save(module, &about, &staging.join(name))?;
            tensors.insert(name.to_owned(), hashes);
        }
    }
    if !snapshot.method.is_empty() {
        let hashes = weights::save_tensors(snapshot.method, &about, &staging.join(METHOD))?;
        tensors.insert(METHOD.to_owned(), hashes);
    }
    let optimizer = weights::save_tensors(snapshot.optimizer, &about, &staging.join(OPTIMIZER))?;
    tensors.insert(OPTIMIZER.to_owned(), optimizer);
    write_json(&staging.join(STATE), snapshot.state)?;
    write_json(&staging.join(DESCRIPTION), snapshot.description)?;
    let plan = toml::to_string_pretty(snapshot.plan).expect("a plan is plain tables and values");
    write_atomic(&staging.join(PLAN), plan.as_bytes())?;
    let mut files = BTreeMap::new();
    for name in [STATE, DESCRIPTION, PLAN] {
        files.insert(name.to_owned(), hash(&staging.join(name))?);
    }
    let manifest = Manifest {
        schema: 1,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        tensors,
        files,
    };
    write_json(&staging.join(MANIFEST), &manifest)
}

/// What a run goes on from.
pub(crate) struct Restored<M> {
    pub(crate) state: State,
    /// What the run had been doing; not in checkpoints of older versions.
    pub(crate) plan: Option<Plan>,
    /// The weights that ship.
    pub(crate) model: M,
    /// The weights that are trained.
    pub(crate) live: M,
    /// The network as clean examples see it, if that is another.
    pub(crate) for_clean: Option<M>,
    pub(crate) optimizer: BTreeMap<String, TensorData>,
    /// State of the training method.
    pub(crate) method: BTreeMap<String, TensorData>,
    /// Checkpoints that were found damaged, for people.
    pub(crate) damaged: Vec<String>,
}

/// The newest whole checkpoint of a run, or `None` if there is no checkpoint. `model` gives the architecture and the device.
///
/// # Errors
/// If there are checkpoints, but none is whole: the problem of the newest.
pub(crate) fn newest<M: Module>(run: &Path, model: &M) -> Result<Option<Restored<M>>, TrainError> {
    if let Ok(entries) = fs::read_dir(run.join("checkpoints")) {
        for path in entries.flatten().map(|entry| entry.path()) {
            if path
                .extension()
                .is_some_and(|extension| extension == "partial")
            {
                let _ = fs::remove_dir_all(path);
            }
        }
    }
    let mut damaged: Vec<String> = Vec::new();
    let mut first = None;
    for (_, path) in list(run).into_iter().rev() {
        match restore(&path, model) {
            Ok(restored) => {
                return Ok(Some(Restored {
                    damaged,
                    ..restored
                }));
            }
            Err(error) => {
                damaged.push(error.to_string());
                first.get_or_insert(error);
            }
        }
    }
    first.map_or(Ok(None), Err)
}

/// What the checkpoint in `path` holds.
pub(crate) fn restore<M: Module>(path: &Path, model: &M) -> Result<Restored<M>, TrainError> {
    let manifest = read_manifest(path)?;
    let state: State = read_verified(path, STATE, &manifest)?;
    let shipped = load_file(path, MODEL, &manifest, model.valid())?;
    let trained = if manifest.tensors.contains_key(LIVE) {
        LIVE
    } else {
        MODEL
    };
    let live = load_file(path, trained, &manifest, model.valid())?.train();
    let for_clean = if manifest.tensors.contains_key(FOR_CLEAN) {
        Some(load_file(path, FOR_CLEAN, &manifest, model.valid())?.train())
    } else {
        None
    };
    let tensors = |name: &str| {
        weights::load_tensors(&path.join(name), manifest.tensors.get(name))
            .map_err(|error| damage(path, error))
    };
    let optimizer = tensors(OPTIMIZER)?;
    let method = match manifest.tensors.get(METHOD) {
        Some(_) => tensors(METHOD)?,
        None => BTreeMap::new(),
    };
    let plan = read_plan(path, &manifest)?;
    Ok(Restored {
        state,
        plan,
        model: shipped,
        live,
        for_clean,
        optimizer,
        method,
        damaged: Vec::new(),
    })
}

/// Removes the checkpoints that came after `back` went back, in an attempt before it.
pub(crate) fn discard_after(run: &Path, back: RollBack) {
    for (step, path) in list(run) {
        let state: Option<State> = read_json(&path.join(STATE)).ok();
        if step > back.to_step && state.is_none_or(|state| state.attempt < back.attempt) {
            remove(&path);
        }
    }
}

/// Renamed first: a removal that is cut short leaves nothing that looks like a checkpoint.
fn remove(path: &Path) {
    let doomed = path.with_extension("partial");
    if fs::rename(path, &doomed).is_ok() {
        let _ = fs::remove_dir_all(doomed);
    }
}

/// Where the run went back to last, if it ever did.
pub(crate) fn roll_back(run: &Path) -> Result<Option<RollBack>, TrainError> {
    let path = run.join(ROLL_BACK);
    if !path.exists() {
        return Ok(None);
    }
    read_json(&path)
        .map(Some)
        .map_err(|problem| TrainError::Config { path, problem })
}

/// Records where the run goes back to.
pub(crate) fn write_roll_back(run: &Path, back: RollBack) -> Result<(), TrainError> {
    write_json(&run.join(ROLL_BACK), &back)
}

/// One SHA-256 for the hashes of many tensors.
pub(crate) fn digest_of(hashes: &BTreeMap<String, String>) -> String {
    let mut hasher = Sha256::new();
    for (path, hash) in hashes {
        hasher.update(path.as_bytes());
        hasher.update(hash.as_bytes());
    }
    hex(&hasher.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Removes all but the newest `keep` checkpoints and the best.
pub(crate) fn prune(run: &Path, keep: usize, best: Option<u64>) {
    let all = list(run);
    let old = all.len().saturating_sub(keep);
    for (_, path) in all[..old].iter().filter(|(step, _)| Some(*step) != best) {
        remove(path);
    }
}

fn read_manifest(checkpoint: &Path) -> Result<Manifest, TrainError> {
    let manifest: Manifest =
        read_json(&checkpoint.join(MANIFEST)).map_err(|problem| damage(checkpoint, problem))?;
    if manifest.schema != 1 {
        let problem = format!(
            "written by a newer version ({}) of this program",
            manifest.version
        );
        return Err(damage(checkpoint, problem));
    }
    Ok(manifest)
}

fn read_verified<T: DeserializeOwned>(
    checkpoint: &Path,
    name: &str,
    manifest: &Manifest,
) -> Result<T, TrainError> {
    verify(checkpoint, name, manifest)?;
    read_json(&checkpoint.join(name)).map_err(|problem| damage(checkpoint, problem))
}

/// Whether the file `name` is what the manifest says.
fn verify(checkpoint: &Path, name: &str, manifest: &Manifest) -> Result<(), TrainError> {
    let found = hash(&checkpoint.join(name)).map_err(|error| damage(checkpoint, error))?;
    match manifest.files.get(name) {
        Some(expected) if *expected == found => Ok(()),
        Some(expected) => Err(damage(
            checkpoint,
            format!("{name} is damaged: SHA-256 {found}, not {expected}"),
        )),
        None => Err(damage(checkpoint, format!("{name} is not in {MANIFEST}"))),
    }
}

fn load_file<M: Module>(
    checkpoint: &Path,
    name: &str,
    manifest: &Manifest,
    model: M,
) -> Result<M, TrainError> {
    let Some(hashes) = manifest.tensors.get(name) else {
        return Err(damage(checkpoint, format!("{name} is not in {MANIFEST}")));
    };
    weights::load(model, &checkpoint.join(name), Some(hashes))
        .map_err(|error| damage(checkpoint, error))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let wrong = |error: String| format!("{}: {error}", path.display());
    let text = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))
}

fn hash(path: &Path) -> Result<String, TrainError> {
    let bytes = fs::read(path).map_err(|source| TrainError::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok(hex(&Sha256::digest(&bytes)))
}

fn damage(checkpoint: &Path, problem: impl ToString) -> TrainError {
    TrainError::Checkpoint {
        path: checkpoint.to_owned(),
        problem: problem.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of two validations with the same accuracy the first is the best, in a run that goes on as in one that was never interrupted.
    #[test]
    fn an_accuracy_is_read_back_to_the_last_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(STATE);
        for images in [179, 360, 1000] {
            for right in 0..=images {
                let accuracy = f64::from(right) / f64::from(images);
                let best = Some(Best { step: 1, accuracy });
                let state = State {
                    best,
                    ..State::default()
                };
                write_json(&path, &state).unwrap();
                let read: State = read_json(&path).unwrap();
                assert_eq!(read.best, best, "{right}/{images}");
            }
        }
    }
}
