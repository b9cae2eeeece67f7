//! The flags `--grant PLUGIN:GRANT`, `--secret PLUGIN:KEY=SOURCE` and `--isolate PLUGIN`: for a recipe's plugins, or for the one plugin of a command.

use trainer_config::{PluginName, Recipe};
use trainer_plugin_host::Grants;

use crate::error::RuntimeError;

/// A `--secret` flag, read.
struct SecretFlag<'a> {
    plugin: &'a str,
    key: &'a str,
    source: &'a str,
}

/// The plugin and the grant of a `--grant` flag.
fn grant_flag(flag: &str) -> Result<(&str, &str), RuntimeError> {
    let wrong = |message: &str| RuntimeError::GrantFlag { flag: format!("--grant {flag}"), message: message.to_owned() };
    let (plugin, grant) = flag.split_once(':').ok_or_else(|| wrong("write --grant PLUGIN:http=https://HOST"))?;
    Grants::parse([grant], []).map_err(|e| wrong(&e.to_string()))?;
    Ok((plugin, grant))
}

/// No error repeats what stands for a secret.
fn secret_flag(flag: &str) -> Result<SecretFlag<'_>, RuntimeError> {
    // What comes after `=` may be a value that somebody put there.
    let (name, rest) = flag.split_once('=').map_or((flag, None), |(name, source)| (name, Some(source)));
    let wrong = |message: &str| RuntimeError::GrantFlag { flag: format!("--secret {name}=..."), message: message.to_owned() };
    let help = "write --secret PLUGIN:KEY=env:NAME, or file:PATH in place of env:NAME";
    let (plugin, key, source) = match (name.split_once(':'), rest) {
        (Some((plugin, key)), Some(source)) => (plugin, key, source),
        _ => return Err(RuntimeError::GrantFlag { flag: "--secret".to_owned(), message: help.to_owned() }),
    };
    if !source.starts_with("env:") && !source.starts_with("file:") {
        return Err(wrong(help));
    }
    Ok(SecretFlag { plugin, key, source })
}

/// Puts the flags into the recipe. A flag's secret takes the place of the recipe's.
///
/// # Errors
/// A flag that does not read, or names a plugin that is not in use. No error repeats what stands for a secret.
pub fn apply_grants(recipe: &mut Recipe, grants: &[String], secrets: &[String], isolate: &[String]) -> Result<(), RuntimeError> {
    for name in isolate {
        granted(recipe, name, "--isolate")?.isolated = true;
    }
    for flag in grants {
        let (name, grant) = grant_flag(flag)?;
        let entry = granted(recipe, name, "--grant")?;
        if !entry.grants.iter().any(|g| g == grant) {
            entry.grants.push(grant.to_owned());
        }
    }
    for flag in secrets {
        let SecretFlag { plugin, key, source } = secret_flag(flag)?;
        granted(recipe, plugin, "--secret")?.secrets.insert(key.to_owned(), source.to_owned());
    }
    Ok(())
}

/// The recipe's entry of a plugin in use.
fn granted<'a>(recipe: &'a mut Recipe, name: &str, flag: &'static str) -> Result<&'a mut trainer_config::Plugin, RuntimeError> {
    let mut used = recipe.plugin_names();
    used.extend(recipe.plugins.keys().cloned());
    let name = PluginName::new(name);
    if !used.contains(&name) {
        let used = used.iter().map(PluginName::to_string).collect();
        let help = "; add it with --plugin".to_owned();
        return Err(RuntimeError::UnusedPlugin { flag, name: name.to_string(), used, help });
    }
    Ok(recipe.plugins.entry(name).or_default())
}

/// What flags grant the only plugin of a command, which they name all the same.
///
/// # Errors
/// A flag that does not read, or names another plugin. No error repeats what stands for a secret.
pub fn grants_of(plugin: &str, grants: &[String], secrets: &[String]) -> Result<Grants, RuntimeError> {
    let own = |flag: &'static str, name: &str| match name == plugin {
        true => Ok(()),
        false => Err(RuntimeError::UnusedPlugin { flag, name: name.to_owned(), used: vec![plugin.to_owned()], help: String::new() }),
    };
    let mut granted = Vec::new();
    for flag in grants {
        let (name, grant) = grant_flag(flag)?;
        own("--grant", name)?;
        if !granted.contains(&grant) {
            granted.push(grant);
        }
    }
    // The last one counts, as in a recipe.
    let mut lent = std::collections::BTreeMap::new();
    for flag in secrets {
        let SecretFlag { plugin: name, key, source } = secret_flag(flag)?;
        own("--secret", name)?;
        lent.insert(key, source);
    }
    Grants::parse(granted, lent).map_err(|e| RuntimeError::GrantFlag { flag: "--grant and --secret".to_owned(), message: e.to_string() })
}
