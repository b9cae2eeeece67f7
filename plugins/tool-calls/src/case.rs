//! A row: the conversation to go on with, the tools on offer, and what is expected.

use serde_json::Value;
use trainer_plugin_sdk::{CallArguments, Content, Conversation, Message, Object, Pointer, RowError, ToolCall};

const KEYS: [&str; 4] = ["messages", "tools", "expected_calls", "answer_contains"];
const MESSAGE_KEYS: [&str; 6] = ["role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name"];

/// A call as it is compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The tool.
    pub name: String,
    /// The arguments as a value.
    pub arguments: Value,
}

/// What a row expects. What it does not say is not judged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expected {
    /// The calls, if the row says; an empty list expects none.
    pub calls: Option<Vec<Wanted>>,
    /// What the answer must contain, if the row says.
    pub contains: Option<Vec<String>>,
}

/// Reads what a row expects.
pub fn expected(row: &str) -> Result<Expected, RowError> {
    let row = Object::row(row, &KEYS)?;
    let mut expected = Expected::default();
    if row.get("expected_calls").is_some() {
        let place = row.place("expected_calls");
        let calls = row.list("expected_calls")?;
        let calls = calls.into_iter().enumerate().map(|(i, call)| {
            let call = Object::read(call, &["name", "arguments"], place.at(i))?;
            let text = call.get("arguments").ok_or_else(|| call.missing("arguments", "an object"))?;
            let arguments = serde_json::from_str(text).map_err(|e| RowError::new(call.place("arguments"), format!("no JSON: {e}")))?;
            Ok(Wanted { name: call.string("name")?, arguments })
        });
        expected.calls = Some(calls.collect::<Result<_, RowError>>()?);
    }
    if let Some(text) = row.get("answer_contains") {
        let strings = serde_json::from_str(text)
            .map_err(|e| RowError::new(row.place("answer_contains"), format!("a list of strings belongs there: {e}")))?;
        expected.contains = Some(strings);
    }
    Ok(expected)
}

/// Reads a row's conversation.
pub fn conversation(row: &str) -> Result<Conversation, RowError> {
    let row = Object::row(row, &KEYS)?;
    let place = row.place("messages");
    let messages = row.list("messages")?.into_iter().enumerate().map(|(i, text)| message(text, place.at(i)));
    let messages = messages.collect::<Result<Vec<_>, _>>()?;
    if messages.is_empty() {
        return Err(RowError::new(place, "a conversation has at least one message"));
    }
    let tools = if row.get("tools").is_some() { row.list("tools")?.into_iter().map(str::to_owned).collect() } else { Vec::new() };
    Ok(Conversation { tools, ..Conversation::of(messages) })
}

fn message(text: &str, place: Pointer) -> Result<Message, RowError> {
    let object = Object::read(text, &MESSAGE_KEYS, place)?;
    let mut message = Message {
        reasoning_content: object.optional_string("reasoning_content")?,
        tool_call_id: object.optional_string("tool_call_id")?,
        name: object.optional_string("name")?,
        ..Message::empty(object.string("role")?)
    };
    if object.get("tool_calls").is_some() {
        let at = object.place("tool_calls");
        let calls = object.list("tool_calls")?.into_iter().enumerate().map(|(i, call)| tool_call(call, at.at(i)));
        message.tool_calls = calls.collect::<Result<_, _>>()?;
    }
    message.content = match object.get("content") {
        // The template needs text where an assistant only calls tools.
        None if message.role == "assistant" => Content::Text(String::new()),
        None => return Err(object.missing("content", "a string")),
        Some(text) if text.starts_with('"') => Content::Text(object.string("content")?),
        Some(json) => Content::Json(json.to_owned()),
    };
    Ok(message)
}

/// A call of the history, bare or in OpenAI's wrapper.
fn tool_call(call: &str, place: Pointer) -> Result<ToolCall, RowError> {
    let outer = Object::read(call, &["id", "function", "name", "arguments"], place)?;
    let id = outer.optional_string("id")?;
    let inner = match outer.get("function") {
        Some(function) => Object::read(function, &["name", "arguments"], outer.place("function"))?,
        None => outer,
    };
    let arguments = match inner.get("arguments") {
        None => return Err(inner.missing("arguments", "an object")),
        Some(text) if text.starts_with('"') => CallArguments::Text(inner.string("arguments")?),
        Some(json) => CallArguments::Json(json.to_owned()),
    };
    Ok(ToolCall { id, name: inner.string("name")?, arguments })
}
