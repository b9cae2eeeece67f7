//! Trackers that follow a run: TensorBoard event files, MLflow's REST interface, Weights & Biases offline runs.
//!
//! The queue of every tracker is the run directory itself. A tracker has a thread that is woken when something was written there, reads what
//! it has not delivered yet, a bounded piece at a time, and notes in `track/NAME.json` how far it is. So waking never waits, nothing is lost
//! while a server is down, and a resumed run, or a later process, goes on with what is missing. Whatever goes wrong here is told once and never
//! ends a run.

mod checksum;
mod follow;
mod http;
mod leveldb;
mod mlflow;
mod proto;
mod sink;
mod state;
mod tensorboard;
mod tfrecord;
mod wandb;
mod worker;

use std::path::PathBuf;
use std::time::Duration;

pub use worker::{Delivery, Trackers};

/// A tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Event files.
    TensorBoard,
    /// A server.
    Mlflow,
    /// An offline run.
    Wandb,
}

impl Kind {
    /// The name in recipes and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::TensorBoard => "tensorboard",
            Self::Mlflow => "mlflow",
            Self::Wandb => "wandb",
        }
    }
}

/// What trackers need to know.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The run directory.
    pub dir: PathBuf,
    /// MLflow's experiment and W&B's project.
    pub project: String,
    /// The run's name there.
    pub name: String,
    /// MLflow's server.
    pub mlflow_uri: Option<String>,
    /// Optimizer steps in the run.
    pub steps: u64,
    /// The trackers, each once.
    pub trackers: Vec<Kind>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is done.
    Complete,
    /// It was interrupted and can be continued.
    Stopped,
    /// An error ended it.
    Failed,
}

/// How long the end of a run waits for trackers that are behind.
pub const PATIENCE: Duration = Duration::from_secs(10);
