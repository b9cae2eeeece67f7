//! One file per command.

pub mod bench;
pub mod doctor;
pub mod eval;
pub mod generate;
pub mod plan;
pub mod plugin;
pub mod run;
pub mod selftest;

use anyhow::Result;
use trainer_config::{Override, Recipe};
use trainer_runtime::apply_plugin;

use crate::cli::RecipeArgs;

/// A value that TOML reads back as the same string.
pub fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The overrides that flags mean.
fn overrides(set: &[String], more: &[(&str, String)]) -> Result<Vec<Override>> {
    let more = more.iter().map(|(key, value)| format!("{key}={value}"));
    Ok(set.iter().cloned().chain(more).map(|text| Override::parse(&text)).collect::<Result<Vec<_>, _>>()?)
}

/// The recipe of a file or the default one, with the flags over it.
pub fn recipe(file: Option<&std::path::Path>, args: &RecipeArgs) -> Result<Recipe> {
    let mut more = Vec::new();
    let mut add = |key, value: Option<String>| more.extend(value.map(|v| (key, v)));
    add("train.max_steps", args.max_steps.map(|n| n.to_string()));
    add("train.seed", args.seed.map(|n| n.to_string()));
    add("data.max_bad_rows", args.max_bad_rows.map(|n| n.to_string()));
    add("device.backend", args.device.as_deref().map(toml_string));
    add("device.threads", args.threads.map(|n| n.to_string()));
    let overrides = overrides(&args.set, &more)?;
    let mut recipe = match file {
        Some(path) => Recipe::load_with(path, &overrides)?,
        None => Recipe::default_with(&overrides)?,
    };
    for plugin in &args.plugin {
        apply_plugin(&mut recipe, plugin)?;
    }
    Ok(recipe)
}

/// The default recipe with `--set` and other keys over it.
pub fn recipe_with(set: &[String], more: &[(&str, String)]) -> Result<Recipe> {
    Ok(Recipe::default_with(&overrides(set, more)?)?)
}
