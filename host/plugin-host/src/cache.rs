//! The cache of compiled components.
//!
//! Loading compiled code is running it, so an entry is only loaded if this user's host wrote it: each carries an HMAC-SHA-256 over the
//! engine's compatibility digest, the component's digest and the code, under a random key that only the user can read. The folder must be
//! a real directory of the user with no access for others; otherwise there is no cache. An entry that does not verify is compiled anew.
//!
//! Layout: `DIR/key`, `DIR/<compatibility>/<component digest>` = magic, MAC (32 bytes), code. Entries appear by renaming a finished file.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

const MAGIC: &[u8; 16] = b"trainer-cwasm-1\n";
const MAC: usize = 32;
const KEY: usize = 32;
/// Larger entries are not believed.
const MAX_ENTRY: u64 = 4 << 30;

/// A private folder of compiled components.
pub(crate) struct Cache {
    dir: PathBuf,
    key: [u8; KEY],
}

impl Cache {
    /// Opens or makes the cache. The error says why there can be none.
    pub(crate) fn open(dir: &Path) -> Result<Self, String> {
        make_private(dir)?;
        let key = key(dir)?;
        Ok(Self { dir: dir.to_owned(), key })
    }

    fn path(&self, compatibility: &str, digest: &str) -> PathBuf {
        self.dir.join(compatibility).join(digest)
    }

    /// The compiled code, if an entry is there that this user's host wrote.
    pub(crate) fn get(&self, compatibility: &str, digest: &str) -> Option<Vec<u8>> {
        let path = self.path(compatibility, digest);
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(&path).ok()?;
        let size = file.metadata().ok().filter(fs::Metadata::is_file)?.len();
        let broken = |why: &str| {
            tracing::warn!("the cached form of a plugin in {} is {why}; it is compiled anew", path.display());
            None
        };
        if size > MAX_ENTRY {
            return broken("too large");
        }
        let mut entry = Vec::with_capacity(usize::try_from(size).ok()?);
        // The file is read whole before it is judged: what was verified is what is loaded, whatever happens to the file.
        if file.take(size).read_to_end(&mut entry).is_err() {
            return broken("unreadable");
        }
        let Some((mac, code)) = entry.strip_prefix(MAGIC).and_then(|rest| rest.split_at_checked(MAC)) else {
            return broken("cut short or of another version");
        };
        if !equal(mac, &self.mac(compatibility, digest, code)) {
            return broken("not what this host wrote");
        }
        entry.drain(..MAGIC.len() + MAC);
        Some(entry)
    }

    /// Stores compiled code. Failing to is no error of the caller's: the next load compiles again.
    pub(crate) fn put(&self, compatibility: &str, digest: &str, code: &[u8]) {
        if let Err(e) = self.try_put(compatibility, digest, code) {
            tracing::warn!("cannot cache a compiled plugin in {}: {e}", self.dir.display());
        }
    }

    fn try_put(&self, compatibility: &str, digest: &str, code: &[u8]) -> Result<(), String> {
        let dir = self.dir.join(compatibility);
        make_private(&dir)?;
        let io = |e: std::io::Error| e.to_string();
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&dir).map_err(io)?;
        file.write_all(MAGIC).map_err(io)?;
        file.write_all(&self.mac(compatibility, digest, code)).map_err(io)?;
        file.write_all(code).map_err(io)?;
        file.persist(dir.join(digest)).map_err(|e| e.error.to_string())?;
        Ok(())
    }

    fn mac(&self, compatibility: &str, digest: &str, code: &[u8]) -> [u8; MAC] {
        let length = |part: &[u8]| (part.len() as u64).to_le_bytes();
        let (compatibility, digest) = (compatibility.as_bytes(), digest.as_bytes());
        hmac(&self.key, &[MAGIC, &length(compatibility), compatibility, &length(digest), digest, code])
    }
}

/// Makes sure of a directory that is nobody else's business: there, no link, the user's own and closed to others. It is made where it is missing.
///
/// # Errors
/// The reason why it is not, or cannot be made.
pub fn make_private(dir: &Path) -> Result<(), String> {
    if let Err(e) = fs::symlink_metadata(dir) {
        if e.kind() != std::io::ErrorKind::NotFound {
            return Err(format!("{}: {e}", dir.display()));
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    }
    // The entry itself, not what a link points to.
    let found = fs::symlink_metadata(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    if !found.is_dir() {
        return Err(format!("{} is no directory (a link is not followed)", dir.display()));
    }
    if found.uid() != effective_user() {
        return Err(format!("{} belongs to another user", dir.display()));
    }
    if found.mode() & 0o077 != 0 {
        return Err(format!("{} is open to other users; `chmod 700` it", dir.display()));
    }
    Ok(())
}

#[expect(unsafe_code, reason = "libc")]
fn effective_user() -> u32 {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// Reads the key, or makes one.
fn key(dir: &Path) -> Result<[u8; KEY], String> {
    let path = dir.join("key");
    let at = |e: std::io::Error| format!("{}: {e}", path.display());
    if !path.exists() {
        let mut key = [0; KEY];
        File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut key)).map_err(|e| format!("/dev/urandom: {e}"))?;
        // Written aside and linked into place, so that two hosts that start at once agree on one key. tempfile makes files 0600.
        let mut file = tempfile::Builder::new().prefix(".key-").tempfile_in(dir).map_err(at)?;
        file.write_all(&key).map_err(at)?;
        match file.persist_noclobber(&path) {
            Ok(_) => {}
            Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(at(e.error)),
        }
    }
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(&path).map_err(at)?;
    let found = file.metadata().map_err(at)?;
    if !found.is_file() || found.uid() != effective_user() || found.mode() & 0o077 != 0 || found.len() != KEY as u64 {
        return Err(format!("{} is not a private key file of {KEY} bytes; delete it and a new one is made", path.display()));
    }
    let mut key = [0; KEY];
    file.read_exact(&mut key).map_err(at)?;
    Ok(key)
}

/// HMAC-SHA-256 (RFC 2104) over the concatenated parts, for keys of at most one block.
fn hmac(key: &[u8; KEY], parts: &[&[u8]]) -> [u8; MAC] {
    const BLOCK: usize = 64;
    let pad = |with: u8| {
        let mut block = [with; BLOCK];
        block.iter_mut().zip(key).for_each(|(b, k)| *b ^= k);
        block
    };
    let mut inner = Sha256::new_with_prefix(pad(0x36));
    parts.iter().for_each(|part| inner.update(part));
    Sha256::new_with_prefix(pad(0x5c)).chain_update(inner.finalize()).finalize().into()
}

/// Compares without telling by its time how much was equal.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::engine::hex;

    fn private() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn hmac_is_rfc_4231() {
        // Test case 1 of RFC 4231: a key of 20 bytes; zero padding to 32 leaves an HMAC key as it is.
        let mut key = [0; KEY];
        key[..20].fill(0x0b);
        assert_eq!(hex(&hmac(&key, &[b"Hi ", b"There"])), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
        let mut key = [0; KEY];
        key[..4].copy_from_slice(b"Jefe");
        assert_eq!(
            hex(&hmac(&key, &[b"what do ya want for nothing?"])),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn an_entry_comes_back_only_as_it_was_written() {
        let dir = private();
        let cache = Cache::open(&dir.path().join("cache")).unwrap();
        assert_eq!(cache.get("engine", "digest"), None);
        cache.put("engine", "digest", b"code");
        assert_eq!(cache.get("engine", "digest").as_deref(), Some(b"code".as_slice()));
        assert_eq!(Cache::open(&dir.path().join("cache")).unwrap().get("engine", "digest").as_deref(), Some(b"code".as_slice()));

        let path = cache.path("engine", "digest");
        let good = fs::read(&path).unwrap();
        for at in [0, MAGIC.len(), MAGIC.len() + MAC, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert_eq!(cache.get("engine", "digest"), None, "byte {at} changed");
        }
        for length in [0, 5, MAGIC.len() + MAC - 1, MAGIC.len() + MAC, good.len() - 1] {
            fs::write(&path, &good[..length]).unwrap();
            assert_eq!(cache.get("engine", "digest"), None, "cut to {length}");
        }
        fs::write(&path, &good).unwrap();
        // An entry of one component or engine is none of another.
        fs::copy(&path, cache.path("engine", "other")).unwrap();
        assert_eq!(cache.get("engine", "other"), None);
        let foreign = Cache::open(&dir.path().join("foreign")).unwrap();
        make_private(&dir.path().join("foreign/engine")).unwrap();
        fs::copy(&path, foreign.path("engine", "digest")).unwrap();
        assert_eq!(foreign.get("engine", "digest"), None, "written under another key");
        // A link to a good entry is not followed.
        fs::rename(&path, dir.path().join("moved")).unwrap();
        symlink(dir.path().join("moved"), &path).unwrap();
        assert_eq!(cache.get("engine", "digest"), None);
    }

    #[test]
    fn only_a_private_folder_serves() {
        let dir = private();
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Cache::open(&open).err().unwrap().contains("open to other users"));
        fs::set_permissions(&open, fs::Permissions::from_mode(0o700)).unwrap();
        Cache::open(&open).unwrap();
        let link = dir.path().join("link");
        symlink(&open, &link).unwrap();
        assert!(Cache::open(&link).err().unwrap().contains("no directory"));
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        assert!(Cache::open(&file).err().unwrap().contains("no directory"));
        fs::set_permissions(open.join("key"), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Cache::open(&open).err().unwrap().contains("private key file"));
        assert_eq!(fs::metadata(Cache::open(&dir.path().join("new")).unwrap().dir.join("key")).unwrap().mode() & 0o777, 0o600);
    }
}
