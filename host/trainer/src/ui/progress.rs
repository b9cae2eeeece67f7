//! The live line: drawn over itself in a terminal, one line after another where output goes to a file or a pipe.

use std::io::Write;
use std::time::{Duration, Instant};

use trainer_train::{StepInfo, When};

use super::text::duration;
use crate::output::put;

/// How often a long evaluation or run reports where lines cannot be drawn over.
const PLAIN_INTERVAL: Duration = Duration::from_secs(2);
/// Runs of up to so many steps report each.
const SHORT_RUN: u64 = 200;

/// Draws progress.
pub struct Progress {
    live: bool,
    drawn: bool,
    /// Steps and their time since this process began, for the estimate.
    seen: u32,
    spent: Duration,
    last: Instant,
}

impl Progress {
    /// `live`: output is a terminal.
    pub fn new(live: bool) -> Self {
        Self { live, drawn: false, seen: 0, spent: Duration::ZERO, last: Instant::now() }
    }

    /// A training step is complete.
    pub fn step(&mut self, s: &StepInfo) {
        self.seen += 1;
        self.spent += s.time;
        let left = u32::try_from(s.total.saturating_sub(s.step)).unwrap_or(u32::MAX);
        let eta = (self.spent / self.seen).saturating_mul(left);
        let speed = s.tokens as f64 / s.time.as_secs_f64().max(1e-9);
        let line = format!(
            "step {:>w$}/{}  loss {:.4}  lr {:.2e}  grad {:.3}  {speed:.0} tokens/s  eta {}",
            s.step,
            s.total,
            s.loss,
            s.lr,
            s.grad_norm,
            duration(eta),
            w = s.total.to_string().len()
        );
        let last = s.step == s.total;
        if self.live {
            self.draw(&line);
            if last {
                self.finish();
            }
        } else if s.total <= SHORT_RUN || last || self.last.elapsed() >= PLAIN_INTERVAL {
            self.last = Instant::now();
            say!("{line}");
        }
    }

    /// An evaluation goes on.
    pub fn evaluating(&mut self, when: When, done: usize, total: usize) {
        if self.live {
            self.draw(&format!("evaluating {} training: {done}/{total}", when.name()));
        } else if self.last.elapsed() >= PLAIN_INTERVAL {
            self.last = Instant::now();
            say!("evaluating {} training: {done}/{total}", when.name());
        }
    }

    /// Leaves the line as it stands.
    pub fn finish(&mut self) {
        if self.drawn {
            say!("");
            self.drawn = false;
        }
    }

    /// Removes the line.
    pub fn clear(&mut self) {
        if self.drawn {
            put(format_args!("\r\x1b[2K"));
            let _ = std::io::stdout().flush();
            self.drawn = false;
        }
    }

    fn draw(&mut self, line: &str) {
        put(format_args!("\r\x1b[2K{line}"));
        let _ = std::io::stdout().flush();
        self.drawn = true;
    }
}
