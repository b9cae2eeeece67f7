//! Conversations as files: one JSON object with `messages` as chat interfaces have them, `tools` and `enable_thinking`. Other members are passed
//! over, so that rows of data sets can be read too.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use trainer_plugin_host::types::{CallArguments, Content, Message, ToolCall};

/// A conversation is written by people and models; a larger file is a mistake.
const MAX_BYTES: u64 = 64 << 20;

/// What a file holds.
#[derive(Debug, Default, PartialEq)]
pub struct Dialogue {
    /// The messages.
    pub messages: Vec<Message>,
    /// The tools on offer, each one JSON object as it is written; none if the file does not say.
    pub tools: Option<Vec<String>>,
    /// Qwen3's thinking switch; none: not passed.
    pub enable_thinking: Option<bool>,
}

/// JSON that is passed on as it is written: numbers keep their digits.
type Raw = Box<RawValue>;

#[derive(Serialize, Deserialize)]
struct File {
    messages: Vec<FileMessage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tools: Option<Vec<Raw>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    enable_thinking: Option<bool>,
}

#[derive(Serialize, Deserialize)]
struct FileMessage {
    role: String,
    #[serde(default)]
    content: Option<Raw>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<FileCall>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

/// A call, in OpenAI's form or bare.
#[derive(Serialize, Deserialize)]
struct FileCall {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    function: Option<FileFunction>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    arguments: Option<Raw>,
}

#[derive(Serialize, Deserialize)]
struct FileFunction {
    name: String,
    arguments: Raw,
}

/// Reads a file.
pub fn read(path: &Path) -> Result<Dialogue> {
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let read = file.take(MAX_BYTES + 1).read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
    if read as u64 > MAX_BYTES {
        bail!("{} is larger than {} MiB; a conversation is one JSON object with messages", path.display(), MAX_BYTES >> 20);
    }
    parse(&text).with_context(|| format!("{} is no conversation", path.display()))
}

fn parse(text: &str) -> Result<Dialogue> {
    let file: File = serde_json::from_str(text).context("a JSON object with a list `messages` belongs there")?;
    let messages = file.messages.into_iter().enumerate().map(|(i, m)| message(m).with_context(|| format!("messages[{i}]")));
    Ok(Dialogue {
        messages: messages.collect::<Result<_>>()?,
        tools: file.tools.map(|tools| tools.iter().map(|t| t.get().to_owned()).collect()),
        enable_thinking: file.enable_thinking,
    })
}

/// A JSON string's characters, or none for other JSON.
fn string(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

fn message(m: FileMessage) -> Result<Message> {
    let content = match &m.content {
        Some(raw) if raw.get() == "null" => Content::None,
        None => Content::None,
        Some(raw) => string(raw).map_or_else(|| Content::Json(raw.get().to_owned()), Content::Text),
    };
    let calls = m.tool_calls.unwrap_or_default().into_iter().enumerate();
    Ok(Message {
        role: m.role,
        content,
        reasoning_content: m.reasoning_content,
        tool_calls: calls.map(|(i, c)| call(c).with_context(|| format!("tool_calls[{i}]"))).collect::<Result<_>>()?,
        tool_call_id: m.tool_call_id,
        name: m.name,
        weight: None,
        spans: Vec::new(),
    })
}

fn call(call: FileCall) -> Result<ToolCall> {
    let (name, arguments) = match call.function {
        Some(function) => (function.name, function.arguments),
        None => (call.name.context("a call has a `name`")?, call.arguments.context("a call has `arguments`")?),
    };
    let arguments = match string(&arguments) {
        Some(text) => CallArguments::Text(text),
        None => CallArguments::Json(arguments.get().to_owned()),
    };
    Ok(ToolCall { id: call.id, name, arguments })
}

/// Writes a file, the old or the new one being there in full.
pub fn write(path: &Path, dialogue: &Dialogue) -> Result<()> {
    let raw = |json: &str| RawValue::from_string(json.to_owned()).context("what was to be written is no JSON");
    let quoted = |text: &str| raw(&serde_json::Value::from(text).to_string());
    let file = File {
        messages: dialogue
            .messages
            .iter()
            .map(|m| -> Result<FileMessage> {
                let calls = m.tool_calls.iter().map(|c| -> Result<FileCall> {
                    let arguments = match &c.arguments {
                        CallArguments::Json(json) => raw(json)?,
                        CallArguments::Text(text) => quoted(text)?,
                    };
                    let function = Some(FileFunction { name: c.name.clone(), arguments });
                    Ok(FileCall { id: c.id.clone(), kind: Some("function".to_owned()), function, name: None, arguments: None })
                });
                let calls = calls.collect::<Result<Vec<_>>>()?;
                Ok(FileMessage {
                    role: m.role.clone(),
                    content: match &m.content {
                        Content::None => None,
                        Content::Text(text) => Some(quoted(text)?),
                        Content::Json(json) => Some(raw(json)?),
                    },
                    reasoning_content: m.reasoning_content.clone().filter(|r| !r.is_empty()),
                    tool_calls: Some(calls).filter(|c| !c.is_empty()),
                    tool_call_id: m.tool_call_id.clone(),
                    name: m.name.clone(),
                })
            })
            .collect::<Result<_>>()?,
        tools: dialogue.tools.as_ref().map(|tools| tools.iter().map(|t| raw(t)).collect::<Result<_>>()).transpose()?,
        enable_thinking: dialogue.enable_thinking,
    };
    let mut text = serde_json::to_vec_pretty(&file).context("cannot express the conversation as JSON")?;
    text.push(b'\n');
    trainer_model::durable::write_atomic(path, &text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let text = r#"{"id": 3, "messages": [{"role": "user", "content": "a\n\u001b"}, {"role": "assistant", "content": null, "reasoning_content": "hm",
            "tool_calls": [{"name": "f", "arguments": {"x": 1.50, "n": 123456789012345678901234567890}},
            {"id": "c1", "type": "function", "function": {"name": "g", "arguments": "{\"a\": 1}"}}]},
            {"role": "tool", "content": {"temp": 1e2}, "tool_call_id": "c1", "name": "g"}], "tools": [{"name": "f",  "b": 0.10}], "enable_thinking": false}"#;
        let first = parse(text).unwrap();
        assert_eq!((first.messages.len(), first.enable_thinking), (3, Some(false)));
        assert_eq!(first.tools.as_deref(), Some(&[r#"{"name": "f",  "b": 0.10}"#.to_owned()][..]));
        let calls = &first.messages[1].tool_calls;
        assert_eq!(calls[0].arguments, CallArguments::Json(r#"{"x": 1.50, "n": 123456789012345678901234567890}"#.to_owned()));
        assert_eq!(calls[1].arguments, CallArguments::Text("{\"a\": 1}".to_owned()));
        assert_eq!(first.messages[2].content, Content::Json(r#"{"temp": 1e2}"#.to_owned()));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.json");
        write(&path, &first).unwrap();
        assert_eq!(read(&path).unwrap(), first);
    }

    #[test]
    fn what_is_no_conversation_is_told_with_its_place() {
        let said = |text: &str| format!("{:#}", parse(text).unwrap_err());
        assert!(said("[]").contains("a JSON object with a list `messages` belongs there"));
        assert!(said(r#"{"messages": [{"content": "x"}]}"#).contains("missing field `role`"));
        let nameless = r#"{"messages": [{"role": "assistant", "tool_calls": [{"arguments": {}}]}]}"#;
        assert_eq!(said(nameless), "messages[0]: tool_calls[0]: a call has a `name`");
    }
}
