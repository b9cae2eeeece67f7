//! Where a model's files come from: a folder, or bytes inside the program.

use crate::gguf::{FOLDER_FILES, GgufFile};
use crate::{ModelError, Result};
use rayon::prelude::*;
use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// The largest text file (configurations, indices) that is read; a sharded index of a large model has some hundred kilobytes.
pub(crate) const TEXT_LIMIT: u64 = 64 << 20;

/// The files of a model.
#[derive(Clone, Debug)]
pub enum ModelFiles {
    /// A folder in Hugging Face's layout.
    Dir(PathBuf),
    /// Files inside the program: name and content.
    Embedded(&'static [(&'static str, &'static [u8])]),
    /// One GGUF file, which stands for a folder.
    Gguf(LazyGguf),
}

/// A GGUF file that is opened when it is first needed.
#[derive(Clone, Debug)]
pub struct LazyGguf {
    path: PathBuf,
    opened: Arc<OnceLock<Arc<GgufFile>>>,
}

impl LazyGguf {
    /// The file, opened.
    ///
    /// # Errors
    /// As [`GgufFile::open`].
    pub fn get(&self) -> Result<Arc<GgufFile>> {
        if let Some(file) = self.opened.get() {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(GgufFile::open(&self.path)?);
        Ok(Arc::clone(self.opened.get_or_init(|| file)))
    }

    fn name(&self) -> String {
        self.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

impl ModelFiles {
    /// A folder, or a GGUF file by its ending.
    pub fn dir(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        match path.extension() {
            Some(end) if end.eq_ignore_ascii_case("gguf") && !path.is_dir() => Self::Gguf(LazyGguf { path, opened: Arc::default() }),
            _ => Self::Dir(path),
        }
    }

    /// How messages call the model.
    pub fn describe(&self) -> String {
        match self {
            Self::Dir(path) => path.display().to_string(),
            Self::Embedded(_) => "the embedded model".to_string(),
            Self::Gguf(file) => file.path.display().to_string(),
        }
    }

    /// How messages call one of its files.
    pub fn describe_file(&self, name: &str) -> String {
        match self {
            Self::Dir(path) => path.join(name).display().to_string(),
            Self::Embedded(_) => format!("{name} of the embedded model"),
            Self::Gguf(file) => format!("{} ({name})", file.path.display()),
        }
    }

    fn embedded(&self, name: &str) -> Option<&'static [u8]> {
        match self {
            Self::Dir(_) | Self::Gguf(_) => None,
            Self::Embedded(files) => files.iter().find(|(n, _)| *n == name).map(|(_, bytes)| *bytes),
        }
    }

    /// Whether there is a file of this name.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::Dir(path) => path.join(name).is_file(),
            Self::Embedded(_) => self.embedded(name).is_some(),
            Self::Gguf(_) => FOLDER_FILES.contains(&name),
        }
    }

    /// The names of all files on disk (not of subfolders), in ascending order.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = match self {
            Self::Embedded(files) => files.iter().map(|(name, _)| (*name).to_string()).collect(),
            Self::Gguf(file) => vec![file.name()],
            Self::Dir(path) => {
                let mut names = Vec::new();
                for entry in std::fs::read_dir(path).map_err(ModelError::io("list", path))? {
                    let entry = entry.map_err(ModelError::io("list", path))?;
                    // Through links: a model cache links to its blobs.
                    if entry.path().is_file()
                        && let Ok(name) = entry.file_name().into_string()
                    {
                        names.push(name);
                    }
                }
                names
            }
        };
        names.sort();
        Ok(names)
    }

    /// A whole file of at most `limit` bytes, or `None` if there is no such file.
    ///
    /// # Errors
    /// A file that cannot be read or is larger.
    pub fn read(&self, name: &str, limit: u64) -> Result<Option<Cow<'static, [u8]>>> {
        if !self.contains(name) {
            return Ok(None);
        }
        if let Self::Gguf(file) = self {
            return Ok(file.get()?.folder_file(name)?.map(|text| Cow::Owned(text.into_bytes())));
        }
        let source = self.open(name)?;
        if source.len() > limit {
            return Err(ModelError::TooLarge { file: self.describe_file(name), size: source.len(), limit });
        }
        source.read(0, source.len()).map(Some)
    }

    /// A text file (a configuration), or `None` if there is no such file.
    ///
    /// # Errors
    /// A file that cannot be read, is larger than 64 MiB, or is not UTF-8.
    pub fn read_text(&self, name: &str) -> Result<Option<String>> {
        let Some(bytes) = self.read(name, TEXT_LIMIT)? else { return Ok(None) };
        match String::from_utf8(bytes.into_owned()) {
            Ok(text) => Ok(Some(text)),
            Err(e) => Err(ModelError::config(&self.describe_file(name), "the text", format!("is not UTF-8 ({e})"))),
        }
    }

    pub(crate) fn open(&self, name: &str) -> Result<Source> {
        match self {
            Self::Dir(dir) => Source::open(&dir.join(name)),
            // The one file that there is.
            Self::Gguf(file) => Source::open(&file.path),
            Self::Embedded(_) => match self.embedded(name) {
                Some(bytes) => Ok(Source::Memory { bytes, name: self.describe_file(name) }),
                None => Err(ModelError::MissingFile {
                    folder: self.describe(),
                    file: name.to_string(),
                    hint: "the program was built without it".to_string(),
                }),
            },
        }
    }
}

impl From<&Path> for ModelFiles {
    fn from(path: &Path) -> Self {
        Self::dir(path)
    }
}

/// Bytes that one thread reads at a time.
const PIECE: usize = 1 << 20;

/// A file that is read piece by piece.
///
/// Files are read at positions rather than mapped: every tensor is read once, front to back, and ends in memory of another form (NF4, or a
/// typed vector), so that a mapping would save no copy; and a mapped file that shrinks while it is in use kills the process, while a short
/// read is an error.
#[derive(Debug)]
pub(crate) enum Source {
    /// A file on disk.
    File { file: File, path: PathBuf, len: u64 },
    /// Bytes inside the program.
    Memory { bytes: &'static [u8], name: String },
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(ModelError::io("open", path))?;
        let meta = file.metadata().map_err(ModelError::io("read", path))?;
        if !meta.is_file() {
            return Err(ModelError::Io { action: "read", path: path.to_path_buf(), source: std::io::ErrorKind::IsADirectory.into() });
        }
        Ok(Self::File { file, path: path.to_path_buf(), len: meta.len() })
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } => *len,
            Self::Memory { bytes, .. } => bytes.len() as u64,
        }
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::File { path, .. } => path.display().to_string(),
            Self::Memory { name, .. } => name.clone(),
        }
    }

    /// `len` bytes from `start` on.
    pub(crate) fn read(&self, start: u64, len: u64) -> Result<Cow<'static, [u8]>> {
        let short = || ModelError::Safetensors { file: self.name(), problem: format!("it ends before byte {}", start.saturating_add(len)) };
        let end = start.checked_add(len).filter(|&end| end <= self.len()).ok_or_else(short)?;
        let size = usize::try_from(len).map_err(|_| short())?;
        match self {
            Self::Memory { bytes, .. } => {
                let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
                range.and_then(|(start, end)| bytes.get(start..end)).map(Cow::Borrowed).ok_or_else(short)
            }
            Self::File { .. } => {
                let mut buffer = vec![0u8; size];
                self.read_into(start, &mut buffer)?;
                Ok(Cow::Owned(buffer))
            }
        }
    }

    /// The bytes from `start` on. Large pieces are read by several threads: out of the system's cache, one is far slower than memory.
    pub(crate) fn read_into(&self, start: u64, out: &mut [u8]) -> Result<()> {
        let end = start.saturating_add(out.len() as u64);
        let short = || ModelError::Safetensors { file: self.name(), problem: format!("it ends before byte {end}") };
        if end > self.len() {
            return Err(short());
        }
        match self {
            Self::Memory { bytes, .. } => {
                let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
                out.copy_from_slice(range.and_then(|(start, end)| bytes.get(start..end)).ok_or_else(short)?);
                Ok(())
            }
            Self::File { file, path, .. } => {
                let read = |(i, out): (usize, &mut [u8])| read_exact_at(file, out, start + (i * PIECE) as u64);
                let done = if out.len() > PIECE { out.par_chunks_mut(PIECE).enumerate().try_for_each(read) } else { read((0, out)) };
                done.map_err(ModelError::io("read", path))
            }
        }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, offset)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => {
                buffer = &mut buffer[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}
