//! The guest SDK's bindings, generated from `wit/` and checked in, so that building a plugin does not build a binding generator.
//!
//! One world exports every kind, which gives one set of shared types. A plugin exports only the kinds it has, so each kind's component
//! type is written apart and the SDK's `plugin!` macro embeds those that it needs. Newer versions of a kind have a file each, so that what existing
//! plugins are built from stays as it is.

use std::path::{Path, PathBuf};

use wit_bindgen_core::Files;
use wit_component::StringEncoding;
use wit_parser::{PackageId, Resolve, WorldId};

use crate::Error;

/// The contract's version that the SDK speaks.
pub const WIT_VERSION: &str = "0.1.0";

/// A plugin kind: the WIT package's name and that of the interface a plugin exports.
pub struct Kind {
    /// Such as `dataset-formatter`.
    pub package: &'static str,
    /// Such as `formatter`.
    pub interface: &'static str,
}

/// Every kind, in the order of the row's way through the trainer.
pub const KINDS: [Kind; 5] = [
    Kind { package: "mixing-policy", interface: "policy" },
    Kind { package: "dataset-formatter", interface: "formatter" },
    Kind { package: "chat-template", interface: "template" },
    Kind { package: "tool-executor", interface: "executor" },
    Kind { package: "eval-metric", interface: "metric" },
];

/// A version of a kind beside [`WIT_VERSION`].
pub struct Newer {
    /// The kind's package.
    pub package: &'static str,
    /// Its interface.
    pub interface: &'static str,
    /// The version.
    pub version: &'static str,
    /// The SDK's module with its bindings.
    pub module: &'static str,
}

/// All of them.
pub const NEWER: [Newer; 1] = [Newer { package: "eval-metric", interface: "metric", version: "0.2.0", module: "metric_0_2" }];

/// The packages of capabilities, each with a world `imports` that a plugin which uses it adds to that of its kind.
pub const CAPABILITIES: [&str; 1] = ["http"];

/// Generates the files of `plugins/sdk/src/bindings/`: name and content, in a fixed order. `wit` is the folder of WIT packages.
pub fn generate(wit: &Path) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let mut resolve = Resolve::default();
    for package in ["conversation", "host"] {
        push(&mut resolve, wit, package)?;
    }
    let mut files = Vec::new();
    let mut world = format!("package trainer:sdk@{WIT_VERSION};\nworld all {{\n  import trainer:host/log@{WIT_VERSION};\n");
    for kind in &KINDS {
        let package = push(&mut resolve, wit, kind.package)?;
        let plugin = select_world(&resolve, package, "plugin")?;
        let section = wit_component::metadata::encode(&resolve, plugin, StringEncoding::UTF8, None)
            .map_err(|e| Error::invalid(format!("the component type of {}", kind.package), e))?;
        files.push((format!("{}.component-type", kind.package), section));
        world.push_str(&format!("  export trainer:{}/{}@{WIT_VERSION};\n", kind.package, kind.interface));
    }
    for capability in CAPABILITIES {
        let package = push(&mut resolve, wit, capability)?;
        let imports = select_world(&resolve, package, "imports")?;
        let section = wit_component::metadata::encode(&resolve, imports, StringEncoding::UTF8, None)
            .map_err(|e| Error::invalid(format!("the component type of {capability}"), e))?;
        files.push((format!("{capability}.component-type"), section));
        world.push_str(&format!("  include trainer:{capability}/imports@{WIT_VERSION};\n"));
    }
    world.push_str("}\n");
    let package = resolve.push_str("sdk.wit", &world).map_err(|e| Error::invalid("the SDK's world", e))?;
    let all = select_world(&resolve, package, "all")?;

    let rust = rust(
        &mut resolve,
        all,
        wit_bindgen_rust::Opts {
            default_bindings_module: Some("trainer_plugin_sdk::bindings".to_owned()),
            additional_derive_ignore: ["mixer", "session", "output-parser"].map(str::to_owned).to_vec(),
            ..Default::default()
        },
    )?;
    files.push(("generated.rs".to_owned(), rust));
    for newer in &NEWER {
        files.extend(generate_newer(wit, newer)?);
    }
    files.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(files)
}

/// The files of a newer version of a kind. What it shares with the others are the others' types.
fn generate_newer(wit: &Path, newer: &Newer) -> Result<[(String, Vec<u8>); 2], Error> {
    let Newer { package, interface, version, module } = newer;
    let mut resolve = Resolve::default();
    for shared in ["conversation", "host"] {
        push(&mut resolve, wit, shared)?;
    }
    let folder = wit.join(package).join(version);
    let (id, _) = resolve.push_dir(&folder).map_err(|e| Error::invalid(folder.display().to_string(), e))?;
    let plugin = select_world(&resolve, id, "plugin")?;
    let section = wit_component::metadata::encode(&resolve, plugin, StringEncoding::UTF8, None)
        .map_err(|e| Error::invalid(format!("the component type of {package} {version}"), e))?;
    let world = format!("package trainer:sdk@{WIT_VERSION};\nworld newer {{\n  export trainer:{package}/{interface}@{version};\n}}\n");
    let sdk = resolve.push_str("sdk.wit", &world).map_err(|e| Error::invalid("the SDK's world", e))?;
    let world = select_world(&resolve, sdk, "newer")?;
    let types = format!("trainer:conversation/types@{WIT_VERSION}");
    let rust = rust(
        &mut resolve,
        world,
        wit_bindgen_rust::Opts {
            default_bindings_module: Some(format!("trainer_plugin_sdk::bindings::{module}")),
            with: vec![(types, wit_bindgen_rust::WithOption::Path("crate::bindings::trainer::conversation::types".to_owned()))],
            export_macro_name: Some(format!("__export_{module}")),
            ..Default::default()
        },
    )?;
    Ok([(format!("{package}-{version}.component-type"), section), (format!("{module}.rs"), rust)])
}

/// A world's bindings in Rust.
fn rust(resolve: &mut Resolve, world: WorldId, options: wit_bindgen_rust::Opts) -> Result<Vec<u8>, Error> {
    let options = wit_bindgen_rust::Opts {
        format: true,
        generate_all: true,
        pub_export_macro: true,
        runtime_path: Some("wit_bindgen::rt".to_owned()),
        additional_derive_attributes: vec!["PartialEq".to_owned()],
        ..options
    };
    let mut generated = Files::default();
    wit_bindgen_core::WorldGenerator::generate(&mut options.build(), resolve, world, &mut generated)
        .map_err(|e| Error::invalid("the SDK's bindings", e))?;
    let mut rust = Vec::new();
    for (_, content) in generated.iter() {
        rust.extend_from_slice(content);
    }
    Ok(rust)
}

/// Writes what [`generate`] gives into `folder` (`plugins/sdk/src/bindings`); answers the files that changed.
pub fn write(wit: &Path, folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut changed = Vec::new();
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    for (name, content) in generate(wit)? {
        let path = folder.join(name);
        if std::fs::read(&path).ok().as_deref() != Some(&content) {
            std::fs::write(&path, &content).map_err(Error::io("write", &path))?;
            changed.push(path);
        }
    }
    Ok(changed)
}

pub(crate) fn push(resolve: &mut Resolve, wit: &Path, package: &str) -> Result<PackageId, Error> {
    let folder = wit.join(package).join(WIT_VERSION);
    let (id, _) = resolve.push_dir(&folder).map_err(|e| Error::invalid(folder.display().to_string(), e))?;
    Ok(id)
}

pub(crate) fn select_world(resolve: &Resolve, package: PackageId, name: &str) -> Result<WorldId, Error> {
    resolve.select_world(&[package], Some(name)).map_err(|e| Error::invalid(format!("world {name}"), e))
}
