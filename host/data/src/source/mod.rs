//! Sources: files of several formats as one sequence of JSON rows with provenance.

mod arrow_json;
mod bytes;
mod json_text;
mod parquet;
mod paths;
mod scan;
mod spec;
mod stream;
mod text;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

pub use self::spec::{Access, Format, Order, SourceData, SourceSpec};
pub use self::stream::Rows;
pub(crate) use self::stream::Windowed;

use self::bytes::ByteSource;
use self::parquet::{ChunkCache, ParquetFile};
use self::scan::ScanError;
use self::text::{RowFault, TextFile, TextKind};
use crate::error::{BadRow, DataError};
use crate::order::{Permutation, Shard, ShardedOrder};

/// A parquet source that unpacks to more than this is shuffled within windows of this size, so that each row group is read once a pass.
const WINDOW_BYTES: u64 = 128 << 20;
/// Memory for decoded row groups, per source. Reading ahead crosses from one window into the next, so it holds more than one.
const CACHE_BYTES: usize = 384 << 20;

/// A row as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The file.
    pub file: Arc<str>,
    /// Line (text files) or row (parquet), from 1.
    pub row: u64,
    /// One JSON object, as written in JSON files; or what is wrong with it.
    pub json: Result<String, BadRow>,
}

/// A file of a source, as the lock records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// The path as the recipe leads to it, or the name of embedded data.
    #[serde(with = "shared_text")]
    pub name: Arc<str>,
    /// The format that it is read as.
    pub format: Format,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Rows, where counted; a streamed text file is not.
    pub rows: Option<u64>,
    /// Blank lines that were passed over.
    pub blank_lines: u64,
}

#[derive(Debug)]
pub(crate) enum Reader {
    Text(TextFile),
    /// A text file that is only read from the front.
    Front(ByteSource, TextKind),
    Parquet(Arc<ParquetFile>),
}

/// An open source.
#[derive(Debug)]
pub struct Source {
    name: Arc<str>,
    order: Order,
    access: Access,
    files: Vec<FileInfo>,
    readers: Vec<Reader>,
    /// First row of each file in the source's file order; empty when streamed.
    starts: Vec<u64>,
    len: Option<u64>,
    cache: ChunkCache,
    /// Where a full permutation would thrash: the runs of rows that are read at once.
    shards: Option<Vec<Shard>>,
    /// The order of the pass last asked for; passes come one after another.
    pass: Mutex<Option<(u64, u64, Arc<ShardedOrder>)>>,
}

impl Source {
    /// Opens all files: finds the rows of text files (one reading each, 8 bytes of memory a row), reads the metadata of parquet files, and
    /// hashes every file. Errors: paths that lead nowhere, a file that is not of its format, a source without rows.
    pub fn open(spec: SourceSpec) -> Result<Self, DataError> {
        let source_name = spec.name.clone();
        if let Access::Stream { window: 0 } = spec.access {
            return Err(DataError::Source { source_name, message: "the window of a streamed source must hold at least 1 row".to_owned() });
        }
        let inputs: Vec<(PathBuf, Option<&'static [u8]>)> = match &spec.data {
            SourceData::Paths(paths) => paths::resolve(&spec.name, paths, spec.format)?.into_iter().map(|p| (p, None)).collect(),
            SourceData::Embedded { name, bytes } => vec![(PathBuf::from(name), Some(*bytes))],
        };
        let (mut files, mut readers, mut starts, mut len) = (Vec::new(), Vec::new(), Vec::new(), Some(0u64));
        for (path, embedded) in inputs {
            let (info, reader) = open_file(&spec, &path, embedded)?;
            starts.push(len.unwrap_or(0));
            len = match (len, info.rows) {
                (Some(a), Some(b)) => Some(a.checked_add(b).ok_or_else(|| DataError::Source {
                    source_name: source_name.clone(),
                    message: "more rows than can be counted".to_owned(),
                })?),
                _ => None,
            };
            tracing::debug!(source = spec.name, file = %info.name, rows = info.rows, bytes = info.bytes, sha256 = info.sha256, "opened");
            files.push(info);
            readers.push(reader);
        }
        let shards = shards(&readers);
        let mut source = Self {
            name: spec.name.into(),
            order: spec.order,
            access: spec.access,
            files,
            readers,
            starts,
            len,
            cache: ChunkCache::new(CACHE_BYTES),
            shards,
            pass: Mutex::default(),
        };
        if source.len == Some(0) {
            return Err(source.no_rows());
        }
        if matches!(source.access, Access::Stream { .. }) {
            if source.rows().next().transpose()?.is_none() {
                return Err(source.no_rows());
            }
            source.len = None;
        }
        Ok(source)
    }

    pub(crate) fn no_rows(&self) -> DataError {
        let mut list: Vec<&str> = self.files.iter().take(3).map(|f| &*f.name).collect();
        if self.files.len() > 3 {
            list.push("...");
        }
        DataError::NoRows { source_name: self.name.to_string(), files: self.files.len(), list: list.join(", ") }
    }

    /// The name in the recipe.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many rows there are; none for a streamed source. Never 0.
    pub fn len(&self) -> Option<u64> {
        self.len
    }

    /// Never: a source without rows does not open.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether rows can be read in any order.
    pub fn random_access(&self) -> bool {
        self.len.is_some()
    }

    /// The files with their digests, in order.
    pub fn files(&self) -> &[FileInfo] {
        &self.files
    }

    /// How it is read.
    pub fn access(&self) -> Access {
        self.access
    }

    pub(crate) fn order(&self) -> Order {
        self.order
    }

    pub(crate) fn readers(&self) -> &[Reader] {
        &self.readers
    }

    /// The row, by its place in file order, that position `at` of pass `pass` means. Only for sources of known length.
    pub(crate) fn permuted(&self, seed: u64, pass: u64, at: u64) -> u64 {
        let Some(len) = self.len.filter(|_| self.order == Order::Shuffled) else { return at };
        let Some(shards) = &self.shards else { return Permutation::new(seed, &self.name, pass, len).get(at) };
        let mut last = self.pass.lock().unwrap_or_else(PoisonError::into_inner);
        match last.as_ref() {
            Some((s, p, order)) if (*s, *p) == (seed, pass) => order.get(at),
            _ => {
                let order = Arc::new(ShardedOrder::new(seed, &self.name, pass, shards, WINDOW_BYTES));
                let row = order.get(at);
                *last = Some((seed, pass, order));
                row
            }
        }
    }

    /// A row by its place in file order, from 0. Errors are about files; a broken row is in `Row::json`.
    pub fn read(&self, ordinal: u64) -> Result<Row, DataError> {
        let past = || DataError::Source {
            source_name: self.name.to_string(),
            message: match self.len {
                Some(len) => format!("row {ordinal} was asked for, but there are only {len} (counting from 0)"),
                None => "a streamed source has no random access".to_owned(),
            },
        };
        if self.len.is_none_or(|len| ordinal >= len) {
            return Err(past());
        }
        // The last file that begins at or before the row; files without rows begin where the next one does.
        let file = self.starts.partition_point(|s| *s <= ordinal).checked_sub(1).ok_or_else(past)?;
        let (Some(info), Some(reader), Some(start)) = (self.files.get(file), self.readers.get(file), self.starts.get(file)) else {
            return Err(past());
        };
        let within = ordinal - start;
        match reader {
            Reader::Text(text) => {
                let json = text.read(within).map_err(|error| self.io(info, error))?;
                Ok(self.row(info, text.line(within), json))
            }
            Reader::Parquet(table) => {
                let json = table.read(file, within, &self.cache).map_err(|message| self.broken(info, message))?;
                Ok(self.row(info, within.saturating_add(1), json))
            }
            Reader::Front(..) => Err(past()),
        }
    }

    /// All rows in file order.
    pub fn rows(&self) -> Rows<'_> {
        Rows::new(self)
    }

    pub(crate) fn row(&self, info: &FileInfo, row: u64, json: Result<String, RowFault>) -> Row {
        let json = json.map_err(|fault| BadRow {
            source: self.name.to_string(),
            file: info.name.to_string(),
            row,
            field: fault.field,
            kind: fault.kind,
            message: fault.message,
        });
        Row { file: Arc::clone(&info.name), row, json }
    }

    pub(crate) fn io(&self, info: &FileInfo, error: std::io::Error) -> DataError {
        DataError::Io { source_name: self.name.to_string(), path: PathBuf::from(&*info.name), error }
    }

    pub(crate) fn broken(&self, info: &FileInfo, message: String) -> DataError {
        DataError::File { source_name: self.name.to_string(), file: info.name.to_string(), format: info.format.name(), message }
    }

    pub(crate) fn scan_error(&self, info: &FileInfo, error: ScanError) -> DataError {
        scan_error(&self.name, &info.name, info.format, error)
    }
}

fn scan_error(source: &str, file: &str, format: Format, error: ScanError) -> DataError {
    match error {
        ScanError::Io(error) => DataError::Io { source_name: source.to_owned(), path: PathBuf::from(file), error },
        ScanError::Broken { line, message } => DataError::File {
            source_name: source.to_owned(),
            file: file.to_owned(),
            format: format.name(),
            message: format!("line {line}: {message}"),
        },
    }
}

fn open_file(spec: &SourceSpec, path: &Path, embedded: Option<&'static [u8]>) -> Result<(FileInfo, Reader), DataError> {
    let name = path.to_string_lossy().into_owned();
    let io = |error| DataError::Io { source_name: spec.name.clone(), path: path.to_owned(), error };
    let format = spec.format.or_else(|| Format::of_name(&name)).ok_or_else(|| DataError::Source {
        source_name: spec.name.clone(),
        message: format!("{name}: the ending tells no format; set `format` to jsonl, json, csv or parquet"),
    })?;
    if spec.columns.is_some() && format != Format::Parquet {
        let message = format!("`columns` chooses the columns of parquet files; {name} is {}", format.name());
        return Err(DataError::Source { source_name: spec.name.clone(), message });
    }
    let bytes = match embedded {
        Some(bytes) => ByteSource::Embedded(bytes),
        None => ByteSource::open(path).map_err(io)?,
    };
    let size = bytes.len();
    let scan = |e| scan_error(&spec.name, &name, format, e);
    let (sha256, rows, blank_lines, reader) = if format == Format::Parquet {
        let sha256 = bytes.digest().map_err(io)?;
        let table = ParquetFile::open(bytes, spec.columns.as_deref()).map_err(|message| DataError::File {
            source_name: spec.name.clone(),
            file: name.clone(),
            format: format.name(),
            message,
        })?;
        (sha256, Some(table.len()), 0, Reader::Parquet(Arc::new(table)))
    } else {
        let kind = TextKind::of(format, &name, &bytes).map_err(scan)?;
        match spec.access {
            Access::Random => {
                let indexed = TextFile::index(bytes, kind).map_err(scan)?;
                (indexed.digest, Some(indexed.file.len()), indexed.blank, Reader::Text(indexed.file))
            }
            Access::Stream { .. } => (bytes.digest().map_err(io)?, None, 0, Reader::Front(bytes, kind)),
        }
    };
    Ok((FileInfo { name: name.into(), format, bytes: size, sha256, rows, blank_lines }, reader))
}

/// The chunks of a source in file order, if it is too large to be decoded whole.
fn shards(readers: &[Reader]) -> Option<Vec<Shard>> {
    let mut out = Vec::new();
    let (mut start, mut parquet) = (0u64, 0u64);
    for reader in readers {
        match reader {
            Reader::Parquet(table) => {
                for chunk in &table.chunks {
                    out.push(Shard { start: start.saturating_add(chunk.start), rows: chunk.rows, bytes: chunk.bytes });
                    parquet = parquet.saturating_add(chunk.bytes);
                }
                start = start.saturating_add(table.len());
            }
            // Text beside large tables: rows are cheap to reach, so a whole file may be one shard.
            Reader::Text(text) => {
                out.push(Shard { start, rows: text.len(), bytes: 0 });
                start = start.saturating_add(text.len());
            }
            Reader::Front(..) => return None,
        }
    }
    (parquet > WINDOW_BYTES).then_some(out)
}

/// All rows of a source in file order: how evaluation reads.
pub fn read_rows(source: &Source) -> Rows<'_> {
    source.rows()
}

/// `Arc<str>` as a string, without serde's `rc` feature.
mod shared_text {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(text: &Arc<str>, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Arc<str>, D::Error> {
        String::deserialize(d).map(Arc::from)
    }
}
