//! Why there is no export.

use std::io;
use std::path::{Path, PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// From the model's or the adapter's files.
    #[error(transparent)]
    Model(#[from] trainer_model::ModelError),
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is something at the place of the export.
    #[error("{} is there already; remove it, or choose another --out", path.display())]
    Occupied {
        /// The place.
        path: PathBuf,
    },
    /// The model cannot be exported in this way.
    #[error("{what}: {problem}")]
    Unfit {
        /// The model, file or setting.
        what: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// What was written is not what was meant.
    #[error("{}: tensor {tensor} {problem}; nothing was exported: the disk or the memory may be faulty", file.display())]
    Verify {
        /// The file that was written.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What differs.
        problem: String,
    },
}

impl ExportError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn unfit(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Unfit { what: what.into(), problem: problem.into() }
    }
}
