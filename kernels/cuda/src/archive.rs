//! Cubins of every kernel file for every architecture in one compressed file, which a build can put inside the program.
//!
//! ```text
//! magic | bytes of the index, u32 | index | one zstd frame per architecture
//! index:  number of architectures, then for each its name, the bytes of its frame and of what is in it, and its cubins in order:
//!         file name, digest of what it was compiled from, the compiler's version, bytes
//! ```
//!
//! Numbers are little-endian; a text is preceded by its length in a byte. A cubin counts only where its digest is that of the source text in this
//! very program ([`digest`]), so that an archive of other sources is as good as none. Same cubins, same bytes.

use crate::compile::{Arch, SOURCES, Source, digest};
use crate::nvrtc::Nvrtc;
use crate::{CudaError, Result};
use std::borrow::Cow;
use zstd::zstd_safe::CParameter;

const MAGIC: &[u8; 16] = b"trainer-cubins1\n";
const DIGEST: usize = 32;
/// How hard zstd tries: this is done once per release.
const LEVEL: i32 = 19;
/// More than this for one architecture is not believed; it is some megabytes.
const MOST: u64 = 256 << 20;

/// What the build put into this program: an archive, or nothing.
static EMBEDDED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cubins.bin"));

/// What can be wrong with an archive.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArchiveError {
    /// It begins with something else.
    #[error("not an archive of kernels")]
    NotOne,
    /// It ends too early.
    #[error("an archive of kernels that was cut short")]
    Short,
    /// Its parts contradict each other.
    #[error("a broken archive of kernels: {0}")]
    Broken(String),
}

/// A cubin and what it was made from.
#[derive(Clone, Debug)]
pub struct Cubin {
    /// The kernel file.
    pub file: String,
    /// Its architecture.
    pub arch: Arch,
    /// The [`digest`] of what was compiled.
    pub digest: [u8; DIGEST],
    /// The compiler's version.
    pub compiler: (i32, i32),
    /// The machine code.
    pub code: Vec<u8>,
}

/// Compiles every kernel file for each of these architectures that it serves, an architecture per thread.
///
/// # Errors
/// NVRTC's messages.
pub fn compile_all(nvrtc: &Nvrtc, architectures: &[Arch]) -> Result<Vec<Cubin>> {
    let one = |arch: Arch| -> Result<Vec<Cubin>> {
        let cubin = |source: &Source| -> Result<Cubin> {
            let code = crate::compile::cubin(nvrtc, None, source, arch)?;
            Ok(Cubin { file: source.file.to_owned(), arch, digest: digest(source, arch), compiler: nvrtc.version(), code })
        };
        SOURCES.iter().filter(|s| s.serves(arch)).map(cubin).collect()
    };
    let parts: Vec<Result<Vec<Cubin>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = architectures.iter().map(|&arch| scope.spawn(move || one(arch))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    parts.into_iter().collect::<Result<Vec<_>>>().map(|parts| parts.into_iter().flatten().collect())
}

/// One archive of these cubins; their order does not matter.
///
/// # Errors
/// Sizes or names that the format has no room for, or zstd's own errors.
pub fn pack(cubins: &[Cubin]) -> std::result::Result<Vec<u8>, ArchiveError> {
    let broken = |e: &dyn std::fmt::Display| ArchiveError::Broken(e.to_string());
    let text = |to: &mut Vec<u8>, text: &str| -> std::result::Result<(), ArchiveError> {
        to.push(u8::try_from(text.len()).map_err(|_| broken(&format_args!("the name {text} is too long")))?);
        to.extend_from_slice(text.as_bytes());
        Ok(())
    };
    let number = |n: usize| u32::try_from(n).map(u32::to_le_bytes).map_err(|e| broken(&e));
    let (mut index, mut bodies, mut sections) = (Vec::new(), Vec::new(), 0);
    for arch in Arch::ALL {
        let mut of: Vec<&Cubin> = cubins.iter().filter(|c| c.arch == arch).collect();
        of.sort_by(|x, y| (&x.file, x.digest).cmp(&(&y.file, y.digest)));
        if of.is_empty() {
            continue;
        }
        let whole: Vec<u8> = of.iter().flat_map(|c| c.code.iter().copied()).collect();
        let mut compressor = zstd::bulk::Compressor::new(LEVEL).map_err(|e| broken(&e))?;
        // zstd notices a changed byte by its checksum.
        compressor.set_parameter(CParameter::ChecksumFlag(true)).map_err(|e| broken(&e))?;
        let frame = compressor.compress(&whole).map_err(|e| broken(&e))?;
        text(&mut index, arch.name())?;
        index.extend_from_slice(&number(frame.len())?);
        index.extend_from_slice(&number(whole.len())?);
        index.extend_from_slice(&number(of.len())?);
        for cubin in of {
            text(&mut index, &cubin.file)?;
            index.extend_from_slice(&cubin.digest);
            index.extend_from_slice(&cubin.compiler.0.to_le_bytes());
            index.extend_from_slice(&cubin.compiler.1.to_le_bytes());
            index.extend_from_slice(&number(cubin.code.len())?);
        }
        bodies.extend_from_slice(&frame);
        sections += 1;
    }
    Ok([&MAGIC[..], &number(index.len() + 4)?, &number(sections)?, &index, &bodies].concat())
}

/// An entry of the index.
#[derive(Clone, Debug)]
struct Entry {
    file: String,
    digest: [u8; DIGEST],
    compiler: (i32, i32),
    from: usize,
    len: usize,
}

/// The cubins of an architecture, still compressed.
#[derive(Clone, Debug)]
struct Section {
    arch: String,
    from: usize,
    packed: usize,
    len: usize,
    entries: Vec<Entry>,
}

/// An archive whose index was read.
#[derive(Clone, Debug)]
pub struct Archive {
    bytes: Cow<'static, [u8]>,
    sections: Vec<Section>,
}

/// Reads one thing after the other.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> std::result::Result<&'a [u8], ArchiveError> {
        let end = self.at.checked_add(len).ok_or(ArchiveError::Short)?;
        let taken = self.bytes.get(self.at..end).ok_or(ArchiveError::Short)?;
        self.at = end;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self) -> std::result::Result<[u8; N], ArchiveError> {
        self.take(N)?.try_into().map_err(|_| ArchiveError::Short)
    }
    fn number(&mut self) -> std::result::Result<usize, ArchiveError> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }
    fn text(&mut self) -> std::result::Result<String, ArchiveError> {
        let [len] = self.array()?;
        let text = std::str::from_utf8(self.take(len.into())?);
        text.map(str::to_owned).map_err(|e| ArchiveError::Broken(e.to_string()))
    }
}

impl Archive {
    /// What this program holds; None: it was built without.
    ///
    /// # Errors
    /// The build put something else into it.
    pub fn embedded() -> std::result::Result<Option<Self>, ArchiveError> {
        if EMBEDDED.is_empty() { Ok(None) } else { Self::read(EMBEDDED).map(Some) }
    }

    /// Reads the index.
    ///
    /// # Errors
    /// Bytes that are no archive, or not a whole one.
    pub fn read(bytes: impl Into<Cow<'static, [u8]>>) -> std::result::Result<Self, ArchiveError> {
        let bytes = bytes.into();
        if !bytes.starts_with(MAGIC) {
            return Err(if MAGIC.starts_with(&bytes) { ArchiveError::Short } else { ArchiveError::NotOne });
        }
        let mut reader = Reader { bytes: &bytes, at: MAGIC.len() };
        let index = reader.number()?;
        let mut body = reader.at.checked_add(index).ok_or(ArchiveError::Short)?;
        let mut index = Reader { bytes: reader.take(index)?, at: 0 };
        let mut sections = Vec::new();
        for _ in 0..index.number()? {
            let (arch, packed, len) = (index.text()?, index.number()?, index.number()?);
            let (mut entries, mut from) = (Vec::new(), 0usize);
            for _ in 0..index.number()? {
                let (file, digest) = (index.text()?, index.array()?);
                let compiler = (i32::from_le_bytes(index.array()?), i32::from_le_bytes(index.array()?));
                let len = index.number()?;
                entries.push(Entry { file, digest, compiler, from, len });
                from = from.checked_add(len).ok_or(ArchiveError::Short)?;
            }
            if from != len || len as u64 > MOST {
                return Err(ArchiveError::Broken(format!("{from} bytes of cubins in {len} for {arch}")));
            }
            sections.push(Section { arch, from: body, packed, len, entries });
            body = body.checked_add(packed).ok_or(ArchiveError::Short)?;
        }
        if index.at != index.bytes.len() {
            return Err(ArchiveError::Broken("the index has more than it says".into()));
        }
        match bytes.len() {
            len if len < body => Err(ArchiveError::Short),
            len if len > body => Err(ArchiveError::Broken(format!("{} bytes too many", len - body))),
            _ => Ok(Self { bytes, sections }),
        }
    }

    fn entry(&self, source: &Source, arch: Arch) -> Option<(&Section, &Entry)> {
        let section = self.sections.iter().find(|s| s.arch == arch.name())?;
        let digest = digest(source, arch);
        section.entries.iter().find(|e| e.file == source.file && e.digest == digest).map(|e| (section, e))
    }

    /// Files of this program that the archive has no cubin of for an architecture, or one of another text.
    pub fn lacks(&self, arch: Arch) -> Vec<&'static str> {
        SOURCES.iter().filter(|s| s.serves(arch) && self.entry(s, arch).is_none()).map(|s| s.file).collect()
    }

    /// Architectures for which every kernel is there.
    pub fn serves(&self) -> Vec<Arch> {
        Arch::ALL.into_iter().filter(|arch| self.lacks(*arch).is_empty()).collect()
    }

    /// The compiler of an architecture's first cubin.
    pub fn compiler(&self, arch: Arch) -> Option<(i32, i32)> {
        self.sections.iter().find(|s| s.arch == arch.name())?.entries.first().map(|e| e.compiler)
    }

    /// The cubins of an architecture; empty where there are none.
    ///
    /// # Errors
    /// Bytes that were changed.
    pub fn unpack(&self, arch: Arch) -> std::result::Result<Unpacked<'_>, ArchiveError> {
        let Some(section) = self.sections.iter().find(|s| s.arch == arch.name()) else {
            return Ok(Unpacked { archive: self, arch, bytes: Vec::new() });
        };
        let broken = |e: std::io::Error| ArchiveError::Broken(format!("{}: {e}", section.arch));
        let frame = self.bytes.get(section.from..section.from.saturating_add(section.packed)).ok_or(ArchiveError::Short)?;
        let mut decompressor = zstd::bulk::Decompressor::new().map_err(broken)?;
        let bytes = decompressor.decompress(frame, section.len).map_err(broken)?;
        if bytes.len() != section.len {
            return Err(ArchiveError::Broken(format!("{} bytes for {} instead of {}", bytes.len(), section.arch, section.len)));
        }
        Ok(Unpacked { archive: self, arch, bytes })
    }
}

/// The cubins of an architecture.
pub struct Unpacked<'a> {
    archive: &'a Archive,
    arch: Arch,
    bytes: Vec<u8>,
}

impl Unpacked<'_> {
    /// The cubin of a source, if it was compiled from this very text.
    pub fn get(&self, source: &Source) -> Option<&[u8]> {
        let (_, entry) = self.archive.entry(source, self.arch)?;
        self.bytes.get(entry.from..entry.from.checked_add(entry.len)?)
    }
}

impl From<ArchiveError> for CudaError {
    fn from(e: ArchiveError) -> Self {
        CudaError::Archive(e)
    }
}

#[cfg(test)]
#[path = "archive_tests.rs"]
pub(crate) mod tests;
