//! What a model folder holds, as SHA-256, for lock files.

use crate::checkpoint::{INDEX_FILE, SINGLE_FILE};
use crate::config::{CONFIG_FILE, GENERATION_FILE};
use crate::files::ModelFiles;
use crate::{ModelError, Result};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// Files that can change what a model computes or says, besides the weights.
const TEXTS: [&str; 7] =
    [CONFIG_FILE, GENERATION_FILE, INDEX_FILE, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];
/// Bytes that are hashed at a time.
const PIECE: u64 = 1 << 20;

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
            let weights = if single { name == SINGLE_FILE } else { name.ends_with(".safetensors") };
            weights || (TEXTS.contains(&name) && !(single && name == INDEX_FILE))
        };
        let names: Vec<String> = names.into_iter().filter(|n| counts(n)).collect();
        if names.is_empty() {
            let hint = "a model folder needs config.json, model.safetensors and tokenizer.json".to_string();
            return Err(ModelError::MissingFile { folder: files.describe(), file: CONFIG_FILE.to_string(), hint });
        }
        let files = names.into_par_iter().map(|name| file_digest(files, name)).collect::<Result<Vec<_>>>()?;
        let mut all = Sha256::new();
        for file in &files {
            all.update(format!("{}  {}\n", file.sha256, file.name));
        }
        Ok(Self { sha256: hex(&all.finalize()), files })
    }
}

fn file_digest(files: &ModelFiles, name: String) -> Result<FileDigest> {
    let source = files.open(&name)?;
    let mut hash = Sha256::new();
    let mut at = 0;
    while at < source.len() {
        let take = PIECE.min(source.len() - at);
        hash.update(source.read(at, take)?);
        at += take;
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
