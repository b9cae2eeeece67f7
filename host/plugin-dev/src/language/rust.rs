//! Rust: cargo for `wasm32-unknown-unknown`, against the SDK that lies in the project.

use std::path::Path;

use trainer_plugin_build::component::encode_without_manifest;
use trainer_plugin_build::guest::{Guest, module};
use trainer_plugin_build::toolchain::{Std, Toolchain};

use crate::{Error, Project};

/// Builds the project's crate into a component without manifest. Where the standard library has to be built from its sources, which takes a
/// minute, that is done once for all projects, in `shared`.
pub(super) fn build(project: &Project, work: &Path, shared: Option<&Path>) -> Result<Vec<u8>, Error> {
    let toolchain = Toolchain::find()?;
    let target = match (&toolchain.std, shared) {
        (Std::FromSource { .. }, Some(shared)) => shared.join("rust-target"),
        _ => work.join("target"),
    };
    let manifest = project.root.join("Cargo.toml");
    let locked = project.root.join("Cargo.lock").is_file();
    let module = module(&toolchain, Guest { manifest: &manifest, package: None, target_dir: &target, locked })?;
    let bytes = std::fs::read(&module).map_err(Error::io("read", &module))?;
    Ok(encode_without_manifest(&bytes, &[])?)
}
