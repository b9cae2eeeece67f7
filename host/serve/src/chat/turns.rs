//! The answers to a chat. Where the server has tools, an answer has several turns: calls of its tools are executed, the model sees the results and goes
//! on, until it answers, calls a tool of the client's, or reaches a limit.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use trainer_engine::GenRequest;
use trainer_plugin_host::template::OutputPart;
use trainer_plugin_host::types::CallArguments;
use trainer_tools::{CallRecord, Case, End, Episode, EpisodeKey, Next, Outcome, Toolbox, Turn, TurnEnd, turn_seed};

use super::request::ChatRequest;
use crate::answers::Answers;
use crate::app::{App, Ask, blocking};
use crate::error::{ApiError, Result};
use crate::queue::Hold;
use crate::scribe::{Call, Calls, Delta, Ran, Reason, Scribe, Step};

/// All answers to a request, turn after turn.
pub struct Turns {
    /// The present turns.
    pub answers: Answers,
    /// What further turns need; none where the server executes nothing for this request.
    more: Option<More>,
}

/// What further turns need.
struct More {
    app: Arc<App>,
    chat: Arc<ChatRequest>,
    /// What each turn begins from.
    one: GenRequest,
    choices: Vec<Choice>,
    /// The generator is not to end between two turns.
    _hold: Hold,
}

/// An answer.
struct Choice {
    /// None while it is being advanced.
    episode: Option<Episode>,
    /// The present turn, from 0.
    turn: u64,
    /// Tokens of the turns before.
    tokens: usize,
    /// Whether words, and reasoning, came in turns before, and in this one.
    text: (bool, bool),
    reasoning: (bool, bool),
}

impl Choice {
    fn open(toolbox: &Arc<Toolbox>, chat: &ChatRequest, seed: u64, repeat: usize) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        let key = EpisodeKey { metric: String::new(), case: "chat".to_owned(), repeat: u32::try_from(repeat).unwrap_or(u32::MAX) };
        let tools = toolbox.open(key, Case::default(), seed, now);
        let episode = Some(Episode::new(chat.conversation.clone(), tools));
        Choice { episode, turn: 0, tokens: 0, text: (false, false), reasoning: (false, false) }
    }

    /// Keeps what is said in different turns apart.
    fn separate(&mut self, deltas: &mut [Delta]) {
        for delta in deltas {
            let (words, seen) = match delta {
                Delta::Text(words) => (words, &mut self.text),
                Delta::Reasoning(words) => (words, &mut self.reasoning),
                Delta::Call(_) | Delta::Ran(_) => continue,
            };
            if seen.0 && !seen.1 {
                words.insert_str(0, "\n\n");
            }
            seen.1 = true;
        }
    }
}

/// What follows a turn of the model's.
enum Follows {
    /// The end.
    End(Reason),
    /// Another turn with this prompt.
    Prompt(Vec<u32>),
}

impl Turns {
    /// Of a request whose first turns are `answers`.
    pub fn new(app: &Arc<App>, chat: &Arc<ChatRequest>, one: GenRequest, answers: Answers) -> Self {
        let more = app.tools.toolbox().filter(|_| chat.served).map(|toolbox| More {
            app: app.clone(),
            chat: chat.clone(),
            choices: (0..answers.choices()).map(|i| Choice::open(toolbox, chat, one.seed, i)).collect(),
            one,
            _hold: app.queue.hold(),
        });
        Turns { answers, more }
    }

    /// Waits for what is new, by choice; None when all answers have ended.
    ///
    /// # Errors
    /// The generator, the template or a tool's plugin failed, or the server ends.
    pub async fn next(&mut self) -> Result<Option<Vec<(usize, Step)>>> {
        let Some(mut steps) = self.answers.next().await? else { return Ok(None) };
        if let Some(more) = &mut self.more {
            for (index, step) in &mut steps {
                if let Some(choice) = more.choices.get_mut(*index) {
                    choice.separate(&mut step.deltas);
                }
                if let Some(reason) = step.finish {
                    more.turn_over(&mut self.answers, *index, reason, step).await?;
                }
            }
        }
        Ok(Some(steps))
    }
}

impl More {
    /// Ends an answer with its turn, or goes on with the next one.
    async fn turn_over(&mut self, answers: &mut Answers, index: usize, reason: Reason, step: &mut Step) -> Result<()> {
        let (Some(choice), Some(scribe)) = (self.choices.get_mut(index), answers.scribe(index)) else { return Ok(()) };
        let (parts, tokens) = (scribe.take_parts(), scribe.tokens);
        let calls_client = |part: &OutputPart| matches!(part, OutputPart::ToolCall(c) if self.chat.tools.contains(&c.name));
        let tries = parts.iter().any(|p| matches!(p, OutputPart::ToolCall(_) | OutputPart::Malformed(_)));
        if !tries {
            return Ok(());
        }
        let for_client = parts.iter().any(calls_client);
        if for_client || reason == Reason::Length {
            // The client's turn. Calls of the server's tools beside the client's are not executed: their results would have no place in what the
            // client sends next.
            let served = self.app.tools.names();
            for part in parts {
                match part {
                    OutputPart::ToolCall(call) if served.contains(&call.name) => {}
                    OutputPart::ToolCall(call) => {
                        let (CallArguments::Json(arguments) | CallArguments::Text(arguments)) = call.arguments;
                        step.deltas.push(Delta::Call(Call { name: call.name, arguments }));
                    }
                    OutputPart::Malformed(malformed) => step.deltas.push(Delta::Text(malformed.raw)),
                    OutputPart::Text(_) | OutputPart::Reasoning(_) => {}
                }
            }
            return Ok(());
        }
        let Some(episode) = choice.episode.take() else { return Ok(()) };
        let turn = Turn { parts, tokens: tokens as u64, end: TurnEnd::Stop };
        // An error only after the server has ended.
        let place = self.app.tools.places.acquire().await.map_err(|_| ApiError::closing())?;
        let (app, chat) = (self.app.clone(), self.chat.clone());
        let (episode, ran, follows) = blocking(move || advance(&app, &chat, episode, turn)).await?;
        drop(place);
        choice.episode = Some(episode);
        for call in &ran {
            self.app.metrics.tool_calls.add(1);
            self.app.metrics.tool_errors.add(u64::from(call.failed));
        }
        step.deltas.extend(ran.into_iter().map(Delta::Ran));
        choice.tokens += tokens;
        let ids = match follows {
            Follows::End(reason) => {
                step.finish = Some(reason);
                return Ok(());
            }
            Follows::Prompt(ids) => ids,
        };
        let wanted = self.chat.common.max_tokens.map(|most| most.saturating_sub(choice.tokens));
        let room = self.app.context.saturating_sub(ids.len()).min(wanted.unwrap_or(usize::MAX));
        if room == 0 {
            step.finish = Some(Reason::Length);
            return Ok(());
        }
        step.finish = None;
        choice.turn += 1;
        (choice.text.0, choice.text.1) = (choice.text.0 || choice.text.1, false);
        (choice.reasoning.0, choice.reasoning.1) = (choice.reasoning.0 || choice.reasoning.1, false);
        let prompt = ids.len();
        let ask = Ask::new(GenRequest {
            prompt_ids: ids,
            max_new_tokens: room,
            seed: turn_seed(self.one.seed, choice.turn),
            repeat: u32::try_from(index).unwrap_or(u32::MAX),
            ..self.one.clone()
        });
        let calls = Calls { named: false, single: !self.chat.parallel, ..self.chat.calls() };
        let voice = &self.app.voice;
        let scribe = Scribe::chat(&voice.tokenizer, voice.parser()?, &[], calls, self.chat.common.stop.clone(), ask.enough.clone())?;
        answers.go_on(index, prompt, self.app.go_on(ask)?, scribe);
        Ok(())
    }
}

/// Takes a turn: executes its calls, and renders what the model is to read next. May take a while.
fn advance(app: &App, chat: &ChatRequest, mut episode: Episode, turn: Turn) -> Result<(Episode, Vec<Ran>, Follows)> {
    let before = episode.transcript().calls.len();
    let next = episode.take(turn).map_err(|e| ApiError::internal(e.to_string()))?;
    let ran = episode.transcript().calls.iter().skip(before).map(ran).collect();
    let follows = match (next, episode.end()) {
        (_, Some(End::Failed(why))) => {
            tracing::error!("a tool failed: {why}");
            return Err(ApiError::internal(format!("a tool of this server failed: {why}")));
        }
        (Next::End, Some(End::Answer | End::Unexecuted { .. })) => Follows::End(Reason::Stop),
        (Next::End, _) => Follows::End(Reason::Length),
        (Next::Prompt, _) => Follows::Prompt(app.voice.next_prompt(episode.conversation().clone(), chat.enable_thinking)?),
    };
    Ok((episode, ran, follows))
}

/// A call as a client is shown it.
fn ran(call: &CallRecord) -> Ran {
    Ran {
        name: call.name.clone(),
        arguments: if call.arguments.is_null() { String::new() } else { call.arguments.to_string() },
        output: call.outcome.shown(),
        failed: !matches!(call.outcome, Outcome::Ok(_)),
    }
}
