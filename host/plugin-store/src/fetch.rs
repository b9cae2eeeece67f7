//! From a reference to bytes, with the signature that comes with them.

use std::path::PathBuf;

use trainer_plugin_host::{ByteSize, Inspection, Limits, PluginError, PluginSource};

use crate::http::{Ask, Client};
use crate::keys::MAX_TEXT;
use crate::oci::Registry;
use crate::{Digest, Reference, StoreError, files};

/// What lies at a reference. Nothing of it has been checked but its size, and in registries the digests.
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) signature: Option<String>,
    /// The digest of the manifest, in registries.
    pub(crate) manifest: Option<Digest>,
}

/// Fetches a component; in a registry by the digest of a manifest that was seen before, if one is given.
pub(crate) fn fetch(
    http: &Client,
    docker: Option<PathBuf>,
    reference: &Reference,
    at: Option<&Digest>,
    limit: ByteSize,
) -> Result<Fetched, StoreError> {
    match reference {
        Reference::File(path) => {
            let size = std::fs::metadata(path).map_err(StoreError::io("read", path))?.len();
            if size > limit.0 {
                return Err(StoreError::TooLarge { what: path.display().to_string(), limit });
            }
            let missing = || StoreError::io("read", path)(std::io::ErrorKind::NotFound.into());
            let bytes = files::read(path, limit.0)?.ok_or_else(missing)?;
            let signature = files::read_text(&beside(path), MAX_TEXT)?;
            Ok(Fetched { bytes, signature, manifest: None })
        }
        Reference::Web(url) => {
            let what = shown(url);
            let mut answer = http.send(&Ask::get(url, &what))?;
            if !answer.is_ok() {
                return Err(answer.refusal(&what));
            }
            let bytes = answer.read(limit, &what)?;
            let signature = web_signature(http, url)?;
            Ok(Fetched { bytes, signature, manifest: None })
        }
        Reference::Oci(oci) => {
            let pulled = Registry::new(http, oci, docker)?.pull(at, limit)?;
            Ok(Fetched { bytes: pulled.bytes, signature: pulled.signature, manifest: Some(pulled.manifest) })
        }
    }
}

/// What a component says of itself; in errors it is called by the last part of where it came from.
pub(crate) fn describe(place: &str, bytes: &[u8]) -> Result<Inspection, PluginError> {
    let name = place.rsplit(['/', '\\']).next().unwrap_or(place).to_owned();
    // Its size was limited when it came.
    let limits = Limits { component_size: ByteSize(u64::MAX), ..Limits::default() };
    PluginSource::Bytes { name, bytes: bytes.to_vec() }.inspect(&limits)
}

/// Where the signature of a file is: minisign's own name for it.
pub(crate) fn beside(path: &std::path::Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".minisig");
    name.into()
}

/// The signature that lies beside a component at an address, if there is one.
fn web_signature(http: &Client, url: &str) -> Result<Option<String>, StoreError> {
    let (path, query) = url.split_once('?').map_or((url, String::new()), |(path, query)| (path, format!("?{query}")));
    let url = format!("{path}.minisig{query}");
    let what = shown(&url);
    let mut answer = http.send(&Ask::get(&url, &what))?;
    match answer.status {
        // Stores of objects say 403 of what they do not have.
        403 | 404 | 410 => Ok(None),
        _ if !answer.is_ok() => Err(answer.refusal(&what)),
        _ => {
            // Servers that answer everything with a page have no signature.
            let text = answer.read(ByteSize(MAX_TEXT), &what).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            Ok(text.filter(|t| t.starts_with("untrusted comment:")))
        }
    }
}

/// An address for messages, without its query, which may hold a secret.
fn shown(url: &str) -> String {
    url.split('?').next().unwrap_or(url).to_owned()
}
