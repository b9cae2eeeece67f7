//! One file of prepared rows.
//!
//! ```text
//! magic (16) | length of the head (4) | head: JSON | record 0 | record 1 | ... | offset of record 0 (8) | ... | end of the last (8) | tail (64)
//! record = digest (16) | bytes        tail = offset of the offsets (8) | rows (8) | digest of all before it but the records (32) | magic (16)
//! ```
//!
//! Numbers are little-endian. A record's digest is over the entry's key, the row's place and the bytes, so neither a record of another entry nor one from
//! another place passes for it, and offsets need no digest of their own.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::record::{Place, decode, encode};
use super::store::NEW;
use crate::error::DataError;
use crate::pipeline::worker::Outcome;
use crate::source::{ByteSource, Source};

const MAGIC: &[u8; 16] = b"trainer-rows-1\n\0";
const TAG: usize = 16;
const TAIL: u64 = 64;
/// The largest head that is read.
const MAX_HEAD: u32 = 64 << 20;

/// What an entry says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// See [`super::identity`].
    pub(crate) identity: Value,
    /// The program that made it.
    pub(crate) trainer: String,
    /// The source's name in the recipe.
    pub(crate) source: String,
    /// Where its files were, as absolute paths; those within the program have none.
    pub(crate) files: Vec<HeadFile>,
    /// When it was made, in seconds since 1970.
    pub(crate) created: u64,
}

/// A file that the rows came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct HeadFile {
    pub(crate) name: String,
    pub(crate) path: Option<String>,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    /// When it was last written, in nanoseconds since 1970.
    pub(crate) modified: Option<u64>,
}

/// The name of an entry: the digest of what decides it.
pub(crate) fn key_of(identity: &Value) -> [u8; 32] {
    Sha256::digest(identity.to_string().as_bytes()).into()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len().saturating_mul(2)), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

fn tag(key: &[u8; 32], row: u64, bytes: &[u8]) -> [u8; TAG] {
    let digest = Sha256::new().chain_update(key).chain_update(row.to_le_bytes()).chain_update(bytes).finalize();
    let mut tag = [0; TAG];
    tag.iter_mut().zip(digest).for_each(|(t, d)| *t = d);
    tag
}

fn tail_digest(head: &[u8], index: u64, rows: u64) -> [u8; 32] {
    Sha256::new()
        .chain_update(MAGIC)
        .chain_update(head)
        .chain_update(index.to_le_bytes())
        .chain_update(rows.to_le_bytes())
        .finalize()
        .into()
}

/// Writes an entry. Until [`Writer::finish`] it is a temporary file that nobody takes for one; dropped or killed before, it is none.
pub(crate) struct Writer {
    out: BufWriter<tempfile::NamedTempFile>,
    /// Offsets, on disk too: there may be billions.
    offsets: BufWriter<File>,
    head: Vec<u8>,
    key: [u8; 32],
    at: u64,
    rows: u64,
}

impl Writer {
    pub(crate) fn new(folder: &Path, head: &Head) -> io::Result<Self> {
        let key = key_of(&head.identity);
        let head = serde_json::to_vec(head)?;
        let length = u32::try_from(head.len()).ok().filter(|n| *n <= MAX_HEAD);
        let length = length.ok_or_else(|| io::Error::other("the description of the data is too large"))?;
        let file = tempfile::Builder::new().prefix(NEW).tempfile_in(folder)?;
        // Held as long as it is written: what can be locked was left by a process that ended.
        file.as_file().lock()?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(MAGIC)?;
        out.write_all(&length.to_le_bytes())?;
        out.write_all(&head)?;
        let at = (MAGIC.len() + 4 + head.len()) as u64;
        let offsets = BufWriter::with_capacity(1 << 16, tempfile::tempfile_in(folder)?);
        Ok(Self { out, offsets, head, key, at, rows: 0 })
    }

    /// Appends the next row.
    pub(crate) fn push(&mut self, record: &[u8]) -> io::Result<()> {
        self.offsets.write_all(&self.at.to_le_bytes())?;
        self.out.write_all(&tag(&self.key, self.rows, record))?;
        self.out.write_all(record)?;
        self.at = self.at.saturating_add((TAG + record.len()) as u64);
        self.rows += 1;
        Ok(())
    }

    /// Puts the entry in its place, durably, and gives its size.
    pub(crate) fn finish(self, path: &Path) -> io::Result<u64> {
        let Self { mut out, mut offsets, head, at, rows, .. } = self;
        offsets.write_all(&at.to_le_bytes())?;
        let mut offsets = offsets.into_inner().map_err(io::IntoInnerError::into_error)?;
        offsets.seek(SeekFrom::Start(0))?;
        let index = io::copy(&mut offsets, &mut out)?;
        out.write_all(&at.to_le_bytes())?;
        out.write_all(&rows.to_le_bytes())?;
        out.write_all(&tail_digest(&head, at, rows))?;
        out.write_all(MAGIC)?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        if let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(at.saturating_add(index).saturating_add(TAIL))
    }
}

/// What an entry's file says, checked as far as it can be without reading the records.
pub(crate) struct Opened {
    pub(crate) head: Head,
    pub(crate) rows: u64,
    bytes: ByteSource,
    key: [u8; 32],
    index: u64,
}

/// Opens an entry. The error says what is wrong with it.
pub(crate) fn open(path: &Path) -> Result<Opened, String> {
    let io = |e: io::Error| e.to_string();
    let bytes = ByteSource::open(path).map_err(io)?;
    let fixed = |start: u64, n: u64| bytes.read_range(start, start.saturating_add(n)).map_err(|_| "it is cut short".to_owned());
    if fixed(0, 16)? != MAGIC {
        return Err("it is no file of prepared rows, or of another version".to_owned());
    }
    let length = word(&fixed(16, 4)?).filter(|n| *n <= u64::from(MAX_HEAD)).ok_or("its head is damaged")?;
    let head = fixed(20, length)?;
    let start = bytes.len().checked_sub(TAIL).ok_or("it is cut short")?;
    let tail = fixed(start, TAIL)?;
    let at = |from: usize, to: usize| tail.get(from..to).unwrap_or_default();
    let (index, rows) = (word(at(0, 8)).unwrap_or(0), word(at(8, 16)).unwrap_or(0));
    if at(48, 64) != MAGIC || at(16, 48) != tail_digest(&head, index, rows) {
        return Err("it is cut short or damaged".to_owned());
    }
    let whole = rows.checked_add(1).and_then(|n| n.checked_mul(8)).and_then(|n| n.checked_add(index));
    if whole != Some(start) || index < length.saturating_add(20) {
        return Err("it is cut short or damaged".to_owned());
    }
    let head: Head = serde_json::from_slice(&head).map_err(|e| format!("its head is damaged: {e}"))?;
    let key = key_of(&head.identity);
    Ok(Opened { head, rows, bytes, key, index })
}

/// A little-endian number of up to eight bytes.
fn word(bytes: &[u8]) -> Option<u64> {
    (!bytes.is_empty() && bytes.len() <= 8).then(|| bytes.iter().rev().fold(0, |n, b| (n << 8) | u64::from(*b)))
}

impl Opened {
    /// The bytes of a record, if they are those that were written.
    fn record(&self, row: u64) -> Option<Vec<u8>> {
        if row >= self.rows {
            return None;
        }
        let place = self.index.checked_add(row.checked_mul(8)?)?;
        let offsets = self.bytes.read_range(place, place.checked_add(16)?).ok()?;
        let (start, end) = (word(offsets.get(..8)?)?, word(offsets.get(8..)?)?);
        if end > self.index {
            return None;
        }
        let mut record = self.bytes.read_range(start, end).ok()?;
        let (found, bytes) = record.split_at_checked(TAG)?;
        if found != tag(&self.key, row, bytes) {
            return None;
        }
        record.drain(..TAG);
        Some(record)
    }

    /// Whether every record is what was written.
    pub(crate) fn verify(&self) -> bool {
        (0..self.rows).all(|row| self.record(row).is_some())
    }
}

/// The prepared rows of an open source.
pub(crate) struct PreparedSource {
    entry: Opened,
    name: String,
    files: Vec<Arc<str>>,
    /// Whether a damaged record has been told of.
    told: AtomicBool,
}

impl PreparedSource {
    /// For a source whose identity the entry has.
    pub(crate) fn new(entry: Opened, source: &Source) -> Self {
        let files = source.files().iter().map(|f| Arc::clone(&f.name)).collect();
        Self { entry, name: source.name().to_owned(), files, told: AtomicBool::new(false) }
    }

    /// What became of the row at a place of file order; none if its record is damaged.
    pub(crate) fn get(&self, source: u32, row: u64) -> Option<Outcome> {
        let place = Place { source, name: &self.name, files: &self.files };
        let found = self.entry.record(row).and_then(|bytes| decode(&bytes, &place));
        if found.is_none() && !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                source = self.name,
                row,
                "the prepared data are damaged; such rows are computed anew. `trainer data prepare` makes them again"
            );
        }
        found
    }
}

/// The record of an outcome, with the number of its file; errors that end a run come back as such.
pub(crate) fn record(outcome: Outcome, files: &std::collections::HashMap<Arc<str>, u32>) -> Result<Vec<u8>, DataError> {
    let file = files.get(&outcome.file).copied();
    let encoded = file.and_then(|file| encode(&outcome, file));
    match (encoded, outcome.result) {
        (Some(bytes), _) => Ok(bytes),
        (None, Err(crate::pipeline::worker::Failure::Fatal(error))) => Err(error),
        (None, _) => Err(DataError::Worker(format!("a row of {} belongs to no file of its source", outcome.file))),
    }
}
