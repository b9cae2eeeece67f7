//! From a core module to a component that the host takes.

use std::path::Path;

use serde::{Deserialize, Serialize};
use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, DecodedWasm, StringEncoding};
use wit_parser::Resolve;

use crate::{Error, adapter};

/// The custom section that holds a plugin's manifest: in the module, where the SDK puts it, and at the component's top level, where the
/// host reads it.
pub const MANIFEST_SECTION: &str = "trainer:plugin";

/// Sections of the module that say how it was compiled and are of no use at run time.
const DROPPED: [&str; 3] = ["name", "producers", "target_features"];

/// What a plugin says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Lower-case letters, digits and underscores.
    pub name: String,
    /// The plugin's own version.
    pub version: String,
    /// One sentence.
    pub description: String,
    /// JSON Schema of its settings.
    pub settings_schema: serde_json::Value,
    /// The capabilities it asks for.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Whether equal arguments give equal results; only a tool may say no.
    #[serde(default = "yes")]
    pub deterministic: bool,
}

fn yes() -> bool {
    true
}

/// A finished component.
#[derive(Clone, Debug)]
pub struct Component {
    /// The file's bytes.
    pub bytes: Vec<u8>,
    /// Its manifest.
    pub manifest: Manifest,
}

/// What two builds of the same sources must agree in, whichever compiler made them.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// What the component says of itself.
    pub manifest: Manifest,
    /// Its imports by full name, sorted.
    pub imports: Vec<String>,
    /// Its exports by full name, sorted.
    pub exports: Vec<String>,
}

/// Wraps a module that was compiled against the SDK into a component. Nothing is adapted: an import beyond those of the SDK's interfaces
/// is an error.
pub fn encode(module: &[u8]) -> Result<Component, Error> {
    let (module, manifest) = take_manifest(module)?;
    let manifest = manifest.ok_or_else(|| {
        Error::invalid("the module", "holds no plugin manifest: describe the plugin with the SDK's `plugin!` macro in the crate's lib.rs")
    })?;
    let bytes = with_manifest(wrap(&module, &[])?, &manifest);
    let manifest = parse_manifest(&manifest)?;
    Ok(Component { bytes, manifest })
}

/// Wraps a module whose manifest comes from elsewhere into a component. `adapters` are core modules, by the name under which the module
/// imports them, that meet imports which are no interfaces of the component model, such as `wasi_snapshot_preview1`.
pub fn encode_without_manifest(module: &[u8], adapters: &[(&str, &[u8])]) -> Result<Vec<u8>, Error> {
    let (module, manifest) = take_manifest(module)?;
    if manifest.is_some() {
        let reason = "holds a manifest, and so does plugin.toml: leave name, version and description out of `plugin!`";
        return Err(Error::invalid("the module", reason));
    }
    wrap(&module, adapters)
}

/// Wraps a module that another language's compiler made into a component without manifest. `wit` is a folder with one package and its
/// dependencies below `deps/`, and `world` a world of it that the module implements. Imports of WASI's first preview are met by an empty world
/// inside the component: see [`adapter`].
pub fn encode_foreign(module: &[u8], wit: &Path, world: &str) -> Result<Vec<u8>, Error> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(wit).map_err(|e| Error::invalid(wit.display().to_string(), format!("{e:#}")))?;
    let world = crate::bindings::select_world(&resolve, package, world)?;
    let (mut module, _) = take_manifest(module)?;
    wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
        .map_err(|e| Error::invalid("the component type", e))?;
    wrap(&module, &[(adapter::MODULE, adapter::EMPTY_WORLD)])
}

fn wrap(module: &[u8], adapters: &[(&str, &[u8])]) -> Result<Vec<u8>, Error> {
    let failed = |e| Error::invalid("the module", format!("does not make a component: {e:#}"));
    let mut encoder = ComponentEncoder::default();
    encoder.validate(true).module(module).map_err(failed)?;
    for (name, adapter) in adapters {
        encoder.adapter(name, adapter).map_err(failed)?;
    }
    encoder.encode().map_err(failed)
}

/// A component with its manifest, a JSON text, in the custom section where the host looks for it.
pub fn with_manifest(mut component: Vec<u8>, manifest: &[u8]) -> Vec<u8> {
    push_custom_section(&mut component, MANIFEST_SECTION, manifest);
    component
}

/// Reads a component's manifest, imports and exports.
pub fn shape(component: &[u8]) -> Result<Shape, Error> {
    let mut manifest = None;
    let mut depth = 0usize;
    for payload in Parser::new(0).parse_all(component) {
        match payload.map_err(|e| Error::invalid("the component", e))? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::CustomSection(section) if depth == 0 && section.name() == MANIFEST_SECTION => {
                manifest = Some(parse_manifest(section.data())?);
            }
            _ => {}
        }
    }
    let manifest = manifest.ok_or_else(|| Error::invalid("the component", format!("has no section `{MANIFEST_SECTION}`")))?;
    let decoded = wit_component::decode(component).map_err(|e| Error::invalid("the component", e))?;
    let DecodedWasm::Component(resolve, world) = decoded else {
        return Err(Error::invalid("the component", "holds WIT and no code"));
    };
    let world = &resolve.worlds[world];
    let sorted = |keys: Vec<String>| {
        let mut keys = keys;
        keys.sort();
        keys
    };
    Ok(Shape {
        manifest,
        imports: sorted(world.imports.keys().map(|k| resolve.name_world_key(k)).collect()),
        exports: sorted(world.exports.keys().map(|k| resolve.name_world_key(k)).collect()),
    })
}

/// Splits the module into itself without the manifest and without sections of no use, and the manifest's bytes if it has one.
fn take_manifest(module: &[u8]) -> Result<(Vec<u8>, Option<Vec<u8>>), Error> {
    let bad = |e| Error::invalid("the module", format!("is not a WebAssembly module: {e}"));
    let mut kept = module.get(..8).unwrap_or_default().to_vec();
    let mut manifest: Option<Vec<u8>> = None;
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload.map_err(bad)?;
        if let Payload::CustomSection(section) = &payload {
            if section.name() == MANIFEST_SECTION {
                if manifest.is_some() {
                    return Err(Error::invalid("the module", "holds two plugin manifests: `plugin!` may be used once"));
                }
                manifest = Some(section.data().to_vec());
                continue;
            }
            if DROPPED.contains(&section.name()) || section.name().starts_with(".debug") {
                continue;
            }
        }
        if let Some((id, range)) = payload.as_section() {
            // A range that the parser took from this slice fits `usize`.
            let section = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
            let section = section.and_then(|(start, end)| module.get(start..end)).unwrap_or_default();
            kept.push(id);
            push_leb(&mut kept, section.len());
            kept.extend_from_slice(section);
        }
    }
    Ok((kept, manifest))
}

fn parse_manifest(raw: &[u8]) -> Result<Manifest, Error> {
    let bad = |reason: String| Error::invalid("the plugin manifest", reason);
    let manifest: Manifest = serde_json::from_slice(raw).map_err(|e| bad(format!("{e} in {}", String::from_utf8_lossy(raw))))?;
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if manifest.name.is_empty() || !manifest.name.chars().all(fits) {
        return Err(bad(format!("the name {:?} must consist of lower-case letters, digits and underscores", manifest.name)));
    }
    if !manifest.settings_schema.is_object() {
        return Err(bad("`settings_schema` must be a JSON Schema object".to_owned()));
    }
    Ok(manifest)
}

fn push_custom_section(component: &mut Vec<u8>, name: &str, data: &[u8]) {
    let mut body = Vec::new();
    push_leb(&mut body, name.len());
    body.extend_from_slice(name.as_bytes());
    body.extend_from_slice(data);
    component.push(0);
    push_leb(component, body.len());
    component.extend_from_slice(&body);
}

/// Unsigned LEB128.
fn push_leb(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}
