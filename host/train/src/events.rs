//! What a run tells whoever watches it. The run itself prints nothing.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use trainer_eval::Report;
use trainer_runs::records::EvalMetrics;
use trainer_runtime::{CardUse, DeviceInfo, Machine};

/// A plugin of the run.
#[derive(Clone, Debug, Serialize)]
pub struct PluginInfo {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// sha256 of the component, hexadecimal.
    pub sha256: String,
    /// Its kinds with the version of each contract.
    pub kinds: Vec<String>,
    /// What the user granted it.
    pub grants: Vec<String>,
}

/// A source of the run.
#[derive(Clone, Debug, Serialize)]
pub struct SourceInfo {
    /// Its name.
    pub name: String,
    /// Where its rows come from.
    pub path: String,
    /// How many rows it has, where known.
    pub rows: Option<u64>,
    /// The formatter of its rows.
    pub formatter: String,
}

/// What a run is about to do.
#[derive(Clone, Debug, Serialize)]
pub struct Banner {
    /// This program's version.
    pub trainer: String,
    /// The backend.
    pub backend: String,
    /// Compute threads.
    pub threads: usize,
    /// What computes.
    pub device: DeviceInfo,
    /// The machine.
    pub machine: Machine,
    /// The base model's name.
    pub model: String,
    /// How its frozen weights are held.
    pub quantization: String,
    /// Parameters of the base model.
    pub parameters: u64,
    /// Trained parameters.
    pub trainable: u64,
    /// The plugins.
    pub plugins: Vec<PluginInfo>,
    /// The sources in the recipe's order.
    pub sources: Vec<SourceInfo>,
    /// The mixing policy.
    pub mixer: String,
    /// Draws in one pass over the mix, where the policy knows.
    pub epoch: Option<u64>,
    /// Samples in a micro-batch.
    pub batch: usize,
    /// Micro-batches in a step.
    pub accumulation: usize,
    /// Optimizer steps.
    pub steps: u64,
    /// What the run will hold in memory, by part, in bytes.
    pub memory: Vec<(String, u64)>,
    /// The run directory.
    pub dir: PathBuf,
    /// The step that a resumed run continues after.
    pub resumed_after: Option<u64>,
}

/// One optimizer step.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StepInfo {
    /// Its number, from 1.
    pub step: u64,
    /// Steps in the run.
    pub total: u64,
    /// Weighted mean loss over the step's target tokens, in nats.
    pub loss: f64,
    /// The learning rate used.
    pub lr: f64,
    /// The gradient's norm before clipping.
    pub grad_norm: f64,
    /// Tokens in the step.
    pub tokens: u64,
    /// Wall-clock time of the step.
    #[serde(skip)]
    pub time: Duration,
    /// The part of it spent waiting for data.
    #[serde(skip)]
    pub waited: Duration,
    /// The process's resident memory after it, in bytes, where the system tells.
    #[serde(skip)]
    pub memory: Option<u64>,
    /// What the card had to do since the last step, where that is known.
    #[serde(skip)]
    pub card: CardUse,
}

/// Which evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// Before training.
    Before,
    /// During training, after this step.
    Step(u64),
    /// After it.
    After,
}

impl When {
    /// The name in files.
    pub fn name(self) -> String {
        match self {
            Self::Before => "before".to_owned(),
            Self::Step(step) => EvalMetrics::report_name(step),
            Self::After => "after".to_owned(),
        }
    }
}

impl std::fmt::Display for When {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Before => f.write_str("before training"),
            Self::Step(step) => write!(f, "after step {step}"),
            Self::After => f.write_str("after training"),
        }
    }
}

/// Something that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// Rows are prepared before the run begins (`data.cache = "prepare"`).
    Preparing {
        /// The source.
        source: &'a str,
        /// Rows that are done.
        done: u64,
        /// Rows in all.
        total: u64,
    },
    /// Everything is loaded.
    Ready(&'a Banner),
    /// Something that the user should know before training.
    Warning(&'a str),
    /// An evaluation goes on.
    Evaluating {
        /// Which.
        when: When,
        /// Answers that are complete.
        done: usize,
        /// Answers in all.
        total: usize,
    },
    /// An evaluation is complete.
    Evaluated {
        /// Which.
        when: When,
        /// Its report.
        report: &'a Report,
    },
    /// An evaluation during training is in `evals.jsonl`.
    Measured(&'a EvalMetrics),
    /// A step is complete.
    Step(&'a StepInfo),
    /// A checkpoint is on disk.
    Checkpoint {
        /// After this step.
        step: u64,
    },
    /// Training is complete; the losses of all steps, those before a resume included.
    Trained {
        /// Step and loss.
        losses: &'a [(u64, f64)],
    },
    /// The sample answer begins.
    SamplePrompt(&'a str),
    /// A piece of it.
    SampleText(&'a str),
    /// It is complete.
    SampleEnd,
    /// It is in `samples.jsonl`.
    SampleKept {
        /// After this step.
        step: u64,
    },
}
