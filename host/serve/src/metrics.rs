//! What the server counts, in Prometheus's text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, n: i64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Adds to it.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of a histogram's buckets in seconds: from a token on a fast card to a long answer on a slow processor.
const BOUNDS: [f64; 16] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Durations by size.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    microseconds: AtomicU64,
}

impl Histogram {
    /// Adds a duration.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        if let Some((_, bucket)) = BOUNDS.iter().zip(&self.buckets).find(|(bound, _)| seconds <= **bound) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.microseconds.fetch_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let braces = |labels: &str| if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let mut below = 0;
        for (bound, bucket) in BOUNDS.iter().zip(&self.buckets) {
            below += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}");
        }
        // Read last, and never below the buckets: they are changed while this reads them.
        let count = self.count.load(Ordering::Relaxed).max(below);
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{} {}", braces(labels), self.microseconds.load(Ordering::Relaxed) as f64 / 1e6);
        let _ = writeln!(out, "{name}_count{} {count}", braces(labels));
    }
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Answered requests by path and status; streams count with the status that they began with.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Time from a request to the end of its answer.
    pub request_seconds: Histogram,
    /// Requests that are being answered.
    pub in_flight: Gauge,
    /// Answers that have a slot.
    pub running: Gauge,
    /// Time from a request to its slot.
    pub queue_seconds: Histogram,
    /// Time from a request to its first token.
    pub first_token_seconds: Histogram,
    /// Time between two tokens of an answer.
    pub token_seconds: Histogram,
    /// Tokens of prompts.
    pub prompt_tokens: Counter,
    /// Tokens of prompts that were still in the cache.
    pub reused_tokens: Counter,
    /// Tokens of answers.
    pub generated_tokens: Counter,
    /// Requests that were dropped by the client before their end.
    pub disconnects: Counter,
    /// Calls of the server's own tools.
    pub tool_calls: Counter,
    /// Those of them that gave the model an error.
    pub tool_errors: Counter,
}

impl Metrics {
    /// Counts an answered request.
    pub fn answered(&self, path: &'static str, status: u16) {
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner).entry((path, status)).or_default() += 1;
    }

    /// The page that Prometheus reads.
    pub fn page(&self, waiting: usize, capacity: usize) -> String {
        let mut out = String::new();
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        head(&mut out, "trainer_requests_total", "counter", "Answered requests, by path and status.");
        for ((path, status), count) in self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(out, "trainer_requests_total{{path=\"{path}\",status=\"{status}\"}} {count}");
        }
        let gauges = [
            ("trainer_requests_in_flight", "Requests that are being answered.", self.in_flight.get()),
            ("trainer_sequences_running", "Sequences that are being generated.", self.running.get()),
            ("trainer_sequences_waiting", "Sequences that wait for a slot.", waiting as i64),
            ("trainer_queue_capacity", "Sequences that may wait.", capacity as i64),
        ];
        for (name, help, value) in gauges {
            head(&mut out, name, "gauge", help);
            let _ = writeln!(out, "{name} {value}");
        }
        let counters = [
            ("trainer_prompt_tokens_total", "Tokens of prompts.", &self.prompt_tokens),
            ("trainer_prompt_tokens_reused_total", "Tokens of prompts that were still in the cache.", &self.reused_tokens),
            ("trainer_generated_tokens_total", "Tokens of answers.", &self.generated_tokens),
            ("trainer_disconnects_total", "Requests whose client went away before the end.", &self.disconnects),
            ("trainer_tool_calls_total", "Calls of this server's own tools.", &self.tool_calls),
            ("trainer_tool_errors_total", "Calls of this server's own tools that gave an error.", &self.tool_errors),
        ];
        for (name, help, counter) in counters {
            head(&mut out, name, "counter", help);
            let _ = writeln!(out, "{name} {}", counter.get());
        }
        let histograms = [
            ("trainer_request_seconds", "From a request to the end of its answer.", &self.request_seconds),
            ("trainer_queue_seconds", "From a request to its slot.", &self.queue_seconds),
            ("trainer_first_token_seconds", "From a request to its first token.", &self.first_token_seconds),
            ("trainer_token_seconds", "Between two tokens of an answer.", &self.token_seconds),
        ];
        for (name, help, histogram) in histograms {
            head(&mut out, name, "histogram", help);
            histogram.write(&mut out, name, "");
        }
        out
    }
}
