//! Any bytes as a plugin: inspected, loaded under limits, compiled and called. It ends in an error of one short line or in an answer.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use trainer_plugin_host::{CompilerCommand, HostOptions, Kind, Limits, MixerSetup, PluginHost, PluginSource, Span, ToolContext, inspect};

/// Compiles here: what the compiler's own process is for, its time and memory, libFuzzer watches.
fn host() -> PluginHost {
    PluginHost::new(HostOptions { worker_instances: 1, ..HostOptions::new(CompilerCommand::in_process()) }).unwrap()
}

static LIMITS: LazyLock<Limits> = LazyLock::new(|| Limits {
    component_size: "1MiB".parse().unwrap(),
    memory: "4MiB".parse().unwrap(),
    fuel_per_call: 200_000,
    fuel_per_row: 50_000,
    fuel_per_byte: 10,
    deadline: Span::seconds(5),
    returned_size: "1MiB".parse().unwrap(),
    ..Limits::default()
});

fn short(error: &impl std::fmt::Display) {
    let text = error.to_string();
    assert!(text.len() < 4000 && !text.chars().any(char::is_control), "{text:?}");
}

fuzz_target!(|data: &[u8]| {
    if let Err(error) = inspect(data) {
        short(&error);
    }
    // A host of its own, since a host keeps what it has compiled.
    let host = host();
    let source = PluginSource::Bytes { name: "fuzz.wasm".to_owned(), bytes: data.to_vec() };
    let plugin = match host.load(&source, LIMITS.clone()) {
        Ok(plugin) => plugin,
        Err(error) => return short(&error),
    };
    let none = &Value::Null;
    for kind in plugin.kinds().to_vec() {
        let error = match kind.kind {
            Kind::DatasetFormatter => plugin.formatter(none).and_then(|f| f.format(&["x".into(), "{}".into()]).map(drop)).err(),
            Kind::EvalMetric => plugin.metric(none).and_then(|m| m.prepare(&["{}".into()]).map(drop)).err(),
            Kind::ChatTemplate => plugin.template(none).and_then(|t| t.describe().map(drop)).err(),
            Kind::MixingPolicy => {
                let setup = MixerSetup { settings: Value::Null, sources: Vec::new(), seed: 1, feedback_lag: 0 };
                plugin.mixer(&setup, None).and_then(|mut m| m.next(3).map(drop)).err()
            }
            Kind::ToolExecutor => {
                let context = ToolContext { settings: Value::Null, seed: 1, now_ms: 1 };
                let digest = || plugin.tool_session(&context).and_then(|mut s| s.state_digest().map(drop)).err();
                plugin.tools(none).map(drop).err().or_else(digest)
            }
        };
        error.iter().for_each(short);
    }
});
