//! `trainer plugin build`: the language's tools, then the manifest, then the host's own look at the result.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use trainer_plugin_build::component::with_manifest;
use trainer_plugin_host::{Inspection, Limits, PluginSource};

use crate::{Error, Project};

/// A finished build.
#[derive(Debug)]
pub struct Built {
    /// The component.
    pub path: PathBuf,
    /// What the host sees in it.
    pub about: Inspection,
    /// How long it took.
    pub took: Duration,
}

/// Builds a project into `NAME.wasm` beside its `plugin.toml`. The file is replaced only by a component that the host accepts and that has
/// the kinds that the project names.
/// `shared` is a folder in the user's cache for what projects have in common, if there is one.
///
/// # Errors
/// If a tool is missing or fails, or the result is no plugin of the kinds that the project names.
pub fn build(project: &Project, shared: Option<&Path>) -> Result<Built, Error> {
    let started = Instant::now();
    let work = project.work();
    std::fs::create_dir_all(&work).map_err(Error::io("create", &work))?;
    let component = project.language.build(project, &work, shared)?;
    let manifest = project.manifest_json().to_string();
    let component = with_manifest(component, manifest.as_bytes());
    let name = project.manifest.name.clone();
    let about = PluginSource::Bytes { name, bytes: component.clone() }.inspect(&Limits::default())?;
    for kind in &project.kinds {
        if !about.kinds.iter().any(|k| k.kind == *kind) {
            let has = about.kinds.iter().map(|k| k.kind.short_name()).collect::<Vec<_>>().join(", ");
            let path = project.root.join(crate::PROJECT_FILE);
            return Err(Error::file(path, format!("[build] kinds names {}, and the code exports {has}", kind.short_name())));
        }
    }
    let path = project.component();
    let mut file = tempfile::NamedTempFile::new_in(&project.root).map_err(Error::io("write into", &project.root))?;
    std::io::Write::write_all(&mut file, &component).map_err(Error::io("write", &path))?;
    file.persist(&path).map_err(|e| Error::io("write", &path)(e.error))?;
    Ok(Built { path, about, took: started.elapsed() })
}
