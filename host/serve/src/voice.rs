//! From conversations to prompts, and what it takes to read the answers.

use std::sync::Arc;

use trainer_eval::{EvalError, Speaker, encode_prompt};
use trainer_plugin_host::template::{OutputParser, Piece, PromptRequest, Rendered, Segment};
use trainer_plugin_host::types::{CallArguments, Content, Conversation, Message, ToolCall};
use trainer_plugin_host::{PluginError, RowError};
use trainer_text::Tokenizer;

use crate::chat::request::{ChatRequest, ToolChoice};
use crate::error::{ApiError, Result};

/// The model's tokenizer and chat template.
pub struct Voice {
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The chat template, with the tokens that end an answer under it.
    pub speaker: Speaker,
    /// Tokens that end plain text.
    pub eos: Vec<u32>,
}

/// A rendered chat.
pub struct Prompt {
    /// What the model reads.
    pub ids: Vec<u32>,
    /// The beginning of the answer where it was not left to the model: of a call that was asked for.
    pub begun: Vec<Piece>,
}

impl Voice {
    /// The prompt of a chat. May take a while.
    ///
    /// # Errors
    /// The template refuses the messages, or fails.
    pub fn prompt(&self, chat: &ChatRequest) -> Result<Prompt> {
        let render = |conversation: Conversation, add_generation_prompt: bool| {
            self.render(PromptRequest { conversation, add_generation_prompt, enable_thinking: chat.enable_thinking })
        };
        let mut rendered = render(chat.conversation.clone(), true)?;
        let mut begun = Vec::new();
        if matches!(chat.choice, ToolChoice::Required | ToolChoice::Named(_)) {
            let mark = format!("mark-{:016x}", crate::random());
            let mut called = chat.conversation.clone();
            called.messages.push(call_up_to(&chat.choice, &mark));
            let pieces = |r: Rendered| joined(r.segments.into_iter().map(|s| s.piece));
            let prompt = joined(rendered.segments.iter().map(|s| s.piece.clone()));
            let forced = cut_at(pieces(render(called, false)?), &mark).and_then(|p| strip(&p, &prompt));
            begun = forced.ok_or_else(|| {
                let text = format!("the chat template {} gives no way to begin a call; tool_choice can be auto or none", self.speaker.name);
                ApiError::unsupported("tool_choice", text)
            })?;
            let segment = rendered.segments.last().cloned();
            rendered
                .segments
                .extend(segment.iter().flat_map(|last| begun.iter().map(|piece| Segment { piece: piece.clone(), ..last.clone() })));
        }
        Ok(Prompt { ids: self.encode(&rendered)?, begun })
    }

    /// The prompt of a further turn. May take a while.
    ///
    /// # Errors
    /// The template refuses the messages, or fails.
    pub fn next_prompt(&self, conversation: Conversation, enable_thinking: Option<bool>) -> Result<Vec<u32>> {
        self.encode(&self.render(PromptRequest { conversation, add_generation_prompt: true, enable_thinking })?)
    }

    fn render(&self, request: PromptRequest) -> Result<Rendered> {
        match self.speaker.prompts.render(&[request]).map_err(|e| unusable(&e))?.into_iter().next() {
            Some(Ok(rendered)) => Ok(rendered),
            Some(Err(RowError::Refused(words))) => {
                Err(ApiError::param("messages", format!("the chat template refuses the messages: {words}")))
            }
            Some(Err(RowError::Trapped(e))) => Err(broken(&e)),
            None => Err(ApiError::internal("the chat template gave nothing")),
        }
    }

    fn encode(&self, rendered: &Rendered) -> Result<Vec<u32>> {
        encode_prompt(&self.tokenizer, rendered).map_err(|e| ApiError::internal(format!("the prompt cannot be encoded: {e}")))
    }

    /// A parser for one answer.
    ///
    /// # Errors
    /// The template fails.
    pub fn parser(&self) -> Result<OutputParser> {
        self.speaker.template.output_parser(false).map_err(|e| broken(&e))
    }
}

/// The chat template does not work.
pub fn broken(error: &PluginError) -> ApiError {
    tracing::error!("{error}");
    ApiError::internal(format!("the chat template failed: {error}"))
}

/// Prompts cannot be rendered at all.
fn unusable(error: &EvalError) -> ApiError {
    tracing::error!("{error}");
    ApiError::internal(format!("the chat template failed: {error}"))
}

/// An assistant's message whose text up to `mark` is the beginning of a call: of any tool, or of this one.
fn call_up_to(choice: &ToolChoice, mark: &str) -> Message {
    let (name, arguments) = match choice {
        ToolChoice::Named(name) => (name.clone(), mark.to_owned()),
        _ => (mark.to_owned(), String::new()),
    };
    Message {
        role: "assistant".into(),
        content: Content::Text(String::new()),
        reasoning_content: None,
        tool_calls: vec![ToolCall { id: None, name, arguments: CallArguments::Text(arguments) }],
        tool_call_id: None,
        name: None,
        weight: None,
        spans: Vec::new(),
    }
}

/// Neighbouring texts as one.
fn joined(pieces: impl Iterator<Item = Piece>) -> Vec<Piece> {
    let mut all: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (all.last_mut(), piece) {
            (Some(Piece::Text(before)), Piece::Text(text)) => before.push_str(&text),
            (_, piece) => all.push(piece),
        }
    }
    all
}

/// What stands before the mark, without space at the end: the model writes that with what follows, as it learned to.
fn cut_at(pieces: Vec<Piece>, mark: &str) -> Option<Vec<Piece>> {
    let mut before = Vec::new();
    for piece in pieces {
        if let Piece::Text(text) = &piece
            && let Some((head, _)) = text.split_once(mark)
        {
            before.push(Piece::Text(head.trim_end_matches(' ').to_owned()));
            return Some(before);
        }
        before.push(piece);
    }
    None
}

/// What follows `prefix` in `pieces`; both have no neighbouring texts.
fn strip(pieces: &[Piece], prefix: &[Piece]) -> Option<Vec<Piece>> {
    let same = |a: &Piece, b: &Piece| match (a, b) {
        (Piece::Text(a), Piece::Text(b)) | (Piece::Special(a), Piece::Special(b)) => a == b,
        _ => false,
    };
    let (last, whole) = prefix.split_last()?;
    let at = whole.len();
    if pieces.len() <= at || !pieces.iter().zip(whole).all(|(a, b)| same(a, b)) {
        return None;
    }
    let rest = pieces.get(at + 1..).unwrap_or_default();
    match (pieces.get(at)?, last) {
        (Piece::Text(text), Piece::Text(last)) => {
            let more = text.strip_prefix(last.as_str())?;
            let more = (!more.is_empty()).then(|| Piece::Text(more.to_owned()));
            Some(more.into_iter().chain(rest.iter().cloned()).collect())
        }
        (a, b) => same(a, b).then(|| rest.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(pieces: &[Piece]) -> String {
        let text = |p: &Piece| match p {
            Piece::Text(t) => t.clone(),
            Piece::Special(t) => format!("[{t}]"),
        };
        pieces.iter().map(text).collect()
    }

    #[test]
    fn the_beginning_of_a_call_is_what_follows_the_prompt() {
        let t = |s: &str| Piece::Text(s.into());
        let s = |s: &str| Piece::Special(s.into());
        let prompt = [s("start"), t("assistant\n")];
        let called = vec![s("start"), t("assistant\n"), s("call"), t("\n{\"name\": \"f\", \"arguments\": MARK}\n"), s("end")];
        let cut = cut_at(called, "MARK").unwrap();
        assert_eq!(show(&strip(&cut, &prompt).unwrap()), "[call]\n{\"name\": \"f\", \"arguments\":");
        let merged = joined([t("assistant\n"), t("x "), t("MARK")].into_iter());
        assert_eq!(show(&strip(&cut_at(merged, "MARK").unwrap(), &prompt[1..]).unwrap()), "x");
        assert!(cut_at(vec![t("none")], "MARK").is_none());
        assert!(strip(&cut, &[s("start"), t("user\n")]).is_none());
        assert!(strip(&cut[..1], &prompt).is_none());
        assert!(strip(&cut, &[]).is_none());
    }
}
