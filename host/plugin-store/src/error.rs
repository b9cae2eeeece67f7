//! What can go wrong on a plugin's way into the store and out of it.

use std::path::PathBuf;

use trainer_plugin_host::PluginError;

use crate::Digest;

/// An error that says what, where and how to mend it. No text repeats a password, a token or a secret key.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// There is no place for the store.
    #[error("there is no place for plugins and keys: set HOME, or XDG_DATA_HOME and XDG_CONFIG_HOME, to absolute paths")]
    NoHome,
    /// A file of this program's own that does not read.
    #[error("{path} does not read: {message}", path = path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        message: String,
    },
    /// No plugin of this name.
    #[error("no plugin `{name}` is installed{}; `trainer plugin add` installs one", known(installed))]
    NotInstalled {
        /// The name.
        name: String,
        /// What is installed.
        installed: Vec<String>,
    },
    /// No component with this digest.
    #[error("the store has no component {digest}, which {wanted_by}; {help}")]
    NotStored {
        /// The digest.
        digest: Digest,
        /// What wants it: `plugins.lock pins for my_mix`.
        wanted_by: String,
        /// How to get it.
        help: String,
    },
    /// A stored file is not what it was.
    #[error("{path} is damaged: its content has {found}, not {expected}; remove the plugin and add it again", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What its name says.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// A reference that is none.
    #[error("{text:?} is no place of a plugin: {message}")]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        message: String,
    },
    /// No connection, or one that broke.
    #[error("no answer from {server} to {what}: {message}")]
    Connect {
        /// The server.
        server: String,
        /// What was asked for.
        what: String,
        /// What the system says.
        message: String,
    },
    /// A refusal.
    #[error("{server} answered {status} to {what}{}", said(message))]
    Status {
        /// The server.
        server: String,
        /// What was asked for.
        what: String,
        /// HTTP's status.
        status: u16,
        /// What the server says.
        message: String,
    },
    /// Credentials are missing or refused.
    #[error("{server} refuses access to {what} ({status}){}; {help}", said(message))]
    Access {
        /// The server.
        server: String,
        /// What was asked for.
        what: String,
        /// HTTP's status.
        status: u16,
        /// What the server says.
        message: String,
        /// Where credentials were looked for.
        help: String,
    },
    /// An answer that makes no sense.
    #[error("{server} gave an answer to {what} that cannot be used: {message}")]
    Answer {
        /// The server.
        server: String,
        /// What was asked for.
        what: String,
        /// What is wrong.
        message: String,
    },
    /// More bytes than a component may have.
    #[error(
        "{what} is larger than {limit}; if it is to be, raise the limit with --max-size, and in recipes [plugins.NAME.limits] component_size"
    )]
    TooLarge {
        /// What.
        what: String,
        /// The limit.
        limit: trainer_plugin_host::ByteSize,
    },
    /// An artifact in a registry that is no plugin.
    #[error("{reference} is no WebAssembly component as `trainer plugin push` or `wkg oci push` makes one: {message}")]
    Artifact {
        /// The reference.
        reference: String,
        /// What is wrong.
        message: String,
    },
    /// Not the bytes that were expected.
    #[error("{what} has {found}, but {expected_by} {expected}; nothing was installed. {help}")]
    Differs {
        /// What was read.
        what: String,
        /// Its digest.
        found: Digest,
        /// Who expects another: `plugins.lock pins`.
        expected_by: String,
        /// The expected one.
        expected: Digest,
        /// What to do.
        help: String,
    },
    /// It is not a plugin that this host takes.
    #[error("{what} is not installed: {source}")]
    Plugin {
        /// The reference.
        what: String,
        /// Why.
        source: Box<PluginError>,
    },
    /// A file that is to be shared is no plugin.
    #[error("{what} is no plugin that could be shared: {source}")]
    NoPlugin {
        /// The file.
        what: String,
        /// Why not.
        source: Box<PluginError>,
    },
    /// A plugin that would be refused when it is loaded, or whose name is taken.
    #[error("{what} is not installed: {message}")]
    Refused {
        /// The reference.
        what: String,
        /// Why.
        message: String,
    },
    /// A signature that is needed and is not there, or is there and not good.
    #[error("{what}: {message}")]
    Signature {
        /// What is or is not signed.
        what: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// Keys that do not read, or are not there.
    #[error("{0}")]
    Key(String),
}

impl StoreError {
    /// For `map_err`.
    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

fn known(installed: &[String]) -> String {
    if installed.is_empty() { String::new() } else { format!(" (there are {})", installed.join(", ")) }
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}
