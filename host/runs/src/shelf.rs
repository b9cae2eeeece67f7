//! Journals that stay in memory between two looks at a run, so that a page that is asked for again and again reads only what came in between.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::de::DeserializeOwned;

use crate::records::{EvalMetrics, SampleAnswer, StepMetrics, StepTimings};
use crate::tail::Tail;

/// A journal's records so far.
#[derive(Debug)]
pub(crate) struct Kept<T>(Mutex<(Tail<T>, Arc<Vec<T>>)>);

impl<T: DeserializeOwned + Clone> Kept<T> {
    fn new(path: &Path) -> Self {
        Self(Mutex::new((Tail::new(path), Arc::default())))
    }

    /// All records, those that were added since the last time among them.
    pub(crate) fn records(&self) -> std::io::Result<Arc<Vec<T>>> {
        let mut held = locked(&self.0);
        let (tail, records) = &mut *held;
        loop {
            let piece = tail.piece()?;
            if piece.anew {
                *records = Arc::default();
            }
            if !piece.records.is_empty() {
                // Copies only where an earlier answer is still in use.
                Arc::make_mut(records).extend(piece.records);
            }
            if !piece.more {
                return Ok(Arc::clone(records));
            }
        }
    }

    /// Bytes of the file that were read.
    fn read(&self) -> u64 {
        locked(&self.0).0.offset()
    }
}

/// The journals of one run.
#[derive(Debug)]
pub(crate) struct Journals {
    pub(crate) metrics: Kept<StepMetrics>,
    pub(crate) timings: Kept<StepTimings>,
    pub(crate) samples: Kept<SampleAnswer>,
    pub(crate) evals: Kept<EvalMetrics>,
}

impl Journals {
    fn new(root: &Path) -> Self {
        Self {
            metrics: Kept::new(&root.join("metrics.jsonl")),
            timings: Kept::new(&root.join("timings.jsonl")),
            samples: Kept::new(&root.join("samples.jsonl")),
            evals: Kept::new(&root.join("evals.jsonl")),
        }
    }

    fn read(&self) -> u64 {
        self.metrics.read() + self.timings.read() + self.samples.read() + self.evals.read()
    }
}

/// The journals of the runs that were looked at last, up to a total size; [`crate::Run::on`] puts a run there.
#[derive(Debug)]
pub struct Shelf {
    /// Bytes of files whose records may stay.
    most: u64,
    /// The one that was looked at last is the last.
    runs: Mutex<Vec<(PathBuf, Arc<Journals>)>>,
}

impl Shelf {
    /// `most`: bytes of journals, as they lie on disk, whose records may stay in memory. The run that was looked at last always stays.
    pub fn new(most: u64) -> Self {
        Self { most, runs: Mutex::default() }
    }

    /// The journals of a run; those of others are given up where there is no room.
    pub(crate) fn journals(&self, root: &Path) -> Arc<Journals> {
        let mut runs = locked(&self.runs);
        let found = runs.iter().position(|(path, _)| path == root).map(|i| runs.remove(i));
        let (path, journals) = found.unwrap_or_else(|| (root.to_owned(), Arc::new(Journals::new(root))));
        let sizes: Vec<u64> = runs.iter().map(|(_, j)| j.read()).collect();
        let mut all = journals.read() + sizes.iter().sum::<u64>();
        let mut given_up = 0;
        for size in sizes {
            if all <= self.most {
                break;
            }
            all -= size;
            given_up += 1;
        }
        runs.drain(..given_up);
        runs.push((path, Arc::clone(&journals)));
        journals
    }

    /// Bytes of journals whose records are in memory.
    pub fn holds(&self) -> u64 {
        locked(&self.runs).iter().map(|(_, j)| j.read()).sum()
    }
}

/// What a thread that panicked left is whole: records are added at the end, and a place moves only with them.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Run;

    fn make(root: &Path, steps: std::ops::RangeInclusive<u64>, seconds: f64) {
        fs::create_dir_all(root).unwrap();
        fs::write(root.join("recipe.toml"), "").unwrap();
        fs::write(root.join("lock.json"), "{}").unwrap();
        let line = |step: u64| {
            let line = serde_json::json!({ "step": step, "seconds": seconds, "tokens_per_second": 1.0, "data_wait_seconds": 0.0 });
            format!("{line}\n")
        };
        fs::write(root.join("timings.jsonl"), steps.map(line).collect::<String>()).unwrap();
    }

    #[test]
    fn a_second_look_reads_only_what_is_new() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), 1..=1000, 0.5);
        let shelf = Shelf::new(1 << 20);
        let run = Run::open(dir.path()).unwrap().on(&shelf);
        let first = run.timings().unwrap();
        assert!(Arc::ptr_eq(&first, &run.timings().unwrap()), "nothing is new");
        make(dir.path(), 1..=1001, 0.5);
        drop(first);
        let more = Run::open(dir.path()).unwrap().on(&shelf).timings().unwrap();
        assert_eq!(more.iter().map(|t| t.step).collect::<Vec<_>>(), (1..=1001).collect::<Vec<_>>());
        // What was read before is not read again: it could be anything by now, up to the last lines, by which a file is known.
        let text = fs::read_to_string(dir.path().join("timings.jsonl")).unwrap();
        fs::write(dir.path().join("timings.jsonl"), text.replacen("\"step\":1,", "\"step\":7,", 1)).unwrap();
        assert_eq!(run.timings().unwrap()[0].step, 1);
        assert_eq!(Run::open(dir.path()).unwrap().timings().unwrap()[0].step, 7, "a run that is on no shelf reads all of it");
    }

    #[test]
    fn a_run_that_was_replaced_or_set_back_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(1 << 20);
        let look = || {
            let timings = Run::open(dir.path()).unwrap().on(&shelf).timings().unwrap();
            timings.iter().map(|t| (t.step, t.seconds)).collect::<Vec<_>>()
        };
        make(dir.path(), 1..=3, 0.5);
        assert_eq!(look(), [(1, 0.5), (2, 0.5), (3, 0.5)]);
        make(dir.path(), 1..=5, 0.25);
        assert_eq!(look().len(), 5);
        assert!(look().iter().all(|t| t.1 == 0.25));
        make(dir.path(), 1..=2, 0.25);
        assert_eq!(look(), [(1, 0.25), (2, 0.25)]);
    }

    #[test]
    fn the_shelf_is_bounded_and_the_last_run_stays() {
        let dir = tempfile::tempdir().unwrap();
        let size = |name: &str| fs::metadata(dir.path().join(name).join("timings.jsonl")).unwrap().len();
        let names: Vec<String> = (0..6).map(|i| format!("r{i}")).collect();
        for name in &names {
            make(&dir.path().join(name), 1..=100, 0.5);
        }
        let shelf = Shelf::new(3 * size("r0"));
        let look = |name: &str| Run::open(&dir.path().join(name)).unwrap().on(&shelf).timings().unwrap().len();
        for name in names.iter().chain(&names) {
            assert_eq!(look(name), 100);
            // One more than fits, which is given up when the next is looked at.
            assert!(shelf.holds() <= 4 * size("r0"), "{}", shelf.holds());
        }
        let small = Shelf::new(1);
        let run = Run::open(&dir.path().join("r0")).unwrap().on(&small);
        assert!(Arc::ptr_eq(&run.timings().unwrap(), &run.timings().unwrap()));
    }
}
