//! `trainer plugin`

use std::path::PathBuf;

use clap::Subcommand;

use crate::commands::plugin::add::{ADD_EXAMPLES, AddArgs};
use crate::commands::plugin::audit::{AUDIT_EXAMPLES, AuditArgs};
use crate::commands::plugin::keys::{KEYS_EXAMPLES, KeysCommand, SIGN_EXAMPLES, SignArgs};
use crate::commands::plugin::push::{PUSH_EXAMPLES, PushArgs};
use crate::commands::plugin::remove::RemoveArgs;
use crate::commands::plugin::update::{UPDATE_EXAMPLES, UpdateArgs};

/// `trainer plugin`
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// What a component is: name, version, kinds, imports, needs, settings, size and digest.
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
        kind: Option<trainer_plugin_host::Kind>,
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
