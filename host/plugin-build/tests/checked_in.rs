//! What is checked in is what its sources say. Rebuilding the components takes a guest toolchain: `trainer-plugin-build check`.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use trainer_plugin_build::{adapter, bindings, component, foreign, official};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_bindings_are_those_of_the_contract() {
    for (name, content) in bindings::generate(&root().join("wit")).unwrap() {
        let path = root().join("plugins/sdk/src/bindings").join(&name);
        let same = std::fs::read(&path).unwrap() == content;
        assert!(same, "{name} is not what wit/ gives: run `cargo run --release -p trainer-plugin-build -- bindings`");
    }
}

#[test]
fn the_scaffolds_bindings_are_those_of_the_contract() {
    for (name, content) in foreign::generate(&root().join("wit")).unwrap() {
        let path = root().join("host/plugin-dev/scaffold").join(&name);
        let same = std::fs::read(&path).ok() == Some(content);
        assert!(same, "{} is not what wit/ gives: run `cargo run --release -p trainer-plugin-build -- bindings`", path.display());
    }
}

/// `UPDATE=1 cargo test -p trainer-plugin-build --test checked_in` writes the adapter anew.
#[test]
fn the_adapter_is_made_from_its_text() {
    let folder = root().join("host/plugin-build/adapter");
    let module = wat::parse_file(folder.join("empty-world.wat")).unwrap();
    let made = adapter::with_type(module, &root().join("wit")).unwrap();
    let path = folder.join("empty-world.wasm");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    assert!(std::fs::read(&path).unwrap() == made, "{} is not what its text gives: run this test with UPDATE=1", path.display());
}

#[test]
fn the_components_are_those_of_the_record() {
    let record: official::Record = serde_json::from_slice(&std::fs::read(root().join("plugins/prebuilt/toolchain.json")).unwrap()).unwrap();
    assert_eq!(record.components.len(), official::OFFICIAL.len());
    for plugin in &official::OFFICIAL {
        let entry = &record.components[plugin.component];
        let bytes = std::fs::read(root().join(format!("plugins/prebuilt/{}.wasm", plugin.component))).unwrap();
        let again = format!("run `cargo run --release -p trainer-plugin-build -- build {}`", plugin.package);
        assert_eq!(format!("{:x}", Sha256::digest(&bytes)), entry.sha256, "{again}");
        assert_eq!(
            official::sources_digest(&root(), plugin).unwrap(),
            entry.sources,
            "the sources of {} have changed: {again}",
            plugin.package
        );
    }
}

#[test]
fn the_components_import_nothing_but_the_log_and_what_they_declare() {
    for plugin in &official::OFFICIAL {
        let bytes = std::fs::read(root().join(format!("plugins/prebuilt/{}.wasm", plugin.component))).unwrap();
        let shape = component::shape(&bytes).unwrap();
        let mut allowed = vec!["trainer:conversation/types@0.1.0", "trainer:host/log@0.1.0"];
        if !shape.manifest.needs.is_empty() {
            assert!(["weather", "test/evil_tools"].contains(&plugin.component), "{}", plugin.component);
            allowed.extend(["trainer:http/client@0.1.0", "trainer:http/secrets@0.1.0"]);
        }
        assert!(shape.imports.iter().all(|i| allowed.contains(&i.as_str())), "{}: {:?}", plugin.package, shape.imports);
        assert!(!shape.exports.is_empty() && shape.manifest.settings_schema.is_object());
        assert!(plugin.component.ends_with(&shape.manifest.name));
    }
    let mix = component::shape(&std::fs::read(root().join("plugins/prebuilt/math_mix.wasm")).unwrap()).unwrap();
    assert_eq!(mix.exports, ["trainer:dataset-formatter/formatter@0.1.0", "trainer:mixing-policy/policy@0.1.0"]);
}

#[test]
fn what_is_no_guest_is_refused_with_a_reason() {
    let error = |bytes: &[u8]| component::encode(bytes).unwrap_err().to_string();
    assert!(error(b"hello").contains("not a WebAssembly module"));
    assert!(error(b"\0asm\x01\0\0\0").contains("no plugin manifest"));
    assert!(component::shape(b"\0asm\x0d\0\x01\0").unwrap_err().to_string().contains("trainer:plugin"));
}
