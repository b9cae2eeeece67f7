use trainer_plugin_sdk::{CallArguments, Content, Conversation, Formatter, Outcome};

use crate::{Settings, ShareGpt};

fn with(settings: &str, row: &str) -> Outcome {
    let settings: Settings = serde_json::from_str(settings).unwrap();
    ShareGpt::new(settings).unwrap().format(row).unwrap_or_else(Into::into)
}

fn sample(row: &str) -> Conversation {
    match with("{}", row) {
        Outcome::Sample(sample) => sample,
        other => panic!("{row}: {other:?}"),
    }
}

fn turns(sample: &Conversation) -> Vec<(&str, &str)> {
    fn text(content: &Content) -> &str {
        match content {
            Content::Text(text) => text,
            other => panic!("{other:?}"),
        }
    }
    sample.messages.iter().map(|m| (m.role.as_str(), text(&m.content))).collect()
}

fn bad(row: &str) -> String {
    match with("{}", row) {
        Outcome::Bad(error) => format!("{}: {}", error.pointer, error.message),
        other => panic!("{row}: {other:?}"),
    }
}

#[test]
fn reference_chat_rows_give_the_peers_messages() {
    let rows: Vec<String> =
        trainer_test_support::text("dataset/chat.jsonl").lines().filter(|l| !l.trim().is_empty()).map(str::to_owned).collect();
    for expected in trainer_test_support::jsonl("dataset/expected_chat.jsonl") {
        let sample = sample(&rows[expected["index"].as_u64().unwrap() as usize]);
        let messages: Vec<(&str, &str)> = expected["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| (m["role"].as_str().unwrap(), m["content"].as_str().unwrap()))
            .collect();
        assert_eq!(turns(&sample), messages, "{}", expected["index"]);
    }
}

/// What the peers take, this plugin takes; what it refuses, they refuse.
#[test]
fn reference_dirty_rows_each_have_an_outcome() {
    let text = trainer_test_support::text("dataset/dirty/chat_dirty.jsonl");
    let lines: Vec<&str> = text.lines().collect();
    let (mut good, mut refused) = (0, 0);
    for peer in trainer_test_support::jsonl("dataset/dirty/peer_results.jsonl") {
        if peer["file"] != "chat_dirty.jsonl" || peer["line"].is_null() {
            continue;
        }
        let line = lines[peer["line"].as_u64().unwrap() as usize - 1];
        match with("{}", line) {
            Outcome::Sample(_) => good += 1,
            Outcome::Bad(error) => {
                assert!(peer["ok"] == false, "{line}: {error:?}");
                assert!(!error.message.is_empty() && (error.pointer.is_empty() || error.pointer.starts_with('/')));
                refused += 1;
            }
            Outcome::Skip(reason) => panic!("{line}: skipped, {reason}"),
        }
    }
    assert!(good > 0 && refused > 0);
}

#[test]
fn forms_of_turns() {
    for row in [
        r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}"#,
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
        r#"{"conversation": [{"role": " User ", "content": "a"}, {"role": "CHATGPT", "content": "b"}]}"#,
        r#"{"conversations": [{"from": "input", "value": "a", "x": [1]}, {"from": "output", "value": "b"}], "messages": 3}"#,
        r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "model", "content": "b"}], "tools": null}"#,
    ] {
        assert_eq!(turns(&sample(row)), [("user", "a"), ("assistant", "b")], "{row}");
    }
    let system = sample(r#"{"system": "s", "conversations": [{"from": "human", "value": "a"}]}"#);
    assert_eq!(turns(&system), [("system", "s"), ("user", "a")]);
    let weighted =
        sample(r#"{"conversations": [{"from": "human", "value": "a", "weight": 0.5}, {"from": "gpt", "value": "b", "weight": null}]}"#);
    assert_eq!((weighted.messages[0].weight, weighted.messages[1].weight), (Some(0.5), None));
}

#[test]
fn tools_and_calls() {
    let row = r#"{"messages": [{"role": "user", "content": "q"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}},
            {"name": "g", "arguments": {"b": 1.50}}]},
        {"role": "function", "name": "f", "content": {"x": 1.0}, "tool_call_id": "c1"},
        {"role": "function_call", "content": "{\"name\": \"h\", \"arguments\": {}}"}], "tools": "[{\"name\": \"f\", \"n\": 1.0}]"}"#;
    let sample = sample(row);
    assert_eq!(sample.tools, [r#"{"name": "f", "n": 1.0}"#]);
    let calls = &sample.messages[1].tool_calls;
    assert_eq!((calls[0].id.as_deref(), calls[0].name.as_str()), (Some("c1"), "f"));
    assert_eq!(calls[0].arguments, CallArguments::Text("{\"a\":1}".to_owned()));
    assert_eq!(calls[1].arguments, CallArguments::Json("{\"b\": 1.50}".to_owned()));
    assert_eq!(sample.messages[1].content, Content::Text(String::new()));
    assert_eq!(sample.messages[2].content, Content::Json("{\"x\": 1.0}".to_owned()));
    assert_eq!((sample.messages[2].role.as_str(), sample.messages[2].tool_call_id.as_deref()), ("tool", Some("c1")));
    assert_eq!((sample.messages[3].role.as_str(), sample.messages[3].tool_calls[0].name.as_str()), ("assistant", "h"));
}

#[test]
fn bad_rows_point_at_the_place() {
    let turns = |turns: &str| format!("{{\"conversations\": {turns}}}");
    for (row, start) in [
        ("{}".to_owned(), ": no column with turns"),
        (turns("null"), "/conversations: null where a list belongs"),
        (turns("[]"), "/conversations: an empty list"),
        (turns("\"hello\""), "/conversations: a string where a list belongs"),
        (turns("[null]"), "/conversations/0: null where an object belongs"),
        (turns(r#"[{"value": "a"}]"#), "/conversations/0: the turn says nowhere who speaks"),
        (turns(r#"[{"from": "critic", "value": "a"}]"#), "/conversations/0/from: unknown role \"critic\""),
        (
            turns(r#"[{"from": "human", "value": "a"}, {"from": "gpt", "value": null}]"#),
            "/conversations/1/value: null where a string belongs",
        ),
        (turns(r#"[{"from": "human"}]"#), "/conversations/0/content: missing where a string belongs"),
        (turns(r#"[{"from": "human", "value": 1}]"#), "/conversations/0/value: a number where a string belongs"),
        (turns(r#"[{"from": "human", "value": "a", "weight": -1}]"#), "/conversations/0/weight: -1 where a loss weight"),
        (turns(r#"[{"from": "human", "value": [{"type": "image"}]}]"#), "/conversations/0/value/0/type: a part of type \"image\""),
        (r#"{"messages": [{"role": "user", "content": "a"}], "tools": [1]}"#.to_owned(), "/tools/0: a tool must be a JSON object"),
        (
            r#"{"messages": [{"role": "assistant", "tool_calls": [{"name": "f"}]}]}"#.to_owned(),
            "/messages/0/tool_calls/0/arguments: missing",
        ),
    ] {
        let error = bad(&row);
        assert!(error.starts_with(start), "{row}: {error}");
    }
}

#[test]
fn settings() {
    let row = r#"{"talk": [{"from": "narrator", "value": "a"}]}"#;
    let Outcome::Sample(sample) = with(r#"{"column": "talk", "roles": {"Narrator": "system"}}"#, row) else { panic!() };
    assert_eq!(turns(&sample), [("system", "a")]);
    assert!(matches!(with(r#"{"column": "talk", "roles": {"narrator": "user"}, "skip_unanswered": true}"#, row), Outcome::Skip(_)));
    let error = ShareGpt::new(serde_json::from_str(r#"{"roles": {"x": "critic"}}"#).unwrap()).map(|_| ()).unwrap_err();
    assert!(error.contains("critic"), "{error}");
}
