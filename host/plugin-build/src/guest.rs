//! Running cargo on a guest.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Deserialize;

use crate::Error;
use crate::component::{self, Component};
use crate::toolchain::Toolchain;

/// A guest to build.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// The `Cargo.toml` of the crate or of its workspace.
    pub manifest: &'a Path,
    /// The package, needed where the workspace has several.
    pub package: Option<&'a str>,
    /// Where cargo builds. Guests that share it share their standard library.
    pub target_dir: &'a Path,
    /// Whether the lock file must already be right.
    pub locked: bool,
}

/// Builds one guest into a component.
pub fn build(toolchain: &Toolchain, guest: Guest<'_>) -> Result<Component, Error> {
    let module = module(toolchain, guest)?;
    let bytes = std::fs::read(&module).map_err(Error::io("read", &module))?;
    component::encode(&bytes).map_err(|e| Error::invalid(module.display().to_string(), e))
}

/// Runs cargo and answers the path of the module.
pub fn module(toolchain: &Toolchain, guest: Guest<'_>) -> Result<PathBuf, Error> {
    let folder = guest.manifest.parent().unwrap_or_else(|| Path::new("."));
    let mut cargo = toolchain.cargo();
    // Cargo reads configuration from the current folder upwards, and names workspace files relative to the workspace.
    cargo.current_dir(folder).arg("--message-format=json-render-diagnostics");
    cargo.arg("--manifest-path").arg(guest.manifest).arg("--target-dir").arg(guest.target_dir);
    if let Some(package) = guest.package {
        cargo.args(["--package", package]);
    }
    if guest.locked {
        cargo.arg("--locked");
    }
    let program = || format!("cargo build --target {} ({})", crate::toolchain::TARGET, guest.package.unwrap_or("guest"));
    let out = cargo.stderr(Stdio::inherit()).output().map_err(|source| Error::Start { program: program(), source })?;
    if !out.status.success() {
        return Err(Error::Failed { program: program(), status: out.status.to_string(), stderr: String::new() });
    }
    // The guest itself is compiled last.
    let modules = String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Artifact>(line).ok())
        .flat_map(|artifact| artifact.filenames)
        .filter(|file| file.extension().is_some_and(|e| e == "wasm"))
        .collect::<Vec<_>>();
    modules.into_iter().next_back().ok_or_else(|| {
        let reason = "cargo made no .wasm file; a guest needs `crate-type = [\"cdylib\"]` in the `[lib]` section of its Cargo.toml";
        Error::invalid(guest.manifest.display().to_string(), reason)
    })
}

/// The messages of cargo that matter here; all others lack `filenames`.
#[derive(Deserialize)]
struct Artifact {
    filenames: Vec<PathBuf>,
}
