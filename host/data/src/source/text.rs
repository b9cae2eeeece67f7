//! Text files: an index of where rows begin, rows at random or from the front, each checked and turned into JSON.

use std::io;

use super::bytes::{ByteSource, HashingReader};
use super::json_text::check_object;
use super::scan::{LineMap, MAX_ROW_BYTES, Place, Rows, ScanError, Scanner};
use super::spec::Format;
use super::unpack::{Packing, TextReader};
use crate::error::BadKind;

/// Why bytes are no row: kind, JSON Pointer, message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RowFault {
    pub(crate) kind: BadKind,
    pub(crate) field: String,
    pub(crate) message: String,
}

/// A row's number in its file, from 1, and its JSON text or what is wrong with it.
pub(crate) type NumberedRow = (u64, Result<String, RowFault>);

impl RowFault {
    pub(crate) fn new(kind: BadKind, message: impl Into<String>) -> Self {
        Self { kind, field: String::new(), message: message.into() }
    }
}

/// How a text file's rows are cut and read.
#[derive(Clone, Debug)]
pub(crate) enum TextKind {
    Json(Format),
    Csv { delimiter: u8, header: Vec<String> },
}

impl TextKind {
    /// Looks at the header of a CSV file; the error is for the file as a whole. An empty CSV file has no header and no rows.
    pub(crate) fn of(format: Format, name: &str, bytes: &ByteSource, packing: Option<Packing>) -> Result<Self, ScanError> {
        if format != Format::Csv {
            return Ok(Self::Json(format));
        }
        let delimiter = if name.to_ascii_lowercase().ends_with(".tsv") { b'\t' } else { b',' };
        let mut scanner = Scanner::new(TextReader::new(bytes, packing)?, Rows::Csv { delimiter })?;
        let mut row = Vec::new();
        let broken = |line, message: String| Err(ScanError::Broken { line, message });
        let Some(place) = scanner.next(&mut row)? else { return Ok(Self::Csv { delimiter, header: Vec::new() }) };
        if place.too_large {
            return broken(place.line, "the header is larger than any row may be".to_owned());
        }
        let header = match fields(&row, delimiter) {
            Ok(header) => header,
            Err(fault) => return broken(place.line, format!("the header: {}", fault.message)),
        };
        for (i, name) in header.iter().enumerate() {
            if name.trim().is_empty() {
                return broken(place.line, format!("column {} has no name in the header; the first line must name every column", i + 1));
            }
            if header.iter().take(i).any(|other| other == name) {
                return broken(place.line, format!("two columns are called `{name}`; rename one"));
            }
        }
        Ok(Self::Csv { delimiter, header })
    }

    fn rows(&self) -> Rows {
        match self {
            Self::Json(Format::Json) => Rows::Elements,
            Self::Json(_) => Rows::Lines,
            Self::Csv { delimiter, .. } => Rows::Csv { delimiter: *delimiter },
        }
    }

    /// The JSON object that a row's bytes mean.
    fn parse(&self, mut raw: Vec<u8>) -> Result<String, RowFault> {
        match self {
            Self::Csv { delimiter, header } => csv_object(&raw, *delimiter, header),
            Self::Json(_) => {
                let lead = raw.iter().take_while(|b| b.is_ascii_whitespace()).count();
                raw.truncate(raw.len() - raw.iter().rev().take_while(|b| b.is_ascii_whitespace()).count());
                let text = String::from_utf8(raw).map_err(|e| utf8_fault(e.as_bytes(), e.utf8_error().valid_up_to()))?;
                if let Err(fault) = check_object(&text) {
                    return Err(RowFault::new(BadKind::InvalidJson, format!("{}: {}", position(&text, fault.offset), fault.message)));
                }
                Ok(if lead == 0 { text } else { text.get(lead..).unwrap_or_default().to_owned() })
            }
        }
    }
}

/// `column 7`, or `line 3 of the row, column 7` in a row of several lines; columns count characters from 1, as editors do.
fn position(text: &str, offset: usize) -> String {
    let mut end = offset.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let before = text.get(..end).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
    match before.bytes().filter(|&b| b == b'\n').count() {
        0 => format!("column {column}"),
        lines => format!("line {} of the row, column {column}", lines + 1),
    }
}

fn utf8_fault(bytes: &[u8], valid: usize) -> RowFault {
    let byte = bytes.get(valid).copied().unwrap_or_default();
    let message = format!("byte {} of the row (0x{byte:02x}) is not UTF-8; save the file as UTF-8", valid + 1);
    RowFault::new(BadKind::InvalidUtf8, message)
}

fn fields(raw: &[u8], delimiter: u8) -> Result<Vec<String>, RowFault> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).delimiter(delimiter).from_reader(raw);
    let mut record = csv::ByteRecord::new();
    let fault = |e: csv::Error| RowFault::new(BadKind::InvalidRecord, e.to_string());
    reader.read_byte_record(&mut record).map_err(fault)?;
    let cells = record
        .iter()
        .enumerate()
        .map(|(i, field)| match std::str::from_utf8(field) {
            Ok(text) => Ok(text.to_owned()),
            Err(e) => Err(RowFault::new(BadKind::InvalidUtf8, format!("field {}, byte {} is not UTF-8", i + 1, e.valid_up_to() + 1))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    if reader.read_byte_record(&mut record).map_err(fault)? {
        return Err(RowFault::new(BadKind::InvalidRecord, "a carriage return or line end outside quotes; put the field in double quotes"));
    }
    Ok(cells)
}

fn csv_object(raw: &[u8], delimiter: u8, header: &[String]) -> Result<String, RowFault> {
    let cells = fields(raw, delimiter)?;
    if cells.len() != header.len() {
        let message =
            format!("{} fields where the header has {}; a field with the delimiter in it needs double quotes", cells.len(), header.len());
        return Err(RowFault::new(BadKind::InvalidRecord, message));
    }
    let object: serde_json::Map<String, serde_json::Value> =
        header.iter().cloned().zip(cells.into_iter().map(serde_json::Value::String)).collect();
    serde_json::to_string(&object).map_err(|e| RowFault::new(BadKind::InvalidRecord, e.to_string()))
}

/// A text file with the place of every row.
#[derive(Debug)]
pub(crate) struct TextFile {
    bytes: ByteSource,
    kind: TextKind,
    offsets: Vec<u64>,
    lines: LineMap,
}

/// What indexing found besides.
#[derive(Debug)]
pub(crate) struct Indexed {
    pub(crate) file: TextFile,
    pub(crate) digest: String,
    pub(crate) blank: u64,
}

impl TextFile {
    pub(crate) fn index(bytes: ByteSource, kind: TextKind) -> Result<Indexed, ScanError> {
        let mut scanner = Scanner::new(HashingReader::new(bytes.reader()), kind.rows())?;
        let (mut offsets, mut lines, mut row) = (Vec::new(), LineMap::default(), Vec::new());
        if matches!(kind, TextKind::Csv { .. }) {
            scanner.next(&mut row)?;
        }
        while let Some(place) = scanner.next(&mut row)? {
            lines.push(offsets.len() as u64, place.line);
            offsets.push(place.offset);
        }
        offsets.shrink_to_fit();
        let blank = scanner.blank;
        let digest = scanner.into_inner().finish();
        Ok(Indexed { file: Self { bytes, kind, offsets, lines }, digest, blank })
    }

    pub(crate) fn len(&self) -> u64 {
        self.offsets.len() as u64
    }

    /// The line of a row, from 1.
    pub(crate) fn line(&self, row: u64) -> u64 {
        self.lines.line(row)
    }

    /// The row that begins on a line.
    pub(crate) fn row_of_line(&self, line: u64) -> Option<u64> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.line(middle) < line { low = middle + 1 } else { high = middle }
        }
        (low < self.len() && self.line(low) == line).then_some(low)
    }

    /// A row, which must exist.
    pub(crate) fn read(&self, row: u64) -> io::Result<Result<String, RowFault>> {
        let missing = || io::Error::new(io::ErrorKind::InvalidInput, "a row past the end of the file");
        let at = usize::try_from(row).map_err(|_| missing())?;
        let start = *self.offsets.get(at).ok_or_else(missing)?;
        let limit = at.checked_add(1).and_then(|next| self.offsets.get(next)).copied().unwrap_or(self.bytes.len());
        // Between this row's end and the next row there is only white space, a comma, or, at the end, a bracket.
        if limit.saturating_sub(start) <= MAX_ROW_BYTES as u64 {
            let raw = self.bytes.read_range(start, limit)?;
            return Ok(self.cut(raw));
        }
        Ok(Err(too_large()))
    }

    /// Cuts what was read up to the next row down to the row, with the scanner that found it.
    fn cut(&self, mut raw: Vec<u8>) -> Result<String, RowFault> {
        match self.kind.rows() {
            Rows::Lines => {
                let end = raw.iter().position(|&b| b == b'\n').unwrap_or(raw.len());
                raw.truncate(end);
            }
            rows => {
                let mut row = Vec::with_capacity(raw.len());
                let mut scanner = Scanner::inside(raw.as_slice(), rows);
                match scanner.next(&mut row) {
                    Ok(Some(_)) => raw = row,
                    Ok(None) => raw.clear(),
                    Err(ScanError::Io(e)) => return Err(RowFault::new(BadKind::InvalidRecord, e.to_string())),
                    Err(ScanError::Broken { message, .. }) => return Err(RowFault::new(BadKind::InvalidRecord, message)),
                }
            }
        }
        self.kind.parse(raw)
    }
}

fn too_large() -> RowFault {
    let message = format!("larger than {} MiB; a quote or bracket may be missing, or the row needs splitting", MAX_ROW_BYTES >> 20);
    RowFault::new(BadKind::TooLarge, message)
}

/// A text file from the front.
#[derive(Debug)]
pub(crate) struct TextStream {
    scanner: Scanner<TextReader>,
    kind: TextKind,
}

impl TextStream {
    pub(crate) fn new(bytes: &ByteSource, packing: Option<Packing>, kind: TextKind) -> Result<Self, ScanError> {
        let mut scanner = Scanner::new(TextReader::new(bytes, packing)?, kind.rows())?;
        if matches!(kind, TextKind::Csv { .. }) {
            scanner.next(&mut Vec::new())?;
        }
        Ok(Self { scanner, kind })
    }

    /// The next row's line and text.
    pub(crate) fn next(&mut self) -> Result<Option<NumberedRow>, ScanError> {
        let mut raw = Vec::new();
        Ok(match self.scanner.next(&mut raw)? {
            None => None,
            Some(Place { line, too_large: true, .. }) => Some((line, Err(too_large()))),
            Some(Place { line, .. }) => Some((line, self.kind.parse(raw))),
        })
    }

    /// Rows and blank lines of a file.
    pub(crate) fn count(bytes: &ByteSource, packing: Option<Packing>, kind: TextKind) -> Result<(u64, u64), ScanError> {
        let mut stream = Self::new(bytes, packing, kind)?;
        let (mut rows, mut row) = (0, Vec::new());
        while stream.scanner.next(&mut row)?.is_some() {
            rows += 1;
        }
        Ok((rows, stream.scanner.blank))
    }

    /// Passes over a row without reading what is in it; false at the end.
    pub(crate) fn skip(&mut self) -> Result<bool, ScanError> {
        Ok(self.scanner.next(&mut Vec::new())?.is_some())
    }
}
