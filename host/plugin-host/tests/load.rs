//! What is refused before anything runs, and the cache of compiled components.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::{MANIFEST, compiler, component, host, manifest, rogue, source, tight};
use serde_json::json;
use trainer_plugin_host::{CompilerCommand, HostOptions, Kind, Limits, PluginHost, PluginSource, inspect};

fn refused(text: &str) -> String {
    host().load(&source(component(text)), Limits::default()).unwrap_err().to_string()
}

const FORMATTER: &str = r#"(instance $i) (export "trainer:dataset-formatter/formatter@0.1.0" (instance $i))"#;

#[test]
fn golden_refusals() {
    let section = manifest(MANIFEST);
    let import = |name: &str| format!("(component {section} (import {name:?} (instance)) {FORMATTER})");
    let cases = [
        (
            import("wasi:http/outgoing-handler@0.2.6"),
            "plugin `rogue` 1.2.3 imports `wasi:http/outgoing-handler@0.2.6`, and nothing grants it: of WASI the host has an empty world, \
             which knows the interfaces of wasi:cli, wasi:clocks, wasi:filesystem, wasi:io, wasi:random and wasi:sockets in versions 0.2; \
             build the component without the others",
        ),
        (
            import("trainer:host/http@0.1.0"),
            "plugin `rogue` 1.2.3 imports `trainer:host/http@0.1.0`, and nothing grants it: plugins are linked to trainer:host/log@0.1.0, \
             and tools that declare it to trainer:http/client@0.1.0 and trainer:http/secrets@0.1.0, and nothing else",
        ),
        (
            import("trainer:http/client@0.1.0"),
            "plugin `rogue` 1.2.3 imports `trainer:http/client@0.1.0`, and nothing grants it: its manifest does not declare it; its author \
             adds the server to the manifest's `needs`, such as \"http: https://api.example.com\"",
        ),
        (
            import("trainer:http/secrets@0.1.0"),
            "plugin `rogue` 1.2.3 imports `trainer:http/secrets@0.1.0`, and nothing grants it: its manifest does not declare it; its author \
             adds the secret to the manifest's `needs`, such as \"secret: API_KEY\"",
        ),
        (
            import("trainer:http/client@0.2.0"),
            "plugin `rogue` 1.2.3 imports `trainer:http/client@0.2.0`, and nothing grants it: this host offers trainer:http/client@0.1.0 \
             and trainer:http/secrets@0.1.0; build the plugin against that version of the interfaces",
        ),
        (
            import("trainer:host/log@0.2.0"),
            "plugin `rogue` 1.2.3 imports `trainer:host/log@0.2.0`, and nothing grants it: this host offers trainer:host/log@0.1.0 and \
             trainer:conversation/types@0.1.0; build the plugin against that version of the interfaces",
        ),
        (
            format!(r#"(component {section} (instance $i) (export "trainer:dataset-formatter/formatter@9.0.0" (instance $i)))"#),
            "plugin `rogue` exports dataset-formatter 9.0.0; this host knows dataset-formatter 0.1.0: build the plugin against that version \
             of the interface, or use another version of trainer",
        ),
        (
            format!(r#"(component {section} (instance $i) (export "some:thing/else@1.0.0" (instance $i)))"#),
            "plugin `rogue` exports no plugin kind (it exports: some:thing/else@1.0.0); this host knows \
             `trainer:dataset-formatter/formatter@0.1.0`, `trainer:chat-template/template@0.1.0`, `trainer:mixing-policy/policy@0.1.0`, \
             `trainer:tool-executor/executor@0.1.0`, `trainer:eval-metric/metric@0.1.0` or `@0.2.0`",
        ),
        (
            format!("(component {FORMATTER})"),
            "plugin `test.wasm`: it has no manifest: the custom section `trainer:plugin` is missing. The guest SDK's `plugin!` macro writes \
             it; without the SDK put the same JSON ({\"name\", \"version\", \"description\", ...}) into a file NAME.plugin.json beside NAME.wasm",
        ),
        (
            format!("(component {} {FORMATTER})", manifest(r#"{"name": "greedy", "version": "0.1.0", "needs": ["log", "files"]}"#)),
            "plugin `greedy` 0.1.0 declares that it needs `files`, which this version of trainer cannot grant",
        ),
        (
            format!("(component {} {FORMATTER})", manifest(r#"{"name": "greedy", "version": "0.1.0", "needs": ["http: https://a.bc"]}"#)),
            "plugin `greedy`: its manifest says that it needs `http: https://a.bc`, which only a plugin of nothing but tools may",
        ),
        (
            format!("(component {} {FORMATTER})", manifest(r#"{"name": "greedy", "version": "0.1.0", "needs": ["http: nowhere"]}"#)),
            "plugin `greedy`: its need http: `nowhere`: it is no absolute address; it begins with http:// or https://; write it like \
             https://api.example.com or \"GET,POST https://*.example.com:8443\"",
        ),
        (
            "(module)".to_owned(),
            "plugin `test.wasm` is not a valid WebAssembly component: it is a core module, not a component; `trainer plugin build` and \
             `wasm-tools component new` make one of it",
        ),
    ];
    for (text, golden) in cases {
        assert_eq!(refused(&text), golden, "{text}");
    }
}

#[test]
fn bytes_that_are_no_component() {
    let load = |bytes: &[u8]| host().load(&source(bytes.to_vec()), Limits::default()).unwrap_err().to_string();
    for bytes in [b"".as_slice(), b"hello", b"\0asm", &rogue()[..1000]] {
        let error = load(bytes);
        assert!(error.contains("is not a valid WebAssembly component") || error.contains("no manifest"), "{error}");
    }
    // Valid outside, not within: only the compiler's validation sees it.
    let mut broken = rogue();
    let at = broken.windows(4).position(|w| w == [0x41, 0x80, 0x80, 0x04]).unwrap_or(broken.len() / 2);
    broken[at] = 0xff;
    let error = load(&broken);
    assert!(error.contains("rogue") || error.contains("test.wasm"), "{error}");
}

#[test]
fn types_that_differ_from_the_wit() {
    let host = host();
    let plugin = host.load(&source(component(&format!("(component {} {FORMATTER})", manifest(MANIFEST)))), Limits::default()).unwrap();
    let error = plugin.formatter(&json!({})).err().unwrap().to_string();
    assert!(error.starts_with("plugin `rogue` 1.2.3 does not fit the interface that it names"), "{error}");
    let error = plugin.template(&json!({})).err().unwrap().to_string();
    assert_eq!(error, "plugin `rogue` 1.2.3 is no chat-template: it exports dataset-formatter 0.1.0");
}

#[test]
fn settings_are_checked_against_the_schema() {
    let schema = r#"{"name": "rogue", "version": "1.2.3", "settings_schema": {"type": "object", "additionalProperties": false,
        "properties": {"columns": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}}}}}"#;
    let with =
        |json: &str| host().load(&source(component(&format!("(component {} {FORMATTER})", manifest(json)))), Limits::default()).unwrap();
    let plugin = with(schema);
    assert_eq!(plugin.check_settings(&json!(null)).unwrap(), "{}");
    assert_eq!(plugin.check_settings(&json!({"columns": {"n": 2}})).unwrap(), r#"{"columns":{"n":2}}"#);
    let error = |settings| plugin.check_settings(&settings).unwrap_err().to_string();
    assert_eq!(error(json!({"columns": {"n": 0}})), "settings of plugin `rogue` 1.2.3, at `/columns/n`: 0 is less than the minimum of 1");
    assert!(error(json!({"colums": {}})).contains("'colums' was unexpected"), "{}", error(json!({"colums": {}})));
    assert!(error(json!([])).contains("settings are an object"));
    let error = with(MANIFEST).check_settings(&json!({"x": 1})).unwrap_err().to_string();
    assert!(error.contains("the plugin takes no settings") && error.contains("`x`"), "{error}");
}

#[test]
fn inspection_as_json() {
    let report = serde_json::to_value(inspect(&rogue()).unwrap()).unwrap();
    assert_eq!(report["name"], "rogue");
    assert_eq!(report["version"], "1.2.3");
    assert_eq!(report["kinds"], json!([{"kind": "dataset-formatter", "version": "0.1.0"}]));
    assert_eq!(
        report["imports"],
        json!(["trainer:conversation/types@0.1.0", "trainer:host/log@0.1.0"])
            .as_array()
            .map(|a| {
                let mut found: Vec<_> = report["imports"].as_array().unwrap().clone();
                found.sort_by_key(ToString::to_string);
                assert_eq!(&found, a);
                report["imports"].clone()
            })
            .unwrap()
    );
    assert_eq!(report["refused_imports"], json!([]));
    assert_eq!(report["size"], rogue().len());
    assert_eq!(report["digest"].as_str().unwrap().len(), 64);
    assert!(report.get("empty_world").is_none());
    let wasi = |import: &str| component(&format!("(component {} (import {import:?} (instance)) {FORMATTER})", manifest(MANIFEST)));
    let about = inspect(&wasi("wasi:http/types@0.2.6")).unwrap();
    assert_eq!((about.refused_imports, about.empty_world), (vec!["wasi:http/types@0.2.6".to_owned()], vec![]));
    let about = inspect(&wasi("wasi:cli/exit@0.2.6")).unwrap();
    assert_eq!((about.refused_imports, about.empty_world), (vec![], vec!["wasi:cli/exit@0.2.6".to_owned()]));
}

#[test]
fn a_manifest_may_stand_beside_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.wasm");
    fs::write(&file, component(&format!("(component {FORMATTER})"))).unwrap();
    let source = PluginSource::File(file);
    assert!(host().load(&source, Limits::default()).unwrap_err().to_string().contains("mine.wasm"));
    fs::write(dir.path().join("mine.plugin.json"), r#"{"name": "mine", "version": "0.3.0"}"#).unwrap();
    let plugin = host().load(&source, Limits::default()).unwrap();
    assert_eq!((plugin.name(), plugin.version()), ("mine", "0.3.0"));
    assert_eq!(source.inspect(&Limits::default()).unwrap().name, "mine");
    assert_eq!(plugin.kinds()[0].kind, Kind::DatasetFormatter);
}

#[test]
fn the_cache_serves_a_second_host_and_mistrusts_what_was_touched() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("plugins");
    let host =
        |compiler: CompilerCommand| PluginHost::new(HostOptions { cache_dir: Some(cache.clone()), ..HostOptions::new(compiler) }).unwrap();
    let load = |compiler| host(compiler).load(&source(rogue()), tight());
    load(compiler()).unwrap();
    // A compiler that cannot even start shows that the cache was used.
    let absent = || CompilerCommand::new("/nowhere/compiler", [""; 0]);
    load(absent()).unwrap();
    let engine = fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_dir()).unwrap();
    let entry = fs::read_dir(&engine).unwrap().next().unwrap().unwrap().path();
    let good = fs::read(&entry).unwrap();
    for broken in [vec![], good[..good.len() / 2].to_vec(), [&good[..good.len() - 1], &[!good[good.len() - 1]]].concat()] {
        fs::write(&entry, &broken).unwrap();
        assert!(load(absent()).is_err(), "an entry of {} bytes was trusted", broken.len());
        load(compiler()).unwrap();
        assert_eq!(fs::read(&entry).unwrap().len(), good.len(), "it was not written anew");
        load(absent()).unwrap();
    }
    // A new key makes all entries strangers'.
    fs::remove_file(cache.join("key")).unwrap();
    assert!(load(absent()).is_err());
    // A folder that others can enter is not used at all.
    load(compiler()).unwrap();
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(load(absent()).is_err());
}
