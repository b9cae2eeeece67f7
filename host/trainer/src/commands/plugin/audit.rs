//! `trainer plugin audit`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use trainer_config::Recipe;
use trainer_plugin_store::{Audit, Level, Pins, Used};
use trainer_runtime::{official_names, plugin_manager};

use super::store::{signed, titled};
use crate::output::{check_json, json_on_stdout, write_json};

pub const AUDIT_EXAMPLES: &str = "\
Examples:
  trainer plugin audit
  trainer plugin audit recipe.toml --online --json";

/// `trainer plugin audit`
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// A recipe, whose plugins are compared with plugins.lock beside it and with what is there. None: plugins.lock of the current folder is looked at, if
    /// there is one.
    pub recipe: Option<PathBuf>,
    /// Look at this file of pins in place of plugins.lock.
    #[arg(long, value_name = "FILE")]
    pub lock_file: Option<PathBuf>,
    /// Ask the places where plugins came from what is there now.
    #[arg(long)]
    pub online: bool,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &AuditArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let pins = match &args.lock_file {
        Some(path) => Some(Pins::load(path)?.ok_or_else(|| anyhow::anyhow!("there is no {}", path.display()))?),
        None => Pins::beside(args.recipe.as_deref())?,
    };
    let official = official_names();
    let mut used = Vec::new();
    if let Some(path) = &args.recipe {
        let recipe = Recipe::load(path)?;
        for name in recipe.plugin_names() {
            let entry = recipe.plugins.get(&name);
            let file = entry.and_then(|e| e.path.clone());
            if file.is_none() && official.contains(&name.as_str()) {
                continue;
            }
            let sha256 = entry.and_then(|e| e.sha256.as_deref()).map(|s| s.parse().map_err(|e: String| anyhow::anyhow!(e))).transpose()?;
            used.push(Used { name: name.to_string(), path: file, sha256 });
        }
    }
    let reserved = official.iter().map(|n| (*n).to_owned()).collect();
    let report = plugin_manager()?.audit(&Audit { pins, used, online: args.online, reserved })?;
    let good = report.is_good();
    if !json_on_stdout(args.json.as_deref()) {
        for plugin in &report.plugins {
            say!(
                "{}: {}, from {}",
                titled(&plugin.name, &plugin.entry),
                signed(&plugin.entry, plugin.signed_by.as_deref()),
                plugin.entry.reference
            );
        }
        for finding in &report.findings {
            let level = if finding.level == Level::Problem { "PROBLEM" } else { "note" };
            say!("{level}: {}: {}", finding.plugin, finding.message);
        }
        let problems = report.findings.iter().filter(|f| f.level == Level::Problem).count();
        say!("{} components hashed, {problems} problems", report.components);
    }
    if let Some(target) = &args.json {
        let mut value = serde_json::to_value(&report)?;
        value["good"] = json!(good);
        write_json(target, &value)?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
