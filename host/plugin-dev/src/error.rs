//! What can go wrong in an author's hands, with what to do about it.

use std::path::PathBuf;

use trainer_plugin_host::PluginError;
use trainer_plugin_host::dynamic::CallError;

/// Why something could not be done with a plugin project.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, such as `read`.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The folder is no project.
    #[error("{} is no plugin project: it has no plugin.toml; make one with `trainer plugin new NAME --kind formatter --lang rust`", folder.display())]
    NoProject {
        /// The folder.
        folder: PathBuf,
    },
    /// A file of the project is not what it should be.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong in it, and how to mend it.
        reason: String,
    },
    /// A name, a kind or a language that cannot be.
    #[error("{0}")]
    Argument(String),
    /// A program that the language needs is not there.
    #[error("`{program}` is needed to build this plugin and was not found ({looked}). {install}")]
    Missing {
        /// The program.
        program: String,
        /// Where it was looked for.
        looked: String,
        /// How to get it.
        install: String,
    },
    /// A program of the language failed.
    #[error("`{command}` failed with {status}{}{output}", if output.is_empty() { "" } else { ":\n" })]
    Failed {
        /// The program with its arguments.
        command: String,
        /// Its exit status.
        status: String,
        /// The end of what it said.
        output: String,
    },
    /// The step from a module to a component, or the Rust toolchain.
    #[error(transparent)]
    Build(#[from] trainer_plugin_build::Error),
    /// The plugin.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// A call by name.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl Error {
    /// Wraps an I/O error with the path that it is about.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// A file that is not what it should be.
    pub(crate) fn file(path: impl Into<PathBuf>, reason: impl std::fmt::Display) -> Self {
        Self::File { path: path.into(), reason: reason.to_string() }
    }
}
