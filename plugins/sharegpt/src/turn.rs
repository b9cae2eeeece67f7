//! One turn.

use serde_json::value::RawValue;
use trainer_plugin_sdk::{CallArguments, Content, Message, Object, Pointer, RowError, ToolCall};

use crate::roles::{Role, Roles};

const KEYS: [&str; 9] = ["from", "role", "value", "content", "weight", "tool_calls", "tool_call_id", "name", "reasoning_content"];

/// Reads a turn.
pub fn message(turn: &str, place: Pointer, roles: &Roles) -> Result<Message, RowError> {
    let turn = Object::read(turn, &KEYS, place.clone())?;
    let role_key = if turn.has("from") { "from" } else { "role" };
    if !turn.has(role_key) {
        return Err(RowError::new(place, "the turn says nowhere who speaks: neither `from` nor `role`"));
    }
    let said = turn.string(role_key)?;
    let role = roles.find(&said).ok_or_else(|| {
        let hint = "known are system, user, assistant, tool and their usual other names; the setting `roles` adds more";
        RowError::new(turn.place(role_key), format!("unknown role {said:?}: {hint}"))
    })?;
    let value_key = if turn.has("value") { "value" } else { "content" };
    let mut message = Message {
        reasoning_content: turn.optional_string("reasoning_content")?,
        tool_call_id: turn.optional_string("tool_call_id")?,
        name: turn.optional_string("name")?,
        weight: weight(&turn)?,
        ..Message::empty(role.name())
    };
    if role == Role::Calls {
        let calls = turn.string(value_key)?;
        let at = turn.place(value_key);
        let list = if calls.trim_start().starts_with('[') {
            serde_json::from_str::<Vec<&RawValue>>(&calls).map_err(|e| RowError::new(at.clone(), format!("not a list of calls: {e}")))?
        } else {
            let one = serde_json::from_str::<&RawValue>(&calls);
            vec![one.map_err(|e| RowError::new(at.clone(), format!("not a call in JSON: {e}")))?]
        };
        message.tool_calls = list.into_iter().map(|call| tool_call(call.get(), at.clone())).collect::<Result<_, _>>()?;
        message.content = Content::Text(String::new());
        return Ok(message);
    }
    if turn.get("tool_calls").is_some() {
        let at = turn.place("tool_calls");
        let calls = turn.list("tool_calls")?;
        message.tool_calls = calls.iter().enumerate().map(|(i, call)| tool_call(call, at.at(i))).collect::<Result<_, _>>()?;
    }
    message.content = content(&turn, value_key, role, !message.tool_calls.is_empty())?;
    Ok(message)
}

/// Whether a message holds words or calls of the assistant.
pub fn says_something(message: &Message) -> bool {
    let words = matches!(&message.content, Content::Text(text) if !text.trim().is_empty());
    message.role == "assistant" && (words || !message.tool_calls.is_empty())
}

fn content(turn: &Object<'_>, key: &str, role: Role, calls: bool) -> Result<Content, RowError> {
    match turn.get(key) {
        // An assistant that only calls tools says nothing.
        None if calls => Ok(Content::Text(String::new())),
        None => Err(turn.missing(key, "a string")),
        Some(list) if list.starts_with('[') && role != Role::Tool => parts(turn, key).map(Content::Text),
        Some(json) if json.starts_with(['[', '{']) && role == Role::Tool => Ok(Content::Json(json.to_owned())),
        Some(_) => turn.string(key).map(Content::Text),
    }
}

/// OpenAI's content parts, as far as they are text.
fn parts(turn: &Object<'_>, key: &str) -> Result<String, RowError> {
    let mut text = String::new();
    for (i, part) in turn.list(key)?.into_iter().enumerate() {
        let part = Object::read(part, &["type", "text"], turn.place(key).at(i))?;
        let kind = part.string("type")?;
        if kind != "text" {
            return Err(RowError::new(part.place("type"), format!("a part of type {kind:?}; only text can be trained on")));
        }
        text.push_str(&part.string("text")?);
    }
    Ok(text)
}

fn weight(turn: &Object<'_>) -> Result<Option<f32>, RowError> {
    let Some(raw) = turn.get("weight") else { return Ok(None) };
    match serde_json::from_str::<f32>(raw) {
        Ok(weight) if weight.is_finite() && weight >= 0.0 => Ok(Some(weight)),
        _ => Err(RowError::new(turn.place("weight"), format!("{raw} where a loss weight from 0 up belongs"))),
    }
}

/// A call, bare or in OpenAI's wrapper.
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
