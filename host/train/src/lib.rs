//! The training run: loop, run directory, lock, checkpoints and exact resume.
