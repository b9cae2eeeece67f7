//! Bindings of the plugin kinds in C and Go, and types for JavaScript, generated from `wit/` and checked in with the scaffolds of new projects: a released WIT file
//! never changes, so an author needs the language's compiler and no generator.

use std::path::{Path, PathBuf};

use wit_bindgen_core::{Files, WorldGenerator};
use wit_parser::{Resolve, WorldId};

use crate::bindings::{WIT_VERSION, push, select_world};
use crate::{Error, typescript};

/// The kinds by the names that authors know, with package and interface.
const KINDS: [(&str, &str, &str); 5] = [
    ("formatter", "dataset-formatter", "formatter"),
    ("template", "chat-template", "template"),
    ("mixing", "mixing-policy", "policy"),
    ("tool", "tool-executor", "executor"),
    ("metric", "eval-metric", "metric"),
];

/// Generates the bindings of every kind: paths below `host/plugin-dev/scaffold` and contents. `wit` is the folder of WIT packages.
pub fn generate(wit: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
    let mut files = Vec::new();
    for (kind, package, interface) in KINDS {
        let (mut resolve, world) = world(wit, package)?;
        for (name, content) in c(&mut resolve, world, package, interface)? {
            files.push((Path::new("c").join(kind).join("bindings").join(name), content));
        }
        let (mut resolve, world) = self::world(wit, package)?;
        files.push((Path::new("js").join(kind).join("types.d.ts"), typescript::declarations(&resolve, world).into_bytes()));
        for (name, content) in go(&mut resolve, world, package, interface)? {
            files.push((Path::new("go").join(kind).join(name), content));
        }
    }
    files.sort();
    Ok(files)
}

/// Writes what [`generate`] gives below `folder`; answers the files that changed.
pub fn write(wit: &Path, folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut changed = Vec::new();
    for (name, content) in generate(wit)? {
        let path = folder.join(name);
        if std::fs::read(&path).ok().as_deref() != Some(&content) {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            }
            std::fs::write(&path, &content).map_err(Error::io("write", &path))?;
            changed.push(path);
        }
    }
    Ok(changed)
}

fn world(wit: &Path, package: &str) -> Result<(Resolve, WorldId), Error> {
    let mut resolve = Resolve::default();
    for dependency in ["conversation", "host"] {
        push(&mut resolve, wit, dependency)?;
    }
    let package = push(&mut resolve, wit, package)?;
    let world = select_world(&resolve, package, "plugin")?;
    Ok((resolve, world))
}

fn run(generator: &mut dyn WorldGenerator, resolve: &mut Resolve, world: WorldId) -> Result<Vec<(String, String)>, Error> {
    let mut files = Files::default();
    generator.generate(resolve, world, &mut files).map_err(|e| Error::invalid("the bindings", e))?;
    files
        .iter()
        .map(|(name, content)| {
            let text = String::from_utf8(content.to_vec()).map_err(|e| Error::invalid(name, e))?;
            Ok((name.to_owned(), text))
        })
        .collect()
}

/// C, with the kind's own names instead of whole package names: `formatter_outcome_t`, `chat_message_t`, `host_log_write`.
fn c(resolve: &mut Resolve, world: WorldId, package: &str, interface: &str) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let rename = |package: &str, interface: &str, name: &str| (format!("trainer:{package}/{interface}@{WIT_VERSION}"), name.to_owned());
    let options = wit_bindgen_c::Opts {
        // The component's type is put into the module when the component is made.
        no_object_file: true,
        rename: vec![rename("conversation", "types", "chat"), rename("host", "log", "host_log"), rename(package, interface, interface)],
        ..Default::default()
    };
    let files = run(&mut *options.build(), resolve, world)?;
    let tidy = |text: String| {
        // What follows refers to an object file with the component's type.
        let text = text.split("// Ensure that the *_component_type.o object is linked in").next().unwrap_or_default().trim_end();
        let lines = text.replace("exports_", "").replace("EXPORTS_", "");
        lines.lines().map(|line| format!("{}\n", line.trim_end())).collect::<String>().into_bytes()
    };
    Ok(files.into_iter().map(|(name, text)| (name, tidy(text))).collect())
}

/// Go, as two files of package `main` and packages for the types. The runtime that the generator would fetch is the scaffold's own, and a
/// panic in an export is reported before it ends the call.
fn go(resolve: &mut Resolve, world: WorldId, package: &str, interface: &str) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let options = wit_bindgen_go::Opts { format: wit_bindgen_go::Format::False, ..Default::default() };
    let types = format!("trainer_{}_{}", package.replace('-', "_"), interface);
    let exports = format!("export_{types}");
    let mut files = Vec::new();
    for (path, text) in run(&mut *options.build(), resolve, world)? {
        let path = path.replace("wit_bindings.go", "bindings.go");
        let path = match path.split_once('/') {
            None if path == "wit_exports.go" => "bindings_exports.go".to_owned(),
            Some((folder, "bindings.go")) if folder == exports => "bindings_resource.go".to_owned(),
            Some((_, "empty.s")) if path.starts_with(&exports) => continue,
            Some((folder, file)) => format!("bindings/{}/{file}", short(folder, &types, interface)),
            None => continue,
        };
        let mut out = String::new();
        for line in text.lines() {
            let line = line.trim_end();
            if line.ends_with(&format!("\"wit_component/{exports}\"")) {
                continue;
            }
            let line = line
                .replace(&format!("{exports}."), "")
                .replace(&format!("package {exports}"), "package main")
                .replace("go.bytecodealliance.org/pkg/wit/", "trainer_plugin/bindings/wit/")
                .replace("wit_component/", "trainer_plugin/bindings/");
            let line = ["trainer_conversation_types", "trainer_host_log", types.as_str()]
                .iter()
                .fold(line, |line, long| line.replace(long, short(long, &types, interface)));
            out.push_str(&line);
            out.push('\n');
            if line.starts_with("func wasm_export_") && !line.starts_with("func wasm_export_post_return_") {
                out.push_str("        defer reported()\n");
            }
        }
        // A kind without a resource leaves an empty file.
        if path == "bindings_resource.go" && !out.contains("func ") {
            continue;
        }
        files.push((path, out.into_bytes()));
    }
    Ok(files)
}

/// The name of a Go package.
fn short<'a>(long: &'a str, types: &str, interface: &'a str) -> &'a str {
    match long {
        "trainer_conversation_types" => "chat",
        "trainer_host_log" => "hostlog",
        _ if long == types => interface,
        _ => long,
    }
}
