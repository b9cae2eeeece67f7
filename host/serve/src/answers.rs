//! The answers to a request while they come.

use std::sync::Arc;
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

/// All answers of a request. Dropping it ends them.
pub struct Answers {
    outputs: UnboundedReceiver<Output>,
    scribes: Vec<Scribe>,
}

impl Answers {
    /// One scribe for each choice.
    pub fn new(outputs: UnboundedReceiver<Output>, scribes: Vec<Scribe>) -> Self {
        Answers { outputs, scribes }
    }

    /// How many there are.
    pub fn choices(&self) -> usize {
        self.scribes.len()
    }

    /// Tokens of all answers so far.
    pub fn tokens(&self) -> usize {
        self.scribes.iter().map(|s| s.tokens).sum()
    }

    /// Waits for what is new, by choice; None when all have ended.
    ///
    /// # Errors
    /// The generator or the template failed, or the server ends.
    pub async fn next(&mut self) -> Result<Option<Vec<(usize, Step)>>> {
        if self.scribes.iter().all(Scribe::is_done) {
            return Ok(None);
        }
        let mut outputs = Vec::new();
        if self.outputs.recv_many(&mut outputs, MOST_AT_ONCE).await == 0 {
            return Err(ApiError::closing());
        }
        let mut by_choice: Vec<Vec<Output>> = self.scribes.iter().map(|_| Vec::new()).collect();
        for output in outputs {
            if let Some(list) = by_choice.get_mut(output.choice) {
                list.push(output);
            }
        }
        let mut scribes = std::mem::take(&mut self.scribes);
        // Reading an answer enters the template plugin.
        let (scribes, steps) = blocking(move || {
            let mut steps = Vec::new();
            for (choice, (scribe, outputs)) in scribes.iter_mut().zip(by_choice).enumerate() {
                if !outputs.is_empty() && !scribe.is_done() {
                    steps.push((choice, scribe.take(outputs)?));
                }
            }
            Ok((scribes, steps))
        })
        .await?;
        self.scribes = scribes;
        Ok(Some(steps))
    }

    /// As [`Answers::next`], with signs of life to a stream meanwhile.
    ///
    /// # Errors
    /// As [`Answers::next`]; or nobody listens any more.
    pub async fn next_with(&mut self, events: &Events) -> Result<Option<Vec<(usize, Step)>>> {
        let mut next = std::pin::pin!(self.next());
        loop {
            match tokio::time::timeout(SILENCE, next.as_mut()).await {
                Ok(steps) => return steps,
                Err(_) => events.alive().await?,
            }
        }
    }
}

/// The token counts of a request.
pub fn usage(prompt_tokens: usize, answers: &Answers) -> Value {
    let completion_tokens = answers.tokens();
    let cached = answers.scribes.iter().map(|s| s.reused).max().unwrap_or(0);
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
