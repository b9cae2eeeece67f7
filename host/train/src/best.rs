//! `adapter-best`: the adapter of the step that was best, as the evaluations up to the present step have it.
//!
//! A resumed run may stand before the step whose adapter is there. So the adapter of a step that was best before it is kept in `.best` as long as there
//! is a checkpoint from which the run could go back to it, and is put into its place again on resuming.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use trainer_model::{Adapter, ModelFiles};
use trainer_runtime::adapter_digest;

use crate::error::TrainError;
use crate::files::{FileError, sync_dir};
use crate::metrics::EvalMetrics;
use crate::rundir::{RunDir, RunDirError};

/// The folder in the run directory.
pub(crate) const NAME: &str = "adapter-best";
const ASIDE: &str = ".best";

/// The evaluation that was best after a step.
pub(crate) fn at(measured: &[EvalMetrics], step: u64) -> Option<&EvalMetrics> {
    measured.iter().rev().find(|line| line.best && line.step <= step)
}

/// The place of a step's adapter that is not the best any more.
fn aside(dir: &RunDir, step: u64) -> PathBuf {
    dir.root().join(ASIDE).join(format!("step-{step}"))
}

fn failed(error: FileError) -> TrainError {
    RunDirError::File(error).into()
}

fn remove(path: &Path) -> Result<(), TrainError> {
    if path.exists() { fs::remove_dir_all(path).map_err(FileError::at("remove", path)).map_err(failed) } else { Ok(()) }
}

/// Keeps the adapter of `step` that is to be replaced by a better one.
pub(crate) fn set_aside(dir: &RunDir, step: u64) -> Result<(), TrainError> {
    let (from, to) = (dir.root().join(NAME), aside(dir, step));
    if !from.exists() {
        return Ok(());
    }
    let folder = dir.root().join(ASIDE);
    fs::create_dir_all(&folder).map_err(FileError::at("create", &folder)).map_err(failed)?;
    remove(&to)?;
    let rename = || {
        fs::rename(&from, &to).map_err(FileError::at("rename to", &to))?;
        sync_dir(&folder).map_err(FileError::at("sync", &folder))?;
        sync_dir(dir.root()).map_err(FileError::at("sync", dir.root()))
    };
    rename().map_err(failed)
}

/// Makes `adapter-best` that of the evaluation that is the best now; none if there is none.
pub(crate) fn restore(dir: &RunDir, best: Option<&EvalMetrics>) -> Result<(), TrainError> {
    let current = dir.root().join(NAME);
    let Some(best) = best else { return remove(&current) };
    let is_it = |path: &Path| {
        let digest = Adapter::read(&ModelFiles::dir(path)).ok().and_then(|adapter| adapter_digest(&adapter).ok());
        digest.is_some_and(|digest| digest == best.adapter)
    };
    if is_it(&current) {
        return Ok(());
    }
    let kept = aside(dir, best.step);
    if !is_it(&kept) {
        tracing::warn!(
            "the adapter of step {}, which was best so far, is gone: {} comes back with the next better step",
            best.step,
            current.display()
        );
        return remove(&current);
    }
    dir.install(NAME, |folder| {
        for entry in fs::read_dir(&kept).map_err(FileError::at("read", &kept)).map_err(failed)? {
            let from = entry.map_err(FileError::at("read", &kept)).map_err(failed)?.path();
            if let Some(name) = from.file_name() {
                fs::copy(&from, folder.join(name)).map_err(FileError::at("copy", &from)).map_err(failed)?;
            }
        }
        Ok::<(), TrainError>(())
    })?;
    Ok(())
}

/// Removes what no checkpoint can go back to.
pub(crate) fn prune(dir: &RunDir, measured: &[EvalMetrics], checkpoints: &[u64]) -> Result<(), TrainError> {
    let folder = dir.root().join(ASIDE);
    if !folder.exists() {
        return Ok(());
    }
    let needed: BTreeSet<PathBuf> = checkpoints.iter().filter_map(|c| at(measured, *c)).map(|line| aside(dir, line.step)).collect();
    let now = at(measured, u64::MAX).map(|line| aside(dir, line.step));
    for entry in fs::read_dir(&folder).map_err(FileError::at("read", &folder)).map_err(failed)? {
        let path = entry.map_err(FileError::at("read", &folder)).map_err(failed)?.path();
        if !needed.contains(&path) || now.as_ref() == Some(&path) {
            remove(&path)?;
        }
    }
    // Only when nothing is in it any more.
    let _ = fs::remove_dir(&folder);
    Ok(())
}
