//! What a chat completion is asked for.

use serde_json::Value;
use trainer_kernels::sampling::SamplingParams;
use trainer_plugin_host::types::{CallArguments, Content, Conversation, Message, ToolCall};

use crate::app::{App, Asking};
use crate::error::{ApiError, Result};
use crate::fields::{Fields, mistyped, short};
use crate::params::{Common, MOST_LOGPROBS};
use crate::scribe::Calls;
use crate::tools::ServerTools;

/// The most messages, tools and calls of a message.
const MOST_MESSAGES: usize = 4096;
const MOST_TOOLS: usize = 256;

/// Which tools the model may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// It decides.
    Auto,
    /// None.
    None,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// A chat request.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// What it shares with plain completions.
    pub common: Common,
    /// Messages and tools.
    pub conversation: Conversation,
    /// Names of the client's tools.
    pub tools: Vec<String>,
    /// Whether tools of the server's are on offer beside them.
    pub served: bool,
    /// Which of them may be called.
    pub choice: ToolChoice,
    /// Whether an answer may have several calls.
    pub parallel: bool,
    /// Log-probabilities with so many alternatives.
    pub logprobs: Option<usize>,
    /// Qwen3's switch.
    pub enable_thinking: Option<bool>,
}

impl ChatRequest {
    /// Reads the body of a request to a server with tools of its own.
    ///
    /// # Errors
    /// The first thing that is wrong, with its parameter.
    pub fn of(body: &Value, defaults: &SamplingParams, server: &ServerTools) -> Result<Self> {
        let mut fields = Fields::new(body, "")?;
        let mut common = Common::read(&mut fields, defaults, 1)?;
        // The newer name of the same.
        if let Some(n) = fields.integer("max_completion_tokens", 1, i64::from(u32::MAX))? {
            common.max_tokens = Some(n as usize);
        }
        let messages = fields.array("messages")?.ok_or_else(|| ApiError::param("messages", "messages are missing"))?;
        if messages.is_empty() || messages.len() > MOST_MESSAGES {
            return Err(ApiError::param("messages", format!("there are {} messages; 1 to {MOST_MESSAGES} are possible", messages.len())));
        }
        let messages = messages.iter().enumerate().map(|(i, m)| message(m, &format!("messages[{i}]"))).collect::<Result<Vec<_>>>()?;
        let (mut schemas, tools) = tools(&mut fields)?;
        if let Some(name) = tools.iter().find(|t| server.names().contains(t)) {
            return Err(ApiError::param(
                "tools",
                format!("the tool {name} is one that this server executes itself; leave it out, or give yours another name"),
            ));
        }
        let all: Vec<&str> = tools.iter().chain(server.names()).map(String::as_str).collect();
        let choice = tool_choice(&mut fields, &all)?;
        let served = choice != ToolChoice::None && server.toolbox().is_some();
        schemas.extend_from_slice(server.offer());
        let parallel = fields.bool("parallel_tool_calls")?.unwrap_or(true);
        let top = fields.integer("top_logprobs", 0, MOST_LOGPROBS)?;
        let logprobs = match (fields.bool("logprobs")?.unwrap_or(false), top) {
            (true, top) => Some(top.unwrap_or(0) as usize),
            (false, None | Some(0)) => None,
            (false, Some(_)) => return Err(ApiError::param("top_logprobs", "top_logprobs are for requests with logprobs = true")),
        };
        let mut enable_thinking = fields.bool("enable_thinking")?;
        let mut template_args = None;
        if let Some(value) = fields.get("chat_template_kwargs") {
            let Value::Object(map) = value else { return Err(mistyped("chat_template_kwargs", value, "an object")) };
            let mut map = map.clone();
            match map.shift_remove("enable_thinking") {
                None | Some(Value::Null) => {}
                Some(Value::Bool(on)) => enable_thinking = Some(on),
                Some(other) => return Err(mistyped("chat_template_kwargs.enable_thinking", &other, "a boolean")),
            }
            template_args = (!map.is_empty()).then(|| Value::Object(map).to_string());
        }
        fields.refuse("response_format", |v| v.get("type").and_then(Value::as_str) == Some("text"), ": the only format is text")?;
        fields.refuse("modalities", |v| *v == serde_json::json!(["text"]), ": the only one is text")?;
        fields.refuse("reasoning_effort", |_| false, ": enable_thinking turns the reasoning on and off")?;
        fields.refuse("functions", |v| v.as_array().is_some_and(Vec::is_empty), ": use tools")?;
        fields.refuse("function_call", |_| false, ": use tool_choice")?;
        for key in ["audio", "prediction", "web_search_options", "verbosity"] {
            fields.refuse(key, |_| false, "")?;
        }
        fields.finish()?;
        let offered = if choice == ToolChoice::None { Vec::new() } else { schemas };
        let conversation = Conversation { messages, tools: offered, template_args, weight: 1.0 };
        Ok(ChatRequest { common, conversation, tools, served, choice, parallel, logprobs, enable_thinking })
    }

    /// Which calls its answers may have, in their first turn.
    pub fn calls(&self) -> Calls {
        let named = matches!(self.choice, ToolChoice::Named(_));
        Calls { offered: self.choice != ToolChoice::None, single: named || !self.parallel, named, held: self.served }
    }
}

impl Asking for ChatRequest {
    fn read(body: &Value, app: &App) -> Result<Self> {
        Self::of(body, &app.defaults, &app.tools)
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn answers(&self) -> usize {
        self.common.n
    }
}

/// The tools' schemas as JSON, and their names.
fn tools(fields: &mut Fields<'_>) -> Result<(Vec<String>, Vec<String>)> {
    let list = fields.array("tools")?.unwrap_or_default();
    if list.len() > MOST_TOOLS {
        return Err(ApiError::param("tools", format!("there are {} tools; at most {MOST_TOOLS} are possible", list.len())));
    }
    let (mut schemas, mut names) = (Vec::new(), Vec::new());
    for (i, tool) in list.iter().enumerate() {
        let path = format!("tools[{i}]");
        let mut object = Fields::new(tool, &path)?;
        match object.string("type")? {
            Some("function") => {}
            other => {
                return Err(ApiError::unsupported(object.path("type"), format!("{path}.type is {other:?}; the only type is \"function\"")));
            }
        }
        let mut function =
            object.object("function")?.ok_or_else(|| ApiError::param(object.path("function"), format!("{path}.function is missing")))?;
        let name = function.string("name")?.unwrap_or_default();
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || name.len() > 128 || !name.chars().all(fits) {
            let text = "a tool's name has 1 to 128 letters, digits, underscores, dots and dashes";
            return Err(ApiError::param(function.path("name"), format!("{path}.function.name: {text}")));
        }
        function.string("description")?;
        function.object("parameters")?;
        if names.iter().any(|n| n == name) {
            return Err(ApiError::param(function.path("name"), format!("two tools are called {name}")));
        }
        names.push(name.to_owned());
        schemas.push(tool.to_string());
    }
    Ok((schemas, names))
}

fn tool_choice(fields: &mut Fields<'_>, tools: &[&str]) -> Result<ToolChoice> {
    let bad = |message: String| Err(ApiError::param("tool_choice", message));
    let choice = match fields.get("tool_choice") {
        None => return Ok(if tools.is_empty() { ToolChoice::None } else { ToolChoice::Auto }),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" => ToolChoice::Required,
            other => {
                return bad(format!(
                    "tool_choice is {:?}; it must be auto, none, required or an object with a function's name",
                    short(other)
                ));
            }
        },
        Some(value @ Value::Object(_)) => {
            let mut object = Fields::new(value, "tool_choice")?;
            if object.string("type")? != Some("function") {
                return Err(ApiError::unsupported("tool_choice.type", "the only type of tool_choice is \"function\""));
            }
            let mut function =
                object.object("function")?.ok_or_else(|| ApiError::param("tool_choice.function", "tool_choice.function is missing"))?;
            let name =
                function.string("name")?.ok_or_else(|| ApiError::param("tool_choice.function.name", "the function's name is missing"))?;
            if !tools.contains(&name) {
                return bad(format!("tool_choice names {:?}, which is none of the tools", short(name)));
            }
            ToolChoice::Named(name.to_owned())
        }
        Some(other) => return Err(mistyped("tool_choice", other, "a string or an object")),
    };
    if tools.is_empty() && matches!(choice, ToolChoice::Required) {
        return bad("tool_choice is required, but there are no tools".into());
    }
    Ok(if tools.is_empty() { ToolChoice::None } else { choice })
}

fn message(value: &Value, path: &str) -> Result<Message> {
    let mut fields = Fields::new(value, path)?;
    let role = fields.string("role")?.ok_or_else(|| ApiError::param(fields.path("role"), format!("{path}.role is missing")))?;
    let role = match role {
        "system" | "user" | "assistant" | "tool" => role,
        // What newer clients call the system.
        "developer" => "system",
        other => {
            let text = format!("{path}.role is {:?}; it must be system, developer, user, assistant or tool", short(other));
            return Err(ApiError::param(fields.path("role"), text));
        }
    };
    let content = content(fields.get("content"), &format!("{path}.content"))?;
    let is_assistant = role == "assistant";
    let calls = fields.array("tool_calls")?.unwrap_or_default();
    if matches!(content, Content::None) && !is_assistant {
        return Err(ApiError::param(format!("{path}.content"), format!("{path}.content is missing")));
    }
    if !calls.is_empty() && !is_assistant {
        return Err(ApiError::param(format!("{path}.tool_calls"), format!("{path}.tool_calls: only an assistant calls tools")));
    }
    if calls.len() > MOST_TOOLS {
        return Err(ApiError::param(
            format!("{path}.tool_calls"),
            format!("{path} has {} calls; at most {MOST_TOOLS} are possible", calls.len()),
        ));
    }
    // OpenAI's answers that only call tools have null here; templates want text.
    let content = if matches!(content, Content::None) { Content::Text(String::new()) } else { content };
    let tool_calls = calls.iter().enumerate().map(|(i, c)| call(c, &format!("{path}.tool_calls[{i}]"))).collect::<Result<_>>()?;
    let reasoning = fields.string("reasoning_content")?;
    let message = Message {
        role: role.to_owned(),
        content,
        reasoning_content: reasoning.or(fields.string("reasoning")?).map(str::to_owned),
        tool_calls,
        tool_call_id: fields.string("tool_call_id")?.map(str::to_owned),
        name: fields.string("name")?.map(str::to_owned),
        weight: None,
        spans: Vec::new(),
    };
    // What this server's and other servers' answers have, and clients send back.
    fields.ignore(&["refusal", "annotations", "audio", "function_call"]);
    fields.finish()?;
    Ok(message)
}

/// Text, or a list of parts that are text.
fn content(value: Option<&Value>, path: &str) -> Result<Content> {
    match value {
        None => Ok(Content::None),
        Some(Value::String(text)) => Ok(Content::Text(text.clone())),
        Some(Value::Array(parts)) => {
            let mut all = String::new();
            for (i, part) in parts.iter().enumerate() {
                let path = format!("{path}[{i}]");
                let mut fields = Fields::new(part, &path)?;
                match fields.string("type")? {
                    Some("text") => {}
                    other => {
                        let text = format!("{path}.type is {:?}; this model reads text only", short(other.unwrap_or_default()));
                        return Err(ApiError::unsupported(fields.path("type"), text));
                    }
                }
                all.push_str(
                    fields.string("text")?.ok_or_else(|| ApiError::param(fields.path("text"), format!("{path}.text is missing")))?,
                );
            }
            Ok(Content::Text(all))
        }
        Some(other) => Err(mistyped(path, other, "a string or an array of text parts")),
    }
}

fn call(value: &Value, path: &str) -> Result<ToolCall> {
    let mut fields = Fields::new(value, path)?;
    let id = fields.string("id")?.map(str::to_owned);
    if !matches!(fields.string("type")?, None | Some("function")) {
        return Err(ApiError::unsupported(fields.path("type"), format!("{path}.type: the only type is \"function\"")));
    }
    let missing = |what: &str| ApiError::param(format!("{path}.function"), format!("{path}.function{what} is missing"));
    let mut function = fields.object("function")?.ok_or_else(|| missing(""))?;
    let name = function.string("name")?.ok_or_else(|| missing(".name"))?.to_owned();
    let arguments = match function.get("arguments") {
        // OpenAI's form: JSON in a string. The template writes objects in its own way, so that is what it gets where it is one.
        Some(Value::String(text)) => match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(_)) => CallArguments::Json(text.clone()),
            _ => CallArguments::Text(text.clone()),
        },
        Some(object @ Value::Object(_)) => CallArguments::Json(object.to_string()),
        None => return Err(missing(".arguments")),
        Some(other) => return Err(mistyped(&function.path("arguments"), other, "a string that holds a JSON object")),
    };
    Ok(ToolCall { id, name, arguments })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(more: Value) -> Result<ChatRequest> {
        let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "Hi" }] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ChatRequest::of(&body, &SamplingParams::default(), &ServerTools::new(None))
    }

    proptest::proptest! {
        #[test]
        fn no_request_is_too_odd(value in crate::fields::tests::values(), key in 0usize..24) {
            let odd = crate::fields::tests::with(json!({ "model": "m", "messages": [{ "role": "user", "content": "Hi" }] }), key, value);
            if let Err(error) = ChatRequest::of(&odd, &SamplingParams::default(), &ServerTools::new(None)) {
                proptest::prop_assert!(error.status.is_client_error() && (error.param.is_some() || !odd.is_object()), "{:?}", error);
            }
        }
    }

    #[test]
    fn messages_become_a_conversation() {
        let call = json!({ "id": "c1", "type": "function", "function": { "name": "f", "arguments": "{\"a\": 1.50}" } });
        let odd = json!({ "id": "c2", "function": { "name": "g", "arguments": "no json" } });
        let messages = json!([
            { "role": "developer", "content": [{ "type": "text", "text": "Be " }, { "type": "text", "text": "brief." }] },
            { "role": "user", "content": "Hi", "name": "Ann" },
            { "role": "assistant", "content": null, "tool_calls": [call, odd], "reasoning_content": "hm", "refusal": null, "unknown": null },
            { "role": "tool", "tool_call_id": "c1", "content": "7" },
        ]);
        let chat = read(json!({ "messages": messages })).unwrap();
        let all = &chat.conversation.messages;
        assert_eq!(all.iter().map(|m| m.role.as_str()).collect::<Vec<_>>(), ["system", "user", "assistant", "tool"]);
        assert!(matches!(&all[0].content, Content::Text(t) if t == "Be brief."));
        assert!(matches!(&all[2].content, Content::Text(t) if t.is_empty()), "templates want text");
        assert_eq!((all[2].reasoning_content.as_deref(), all[3].tool_call_id.as_deref()), (Some("hm"), Some("c1")));
        // As it was written, so that numbers are not widened.
        assert!(matches!(&all[2].tool_calls[0].arguments, CallArguments::Json(t) if t == "{\"a\": 1.50}"));
        assert!(matches!(&all[2].tool_calls[1].arguments, CallArguments::Text(t) if t == "no json"));
    }

    #[test]
    fn tools_and_choices() {
        let tools = json!([{ "type": "function", "function": { "name": "f", "parameters": {} } }]);
        let choice = |choice: Value| read(json!({ "tools": tools, "tool_choice": choice })).map(|c| (c.choice, c.conversation.tools.len()));
        assert_eq!(choice(Value::Null).unwrap(), (ToolChoice::Auto, 1));
        assert_eq!(choice(json!("none")).unwrap(), (ToolChoice::None, 0));
        assert_eq!(choice(json!("required")).unwrap(), (ToolChoice::Required, 1));
        assert_eq!(choice(json!({ "type": "function", "function": { "name": "f" } })).unwrap(), (ToolChoice::Named("f".into()), 1));
        for bad in [json!("any"), json!(1), json!({ "type": "function" }), json!({ "type": "custom" })] {
            assert!(choice(bad.clone()).unwrap_err().param.is_some_and(|p| p.starts_with("tool_choice")), "{bad}");
        }
        assert_eq!(read(json!({ "tool_choice": "auto" })).unwrap().choice, ToolChoice::None);
    }

    #[test]
    fn thinking_is_switched_in_two_ways() {
        assert_eq!(read(json!({})).unwrap().enable_thinking, None);
        assert_eq!(read(json!({ "enable_thinking": false })).unwrap().enable_thinking, Some(false));
        let chat = read(json!({ "chat_template_kwargs": { "enable_thinking": true, "style": "x" } })).unwrap();
        assert_eq!((chat.enable_thinking, chat.conversation.template_args.as_deref()), (Some(true), Some("{\"style\":\"x\"}")));
        assert!(read(json!({ "chat_template_kwargs": { "enable_thinking": "yes" } })).is_err());
    }
}
