//! `trainer plugin`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use trainer_plugin_dev::Language;
use trainer_plugin_dev::contract::Contract;
use trainer_plugin_host::Kind;

use super::GrantArgs;
use crate::commands::plugin::add::{ADD_EXAMPLES, AddArgs};
use crate::commands::plugin::audit::{AUDIT_EXAMPLES, AuditArgs};
use crate::commands::plugin::keys::{KEYS_EXAMPLES, KeysCommand, SIGN_EXAMPLES, SignArgs};
use crate::commands::plugin::push::{PUSH_EXAMPLES, PushArgs};
use crate::commands::plugin::remove::RemoveArgs;
use crate::commands::plugin::update::{UPDATE_EXAMPLES, UpdateArgs};

const NEW_EXAMPLES: &str = "\
Example:
  trainer plugin new answers --kind formatter --lang python
  cd answers && trainer plugin build && trainer plugin test";

const RUN_EXAMPLES: &str = "\
Examples:
  trainer plugin run answers.wasm --call format --input rows.jsonl
  trainer plugin run math_mix --call open --args '[{\"settings\": {}, \"sources\": [...], \"seed\": 1, \"feedback_lag\": 1}]' --call next --args '[8]'
  trainer plugin run answers.wasm                       what can be called";

/// `trainer plugin`
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// Begin a plugin: a folder with a working example of a kind in a language, its tests, and the contract.
    #[command(after_help = NEW_EXAMPLES)]
    New(PluginNewArgs),
    /// Build the plugin in a folder with its language's own tools, into NAME.wasm beside plugin.toml.
    Build(PluginBuildArgs),
    /// Test the plugin in a folder: its own cases in tests/*.json, then what every plugin of its kinds must keep to.
    Test(PluginTestArgs),
    /// Call functions of a plugin, with JSON in and out, under the limits of a run.
    #[command(after_help = RUN_EXAMPLES)]
    Run(PluginRunArgs),
    /// Measure a plugin: compilation, start, instances, calls, rows a second.
    Bench(PluginBenchArgs),
    /// Print the contract of a kind: functions and types with their meaning, as Markdown.
    Doc {
        /// formatter, template, mixing, tool or metric; its newest version, or the one after @, as in metric@0.1.0.
        #[arg(value_name = "KIND[@VERSION]")]
        kind: Contract,
    },
    /// What a component is: name, version, kinds, imports, needs, settings, size, digest and what its signature is worth.
    Inspect {
        /// A component file, or the name of an official or installed plugin.
        plugin: String,
        /// As one JSON object: to a file, or to standard output (alone or with -).
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
    },
    /// The official plugins, and those that `trainer plugin add` installed.
    List {
        /// Only those of a kind (dataset-formatter or formatter, chat-template or template, mixing-policy or policy, tool-executor or tool,
        /// eval-metric or metric).
        #[arg(long, value_name = "KIND")]
        kind: Option<Kind>,
        /// Only the installed ones.
        #[arg(long)]
        installed: bool,
        /// As one JSON object: to a file, or to standard output (alone or with -).
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
    },
    /// Install plugins from files, https addresses or OCI registries: checked, kept by their digests, found by their names. Without a place, those that
    /// plugins.lock pins.
    #[command(after_help = ADD_EXAMPLES)]
    Add(AddArgs),
    /// Remove installed plugins.
    Remove(RemoveArgs),
    /// Fetch installed plugins anew from where they came from, and say what changed.
    #[command(after_help = UPDATE_EXAMPLES)]
    Update(UpdateArgs),
    /// Hash every installed component, check signatures, grants asked for, pins and the plugins of a recipe. Exit code 1 where something is wrong.
    #[command(after_help = AUDIT_EXAMPLES)]
    Audit(AuditArgs),
    /// Send a component to an OCI registry, where `trainer plugin add` and `wkg oci pull` find it.
    #[command(after_help = PUSH_EXAMPLES)]
    Push(PushArgs),
    /// Sign a component; the signature goes beside it, as FILE.minisig.
    #[command(after_help = SIGN_EXAMPLES)]
    Sign(SignArgs),
    /// The keys whose signatures are trusted, and those to sign with; minisign's formats.
    #[command(subcommand, after_help = KEYS_EXAMPLES)]
    Keys(KeysCommand),
}

/// `trainer plugin new`
#[derive(Debug, Args)]
pub struct PluginNewArgs {
    /// The plugin's name: lower-case letters, digits and underscores.
    pub name: String,
    /// formatter, template, mixing, tool or metric.
    #[arg(long, value_name = "KIND")]
    pub kind: Kind,
    /// rust, python, js, c or go.
    #[arg(long, value_name = "LANGUAGE")]
    pub lang: Language,
    /// The folder. Absent: the name, here.
    #[arg(long, value_name = "DIR")]
    pub path: Option<PathBuf>,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// `trainer plugin build`
#[derive(Debug, Args)]
pub struct PluginBuildArgs {
    /// The folder with plugin.toml.
    #[arg(default_value = ".")]
    pub project: PathBuf,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// `trainer plugin test`
#[derive(Debug, Args)]
pub struct PluginTestArgs {
    /// The folder with plugin.toml.
    #[arg(default_value = ".")]
    pub project: PathBuf,
    /// Write into the cases what the plugin gives now, instead of comparing.
    #[arg(long)]
    pub update: bool,
    /// What the plugin may do.
    #[command(flatten)]
    pub grants: GrantArgs,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// `trainer plugin run`
#[derive(Debug, Args)]
pub struct PluginRunArgs {
    /// A component file, or the name of an official or installed plugin.
    pub plugin: String,
    /// The function. May be repeated; calls are made in order, in one instance. Absent: what can be called.
    #[arg(long, value_name = "FUNCTION")]
    pub call: Vec<String>,
    /// The arguments of a call as one JSON array, for each --call in order.
    #[arg(long, value_name = "JSON")]
    pub args: Vec<String>,
    /// Rows for a function that takes them, one JSON value a line; - is standard input. One result a line is printed.
    #[arg(long, value_name = "FILE", conflicts_with = "args")]
    pub input: Option<PathBuf>,
    /// As what, where the plugin is of several kinds.
    #[arg(long, value_name = "KIND")]
    pub kind: Option<Kind>,
    /// The plugin's settings, a JSON object.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    pub settings: String,
    /// What the plugin may do.
    #[command(flatten)]
    pub grants: GrantArgs,
    /// As one JSON object, with all results: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// `trainer plugin bench`
#[derive(Debug, Args)]
pub struct PluginBenchArgs {
    /// A component file, or the name of an official or installed plugin.
    pub plugin: String,
    /// Rows for the functions that take them, one JSON value a line. Absent: the cases of the project in whose folder the file lies.
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// The plugin's settings, a JSON object, with --input.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    pub settings: String,
    /// How long each function is called, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    pub seconds: f64,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}
