//! What a tracker is given and how it can fail.

use std::collections::BTreeMap;

use serde_json::Value;

/// One thing to deliver.
#[derive(Clone, Debug)]
pub enum Item {
    /// A step's values.
    Step {
        /// The step.
        step: u64,
        /// Seconds since 1970.
        at: f64,
        /// Names and values.
        values: Vec<(String, f64)>,
        /// What the machine had to do, which each tracker shows under names of its own.
        load: Load,
    },
    /// An evaluation.
    Evaluation {
        /// Which: `before`, `after`, or `step-N` for one during training.
        name: String,
        /// The step that it stands at.
        step: u64,
        /// Seconds since 1970.
        at: f64,
        /// `eval/<metric>/<aggregate>` and values.
        values: Vec<(String, f64)>,
    },
    /// A sample answer.
    Sample {
        /// After this step.
        step: u64,
        /// Seconds since 1970.
        at: f64,
        /// The question.
        prompt: String,
        /// The answer.
        text: String,
    },
}

/// What the machine had to do in a step, as far as that is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// The process's resident memory, in bytes.
    pub memory: Option<u64>,
    /// The card's mean load, in percent.
    pub gpu: Option<f64>,
    /// Memory of the card in use, in bytes.
    pub gpu_memory: Option<u64>,
    /// All memory of the card, in bytes.
    pub gpu_memory_total: Option<u64>,
}

impl Load {
    /// Memory of the card in use, in percent.
    pub fn gpu_memory_percent(&self) -> Option<f64> {
        let (used, total) = (self.gpu_memory?, self.gpu_memory_total.filter(|t| *t > 0)?);
        Some(100.0 * used as f64 / total as f64)
    }
}

/// What a run is, for a tracker's overview.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// The recipe's settings by dotted key.
    pub settings: BTreeMap<String, Value>,
    /// The recipe as JSON.
    pub recipe: Value,
    /// The recipe's text.
    pub recipe_text: String,
    /// The lock's text.
    pub lock_text: String,
    /// Short facts: program, model, lock digest.
    pub facts: BTreeMap<String, String>,
    /// When the run began, in seconds since 1970.
    pub began: f64,
}

/// Why a tracker did not take something.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SinkError {
    /// For people.
    pub message: String,
    /// Whether the tracker no longer knows the run, so that everything has to be delivered again.
    pub lost: bool,
}

impl SinkError {
    /// One that trying again may mend.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), lost: false }
    }

    /// The tracker does not know the run any more.
    pub fn lost(message: impl Into<String>) -> Self {
        Self { message: message.into(), lost: true }
    }

    /// For `map_err` of file operations.
    pub fn file(action: &str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let text = format!("cannot {action} {}", path.display());
        move |e| Self::new(format!("{text}: {e}"))
    }
}

/// Where a tracker's thread delivers.
pub trait Sink: Send {
    /// Begins or continues the run there. `memory` is what the sink itself keeps between processes. Gives the last step that is known to be
    /// delivered, where the sink can tell that better than its notes.
    fn open(&mut self, about: &About, memory: &mut Value) -> Result<Option<u64>, SinkError>;
    /// Delivers items in their order, all or none as far as can be told.
    fn send(&mut self, items: &[Item]) -> Result<(), SinkError>;
    /// The run has ended.
    fn close(&mut self, outcome: crate::Outcome) -> Result<(), SinkError>;
    /// Where the result can be seen.
    fn place(&self) -> String;
}
