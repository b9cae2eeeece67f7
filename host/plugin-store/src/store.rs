//! The user's store: components by their digests, and an index of names.
//!
//! ```text
//! DATA/trainer/plugins/sha256/AB/CDEF....wasm            a component
//!                                AB/CDEF....wasm.minisig its signature, where it has one
//!                     /index.json                        name -> version, digest, where it came from, signer
//!                     /lock                              held by who changes something
//! ```
//!
//! Files appear by renaming finished ones. Every read of a component hashes it: what comes back is what its name says, or an error.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::files::{self, Lock};
use crate::{Digest, Reference, SignerKey, StoreError, keys};

/// The format of the index.
const VERSION: u32 = 1;
const MAX_INDEX: u64 = 64 << 20;
/// More than any limit on components allows.
const MAX_COMPONENT: u64 = 4 << 30;

/// An installed plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The plugin's own version.
    pub version: String,
    /// SHA-256 of the component.
    pub digest: Digest,
    /// Where it came from.
    pub reference: Reference,
    /// The digest of its manifest in the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
    /// Its kinds with the versions of their interfaces, such as `eval-metric@0.1.0`.
    pub kinds: Vec<String>,
    /// When it was installed or updated, in UTC.
    pub added: String,
    /// The key that signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<SignerKey>,
}

/// The names of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    version: u32,
    /// Installed plugins by name.
    pub plugins: BTreeMap<String, Entry>,
}

impl Default for Index {
    fn default() -> Self {
        Self { version: VERSION, plugins: BTreeMap::new() }
    }
}

/// A folder of components.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store in this folder, which need not be there.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where a component is, or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        let (first, rest) = digest.hex().split_at(2);
        self.root.join("sha256").join(first).join(format!("{rest}.wasm"))
    }

    fn signature_path(&self, digest: &Digest) -> PathBuf {
        self.path(digest).with_extension("wasm.minisig")
    }

    fn index_path(&self) -> PathBuf {
        self.root.join("index.json")
    }

    /// The names.
    ///
    /// # Errors
    /// The index does not read.
    pub fn index(&self) -> Result<Index, StoreError> {
        let path = self.index_path();
        let Some(bytes) = files::read(&path, MAX_INDEX)? else { return Ok(Index::default()) };
        let broken = |message: String| StoreError::Broken { path: path.clone(), message };
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|e| broken(format!("{e}; remove it and add the plugins again, whose components are still there")))?;
        if index.version != VERSION {
            return Err(broken(format!("it has version {} of the format, but this program reads version {VERSION}", index.version)));
        }
        Ok(index)
    }

    /// The plugin of a name.
    ///
    /// # Errors
    /// The index does not read, or has no such name.
    pub fn entry(&self, name: &str) -> Result<Entry, StoreError> {
        let mut index = self.index()?;
        index
            .plugins
            .remove(name)
            .ok_or_else(|| StoreError::NotInstalled { name: name.to_owned(), installed: index.plugins.into_keys().collect() })
    }

    /// A component, hashed as it is read; `None` if it is not there.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn read(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(digest);
        let Some(bytes) = files::read(&path, MAX_COMPONENT)? else { return Ok(None) };
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(StoreError::Damaged { path, expected: digest.clone(), found });
        }
        Ok(Some(bytes))
    }

    /// The signature that was kept with a component.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn signature(&self, digest: &Digest) -> Result<Option<String>, StoreError> {
        files::read_text(&self.signature_path(digest), keys::MAX_TEXT)
    }

    /// All components that are there, by what their files are called.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn components(&self) -> Result<Vec<Digest>, StoreError> {
        let root = self.root.join("sha256");
        let mut found = Vec::new();
        for folder in names(&root)? {
            for file in names(&root.join(&folder))? {
                let digest = file.strip_suffix(".wasm").and_then(|rest| format!("{folder}{rest}").parse().ok());
                found.extend(digest);
            }
        }
        found.sort();
        Ok(found)
    }

    /// Holds the store, so that nothing in it changes but by the holder.
    pub(crate) fn lock(&self) -> Result<Held<'_>, StoreError> {
        Ok(Held { store: self, _lock: Lock::take(&self.root.join("lock"))? })
    }
}

/// The store while nobody else changes it.
pub(crate) struct Held<'a> {
    store: &'a Store,
    _lock: Lock,
}

impl Held<'_> {
    /// Keeps a component with its signature. The index comes after it, so that it never names what is not there.
    pub(crate) fn keep(&self, bytes: &[u8], signature: Option<&str>) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if let Some(signature) = signature {
            files::write(&self.store.signature_path(&digest), signature.as_bytes(), true)?;
        }
        // A damaged file is replaced by a good one.
        if !matches!(self.store.read(&digest), Ok(Some(_))) {
            files::write(&self.store.path(&digest), bytes, true)?;
        }
        Ok(digest)
    }

    pub(crate) fn save(&self, index: &Index) -> Result<(), StoreError> {
        let path = self.store.index_path();
        let mut text = serde_json::to_vec_pretty(index).map_err(|e| StoreError::Broken { path: path.clone(), message: e.to_string() })?;
        text.push(b'\n');
        files::write(&path, &text, true)
    }

    /// Removes a component that nothing in the index names.
    pub(crate) fn forget(&self, digest: &Digest, index: &Index) -> Result<bool, StoreError> {
        if index.plugins.values().any(|e| e.digest == *digest) {
            return Ok(false);
        }
        for path in [self.store.path(digest), self.store.signature_path(digest)] {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(StoreError::io("remove", &path)(e)),
                _ => {}
            }
        }
        Ok(true)
    }
}

/// The names in a folder; none if it is not there.
fn names(folder: &std::path::Path) -> Result<Vec<String>, StoreError> {
    match std::fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(StoreError::io("read", folder)(e)),
        Ok(entries) => Ok(entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect()),
    }
}

/// A time as `YYYY-MM-DDTHH:MM:SSZ`.
pub(crate) fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years: a year that begins in March ends with its leap day.
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("plugins"));
        (folder, store)
    }

    #[test]
    fn what_is_kept_comes_back_and_a_changed_byte_is_seen() {
        let (_folder, store) = store();
        assert_eq!(store.read(&Digest::of(b"x")).unwrap(), None);
        let digest = store.lock().unwrap().keep(b"component", Some("signature")).unwrap();
        assert_eq!(store.read(&digest).unwrap().as_deref(), Some(b"component".as_slice()));
        assert_eq!(store.signature(&digest).unwrap().as_deref(), Some("signature"));
        assert_eq!(store.components().unwrap(), std::slice::from_ref(&digest));
        std::fs::write(store.path(&digest), b"Component").unwrap();
        let error = store.read(&digest).unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { found, .. } if *found == Digest::of(b"Component")), "{error}");
        // Adding it again mends it.
        store.lock().unwrap().keep(b"component", None).unwrap();
        assert!(store.read(&digest).unwrap().is_some());
        assert!(store.lock().unwrap().forget(&digest, &Index::default()).unwrap());
        assert_eq!(store.components().unwrap(), []);
    }

    #[test]
    fn a_broken_index_is_an_error_and_no_empty_one() {
        let (_folder, store) = store();
        assert_eq!(store.index().unwrap(), Index::default());
        std::fs::create_dir_all(&store.root).unwrap();
        for bad in ["", "{", "{\"version\":2,\"plugins\":{}}", "{\"version\":1,\"plugins\":{},\"more\":1}"] {
            std::fs::write(store.index_path(), bad).unwrap();
            assert!(store.index().unwrap_err().to_string().contains("index.json"), "{bad}");
        }
    }

    #[test]
    fn what_was_not_finished_is_never_seen() {
        let (_folder, store) = store();
        let digest = store.lock().unwrap().keep(b"component", None).unwrap();
        // What a process that was killed leaves behind.
        let folder = store.path(&digest).parent().unwrap().to_owned();
        std::fs::write(folder.join(".incomplete-abc"), b"compo").unwrap();
        assert_eq!(store.components().unwrap(), [digest]);
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        let at = |s| utc(UNIX_EPOCH + Duration::from_secs(s));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(951_868_800), "2000-03-01T00:00:00Z");
        assert_eq!(at(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
    }
}
