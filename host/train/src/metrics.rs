//! What each step was: `metrics.jsonl` and `evals.jsonl` hold only values that the same run gives again, byte for byte; times go into `timings.jsonl`.
//!
//! One JSON object a line, floats in the shortest form that reads back to the same bits. A line that a killed program left unfinished is cut
//! when the file is opened to be continued, and passed over when it is read.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::events::StepInfo;
use crate::files::{FileError, parent, sync_dir};

pub use trainer_runs::records::{EvalMetrics, SourceMetrics, StepMetrics, StepTimings};

/// A line of one of the files.
pub trait Record: Serialize + DeserializeOwned {
    /// The step that the line is about.
    fn step(&self) -> u64;
    /// The name of a number that is not finite, if there is one; JSON cannot hold it.
    fn not_finite(&self) -> Option<&'static str>;
}

fn first_not_finite(values: impl IntoIterator<Item = (&'static str, f64)>) -> Option<&'static str> {
    values.into_iter().find(|(_, v)| !v.is_finite()).map(|(name, _)| name)
}

impl Record for StepMetrics {
    fn step(&self) -> u64 {
        self.step
    }

    fn not_finite(&self) -> Option<&'static str> {
        let own = [("loss", self.loss), ("lr", self.lr), ("grad_norm", self.grad_norm), ("target_weight", self.target_weight)];
        let sources = self.sources.iter().flat_map(|s| [("sources.loss", s.loss), ("sources.target_weight", s.target_weight)]);
        first_not_finite(own.into_iter().chain(sources))
    }
}

impl Record for StepTimings {
    fn step(&self) -> u64 {
        self.step
    }

    fn not_finite(&self) -> Option<&'static str> {
        first_not_finite([
            ("seconds", self.seconds),
            ("tokens_per_second", self.tokens_per_second),
            ("data_wait_seconds", self.data_wait_seconds),
        ])
    }
}

impl Record for EvalMetrics {
    fn step(&self) -> u64 {
        self.step
    }

    fn not_finite(&self) -> Option<&'static str> {
        let values = self.metrics.values().map(|v| ("metrics", *v)).chain(self.stderr.values().map(|v| ("stderr", *v)));
        first_not_finite(values)
    }
}

/// Why metrics could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// A number that JSON cannot hold.
    #[error(
        "step {step}: {field} is not a finite number, so the training has diverged; lower train.learning_rate or set train.max_grad_norm"
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// Which number.
        field: &'static str,
    },
    /// A line cannot be read.
    #[error("{}:{line}: {what}; the file was changed by something else", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// The file lacks lines that the checkpoint knows of.
    #[error("{} has {bytes} bytes, but the checkpoint was written when it had {needed} (up to the end of a line); it was shortened or changed since", path.display())]
    TooShort {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The length at the checkpoint.
        needed: u64,
    },
}

/// A step's line of `timings.jsonl`; `ended`: when it was complete.
pub(crate) fn step_timings(info: &StepInfo, ended: SystemTime) -> StepTimings {
    let seconds = info.time.as_secs_f64();
    StepTimings {
        step: info.step,
        seconds,
        tokens_per_second: info.tokens as f64 / seconds.max(1e-9),
        data_wait_seconds: info.waited.as_secs_f64(),
        ended: ended.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs_f64()),
        memory: info.memory,
        gpu_load: info.card.load,
        gpu_memory: info.card.memory,
        gpu_memory_total: info.card.memory_total,
    }
}

/// A file of lines that grows at its end.
#[derive(Debug)]
pub struct Journal<T> {
    file: File,
    path: PathBuf,
    length: u64,
    records: PhantomData<fn(&T)>,
}

/// `metrics.jsonl`.
pub type Metrics = Journal<StepMetrics>;
/// `timings.jsonl`.
pub type Timings = Journal<StepTimings>;
/// `evals.jsonl`.
pub type Evals = Journal<EvalMetrics>;

impl<T: Record> Journal<T> {
    /// Opens a file to be continued, or makes it. An unfinished last line is cut.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn open(path: &Path) -> Result<Self, MetricsError> {
        let new = !path.exists();
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(FileError::at("open", path))?;
        if new {
            sync_dir(parent(path)).map_err(FileError::at("sync", parent(path)))?;
        }
        let length = whole_lines(&mut file).map_err(FileError::at("read", path))?;
        let mut this = Self { file, path: path.to_owned(), length, records: PhantomData };
        this.cut(length)?;
        Ok(this)
    }

    /// Adds a line and hands it to the system, so that it outlives the process; [`Journal::sync`] makes it outlive the machine.
    ///
    /// # Errors
    /// [`MetricsError::NotFinite`], or if the system refuses; then the file is as before.
    pub fn append(&mut self, record: &T) -> Result<(), MetricsError> {
        if let Some(field) = record.not_finite() {
            return Err(MetricsError::NotFinite { step: record.step(), field });
        }
        let mut line = serde_json::to_vec(record).map_err(|e| FileError::at("write", &self.path)(e.into()))?;
        line.push(b'\n');
        if let Err(e) = self.file.write_all(&line) {
            // A full disk may have taken half of the line.
            let length = self.length;
            self.cut(length)?;
            return Err(FileError::at("write", &self.path)(e).into());
        }
        self.length += line.len() as u64;
        Ok(())
    }

    /// Makes everything written so far durable and returns the length in bytes, for the checkpoint.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn sync(&mut self) -> Result<u64, MetricsError> {
        self.file.sync_data().map_err(FileError::at("sync", &self.path))?;
        Ok(self.length)
    }

    /// Cuts the file back to its length at a checkpoint.
    ///
    /// # Errors
    /// [`MetricsError::TooShort`] if it is not that long, or the length is not the end of a line.
    pub fn truncate_to(&mut self, length: u64) -> Result<(), MetricsError> {
        let too_short = MetricsError::TooShort { path: self.path.clone(), bytes: self.length, needed: length };
        if length > self.length {
            return Err(too_short);
        }
        if length > 0 {
            let mut last = [0];
            let mut read = || {
                self.file.seek(SeekFrom::Start(length - 1))?;
                self.file.read_exact(&mut last)
            };
            read().map_err(FileError::at("read", &self.path))?;
            if last != *b"\n" {
                return Err(too_short);
            }
        }
        self.cut(length)
    }

    /// Cuts every line from the first one about a later step.
    ///
    /// # Errors
    /// If a line cannot be read.
    pub fn truncate_after_step(&mut self, step: u64) -> Result<(), MetricsError> {
        let mut length = 0;
        for (record, bytes) in read_lines::<T>(&self.path)? {
            if record.step() > step {
                break;
            }
            length += bytes;
        }
        self.cut(length)
    }

    fn cut(&mut self, length: u64) -> Result<(), MetricsError> {
        let mut cut = || {
            if self.file.metadata()?.len() != length {
                self.file.set_len(length)?;
                self.file.sync_all()?;
            }
            self.file.seek(SeekFrom::Start(length)).map(drop)
        };
        cut().map_err(FileError::at("cut", &self.path))?;
        self.length = length;
        Ok(())
    }
}

/// Every complete line of a file. An unfinished last line is passed over.
///
/// # Errors
/// If the file or a line cannot be read.
pub fn read_journal<T: Record>(path: &Path) -> Result<Vec<T>, MetricsError> {
    Ok(read_lines(path)?.into_iter().map(|(record, _)| record).collect())
}

/// The records with the lengths of their lines.
fn read_lines<T: Record>(path: &Path) -> Result<Vec<(T, u64)>, MetricsError> {
    let bytes = std::fs::read(path).map_err(FileError::at("read", path))?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let lines = bytes.get(..whole).unwrap_or_default().split_inclusive(|b| *b == b'\n').enumerate();
    lines
        .map(|(i, line)| match serde_json::from_slice(line) {
            Ok(record) => Ok((record, line.len() as u64)),
            Err(e) => Err(MetricsError::Broken { path: path.to_owned(), line: i + 1, what: e.to_string() }),
        })
        .collect()
}

/// The length of a file up to the end of its last whole line, found from the end.
fn whole_lines(file: &mut File) -> std::io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut buffer = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(1 << 16);
        file.seek(SeekFrom::Start(start))?;
        buffer.clear();
        Read::by_ref(file).take(end - start).read_to_end(&mut buffer)?;
        if let Some(i) = buffer.iter().rposition(|b| *b == b'\n') {
            return Ok(start + i as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use trainer_runtime::CardUse;

    use super::*;

    fn metrics(step: u64) -> StepMetrics {
        let source = SourceMetrics { name: "math".into(), loss: 0.1 + 0.2, target_weight: 3.0, samples: 2 };
        StepMetrics {
            step,
            loss: 1.0 / 3.0,
            lr: 2e-3 / 7.0,
            grad_norm: f64::MIN_POSITIVE,
            tokens: 99,
            target_weight: 64.5,
            sources: vec![source],
        }
    }

    fn timings(step: u64) -> StepTimings {
        StepTimings {
            step,
            seconds: 0.5,
            tokens_per_second: 1e3,
            data_wait_seconds: 0.0,
            ended: Some(1.7e9),
            memory: Some(1 << 30),
            gpu_load: Some(97.5),
            gpu_memory: Some(40 << 30),
            gpu_memory_total: Some(80 << 30),
        }
    }

    #[test]
    fn lines_read_back_to_the_same_bits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut journal = Metrics::open(&path).unwrap();
        let mut written: Vec<_> = (1..=200).map(metrics).collect();
        for (i, m) in written.iter_mut().enumerate() {
            // Walks through neighbouring bit patterns, where a parser that rounds carelessly is off by one unit.
            m.loss = f64::from_bits(0x3fd5_5555_5555_5555 + i as u64 * 0x1_2345_6789);
            journal.append(m).unwrap();
        }
        assert_eq!(journal.sync().unwrap(), std::fs::metadata(&path).unwrap().len());
        assert_eq!(read_journal::<StepMetrics>(&path).unwrap(), written);
    }

    #[test]
    fn a_torn_last_line_is_cut_wherever_it_was_torn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut journal = Metrics::open(&path).unwrap();
        journal.append(&metrics(1)).unwrap();
        let first = journal.sync().unwrap();
        journal.append(&metrics(2)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        drop(journal);
        for cut in 0..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let whole = u64::from(cut as u64 >= first);
            assert_eq!(read_journal::<StepMetrics>(&path).unwrap().len() as u64, whole);
            let mut journal = Metrics::open(&path).unwrap();
            journal.append(&metrics(whole + 1)).unwrap();
            let steps: Vec<_> = read_journal::<StepMetrics>(&path).unwrap().iter().map(|m| m.step).collect();
            assert_eq!(steps, (1..=whole + 1).collect::<Vec<_>>());
        }
    }

    #[test]
    fn truncation_goes_back_to_the_checkpoint_and_no_further() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut journal = Metrics::open(&path).unwrap();
        journal.append(&metrics(1)).unwrap();
        let length = journal.sync().unwrap();
        let before = std::fs::read(&path).unwrap();
        journal.append(&metrics(2)).unwrap();
        journal.append(&metrics(3)).unwrap();
        assert!(matches!(journal.truncate_to(length + 1), Err(MetricsError::TooShort { .. })));
        journal.truncate_to(length).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert!(matches!(journal.truncate_to(length + 1), Err(MetricsError::TooShort { .. })));
        journal.append(&metrics(2)).unwrap();
        assert_eq!(read_journal::<StepMetrics>(&path).unwrap().len(), 2);
        journal.truncate_to(0).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }

    #[test]
    fn figures_of_a_card_are_in_the_timings_and_only_where_there_are_any() {
        let mut info = StepInfo {
            step: 3,
            total: 9,
            loss: 1.0,
            lr: 0.1,
            grad_norm: 1.0,
            tokens: 100,
            time: Duration::from_millis(500),
            waited: Duration::from_millis(125),
            memory: Some(7),
            card: CardUse::default(),
        };
        let line = |info: &StepInfo| serde_json::to_string(&step_timings(info, UNIX_EPOCH + Duration::from_secs(1))).unwrap();
        let plain = r#"{"step":3,"seconds":0.5,"tokens_per_second":200.0,"data_wait_seconds":0.125,"ended":1.0,"memory":7"#;
        assert_eq!(line(&info), format!("{plain}}}"));
        info.card = CardUse { load: Some(87.5), memory: Some(40), memory_total: Some(80), engine_peak: Some(30) };
        assert_eq!(line(&info), format!("{plain},\"gpu_load\":87.5,\"gpu_memory\":40,\"gpu_memory_total\":80}}"));
        assert_eq!(serde_json::from_str::<StepTimings>(&line(&info)).unwrap().gpu_load, Some(87.5));
    }

    #[test]
    fn timings_are_cut_by_step() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("timings.jsonl");
        let mut journal = Timings::open(&path).unwrap();
        for step in 1..=5 {
            journal.append(&timings(step)).unwrap();
        }
        journal.truncate_after_step(3).unwrap();
        journal.append(&timings(4)).unwrap();
        let steps: Vec<_> = read_journal::<StepTimings>(&path).unwrap().iter().map(|t| t.step).collect();
        assert_eq!(steps, [1, 2, 3, 4]);
    }

    #[test]
    fn numbers_that_json_cannot_hold_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Metrics::open(&dir.path().join("metrics.jsonl")).unwrap();
        for bad in [f64::NAN, f64::INFINITY] {
            let error = journal.append(&StepMetrics { grad_norm: bad, ..metrics(7) }).unwrap_err();
            insta::allow_duplicates! {
                insta::assert_snapshot!(error, @"step 7: grad_norm is not a finite number, so the training has diverged; lower train.learning_rate or set train.max_grad_norm");
            }
        }
        assert_eq!(journal.sync().unwrap(), 0);
    }

    #[test]
    fn a_changed_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut journal = Metrics::open(&path).unwrap();
        journal.append(&metrics(1)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(b"{\"step\":2}\n");
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(read_journal::<StepMetrics>(&path), Err(MetricsError::Broken { line: 2, .. })));
    }
}
