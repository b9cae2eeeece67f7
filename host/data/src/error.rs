//! What can go wrong between a file and a sample. Every message says what, where, and how to fix it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// An error that stops the run.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder could not be read.
    #[error("source `{source_name}`: cannot read {path}: {error}")]
    Io {
        /// The source's name in the recipe.
        source_name: String,
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// Paths of a source that match nothing, a folder without data files, an unknown ending.
    #[error("source `{source_name}`: {message}")]
    Source {
        /// The source's name in the recipe.
        source_name: String,
        /// What is wrong and how to fix it.
        message: String,
    },
    /// A file that cannot be read as its format at all.
    #[error("source `{source_name}`: {file} is not a readable {format} file: {message}")]
    File {
        /// The source's name in the recipe.
        source_name: String,
        /// The file.
        file: String,
        /// `jsonl`, `json`, `csv` or `parquet`.
        format: &'static str,
        /// What is wrong and how to fix it.
        message: String,
    },
    /// All files of a source are empty.
    #[error("source `{source_name}` has no rows (read {files} file(s): {list}); check the path, or take the source out of the recipe")]
    NoRows {
        /// The source's name in the recipe.
        source_name: String,
        /// How many files were read.
        files: usize,
        /// The first few of them.
        list: String,
    },
    /// More broken rows than the run allows.
    #[error("{row}{}", .max.hint(*.count))]
    BadRows {
        /// The row that was one too many.
        row: Box<BadRow>,
        /// How many bad rows there were, this one included.
        count: u64,
        /// The limit.
        max: MaxBadRows,
    },
    /// The mixing policy refused its setup, failed, or decided something impossible.
    #[error("mixing policy: {0}")]
    Mixer(String),
    /// A formatter, template or tokenizer failed in a way that is not one row's fault.
    #[error("{stage} failed on {file}:{row} (source `{source_name}`): {message}")]
    Stage {
        /// `formatter`, `template` or `tokenizer`.
        stage: &'static str,
        /// The source's name in the recipe.
        source_name: String,
        /// The first file of the batch.
        file: String,
        /// The first row of the batch.
        row: u64,
        /// What it said.
        message: String,
    },
    /// No draw gives a sample any more.
    #[error(
        "the last {draws} draws gave no sample: every row was skipped or bad (reasons: {reasons}); check the formatter's settings, \
         `train_on` and `max_seq_length`"
    )]
    Barren {
        /// How many draws in a row.
        draws: u64,
        /// The most frequent reasons with their counts.
        reasons: String,
    },
    /// A state that does not belong to this run.
    #[error("cannot continue the data order: {0}")]
    State(String),
    /// Samples were asked for before the feedback they depend on, or feedback came out of order.
    #[error("feedback to the mixing policy: {0}")]
    Feedback(String),
    /// A setting that makes no sense.
    #[error("data settings: {0}")]
    Settings(String),
    /// A worker thread panicked or could not be started: a defect of the program.
    #[error("a data worker failed: {0}")]
    Worker(String),
    /// The folder of prepared data.
    #[error(transparent)]
    Prepared(#[from] crate::prepared::StoreError),
    /// A sample that does not fit a micro-batch.
    #[error("packing: {0}")]
    Pack(String),
}

/// The limit on bad rows, with the words that an error about it ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxBadRows(pub u64);

impl MaxBadRows {
    fn hint(self, count: u64) -> String {
        match self.0 {
            0 => "\n  fix or remove the row, or allow some with --max-bad-rows".to_owned(),
            max => format!("\n  this is bad row {count}; --max-bad-rows allows {max}: fix the data or raise the limit"),
        }
    }
}

/// The kinds of bad rows, by which they are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadKind {
    /// Not one JSON object.
    InvalidJson,
    /// Not UTF-8.
    InvalidUtf8,
    /// A record of a table that does not fit its header or holds what JSON cannot.
    InvalidRecord,
    /// Larger than the limit on one row.
    TooLarge,
    /// The formatter refused it.
    Format,
    /// The template refused the conversation.
    Template,
    /// The tokenizer refused the text.
    Tokenize,
    /// A plugin trapped, hit a limit or returned a bad value on it.
    Trap,
    /// More tokens than `max_seq_length` under `too_long = "error"`.
    TooLong,
    /// No token to learn from, under `no_target = "error"`.
    NoTarget,
}

impl fmt::Display for BadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InvalidJson => "invalid JSON",
            Self::InvalidUtf8 => "invalid UTF-8",
            Self::InvalidRecord => "invalid record",
            Self::TooLarge => "row too large",
            Self::Format => "refused by the formatter",
            Self::Template => "refused by the template",
            Self::Tokenize => "refused by the tokenizer",
            Self::Trap => "plugin failed",
            Self::TooLong => "longer than max_seq_length",
            Self::NoTarget => "no target tokens",
        })
    }
}

/// A row that cannot be trained on, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRow {
    /// The source's name in the recipe.
    pub source: String,
    /// The file.
    pub file: String,
    /// Line (text files) or row (tables), from 1.
    pub row: u64,
    /// JSON Pointer to the offending value; empty for the row itself.
    pub field: String,
    /// The kind, for counting.
    pub kind: BadKind,
    /// What is wrong and what was expected.
    pub message: String,
}

impl fmt::Display for BadRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.row, self.kind)?;
        if !self.field.is_empty() {
            write!(f, " at {}", self.field)?;
        }
        write!(f, ": {} (source `{}`)", self.message, self.source)
    }
}

/// What a stage (formatter, template, tokenizer, mixer) can say besides its answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// The fault of what was passed in: a trap, exhausted fuel, a refused value. In a batch, the rows are tried one by one; on one row it
    /// makes that row bad.
    #[error("{0}")]
    Row(String),
    /// Not the fault of a row: the run stops (and can be resumed).
    #[error("{0}")]
    Fatal(String),
}
