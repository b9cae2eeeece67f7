//! The way from requests to the generator, which runs in a thread of its own, and back.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;
use trainer_engine::{Cancel, Feed, Finish, GenEvent, GenRequest, TokenLogprobs};

use crate::metrics::Metrics;

/// What the generator says of a request. There are at most as many as the request may have tokens, and two.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Log-probabilities of the prompt.
    pub prompt: Option<Vec<TokenLogprobs>>,
    /// Prompt tokens that were still in the cache.
    pub reused: usize,
    /// A token.
    pub token: Option<u32>,
    /// Its log-probabilities, or those of the stop token.
    pub logprobs: Option<TokenLogprobs>,
    /// The end.
    pub finish: Option<Finish>,
}

/// One answer that is wanted. It is cancelled when nobody listens to `outputs` any more.
pub struct Job {
    /// What is asked; its `id` is given here.
    pub request: GenRequest,
    /// Where the answer goes.
    pub outputs: UnboundedSender<Output>,
    /// Set when no more of it is wanted.
    pub enough: Arc<AtomicBool>,
    /// When it came.
    pub since: Instant,
}

impl Job {
    fn is_wanted(&self) -> bool {
        !self.enough.load(Ordering::Relaxed) && !self.outputs.is_closed()
    }
}

/// Why a request does not get into the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many are waiting as may.
    Full,
    /// The server ends.
    Closing,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// Nothing is taken any more.
    closing: bool,
    /// What is running is not to be finished either.
    aborted: bool,
    /// Answers that may have further turns.
    held: usize,
}

/// Requests that wait for a slot.
pub struct Queue {
    state: Mutex<State>,
    bell: Condvar,
    capacity: usize,
}

impl Queue {
    /// A queue of at most `capacity` waiting answers.
    pub fn new(capacity: usize) -> Self {
        Queue { state: Mutex::default(), bell: Condvar::new(), capacity }
    }

    /// How many answers may wait.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the next turn of an answer that has begun at the end, also where the queue is full or the server takes no more: answers that have begun are
    /// finished, and each has one turn at a time.
    ///
    /// # Errors
    /// The server drops what it has.
    pub fn go_on(&self, job: Job) -> Result<(), Refusal> {
        let mut state = self.lock();
        if state.aborted {
            return Err(Refusal::Closing);
        }
        state.waiting.push_back(job);
        self.bell.notify_all();
        Ok(())
    }

    /// Puts all jobs at the end, or none.
    ///
    /// # Errors
    /// They do not fit, or the server ends.
    pub fn submit(&self, jobs: Vec<Job>) -> Result<(), Refusal> {
        let mut state = self.lock();
        if state.closing {
            return Err(Refusal::Closing);
        }
        if state.waiting.len() + jobs.len() > self.capacity {
            // Those that nobody waits for any more only take room.
            state.waiting.retain(Job::is_wanted);
            if state.waiting.len() + jobs.len() > self.capacity {
                return Err(Refusal::Full);
            }
        }
        state.waiting.extend(jobs);
        self.bell.notify_all();
        Ok(())
    }

    /// Says that an answer may have further turns: until the value is dropped, a queue that is closed is not at its end.
    pub fn hold(self: &Arc<Self>) -> Hold {
        self.lock().held += 1;
        Hold(self.clone())
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Takes no more. What waits and runs is finished, or with `abort` dropped.
    pub fn close(&self, abort: bool) {
        let mut state = self.lock();
        state.closing = true;
        if abort {
            state.aborted = true;
            state.waiting.clear();
        }
        self.bell.notify_all();
    }

    /// Whether it is closed.
    pub fn is_closing(&self) -> bool {
        self.lock().closing
    }

    fn is_aborted(&self) -> bool {
        self.lock().aborted
    }
}

/// An answer that may have further turns.
pub struct Hold(Arc<Queue>);

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.held = state.held.saturating_sub(1);
        self.0.bell.notify_all();
    }
}

/// A job that has a slot.
struct Running {
    job: Job,
    /// When it got the slot, then when its newest token came.
    last: Instant,
    begun: bool,
}

/// The generator's end of a queue.
pub struct Intake<'a> {
    queue: &'a Queue,
    metrics: &'a Metrics,
    running: HashMap<u64, Running>,
    next_id: u64,
}

impl<'a> Intake<'a> {
    /// Takes from `queue`.
    pub fn new(queue: &'a Queue, metrics: &'a Metrics) -> Self {
        Intake { queue, metrics, running: HashMap::new(), next_id: 0 }
    }

    fn remove(&mut self, id: u64) {
        self.running.remove(&id);
        self.metrics.running.set(self.running.len() as i64);
    }
}

impl Feed for Intake<'_> {
    fn next(&mut self) -> Option<GenRequest> {
        let mut job = loop {
            let job = self.queue.lock().waiting.pop_front()?;
            if job.is_wanted() {
                break job;
            }
        };
        self.next_id += 1;
        job.request.id = self.next_id;
        let request = job.request.clone();
        // The prompt is the generator's now.
        job.request.prompt_ids = Vec::new();
        let now = Instant::now();
        self.metrics.queue_seconds.observe(now - job.since);
        self.metrics.prompt_tokens.add(request.prompt_ids.len() as u64);
        self.running.insert(self.next_id, Running { job, last: now, begun: false });
        self.metrics.running.set(self.running.len() as i64);
        Some(request)
    }

    fn idle(&mut self) -> bool {
        // Sequences that ended without an event of their own.
        self.running.clear();
        self.metrics.running.set(0);
        let mut state = self.queue.lock();
        while state.waiting.is_empty() && !state.aborted && (!state.closing || state.held > 0) {
            state = self.queue.bell.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.waiting.is_empty()
    }

    fn event(&mut self, event: GenEvent<'_>) -> ControlFlow<Cancel> {
        if self.queue.is_aborted() {
            return ControlFlow::Break(Cancel::All);
        }
        let Some(running) = self.running.get_mut(&event.id) else { return ControlFlow::Break(Cancel::Request) };
        let now = Instant::now();
        if event.token.is_some() {
            self.metrics.generated_tokens.add(1);
            if running.begun {
                self.metrics.token_seconds.observe(now - running.last);
            } else {
                self.metrics.first_token_seconds.observe(now - running.job.since);
                self.metrics.reused_tokens.add(event.reused as u64);
            }
            (running.begun, running.last) = (true, now);
        }
        let output = Output {
            prompt: event.prompt.map(<[_]>::to_vec),
            reused: event.reused,
            token: event.token,
            logprobs: event.logprobs.cloned(),
            finish: event.finish.cloned(),
        };
        let heard = running.job.outputs.send(output).is_ok() && running.job.is_wanted();
        if !heard || event.finish.is_some() {
            self.remove(event.id);
        }
        if heard { ControlFlow::Continue(()) } else { ControlFlow::Break(Cancel::Request) }
    }

    fn wants(&mut self, id: u64) -> bool {
        let wanted = !self.queue.is_aborted() && self.running.get(&id).is_some_and(|r| r.job.is_wanted());
        if !wanted {
            self.remove(id);
        }
        wanted
    }
}
