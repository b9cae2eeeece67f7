//! What can be wrong with a model folder or an adapter.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// An error of this crate. `file` is a path or, for embedded files, a name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
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
    /// A file that every model folder or adapter needs is not there.
    #[error("{folder} has no {file}: {hint}")]
    MissingFile {
        /// The folder.
        folder: String,
        /// The file.
        file: String,
        /// What to do.
        hint: String,
    },
    /// A file is too large to be what it claims.
    #[error("{file} has {size} bytes; at most {limit} are read")]
    TooLarge {
        /// The file.
        file: String,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// Not JSON, or JSON of another form.
    #[error("{file} is not the JSON that is expected here: {source}")]
    Json {
        /// The file.
        file: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A key of a configuration is missing or has a value that cannot be right.
    #[error("{file}: {key} {problem}")]
    Config {
        /// The file.
        file: String,
        /// The key, with dots.
        key: String,
        /// What is wrong, as the rest of a sentence.
        problem: String,
    },
    /// A valid configuration that this program cannot follow.
    #[error("{file}: {what} is not supported; {supported}")]
    Unsupported {
        /// The file.
        file: String,
        /// The feature, with its value.
        what: String,
        /// What is supported instead, or what to do.
        supported: String,
    },
    /// A safetensors file whose header is broken.
    #[error("{file} is not a valid safetensors file: {problem}")]
    Safetensors {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// A GGUF file whose header is broken.
    #[error("{file} is not a GGUF file that can be read: {problem}")]
    Gguf {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// One tensor whose content is broken or of a type that is not read.
    #[error("{file}: tensor {tensor}: {problem}")]
    Tensor {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// The tensors are not those of the configuration.
    #[error("{0}")]
    Tensors(TensorProblems),
    /// An adapter's parts do not fit together.
    #[error("adapter: {module}: {problem}")]
    Adapter {
        /// The module.
        module: String,
        /// What is wrong.
        problem: String,
    },
}

impl ModelError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn config(file: &str, key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Config { file: file.to_string(), key: key.into(), problem: problem.into() }
    }

    pub(crate) fn unsupported(file: &str, what: impl Into<String>, supported: impl Into<String>) -> Self {
        Self::Unsupported { file: file.to_string(), what: what.into(), supported: supported.into() }
    }

    pub(crate) fn tensor(file: &str, tensor: &str, problem: impl Into<String>) -> Self {
        Self::Tensor { file: file.to_string(), tensor: tensor.to_string(), problem: problem.into() }
    }
}

/// Every difference between the tensors of a checkpoint and those that its configuration asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorProblems {
    /// The folder or file.
    pub file: String,
    /// Tensors that are not there.
    pub missing: Vec<String>,
    /// Tensors that no part of the model uses.
    pub extra: Vec<String>,
    /// Tensors of the wrong shape or type: name and what is wrong.
    pub misshapen: Vec<(String, String)>,
}

impl TensorProblems {
    pub(crate) fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.misshapen.is_empty()
    }
}

impl fmt::Display for TensorProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [(self.missing.len(), "missing"), (self.extra.len(), "extra"), (self.misshapen.len(), "misshapen")];
        let counts: Vec<String> = counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        write!(f, "{}: the tensors are not those that config.json asks for ({})", self.file, counts.join(", "))?;
        for name in &self.missing {
            write!(f, "\n  missing: {name}")?;
        }
        for name in &self.extra {
            write!(f, "\n  extra: {name}")?;
        }
        for (name, problem) in &self.misshapen {
            write!(f, "\n  misshapen: {name}: {problem}")?;
        }
        Ok(())
    }
}
