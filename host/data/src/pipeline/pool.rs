//! Worker threads: batches in, outcomes out, panics and all. With no threads the caller does the work when it asks for results.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::worker::{Outcome, Stages, Task};
use crate::error::DataError;

type Job = (u64, Vec<Task>);
type Done = (u64, Result<Vec<Outcome>, String>);

/// The threads of a pipeline. What is under way is bounded by the pipeline, which stops submitting at its read-ahead.
pub(crate) struct Pool {
    stages: Arc<Stages>,
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    /// Without threads: what has been submitted.
    queue: VecDeque<Job>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(crate) fn new(stages: Stages, workers: usize) -> Result<Self, DataError> {
        let stages = Arc::new(stages);
        let (jobs, incoming) = channel::<Job>();
        let (results, done) = channel();
        let incoming = Arc::new(Mutex::new(incoming));
        let stop = Arc::new(AtomicBool::new(false));
        // Built first, so that threads already started are stopped and joined when one cannot be.
        let mut pool = Self { stages, jobs: Some(jobs), done, queue: VecDeque::new(), stop, threads: Vec::with_capacity(workers) };
        for i in 0..workers {
            let (stages, incoming, results, stop) =
                (Arc::clone(&pool.stages), Arc::clone(&incoming), results.clone(), Arc::clone(&pool.stop));
            let thread = std::thread::Builder::new().name(format!("data-{i}")).spawn(move || work(&stages, &incoming, &results, &stop));
            pool.threads.push(thread.map_err(|e| DataError::Worker(format!("cannot start thread {i}: {e}")))?);
        }
        Ok(pool)
    }

    pub(crate) fn submit(&mut self, number: u64, tasks: Vec<Task>) -> Result<(), DataError> {
        if self.threads.is_empty() {
            self.queue.push_back((number, tasks));
            return Ok(());
        }
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send((number, tasks)).is_ok());
        if sent { Ok(()) } else { Err(DataError::Worker("all threads have ended".to_owned())) }
    }

    /// Waits for the next finished batch, in any order.
    pub(crate) fn receive(&mut self) -> Result<(u64, Vec<Outcome>), DataError> {
        let (number, outcome) = if self.threads.is_empty() {
            let Some((number, tasks)) = self.queue.pop_front() else {
                return Err(DataError::Worker("nothing was submitted".to_owned()));
            };
            (number, run(&self.stages, tasks))
        } else {
            self.done.recv().map_err(|_| DataError::Worker("all threads have ended".to_owned()))?
        };
        outcome.map(|o| (number, o)).map_err(|message| DataError::Worker(format!("it panicked: {message}")))
    }
}

fn work(stages: &Stages, incoming: &Mutex<Receiver<Job>>, results: &Sender<Done>, stop: &AtomicBool) {
    loop {
        let job = incoming.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((number, tasks)) = job else { return };
        if stop.load(Ordering::Relaxed) || results.send((number, run(stages, tasks))).is_err() {
            return;
        }
    }
}

fn run(stages: &Stages, tasks: Vec<Task>) -> Result<Vec<Outcome>, String> {
    catch_unwind(AssertUnwindSafe(|| stages.process(tasks))).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
        text.unwrap_or_else(|| "no message".to_owned())
    })
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // Panics were caught and reported in `run`.
            let _ = thread.join();
        }
    }
}
