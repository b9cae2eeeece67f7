//! Tables: files whose rows lie in groups that are decoded at once and kept in a small cache shared by the threads.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::bytes::ByteSource;
use super::ipc::IpcFile;
use super::parquet::ParquetFile;
use super::spec::Format;
use super::text::{NumberedRow, RowFault};

/// Groups that unpack to more than this are read in parts, at the price of passing over what comes before a part.
const CHUNK_BYTES: u64 = 64 << 20;
/// The most parts of a group, whatever size its metadata claim.
const MAX_PARTS: u64 = 4096;

/// A run of rows of one group that is decoded at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkPlace {
    pub(crate) group: usize,
    /// Rows of the group before it.
    pub(crate) offset: usize,
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
    /// Appends a row.
    pub(crate) fn push(&mut self, row: Result<String, RowFault>) {
        match row {
            Ok(text) => self.text.push_str(&text),
            Err(fault) => _ = self.faults.insert(self.ends.len(), fault),
        }
        self.ends.push(self.text.len());
    }

    /// How many rows it has.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

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

/// Adds the chunks of a group of `count` rows and `size` bytes, and gives the number of rows so far.
pub(crate) fn parts(chunks: &mut Vec<ChunkPlace>, group: usize, mut rows: u64, count: u64, size: u64) -> Result<u64, String> {
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
    Ok(rows)
}

/// What to say of a column that is not there.
pub(crate) fn no_column(column: &str, names: &[String]) -> String {
    format!("there is no column `{column}`; the columns are {}", names.join(", "))
}

/// Runs the decoder, which is not written against hostile files everywhere: a panic in it becomes an error about the file.
pub(crate) fn guarded<T>(decode: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| Err("the file is damaged (the decoder gave up)".to_owned()))
}

/// An open table.
#[derive(Debug)]
pub(crate) struct Table {
    kind: Kind,
    pub(crate) chunks: Vec<ChunkPlace>,
    rows: u64,
}

#[derive(Debug)]
enum Kind {
    Parquet(Box<ParquetFile>),
    Ipc(IpcFile),
}

impl Table {
    /// Reads the metadata: `columns` are read (none: all), `named` must be there. The error says what is wrong with the file.
    pub(crate) fn open(bytes: ByteSource, format: Format, columns: Option<&[String]>, named: &[String]) -> Result<Self, String> {
        let (kind, chunks, names) = guarded(|| {
            Ok(if format == Format::Arrow {
                let (file, chunks, names) = IpcFile::open(bytes, columns)?;
                (Kind::Ipc(file), chunks, names)
            } else {
                let (file, chunks, names) = ParquetFile::open(bytes, columns)?;
                (Kind::Parquet(Box::new(file)), chunks, names)
            })
        })?;
        for (i, name) in names.iter().enumerate() {
            if names.iter().take(i).any(|other| other == name) {
                return Err(format!("two columns are called `{name}`"));
            }
        }
        if let Some(missing) = named.iter().find(|n| !names.contains(n)) {
            return Err(no_column(missing, &names));
        }
        let rows = chunks.last().map_or(0, |c| c.start.saturating_add(c.rows));
        Ok(Self { kind, chunks, rows })
    }

    pub(crate) fn len(&self) -> u64 {
        self.rows
    }

    /// From a row to the end of the chunk that holds it; none past the end.
    pub(crate) fn chunk_from(&self, row: u64) -> Option<std::ops::Range<u64>> {
        let (chunk, _) = self.locate(row).filter(|_| row < self.rows)?;
        let place = self.chunks.get(chunk)?;
        Some(row..place.start.saturating_add(place.rows))
    }

    /// The chunk that holds a row, and the row's place in it.
    fn locate(&self, row: u64) -> Option<(usize, usize)> {
        let chunk = self.chunks.partition_point(|c| c.start <= row).checked_sub(1)?;
        let within = row.checked_sub(self.chunks.get(chunk)?.start)?;
        Some((chunk, usize::try_from(within).ok()?))
    }

    fn decode(&self, chunk: usize) -> Result<Chunk, String> {
        let place = *self.chunks.get(chunk).ok_or("a chunk past the end of the file")?;
        guarded(|| match &self.kind {
            Kind::Parquet(file) => file.decode(place),
            Kind::Ipc(file) => file.decode(place),
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

/// A table from the front, a chunk at a time.
#[derive(Debug)]
pub(crate) struct TableStream {
    file: Arc<Table>,
    row: u64,
    chunk: Option<(usize, Chunk)>,
}

impl TableStream {
    pub(crate) fn new(file: Arc<Table>) -> Self {
        Self::at(file, 0)
    }

    /// From a row on.
    pub(crate) fn at(file: Arc<Table>, row: u64) -> Self {
        Self { file, row, chunk: None }
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
