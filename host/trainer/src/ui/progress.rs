//! The live line: drawn over itself in a terminal, one line after another where output goes to a file or a pipe.

use std::collections::VecDeque;
use std::io::Write;
use std::time::{Duration, Instant};

use trainer_train::{StepInfo, When};

use super::text::{bytes, colors, count, duration};
use crate::output::put;

/// How often a long evaluation or run reports where lines cannot be drawn over.
const PLAIN_INTERVAL: Duration = Duration::from_secs(2);
/// How often the line is drawn for what is told more often than anybody can read.
const LIVE_INTERVAL: Duration = Duration::from_millis(100);
/// Runs of up to so many steps report each.
const SHORT_RUN: u64 = 200;
/// Steps that the estimates look back on: enough to be steady, few enough to follow a change.
const WINDOW: usize = 50;
/// Characters of the sparkline.
const SPARKS: usize = 16;

/// What is known from the steps so far.
#[derive(Default)]
pub struct Pace {
    /// Time and waiting of the last steps.
    recent: VecDeque<(Duration, Duration)>,
    losses: Vec<f64>,
}

impl Pace {
    /// A step is complete.
    pub fn add(&mut self, s: &StepInfo) {
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back((s.time, s.waited));
        self.losses.push(s.loss);
        // What the line shows are means, so halving the resolution of a long run costs nothing that is seen.
        if self.losses.len() >= 64 * SPARKS {
            self.losses = self.losses.chunks(2).map(mean).collect();
        }
    }

    /// The time that is left for so many steps.
    pub fn eta(&self, left: u64) -> Duration {
        let spent: Duration = self.recent.iter().map(|r| r.0).sum();
        let count = u32::try_from(self.recent.len()).unwrap_or(1).max(1);
        (spent / count).saturating_mul(u32::try_from(left).unwrap_or(u32::MAX))
    }

    /// The share of the time that was spent waiting for data.
    pub fn waiting(&self) -> f64 {
        let (spent, waited) = self.recent.iter().fold((Duration::ZERO, Duration::ZERO), |(t, w), r| (t + r.0, w + r.1));
        waited.as_secs_f64() / spent.as_secs_f64().max(1e-9)
    }

    /// The course of the loss over the whole run, oldest first.
    pub fn sparkline(&self) -> String {
        const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let size = self.losses.len().div_ceil(SPARKS).max(1);
        let means: Vec<f64> = self.losses.chunks(size).map(mean).filter(|m| m.is_finite()).collect();
        let (low, high) = means.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), m| (l.min(*m), h.max(*m)));
        let bar = |m: &f64| {
            let place = if high > low { (m - low) / (high - low) * 7.0 } else { 0.0 };
            BARS.get(place.round() as usize).copied().unwrap_or('█')
        };
        means.iter().map(bar).collect()
    }
}

/// What the card has to do and what memory holds, each with two spaces before it; nothing where nothing is known.
fn memory(s: &StepInfo) -> String {
    let mut card = Vec::new();
    card.extend(s.card.load.map(|l| format!("{l:.0} %")));
    card.extend(s.card.memory.map(|m| s.card.memory_total.map_or_else(|| bytes(m), |total| format!("{} of {}", bytes(m), bytes(total)))));
    card.extend(s.card.engine_peak.map(|m| format!("engine {}", bytes(m))));
    let card = if card.is_empty() { String::new() } else { format!("  card {}", card.join(", ")) };
    card + &s.memory.map_or_else(String::new, |m| format!("  {}", bytes(m)))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Draws progress.
pub struct Progress {
    live: bool,
    drawn: bool,
    pace: Pace,
    last: Instant,
}

impl Progress {
    /// `live`: output is a terminal.
    pub fn new(live: bool) -> Self {
        Self { live, drawn: false, pace: Pace::default(), last: Instant::now() }
    }

    /// A training step is complete.
    pub fn step(&mut self, s: &StepInfo) {
        self.pace.add(s);
        let eta = self.pace.eta(s.total.saturating_sub(s.step));
        let speed = s.tokens as f64 / s.time.as_secs_f64().max(1e-9);
        let memory = memory(s);
        let line = format!(
            "step {:>w$}/{}  loss {:.4}  lr {:.2e}  grad {:.3}  {speed:.0} tokens/s  eta {}  waiting {:.0} %{memory}",
            s.step,
            s.total,
            s.loss,
            s.lr,
            s.grad_norm,
            duration(eta),
            100.0 * self.pace.waiting(),
            w = s.total.to_string().len()
        );
        let last = s.step == s.total;
        if self.live {
            let sparks = self.pace.sparkline();
            let sparks = if colors() { format!("\x1b[36m{sparks}\x1b[0m") } else { sparks };
            self.draw(&format!("{line}  {sparks}"));
            if last {
                self.finish();
            }
        } else if s.total <= SHORT_RUN || last || self.last.elapsed() >= PLAIN_INTERVAL {
            self.last = Instant::now();
            say!("{line}");
        }
    }

    /// Rows are prepared.
    pub fn preparing(&mut self, source: &str, done: u64, total: u64) {
        if self.live && (done == total || self.last.elapsed() >= LIVE_INTERVAL) {
            self.last = Instant::now();
            self.draw(&format!("preparing {source}: {}/{} rows", count(done), count(total)));
        } else if !self.live && self.last.elapsed() >= PLAIN_INTERVAL {
            self.last = Instant::now();
            say!("preparing {source}: {done}/{total} rows");
        }
    }

    /// An evaluation goes on.
    pub fn evaluating(&mut self, when: When, done: usize, total: usize) {
        if self.live {
            self.draw(&format!("evaluating {when}: {done}/{total}"));
        } else if self.last.elapsed() >= PLAIN_INTERVAL {
            self.last = Instant::now();
            say!("evaluating {when}: {done}/{total}");
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

    /// Long lines are not wrapped by the terminal while this is drawn: a wrapped one could not be drawn over.
    fn draw(&mut self, line: &str) {
        put(format_args!("\r\x1b[2K\x1b[?7l{line}\x1b[?7h"));
        let _ = std::io::stdout().flush();
        self.drawn = true;
    }
}

#[cfg(test)]
mod tests {
    use trainer_runtime::CardUse;

    use super::*;

    fn step(step: u64, loss: f64, seconds: f64, waited: f64) -> StepInfo {
        let (time, waited) = (Duration::from_secs_f64(seconds), Duration::from_secs_f64(waited));
        StepInfo { step, total: 1000, loss, lr: 0.1, grad_norm: 1.0, tokens: 10, time, waited, memory: None, card: CardUse::default() }
    }

    #[test]
    fn what_is_known_of_the_card_is_in_the_line() {
        let mut s = step(1, 1.0, 1.0, 0.0);
        assert_eq!(memory(&s), "");
        s.memory = Some(3 << 30);
        assert_eq!(memory(&s), "  3.0 GiB");
        s.card.engine_peak = Some(32 << 30);
        assert_eq!(memory(&s), "  card engine 32.0 GiB  3.0 GiB");
        s.card = CardUse { load: Some(96.6), memory: Some(40 << 30), memory_total: Some(80 << 30), ..s.card };
        assert_eq!(memory(&s), "  card 97 %, 40.0 GiB of 80.0 GiB, engine 32.0 GiB  3.0 GiB");
    }

    #[test]
    fn the_sparkline_is_the_course_of_the_loss() {
        let mut pace = Pace::default();
        assert_eq!(pace.sparkline(), "");
        for i in 0..8 {
            pace.add(&step(i, f64::from(8 - i as u32), 1.0, 0.0));
        }
        assert_eq!(pace.sparkline(), "█▇▆▅▄▃▂▁");
        // A long run keeps its course and its length.
        let mut pace = Pace::default();
        for i in 0..100_000u32 {
            pace.add(&step(u64::from(i), 1.0 / f64::from(i / 5000 + 1), 1.0, 0.0));
        }
        let sparks = pace.sparkline();
        assert!(sparks.starts_with('█') && sparks.ends_with('▁') && (8..=SPARKS).contains(&sparks.chars().count()), "{sparks}");
    }

    #[test]
    fn estimates_follow_the_last_steps() {
        let mut pace = Pace::default();
        pace.add(&step(1, 1.0, 100.0, 100.0));
        for i in 0..WINDOW as u64 {
            pace.add(&step(i, 1.0, 2.0, 0.5));
        }
        assert_eq!(pace.eta(10), Duration::from_secs(20));
        assert!((pace.waiting() - 0.25).abs() < 1e-9);
    }
}
