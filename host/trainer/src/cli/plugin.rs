//! `trainer plugin`

use std::path::PathBuf;

use clap::Subcommand;

/// `trainer plugin`
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// What a component is: name, version, kinds, imports, needs, settings, size and digest.
    Inspect {
        /// A component file, or the name of an official plugin.
        plugin: String,
        /// As one JSON object: to a file, or to standard output (alone or with -).
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
    },
    /// The official plugins.
    List {
        /// Only those of a kind (dataset-formatter or formatter, chat-template or template, mixing-policy or policy, tool-executor or tool,
        /// eval-metric or metric).
        #[arg(long, value_name = "KIND")]
        kind: Option<trainer_plugin_host::Kind>,
        /// As one JSON object: to a file, or to standard output (alone or with -).
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
    },
}
