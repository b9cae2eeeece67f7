//! `/v1/chat/completions`

pub mod reply;
pub mod request;

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use trainer_engine::GenRequest;

use crate::answers::{Answers, InFlight};
use crate::app::{App, Ask, blocking, json_response};
use crate::error::Result;
use crate::scribe::{Calls, Scribe};
use crate::sse::{Events, stream};
use reply::{Reply, Whole};
use request::{ChatRequest, ToolChoice};

/// Answers a chat completion.
pub async fn completions(State(app): State<Arc<App>>, request: axum::extract::Request) -> Response {
    match answer(app, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn answer(app: Arc<App>, request: axum::extract::Request) -> Result<Response> {
    let flight = InFlight::new(&app.metrics);
    let deadline = app.deadline();
    let body = app.body(request).await?;
    let chat = ChatRequest::read(&body, &app.defaults)?;
    drop(body);
    let adapter = app.adapter(&chat.common.model)?;
    app.check_choices(chat.common.n)?;
    let renderer = app.clone();
    // Rendering enters the template plugin, and encoding a long prompt takes its time.
    let (prompt, parsers, chat) = blocking(move || {
        let prompt = renderer.voice.prompt(&chat)?;
        let parsers = (0..chat.common.n).map(|_| renderer.voice.parser()).collect::<Result<Vec<_>>>()?;
        Ok((prompt, parsers, chat))
    })
    .await?;
    let common = &chat.common;
    let max_new_tokens = app.room(prompt.ids.len(), common.max_tokens, "messages")?;
    app.check_logprobs(max_new_tokens.saturating_mul(common.n), chat.logprobs)?;
    let seed = common.seed.unwrap_or_else(crate::random);
    let prompt_tokens = prompt.ids.len();
    let stop_ids = if common.ignore_eos { Vec::new() } else { app.voice.speaker.stop_ids.clone() };
    let one = GenRequest {
        adapter,
        prompt_ids: prompt.ids,
        params: common.sampling,
        seed,
        max_new_tokens,
        stop_ids,
        logprobs: chat.logprobs,
        ..GenRequest::default()
    };
    let asks: Vec<Ask> = (0..common.n).map(|i| Ask::new(GenRequest { repeat: i as u32, ..one.clone() })).collect();
    let named = matches!(chat.choice, ToolChoice::Named(_));
    let calls = Calls { offered: chat.choice != ToolChoice::None, single: named || !chat.parallel, named };
    let scribes = asks
        .iter()
        .zip(parsers)
        .map(|(ask, parser)| Scribe::chat(&app.voice.tokenizer, parser, &prompt.begun, calls, common.stop.clone(), ask.enough.clone()))
        .collect::<Result<_>>()?;
    let outputs = app.submit(asks)?;
    let answers = Answers::new(outputs, scribes);
    let reply = Reply::new(&app, &chat, prompt_tokens);
    if chat.common.stream {
        return Ok(stream(flight, deadline, move |events| streamed(answers, reply, events)));
    }
    flight.until(deadline, collected(answers, reply)).await
}

async fn collected(mut answers: Answers, reply: Reply) -> Result<Response> {
    let mut wholes: Vec<Whole> = (0..answers.choices()).map(|_| Whole::default()).collect();
    while let Some(steps) = answers.next().await? {
        for (choice, step) in steps {
            if let Some(whole) = wholes.get_mut(choice) {
                whole.add(step);
            }
        }
    }
    Ok(json_response(&reply.whole(wholes, &answers)))
}

async fn streamed(mut answers: Answers, mut reply: Reply, events: Events) -> Result<()> {
    for choice in 0..answers.choices() {
        events.send(&reply.opening(choice)).await?;
    }
    while let Some(steps) = answers.next_with(&events).await? {
        for (choice, step) in steps {
            for chunk in reply.chunks(choice, step) {
                events.send(&chunk).await?;
            }
        }
    }
    if let Some(usage) = reply.usage_chunk(&answers) {
        events.send(&usage).await?;
    }
    events.done().await
}
