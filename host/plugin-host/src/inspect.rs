//! What can be learnt about a component without compiling it: its manifest, kinds, imports and counts.

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use wasmparser::{BinaryReaderError, Encoding, Parser, Payload, Validator};

use crate::capability::{CLIENT, Need, SECRETS};
use crate::engine::hex;
use crate::error::PluginError;
use crate::features::features;
use crate::instance::{bounded, shown};
use crate::kind::{Kind, KindVersion};
use crate::limits::Limits;
use crate::manifest::{Manifest, SECTION};
use crate::wasi;

/// The interfaces that every component may import: logging, and those that hold nothing but types.
const GRANTED_IMPORTS: [&str; 2] = [LOG, "trainer:conversation/types@0.1.0"];

/// The one import with functions that needs no grant.
pub(crate) const LOG: &str = "trainer:host/log@0.1.0";

/// The report of `trainer plugin inspect`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The name in the manifest.
    pub name: String,
    /// The version in the manifest.
    pub version: String,
    /// The description in the manifest.
    pub description: String,
    /// The kinds that it exports, with the versions of their interfaces.
    pub kinds: Vec<KindVersion>,
    /// Everything that it imports.
    pub imports: Vec<String>,
    /// The imports that nothing offers, or that its manifest does not declare: with any of them, the plugin is refused.
    pub refused_imports: Vec<String>,
    /// The imports of WASI: the host meets them with an empty world, without arguments, environment, files and network, with clocks that stand
    /// still and random bytes from a fixed seed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub empty_world: Vec<String>,
    /// The capabilities that its manifest asks for.
    pub needs: Vec<String>,
    /// How a user would grant them on the command line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub grant_with: Vec<String>,
    /// Whether its manifest claims that equal arguments give equal results.
    pub deterministic: bool,
    /// JSON Schema of its settings.
    pub settings_schema: Option<Value>,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the component, hexadecimal.
    pub digest: String,
}

/// Reads a component's description without running or compiling anything of it.
///
/// # Errors
/// If it is no valid component, has no manifest, or exports no kind that this host knows. Imports that would be refused are reported in
/// [`Inspection::refused_imports`], not as an error.
pub fn inspect(bytes: &[u8]) -> Result<Inspection, PluginError> {
    inspect_named("component", bytes, None)
}

/// As [`inspect`], with a name for errors and the manifest file that may stand beside the component.
pub(crate) fn inspect_named(file: &str, bytes: &[u8], manifest_file: Option<&[u8]>) -> Result<Inspection, PluginError> {
    validate(file, bytes)?;
    let scan = Scan::of(file, bytes)?;
    let manifest = scan.manifest(file, manifest_file)?;
    let kinds = scan.kinds(&manifest.name)?;
    if let Some(schema) = &manifest.settings_schema {
        crate::settings::compile_schema(&manifest, schema)?;
    }
    // A need that this host does not know is shown as it stands; loading refuses it.
    let needs: Vec<Need> = manifest.needs.iter().filter_map(|n| Need::parse(n).ok().flatten()).collect();
    let refused_imports = scan.imports.iter().filter(|i| !may_import(i, &needs)).cloned().collect();
    let empty_world = scan.imports.iter().filter(|i| wasi::knows(i)).cloned().collect();
    let grant_with = needs.iter().filter_map(|n| n.flag(&manifest.name)).collect();
    Ok(Inspection {
        name: manifest.name,
        version: manifest.version,
        description: manifest.description,
        kinds,
        imports: scan.imports,
        refused_imports,
        empty_world,
        needs: manifest.needs,
        grant_with,
        deterministic: manifest.deterministic,
        settings_schema: manifest.settings_schema,
        size: bytes.len() as u64,
        digest: digest(bytes),
    })
}

/// Whether a component with these needs may import an interface.
fn may_import(import: &str, needs: &[Need]) -> bool {
    match import {
        CLIENT => needs.iter().any(|n| matches!(n, Need::Http(_))),
        SECRETS => needs.iter().any(|n| matches!(n, Need::Secret(_))),
        other => GRANTED_IMPORTS.contains(&other) || wasi::knows(other),
    }
}

/// SHA-256, hexadecimal.
pub(crate) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Validates the whole component, function bodies included, under the features that plugins may use.
pub(crate) fn validate(file: &str, bytes: &[u8]) -> Result<(), PluginError> {
    check_head(file, bytes)?;
    Validator::new_with_features(features()).validate_all(bytes).map(|_| ()).map_err(|e| invalid(file, &e))
}

/// What the parser or validator says, in one line, which may quote what stands in the component.
fn invalid(file: &str, error: &BinaryReaderError) -> PluginError {
    let words = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
    let off =
        ["must be enabled", "not enabled", "to be enabled", "requires the component model", "requires the shared", "requires the `cm"];
    let hint = if off.iter().any(|sign| words.contains(sign)) {
        "; plugins run without this feature of WebAssembly: build without it"
    } else {
        ""
    };
    PluginError::Invalid {
        plugin: file.to_owned(),
        reason: format!("{} (at offset {:#x}){hint}", bounded(&shown_words(&words)), error.offset()),
    }
}

fn shown_words(words: &str) -> String {
    words.chars().flat_map(|c| if c.is_control() { c.escape_debug().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// Tells files that are something else by their first bytes.
fn check_head(file: &str, bytes: &[u8]) -> Result<(), PluginError> {
    let reason = if bytes.is_empty() {
        "the file is empty"
    } else if !bytes.starts_with(b"\0asm") {
        let text = bytes.trim_ascii_start();
        if text.starts_with(b"(component") || text.starts_with(b"(module") || text.starts_with(b";;") {
            "it is WebAssembly in its text form; `wasm-tools parse FILE.wat -o FILE.wasm` makes the binary form of it"
        } else {
            "it does not begin as WebAssembly does, with the bytes \\0asm: it is some other file"
        }
    } else if bytes.len() < 8 {
        "it ends within its first bytes"
    } else {
        return Ok(());
    };
    Err(PluginError::Invalid { plugin: file.to_owned(), reason: reason.to_owned() })
}

/// The outer parts of a component.
pub(crate) struct Scan<'a> {
    /// Import names, in order.
    pub(crate) imports: Vec<String>,
    /// Export names, in order.
    pub(crate) exports: Vec<String>,
    sections: Vec<&'a [u8]>,
    core_instances: u64,
}

impl<'a> Scan<'a> {
    /// Reads the section structure: no function bodies, so it is quick.
    pub(crate) fn of(file: &str, bytes: &'a [u8]) -> Result<Self, PluginError> {
        check_head(file, bytes)?;
        let parse = |e: BinaryReaderError| invalid(file, &e);
        let mut scan = Scan { imports: Vec::new(), exports: Vec::new(), sections: Vec::new(), core_instances: 0 };
        // `parse_all` descends into nested modules and components; the depth says whose section it is.
        let mut depth = 0usize;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload.map_err(parse)? {
                Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => {
                    return Err(PluginError::Invalid {
                        plugin: file.to_owned(),
                        reason:
                            "it is a core module, not a component; `trainer plugin build` and `wasm-tools component new` make one of it"
                                .to_owned(),
                    });
                }
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::ComponentImportSection(section) if depth == 0 => {
                    for import in section {
                        scan.imports.push(shown(import.map_err(parse)?.name.name));
                    }
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    for export in section {
                        scan.exports.push(shown(export.map_err(parse)?.name.name));
                    }
                }
                Payload::InstanceSection(section) => scan.core_instances += u64::from(section.count()),
                Payload::CustomSection(section) if section.name() == SECTION => scan.sections.push(section.data()),
                _ => {}
            }
        }
        Ok(scan)
    }

    /// The manifest: the section, or else the file beside.
    pub(crate) fn manifest(&self, file: &str, beside: Option<&[u8]>) -> Result<Manifest, PluginError> {
        match (Manifest::from_sections(file, &self.sections)?, beside) {
            (Some(manifest), _) => Ok(manifest),
            (None, Some(json)) => Manifest::parse(file, json),
            (None, None) => Err(Manifest::missing(file)),
        }
    }

    /// The kinds among the exports; at least one, all of known versions.
    pub(crate) fn kinds(&self, plugin: &str) -> Result<Vec<KindVersion>, PluginError> {
        let mut kinds = Vec::new();
        for export in &self.exports {
            let Some((package, version)) = export.split_once('@') else { continue };
            let Some(kind) = Kind::ALL.into_iter().find(|k| k.interface() == package) else { continue };
            if !kind.versions().contains(&version) {
                return Err(PluginError::UnknownKindVersion {
                    plugin: plugin.to_owned(),
                    kind,
                    found: version.to_owned(),
                    known: kind.versions().join(", "),
                });
            }
            kinds.push(KindVersion { kind, version: version.to_owned() });
        }
        if kinds.is_empty() {
            return Err(PluginError::NoKind { plugin: plugin.to_owned(), exports: self.exports.clone() });
        }
        kinds.sort();
        kinds.dedup();
        Ok(kinds)
    }

    /// Refuses every import that nothing offers or that the manifest does not declare.
    pub(crate) fn check_imports(&self, manifest: &Manifest, needs: &[Need]) -> Result<(), PluginError> {
        let Some(import) = self.imports.iter().find(|i| !may_import(i, needs)) else { return Ok(()) };
        let hint = if import.starts_with("wasi:") {
            format!(
                "of WASI the host has an empty world, which knows the interfaces of {}; build the component without the others",
                wasi::PACKAGES
            )
        } else if import.starts_with("trainer:host/log@") || import.starts_with("trainer:conversation/") {
            format!("this host offers {}; build the plugin against that version of the interfaces", GRANTED_IMPORTS.join(" and "))
        } else if import == CLIENT {
            "its manifest does not declare it; its author adds the server to the manifest's `needs`, such as \"http: https://api.example.com\""
                .to_owned()
        } else if import == SECRETS {
            "its manifest does not declare it; its author adds the secret to the manifest's `needs`, such as \"secret: API_KEY\"".to_owned()
        } else if import.starts_with("trainer:http/") {
            format!("this host offers {CLIENT} and {SECRETS}; build the plugin against that version of the interfaces")
        } else {
            format!("plugins are linked to {LOG}, and tools that declare it to {CLIENT} and {SECRETS}, and nothing else")
        };
        Err(PluginError::Import { plugin: manifest.name.clone(), version: manifest.version.clone(), import: import.clone(), hint })
    }

    /// Counts that can be read off before compiling.
    pub(crate) fn check_counts(&self, manifest: &Manifest, limits: &Limits) -> Result<(), PluginError> {
        if self.core_instances <= limits.instances {
            return Ok(());
        }
        Err(crate::call::limit_error(
            &crate::call::place(manifest, "instantiation"),
            "instances",
            limits.instances.to_string(),
            Some(self.core_instances.to_string()),
            self.core_instances.to_string(),
        ))
    }
}
