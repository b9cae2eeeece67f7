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

/// The processes that this one has started for tools.
fn children() -> Vec<u32> {
    let own = std::process::id();
    let is_child = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let name = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        status.lines().any(|l| l.split_whitespace().eq(["PPid:", &own.to_string()])) && name.contains("trainer-plugin-process")
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    all.filter(is_child).collect()
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
    let plugin = isolated(&prebuilt("calculator"), Limits::default());
    let before = children();
    let session = plugin.tool_session(&context()).unwrap();
    let new: Vec<u32> = children().into_iter().filter(|pid| !before.contains(pid)).collect();
    // Other tests have processes too; each of them is confined.
    assert!(!new.is_empty());
    let confined = new.iter().filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok()).filter(|status| {
        let has = |field: &str, value: &str| status.lines().any(|l| l.split_whitespace().eq([field, value]));
        has("Seccomp:", "2") && has("NoNewPrivs:", "1")
    });
    assert!(confined.count() >= 1, "no process of {new:?} is confined");
    let open: Vec<u32> = new;
    drop(session);
    let gone = open.iter().any(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(gone, "a process outlived its session");
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
