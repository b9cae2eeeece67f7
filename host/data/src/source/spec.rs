//! What a source is made from.

use serde::{Deserialize, Serialize};

use super::rowview::RowView;

/// Where the bytes of a source are.
#[derive(Clone, Debug)]
pub enum SourceData {
    /// Files, folders (their data files at any depth, by name) and patterns with `*` and `?` in a part of the path and `**` for any folders.
    Paths(Vec<String>),
    /// Bytes within the program; `name` stands in for the path and its ending tells the format.
    Embedded {
        /// Such as `nano/math_train.jsonl`.
        name: String,
        /// The whole file.
        bytes: &'static [u8],
    },
}

/// File formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// An array of objects, or objects one after another.
    Json,
    /// Comma-separated values with a header (`.tsv`: tab-separated); every value is a string.
    Csv,
    /// Parquet.
    Parquet,
    /// Arrow IPC, as a file (Feather) or as a stream.
    Arrow,
}

impl Format {
    /// The format that a file name's ending means.
    pub fn of_name(name: &str) -> Option<Self> {
        let name = unpacked_name(name);
        let (_, ending) = name.rsplit_once('.')?;
        match ending.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            "json" => Some(Self::Json),
            "csv" | "tsv" => Some(Self::Csv),
            "parquet" | "pq" => Some(Self::Parquet),
            "arrow" | "feather" | "ipc" | "arrows" => Some(Self::Arrow),
            _ => None,
        }
    }

    /// The name in recipes and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
            Self::Arrow => "arrow",
        }
    }

    /// Whether rows lie in groups that are decoded at once.
    pub(crate) fn is_table(self) -> bool {
        matches!(self, Self::Parquet | Self::Arrow)
    }
}

/// A file's name without what says that it is compressed.
pub(crate) fn unpacked_name(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((rest, ending)) if ["gz", "zst", "zstd"].iter().any(|e| ending.eq_ignore_ascii_case(e)) => rest,
        _ => name,
    }
}

/// The order in which a pass gives the rows of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// A permutation drawn from the seed, the source's name and the number of the pass.
    #[default]
    Shuffled,
    /// As the files have them.
    File,
}

/// How a source is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Any row at any time; opening reads each file once (for its digest and the places of its rows, 8 bytes a row).
    #[default]
    Random,
    /// From the front, shuffled within windows, in memory that does not depend on how much there is; the policy cannot choose single rows.
    Stream {
        /// Rows in a window, all of which are held in memory; at least 1.
        window: u32,
    },
}

/// A source of rows.
#[derive(Clone, Debug)]
pub struct SourceSpec {
    /// The name in the recipe; the order of its rows depends on it.
    pub name: String,
    /// Where the bytes are.
    pub data: SourceData,
    /// The format; none: by each file's ending.
    pub format: Option<Format>,
    /// Which rows are taken, and which columns they have.
    pub view: RowView,
    /// How much more often than its rows say the source counts in the mix: the length that the mixing policy sees is that many times its rows. Above 0.
    pub weight: f64,
    /// The order of a pass.
    pub order: Order,
    /// How it is read.
    pub access: Access,
}

impl SourceSpec {
    /// Files, folders or patterns, shuffled, by their endings.
    pub fn paths(name: impl Into<String>, paths: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let data = SourceData::Paths(paths.into_iter().map(Into::into).collect());
        Self {
            name: name.into(),
            data,
            format: None,
            view: RowView::default(),
            weight: 1.0,
            order: Order::default(),
            access: Access::default(),
        }
    }

    /// Bytes within the program, shuffled, by the ending of `file`.
    pub fn embedded(name: impl Into<String>, file: impl Into<String>, bytes: &'static [u8]) -> Self {
        let data = SourceData::Embedded { name: file.into(), bytes };
        Self {
            name: name.into(),
            data,
            format: None,
            view: RowView::default(),
            weight: 1.0,
            order: Order::default(),
            access: Access::default(),
        }
    }
}
