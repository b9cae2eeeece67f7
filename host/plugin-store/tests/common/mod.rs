//! A user of their own for each test, and plugins with other names.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod registry;
pub mod server;

use std::path::PathBuf;

use trainer_plugin_store::{AddOptions, Added, Manager, Reference, Settings, StoreError};

pub struct User {
    pub folder: tempfile::TempDir,
    pub settings: Settings,
}

impl User {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let settings =
            Settings { store: place("data"), config: place("config"), docker: Some(place("docker/config.json")), authorities: None };
        Self { folder, settings }
    }

    /// One who trusts these authorities, in PEM, in place of the built-in ones.
    pub fn trusting(authorities: Option<&str>) -> Self {
        let mut user = Self::new();
        user.settings.authorities = authorities.map(|pem| user.write("authorities.pem", pem));
        user
    }

    pub fn manager(&self) -> Manager {
        Manager::new(&self.settings).unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Adds what is at a place, without pins.
    pub fn add(&self, place: &str) -> Result<Added, StoreError> {
        let (reference, sha256) = Reference::parse(place)?;
        self.manager().add(&reference, &AddOptions { sha256, ..AddOptions::default() }, None)
    }

    /// The same, which must fail.
    pub fn refused(&self, place: &str) -> String {
        self.add(place).unwrap_err().to_string()
    }

    /// Names and versions of what is installed.
    pub fn installed(&self) -> Vec<String> {
        let index = self.manager().store.index().unwrap();
        index.plugins.iter().map(|(name, e)| format!("{name} {}", e.version)).collect()
    }

    /// That nothing came into the store.
    pub fn assert_empty(&self) {
        assert_eq!(self.installed(), [""; 0]);
        assert_eq!(self.manager().store.components().unwrap(), []);
    }
}

/// A plugin that works, under another name and version.
pub fn plugin(name: &str, version: &str) -> Vec<u8> {
    with_manifest(&format!(r#"{{"name": "{name}", "version": "{version}", "description": "for tests"}}"#))
}

/// A component with this manifest.
pub fn with_manifest(manifest: &str) -> Vec<u8> {
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../plugins/prebuilt/exact_match.wasm")).unwrap();
    rename(&bytes, manifest)
}

/// Puts another manifest into a component.
pub fn rename(component: &[u8], manifest: &str) -> Vec<u8> {
    const SECTION: &[u8] = b"trainer:plugin";
    let (mut out, mut at) = (component[..8].to_vec(), 8);
    while at < component.len() {
        let start = at;
        let id = component[at];
        at += 1;
        let mut size = 0usize;
        for shift in (0..).step_by(7) {
            let byte = component[at];
            at += 1;
            size |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let content = &component[at..at + size];
        at += size;
        if !(id == 0 && content.get(1..=SECTION.len()) == Some(SECTION)) {
            out.extend_from_slice(&component[start..at]);
        }
    }
    let mut content = vec![u8::try_from(SECTION.len()).unwrap()];
    content.extend_from_slice(SECTION);
    content.extend_from_slice(manifest.as_bytes());
    out.push(0);
    let mut size = content.len();
    while size >= 0x80 {
        out.push((size & 0x7f) as u8 | 0x80);
        size >>= 7;
    }
    out.push(size as u8);
    out.extend(content);
    out
}
