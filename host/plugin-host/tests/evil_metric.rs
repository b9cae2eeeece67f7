//! The evil guest as a metric: each of its payloads stopped with its words, the other rows and the host unharmed.

mod common;

use common::{host, prebuilt};
use serde_json::json;
use trainer_plugin_host::metric::{Item, Metric, Plan, Response, Score};
use trainer_plugin_host::{Limits, PluginError, Span};

fn evil(settings: &serde_json::Value) -> Metric {
    let limits = Limits { deadline: Span::seconds(60), memory: "64MiB".parse().unwrap(), ..Limits::default() };
    host().load(&prebuilt("test/evil"), limits).unwrap().metric(settings).unwrap()
}

fn row(payload: &str) -> String {
    json!({ "evil": payload }).to_string()
}

fn item(row: String) -> Item {
    Item { row, response: Response::Answers(Vec::new()) }
}

/// Without the plugin and its export, which every error names, and with `#` for numbers.
fn masked(error: &PluginError, export: &str) -> String {
    let text = error.to_string();
    let place = format!("plugin `evil` 0.1.0, trainer:eval-metric/metric@0.1.0#{export} ");
    let text = text.strip_prefix(&place).unwrap_or_else(|| panic!("{text} does not begin with {place}"));
    let mut masked = String::new();
    for c in text.chars() {
        match (c.is_ascii_digit(), masked.ends_with('#')) {
            (true, true) => {}
            (true, false) => masked.push('#'),
            (false, _) => masked.push(c),
        }
    }
    masked
}

#[test]
fn what_is_asked_is_checked() {
    let metric = evil(&json!({}));
    for (payload, golden) in [
        ("ask_forever", "hit its fuel_per_row limit: # units of fuel"),
        ("ask_twice", "returned a bad value: plans: # were returned for # given"),
        ("ask_nothing", "returned a bad value: plans: # were returned for # given"),
        ("no_repeats", "returned a bad value: plans[#].repeats: at least one answer has to be drawn"),
        ("no_tokens", "returned a bad value: plans[#].max-new-tokens: an answer of no tokens cannot be asked for"),
        ("empty_stop", "returned a bad value: plans[#].stop[#]: a stop string is not empty"),
        ("no_messages", "returned a bad value: plans[#].conversation.messages"),
        ("bad_pointer", "returned a bad value: plans[#].pointer"),
        ("gigabyte", "hit its memory limit: #MiB are allowed"),
        ("continuations", "hit its "),
    ] {
        let plans = metric.prepare(&["{}".to_owned(), row(payload), "{}".to_owned()]).unwrap();
        let [Ok(Plan::Ask(_)), Err(error), Ok(Plan::Ask(_))] = plans.as_slice() else { panic!("{payload}: {plans:?}") };
        let text = masked(error, "prepare");
        assert!(text.starts_with(golden), "{payload}:\n{text}\ndoes not begin with\n{golden}");
    }
}

#[test]
fn scores_are_checked() {
    let metric = evil(&json!({}));
    for (payload, golden) in [
        ("score_forever", "hit its fuel_per_row limit: # units of fuel"),
        ("score_twice", "returned a bad value: scores: # were returned for # given"),
        ("score_nothing", "returned a bad value: scores: # were returned for # given"),
        ("score_nan", "returned a bad value: scores[#][#].value: NaN"),
        ("score_infinite", "returned a bad value: scores[#][#].value: inf"),
        ("score_same_name", "returned a bad value: scores[#][#].name: the name `a` is given twice"),
        ("score_no_name", "returned a bad value: scores[#][#].name: \"\" is no name; it has # to # bytes and no control characters"),
        ("score_lines", "returned a bad value: scores[#][#].name: \"a\\nb\" is no name"),
        ("score_long_name", "returned a bad value: scores[#][#].name: \"aaaa"),
        ("score_gigabyte", "hit its memory limit: #MiB are allowed"),
        ("score_text", "hit its memory limit: #MiB are allowed"),
        ("score_many", "hit its "),
        ("score_panic", "trapped: wasm `unreachable` instruction executed"),
    ] {
        let scores = metric.score(&[item("{}".to_owned()), item(row(payload)), item("{}".to_owned())]).unwrap();
        let [Ok(_), Err(error), Ok(_)] = scores.as_slice() else { panic!("{payload}: {scores:?}") };
        let text = masked(error, "score");
        assert!(text.starts_with(golden), "{payload}:\n{text}\ndoes not begin with\n{golden}");
        assert!(text.len() < 2200, "{payload}: an error of {} bytes", text.len());
    }
}

#[test]
fn summaries_are_checked() {
    let metric = evil(&json!({}));
    let samples = |payload: &str| -> Vec<Vec<Score>> {
        metric.score(&[item("{}".to_owned()), item(row(payload))]).unwrap().into_iter().map(Result::unwrap).collect()
    };
    for (payload, golden) in [
        ("sum_forever", "hit its fuel_per_"),
        ("sum_refused", "failed: no no "),
        ("sum_nan", "returned a bad value: aggregates[#].value: NaN"),
        ("sum_negative_error", "returned a bad value: aggregates[#].stderr: -# is negative"),
        ("sum_nan_error", "returned a bad value: aggregates[#].stderr: NaN"),
        ("sum_same_name", "returned a bad value: aggregates[#].name: the name `mean` is given twice"),
        ("sum_no_name", "returned a bad value: aggregates[#].name: \"\" is no name"),
        ("sum_many", "hit its "),
        ("sum_trap", "trapped: wasm `unreachable` instruction executed"),
    ] {
        let error = metric.aggregate(&samples(payload)).map(|a| a.len()).unwrap_err();
        let text = masked(&error, "aggregate");
        assert!(text.starts_with(golden), "{payload}:\n{text}\ndoes not begin with\n{golden}");
        assert!(text.len() < 2200, "{payload}: an error of {} bytes", text.len());
    }
    // It is not worse for what came before.
    assert_eq!(metric.aggregate(&samples("none")).unwrap().len(), 1);
}

#[test]
fn versions_are_short() {
    assert_eq!(evil(&json!({})).scoring_version().unwrap(), "1");
    for length in [0, 257, 1 << 20] {
        let error = evil(&json!({ "version": length })).scoring_version().unwrap_err();
        assert!(error.to_string().contains("a version has 1 to 256 bytes"), "{error}");
    }
}
