//! A checkpoint's own chat template, which is Jinja as transformers runs it (`chat_template_utils.py`: a sandboxed environment with `trim_blocks`,
//! `lstrip_blocks`, Python's string methods, `tojson`, `raise_exception`, `strftime_now`).
//!
//! A template comes with a model and is a program: steps, recursion and output are limited. Steps also pay for whatever it makes: about one for 64 bytes, so
//! that their number bounds its memory too. What no count of steps sees, such as the length of lists that are joined lazily, is ended by
//! the system: it runs in a child process with little memory and little processor time.

mod child;
mod environment;
mod error;
pub mod probes;
mod prompts;
mod python;

pub use child::{RendererCommand, SUBCOMMAND, render_main};
pub use error::JinjaError;
pub use prompts::{AddedToken, ModelTemplate};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

/// What a template may use up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Steps for one conversation: instructions, items that are looked at, and 64 bytes each of what is made.
    pub steps: u64,
    /// Calls within calls.
    pub recursion: usize,
    /// Bytes of one text.
    pub output: usize,
    /// Bytes of the template itself.
    pub source: usize,
    /// Bytes of the process that renders.
    pub memory: u64,
    /// Processor time for all conversations of a call, and as much again for each 64 of them.
    pub processor: Duration,
    /// For all conversations of a call, as a clock on the wall has it.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            steps: 1_000_000,
            recursion: 64,
            output: 8 << 20,
            source: 1 << 20,
            memory: 1 << 30,
            processor: Duration::from_secs(3),
            time: Duration::from_secs(60),
        }
    }
}

/// What a template is rendered with: the names that transformers gives it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Context {
    /// Messages as dictionaries, tool calls' arguments as values.
    pub messages: Value,
    /// Tools as dictionaries; null for none.
    pub tools: Value,
    /// Whether the text ends where the model's answer begins.
    pub add_generation_prompt: bool,
    /// Qwen3's thinking switch; none: not passed.
    pub enable_thinking: Option<bool>,
    /// Texts of special tokens by use, such as `eos_token`.
    pub special_tokens: serde_json::Map<String, Value>,
    /// Further arguments, as `chat_template_kwargs` of servers. They cannot take the place of those above.
    #[serde(default)]
    pub args: serde_json::Map<String, Value>,
}

/// A chat template.
#[derive(Clone, Debug)]
pub struct JinjaTemplate {
    source: String,
    limits: Limits,
    command: RendererCommand,
}

impl JinjaTemplate {
    /// A template by its source. It is looked at when it is rendered first.
    ///
    /// # Errors
    /// A source that is too long.
    pub fn new(source: impl Into<String>, limits: Limits, command: RendererCommand) -> Result<Self, JinjaError> {
        let source = source.into();
        if source.len() > limits.source {
            return Err(JinjaError::TooLong { bytes: source.len(), limit: limits.source });
        }
        Ok(Self { source, limits, command })
    }

    /// The texts of conversations, in order; a conversation that the template refuses, or for which it takes too much, has its message instead.
    ///
    /// # Errors
    /// A template that is no Jinja, or that takes too much time or memory.
    pub fn render(&self, contexts: &[Context]) -> Result<Vec<Result<String, String>>, JinjaError> {
        self.command.render(&self.source, &self.limits, contexts)
    }
}
