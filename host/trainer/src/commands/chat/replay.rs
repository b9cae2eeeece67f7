//! Going through a conversation that was written down: before each turn of the model's, the exact prompt that it was given.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;
use trainer_eval::{Prompts, encode_prompt, rendered_text};
use trainer_plugin_host::template::{PromptRequest, Rendered};
use trainer_plugin_host::types::{Conversation, Message};
use trainer_text::Tokenizer;

use super::file::Dialogue;
use super::screen::Screen;
use crate::output::{put, write_json};
use crate::ui::{safe, terminal};

/// A turn of the model's.
#[derive(Debug, Serialize)]
pub struct Step {
    /// The place of the message in the conversation that is the model's answer to the prompt; one past the end where it is to come.
    pub message: usize,
    /// The prompt.
    pub prompt: String,
    /// Its tokens.
    pub prompt_ids: Vec<u32>,
}

/// A conversation with its prompts.
#[derive(Debug, Serialize)]
pub struct Replay {
    /// The turns, in order.
    pub steps: Vec<Step>,
    /// The conversation as it stands, rendered without asking for more.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<u32>,
}

/// The prompts of a conversation.
///
/// # Errors
/// The template refuses it.
pub fn prompts(dialogue: &Dialogue, by: &Prompts, tokenizer: &Tokenizer) -> Result<Replay> {
    let whole = dialogue.messages.len();
    let answers = dialogue.messages.iter().enumerate().filter(|(_, m)| m.role == "assistant").map(|(i, _)| i);
    let open = dialogue.messages.last().is_some_and(|m| m.role != "assistant").then_some(whole);
    let ends: Vec<usize> = answers.chain(open).collect();
    let request = |end: usize, add_generation_prompt: bool| PromptRequest {
        conversation: conversation(dialogue.messages.get(..end).unwrap_or_default(), dialogue.tools.as_deref().unwrap_or_default()),
        add_generation_prompt,
        enable_thinking: dialogue.enable_thinking,
    };
    // A conversation that begins with the model's turn has no prompt before it.
    let mut requests: Vec<PromptRequest> = ends.iter().filter(|end| **end > 0).map(|end| request(*end, true)).collect();
    requests.push(request(whole, false));
    let mut rendered = Vec::new();
    for outcome in by.render(&requests)? {
        rendered.push(outcome.context("the chat template cannot render the conversation")?);
    }
    let tokens = |r: &Rendered| encode_prompt(tokenizer, r).context("the prompt cannot be encoded");
    let last = rendered.pop().context("the chat template gave nothing")?;
    let steps = ends.iter().filter(|end| **end > 0).zip(&rendered);
    let steps = steps.map(|(end, r)| -> Result<Step> { Ok(Step { message: *end, prompt: rendered_text(r), prompt_ids: tokens(r)? }) });
    Ok(Replay { steps: steps.collect::<Result<_>>()?, text: rendered_text(&last), ids: tokens(&last)? })
}

/// Messages and tools as a conversation.
pub fn conversation(messages: &[Message], tools: &[String]) -> Conversation {
    Conversation { messages: messages.to_vec(), tools: tools.to_vec(), template_args: None, weight: 1.0 }
}

/// Shows prompts only: as JSON, or as they are, each under a line that says what it is.
pub fn show(replay: &Replay, json: Option<&Path>) -> Result<ExitCode> {
    if let Some(target) = json {
        write_json(target, replay)?;
        return Ok(ExitCode::SUCCESS);
    }
    for step in &replay.steps {
        say!("=== prompt of message {}: {} tokens", step.message, step.prompt_ids.len());
        // A file gets the exact text; a terminal one that cannot steer it.
        if terminal() { put(format_args!("{}\n", safe(&step.prompt))) } else { put(format_args!("{}\n", step.prompt)) }
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows a conversation message by message; `wait` comes before each turn of the model's and can end it.
pub fn walk(dialogue: &Dialogue, replay: Option<&Replay>, screen: &mut Screen, wait: &mut dyn FnMut() -> Result<bool>) -> Result<()> {
    for (i, message) in dialogue.messages.iter().enumerate() {
        if message.role == "assistant" {
            if let Some(step) = replay.and_then(|r| r.steps.iter().find(|s| s.message == i)) {
                screen.remark(&format!("prompt of {} tokens", step.prompt_ids.len()));
            }
            if !wait()? {
                break;
            }
        }
        screen.message(message);
    }
    Ok(())
}
