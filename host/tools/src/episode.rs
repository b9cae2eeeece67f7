//! One conversation between a model and tools, as a state machine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use trainer_plugin_host::template::OutputPart;
use trainer_plugin_host::types::{Content, Conversation, Message, ToolCall};

use crate::error::ToolsError;
use crate::limits::Limits;
use crate::session::{Attempt, EpisodeTools};
use crate::transcript::{MessageRecord, Outcome, TimedOut, Transcript};

/// How the model's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnEnd {
    /// At a stop token or string.
    Stop,
    /// At the length limit of a turn.
    Length,
    /// The conversation fills the model's context.
    Context,
    /// The episode's time was up before the turn was complete.
    Time,
}

/// What the model wrote in one turn.
#[derive(Clone, Debug)]
pub struct Turn {
    /// The output, taken apart by the chat template.
    pub parts: Vec<OutputPart>,
    /// Its tokens.
    pub tokens: u64,
    /// How it ended.
    pub end: TurnEnd,
}

/// Why an episode ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The model answered without calling a tool.
    Answer,
    /// It called tools, and nothing is there to execute any of them: the calls stand as they are.
    Unexecuted {
        /// The first of those tools.
        tool: String,
    },
    /// A turn reached its length limit.
    Length,
    /// The conversation filled the model's context.
    Context,
    /// The limit on turns.
    Turns,
    /// The limit on calls.
    Calls,
    /// The limit on generated tokens.
    Tokens,
    /// The limit on wall-clock time.
    Time,
    /// The limit on the bytes of all results.
    Bytes,
    /// A plugin failed.
    Failed(String),
}

impl End {
    /// Its name in files.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Unexecuted { .. } => "unexecuted",
            Self::Length => "length",
            Self::Context => "context",
            Self::Turns => "turns",
            Self::Calls => "calls",
            Self::Tokens => "tokens",
            Self::Time => "time",
            Self::Bytes => "bytes",
            Self::Failed(_) => "failed",
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::Unexecuted { tool } => Some(tool.clone()),
            Self::Failed(why) => Some(why.clone()),
            _ => None,
        }
    }
}

/// What follows a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The model's turn again: render [`Episode::conversation`].
    Prompt,
    /// The end: see [`Episode::end`].
    End,
}

/// One conversation. Holds no more than its messages and, once a plugin's tool was called, an instance of that plugin.
pub struct Episode {
    conversation: Conversation,
    /// By tool on offer: its parameters.
    offered: BTreeMap<String, Arc<Value>>,
    tools: EpisodeTools,
    limits: Limits,
    began: Instant,
    /// In a replay: where time was up in the recording.
    replayed: Option<TimedOut>,
    /// Since the last question.
    turns: u32,
    calls: u32,
    tokens: u64,
    result_bytes: usize,
    end: Option<End>,
    transcript: Transcript,
}

impl Episode {
    /// Begins. The tools on offer are those of the conversation; definitions are taken in OpenAI's form or bare (`name`, `parameters`).
    #[must_use]
    pub fn new(conversation: Conversation, tools: EpisodeTools) -> Self {
        let mut limits = tools.toolbox().limits().clone();
        let replayed = tools.toolbox().tape().map(|tape| tape.timed_out(tools.key()));
        if replayed.is_some() {
            // Time was up where the tape says.
            limits.wall_time = None;
        }
        let own = &tools.toolbox().by_name;
        let offered = conversation.tools.iter().filter_map(|t| definition(t)).map(|(name, parameters)| {
            // The plugin's own schema, where the case repeats it: it is compiled, and told apart, by identity.
            let parameters = match own.get(&name) {
                Some((_, schema)) if **schema == parameters => schema.clone(),
                _ => Arc::new(parameters),
            };
            (name, parameters)
        });
        Self {
            offered: offered.collect(),
            conversation,
            tools,
            limits,
            began: Instant::now(),
            replayed: replayed.flatten(),
            turns: 0,
            calls: 0,
            tokens: 0,
            result_bytes: 0,
            end: None,
            transcript: Transcript::default(),
        }
    }

    /// The conversation so far: what to render for the next turn.
    pub fn conversation(&self) -> &Conversation {
        &self.conversation
    }

    /// Starts its clock, which else began with it: where it had to wait for its first turn.
    pub fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// When its time is up, if it is limited.
    pub fn deadline(&self) -> Option<Instant> {
        self.began.checked_add(self.limits.wall_time?)
    }

    /// In a replay: after how many tokens the next turn ends with [`TurnEnd::Time`], if it does.
    pub fn cut(&self) -> Option<u64> {
        self.replayed.filter(|r| r.turn == self.transcript.turns)?.tokens
    }

    /// What its calls reach.
    pub fn tools(&self) -> &EpisodeTools {
        &self.tools
    }

    /// Why it ended, if it has.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// What was said and done so far.
    pub fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    /// What was said and done.
    #[must_use]
    pub fn into_transcript(self) -> Transcript {
        self.transcript
    }

    /// Whether calls can be answered at all: some tool on offer has a plugin, a canned response or a tape behind it. If not, the episode is the
    /// model's first turn.
    pub fn has_tools(&self) -> bool {
        self.offered.keys().any(|name| self.tools.can_execute(name))
    }

    /// Adds a message of the user's, as in a chat: the episode goes on, with all limits anew.
    pub fn ask(&mut self, message: Message) {
        self.transcript.messages.push(MessageRecord::of(&message));
        self.conversation.messages.push(message);
        (self.turns, self.calls, self.tokens, self.result_bytes) = (0, 0, 0, 0);
        self.began = Instant::now();
        self.end = None;
        self.transcript.end.clear();
        self.transcript.detail = None;
        self.transcript.timed_out = None;
    }

    /// Ends the episode from outside: the next prompt does not fit, or the caller wants no more.
    pub fn stop(&mut self, end: End) {
        self.finish(end);
    }

    /// Takes a turn of the model's: runs its calls, adds its message and their results to the conversation, and says how it goes on.
    ///
    /// # Errors
    /// A call that is not on the tape; see [`ToolsError`]. What is wrong with a call, or a plugin that fails, is no error of this kind.
    pub fn take(&mut self, turn: Turn) -> Result<Next, ToolsError> {
        let number = self.transcript.turns;
        self.turns += 1;
        self.transcript.turns += 1;
        self.tokens = self.tokens.saturating_add(turn.tokens);
        self.transcript.generated_tokens = self.transcript.generated_tokens.saturating_add(turn.tokens);
        let (message, attempts) = self.message(turn.parts);
        self.transcript.messages.push(MessageRecord::of(&message));
        self.conversation.messages.push(message);
        if let Some(end) = self.before_calls(turn.end, &attempts) {
            if end == End::Time {
                self.transcript.timed_out = Some(TimedOut { turn: number, tokens: Some(turn.tokens) });
            }
            return Ok(self.finish(end));
        }
        self.calls = self.calls.saturating_add(u32::try_from(attempts.len()).unwrap_or(u32::MAX));
        let records = self.tools.answer(number, &self.offered, &attempts)?;
        self.transcript.state = self.tools.state().clone();
        let mut failed = None;
        for record in &records {
            let text = record.outcome.shown();
            self.result_bytes = self.result_bytes.saturating_add(text.len());
            if let Outcome::Trap(why) = &record.outcome {
                failed = Some(why.clone());
                continue;
            }
            let is_call = !record.arguments.is_null();
            let message = Message {
                role: "tool".to_owned(),
                content: Content::Text(text),
                reasoning_content: None,
                tool_calls: Vec::new(),
                tool_call_id: is_call.then(|| call_id(record.ordinal)),
                name: is_call.then(|| record.name.clone()),
                weight: None,
                spans: Vec::new(),
            };
            self.transcript.messages.push(MessageRecord::of(&message));
            self.conversation.messages.push(message);
        }
        self.transcript.calls.extend(records);
        if let Some(why) = failed {
            return Ok(self.finish(End::Failed(why)));
        }
        match self.after_calls() {
            Some(end) => {
                if end == End::Time {
                    self.transcript.timed_out = Some(TimedOut { turn: number, tokens: None });
                }
                Ok(self.finish(end))
            }
            None => Ok(Next::Prompt),
        }
    }

    fn finish(&mut self, end: End) -> Next {
        end.name().clone_into(&mut self.transcript.end);
        self.transcript.detail = end.detail();
        self.end = Some(end);
        Next::End
    }

    /// The assistant's message, and what it tried to call in order. The text of a failed call stays in the message, so that the model sees what its
    /// error is about.
    fn message(&self, parts: Vec<OutputPart>) -> (Message, Vec<Attempt>) {
        let (mut text, mut reasoning) = (String::new(), String::new());
        let mut tool_calls = Vec::new();
        let mut attempts = Vec::new();
        for part in parts {
            match part {
                OutputPart::Text(t) => text.push_str(&t),
                OutputPart::Reasoning(t) => reasoning.push_str(&t),
                OutputPart::ToolCall(call) => {
                    let ordinal = self.transcript.calls.len().saturating_add(attempts.len());
                    tool_calls.push(ToolCall {
                        id: Some(call_id(u32::try_from(ordinal).unwrap_or(u32::MAX))),
                        name: call.name.clone(),
                        arguments: call.arguments.clone(),
                    });
                    attempts.push(Attempt::Call { name: call.name, arguments: call.arguments });
                }
                OutputPart::Malformed(call) => {
                    if !text.is_empty() && !text.ends_with('\n') {
                        text.push('\n');
                    }
                    text.push_str(&call.raw);
                    attempts.push(Attempt::Malformed { raw: call.raw, message: call.message });
                }
            }
        }
        let message = Message {
            role: "assistant".to_owned(),
            content: Content::Text(text),
            reasoning_content: Some(reasoning),
            tool_calls,
            tool_call_id: None,
            name: None,
            weight: None,
            spans: Vec::new(),
        };
        (message, attempts)
    }

    /// Whether the episode ends without its last calls being answered.
    fn before_calls(&self, end: TurnEnd, attempts: &[Attempt]) -> Option<End> {
        match end {
            TurnEnd::Length => return Some(End::Length),
            TurnEnd::Context => return Some(End::Context),
            TurnEnd::Time => return Some(End::Time),
            TurnEnd::Stop => {}
        }
        let Some(first) = attempts.first() else { return Some(End::Answer) };
        if !self.has_tools() {
            let tool = match first {
                Attempt::Call { name, .. } => name.clone(),
                Attempt::Malformed { raw, .. } => raw.clone(),
            };
            return Some(End::Unexecuted { tool });
        }
        // A tool that the case declares without a way to execute it; unknown names are told to the model.
        let unexecuted = attempts.iter().find_map(|a| match a {
            Attempt::Call { name, .. } if self.offered.contains_key(name) && !self.tools.can_execute(name) => Some(name),
            _ => None,
        });
        if let Some(tool) = unexecuted {
            return Some(End::Unexecuted { tool: tool.clone() });
        }
        let calls = self.calls.saturating_add(u32::try_from(attempts.len()).unwrap_or(u32::MAX));
        (calls > self.limits.calls).then_some(End::Calls)
    }

    /// Whether a limit forbids another turn.
    fn after_calls(&self) -> Option<End> {
        let l = &self.limits;
        if self.result_bytes > l.all_result_bytes {
            return Some(End::Bytes);
        }
        if self.turns >= l.turns {
            return Some(End::Turns);
        }
        if l.generated_tokens.is_some_and(|most| self.tokens >= most) {
            return Some(End::Tokens);
        }
        let replayed = self.replayed.is_some_and(|r| r.tokens.is_none() && r.turn.saturating_add(1) == self.transcript.turns);
        (replayed || l.wall_time.is_some_and(|most| self.began.elapsed() >= most)).then_some(End::Time)
    }
}

fn call_id(ordinal: u32) -> String {
    format!("call_{ordinal}")
}

/// Name and parameters of a tool's definition. What is no definition offers nothing: calls of it are of an unknown tool.
fn definition(text: &str) -> Option<(String, Value)> {
    let value: Value = serde_json::from_str(text).ok()?;
    let function = value.get("function").filter(|f| f.is_object()).unwrap_or(&value);
    let name = function.get("name")?.as_str()?.to_owned();
    let parameters = function.get("parameters").filter(|p| !p.is_null()).cloned();
    Some((name, parameters.unwrap_or_else(|| serde_json::json!({"type": "object"}))))
}

/// The seed with which a turn is drawn: the conversation's own for the first, others for what follows, so that no turn repeats the draws of another.
#[must_use]
pub fn turn_seed(seed: u64, turn: u64) -> u64 {
    seed ^ turn.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_draw_from_streams_of_their_own() {
        assert_eq!(turn_seed(3407, 0), 3407);
        let seeds: std::collections::HashSet<u64> = (0..64).map(|turn| turn_seed(3407, turn)).collect();
        assert_eq!(seeds.len(), 64);
    }
}
