//! What a model's weights are, without the weights: the headers of its safetensors files, which say every tensor's name, type and shape.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use tempfile::TempDir;

use crate::error::HubError;
use crate::http::{Ask, Client, Content, Refusal};
use crate::listing::RepoFile;
use crate::name::{HubKind, RepoRef};
use crate::snapshot::{Hub, Opened, Wanted, is_weights};
use crate::watch::Watch;
use crate::{huggingface, modelscope};

/// Bytes that are asked for first: for most files their whole header.
const FIRST: u64 = 256 << 10;
/// The largest header, as the reference implementation has it.
const LIMIT: u64 = 100_000_000;

/// A folder that looks like a model's snapshot, whose weights are only there as far as their headers: the rest of these files are holes, which take
/// no space and read as zeros. It goes with this value.
#[derive(Debug)]
pub struct Headers {
    /// The repository; its revision is the commit, where the hub says it.
    pub repo: RepoRef,
    /// Bytes that had to be fetched.
    pub fetched: u64,
    folder: TempDir,
}

impl Headers {
    /// The folder.
    pub fn dir(&self) -> &Path {
        self.folder.path()
    }
}

impl Hub {
    /// Configuration, tokenizer and headers of a model. Weights that are in the cache are not asked for.
    ///
    /// # Errors
    /// See [`HubError`].
    pub fn headers(&self, repo: &RepoRef, watch: &dyn Watch) -> Result<Headers, HubError> {
        let opened = self.open(repo, watch)?;
        let snapshot = self.fetch(&opened, &Wanted::Texts, watch)?;
        let (files, index) = self.select(&opened, &Wanted::Model)?;
        let temporary = || tempfile::Builder::new().prefix("trainer-headers-").tempdir();
        let folder = temporary().map_err(HubError::io("make a folder in", &std::env::temp_dir()))?;
        let mut fetched = snapshot.fetched + index;
        for file in files {
            let at = folder.path().join(&file.path);
            if let Some(parent) = at.parent() {
                std::fs::create_dir_all(parent).map_err(HubError::io("create", parent))?;
            }
            let cached = snapshot.dir.join(&file.path);
            if !is_weights(&file.path) {
                std::fs::copy(&cached, &at).map_err(HubError::io("copy to", &at))?;
            } else if std::fs::metadata(&cached).is_ok_and(|about| about.is_file() && about.len() == file.size) {
                copy_header(&cached, &at, file.size)?;
            } else {
                fetched += self.header(&opened, file, &at)?;
            }
        }
        Ok(Headers { repo: snapshot.repo, fetched, folder })
    }

    /// Fetches the header of a file. Gives the bytes that came.
    fn header(&self, opened: &Opened, file: &RepoFile, at: &Path) -> Result<u64, HubError> {
        if let Some(error) = opened.missing(&file.path) {
            return Err(error);
        }
        let client = self.client(opened.repo.hub)?;
        let mut bytes = self.piece(&client, opened, file, 0, FIRST.min(file.size))?;
        let length = bytes.first_chunk::<8>().map_or(0, |length| u64::from_le_bytes(*length));
        let end = length.checked_add(8).filter(|end| length <= LIMIT && *end <= file.size);
        let end = end.ok_or_else(|| client.answer(&file.path, format!("its header would have {length} bytes of {}", file.size)))?;
        let first = bytes.len() as u64;
        if end > first {
            bytes.extend(self.piece(&client, opened, file, first, end)?);
        }
        write_header(at, &bytes, file.size)?;
        Ok(bytes.len() as u64)
    }

    /// The bytes from `start` to `end`.
    fn piece(&self, client: &Client, opened: &Opened, file: &RepoFile, start: u64, end: u64) -> Result<Vec<u8>, HubError> {
        let repo = &opened.repo;
        let base = &self.settings.endpoint(repo.hub).url;
        let url = match repo.hub {
            HubKind::HuggingFace => huggingface::file_url(base, repo, &opened.key, &file.path),
            HubKind::ModelScope => modelscope::file_url(base, repo, &file.path),
        };
        let explain = |refusal: &Refusal| match repo.hub {
            HubKind::HuggingFace => huggingface::explain(client, repo, refusal),
            HubKind::ModelScope => modelscope::explain(client, repo, refusal),
        };
        let what = format!("the header of {} of {repo}", file.path);
        let range = format!("bytes={start}-{}", end.saturating_sub(1));
        let headers = [("range", range.as_str())];
        let ask = Ask { method: "GET", url: &url, headers: &headers, content: Content::Nothing, what: &what, brief: false };
        crate::http::patiently(|| {
            let mut answer = client.once(&ask, &explain)?;
            if repo.hub == HubKind::HuggingFace {
                huggingface::announced(client, repo, &opened.key, file, &answer)?;
            }
            // A server that knows no ranges begins at the front, and is not listened to any longer than it takes.
            let skip = if answer.status == 206 { 0 } else { start };
            let wanted = end.saturating_sub(start);
            client.read_part(&mut answer, skip, wanted, &what)
        })
    }
}

fn copy_header(from: &Path, to: &Path, size: u64) -> Result<(), HubError> {
    let mut file = File::open(from).map_err(HubError::io("open", from))?;
    let mut bytes = Vec::new();
    (&mut file).take(8).read_to_end(&mut bytes).map_err(HubError::io("read", from))?;
    // What is wrong with a file in the cache is said by whoever reads it as a model.
    let length = bytes.first_chunk::<8>().map_or(0, |length| u64::from_le_bytes(*length));
    let left = length.min(LIMIT);
    file.take(left).read_to_end(&mut bytes).map_err(HubError::io("read", from))?;
    write_header(to, &bytes, size)
}

fn write_header(at: &Path, bytes: &[u8], size: u64) -> Result<(), HubError> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create(at)?;
        file.write_all(bytes)?;
        file.set_len(size)
    };
    write().map_err(HubError::io("write", at))
}
