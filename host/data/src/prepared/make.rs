//! Making prepared data: every row of a source once, in file order, on all threads, in memory that does not depend on how many there are.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::entry::{Head, HeadFile, Writer, hex, key_of, record};
use super::identity;
use super::store::{PreparedStore, StoreError, modified};
use crate::error::{BadRow, DataError};
use crate::pipeline::PipelineSpec;
use crate::pipeline::pool::Pool;
use crate::pipeline::worker::{At, Failure, Outcome, Stages, Task};
use crate::source::{Access, Source};

/// Batches under way for each thread.
const AHEAD: usize = 3;
/// How many bad rows are kept as examples.
const EXAMPLES: usize = 20;

/// What there is of a source when it is prepared.
#[derive(Clone, Debug, Serialize)]
pub struct Preparation {
    /// The source's name in the recipe.
    pub source: String,
    /// The entry's file.
    pub path: PathBuf,
    /// Whether it was there before, whole.
    pub found: bool,
    /// Rows.
    pub rows: u64,
    /// Size of the file.
    pub bytes: u64,
    /// Samples that rows gave. These and what follows are counted where the entry was made now.
    pub samples: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Rows and samples left out.
    pub skipped: u64,
    /// Bad rows. They are in the entry too, and count when they are drawn.
    pub bad: u64,
    /// The first of them.
    pub bad_examples: Vec<BadRow>,
    /// How long it took.
    pub seconds: f64,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrepareProgress {
    /// Another process prepares the same; waiting for it.
    Waiting,
    /// So many rows are done.
    Rows(u64),
}

/// Prepares one source of a pipeline, unless that has been done: what there is, is read and checked whole.
///
/// Several processes that prepare the same take turns, and the later ones find it done. Breaking off leaves nothing.
///
/// # Errors
/// A folder that cannot serve, a source that cannot be read, a failing plugin, a stage whose answers may not be kept. None for breaking off.
pub fn prepare(
    spec: &PipelineSpec,
    source: usize,
    store: &PreparedStore,
    progress: &mut dyn FnMut(PrepareProgress) -> ControlFlow<()>,
) -> Result<Option<Preparation>, DataError> {
    let input = spec.sources.get(source).ok_or_else(|| DataError::Settings(format!("there is no source {source}")))?;
    let name = input.source.name();
    let identity = identity(spec, source).ok_or_else(|| {
        DataError::Settings(format!(
            "source `{name}` cannot be prepared: its formatter, template or tokenizer depends on more than the row, such as a granted capability"
        ))
    })?;
    let began = Instant::now();
    store.make_folder()?;
    store.sweep();
    let key = key_of(&identity);
    let path = store.path_of(&key);
    let io = |error| DataError::Prepared(StoreError::Io { path: path.clone(), error });
    let Some(_turn) = Turn::take(&store.folder().join(format!(".{}.lock", hex(&key))), progress).map_err(io)? else { return Ok(None) };
    if let Some(entry) = store.open(&identity)
        && entry.rows == input.source.len()
    {
        if entry.verify() {
            let bytes = fs::metadata(&path).map_err(io)?.len();
            let seconds = began.elapsed().as_secs_f64();
            return Ok(Some(Preparation { found: true, rows: entry.rows, bytes, seconds, ..Preparation::of(name, &path) }));
        }
        tracing::warn!("{} is damaged and is made again", path.display());
    }
    let head = Head {
        identity,
        trainer: env!("CARGO_PKG_VERSION").to_owned(),
        source: name.to_owned(),
        files: files(&input.source),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
    };
    let mut writer = Writer::new(store.folder(), &head).map_err(io)?;
    let mut done = Preparation::of(name, &path);
    let numbers: HashMap<Arc<str>, u32> = (0..).zip(input.source.files()).map(|(i, f)| (Arc::clone(&f.name), i)).collect();
    let mut tasks = Tasks::new(Arc::clone(&input.source), u32::try_from(source).unwrap_or(u32::MAX));
    let workers = spec.worker_count();
    let mut pool = Pool::new(Stages::new(spec), workers)?;
    let (mut submitted, mut consumed, mut waiting) = (0u64, 0u64, BTreeMap::new());
    loop {
        while submitted - consumed < (workers.max(1) * AHEAD) as u64 {
            let batch = tasks.next(spec.format_batch)?;
            if batch.is_empty() {
                break;
            }
            pool.submit(submitted, batch)?;
            submitted += 1;
        }
        if submitted == consumed {
            break;
        }
        let (number, outcomes) = pool.receive()?;
        waiting.insert(number, outcomes);
        while let Some(outcomes) = waiting.remove(&consumed) {
            consumed += 1;
            for outcome in outcomes {
                done.count(&outcome);
                writer.push(&record(outcome, &numbers)?).map_err(io)?;
            }
            if progress(PrepareProgress::Rows(done.rows)).is_break() {
                return Ok(None);
            }
        }
    }
    if done.rows != input.source.len() {
        let message = format!("{} rows were found where there were {} when it was opened", done.rows, input.source.len());
        return Err(DataError::Source { source_name: name.to_owned(), message });
    }
    done.bytes = writer.finish(&path).map_err(io)?;
    done.seconds = began.elapsed().as_secs_f64();
    Ok(Some(done))
}

impl Preparation {
    fn of(source: &str, path: &Path) -> Self {
        Self {
            source: source.to_owned(),
            path: path.to_owned(),
            found: false,
            rows: 0,
            bytes: 0,
            samples: 0,
            tokens: 0,
            skipped: 0,
            bad: 0,
            bad_examples: Vec::new(),
            seconds: 0.0,
        }
    }

    fn count(&mut self, outcome: &Outcome) {
        self.rows += 1;
        match &outcome.result {
            Ok(parts) => {
                for part in parts {
                    match part {
                        Ok(sample) => {
                            self.samples += 1;
                            self.tokens = self.tokens.saturating_add(sample.ids.len() as u64);
                        }
                        Err(_) => self.skipped += 1,
                    }
                }
            }
            Err(Failure::Skip(_)) => self.skipped += 1,
            Err(Failure::Bad(row)) => {
                self.bad += 1;
                if self.bad_examples.len() < EXAMPLES {
                    self.bad_examples.push(row.clone());
                }
            }
            Err(Failure::Fatal(_)) => {}
        }
    }
}

fn files(source: &Source) -> Vec<HeadFile> {
    let files = source.files().iter().map(|f| {
        // Data within the program have a name that is no path.
        let found = fs::metadata(&*f.name).ok();
        let path = found.as_ref().and_then(|_| std::path::absolute(&*f.name).ok());
        HeadFile {
            name: f.name.to_string(),
            path: path.map(|p| p.to_string_lossy().into_owned()),
            bytes: f.bytes,
            sha256: f.sha256.clone(),
            modified: found.as_ref().and_then(modified),
        }
    });
    files.collect()
}

/// The rows of a source in file order.
struct Tasks {
    source: Arc<Source>,
    index: u32,
    next: u64,
    /// For a source that is only read from the front.
    front: Option<crate::source::OwnedRows>,
}

impl Tasks {
    fn new(source: Arc<Source>, index: u32) -> Self {
        let front = matches!(source.access(), Access::Stream { .. }).then(|| crate::source::OwnedRows::new(Arc::clone(&source)));
        Self { source, index, next: 0, front }
    }

    fn next(&mut self, n: usize) -> Result<Vec<Task>, DataError> {
        let mut batch = Vec::with_capacity(n);
        while batch.len() < n && self.next < self.source.len() {
            let at = match &mut self.front {
                None => At::Ordinal(self.next),
                Some(rows) => match rows.next()? {
                    Some(row) => At::Row(Box::new(row)),
                    None => break,
                },
            };
            self.next += 1;
            batch.push(Task { source: self.index, at });
        }
        Ok(batch)
    }
}

/// A turn among the processes that prepare the same; ends when dropped, or with the process.
struct Turn {
    _file: File,
    path: PathBuf,
}

impl Turn {
    fn take(path: &Path, progress: &mut dyn FnMut(PrepareProgress) -> ControlFlow<()>) -> std::io::Result<Option<Self>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        if file.try_lock().is_err() {
            if progress(PrepareProgress::Waiting).is_break() {
                return Ok(None);
            }
            file.lock()?;
        }
        Ok(Some(Self { _file: file, path: path.to_owned() }))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Who has opened it before gets the lock of a file without a name, and finds the work done.
        let _ = fs::remove_file(&self.path);
    }
}
