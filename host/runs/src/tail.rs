//! Following a journal that another process may be writing: whole lines only, each once.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// At most this much is read at once, so that memory does not depend on the journal's length.
const PIECE: u64 = 1 << 20;
/// A line that is longer is no line of a journal.
const LONGEST_LINE: u64 = 64 << 20;

/// A place in a journal. A file that is not there yet is empty; one that has become shorter (a run that was resumed from a checkpoint) is read
/// from its beginning.
#[derive(Debug)]
pub struct Tail<T> {
    path: PathBuf,
    offset: u64,
    records: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Tail<T> {
    /// From the beginning of a file.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), offset: 0, records: PhantomData }
    }

    /// Goes back to the beginning.
    pub fn rewind(&mut self) {
        self.offset = 0;
    }

    /// The next records, of about a megabyte at most; none if there is no further whole line yet. Lines that are no record of this kind are
    /// passed over: whoever looks on must not stop at them.
    ///
    /// # Errors
    /// If the file is there and cannot be read.
    pub fn read(&mut self) -> io::Result<Vec<T>> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let length = file.metadata()?.len();
        if length < self.offset {
            self.offset = 0;
        }
        let mut limit = PIECE;
        loop {
            file.seek(SeekFrom::Start(self.offset))?;
            let mut bytes = Vec::new();
            Read::by_ref(&mut file).take(limit).read_to_end(&mut bytes)?;
            if let Some(end) = bytes.iter().rposition(|b| *b == b'\n') {
                self.offset += end as u64 + 1;
                let lines = bytes.get(..end).unwrap_or_default().split(|b| *b == b'\n');
                return Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect());
            }
            if (bytes.len() as u64) < limit || limit >= LONGEST_LINE {
                return Ok(Vec::new());
            }
            limit *= 2;
        }
    }
}

/// Every record of a journal; none if it is not there.
///
/// # Errors
/// If the file is there and cannot be read.
pub fn read_lines<T: DeserializeOwned>(path: &Path) -> io::Result<Vec<T>> {
    let mut tail = Tail::new(path);
    let mut all = Vec::new();
    loop {
        let before = tail.offset;
        all.extend(tail.read()?);
        if tail.offset == before {
            return Ok(all);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde_json::Value;

    use super::*;

    #[test]
    fn lines_come_once_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let mut tail = Tail::<Value>::new(&path);
        assert!(tail.read().unwrap().is_empty(), "it is not there yet");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"{\"a\":1}\n{\"a\":").unwrap();
        assert_eq!(tail.read().unwrap().len(), 1);
        assert!(tail.read().unwrap().is_empty());
        file.write_all(b"2}\nnonsense\n{\"a\":3}\n").unwrap();
        let rest: Vec<_> = tail.read().unwrap().iter().map(|v| v["a"].as_u64().unwrap()).collect();
        assert_eq!(rest, [2, 3]);
        file.set_len(8).unwrap();
        assert_eq!(tail.read().unwrap().len(), 1, "a shorter file is read again");
    }

    #[test]
    fn long_files_come_in_pieces_and_in_full() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let mut text = String::new();
        for i in 0..200_000 {
            text += &format!("{{\"step\":{i}}}\n");
        }
        // One line that is longer than a piece.
        text += &format!("{{\"step\":200000,\"text\":\"{}\"}}\n", "x".repeat(3 << 20));
        std::fs::write(&path, &text).unwrap();
        let first = Tail::<Value>::new(&path).read().unwrap();
        assert!(first.len() < 100_000, "{}", first.len());
        let all = read_lines::<Value>(&path).unwrap();
        assert!(all.iter().enumerate().all(|(i, v)| v["step"] == i));
        assert_eq!(all.len(), 200_001);
    }
}
