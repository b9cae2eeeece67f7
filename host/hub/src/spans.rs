//! Which bytes of a file are there already: a journal of spans beside the file, so that a download goes on after anything, `kill -9` included.
//!
//! A line is written only after its bytes. What a power cut loses of the bytes, the checksum finds.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// A journal that is larger is no journal.
const LIMIT: u64 = 64 << 20;

/// Spans of bytes, merged and in ascending order: start and end of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spans(Vec<(u64, u64)>);

impl Spans {
    fn new(mut spans: Vec<(u64, u64)>) -> Self {
        spans.retain(|(start, end)| start < end);
        spans.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(spans.len());
        for (start, end) in spans {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        Self(merged)
    }

    /// Bytes that are there.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// What is missing of a file of `size` bytes, in pieces of at most `piece` bytes.
    pub(crate) fn missing(&self, size: u64, piece: u64) -> Vec<(u64, u64)> {
        let mut pieces = Vec::new();
        let mut at = 0;
        for (start, end) in self.0.iter().copied().chain([(size, size)]) {
            while at < start {
                let next = start.min(at.saturating_add(piece.max(1)));
                pieces.push((at, next));
                at = next;
            }
            at = at.max(end);
        }
        pieces
    }
}

/// The journal of a file.
#[derive(Debug)]
pub(crate) struct Journal(Mutex<File>);

impl Journal {
    /// Opens or begins the journal of a file of `size` bytes, and gives what is there by it. A journal that is broken, or of another size, begins anew.
    pub(crate) fn open(path: &Path, size: u64) -> io::Result<(Self, Spans)> {
        let (text, spans) = load(path, size);
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        match &spans {
            // Another writer's last line may be torn; the next one must not go on in it.
            Some(_) if !text.ends_with('\n') => file.write_all(b"\n")?,
            Some(_) => {}
            None => {
                file.set_len(0)?;
                file.write_all(head(size).as_bytes())?;
            }
        }
        Ok((Self(Mutex::new(file)), spans.unwrap_or_default()))
    }

    /// Notes that bytes are there.
    pub(crate) fn add(&self, start: u64, end: u64) -> io::Result<()> {
        if start >= end {
            return Ok(());
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(format!("{start} {end}\n").as_bytes())
    }
}

/// What is there by the journal of a file of `size` bytes, which is only looked at.
pub(crate) fn look(path: &Path, size: u64) -> Spans {
    load(path, size).1.unwrap_or_default()
}

fn head(size: u64) -> String {
    format!("trainer-spans 1 {size}\n")
}

/// The text of a journal, and what it says if it is one of a file of this size.
fn load(path: &Path, size: u64) -> (String, Option<Spans>) {
    let text = match std::fs::metadata(path) {
        Ok(about) if about.len() <= LIMIT => std::fs::read_to_string(path).unwrap_or_default(),
        _ => String::new(),
    };
    let spans = text.strip_prefix(&head(size)).map(|rest| read(rest, size));
    (text, spans)
}

/// The whole lines that make sense.
fn read(text: &str, size: u64) -> Spans {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let span = |line: &str| {
        let (start, end) = line.split_once(' ')?;
        let (start, end) = (start.parse().ok()?, end.parse().ok()?);
        (start < end && end <= size).then_some((start, end))
    };
    Spans::new(whole.lines().filter_map(span).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_journal_goes_on_after_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (journal, spans) = Journal::open(&path, 100).unwrap();
        assert_eq!(spans.bytes(), 0);
        journal.add(0, 10).unwrap();
        journal.add(40, 60).unwrap();
        journal.add(10, 20).unwrap();
        drop(journal);
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"60 9").unwrap();
        let (journal, spans) = Journal::open(&path, 100).unwrap();
        assert_eq!(spans, Spans(vec![(0, 20), (40, 60)]));
        assert_eq!(spans.missing(100, 15), [(20, 35), (35, 40), (60, 75), (75, 90), (90, 100)]);
        journal.add(90, 100).unwrap();
        drop(journal);
        assert_eq!(Journal::open(&path, 100).unwrap().1.bytes(), 50);
        // Of another size, or no journal at all: nothing is there.
        assert_eq!(Journal::open(&path, 101).unwrap().1, Spans::default());
        std::fs::write(&path, [0xff; 50]).unwrap();
        assert_eq!(Journal::open(&path, 100).unwrap().1, Spans::default());
    }

    proptest! {
        #[test]
        fn what_is_missing_is_what_is_not_there(spans in prop::collection::vec((0u64..64, 0u64..64), 0..8), piece in 1u64..20) {
            let there = Spans::new(spans.clone());
            let mut seen = [false; 64];
            for (start, end) in spans {
                (start..end).for_each(|i| seen[i as usize] = true);
            }
            for (start, end) in there.missing(64, piece) {
                prop_assert!(end - start <= piece);
                for i in start..end {
                    prop_assert!(!std::mem::replace(&mut seen[i as usize], true), "byte {} twice", i);
                }
            }
            prop_assert!(seen.iter().all(|s| *s));
        }
    }
}
