//! The record of an episode: what was said, what was called, what came back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use trainer_plugin_host::http::Exchange;
use trainer_plugin_host::types::{CallArguments, Content, Message};

/// Who answered a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// This program, which did not let the call through.
    Host,
    /// A canned response of the case.
    Fixture,
    /// The plugin of this name.
    Plugin(String),
}

/// Why a call was not answered with a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// What the model wrote is no call.
    Malformed,
    /// No such tool is on offer.
    UnknownTool,
    /// The arguments are no object, too large, too deep or not as the tool's schema has them.
    Arguments,
    /// The tool's schema is refused.
    Schema,
    /// The case has canned responses of the tool, but none for these arguments.
    NoFixture,
    /// The tool itself refuses or fails.
    Tool,
    /// The result is too large to be passed on.
    ResultSize,
}

/// What a call gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The result as JSON text, given to the model as it stands.
    Ok(String),
    /// An error that the model is told.
    Error {
        /// Why.
        kind: ErrorKind,
        /// In words.
        message: String,
    },
    /// The plugin failed; so has the episode.
    Trap(String),
}

impl Outcome {
    /// What the model is shown.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::Ok(json) => json.clone(),
            Self::Error { message, .. } | Self::Trap(message) => format!("{{\"error\": {}}}", Value::from(message.as_str())),
        }
    }
}

/// A call and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallRecord {
    /// The model's turn, from 0.
    pub turn: u32,
    /// Which call of the episode, from 0.
    pub ordinal: u32,
    /// The tool; what the model wrote, where that is no call.
    pub name: String,
    /// The arguments in canonical form; a string where the model wrote one; null where it wrote no call.
    pub arguments: Value,
    /// Who answered.
    pub by: By,
    /// What came back.
    pub outcome: Outcome,
    /// The digest of the plugin's state afterwards, for the last call of those that it was given at once.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub state_digest: Option<String>,
    /// The requests that the plugin made meanwhile, without secrets; none in a replay.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub http: Vec<Exchange>,
}

/// A message that the episode added to its conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageRecord {
    /// `assistant`, `tool`, or `user` in a chat.
    pub role: String,
    /// Its text.
    pub content: String,
    /// The reasoning.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reasoning: Option<String>,
    /// The calls, each as name and arguments as the model wrote them.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tool_calls: Vec<(String, String)>,
    /// The tool that a `tool` message comes from.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
}

impl MessageRecord {
    /// The record of a message.
    #[must_use]
    pub fn of(message: &Message) -> Self {
        Self {
            role: message.role.clone(),
            content: match &message.content {
                Content::None => String::new(),
                Content::Text(text) | Content::Json(text) => text.clone(),
            },
            reasoning: message.reasoning_content.clone().filter(|r| !r.is_empty()),
            tool_calls: message
                .tool_calls
                .iter()
                .map(|call| match &call.arguments {
                    CallArguments::Json(text) | CallArguments::Text(text) => (call.name.clone(), text.clone()),
                })
                .collect(),
            name: message.name.clone(),
        }
    }
}

/// Where the limit on wall-clock time ended an episode. A replay ends it there too, however fast it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimedOut {
    /// The turn, from 0.
    pub turn: u32,
    /// After so many tokens of it; none: after it, when its calls were answered.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tokens: Option<u64>,
}

/// The whole record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transcript {
    /// Why the episode ended, by name; empty while it goes on.
    pub end: String,
    /// More about it, where there is more to say.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
    /// Where time was up, if that ended it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub timed_out: Option<TimedOut>,
    /// The model's turns.
    pub turns: u32,
    /// Tokens that it wrote.
    pub generated_tokens: u64,
    /// What was added to the conversation.
    pub messages: Vec<MessageRecord>,
    /// All calls, in order.
    pub calls: Vec<CallRecord>,
    /// By plugin: the digest of its state at the end, for those that have one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub state: BTreeMap<String, String>,
}
