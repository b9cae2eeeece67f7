//! What can be wrong with a recipe, and where.

use std::path::PathBuf;

/// Where a setting was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a file or text: its name, and the line and column (characters) from 1.
    Text {
        /// The file's path as it was given, or `recipe` for a text without one.
        file: String,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
    },
    /// On the command line, as `--set KEY=VALUE`.
    Flag(String),
    /// Nowhere: a default, or something that is missing.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Self::Flag(text) => write!(f, "--set {text}"),
            Self::Default => write!(f, "recipe"),
        }
    }
}

/// One thing that is wrong with a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it was written.
    pub origin: Origin,
    /// The full key, such as `train.learning_rate`; empty for the file as a whole.
    pub key: String,
    /// What is wrong, and what is allowed.
    pub message: String,
    /// How to fix it, where that is not plain from the message.
    pub help: Option<String>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

/// Why there is no recipe.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the recipe {}: {source}", path.display())]
    Read {
        /// The recipe's path.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The recipe (or an override) is wrong in one or more places.
    #[error("{}", join(problems))]
    Invalid {
        /// Every problem found, in the order of the sections.
        problems: Vec<Problem>,
    },
    /// A recipe could not be written as TOML.
    #[error("cannot write the recipe as TOML: {0}")]
    Write(#[from] toml::ser::Error),
}

fn join(problems: &[Problem]) -> String {
    let mut text = problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n");
    if problems.len() > 1 {
        text.push_str(&format!("\n{} problems in the recipe", problems.len()));
    }
    text
}
