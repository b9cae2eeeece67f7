//! Every export of every kind and version, in every misdeed that needs no values: each with its golden error, within its limit, and the host goes on.

mod common;
#[path = "common/guest.rs"]
mod guest;

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{compiler, source, tight};
use guest::{Guest, MISDEEDS};
use serde_json::Value;
use trainer_plugin_host::metric::{Item, Response};
use trainer_plugin_host::mixing::{Feedback, Source};
use trainer_plugin_host::template::{Piece, PromptRequest};
use trainer_plugin_host::tools::Call;
use trainer_plugin_host::types::{Content, Conversation, Message};
use trainer_plugin_host::{
    CompilerCommand, HostOptions, Kind, Limits, MixerSetup, Plugin, PluginError, PluginHost, RowError, RowOutcome, ToolContext,
};

fn conversation() -> Conversation {
    let message = Message {
        role: "user".into(),
        content: Content::Text("well?".into()),
        reasoning_content: None,
        tool_calls: Vec::new(),
        tool_call_id: None,
        name: None,
        weight: None,
        spans: Vec::new(),
    };
    Conversation { messages: vec![message], tools: Vec::new(), template_args: None, weight: 1.0 }
}

fn first<T>(mut results: Vec<Result<T, PluginError>>) -> Result<(), PluginError> {
    results.pop().unwrap().map(drop)
}

/// Calls an export by way of the kind's client.
fn drive(plugin: &Arc<Plugin>, kind: Kind, export: &str) -> Result<(), PluginError> {
    let none = &Value::Null;
    let rows = ["{}".to_owned()];
    match (kind, export) {
        (Kind::DatasetFormatter, _) => match plugin.formatter(none)?.format(&rows)?.pop().unwrap() {
            RowOutcome::Trapped(error) => Err(error),
            _ => Ok(()),
        },
        (Kind::EvalMetric, "scoring-version") => plugin.metric(none)?.scoring_version().map(drop),
        (Kind::EvalMetric, "score") => {
            first(plugin.metric(none)?.score(&[Item { row: "{}".into(), response: Response::Failed("no".into()) }])?)
        }
        (Kind::EvalMetric, "aggregate") => plugin.metric(none)?.aggregate(&[Vec::new()]).map(drop),
        (Kind::EvalMetric, _) => first(plugin.metric(none)?.prepare(&rows)?),
        (Kind::ChatTemplate, "describe") => plugin.template(none)?.describe().map(drop),
        (Kind::ChatTemplate, "render-training") => match plugin.template(none)?.render_training(&[conversation()])?.pop().unwrap() {
            Err(RowError::Trapped(error)) => Err(error),
            _ => Ok(()),
        },
        (Kind::ChatTemplate, "parse") => first(plugin.template(none)?.parse(&[vec![Piece::Text("x".into())]])?),
        (Kind::ChatTemplate, "output-parser" | "output-parser.push") => {
            plugin.template(none)?.output_parser(false)?.push(&[Piece::Text("x".into())]).map(drop)
        }
        (Kind::ChatTemplate, "output-parser.finish") => plugin.template(none)?.output_parser(false)?.finish().map(drop),
        (Kind::ChatTemplate, _) => {
            let request = PromptRequest { conversation: conversation(), add_generation_prompt: true, enable_thinking: None };
            match plugin.template(none)?.render_prompts(&[request])?.pop().unwrap() {
                Err(RowError::Trapped(error)) => Err(error),
                _ => Ok(()),
            }
        }
        (Kind::MixingPolicy, _) => {
            let sources = vec![Source { name: "a".into(), length: Some(4), random_access: true }];
            let setup = MixerSetup { settings: Value::Null, sources, seed: 1, feedback_lag: 0 };
            let mut mixer = plugin.mixer(&setup, (export == "mixer.restore").then_some(b"state".as_slice()))?;
            match export {
                "mixer.epoch-length" => mixer.epoch_length().map(drop),
                "mixer.feedback" => mixer.feedback(&Feedback { step: 1, sources: Vec::new() }),
                "mixer.snapshot" => mixer.snapshot().map(drop),
                _ => mixer.next(2).map(drop),
            }
        }
        (Kind::ToolExecutor, "tools") => plugin.tools(none).map(drop),
        (Kind::ToolExecutor, _) => {
            let mut session = plugin.tool_session(&ToolContext { settings: Value::Null, seed: 1, now_ms: 0 })?;
            match export {
                "session.state-digest" => session.state_digest().map(drop),
                _ => session.call(&[Call { name: "t".into(), arguments: "{}".into() }]).map(drop),
            }
        }
    }
}

fn host(compiler: CompilerCommand) -> PluginHost {
    PluginHost::new(HostOptions { worker_instances: 2, ..HostOptions::new(compiler) }).unwrap()
}

/// The guests here are the test's own, so that they may be compiled in this process, which is much quicker.
fn quick() -> PluginHost {
    host(CompilerCommand::in_process())
}

fn kinds() -> impl Iterator<Item = (Kind, &'static str)> {
    Kind::ALL.into_iter().flat_map(|kind| kind.versions().iter().map(move |version| (kind, *version)))
}

/// Tools have no fuel; what ends one that spins is its deadline.
fn limits(kind: Kind, misdeed: &str) -> Limits {
    let deadline = if kind == Kind::ToolExecutor && misdeed == "spins" { "150ms" } else { "60s" };
    Limits { deadline: deadline.parse().unwrap(), table_elements: 20_000, ..tight() }
}

/// Without what depends on the machine.
fn neutral(error: &PluginError) -> String {
    let text = error.to_string();
    match text.split_once("(stopped after ") {
        Some((before, after)) => format!("{before}(stopped after [TIME]{}", &after[after.find(')').unwrap()..]),
        None => text,
    }
}

#[test]
fn every_export_in_every_misdeed() {
    let host = quick();
    let mut golden = String::new();
    for (kind, version) in kinds() {
        let exports = Guest::new(kind, version).exports();
        let good = Guest::new(kind, version).build();
        let good = host.load(&source(good), limits(kind, "")).unwrap();
        for export in &exports {
            writeln!(golden, "== {kind} {version}, {export}").unwrap();
            for (misdeed, body) in MISDEEDS {
                let guest = Guest::new(kind, version).body(export, body);
                let plugin = host.load(&source(guest.build()), limits(kind, misdeed)).unwrap();
                let began = Instant::now();
                let error = drive(&plugin, kind, export).expect_err(export);
                assert!(began.elapsed() < Duration::from_secs(20), "{kind} {export} {misdeed} took {:?}", began.elapsed());
                writeln!(golden, "{misdeed}: {}", neutral(&error)).unwrap();
                // Zeros are no answer where one for each row is wanted; but none of it is a trap.
                let after = drive(&good, kind, export);
                assert!(!matches!(after, Err(PluginError::Trap { .. } | PluginError::Limit { .. })), "{kind} {export}: {after:?}");
            }
        }
    }
    insta::assert_snapshot!(golden);
}

#[test]
fn answers_that_lie_beyond_the_memory() {
    let host = quick();
    let mut golden = String::new();
    for (kind, version) in kinds() {
        for export in Guest::new(kind, version).exports() {
            // What gives nothing back, and what gives back a handle itself.
            if ["mixer.feedback", "output-parser"].contains(&export.as_str()) {
                continue;
            }
            let plugin = host.load(&source(Guest::new(kind, version).answers_ones(&export).build()), limits(kind, "")).unwrap();
            writeln!(golden, "{}", neutral(&drive(&plugin, kind, &export).expect_err(&export))).unwrap();
        }
    }
    insta::assert_snapshot!(golden);
}

/// Kilobytes of this process in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap()
}

#[test]
fn memory_returns_to_where_it_was() {
    let host = host(compiler());
    let plugins: Vec<_> = kinds()
        .flat_map(|(kind, version)| MISDEEDS.map(|(misdeed, body)| (kind, version, misdeed, body)))
        .filter(|(kind, _, misdeed, _)| !(*kind == Kind::ToolExecutor && *misdeed == "spins"))
        .map(|(kind, version, misdeed, body)| {
            let export = Guest::new(kind, version).exports().pop().unwrap();
            let guest = Guest::new(kind, version).body(&export, body);
            (host.load(&source(guest.build()), limits(kind, misdeed)).unwrap(), kind, export)
        })
        .collect();
    let round = || plugins.iter().for_each(|(plugin, kind, export)| drop(drive(plugin, *kind, export).unwrap_err()));
    (0..4).for_each(|_| round());
    let before = resident();
    (0..16).for_each(|_| round());
    let after = resident();
    // Each round allocates some 16 MiB in six guests, and starts some forty.
    assert!(after < before + (24 << 10), "{before} kB before, {after} kB after 16 rounds");
}
