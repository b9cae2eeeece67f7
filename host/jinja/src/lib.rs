//! A checkpoint's own chat template, which is Jinja as transformers runs it (`chat_template_utils.py`: a sandboxed environment with `trim_blocks`,
//! `lstrip_blocks`, Python's string methods, `tojson`, `raise_exception`, `strftime_now`).
//!
//! A template comes with a model and is a program: steps, recursion and output are limited. A few steps can double a string forty times, so it also
//! runs in a child process with little memory, which is killed when its time is up.

mod child;
mod environment;
mod error;
pub mod probes;
mod python;

pub use child::{RendererCommand, SUBCOMMAND, render_main};
pub use error::JinjaError;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

/// What a template may use up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Instructions for one conversation.
    pub steps: u64,
    /// Calls within calls.
    pub recursion: usize,
    /// Bytes of one text.
    pub output: usize,
    /// Bytes of the template itself.
    pub source: usize,
    /// Bytes of the process that renders.
    pub memory: u64,
    /// For all conversations of a call.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { steps: 5_000_000, recursion: 64, output: 16 << 20, source: 1 << 20, memory: 2 << 30, time: Duration::from_secs(20) }
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
