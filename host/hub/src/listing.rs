//! The files of a repository at a commit.

use crate::error::HubError;
use crate::path;

/// The most files of a repository that are looked at.
pub(crate) const MAX_FILES: usize = 100_000;
/// The largest file: no file system holds more.
pub(crate) const MAX_SIZE: u64 = 1 << 50;

/// What a file's content must hash to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Digest {
    /// SHA-256, of a large file.
    Sha256(String),
    /// Git's SHA-1 of a blob, of a file that git itself holds.
    GitSha1(String),
    /// The hub does not say.
    Unknown,
}

impl Digest {
    /// Reads hexadecimal digits.
    pub(crate) fn sha256(text: &str) -> Option<Self> {
        is_hex(text, 64).then(|| Self::Sha256(text.to_ascii_lowercase()))
    }

    pub(crate) fn git(text: &str) -> Option<Self> {
        is_hex(text, 40).then(|| Self::GitSha1(text.to_ascii_lowercase()))
    }

    /// The digits; none where the hub does not say.
    pub(crate) fn hex(&self) -> Option<&str> {
        match self {
            Self::Sha256(hex) | Self::GitSha1(hex) => Some(hex),
            Self::Unknown => None,
        }
    }
}

pub(crate) fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RepoFile {
    /// Its path in the repository, checked.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// What its content must hash to.
    pub digest: Digest,
    /// Git's hash of its entry, which for a large file is that of a pointer.
    pub blob: Option<String>,
    /// The hash by which Hugging Face's other protocol knows it; only kept for the listing that its package reads.
    pub xet: Option<String>,
}

/// All files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    /// The commit, where the hub says it.
    pub commit: Option<String>,
    /// In ascending order of paths.
    pub files: Vec<RepoFile>,
}

impl Listing {
    /// Checks what a server says.
    pub(crate) fn new(repo: &str, commit: Option<String>, mut files: Vec<RepoFile>) -> Result<Self, HubError> {
        for file in &files {
            path::check(&file.path).map_err(|source| HubError::Path { repo: repo.to_owned(), source })?;
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files.dedup_by(|a, b| a.path == b.path);
        Ok(Self { commit, files })
    }

    pub(crate) fn get(&self, path: &str) -> Option<&RepoFile> {
        self.files.binary_search_by(|f| f.path.as_str().cmp(path)).ok().and_then(|i| self.files.get(i))
    }
}
