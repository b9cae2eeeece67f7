//! The evil guest, written with the SDK like any plugin: each of its payloads stopped with its golden text, the host unharmed.

mod common;

use common::{host, prebuilt};
use serde_json::json;
use trainer_plugin_host::{Formatter, Limits, RowOutcome, Span};

fn evil() -> Formatter {
    let limits = Limits { deadline: Span::seconds(60), memory: "64MiB".parse().unwrap(), ..Limits::default() };
    host().load(&prebuilt("test/evil"), limits).unwrap().formatter(&json!({})).unwrap()
}

fn row(payload: &str) -> String {
    json!({ "evil": payload }).to_string()
}

/// The error of the payload's row, alone among good ones; then a good row.
fn stopped(formatter: &Formatter, payload: &str) -> String {
    let good = "{}".to_owned();
    let outcomes = formatter.format(&[good.clone(), row(payload), good.clone()]).unwrap();
    let [RowOutcome::Sample(_), middle, RowOutcome::Sample(_)] = outcomes.as_slice() else { panic!("{payload}: {outcomes:?}") };
    let RowOutcome::Trapped(error) = middle else { panic!("{payload}: {middle:?}") };
    let after = formatter.format(&[good]).unwrap();
    assert!(matches!(after.as_slice(), [RowOutcome::Sample(_)]), "after {payload}: {after:?}");
    error.to_string()
}

/// Version numbers, sizes that depend on the guest's build, and line numbers, made equal.
fn assert_golden(formatter: &Formatter, payload: &str, golden: &str) {
    let text = stopped(formatter, payload);
    let version = formatter.plugin().version();
    let text = text.replace(&format!("plugin `evil` {version}, trainer:dataset-formatter/formatter@0.1.0#format "), "");
    let mut masked = String::new();
    let mut digits = false;
    for c in text.chars() {
        if c.is_ascii_digit() {
            if !digits {
                masked.push('#');
            }
            digits = true;
        } else {
            digits = false;
            masked.push(c);
        }
    }
    assert!(masked.starts_with(golden), "{payload}:\n{masked}\ndoes not begin with\n{golden}\n({text})");
}

#[test]
fn every_payload_is_stopped_with_its_text() {
    let formatter = evil();
    let golden = [
        (
            "loop",
            "hit its fuel_per_row limit: # units of fuel in this call (fuel_per_call + rows x fuel_per_row + bytes x fuel_per_byte) are allowed; raise it in the recipe: [plugins.evil.limits] fuel_per_row = #",
        ),
        ("alloc", "hit its memory limit: #MiB are allowed, #"),
        ("pages", "hit its memory limit: #MiB are allowed, #"),
        ("recurse", "hit its wasm_stack limit: #KiB are allowed; raise it in the recipe: [plugins.evil.limits] wasm_stack = \"#MiB\""),
        ("gigabyte", "hit its memory limit: #MiB are allowed, #"),
        ("trap", "trapped: wasm `unreachable` instruction executed"),
        ("panic", "trapped: wasm `unreachable` instruction executed (it said: panicked at "),
        ("wrong_count", "returned a bad value: outcomes: # were returned for # given; each gets exactly one, in order"),
        ("no_outcome", "returned a bad value: outcomes: # were returned for # given; each gets exactly one, in order"),
        ("nan_weight", "returned a bad value: outcomes[#].messages[#].weight: NaN is no weight; it is finite and not negative"),
        ("negative_weight", "returned a bad value: outcomes[#].messages[#].weight: -# is no weight; it is finite and not negative"),
        ("infinite_weight", "returned a bad value: outcomes[#].weight: inf is no weight; it is finite and not negative"),
        ("bad_span", "returned a bad value: outcomes[#].messages[#].spans[#]: #..# does not lie in the text of # bytes"),
        ("split_span", "returned a bad value: outcomes[#].messages[#].spans[#]: #..# cuts a character in two"),
        (
            "overlapping_spans",
            "returned a bad value: outcomes[#].messages[#].spans[#]: #..# begins before the span ahead of it ends (#); spans are sorted and apart",
        ),
        ("bad_json", "returned a bad value: outcomes[#].tools[#]: it is not valid JSON: "),
        (
            "deep_json",
            "hit its json_depth limit: # are allowed, # in outcomes[#].messages[#].content were requested; raise it in the recipe: [plugins.evil.limits] json_depth = #",
        ),
        ("no_messages", "returned a bad value: outcomes[#].messages: a conversation has at least one message"),
        ("bad_pointer", "returned a bad value: outcomes[#].pointer: \"no/slash\" is no JSON Pointer (RFC #)"),
    ];
    for (payload, text) in golden {
        assert_golden(&formatter, payload, text);
    }
    // Whichever limit they meet first: memory in the guest or the size of what is returned.
    for payload in ["amplify", "huge_list"] {
        let text = stopped(&formatter, payload);
        assert!(text.contains(" limit: ") && text.contains("raise it in the recipe: [plugins.evil.limits] "), "{payload}: {text}");
    }
}

#[test]
fn floods_of_the_log_are_cut_and_cost_nothing() {
    let formatter = evil();
    for payload in ["log_flood", "long_log"] {
        let outcomes = formatter.format(&[row(payload)]).unwrap();
        assert!(matches!(outcomes.as_slice(), [RowOutcome::Sample(_)]), "{payload}: {outcomes:?}");
    }
}
