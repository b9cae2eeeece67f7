//! Where a plugin comes from: a file, an address or a registry.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Digest, StoreError};

/// The longest reference.
const MAX_LENGTH: usize = 4096;

/// A place of a plugin, as it is written and kept in the index and in `plugins.lock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// A component file.
    File(PathBuf),
    /// An `https` address, or `http` on this machine.
    Web(String),
    /// An artifact in an OCI registry.
    Oci(OciReference),
}

/// `oci://HOST[:PORT]/REPOSITORY[:TAG][@sha256:DIGEST]`
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OciReference {
    /// Host and port.
    pub registry: String,
    /// The repository's path.
    pub repository: String,
    /// The tag; `latest` where neither tag nor digest is written.
    pub tag: Option<String>,
    /// The digest of the manifest.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Reads an argument. An existing file wins; `#sha256=HEX` at the end of an address is given apart.
    ///
    /// # Errors
    /// It is none of the three.
    pub fn parse(text: &str) -> Result<(Self, Option<Digest>), StoreError> {
        let wrong = |message: &str| StoreError::Reference { text: text.chars().take(200).collect(), message: message.to_owned() };
        if text.is_empty() || text.len() > MAX_LENGTH || text.chars().any(char::is_control) {
            return Err(wrong("it is empty, too long or has control characters"));
        }
        if let Some(rest) = text.strip_prefix("oci://") {
            return Ok((Self::Oci(rest.parse().map_err(|m: String| wrong(&m))?), None));
        }
        if text.starts_with("https://") || text.starts_with("http://") {
            return web(text).map_err(|m| wrong(&m));
        }
        if text.contains("://") {
            return Err(wrong("write a file's path, https://HOST/PATH or oci://HOST/REPOSITORY:TAG"));
        }
        let path = Path::new(text);
        if path.is_file() {
            return Ok((Self::File(absolute(path)), None));
        }
        // As `wkg oci` and Docker write it. What looks like a path is one whose file is missing.
        let host = text.split('/').next().unwrap_or_default();
        let is_host = host.contains(':') || host == "localhost" || host.contains('.') && !host.starts_with('.');
        if is_host && text.contains('/') && !text.ends_with(".wasm") {
            return Ok((Self::Oci(text.parse().map_err(|m: String| wrong(&m))?), None));
        }
        if path.is_dir() {
            return Err(wrong("it is a folder; give the component in it, which `trainer plugin build` makes"));
        }
        Err(wrong("there is no such file; other places are https://HOST/PATH and oci://HOST/REPOSITORY:TAG"))
    }

    /// Whether what is there can never be something else.
    pub fn is_fixed(&self) -> bool {
        matches!(self, Self::Oci(oci) if oci.digest.is_some())
    }
}

/// A path that means the same from every folder.
fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

fn web(text: &str) -> Result<(Reference, Option<Digest>), String> {
    let (url, fragment) = text.split_once('#').map_or((text, None), |(url, f)| (url, Some(f)));
    let digest = match fragment {
        None => None,
        Some(f) => {
            let hex = f.strip_prefix("sha256=").ok_or("after # only sha256=HEX can stand")?;
            Some(hex.parse::<Digest>()?)
        }
    };
    let origin = crate::http::Origin::of(url).ok_or("it names no server, or has a user's name in it")?;
    if !origin.private() {
        return Err("http is for this machine only, since everybody on the way could change what comes; use https".to_owned());
    }
    Ok((Reference::Web(url.to_owned()), digest))
}

impl FromStr for OciReference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (registry, path) = rest.split_once('/').ok_or("a registry's reference is HOST/REPOSITORY:TAG")?;
        if !is_registry(registry) {
            return Err(format!("{registry:?} is no host with an optional port"));
        }
        let (repository, tag) = match path.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        if repository.len() > 255 || !repository.split('/').all(is_component) {
            return Err(format!("{repository:?} is no repository: its parts are of a-z, 0-9 and single . _ - between them"));
        }
        if tag.is_some_and(|t| !is_tag(t)) {
            return Err("a tag has 1 to 128 letters, digits, . _ -, and begins with no . or -".to_owned());
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { registry: registry.to_ascii_lowercase(), repository: repository.to_owned(), tag, digest })
    }
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
            ("v6", port.strip_prefix(':').or((!port.is_empty()).then_some("")))
        }
        Some(_) => return false,
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let label =
        |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && !l.starts_with('-') && !l.ends_with('-');
    host.len() <= 253 && host.split('.').all(label) && port.is_none_or(|p| p.parse::<u16>().is_ok_and(|p| p > 0))
}

/// A part of a repository's path, by the specification's grammar: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_component(part: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let separators = part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).filter(|s| !s.is_empty());
    edge(part.chars().next())
        && edge(part.chars().next_back())
        && separators.into_iter().all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

pub(crate) fn is_tag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

impl OciReference {
    /// What its manifest is asked for by: the digest, or else the tag.
    pub(crate) fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_else(|| "latest".to_owned()),
        }
    }
}

impl fmt::Display for OciReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oci://{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |d| write!(f, "@{d}"))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Web(url) => f.write_str(url),
            Self::Oci(oci) => oci.fmt(f),
        }
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::File(path) => path.to_str().ok_or_else(|| serde::ser::Error::custom("the path is not UTF-8"))?.serialize(to),
            other => to.collect_str(other),
        }
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        // A file's path is read back as one, whether the file is still there or not.
        if !text.contains("://") && !text.is_empty() {
            return Ok(Self::File(text.into()));
        }
        Self::parse(&text).map(|(reference, _)| reference).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn shown(text: &str) -> Result<String, String> {
        Reference::parse(text).map(|(r, d)| format!("{r}{}", d.map_or(String::new(), |d| format!(" {d}")))).map_err(|e| e.to_string())
    }

    #[test]
    fn references_read() {
        for (text, expected) in [
            ("oci://ghcr.io/me/mix:1.0", "oci://ghcr.io/me/mix:1.0"),
            ("ghcr.io/me/mix:1.0", "oci://ghcr.io/me/mix:1.0"),
            ("ghcr.io/me/mix", "oci://ghcr.io/me/mix:latest"),
            ("localhost/mix", "oci://localhost/mix:latest"),
            ("127.0.0.1:5000/a/b-c__d.e:x", "oci://127.0.0.1:5000/a/b-c__d.e:x"),
            ("[::1]:5000/a", "oci://[::1]:5000/a:latest"),
            (&format!("oci://ghcr.io/me/mix@sha256:{HEX}"), &format!("oci://ghcr.io/me/mix@sha256:{HEX}")),
            (&format!("oci://ghcr.io/me/mix:1@sha256:{HEX}"), &format!("oci://ghcr.io/me/mix:1@sha256:{HEX}")),
            ("https://example.com/x.wasm", "https://example.com/x.wasm"),
            (&format!("https://example.com/x.wasm#sha256={HEX}"), &format!("https://example.com/x.wasm sha256:{HEX}")),
            ("http://127.0.0.1:80/x", "http://127.0.0.1:80/x"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn bad_ones_say_why() {
        for (text, word) in [
            ("", "empty"),
            ("no_such_file.wasm", "no such file"),
            ("./ghcr.io/me/mix", "no such file"),
            ("src", "folder"),
            ("ftp://x/y", "oci://"),
            ("http://example.com/x.wasm", "use https"),
            ("https://me:secret@example.com/x.wasm", "user's name"),
            ("https://example.com/x.wasm#md5=0", "sha256=HEX"),
            ("https://example.com/x.wasm#sha256=0", "64 hexadecimal"),
            ("oci://ghcr.io/Me/mix", "no repository"),
            ("oci://ghcr.io/me/../mix", "no repository"),
            ("oci://ghcr.io/me//mix", "no repository"),
            ("oci://ghcr.io", "HOST/REPOSITORY"),
            ("oci://gh cr.io/me", "no host"),
            ("oci://ghcr.io:99999/me", "no host"),
            ("oci://ghcr.io/me:-x", "a tag has"),
            ("oci://ghcr.io/me@sha256:00", "64 hexadecimal"),
        ] {
            let error = shown(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_wins_and_becomes_absolute() {
        let (reference, _) = Reference::parse("Cargo.toml").unwrap();
        let Reference::File(path) = &reference else { panic!("{reference}") };
        assert!(path.is_absolute());
        let json = serde_json::to_string(&reference).unwrap();
        assert_eq!(serde_json::from_str::<Reference>(&json).unwrap(), reference);
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_or_refused(text in "(oci://|https://)?[a-z0-9:/@.#_=\\[\\]-]{0,60}") {
            if let Ok((reference, _)) = Reference::parse(&text) {
                let json = serde_json::to_string(&reference).unwrap();
                prop_assert_eq!(serde_json::from_str::<Reference>(&json).unwrap(), reference);
            }
        }
    }
}
