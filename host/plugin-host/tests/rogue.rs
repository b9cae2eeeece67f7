//! A guest that misbehaves in every way: each stopped with its golden text, and the host unharmed.

mod common;

use common::{compiler, host, implement, rogue, rogue_module, source, tight};
use trainer_plugin_host::{Formatter, HostOptions, Limits, PluginError, PluginHost, RowOutcome, Span};

fn formatter(limits: Limits) -> Formatter {
    host().load(&source(rogue()), limits).unwrap().formatter(&serde_json::Value::Null).unwrap()
}

fn rows(rows: &[&str]) -> Vec<String> {
    rows.iter().map(|r| (*r).to_owned()).collect()
}

/// Asserts that a good row goes through.
fn unharmed(formatter: &Formatter) {
    let outcomes = formatter.format(&rows(&["ordinary"])).unwrap();
    assert!(matches!(outcomes.as_slice(), [RowOutcome::Skip(reason)] if reason == "ok"), "{outcomes:?}");
}

/// The error of a row between two good ones, which keep their outcomes.
fn trapped(formatter: &Formatter, row: &str) -> String {
    let outcomes = formatter.format(&rows(&["ordinary", row, "ordinary"])).unwrap();
    let [RowOutcome::Skip(_), RowOutcome::Trapped(error), RowOutcome::Skip(_)] = outcomes.as_slice() else {
        panic!("{row}: {outcomes:?}");
    };
    unharmed(formatter);
    error.to_string()
}

#[test]
fn every_misdeed_costs_its_row_and_nothing_else() {
    let formatter = formatter(tight());
    let at = "plugin `rogue` 1.2.3, trainer:dataset-formatter/formatter@0.1.0#format";
    let golden = [
        (
            "loop",
            "hit its fuel_per_row limit: 21000400 units of fuel in this call (fuel_per_call + rows x fuel_per_row + bytes x fuel_per_byte) \
             are allowed; raise it in the recipe: [plugins.rogue.limits] fuel_per_row = 10000000",
        ),
        (
            "memory",
            "hit its memory limit: 16MiB are allowed, 16448KiB were requested; raise it in the recipe: [plugins.rogue.limits] memory = \"32MiB\"",
        ),
        ("recurse", "hit its wasm_stack limit: 512KiB are allowed; raise it in the recipe: [plugins.rogue.limits] wasm_stack = \"1MiB\""),
        ("trap", "trapped: wasm `unreachable` instruction executed"),
        ("panic", "trapped: wasm `unreachable` instruction executed (it said: boom in the middle)"),
        (
            "amplify",
            "hit its returned_size limit: 8MiB are allowed; raise it in the recipe: [plugins.rogue.limits] returned_size = \"16MiB\"",
        ),
        ("gigabyte", "returned a bad value: its result: string pointer/length out of bounds of memory"),
        ("utf-8 that is none", "returned a bad value: its result: invalid utf-8 sequence of 1 bytes from index 0"),
        ("variant that is none", "returned a bad value: its result: unexpected discriminant: 9"),
        ("count", "returned a bad value: outcomes: 2 were returned for 1 given; each gets exactly one, in order"),
    ];
    for (row, text) in golden {
        // "loop" and others differ in length; the text above is for 4 bytes.
        let error = trapped(&formatter, row);
        assert_eq!(error, format!("{at} {text}"), "{row}");
    }
}

#[test]
fn a_reason_of_60_kilobytes_is_cut() {
    let formatter = formatter(tight());
    let outcomes = formatter.format(&rows(&["big"])).unwrap();
    let [RowOutcome::Skip(reason)] = outcomes.as_slice() else { panic!("{outcomes:?}") };
    assert!(reason.ends_with("[cut]") && reason.len() < 2100, "{} bytes", reason.len());
    unharmed(&formatter);
}

#[test]
fn a_flood_of_log_lines_is_cut_and_harms_nothing() {
    let formatter = formatter(tight());
    let outcomes = formatter.format(&rows(&["flood"])).unwrap();
    assert!(matches!(outcomes.as_slice(), [RowOutcome::Skip(reason)] if reason == "ok"), "{outcomes:?}");
    unharmed(&formatter);
}

#[test]
fn a_row_that_fails_only_because_of_an_instances_past_is_saved() {
    let formatter = formatter(tight());
    unharmed(&formatter);
    // In a used instance this row traps; in a fresh one it does not.
    let outcomes = formatter.format(&rows(&["stale", "ordinary"])).unwrap();
    assert!(outcomes.iter().all(|o| matches!(o, RowOutcome::Skip(reason) if reason == "ok")), "{outcomes:?}");
}

#[test]
fn a_deadline_stops_the_run_and_not_the_row() {
    let limits = Limits { deadline: Span::millis(200), fuel_per_call: u64::MAX, ..tight() };
    let formatter = formatter(limits);
    let error = formatter.format(&rows(&["ordinary", "loop"])).unwrap_err();
    let PluginError::Deadline { elapsed, limit, .. } = &error else { panic!("{error:?}") };
    assert!(*elapsed >= *limit && elapsed.as_secs() < 20, "{elapsed:?}");
    let text = error.to_string();
    assert!(text.contains("#format did not return within its deadline of 200ms"), "{text}");
    assert!(text.ends_with("raise it in the recipe: [plugins.rogue.limits] deadline = \"400ms\""), "{text}");
    unharmed(&formatter);
}

#[test]
fn threads_share_a_formatter() {
    let formatter = formatter(tight());
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let formatter = &formatter;
            scope.spawn(move || {
                for round in 0..20 {
                    if (thread + round) % 7 == 0 {
                        trapped(formatter, "trap");
                    } else {
                        unharmed(formatter);
                    }
                }
            });
        }
    });
}

#[test]
fn more_instances_than_the_pool_holds() {
    let host = host();
    let plugin = host.load(&source(rogue()), tight()).unwrap();
    // Each client keeps an instance; the pool has 512 places.
    let formatters: Vec<_> = (0..600).map(|_| plugin.formatter(&serde_json::Value::Null).unwrap()).collect();
    unharmed(&formatters[0]);
    unharmed(&formatters[599]);
}

#[test]
fn what_an_instance_begins_with_is_limited_too() {
    let host = host();
    let load = |module: &str| {
        let plugin = host.load(&source(implement("dataset-formatter", module)), tight()).unwrap();
        plugin.formatter(&serde_json::Value::Null).err().unwrap().to_string()
    };
    assert_eq!(
        load(&rogue_module(300, "")),
        "plugin `rogue` 1.2.3, instantiation hit its memory limit: 16MiB are allowed, 19200KiB were requested; raise it in the recipe: \
         [plugins.rogue.limits] memory = \"32MiB\""
    );
    assert_eq!(
        load(&rogue_module(4, "unreachable")),
        "plugin `rogue` 1.2.3, instantiation trapped: wasm `unreachable` instruction executed"
    );
    assert!(load(&rogue_module(4, "(loop $l (br $l))")).contains("instantiation hit its fuel_per_row limit"));
}

#[test]
fn compiling_is_limited() {
    let host = PluginHost::new(HostOptions::new(compiler())).unwrap();
    let load = |limits: Limits| host.load(&source(rogue()), limits).unwrap_err().to_string();
    assert_eq!(
        load(Limits { compile_memory: "8MiB".parse().unwrap(), ..tight() }),
        "plugin `rogue` 1.2.3, compilation hit its compile_memory limit: 8MiB are allowed; raise it in the recipe: [plugins.rogue.limits] \
         compile_memory = \"16MiB\""
    );
    assert_eq!(
        load(Limits { compile_time: Span::millis(0), ..tight() }),
        "plugin `rogue` 1.2.3, compilation hit its compile_time limit: 0s are allowed; raise it in the recipe: [plugins.rogue.limits] \
         compile_time = \"1s\""
    );
    assert!(load(Limits { component_size: "1KiB".parse().unwrap(), ..tight() }).contains("more than 1KiB, its component_size limit"));
    assert!(load(Limits { wasm_stack: "8MiB".parse().unwrap(), ..tight() }).contains("wasm_stack"));
    let absent = PluginHost::new(HostOptions::new(trainer_plugin_host::CompilerCommand::new("/nowhere/compiler", [""; 0]))).unwrap();
    let error = absent.load(&source(rogue()), tight()).unwrap_err().to_string();
    assert!(error.starts_with("cannot start the plugin compiler /nowhere/compiler"), "{error}");
}
