//! `trainer doctor`

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use trainer_runtime::diagnose;

use crate::output::{check_json, put, write_json};
use crate::ui::diagnosis;

/// Runs the command: what is missing is told, never an error.
pub fn run(json: Option<&Path>) -> Result<ExitCode> {
    check_json(json)?;
    let found = diagnose();
    match json {
        Some(target) => write_json(target, &found)?,
        None => put(format_args!("{}", diagnosis(&found))),
    }
    Ok(ExitCode::SUCCESS)
}
