//! `trainer plugin`: an author's loop, looking at plugins, and the store of other people's.

pub mod add;
pub mod audit;
mod author;
mod bench;
mod call;
pub mod keys;
mod look;
pub mod push;
pub mod remove;
mod store;
pub mod update;

use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::Value;
use trainer_plugin_host::{Grants, HostOptions, Inspection, Limits, PluginHost};
use trainer_runtime::{PluginArg, check_policy, compiler_command, find_plugin, grants_of};

use crate::cli::{GrantArgs, PluginCommand};
use crate::output::put;

/// Runs the command.
pub fn run(command: PluginCommand) -> Result<ExitCode> {
    match command {
        PluginCommand::New(args) => author::new(&args),
        PluginCommand::Build(args) => author::build(&args),
        PluginCommand::Test(args) => author::test(&args),
        PluginCommand::Run(args) => call::run(&args),
        PluginCommand::Bench(args) => bench::run(&args),
        PluginCommand::Doc { kind } => {
            put(format_args!("{}", trainer_plugin_dev::contract::markdown(kind)?));
            Ok(ExitCode::SUCCESS)
        }
        PluginCommand::Inspect { plugin, json } => look::inspect(&plugin, json.as_deref()),
        PluginCommand::List { kind, installed, json } => look::list(kind, installed, json.as_deref()),
        PluginCommand::Add(args) => add::run(&args),
        PluginCommand::Remove(args) => remove::run(&args),
        PluginCommand::Update(args) => update::run(&args),
        PluginCommand::Audit(args) => audit::run(&args),
        PluginCommand::Push(args) => push::run(&args),
        PluginCommand::Sign(args) => keys::sign(&args),
        PluginCommand::Keys(command) => keys::run(command),
    }
}

/// A host with the user's cache of compiled plugins.
fn host() -> Result<PluginHost> {
    let mut options = HostOptions::new(compiler_command()?);
    options.cache_dir = trainer_runtime::plugin_cache_dir();
    Ok(PluginHost::new(options)?)
}

/// A plugin to run: looked at, and held to the signatures that the user and the project require.
fn usable(argument: &str) -> Result<(PluginArg, Inspection)> {
    let plugin = find_plugin(argument)?;
    let about = plugin.source().inspect(&Limits::default())?;
    check_policy(&about.name, &plugin, &about.digest)?;
    Ok((plugin, about))
}

/// What flags grant the one plugin in use.
fn grants(args: &GrantArgs, plugin: &str) -> Result<Grants> {
    if !args.isolate.is_empty() {
        anyhow::bail!("--isolate is for evaluation, chat and serving: an author's calls run in this process");
    }
    Ok(grants_of(plugin, &args.grant, &args.secret)?)
}

/// A JSON value given as text on the command line.
fn json_argument(flag: &str, text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("{flag} is no JSON: {text}"))
}
