//! Answers in OpenAI's form: whole, or in chunks whose sum is the whole.

use std::sync::Arc;

use serde_json::{Value, json};
use trainer_engine::TokenLogprobs;
use trainer_text::Tokenizer;

use super::request::ChatRequest;
use crate::answers::{Answers, usage};
use crate::app::App;
use crate::scribe::{Call, Delta, Ran, Reason, Step};

/// What all answers to a request have in common.
pub struct Reply {
    id: String,
    created: u64,
    model: String,
    tokenizer: Arc<Tokenizer>,
    prompt_tokens: usize,
    include_usage: bool,
    logprobs: bool,
    /// By choice, for streams.
    open: Vec<Open>,
}

/// A choice that is being streamed.
#[derive(Default)]
struct Open {
    calls: usize,
    /// Calls that the server has executed.
    ran: usize,
    /// Tokens whose words are still to come.
    tokens: Vec<TokenLogprobs>,
}

/// A choice with all of its parts.
#[derive(Default)]
pub struct Whole {
    text: String,
    reasoning: String,
    calls: Vec<Call>,
    ran: Vec<Ran>,
    tokens: Vec<TokenLogprobs>,
    finish: Option<Reason>,
}

impl Whole {
    /// Adds what is new.
    pub fn add(&mut self, step: Step) {
        for delta in step.deltas {
            match delta {
                Delta::Text(text) => self.text.push_str(&text),
                Delta::Reasoning(text) => self.reasoning.push_str(&text),
                Delta::Call(call) => self.calls.push(call),
                Delta::Ran(ran) => self.ran.push(ran),
            }
        }
        self.tokens.extend(step.tokens);
        self.finish = step.finish.or(self.finish);
    }
}

/// A number that JSON can express; OpenAI writes -9999 for what has no probability.
pub fn finite(logprob: f64) -> f64 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

impl Reply {
    /// For a request.
    pub fn new(app: &App, chat: &ChatRequest, prompt_tokens: usize) -> Self {
        Reply {
            id: format!("chatcmpl-{:016x}{:016x}", crate::random(), crate::random()),
            created: crate::unix_seconds(),
            model: chat.common.model.clone(),
            tokenizer: app.voice.tokenizer.clone(),
            prompt_tokens,
            include_usage: chat.common.include_usage,
            logprobs: chat.logprobs.is_some(),
            open: (0..chat.common.n).map(|_| Open::default()).collect(),
        }
    }

    fn call(&self, call: Call) -> Value {
        let id = format!("call_{:016x}", crate::random());
        json!({ "id": id, "type": "function", "function": { "name": call.name, "arguments": call.arguments } })
    }

    /// A call that the server has executed, as no call of the client's: a field of this server's own.
    fn ran(&self, ran: Ran) -> Value {
        let mut call = self.call(Call { name: ran.name, arguments: ran.arguments });
        call["output"] = ran.output.into();
        call
    }

    fn tokens(&self, tokens: &[TokenLogprobs]) -> Value {
        let one = |id: u32, logprob: f64| {
            let bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
            json!({ "token": String::from_utf8_lossy(bytes), "logprob": finite(logprob), "bytes": bytes })
        };
        let content: Vec<Value> = tokens
            .iter()
            .map(|t| {
                let mut entry = one(t.id, t.logprob);
                entry["top_logprobs"] = t.top.iter().map(|(id, logprob)| one(*id, *logprob)).collect();
                entry
            })
            .collect();
        json!({ "content": content, "refusal": null })
    }

    /// The answer as one object.
    pub fn whole(&self, wholes: Vec<Whole>, answers: &Answers) -> Value {
        let choices: Vec<Value> = wholes
            .into_iter()
            .enumerate()
            .map(|(index, whole)| {
                let calls: Vec<Value> = whole.calls.into_iter().map(|c| self.call(c)).collect();
                let content = if whole.text.is_empty() && !calls.is_empty() { Value::Null } else { whole.text.into() };
                let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
                if !whole.reasoning.is_empty() {
                    message["reasoning_content"] = whole.reasoning.into();
                }
                if !calls.is_empty() {
                    message["tool_calls"] = calls.into();
                }
                if !whole.ran.is_empty() {
                    message["executed_tool_calls"] = whole.ran.into_iter().map(|r| self.ran(r)).collect();
                }
                let logprobs = if self.logprobs { self.tokens(&whole.tokens) } else { Value::Null };
                let reason = whole.finish.unwrap_or(Reason::Length).name();
                json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": reason })
            })
            .collect();
        json!({
            "id": self.id, "object": "chat.completion", "created": self.created, "model": self.model, "system_fingerprint": null,
            "choices": choices, "usage": usage(self.prompt_tokens, answers),
        })
    }

    fn chunk(&self, choices: Value, usage: Value) -> Value {
        let mut chunk = json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model, "system_fingerprint": null,
            "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = usage;
        }
        chunk
    }

    fn choice(&self, index: usize, delta: Value, tokens: &[TokenLogprobs], finish: Option<Reason>) -> Value {
        let logprobs = if self.logprobs && !tokens.is_empty() { self.tokens(tokens) } else { Value::Null };
        let choice = json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish.map(Reason::name) });
        self.chunk(json!([choice]), Value::Null)
    }

    /// The first chunk of a choice.
    pub fn opening(&self, index: usize) -> Value {
        self.choice(index, json!({ "role": "assistant", "content": "" }), &[], None)
    }

    /// The chunks of what is new.
    pub fn chunks(&mut self, index: usize, step: Step) -> Vec<Value> {
        let Some(open) = self.open.get_mut(index) else { return Vec::new() };
        open.tokens.extend(step.tokens);
        let mut first = open.calls;
        open.calls += step.deltas.iter().filter(|d| matches!(d, Delta::Call(_))).count();
        let mut first_ran = open.ran;
        open.ran += step.deltas.iter().filter(|d| matches!(d, Delta::Ran(_))).count();
        let silent = step.deltas.is_empty() && step.finish.is_none();
        let mut tokens = if silent { Vec::new() } else { std::mem::take(&mut open.tokens) };
        let mut chunks = Vec::new();
        for delta in step.deltas {
            let delta = match delta {
                Delta::Text(text) => json!({ "content": text }),
                Delta::Reasoning(text) => json!({ "reasoning_content": text }),
                Delta::Call(call) => {
                    let mut call = self.call(call);
                    call["index"] = first.into();
                    first += 1;
                    json!({ "tool_calls": [call] })
                }
                Delta::Ran(ran) => {
                    let mut ran = self.ran(ran);
                    ran["index"] = first_ran.into();
                    first_ran += 1;
                    json!({ "executed_tool_calls": [ran] })
                }
            };
            chunks.push(self.choice(index, delta, &tokens, None));
            tokens.clear();
        }
        if step.finish.is_some() {
            chunks.push(self.choice(index, json!({}), &tokens, step.finish));
        }
        chunks
    }

    /// The last chunk, where it is wanted.
    pub fn usage_chunk(&self, answers: &Answers) -> Option<Value> {
        self.include_usage.then(|| self.chunk(json!([]), usage(self.prompt_tokens, answers)))
    }
}
