//! Components with changed bytes: inspected, loaded and called, they end in an error or an answer. The fuzz target `load` does the same without end.

mod common;
#[path = "common/guest.rs"]
mod guest;

use std::sync::LazyLock;

use common::{rogue, source};
use guest::Guest;
use proptest::prelude::*;
use serde_json::Value;
use trainer_plugin_host::{CompilerCommand, HostOptions, Kind, Limits, PluginHost, Span, ToolContext, inspect};

/// Seeds: a formatter that does things, and each kind with answers of zeros.
static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let kinds = Kind::ALL.into_iter().flat_map(|kind| kind.versions().iter().map(move |version| Guest::new(kind, version).build()));
    std::iter::once(rogue()).chain(kinds).collect()
});

static HOST: LazyLock<PluginHost> = LazyLock::new(|| {
    let options = HostOptions { worker_instances: 1, ..HostOptions::new(CompilerCommand::in_process()) };
    PluginHost::new(options).unwrap()
});

#[derive(Debug, Clone)]
enum Change {
    Flip(prop::sample::Index, u8),
    Set(prop::sample::Index, u8),
    Remove(prop::sample::Index, usize),
    Insert(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index, usize),
    Cut(prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        4 => (at(), 0..8_u8).prop_map(|(i, bit)| Change::Flip(i, bit)),
        4 => (at(), prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0x7f), Just(0x80)]).prop_map(|(i, b)| Change::Set(i, b)),
        1 => (at(), 1..9_usize).prop_map(|(i, n)| Change::Remove(i, n)),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(i, b)| Change::Insert(i, b)),
        1 => (at(), 1..64_usize).prop_map(|(i, n)| Change::Repeat(i, n)),
        1 => at().prop_map(Change::Cut),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    if bytes.is_empty() {
        return;
    }
    match change {
        Change::Flip(i, bit) => {
            let at = i.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        Change::Set(i, byte) => {
            let at = i.index(bytes.len());
            bytes[at] = *byte;
        }
        Change::Remove(i, n) => {
            let at = i.index(bytes.len());
            bytes.drain(at..(at + n).min(bytes.len()));
        }
        Change::Insert(i, new) => {
            let at = i.index(bytes.len());
            bytes.splice(at..at, new.iter().copied());
        }
        Change::Repeat(i, n) => {
            let at = i.index(bytes.len());
            let part = bytes[at..(at + n).min(bytes.len())].to_vec();
            bytes.splice(at..at, part);
        }
        Change::Cut(i) => bytes.truncate(i.index(bytes.len())),
    }
}

fn limits() -> Limits {
    Limits {
        memory: "4MiB".parse().unwrap(),
        fuel_per_call: 500_000,
        fuel_per_row: 100_000,
        fuel_per_byte: 10,
        deadline: Span::seconds(20),
        returned_size: "1MiB".parse().unwrap(),
        ..Limits::default()
    }
}

/// An error that fits a line, whatever stands in the component.
fn short(error: &impl std::fmt::Display) {
    let text = error.to_string();
    assert!(text.len() < 4000 && !text.chars().any(char::is_control), "{text:?}");
}

fn feed(bytes: Vec<u8>) {
    let valid = inspect(&bytes).inspect_err(short).is_ok();
    // Without a child for the compiler only what is valid is compiled, in no more time than a small component takes.
    if !valid {
        if let Err(error) = HOST.load(&source(bytes), limits()) {
            short(&error);
        }
        return;
    }
    let plugin = match HOST.load(&source(bytes), limits()) {
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
                let setup = trainer_plugin_host::MixerSetup { settings: Value::Null, sources: Vec::new(), seed: 1, feedback_lag: 0 };
                plugin.mixer(&setup, None).and_then(|mut m| m.next(3).map(drop)).err()
            }
            Kind::ToolExecutor => {
                let context = ToolContext { settings: Value::Null, seed: 1, now_ms: 1 };
                plugin
                    .tools(none)
                    .map(drop)
                    .err()
                    .or_else(|| plugin.tool_session(&context).and_then(|mut s| s.state_digest().map(drop)).err())
            }
        };
        error.iter().for_each(short);
    }
}

/// Writes the seeds for the fuzz target: `TRAINER_FUZZ_SEEDS=FOLDER cargo test -p trainer-plugin-host --test mutants -- --ignored`. Small components, because
/// large ones, such as the official plugins, are compiled too slowly to be changed many times.
#[test]
#[ignore = "writes the seeds of the fuzz target"]
fn write_seeds() {
    let folder = std::path::PathBuf::from(std::env::var_os("TRAINER_FUZZ_SEEDS").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into()));
    std::fs::create_dir_all(&folder).unwrap();
    for (number, seed) in SEEDS.iter().enumerate() {
        std::fs::write(folder.join(format!("{number}.wasm")), seed).unwrap();
    }
}

#[test]
fn the_seeds_themselves_load() {
    for seed in SEEDS.iter() {
        inspect(seed).unwrap();
        HOST.load(&source(seed.clone()), limits()).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutants_end_in_an_error_or_an_answer(seed in any::<prop::sample::Index>(), changes in prop::collection::vec(change(), 1..6)) {
        let mut bytes = SEEDS[seed.index(SEEDS.len())].clone();
        changes.iter().for_each(|c| apply(&mut bytes, c));
        feed(bytes);
    }
}
