//! `trainer plugin`

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use trainer_plugin_host::{Kind, Limits};
use trainer_runtime::find_plugin;

use crate::output::{check_json, write_json};
use crate::ui::{bytes, count};

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
    if !about.empty_world.is_empty() {
        say!("  wasi     met by an empty world: no arguments, environment, files, network; clocks stand still, random bytes from a fixed seed");
    }
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
pub fn list(kind: Option<Kind>, json: Option<&Path>) -> Result<ExitCode> {
    check_json(json)?;
    let mut all = Vec::new();
    for plugin in trainer_nano::PLUGINS {
        let about = find_plugin(plugin.name)?.source().inspect(&Limits::default())?;
        if kind.is_none_or(|k| about.kinds.iter().any(|have| have.kind == k)) {
            all.push(about);
        }
    }
    if let Some(target) = json {
        write_json(target, &serde_json::json!({ "plugins": all }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for about in all {
        let kinds: Vec<String> = about.kinds.iter().map(|k| format!("{}@{}", k.kind, k.version)).collect();
        say!("{:<14} {:<8} {}", about.name, about.version, kinds.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}
