//! Compressed text files: gzip and Zstandard, told by their first bytes.
//!
//! Rows are read at random, which a compressed file does not allow. So it is unpacked once when it is opened: into memory where it is small, else
//! into a temporary file without a name, which the system removes with the process. Where a source is only read from the front it is unpacked on the
//! way and takes no room.

use std::fmt;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};

use super::bytes::{ByteSource, SourceReader};

/// What is unpacked into memory; more goes to a file.
const IN_MEMORY: usize = 64 << 20;
/// Bytes unpacked at a time.
const PIECE: usize = 1 << 18;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Gzip,
    Zstd,
}

impl Packing {
    /// By the first bytes, with which neither JSON nor CSV in UTF-8 begins.
    pub(crate) fn of(bytes: &ByteSource) -> io::Result<Option<Self>> {
        let mut head = Vec::with_capacity(4);
        bytes.reader().take(4).read_to_end(&mut head)?;
        Ok(match head.as_slice() {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd] => Some(Self::Zstd),
            _ => None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "Zstandard",
        }
    }
}

/// Reads a file from the front, unpacked.
pub(crate) enum TextReader {
    Plain(SourceReader),
    Gzip(Box<flate2::read::MultiGzDecoder<BufReader<SourceReader>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<SourceReader>>>),
}

impl TextReader {
    pub(crate) fn new(bytes: &ByteSource, packing: Option<Packing>) -> io::Result<Self> {
        let reader = bytes.reader();
        Ok(match packing {
            None => Self::Plain(reader),
            Some(Packing::Gzip) => Self::Gzip(Box::new(flate2::read::MultiGzDecoder::new(BufReader::with_capacity(PIECE, reader)))),
            Some(Packing::Zstd) => Self::Zstd(Box::new(zstd::stream::read::Decoder::new(reader)?)),
        })
    }
}

impl Read for TextReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(out),
            Self::Gzip(reader) => reader.read(out).map_err(|e| damaged(Packing::Gzip, e)),
            Self::Zstd(reader) => reader.read(out).map_err(|e| damaged(Packing::Zstd, e)),
        }
    }
}

impl fmt::Debug for TextReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Gzip(_) => "Gzip",
            Self::Zstd(_) => "Zstd",
        })
    }
}

fn damaged(packing: Packing, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("the {} data are damaged or cut short ({error}); fetch the file again", packing.name()))
}

/// The whole file unpacked, readable at any place.
pub(crate) fn unpack(bytes: &ByteSource, packing: Packing) -> io::Result<ByteSource> {
    let mut reader = TextReader::new(bytes, Some(packing))?;
    let mut memory = Vec::new();
    reader.by_ref().take(IN_MEMORY as u64 + 1).read_to_end(&mut memory)?;
    if memory.len() <= IN_MEMORY {
        return Ok(ByteSource::Memory(memory.into()));
    }
    let place = |error: io::Error| {
        let folder = std::env::temp_dir();
        io::Error::new(
            error.kind(),
            format!("cannot unpack it into a temporary file in {} (TMPDIR chooses another folder): {error}", folder.display()),
        )
    };
    let mut file = tempfile::tempfile().map_err(place)?;
    file.write_all(&memory).map_err(place)?;
    drop(memory);
    let mut piece = vec![0; PIECE];
    loop {
        match reader.read(&mut piece)? {
            0 => break,
            n => file.write_all(piece.get(..n).unwrap_or_default()).map_err(place)?,
        }
    }
    let len = file.seek(SeekFrom::End(0)).map_err(place)?;
    Ok(ByteSource::File { file: file.into(), len })
}
