//! The shipped components, and conversations from the golden cases' JSON.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde_json::Value;
use trainer_plugin_host::template::{Piece, PromptRequest, Rendered};
use trainer_plugin_host::types::{CallArguments, Content, Conversation, Message, ToolCall};
use trainer_plugin_host::{CompilerCommand, HostOptions, Limits, Plugin, PluginHost, PluginSource};

pub fn plugin(name: &str) -> Arc<Plugin> {
    static HOST: OnceLock<PluginHost> = OnceLock::new();
    let host = HOST.get_or_init(|| PluginHost::new(HostOptions::new(CompilerCommand::in_process())).unwrap());
    let folder = match std::env::var_os("TRAINER_PREBUILT") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/prebuilt"),
    };
    host.load(&PluginSource::File(folder.join(format!("{name}.wasm"))), Limits::default()).unwrap()
}

pub fn text(rendered: &Rendered) -> String {
    let characters = |piece: &Piece| match piece {
        Piece::Text(s) | Piece::Special(s) => s.clone(),
    };
    rendered.segments.iter().map(|s| characters(&s.piece)).collect()
}

fn message(value: &Value) -> Message {
    let string = |key: &str| value[key].as_str().map(str::to_owned);
    let call = |call: &Value| {
        let inner = if call["function"].is_object() { &call["function"] } else { call };
        let arguments = match &inner["arguments"] {
            Value::String(text) => CallArguments::Text(text.clone()),
            json => CallArguments::Json(json.to_string()),
        };
        ToolCall { id: call["id"].as_str().map(str::to_owned), name: inner["name"].as_str().unwrap().to_owned(), arguments }
    };
    Message {
        role: string("role").unwrap(),
        content: match &value["content"] {
            Value::Null => Content::None,
            Value::String(text) => Content::Text(text.clone()),
            json => Content::Json(json.to_string()),
        },
        reasoning_content: string("reasoning_content"),
        tool_calls: value["tool_calls"].as_array().map(|calls| calls.iter().map(call).collect()).unwrap_or_default(),
        tool_call_id: string("tool_call_id"),
        name: string("name"),
        weight: None,
        spans: Vec::new(),
    }
}

pub fn request(case: &Value) -> PromptRequest {
    PromptRequest {
        conversation: Conversation {
            messages: case["messages"].as_array().unwrap().iter().map(message).collect(),
            tools: case["tools"].as_array().map(|tools| tools.iter().map(Value::to_string).collect()).unwrap_or_default(),
            template_args: None,
            weight: 1.0,
        },
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
        enable_thinking: case["enable_thinking"].as_bool(),
    }
}
