//! What is shown of a conversation. Everything from a model, a tool or a file goes through [`safe`]: none of it can steer the terminal.

use std::io::Write;

use trainer_plugin_host::template::OutputPart;
use trainer_plugin_host::types::{CallArguments, Content, Message};

use crate::output::put;
use crate::ui::{colors, safe, terminal};

/// Bytes of a call's arguments or of a result that are shown.
const SHOWN: usize = 2000;

const DIM: &str = "\x1b[2m";
const CALL: &str = "\x1b[36m";
const ERROR: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

/// What the last characters were.
#[derive(Clone, Copy, PartialEq)]
enum Shown {
    /// A whole line, or nothing yet.
    Line,
    Reasoning,
    Words,
}

/// Shows turns as they grow.
pub struct Screen {
    colored: bool,
    shown: Shown,
    ends_line: bool,
}

impl Screen {
    /// Standard output.
    pub fn new() -> Self {
        Self { colored: terminal() && colors(), shown: Shown::Line, ends_line: true }
    }

    /// The next part of the model's turn.
    pub fn part(&mut self, part: &OutputPart) {
        match part {
            OutputPart::Reasoning(text) => self.words(Shown::Reasoning, text),
            OutputPart::Text(text) => self.words(Shown::Words, text),
            OutputPart::ToolCall(call) => {
                let (CallArguments::Json(arguments) | CallArguments::Text(arguments)) = &call.arguments;
                self.call(&call.name, arguments);
            }
            OutputPart::Malformed(call) => self.line(ERROR, &format!("?> {} ({})", cut(&call.raw), call.message)),
        }
    }

    /// A whole message of a conversation that was read.
    pub fn message(&mut self, message: &Message) {
        let content = match &message.content {
            Content::None => "",
            Content::Text(text) | Content::Json(text) => text,
        };
        match message.role.as_str() {
            "assistant" => {
                if let Some(reasoning) = message.reasoning_content.as_deref().filter(|r| !r.is_empty()) {
                    self.words(Shown::Reasoning, reasoning);
                }
                self.words(Shown::Words, content);
                for call in &message.tool_calls {
                    let (CallArguments::Json(arguments) | CallArguments::Text(arguments)) = &call.arguments;
                    self.call(&call.name, arguments);
                }
                self.end();
            }
            "tool" => self.result(content, false),
            "user" => self.line("", &format!("> {content}")),
            role => self.line(DIM, &format!("{role}: {content}")),
        }
    }

    /// A call.
    fn call(&mut self, name: &str, arguments: &str) {
        self.line(CALL, &format!("-> {name}({})", cut(arguments)));
    }

    /// What a call gave.
    pub fn result(&mut self, text: &str, is_error: bool) {
        self.line(if is_error { ERROR } else { CALL }, &format!("<- {}", cut(text)));
    }

    /// A remark of the program's own; what it quotes is made safe here.
    pub fn remark(&mut self, text: &str) {
        self.line(DIM, &format!("({text})"));
    }

    /// The turn is over.
    pub fn end(&mut self) {
        self.close();
    }

    fn words(&mut self, kind: Shown, text: &str) {
        if text.is_empty() {
            return;
        }
        if self.shown != kind {
            let thought = self.shown == Shown::Reasoning;
            self.close();
            match kind {
                Shown::Reasoning => put(format_args!("{}", if self.colored { DIM } else { "(thinking)\n" })),
                _ if thought && !self.colored => put(format_args!("(answer)\n")),
                _ => {}
            }
            self.shown = kind;
        }
        put(format_args!("{}", safe(text)));
        self.ends_line = text.ends_with('\n');
        self.flush();
    }

    fn line(&mut self, color: &str, text: &str) {
        self.close();
        let text = safe(text);
        if self.colored && !color.is_empty() {
            say!("{color}{text}{PLAIN}")
        } else {
            say!("{text}")
        }
        self.flush();
    }

    /// Ends what is being shown.
    fn close(&mut self) {
        if self.shown == Shown::Reasoning && self.colored {
            put(format_args!("{PLAIN}"));
        }
        if !self.ends_line {
            say!("");
        }
        (self.shown, self.ends_line) = (Shown::Line, true);
        self.flush();
    }

    fn flush(&self) {
        // Streaming is for the eye; a failure shows up at the next print.
        let _ = std::io::stdout().flush();
    }
}

/// The beginning of a long text, on one line where it was on one.
fn cut(text: &str) -> String {
    if text.len() <= SHOWN {
        return text.to_owned();
    }
    let begin = text.get(..text.floor_char_boundary(SHOWN)).unwrap_or_default();
    format!("{begin}... ({} bytes)", text.len())
}
