//! `trainer plugin new`: a project that builds and passes its tests before its author has written a line.

use std::path::{Path, PathBuf};

use include_dir::{Dir, include_dir};
use trainer_plugin_host::Kind;

use crate::{Error, Language, PROJECT_FILE};

/// What new projects are made of: per language the files of every kind, and folders with those of one kind.
static SCAFFOLD: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/scaffold");
/// The contract.
pub(crate) static WIT: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../wit");
/// The SDK for Rust, which is on no registry.
static SDK: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../plugins/sdk/src");

/// The kinds by the names of their folders and of the command line.
const KINDS: [(Kind, &str); 5] = [
    (Kind::DatasetFormatter, "formatter"),
    (Kind::ChatTemplate, "template"),
    (Kind::MixingPolicy, "mixing"),
    (Kind::ToolExecutor, "tool"),
    (Kind::EvalMetric, "metric"),
];

/// The versions of the dependencies that the SDK is built with.
const SDK_MANIFEST: &str = r#"[package]
name = "trainer-plugin-sdk"
description = "What a plugin is written with: a plain Rust trait per kind, and a macro that makes a component of them."
version = "0.1.0"
edition = "2024"
license = "Apache-2.0"
publish = false

[features]
default = ["allocator", "metric_0_2"]
# The SDK's allocator is the component's.
allocator = []
metric_0_2 = []

[dependencies]
serde = { version = "1", features = ["derive"] }
serde_json = { version = "1", features = ["raw_value"] }
wit-bindgen = { version = "=0.61.1", default-features = false, features = ["realloc"] }
"#;

/// The name of a kind as projects write it.
pub fn kind_name(kind: Kind) -> &'static str {
    KINDS.iter().find(|(k, _)| *k == kind).map_or(kind.short_name(), |(_, name)| name)
}

/// Makes the project `folder`, which must not exist or be empty, for a plugin of this name. All of it appears at once.
///
/// # Errors
/// If the name is none for a plugin, the folder has something in it, or cannot be written.
pub fn create(folder: &Path, name: &str, kind: Kind, language: Language) -> Result<Vec<PathBuf>, Error> {
    check_name(name)?;
    let occupied = folder.is_file() || std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    if occupied {
        return Err(Error::Argument(format!("{} is there already and not empty; choose another name or --path", folder.display())));
    }
    let files = files(name, kind, language);
    if !files.iter().any(|(path, _)| path.parent().is_some_and(|p| p.as_os_str().is_empty()) && path.extension().is_some_and(|e| e == "md"))
    {
        return Err(Error::Argument(format!("this version of trainer has no {kind} to start from in {language}")));
    }
    let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    let temporary = tempfile::Builder::new().prefix(".new-plugin").tempdir_in(parent).map_err(Error::io("write into", parent))?;
    for (path, bytes) in &files {
        let target = temporary.path().join(path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        std::fs::write(&target, bytes).map_err(Error::io("write", &target))?;
    }
    #[cfg(unix)]
    {
        // A temporary folder is the user's alone; a project is like any other folder.
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(parent).map_err(Error::io("read", parent))?.permissions().mode() & 0o777;
        let permissions = std::fs::Permissions::from_mode(mode | 0o700);
        std::fs::set_permissions(temporary.path(), permissions).map_err(Error::io("write", temporary.path()))?;
    }
    if folder.is_dir() {
        std::fs::remove_dir(folder).map_err(Error::io("replace the empty folder", folder))?;
    }
    std::fs::rename(temporary.path(), folder).map_err(Error::io("create", folder))?;
    // What it named has moved.
    let _ = temporary.keep();
    Ok(files.into_iter().map(|(path, _)| path).collect())
}

fn check_name(name: &str) -> Result<(), Error> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let ok = !name.is_empty() && name.len() <= 64 && name.chars().all(fits) && name.starts_with(|c: char| c.is_ascii_lowercase());
    if ok {
        return Ok(());
    }
    let proposal: String =
        name.to_lowercase().chars().map(|c| if fits(c) { c } else { '_' }).skip_while(|c| !c.is_ascii_lowercase()).take(64).collect();
    let proposal = if proposal.is_empty() { "my_plugin".to_owned() } else { proposal };
    Err(Error::Argument(format!(
        "{name:?} is no name for a plugin: lower-case letters, digits and underscores, a letter first, at most 64; for example {proposal}"
    )))
}

/// All files of a new project.
fn files(name: &str, kind: Kind, language: Language) -> Vec<(PathBuf, Vec<u8>)> {
    let kind_folder = kind_name(kind);
    let filled = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => {
            let text = text.replace("@NAME@", name).replace("@CRATE@", &name.replace('_', "-"));
            text.replace("@KIND@", kind_folder).replace("@VERSION@", version(kind)).into_bytes()
        }
        Err(_) => bytes.to_vec(),
    };
    let mut files = Vec::new();
    let language_folder = language.name();
    if let Some(dir) = SCAFFOLD.get_dir(language_folder) {
        let others: Vec<PathBuf> = KINDS.iter().map(|(_, name)| Path::new(language_folder).join(name)).collect();
        collect(dir, &others, &mut |path, bytes| files.push((target(language, relative(path, language_folder)), filled(bytes))));
    }
    let own = format!("{language_folder}/{kind_folder}");
    if let Some(dir) = SCAFFOLD.get_dir(&own) {
        collect(dir, &[], &mut |path, bytes| files.push((target(language, relative(path, &own)), filled(bytes))));
    }
    let tests = format!("tests/{kind_folder}");
    if let Some(dir) = SCAFFOLD.get_dir(&tests) {
        collect(dir, &[], &mut |path, bytes| files.push((Path::new("tests").join(relative(path, &tests)), bytes.to_vec())));
    }
    if let Some(file) = SCAFFOLD.get_file(format!("settings/{kind_folder}.json")) {
        files.push((PathBuf::from("settings.json"), file.contents().to_vec()));
    }
    files.push((PathBuf::from(PROJECT_FILE), project_file(name, kind, language).into_bytes()));
    files.extend(wit(kind));
    if language == Language::Rust {
        collect(&SDK, &[], &mut |path, bytes| files.push((Path::new("sdk/src").join(path), bytes.to_vec())));
        files.push((PathBuf::from("sdk/Cargo.toml"), SDK_MANIFEST.as_bytes().to_vec()));
    }
    files
}

/// All files below a folder, without the folders in `without`.
fn collect<'a>(dir: &'a Dir<'a>, without: &[PathBuf], take: &mut dyn FnMut(&'a Path, &'a [u8])) {
    for file in dir.files() {
        take(file.path(), file.contents());
    }
    for dir in dir.dirs().filter(|d| !without.iter().any(|w| w == d.path())) {
        collect(dir, without, take);
    }
}

fn relative<'a>(path: &'a Path, base: &str) -> &'a Path {
    path.strip_prefix(base).unwrap_or(path)
}

/// Where a file of the scaffold goes. Names that tools would act on in this repository are written otherwise there.
fn target(language: Language, path: &Path) -> PathBuf {
    match (language, path.to_str()) {
        (Language::Rust, Some("Cargo.toml.in")) => PathBuf::from("Cargo.toml"),
        (Language::Rust, Some("lib.rs")) => PathBuf::from("src/lib.rs"),
        (_, Some("gitignore")) => PathBuf::from(".gitignore"),
        _ => path.to_owned(),
    }
}

fn project_file(name: &str, kind: Kind, language: Language) -> String {
    let about = match kind {
        Kind::DatasetFormatter => "Rows with the columns question and answer",
        Kind::ChatTemplate => "ChatML",
        Kind::MixingPolicy => "Draws from the sources in fixed proportions",
        Kind::ToolExecutor => "A shopping list",
        Kind::EvalMetric => "Whether the answer contains what is expected",
    };
    format!(
        "[plugin]\nname = \"{name}\"\nversion = \"0.1.0\"\ndescription = \"{about}\"\n# The JSON Schema of the settings that recipes may \
         give.\nsettings = \"settings.json\"\n\n[build]\nlanguage = \"{language}\"\nkinds = [\"{}\"]\n",
        kind_name(kind)
    )
}

/// The version of a kind's contract that new projects are built against.
pub(crate) fn version(kind: Kind) -> &'static str {
    kind.export().split_once('@').map_or("0.1.0", |(_, v)| v)
}

/// The contract of one kind as a WIT folder: the world `plugin` in `world.wit`, and the packages that it needs in `deps`.
pub fn wit(kind: Kind) -> Vec<(PathBuf, Vec<u8>)> {
    wit_of(kind, version(kind))
}

/// The same in one of the kind's versions.
pub(crate) fn wit_of(kind: Kind, version: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let (package, _) = kind.interface().split_once('/').unwrap_or_default();
    let world =
        format!("package trainer:project;\n\n/// What this plugin exports.\nworld plugin {{\n  include {package}/plugin@{version};\n}}\n");
    let mut files = vec![(PathBuf::from("wit/world.wit"), world.into_bytes())];
    for (folder, version) in [(kind.name(), version), ("conversation", "0.1.0"), ("host", "0.1.0"), ("http", "0.1.0")] {
        // Requests are for tools alone.
        if folder == "http" && kind != Kind::ToolExecutor {
            continue;
        }
        let Some(dir) = WIT.get_dir(format!("{folder}/{version}")) else { continue };
        for file in dir.files() {
            let name = file.path().file_name().unwrap_or_default();
            files.push((Path::new("wit/deps").join(folder).join(name), file.contents().to_vec()));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "math_mix", "x9"] {
            check_name(good).unwrap();
        }
        for (bad, proposal) in [("My-Plugin", "my_plugin"), ("9lives", "lives"), ("", "my_plugin"), ("../x", "x"), ("ä", "my_plugin")] {
            assert!(check_name(bad).unwrap_err().to_string().ends_with(proposal), "{bad}");
        }
    }

    #[test]
    fn every_kind_has_files_in_every_language() {
        for (kind, name) in KINDS {
            for language in Language::ALL {
                let files = files("answers", kind, language);
                let has = |wanted: &str| files.iter().any(|(path, _)| path == Path::new(wanted));
                assert!(has("plugin.toml") && has("settings.json") && has("README.md") && has(".gitignore"), "{language} {name}");
                assert!(files.iter().any(|(p, _)| p.starts_with("tests")), "{language} {name}");
                let texts =
                    files.iter().filter(|(p, _)| !p.starts_with("sdk")).filter_map(|(p, b)| Some((p, std::str::from_utf8(b).ok()?)));
                for (path, text) in texts {
                    assert!(
                        !text.contains("@NAME@") && !text.contains("@KIND@") && !text.contains("@VERSION@") && !text.contains("@CRATE@"),
                        "{language} {path:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_contract_resolves() {
        for (kind, name) in KINDS {
            let folder = tempfile::tempdir().unwrap();
            for (path, bytes) in wit(kind) {
                let target = folder.path().join(path);
                std::fs::create_dir_all(target.parent().unwrap()).unwrap();
                std::fs::write(target, bytes).unwrap();
            }
            let mut resolve = wit_parser::Resolve::default();
            let (package, _) = resolve.push_dir(folder.path().join("wit")).unwrap();
            let world = resolve.select_world(&[package], Some("plugin")).unwrap();
            let exports: Vec<String> = resolve.worlds[world].exports.keys().map(|k| resolve.name_world_key(k)).collect();
            assert_eq!(exports, [kind.export()], "{name}");
        }
    }

    #[test]
    fn an_occupied_folder_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("mine"), "x").unwrap();
        let error = create(folder.path(), "answers", Kind::DatasetFormatter, Language::Rust).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
