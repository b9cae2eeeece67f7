//! What the commands of the store share.

use std::path::{Path, PathBuf};

use clap::Args;
use trainer_plugin_host::{ByteSize, Limits};
use trainer_plugin_store::{AddOptions, Entry, PIN_FILE};
use trainer_runtime::official_names;

/// Which file pins a project's plugins.
#[derive(Debug, Args)]
pub struct PinArgs {
    /// Pin in plugins.lock of the current folder, which is made if it is not there. Where it is there, this needs not be said.
    #[arg(long)]
    pub project: bool,
    /// Pin in this file in place of plugins.lock of the current folder.
    #[arg(long, value_name = "FILE", conflicts_with = "project")]
    pub lock_file: Option<PathBuf>,
}

impl PinArgs {
    /// The file, if there is to be one.
    pub fn file(&self) -> Option<PathBuf> {
        let usual = Path::new(PIN_FILE);
        self.lock_file.clone().or_else(|| (self.project || usual.exists()).then(|| usual.to_owned()))
    }
}

/// What may come into the store.
#[derive(Debug, Args)]
pub struct TakeArgs {
    /// Install a component whose signature is by a key that is not trusted as if it were not signed. Not where signatures are required.
    #[arg(long)]
    pub ignore_signature: bool,
    /// The largest component.
    #[arg(long, value_name = "SIZE", default_value_t = Limits::default().component_size)]
    pub max_size: ByteSize,
}

impl TakeArgs {
    pub fn options(&self) -> AddOptions {
        let reserved = official_names().into_iter().map(str::to_owned).collect();
        AddOptions { ignore_signature: self.ignore_signature, max_size: self.max_size, reserved, ..AddOptions::default() }
    }
}

/// How a component is called: name, version and the beginning of its digest.
pub fn titled(name: &str, entry: &Entry) -> String {
    format!("{name} {} ({})", entry.version, entry.digest.short())
}

/// Who signed a component.
pub fn signed(entry: &Entry, by: Option<&str>) -> String {
    match (&entry.signer, by) {
        (Some(key), Some(name)) => format!("signed by {name} ({})", key.id()),
        (Some(key), None) => format!("signed with {}, which is not trusted any more", key.id()),
        (None, _) => "not signed".to_owned(),
    }
}
