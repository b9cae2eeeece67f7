//! Checkpoints: written so that stopping the program at any instant leaves a complete one, read with every digest checked.
//!
//! ```text
//! checkpoints/step-N/adapter.safetensors     trained values, f32
//!                    optimizer.safetensors   the optimizer's states, exactly
//!                    state.json              step, seed, data order, mixing policy, counters, length of metrics.jsonl
//!                    manifest.json           size and SHA-256 of the others
//! checkpoints/latest                         the newest one's name, for people and scripts
//! ```
//!
//! A checkpoint is made in `.step-N.tmp`, every file is synced, the directory is renamed, its parent is synced, then `latest` is replaced.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use trainer_kernels::adamw::OptimizerState;

use crate::files::{self, Disk, FileError, Storage, from_hex, sha256, to_hex, write_atomically};

const VERSION: u32 = 1;
const ADAPTER: &str = "adapter.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const MANIFEST: &str = "manifest.json";
const LATEST: &str = "latest";
/// The files that the manifest lists, in the order of writing.
const FILES: [&str; 3] = [ADAPTER, OPTIMIZER, STATE];

/// A trained tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// As many values as the shape says.
    pub values: Vec<f32>,
}

/// Everything from which a run continues to the same bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Optimizer steps that are done.
    pub step: u64,
    /// The run's seed. Randomness is counter-based, so the seed and the step are all of its state.
    pub seed: u64,
    /// Length of `metrics.jsonl` in bytes after the step.
    pub metrics_bytes: u64,
    /// The adapter by parameter name.
    pub adapter: BTreeMap<String, Tensor>,
    /// The optimizer's states by parameter name.
    pub optimizer: BTreeMap<String, OptimizerState>,
    /// The position in the data, as the pipeline gives it.
    pub data: serde_json::Value,
    /// The mixing policy's snapshot as of the last trained step.
    pub mixer: Vec<u8>,
    /// What the run counts from its beginning (tokens, samples, skipped rows by reason).
    pub counters: BTreeMap<String, u64>,
}

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// A checkpoint is incomplete or was changed.
    #[error("checkpoint {}: {what}", path.display())]
    Damaged {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// There are checkpoints, but none can be used.
    #[error("no complete checkpoint in {}:\n  {}\nrestore one of them from a backup, or start a new run", dir.display(), tried.join("\n  "))]
    NoneComplete {
        /// The folder of checkpoints.
        dir: PathBuf,
        /// What is wrong with each, the newest first.
        tried: Vec<String>,
    },
    /// What was to be written is inconsistent.
    #[error("cannot write a checkpoint: {0}")]
    Invalid(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    step: u64,
    seed: u64,
    metrics_bytes: u64,
    counters: BTreeMap<String, u64>,
    /// Hexadecimal.
    mixer: String,
    data: serde_json::Value,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u32,
    step: u64,
    files: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    bytes: u64,
    sha256: String,
}

/// The checkpoints of a run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    dir: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// The checkpoints in a folder, which is made if needed, of which the newest `keep` (at least one) are kept. Removes what a killed
    /// process left behind, so the caller must hold the run directory's lock.
    ///
    /// # Errors
    /// If the folder cannot be made, read or cleaned.
    pub fn open(dir: &Path, keep: usize) -> Result<Self, CheckpointError> {
        Self::open_in(&Disk, dir, keep)
    }

    /// The checkpoints in a folder, only to be read; changes nothing and needs no lock.
    pub fn view(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), keep: usize::MAX }
    }

    fn open_in(storage: &impl Storage, dir: &Path, keep: usize) -> Result<Self, CheckpointError> {
        if !dir.is_dir() {
            storage.create_dir(dir).map_err(FileError::at("create", dir))?;
            storage.sync_dir(files::parent(dir)).map_err(FileError::at("sync", files::parent(dir)))?;
        }
        let this = Self { dir: dir.to_owned(), keep: keep.max(1) };
        for name in this.names()? {
            let path = dir.join(&name);
            if name.starts_with(".step-") && name.ends_with(".tmp") {
                tracing::debug!(path = %path.display(), "removing an unfinished checkpoint");
                storage.remove_dir(&path).map_err(FileError::at("remove", &path))?;
            } else if name.starts_with('.') && name.ends_with(".tmp") {
                storage.remove_file(&path).map_err(FileError::at("remove", &path))?;
            } else if let Some(step) = name.strip_prefix('.').and_then(|n| n.strip_suffix(".old")) {
                // Replacing a checkpoint was interrupted: the old one goes back unless the new one has taken its place.
                let current = dir.join(step);
                if current.exists() {
                    storage.remove_dir(&path).map_err(FileError::at("remove", &path))?;
                } else {
                    storage.rename(&path, &current).map_err(FileError::at("restore", &current))?;
                }
            }
        }
        Ok(this)
    }

    /// The steps of which there are checkpoints, complete or not, ascending.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let mut steps: Vec<u64> = self.names()?.iter().filter_map(|n| step_of(n)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// The folder of a step's checkpoint.
    pub fn path(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step}"))
    }

    /// Writes a checkpoint durably, then removes those that are no longer kept. Returns its folder.
    ///
    /// Checkpoints of later steps are removed too: a run that writes step N and has a later one went back behind it, because it was damaged.
    ///
    /// # Errors
    /// If the system refuses (an existing checkpoint then stays the newest), or if shapes and values do not agree.
    pub fn write(&self, checkpoint: &Checkpoint) -> Result<PathBuf, CheckpointError> {
        self.write_in(&Disk, checkpoint)
    }

    fn write_in(&self, storage: &impl Storage, checkpoint: &Checkpoint) -> Result<PathBuf, CheckpointError> {
        let name = format!("step-{}", checkpoint.step);
        let (path, temporary) = (self.dir.join(&name), self.dir.join(format!(".{name}.tmp")));
        if temporary.exists() {
            storage.remove_dir(&temporary).map_err(FileError::at("remove", &temporary))?;
        }
        storage.create_dir(&temporary).map_err(FileError::at("create", &temporary))?;
        let mut manifest = Manifest { version: VERSION, step: checkpoint.step, files: BTreeMap::new() };
        for file in FILES {
            let bytes = match file {
                ADAPTER => adapter_bytes(&checkpoint.adapter)?,
                OPTIMIZER => optimizer_bytes(&checkpoint.optimizer)?,
                _ => state_bytes(checkpoint)?,
            };
            manifest.files.insert(file.to_owned(), Entry { bytes: bytes.len() as u64, sha256: sha256(&bytes) });
            let target = temporary.join(file);
            storage.write(&target, &bytes).map_err(FileError::at("write", &target))?;
        }
        let target = temporary.join(MANIFEST);
        storage.write(&target, &json_bytes(&manifest)?).map_err(FileError::at("write", &target))?;
        storage.sync_dir(&temporary).map_err(FileError::at("sync", &temporary))?;

        let old = self.dir.join(format!(".{name}.old"));
        if path.exists() {
            storage.rename(&path, &old).map_err(FileError::at("move aside", &path))?;
        }
        storage.rename(&temporary, &path).map_err(FileError::at("rename to", &path))?;
        storage.sync_dir(&self.dir).map_err(FileError::at("sync", &self.dir))?;
        write_atomically(storage, &self.dir.join(LATEST), format!("{name}\n").as_bytes())?;
        if old.exists() {
            storage.remove_dir(&old).map_err(FileError::at("remove", &old))?;
        }
        self.prune(storage, checkpoint.step)?;
        Ok(path)
    }

    fn prune(&self, storage: &impl Storage, newest: u64) -> Result<(), CheckpointError> {
        let steps = self.steps()?;
        let past = steps.iter().filter(|s| **s <= newest).count();
        let surplus = past.saturating_sub(self.keep);
        for step in steps.iter().take(surplus).chain(steps.iter().filter(|s| **s > newest)) {
            // Renamed first, so that a removal cut short leaves no damaged checkpoint under a good name.
            let (path, gone) = (self.path(*step), self.dir.join(format!(".step-{step}.tmp")));
            storage.rename(&path, &gone).map_err(FileError::at("remove", &path))?;
            storage.remove_dir(&gone).map_err(FileError::at("remove", &gone))?;
        }
        Ok(())
    }

    /// The newest complete checkpoint, or none if there is no checkpoint at all. Damaged ones are passed over with a warning.
    ///
    /// # Errors
    /// If there are checkpoints but none is complete, or the folder cannot be read.
    pub fn read_newest(&self) -> Result<Option<Checkpoint>, CheckpointError> {
        let steps = self.steps()?;
        let mut tried = Vec::new();
        for step in steps.iter().rev() {
            match self.read(*step) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(error) => {
                    tracing::warn!(%error, "passing over a damaged checkpoint");
                    tried.push(error.to_string());
                }
            }
        }
        if tried.is_empty() { Ok(None) } else { Err(CheckpointError::NoneComplete { dir: self.dir.clone(), tried }) }
    }

    /// Reads the checkpoint of a step, checking every size and digest.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`], saying what is wrong.
    pub fn read(&self, step: u64) -> Result<Checkpoint, CheckpointError> {
        let path = self.path(step);
        read_checkpoint(&path, step).map_err(|what| CheckpointError::Damaged { path, what })
    }

    fn names(&self) -> Result<Vec<String>, CheckpointError> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(FileError::at("read", &self.dir)(e).into()),
        };
        let names: Result<Vec<_>, _> = entries.map(|e| e.map(|e| e.file_name())).collect();
        // Names that are not UTF-8 are not ours.
        Ok(names.map_err(FileError::at("read", &self.dir))?.into_iter().filter_map(|n| n.into_string().ok()).collect())
    }
}

/// The step of a checkpoint's name in its one canonical spelling.
fn step_of(name: &str) -> Option<u64> {
    let step: u64 = name.strip_prefix("step-")?.parse().ok()?;
    (name == format!("step-{step}")).then_some(step)
}

fn json_bytes(value: &impl Serialize) -> Result<Vec<u8>, CheckpointError> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| CheckpointError::Invalid(e.to_string()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn state_bytes(checkpoint: &Checkpoint) -> Result<Vec<u8>, CheckpointError> {
    json_bytes(&State {
        version: VERSION,
        step: checkpoint.step,
        seed: checkpoint.seed,
        metrics_bytes: checkpoint.metrics_bytes,
        counters: checkpoint.counters.clone(),
        mixer: to_hex(&checkpoint.mixer),
        data: checkpoint.data.clone(),
    })
}

/// A tensor on its way into a file.
struct Raw {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Raw {
    fn f32(shape: Vec<usize>, values: &[f32]) -> Self {
        Self { dtype: Dtype::F32, shape, bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }

    fn u8(values: &[u8]) -> Self {
        Self { dtype: Dtype::U8, shape: vec![values.len()], bytes: values.to_vec() }
    }
}

fn tensors_bytes(tensors: &BTreeMap<String, Raw>) -> Result<Vec<u8>, CheckpointError> {
    let views: Result<Vec<_>, _> = tensors
        .iter()
        .map(|(name, raw)| match TensorView::new(raw.dtype, raw.shape.clone(), &raw.bytes) {
            Ok(view) => Ok((name, view)),
            Err(e) => Err(CheckpointError::Invalid(format!("{name}: {e}"))),
        })
        .collect();
    safetensors::serialize(views?, None).map_err(|e| CheckpointError::Invalid(e.to_string()))
}

fn adapter_bytes(adapter: &BTreeMap<String, Tensor>) -> Result<Vec<u8>, CheckpointError> {
    tensors_bytes(&adapter.iter().map(|(name, t)| (name.clone(), Raw::f32(t.shape.clone(), &t.values))).collect())
}

/// Each state as tensors `NAME.m`, `NAME.v` and, in 8 bits, `NAME.m_absmax`, `NAME.v_absmax`; their types tell the kinds apart.
fn optimizer_bytes(optimizer: &BTreeMap<String, OptimizerState>) -> Result<Vec<u8>, CheckpointError> {
    let mut tensors = BTreeMap::new();
    for (name, state) in optimizer {
        let mut put = |part: &str, raw: Raw| tensors.insert(format!("{name}.{part}"), raw);
        match state {
            OptimizerState::ThirtyTwo { m, v } => {
                put("m", Raw::f32(vec![m.len()], m));
                put("v", Raw::f32(vec![v.len()], v));
            }
            OptimizerState::Eight { m, v, m_absmax, v_absmax } => {
                put("m", Raw::u8(m));
                put("v", Raw::u8(v));
                put("m_absmax", Raw::f32(vec![m_absmax.len()], m_absmax));
                put("v_absmax", Raw::f32(vec![v_absmax.len()], v_absmax));
            }
        }
    }
    tensors_bytes(&tensors)
}

/// Reads a checkpoint's folder; the error says what is wrong with it.
fn read_checkpoint(path: &Path, step: u64) -> Result<Checkpoint, String> {
    let read = |name: &str| std::fs::read(path.join(name)).map_err(|e| format!("{name} cannot be read: {e}"));
    let manifest: Manifest = serde_json::from_slice(&read(MANIFEST)?).map_err(|e| format!("{MANIFEST} is broken: {e}"))?;
    if manifest.version != VERSION {
        return Err(format!("its format is version {}, but this program reads version {VERSION}", manifest.version));
    }
    if manifest.step != step {
        return Err(format!("{MANIFEST} is of step {}", manifest.step));
    }
    let verified = |name: &str| {
        let entry = manifest.files.get(name).ok_or_else(|| format!("{MANIFEST} does not list {name}"))?;
        let bytes = read(name)?;
        if bytes.len() as u64 != entry.bytes {
            return Err(format!("{name} has {} bytes in place of {}", bytes.len(), entry.bytes));
        }
        let found = sha256(&bytes);
        if found != entry.sha256 {
            return Err(format!("{name} was changed: its SHA-256 is {found} in place of {}", entry.sha256));
        }
        Ok(bytes)
    };
    let state: State = serde_json::from_slice(&verified(STATE)?).map_err(|e| format!("{STATE} is broken: {e}"))?;
    if (state.version, state.step) != (VERSION, step) {
        return Err(format!("{STATE} is of version {}, step {}", state.version, state.step));
    }
    Ok(Checkpoint {
        step,
        seed: state.seed,
        metrics_bytes: state.metrics_bytes,
        adapter: read_adapter(&verified(ADAPTER)?).map_err(|e| format!("{ADAPTER}: {e}"))?,
        optimizer: read_optimizer(&verified(OPTIMIZER)?).map_err(|e| format!("{OPTIMIZER}: {e}"))?,
        data: state.data,
        mixer: from_hex(&state.mixer).ok_or_else(|| format!("{STATE}: `mixer` is not hexadecimal"))?,
        counters: state.counters,
    })
}

fn floats(view: &TensorView<'_>) -> Result<Vec<f32>, String> {
    match view.dtype() {
        Dtype::F32 => Ok(view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        other => Err(format!("{other:?} in place of F32")),
    }
}

fn read_adapter(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let read = |(name, view): (String, TensorView<'_>)| {
        let values = floats(&view).map_err(|e| format!("{name}: {e}"))?;
        Ok((name, Tensor { shape: view.shape().to_vec(), values }))
    };
    file.tensors().into_iter().map(read).collect()
}

fn read_optimizer(bytes: &[u8]) -> Result<BTreeMap<String, OptimizerState>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let parts: BTreeMap<String, TensorView<'_>> = file.tensors().into_iter().collect();
    let mut out = BTreeMap::new();
    let mut used = 0;
    for name in parts.keys().filter_map(|n| n.strip_suffix(".m")) {
        let part = |part: &str| parts.get(&format!("{name}.{part}")).ok_or_else(|| format!("there is no {name}.{part}"));
        let floats = |key: &str| part(key).and_then(|v| floats(v).map_err(|e| format!("{name}.{key}: {e}")));
        let (m, v) = (part("m")?, part("v")?);
        let state = match (m.dtype(), v.dtype()) {
            (Dtype::F32, Dtype::F32) => {
                used += 2;
                OptimizerState::ThirtyTwo { m: floats("m")?, v: floats("v")? }
            }
            (Dtype::U8, Dtype::U8) => {
                used += 4;
                let (m_absmax, v_absmax) = (floats("m_absmax")?, floats("v_absmax")?);
                OptimizerState::Eight { m: m.data().to_vec(), v: v.data().to_vec(), m_absmax, v_absmax }
            }
            (m, v) => return Err(format!("{name} has moments of types {m:?} and {v:?}")),
        };
        if m.data().len() != v.data().len() {
            return Err(format!("{name} has moments of different lengths"));
        }
        out.insert(name.to_owned(), state);
    }
    if used == parts.len() { Ok(out) } else { Err("there are tensors of no optimizer state".to_owned()) }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
