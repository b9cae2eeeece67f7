//! `trainer plugin update`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use trainer_plugin_store::Reference;
use trainer_runtime::plugin_manager;

use super::add::details;
use super::store::{PinArgs, TakeArgs, titled};
use crate::output::{check_json, json_on_stdout, write_json};

pub const UPDATE_EXAMPLES: &str = "\
Examples:
  trainer plugin update
  trainer plugin update my_mix --from oci://ghcr.io/me/my_mix:1.1.0";

/// `trainer plugin update`
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Their names. None: all that are installed, and all that plugins.lock pins.
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Another place, for one plugin.
    #[arg(long, value_name = "PLACE")]
    pub from: Option<String>,
    #[command(flatten)]
    pub take: TakeArgs,
    #[command(flatten)]
    pub pin: PinArgs,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &UpdateArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    if args.from.is_some() && args.names.len() != 1 {
        bail!("--from goes with the name of one plugin");
    }
    let mut options = args.take.options();
    let from = match &args.from {
        Some(place) => {
            let (reference, sha256) = Reference::parse(place)?;
            options.sha256 = sha256;
            Some(reference)
        }
        None => None,
    };
    let updated = plugin_manager()?.update(&args.names, from.as_ref(), &options, args.pin.file().as_deref())?;
    if !json_on_stdout(args.json.as_deref()) {
        for plugin in &updated {
            if plugin.before.digest == plugin.now.entry.digest {
                say!("unchanged {}", titled(&plugin.now.name, &plugin.now.entry));
            } else {
                say!(
                    "updated {} to {} ({})",
                    titled(&plugin.now.name, &plugin.before),
                    plugin.now.entry.version,
                    plugin.now.entry.digest.short()
                );
                details(&plugin.now);
            }
        }
        if updated.is_empty() {
            say!("no plugin is installed");
        }
    }
    if let Some(target) = &args.json {
        write_json(target, &json!({ "plugins": updated }))?;
    }
    Ok(ExitCode::SUCCESS)
}
