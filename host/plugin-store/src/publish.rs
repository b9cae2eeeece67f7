//! An author's side: signing a component and sending it to a registry.

use std::path::{Path, PathBuf};

use serde::Serialize;
use trainer_plugin_host::{ByteSize, Inspection};

use crate::fetch::{beside, describe};
use crate::keys::{MAX_TEXT, Verdict};
use crate::manage::Manager;
use crate::oci::Registry;
use crate::{Digest, Reference, StoreError, files};

/// What a push came to.
#[derive(Clone, Debug, Serialize)]
pub struct Pushed {
    /// The plugin's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where it is.
    pub reference: Reference,
    /// SHA-256 of the component.
    pub digest: Digest,
    /// The digest of the artifact's manifest.
    pub manifest: Digest,
    /// Whether a signature went with it.
    pub signed: bool,
    /// Bytes that were sent.
    pub sent: u64,
}

impl Manager {
    /// A component file and the signature beside it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read_signed(path: &Path) -> Result<(Vec<u8>, Option<String>), StoreError> {
        let missing = || StoreError::io("read", path)(std::io::ErrorKind::NotFound.into());
        let bytes = files::read(path, ByteSize::mib(4096).0)?.ok_or_else(missing)?;
        Ok((bytes, files::read_text(&beside(path), MAX_TEXT)?))
    }

    /// Signs a component with a key of the ring; the signature goes beside it, as `FILE.minisig`.
    ///
    /// # Errors
    /// It is no plugin; there is no such key.
    pub fn sign(&self, path: &Path, key: &str) -> Result<PathBuf, StoreError> {
        let (bytes, _) = Self::read_signed(path)?;
        let about = describe_shared(&path.display().to_string(), &bytes)?;
        let signature = self.keys.sign(key, &bytes, &comment(&about))?;
        let target = beside(path);
        files::write(&target, signature.as_bytes(), false)?;
        Ok(target)
    }

    /// Sends a component file, or an installed plugin, to a registry. Its signature goes with it: a new one if a key is given, else the one that is
    /// beside the file or in the store, which must be good where its key is known.
    ///
    /// # Errors
    /// It is no plugin, its signature is bad, or the registry refuses.
    pub fn push(&self, source: &str, reference: &Reference, sign_with: Option<&str>) -> Result<Pushed, StoreError> {
        let Reference::Oci(oci) = reference else {
            return Err(StoreError::Reference {
                text: reference.to_string(),
                message: "a push goes to a registry: oci://HOST/REPOSITORY:TAG".to_owned(),
            });
        };
        let path = Path::new(source);
        let (bytes, kept) = if path.is_file() || source.contains(['/', '.']) {
            Self::read_signed(path)?
        } else {
            let digest = self.store.entry(source)?.digest;
            let gone = || StoreError::NotStored {
                digest: digest.clone(),
                wanted_by: format!("its index names for `{source}`"),
                help: format!("`trainer plugin remove {source}` and add it again"),
            };
            (self.store.read(&digest)?.ok_or_else(gone)?, self.store.signature(&digest)?)
        };
        let about = describe_shared(source, &bytes)?;
        let signature = match sign_with {
            Some(key) => Some(self.keys.sign(key, &bytes, &comment(&about))?),
            None => kept,
        };
        if let Some(signature) = &signature
            && let Verdict::Bad(_) | Verdict::Unreadable = self.keys.verify(&bytes, signature)?
        {
            let message = "its signature is not one of this component; sign it anew with `trainer plugin sign` or --key".to_owned();
            return Err(StoreError::Signature { what: source.to_owned(), message });
        }
        let done = Registry::new(&self.http()?, oci, self.docker.clone())?.push(&bytes, &about, signature.as_deref())?;
        Ok(Pushed {
            name: about.name,
            version: about.version,
            reference: reference.clone(),
            digest: Digest::of(&bytes),
            manifest: done.manifest,
            signed: signature.is_some(),
            sent: done.sent,
        })
    }
}

/// What a component that is to be shared says of itself.
fn describe_shared(what: &str, bytes: &[u8]) -> Result<Inspection, StoreError> {
    describe(what, bytes).map_err(|source| StoreError::NoPlugin { what: what.to_owned(), source: Box::new(source) })
}

/// What is signed beside the component: for people, since the component says it too.
fn comment(about: &Inspection) -> String {
    format!("plugin {} {} sha256:{}", about.name, about.version, about.digest)
}
