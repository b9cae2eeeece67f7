//! The caches of the hubs' own Python packages, in their layouts, so that each finds what the other has fetched.
//!
//! Hugging Face keeps contents by checksum and commits as folders of links to them:
//!
//! ```text
//! HF_HUB_CACHE/models--org--name/blobs/CHECKSUM
//!                               /refs/main                      a commit
//!                               /snapshots/COMMIT/config.json   -> ../../blobs/CHECKSUM
//!                               /trees/COMMIT.json              the list of files
//!             /.locks/models--org--name/CHECKSUM.lock
//! ```
//!
//! ModelScope keeps plain files by revision, so a branch that moves changes the files of its folder:
//!
//! ```text
//! MODELSCOPE_CACHE/models/org--name/snapshots/master/config.json
//!                 /.lock/file_SHA256.lock
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::digest;
use crate::error::HubError;
use crate::listing::{Digest, Listing, MAX_FILES, MAX_SIZE, RepoFile, is_hex};
use crate::name::{HubKind, RepoRef, is_commit};
use crate::path;

/// The largest list of files that is read.
const TREE_LIMIT: u64 = 64 << 20;
/// How deep folders of a snapshot are looked through.
const MAX_DEPTH: usize = 16;
/// What backup programs look for in folders that they need not keep.
const CACHE_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n# This folder is a cache of models and data sets of a hub. See https://bford.info/cachedir/\n";

/// The cache of a repository.
#[derive(Clone, Debug)]
pub(crate) struct RepoCache {
    cache: PathBuf,
    /// The repository's folder.
    root: PathBuf,
    repo: RepoRef,
}

/// Where a file is, and what belongs to it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Its path in the snapshot.
    pub shown: PathBuf,
    /// Where its content is: the same, or a blob that it links to.
    pub content: PathBuf,
    /// Where its content grows.
    pub partial: PathBuf,
    /// Which bytes of it are there.
    pub journal: PathBuf,
    /// Who fetches it.
    pub lock: PathBuf,
    /// Where it is written down that its checksum was right.
    pub checked: PathBuf,
    /// How the shown path links to the content, if it does.
    link: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct Tree {
    format_version: u32,
    files: BTreeMap<String, TreeFile>,
}

#[derive(Serialize, Deserialize)]
struct TreeFile {
    size: u64,
    blob_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lfs_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lfs_size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    xet_hash: Option<String>,
}

impl RepoCache {
    pub(crate) fn new(cache: &Path, repo: &RepoRef) -> Self {
        // As absolute as can be: the working folder may change, and messages are about one place.
        let cache = std::path::absolute(cache).unwrap_or_else(|_| cache.to_owned());
        let safe = repo.id.replace('/', "--");
        let root = match repo.hub {
            HubKind::HuggingFace => cache.join(format!("{}--{safe}", repo.kind.plural())),
            HubKind::ModelScope => cache.join(repo.kind.plural()).join(safe),
        };
        Self { cache, root, repo: repo.clone() }
    }

    /// The whole cache.
    pub(crate) fn cache(&self) -> &Path {
        &self.cache
    }

    /// The folder of a snapshot: of a commit, or for ModelScope of a revision.
    pub(crate) fn snapshot(&self, key: &str) -> PathBuf {
        self.root.join("snapshots").join(key)
    }

    /// Where a file of a snapshot is.
    pub(crate) fn place(&self, key: &str, file: &RepoFile) -> Place {
        let shown = self.snapshot(key).join(&file.path);
        let incomplete = self.root.join(".incomplete");
        match (self.repo.hub, file.digest.hex()) {
            (HubKind::HuggingFace, Some(etag)) => {
                let depth = file.path.split('/').count();
                let up: PathBuf = std::iter::repeat_n("..", depth + 1).collect();
                let folder = self.root.file_name().unwrap_or_default();
                Place {
                    shown,
                    content: self.root.join("blobs").join(etag),
                    partial: incomplete.join(etag),
                    journal: incomplete.join(format!("{etag}.spans")),
                    checked: incomplete.join(format!("{etag}.checked")),
                    lock: self.cache.join(".locks").join(folder).join(format!("{etag}.lock")),
                    link: Some(up.join("blobs").join(etag)),
                }
            }
            _ => {
                let hash = |text: String| digest::sha256(&mut text.as_bytes()).unwrap_or_default();
                // A partial file is good only for the same content.
                let name = hash(format!("{key}\0{}\0{}", file.path, file.digest.hex().unwrap_or_default()));
                // ModelScope's own name for the lock of a file.
                let (kind, id) = (self.repo.kind.name(), &self.repo.id);
                let lock = hash(format!("modelscope-hub-download-lock-v2\0file\0{kind}\0{id}\0{}", file.path));
                Place {
                    content: shown.clone(),
                    shown,
                    partial: incomplete.join(&name),
                    journal: incomplete.join(format!("{name}.spans")),
                    // Of the place, whatever is there.
                    checked: self.root.join(".checked").join(hash(format!("{key}\0{}", file.path))),
                    lock: self.cache.join(".lock").join(format!("file_{lock}.lock")),
                    link: None,
                }
            }
        }
    }

    /// The commit of a revision as it was last seen.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        let commit = text.trim();
        is_hex(commit, 40).then(|| commit.to_owned())
    }

    /// Keeps the commit of a revision.
    pub(crate) fn keep_commit(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        write_whole(&path, commit.as_bytes()).map_err(HubError::io("write", &path))
    }

    /// The list of files of a commit as it is kept.
    pub(crate) fn listing(&self, commit: &str) -> Option<Listing> {
        let path = self.tree(commit);
        if fs::metadata(&path).ok()?.len() > TREE_LIMIT {
            return None;
        }
        let tree: Tree = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        if tree.format_version != 1 || tree.files.len() > MAX_FILES {
            return None;
        }
        let mut files = Vec::with_capacity(tree.files.len());
        for (path, file) in tree.files {
            let digest = match &file.lfs_sha256 {
                Some(sha256) => Digest::sha256(sha256)?,
                None => Digest::git(&file.blob_id)?,
            };
            let size = file.lfs_size.unwrap_or(file.size);
            if size > MAX_SIZE {
                return None;
            }
            files.push(RepoFile { path, size, digest, blob: Some(file.blob_id), xet: file.xet_hash });
        }
        // Whatever is wrong with it, the hub will tell again.
        Listing::new("", Some(commit.to_owned()), files).ok()
    }

    /// Keeps the list of files of a commit.
    pub(crate) fn keep_listing(&self, commit: &str, listing: &Listing) -> Result<(), HubError> {
        let entry = |f: &RepoFile| {
            let lfs_sha256 = matches!(f.digest, Digest::Sha256(_)).then(|| f.digest.hex().unwrap_or_default().to_owned());
            let lfs_size = lfs_sha256.as_ref().map(|_| f.size);
            TreeFile { size: f.size, blob_id: f.blob.clone().unwrap_or_default(), lfs_sha256, lfs_size, xet_hash: f.xet.clone() }
        };
        let tree = Tree { format_version: 1, files: listing.files.iter().map(|f| (f.path.clone(), entry(f))).collect() };
        let path = self.tree(commit);
        let text = serde_json::to_vec_pretty(&tree).unwrap_or_default();
        write_whole(&path, &text).map_err(HubError::io("write", &path))
    }

    fn tree(&self, commit: &str) -> PathBuf {
        self.root.join("trees").join(format!("{commit}.json"))
    }

    /// The files that a snapshot has, without their checksums.
    pub(crate) fn present(&self, key: &str) -> Listing {
        let mut files = Vec::new();
        walk(&self.snapshot(key), "", &mut files, 0);
        files.sort_by(|a: &RepoFile, b| a.path.cmp(&b.path));
        Listing { commit: is_commit(key).then(|| key.to_owned()), files }
    }

    /// Marks the cache as one.
    pub(crate) fn tag(&self) {
        let path = self.cache.join("CACHEDIR.TAG");
        if !path.exists() {
            // Only a convenience for backup programs.
            let _ = write_whole(&path, CACHE_TAG.as_bytes());
        }
    }
}

/// That a file had a checksum, and what it looked like then: whoever writes to a file changes its times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marker {
    digest: String,
    size: u64,
    modified: u128,
    /// When it was last changed in any way, and which file it is, where the system says so.
    changed: Option<(i64, i64, u64)>,
}

impl Marker {
    /// What a file looks like now.
    pub(crate) fn of(path: &Path, digest: &str) -> Option<Self> {
        let about = fs::metadata(path).ok()?;
        let modified = about.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?.as_nanos();
        #[cfg(unix)]
        let changed = {
            use std::os::unix::fs::MetadataExt;
            Some((about.ctime(), about.ctime_nsec(), about.ino()))
        };
        #[cfg(not(unix))]
        let changed = None;
        Some(Self { digest: digest.to_owned(), size: about.len(), modified, changed })
    }

    /// What was written down.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        let about = fs::metadata(path).ok()?;
        if about.len() > 4096 {
            return None;
        }
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Writes it down. Without it the file is read once more next time, and that is all.
    pub(crate) fn keep(&self, path: &Path) {
        let text = serde_json::to_vec(self).unwrap_or_default();
        if let Err(error) = write_whole(path, &text) {
            tracing::debug!("cannot write {}: {error}", path.display());
        }
    }
}

impl Place {
    /// Whether the snapshot has the file, with this size.
    pub(crate) fn is_shown(&self, size: u64) -> bool {
        fs::metadata(&self.shown).is_ok_and(|about| about.is_file() && about.len() == size)
    }

    /// Whether the content is there, perhaps for another snapshot.
    pub(crate) fn has_content(&self, size: u64) -> bool {
        fs::metadata(&self.content).is_ok_and(|about| about.is_file() && about.len() == size)
    }

    /// Makes the content appear in the snapshot.
    pub(crate) fn show(&self) -> Result<(), HubError> {
        let Some(link) = &self.link else { return Ok(()) };
        let folder = self.shown.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(HubError::io("create", folder))?;
        // A name that no other thread or process has.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let temporary = folder.join(format!(".tmp-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
        let _ = fs::remove_file(&temporary);
        link_to(link, &self.content, &temporary).map_err(HubError::io("link", &self.shown))?;
        fs::rename(&temporary, &self.shown).map_err(HubError::io("rename to", &self.shown))
    }
}

#[cfg(unix)]
fn link_to(relative: &Path, _: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, at)
}

/// Links need a privilege there; a second name for the same content does not.
#[cfg(not(unix))]
fn link_to(_: &Path, content: &Path, at: &Path) -> io::Result<()> {
    fs::hard_link(content, at).or_else(|_| fs::copy(content, at).map(drop))
}

/// Writes a file that is there as a whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(folder)?;
    file.write_all(bytes)?;
    #[cfg(unix)]
    {
        // A shared cache is read by others, as far as the umask allows.
        use std::os::unix::fs::PermissionsExt;
        let mode = if fs::metadata(folder)?.permissions().mode() & 0o004 == 0 { 0o600 } else { 0o644 };
        file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    }
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

fn walk(folder: &Path, prefix: &str, files: &mut Vec<RepoFile>, depth: usize) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        // Through links: the contents lie elsewhere.
        let Ok(about) = fs::metadata(entry.path()) else { continue };
        if about.is_dir() && depth < MAX_DEPTH {
            walk(&entry.path(), &path, files, depth + 1);
        } else if about.is_file() && path::check(&path).is_ok() && files.len() < MAX_FILES {
            files.push(RepoFile { path, size: about.len(), digest: Digest::Unknown, blob: None, xet: None });
        }
    }
}
