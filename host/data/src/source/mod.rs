//! Sources: files of several formats as one sequence of JSON rows with provenance.

mod arrow_json;
mod bytes;
mod choose;
mod ipc;
mod json_text;
mod parquet;
mod paths;
mod rowview;
mod scan;
mod select;
mod spec;
mod stream;
mod table;
mod text;
mod unpack;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

pub use self::rowview::{Filter, Holdout, RowView};
pub use self::spec::{Access, Format, Order, SourceData, SourceSpec};
pub use self::stream::Rows;
pub(crate) use self::stream::{Drawn, OwnedRows, Windowed};

pub(crate) use self::bytes::ByteSource;
use self::scan::ScanError;
use self::select::Selection;
use self::spec::unpacked_name;
use self::table::{ChunkCache, Table};
use self::text::{RowFault, TextFile, TextKind, TextStream};
use self::unpack::{Packing, unpack};
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
    /// Rows.
    pub rows: Option<u64>,
    /// Blank lines that were passed over.
    pub blank_lines: u64,
}

#[derive(Debug)]
pub(crate) enum Reader {
    Text(TextFile),
    /// A text file that is only read from the front.
    Front(ByteSource, Option<Packing>, TextKind),
    Table(Arc<Table>),
}

/// An open source.
#[derive(Debug)]
pub struct Source {
    name: Arc<str>,
    order: Order,
    access: Access,
    files: Vec<FileInfo>,
    readers: Vec<Reader>,
    /// First row of each file among all rows, in file order.
    starts: Vec<u64>,
    /// Rows that are taken.
    len: u64,
    cache: ChunkCache,
    /// The rows that are taken, if not all are.
    selection: Selection,
    view: RowView,
    weight: f64,
    /// Where a full permutation would thrash: the runs of rows that are read at once.
    shards: Option<Vec<Shard>>,
    /// The order of the pass last asked for; passes come one after another.
    pass: Mutex<Option<(u64, u64, Arc<ShardedOrder>)>>,
}

impl Source {
    /// Opens all files: finds the rows of text files (one reading each, 8 bytes of memory a row), reads the metadata of tables, and
    /// hashes every file; looks at every row where the view chooses among them. Errors: paths that lead nowhere, a file that is not of its format, a source without rows.
    pub fn open(spec: SourceSpec) -> Result<Self, DataError> {
        let source_name = spec.name.clone();
        if let Access::Stream { window: 0 } = spec.access {
            return Err(DataError::Source { source_name, message: "the window of a streamed source must hold at least 1 row".to_owned() });
        }
        let inputs: Vec<(PathBuf, Option<&'static [u8]>)> = match &spec.data {
            SourceData::Paths(paths) => paths::resolve(&spec.name, paths, spec.format)?.into_iter().map(|p| (p, None)).collect(),
            SourceData::Embedded { name, bytes } => vec![(PathBuf::from(name), Some(*bytes))],
        };
        if !(spec.weight.is_finite() && spec.weight > 0.0) {
            let message = format!("its weight is {}; it must be a finite number above 0", spec.weight);
            return Err(DataError::Source { source_name, message });
        }
        let (mut files, mut readers, mut starts, mut all) = (Vec::new(), Vec::new(), Vec::new(), 0u64);
        for (path, embedded) in inputs {
            let (info, reader) = open_file(&spec, &path, embedded)?;
            starts.push(all);
            all = all.checked_add(info.rows.unwrap_or(0)).ok_or_else(|| DataError::Source {
                source_name: source_name.clone(),
                message: "more rows than can be counted".to_owned(),
            })?;
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
            len: all,
            cache: ChunkCache::new(CACHE_BYTES),
            selection: Selection::All,
            view: spec.view,
            weight: spec.weight,
            shards,
            pass: Mutex::default(),
        };
        if all == 0 {
            return Err(source.no_rows());
        }
        source.select()?;
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

    /// How many rows there are to take. Never 0.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The length that a mixing policy sees: the rows times the source's weight. Never 0.
    pub fn mix_length(&self) -> u64 {
        if self.weight == 1.0 { self.len } else { ((self.len as f64 * self.weight).round() as u64).max(1) }
    }

    /// Never: a source without rows does not open.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether rows can be read in any order.
    pub fn random_access(&self) -> bool {
        self.access == Access::Random
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

    pub(crate) fn selection(&self) -> &Selection {
        &self.selection
    }

    pub(crate) fn view(&self) -> &RowView {
        &self.view
    }

    pub(crate) fn readers(&self) -> &[Reader] {
        &self.readers
    }

    /// The row, by its place in file order, that position `at` of pass `pass` means. Only for sources that can be read at random.
    pub(crate) fn permuted(&self, seed: u64, pass: u64, at: u64) -> u64 {
        if self.order != Order::Shuffled {
            return at;
        }
        let Some(shards) = &self.shards else { return Permutation::new(seed, &self.name, pass, self.len).get(at) };
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
            message: format!("row {ordinal} was asked for, but there are only {} (counting from 0)", self.len),
        };
        if !self.random_access() {
            let message = "a streamed source has no random access".to_owned();
            return Err(DataError::Source { source_name: self.name.to_string(), message });
        }
        if ordinal >= self.len {
            return Err(past());
        }
        self.read_any(self.selection.row(ordinal)).map(|row| self.shaped(row))
    }

    /// As [`Source::read`], for any source: one that is only read from the front is read up to the row.
    pub(crate) fn read_slowly(&self, ordinal: u64) -> Result<Row, DataError> {
        if self.random_access() {
            return self.read(ordinal);
        }
        let row = usize::try_from(ordinal).ok().and_then(|n| self.rows().nth(n));
        row.unwrap_or_else(|| {
            let message = format!("row {ordinal} was asked for, but there are only {} (counting from 0)", self.len);
            Err(DataError::Source { source_name: self.name.to_string(), message })
        })
    }

    /// A row by its place among all rows of the files.
    fn read_any(&self, ordinal: u64) -> Result<Row, DataError> {
        let past =
            || DataError::Source { source_name: self.name.to_string(), message: format!("there is no row {ordinal} (counting from 0)") };
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
            Reader::Table(table) => {
                let json = table.read(file, within, &self.cache).map_err(|message| self.broken(info, message))?;
                Ok(self.row(info, within.saturating_add(1), json))
            }
            Reader::Front(..) => Err(past()),
        }
    }

    /// Rows of a file by their places in it, one after another. Only for files that can be read at random.
    pub(crate) fn each_of(&self, file: usize, rows: std::ops::Range<u64>, see: &mut dyn FnMut(&Row)) -> Result<(), DataError> {
        let (Some(info), Some(reader)) = (self.files.get(file), self.readers.get(file)) else { return Ok(()) };
        match reader {
            Reader::Text(text) => {
                for within in rows {
                    let json = text.read(within).map_err(|error| self.io(info, error))?;
                    see(&self.row(info, text.line(within), json));
                }
            }
            Reader::Table(table) => {
                // Not through the cache: each group is passed once.
                let mut stream = table::TableStream::at(Arc::clone(table), rows.start);
                for _ in rows {
                    let Some((row, json)) = stream.next().map_err(|message| self.broken(info, message))? else { break };
                    see(&self.row(info, row, json));
                }
            }
            Reader::Front(..) => {}
        }
        Ok(())
    }

    /// The place in file order of the row that errors call `file:number`: line `number` of a text file, row `number` of a table, from 1. Without
    /// a file the first that has such a row is meant; a file may be named by the end of its path. None where there is no such row, or it is not taken.
    pub fn find_row(&self, file: Option<&str>, number: u64) -> Option<u64> {
        let matches = |name: &str| {
            file.is_none_or(|wanted| name == wanted || name.strip_suffix(wanted).is_some_and(|rest| rest.ends_with(['/', '\\', ':'])))
        };
        let files = self.files.iter().zip(&self.readers).zip(&self.starts);
        files.filter(|((info, _), _)| matches(&info.name)).find_map(|((_, reader), start)| {
            let within = match reader {
                Reader::Text(text) => text.row_of_line(number)?,
                Reader::Table(table) => number.checked_sub(1).filter(|n| *n < table.len())?,
                Reader::Front(..) => return None,
            };
            self.selection.place(start.checked_add(within)?).filter(|place| *place < self.len)
        })
    }

    /// A row as the formatter sees it.
    pub(crate) fn shaped(&self, mut row: Row) -> Row {
        row.json = row.json.map(|json| self.view.shape(json));
        row
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
        message: format!("{name}: the ending tells no format; set `format` to jsonl, json, csv, parquet or arrow"),
    })?;
    let bytes = match embedded {
        Some(bytes) => ByteSource::Embedded(bytes),
        None => ByteSource::open(path).map_err(io)?,
    };
    let size = bytes.len();
    let scan = |e| scan_error(&spec.name, &name, format, e);
    let (sha256, rows, blank_lines, reader) = if format.is_table() {
        let sha256 = bytes.digest().map_err(io)?;
        let columns = spec.view.table_columns();
        let table = Table::open(bytes, format, columns.as_deref(), &spec.view.named_columns()).map_err(|message| DataError::File {
            source_name: spec.name.clone(),
            file: name.clone(),
            format: format.name(),
            message,
        })?;
        (sha256, table.len(), 0, Reader::Table(Arc::new(table)))
    } else {
        let packing = Packing::of(&bytes).map_err(io)?;
        match (spec.access, packing) {
            (Access::Random, None) => {
                let kind = TextKind::of(format, &name, &bytes, None).map_err(scan)?;
                let indexed = TextFile::index(bytes, kind).map_err(scan)?;
                (indexed.digest, indexed.file.len(), indexed.blank, Reader::Text(indexed.file))
            }
            (Access::Random, Some(packing)) => {
                let sha256 = bytes.digest().map_err(io)?;
                let bytes = unpack(&bytes, packing).map_err(io)?;
                let kind = TextKind::of(format, unpacked_name(&name), &bytes, None).map_err(scan)?;
                let indexed = TextFile::index(bytes, kind).map_err(scan)?;
                (sha256, indexed.file.len(), indexed.blank, Reader::Text(indexed.file))
            }
            (Access::Stream { .. }, packing) => {
                let sha256 = bytes.digest().map_err(io)?;
                let kind = TextKind::of(format, unpacked_name(&name), &bytes, packing).map_err(scan)?;
                let (rows, blank) = TextStream::count(&bytes, packing, kind.clone()).map_err(scan)?;
                (sha256, rows, blank, Reader::Front(bytes, packing, kind))
            }
        }
    };
    Ok((FileInfo { name: name.into(), format, bytes: size, sha256, rows: Some(rows), blank_lines }, reader))
}

/// The chunks of a source in file order, if it is too large to be decoded whole.
fn shards(readers: &[Reader]) -> Option<Vec<Shard>> {
    let mut out = Vec::new();
    let (mut start, mut parquet) = (0u64, 0u64);
    for reader in readers {
        match reader {
            Reader::Table(table) => {
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
