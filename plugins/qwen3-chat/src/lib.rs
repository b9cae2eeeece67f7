//! `qwen3_chat`: Qwen3's chat template.
//!
//! **Prompts** are rendered exactly as the model's published Jinja template renders them, of which there are three: see [`Revision`].
//! Where the Jinja template fails, so does this one, with a message that names the message at fault.
//!
//! **Training texts.** The published template drops the reasoning of all turns before the last question, and gives an empty `<think>`
//! block to an answer without reasoning only if it comes last. So the text of a conversation is not a prefix of the text of the same
//! conversation grown longer, and most turns would be trained on what the model never writes. There are three forms here:
//!
//! - `form = "stable"` (the default): every assistant turn is written as the model writes it when asked at that point, with its reasoning
//!   or an empty block, wherever it stands. What the first turns give is a prefix of what all turns give. A conversation with one
//!   question and one answer has the published text.
//! - `form = "exact"`: the published text with `add_generation_prompt = false`, as the tutorial trains on it.
//! - `turns = "split"`: one sample per assistant turn; its context is the prompt that inference gives at that point, to the byte.
//!
//! In all of them the model generates everything after `<|im_start|>assistant\n` up to and with `<|im_end|>`, the `<think>` block
//! included: a prompt without `enable_thinking` ends before it. Under the template argument `enable_thinking = false` the empty block
//! belongs to the prompt instead. The newline after `<|im_end|>` is never generated.

pub mod parser;
pub mod python;
pub mod render;
mod training;

use serde::Deserialize;
use trainer_plugin_sdk::{Conversation, Description, PromptRequest, Rendered, Template, plugin};

/// The recipe's settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Which published template.
    pub revision: Revision,
    /// How a conversation is cut into samples.
    pub turns: Turns,
    /// How a whole conversation is rendered.
    pub form: Form,
}

/// The published templates. They differ in what they do with content that is no text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Revision {
    /// April 2025. Content that is no text is an error, but for a tool's, which is printed as Python prints it.
    #[default]
    #[serde(rename = "qwen3")]
    Qwen3,
    /// The model's later revision: content that is no text counts as empty.
    #[serde(rename = "qwen3_later")]
    Later,
    /// As unsloth ships it: as the first, but every message must have content.
    #[serde(rename = "qwen3_unsloth")]
    Unsloth,
}

/// See the setting `turns`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Turns {
    /// One sample per conversation.
    #[default]
    Whole,
    /// One sample per assistant turn.
    Split,
}

/// See the setting `form`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Every turn as the model writes it.
    #[default]
    Stable,
    /// The published text.
    Exact,
}

/// The template.
pub struct Qwen3Chat {
    settings: Settings,
}

/// Template arguments that a conversation can carry. The published template ignores those that it does not know, and so does this one.
#[derive(Debug, Default, Deserialize)]
struct Arguments {
    enable_thinking: Option<bool>,
}

fn arguments(conversation: &Conversation) -> Result<Arguments, String> {
    match &conversation.template_args {
        Some(json) => serde_json::from_str(json).map_err(|e| format!("the template arguments: {e}")),
        None => Ok(Arguments::default()),
    }
}

impl Template for Qwen3Chat {
    type Settings = Settings;
    type Parser = parser::Parser;

    fn new(settings: Settings) -> Result<Self, String> {
        if settings.turns == Turns::Split && settings.form == Form::Exact {
            return Err("form = \"exact\" renders whole conversations; with turns = \"split\" leave it out".to_owned());
        }
        Ok(Self { settings })
    }

    fn describe(&self) -> Description {
        Description {
            stop_tokens: vec!["<|im_end|>".to_owned(), "<|endoftext|>".to_owned()],
            stable_prefixes: self.settings.form == Form::Stable,
        }
    }

    fn render_prompt(&self, request: &PromptRequest) -> Result<Rendered, String> {
        let thinking = request.enable_thinking.or(arguments(&request.conversation)?.enable_thinking);
        let conversation = &request.conversation;
        render::prompt(self.settings.revision, &conversation.messages, &conversation.tools, request.add_generation_prompt, thinking)
    }

    fn render_training(&self, conversation: &Conversation) -> Result<Vec<Rendered>, String> {
        let thinking = arguments(conversation)?.enable_thinking;
        match (self.settings.turns, self.settings.form) {
            (Turns::Split, _) => training::split(self.settings.revision, conversation, thinking),
            (Turns::Whole, Form::Stable) => training::whole(self.settings.revision, conversation, thinking).map(|one| vec![one]),
            (Turns::Whole, Form::Exact) => {
                render::prompt(self.settings.revision, &conversation.messages, &conversation.tools, false, thinking).map(|one| vec![one])
            }
        }
    }
}

plugin! {
    name: "qwen3_chat",
    description: "Qwen3's chat template: exact prompts, training texts with stable prefixes, and the parser of the model's output",
    settings_schema: include_str!("settings.json"),
    template: Qwen3Chat,
}
