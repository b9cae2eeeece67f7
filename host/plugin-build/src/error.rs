//! What can go wrong, with what to do about it.

use std::path::PathBuf;

/// Why a plugin could not be built or checked.
#[derive(Debug, thiserror::Error)]
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
    /// A program could not be started.
    #[error("cannot run `{program}`: {source}")]
    Start {
        /// The program.
        program: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A program failed.
    #[error("`{program}` failed with {status}{}{stderr}", if stderr.is_empty() { "" } else { ":\n" })]
    Failed {
        /// The program with its main arguments.
        program: String,
        /// Its exit status.
        status: String,
        /// What it said, empty where it went straight to the terminal.
        stderr: String,
    },
    /// No compiler on this machine can make a module for `wasm32-unknown-unknown`.
    #[error(
        "no Rust compiler here can build for wasm32-unknown-unknown: {reason}\n\
         Install either\n  \
         the target for rustup's compiler:  rustup target add wasm32-unknown-unknown\n  \
         or, on Debian and without network access for rustup:  apt-get install --no-install-recommends rustc-web rust-web-src"
    )]
    NoToolchain {
        /// What was looked at and what it lacked.
        reason: String,
    },
    /// The module, its manifest or the WIT is not what it should be.
    #[error("{what}: {reason}")]
    Invalid {
        /// Which thing.
        what: String,
        /// What is wrong and how to mend it.
        reason: String,
    },
}

impl Error {
    /// Wraps an I/O error with the path that it is about.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// Something that is not as it should be.
    pub(crate) fn invalid(what: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Invalid { what: what.into(), reason: format!("{reason:#}") }
    }
}
