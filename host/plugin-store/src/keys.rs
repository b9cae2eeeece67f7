//! Keys in minisign's formats: whose signatures are trusted, and what this user signs with.
//!
//! `CONFIG/keys/NAME.pub` is a trusted public key, `CONFIG/keys/NAME.key` beside it the user's own secret key.

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minisign_verify::{PublicKey, Signature};
use serde::{Deserialize, Serialize};

use crate::minisign::SecretKey;
use crate::{StoreError, files};

/// The largest key or signature.
pub(crate) const MAX_TEXT: u64 = 4 << 10;
/// Bytes of a public key in minisign's form: algorithm, key id, key.
const PUBLIC: usize = 42;
/// Where the key id is, in keys and signatures.
const ID: std::ops::Range<usize> = 2..10;

/// A public key as minisign writes it in base64, such as `RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3`. It is what index and
/// `plugins.lock` name a signer by: names are each user's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SignerKey(String);

impl SignerKey {
    fn bytes(&self) -> Option<Vec<u8>> {
        STANDARD.decode(&self.0).ok().filter(|b| b.len() == PUBLIC)
    }

    /// The key's id, as minisign shows it.
    pub fn id(&self) -> String {
        self.bytes().map_or_else(String::new, |b| hex_id(&b[ID]))
    }

    fn public(&self) -> Option<PublicKey> {
        PublicKey::from_base64(&self.0).ok()
    }
}

impl std::fmt::Display for SignerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SignerKey {
    type Error = String;

    /// Reads the base64 text, or the text of a `.pub` file.
    fn try_from(text: String) -> Result<Self, String> {
        let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
        let key = lines.find(|l| !l.starts_with("untrusted comment:")).unwrap_or_default();
        let found = Self(key.to_owned());
        match (found.bytes(), found.public(), lines.next()) {
            (Some(_), Some(_), None) => Ok(found),
            _ => {
                Err("it is no minisign public key, which is one line of 56 characters that begins with RW, after a comment or without one"
                    .to_owned())
            }
        }
    }
}

impl From<SignerKey> for String {
    fn from(key: SignerKey) -> Self {
        key.0
    }
}

/// A key id as minisign shows it.
fn hex_id(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|b| format!("{b:02X}")).collect()
}

/// A key of the user's ring.
#[derive(Clone, Debug, Serialize)]
pub struct KeyInfo {
    /// The user's name for it.
    pub name: String,
    /// Its id.
    pub id: String,
    /// The public key.
    pub key: SignerKey,
    /// Whether the secret key is there too, so that this user can sign with it.
    pub own: bool,
}

/// What a signature is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Made with a trusted key over these bytes: by whom, and the comment that is signed too.
    Good(SignerKey, String),
    /// It names a trusted key, and is not that key's signature of these bytes.
    Bad(String),
    /// The key that it names, by its id, is not trusted.
    Unknown(String),
    /// It is no signature.
    Unreadable,
}

/// The user's keys.
#[derive(Clone, Debug)]
pub struct KeyRing {
    folder: PathBuf,
}

impl KeyRing {
    /// The keys in this folder, which need not be there.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn public_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.pub"))
    }

    /// Where the secret key of a name is.
    pub fn secret_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.key"))
    }

    /// All trusted keys, by name.
    ///
    /// # Errors
    /// A file that does not read: a key that is silently left out would be missed at the wrong time.
    pub fn list(&self) -> Result<Vec<KeyInfo>, StoreError> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(StoreError::io("read", &self.folder))?,
        };
        let mut keys = Vec::new();
        for entry in entries {
            let path = entry.map_err(StoreError::io("read", &self.folder))?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".pub")) else { continue };
            if check_name(name).is_err() {
                continue;
            }
            let text = files::read_text(&path, MAX_TEXT)?.unwrap_or_default();
            let key = SignerKey::try_from(text).map_err(|message| StoreError::Broken { path: path.clone(), message })?;
            keys.push(KeyInfo { name: name.to_owned(), id: key.id(), own: self.secret_path(name).is_file(), key });
        }
        keys.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(keys)
    }

    /// The user's name of a key.
    ///
    /// # Errors
    /// As for [`Self::list`].
    pub fn name_of(&self, key: &SignerKey) -> Result<Option<String>, StoreError> {
        Ok(self.list()?.into_iter().find(|k| k.key == *key).map(|k| k.name))
    }

    fn free(&self, name: &str) -> Result<(), StoreError> {
        check_name(name)?;
        if self.public_path(name).exists() || self.secret_path(name).exists() {
            return Err(StoreError::Key(format!("there is a key `{name}` already; `trainer plugin keys remove {name}` removes it")));
        }
        Ok(())
    }

    /// Makes a key pair. The rights of its file alone protect the secret key.
    ///
    /// # Errors
    /// The name is taken or none; the system refuses.
    pub fn generate(&self, name: &str) -> Result<KeyInfo, StoreError> {
        self.free(name)?;
        let secret = SecretKey::generate().map_err(|e| StoreError::Key(format!("cannot make a key: {e}")))?;
        let text = secret.to_text(&format!("secret key `{name}` of trainer plugins"));
        files::write(&self.secret_path(name), text.as_bytes(), true)?;
        self.keep(name, &secret.public())
    }

    /// Trusts a public key: its base64 text, or the text of its file.
    ///
    /// # Errors
    /// It is no key; the name is taken or none; the key is trusted under another name.
    pub fn trust(&self, name: &str, key: &str) -> Result<KeyInfo, StoreError> {
        self.free(name)?;
        let key = SignerKey::try_from(key.to_owned()).map_err(StoreError::Key)?;
        if let Some(other) = self.name_of(&key)? {
            return Err(StoreError::Key(format!("this key is trusted already, as `{other}`")));
        }
        self.keep(name, &key.to_string())
    }

    fn keep(&self, name: &str, key: &str) -> Result<KeyInfo, StoreError> {
        let path = self.public_path(name);
        let key = SignerKey::try_from(key.to_owned()).map_err(|message| StoreError::Broken { path: path.clone(), message })?;
        files::write(&path, format!("untrusted comment: minisign public key {}\n{key}\n", key.id()).as_bytes(), false)?;
        Ok(KeyInfo { name: name.to_owned(), id: key.id(), own: self.secret_path(name).is_file(), key })
    }

    /// Removes a key, the secret one too.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        check_name(name)?;
        let mut found = false;
        for path in [self.secret_path(name), self.public_path(name)] {
            match std::fs::remove_file(&path) {
                Ok(()) => found = true,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(StoreError::io("remove", &path)(e)),
            }
        }
        if found { Ok(()) } else { Err(StoreError::Key(format!("there is no key `{name}`; `trainer plugin keys list` shows them"))) }
    }

    /// Signs bytes with a secret key of the ring. The comment is signed too.
    ///
    /// # Errors
    /// There is no such key, or it has a password.
    pub fn sign(&self, name: &str, bytes: &[u8], comment: &str) -> Result<String, StoreError> {
        check_name(name)?;
        let path = self.secret_path(name);
        let Some(text) = files::read_text(&path, MAX_TEXT)? else {
            let own: Vec<String> = self.list()?.into_iter().filter(|k| k.own).map(|k| k.name).collect();
            let there = if own.is_empty() {
                "make one with `trainer plugin keys generate NAME`".to_owned()
            } else {
                format!("there are {}", own.join(", "))
            };
            return Err(StoreError::Key(format!("there is no secret key `{name}`: {there}")));
        };
        let secret = SecretKey::parse(&text).map_err(|message| StoreError::Broken { path, message })?;
        Ok(secret.sign(bytes, &format!("signature of a trainer plugin by {name}"), &crate::http::line(comment)))
    }

    /// What a signature of these bytes is worth.
    ///
    /// # Errors
    /// Keys that do not read.
    pub fn verify(&self, bytes: &[u8], signature: &str) -> Result<Verdict, StoreError> {
        let Some(signed) = (signature.len() as u64 <= MAX_TEXT).then(|| Signature::decode(signature).ok()).flatten() else {
            return Ok(Verdict::Unreadable);
        };
        // Read strictly here, so that one signature has one spelling.
        let line = |n: usize| signature.lines().nth(n).and_then(|l| STANDARD.decode(l).ok());
        let (Some(raw), Some(_)) = (line(1), line(3)) else { return Ok(Verdict::Unreadable) };
        let Some(id) = raw.get(ID).map(hex_id) else { return Ok(Verdict::Unreadable) };
        // Ids are 8 bytes that anybody can choose: several keys may have one.
        let mut verdict = Verdict::Unknown(id.clone());
        for trusted in self.list()?.into_iter().filter(|k| k.id == id) {
            // Older signatures are of the whole content and not of its hash; both are sound.
            if trusted.key.public().is_some_and(|key| key.verify(bytes, &signed, true).is_ok()) {
                return Ok(Verdict::Good(trusted.key, crate::http::line(signed.trusted_comment())));
            }
            verdict = Verdict::Bad(trusted.name);
        }
        Ok(verdict)
    }
}

/// Names are parts of file names.
fn check_name(name: &str) -> Result<(), StoreError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'@');
    if (1..=64).contains(&name.len()) && name.bytes().all(good) && !name.starts_with(['.', '-']) {
        return Ok(());
    }
    Err(StoreError::Key(format!("{name:?} is no name of a key: 1 to 64 letters, digits, _ - . @, beginning with a letter, digit, _ or @")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring() -> (tempfile::TempDir, KeyRing) {
        let folder = tempfile::tempdir().unwrap();
        let ring = KeyRing::new(folder.path().join("keys"));
        (folder, ring)
    }

    #[test]
    fn what_is_signed_verifies_and_nothing_else_does() {
        let (_folder, ring) = ring();
        assert_eq!(ring.list().unwrap().len(), 0);
        let mine = ring.generate("mine").unwrap();
        assert!(mine.own && mine.id.len() == 16);
        let signature = ring.sign("mine", b"component", "mix 1.0").unwrap();
        assert_eq!(ring.verify(b"component", &signature).unwrap(), Verdict::Good(mine.key.clone(), "mix 1.0".to_owned()));
        assert_eq!(ring.verify(b"Component", &signature).unwrap(), Verdict::Bad("mine".to_owned()));
        // The comment is signed too.
        let other = signature.replace("mix 1.0", "mix 9.9");
        assert_eq!(ring.verify(b"component", &other).unwrap(), Verdict::Bad("mine".to_owned()));
        ring.remove("mine").unwrap();
        assert_eq!(ring.verify(b"component", &signature).unwrap(), Verdict::Unknown(mine.id.clone()));
        let trusted = ring.trust("her", &mine.key.to_string()).unwrap();
        assert!(!trusted.own);
        assert!(matches!(ring.verify(b"component", &signature).unwrap(), Verdict::Good(..)));
        assert!(ring.sign("her", b"x", "").unwrap_err().to_string().contains("no secret key `her`"));
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_reads_the_secret_key() {
        use std::os::unix::fs::PermissionsExt;
        let (_folder, ring) = ring();
        ring.generate("mine").unwrap();
        assert_eq!(std::fs::metadata(ring.secret_path("mine")).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn names_and_keys_are_checked() {
        let (_folder, ring) = ring();
        for bad in ["", "../x", "a/b", ".x", "-x", "a b"] {
            assert!(ring.generate(bad).is_err() && ring.remove(bad).is_err(), "{bad}");
        }
        ring.generate("a").unwrap();
        assert!(ring.generate("a").unwrap_err().to_string().contains("already"));
        let key = ring.list().unwrap()[0].key.to_string();
        assert!(ring.trust("b", &key).unwrap_err().to_string().contains("as `a`"));
        for bad in ["", "RWQ", "untrusted comment: x\n", &key[1..], &format!("{key}\n{key}")] {
            assert!(ring.trust("c", bad).is_err(), "{bad}");
        }
        assert!(ring.remove("zz").unwrap_err().to_string().contains("no key `zz`"));
        std::fs::write(ring.public_path("broken"), "nonsense").unwrap();
        assert!(ring.list().unwrap_err().to_string().contains("broken.pub"));
    }

    proptest! {
        #[test]
        fn no_text_is_taken_for_a_signature(text in "\\PC{0,200}(\n\\PC{0,120}){0,5}") {
            let (_folder, ring) = ring();
            prop_assert!(!matches!(ring.verify(b"x", &text).unwrap(), Verdict::Good(..)));
        }
    }

    #[test]
    fn a_changed_signature_is_never_good() {
        let (_folder, ring) = ring();
        ring.generate("k").unwrap();
        let signature = ring.sign("k", b"x", "c").unwrap();
        // The first line is a comment that nobody signs.
        let first = signature.find('\n').unwrap() + 1;
        for at in first..signature.len() - 1 {
            for byte in [b'A', b'z', b'/', b' ', b'\n', signature.as_bytes()[at] ^ 1] {
                let mut bytes = signature.clone().into_bytes();
                if bytes[at] != byte {
                    bytes[at] = byte;
                    let changed = String::from_utf8(bytes).unwrap();
                    assert!(!matches!(ring.verify(b"x", &changed).unwrap(), Verdict::Good(..)), "{changed}");
                }
            }
        }
    }
}
