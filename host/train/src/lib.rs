//! The training run: loop, run directory, lock, checkpoints and exact resume.

mod assemble;
mod best;
pub mod checkpoint;
mod error;
mod events;
pub mod files;
pub mod lock;
pub mod metrics;
mod run;
pub mod rundir;
mod state;
mod watch;

pub use assemble::{Assembly, Work, plan_run};
pub use error::TrainError;
pub use events::{Banner, Event, PluginInfo, SourceInfo, StepInfo, When};
pub use run::{RunSummary, Start, run};
pub use watch::BestStep;
