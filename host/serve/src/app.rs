//! What every handler shares: the model's names and voice, the queue, the counts, the limits.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use axum::body::HttpBody;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use trainer_engine::GenRequest;
use trainer_kernels::sampling::SamplingParams;

use crate::Options;
use crate::answers::InFlight;
use crate::error::{ApiError, Result};
use crate::fields::short;
use crate::metrics::Metrics;
use crate::params::Common;
use crate::queue::{Job, Output, Queue, Refusal};
use crate::tools::ServerTools;
use crate::voice::Voice;

/// The most log-probabilities of an answer, alternatives included.
const MOST_PROBABILITIES: usize = 1 << 20;

/// The server's state.
pub struct App {
    /// Tokenizer and template.
    pub voice: Voice,
    /// Names of the models, in the order of the generator's adapters; the first is the base.
    pub models: Vec<String>,
    /// When the server began.
    pub created: u64,
    /// Requests that wait.
    pub queue: Arc<Queue>,
    /// The counts.
    pub metrics: Arc<Metrics>,
    /// Limits and key.
    pub options: Options,
    /// The most tokens of a sequence.
    pub context: usize,
    /// Tokens that the model has.
    pub vocabulary: usize,
    /// How tokens are drawn where a request does not say.
    pub defaults: SamplingParams,
    /// What is executed here.
    pub tools: ServerTools,
}

/// A kind of request that is answered with what the generator writes.
pub trait Asking: Sized {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// The first thing that is wrong, with its parameter.
    fn read(body: &Value, app: &App) -> Result<Self>;

    /// What all kinds say.
    fn common(&self) -> &Common;

    /// How many answers it asks for.
    fn answers(&self) -> usize;
}

/// A request that was read.
pub struct Opened<R> {
    /// For the counts.
    pub flight: InFlight,
    /// When it must be answered.
    pub deadline: tokio::time::Instant,
    /// What it asks.
    pub request: R,
    /// What each of its answers begins from: adapter, drawing, seed.
    pub one: GenRequest,
}

/// An answer to ask for.
pub struct Ask {
    request: GenRequest,
    /// Set by whoever reads the answer when there is enough of it.
    pub enough: Arc<AtomicBool>,
}

impl Ask {
    /// One answer.
    pub fn new(request: GenRequest) -> Self {
        Ask { request, enough: Arc::default() }
    }

    fn job(self) -> (Job, UnboundedReceiver<Output>) {
        let (outputs, receiver) = unbounded_channel();
        (Job { request: self.request, outputs, enough: self.enough, since: Instant::now() }, receiver)
    }
}

impl App {
    /// Reads a request and checks what does not depend on its kind.
    ///
    /// # Errors
    /// It cannot be read, names no model of this server, or asks for too many answers.
    pub async fn open<R: Asking>(&self, request: axum::extract::Request) -> Result<Opened<R>> {
        let flight = InFlight::new(&self.metrics);
        let deadline = tokio::time::Instant::now() + self.options.request_timeout;
        let body = self.body(request).await?;
        let request = R::read(&body, self)?;
        drop(body);
        let common = request.common();
        let adapter = self.adapter(&common.model)?;
        self.check_choices(request.answers())?;
        if let Some((id, _)) = common.logit_bias.iter().find(|(id, _)| *id as usize >= self.vocabulary) {
            return Err(ApiError::param("logit_bias", format!("there is no token {id}; the model has {}", self.vocabulary)));
        }
        let one = GenRequest {
            adapter,
            params: common.sampling,
            logit_bias: common.logit_bias.clone(),
            seed: common.seed.unwrap_or_else(crate::random),
            ..GenRequest::default()
        };
        Ok(Opened { flight, deadline, request, one })
    }

    /// The number of the adapter of a model's name.
    ///
    /// # Errors
    /// There is none.
    pub fn adapter(&self, model: &str) -> Result<usize> {
        self.models.iter().position(|m| m == model).ok_or_else(|| {
            let text = format!("there is no model {:?} here; there are {}", short(model), self.models.join(", "));
            ApiError { status: StatusCode::NOT_FOUND, ..ApiError::param("model", text).code("model_not_found") }
        })
    }

    /// Checks that so many answers can ever be in the queue at once.
    ///
    /// # Errors
    /// They cannot.
    pub fn check_choices(&self, count: usize) -> Result<()> {
        let most = self.queue.capacity();
        if count <= most {
            return Ok(());
        }
        Err(ApiError::param("n", format!("the request asks for {count} answers; this server's queue holds {most} (--queue)")))
    }

    /// How many tokens may follow a prompt.
    ///
    /// # Errors
    /// The prompt alone, or with what is asked for, does not fit the context.
    pub fn room(&self, prompt: usize, max_tokens: Option<usize>, param: &'static str) -> Result<usize> {
        let context = self.context;
        let too_long = |text: String| Err(ApiError::param(param, text).code("context_length_exceeded"));
        if prompt >= context {
            return too_long(format!(
                "the prompt has {prompt} tokens; this server's context is {context}, prompt and answer together (--context)"
            ));
        }
        match max_tokens {
            Some(n) if n > context - prompt => too_long(format!(
                "the prompt has {prompt} tokens and {n} more are asked for; this server's context is {context}, prompt and answer together (--context)"
            )),
            Some(n) => Ok(n),
            None => Ok(context - prompt),
        }
    }

    /// Checks that an answer's log-probabilities, `tokens` with so many alternatives beside each, are not more than memory should hold.
    ///
    /// # Errors
    /// They are.
    pub fn check_logprobs(&self, tokens: usize, alternatives: Option<usize>) -> Result<()> {
        let count = alternatives.map_or(0, |n| tokens.saturating_mul(n + 1));
        if count <= MOST_PROBABILITIES {
            return Ok(());
        }
        let text = format!(
            "the answer could have {count} log-probabilities; at most {MOST_PROBABILITIES} are possible: ask for fewer tokens or fewer alternatives"
        );
        Err(ApiError::param("logprobs", text))
    }

    /// Puts answers into the queue, all or none.
    ///
    /// # Errors
    /// The queue is full, or the server ends.
    pub fn submit(&self, asks: Vec<Ask>) -> Result<Vec<UnboundedReceiver<Output>>> {
        let (jobs, receivers) = asks.into_iter().map(Ask::job).unzip();
        match self.queue.submit(jobs) {
            Ok(()) => Ok(receivers),
            Err(Refusal::Closing) => Err(ApiError::closing()),
            Err(Refusal::Full) => {
                let text = format!("{} answers are waiting, as many as may; try again later", self.queue.capacity());
                let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, text).code("queue_full");
                Err(ApiError { retry_after: Some(1), ..error })
            }
        }
    }

    /// Puts the next turn of an answer that has begun into the queue.
    ///
    /// # Errors
    /// The server ends.
    pub fn go_on(&self, ask: Ask) -> Result<UnboundedReceiver<Output>> {
        let (job, receiver) = ask.job();
        self.queue.go_on(job).map_err(|_| ApiError::closing())?;
        Ok(receiver)
    }

    /// Reads a request's body.
    ///
    /// # Errors
    /// It is no JSON, too large, or too slow.
    pub async fn body(&self, request: axum::extract::Request) -> Result<Value> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        // Also so that no web page can send one without asking first.
        if !kind.split(';').next().is_some_and(|k| k.trim().eq_ignore_ascii_case("application/json")) {
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the content type must be application/json"));
        }
        let read = read_all(request.into_body(), self.options.max_request_bytes);
        let bytes = tokio::time::timeout(self.options.read_timeout, read)
            .await
            .map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request's body did not come in time").code("timeout"))??;
        let bad = |e: serde_json::Error| {
            ApiError::new(StatusCode::BAD_REQUEST, format!("the request is not valid JSON: {e}")).code("invalid_json")
        };
        serde_json::from_slice(&bytes).map_err(bad)
    }
}

/// A body, up to a limit.
async fn read_all(body: axum::body::Body, limit: usize) -> Result<Vec<u8>> {
    let too_large = || {
        let text = format!("the request is larger than {limit} bytes (--max-request-bytes)");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text).code("request_too_large")
    };
    // Said beforehand, it need not be read.
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let mut body = pin!(body);
    let mut all = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, format!("the request's body cannot be read: {e}")))?;
        if let Ok(data) = frame.into_data() {
            if data.len() > limit - all.len() {
                return Err(too_large());
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(all)
}

/// Runs what may take a while, so that other requests go on.
///
/// # Errors
/// Those of `work`.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(ApiError::internal(format!("the request's thread failed: {e}"))))
}

/// What a handler came to.
pub fn responded(result: Result<Response>) -> Response {
    result.unwrap_or_else(IntoResponse::into_response)
}

/// A response of JSON.
pub fn json_response(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// A model as `/v1/models` shows it.
fn model(app: &App, name: &str) -> Value {
    let parent = app.models.first().filter(|base| *base != name);
    json!({
        "id": name, "object": "model", "created": app.created, "owned_by": "trainer", "parent": parent, "max_model_len": app.context,
    })
}

/// `/v1/models`
pub async fn models(State(app): State<Arc<App>>) -> Response {
    let data: Vec<Value> = app.models.iter().map(|name| model(&app, name)).collect();
    json_response(&json!({ "object": "list", "data": data }))
}

/// `/v1/models/NAME`
pub async fn one_model(State(app): State<Arc<App>>, axum::extract::Path(name): axum::extract::Path<String>) -> Response {
    match app.adapter(&name) {
        Ok(_) => json_response(&model(&app, &name)),
        Err(error) => error.into_response(),
    }
}

/// `/health`
pub async fn health(State(app): State<Arc<App>>) -> Response {
    if app.queue.is_closing() {
        return ApiError::closing().into_response();
    }
    json_response(&json!({ "status": "ok" }))
}

/// `/metrics`
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    let page = app.metrics.page(app.queue.waiting(), app.queue.capacity());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
}
