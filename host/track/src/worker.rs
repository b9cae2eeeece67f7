//! The thread of a tracker: woken when there is something new, it delivers, waits longer and longer while it cannot, and never holds up a run.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use trainer_runs::Run;

use crate::follow::{Follower, about};
use crate::sink::{Sink, SinkError};
use crate::state::State;
use crate::{Kind, Outcome, Setup, mlflow, tensorboard, wandb};

/// The first and the longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));
/// Between two deliveries, so that fast steps travel together.
const REST: Duration = Duration::from_millis(200);

/// What became of a tracker.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Which.
    pub tracker: Kind,
    /// Where the result can be seen.
    pub place: String,
    /// Why it does not have everything.
    pub problem: Option<String>,
}

/// Between the run and a tracker's thread.
#[derive(Default)]
struct Letterbox {
    news: bool,
    outcome: Option<Outcome>,
    done: bool,
    problem: Option<String>,
    place: String,
}

#[derive(Default)]
struct Shared {
    letterbox: Mutex<Letterbox>,
    changed: Condvar,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Letterbox> {
        // A thread that panicked leaves nothing here that is half done.
        self.letterbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: impl FnOnce(&mut Letterbox)) {
        change(&mut self.open());
        self.changed.notify_all();
    }

    /// Waits until something is so, or for so long.
    fn wait(&self, limit: Option<Duration>, is_so: impl Fn(&Letterbox) -> bool) -> MutexGuard<'_, Letterbox> {
        let until = limit.map(|d| Instant::now() + d);
        let mut letterbox = self.open();
        while !is_so(&letterbox) {
            match until {
                None => letterbox = self.changed.wait(letterbox).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    letterbox = self.changed.wait_timeout(letterbox, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        letterbox
    }
}

/// The trackers of a run.
pub struct Trackers {
    threads: Vec<(Kind, Arc<Shared>)>,
}

impl Trackers {
    /// Starts a thread for each. What keeps one from working is told later and by [`Trackers::finish`].
    pub fn start(setup: &Setup) -> Self {
        let start = |kind: &Kind| {
            let shared = Arc::new(Shared::default());
            let sink: Box<dyn Sink> = match kind {
                Kind::TensorBoard => Box::new(tensorboard::TensorBoard::new(&setup.dir)),
                Kind::Mlflow => Box::new(mlflow::Mlflow::new(setup)),
                Kind::Wandb => Box::new(wandb::Wandb::new(setup)),
            };
            shared.tell(|l| l.place = sink.place());
            let worker = Worker { kind: *kind, dir: setup.dir.clone(), steps: setup.steps, sink, shared: Arc::clone(&shared) };
            let started = std::thread::Builder::new().name(format!("track-{}", kind.name())).spawn(|| worker.work());
            if let Err(e) = started {
                shared.tell(|l| (l.done, l.problem) = (true, Some(format!("its thread cannot be started: {e}"))));
            }
            (*kind, shared)
        };
        Self { threads: setup.trackers.iter().map(start).collect() }
    }

    /// Says that the run has written something. Never waits.
    pub fn news(&self) {
        for (_, shared) in &self.threads {
            shared.tell(|l| l.news = true);
        }
    }

    /// Says how the run ended, and waits until the trackers have everything, but no longer than `patience` in all.
    pub fn finish(self, outcome: Outcome, patience: Duration) -> Vec<Delivery> {
        for (_, shared) in &self.threads {
            shared.tell(|l| l.outcome = Some(outcome));
        }
        let until = Instant::now() + patience;
        let settle = |(tracker, shared): (Kind, Arc<Shared>)| {
            let letterbox = shared.wait(Some(until.saturating_duration_since(Instant::now())), |l| l.done);
            let late = || (!letterbox.done).then(|| "it was still busy".to_owned());
            Delivery { tracker, place: letterbox.place.clone(), problem: letterbox.problem.clone().or_else(late) }
        };
        self.threads.into_iter().map(settle).collect()
    }
}

struct Worker {
    kind: Kind,
    dir: PathBuf,
    steps: u64,
    sink: Box<dyn Sink>,
    shared: Arc<Shared>,
}

impl Worker {
    fn work(mut self) {
        let name = self.kind.name();
        let mut pause = PAUSES.0;
        let mut open = None;
        loop {
            match self.deliver(&mut open) {
                Ok(true) => {
                    let place = self.sink.place();
                    self.shared.tell(|l| (l.done, l.problem, l.place) = (true, None, place));
                    return;
                }
                Ok(false) => {
                    pause = PAUSES.0;
                    self.recovered();
                    drop(self.shared.wait(None, |l| l.news || l.outcome.is_some()));
                    // An end is not kept waiting; steps may gather a little.
                    let mut letterbox = self.shared.wait(Some(REST), |l| l.outcome.is_some());
                    letterbox.news = false;
                }
                Err(error) => {
                    let first = self.shared.open().problem.replace(error.message.clone()).is_none();
                    if first {
                        tracing::warn!("{name}: {error}; training goes on, and it is tried again");
                    } else {
                        tracing::debug!("{name}: {error}");
                    }
                    let ending = self.shared.open().outcome.is_some();
                    // At the end of a run there is no time for long pauses, and an end that comes meanwhile is one more reason to try.
                    let length = if ending { PAUSES.0 } else { pause };
                    drop(self.shared.wait(Some(length), |l| !ending && l.outcome.is_some()));
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    }

    /// Something was taken, so what was wrong before is no longer.
    fn recovered(&self) {
        if self.shared.open().problem.take().is_some() {
            tracing::info!("{}: delivering again", self.kind.name());
        }
    }

    /// Delivers everything that there is. True after the end was delivered too.
    fn deliver(&mut self, open: &mut Option<(Follower, State)>) -> Result<bool, SinkError> {
        let path = State::path(&self.dir, self.kind.name());
        // Looked at before reading, so that nothing written before the end is missed.
        let outcome = self.shared.open().outcome;
        if open.is_none() {
            let run = Run::open(&self.dir).map_err(|e| SinkError::new(e.to_string()))?;
            let about = about(&run).map_err(|e| SinkError::new(e.to_string()))?;
            let mut state = State::load(&path);
            let before = state.memory.clone();
            let known = self.sink.open(&about, &mut state.memory)?;
            if state.memory != before {
                // Another place than the last time has nothing yet.
                state = State { memory: state.memory, ..State::default() };
            }
            match known {
                // Its file is gone.
                Some(0) if state.step > 0 => state = State { memory: state.memory, ..State::default() },
                Some(step) => state.step = step,
                None => {}
            }
            state.closed = false;
            state.store(&path)?;
            let place = self.sink.place();
            self.shared.tell(|l| l.place = place);
            *open = Some((Follower::new(run, self.steps), state));
        }
        let Some((follower, state)) = open.as_mut() else { return Ok(false) };
        let result = loop {
            let items = match follower.next(state, outcome.is_some()) {
                Ok(items) if items.is_empty() => break Ok(()),
                Ok(items) => items,
                Err(e) => break Err(e),
            };
            if let Err(e) = self.sink.send(&items) {
                break Err(e);
            }
            self.recovered();
            state.delivered(&items);
            if let Err(e) = state.store(&path) {
                break Err(e);
            }
        };
        if let Err(error) = result {
            // What was read and not delivered is read again.
            follower.rewind();
            if error.lost {
                State::default().store(&path)?;
                *open = None;
            }
            return Err(error);
        }
        let Some(outcome) = outcome else { return Ok(false) };
        self.sink.close(outcome)?;
        state.closed = outcome == Outcome::Complete;
        state.store(&path)?;
        Ok(true)
    }
}
