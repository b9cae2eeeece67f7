//! A run directory as a whole, read leniently: what is missing or not yet written is absent, so that unfinished, stopped and older runs can be
//! looked at too. Nothing is ever written here.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::records::{EvalMetrics, SampleAnswer, StepMetrics, StepTimings};
use crate::shelf::{Journals, Kept, Shelf};
use crate::tail::read_lines;

/// How deep below a folder runs are looked for.
const DEPTH: usize = 4;
/// Configuration files are small; what is larger is not read.
const LARGEST: u64 = 64 << 20;

/// Why a run cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Not the directory of a run.
    #[error("{} is not a run directory: it has no {missing}; `trainer runs list DIR` shows the runs below a folder", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
        /// The file that every run directory has.
        missing: &'static str,
    },
    /// The system refused.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file of the run is not what a run writes.
    #[error("{}: {message}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A process is working on it.
    Running,
    /// All steps are done, or early stopping has ended it, and the adapter is written.
    Complete,
    /// It ended before its last step and can be continued.
    Stopped,
}

impl State {
    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Stopped => "stopped",
        }
    }
}

/// An evaluation's report, as far as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// `before`, `after`, or another report's name.
    #[serde(default)]
    pub name: String,
    /// `<metric>/<aggregate>` to its value.
    pub metrics: BTreeMap<String, f64>,
    /// Standard errors.
    #[serde(default)]
    pub stderr: BTreeMap<String, f64>,
    /// Whether more is better.
    #[serde(default)]
    pub higher_is_better: BTreeMap<String, bool>,
    /// Seconds that it took.
    #[serde(default)]
    pub seconds: f64,
}

/// A run directory.
#[derive(Clone, Debug)]
pub struct Run {
    root: PathBuf,
    /// Where its journals stay in memory.
    journals: Option<Arc<Journals>>,
}

impl Run {
    /// A folder that holds a run.
    ///
    /// # Errors
    /// [`RunError::NotARun`].
    pub fn open(root: &Path) -> Result<Self, RunError> {
        for missing in ["recipe.toml", "lock.json"] {
            if !root.join(missing).is_file() {
                return Err(RunError::NotARun { path: root.to_owned(), missing });
            }
        }
        let root = std::path::absolute(root).map_err(|source| RunError::Read { path: root.to_owned(), source })?;
        Ok(Self { root, journals: None })
    }

    /// The same run with its journals on a shelf: a later look at it reads only what was added.
    #[must_use]
    pub fn on(mut self, shelf: &Shelf) -> Self {
        self.journals = Some(shelf.journals(&self.root));
        self
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder's name.
    pub fn name(&self) -> String {
        self.root.file_name().map_or_else(|| self.root.display().to_string(), |n| n.to_string_lossy().into_owned())
    }

    /// A file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The resolved recipe as JSON.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn recipe(&self) -> Result<Value, RunError> {
        let path = self.file("recipe.toml");
        let text = String::from_utf8_lossy(&small(&path)?).into_owned();
        let table: toml::Table = toml::from_str(&text).map_err(|e| RunError::Broken { path: path.clone(), message: e.to_string() })?;
        serde_json::to_value(table).map_err(|e| RunError::Broken { path, message: e.to_string() })
    }

    /// The lock as JSON.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn lock(&self) -> Result<Value, RunError> {
        let path = self.file("lock.json");
        serde_json::from_slice(&small(&path)?).map_err(|e| RunError::Broken { path, message: e.to_string() })
    }

    /// The steps so far.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn metrics(&self) -> Result<Arc<Vec<StepMetrics>>, RunError> {
        self.lines("metrics.jsonl", |j| &j.metrics)
    }

    /// Their times.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn timings(&self) -> Result<Arc<Vec<StepTimings>>, RunError> {
        self.lines("timings.jsonl", |j| &j.timings)
    }

    /// The sample answers so far.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn samples(&self) -> Result<Arc<Vec<SampleAnswer>>, RunError> {
        self.lines("samples.jsonl", |j| &j.samples)
    }

    /// The evaluations during training so far.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn evals(&self) -> Result<Arc<Vec<EvalMetrics>>, RunError> {
        self.lines("evals.jsonl", |j| &j.evals)
    }

    fn lines<T: serde::de::DeserializeOwned + Clone>(&self, name: &str, kept: fn(&Journals) -> &Kept<T>) -> Result<Arc<Vec<T>>, RunError> {
        let path = self.file(name);
        let read = match &self.journals {
            Some(journals) => kept(journals).records(),
            None => read_lines(&path).map(Arc::new),
        };
        read.map_err(|source| RunError::Read { path, source })
    }

    /// The evaluation reports: `before` and `after` first, then others by name. One that is not whole is left out, and so are those of evaluations
    /// during training, which [`Run::evals`] gives as a course.
    pub fn evaluations(&self) -> Vec<Evaluation> {
        let mut names: Vec<String> = fs::read_dir(self.file("eval")).into_iter().flatten().flatten().filter_map(json_name).collect();
        names.retain(|n| EvalMetrics::step_of(n).is_none());
        names.sort_by_key(|n| (n != "before", n != "after", n.clone()));
        names.iter().filter_map(|name| self.evaluation(name)).collect()
    }

    /// The report of this name, such as `before` or `step-20`, if it is there and whole.
    pub fn evaluation(&self, name: &str) -> Option<Evaluation> {
        let mut report: Evaluation = serde_json::from_slice(&small(&self.file("eval").join(format!("{name}.json"))).ok()?).ok()?;
        report.name = name.to_owned();
        Some(report)
    }

    /// The steps that the run is to have, from its lock.
    pub fn steps(&self) -> Option<u64> {
        self.lock().ok()?.pointer("/plan/steps")?.as_u64()
    }

    /// Where it stands. `done`: the last step of its metrics.
    pub fn state(&self, done: u64) -> State {
        let ended_early = || self.evals().is_ok_and(|e| e.last().is_some_and(|e| e.stopped.is_some() && e.step == done));
        if self.is_held() {
            State::Running
        } else if self.file("adapter").is_dir() && (self.steps().is_some_and(|steps| done >= steps) || ended_early()) {
            State::Complete
        } else {
            State::Stopped
        }
    }

    /// Whether a process works on it: whether its lock is held. The look takes a shared lock for an instant, which opening a run waits out.
    pub fn is_held(&self) -> bool {
        let Ok(file) = File::open(self.file("run.lock")) else { return false };
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    /// When it began: the lock's words, or else the folder's time.
    pub fn started(&self) -> Option<String> {
        Some(self.lock().ok()?.pointer("/recorded/started")?.as_str()?.to_owned())
    }

    /// When something was last written.
    pub fn changed(&self) -> Duration {
        let times = ["metrics.jsonl", "timings.jsonl", "evals.jsonl", "eval", "adapter", "lock.json"].map(|name| {
            let time = fs::metadata(self.file(name)).and_then(|m| m.modified()).unwrap_or(UNIX_EPOCH);
            time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
        });
        times.into_iter().max().unwrap_or_default()
    }
}

/// The name of a report among the files of an evaluation.
fn json_name(entry: fs::DirEntry) -> Option<String> {
    let name = entry.file_name().into_string().ok()?;
    Some(name.strip_suffix(".json")?.to_owned()).filter(|n| !n.starts_with('.'))
}

fn small(path: &Path) -> Result<Vec<u8>, RunError> {
    let read = |source| RunError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(read)?.len() > LARGEST {
        return Err(RunError::Broken { path: path.to_owned(), message: format!("it is larger than {} MiB", LARGEST >> 20) });
    }
    fs::read(path).map_err(read)
}

/// The runs in and below a folder, the newest first. A run's own folders are not searched, links are not followed.
pub fn find(folder: &Path) -> Vec<Run> {
    let mut found = all_below(folder);
    // Each lock is read once.
    found.sort_by_cached_key(|run| std::cmp::Reverse((run.started(), run.name())));
    found
}

/// The runs of [`find`] in no order, without reading any of their files.
pub fn all_below(folder: &Path) -> Vec<Run> {
    let mut found = Vec::new();
    search(folder, DEPTH, &mut found);
    found
}

fn search(folder: &Path, depth: usize, found: &mut Vec<Run>) {
    if let Ok(run) = Run::open(folder) {
        found.push(run);
        return;
    }
    if depth == 0 {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if !hidden && entry.file_type().is_ok_and(|t| t.is_dir()) {
            search(&entry.path(), depth - 1, found);
        }
    }
}
