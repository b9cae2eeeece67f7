//! Checkpoints survive being stopped after any operation, and notice any change.

use std::cell::Cell;
use std::io;

use super::*;

fn checkpoint(step: u64) -> Checkpoint {
    let values = |n: usize, k: u64| (0..n).map(|i| (i as f32 + k as f32 + step as f32).sin()).collect::<Vec<_>>();
    let codes = |n: usize, k: u8| (0..n).map(|i| (i as u8).wrapping_mul(31).wrapping_add(k).wrapping_add(step as u8)).collect::<Vec<_>>();
    let tensor = |shape: &[usize], k| Tensor { shape: shape.to_vec(), values: values(shape.iter().product(), k) };
    Checkpoint {
        step,
        seed: u64::MAX - step,
        metrics_bytes: 100 * step,
        adapter: [
            ("l.0.a".to_owned(), tensor(&[4, 8], 1)),
            ("l.0.b".to_owned(), tensor(&[8, 4], 2)),
            ("empty".to_owned(), tensor(&[0, 3], 0)),
        ]
        .into(),
        optimizer: [
            ("l.0.a".to_owned(), OptimizerState::ThirtyTwo { m: values(32, 3), v: values(32, 4) }),
            // Names that end like the parts of a state.
            ("l.0.m".to_owned(), OptimizerState::ThirtyTwo { m: vec![f32::MIN_POSITIVE / 2.0, -0.0], v: vec![f32::MAX, 1.0] }),
            ("x.m_absmax".to_owned(), OptimizerState::ThirtyTwo { m: vec![1.0], v: vec![2.0] }),
            ("x".to_owned(), OptimizerState::Eight { m: codes(300, 1), v: codes(300, 2), m_absmax: values(2, 5), v_absmax: values(2, 6) }),
        ]
        .into(),
        data: serde_json::json!({"draws": step * 8, "x": 0.1 + 0.2, "sources": [{"pass": 1, "position": step}]}),
        mixer: (0..=255).collect(),
        counters: [("tokens".to_owned(), u64::MAX), ("skipped: too long".to_owned(), 3)].into(),
    }
}

/// A disk that stops working after so many operations, as if the process had been killed then; the one in progress is done by half.
struct Killed {
    left: Cell<usize>,
}

impl Killed {
    fn after(operations: usize) -> Self {
        Self { left: Cell::new(operations) }
    }

    /// Whether the operation happens.
    fn alive(&self) -> bool {
        match self.left.get() {
            0 => false,
            n => {
                self.left.set(n - 1);
                true
            }
        }
    }

    fn dead<T>() -> io::Result<T> {
        Err(io::Error::other("killed"))
    }
}

impl Storage for Killed {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        if self.alive() { Disk.create_dir(path) } else { Self::dead() }
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let dying = self.left.get() == 1;
        if !self.alive() {
            return Self::dead();
        }
        if dying {
            Disk.write(path, &bytes[..bytes.len() / 2])?;
            return Self::dead();
        }
        Disk.write(path, bytes)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.alive() { Disk.rename(from, to) } else { Self::dead() }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        if self.alive() { Disk.sync_dir(path) } else { Self::dead() }
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let dying = self.left.get() == 1;
        if !self.alive() {
            return Self::dead();
        }
        if dying {
            // One of its files is gone, the others are not.
            let first = std::fs::read_dir(path)?.flatten().map(|e| e.path()).min();
            if let Some(file) = first {
                std::fs::remove_file(file)?;
            }
            return Self::dead();
        }
        Disk.remove_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        if self.alive() { Disk.remove_file(path) } else { Self::dead() }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Runs `write` stopped after 0, 1, 2... operations on a fresh copy of `before`, until it is through; returns how often it was stopped.
fn kill_everywhere(before: impl Fn(&Path), keep: usize, write: &Checkpoint, allowed: &[u64]) -> usize {
    for operations in 0.. {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("checkpoints");
        before(&dir);
        let killed = Killed::after(operations);
        let through = Checkpoints::open_in(&killed, &dir, keep).and_then(|c| c.write_in(&killed, write)).is_ok();

        // A reader without the lock finds one too, except in the instant in which a checkpoint of the same step is replaced.
        let opened = Checkpoints::open(&dir, keep).unwrap();
        assert!(names(&dir).iter().all(|n| !n.starts_with('.')), "after {operations}: {:?}", names(&dir));
        let found = opened.read_newest().unwrap();
        match &found {
            Some(found) => {
                assert!(allowed.contains(&found.step), "after {operations} operations: step {}", found.step);
                assert_eq!(*found, checkpoint(found.step), "after {operations} operations");
            }
            None => assert!(allowed.is_empty() || allowed.contains(&0), "after {operations} operations there is no checkpoint"),
        }
        // The run goes on from there.
        opened.write(write).unwrap();
        assert_eq!(opened.read_newest().unwrap().as_ref(), Some(write));
        assert!(opened.steps().unwrap().len() <= keep);
        if through {
            assert_eq!(found.as_ref(), Some(write));
            return operations;
        }
    }
    unreachable!()
}

#[test]
fn what_is_written_reads_back_exactly() {
    let root = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(&root.path().join("c"), 2).unwrap();
    assert_eq!(checkpoints.read_newest().unwrap(), None);
    let path = checkpoints.write(&checkpoint(3)).unwrap();
    assert_eq!(names(&path), [ADAPTER, MANIFEST, OPTIMIZER, STATE]);
    assert_eq!(checkpoints.read(3).unwrap(), checkpoint(3));
    assert_eq!(std::fs::read_to_string(root.path().join("c").join(LATEST)).unwrap(), "step-3\n");
}

#[test]
fn the_same_checkpoint_is_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let read = |name: &str| {
        let path = Checkpoints::open(&root.path().join(name), 1).unwrap().write(&checkpoint(5)).unwrap();
        names(&path).iter().map(|n| std::fs::read(path.join(n)).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(read("a"), read("b"));
}

#[test]
fn stopping_the_first_write_anywhere_leaves_none_or_all() {
    let stops = kill_everywhere(|_| {}, 2, &checkpoint(1), &[0, 1]);
    assert!(stops >= 11, "only {stops} operations");
}

#[test]
fn stopping_a_later_write_anywhere_leaves_the_older_or_the_newer() {
    for keep in [1, 2] {
        let before = |dir: &Path| {
            let c = Checkpoints::open(dir, keep).unwrap();
            c.write(&checkpoint(5)).unwrap();
            c.write(&checkpoint(10)).unwrap();
        };
        let stops = kill_everywhere(before, keep, &checkpoint(15), &[10, 15]);
        assert!(stops >= 11, "only {stops} operations");
    }
}

#[test]
fn stopping_the_replacement_of_a_checkpoint_anywhere_leaves_one() {
    let before = |dir: &Path| drop(Checkpoints::open(dir, 1).unwrap().write(&checkpoint(5)).unwrap());
    kill_everywhere(before, 1, &checkpoint(5), &[5]);
}

#[test]
fn stopping_after_going_back_behind_a_damaged_one_leaves_one() {
    let before = |dir: &Path| {
        let c = Checkpoints::open(dir, 3).unwrap();
        c.write(&checkpoint(5)).unwrap();
        let path = c.write(&checkpoint(10)).unwrap();
        std::fs::remove_file(path.join(OPTIMIZER)).unwrap();
    };
    kill_everywhere(before, 1, &checkpoint(7), &[5, 7]);
}

#[test]
fn the_newest_are_kept() {
    let root = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(&root.path().join("c"), 3).unwrap();
    for step in [2, 9, 10, 11, 100] {
        checkpoints.write(&checkpoint(step)).unwrap();
    }
    // By number, not by name.
    assert_eq!(checkpoints.steps().unwrap(), [10, 11, 100]);
}

#[test]
fn any_changed_or_missing_file_is_noticed_and_passed_over() {
    let root = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(&root.path().join("c"), 2).unwrap();
    checkpoints.write(&checkpoint(1)).unwrap();
    let path = checkpoints.write(&checkpoint(2)).unwrap();
    for name in [ADAPTER, OPTIMIZER, STATE, MANIFEST] {
        let file = path.join(name);
        let good = std::fs::read(&file).unwrap();
        let mut flipped = good.clone();
        let last = flipped.len() / 2;
        flipped[last] ^= 0x10;
        for bad in [Some(flipped), Some(good[..good.len() - 3].to_vec()), Some(Vec::new()), None] {
            match &bad {
                Some(bytes) => std::fs::write(&file, bytes).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            assert!(matches!(checkpoints.read(2), Err(CheckpointError::Damaged { .. })), "{name}");
            assert_eq!(checkpoints.read_newest().unwrap().unwrap(), checkpoint(1), "{name}");
        }
        std::fs::write(&file, good).unwrap();
        assert_eq!(checkpoints.read_newest().unwrap().unwrap(), checkpoint(2));
    }
}

#[test]
fn with_none_complete_the_error_names_each() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("c");
    let checkpoints = Checkpoints::open(&dir, 2).unwrap();
    for step in [1, 2] {
        let path = checkpoints.write(&checkpoint(step)).unwrap();
        std::fs::write(path.join(STATE), "{}").unwrap();
    }
    let error = checkpoints.read_newest().unwrap_err().to_string().replace(dir.to_str().unwrap(), "DIR");
    let bytes = |step| state_bytes(&checkpoint(step)).unwrap().len();
    assert_eq!(
        error,
        format!(
            "no complete checkpoint in DIR:\n  checkpoint DIR/step-2: state.json has 2 bytes in place of {}\n  checkpoint DIR/step-1: state.json has 2 bytes in \
             place of {}\nrestore one of them from a backup, or start a new run",
            bytes(2),
            bytes(1)
        )
    );
}

#[test]
fn a_shape_that_does_not_fit_its_values_is_refused_before_anything_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(&root.path().join("c"), 2).unwrap();
    checkpoints.write(&checkpoint(1)).unwrap();
    let mut bad = checkpoint(2);
    bad.adapter.insert("bad".to_owned(), Tensor { shape: vec![2, 2], values: vec![1.0; 3] });
    assert!(matches!(checkpoints.write(&bad), Err(CheckpointError::Invalid(_))));
    assert_eq!(checkpoints.read_newest().unwrap().unwrap(), checkpoint(1));
}

#[test]
fn other_names_are_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("c");
    std::fs::create_dir(&dir).unwrap();
    for name in ["step-x", "step-01", "notes.txt"] {
        std::fs::write(dir.join(name), "mine").unwrap();
    }
    let checkpoints = Checkpoints::open(&dir, 1).unwrap();
    assert!(checkpoints.steps().unwrap().is_empty());
    checkpoints.write(&checkpoint(1)).unwrap();
    checkpoints.write(&checkpoint(2)).unwrap();
    assert_eq!(names(&dir), ["latest", "notes.txt", "step-01", "step-2", "step-x"]);
}
