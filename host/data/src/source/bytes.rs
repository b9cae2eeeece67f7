//! Where bytes come from: a file on disk or data within the program; read from the front or at any place.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

/// A file or embedded bytes.
#[derive(Clone, Debug)]
pub(crate) enum ByteSource {
    /// On disk, with its length when opened.
    File { file: Arc<File>, len: u64 },
    /// Within the program.
    Embedded(&'static [u8]),
    /// Unpacked into memory.
    Memory(Arc<[u8]>),
}

impl ByteSource {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self::File { file: Arc::new(file), len })
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } => *len,
            Self::Embedded(bytes) => bytes.len() as u64,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// A reader from the front that shares no position with others.
    pub(crate) fn reader(&self) -> SourceReader {
        self.reader_at(0)
    }

    /// A reader from some place on.
    pub(crate) fn reader_at(&self, at: u64) -> SourceReader {
        SourceReader { source: self.clone(), at }
    }

    /// The bytes from `start` to `end`, which must lie inside: a file that has shrunk since it was opened is an error.
    pub(crate) fn read_range(&self, start: u64, end: u64) -> io::Result<Vec<u8>> {
        let len = end.checked_sub(start).filter(|_| end <= self.len()).and_then(|len| usize::try_from(len).ok());
        let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a range outside the file"))?;
        if let Self::File { file, .. } = self {
            let mut out = vec![0; len];
            read_exact_at(file, &mut out, start)?;
            return Ok(out);
        }
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let part = start.checked_add(len).and_then(|end| self.in_memory().get(start..end));
        part.map(<[u8]>::to_vec).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a range outside the data"))
    }

    /// What is not in a file.
    fn in_memory(&self) -> &[u8] {
        match self {
            Self::File { .. } => &[],
            Self::Embedded(bytes) => bytes,
            Self::Memory(bytes) => bytes,
        }
    }

    fn read_some(&self, at: u64, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Embedded(_) | Self::Memory(_) => {
                let mut rest = usize::try_from(at).ok().and_then(|at| self.in_memory().get(at..)).unwrap_or_default();
                rest.read(out)
            }
            Self::File { file, len, .. } => {
                // Bytes appended after opening belong to no row.
                let left = usize::try_from(len.saturating_sub(at)).unwrap_or(usize::MAX).min(out.len());
                read_at(file, out.get_mut(..left).unwrap_or_default(), at)
            }
        }
    }

    /// The SHA-256 of all bytes, in hexadecimal, read in pieces.
    pub(crate) fn digest(&self) -> io::Result<String> {
        let mut reader = HashingReader::new(self.reader());
        let mut buffer = vec![0; 1 << 18];
        while reader.read(&mut buffer)? > 0 {}
        Ok(reader.finish())
    }
}

#[cfg(unix)]
fn read_at(file: &File, out: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, out, at)
}

#[cfg(windows)]
fn read_at(file: &File, out: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, out, at)
}

fn read_exact_at(file: &File, mut out: &mut [u8], mut at: u64) -> io::Result<()> {
    while !out.is_empty() {
        match read_at(file, out, at) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file has become shorter since it was opened")),
            Ok(n) => {
                out = out.get_mut(n..).unwrap_or_default();
                at = at.saturating_add(n as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Reads a source from the front.
#[derive(Debug)]
pub struct SourceReader {
    source: ByteSource,
    at: u64,
}

impl Read for SourceReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read_some(self.at, out)?;
        self.at = self.at.saturating_add(n as u64);
        Ok(n)
    }
}

/// Passes bytes on and hashes them, so that finding the rows of a file and its digest take one reading.
#[derive(Debug)]
pub(crate) struct HashingReader<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    /// The digest of what has been read, in hexadecimal.
    pub(crate) fn finish(self) -> String {
        use std::fmt::Write;
        self.hash.finalize().iter().fold(String::with_capacity(64), |mut text, b| {
            let _ = write!(text, "{b:02x}");
            text
        })
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.hash.update(out.get(..n).unwrap_or_default());
        Ok(n)
    }
}
