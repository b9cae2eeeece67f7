//! The run directory: where everything that a run writes lies, held by one process at a time.
//!
//! ```text
//! recipe.toml      the resolved recipe
//! lock.json        what decides the run's result (see [`crate::lock`])
//! metrics.jsonl    each step's values, the same for the same run
//! timings.jsonl    each step's times
//! evals.jsonl      the numbers of evaluations during training, by step, the same for the same run
//! samples.jsonl    sample answers by step
//! checkpoints/     see [`crate::checkpoint`]
//! adapter/         the final adapter in PEFT's format
//! adapter-best/    that of the step that was best by eval.best
//! .best/           those of steps that were best at a checkpoint, for a run that goes back there
//! eval/            evaluation results
//! track/           how far each tracker is; tensorboard/ and wandb/ hold what two of them write
//! run.lock         locked by the process at work; holds its id
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::checkpoint::{CheckpointError, Checkpoints};
use crate::files::{Disk, FileError, Storage, parent, sync_dir, write_atomically};
use crate::lock::{Lock, LockError};
use trainer_runs::stamp;

const RECIPE: &str = "recipe.toml";
const LOCK: &str = "lock.json";
const HELD: &str = "run.lock";

/// Why there is no run directory.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// The system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// The lock file cannot be read or written.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The checkpoints cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A new run would overwrite something.
    #[error("{} {what}; choose another folder with --out, or continue a run with --resume", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// What is in the way.
        what: &'static str,
    },
    /// Not the directory of a run.
    #[error("{} is not a run directory: it has no {missing}", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
        /// The file that every run directory has.
        missing: &'static str,
    },
    /// Another process works on it.
    #[error("{} is in use by process {pid}; wait until it ends, or stop it", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The other process, as far as it is known.
        pid: String,
    },
}

/// A run directory. One that can be written holds a lock until it is dropped.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    /// Locked while this is alive; none for one that is only read.
    held: Option<File>,
}

impl RunDir {
    /// Makes the directory of a new run. It appears under its name with recipe and lock in it, or not at all.
    ///
    /// # Errors
    /// [`RunDirError::Occupied`] if there is something at `root` other than an empty folder; or if the system refuses.
    pub fn create(root: &Path, recipe: &str, lock: &Lock) -> Result<Self, RunDirError> {
        Self::create_in(&Disk, root, recipe, lock)
    }

    fn create_in(storage: &impl Storage, root: &Path, recipe: &str, lock: &Lock) -> Result<Self, RunDirError> {
        // With the working folder moved away later, or `root` being `.`, a relative path would mean something else.
        let root = std::path::absolute(root).map_err(FileError::at("resolve", root))?;
        check_free(&root)?;
        let above = parent(&root).to_owned();
        fs::create_dir_all(&above).map_err(FileError::at("create", &above))?;
        let mut name = std::ffi::OsString::from(".");
        name.push(root.file_name().unwrap_or_default());
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = above.join(name);
        let built = build(storage, &temporary, recipe, lock).and_then(|held| {
            // Replaces an empty folder; fails if something has come into it meanwhile.
            storage.rename(&temporary, &root).map_err(FileError::at("create", &root))?;
            storage.sync_dir(&above).map_err(FileError::at("sync", &above))?;
            Ok(held)
        });
        match built {
            Ok(held) => Ok(Self { root, held: Some(held) }),
            Err(error) => {
                if temporary.exists() {
                    let _ = storage.remove_dir(&temporary);
                }
                Err(error)
            }
        }
    }

    /// Opens a run to continue it or to write into it.
    ///
    /// # Errors
    /// [`RunDirError::NotARun`]; [`RunDirError::InUse`] if another process has it; or if the system refuses.
    pub fn open(root: &Path) -> Result<Self, RunDirError> {
        let mut this = Self::view(root)?;
        let path = this.root.join(HELD);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(FileError::at("open", &path))?;
        match lock_patiently(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // The number only helps to find the other process.
                let _ = Read::by_ref(&mut file).take(32).read_to_string(&mut pid);
                let pid = pid.trim();
                let pid = if pid.is_empty() { "(unknown)" } else { pid }.to_owned();
                return Err(RunDirError::InUse { path: this.root, pid });
            }
            Err(TryLockError::Error(e)) => return Err(FileError::at("lock", &path)(e).into()),
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(FileError::at("write", &path))?;
        this.held = Some(file);
        this.clean()?;
        Ok(this)
    }

    /// Opens a run only to read it, also while another process works on it.
    ///
    /// # Errors
    /// [`RunDirError::NotARun`].
    pub fn view(root: &Path) -> Result<Self, RunDirError> {
        let root = std::path::absolute(root).map_err(FileError::at("resolve", root))?;
        for missing in [RECIPE, LOCK] {
            if !root.join(missing).is_file() {
                return Err(RunDirError::NotARun { path: root, missing });
            }
        }
        Ok(Self { root, held: None })
    }

    /// The directory, as an absolute path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether this process holds the directory's lock.
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// `recipe.toml`.
    pub fn recipe_path(&self) -> PathBuf {
        self.root.join(RECIPE)
    }

    /// `lock.json`.
    pub fn lock_path(&self) -> PathBuf {
        self.root.join(LOCK)
    }

    /// `metrics.jsonl`.
    pub fn metrics_path(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// `timings.jsonl`.
    pub fn timings_path(&self) -> PathBuf {
        self.root.join("timings.jsonl")
    }

    /// `evals.jsonl`.
    pub fn evals_path(&self) -> PathBuf {
        self.root.join("evals.jsonl")
    }

    /// `samples.jsonl`.
    pub fn samples_path(&self) -> PathBuf {
        self.root.join("samples.jsonl")
    }

    /// `checkpoints/`.
    pub fn checkpoints_path(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// `adapter/`: the final adapter; it is there when the run has ended.
    pub fn adapter_path(&self) -> PathBuf {
        self.root.join("adapter")
    }

    /// `eval/`.
    pub fn eval_path(&self) -> PathBuf {
        self.root.join("eval")
    }

    /// The lock that the run was started with.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn lock(&self) -> Result<Lock, RunDirError> {
        Ok(Lock::load(&self.lock_path())?)
    }

    /// The run's checkpoints, of which the newest `keep` are kept; only to be read if the directory is not held.
    ///
    /// # Errors
    /// If the folder cannot be made or cleaned.
    pub fn checkpoints(&self, keep: usize) -> Result<Checkpoints, RunDirError> {
        let path = self.checkpoints_path();
        Ok(if self.is_held() { Checkpoints::open(&path, keep)? } else { Checkpoints::view(&path) })
    }

    /// Writes a file of the directory so that the old or the new contents are there in full. `name` may have folders in it.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, RunDirError> {
        let path = self.root.join(name);
        fs::create_dir_all(parent(&path)).map_err(FileError::at("create", parent(&path)))?;
        write_atomically(&Disk, &path, bytes)?;
        Ok(path)
    }

    /// Puts a whole folder (such as `adapter`) in place: `fill` writes into a temporary one, which is synced and renamed. An older one
    /// of that name is replaced.
    ///
    /// # Errors
    /// Whatever `fill` says; or if the system refuses.
    pub fn install<E: From<RunDirError>>(&self, name: &str, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<PathBuf, E> {
        let path = self.root.join(name);
        let temporary = self.root.join(format!(".{name}.tmp"));
        let old = self.root.join(format!(".{name}.old"));
        let failed = |error: FileError| E::from(RunDirError::File(error));
        for leftover in [&temporary, &old] {
            if leftover.exists() {
                fs::remove_dir_all(leftover).map_err(FileError::at("remove", leftover)).map_err(failed)?;
            }
        }
        fs::create_dir(&temporary).map_err(FileError::at("create", &temporary)).map_err(failed)?;
        fill(&temporary)?;
        let replace = || {
            sync_tree(&temporary)?;
            if path.exists() {
                fs::rename(&path, &old).map_err(FileError::at("move aside", &path))?;
            }
            fs::rename(&temporary, &path).map_err(FileError::at("rename to", &path))?;
            sync_dir(&self.root).map_err(FileError::at("sync", &self.root))?;
            if old.exists() {
                fs::remove_dir_all(&old).map_err(FileError::at("remove", &old))?;
            }
            Ok(())
        };
        replace().map_err(failed)?;
        Ok(path)
    }

    /// Removes what a killed process left behind, and completes a replacement that it was in.
    fn clean(&self) -> Result<(), RunDirError> {
        let entries = fs::read_dir(&self.root).map_err(FileError::at("read", &self.root))?;
        for entry in entries {
            let path = entry.map_err(FileError::at("read", &self.root))?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix('.')) else { continue };
            let current = name.strip_suffix(".old").map(|n| self.root.join(n));
            match current {
                Some(current) if !current.exists() => fs::rename(&path, &current).map_err(FileError::at("restore", &current))?,
                None if !name.ends_with(".tmp") => {}
                _ if path.is_dir() => fs::remove_dir_all(&path).map_err(FileError::at("remove", &path))?,
                _ => fs::remove_file(&path).map_err(FileError::at("remove", &path))?,
            }
        }
        Ok(())
    }
}

/// Takes the lock. Whoever lists runs holds it for an instant, so one refusal is not believed.
fn lock_patiently(file: &File) -> Result<(), TryLockError> {
    const TRIES: u32 = 10;
    for _ in 1..TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            other => return other,
        }
    }
    file.try_lock()
}

/// Fills a new run directory and takes its lock, which stays with it when it is renamed.
fn build(storage: &impl Storage, dir: &Path, recipe: &str, lock: &Lock) -> Result<File, RunDirError> {
    if dir.exists() {
        // Of a killed process that had the same id.
        storage.remove_dir(dir).map_err(FileError::at("remove", dir))?;
    }
    storage.create_dir(dir).map_err(FileError::at("create", dir))?;
    for (name, bytes) in [(HELD, format!("{}\n", std::process::id())), (RECIPE, recipe.to_owned()), (LOCK, lock.to_json()?)] {
        let path = dir.join(name);
        storage.write(&path, bytes.as_bytes()).map_err(FileError::at("write", &path))?;
    }
    storage.sync_dir(dir).map_err(FileError::at("sync", dir))?;
    let path = dir.join(HELD);
    let held = OpenOptions::new().read(true).write(true).open(&path).map_err(FileError::at("open", &path))?;
    match held.try_lock() {
        Ok(()) => Ok(held),
        Err(TryLockError::WouldBlock) => Err(RunDirError::InUse { path: dir.to_owned(), pid: "(unknown)".to_owned() }),
        Err(TryLockError::Error(e)) => Err(FileError::at("lock", &path)(e).into()),
    }
}

/// Whether a new run may be made at a path.
fn check_free(root: &Path) -> Result<(), RunDirError> {
    let occupied = |what| Err(RunDirError::Occupied { path: root.to_owned(), what });
    match fs::symlink_metadata(root) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(FileError::at("look at", root)(e).into()),
        Ok(m) if !m.is_dir() => occupied("exists and is no folder"),
        Ok(_) if root.join(RECIPE).is_file() && root.join(LOCK).is_file() => occupied("already holds a run"),
        Ok(_) => match fs::read_dir(root).map_err(FileError::at("read", root))?.next() {
            None => Ok(()),
            Some(_) => occupied("is not empty"),
        },
    }
}

/// Syncs every file and folder below a folder.
fn sync_tree(dir: &Path) -> Result<(), FileError> {
    for entry in fs::read_dir(dir).map_err(FileError::at("read", dir))? {
        let path = entry.map_err(FileError::at("read", dir))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path).and_then(|f| f.sync_all()).map_err(FileError::at("sync", &path))?;
        }
    }
    sync_dir(dir).map_err(FileError::at("sync", dir))
}

/// The place of a run that was given none: `runs/<date-time>-<plugin>` (UTC), with a number where that is taken.
pub fn default_path(plugin: &str, now: SystemTime) -> PathBuf {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let base = format!("{}-{plugin}", stamp(seconds));
    let runs = Path::new("runs");
    let mut path = runs.join(&base);
    let mut number = 2u32;
    while path.exists() && number < u32::MAX {
        path = runs.join(format!("{base}-{number}"));
        number += 1;
    }
    path
}

/// A time for people, `YYYY-MM-DDTHH-MM-SS` in UTC.
pub fn utc(now: SystemTime) -> String {
    stamp(now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))
}

#[cfg(test)]
#[path = "rundir_tests.rs"]
mod tests;
