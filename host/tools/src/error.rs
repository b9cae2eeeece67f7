//! What ends more than one call.

use std::path::PathBuf;

use trainer_plugin_host::PluginError;

/// An error that is no tool's answer: the caller must not go on as if nothing were.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolsError {
    /// Two plugins offer a tool of the same name.
    #[error("the plugins `{first}` and `{second}` both offer a tool called {tool:?}; leave one of them out")]
    DuplicateTool {
        /// The tool.
        tool: String,
        /// The plugin that was given first.
        first: String,
        /// The other.
        second: String,
    },
    /// From the plugin host.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// A row whose `tools`, `tool_fixtures` or `id` is not as a case's is.
    #[error("{place}: at {pointer}: {message}")]
    Case {
        /// File and row.
        place: String,
        /// JSON Pointer into the row.
        pointer: String,
        /// What is there and what belongs there.
        message: String,
    },
    /// A tape that cannot be read.
    #[error("{}:{line}: {message}", path.display())]
    Tape {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        message: String,
    },
    /// A tape that was recorded under other circumstances.
    #[error("{}: {message}", path.display())]
    OtherTape {
        /// The file.
        path: PathBuf,
        /// What differs, and what to do.
        message: String,
    },
    /// A call that the tape has no answer for.
    #[error(transparent)]
    NotOnTape(Box<NotOnTape>),
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// From writing durably.
    #[error(transparent)]
    Model(#[from] trainer_model::ModelError),
}

/// A call that the tape has no answer for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{}: not on the tape: case {case}, repeat {repeat}, call {ordinal} of metric `{metric}`: {tool}({arguments}){found}; a replay needs the model, data \
     and settings of the recording: record again with --record",
    tape.display(),
    found = found.as_ref().map(|f| format!(" (the tape has {f} there)")).unwrap_or_default()
)]
pub struct NotOnTape {
    /// The file.
    pub tape: PathBuf,
    /// The metric whose question it was.
    pub metric: String,
    /// The case.
    pub case: String,
    /// The repeat, from 0.
    pub repeat: u32,
    /// Which call of the episode, from 0.
    pub ordinal: u32,
    /// The tool.
    pub tool: String,
    /// Its arguments in canonical form.
    pub arguments: String,
    /// What is on the tape in its place.
    pub found: Option<String>,
}
