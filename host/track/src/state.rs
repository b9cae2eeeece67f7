//! How far a tracker is, in `track/NAME.json` of the run directory.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::sink::{Item, SinkError};

/// A tracker's notes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Every step up to this one is delivered.
    pub step: u64,
    /// Every sample up to this step is delivered; none, if none is.
    pub sample: Option<u64>,
    /// Evaluations that are delivered.
    pub evaluations: BTreeSet<String>,
    /// Whether the end was delivered.
    pub closed: bool,
    /// What the tracker itself keeps.
    pub memory: Value,
}

impl State {
    /// The file of a tracker.
    pub fn path(run: &Path, tracker: &str) -> PathBuf {
        run.join("track").join(format!("{tracker}.json"))
    }

    /// The notes, or those of a tracker that has nothing yet: a file that cannot be read costs a repetition, no more.
    pub fn load(path: &Path) -> Self {
        std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Writes them so that the old or the new ones are there in full. Not synced to disk: after a crash of the machine older notes only mean that
    /// something is delivered twice.
    pub fn store(&self, path: &Path) -> Result<(), SinkError> {
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(SinkError::file("create", folder))?;
        let text = serde_json::to_vec_pretty(self).map_err(|e| SinkError::new(e.to_string()))?;
        let temporary = path.with_extension("tmp");
        std::fs::write(&temporary, text).map_err(SinkError::file("write", &temporary))?;
        std::fs::rename(&temporary, path).map_err(SinkError::file("write", path))
    }

    /// Notes that items were delivered.
    pub fn delivered(&mut self, items: &[Item]) {
        for item in items {
            match item {
                Item::Step { step, .. } => self.step = self.step.max(*step),
                Item::Evaluation { name, .. } => drop(self.evaluations.insert(name.clone())),
                Item::Sample { step, .. } => self.sample = self.sample.max(Some(*step)),
            }
        }
    }

    /// Whether an item is among what was delivered.
    pub fn has(&self, item: &Item) -> bool {
        match item {
            Item::Step { step, .. } => *step <= self.step,
            Item::Evaluation { name, .. } => self.evaluations.contains(name),
            Item::Sample { step, .. } => self.sample.is_some_and(|s| *step <= s),
        }
    }
}
