//! A fork-join pool for tasks of some ten microseconds.
//!
//! The caller works too, and a task is whatever number comes next, so a worker that the system holds up delays nobody: the join waits only
//! for workers that are inside a task. Workers spin for a moment between operations before they sleep. Which thread runs a task never
//! decides a result: tasks are cut by the data alone.

use super::buffer::Parts;
use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};

/// Set in [`Shared::door`] while workers may enter.
const OPEN: usize = 1 << (usize::BITS - 1);
/// How often a worker looks for work before it sleeps (some tens of microseconds).
const SPINS: u32 = 4000;

/// The operation in progress: `run(worker, task)` for tasks below `tasks`.
#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize, usize) + Sync),
    tasks: usize,
}

struct Shared {
    /// `OPEN` and the number of workers inside.
    door: AtomicUsize,
    /// Written only while the door is closed and nobody is inside; read only by those inside.
    job: UnsafeCell<Option<Job>>,
    next: AtomicUsize,
    /// Changes with every operation.
    epoch: AtomicU32,
    stop: AtomicBool,
    sleeping: Vec<AtomicBool>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[expect(unsafe_code, reason = "the protocol of the door makes the cell exclusive")]
// SAFETY: `job` is written by the one caller that holds the pool's lock while the door is closed and nobody is inside, and read only between
// entering (acquire) and leaving (release).
unsafe impl Sync for Shared {}
#[expect(unsafe_code, reason = "the protocol of the door makes the cell exclusive")]
// SAFETY: the pointer in `job` is to a `Sync` closure that outlives the open door.
unsafe impl Send for Shared {}

/// The pool.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    wakers: Vec<Thread>,
    busy: Mutex<()>,
}

impl Pool {
    /// A pool in which `threads` threads work, the caller among them.
    pub(super) fn new(threads: usize) -> std::io::Result<Pool> {
        let others = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            door: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            epoch: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            sleeping: (0..others).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
        });
        let mut pool = Pool { shared, workers: Vec::new(), wakers: Vec::new(), busy: Mutex::new(()) };
        for index in 0..others {
            let shared = Arc::clone(&pool.shared);
            let handle = std::thread::Builder::new().name(format!("cpu-ops-{}", index + 1)).spawn(move || shared.work(index))?;
            pool.wakers.push(handle.thread().clone());
            pool.workers.push(handle);
        }
        Ok(pool)
    }

    /// How many threads work.
    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `run(worker, task)` for each task below `tasks`; `worker` is below [`Pool::threads`] and belongs to one thread at a time.
    /// A panic in a task is passed on when all have stopped. While another caller is using the pool, works alone.
    pub(super) fn run(&self, tasks: usize, run: &(dyn Fn(usize, usize) + Sync)) {
        let guard = if tasks > 1 && !self.workers.is_empty() {
            match self.busy.try_lock() {
                Ok(guard) => Some(guard),
                Err(std::sync::TryLockError::Poisoned(e)) => Some(e.into_inner()),
                Err(std::sync::TryLockError::WouldBlock) => None,
            }
        } else {
            None
        };
        if guard.is_none() {
            (0..tasks).for_each(|task| run(0, task));
            return;
        }
        self.open(run, tasks);
        let own = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.shared.next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                run(0, task);
            }
        }));
        if own.is_err() {
            self.shared.next.store(tasks, Ordering::Relaxed);
        }
        self.close();
        let other = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(guard);
        if let Some(payload) = own.err().or(other) {
            resume_unwind(payload);
        }
    }

    #[expect(unsafe_code, reason = "lends a closure to workers that are done with it before `run` returns")]
    fn open(&self, run: &(dyn Fn(usize, usize) + Sync), tasks: usize) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime is changed. `run` calls `close` before it returns on every way out, and after that no worker uses it.
        let run: &'static (dyn Fn(usize, usize) + Sync) = unsafe { std::mem::transmute(run) };
        // SAFETY: this caller holds `busy`, the door is closed and nobody is inside (the previous `close` waited for that).
        unsafe { *shared.job.get() = Some(Job { run, tasks }) };
        shared.next.store(0, Ordering::Relaxed);
        shared.door.store(OPEN, Ordering::SeqCst);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (asleep, thread) in shared.sleeping.iter().zip(&self.wakers) {
            if asleep.swap(false, Ordering::SeqCst) {
                thread.unpark();
            }
        }
    }

    fn close(&self) {
        let door = &self.shared.door;
        door.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while door.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < 2000 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }

    /// Cuts rows `0..n` into chunks and calls `f(rows, [those rows of each output])` for each; an output is `(values, width of a row)`.
    /// Outputs must have at least `n` rows.
    #[expect(unsafe_code, reason = "hands disjoint rows to the tasks")]
    pub(super) fn rows<const K: usize>(
        &self,
        n: usize,
        chunk: usize,
        outs: [(&mut [f32], usize); K],
        f: impl Fn(Range<usize>, [&mut [f32]; K]) + Sync,
    ) {
        let parts = outs.map(|(values, width)| (Parts::new(values), width));
        let chunk = chunk.max(1);
        self.run(n.div_ceil(chunk), &|_, task| {
            let rows = task * chunk..((task + 1) * chunk).min(n);
            // SAFETY: tasks have different rows, so their parts are disjoint.
            let slices = parts.map(|(part, width)| unsafe { part.part(rows.start * width, rows.len() * width) });
            f(rows, slices);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        self.wakers.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            // A worker catches the panics of tasks, so it ends in no other way than by returning.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut seen = 0;
        while let Some(epoch) = self.wait(index, seen) {
            seen = epoch;
            self.take_part(index + 1);
        }
    }

    /// Waits for the next operation; None when the pool ends.
    fn wait(&self, index: usize, seen: u32) -> Option<u32> {
        let mut spins = 0;
        loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            if epoch != seen {
                return Some(epoch);
            }
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            let asleep = self.sleeping.get(index)?;
            asleep.store(true, Ordering::SeqCst);
            // The caller changes the epoch before it looks at the flag: one of the two sees the other.
            if self.epoch.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
            spins = 0;
        }
    }

    #[expect(unsafe_code, reason = "reads the job that the door protects")]
    fn take_part(&self, worker: usize) {
        let mut door = self.door.load(Ordering::Relaxed);
        loop {
            if door & OPEN == 0 {
                return;
            }
            match self.door.compare_exchange_weak(door, door + 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => door = now,
            }
        }
        // SAFETY: the door was open, so the job is set, and it stays until this worker leaves.
        if let Some(job) = unsafe { *self.job.get() } {
            let result = catch_unwind(AssertUnwindSafe(|| {
                loop {
                    let task = self.next.fetch_add(1, Ordering::Relaxed);
                    if task >= job.tasks {
                        break;
                    }
                    // SAFETY: the closure lives until `close`, which waits for this worker to leave.
                    unsafe { (*job.run)(worker, task) };
                }
            }));
            if let Err(payload) = result {
                self.next.store(job.tasks, Ordering::Relaxed);
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
            }
        }
        self.door.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in 1..=4 {
            let pool = Pool::new(threads).unwrap();
            for tasks in [0, 1, 2, 3, 17, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|worker, task| {
                    assert!(worker < threads);
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn many_short_operations() {
        let pool = Pool::new(3).unwrap();
        let mut values = vec![0.0f32; 999];
        for _ in 0..2000 {
            pool.rows(333, 10, [(&mut values, 3)], |_, [part]| part.iter_mut().for_each(|v| *v += 1.0));
        }
        assert!(values.iter().all(|v| *v == 2000.0));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives() {
        let pool = Pool::new(2).unwrap();
        for bad in [0, 5, 99] {
            let result = catch_unwind(AssertUnwindSafe(|| pool.run(100, &|_, task| assert!(task != bad, "task {bad}"))));
            assert!(result.is_err());
        }
        let done = AtomicUsize::new(0);
        pool.run(50, &|_, _| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 50);
    }

    #[test]
    fn callers_from_several_threads_and_nested_calls() {
        let pool = Pool::new(2).unwrap();
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        pool.run(10, &|_, _| {
                            pool.run(3, &|_, _| {
                                done.fetch_add(1, Ordering::Relaxed);
                            })
                        });
                    }
                });
            }
        });
        assert_eq!(done.into_inner(), 3 * 100 * 10 * 3);
    }
}
