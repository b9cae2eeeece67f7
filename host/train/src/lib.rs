//! The training run: loop, run directory, lock, checkpoints and exact resume.

pub mod checkpoint;
pub mod files;
pub mod lock;
pub mod metrics;
pub mod rundir;
