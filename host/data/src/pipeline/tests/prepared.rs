//! Prepared rows give the stream that computing them gives, or are not used.

use std::ops::ControlFlow;
use std::path::PathBuf;

use super::*;
use crate::prepared::{EntryState, Preparation, PrepareProgress, PreparedStore, prepare};

/// A formatter that must not be asked.
struct Never;

impl RowFormatter for Never {
    fn format(&self, rows: &[String]) -> Result<Vec<FormatOutcome>, StageError> {
        Err(StageError::Fatal(format!("asked for {} rows", rows.len())))
    }
    fn identity(&self) -> Option<serde_json::Value> {
        TestFormatter { calls: AtomicUsize::new(0) }.identity()
    }
}

fn store() -> (tempfile::TempDir, PreparedStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = PreparedStore::new(folder.path().join("prepared"));
    (folder, store)
}

fn make(spec: &PipelineSpec, store: &PreparedStore) -> Vec<Preparation> {
    let all = (0..spec.sources.len()).map(|i| prepare(spec, i, store, &mut |_| ControlFlow::Continue(())).unwrap().unwrap());
    all.collect()
}

fn with(access: Access, workers: usize) -> PipelineSpec {
    let mut s = spec(rich(access), 400);
    (s.workers, s.max_bad_rows, s.format_batch) = (Some(workers), u64::MAX, 7);
    s
}

fn unasked(mut spec: PipelineSpec, store: &PreparedStore) -> PipelineSpec {
    spec.sources.iter_mut().for_each(|s| s.formatter = Arc::new(Never));
    spec.prepared = Some(store.clone());
    spec
}

#[test]
fn the_stream_is_the_same_and_nothing_is_computed() {
    for access in [Access::Random, Access::Stream { window: 7 }] {
        let (_folder, store) = store();
        let computed = with(access, 0);
        let mut p = Pipeline::new(computed.clone()).unwrap();
        let expected = drain(&mut p, 5, usize::MAX);
        let end = p.state().unwrap();
        for workers in [3, 0] {
            let made = make(&with(access, workers), &store);
            assert!(made.iter().all(|m| m.found == (workers == 0) && m.rows > 20), "{made:?}");
            if workers == 3 {
                assert!(
                    made.iter().all(|m| m.bad > 0 && m.skipped > 0 && m.samples > 10 && m.bad_examples.len() as u64 == m.bad),
                    "{made:?}"
                );
            }
            let mut p = Pipeline::new(unasked(with(access, workers), &store)).unwrap();
            assert_eq!(drain(&mut p, 5, usize::MAX), expected);
            assert_eq!(p.state().unwrap(), end);
        }
        // Stopped with prepared rows, continued without them, and the other way round.
        for (first, second) in
            [(computed.clone(), unasked(computed.clone(), &store)), (unasked(computed.clone(), &store), computed.clone())]
        {
            for calls in [1, 9, 33] {
                let mut p = Pipeline::new(first.clone()).unwrap();
                let mut got = drain(&mut p, 5, calls);
                got.extend(p.next_samples(2).unwrap());
                let mut p = Pipeline::resume(second.clone(), &p.state().unwrap()).unwrap();
                got.extend(p.next_samples(3).unwrap());
                got.extend(drain(&mut p, 5, usize::MAX));
                assert_eq!(got, expected);
                assert_eq!(p.state().unwrap(), end);
            }
        }
    }
}

#[test]
fn a_damaged_entry_never_counts() {
    for access in [Access::Random, Access::Stream { window: 7 }] {
        let (_folder, store) = store();
        let computed = with(access, 0);
        let expected = drain(&mut Pipeline::new(computed.clone()).unwrap(), 5, usize::MAX);
        let made = make(&computed, &store);
        let mut spec = computed.clone();
        spec.prepared = Some(store.clone());
        let stream = || drain(&mut Pipeline::new(spec.clone()).unwrap(), 5, usize::MAX);
        let path: &PathBuf = &made[1].path;
        let whole = std::fs::read(path).unwrap();
        // Any byte at all: head, records, offsets, tail.
        for at in (0..whole.len()).step_by(whole.len() / 60).chain([0, 17, whole.len() - 1, whole.len() - 64, whole.len() - 40]) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x20;
            std::fs::write(path, bytes).unwrap();
            assert_eq!(stream(), expected, "byte {at} of {}", whole.len());
        }
        for length in [0, 10, 100, whole.len() / 2, whole.len() - 1] {
            std::fs::write(path, &whole[..length]).unwrap();
            assert_eq!(stream(), expected, "cut to {length}");
        }
        // Nor does an entry under another's name.
        std::fs::copy(&made[0].path, path).unwrap();
        assert_eq!(stream(), expected);
        assert_eq!(store.entries().unwrap().iter().filter(|e| matches!(e.state, EntryState::Stale(_))).count(), 1);
        // Preparing again mends it, wherever the damage is.
        for at in [whole.len() / 3, whole.len() - 70, 25] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(path, bytes).unwrap();
            assert_eq!(make(&computed, &store).iter().map(|m| m.found).collect::<Vec<_>>(), [true, false], "byte {at}");
            drain(&mut Pipeline::new(unasked(computed.clone(), &store)).unwrap(), 5, usize::MAX);
        }
    }
}

#[test]
fn whatever_decides_a_sample_is_in_the_name() {
    let (_folder, store) = store();
    let base = with(Access::Random, 0);
    let mut names = vec![make(&base, &store)[1].path.clone()];
    let mut differs = |what: &str, change: &dyn Fn(&mut PipelineSpec)| {
        let mut spec = with(Access::Random, 0);
        change(&mut spec);
        let made = make(&spec, &store);
        assert!(!made[1].found && !names.contains(&made[1].path), "{what} is not in the name");
        names.push(made[1].path.clone());
    };
    differs("length", &|s| s.max_seq_length = 49);
    differs("rule", &|s| s.too_long = TooLong::Drop);
    differs("side", &|s| s.truncation_side = TruncationSide::Left);
    differs("targets", &|s| s.train_on = TrainOn::All);
    differs("no target", &|s| s.no_target = NoTarget::Error);
    differs("access", &|s| s.sources[1].source = source("b", &["half", "mute", "trap", "long", ""], 23, Access::Stream { window: 7 }));
    differs("a row", &|s| s.sources[1].source = source("b", &["half", "mute", "trap", "long", "x"], 23, Access::Random));
    differs("fewer rows", &|s| s.sources[1].source = source("b", &["half", "mute", "trap", "long", ""], 22, Access::Random));
    // What decides nothing is not.
    let mut spec = with(Access::Random, 3);
    (spec.seed, spec.read_ahead, spec.format_batch, spec.max_bad_rows) = (1, 2, 3, 4);
    spec.sources.reverse();
    assert!(make(&spec, &store).iter().all(|m| m.found));
}

#[test]
fn what_may_not_be_kept_is_refused() {
    struct Unknown;
    impl RowFormatter for Unknown {
        fn format(&self, rows: &[String]) -> Result<Vec<FormatOutcome>, StageError> {
            TestFormatter { calls: AtomicUsize::new(0) }.format(rows)
        }
    }
    let (_folder, store) = store();
    let mut spec = with(Access::Random, 0);
    spec.sources[1].formatter = Arc::new(Unknown);
    let refused = prepare(&spec, 1, &store, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(refused.contains("source `b` cannot be prepared"), "{refused}");
    spec.prepared = Some(store);
    drain(&mut Pipeline::new(spec).unwrap(), 5, usize::MAX);
}

#[test]
fn breaking_off_or_failing_leaves_nothing_behind() {
    let (_folder, store) = store();
    let spec = with(Access::Random, 2);
    let mut seen = 0;
    let broken = prepare(&spec, 0, &store, &mut |p| match p {
        PrepareProgress::Rows(n) if n > 10 => ControlFlow::Break(()),
        _ => {
            seen += 1;
            ControlFlow::Continue(())
        }
    });
    assert!(broken.unwrap().is_none() && seen > 0);
    let mut failing = with(Access::Random, 2);
    failing.sources[0].source = source("a", &["", "", "deadline"], 37, Access::Random);
    assert!(prepare(&failing, 0, &store, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string().contains("deadline"));
    assert_eq!(std::fs::read_dir(store.folder()).unwrap().count(), 0);
}

#[test]
fn several_that_prepare_the_same_take_turns() {
    let (_folder, store) = store();
    let made: Vec<Preparation> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| make(&with(Access::Random, 1), &store).remove(1))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(made.iter().filter(|m| !m.found).count(), 1, "{made:?}");
    drain(&mut Pipeline::new(unasked(with(Access::Random, 2), &store)).unwrap(), 5, 1);
    let entries = store.entries().unwrap();
    assert!(entries.len() == 2 && entries.iter().all(|e| e.state == EntryState::Usable), "{entries:?}");
}
