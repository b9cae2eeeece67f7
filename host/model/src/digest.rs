//! What a model folder holds, as SHA-256, for lock files.

use crate::checkpoint::{INDEX_FILE, SINGLE_FILE};
use crate::config::{CONFIG_FILE, GENERATION_FILE};
use crate::files::ModelFiles;
use crate::{ModelError, Result};
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// Files that can change what a model computes or says, besides the weights.
const TEXTS: [&str; 7] =
    [CONFIG_FILE, GENERATION_FILE, INDEX_FILE, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];
/// Bytes that are hashed at a time.
const PIECE: u64 = 1 << 18;

/// One file of a [`ModelDigest`].
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileDigest {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// SHA-256 of its content, in hexadecimal.
    pub sha256: String,
}

/// The identity of a model: the same for a folder and for the same files inside the program.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ModelDigest {
    /// SHA-256, in hexadecimal, over the lines `sha256  name\n` of all files in ascending order of names (what `sha256sum` prints).
    pub sha256: String,
    /// The files that matter, in ascending order of names.
    pub files: Vec<FileDigest>,
}

impl ModelDigest {
    /// Hashes configuration, tokenizer and weights; other files (a readme) do not count.
    ///
    /// # Errors
    /// Files that cannot be read, or a folder without any of them.
    pub fn of(files: &ModelFiles) -> Result<Self> {
        let names = files.names()?;
        let single = names.iter().any(|n| n == SINGLE_FILE);
        let counts = |name: &str| {
            if matches!(files, ModelFiles::Gguf(_)) {
                return true;
            }
            let weights = if single { name == SINGLE_FILE } else { name.ends_with(".safetensors") };
            weights || (TEXTS.contains(&name) && !(single && name == INDEX_FILE))
        };
        let names: Vec<String> = names.into_iter().filter(|n| counts(n)).collect();
        if names.is_empty() {
            let hint = "a model folder needs config.json, model.safetensors and tokenizer.json".to_string();
            return Err(ModelError::MissingFile { folder: files.describe(), file: CONFIG_FILE.to_string(), hint });
        }
        // Threads of their own: a file takes seconds, in which the pool's threads have other work.
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(names.len());
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                done.push(file_digest(files, name.clone())?);
            }
            Ok(done)
        };
        let parts: Vec<Result<Vec<FileDigest>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        let mut files: Vec<FileDigest> = parts.into_iter().collect::<Result<Vec<_>>>()?.concat();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let mut all = Sha256::new();
        for file in &files {
            all.update(format!("{}  {}\n", file.sha256, file.name));
        }
        Ok(Self { sha256: hex(&all.finalize()), files })
    }
}

/// A [`ModelDigest`] that is computed beside other work: hashing is slower than reading.
#[derive(Debug)]
pub struct PendingDigest {
    files: ModelFiles,
    thread: Mutex<Option<JoinHandle<Result<ModelDigest>>>>,
    done: OnceLock<ModelDigest>,
}

impl PendingDigest {
    /// Begins.
    pub fn start(files: ModelFiles) -> Self {
        let began = Instant::now();
        let these = files.clone();
        let thread = std::thread::spawn(move || {
            let digest = ModelDigest::of(&these);
            tracing::debug!(ms = began.elapsed().as_millis(), "hashed {}", these.describe());
            digest
        });
        Self { files, thread: Mutex::new(Some(thread)), done: OnceLock::new() }
    }

    /// Waits for it.
    ///
    /// # Errors
    /// As [`ModelDigest::of`].
    pub fn get(&self) -> Result<&ModelDigest> {
        if let Some(digest) = self.done.get() {
            return Ok(digest);
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // There is no thread any more after an error, which may have passed.
        let digest = match thread {
            Some(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => ModelDigest::of(&self.files),
        }?;
        Ok(self.done.get_or_init(|| digest))
    }
}

fn file_digest(files: &ModelFiles, name: String) -> Result<FileDigest> {
    let source = files.open(&name)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; usize::try_from(PIECE.min(source.len())).unwrap_or(0)];
    let mut at = 0;
    while at < source.len() {
        let left = usize::try_from(source.len() - at).unwrap_or(usize::MAX);
        piece.truncate(left);
        source.read_into(at, &mut piece)?;
        hash.update(&piece);
        at += piece.len() as u64;
    }
    Ok(FileDigest { name, bytes: source.len(), sha256: hex(&hash.finalize()) })
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
