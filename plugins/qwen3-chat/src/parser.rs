//! Reading the model's output while it grows.
//!
//! The parser takes one character or special token at a time, so what it gives cannot depend on how the output was cut. Tags count as
//! special tokens wherever they mean something. Written out as plain text they count only where the model would put them: `<think>`
//! before any word, `</think>` inside reasoning, `<tool_call>` at the beginning of a line and before a `{`, `</tool_call>` after the
//! call's object. Inside a JSON string a tag is just characters, token or not.
//!
//! What the template adds around the parts is taken off again, so that parsing a rendered turn gives the turn: newlines around the
//! reasoning, those before the words that follow it, and one before a call.

use std::collections::VecDeque;

use trainer_plugin_sdk::{CallArguments, MalformedCall, OutputPart, OutputParser, ParsedCall, Piece};

use crate::python::{self, Value};

const THINK: &str = "<think>";
const THINK_END: &str = "</think>";
const CALL: &str = "<tool_call>";
const CALL_END: &str = "</tool_call>";
/// Tokens that end a turn, and are no part of it.
const STOP: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];

/// How often an output may contain a call that turns out, at its end, to have run on over its closing tag. Each costs reading the rest
/// again.
const MAX_RESUMED: u32 = 64;

/// See the module.
pub struct Parser {
    state: State,
    parts: Vec<OutputPart>,
    resumed: u32,
}

enum State {
    Text(Text),
    Reasoning(Held),
    Call(Call),
}

/// Words.
#[derive(Default)]
struct Text {
    /// What may yet turn out to be a tag, or newlines that the template added.
    held: String,
    /// No word has come yet, so `<think>` may.
    at_start: bool,
    /// The next character begins a line.
    line_start: bool,
    /// What is dropped before the next word.
    skip: Skip,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Skip {
    #[default]
    Nothing,
    /// After the reasoning.
    Newlines,
    /// After a call.
    Space,
}

/// Reasoning: newlines that may be its last, and the beginning of a closing tag.
#[derive(Default)]
struct Held {
    held: String,
    begun: bool,
}

/// A call, from its opening tag on.
struct Call {
    raw: String,
    /// Where the tag after the object begins to be looked for.
    object_end: usize,
    stage: Stage,
    /// What came after the first closing tag inside a string, in case the string does not end.
    after_tag: Option<(usize, Vec<Piece>)>,
}

enum Stage {
    Before,
    Object { open: Vec<u8>, in_string: bool, escaped: bool },
    After,
    Broken(&'static str),
}

impl OutputParser for Parser {
    fn new(in_reasoning: bool) -> Self {
        let state = if in_reasoning { State::Reasoning(Held::default()) } else { State::Text(Text { at_start: true, line_start: true, ..Text::default() }) };
        Self { state, parts: Vec::new(), resumed: 0 }
    }

    fn push(&mut self, pieces: Vec<Piece>) -> Vec<OutputPart> {
        self.feed(pieces);
        std::mem::take(&mut self.parts)
    }

    fn finish(&mut self) -> Vec<OutputPart> {
        loop {
            match std::mem::replace(&mut self.state, State::Text(Text::default())) {
                State::Text(text) if text.skip == Skip::Nothing || !text.held.trim_start().is_empty() => self.emit_text(&text.held),
                State::Text(_) => {}
                State::Reasoning(Held { held, .. }) => {
                    let tag = held.trim_start_matches('\n');
                    if !tag.is_empty() {
                        self.emit_reasoning(&held);
                    }
                }
                State::Call(call) => {
                    if let Some(rest) = self.unfinished(call) {
                        self.feed(rest);
                        continue;
                    }
                }
            }
            return std::mem::take(&mut self.parts);
        }
    }
}

impl Parser {
    fn feed(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => {
                    for c in text.chars() {
                        self.character(c);
                    }
                }
                Piece::Special(token) => self.special(&token),
            }
        }
    }

    fn emit_text(&mut self, text: &str) {
        match self.parts.last_mut() {
            _ if text.is_empty() => {}
            Some(OutputPart::Text(last)) => last.push_str(text),
            _ => self.parts.push(OutputPart::Text(text.to_owned())),
        }
    }

    fn emit_reasoning(&mut self, text: &str) {
        match self.parts.last_mut() {
            _ if text.is_empty() => {}
            Some(OutputPart::Reasoning(last)) => last.push_str(text),
            _ => self.parts.push(OutputPart::Reasoning(text.to_owned())),
        }
    }

    fn character(&mut self, c: char) {
        // What is taken back from a failed guess is read again, one character later.
        let mut again = VecDeque::from([c]);
        while let Some(c) = again.pop_front() {
            match &mut self.state {
                State::Text(text) => match text.take(c) {
                    Step::Hold => {}
                    Step::Emit(words, rest) => {
                        self.emit_text(&words);
                        rest.chars().rev().for_each(|c| again.push_front(c));
                    }
                    Step::Think => self.state = State::Reasoning(Held::default()),
                    Step::Call { words, inside } => {
                        self.emit_text(&words);
                        self.state = State::Call(Call::new());
                        inside.chars().rev().for_each(|c| again.push_front(c));
                    }
                },
                State::Reasoning(reasoning) => {
                    if !reasoning.begun && c == '\n' {
                        continue;
                    }
                    reasoning.begun = true;
                    reasoning.held.push(c);
                    let newlines = reasoning.held.len() - reasoning.held.trim_start_matches('\n').len();
                    let tag = reasoning.held.get(newlines..).unwrap_or_default();
                    if tag == THINK_END {
                        self.state = State::Text(Text { skip: Skip::Newlines, line_start: true, ..Text::default() });
                    } else if !THINK_END.starts_with(tag) {
                        let (words, rest) = after_first(&reasoning.held, newlines);
                        let (words, rest) = (words.to_owned(), rest.to_owned());
                        reasoning.held.clear();
                        self.emit_reasoning(&words);
                        rest.chars().rev().for_each(|c| again.push_front(c));
                    }
                }
                State::Call(call) => {
                    if call.character(c) {
                        self.close_call();
                    }
                }
            }
        }
    }

    fn special(&mut self, token: &str) {
        match &mut self.state {
            State::Text(text) => match token {
                THINK => {
                    let held = std::mem::take(&mut text.held);
                    let words = if text.at_start || text.skip != Skip::Nothing && held.trim().is_empty() { String::new() } else { held };
                    self.emit_text(&words);
                    self.state = State::Reasoning(Held::default());
                }
                CALL => {
                    let held = std::mem::take(&mut text.held);
                    let words = match text.skip {
                        Skip::Nothing => held.strip_suffix('\n').unwrap_or(&held),
                        _ => held.trim_start(),
                    };
                    let words = words.to_owned();
                    self.emit_text(&words);
                    self.state = State::Call(Call::new());
                }
                _ if STOP.contains(&token) => {}
                _ => {
                    let words = std::mem::take(&mut text.held);
                    *text = Text::default();
                    self.emit_text(&words);
                    self.emit_text(token);
                }
            },
            State::Reasoning(reasoning) => match token {
                THINK_END => {
                    // The last newlines are the template's; the beginning of a tag that went no further is the model's.
                    let held = std::mem::take(&mut reasoning.held);
                    if !held.trim_start_matches('\n').is_empty() {
                        self.emit_reasoning(&held);
                    }
                    self.state = State::Text(Text { skip: Skip::Newlines, line_start: true, ..Text::default() });
                }
                _ if STOP.contains(&token) => {}
                // Opened twice, as where the prompt has opened it already.
                THINK if !reasoning.begun => {}
                _ => {
                    reasoning.begun = true;
                    let words = std::mem::take(&mut reasoning.held);
                    self.emit_reasoning(&words);
                    self.emit_reasoning(token);
                }
            },
            State::Call(call) => {
                if STOP.contains(&token) {
                    return;
                }
                if call.in_string() {
                    call.token_in_string(token);
                } else if token == CALL_END {
                    self.close_call();
                } else if token == CALL {
                    call.stage = Stage::Broken("the call before it is not closed by </tool_call>");
                    self.close_call();
                    self.state = State::Call(Call::new());
                } else {
                    call.raw.push_str(token);
                    call.stage = Stage::Broken("a special token stands where JSON belongs");
                }
            }
        }
    }

    /// The closing tag has come.
    fn close_call(&mut self) {
        let after = State::Text(Text { skip: Skip::Space, line_start: true, ..Text::default() });
        if let State::Call(call) = std::mem::replace(&mut self.state, after) {
            self.parts.push(call.part());
        }
    }

    /// The output ends inside a call. If its last string ran on over a closing tag, the call ended there, and what followed is read again.
    fn unfinished(&mut self, call: Call) -> Option<Vec<Piece>> {
        let not_closed = |raw: String| OutputPart::Malformed(MalformedCall { raw, message: "the call is not closed by </tool_call>".to_owned() });
        match call.after_tag {
            Some((at, rest)) if self.resumed < MAX_RESUMED => {
                self.resumed += 1;
                let raw = format!("{CALL}{}{CALL_END}", call.raw.get(..at).unwrap_or_default());
                let message = "the call's JSON has a string that does not end".to_owned();
                self.parts.push(OutputPart::Malformed(MalformedCall { raw, message }));
                self.state = State::Text(Text { skip: Skip::Space, line_start: true, ..Text::default() });
                Some(rest)
            }
            _ => {
                self.parts.push(not_closed(format!("{CALL}{}", call.raw)));
                None
            }
        }
    }
}

enum Step {
    Hold,
    /// These words are certain; the rest is to be read again.
    Emit(String, String),
    Think,
    Call {
        words: String,
        /// What stands after the tag.
        inside: String,
    },
}

impl Text {
    fn take(&mut self, c: char) -> Step {
        let skipped = match self.skip {
            Skip::Nothing => false,
            Skip::Newlines => c == '\n',
            Skip::Space => c.is_whitespace(),
        };
        if skipped && self.held.is_empty() {
            return Step::Hold;
        }
        self.held.push(c);
        // Held: space (any before the first word, else one newline), then the beginning of a tag.
        let space = match self.at_start {
            true => self.held.len() - self.held.trim_start().len(),
            false => usize::from(self.held.starts_with('\n')),
        };
        let (before, tag) = self.held.split_at(space);
        if self.at_start && tag == THINK {
            return Step::Think;
        }
        let begins_line = if before.is_empty() { self.line_start } else { before.ends_with('\n') };
        if begins_line && let Some(inside) = tag.strip_prefix(CALL) {
            match inside.trim_start().chars().next() {
                None => return Step::Hold,
                Some('{') => {
                    let words = before.strip_suffix('\n').unwrap_or(before).to_owned();
                    return Step::Call { words, inside: inside.to_owned() };
                }
                Some(_) => {}
            }
        }
        if self.at_start && THINK.starts_with(tag) || begins_line && CALL.starts_with(tag) || tag.is_empty() {
            return Step::Hold;
        }
        let held = std::mem::take(&mut self.held);
        let (words, rest) = after_first(&held, space);
        self.line_start = words.ends_with('\n');
        self.at_start = false;
        self.skip = Skip::Nothing;
        Step::Emit(words.to_owned(), rest.to_owned())
    }
}

/// Splits behind the first character after `skip` bytes.
fn after_first(text: &str, skip: usize) -> (&str, &str) {
    let first = text.get(skip..).and_then(|t| t.chars().next()).map_or(0, char::len_utf8);
    text.split_at(skip + first)
}

impl Call {
    fn new() -> Self {
        Self { raw: String::new(), object_end: 0, stage: Stage::Before, after_tag: None }
    }

    fn in_string(&self) -> bool {
        matches!(self.stage, Stage::Object { in_string: true, .. })
    }

    /// A token inside a string is its characters.
    fn token_in_string(&mut self, token: &str) {
        match &mut self.after_tag {
            Some((_, rest)) => rest.push(Piece::Special(token.to_owned())),
            None if token == CALL_END => self.after_tag = Some((self.raw.len(), Vec::new())),
            None => {}
        }
        self.raw.push_str(token);
        if let Stage::Object { escaped, .. } = &mut self.stage {
            *escaped = false;
        }
    }

    /// Takes a character; whether it completes the closing tag.
    fn character(&mut self, c: char) -> bool {
        self.raw.push(c);
        let in_string = self.in_string();
        match &mut self.after_tag {
            Some((_, rest)) => match rest.last_mut() {
                Some(Piece::Text(text)) => text.push(c),
                _ => rest.push(Piece::Text(c.to_string())),
            },
            None if c == '>' && in_string && self.raw.ends_with(CALL_END) => {
                self.after_tag = Some((self.raw.len() - CALL_END.len(), Vec::new()));
            }
            None => {}
        }
        match &mut self.stage {
            Stage::Before if c.is_whitespace() => {}
            Stage::Before if c == '{' => self.stage = Stage::Object { open: vec![b'}'], in_string: false, escaped: false },
            Stage::Before => self.stage = Stage::Broken("a call must be one JSON object"),
            Stage::Object { in_string: true, escaped, .. } if *escaped => *escaped = false,
            Stage::Object { in_string, escaped, .. } if *in_string => match c {
                '\\' => *escaped = true,
                '"' => *in_string = false,
                c if c < ' ' => self.stage = Stage::Broken("a line ends inside a string of the call's JSON"),
                _ => {}
            },
            Stage::Object { open, in_string, .. } => match c {
                '"' => {
                    *in_string = true;
                    // A closing tag in an earlier string was content, for that string has ended.
                    self.after_tag = None;
                }
                '{' | '[' if open.len() >= python::MAX_DEPTH => self.stage = Stage::Broken("the call's JSON is nested too deeply"),
                '{' => open.push(b'}'),
                '[' => open.push(b']'),
                '}' | ']' => {
                    if open.pop().map(char::from) != Some(c) {
                        self.stage = Stage::Broken("the brackets of the call's JSON do not match");
                    } else if open.is_empty() {
                        self.stage = Stage::After;
                        self.object_end = self.raw.len();
                        self.after_tag = None;
                    }
                }
                '<' => self.stage = Stage::Broken("the call's JSON is not complete"),
                _ => {}
            },
            Stage::After => {
                let tail = self.raw.get(self.object_end..).unwrap_or_default().trim_start();
                if tail == CALL_END {
                    return true;
                }
                if !CALL_END.starts_with(tail) {
                    self.stage = Stage::Broken("something follows the call's JSON object");
                }
            }
            Stage::Broken(_) => {}
        }
        matches!(self.stage, Stage::Broken(_)) && c == '>' && self.raw.ends_with(CALL_END)
    }

    /// The part that a closed call makes.
    fn part(self) -> OutputPart {
        let inside = self.raw.trim_end().strip_suffix(CALL_END).unwrap_or(&self.raw);
        let parsed = match self.stage {
            Stage::After => read_call(inside.get(..self.object_end).unwrap_or(inside)),
            Stage::Before => Err("the call is empty".to_owned()),
            Stage::Object { .. } => Err("the call's JSON is not complete".to_owned()),
            Stage::Broken(reason) => Err(reason.to_owned()),
        };
        match parsed {
            Ok(call) => OutputPart::ToolCall(call),
            Err(message) => OutputPart::Malformed(MalformedCall { raw: format!("{CALL}{inside}{CALL_END}"), message }),
        }
    }
}

/// Reads a call's object. The arguments stay as the model wrote them.
fn read_call(object: &str) -> Result<ParsedCall, String> {
    let Value::Dict(entries) = python::parse(object)? else {
        return Err("a call must be one JSON object".to_owned());
    };
    let name = match entries.iter().find(|(key, _)| key == "name").map(|(_, value)| value) {
        Some(Value::String(name)) if !name.is_empty() => name.clone(),
        Some(_) => return Err("the call's \"name\" must be a string, the name of a tool".to_owned()),
        None => return Err("the call has no \"name\"".to_owned()),
    };
    let arguments = match entries.iter().find(|(key, _)| key == "arguments").map(|(_, value)| value) {
        Some(Value::String(text)) => CallArguments::Text(text.clone()),
        Some(Value::Dict(_)) => CallArguments::Json(written(object, "arguments")?),
        Some(_) => return Err("the call's \"arguments\" must be an object".to_owned()),
        None => return Err("the call has no \"arguments\"".to_owned()),
    };
    Ok(ParsedCall { name, arguments })
}

/// The text of a member as it stands.
fn written(object: &str, key: &str) -> Result<String, String> {
    let members = trainer_plugin_sdk::Object::row(object, &[key]).map_err(|e| e.message)?;
    members.get(key).map(str::to_owned).ok_or_else(|| format!("the call has no {key:?}"))
}
