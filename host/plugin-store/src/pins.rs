//! `plugins.lock`: which bytes of which plugins a project uses, so that everybody who has the project has the same.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::store::Entry;
use crate::{Digest, Reference, SignerKey, StoreError, files};

/// The file's name, beside the recipe.
pub const PIN_FILE: &str = "plugins.lock";
/// The format of the file.
const VERSION: u32 = 1;
const MAX_PINS: u64 = 16 << 20;

const HEADER: &str = "\
# The plugins of this project. Written by `trainer plugin add`, `update` and `remove`; keep it with the recipe.
# `require_signatures = true` refuses plugins without a good signature by a trusted key.
";

/// A pinned plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Its name.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// Where it came from.
    pub reference: Reference,
    /// SHA-256 of the component.
    pub digest: Digest,
    /// The digest of its manifest in the registry, by which it is found there whatever the tag means by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
    /// The key that signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<SignerKey>,
    /// Its kinds with the versions of their interfaces.
    pub kinds: Vec<String>,
}

impl Pin {
    pub(crate) fn new(name: &str, entry: &Entry) -> Self {
        Self {
            name: name.to_owned(),
            version: entry.version.clone(),
            reference: entry.reference.clone(),
            digest: entry.digest.clone(),
            manifest: entry.manifest.clone(),
            signer: entry.signer.clone(),
            kinds: entry.kinds.clone(),
        }
    }
}

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    #[serde(default)]
    require_signatures: bool,
    #[serde(default, rename = "plugin")]
    plugins: Vec<Pin>,
}

/// A project's pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    /// Where they are kept.
    pub path: PathBuf,
    /// Whether the project takes signed plugins only.
    pub require_signatures: bool,
    /// The pins, by name.
    pub plugins: Vec<Pin>,
}

impl Pins {
    /// Reads a file; `None` if there is none.
    ///
    /// # Errors
    /// It does not read, or pins a name twice.
    pub fn load(path: &Path) -> Result<Option<Self>, StoreError> {
        let Some(text) = files::read_text(path, MAX_PINS)? else { return Ok(None) };
        let broken = |message: String| StoreError::Broken { path: path.to_owned(), message };
        let content: Content = toml::from_str(&text).map_err(|e| broken(e.to_string().trim_end().to_owned()))?;
        if content.version != VERSION {
            return Err(broken(format!("it has version {} of the format, but this program reads version {VERSION}", content.version)));
        }
        let mut plugins = content.plugins;
        let folder = folder_of(path);
        for pin in &mut plugins {
            if let Reference::File(file) = &mut pin.reference {
                *file = folder.join(&*file);
            }
        }
        plugins.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(twice) = plugins.windows(2).find(|w| w[0].name == w[1].name) {
            return Err(broken(format!("it pins `{}` twice", twice[0].name)));
        }
        Ok(Some(Self { path: path.to_owned(), require_signatures: content.require_signatures, plugins }))
    }

    /// The file beside a recipe, or in the current folder where there is no recipe.
    ///
    /// # Errors
    /// As for [`Self::load`].
    pub fn beside(recipe: Option<&Path>) -> Result<Option<Self>, StoreError> {
        let folder = recipe.and_then(Path::parent).unwrap_or(Path::new(""));
        Self::load(&folder.join(PIN_FILE))
    }

    /// No pins yet.
    pub fn empty(path: PathBuf) -> Self {
        Self { path, require_signatures: false, plugins: Vec::new() }
    }

    /// The pin of a name.
    pub fn get(&self, name: &str) -> Option<&Pin> {
        self.plugins.iter().find(|p| p.name == name)
    }

    /// Puts a pin in, in place of an older one of its name.
    pub(crate) fn put(&mut self, pin: Pin) {
        self.plugins.retain(|p| p.name != pin.name);
        self.plugins.push(pin);
        self.plugins.sort_by(|a, b| a.name.cmp(&b.name));
    }

    pub(crate) fn save(&self) -> Result<(), StoreError> {
        let mut plugins = self.plugins.clone();
        // Files of the project are found wherever the project is.
        let folder = folder_of(&self.path);
        for pin in &mut plugins {
            if let Reference::File(file) = &mut pin.reference
                && let Ok(inside) = file.strip_prefix(&folder)
            {
                *file = inside.to_owned();
            }
        }
        let content = Content { version: VERSION, require_signatures: self.require_signatures, plugins };
        let text = toml::to_string(&content).map_err(|e| StoreError::Broken { path: self.path.clone(), message: e.to_string() })?;
        files::write(&self.path, format!("{HEADER}{text}").as_bytes(), false)
    }
}

/// The folder of a file, as references to files in it begin.
fn folder_of(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    folder.canonicalize().or_else(|_| std::path::absolute(folder)).unwrap_or_else(|_| folder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_come_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(PIN_FILE);
        assert_eq!(Pins::load(&path).unwrap(), None);
        let mut pins = Pins::empty(path.clone());
        let pin = |name: &str| Pin {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            reference: "oci://ghcr.io/me/mix:1".parse_reference(),
            digest: Digest::of(name.as_bytes()),
            manifest: Some(Digest::of(b"m")),
            signer: None,
            kinds: vec!["mixing-policy@0.1.0".to_owned()],
        };
        pins.put(pin("b"));
        pins.put(pin("a"));
        pins.put(Pin { version: "2.0.0".to_owned(), ..pin("b") });
        pins.save().unwrap();
        let read = Pins::load(&path).unwrap().unwrap();
        assert_eq!(read, pins);
        assert_eq!(read.get("b").unwrap().version, "2.0.0");
        assert_eq!(read.plugins.len(), 2);
        // A demand that somebody wrote by hand stays.
        let text = std::fs::read_to_string(&path).unwrap().replace("require_signatures = false", "require_signatures = true");
        std::fs::write(&path, text).unwrap();
        let read = Pins::load(&path).unwrap().unwrap();
        read.save().unwrap();
        assert!(Pins::load(&path).unwrap().unwrap().require_signatures);
    }

    #[test]
    fn files_of_a_project_move_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().canonicalize().unwrap().join(name);
        std::fs::create_dir(place("a")).unwrap();
        let mut pins = Pins::empty(place("a/plugins.lock"));
        let file = |path| Pin {
            name: format!("{path:?}"),
            version: String::new(),
            reference: Reference::File(path),
            digest: Digest::of(b""),
            manifest: None,
            signer: None,
            kinds: Vec::new(),
        };
        pins.put(file(place("a/plugins/x.wasm")));
        pins.put(file("/elsewhere/y.wasm".into()));
        pins.save().unwrap();
        std::fs::rename(place("a"), place("b")).unwrap();
        let read = Pins::load(&place("b/plugins.lock")).unwrap().unwrap();
        let places: Vec<String> = read.plugins.iter().map(|p| p.reference.to_string()).collect();
        assert!(places.contains(&place("b/plugins/x.wasm").display().to_string()), "{places:?}");
        assert!(places.contains(&"/elsewhere/y.wasm".to_owned()), "{places:?}");
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(PIN_FILE);
        let pin = format!("[[plugin]]\nname=\"a\"\nversion=\"1\"\nreference=\"/x.wasm\"\ndigest=\"{}\"\nkinds=[]\n", Digest::of(b""));
        for (bad, word) in [
            (String::new(), "version"),
            ("version = 2".to_owned(), "version 2"),
            ("version = 1\nmore = 1".to_owned(), "more"),
            (format!("version = 1\n{pin}{pin}"), "twice"),
            (format!("version = 1\n{}", pin.replace("sha256:e3", "sha256:")), "64 hexadecimal"),
        ] {
            std::fs::write(&path, &bad).unwrap();
            let error = Pins::load(&path).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(PIN_FILE), "{bad}: {error}");
        }
    }

    trait Parse {
        fn parse_reference(&self) -> Reference;
    }

    impl Parse for str {
        fn parse_reference(&self) -> Reference {
            Reference::parse(self).unwrap().0
        }
    }
}
