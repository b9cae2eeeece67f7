//! Tools in processes of their own: all that holds for requests and secrets holds there too, limits and traps are told alike, and the process
//! has no rights.
#![cfg(target_os = "linux")]

#[path = "http.rs"]
mod http;

use std::sync::Arc;

use http::common::{compiler, prebuilt, process};
use serde_json::json;
use trainer_plugin_host::tools::{Call, Outcome};
use trainer_plugin_host::{Grants, HostOptions, Limits, Plugin, PluginError, PluginHost, PluginSource, ProcessCommand, ToolContext};

fn host(process: Option<ProcessCommand>) -> PluginHost {
    PluginHost::new(HostOptions { process, ..HostOptions::new(compiler()) }).unwrap()
}

fn isolated(source: &PluginSource, limits: Limits) -> Arc<Plugin> {
    host(Some(process())).load_isolated(source, limits, Grants::default()).unwrap()
}

fn context() -> ToolContext {
    ToolContext { settings: json!({}), seed: 7, now_ms: 1_700_000_000_000 }
}

fn call(name: &str, arguments: &str) -> Call {
    Call { name: name.to_owned(), arguments: arguments.to_owned() }
}

/// The processes that run a program.
fn running(program: &std::path::Path) -> Vec<u32> {
    let name = program.to_str().unwrap();
    let runs = |pid: &u32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(name.as_bytes()));
    let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    all.filter(runs).collect()
}

#[test]
fn a_session_gives_the_same_as_without() {
    let source = prebuilt("calculator");
    let (apart, here) = (isolated(&source, Limits::default()), host(None).load(&source, Limits::default()).unwrap());
    let shown = |plugin: &Arc<Plugin>| {
        let tools = plugin.tools(&json!({})).unwrap();
        let mut session = plugin.tool_session(&context()).unwrap();
        let calls = [call("calculate", r#"{"expression": "12*7+5"}"#), call("calculate", r#"{"expression": "1/"}"#), call("other", "{}")];
        let outcomes = session.call(&calls).unwrap();
        let more = session.call(&calls[..1]).unwrap();
        format!("{tools:?} {outcomes:?} {more:?} {:?}", session.state_digest().unwrap())
    };
    assert_eq!(shown(&apart), shown(&here));
}

#[test]
fn refusals_and_limits_are_told_as_without() {
    let source = prebuilt("test/evil_tools");
    let plugin = isolated(&source, Limits::default());
    let mut session = plugin.tool_session(&context()).unwrap();
    // An unknown secret is refused by the host, in the host's words.
    let words = match session.call(&[call("evil", r#"{"evil": "output", "secret": "KEY"}"#)]).unwrap().pop().unwrap() {
        Outcome::ToolError(words) => words,
        Outcome::Ok(json) => panic!("{json}"),
    };
    assert!(words.contains("--secret evil_tools:KEY="), "{words}");
    let limited = Limits { memory: "64KiB".parse().unwrap(), ..Limits::default() };
    let error = |plugin: &Arc<Plugin>| match plugin.tool_session(&context()) {
        Ok(_) => panic!("a session began in 64 KiB"),
        Err(error) => error.to_string(),
    };
    let starved = host(None).load(&source, limited.clone()).unwrap();
    assert_eq!(error(&isolated(&source, limited)), error(&starved));
}

#[test]
fn the_process_has_given_up_its_rights_and_ends_with_the_session() {
    // A program of this test alone, so that its one process is known among those of the others.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("tool-of-this-test");
    std::fs::copy(env!("CARGO_BIN_EXE_trainer-plugin-process"), &program).unwrap();
    let host = host(Some(ProcessCommand::new(&program, [""; 0])));
    let plugin = host.load_isolated(&prebuilt("calculator"), Limits::default(), Grants::default()).unwrap();
    assert!(running(&program).is_empty());
    let session = plugin.tool_session(&context()).unwrap();
    let processes = running(&program);
    assert_eq!(processes.len(), 1, "{processes:?}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", processes[0])).unwrap();
    let has = |field: &str, value: &str| status.lines().any(|l| l.split_whitespace().eq([field, value]));
    assert!(has("Seccomp:", "2") && has("NoNewPrivs:", "1"), "{status}");
    drop(session);
    assert!(running(&program).is_empty(), "the process outlived its session");
}

#[test]
fn calls_by_name_do_not_leave_the_process() {
    let plugin = isolated(&prebuilt("calculator"), Limits::default());
    let error = plugin.caller(trainer_plugin_host::Kind::ToolExecutor, &json!({})).unwrap_err();
    assert!(error.to_string().contains("is isolated"), "{error}");
}

#[test]
fn only_tools_can_be_isolated() {
    let error = host(Some(process())).load_isolated(&prebuilt("sharegpt"), Limits::default(), Grants::default()).unwrap_err();
    assert!(error.to_string().contains("only a plugin of nothing but tools can be isolated"), "{error}");
    let error = host(None).load_isolated(&prebuilt("calculator"), Limits::default(), Grants::default()).unwrap_err();
    assert!(error.to_string().contains("has no process for isolated tools"), "{error}");
}

#[test]
fn a_process_that_is_none_is_an_error() {
    for program in ["/bin/false", "/bin/cat", "/no/such/program"] {
        let host = host(Some(ProcessCommand::new(program, [""; 0])));
        let plugin = host.load_isolated(&prebuilt("calculator"), Limits::default(), Grants::default()).unwrap();
        let error = match plugin.tool_session(&context()) {
            Ok(_) => panic!("{program} gave a session"),
            Err(error) => error,
        };
        assert!(matches!(error, PluginError::Instantiate { .. } | PluginError::Io { .. }), "{program}: {error}");
    }
}
