//! How a download or an upload goes: a line that is drawn over itself in a terminal, now and then a line elsewhere. On standard error, since what a
//! command is asked for goes to standard output.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use trainer_hub::Watch;

use super::safe::safe;
use super::text::{bytes, duration};

/// How often the line is drawn.
const LIVE_INTERVAL: Duration = Duration::from_millis(100);
/// How often a long transfer reports where lines cannot be drawn over.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);
/// What is this small is over before anybody could read of it.
const SMALL: u64 = 1 << 20;

/// What is drawn where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Live,
    Plain,
    /// Among the log lines.
    Log,
}

#[derive(Debug)]
struct State {
    name: String,
    files: usize,
    total: u64,
    done: u64,
    /// Bytes that this transfer moved, and since when.
    moved: u64,
    began: Instant,
    last: Instant,
    drawn: bool,
}

/// Draws transfers.
#[derive(Debug)]
pub struct Transfer {
    look: Look,
    state: Mutex<Option<State>>,
}

impl Transfer {
    /// For this process's standard error; `log`: among the log lines.
    pub fn new(log: bool) -> Self {
        let look = match (log, std::io::stderr().is_terminal()) {
            (true, _) => Look::Log,
            (false, true) => Look::Live,
            (false, false) => Look::Plain,
        };
        Self { look, state: Mutex::default() }
    }

    fn with(&self, change: impl FnOnce(&mut State)) {
        if let Some(state) = self.state.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            change(state);
            let interval = if self.look == Look::Live { LIVE_INTERVAL } else { PLAIN_INTERVAL };
            if state.last.elapsed() >= interval && state.total > SMALL {
                state.last = Instant::now();
                self.draw(state);
            }
        }
    }

    fn draw(&self, state: &mut State) {
        let line = line(state);
        match self.look {
            // Long lines are not wrapped while this is drawn: a wrapped one could not be drawn over.
            Look::Live => {
                let _ = write!(std::io::stderr(), "\r\x1b[2K\x1b[?7l{line}\x1b[?7h");
                state.drawn = true;
            }
            Look::Plain => note!("{line}"),
            Look::Log => {
                tracing::info!(target: "progress", repo = state.name, done = state.done, total = state.total, "transfer");
            }
        }
    }

    fn clear(state: Option<&mut State>) {
        if let Some(state) = state.filter(|s| s.drawn) {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
            state.drawn = false;
        }
    }
}

fn line(state: &State) -> String {
    let seconds = state.began.elapsed().as_secs_f64().max(1e-3);
    let speed = state.moved as f64 / seconds;
    let left = state.total.saturating_sub(state.done);
    let eta = if speed > 0.0 { duration(Duration::from_secs_f64((left as f64 / speed).min(1e9))) } else { "?".to_owned() };
    let percent = 100.0 * state.done as f64 / state.total.max(1) as f64;
    format!("{}: {} of {} ({percent:.0} %)  {}/s  eta {eta}", safe(&state.name), bytes(state.done), bytes(state.total), bytes(speed as u64))
}

impl Watch for Transfer {
    fn begin(&self, repo: &str, files: usize, total: u64, present: u64) {
        let now = Instant::now();
        let state = State { name: repo.to_owned(), files, total, done: present, moved: 0, began: now, last: now, drawn: false };
        if self.look == Look::Plain && total.saturating_sub(present) > SMALL {
            note!("{}: {files} files, {}, of which {} are there already", safe(repo), bytes(total), bytes(present));
        }
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }

    fn received(&self, bytes: u64) {
        self.with(|state| {
            state.done = state.done.saturating_add(bytes);
            state.moved = state.moved.saturating_add(bytes);
        });
    }

    fn lost(&self, bytes: u64) {
        self.with(|state| state.done = state.done.saturating_sub(bytes));
    }

    fn file(&self, path: &str, bytes: u64) {
        tracing::info!(path, bytes, "complete");
    }

    fn note(&self, text: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Self::clear(state.as_mut());
        match self.look {
            Look::Log => tracing::info!(target: "progress", "{text}"),
            _ => note!("{}", safe(text)),
        }
    }

    fn end(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Self::clear(state.as_mut());
        if let Some(state) = state.take().filter(|s| s.moved > SMALL && self.look != Look::Log) {
            let seconds = state.began.elapsed();
            let speed = bytes((state.moved as f64 / seconds.as_secs_f64().max(1e-3)) as u64);
            note!("{}: {} in {} ({speed}/s), {} files", safe(&state.name), bytes(state.moved), duration(seconds), state.files);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_how_fast_and_how_long() {
        let began = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        let state = State {
            name: "hf://a/b".into(),
            files: 3,
            total: 400 << 20,
            done: 200 << 20,
            moved: 100 << 20,
            began,
            last: began,
            drawn: false,
        };
        let line = line(&state);
        assert!(line.starts_with("hf://a/b: 200.0 MiB of 400.0 MiB (50 %)  "), "{line}");
        assert!(line.contains("MiB/s  eta 20.") || line.contains("MiB/s  eta 19."), "{line}");
        let transfer = Transfer { look: Look::Log, state: Mutex::default() };
        // Nothing began, nothing to count.
        transfer.received(5);
        transfer.begin("x", 1, 10, 2);
        transfer.received(u64::MAX);
        transfer.lost(u64::MAX);
        assert_eq!(transfer.state.lock().unwrap().as_ref().unwrap().done, 0);
        transfer.end();
        assert!(transfer.state.lock().unwrap().is_none());
    }
}
