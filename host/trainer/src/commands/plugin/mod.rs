//! `trainer plugin`

pub mod add;
pub mod audit;
pub mod keys;
pub mod push;
pub mod remove;
pub mod update;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use trainer_plugin_host::{ByteSize, Kind, Limits};
use trainer_plugin_store::{AddOptions, PIN_FILE};
use trainer_runtime::{find_plugin, official_names, plugin_manager};

use crate::cli::PluginCommand;
use crate::output::{check_json, write_json};
use crate::ui::{bytes, count};

/// Runs a command.
pub fn run(command: PluginCommand) -> Result<ExitCode> {
    match command {
        PluginCommand::Inspect { plugin, json } => inspect(&plugin, json.as_deref()),
        PluginCommand::List { kind, installed, json } => list(kind, installed, json.as_deref()),
        PluginCommand::Add(args) => add::run(&args),
        PluginCommand::Remove(args) => remove::run(&args),
        PluginCommand::Update(args) => update::run(&args),
        PluginCommand::Audit(args) => audit::run(&args),
        PluginCommand::Push(args) => push::run(&args),
        PluginCommand::Sign(args) => keys::sign(&args),
        PluginCommand::Keys(command) => keys::run(command),
    }
}

/// Which file pins a project's plugins.
#[derive(Debug, Args)]
pub struct PinArgs {
    /// Pin in plugins.lock of the current folder, which is made if it is not there. Where it is there, this needs not be said.
    #[arg(long)]
    pub project: bool,
    /// Pin in this file in place of plugins.lock of the current folder.
    #[arg(long, value_name = "FILE", conflicts_with = "project")]
    pub lock_file: Option<PathBuf>,
}

impl PinArgs {
    /// The file, if there is to be one.
    fn file(&self) -> Option<PathBuf> {
        let usual = Path::new(PIN_FILE);
        self.lock_file.clone().or_else(|| (self.project || usual.exists()).then(|| usual.to_owned()))
    }
}

/// What may come into the store.
#[derive(Debug, Args)]
pub struct TakeArgs {
    /// Install a component whose signature is by a key that is not trusted as if it were not signed. Not where signatures are required.
    #[arg(long)]
    pub ignore_signature: bool,
    /// The largest component.
    #[arg(long, value_name = "SIZE", default_value_t = Limits::default().component_size)]
    pub max_size: ByteSize,
}

impl TakeArgs {
    fn options(&self) -> AddOptions {
        let reserved = official_names().into_iter().map(str::to_owned).collect();
        AddOptions { ignore_signature: self.ignore_signature, max_size: self.max_size, reserved, ..AddOptions::default() }
    }
}

/// How a component is called: name, version and the beginning of its digest.
fn titled(name: &str, entry: &trainer_plugin_store::Entry) -> String {
    format!("{name} {} ({})", entry.version, entry.digest.short())
}

/// Who signed a component.
fn signed(entry: &trainer_plugin_store::Entry, by: Option<&str>) -> String {
    match (&entry.signer, by) {
        (Some(key), Some(name)) => format!("signed by {name} ({})", key.id()),
        (Some(key), None) => format!("signed with {}, which is not trusted any more", key.id()),
        (None, _) => "not signed".to_owned(),
    }
}

/// `trainer plugin inspect`
pub fn inspect(plugin: &str, json: Option<&Path>) -> Result<ExitCode> {
    check_json(json)?;
    let about = find_plugin(plugin)?.source().inspect(&Limits::default())?;
    if let Some(target) = json {
        write_json(target, &about)?;
        return Ok(ExitCode::SUCCESS);
    }
    let list = |items: Vec<String>| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    say!("{} {}", about.name, about.version);
    say!("  {}", about.description);
    say!("  kinds    {}", list(about.kinds.iter().map(|k| format!("{}@{}", k.kind, k.version)).collect()));
    say!("  imports  {}", list(about.imports.clone()));
    say!("  needs    {}", list(about.needs.clone()));
    for (i, flag) in about.grant_with.iter().enumerate() {
        say!("  {:<8} {flag}", if i == 0 { "grant" } else { "" });
    }
    say!("  size     {} ({} bytes)", bytes(about.size), count(about.size));
    say!("  sha256   {}", about.digest);
    if let Some(schema) = &about.settings_schema {
        say!("  settings {}", serde_json::to_string_pretty(schema)?.replace('\n', "\n           "));
    }
    Ok(ExitCode::SUCCESS)
}

/// `trainer plugin list`
pub fn list(kind: Option<Kind>, only_installed: bool, json: Option<&Path>) -> Result<ExitCode> {
    check_json(json)?;
    let mut all = Vec::new();
    let wanted = |kinds: &[trainer_plugin_host::KindVersion]| kind.is_none_or(|k| kinds.iter().any(|have| have.kind == k));
    for plugin in trainer_nano::PLUGINS.iter().filter(|_| !only_installed) {
        let about = find_plugin(plugin.name)?.source().inspect(&Limits::default())?;
        if wanted(&about.kinds) {
            all.push((about, None));
        }
    }
    let manager = plugin_manager()?;
    let limits = Limits { component_size: ByteSize(u64::MAX), ..Limits::default() };
    for (name, entry) in manager.store.index()?.plugins {
        let Some(bytes) = manager.store.read(&entry.digest)? else {
            bail!("the component {} of `{name}` is gone from the store; `trainer plugin remove {name}` and add it again", entry.digest);
        };
        let about = trainer_plugin_host::PluginSource::Bytes { name: name.clone(), bytes }.inspect(&limits)?;
        if wanted(&about.kinds) {
            all.push((about, Some(entry)));
        }
    }
    if let Some(target) = json {
        let mut plugins = Vec::new();
        for (about, entry) in &all {
            let mut value = serde_json::to_value(about)?;
            if let Some(entry) = entry {
                let by = entry.signer.as_ref().map(|key| manager.keys.name_of(key)).transpose()?.flatten();
                value["installed"] = json!({ "reference": entry.reference, "manifest": entry.manifest, "added": entry.added, "signer": entry.signer, "signed_by": by });
            }
            plugins.push(value);
        }
        write_json(target, &json!({ "plugins": plugins }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for (about, entry) in all {
        let kinds: Vec<String> = about.kinds.iter().map(|k| format!("{}@{}", k.kind, k.version)).collect();
        let kinds = kinds.join(", ");
        match entry {
            None => say!("{:<14} {:<8} {kinds}", about.name, about.version),
            Some(entry) => {
                let by = entry.signer.as_ref().map(|key| manager.keys.name_of(key)).transpose()?.flatten();
                say!("{:<14} {:<8} {kinds}; from {}, {}", about.name, about.version, entry.reference, signed(&entry, by.as_deref()));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
