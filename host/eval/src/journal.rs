//! Answers as they come, on file, so that an evaluation that was stopped goes on where it was.
//!
//! The journal lies beside the report under a name of its own and is removed once the report is written. It begins with a key over everything
//! that an answer depends on: with another key it counts for nothing. A line that was cut off by the end of the process is left out.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::answers::AnswerRecord;
use crate::error::EvalError;

/// Which answer it is: metric, place of the row, repeat.
pub(crate) type AnswerKey = (String, String, u32);

#[derive(Serialize, Deserialize)]
struct Header {
    journal: String,
}

#[derive(Serialize, Deserialize)]
struct Line {
    metric: String,
    row: String,
    repeat: u32,
    answer: AnswerRecord,
}

/// A journal that grows.
pub(crate) struct Journal {
    path: PathBuf,
    file: Mutex<File>,
    found: HashMap<AnswerKey, AnswerRecord>,
}

impl Journal {
    /// Opens the journal of an evaluation with this key, or begins it.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: &Path, key: &str) -> Result<Self, EvalError> {
        let failed = |source| EvalError::Write { path: path.to_owned(), source };
        let mut found = HashMap::new();
        let mut good: Vec<u8> = Vec::new();
        if let Ok(file) = File::open(path) {
            let mut reader = BufReader::new(file);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).map_err(failed)? > 0 {
                let whole = line.ends_with(b"\n");
                let known = match good.is_empty() {
                    true => serde_json::from_slice::<Header>(&line).is_ok_and(|h| h.journal == key),
                    false => match serde_json::from_slice::<Line>(&line) {
                        Ok(l) if whole => found.insert((l.metric, l.row, l.repeat), l.answer).is_none(),
                        _ => false,
                    },
                };
                if !known {
                    break;
                }
                good.append(&mut line);
            }
        }
        if good.is_empty() {
            found.clear();
            serde_json::to_writer(&mut good, &Header { journal: key.to_owned() }).map_err(|e| failed(e.into()))?;
            good.push(b'\n');
        }
        // What is good is written anew, so that lines are never appended to a broken one.
        trainer_model::durable::write_atomic(path, &good)?;
        let file = File::options().append(true).open(path).map_err(failed)?;
        Ok(Self { path: path.to_owned(), file: Mutex::new(file), found })
    }

    /// How many answers it began with.
    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// An answer that it began with.
    pub fn get(&self, key: &AnswerKey) -> Option<&AnswerRecord> {
        self.found.get(key)
    }

    /// Adds an answer.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&self, key: AnswerKey, answer: &AnswerRecord) -> Result<(), EvalError> {
        let failed = |source| EvalError::Write { path: self.path.clone(), source };
        let (metric, row, repeat) = key;
        let mut line = serde_json::to_vec(&Line { metric, row, repeat, answer: answer.clone() }).map_err(|e| failed(e.into()))?;
        line.push(b'\n');
        self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line).map_err(failed)
    }

    /// The evaluation is complete.
    pub fn remove(self) {
        drop(self.file);
        if let Err(e) = std::fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {e}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_found_again_up_to_the_first_broken_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eval.journal.jsonl");
        let key = |n: u32| ("m".to_owned(), format!("rows:{n}"), 0);
        let answer = |n: u32| AnswerRecord { raw: format!("answer {n}"), tokens: Some(u64::from(n)), ..AnswerRecord::default() };
        let journal = Journal::open(&path, "k1").unwrap();
        for n in 0..3 {
            journal.add(key(n), &answer(n)).unwrap();
        }
        drop(journal);
        assert_eq!(Journal::open(&path, "k1").unwrap().len(), 3);
        // The last line is cut off in the middle, as by a kill.
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        let journal = Journal::open(&path, "k1").unwrap();
        assert_eq!((journal.len(), journal.get(&key(1)), journal.get(&key(2))), (2, Some(&answer(1)), None));
        journal.add(key(2), &answer(2)).unwrap();
        drop(journal);
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        // Under another key it counts for nothing.
        assert_eq!(Journal::open(&path, "k2").unwrap().len(), 0);
        assert_eq!(Journal::open(&path, "k1").unwrap().len(), 0);
        Journal::open(&path, "k1").unwrap().remove();
        assert!(!path.exists());
    }
}
