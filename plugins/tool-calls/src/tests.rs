use serde_json::json;
use trainer_plugin_sdk::bindings::exports::trainer::eval_metric::metric::Call;
use trainer_plugin_sdk::{Answer, CallArguments, Content, Finish, Item, Metric, Plan, Request, Response, Value};

use crate::{Settings, ToolCalls};

fn metric(settings: &str) -> ToolCalls {
    let settings: Settings = serde_json::from_str(settings).unwrap();
    ToolCalls::new(settings).unwrap()
}

fn answer(text: &str, calls: &[(&str, serde_json::Value)]) -> Answer {
    let calls = calls.iter().map(|(name, arguments)| Call { name: (*name).into(), arguments: CallArguments::Json(arguments.to_string()) });
    Answer {
        raw: String::new(),
        text: text.to_owned(),
        reasoning: String::new(),
        calls: calls.collect(),
        malformed: Vec::new(),
        finish: Finish::Stop,
    }
}

fn row(expected: serde_json::Value) -> String {
    json!({"messages": [{"role": "user", "content": "?"}], "expected_calls": expected, "answer_contains": ["21"]}).to_string()
}

fn exact(settings: &str, expected: serde_json::Value, answer: Answer) -> (Value, String) {
    let scores = metric(settings).score(&Item { row: row(expected), response: Response::Answers(vec![answer]) });
    assert_eq!(scores[0].name, "exact");
    (scores[0].value.clone(), scores[0].explanation.clone())
}

#[test]
fn calls_are_compared_as_values() {
    let two = json!([{"name": "f", "arguments": {"x": 1, "y": [1, 2]}}, {"name": "g", "arguments": {}}]);
    let f = ("f", json!({"y": [1.0, 2], "x": 1.0}));
    let g = ("g", json!({}));
    assert_eq!(exact("{}", two.clone(), answer("", &[f.clone(), g.clone()])).0, Value::Boolean(true));
    assert_eq!(exact("{}", two.clone(), answer("", &[g.clone(), f.clone()])).0, Value::Boolean(false));
    let any = r#"{"order": "any"}"#;
    assert_eq!(exact(any, two.clone(), answer("", &[g.clone(), f.clone()])).0, Value::Boolean(true));
    assert_eq!(exact(any, two.clone(), answer("", &[g.clone(), g.clone()])).0, Value::Boolean(false));
    for wrong in [
        vec![f.clone()],
        vec![f.clone(), g.clone(), g.clone()],
        vec![("f", json!({"x": 1, "y": [2, 1]})), g.clone()],
        vec![("f", json!({"x": "1", "y": [1, 2]})), g.clone()],
        vec![("f", json!({"x": 1, "y": [1, 2], "z": null})), g.clone()],
        vec![("h", f.1.clone()), g.clone()],
    ] {
        assert_eq!(exact(any, two.clone(), answer("", &wrong)).0, Value::Boolean(false), "{wrong:?}");
    }
    let (value, words) = exact("{}", json!([]), answer("", &[g]));
    assert_eq!((value, words.as_str()), (Value::Boolean(false), "expected no call, made g({})"));
    assert_eq!(exact("{}", json!([]), answer("", &[])), (Value::Boolean(true), "made no call".into()));
}

#[test]
fn a_failed_attempt_is_not_exact() {
    let mut tried = answer("", &[("f", json!({}))]);
    tried.malformed.push("the call's JSON is not complete".into());
    let (value, words) = exact("{}", json!([{"name": "f", "arguments": {}}]), tried);
    assert_eq!(value, Value::Boolean(false));
    assert_eq!(words, "expected f({}), made f({}), and what is no call (the call's JSON is not complete)");
    let mut string = answer("", &[]);
    string.calls.push(Call { name: "f".into(), arguments: CallArguments::Text("{}".into()) });
    assert_eq!(exact("{}", json!([{"name": "f", "arguments": {}}]), string).0, Value::Boolean(false));
}

#[test]
fn samples_are_summed_up_and_failures_count_as_wrong() {
    let m = metric("{}");
    let item = |row: &str, response| Item { row: row.into(), response };
    let both = row(json!([]));
    let only_contains = r#"{"messages": [], "answer_contains": ["a", "b"]}"#;
    let samples = [
        m.score(&item(&both, Response::Answers(vec![answer("it is 21", &[])]))),
        m.score(&item(&both, Response::Failed("a plugin failed".into()))),
        m.score(&item(only_contains, Response::Answers(vec![answer("b a", &[])]))),
        m.score(&item(only_contains, Response::Answers(vec![answer("b", &[]), answer("ab", &[])]))),
    ];
    assert_eq!((&samples[1][0].value, samples[1][0].explanation.as_str()), (&Value::Unscored, "a plugin failed"));
    assert_eq!(samples[3].len(), 1);
    assert_eq!((&samples[3][0].value, samples[3][0].explanation.as_str()), (&Value::Number(0.5), "\"a\" not in the answer; "));
    let sums = m.aggregate(&samples).unwrap();
    let shown: Vec<(&str, f64)> = sums.iter().map(|a| (a.name.as_str(), a.value)).collect();
    assert_eq!(shown, [("exact", 0.5), ("answer_contains", 2.5 / 4.0)]);
    // What the host gives for a sample on which the metric itself failed.
    let error = trainer_plugin_sdk::Score { name: "error".into(), value: Value::Unscored, explanation: "trap".into() };
    let sums = m.aggregate(&[samples[0].clone(), vec![error]]).unwrap();
    assert_eq!(sums.iter().map(|a| a.value).collect::<Vec<_>>(), [0.5, 0.5]);
    // Nothing says what the answer must contain: no such number.
    let calls = m.score(&item(r#"{"expected_calls": []}"#, Response::Answers(vec![answer("", &[])])));
    assert_eq!(m.aggregate(&[calls]).unwrap().len(), 1);
    assert!(m.aggregate(&[]).is_err());
}

#[test]
fn rows_become_conversations_or_are_bad() {
    let m = metric(r#"{"max_new_tokens": 64}"#);
    let row = json!({
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "content": {"t": 1}, "tool_call_id": "1"},
        ],
        "tools": [{"name": "f"}], "expected_calls": [], "tool_fixtures": 5,
    });
    let Plan::Ask(Request::Generate(asked)) = m.prepare(&row.to_string()).unwrap() else { panic!() };
    let c = &asked.conversation;
    assert_eq!((c.messages.len(), c.tools.len(), asked.max_new_tokens), (3, 1, Some(64)));
    assert_eq!(c.messages[1].content, Content::Text(String::new()));
    assert_eq!(c.messages[1].tool_calls[0].arguments, CallArguments::Text("{\"x\": 1}".into()));
    assert_eq!(c.messages[2].content, Content::Json("{\"t\":1}".into()));
    assert!(matches!(m.prepare(r#"{"messages": []}"#), Ok(Plan::Skip(_))));
    for (row, pointer) in [
        (r#"{"expected_calls": []}"#, "/messages"),
        (r#"{"expected_calls": [], "messages": []}"#, "/messages"),
        (r#"{"expected_calls": [{"name": "f"}], "messages": []}"#, "/expected_calls/0/arguments"),
        (r#"{"answer_contains": [1], "messages": []}"#, "/answer_contains"),
        (r#"{"answer_contains": [], "messages": [{"role": "user"}]}"#, "/messages/0/content"),
        (r#"{"answer_contains": [], "messages": [{"content": "x"}]}"#, "/messages/0/role"),
        (r#"{"expected_calls": {}, "messages": []}"#, "/expected_calls"),
    ] {
        assert_eq!(m.prepare(row).unwrap_err().pointer.to_string(), pointer, "{row}");
    }
    assert!(ToolCalls::new(Settings { max_new_tokens: Some(0), ..Settings::default() }).is_err());
}
