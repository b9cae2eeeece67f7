//! Finding where the rows of a text file begin, in one reading and with bounded memory: lines, elements of a JSON document, CSV records.

use std::io::{self, BufRead, BufReader, Read};

/// The largest row, in bytes. Longer ones are skipped over and reported as bad, so a missing quote or bracket cannot fill the memory.
pub(crate) const MAX_ROW_BYTES: usize = 64 << 20;

/// Where a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Byte offset of its first byte.
    pub(crate) offset: u64,
    /// Its line, from 1.
    pub(crate) line: u64,
    /// It is larger than `MAX_ROW_BYTES`, and its bytes were not kept.
    pub(crate) too_large: bool,
}

/// Why the file as a whole cannot be read on.
#[derive(Debug)]
pub(crate) enum ScanError {
    Io(io::Error),
    /// The structure around the rows is broken.
    Broken {
        line: u64,
        message: String,
    },
}

impl From<io::Error> for ScanError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What separates rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    Lines,
    Elements,
    Csv { delimiter: u8 },
}

/// Goes through a file row by row.
#[derive(Debug)]
pub(crate) struct Scanner<R> {
    reader: BufReader<R>,
    rows: Rows,
    offset: u64,
    line: u64,
    /// Blank lines passed.
    pub(crate) blank: u64,
    /// For `Rows::Elements`: where in the document the scanner stands.
    document: Document,
    /// For `Rows::Elements`: a value has come, so a `[` at the top no longer opens the array of rows.
    started: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Document {
    /// Between values that follow one another.
    Top,
    /// In the outer array, before its first element.
    ArrayStart,
    /// In the outer array, after a comma.
    AfterComma,
    /// In the outer array, after an element.
    AfterElement,
    /// After the outer array.
    Closed,
}

impl<R: Read> Scanner<R> {
    pub(crate) fn new(reader: R, rows: Rows) -> io::Result<Self> {
        let mut s = Self {
            reader: BufReader::with_capacity(1 << 18, reader),
            rows,
            offset: 0,
            line: 1,
            blank: 0,
            document: Document::Top,
            started: false,
        };
        // A byte order mark is no part of the first row. It may straddle two reads only for readers that give single bytes.
        if s.reader.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
            s.reader.consume(3);
            s.offset = 3;
        }
        Ok(s)
    }

    /// A scanner over part of a file that begins with a row.
    pub(crate) fn inside(reader: R, rows: Rows) -> Self {
        let reader = BufReader::with_capacity(1 << 14, reader);
        Self { reader, rows, offset: 0, line: 1, blank: 0, document: Document::Top, started: true }
    }

    pub(crate) fn into_inner(self) -> R {
        self.reader.into_inner()
    }

    /// The next row, its bytes in `row` (without the line end); none at the end of the file.
    pub(crate) fn next(&mut self, row: &mut Vec<u8>) -> Result<Option<Place>, ScanError> {
        row.clear();
        match self.rows {
            Rows::Lines => self.next_line(row),
            Rows::Elements => self.next_element(row),
            Rows::Csv { delimiter } => self.next_record(row, delimiter),
        }
    }

    fn next_line(&mut self, row: &mut Vec<u8>) -> Result<Option<Place>, ScanError> {
        loop {
            row.clear();
            let mut place = Place { offset: self.offset, line: self.line, too_large: false };
            let (mut any, mut ended) = (false, false);
            while !ended {
                let buffer = fill(&mut self.reader)?;
                if buffer.is_empty() {
                    break;
                }
                any = true;
                let (take, used) = match buffer.iter().position(|&b| b == b'\n') {
                    Some(n) => (n, n + 1),
                    None => (buffer.len(), buffer.len()),
                };
                ended = used > take;
                keep(row, buffer.get(..take).unwrap_or_default(), &mut place);
                self.reader.consume(used);
                self.offset = self.offset.saturating_add(used as u64);
            }
            if !any {
                return Ok(None);
            }
            self.line = self.line.saturating_add(1);
            if !place.too_large && row.iter().all(u8::is_ascii_whitespace) {
                self.blank += 1;
                continue;
            }
            return Ok(Some(place));
        }
    }

    /// A CSV record: like a line, but a line end within quotes is part of it. A quote opens only at the beginning of a field (RFC 4180).
    fn next_record(&mut self, row: &mut Vec<u8>, delimiter: u8) -> Result<Option<Place>, ScanError> {
        loop {
            row.clear();
            let mut place = Place { offset: self.offset, line: self.line, too_large: false };
            let (mut any, mut ended) = (false, false);
            let (mut field_start, mut quoted) = (true, false);
            while !ended {
                let buffer = fill(&mut self.reader)?;
                if buffer.is_empty() {
                    break;
                }
                any = true;
                let mut take = buffer.len();
                for (i, &b) in buffer.iter().enumerate() {
                    if b == b'\n' {
                        self.line = self.line.saturating_add(1);
                        if !quoted {
                            (take, ended) = (i, true);
                            break;
                        }
                    }
                    if b == b'"' && (quoted || field_start) {
                        quoted = !quoted;
                        // After a closing quote another one goes on with the field ("" is a quote).
                        field_start = !quoted;
                    } else {
                        field_start = !quoted && b == delimiter;
                    }
                }
                let used = take + usize::from(ended);
                keep(row, buffer.get(..take).unwrap_or_default(), &mut place);
                self.reader.consume(used);
                self.offset = self.offset.saturating_add(used as u64);
            }
            if !any {
                return Ok(None);
            }
            if row.last() == Some(&b'\r') {
                row.pop();
            }
            if !place.too_large && row.is_empty() {
                self.blank += 1;
                continue;
            }
            if quoted {
                return Err(ScanError::Broken {
                    line: place.line,
                    message: "a quoted field that begins in this record is never closed".to_owned(),
                });
            }
            return Ok(Some(place));
        }
    }

    fn next_element(&mut self, row: &mut Vec<u8>) -> Result<Option<Place>, ScanError> {
        loop {
            let Some(b) = self.peek()? else {
                return match self.document {
                    Document::Top | Document::Closed => Ok(None),
                    _ => self.broken("the array is never closed; the file may have been cut short"),
                };
            };
            match (b, self.document) {
                (b' ' | b'\t' | b'\r' | b'\n', _) => {}
                // An array at the very beginning holds the rows; a later one is a (bad) row.
                (b'[', Document::Top) if !self.started => self.document = Document::ArrayStart,
                (b']', Document::ArrayStart | Document::AfterElement) => self.document = Document::Closed,
                (b']', Document::AfterComma) => return self.broken("a comma before the closing bracket of the array"),
                (b',', Document::AfterElement) => self.document = Document::AfterComma,
                (b',', _) => return self.broken("a comma where a row was expected"),
                (_, Document::AfterElement) => return self.broken("a comma or ] was expected between the rows of the array"),
                (_, Document::Closed) => return self.broken("text after the closing bracket of the array"),
                (b'}' | b']' | b':', _) => return self.broken("a closing bracket or colon where a row was expected"),
                (_, at) => {
                    let place = self.element(row)?;
                    self.document = if at == Document::Top { Document::Top } else { Document::AfterElement };
                    return Ok(Some(place));
                }
            }
            self.step(b);
        }
    }

    fn peek(&mut self) -> Result<Option<u8>, ScanError> {
        Ok(fill(&mut self.reader)?.first().copied())
    }

    fn step(&mut self, b: u8) {
        self.reader.consume(1);
        self.offset = self.offset.saturating_add(1);
        self.line = self.line.saturating_add(u64::from(b == b'\n'));
    }

    /// One value of any kind: to its closing bracket, or, for other values, to what may follow one.
    fn element(&mut self, row: &mut Vec<u8>) -> Result<Place, ScanError> {
        self.started = true;
        let mut place = Place { offset: self.offset, line: self.line, too_large: false };
        let (mut depth, mut string, mut escape, mut first) = (0u64, false, false, true);
        loop {
            let buffer = fill(&mut self.reader)?;
            if buffer.is_empty() {
                return if depth > 0 || string {
                    let message = "the row that begins here is never closed; the file may have been cut short".to_owned();
                    Err(ScanError::Broken { line: place.line, message })
                } else {
                    Ok(place)
                };
            }
            let mut end = None;
            let mut lines = 0;
            for (i, &b) in buffer.iter().enumerate() {
                lines += u64::from(b == b'\n');
                if string {
                    match b {
                        _ if escape => escape = false,
                        b'\\' => escape = true,
                        b'"' => {
                            string = false;
                            if depth == 0 {
                                end = Some(i + 1);
                            }
                        }
                        _ => {}
                    }
                } else {
                    match b {
                        b'"' if depth > 0 || first => string = true,
                        b'{' | b'[' if depth > 0 || first => depth += 1,
                        b'}' | b']' if depth > 0 => {
                            depth -= 1;
                            if depth == 0 {
                                end = Some(i + 1);
                            }
                        }
                        b' ' | b'\t' | b'\r' | b'\n' | b',' | b']' | b'}' | b'{' | b'[' | b'"' if depth == 0 => {
                            lines -= u64::from(b == b'\n');
                            end = Some(i);
                        }
                        _ => {}
                    }
                }
                first = false;
                if end.is_some() {
                    break;
                }
            }
            let used = end.unwrap_or(buffer.len());
            keep(row, buffer.get(..used).unwrap_or_default(), &mut place);
            self.reader.consume(used);
            self.offset = self.offset.saturating_add(used as u64);
            self.line = self.line.saturating_add(lines);
            if end.is_some() {
                return Ok(place);
            }
        }
    }

    fn broken<T>(&self, message: &str) -> Result<T, ScanError> {
        Err(ScanError::Broken { line: self.line, message: message.to_owned() })
    }
}

/// `fill_buf` that does not stop at interrupted system calls.
fn fill<R: Read>(reader: &mut BufReader<R>) -> io::Result<&[u8]> {
    loop {
        match reader.fill_buf() {
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(reader.buffer())
}

fn keep(row: &mut Vec<u8>, part: &[u8], place: &mut Place) {
    if place.too_large || row.len().saturating_add(part.len()) > MAX_ROW_BYTES {
        place.too_large = true;
        row.clear();
        row.shrink_to(1 << 16);
    } else {
        row.extend_from_slice(part);
    }
}

/// From row numbers to line numbers where they part: an entry for each row whose distance to its line differs from the row's before it.
#[derive(Clone, Debug, Default)]
pub(crate) struct LineMap {
    steps: Vec<(u64, u64)>,
}

impl LineMap {
    /// Row `row` (from 0; ascending calls) begins on `line` (from 1).
    pub(crate) fn push(&mut self, row: u64, line: u64) {
        let shift = line.saturating_sub(row);
        if self.steps.last().map_or(1, |s| s.1) != shift {
            self.steps.push((row, shift));
        }
    }

    pub(crate) fn line(&self, row: u64) -> u64 {
        let step = self.steps.partition_point(|s| s.0 <= row).checked_sub(1).and_then(|i| self.steps.get(i));
        row.saturating_add(step.map_or(1, |s| s.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives a byte at a time, so that every state is left and entered again between reads.
    struct Trickle<'a>(&'a [u8], usize);
    impl Read for Trickle<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let n = self.0.len().min(self.1).min(out.len());
            out[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn scan(text: &[u8], rows: Rows, chunk: usize) -> Result<Vec<(u64, u64, String)>, String> {
        let mut s = Scanner::new(Trickle(text, chunk), rows).unwrap();
        let (mut row, mut out) = (Vec::new(), Vec::new());
        loop {
            match s.next(&mut row) {
                Ok(Some(p)) => out.push((p.offset, p.line, String::from_utf8_lossy(&row).into_owned())),
                Ok(None) => return Ok(out),
                Err(ScanError::Broken { line, message }) => return Err(format!("{line}: {message}")),
                Err(ScanError::Io(e)) => panic!("{e}"),
            }
        }
    }

    fn owned(rows: &[(u64, u64, &str)]) -> Vec<(u64, u64, String)> {
        rows.iter().map(|r| (r.0, r.1, r.2.to_owned())).collect()
    }

    #[test]
    fn lines_keep_their_numbers() {
        let text = b"\xef\xbb\xbf{}\n\n  \t\n{\"a\":1}\r\nlast";
        assert_eq!(scan(text, Rows::Lines, 64).unwrap(), owned(&[(3, 1, "{}"), (11, 4, "{\"a\":1}\r"), (20, 5, "last")]));
    }

    #[test]
    fn documents_of_every_shape() {
        let e = Rows::Elements;
        assert_eq!(scan(b"[{\"a\": \"]}\\\"\"},\n {}\n]\n", e, 7).unwrap(), owned(&[(1, 1, "{\"a\": \"]}\\\"\"}"), (17, 2, "{}")]));
        assert_eq!(scan(b" {\"a\": [1]}\n{}{}", e, 1).unwrap(), owned(&[(1, 1, "{\"a\": [1]}"), (12, 2, "{}"), (14, 2, "{}")]));
        assert_eq!(scan(b"[]", e, 1).unwrap(), vec![]);
        assert_eq!(scan(b"[1, \"x\",null]", e, 2).unwrap(), owned(&[(1, 1, "1"), (4, 1, "\"x\""), (8, 1, "null")]));
        assert!(scan(b"[{},", e, 1).unwrap_err().contains("never closed"));
        assert!(scan(b"[{},]", e, 1).unwrap_err().contains("comma before"));
        assert!(scan(b"[{} {}]", e, 1).unwrap_err().contains("comma or ]"));
        assert!(scan(b"[{}] x", e, 1).unwrap_err().contains("after the closing"));
        assert!(scan(b"[{}\n,{\"a\": 1", e, 1).unwrap_err().starts_with("2: the row"));
    }

    #[test]
    fn records_span_lines() {
        let c = Rows::Csv { delimiter: b',' };
        let text = b"a,b\r\n\"x\ny\",\"say \"\"hi\"\"\"\n\nz\"q,\"w\"\n";
        assert_eq!(scan(text, c, 3).unwrap(), owned(&[(0, 1, "a,b"), (5, 2, "\"x\ny\",\"say \"\"hi\"\"\""), (25, 5, "z\"q,\"w\"")]));
        assert!(scan(b"a,b\n\"x,1\n2,3\n", c, 2).unwrap_err().starts_with("2: a quoted"));
    }

    proptest! {
        #[test]
        fn how_bytes_arrive_does_not_matter(text in "[\\[\\]{}\",\\\\\n\r a1]{0,40}", chunk in 3usize..9) {
            for rows in [Rows::Lines, Rows::Elements, Rows::Csv { delimiter: b',' }] {
                prop_assert_eq!(scan(text.as_bytes(), rows, chunk), scan(text.as_bytes(), rows, 1000));
            }
        }

        #[test]
        fn line_map_gives_back_lines(gaps in prop::collection::vec(1u64..4, 0..60)) {
            let mut map = LineMap::default();
            let lines: Vec<u64> = gaps.iter().scan(0, |l, g| { *l += g; Some(*l) }).collect();
            for (i, l) in lines.iter().enumerate() { map.push(i as u64, *l); }
            for (i, l) in lines.iter().enumerate() { prop_assert_eq!(map.line(i as u64), *l); }
        }
    }
}
