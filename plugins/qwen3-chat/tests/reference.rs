//! The published templates' own output, from the reference data.

use qwen3_chat::python::{self, Value};
use qwen3_chat::{Form, Qwen3Chat, Revision, Settings};
use trainer_plugin_sdk::{
    CallArguments, Content, Conversation, Message, OutputParser, OutputPart, Piece, PromptRequest, Rendered, Template, ToolCall,
};

const REVISIONS: [(&str, Revision); 3] =
    [("qwen3", Revision::Qwen3), ("qwen3_later", Revision::Later), ("qwen3_unsloth", Revision::Unsloth)];

fn template(settings: Settings) -> Qwen3Chat {
    Qwen3Chat::new(settings).unwrap()
}

fn exact(revision: Revision) -> Settings {
    Settings { revision, form: Form::Exact, ..Settings::default() }
}

/// A JSON value with the methods that the tests need; numbers and key order as written.
struct Json(Value);

impl Json {
    fn lines(path: &str) -> Vec<Json> {
        let lines: Vec<Json> = trainer_test_support::text(path)
            .lines()
            .filter(|l| !l.trim().is_empty())
            .map(|l| Json(python::parse(l).unwrap_or_else(|e| panic!("{path}: {e}"))))
            .collect();
        assert!(!lines.is_empty(), "{path} is empty");
        lines
    }

    fn get(&self, key: &str) -> Option<&Value> {
        member(&self.0, key)
    }

    fn string(&self, key: &str) -> &str {
        string(self.get(key).unwrap_or_else(|| panic!("no {key}")))
    }
}

/// A member that is there and not null.
fn member<'v>(value: &'v Value, key: &str) -> Option<&'v Value> {
    let Value::Dict(entries) = value else { panic!("{value:?} is no object") };
    entries.iter().find(|(k, v)| k == key && *v != Value::Null).map(|(_, v)| v)
}

fn string(value: &Value) -> &str {
    let Value::String(s) = value else { panic!("{value:?} is no string") };
    s
}

fn list(value: &Value) -> &[Value] {
    let Value::List(items) = value else { panic!("{value:?} is no list") };
    items
}

fn dumped(value: &Value) -> String {
    let mut out = String::new();
    python::dumps(value, &mut out);
    out
}

fn message(value: &Value) -> Message {
    let text = |key| member(value, key).map(|v| string(v).to_owned());
    let call = |call: &Value| {
        let inner = member(call, "function").unwrap_or(call);
        let arguments = match member(inner, "arguments").unwrap() {
            Value::String(text) => CallArguments::Text(text.clone()),
            json => CallArguments::Json(dumped(json)),
        };
        ToolCall {
            id: member(call, "id").map(|v| string(v).to_owned()),
            name: string(member(inner, "name").unwrap()).to_owned(),
            arguments,
        }
    };
    Message {
        content: match member(value, "content") {
            None => Content::None,
            Some(Value::String(text)) => Content::Text(text.clone()),
            Some(json) => Content::Json(dumped(json)),
        },
        reasoning_content: text("reasoning_content"),
        tool_calls: member(value, "tool_calls").map(|calls| list(calls).iter().map(call).collect()).unwrap_or_default(),
        tool_call_id: text("tool_call_id"),
        name: text("name"),
        ..Message::empty(string(member(value, "role").unwrap()))
    }
}

fn conversation(case: &Json) -> Conversation {
    let messages: Vec<Message> = list(case.get("messages").unwrap()).iter().map(message).collect();
    let tools = case.get("tools").map(|t| list(t).iter().map(dumped).collect()).unwrap_or_default();
    Conversation { tools, ..Conversation::of(messages) }
}

fn request(case: &Json) -> PromptRequest {
    PromptRequest {
        conversation: conversation(case),
        add_generation_prompt: case.get("add_generation_prompt") == Some(&Value::Bool(true)),
        enable_thinking: case.get("enable_thinking").map(|v| *v == Value::Bool(true)),
    }
}

/// The pieces that stand for the template's own words are special tokens, and no other piece is.
fn check_pieces(id: &str, rendered: &Rendered) {
    for segment in &rendered.segments {
        match &segment.piece {
            Piece::Special(token) => assert!(token.starts_with('<') && token.ends_with('>'), "{id}: {token}"),
            Piece::Text(text) => assert!(!text.is_empty(), "{id}: an empty piece"),
        }
        assert!(segment.weight == 1.0, "{id}: weight {}", segment.weight);
    }
}

#[test]
fn reference_prompts_of_every_revision() {
    let cases = Json::lines("chat_template/cases.jsonl");
    let (mut texts, mut errors, mut differences) = (0, 0, 0);
    for case in &cases {
        let id = format!("{} ({})", case.string("id"), case.string("tag"));
        for (name, revision) in REVISIONS {
            let variant = case.get("variants").and_then(|v| member(v, name));
            differences += usize::from(variant.is_some());
            let (text, error) = match variant {
                Some(variant) => (member(variant, "text"), member(variant, "error")),
                None => (case.get("expected_text"), case.get("expected_error")),
            };
            let rendered = template(Settings { revision, ..Settings::default() }).render_prompt(&request(case));
            match (text, rendered) {
                (Some(text), Ok(rendered)) => {
                    assert_eq!(rendered.text(), string(text), "{id}, {name}");
                    check_pieces(&id, &rendered);
                    texts += 1;
                }
                (None, Err(reason)) => {
                    assert!(error.is_some(), "{id}, {name}: neither text nor error expected");
                    assert!(reason.starts_with("message ") && reason.contains("content"), "{id}, {name}: {reason}");
                    errors += 1;
                }
                (expected, rendered) => panic!("{id}, {name}: expected {expected:?}, got {rendered:?}"),
            }
        }
    }
    assert_eq!(texts + errors, cases.len() * REVISIONS.len());
    assert!(texts > 0 && errors > 0 && differences > 0, "{texts} texts, {errors} errors, {differences} differences");
}

#[test]
fn reference_training_texts_in_the_exact_form() {
    for case in Json::lines("chat_template/cases.jsonl") {
        let Some(text) = case.get("expected_text").filter(|_| case.get("add_generation_prompt") == Some(&Value::Bool(false))) else {
            continue;
        };
        let rendered = template(exact(Revision::Qwen3)).render_training(&conversation(&case)).unwrap();
        assert_eq!(rendered.len(), 1);
        assert_eq!(rendered[0].text(), string(text), "{}", case.string("id"));
    }
}

#[test]
fn reference_chat_messages_give_the_training_texts() {
    for case in Json::lines("dataset/expected_chat.jsonl") {
        let rendered = template(exact(Revision::Qwen3)).render_training(&conversation(&case)).unwrap();
        assert_eq!(rendered[0].text(), case.string("text"), "{:?}", case.get("index"));
        // One question and one answer: the stable form is the published one.
        let messages = list(case.get("messages").unwrap());
        let stable = template(Settings::default()).render_training(&conversation(&case)).unwrap();
        if messages.iter().filter(|m| string(member(m, "role").unwrap()) == "assistant").count() == 1 {
            assert_eq!(stable[0].text(), case.string("text"), "{:?}", case.get("index"));
        }
    }
}

/// The model's part of every assistant turn, parsed, gives the turn.
#[test]
fn reference_turns_survive_rendering_and_parsing() {
    let split = template(Settings { turns: qwen3_chat::Turns::Split, ..Settings::default() });
    let mut turns = 0;
    for case in Json::lines("chat_template/cases.jsonl") {
        let conversation = conversation(&case);
        let Ok(samples) = split.render_training(&conversation) else { continue };
        let assistants: Vec<&Message> = conversation.messages.iter().filter(|m| m.role == "assistant").collect();
        assert_eq!(samples.len(), assistants.len(), "{}", case.string("id"));
        for (sample, message) in samples.iter().zip(assistants) {
            let output: Vec<Piece> = sample.segments.iter().filter(|s| s.generated).map(|s| s.piece.clone()).collect();
            let mut parser = qwen3_chat::parser::Parser::new(false);
            let mut parts = parser.push(output);
            parts.extend(parser.finish());
            let (mut reasoning, mut words, mut calls) = (String::new(), String::new(), Vec::new());
            for part in trainer_plugin_sdk::adapter::join_parts(parts) {
                match part {
                    OutputPart::Reasoning(r) => reasoning.push_str(&r),
                    OutputPart::Text(t) => words.push_str(&t),
                    OutputPart::ToolCall(call) => calls.push(call),
                    OutputPart::Malformed(m) => panic!("{}: {m:?}", case.string("id")),
                }
            }
            let turn = qwen3_chat::render::turn(Revision::Qwen3, 0, message).unwrap();
            let id = case.string("id");
            turns += 1;
            if turn.content.text.contains("<tool_call>") {
                // The source wrote a call into the words. It is found, and rendered as a call it gives the same text.
                assert!(!calls.is_empty(), "{id}");
                let tool_calls = calls.into_iter().map(|c| ToolCall { id: None, name: c.name, arguments: c.arguments }).collect();
                let again = Message { reasoning_content: Some(reasoning), tool_calls, ..Message::assistant(words) };
                let rendered = split.render_training(&Conversation::of([Message::user("q"), again])).unwrap();
                let generated =
                    |r: &Rendered| r.segments.iter().filter(|s| s.generated).map(|s| s.piece.as_str().to_owned()).collect::<String>();
                assert_eq!(generated(&rendered[0]), generated(sample), "{id}");
                continue;
            }
            assert_eq!(reasoning, turn.reasoning.text.trim_matches('\n'), "{id}");
            assert_eq!(words, turn.content.text.trim_start_matches('\n'), "{id}");
            assert_eq!(calls.len(), message.tool_calls.len(), "{id}");
            for (parsed, call) in calls.iter().zip(&message.tool_calls) {
                assert_eq!(parsed.name, call.name, "{id}");
                let value = |a: &CallArguments| match a {
                    CallArguments::Json(json) | CallArguments::Text(json) => python::parse(json).unwrap(),
                };
                assert_eq!(value(&parsed.arguments), value(&call.arguments), "{id}");
            }
        }
    }
    assert!(turns > 0);
}
