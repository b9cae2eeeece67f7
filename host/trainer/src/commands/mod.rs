//! One file per command.

pub mod bench;
pub mod chat;
pub mod data;
pub mod doctor;
pub mod eval;
pub mod generate;
pub mod help;
pub mod hub;
pub mod model;
pub mod plan;
pub mod plugin;
pub mod preview;
pub mod run;
pub mod runs;
pub mod selftest;
pub mod serve;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use trainer_config::{Override, Recipe};
use trainer_engine::{Adapter, Model};
use trainer_kernels::ops::{Ops, WeightPlan};
use trainer_model::{Adapter as HostAdapter, ModelFiles};
use trainer_runtime::{Base, apply_grants, apply_plugin, inference_weights, pin_hub_names};
use trainer_train::rundir::RunDir;

use crate::cli::{GrantArgs, RecipeArgs};

/// A model that is to answer, with its adapter.
pub struct Loaded<O: Ops> {
    /// The model, with the adapter folded in unless it is in `live`.
    pub model: Arc<Model<O>>,
    /// The adapter beside the weights, where folding it in would take more memory than there is.
    pub live: Option<Adapter<O>>,
    /// The adapter as its files have it.
    pub host: Option<HostAdapter>,
}

impl<O: Ops> Loaded<O> {
    /// Puts a base model with the adapter of a folder on a device.
    ///
    /// # Errors
    /// The adapter cannot be read, or does not fit the model; memory.
    pub fn new(ops: Arc<O>, base: &Base, adapter: Option<&Path>) -> Result<Self> {
        let weights = inference_weights(ops.as_ref(), &base.config);
        let host = adapter
            .map(|folder| HostAdapter::read(&ModelFiles::dir(folder)).with_context(|| format!("the adapter in {}", folder.display())))
            .transpose()?;
        Ok(match (host, weights) {
            (Some(host), WeightPlan::Unpacked) => {
                let model = Model::merged(ops, &base.config, &base.weights, &host)?;
                Self { model, live: None, host: Some(host) }
            }
            (host, _) => {
                let model = Model::new(ops, &base.config, &base.weights, weights)?;
                let live = host.as_ref().map(|host| Adapter::load(&model, host)).transpose()?;
                Self { model, live, host }
            }
        })
    }
}

/// A value that TOML reads back as the same string.
pub fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The overrides that flags mean.
fn overrides(set: &[String], more: &[(&str, String)]) -> Result<Vec<Override>> {
    let more = more.iter().map(|(key, value)| format!("{key}={value}"));
    Ok(set.iter().cloned().chain(more).map(|text| Override::parse(&text)).collect::<Result<Vec<_>, _>>()?)
}

/// The recipe of a run with flags over it. Names of hubs mean the commits that the run used, whatever their branches are today.
pub fn recipe_of(run: &RunDir, overrides: &[Override]) -> Result<Recipe> {
    let mut recipe = Recipe::load_with(&run.recipe_path(), overrides)?;
    match run.lock() {
        Ok(lock) => pin_hub_names(&mut recipe, &lock.recorded.hub),
        Err(error) => tracing::warn!("what the run was made of is not known: {error}"),
    }
    Ok(recipe)
}

/// The recipe of a file or the default one, with the flags over it.
pub fn recipe(file: Option<&Path>, args: &RecipeArgs) -> Result<Recipe> {
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
    grant(&mut recipe, &args.grants)?;
    Ok(recipe)
}

/// Puts the grants of flags into a recipe whose plugins are known.
pub fn grant(recipe: &mut Recipe, args: &GrantArgs) -> Result<()> {
    Ok(apply_grants(recipe, &args.grant, &args.secret)?)
}

/// The default recipe with `--set` and other keys over it.
pub fn recipe_with(set: &[String], more: &[(&str, String)]) -> Result<Recipe> {
    Ok(Recipe::default_with(&overrides(set, more)?)?)
}
