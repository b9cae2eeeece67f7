//! The plugins of this repository: building them into `plugins/prebuilt`, and proving later that they are what their sources give.
//!
//! The checked-in components let the program be built where no guest can be. `toolchain.json` beside them says which compiler made them
//! from which sources. Under that compiler a rebuild must give the same bytes; under another one it must give the same shape, and the
//! tests that run the components are run on the rebuilt bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Error;
use crate::component::{self, Component};
use crate::guest::{self, Guest};
use crate::toolchain::{Std, Toolchain};

/// A plugin of this repository.
#[derive(Clone, Copy, Debug)]
pub struct Official {
    /// The package in the workspace `plugins/`; its folder has the same name.
    pub package: &'static str,
    /// The component below `plugins/prebuilt`, without `.wasm`.
    pub component: &'static str,
}

/// All of them. What lies in `test/` serves tests and is not shipped.
pub const OFFICIAL: [Official; 13] = [
    Official { package: "math-mix", component: "math_mix" },
    Official { package: "sharegpt", component: "sharegpt" },
    Official { package: "qwen3-chat", component: "qwen3_chat" },
    Official { package: "boxed-answer", component: "boxed_answer" },
    Official { package: "calculator", component: "calculator" },
    Official { package: "tool-calls", component: "tool_calls" },
    Official { package: "bfcl", component: "bfcl" },
    Official { package: "exact-match", component: "exact_match" },
    Official { package: "math-equal", component: "math_equal" },
    Official { package: "perplexity", component: "perplexity" },
    Official { package: "weather", component: "weather" },
    Official { package: "evil", component: "test/evil" },
    Official { package: "evil-tools", component: "test/evil_tools" },
];

/// `plugins/prebuilt/toolchain.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What made the components.
    pub toolchain: Compiler,
    /// By name below `plugins/prebuilt`.
    pub components: BTreeMap<String, Entry>,
}

/// The compiler that made the components.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compiler {
    /// Its version line.
    pub rustc: String,
    /// Its commit.
    pub commit: String,
    /// Whether std was built from the compiler's sources; false for one that came precompiled.
    pub std_from_source: bool,
}

/// One component.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// SHA-256 of the component.
    pub sha256: String,
    /// SHA-256 over everything it is built from: see [`sources_digest`].
    pub sources: String,
}

impl From<&Toolchain> for Compiler {
    fn from(t: &Toolchain) -> Self {
        Self { rustc: t.version.clone(), commit: t.commit.clone(), std_from_source: t.std != Std::Precompiled }
    }
}

/// Builds the named official plugins (all without a name) into `plugins/prebuilt` and answers a line for each.
pub fn build(root: &Path, names: &[String]) -> Result<Vec<String>, Error> {
    // A rebuild stays with the compiler of the record where it is installed, so that components change only with their sources.
    let recorded = read_record(root)?.map(|r| r.toolchain);
    let toolchain = Toolchain::find_preferring(|t| recorded.as_ref() == Some(&Compiler::from(t)))?;
    let prebuilt = root.join("plugins/prebuilt");
    let mut record = read_record(root)?.unwrap_or_default();
    let compiler = Compiler::from(&toolchain);
    if record.toolchain != compiler {
        if !names.is_empty() && !record.components.is_empty() {
            let reason = format!("were built with {}, not {}: rebuild all of them (build --all)", record.toolchain.rustc, compiler.rustc);
            return Err(Error::invalid("the other prebuilt components", reason));
        }
        record = Record { toolchain: compiler, components: BTreeMap::new() };
    }
    let mut lines = Vec::new();
    for official in select(names)? {
        let built = compile(&toolchain, root, &root.join("plugins/target/guests"), official, false)?;
        let path = prebuilt.join(format!("{}.wasm", official.component));
        write(&path, &built.bytes)?;
        let entry = Entry { sha256: hex(&built.bytes), sources: sources_digest(root, official)? };
        lines.push(format!("{} {}: {} bytes, sha256 {}", built.manifest.name, built.manifest.version, built.bytes.len(), entry.sha256));
        record.components.insert(official.component.to_owned(), entry);
        let mut json = serde_json::to_vec_pretty(&record).map_err(|e| Error::invalid("toolchain.json", e))?;
        json.push(b'\n');
        write(&prebuilt.join("toolchain.json"), &json)?;
    }
    Ok(lines)
}

/// What [`check`] found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Whether this machine has the compiler that made the checked-in components.
    pub pinned: bool,
    /// The compiler here.
    pub here: Compiler,
    /// The compiler that made them.
    pub recorded: Compiler,
    /// Component and finding: none if all is well.
    pub components: Vec<(String, Option<String>)>,
}

impl Report {
    /// Whether every component is what its sources give.
    pub fn passed(&self) -> bool {
        self.components.iter().all(|(_, problem)| problem.is_none())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pinned {
            writeln!(f, "{}, the compiler that made the checked-in components: bytes compared", self.here.rustc)?;
        } else {
            writeln!(
                f,
                "{} here, but {} made the checked-in components: shapes compared (exports, imports, manifest); \
                 run the component tests on the rebuilt bytes too",
                self.here.rustc, self.recorded.rustc
            )?;
        }
        for (name, problem) in &self.components {
            writeln!(f, "{name}: {}", problem.as_deref().unwrap_or("ok"))?;
        }
        Ok(())
    }
}

/// Copies the plugins' sources to a temporary folder, builds them there and compares. `keep`: where to leave the rebuilt components, laid
/// out as `plugins/prebuilt`.
pub fn check(root: &Path, keep: Option<&Path>) -> Result<Report, Error> {
    let record = read_record(root)?.ok_or_else(|| Error::invalid("plugins/prebuilt/toolchain.json", "is missing: run `build --all`"))?;
    // Bytes say more than shapes, so the compiler of the record goes first wherever it is installed.
    let toolchain = Toolchain::find_preferring(|t| Compiler::from(t) == record.toolchain)?;
    let here = Compiler::from(&toolchain);
    let pinned = here == record.toolchain;
    let copy = tempfile::tempdir().map_err(Error::io("create", std::env::temp_dir()))?;
    copy_sources(root, copy.path())?;
    let mut components = Vec::new();
    for official in &OFFICIAL {
        let rebuilt = compile(&toolchain, copy.path(), &root.join("plugins/target/guests"), official, true)?;
        if let Some(keep) = keep {
            write(&keep.join(format!("{}.wasm", official.component)), &rebuilt.bytes)?;
        }
        let problem = compare(root, official, &record, &rebuilt, pinned)?;
        components.push((official.component.to_owned(), problem));
    }
    Ok(Report { pinned, here, recorded: record.toolchain, components })
}

/// What differs between a rebuilt component and the checked-in one.
fn compare(root: &Path, official: &Official, record: &Record, rebuilt: &Component, pinned: bool) -> Result<Option<String>, Error> {
    let path = root.join(format!("plugins/prebuilt/{}.wasm", official.component));
    let checked_in = std::fs::read(&path).map_err(Error::io("read", &path))?;
    let Some(entry) = record.components.get(official.component) else {
        return Ok(Some("toolchain.json does not name it: run `build --all`".to_owned()));
    };
    let again = format!("run `trainer-plugin-build build {}`", official.package);
    if hex(&checked_in) != entry.sha256 {
        return Ok(Some(format!("the file is not the one that toolchain.json records: {again}")));
    }
    if sources_digest(root, official)? != entry.sources {
        return Ok(Some(format!("its sources have changed since it was built: {again}")));
    }
    if pinned {
        return Ok(
            (rebuilt.bytes != checked_in).then(|| format!("the same sources and compiler give sha256 {}: {again}", hex(&rebuilt.bytes)))
        );
    }
    let (was, is) = (component::shape(&checked_in)?, component::shape(&rebuilt.bytes)?);
    Ok((was != is).then(|| format!("the rebuilt component has another shape: {is:?} instead of {was:?}")))
}

/// SHA-256 over what a plugin is built from: the workspace's manifest and lock file, the SDK and the plugin's own folder. Each file counts
/// with its relative path and length.
pub fn sources_digest(root: &Path, official: &Official) -> Result<String, Error> {
    let plugins = root.join("plugins");
    let mut files = vec![PathBuf::from("Cargo.toml"), PathBuf::from("Cargo.lock")];
    for folder in ["sdk", official.package] {
        files.push(Path::new(folder).join("Cargo.toml"));
        list(&plugins, &Path::new(folder).join("src"), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let path = plugins.join(&file);
        let content = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let name = file.to_string_lossy().replace('\\', "/");
        hash.update(format!("{name}\n{}\n", content.len()));
        hash.update(&content);
    }
    Ok(format!("{:x}", hash.finalize()))
}

fn compile(toolchain: &Toolchain, root: &Path, target_dir: &Path, official: &Official, locked: bool) -> Result<Component, Error> {
    let manifest = root.join("plugins/Cargo.toml");
    let built = guest::build(toolchain, Guest { manifest: &manifest, package: Some(official.package), target_dir, locked })?;
    let stem = official.component.rsplit('/').next().unwrap_or(official.component);
    if built.manifest.name != stem {
        let reason = format!("its manifest calls it {:?}, its file {stem:?}", built.manifest.name);
        return Err(Error::invalid(official.package, reason));
    }
    Ok(built)
}

fn select(names: &[String]) -> Result<Vec<&'static Official>, Error> {
    if names.is_empty() {
        return Ok(OFFICIAL.iter().collect());
    }
    let find = |name: &String| {
        let wanted = name.replace('_', "-");
        OFFICIAL.iter().find(|o| o.package == wanted).ok_or_else(|| {
            let known = OFFICIAL.iter().map(|o| o.package).collect::<Vec<_>>().join(", ");
            Error::invalid(name, format!("is no official plugin; there are {known}"))
        })
    };
    names.iter().map(find).collect()
}

fn read_record(root: &Path) -> Result<Option<Record>, Error> {
    let path = root.join("plugins/prebuilt/toolchain.json");
    match std::fs::read(&path) {
        Ok(raw) => serde_json::from_slice(&raw).map(Some).map_err(|e| Error::invalid(path.display().to_string(), e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", &path)(e)),
    }
}

/// Copies what cargo reads when it builds guests: the plugins, and the manifests that their test dependencies lead to.
fn copy_sources(root: &Path, to: &Path) -> Result<(), Error> {
    let mut files = Vec::new();
    for entry in ["plugins/Cargo.toml", "plugins/Cargo.lock", "Cargo.toml"] {
        files.push(PathBuf::from(entry));
    }
    list(root, Path::new("tests/support"), &mut files)?;
    for folder in std::iter::once("sdk").chain(OFFICIAL.iter().map(|o| o.package)) {
        list(root, &Path::new("plugins").join(folder), &mut files)?;
    }
    for file in files {
        let content = std::fs::read(root.join(&file)).map_err(Error::io("read", root.join(&file)))?;
        write(&to.join(&file), &content)?;
    }
    Ok(())
}

/// All files below `root/folder`, as paths relative to `root`.
fn list(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    let path = root.join(folder);
    for entry in std::fs::read_dir(&path).map_err(Error::io("list", &path))? {
        let entry = entry.map_err(Error::io("list", &path))?;
        let below = folder.join(entry.file_name());
        if entry.file_type().map_err(Error::io("inspect", entry.path()))?.is_dir() {
            list(root, &below, files)?;
        } else {
            files.push(below);
        }
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> Result<(), Error> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    std::fs::write(path, content).map_err(Error::io("write", path))
}

fn hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
