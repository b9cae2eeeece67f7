//! Finding and loading the plugins that a recipe names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use trainer_config::{PluginName, Recipe, Settings};
use trainer_plugin_host::{CompilerCommand, Grants, HostOptions, Kind, Limits, Plugin, PluginHost, PluginSource, ProcessCommand};

use crate::error::RuntimeError;
use crate::installed::{self, Stored};

/// A plugin as an argument of a command: an existing file wins, otherwise the name of an official plugin with or without `.wasm`, otherwise that of an
/// installed one.
#[derive(Clone, Debug)]
pub enum PluginArg {
    /// A component file.
    File(PathBuf),
    /// An embedded component.
    Official(&'static trainer_nano::PluginFile),
    /// A component of the store.
    Stored(Stored),
}

impl PluginArg {
    /// What the plugin host loads.
    pub fn source(&self) -> PluginSource {
        match self {
            Self::File(path) => PluginSource::File(path.clone()),
            Self::Official(p) => PluginSource::Bytes { name: p.name.to_owned(), bytes: p.bytes.into() },
            Self::Stored(s) => PluginSource::Bytes { name: s.name.clone(), bytes: s.bytes.clone() },
        }
    }
}

/// Resolves the argument of `--plugin` and its like.
///
/// # Errors
/// There is neither such a file nor an official or installed plugin of that name.
pub fn find_plugin(argument: &str) -> Result<PluginArg, RuntimeError> {
    let path = Path::new(argument);
    if path.is_file() {
        return Ok(PluginArg::File(path.to_owned()));
    }
    // Only a bare name means an official or installed plugin: `plugins/math_mix.wasm` is a path whose file is missing.
    if path.components().count() == 1 {
        if let Some(official) = trainer_nano::plugin(argument) {
            return Ok(PluginArg::Official(official));
        }
        if let Some(stored) = installed::find(argument.strip_suffix(".wasm").unwrap_or(argument), None)? {
            return Ok(PluginArg::Stored(stored));
        }
    }
    Err(RuntimeError::UnknownPlugin { argument: argument.to_owned(), known: official_names(), installed: installed::names() })
}

/// The names of the embedded plugins.
pub fn official_names() -> Vec<&'static str> {
    trainer_nano::PLUGINS.iter().map(|p| p.name).collect()
}

/// Puts a `--plugin` argument into the recipe: the plugin takes the place of the recipe's own for every kind that it exports — as mixing
/// policy, as formatter of the first source, as chat template, as the metric. Tools are added to those of the evaluation.
///
/// # Errors
/// The plugin cannot be found or is no plugin.
pub fn apply_plugin(recipe: &mut Recipe, argument: &str) -> Result<(), RuntimeError> {
    let arg = find_plugin(argument)?;
    let about = arg.source().inspect(&Limits::default())?;
    let name = PluginName::new(about.name.clone());
    let entry = recipe.plugins.entry(name.clone()).or_default();
    entry.path = match &arg {
        PluginArg::File(path) => Some(std::path::absolute(path).unwrap_or_else(|_| path.clone())),
        PluginArg::Official(_) | PluginArg::Stored(_) => None,
    };
    for kind in about.kinds.iter().map(|k| k.kind) {
        match kind {
            Kind::MixingPolicy => replace(&mut recipe.mix.plugin, &mut recipe.mix.settings, &name),
            Kind::DatasetFormatter => {
                if let Some(source) = recipe.data.sources.first_mut() {
                    replace(&mut source.formatter, &mut source.settings, &name);
                }
            }
            Kind::ChatTemplate => replace(&mut recipe.template.plugin, &mut recipe.template.settings, &name),
            Kind::EvalMetric => recipe.eval.metrics = vec![name.clone()],
            Kind::ToolExecutor if recipe.eval.tools.contains(&name) => {}
            Kind::ToolExecutor => recipe.eval.tools.push(name.clone()),
        }
    }
    Ok(())
}

/// Settings belong to the plugin that they were written for.
fn replace(plugin: &mut PluginName, settings: &mut Settings, name: &PluginName) {
    if plugin != name {
        *plugin = name.clone();
        settings.clear();
    }
}

/// What a recipe grants a plugin, read.
fn grants(name: &PluginName, entry: &trainer_config::Plugin) -> Result<Grants, RuntimeError> {
    let secrets = entry.secrets.iter().map(|(key, source)| (key.as_str(), source.as_str()));
    Grants::parse(entry.grants.iter().map(String::as_str), secrets).map_err(|source| RuntimeError::Grant { name: name.to_string(), source })
}

/// The child that compiles components: this program under its hidden command.
///
/// # Errors
/// The system does not say where this program is.
pub fn compiler_command() -> Result<CompilerCommand, RuntimeError> {
    Ok(CompilerCommand::current_exe()?)
}

/// The plugins of a recipe, loaded.
pub struct Plugins {
    host: PluginHost,
    loaded: BTreeMap<String, Arc<Plugin>>,
    entries: BTreeMap<PluginName, trainer_config::Plugin>,
}

impl Plugins {
    /// An empty set; plugins are loaded as they are asked for.
    ///
    /// # Errors
    /// The engine cannot be set up.
    pub fn new(recipe: &Recipe, compiler: CompilerCommand) -> Result<Self, RuntimeError> {
        let mut options = HostOptions::new(compiler);
        options.cache_dir = plugin_cache_dir();
        options.process = Some(ProcessCommand::current_exe()?);
        let host = PluginHost::new(options)?;
        Ok(Self { host, loaded: BTreeMap::new(), entries: recipe.plugins.clone() })
    }

    /// All plugins that have been loaded, by name.
    pub fn loaded(&self) -> impl Iterator<Item = &Arc<Plugin>> {
        self.loaded.values()
    }

    /// The plugin that the recipe's `key` names, which must export `kind`.
    ///
    /// # Errors
    /// It cannot be found, is refused, or is of other kinds.
    pub fn get(&mut self, key: &str, name: &PluginName, kind: Kind) -> Result<Arc<Plugin>, RuntimeError> {
        let plugin = match self.loaded.get(name.as_str()) {
            Some(plugin) => plugin.clone(),
            None => {
                let plugin = self.load(key, name)?;
                self.loaded.insert(name.as_str().to_owned(), plugin.clone());
                plugin
            }
        };
        if !plugin.kinds().iter().any(|k| k.kind == kind) {
            let manifest = plugin.manifest();
            return Err(RuntimeError::WrongKind {
                key: key.to_owned(),
                name: manifest.name.clone(),
                version: manifest.version.clone(),
                needed: kind,
                kinds: plugin.kinds().iter().map(|k| k.kind).collect(),
            });
        }
        Ok(plugin)
    }

    fn load(&self, key: &str, name: &PluginName) -> Result<Arc<Plugin>, RuntimeError> {
        let entry = self.entries.get(name);
        let grants = entry.map_or_else(|| Ok(Grants::default()), |e| grants(name, e))?;
        let limits: Limits = match entry {
            Some(e) => serde_json::from_value(Value::Object(e.limits.clone()))
                .map_err(|e| RuntimeError::Limits { name: name.to_string(), message: e.to_string() })?,
            None => Limits::default(),
        };
        let wanted = installed::wanted(name.as_str(), entry)?;
        let arg = match entry.and_then(|e| e.path.as_ref()) {
            Some(path) => match &wanted {
                // A file that is gone is no loss where the store has its bytes.
                Some(wanted) if !path.is_file() => installed::find(name.as_str(), Some(&wanted.gone(path)))?
                    .map_or_else(|| PluginArg::File(path.clone()), PluginArg::Stored),
                _ => PluginArg::File(path.clone()),
            },
            None => match trainer_nano::plugin(name.as_str()) {
                Some(p) => PluginArg::Official(p),
                None => match installed::find(name.as_str(), wanted.as_ref())? {
                    Some(stored) => PluginArg::Stored(stored),
                    None => return Err(RuntimeError::NoPath { key: key.to_owned(), name: name.to_string(), known: official_names() }),
                },
            },
        };
        let signed = installed::check_signature(&arg)?;
        let source = arg.source();
        let plugin = match entry.is_some_and(|e| e.isolated) {
            true => self.host.load_isolated(&source, limits, grants)?,
            false => self.host.load_with(&source, limits, grants)?,
        };
        if let PluginSource::File(path) = &source
            && plugin.manifest().name != name.as_str()
        {
            return Err(RuntimeError::WrongName { expected: name.to_string(), path: path.clone(), found: plugin.manifest().name.clone() });
        }
        installed::check_digest(name.as_str(), &arg, plugin.digest(), wanted, signed)?;
        Ok(plugin)
    }

    /// The host, for what a recipe does not name.
    pub fn host(&self) -> &PluginHost {
        &self.host
    }
}

/// Where compiled components are kept between runs.
pub fn plugin_cache_dir() -> Option<PathBuf> {
    Some(cache_base()?.join("components"))
}

/// What builds of plugins have in common.
pub fn plugin_build_dir() -> Option<PathBuf> {
    Some(cache_base()?.join("plugin-builds"))
}

/// The program's folder in the user's cache (XDG Base Directory Specification). None if there is no home.
pub(crate) fn cache_base() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("trainer"))
}
