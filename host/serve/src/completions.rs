//! `/v1/completions`: text that is continued as it stands.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};
use trainer_engine::{GenRequest, TokenLogprobs};
use trainer_kernels::sampling::SamplingParams;
use trainer_text::{SpecialMode, Tokenizer};

use crate::answers::{Answers, usage, with_life};
use crate::app::{App, Ask, Asking, Opened, blocking, json_response, responded};
use crate::chat::reply::finite;
use crate::error::{ApiError, Result};
use crate::fields::{Fields, mistyped};
use crate::params::{Common, MOST_LOGPROBS};
use crate::scribe::{Delta, Reason, Scribe, Step};
use crate::sse::{Events, stream};

/// The most prompts of a request.
const MOST_PROMPTS: usize = 256;
/// The length of an answer where the request does not say, as OpenAI has it.
const DEFAULT_TOKENS: usize = 16;

/// What is continued.
#[derive(Clone, Debug, PartialEq)]
enum Prompt {
    /// Text, in which special tokens count.
    Text(String),
    /// Tokens.
    Ids(Vec<u32>),
}

/// A request.
#[derive(Clone, Debug)]
struct Request {
    common: Common,
    prompts: Vec<Prompt>,
    /// The prompt is part of the answer.
    echo: bool,
    logprobs: Option<usize>,
}

impl Request {
    fn of(body: &Value, defaults: &SamplingParams) -> Result<Self> {
        let mut fields = Fields::new(body, "")?;
        let common = Common::read(&mut fields, defaults, 0)?;
        let prompts = prompts(fields.get("prompt"))?;
        let echo = fields.bool("echo")?.unwrap_or(false);
        let logprobs = fields.integer("logprobs", 0, MOST_LOGPROBS)?.map(|n| n as usize);
        if let Some(best) = fields.integer("best_of", 1, i64::MAX)?
            && best as usize != common.n
        {
            return Err(ApiError::unsupported("best_of", "best_of is not supported unless it is n"));
        }
        fields.refuse("suffix", |v| v.as_str() == Some(""), "")?;
        fields.finish()?;
        if common.max_tokens == Some(0) && !echo {
            return Err(ApiError::param("max_tokens", "max_tokens is 0, which only makes sense with echo"));
        }
        Ok(Request { common, prompts, echo, logprobs })
    }
}

impl Asking for Request {
    fn read(body: &Value, app: &App) -> Result<Self> {
        Self::of(body, &app.defaults)
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn answers(&self) -> usize {
        self.prompts.len().saturating_mul(self.common.n)
    }
}

/// A string, tokens, or a list of either.
fn prompts(value: Option<&Value>) -> Result<Vec<Prompt>> {
    let missing = || ApiError::param("prompt", "prompt is missing");
    let wanted = "a string, an array of tokens, or an array of these";
    let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| mistyped("prompt", value, wanted));
    let ids = |list: &[Value]| list.iter().map(token).collect::<Result<Vec<u32>>>().map(Prompt::Ids);
    match value {
        None => Err(missing()),
        Some(Value::String(text)) => Ok(vec![Prompt::Text(text.clone())]),
        Some(Value::Array(list)) if list.is_empty() => Err(missing()),
        Some(Value::Array(list)) if list.first().is_some_and(Value::is_number) => Ok(vec![ids(list)?]),
        Some(Value::Array(list)) if list.len() > MOST_PROMPTS => {
            Err(ApiError::param("prompt", format!("there are {} prompts; at most {MOST_PROMPTS} are possible", list.len())))
        }
        Some(Value::Array(list)) => {
            let one = |value: &Value| match value {
                Value::String(text) => Ok(Prompt::Text(text.clone())),
                Value::Array(list) => ids(list),
                other => Err(mistyped("prompt", other, wanted)),
            };
            list.iter().map(one).collect()
        }
        Some(other) => Err(mistyped("prompt", other, wanted)),
    }
}

/// Answers a completion.
pub async fn completions(State(app): State<Arc<App>>, request: axum::extract::Request) -> Response {
    responded(answer(app, request).await)
}

async fn answer(app: Arc<App>, request: axum::extract::Request) -> Result<Response> {
    let Opened { flight, deadline, request, one } = app.open::<Request>(request).await?;
    let common = request.common.clone();
    let count = request.answers();
    let encoder = app.clone();
    let (echo, logprobs) = (request.echo, request.logprobs);
    let prompts =
        blocking(move || request.prompts.iter().map(|p| encode(&encoder, p)).collect::<Result<Vec<(Vec<u32>, String)>>>()).await?;
    let prompt_tokens = prompts.iter().map(|(ids, _)| ids.len()).sum();
    let stop_ids = if common.ignore_eos { Vec::new() } else { app.voice.eos.clone() };
    let mut asks = Vec::with_capacity(count);
    let mut tokens = 0usize;
    let mut open = Vec::with_capacity(count);
    for (sample, (ids, text)) in prompts.into_iter().enumerate() {
        let wanted = common.max_tokens.unwrap_or_else(|| DEFAULT_TOKENS.min(app.context.saturating_sub(ids.len())));
        let max_new_tokens = app.room(ids.len(), Some(wanted), "prompt")?;
        let shown = if echo { ids.len() + max_new_tokens } else { max_new_tokens };
        tokens = tokens.saturating_add(shown.saturating_mul(common.n));
        app.check_logprobs(tokens, logprobs)?;
        for repeat in 0..common.n {
            open.push(Open { echo: echo.then(|| (text.clone(), ids.first().copied())), ..Open::default() });
            asks.push(Ask::new(GenRequest {
                prompt_ids: ids.clone(),
                sample: sample as u64,
                repeat: repeat as u32,
                max_new_tokens,
                stop_ids: stop_ids.clone(),
                logprobs,
                prompt_logprobs: logprobs.filter(|_| echo),
                ..one.clone()
            }));
        }
    }
    let scribes = asks.iter().map(|ask| Scribe::plain(&app.voice.tokenizer, common.stop.clone(), ask.enough.clone())).collect();
    let outputs = app.submit(asks)?;
    let answers = Answers::new(outputs, scribes);
    let reply = Reply {
        id: format!("cmpl-{:016x}{:016x}", crate::random(), crate::random()),
        created: crate::unix_seconds(),
        model: common.model,
        tokenizer: app.voice.tokenizer.clone(),
        prompt_tokens,
        include_usage: common.include_usage,
        logprobs: logprobs.is_some(),
        open,
    };
    if common.stream {
        return Ok(stream(flight, deadline, move |events| streamed(answers, reply, events)));
    }
    flight.until(deadline, collected(answers, reply)).await
}

/// A prompt's tokens, and its text.
fn encode(app: &App, prompt: &Prompt) -> Result<(Vec<u32>, String)> {
    let tokenizer = &app.voice.tokenizer;
    let (ids, text) = match prompt {
        Prompt::Text(text) => {
            let ids = tokenizer.encode(text, SpecialMode::Parse);
            (ids.map_err(|e| ApiError::internal(format!("the prompt cannot be encoded: {e}")))?, text.clone())
        }
        Prompt::Ids(ids) => {
            if let Some(id) = ids.iter().find(|id| **id as usize >= app.vocabulary) {
                return Err(ApiError::param("prompt", format!("there is no token {id}; the model has {}", app.vocabulary)));
            }
            (ids.clone(), tokenizer.decode(ids, false))
        }
    };
    if ids.is_empty() {
        return Err(ApiError::param("prompt", "the prompt is empty"));
    }
    Ok((ids, text))
}

async fn collected(mut answers: Answers, mut reply: Reply) -> Result<Response> {
    let mut wholes: Vec<Part> = (0..answers.choices()).map(|_| Part::default()).collect();
    while let Some(steps) = answers.next().await? {
        for (choice, step) in steps {
            if let (Some(whole), Some(part)) = (wholes.get_mut(choice), reply.part(choice, step)) {
                whole.text.push_str(&part.text);
                whole.tokens.extend(part.tokens);
                whole.finish = part.finish;
            }
        }
    }
    let choices = wholes.into_iter().enumerate().map(|(index, whole)| reply.choice(index, whole)).collect();
    let usage = usage(reply.prompt_tokens, &answers);
    Ok(json_response(&reply.object(choices, Some(usage))))
}

async fn streamed(mut answers: Answers, mut reply: Reply, events: Events) -> Result<()> {
    let nothing = |include: bool| include.then_some(Value::Null);
    while let Some(steps) = with_life(&events, answers.next()).await? {
        for (choice, step) in steps {
            if let Some(part) = reply.part(choice, step) {
                let choice = reply.choice(choice, part);
                events.send(&reply.object(json!([choice]), nothing(reply.include_usage))).await?;
            }
        }
    }
    if reply.include_usage {
        events.send(&reply.object(json!([]), Some(usage(reply.prompt_tokens, &answers)))).await?;
    }
    events.done().await
}

/// What all answers to a request have in common.
struct Reply {
    id: String,
    created: u64,
    model: String,
    tokenizer: Arc<Tokenizer>,
    prompt_tokens: usize,
    include_usage: bool,
    logprobs: bool,
    /// By choice.
    open: Vec<Open>,
}

/// A choice while it grows.
#[derive(Default)]
struct Open {
    /// The prompt's text and first token, where they are still to be shown.
    echo: Option<(String, Option<u32>)>,
    tokens: Vec<Shown>,
    /// Characters of all tokens so far.
    offset: usize,
}

/// A token with its place in the text; the first of a prompt has no probability.
struct Shown {
    offset: usize,
    id: u32,
    logprobs: Option<TokenLogprobs>,
}

/// Some of a choice.
#[derive(Default)]
struct Part {
    text: String,
    tokens: Vec<Shown>,
    finish: Option<Reason>,
}

impl Reply {
    /// What is new in a choice, if it can be shown already.
    fn part(&mut self, choice: usize, step: Step) -> Option<Part> {
        let open = self.open.get_mut(choice)?;
        let mut part = Part { finish: step.finish, ..Part::default() };
        let mut show = |id: u32, logprobs: Option<TokenLogprobs>| {
            let length = String::from_utf8_lossy(self.tokenizer.token_bytes(id).unwrap_or_default()).chars().count();
            open.tokens.push(Shown { offset: open.offset, id, logprobs });
            open.offset += length;
        };
        if let Some((text, first)) = open.echo.take() {
            part.text.push_str(&text);
            if self.logprobs
                && let Some(first) = first
            {
                show(first, None);
            }
        }
        for token in step.tokens {
            show(token.id, Some(token));
        }
        for delta in step.deltas {
            if let Delta::Text(text) = delta {
                part.text.push_str(&text);
            }
        }
        if part.text.is_empty() && part.finish.is_none() {
            return None;
        }
        part.tokens = std::mem::take(&mut open.tokens);
        Some(part)
    }

    /// A token as a key: its text, or its bytes where they are no text, so that different tokens look different.
    fn token(&self, id: u32) -> String {
        let bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
        match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
        }
    }

    fn choice(&self, index: usize, part: Part) -> Value {
        let mut logprobs = Value::Null;
        if self.logprobs && !part.tokens.is_empty() {
            let top = |shown: &Shown| -> Value {
                let Some(all) = &shown.logprobs else { return Value::Null };
                let mut map = Map::new();
                for (id, logprob) in all.top.iter().copied().chain([(all.id, all.logprob)]) {
                    map.entry(self.token(id)).or_insert_with(|| finite(logprob).into());
                }
                map.into()
            };
            logprobs = json!({
                "tokens": part.tokens.iter().map(|t| self.token(t.id)).collect::<Vec<_>>(),
                "token_logprobs": part.tokens.iter().map(|t| t.logprobs.as_ref().map(|l| finite(l.logprob))).collect::<Vec<_>>(),
                "top_logprobs": part.tokens.iter().map(top).collect::<Vec<_>>(),
                "text_offset": part.tokens.iter().map(|t| t.offset).collect::<Vec<_>>(),
            });
        }
        json!({ "index": index, "text": part.text, "logprobs": logprobs, "finish_reason": part.finish.map(Reason::name) })
    }

    fn object(&self, choices: Value, usage: Option<Value>) -> Value {
        let mut object = json!({
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.model, "system_fingerprint": null,
            "choices": choices,
        });
        if let Some(usage) = usage {
            object["usage"] = usage;
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_request_is_too_odd(value in crate::fields::tests::values(), key in 0usize..24) {
            let odd = crate::fields::tests::with(json!({ "model": "m", "prompt": "p" }), key, value);
            if let Err(error) = Request::of(&odd, &SamplingParams::default()) {
                proptest::prop_assert!(error.status.is_client_error() && (error.param.is_some() || !odd.is_object()), "{:?}", error);
            }
        }
    }

    #[test]
    fn prompts_come_in_four_forms() {
        let text = |t: &str| Prompt::Text(t.into());
        for (value, expected) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![Prompt::Ids(vec![1, 2])]),
            (json!([[1, 2], [3]]), vec![Prompt::Ids(vec![1, 2]), Prompt::Ids(vec![3])]),
        ] {
            assert_eq!(prompts(Some(&value)).unwrap(), expected);
        }
        for value in
            [json!([]), json!(1), json!([1, "a"]), json!([[1, -2]]), json!([[1.5]]), json!({}), json!([null]), json!([4294967296u64])]
        {
            assert_eq!(prompts(Some(&value)).unwrap_err().param.as_deref(), Some("prompt"), "{value}");
        }
        assert!(prompts(None).is_err());
    }
}
