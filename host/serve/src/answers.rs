//! The answers to a request while they come.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::app::blocking;
use crate::error::{ApiError, Result};
use crate::metrics::Metrics;
use crate::queue::Output;
use crate::scribe::{Scribe, Step};
use crate::sse::Events;

/// Outputs that are read at once.
const MOST_AT_ONCE: usize = 256;
/// After so long without an event, a stream says that it is still there.
const SILENCE: Duration = Duration::from_secs(15);

/// A choice and what came of it.
type ChoiceOutputs = (usize, Vec<Output>);

/// All answers of a request. Dropping it ends them.
pub struct Answers {
    /// By choice.
    outputs: Vec<UnboundedReceiver<Output>>,
    scribes: Vec<Scribe>,
    /// Of turns that are over.
    earlier: Counts,
}

/// Tokens of turns.
#[derive(Clone, Copy, Default)]
struct Counts {
    /// Of their prompts, but for the first.
    prompt: usize,
    /// Of those, how many were still in the cache.
    reused: usize,
    /// What was written.
    written: usize,
}

impl Answers {
    /// One scribe for each choice.
    pub fn new(outputs: Vec<UnboundedReceiver<Output>>, scribes: Vec<Scribe>) -> Self {
        Answers { outputs, scribes, earlier: Counts::default() }
    }

    /// How many there are.
    pub fn choices(&self) -> usize {
        self.scribes.len()
    }

    /// Tokens of all answers so far.
    pub fn tokens(&self) -> usize {
        self.scribes.iter().map(|s| s.tokens).sum::<usize>() + self.earlier.written
    }

    /// Who writes an answer.
    pub fn scribe(&mut self, choice: usize) -> Option<&mut Scribe> {
        self.scribes.get_mut(choice)
    }

    /// Goes on with the next turn of a choice, whose prompt has so many tokens.
    pub fn go_on(&mut self, choice: usize, prompt: usize, outputs: UnboundedReceiver<Output>, scribe: Scribe) {
        if let (Some(receiver), Some(before)) = (self.outputs.get_mut(choice), self.scribes.get_mut(choice)) {
            self.earlier.prompt += prompt;
            self.earlier.reused += before.reused;
            self.earlier.written += before.tokens;
            (*receiver, *before) = (outputs, scribe);
        }
    }

    /// Waits for what is new, by choice; None when all have ended.
    ///
    /// # Errors
    /// The generator or the template failed, or the server ends.
    pub async fn next(&mut self) -> Result<Option<Vec<(usize, Step)>>> {
        if self.scribes.iter().all(Scribe::is_done) {
            return Ok(None);
        }
        let by_choice = std::future::poll_fn(|cx| self.poll_outputs(cx)).await?;
        let mut scribes = std::mem::take(&mut self.scribes);
        // Reading an answer enters the template plugin.
        let (scribes, steps) = blocking(move || {
            let mut steps = Vec::new();
            for (choice, outputs) in by_choice {
                if let Some(scribe) = scribes.get_mut(choice) {
                    steps.push((choice, scribe.take(outputs)?));
                }
            }
            Ok((scribes, steps))
        })
        .await?;
        self.scribes = scribes;
        Ok(Some(steps))
    }

    /// Outputs of the choices that have any.
    fn poll_outputs(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<ChoiceOutputs>>> {
        let mut found = Vec::new();
        for (choice, (receiver, scribe)) in self.outputs.iter_mut().zip(&self.scribes).enumerate() {
            let mut outputs = Vec::new();
            if scribe.is_done() {
                continue;
            }
            match receiver.poll_recv_many(cx, &mut outputs, MOST_AT_ONCE) {
                Poll::Ready(0) => return Poll::Ready(Err(ApiError::closing())),
                Poll::Ready(_) => found.push((choice, outputs)),
                Poll::Pending => {}
            }
        }
        if found.is_empty() { Poll::Pending } else { Poll::Ready(Ok(found)) }
    }
}

/// Waits for what is new, with signs of life to a stream meanwhile.
///
/// # Errors
/// Those of `next`; or nobody listens any more.
pub async fn with_life<T>(events: &Events, next: impl Future<Output = Result<T>>) -> Result<T> {
    let mut next = std::pin::pin!(next);
    loop {
        match tokio::time::timeout(SILENCE, next.as_mut()).await {
            Ok(result) => return result,
            Err(_) => events.alive().await?,
        }
    }
}

/// The token counts of a request.
pub fn usage(prompt_tokens: usize, answers: &Answers) -> Value {
    let completion_tokens = answers.tokens();
    let prompt_tokens = prompt_tokens + answers.earlier.prompt;
    let cached = answers.scribes.iter().map(|s| s.reused).max().unwrap_or(0) + answers.earlier.reused;
    json!({
        "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": { "cached_tokens": cached },
    })
}

/// A request that is being answered, for the counts.
pub struct InFlight {
    metrics: Arc<Metrics>,
    since: Instant,
    waiting: bool,
}

impl InFlight {
    /// Begins now.
    pub fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.in_flight.add(1);
        InFlight { metrics: metrics.clone(), since: Instant::now(), waiting: false }
    }

    /// Waits for an answer until a deadline. If this is dropped meanwhile, then because the client went away.
    ///
    /// # Errors
    /// Those of the answer, and that it took too long.
    pub async fn until<T>(mut self, deadline: tokio::time::Instant, answer: impl Future<Output = Result<T>>) -> Result<T> {
        self.waiting = true;
        let result = tokio::time::timeout_at(deadline, answer).await.unwrap_or_else(|_| Err(timed_out()));
        self.waiting = false;
        result
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.metrics.in_flight.add(-1);
        self.metrics.request_seconds.observe(self.since.elapsed());
        if self.waiting {
            self.metrics.disconnects.add(1);
        }
    }
}

/// A request took too long.
pub fn timed_out() -> ApiError {
    let text = "the answer was not complete within the server's time limit for a request (--request-timeout)";
    ApiError::new(axum::http::StatusCode::GATEWAY_TIMEOUT, text).code("timeout")
}
