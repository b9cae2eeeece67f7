//! `trainer plugin inspect` and `trainer plugin list`

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;
use trainer_plugin_host::{ByteSize, Kind, Limits, PluginSource};
use trainer_runtime::{SignatureReport, SignatureState, find_plugin, plugin_manager, signature};

use super::store::signed;
use crate::output::{check_json, write_json};
use crate::ui::{bytes, count};

/// `trainer plugin inspect`
pub fn inspect(plugin: &str, json: Option<&Path>) -> Result<ExitCode> {
    check_json(json)?;
    let plugin = find_plugin(plugin)?;
    let about = plugin.source().inspect(&Limits::default())?;
    let signature = signature(&plugin);
    if let Some(target) = json {
        let mut value = serde_json::to_value(&about)?;
        value["signature"] = serde_json::to_value(&signature)?;
        write_json(target, &value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let list = |items: Vec<String>| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    say!("{} {}", about.name, about.version);
    say!("  {}", about.description);
    say!("  kinds    {}", list(about.kinds.iter().map(|k| format!("{}@{}", k.kind, k.version)).collect()));
    say!("  imports  {}", list(about.imports.clone()));
    if !about.empty_world.is_empty() {
        say!(
            "  wasi     met by an empty world: no arguments, environment, files, network; clocks stand still, random bytes from a fixed seed"
        );
    }
    say!("  needs    {}", list(about.needs.clone()));
    for (i, flag) in about.grant_with.iter().enumerate() {
        say!("  {:<8} {flag}", if i == 0 { "grant" } else { "" });
    }
    say!("  size     {} ({} bytes)", bytes(about.size), count(about.size));
    say!("  sha256   {}", about.digest);
    say!("  signer   {}", worth(&signature));
    if let Some(schema) = &about.settings_schema {
        say!("  settings {}", serde_json::to_string_pretty(schema)?.replace('\n', "\n           "));
    }
    Ok(ExitCode::SUCCESS)
}

/// A signature in words.
fn worth(signature: &SignatureReport) -> String {
    let words = match &signature.state {
        SignatureState::Official => return "none needed: it is part of the program".to_owned(),
        SignatureState::Good { signed_by, id } => return format!("signed by {signed_by} ({id})"),
        SignatureState::Missing => "not signed".to_owned(),
        SignatureState::Bad { claims } => {
            format!("a BAD signature: it claims to be by {claims} and is not; the component or the signature was changed")
        }
        SignatureState::Untrusted { id } => format!("signed with {id}, which is not trusted"),
        SignatureState::Unreadable => "its signature is no minisign signature".to_owned(),
        SignatureState::Unknown { message } => format!("cannot be looked at: {message}"),
    };
    let required = if signature.required { "; signatures are required, so it is not used" } else { "" };
    format!("{words}{required}")
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
        let about = PluginSource::Bytes { name: name.clone(), bytes }.inspect(&limits)?;
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
