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
use trainer_plugin_host::{Grants, HostOptions, PluginHost};
use trainer_runtime::compiler_command;

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

/// What flags grant the one plugin in use. The plugin's name before a grant may be left out only in form: it is checked.
fn grants(args: &GrantArgs, plugin: &str) -> Result<Grants> {
    if !args.isolate.is_empty() {
        anyhow::bail!("--isolate is for evaluation, chat and serving: an author's calls run in this process");
    }
    let own = |flag: &'static str, text: &str| match text.split_once(':') {
        Some((name, grant)) if name == plugin => Ok(grant.to_owned()),
        _ => Err(anyhow::anyhow!("{flag} begins with the plugin's name, `{plugin}:`")),
    };
    let granted = args.grant.iter().map(|g| own("--grant", g)).collect::<Result<Vec<_>>>()?;
    let mut secrets = Vec::new();
    for secret in &args.secret {
        let secret = own("--secret", secret)?;
        let (key, source) = secret.split_once('=').context("write --secret PLUGIN:KEY=env:NAME, or file:PATH in place of env:NAME")?;
        secrets.push((key.to_owned(), source.to_owned()));
    }
    Ok(Grants::parse(granted.iter().map(String::as_str), secrets.iter().map(|(k, s)| (k.as_str(), s.as_str())))?)
}

/// A JSON value given as text on the command line.
fn json_argument(flag: &str, text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("{flag} is no JSON: {text}"))
}
