//! Why a template gives nothing.

use std::io;
use std::time::Duration;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JinjaError {
    /// The source is too long.
    #[error("the chat template has {bytes} bytes; at most {limit} are read")]
    TooLong {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// It is not Jinja, or uses what is not there.
    #[error("the chat template cannot be used: {0}")]
    Broken(String),
    /// The process that renders took too long.
    #[error("the chat template did not end within {0:?}")]
    Time(Duration),
    /// The process that renders used up its processor time.
    #[error("the chat template did not end within {0:?} of processor time")]
    Processor(Duration),
    /// The process that renders took too much memory, or ended in another way.
    #[error("the chat template cannot be rendered within {memory} bytes of memory, or its values are nested too deeply ({how})")]
    Ended {
        /// The limit.
        memory: u64,
        /// How the process ended.
        how: String,
    },
    /// The process cannot be started or spoken to.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}
