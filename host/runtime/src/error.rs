//! What can go wrong before anything starts.

use std::path::PathBuf;

use trainer_plugin_host::{GrantError, Kind, PluginError};
use trainer_plugin_store::{Digest, StoreError};

/// An error while putting a command's parts together. Each names the recipe key or flag that can mend it.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Neither a file nor an official plugin.
    #[error("there is no file {argument} and no official plugin of that name; official plugins are {}{}", known.join(", "), also(installed))]
    UnknownPlugin {
        /// What was asked for.
        argument: String,
        /// The official plugins.
        known: Vec<&'static str>,
        /// The installed ones.
        installed: Vec<String>,
    },
    /// A recipe names a plugin that is neither official nor installed nor given a path.
    #[error("{key} names the plugin `{name}`, which is not an official one ({}) and not installed; say where it is: [plugins.{name}] path = \"...\", or --plugin FILE, or install it: trainer plugin add", known.join(", "))]
    NoPath {
        /// The recipe's key.
        key: String,
        /// The plugin's name.
        name: String,
        /// The official plugins.
        known: Vec<&'static str>,
    },
    /// A plugin does not export what it is used for.
    #[error("{key} needs a plugin of kind {needed}, but plugin {name} {version} is {has}", has = kinds_text(kinds))]
    WrongKind {
        /// The recipe's key.
        key: String,
        /// The plugin.
        name: String,
        /// Its version.
        version: String,
        /// What it is used for.
        needed: Kind,
        /// What it exports.
        kinds: Vec<Kind>,
    },
    /// A plugin file calls itself something other than the recipe does.
    #[error("[plugins.{expected}] path is {path}, but that component's name is `{found}`; use that name in the recipe", path = path.display())]
    WrongName {
        /// The recipe's name.
        expected: String,
        /// The file.
        path: PathBuf,
        /// The manifest's name.
        found: String,
    },
    /// A recipe that trains with the model's own template.
    #[error(
        "template.prompts = \"model\" is for answers only: the model's own Jinja template gives one text, which does not say what the model writes and what counts in the loss, so training texts come from the plugin {plugin}. Remove the setting; `trainer model template` says where the plugin's prompts differ from the model's"
    )]
    ModelTemplateTrains {
        /// The template plugin.
        plugin: String,
    },
    /// A plugin has another digest than the recipe or the pins want.
    #[error("plugin `{name}` from {place} has sha256:{found}, but {wanted_by} {wanted}; {help}")]
    WrongDigest {
        /// The plugin.
        name: Box<str>,
        /// Where it was found.
        place: Box<str>,
        /// Its digest.
        found: Box<str>,
        /// What wants another: `plugins.lock pins`.
        wanted_by: Box<str>,
        /// That digest.
        wanted: Digest,
        /// What to do.
        help: Box<str>,
    },
    /// Limits in the recipe that do not read.
    #[error("[plugins.{name}.limits]: {message}")]
    Limits {
        /// The plugin.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// Grants in the recipe that do not read or do not hold.
    #[error("the grants of [plugins.{name}]: {source}")]
    Grant {
        /// The plugin.
        name: String,
        /// What is wrong.
        source: GrantError,
    },
    /// A flag that grants something and does not read.
    #[error("{flag}: {message}")]
    GrantFlag {
        /// The flag, without what may be a secret.
        flag: String,
        /// What is wrong.
        message: String,
    },
    /// A flag that grants something to a plugin that is not in use.
    #[error("{flag} {name}:...: no plugin of this name is in use (in use {} {}){help}", if used.len() == 1 { "is" } else { "are" }, used.join(", "))]
    UnusedPlugin {
        /// The flag's name.
        flag: &'static str,
        /// The plugin's name.
        name: String,
        /// The plugins in use.
        used: Vec<String>,
        /// How to have it in use; empty where nothing helps.
        help: String,
    },
    /// A name after `builtin:` that is not embedded.
    #[error("there is no embedded data `{name}`; there are {}", known.join(", "))]
    UnknownData {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<&'static str>,
    },
    /// `holdout:NAME` without such a source.
    #[error(
        "eval.data = \"holdout:{name}\": the recipe has no source of that name that holds rows out; set its `holdout` to a share, such as 0.01"
    )]
    NoHoldout {
        /// The name.
        name: String,
    },
    /// The adapter's settings or values do not fit.
    #[error("adapter {path}: {message}", path = path.display())]
    Adapter {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A card that was asked for cannot be used.
    #[error(
        "device cuda:{ordinal} cannot be used: {why}\n  `trainer doctor` shows what this machine has; --device cpu (device.backend = \"cpu\") computes without a card"
    )]
    NoCard {
        /// The card's number.
        ordinal: usize,
        /// What is missing and how to get it.
        why: String,
    },
    /// What computes has no products in the precision asked for.
    #[error("{device} cannot compute in fp8: {why}; train.precision = \"bf16\" works everywhere")]
    NoFp8 {
        /// The device.
        device: String,
        /// Why.
        why: String,
    },
    /// No plan fits the memory.
    #[error("the run needs at least {need}, but {limit} may be used: {help}", need = gib(*need), limit = gib(*limit))]
    DoesNotFit {
        /// Bytes of the smallest plan that was allowed.
        need: u64,
        /// The limit in bytes.
        limit: u64,
        /// The setting that would make it fit.
        help: String,
    },
    /// From the store of plugins.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// From the plugin host.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// From the model's files.
    #[error(transparent)]
    Model(#[from] trainer_model::ModelError),
    /// From the tokenizer.
    #[error(transparent)]
    Text(#[from] trainer_text::TextError),
    /// From the engine.
    #[error(transparent)]
    Engine(#[from] trainer_engine::EngineError),
    /// From the backend.
    #[error("the compute backend cannot be set up: {0}")]
    Device(#[from] trainer_kernels::ops::OpsError),
    /// From a hub.
    #[error(transparent)]
    Hub(#[from] trainer_hub::HubError),
    /// From the data.
    #[error(transparent)]
    Data(#[from] trainer_data::DataError),
}

/// Bytes in GiB, for messages.
pub(crate) fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

fn also(installed: &[String]) -> String {
    if installed.is_empty() { String::new() } else { format!("; installed are {}", installed.join(", ")) }
}

fn kinds_text(kinds: &[Kind]) -> String {
    let list: Vec<String> = kinds.iter().map(|k| format!("a {k}")).collect();
    list.join(" and ")
}
