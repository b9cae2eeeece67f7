//! One file per command.

pub mod bench;
pub mod chat;
pub mod continued;
pub mod data;
pub mod doctor;
pub mod eval;
pub mod export;
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
use trainer_config::{Override, PluginName, Recipe};
use trainer_engine::{Adapter, Model};
use trainer_kernels::ops::{Ops, WeightPlan};
use trainer_model::{Adapter as HostAdapter, ModelFiles};
use trainer_plugin_host::{Kind, Limits as PluginLimits};
use trainer_runtime::{
    Base, Plugins, apply_grants, apply_plugin, find_plugin, inference_weights, pin_hub_names, pin_plugins, use_pins_beside,
};
use trainer_tools::{Limits, ToolPlugin, Toolbox};
use trainer_train::rundir::RunDir;

use crate::cli::{DeviceArgs, GrantArgs, RecipeArgs};

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

/// The recipe of a run with flags over it. Names of hubs mean the commits that the run used, whatever their branches are today, and names of installed
/// plugins the components that it used.
pub fn recipe_of(run: &RunDir, overrides: &[Override]) -> Result<Recipe> {
    let mut recipe = Recipe::load_with(&run.recipe_path(), overrides)?;
    match run.lock() {
        Ok(lock) => {
            pin_hub_names(&mut recipe, &lock.recorded.hub);
            pin_plugins(&mut recipe, &lock.plugin_digests());
        }
        Err(error) => tracing::warn!("what the run was made of is not known: {error}"),
    }
    Ok(recipe)
}

/// The recipe of a file or the default one, with the flags over it.
pub fn recipe(file: Option<&Path>, args: &RecipeArgs) -> Result<Recipe> {
    let mut more = Vec::new();
    let mut add = |key, value: Option<u64>| more.extend(value.map(|n| (key, n.to_string())));
    add("train.max_steps", args.max_steps);
    add("train.seed", args.seed);
    add("data.max_bad_rows", args.max_bad_rows);
    more.extend(args.device.overrides());
    let overrides = overrides(&args.set, &more)?;
    let mut recipe = match file {
        Some(path) => Recipe::load_with(path, &overrides)?,
        None => Recipe::default_with(&overrides)?,
    };
    use_pins_beside(file)?;
    for plugin in &args.plugin {
        apply_plugin(&mut recipe, plugin)?;
    }
    grant(&mut recipe, &args.grants)?;
    Ok(recipe)
}

/// Puts the grants of flags into a recipe whose plugins are known.
pub fn grant(recipe: &mut Recipe, args: &GrantArgs) -> Result<()> {
    Ok(apply_grants(recipe, &args.grant, &args.secret, &args.isolate)?)
}

/// The default recipe with a model over it, and what computes.
pub fn model_recipe(model: &str, quantization: &str, device: &DeviceArgs) -> Result<Recipe> {
    let mut more = vec![("model.source", toml_string(model)), ("model.quantization", toml_string(quantization))];
    more.extend(device.overrides());
    recipe_with(&[], &more)
}

/// The plugins among `--plugin` that offer tools.
pub fn tool_names(plugins: &[String]) -> Result<Vec<PluginName>> {
    let mut names = Vec::new();
    for argument in plugins {
        let about = find_plugin(argument)?.source().inspect(&PluginLimits::default())?;
        let name = PluginName::new(about.name);
        if about.kinds.iter().any(|k| k.kind == Kind::ToolExecutor) && !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// What executes the tools of these plugins.
pub fn toolbox(tools: &[PluginName], recipe: &Recipe, limits: Limits, plugins: &mut Plugins) -> Result<Toolbox> {
    let mut executors = Vec::new();
    for name in tools {
        let plugin = plugins.get("--plugin", name, Kind::ToolExecutor)?;
        let settings = serde_json::Value::Object(recipe.settings_of(name, &trainer_config::Settings::new()));
        executors.push(ToolPlugin { plugin, settings });
    }
    Ok(Toolbox::new(executors, limits)?)
}

/// The default recipe with `--set` and other keys over it.
pub fn recipe_with(set: &[String], more: &[(&str, String)]) -> Result<Recipe> {
    Ok(Recipe::default_with(&overrides(set, more)?)?)
}
