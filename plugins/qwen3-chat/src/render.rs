//! The published template, statement by statement.

use trainer_plugin_sdk::{CallArguments, Content, Message, Piece, Rendered, Segment, scan};

use crate::Revision;
use crate::python;

/// The added tokens that the template itself writes.
const SPECIAL: [&str; 8] =
    ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"];

const TOOLS_BEFORE: &str = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with \
function signatures within <tools></tools> XML tags:\n<tools>";
const TOOLS_AFTER: &str = "\n</tools>\n\nFor each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n";

/// Collects segments.
#[derive(Default)]
pub struct Writer {
    segments: Vec<Segment>,
    source: Option<u32>,
    generated: bool,
    weight: f32,
}

impl Writer {
    /// A writer at the beginning of a text.
    pub fn new() -> Self {
        // Enough for a question and an answer.
        Self { segments: Vec::with_capacity(16), weight: 1.0, ..Self::default() }
    }

    /// The text so far.
    pub fn finish(self) -> Rendered {
        Rendered { segments: self.segments }
    }

    /// What follows comes from this message; the model does not write it.
    pub fn enter(&mut self, index: usize, message: &Message) {
        self.source = u32::try_from(index).ok();
        self.weight = message.weight.unwrap_or(1.0);
        self.generated = false;
    }

    /// What follows is the template's own.
    pub fn leave(&mut self) {
        (self.source, self.weight, self.generated) = (None, 1.0, false);
    }

    /// Whether the model writes what follows.
    pub fn generated(&mut self, generated: bool) {
        self.generated = generated;
    }

    /// Plain text.
    pub fn text(&mut self, text: &str) {
        self.weighted(text, self.weight);
    }

    fn weighted(&mut self, text: &str, weight: f32) {
        if text.is_empty() {
            return;
        }
        if let Some(last) = self.segments.last_mut()
            && let Piece::Text(before) = &mut last.piece
            && (last.source_message, last.generated, last.weight.to_bits()) == (self.source, self.generated, weight.to_bits())
        {
            before.push_str(text);
            return;
        }
        self.push(Piece::Text(text.to_owned()), weight);
    }

    fn push(&mut self, piece: Piece, weight: f32) {
        self.segments.push(Segment { piece, source_message: self.source, generated: self.generated, weight });
    }

    /// The template's own words, in which the tokens of [`SPECIAL`] are tokens.
    pub fn template(&mut self, words: &str) {
        // All of them begin with the same character, and none with another. Looking for that one costs a tenth of looking for each of them, which
        // once was half of the template's time.
        let (mut rest, mut from) = (words, 0);
        while let Some(at) = rest.get(from..).and_then(|r| scan::find(r, b'<')).map(|at| from + at) {
            let (before, after) = rest.split_at(at);
            match SPECIAL.iter().find_map(|token| Some((token, after.strip_prefix(token)?))) {
                Some((token, after)) => {
                    self.text(before);
                    self.push(Piece::Special((*token).to_owned()), self.weight);
                    (rest, from) = (after, 0);
                }
                None => from = at + 1,
            }
        }
        self.text(rest);
    }

    /// A part of a message's text content, with the weights of the message's spans.
    pub fn content(&mut self, message: &Message, part: Part<'_>) {
        let Part { text, offset } = part;
        let Some(offset) = offset.filter(|_| !message.spans.is_empty()) else {
            return self.text(text);
        };
        let mut done = 0;
        for span in &message.spans {
            let inside = |at: u32| (at as usize).saturating_sub(offset).min(text.len()).max(done);
            let (start, end) = (inside(span.start), inside(span.end));
            self.text(text.get(done..start).unwrap_or_default());
            self.weighted(text.get(start..end).unwrap_or_default(), span.weight);
            done = end;
        }
        self.text(text.get(done..).unwrap_or_default());
    }
}

/// A part of a text, with its place in the message's content if it comes from there.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The characters.
    pub text: &'a str,
    /// Where they begin in the content.
    pub offset: Option<usize>,
}

impl<'a> Part<'a> {
    fn map(self, strip: impl FnOnce(&'a str) -> &'a str) -> Self {
        let text = strip(self.text);
        // What is stripped off leaves a slice of the same string.
        let before = text.as_ptr() as usize - self.text.as_ptr() as usize;
        Self { text, offset: self.offset.map(|o| o + before) }
    }

    /// Without newlines at the beginning.
    pub fn lstrip(self) -> Self {
        self.map(|t| t.trim_start_matches('\n'))
    }

    /// Without newlines at the end.
    fn rstrip(self) -> Self {
        self.map(|t| t.trim_end_matches('\n'))
    }

    /// What follows the last `mark`, all of it without one.
    fn after_last(self, mark: &str) -> Self {
        self.map(|t| tags(t, mark).last().and_then(|at| t.get(at + mark.len()..)).unwrap_or(t))
    }

    /// What stands before the first `mark`, all of it without one.
    fn before_first(self, mark: &str) -> Self {
        self.map(|t| tags(t, mark).next().and_then(|at| t.get(..at)).unwrap_or(t))
    }
}

/// Where `tag`, which begins with `<`, stands in a text. Most texts have no such character, and setting up a search for a whole word costs more than
/// going through them.
fn tags<'t>(text: &'t str, tag: &'t str) -> impl Iterator<Item = usize> + 't {
    scan::places(text, b'<').filter(move |at| text.get(*at..).is_some_and(|rest| rest.starts_with(tag)))
}

/// An assistant's message, taken apart as the template does.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// The reasoning, empty without one. Newlines around it are not yet stripped.
    pub reasoning: Part<'a>,
    /// The words.
    pub content: Part<'a>,
}

/// Renders a prompt.
pub fn prompt(
    revision: Revision,
    messages: &[Message],
    tools: &[String],
    add_generation_prompt: bool,
    thinking: Option<bool>,
) -> Result<Rendered, String> {
    let mut writer = Writer::new();
    conversation(&mut writer, revision, messages, tools, true)?;
    if add_generation_prompt {
        generation_prompt(&mut writer, thinking);
    }
    Ok(writer.finish())
}

/// Opens an assistant's turn.
pub fn generation_prompt(writer: &mut Writer, thinking: Option<bool>) {
    writer.leave();
    writer.template("<|im_start|>assistant\n");
    if thinking == Some(false) {
        writer.template("<think>\n\n</think>\n\n");
    }
}

/// All messages. `generated`: whether assistant turns are marked as the model's.
pub fn conversation(
    writer: &mut Writer,
    revision: Revision,
    messages: &[Message],
    tools: &[String],
    generated: bool,
) -> Result<(), String> {
    if messages.is_empty() {
        return Err("the conversation has no messages".to_owned());
    }
    preamble(writer, messages, tools)?;
    let last_query = last_query(revision, messages)?;
    for (index, message) in messages.iter().enumerate() {
        if message.role != "assistant" {
            other(writer, revision, messages, index)?;
            continue;
        }
        let turn = turn(revision, index, message)?;
        let last = index + 1 == messages.len();
        let thinks = index > last_query && (last || !turn.reasoning.text.is_empty());
        writer.enter(index, message);
        writer.template("<|im_start|>assistant\n");
        writer.generated(generated);
        if thinks {
            think(writer, message, turn);
            writer.content(message, turn.content.lstrip());
        } else {
            writer.content(message, turn.content);
        }
        calls(writer, index, message, turn)?;
        end_of_turn(writer);
    }
    Ok(())
}

/// The system message and the tools. No revision takes a first system message's content as anything but text.
pub fn preamble(writer: &mut Writer, messages: &[Message], tools: &[String]) -> Result<(), String> {
    let system = messages.first().filter(|m| m.role == "system");
    if !tools.is_empty() {
        writer.leave();
        writer.template("<|im_start|>system\n");
        if let Some(system) = system {
            let content = plain(0, system)?;
            writer.enter(0, system);
            writer.content(system, content);
            writer.leave();
            writer.text("\n\n");
        }
        writer.template(TOOLS_BEFORE);
        for (i, tool) in tools.iter().enumerate() {
            let tool = python::parse(tool).map_err(|e| format!("tool {i}: {e}"))?;
            let mut line = "\n".to_owned();
            python::dumps(&tool, &mut line);
            writer.text(&line);
        }
        writer.template(TOOLS_AFTER);
    } else if let Some(system) = system {
        let content = plain(0, system)?;
        writer.enter(0, system);
        writer.template("<|im_start|>system\n");
        writer.content(system, content);
        end_of_turn(writer);
    }
    Ok(())
}

/// A message of another role than the assistant's.
pub fn other(writer: &mut Writer, revision: Revision, messages: &[Message], index: usize) -> Result<(), String> {
    let Some(message) = messages.get(index) else { return Ok(()) };
    match message.role.as_str() {
        "system" if index == 0 => {}
        "user" | "system" => {
            let content = text(revision, index, message)?;
            writer.enter(index, message);
            writer.template("<|im_start|>");
            writer.text(&message.role);
            writer.text("\n");
            writer.content(message, content);
            end_of_turn(writer);
        }
        "tool" => tool(writer, revision, messages, index)?,
        // The template has no branch for other roles.
        _ => {}
    }
    Ok(())
}

fn tool(writer: &mut Writer, revision: Revision, messages: &[Message], index: usize) -> Result<(), String> {
    let Some(message) = messages.get(index) else { return Ok(()) };
    let is_tool = |i: Option<usize>| i.and_then(|i| messages.get(i)).is_some_and(|m| m.role == "tool");
    writer.enter(index, message);
    if !is_tool(index.checked_sub(1)) {
        writer.template("<|im_start|>user");
    }
    writer.template("\n<tool_response>\n");
    match (&message.content, revision) {
        (Content::Text(text), _) => writer.content(message, Part { text, offset: Some(0) }),
        (_, Revision::Later) | (Content::None, _) => {}
        (Content::Json(json), _) => {
            let value = python::parse(json).map_err(|e| format!("message {index} (tool): its content: {e}"))?;
            let mut printed = String::new();
            python::print(&value, &mut printed);
            writer.text(&printed);
        }
    }
    writer.template("\n</tool_response>");
    if !is_tool(index.checked_add(1)) {
        end_of_turn(writer);
    }
    Ok(())
}

/// The reasoning, or an empty block.
pub fn think(writer: &mut Writer, message: &Message, turn: Turn<'_>) {
    writer.template("<think>\n");
    writer.content(message, turn.reasoning.lstrip().rstrip());
    writer.template("\n</think>\n\n");
}

/// The calls that a message makes.
pub fn calls(writer: &mut Writer, index: usize, message: &Message, turn: Turn<'_>) -> Result<(), String> {
    for (i, call) in message.tool_calls.iter().enumerate() {
        if i > 0 || !turn.content.text.is_empty() {
            writer.text("\n");
        }
        writer.template("<tool_call>");
        let mut line = format!("\n{{\"name\": \"{}\", \"arguments\": ", call.name);
        match &call.arguments {
            CallArguments::Text(text) => line.push_str(text),
            CallArguments::Json(json) => match python::parse(json).map_err(|e| format!("message {index} (assistant): call {i}: {e}"))? {
                // Arguments that are a JSON string are one, however the source came by them.
                python::Value::String(text) => line.push_str(&text),
                value => python::dumps(&value, &mut line),
            },
        }
        line.push_str("}\n");
        writer.text(&line);
        writer.template("</tool_call>");
    }
    Ok(())
}

/// `<|im_end|>`, which the assistant writes, and the newline, which nobody does.
pub fn end_of_turn(writer: &mut Writer) {
    writer.template("<|im_end|>");
    writer.generated(false);
    writer.text("\n");
}

/// Takes an assistant's message apart: reasoning from its own field, else from before the last `</think>` of the content.
pub fn turn(revision: Revision, index: usize, message: &Message) -> Result<Turn<'_>, String> {
    let content = text(revision, index, message)?;
    if let Some(reasoning) = &message.reasoning_content {
        return Ok(Turn { reasoning: Part { text: reasoning, offset: None }, content });
    }
    if tags(content.text, "</think>").next().is_none() {
        return Ok(Turn { reasoning: Part { text: "", offset: None }, content });
    }
    let reasoning = content.before_first("</think>").rstrip().after_last("<think>").lstrip();
    Ok(Turn { reasoning, content: content.after_last("</think>").lstrip() })
}

/// The index of the last message that asks something: a user's that is no tool's result in disguise. Reasoning after it is kept.
fn last_query(revision: Revision, messages: &[Message]) -> Result<usize, String> {
    if revision == Revision::Unsloth {
        // This revision slices every message's content.
        for (index, message) in messages.iter().enumerate() {
            let sliceable = match &message.content {
                Content::Text(_) => true,
                Content::Json(json) => json.trim_start().starts_with(['[', '"']),
                Content::None => false,
            };
            if !sliceable {
                return Err(no_text(index, message));
            }
        }
    }
    for (index, message) in messages.iter().enumerate().rev() {
        if message.role != "user" {
            continue;
        }
        let content = match (&message.content, revision) {
            (Content::Text(content), _) => content,
            (_, Revision::Later) => continue,
            _ => return Err(no_text(index, message)),
        };
        if !(content.starts_with("<tool_response>") && content.ends_with("</tool_response>")) {
            return Ok(index);
        }
    }
    Ok(messages.len().saturating_sub(1))
}

/// The content as a revision takes it.
fn text(revision: Revision, index: usize, message: &Message) -> Result<Part<'_>, String> {
    match (&message.content, revision) {
        (Content::None | Content::Json(_), Revision::Later) => Ok(Part { text: "", offset: None }),
        _ => plain(index, message),
    }
}

fn plain(index: usize, message: &Message) -> Result<Part<'_>, String> {
    match &message.content {
        Content::Text(text) => Ok(Part { text, offset: Some(0) }),
        _ => Err(no_text(index, message)),
    }
}

fn no_text(index: usize, message: &Message) -> String {
    let what = match (&message.content, message.tool_calls.is_empty()) {
        (Content::None, true) => "has no content",
        (Content::None, false) => "has no content (an empty text serves for a message that only calls tools)",
        _ => "has content that is no text",
    };
    format!("message {index} ({}) {what}; the template needs text there", message.role)
}
