//! `trainer plugin remove`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use trainer_runtime::plugin_manager;

use super::store::PinArgs;
use crate::output::{check_json, json_on_stdout, write_json};

/// `trainer plugin remove`
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Their names. They are removed from plugins.lock too, where it pins them.
    #[arg(value_name = "NAME", required_unless_present = "unused")]
    pub names: Vec<String>,
    /// Remove the components that no name has, such as those that updates left behind. Runs that were made with them, and other projects' pins, then have to
    /// fetch them again.
    #[arg(long)]
    pub unused: bool,
    #[command(flatten)]
    pub pin: PinArgs,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &RemoveArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let manager = plugin_manager()?;
    let pins = args.pin.file();
    let removed = if args.names.is_empty() { Vec::new() } else { manager.remove(&args.names, pins.as_deref())? };
    let unused = if args.unused { manager.prune()? } else { Vec::new() };
    if !json_on_stdout(args.json.as_deref()) {
        for plugin in &removed {
            let pin = plugin.unpinned_in.as_ref().map_or_else(String::new, |p| format!(", and from {}", p.display()));
            say!("removed {}{pin}", plugin.name);
        }
        for digest in &unused {
            say!("removed {digest}, which no name has");
        }
    }
    if let Some(target) = &args.json {
        write_json(target, &json!({ "removed": removed, "unused": unused }))?;
    }
    Ok(ExitCode::SUCCESS)
}
