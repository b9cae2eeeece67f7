//! Parquet files: rows by row group, decoded once and kept in a small cache shared by the threads.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use super::arrow_json::row_object;
use super::bytes::{ByteSource, SourceReader};
use super::text::{NumberedRow, RowFault};

/// Row groups that unpack to more than this are read in parts, at the price of passing over what comes before a part.
const CHUNK_BYTES: u64 = 64 << 20;
/// The most parts of a row group, whatever size its metadata claim.
const MAX_PARTS: u64 = 4096;
/// Rows decoded at a time.
const BATCH_ROWS: usize = 1024;

impl Length for ByteSource {
    fn len(&self) -> u64 {
        ByteSource::len(self)
    }
}

/// Reads at given places, so that threads can share one open file (parquet's own reader of files moves a shared cursor).
impl ChunkReader for ByteSource {
    type T = std::io::BufReader<SourceReader>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(std::io::BufReader::new(self.reader_at(start)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let end = start.checked_add(length as u64).ok_or_else(|| ParquetError::EOF("a column chunk ends past any file".to_owned()))?;
        if let Self::Embedded(bytes) = self {
            let range = usize::try_from(start).ok().zip(usize::try_from(end).ok()).and_then(|(s, e)| bytes.get(s..e));
            return range.map(Bytes::from_static).ok_or_else(|| ParquetError::EOF("a range outside the data".to_owned()));
        }
        Ok(Bytes::from(self.read_range(start, end)?))
    }
}

/// A run of rows of one row group that is decoded at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkPlace {
    group: usize,
    /// Rows of the group before it.
    offset: usize,
    /// First row in the file.
    pub(crate) start: u64,
    pub(crate) rows: u64,
    /// Unpacked size, about.
    pub(crate) bytes: u64,
}

/// The rows of a chunk as JSON.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    text: String,
    ends: Vec<usize>,
    faults: BTreeMap<usize, RowFault>,
}

impl Chunk {
    fn row(&self, i: usize) -> Option<Result<String, RowFault>> {
        if let Some(fault) = self.faults.get(&i) {
            return Some(Err(fault.clone()));
        }
        let start = i.checked_sub(1).map_or(Some(0), |p| self.ends.get(p).copied())?;
        self.text.get(start..*self.ends.get(i)?).map(|t| Ok(t.to_owned()))
    }

    fn weight(&self) -> usize {
        self.text.len().saturating_add(self.ends.len().saturating_mul(8))
    }
}

/// An open parquet file.
#[derive(Debug)]
pub(crate) struct ParquetFile {
    bytes: ByteSource,
    metadata: ArrowReaderMetadata,
    projection: ProjectionMask,
    pub(crate) chunks: Vec<ChunkPlace>,
    rows: u64,
}

/// Runs the decoder, which is not written against hostile files everywhere: a panic in it becomes an error about the file.
fn guarded<T>(decode: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| Err("the file is damaged (the decoder gave up)".to_owned()))
}

impl ParquetFile {
    /// Reads the metadata. The error says what is wrong with the file.
    pub(crate) fn open(bytes: ByteSource, columns: Option<&[String]>) -> Result<Self, String> {
        let describe = |e: ParquetError| match bytes.len() {
            0 => "the file is empty".to_owned(),
            _ => format!("{e}; the file may have been cut short or be of another format"),
        };
        let metadata = guarded(|| ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::new()).map_err(describe))?;
        let schema = metadata.parquet_schema();
        let names: Vec<&str> = schema.root_schema().get_fields().iter().map(|f| f.name()).collect();
        let projection = match columns {
            None => ProjectionMask::all(),
            Some(columns) => {
                let mut indices = Vec::with_capacity(columns.len());
                for column in columns {
                    let found = names.iter().position(|n| n == column);
                    indices.push(found.ok_or_else(|| format!("there is no column `{column}`; the columns are {}", names.join(", ")))?);
                }
                ProjectionMask::roots(schema, indices)
            }
        };
        for (i, name) in names.iter().enumerate() {
            if names.iter().take(i).any(|other| other == name) {
                return Err(format!("two columns are called `{name}`"));
            }
        }
        let (mut chunks, mut rows) = (Vec::new(), 0u64);
        for (group, meta) in metadata.metadata().row_groups().iter().enumerate() {
            let count = u64::try_from(meta.num_rows()).map_err(|_| format!("row group {group} has a negative number of rows"))?;
            let size = u64::try_from(meta.total_byte_size()).unwrap_or(0);
            let parts = (size / CHUNK_BYTES + 1).min(MAX_PARTS).min(count.max(1));
            let per = count.div_ceil(parts).max(1);
            let mut offset = 0;
            while offset < count {
                let n = per.min(count - offset);
                let bytes = (u128::from(size) * u128::from(n) / u128::from(count)) as u64;
                let offset_rows = usize::try_from(offset).map_err(|_| format!("row group {group} is too large"))?;
                chunks.push(ChunkPlace { group, offset: offset_rows, start: rows, rows: n, bytes });
                rows = rows.checked_add(n).ok_or("more rows than can be counted")?;
                offset += n;
            }
        }
        Ok(Self { bytes, metadata, projection, chunks, rows })
    }

    pub(crate) fn len(&self) -> u64 {
        self.rows
    }

    /// The chunk that holds a row, and the row's place in it.
    fn locate(&self, row: u64) -> Option<(usize, usize)> {
        let chunk = self.chunks.partition_point(|c| c.start <= row).checked_sub(1)?;
        let within = row.checked_sub(self.chunks.get(chunk)?.start)?;
        Some((chunk, usize::try_from(within).ok()?))
    }

    fn decode(&self, chunk: usize) -> Result<Chunk, String> {
        let place = *self.chunks.get(chunk).ok_or("a chunk past the end of the file")?;
        guarded(|| {
            let rows = usize::try_from(place.rows).map_err(|_| "the row group is too large".to_owned())?;
            let describe = |e: String| format!("row group {}: {e}; the file may be damaged", place.group);
            let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(self.bytes.clone(), self.metadata.clone())
                .with_row_groups(vec![place.group])
                .with_projection(self.projection.clone())
                .with_batch_size(BATCH_ROWS.min(rows))
                .with_offset(place.offset)
                .with_limit(rows)
                .build()
                .map_err(|e| describe(e.to_string()))?;
            let mut out = Chunk::default();
            for batch in reader {
                let batch = batch.map_err(|e| describe(e.to_string()))?;
                for i in 0..batch.num_rows() {
                    match row_object(&batch, i) {
                        Ok(text) => out.text.push_str(&text),
                        Err(fault) => _ = out.faults.insert(out.ends.len(), fault),
                    }
                    out.ends.push(out.text.len());
                }
            }
            if out.ends.len() != rows {
                return Err(describe(format!("it holds {} of its {rows} rows", out.ends.len())));
            }
            Ok(out)
        })
    }

    /// A row through the cache. The outer error is about the file.
    pub(crate) fn read(&self, file: usize, row: u64, cache: &ChunkCache) -> Result<Result<String, RowFault>, String> {
        let (chunk, within) = self.locate(row).ok_or("a row past the end of the file")?;
        let chunk = cache.get((file, chunk), || self.decode(chunk))?;
        chunk.row(within).ok_or_else(|| "a row past the end of its row group".to_owned())
    }
}

type Slot = Arc<OnceLock<Result<Arc<Chunk>, String>>>;

/// Decoded chunks, the least recently used leaving first. Threads that want the same chunk wait for the one that decodes it.
#[derive(Debug)]
pub(crate) struct ChunkCache {
    limit: usize,
    state: Mutex<CacheState>,
}

#[derive(Debug, Default)]
struct CacheState {
    slots: HashMap<(usize, usize), (u64, Slot)>,
    clock: u64,
}

impl ChunkCache {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default() }
    }

    fn get(&self, key: (usize, usize), decode: impl FnOnce() -> Result<Chunk, String>) -> Result<Arc<Chunk>, String> {
        let slot = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.clock += 1;
            let now = state.clock;
            let entry = state.slots.entry(key).or_default();
            entry.0 = now;
            Arc::clone(&entry.1)
        };
        let mut fresh = false;
        let chunk = slot.get_or_init(|| {
            fresh = true;
            decode().map(Arc::new)
        });
        if fresh {
            self.evict(key);
        }
        chunk.clone()
    }

    /// Drops the least recently used chunks, never the one just read, until the rest fits.
    fn evict(&self, keep: (usize, usize)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let weigh = |slot: &Slot| match slot.get() {
            Some(Ok(chunk)) => chunk.weight(),
            _ => 0,
        };
        let mut total: usize = state.slots.values().map(|(_, slot)| weigh(slot)).sum();
        while total > self.limit {
            let oldest = state.slots.iter().filter(|(k, (_, slot))| **k != keep && slot.get().is_some()).min_by_key(|(_, (used, _))| *used);
            let Some(oldest) = oldest.map(|(k, _)| *k) else { return };
            if let Some((_, slot)) = state.slots.remove(&oldest) {
                total = total.saturating_sub(weigh(&slot));
            }
        }
    }
}

/// A parquet file from the front, a chunk at a time.
#[derive(Debug)]
pub(crate) struct ParquetStream {
    file: Arc<ParquetFile>,
    row: u64,
    chunk: Option<(usize, Chunk)>,
}

impl ParquetStream {
    pub(crate) fn new(file: Arc<ParquetFile>) -> Self {
        Self { file, row: 0, chunk: None }
    }

    /// The next row's number, from 1, and text.
    pub(crate) fn next(&mut self) -> Result<Option<NumberedRow>, String> {
        if self.row >= self.file.len() {
            return Ok(None);
        }
        let (wanted, within) = self.file.locate(self.row).ok_or("a row past the end of the file")?;
        if self.chunk.as_ref().is_none_or(|(have, _)| *have != wanted) {
            self.chunk = None;
            self.chunk = Some((wanted, self.file.decode(wanted)?));
        }
        self.row += 1;
        let row = self.chunk.as_ref().and_then(|(_, chunk)| chunk.row(within)).ok_or("a row past the end of its row group")?;
        Ok(Some((self.row, row)))
    }

    /// Passes over a row; false at the end.
    pub(crate) fn skip(&mut self) -> bool {
        let more = self.row < self.file.len();
        self.row += u64::from(more);
        more
    }
}
