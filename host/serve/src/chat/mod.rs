//! `/v1/chat/completions`

pub mod reply;
pub mod request;
mod turns;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use trainer_engine::GenRequest;

use crate::answers::{Answers, with_life};
use crate::app::{App, Ask, Opened, blocking, json_response, responded};
use crate::error::Result;
use crate::scribe::Scribe;
use crate::sse::{Events, stream};
use reply::{Reply, Whole};
use request::ChatRequest;
use turns::Turns;

/// Answers a chat completion.
pub async fn completions(State(app): State<Arc<App>>, request: axum::extract::Request) -> Response {
    responded(answer(app, request).await)
}

async fn answer(app: Arc<App>, request: axum::extract::Request) -> Result<Response> {
    let Opened { flight, deadline, request: chat, one } = app.open::<ChatRequest>(request).await?;
    let chat = Arc::new(chat);
    let (renderer, asked) = (app.clone(), chat.clone());
    // Rendering enters the template plugin, and encoding a long prompt takes its time.
    let (prompt, parsers) = blocking(move || {
        let prompt = renderer.voice.prompt(&asked)?;
        let parsers = (0..asked.common.n).map(|_| renderer.voice.parser()).collect::<Result<Vec<_>>>()?;
        Ok((prompt, parsers))
    })
    .await?;
    let common = &chat.common;
    let max_new_tokens = app.room(prompt.ids.len(), common.max_tokens, "messages")?;
    app.check_logprobs(max_new_tokens.saturating_mul(common.n), chat.logprobs)?;
    let prompt_tokens = prompt.ids.len();
    let stop_ids = if common.ignore_eos { Vec::new() } else { app.voice.speaker.stop_ids.clone() };
    let one = GenRequest { stop_ids, logprobs: chat.logprobs, ..one };
    let first = GenRequest { prompt_ids: prompt.ids, max_new_tokens, ..one.clone() };
    let asks: Vec<Ask> = (0..common.n).map(|i| Ask::new(GenRequest { repeat: i as u32, ..first.clone() })).collect();
    let scribes = asks
        .iter()
        .zip(parsers)
        .map(|(ask, parser)| {
            Scribe::chat(&app.voice.tokenizer, parser, &prompt.begun, chat.calls(), common.stop.clone(), ask.enough.clone())
        })
        .collect::<Result<_>>()?;
    let answers = Answers::new(app.submit(asks)?, scribes);
    let reply = Reply::new(&app, &chat, prompt_tokens);
    let turns = Turns::new(&app, &chat, one, answers);
    if chat.common.stream {
        return Ok(stream(flight, deadline, move |events| streamed(turns, reply, events)));
    }
    flight.until(deadline, collected(turns, reply)).await
}

async fn collected(mut turns: Turns, reply: Reply) -> Result<Response> {
    let mut wholes: Vec<Whole> = (0..turns.answers.choices()).map(|_| Whole::default()).collect();
    while let Some(steps) = turns.next().await? {
        for (choice, step) in steps {
            if let Some(whole) = wholes.get_mut(choice) {
                whole.add(step);
            }
        }
    }
    Ok(json_response(&reply.whole(wholes, &turns.answers)))
}

async fn streamed(mut turns: Turns, mut reply: Reply, events: Events) -> Result<()> {
    for choice in 0..turns.answers.choices() {
        events.send(&reply.opening(choice)).await?;
    }
    while let Some(steps) = with_life(&events, turns.next()).await? {
        for (choice, step) in steps {
            for chunk in reply.chunks(choice, step) {
                events.send(&chunk).await?;
            }
        }
    }
    if let Some(usage) = reply.usage_chunk(&turns.answers) {
        events.send(&usage).await?;
    }
    events.done().await
}
