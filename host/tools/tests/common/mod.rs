//! Conversations and outputs for the tests, and a toolbox with the real calculator.

#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};
use trainer_plugin_host::template::{MalformedCall, OutputPart, ParsedCall};
use trainer_plugin_host::types::{CallArguments, Content, Conversation, Message};
use trainer_plugin_host::{CompilerCommand, HostOptions, Limits as PluginLimits, Plugin, PluginHost, PluginSource};
use trainer_tools::{Case, Episode, EpisodeKey, Limits, ToolPlugin, Toolbox, Turn, TurnEnd};

static HOST: LazyLock<PluginHost> = LazyLock::new(|| PluginHost::new(HostOptions::new(CompilerCommand::in_process())).unwrap());

pub fn calculator_with(limits: PluginLimits) -> Arc<Plugin> {
    let bytes = trainer_nano::plugin("calculator").unwrap().bytes;
    HOST.load(&PluginSource::Bytes { name: "calculator".into(), bytes: bytes.into() }, limits).unwrap()
}

pub fn calculator() -> ToolPlugin {
    ToolPlugin { plugin: calculator_with(PluginLimits::default()), settings: Value::Null }
}

pub fn toolbox(plugins: Vec<ToolPlugin>, limits: Limits) -> Arc<Toolbox> {
    Arc::new(Toolbox::new(plugins, limits).unwrap())
}

pub fn weather() -> Value {
    let parameters = json!({"type": "object", "properties": {"loc": {"type": "string", "maxLength": 40}}, "required": ["loc"], "additionalProperties": false});
    json!({"type": "function", "function": {"name": "get_weather", "description": "Weather of a city.", "parameters": parameters}})
}

pub fn calculate() -> Value {
    let parameters = json!({"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]});
    json!({"type": "function", "function": {"name": "calculate", "description": "Arithmetic.", "parameters": parameters}})
}

/// A row with these tools, and canned weather of Oslo and Rome.
pub fn case() -> Case {
    let row = json!({"id": "case-1", "tools": [], "tool_fixtures": [
        {"name": "get_weather", "arguments": {"loc": "Oslo"}, "response": {"temp_c": -8}},
        {"name": "get_weather", "arguments": {"loc": "Rome"}, "response": {"temp_c": 21}},
    ]});
    Case::of_row("cases.jsonl:1", &row.to_string()).unwrap()
}

pub fn key(case: &str, repeat: u32) -> EpisodeKey {
    EpisodeKey { metric: "tool_calls".into(), case: case.into(), repeat }
}

pub fn conversation(tools: &[Value]) -> Conversation {
    let user = Message {
        role: "user".into(),
        content: Content::Text("What now?".into()),
        reasoning_content: None,
        tool_calls: Vec::new(),
        tool_call_id: None,
        name: None,
        weight: None,
        spans: Vec::new(),
    };
    Conversation { messages: vec![user], tools: tools.iter().map(Value::to_string).collect(), template_args: None, weight: 1.0 }
}

pub fn episode(toolbox: &Arc<Toolbox>, tools: &[Value], case: Case) -> Episode {
    Episode::new(conversation(tools), toolbox.open(key("case-1", 0), case, 7, 1_700_000_000_000))
}

pub fn call(name: &str, arguments: impl ToString) -> OutputPart {
    OutputPart::ToolCall(ParsedCall { name: name.into(), arguments: CallArguments::Json(arguments.to_string()) })
}

pub fn malformed(raw: &str, message: &str) -> OutputPart {
    OutputPart::Malformed(MalformedCall { raw: raw.into(), message: message.into() })
}

pub fn text(words: &str) -> OutputPart {
    OutputPart::Text(words.into())
}

pub fn turn(parts: Vec<OutputPart>) -> Turn {
    Turn { tokens: 10, parts, end: TurnEnd::Stop }
}

/// What the conversation ends with: role and text of the last messages.
pub fn last(episode: &Episode, n: usize) -> Vec<(String, String)> {
    let messages = &episode.conversation().messages;
    let shown = |m: &Message| match &m.content {
        Content::Text(t) => (m.role.clone(), t.clone()),
        other => (m.role.clone(), format!("{other:?}")),
    };
    messages[messages.len() - n..].iter().map(shown).collect()
}
