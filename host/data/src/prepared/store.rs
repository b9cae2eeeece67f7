//! The folder of prepared data: finding, listing and freeing entries.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::entry::{HeadFile, Opened, PreparedSource, hex, key_of, open};
use super::{DATA_PATH, FORMAT, identity};
use crate::pipeline::PipelineSpec;
use crate::source::ByteSource;

/// How files begin that are being written.
pub(super) const NEW: &str = ".new-";
/// The ending of entries.
const ENDING: &str = "rows";
/// A file that is being written is younger than this, or is held by the process that writes it.
const GRACE: Duration = Duration::from_secs(60);

/// What can go wrong with the folder.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot serve.
    #[error("prepared data cannot be kept in {path}: {reason}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file in it.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

/// A folder with prepared data, for the user alone: they are what somebody trains on.
#[derive(Clone, Debug)]
pub struct PreparedStore {
    folder: PathBuf,
}

/// Whether an entry can be of use again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "why")]
pub enum EntryState {
    /// For a recipe like the one that it was made by.
    Usable,
    /// Not any more, for this reason.
    Stale(String),
    /// Its file is damaged.
    Damaged(String),
    /// It was never finished, and nobody works on it.
    Unfinished,
    /// A process is writing it.
    Growing,
}

/// An entry, or what is left of one.
#[derive(Clone, Debug, Serialize)]
pub struct EntryInfo {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// The source's name in the recipe that it was made by.
    pub source: Option<String>,
    /// The source's files.
    pub files: Vec<String>,
    /// Formatter and template, as `name@version`.
    pub plugins: Vec<String>,
    /// Rows.
    pub rows: Option<u64>,
    /// When it was made, in seconds since 1970.
    pub created: Option<u64>,
    /// When it was last used, in seconds since 1970.
    pub used: Option<u64>,
    /// Whether it can be of use again.
    #[serde(flatten)]
    pub state: EntryState,
}

impl PreparedStore {
    /// The store in a folder, which need not be there yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn make_folder(&self) -> Result<(), StoreError> {
        trainer_plugin_host::make_private(&self.folder).map_err(|reason| StoreError::Folder { path: self.folder.clone(), reason })
    }

    pub(super) fn path_of(&self, key: &[u8; 32]) -> PathBuf {
        self.folder.join(format!("{}.{ENDING}", hex(key)))
    }

    /// The entry of exactly this description, if there is one and it is whole as far as can be told without reading it all.
    pub(super) fn open(&self, identity: &serde_json::Value) -> Option<Opened> {
        let path = self.path_of(&key_of(identity));
        if !path.exists() {
            return None;
        }
        if let Err(why) = trainer_plugin_host::make_private(&self.folder) {
            tracing::warn!("prepared data are not used: {why}");
            return None;
        }
        match open(&path) {
            Ok(entry) if entry.head.identity == *identity => Some(entry),
            Ok(_) => None,
            Err(why) => {
                tracing::warn!("{}: {why}; it is not used. `trainer data prepare` makes it again", path.display());
                None
            }
        }
    }

    /// For each source of a pipeline its prepared rows, where there are such.
    pub(crate) fn find(&self, spec: &PipelineSpec) -> Vec<Option<PreparedSource>> {
        let find = |(i, input): (usize, &crate::pipeline::SourceInput)| {
            let entry = self.open(&identity(spec, i)?)?;
            if entry.rows != input.source.len() {
                return None;
            }
            // For `clean --older-than`; a read-only folder may lack it.
            let _ = File::open(self.path_of(&key_of(&entry.head.identity))).and_then(|f| f.set_modified(SystemTime::now()));
            tracing::info!(source = input.source.name(), rows = entry.rows, "using prepared data");
            Some(PreparedSource::new(entry, &input.source))
        };
        spec.sources.iter().enumerate().map(find).collect()
    }

    /// Everything in the folder, sorted by file name. A folder that is not there has nothing.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn entries(&self) -> Result<Vec<EntryInfo>, StoreError> {
        let io = |error| StoreError::Io { path: self.folder.clone(), error };
        let mut all = Vec::new();
        let list = match fs::read_dir(&self.folder) {
            Ok(list) => list,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(all),
            Err(e) => return Err(io(e)),
        };
        for entry in list {
            let entry = entry.map_err(io)?;
            let path = entry.path();
            // Gone since it was listed: another process cleans too.
            let Ok(found) = entry.metadata() else { continue };
            if !found.is_file() {
                continue;
            }
            let used = found.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map(|d| d.as_secs());
            let name = entry.file_name().to_string_lossy().into_owned();
            let blank = |state| EntryInfo {
                path: path.clone(),
                bytes: found.len(),
                source: None,
                files: Vec::new(),
                plugins: Vec::new(),
                rows: None,
                created: None,
                used,
                state,
            };
            if name.starts_with(NEW) {
                let abandoned = abandoned(&path, found.modified().ok());
                all.push(blank(if abandoned { EntryState::Unfinished } else { EntryState::Growing }));
            } else if path.extension().is_some_and(|e| e == ENDING) {
                all.push(match open(&path) {
                    Ok(entry) => describe(&path, &entry, found.len(), used),
                    Err(why) => blank(EntryState::Damaged(why)),
                });
            }
        }
        all.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(all)
    }

    /// Removes an entry. A run that reads it goes on: its file is only without a name.
    ///
    /// # Errors
    /// The system refuses.
    pub fn remove(&self, entry: &EntryInfo) -> Result<(), StoreError> {
        match fs::remove_file(&entry.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::Io { path: entry.path.clone(), error: e }),
            _ => Ok(()),
        }
    }

    /// Removes what killed processes have left.
    pub(super) fn sweep(&self) {
        for entry in self.entries().unwrap_or_default().iter().filter(|e| e.state == EntryState::Unfinished) {
            let _ = self.remove(entry);
        }
    }
}

/// Whether nobody writes a temporary file any more: its writer holds a lock, which ends with the process.
fn abandoned(path: &Path, modified: Option<SystemTime>) -> bool {
    let old = modified.and_then(|t| t.elapsed().ok()).is_some_and(|age| age > GRACE);
    // The grace is for a file that is made and not yet locked.
    File::open(path).is_ok_and(|f| f.try_lock().is_ok()) && old
}

fn describe(path: &Path, entry: &Opened, bytes: u64, used: Option<u64>) -> EntryInfo {
    let head = &entry.head;
    let plugin = |part: &str| {
        let manifest = head.identity.get(part)?.get("manifest")?;
        Some(format!("{}@{}", manifest.get("name")?.as_str()?, manifest.get("version")?.as_str()?))
    };
    EntryInfo {
        path: path.to_owned(),
        bytes,
        source: Some(head.source.clone()),
        files: head.files.iter().map(|f| f.path.clone().unwrap_or_else(|| f.name.clone())).collect(),
        plugins: ["formatter", "template"].into_iter().filter_map(plugin).collect(),
        rows: Some(entry.rows),
        created: Some(head.created),
        used,
        state: state(path, entry),
    }
}

fn state(path: &Path, entry: &Opened) -> EntryState {
    let head = &entry.head;
    let is = |key: &str, value: serde_json::Value| head.identity.get(key) == Some(&value);
    let named = path.file_stem().is_some_and(|stem| stem.to_string_lossy() == hex(&key_of(&head.identity)));
    if !named {
        return EntryState::Stale("it does not have the name of what it holds".to_owned());
    }
    if !is("format", FORMAT.into()) || !is("data_path", DATA_PATH.into()) {
        return EntryState::Stale("it was made by another version of the program".to_owned());
    }
    match head.files.iter().find_map(changed) {
        Some(why) => EntryState::Stale(why),
        None => EntryState::Usable,
    }
}

/// What has become of a source's file, if it is not what it was.
fn changed(file: &HeadFile) -> Option<String> {
    let path = file.path.as_ref()?;
    let Ok(found) = fs::metadata(path) else { return Some(format!("{path} is gone")) };
    if found.len() != file.bytes {
        return Some(format!("{path} has changed"));
    }
    let same_time = file.modified.is_some() && modified(&found) == file.modified;
    if same_time {
        return None;
    }
    let digest = ByteSource::open(Path::new(path)).and_then(|b| b.digest());
    (digest.ok().as_ref() != Some(&file.sha256)).then(|| format!("{path} has changed"))
}

/// When a file was last written, in nanoseconds since 1970.
pub(super) fn modified(found: &fs::Metadata) -> Option<u64> {
    found.modified().ok()?.duration_since(UNIX_EPOCH).ok().and_then(|d| u64::try_from(d.as_nanos()).ok())
}
