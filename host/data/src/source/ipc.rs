//! Arrow's own files: the IPC file format (also called Feather version 2) and the IPC stream format, with or without compression.
//!
//! Both are a run of messages: the schema, dictionaries, record batches; the file format has a footer besides, which is not needed. A first look
//! reads the messages' headers alone and notes where each batch lies; a batch is then decoded with the schema and the dictionaries before it.

use std::io::Cursor;
use std::ops::Range;

use arrow_ipc::MessageHeader;
use arrow_ipc::reader::StreamReader;

use super::arrow_json::row_object;
use super::bytes::ByteSource;
use super::table::{Chunk, ChunkPlace, parts};

const MAGIC: &[u8] = b"ARROW1";
/// What stands before a message's length since version 0.15 of the format.
const CONTINUATION: [u8; 4] = [0xff; 4];
/// The largest header of a message; headers hold no data.
const MAX_HEADER: u64 = 256 << 20;

/// An open file.
#[derive(Debug)]
pub(crate) struct IpcFile {
    bytes: ByteSource,
    schema: Range<u64>,
    dictionaries: Vec<Range<u64>>,
    /// Each with the number of dictionaries before it.
    batches: Vec<(Range<u64>, usize)>,
    projection: Option<Vec<usize>>,
}

impl IpcFile {
    /// Finds the batches. The error says what is wrong with the file.
    pub(crate) fn open(bytes: ByteSource, columns: Option<&[String]>) -> Result<(Self, Vec<ChunkPlace>, Vec<String>), String> {
        let end = end_of_messages(&bytes)?;
        let mut at = first_message(&bytes, end)?;
        let mut schema = None;
        let (mut dictionaries, mut batches, mut chunks, mut rows) = (Vec::new(), Vec::new(), Vec::new(), 0u64);
        while let Some(header) = Header::read(&bytes, at, end)? {
            let whole = at..header.end;
            let message = arrow_ipc::root_as_message(&header.metadata).map_err(|e| format!("a damaged message at byte {at}: {e}"))?;
            match message.header_type() {
                MessageHeader::Schema => schema = Some(whole),
                MessageHeader::DictionaryBatch => dictionaries.push(whole),
                MessageHeader::RecordBatch => {
                    let batch = message.header_as_record_batch().ok_or_else(|| format!("a damaged record batch at byte {at}"))?;
                    let count = u64::try_from(batch.length()).map_err(|_| format!("a negative number of rows at byte {at}"))?;
                    let size = header.end - at;
                    // More rows than bits cannot be told from a lie; a batch of nulls alone has a few.
                    if count > size.saturating_mul(64).max(1 << 20) {
                        return Err(format!("{count} rows in a record batch of {size} bytes"));
                    }
                    rows = parts(&mut chunks, batches.len(), rows, count, size)?;
                    batches.push((whole, dictionaries.len()));
                }
                other => return Err(format!("a message of kind {other:?} at byte {at}, which holds no rows")),
            }
            at = header.end;
        }
        let schema = schema.ok_or_else(|| {
            if bytes.len() == 0 {
                "the file is empty".to_owned()
            } else {
                "it holds no schema, so it is no Arrow file, or was cut short".to_owned()
            }
        })?;
        let mut file = Self { bytes, schema, dictionaries, batches, projection: None };
        let names = file.names()?;
        if let Some(columns) = columns {
            let found = columns.iter().map(|c| names.iter().position(|n| n == c).ok_or_else(|| super::table::no_column(c, &names)));
            file.projection = Some(found.collect::<Result<_, _>>()?);
        }
        Ok((file, chunks, names))
    }

    fn names(&self) -> Result<Vec<String>, String> {
        let head = self.bytes.read_range(self.schema.start, self.schema.end).map_err(|e| e.to_string())?;
        let reader = StreamReader::try_new(Cursor::new(head), None).map_err(|e| format!("its schema: {e}"))?;
        Ok(reader.schema().fields().iter().map(|f| f.name().clone()).collect())
    }

    pub(crate) fn decode(&self, place: ChunkPlace) -> Result<Chunk, String> {
        let describe = |e: String| format!("record batch {}: {e}; the file may be damaged", place.group);
        let (range, dictionaries) = self.batches.get(place.group).ok_or("a record batch past the end of the file")?;
        let mut stream = Vec::new();
        let before = self.dictionaries.iter().take(*dictionaries);
        for part in std::iter::once(&self.schema).chain(before).chain([range]) {
            stream.extend(self.bytes.read_range(part.start, part.end).map_err(|e| describe(e.to_string()))?);
        }
        let mut reader = StreamReader::try_new(Cursor::new(stream), self.projection.clone()).map_err(|e| describe(e.to_string()))?;
        let batch = reader.next().ok_or_else(|| describe("it is missing".to_owned()))?.map_err(|e| describe(e.to_string()))?;
        let rows = usize::try_from(place.rows).map_err(|_| describe("it has too many rows".to_owned()))?;
        if place.offset.checked_add(rows).is_none_or(|end| end > batch.num_rows()) {
            return Err(describe(format!("it holds {} rows, fewer than it says", batch.num_rows())));
        }
        let mut out = Chunk::default();
        for i in place.offset..place.offset + rows {
            out.push(row_object(&batch, i));
        }
        Ok(out)
    }
}

/// A message's header and where the message ends.
struct Header {
    metadata: Vec<u8>,
    end: u64,
}

impl Header {
    /// The message at a place; none at the end.
    fn read(bytes: &ByteSource, at: u64, end: u64) -> Result<Option<Self>, String> {
        let cut = || format!("it was cut short: a message at byte {at} goes past its end");
        if at >= end {
            return Ok(None);
        }
        let word = |at: u64| -> Result<[u8; 4], String> {
            let bytes = bytes.read_range(at, at.checked_add(4).filter(|e| *e <= end).ok_or_else(cut)?).map_err(|e| e.to_string())?;
            bytes.try_into().map_err(|_| cut())
        };
        let first = word(at)?;
        let (length, start) = if first == CONTINUATION { (word(at + 4)?, at + 8) } else { (first, at + 4) };
        let length = u64::from(u32::from_le_bytes(length));
        if length == 0 {
            return Ok(None);
        }
        if length > MAX_HEADER {
            return Err(format!("a message at byte {at} claims a header of {length} bytes; the file is damaged or no Arrow file"));
        }
        let body = start.checked_add(length).filter(|b| *b <= end).ok_or_else(cut)?;
        let metadata = bytes.read_range(start, body).map_err(|e| e.to_string())?;
        let message = arrow_ipc::root_as_message(&metadata).map_err(|e| format!("a damaged message at byte {at}: {e}"))?;
        let size = u64::try_from(message.bodyLength()).map_err(|_| format!("a damaged message at byte {at}: a negative size"))?;
        let after = body.checked_add(size).filter(|e| *e <= end).ok_or_else(cut)?;
        Ok(Some(Self { metadata, end: after }))
    }
}

fn starts_with_magic(bytes: &ByteSource) -> Result<bool, String> {
    Ok(bytes.len() >= 8 && bytes.read_range(0, 6).map_err(|e| e.to_string())? == MAGIC)
}

/// Where the first message begins: in the file format after the magic bytes, which some writers pad to 64.
fn first_message(bytes: &ByteSource, end: u64) -> Result<u64, String> {
    let mut at = if starts_with_magic(bytes)? { 8 } else { return Ok(0) };
    while at < 64 && at + 8 <= end && bytes.read_range(at, at + 8).map_err(|e| e.to_string())?.iter().all(|b| *b == 0) {
        at += 8;
    }
    Ok(at)
}

/// Where the footer of the file format begins; the end of a stream.
fn end_of_messages(bytes: &ByteSource) -> Result<u64, String> {
    let len = bytes.len();
    if !starts_with_magic(bytes)? {
        return Ok(len);
    }
    let cut = || "it was cut short: its end does not say that it is whole".to_owned();
    let tail = bytes.read_range(len.checked_sub(10).ok_or_else(cut)?, len).map_err(|e| e.to_string())?;
    let (size, magic) = tail.split_at_checked(4).ok_or_else(cut)?;
    let size = size.try_into().map(u32::from_le_bytes).map_err(|_| cut())?;
    if magic != MAGIC {
        return Err(cut());
    }
    len.checked_sub(10 + u64::from(size)).filter(|end| *end >= 8).ok_or_else(cut)
}
