//! A component of a language runtime that was not kept from importing WASI: Python's, made by componentize-py without `--stub-wasi`.
//!
//! Ignored, because it takes componentize-py (`pip install componentize-py==0.25.*`) on the path; `.ci/full` runs it.

mod common;
#[path = "common/logged.rs"]
mod logged;

use std::fs;
use std::process::Command;

use common::{compiler, root};
use logged::logged;
use serde_json::{Value, json};
use trainer_plugin_host::{Formatter, HostOptions, Limits, PluginHost, PluginSource, RowOutcome, Span};

/// Builds the formatter of `wasi/app.py`.
fn component() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let wit = dir.path().join("wit");
    for package in ["conversation", "host", "dataset-formatter"] {
        let to = wit.join("deps").join(package);
        fs::create_dir_all(&to).unwrap();
        for file in fs::read_dir(root().join("wit").join(package).join("0.1.0")).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
    fs::write(wit.join("world.wit"), "package test:python;\nworld plugin { include trainer:dataset-formatter/plugin@0.1.0; }\n").unwrap();
    fs::write(dir.path().join("app.py"), include_str!("wasi/app.py")).unwrap();
    let built = Command::new("componentize-py")
        .args(["-d", "wit", "-w", "plugin", "componentize", "app", "-o", "app.wasm"])
        .current_dir(dir.path())
        .output()
        .expect("componentize-py is on the path: pip install 'componentize-py==0.25.*'");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let mut bytes = fs::read(dir.path().join("app.wasm")).unwrap();
    // The manifest, as a custom section: its number, its length (below 128), the name's length, the name, the content.
    let (name, json) = (b"trainer:plugin", br#"{"name": "python", "version": "0.1.0"}"#);
    bytes.extend([0, u8::try_from(1 + name.len() + json.len()).unwrap(), u8::try_from(name.len()).unwrap()]);
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(json);
    bytes
}

fn ask(formatter: &Formatter, row: &Value) -> Result<String, String> {
    match formatter.format(&[row.to_string()]).unwrap().pop().unwrap() {
        RowOutcome::Skip(words) => Ok(words),
        RowOutcome::Trapped(error) => Err(error.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "takes componentize-py"]
fn python_finds_an_empty_world() {
    let bytes = component();
    let about = trainer_plugin_host::inspect(&bytes).unwrap();
    assert!(about.empty_world.len() > 10, "{:?}", about.imports);
    assert_eq!(about.refused_imports, Vec::<String>::new());
    let host = PluginHost::new(HostOptions { worker_instances: 1, ..HostOptions::new(compiler()) }).unwrap();
    // A loaded machine compiles 18 MB slowly; everything else is as by default.
    let limits = Limits { compile_time: Span::seconds(1800), deadline: Span::seconds(600), ..Limits::default() };
    let plugin = host.load(&PluginSource::Bytes { name: "app.wasm".into(), bytes }, limits).unwrap();
    let formatter = plugin.formatter(&json!({})).unwrap();
    let world: Value = serde_json::from_str(&ask(&formatter, &json!({"probe": "world"})).unwrap()).unwrap();
    assert_eq!((&world["environment"], &world["arguments"]), (&json!({}), &json!([])));
    assert_eq!(world["time"], json!(1_735_689_600.0));
    assert_eq!(world["slept"], json!(3600.0));
    for refused in ["file", "folder", "socket"] {
        assert!(world[refused].as_str().unwrap().ends_with("Error"), "{world}");
    }
    // Another instance finds the same.
    let again = plugin.formatter(&json!({})).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&ask(&again, &json!({"probe": "world"})).unwrap()).unwrap()["random"], world["random"]);
    let (printed, log) = logged(|| ask(&formatter, &json!({"probe": "print"})));
    assert_eq!(printed.unwrap(), "printed");
    assert!(log.contains("INFO plugin: to standard output") && log.contains("WARN plugin: to standard error"), "{log}");
    // An exception is what the error says.
    let error = ask(&formatter, &json!({"probe": "raise", "what": "a \u{1b}[2J"})).unwrap_err();
    assert!(error.contains("trapped: ") && error.contains("(it said: ValueError: no such thing: a  [2J)"), "{error:?}");
    let error = ask(&formatter, &json!({"probe": "exit"})).unwrap_err();
    assert!(error.contains("trapped: ") && error.contains("SystemExit"), "{error:?}");
    assert_eq!(ask(&formatter, &json!({"probe": "print"})).unwrap(), "printed");
}
