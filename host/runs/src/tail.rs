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

/// Bytes before the place that are looked at again, to see that the file is still the one that was read.
const MARK: usize = 512;

/// A place in a journal. A file that is not there yet is empty; one that is no longer what was read up to here (a run that was resumed from a
/// checkpoint, or removed and begun again under the same name) is read from its beginning.
#[derive(Debug)]
pub struct Tail<T> {
    path: PathBuf,
    offset: u64,
    /// The last bytes before `offset`.
    mark: Vec<u8>,
    records: PhantomData<fn() -> T>,
}

/// What [`Tail::piece`] found.
#[derive(Debug)]
pub struct Piece<T> {
    /// Whether the file is another one than before, so that what was read earlier no longer counts.
    pub anew: bool,
    /// Whether there were further whole lines. Only then may there be more.
    pub more: bool,
    /// Their records.
    pub records: Vec<T>,
}

impl<T: DeserializeOwned> Tail<T> {
    /// From the beginning of a file.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), offset: 0, mark: Vec::new(), records: PhantomData }
    }

    /// Goes back to the beginning.
    pub fn rewind(&mut self) {
        self.offset = 0;
        self.mark.clear();
    }

    /// How many bytes were read.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next records, of about a megabyte at most; none if there is no further whole line yet. Lines that are no record of this kind are
    /// passed over: whoever looks on must not stop at them.
    ///
    /// # Errors
    /// If the file is there and cannot be read.
    pub fn read(&mut self) -> io::Result<Vec<T>> {
        Ok(self.piece()?.records)
    }

    /// [`Tail::read`], with what a caller needs that keeps the records.
    ///
    /// # Errors
    /// If the file is there and cannot be read.
    pub fn piece(&mut self) -> io::Result<Piece<T>> {
        let none = |anew| Piece { anew, more: false, records: Vec::new() };
        let before = self.offset;
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.rewind();
                return Ok(none(before > 0));
            }
            Err(e) => return Err(e),
        };
        if before > 0 && !self.is_as_read(&mut file)? {
            self.rewind();
        }
        let anew = self.offset < before;
        let mut limit = PIECE;
        loop {
            file.seek(SeekFrom::Start(self.offset))?;
            let mut bytes = Vec::new();
            Read::by_ref(&mut file).take(limit).read_to_end(&mut bytes)?;
            if let Some(end) = bytes.iter().rposition(|b| *b == b'\n') {
                self.offset += end as u64 + 1;
                let lines = bytes.get(..=end).unwrap_or_default();
                self.mark = lines.get(lines.len().saturating_sub(MARK)..).unwrap_or_default().to_vec();
                let records = lines.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
                return Ok(Piece { anew, more: true, records });
            }
            if (bytes.len() as u64) < limit || limit >= LONGEST_LINE {
                return Ok(none(anew));
            }
            limit *= 2;
        }
    }

    /// Whether the file still has what was read last at the place where it was read. Times and losses have so many digits that another run's
    /// line is never the same by chance.
    fn is_as_read(&self, file: &mut File) -> io::Result<bool> {
        if file.metadata()?.len() < self.offset {
            return Ok(false);
        }
        file.seek(SeekFrom::Start(self.offset.saturating_sub(self.mark.len() as u64)))?;
        let mut bytes = Vec::new();
        Read::by_ref(file).take(self.mark.len() as u64).read_to_end(&mut bytes)?;
        Ok(bytes == self.mark)
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
        let piece = tail.piece()?;
        if piece.anew {
            all.clear();
        }
        all.extend(piece.records);
        if !piece.more {
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
    fn another_file_in_the_same_place_is_read_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let lines = |from: u32, to: u32| (from..to).map(|i| format!("{{\"a\":{i}}}\n")).collect::<String>();
        let steps = |piece: Piece<Value>| piece.records.iter().map(|v| v["a"].as_u64().unwrap()).collect::<Vec<_>>();
        std::fs::write(&path, lines(10, 12)).unwrap();
        let mut tail = Tail::<Value>::new(&path);
        assert_eq!(steps(tail.piece().unwrap()), [10, 11]);
        // Longer than before, so that its length tells nothing.
        std::fs::write(&path, lines(20, 25)).unwrap();
        let piece = tail.piece().unwrap();
        assert!(piece.anew);
        assert_eq!(steps(piece), [20, 21, 22, 23, 24]);
        // The same beginning, cut and grown again past the place where reading stood.
        std::fs::write(&path, lines(20, 24) + &lines(30, 33)).unwrap();
        let piece = tail.piece().unwrap();
        assert!(piece.anew);
        assert_eq!(steps(piece), [20, 21, 22, 23, 30, 31, 32]);
        std::fs::remove_file(&path).unwrap();
        let piece = tail.piece().unwrap();
        assert!(piece.anew && piece.records.is_empty());
        assert!(!tail.piece().unwrap().anew, "that it is gone is told once");
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
