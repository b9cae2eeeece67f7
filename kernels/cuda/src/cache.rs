//! The cache of cubins on disk.
//!
//! Loading machine code is running it, so an entry is loaded only if this user's program wrote it: it carries an HMAC-SHA-256 over its name
//! and content under a random key that only the user can read. The folder must be the user's own with no access for others. An entry that
//! does not verify counts as absent, and is compiled again.

use sha2::{Digest, Sha256};
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 16] = b"trainer-cubin-1\n";
const DIGEST: usize = 32;
/// Larger entries are not believed; a cubin has some ten kilobytes.
const MAX_ENTRY: u64 = 64 << 20;

/// A private folder of cubins.
pub struct Cache {
    dir: PathBuf,
    key: [u8; DIGEST],
}

impl Cache {
    /// Opens or makes the cache.
    ///
    /// # Errors
    /// Why there can be none: the folder is not the user's alone, or cannot be written.
    pub fn open(dir: &Path) -> Result<Self, String> {
        private(dir)?;
        Ok(Self { dir: dir.to_owned(), key: secret(dir)? })
    }

    /// Where the user's cache is: `$XDG_CACHE_HOME/trainer/cubins`, else `~/.cache/trainer/cubins`; None without a home.
    pub fn default_folder() -> Option<PathBuf> {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
        Some(base.join("trainer").join("cubins"))
    }

    /// The entry of that name, if this user's program wrote it. `name` is a hexadecimal digest.
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        let entry = read_private(&self.dir.join(name), MAX_ENTRY).ok()?;
        let (mac, cubin) = entry.strip_prefix(MAGIC).and_then(|rest| rest.split_at_checked(DIGEST)).unwrap_or_default();
        if !same(mac, &self.mac(name, cubin)) {
            tracing::warn!("a cached kernel in {} is not what was written; it is compiled anew", self.dir.display());
            return None;
        }
        Some(cubin.to_vec())
    }

    /// Stores an entry under a temporary name and renames it. Failing to is no error of the caller's: the next start compiles again.
    pub fn put(&self, name: &str, cubin: &[u8]) {
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.dir)?;
            file.write_all(MAGIC)?;
            file.write_all(&self.mac(name, cubin))?;
            file.write_all(cubin)?;
            file.persist(self.dir.join(name)).map_err(|e| e.error)?;
            Ok(())
        };
        if let Err(e) = write() {
            tracing::warn!("cannot cache a kernel in {}: {e}", self.dir.display());
        }
    }

    /// HMAC-SHA-256 (RFC 2104) of name and content.
    fn mac(&self, name: &str, cubin: &[u8]) -> [u8; DIGEST] {
        let pad = |with: u8| {
            let mut block = [with; 64];
            block.iter_mut().zip(&self.key).for_each(|(b, k)| *b ^= k);
            block
        };
        let inner = Sha256::new_with_prefix(pad(0x36))
            .chain_update(MAGIC)
            .chain_update((name.len() as u64).to_le_bytes())
            .chain_update(name)
            .chain_update(cubin);
        Sha256::new_with_prefix(pad(0x5c)).chain_update(inner.finalize()).finalize().into()
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Compares without telling by its time how much was equal.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |d, (a, b)| d | (a ^ b)) == 0
}

#[expect(unsafe_code, reason = "libc")]
fn user() -> u32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() }
}

fn private(dir: &Path) -> Result<(), String> {
    let at = |e: std::io::Error| format!("{}: {e}", dir.display());
    if fs::symlink_metadata(dir).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at)?;
    }
    // The entry itself, not what a link points to.
    let found = fs::symlink_metadata(dir).map_err(at)?;
    if !found.is_dir() || found.uid() != user() || found.mode() & 0o077 != 0 {
        return Err(format!("{} must be a folder (no link) of this user, closed to others; `chmod 700` it", dir.display()));
    }
    Ok(())
}

/// The content of a private regular file, read whole so that what is checked is what is used.
fn read_private(path: &Path, most: u64) -> Result<Vec<u8>, std::io::Error> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.uid() != user() || found.mode() & 0o077 != 0 || found.len() > most {
        return Err(std::io::Error::other("not a private file of the expected size"));
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads the key, or makes one.
fn secret(dir: &Path) -> Result<[u8; DIGEST], String> {
    let path = dir.join("key");
    let at = |e: std::io::Error| format!("{}: {e}; delete it and a new one is made", path.display());
    if fs::symlink_metadata(&path).is_err() {
        let mut key = [0; DIGEST];
        fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut key)).map_err(|e| format!("/dev/urandom: {e}"))?;
        let mut file = tempfile::Builder::new().prefix(".key-").tempfile_in(dir).map_err(at)?;
        file.write_all(&key).map_err(at)?;
        // Another start may have been first: then its key is read below.
        if let Err(e) = file.persist_noclobber(&path)
            && e.error.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(at(e.error));
        }
    }
    let bytes = read_private(&path, DIGEST as u64).map_err(at)?;
    bytes.try_into().map_err(|_| at(std::io::Error::other("not 32 bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn an_entry_comes_back_only_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("a")).unwrap();
        assert_eq!(cache.get("x"), None);
        cache.put("x", b"code");
        assert_eq!(Cache::open(&dir.path().join("a")).unwrap().get("x").unwrap(), b"code");
        let path = dir.path().join("a/x");
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert_eq!(cache.get("x"), None, "byte {at} changed");
            fs::write(&path, &good[..at]).unwrap();
            assert_eq!(cache.get("x"), None, "cut to {at}");
        }
        fs::write(&path, [&good[..], b"!"].concat()).unwrap();
        assert_eq!(cache.get("x"), None, "longer");
        cache.put("x", b"new");
        assert_eq!(cache.get("x").unwrap(), b"new", "a broken entry is replaced");
        fs::copy(&path, dir.path().join("a/y")).unwrap();
        assert_eq!(cache.get("y"), None, "an entry under another name");
        let other = Cache::open(&dir.path().join("b")).unwrap();
        fs::copy(&path, dir.path().join("b/x")).unwrap();
        assert_eq!(other.get("x"), None, "written under another key");
        fs::rename(&path, dir.path().join("a/z")).unwrap();
        symlink(dir.path().join("a/z"), &path).unwrap();
        assert_eq!(cache.get("x"), None, "a link");
    }

    #[test]
    fn only_a_private_folder_serves() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Cache::open(&open).err().unwrap().contains("chmod 700"));
        fs::set_permissions(&open, fs::Permissions::from_mode(0o700)).unwrap();
        Cache::open(&open).unwrap();
        symlink(&open, dir.path().join("link")).unwrap();
        assert!(Cache::open(&dir.path().join("link")).is_err());
        fs::set_permissions(open.join("key"), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Cache::open(&open).err().unwrap().contains("delete it"));
    }
}
