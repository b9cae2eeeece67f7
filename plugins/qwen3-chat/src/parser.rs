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

use trainer_plugin_sdk::{CallArguments, MalformedCall, OutputParser, OutputPart, ParsedCall, Piece};

use crate::python::{self, Value};

const THINK: &str = "<think>";
const THINK_END: &str = "</think>";
const CALL: &str = "<tool_call>";
const CALL_END: &str = "</tool_call>";
/// Tokens that end a turn, and are no part of it.
const STOP: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];

const UNCLOSED: &str = "the call is not closed by </tool_call>";

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
    /// How many bytes of `held` are space before a tag.
    space: usize,
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
    /// How many newlines `held` begins with.
    newlines: usize,
    begun: bool,
}

/// A call, from its opening tag on.
struct Call {
    raw: String,
    /// Where the object ends.
    object_end: usize,
    /// Where the tag after it can begin.
    tail: usize,
    stage: Stage,
    /// Whether it ends with its closing tag, and not with the opening of another call.
    closed: bool,
    /// What came after the first closing tag inside a string, in case the string does not end.
    after_tag: Option<(usize, Vec<Piece>)>,
}

enum Stage {
    Before,
    Object { open: Vec<char>, in_string: bool, escaped: bool, after_string: bool },
    After,
    Broken(&'static str),
}

impl OutputParser for Parser {
    fn new(in_reasoning: bool) -> Self {
        let state = if in_reasoning {
            State::Reasoning(Held::default())
        } else {
            State::Text(Text { at_start: true, line_start: true, ..Text::default() })
        };
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
                State::Call(call) if call.after_tag.is_some() && self.resumed < MAX_RESUMED => {
                    self.state = State::Call(call);
                    self.resume();
                    continue;
                }
                State::Call(call) => self
                    .parts
                    .push(OutputPart::Malformed(MalformedCall { raw: format!("{CALL}{}", call.raw), message: UNCLOSED.to_owned() })),
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
                    if c == '\n' && reasoning.held.len() == reasoning.newlines {
                        reasoning.newlines += 1;
                    }
                    reasoning.held.push(c);
                    let newlines = reasoning.newlines;
                    let tag = reasoning.held.get(newlines..).unwrap_or_default();
                    if tag == THINK_END {
                        self.state = State::Text(Text { skip: Skip::Newlines, line_start: true, ..Text::default() });
                    } else if !THINK_END.starts_with(tag) {
                        let (words, rest) = after_first(&reasoning.held, newlines);
                        let (words, rest) = (words.to_owned(), rest.to_owned());
                        *reasoning = Held { begun: true, ..Held::default() };
                        self.emit_reasoning(&words);
                        rest.chars().rev().for_each(|c| again.push_front(c));
                    }
                }
                State::Call(call) => match call.character(c) {
                    Next::More => {}
                    Next::Closed => self.close_call(),
                    Next::RanOn => self.resume(),
                },
            }
        }
    }

    fn special(&mut self, token: &str) {
        match &mut self.state {
            State::Text(text) => match token {
                THINK => {
                    let held = std::mem::take(&mut text.held);
                    // Space before the first word is the template's.
                    if !text.at_start || !held.trim().is_empty() {
                        self.emit_text(&held);
                    }
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
                    let words = std::mem::replace(reasoning, Held { begun: true, ..Held::default() }).held;
                    self.emit_reasoning(&words);
                    self.emit_reasoning(token);
                }
            },
            State::Call(call) => {
                if STOP.contains(&token) {
                    return;
                }
                let in_string = call.in_string();
                if let Some((_, rest)) = &mut call.after_tag {
                    rest.push(Piece::Special(token.to_owned()));
                } else if in_string && token == CALL_END {
                    call.after_tag = Some((call.raw.len(), Vec::new()));
                }
                if in_string {
                    // A token inside a string is its characters.
                    call.raw.push_str(token);
                    call.escaped_is_over();
                } else if token == CALL_END {
                    self.close_call();
                } else if call.after_tag.is_some() {
                    self.resume();
                } else if token == CALL {
                    call.stage = Stage::Broken(UNCLOSED);
                    call.closed = false;
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

    /// A string of the call ran on over the closing tag: the call ended there, and what followed is read again.
    fn resume(&mut self) {
        let State::Call(call) = &mut self.state else { return };
        let Some((at, rest)) = call.after_tag.take() else { return };
        if self.resumed == MAX_RESUMED {
            call.stage = Stage::Broken("a string of the call's JSON does not end");
            return;
        }
        self.resumed += 1;
        let raw = format!("{CALL}{}{CALL_END}", call.raw.get(..at).unwrap_or_default());
        let message = "a string of the call's JSON does not end".to_owned();
        self.parts.push(OutputPart::Malformed(MalformedCall { raw, message }));
        self.state = State::Text(Text { skip: Skip::Space, line_start: true, ..Text::default() });
        self.feed(rest);
    }
}

enum Next {
    More,
    /// The closing tag is complete.
    Closed,
    /// The JSON is broken, and an earlier string held a closing tag.
    RanOn,
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
        // Held: space (any before the first word, else one newline), then the beginning of a tag.
        let is_space = if self.at_start { c.is_whitespace() } else { c == '\n' && self.held.is_empty() };
        let before_tag = self.held.len() == self.space;
        let after_tag = self.held.len() - self.space >= CALL.len();
        self.held.push(c);
        if before_tag && is_space {
            self.space = self.held.len();
            return Step::Hold;
        }
        if after_tag && c.is_whitespace() {
            return Step::Hold;
        }
        let space = self.space;
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
        if self.at_start && THINK.starts_with(tag) || begins_line && CALL.starts_with(tag) {
            return Step::Hold;
        }
        let held = std::mem::take(&mut self.held);
        self.space = 0;
        let (words, rest) = after_first(&held, if self.at_start { space } else { 0 });
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
        Self { raw: String::new(), object_end: 0, tail: 0, stage: Stage::Before, closed: true, after_tag: None }
    }

    fn in_string(&self) -> bool {
        matches!(self.stage, Stage::Object { in_string: true, .. })
    }

    fn escaped_is_over(&mut self) {
        if let Stage::Object { escaped, .. } = &mut self.stage {
            *escaped = false;
        }
    }

    fn character(&mut self, c: char) -> Next {
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
        if let Some(reason) = self.advance(c) {
            self.stage = Stage::Broken(reason);
            if self.after_tag.is_some() {
                return Next::RanOn;
            }
        }
        let closed = match self.stage {
            Stage::After => self.raw.get(self.tail..) == Some(CALL_END),
            Stage::Broken(_) => c == '>' && self.raw.ends_with(CALL_END),
            _ => false,
        };
        if closed { Next::Closed } else { Next::More }
    }

    /// Follows the JSON; answers what is wrong with it, if something is.
    fn advance(&mut self, c: char) -> Option<&'static str> {
        match &mut self.stage {
            Stage::Before if c.is_whitespace() => None,
            Stage::Before if c == '{' => {
                self.stage = Stage::Object { open: vec!['}'], in_string: false, escaped: false, after_string: false };
                None
            }
            Stage::Before => Some("a call must be one JSON object"),
            Stage::Object { in_string: in_string @ true, escaped, after_string, .. } => {
                match c {
                    _ if *escaped => *escaped = false,
                    '\\' => *escaped = true,
                    '"' => (*in_string, *after_string) = (false, true),
                    '\n' | '\r' => return Some("a line ends inside a string of the call's JSON"),
                    c if c < ' ' => return Some("a control character that is not escaped stands inside a string of the call's JSON"),
                    _ => {}
                }
                None
            }
            Stage::Object { .. } if c.is_whitespace() => None,
            Stage::Object { open, in_string, after_string, .. } => {
                if *after_string {
                    if !matches!(c, ',' | ':' | '}' | ']') {
                        return Some("the call's JSON is broken");
                    }
                    // The string has ended where one may end, so a closing tag inside it was content.
                    (*after_string, self.after_tag) = (false, None);
                }
                match c {
                    '"' => *in_string = true,
                    '{' | '[' if open.len() >= python::MAX_DEPTH => return Some("the call's JSON is nested too deeply"),
                    '{' => open.push('}'),
                    '[' => open.push(']'),
                    '}' | ']' if open.pop() != Some(c) => return Some("the brackets of the call's JSON do not match"),
                    '}' | ']' if open.is_empty() => {
                        self.stage = Stage::After;
                        self.object_end = self.raw.len();
                        self.tail = self.raw.len();
                    }
                    '<' => return Some("the call's JSON is not complete"),
                    _ => {}
                }
                None
            }
            Stage::After if c.is_whitespace() && self.tail + c.len_utf8() == self.raw.len() => {
                self.tail = self.raw.len();
                None
            }
            Stage::After => {
                let tail = self.raw.get(self.tail..).unwrap_or_default();
                (!CALL_END.starts_with(tail)).then_some("something follows the call's JSON object")
            }
            Stage::Broken(_) => None,
        }
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
            Err(message) => {
                let end = if self.closed { CALL_END } else { "" };
                OutputPart::Malformed(MalformedCall { raw: format!("{CALL}{inside}{end}"), message })
            }
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
