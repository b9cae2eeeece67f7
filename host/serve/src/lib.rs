//! An HTTP server with OpenAI's interface: chat and plain completions of a base model and of adapters on top of it, by name.
//!
//! Handlers run in one thread and do nothing that takes long: rendering, encoding and parsing go to helper threads. The generator has a thread of
//! its own and takes from a bounded queue whenever a slot is free. An answer flows back through a channel of its own; when its reader is dropped,
//! because a client went away or a time limit was reached, the generator drops the sequence at its next token.
//!
//! It listens on this machine alone unless told otherwise. Without an API key it answers only requests that name it by an address or by a name that
//! was allowed, so that a web page elsewhere cannot reach it through a name of its own that resolves to this machine.

mod answers;
mod app;
mod chat;
mod completions;
pub mod error;
mod fields;
mod guard;
mod http;
mod metrics;
mod params;
mod queue;
mod scribe;
mod sse;
mod stops;
mod tools;
mod voice;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{oneshot, watch};
use trainer_engine::{Adapter, EngineError, Generator};
use trainer_kernels::ops::Ops;
use trainer_kernels::sampling::SamplingParams;
use trainer_tools::Toolbox;

pub use guard::{ApiKey, BadKey};
pub use voice::Voice;

/// Threads for rendering, encoding and parsing.
const HELPERS: usize = 8;
/// What is still open after the time for finishing is told that it ends; this long.
const FAREWELL: Duration = Duration::from_secs(2);

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address to listen on.
    pub host: IpAddr,
    /// The port; 0 takes a free one.
    pub port: u16,
    /// The key that requests must have.
    pub api_key: Option<ApiKey>,
    /// Without a key: names in the `Host` header that are answered besides addresses and `localhost`.
    pub allowed_hosts: Vec<String>,
    /// Answers that may wait for a slot.
    pub queue: usize,
    /// Open connections.
    pub max_connections: usize,
    /// The largest request.
    pub max_request_bytes: usize,
    /// How long a request's body may take to come.
    pub read_timeout: Duration,
    /// How long an answer may take, from its request to its end.
    pub request_timeout: Duration,
    /// How long running answers have to finish when the server is told to end.
    pub shutdown_timeout: Duration,
}

/// What generates.
pub struct Engine<O: Ops> {
    /// The generator.
    pub generator: Generator<O>,
    /// The adapters by model name, None being the model alone; the first is the base.
    pub models: Vec<(String, Option<Adapter<O>>)>,
    /// How tokens are drawn where a request does not say.
    pub defaults: SamplingParams,
}

/// Why the server cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is not to be had.
    #[error("cannot listen on {address}: {source}; another --port may be free")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The system refused something else.
    #[error("the server cannot run: {0}")]
    System(#[from] std::io::Error),
    /// The generator failed.
    #[error("generation failed: {0}")]
    Engine(#[from] EngineError),
    /// The generator's thread panicked.
    #[error("generation ended in a panic")]
    Panicked,
}

/// Tells a server to end. May be used from anywhere.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<watch::Sender<bool>>);

impl Stopper {
    /// One that has said nothing yet.
    #[expect(clippy::new_without_default, reason = "a default that stops nothing would be odd")]
    pub fn new() -> Self {
        Stopper(Arc::new(watch::Sender::new(false)))
    }

    /// Takes no more requests; those that are there are finished, as far as the time allows.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

/// Serves until told to stop. Tools of `toolbox` are on offer in every chat and are executed here. `ready` gets the address once it answers.
///
/// # Errors
/// See [`ServeError`].
pub fn serve<O: Ops + 'static>(
    engine: Engine<O>,
    voice: Voice,
    toolbox: Option<Arc<Toolbox>>,
    options: Options,
    ready: impl FnOnce(SocketAddr),
    stopper: &Stopper,
) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(HELPERS + tools::MOST_RUNNING).build()?;
    let address = SocketAddr::new(options.host, options.port);
    let listener = runtime.block_on(tokio::net::TcpListener::bind(address)).map_err(|source| ServeError::Listen { address, source })?;
    let address = listener.local_addr()?;
    let queue = Arc::new(queue::Queue::new(options.queue));
    let metrics = Arc::new(metrics::Metrics::default());
    let (most, grace) = (options.max_connections, options.shutdown_timeout);
    let app = Arc::new(app::App {
        voice,
        models: engine.models.iter().map(|m| m.0.clone()).collect(),
        created: unix_seconds(),
        queue: queue.clone(),
        metrics: metrics.clone(),
        options,
        context: engine.generator.options().cache_length,
        vocabulary: engine.generator.model().dims().vocab,
        defaults: engine.defaults,
        tools: tools::ServerTools::new(toolbox),
    });
    let (ended, mut end) = oneshot::channel::<()>();
    let intake = (queue.clone(), metrics);
    let thread = std::thread::Builder::new().name("generator".into()).spawn(move || {
        // Dropped however the thread ends.
        let _ended = ended;
        let (queue, metrics) = intake;
        let Engine { mut generator, models, .. } = engine;
        let adapters: Vec<Option<&Adapter<O>>> = models.iter().map(|m| m.1.as_ref()).collect();
        let result = generator.serve(&adapters, &mut queue::Intake::new(&queue, &metrics));
        // Whatever waits will not be answered.
        queue.close(true);
        result
    })?;
    runtime.block_on(async {
        let mut stopped = stopper.0.subscribe();
        let (close, closing) = watch::channel(false);
        let accepting = tokio::spawn(http::accept(listener, http::router(app), most, closing));
        ready(address);
        let failed = tokio::select! {
            () = http::told(&mut stopped) => false,
            _ = &mut end => true,
        };
        queue.close(failed);
        close.send_replace(true);
        if let Ok(mut open) = accepting.await {
            let grace = if failed { Duration::ZERO } else { grace };
            if tokio::time::timeout(grace, open.ended()).await.is_err() {
                queue.close(true);
                let _ = tokio::time::timeout(FAREWELL, open.ended()).await;
            }
        }
        queue.close(true);
    });
    // Threads that still read answers are not waited for.
    runtime.shutdown_background();
    thread.join().map_err(|_| ServeError::Panicked)??;
    Ok(())
}

/// A number that differs from call to call and cannot be foreseen well: for seeds and names, not for secrets.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The time, in seconds since 1970.
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
