//! `plugin.toml`: what a plugin says of itself, and how it is built.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use trainer_plugin_host::{Kind, Manifest};

use crate::{Error, Language};

/// The file that makes a folder a project.
pub const PROJECT_FILE: &str = "plugin.toml";

/// The largest project or schema file.
const MAX_SIZE: u64 = 1 << 20;

/// A plugin project.
#[derive(Debug, Clone)]
pub struct Project {
    /// The folder, absolute.
    pub root: PathBuf,
    /// What goes into the component.
    pub manifest: Manifest,
    /// The language.
    pub language: Language,
    /// The kinds that it implements, in the order of the file.
    pub kinds: Vec<Kind>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    plugin: About,
    build: Build,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    name: String,
    version: String,
    #[serde(default)]
    description: String,
    settings: Option<PathBuf>,
    #[serde(default)]
    needs: Vec<String>,
    #[serde(default = "yes")]
    deterministic: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    language: String,
    kinds: Vec<String>,
}

fn yes() -> bool {
    true
}

impl Project {
    /// Reads the project in a folder.
    ///
    /// # Errors
    /// If there is none, or its files are wrong: with the file, the line and what is expected.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let root = std::path::absolute(folder).map_err(Error::io("find", folder))?;
        let path = root.join(PROJECT_FILE);
        if !path.is_file() {
            return Err(Error::NoProject { folder: root });
        }
        let file: File = toml::from_str(&read(&path)?).map_err(|e| Error::file(&path, e.to_string().trim_end()))?;
        let About { name, version, description, settings, needs, deterministic } = file.plugin;
        let schema = match settings {
            Some(settings) => {
                let path = root.join(settings);
                serde_json::from_str(&read(&path)?).map_err(|e| Error::file(&path, format!("it is no JSON: {e}")))?
            }
            None => serde_json::json!({ "type": "object", "additionalProperties": false }),
        };
        let language = file.build.language.parse().map_err(|e| Error::file(&path, format!("[build] language: {e}")))?;
        let kinds = file.build.kinds.iter().map(|kind| kind.parse::<Kind>());
        let kinds = kinds.collect::<Result<Vec<_>, _>>().map_err(|e| Error::file(&path, format!("[build] kinds: {e}")))?;
        if kinds.is_empty() {
            return Err(Error::file(&path, "[build] kinds: name at least one, such as kinds = [\"formatter\"]"));
        }
        let manifest = Manifest { name, version, description, settings_schema: Some(schema), needs, deterministic };
        // The host's own check, so that what it would refuse is refused before anything is built.
        manifest.check().map_err(|reason| Error::file(&path, format!("[plugin]: {reason}")))?;
        Ok(Self { root, manifest, language, kinds })
    }

    /// The finished component: `NAME.wasm` in the project's folder.
    pub fn component(&self) -> PathBuf {
        self.root.join(format!("{}.wasm", self.manifest.name))
    }

    /// A folder for what a build leaves behind, which version control ignores.
    pub fn work(&self) -> PathBuf {
        self.root.join(".trainer")
    }

    /// The manifest as the component carries it.
    pub fn manifest_json(&self) -> Value {
        serde_json::to_value(&self.manifest).unwrap_or_default()
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let size = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    if size > MAX_SIZE {
        return Err(Error::file(path, format!("it has {size} bytes; at most {MAX_SIZE} are read")));
    }
    std::fs::read_to_string(path).map_err(Error::io("read", path))
}
