//! A conversation in progress: what was said, what is on offer, how answers are drawn, and the turn that the model is writing.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use trainer_engine::{Finish, GenRequest};
use trainer_eval::{Speaker, encode_prompt, rendered_text, template_piece};
use trainer_plugin_host::template::{OutputParser, OutputPart, Piece, PromptRequest, Rendered};
use trainer_plugin_host::types::{Content, Message};
use trainer_runtime::Base;
use trainer_text::PieceDecoder;
use trainer_tools::{Case, End, Episode, EpisodeKey, Next, Outcome, Toolbox, Turn, TurnEnd};

use super::command::{COMMANDS, Command, Drawing};
use super::file::{self, Dialogue};
use super::interrupt::Interrupt;
use super::replay::conversation;
use super::screen::Screen;
use crate::output::put;
use crate::ui::safe;

/// What a conversation is with.
#[derive(Clone, Copy)]
pub struct With<'a> {
    /// The model's tokenizer and stop tokens.
    pub base: &'a Base,
    /// The chat template.
    pub speaker: &'a Speaker,
    /// The tools.
    pub toolbox: &'a Arc<Toolbox>,
    /// The most tokens of a conversation.
    pub context: usize,
    /// Ctrl-C.
    pub interrupt: &'a Interrupt,
}

/// What is to happen next.
#[derive(Clone, Copy)]
pub enum After {
    /// The next line.
    Line,
    /// The model's turn.
    Turn,
    /// What is to be made of its turn, once it has ended.
    Answer,
    /// The end.
    Quit,
}

/// See the module.
pub struct Session<'a> {
    with: With<'a>,
    drawing: Drawing,
    thinking: Option<bool>,
    messages: Vec<Message>,
    /// Definitions in place of the plugins' own, from a file.
    definitions: Option<Vec<String>>,
    offers: bool,
    /// Holds the tools' sessions from question to question; none after a change to what was said.
    episode: Option<Episode>,
    /// How often the last answer was drawn again.
    retries: u32,
    turn: Option<Writing>,
    /// What is shown.
    pub screen: Screen,
}

/// A turn that grows.
struct Writing {
    decoder: PieceDecoder,
    parser: Option<OutputParser>,
    parts: Vec<OutputPart>,
    tokens: u64,
    failed: Option<anyhow::Error>,
}

impl Writing {
    fn push(&mut self, id: u32, screen: &mut Screen) -> Result<()> {
        self.tokens += 1;
        let mut pieces = Vec::new();
        self.decoder.push(id, &mut pieces);
        self.pieces(pieces, screen)
    }

    fn pieces(&mut self, pieces: Vec<trainer_text::Piece>, screen: &mut Screen) -> Result<()> {
        let pieces: Vec<Piece> = pieces.into_iter().map(template_piece).collect();
        if let Some(parser) = self.parser.as_mut().filter(|_| !pieces.is_empty()) {
            let parts = parser.push(&pieces)?;
            self.take(parts, screen);
        }
        Ok(())
    }

    /// The turn has ended: what the decoder and the parser held back.
    fn finish(&mut self, screen: &mut Screen) -> Result<()> {
        let mut pieces = Vec::new();
        self.decoder.finish(&mut pieces);
        self.pieces(pieces, screen)?;
        if let Some(parser) = self.parser.take() {
            let parts = parser.finish()?;
            self.take(parts, screen);
        }
        screen.end();
        Ok(())
    }

    fn take(&mut self, parts: Vec<OutputPart>, screen: &mut Screen) {
        for part in parts {
            screen.part(&part);
            self.parts.push(part);
        }
    }
}

/// A message of plain text.
fn text_message(role: &str, text: &str) -> Message {
    Message {
        role: role.to_owned(),
        content: Content::Text(text.to_owned()),
        reasoning_content: None,
        tool_calls: Vec::new(),
        tool_call_id: None,
        name: None,
        weight: None,
        spans: Vec::new(),
    }
}

impl<'a> Session<'a> {
    /// An empty conversation.
    pub fn new(with: With<'a>, drawing: Drawing, thinking: Option<bool>, system: Option<&str>, screen: Screen) -> Self {
        let messages = system.map(|text| text_message("system", text)).into_iter().collect();
        let (definitions, offers, episode, retries, turn) = (None, true, None, 0, None);
        Self { with, drawing, thinking, messages, definitions, offers, episode, retries, turn, screen }
    }

    /// Takes over a conversation that was written down; whether it waits for the model's turn.
    pub fn take_over(&mut self, dialogue: Dialogue) -> bool {
        self.episode = None;
        self.messages = dialogue.messages;
        self.definitions = dialogue.tools;
        self.thinking = dialogue.enable_thinking;
        self.retries = 0;
        self.messages.last().is_some_and(|m| m.role == "user" || m.role == "tool")
    }

    /// The definitions of the tools on offer.
    fn tools(&self) -> Vec<String> {
        match &self.definitions {
            _ if !self.offers => Vec::new(),
            Some(definitions) => definitions.clone(),
            None => self.with.toolbox.offer(),
        }
    }

    /// Words of the user's.
    pub fn say(&mut self, text: &str) {
        let message = text_message("user", text);
        self.retries = 0;
        self.messages.push(message.clone());
        match &mut self.episode {
            Some(episode) => episode.ask(message),
            None => self.begin(),
        }
    }

    /// Opens an episode on what was said so far.
    fn begin(&mut self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        let key = EpisodeKey { metric: String::new(), case: "chat".to_owned(), repeat: self.retries };
        let tools = self.with.toolbox.open(key, Case::default(), self.drawing.seed, now);
        self.episode = Some(Episode::new(conversation(&self.messages, &self.tools()), tools));
    }

    /// The prompt for what was said so far.
    fn rendered(&self) -> Result<Rendered> {
        let request = PromptRequest {
            conversation: conversation(&self.messages, &self.tools()),
            add_generation_prompt: true,
            enable_thinking: self.thinking,
        };
        let rendered = self.with.speaker.prompts.render(&[request])?.into_iter().next().context("the chat template gave nothing")?;
        rendered.context("the chat template cannot render the conversation")
    }

    /// What the engine is to do for the model's turn; none if it cannot be, which was told.
    pub fn request(&mut self) -> Result<Option<GenRequest>> {
        if self.episode.is_none() {
            self.begin();
        }
        let rendered = match self.rendered() {
            Ok(rendered) => rendered,
            Err(error) => {
                self.take_back(&format!("{error:#}"));
                return Ok(None);
            }
        };
        let prompt_ids = encode_prompt(&self.with.base.tokenizer, &rendered).context("the prompt cannot be encoded")?;
        if prompt_ids.len() >= self.with.context {
            let (tokens, limit) = (prompt_ids.len(), self.with.context);
            self.take_back(&format!(
                "the conversation has {tokens} tokens of at most {limit}: /undo or /clear make room, --max-context gives more"
            ));
            return Ok(None);
        }
        let parser = self.with.speaker.template.output_parser(opens_reasoning(&rendered))?;
        let decoder = self.with.base.tokenizer.piece_decoder();
        self.turn = Some(Writing { decoder, parser: Some(parser), parts: Vec::new(), tokens: 0, failed: None });
        // Each turn of a conversation draws from a stream of its own, and so does each retry.
        let sample = self.messages.len() as u64;
        Ok(Some(GenRequest {
            prompt_ids,
            params: self.drawing.params,
            seed: self.drawing.seed,
            sample,
            repeat: self.retries,
            max_new_tokens: self.drawing.max_new_tokens,
            stop_ids: self.with.speaker.stop_ids.clone(),
            ..GenRequest::default()
        }))
    }

    /// A token of the turn; whether more are wanted.
    pub fn token(&mut self, id: u32) -> ControlFlow<()> {
        let Some(turn) = &mut self.turn else { return ControlFlow::Break(()) };
        if let Err(error) = turn.push(id, &mut self.screen) {
            turn.failed = Some(error);
            return ControlFlow::Break(());
        }
        if self.with.interrupt.wanted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// The turn is over: runs its calls; whether the model's turn comes again.
    pub fn ended(&mut self, finish: &Finish) -> Result<bool> {
        let Some(mut turn) = self.turn.take() else { return Ok(false) };
        if turn.failed.is_none() {
            turn.failed = turn.finish(&mut self.screen).err();
        }
        self.screen.end();
        if let Some(error) = turn.failed {
            self.take_back(&format!("{error:#}"));
            return Ok(false);
        }
        let stopped = matches!(finish, Finish::Cancelled);
        let end = match finish {
            Finish::Stop(_) => TurnEnd::Stop,
            Finish::CacheFull => TurnEnd::Context,
            // Calls of a turn that was stopped are not made.
            Finish::Length | Finish::Cancelled => TurnEnd::Length,
            Finish::Refused(why) => {
                self.take_back(&why.to_string());
                return Ok(false);
            }
        };
        if stopped && turn.parts.is_empty() {
            self.take_back("stopped before the first word");
            return Ok(false);
        }
        let Some(episode) = &mut self.episode else { return Ok(false) };
        let called = episode.transcript().calls.len();
        let next = episode.take(Turn { parts: turn.parts, tokens: turn.tokens, end })?;
        self.messages.clone_from(&episode.conversation().messages);
        for record in episode.transcript().calls.iter().skip(called) {
            self.screen.result(&record.outcome.shown(), !matches!(record.outcome, Outcome::Ok(_)));
        }
        if stopped {
            self.screen.remark("stopped");
            return Ok(false);
        }
        let limits = self.with.toolbox.limits();
        let remark = match episode.end() {
            _ if next == Next::Prompt && self.with.interrupt.wanted() => "stopped".to_owned(),
            None => return Ok(next == Next::Prompt),
            Some(End::Answer) => return Ok(false),
            Some(End::Unexecuted { tool }) => format!("nothing here executes {tool}; --plugin adds tools"),
            Some(End::Length) => {
                format!("the answer reached max_new_tokens = {}; /sampling max_new_tokens=N allows more", self.drawing.max_new_tokens)
            }
            Some(End::Context) => format!("the conversation fills its {} tokens; /undo or /clear make room", self.with.context),
            Some(End::Turns) => format!("the limit of {} turns after a question; ask to go on", limits.turns),
            Some(End::Calls) => format!("the limit of {} calls after a question; ask to go on", limits.calls),
            Some(End::Failed(why)) => format!("a tool failed: {why}"),
            Some(other) => format!("a limit ended the turn: {}", other.name()),
        };
        self.screen.remark(&remark);
        Ok(false)
    }

    /// Says why there is no answer, and takes the question away, so that it can be asked in another way.
    fn take_back(&mut self, why: &str) {
        self.screen.end();
        self.screen.remark(why);
        self.cut_last_question(false);
    }

    /// Takes the last question and what followed away, or only what followed; whether there was one.
    fn cut_last_question(&mut self, keep: bool) -> bool {
        let Some(last) = self.messages.iter().rposition(|m| m.role == "user") else { return false };
        self.messages.truncate(last + usize::from(keep));
        self.episode = None;
        true
    }

    /// Does what a command says.
    pub fn command(&mut self, command: Command) -> Result<After> {
        match command {
            Command::Quit => return Ok(After::Quit),
            Command::Help => {
                for (name, argument, what) in COMMANDS {
                    let usage = format!("/{name} {argument}");
                    say!("{usage:<30} {what}");
                }
                say!("//... says words that begin with a slash; a line that ends with \\ goes on in the next; Ctrl-C stops an answer.");
            }
            Command::System(None) => match self.messages.first().filter(|m| m.role == "system").map(|m| &m.content) {
                Some(Content::Text(text) | Content::Json(text)) => say!("{}", safe(text)),
                _ => say!("there is no system message"),
            },
            Command::System(Some(text)) => {
                if self.messages.first().is_some_and(|m| m.role == "system") {
                    self.messages.remove(0);
                }
                if !text.is_empty() {
                    self.messages.insert(0, text_message("system", &text));
                }
                self.episode = None;
            }
            Command::Tools(None) => self.show_tools(),
            Command::Tools(Some(on)) => {
                (self.offers, self.episode) = (on, None);
                if on {
                    self.show_tools();
                }
            }
            Command::Thinking(None) => say!("thinking is {}", thinking_name(self.thinking)),
            Command::Thinking(Some(setting)) => self.thinking = setting,
            Command::Sampling(changes) => match self.drawing.with(&changes) {
                Ok(drawing) => {
                    self.drawing = drawing;
                    say!("{drawing}");
                }
                Err(why) => say!("{}", safe(&why)),
            },
            Command::Save(path) => {
                let tools = Some(self.tools()).filter(|t| !t.is_empty());
                let dialogue = Dialogue { messages: self.messages.clone(), tools, enable_thinking: self.thinking };
                match file::write(Path::new(&path), &dialogue) {
                    Ok(()) => say!("written to {}", safe(&path)),
                    Err(why) => say!("{}", safe(&format!("{why:#}"))),
                }
            }
            Command::Load(path) => match file::read(Path::new(&path)) {
                Ok(dialogue) => {
                    say!("{} messages from {}", dialogue.messages.len(), safe(&path));
                    if self.take_over(dialogue) {
                        return Ok(After::Turn);
                    }
                }
                Err(why) => say!("{}", safe(&format!("{why:#}"))),
            },
            Command::Retry => {
                if self.cut_last_question(true) {
                    self.retries = self.retries.saturating_add(1);
                    return Ok(After::Turn);
                }
                say!("there is no answer to draw again");
            }
            Command::Undo => {
                if !self.cut_last_question(false) {
                    say!("there is no question to take away");
                }
            }
            Command::Clear => {
                self.messages.retain(|m| m.role == "system");
                self.messages.truncate(1);
                self.episode = None;
            }
            Command::Prompt => match self.rendered() {
                Ok(rendered) => put(format_args!("{}\n", safe(&rendered_text(&rendered)))),
                Err(why) => say!("{}", safe(&format!("{why:#}"))),
            },
        }
        Ok(After::Line)
    }

    fn show_tools(&self) {
        let tools = self.tools();
        if tools.is_empty() {
            say!("no tools are on offer{}", if self.offers { "; --plugin adds some" } else { "; /tools on offers them" });
        }
        for tool in tools {
            let value: serde_json::Value = serde_json::from_str(&tool).unwrap_or_default();
            let function = value.get("function").unwrap_or(&value);
            let text = |key: &str| function.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
            say!("{}: {}", safe(&text("name")), safe(&text("description")));
        }
    }
}

fn thinking_name(thinking: Option<bool>) -> &'static str {
    match thinking {
        Some(true) => "on",
        Some(false) => "off",
        None => "left to the template",
    }
}

/// Whether a prompt ends inside the model's reasoning: its last `<think>` is not closed.
fn opens_reasoning(rendered: &Rendered) -> bool {
    let last = rendered.segments.iter().rev().find_map(|s| match &s.piece {
        Piece::Special(token) if token == "<think>" => Some(true),
        Piece::Special(token) if token == "</think>" || token == "<|im_start|>" => Some(false),
        _ => None,
    });
    last.unwrap_or(false)
}
