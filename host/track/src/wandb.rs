//! Weights & Biases: an offline run in the run's `wandb` folder, as the client itself leaves it for `wandb sync`. What it has, the file says.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::follow::now;
use crate::leveldb::{Records, file_head, frame};
use crate::proto::{Message, int_of, message_of};
use crate::sink::{About, Item, Load, Sink, SinkError};
use crate::{Outcome, Setup};

// Fields of `wandb_internal.Record`.
const NUMBER: u32 = 1;
const HISTORY: u32 = 2;
const SUMMARY: u32 = 3;
const FILES: u32 = 6;
const STATS: u32 = 7;
const TELEMETRY: u32 = 11;
const RUN: u32 = 17;
const EXIT: u32 = 18;
const HEADER: u32 = 21;

/// Writes an offline run.
pub struct Wandb {
    folder: PathBuf,
    project: String,
    name: String,
    began: f64,
    open: Option<Open>,
    /// What came between two steps. A step has one row (the client gives a second one the next number, and with it everything after), so it goes
    /// with the next one's.
    between: BTreeMap<String, Value>,
}

struct Open {
    path: PathBuf,
    file: File,
    length: u64,
    number: u64,
    /// The last row's step; none before the first.
    row: Option<u64>,
    ended: bool,
}

impl Wandb {
    /// For a run directory.
    pub fn new(setup: &Setup) -> Self {
        Self {
            folder: setup.dir.join("wandb"),
            project: project(&setup.project),
            name: setup.name.clone(),
            began: 0.0,
            open: None,
            between: BTreeMap::new(),
        }
    }

    fn write(&mut self, records: Vec<Message>) -> Result<(), SinkError> {
        let Some(open) = &mut self.open else { return Err(SinkError::new("the run's file is not open")) };
        let mut bytes = if open.length == 0 { file_head().to_vec() } else { Vec::new() };
        let mut number = open.number;
        for record in records {
            number += 1;
            let record = record.int(NUMBER, i64::try_from(number).unwrap_or(i64::MAX)).into_bytes();
            bytes.extend(frame(open.length + bytes.len() as u64, &record));
        }
        if let Err(e) = open.file.write_all(&bytes) {
            // A full disk may have taken a part; a torn record would hide what follows.
            let _ = open.file.set_len(open.length).and_then(|()| open.file.seek(SeekFrom::Start(open.length)));
            return Err(SinkError::file("write", &open.path)(e));
        }
        open.length += bytes.len() as u64;
        open.number = number;
        Ok(())
    }

    /// The file of the run that is there already.
    fn existing(&self) -> Option<PathBuf> {
        let names = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect::<Vec<_>>();
        let mut files: Vec<PathBuf> =
            names(&self.folder).iter().flat_map(|f| names(f)).filter(|f| f.extension().is_some_and(|e| e == "wandb")).collect();
        files.sort();
        files.pop()
    }

    fn begin(&mut self, about: &About, id: &str) -> Result<(), SinkError> {
        let version = Message::default().text(1, concat!("trainer-", env!("CARGO_PKG_VERSION"))).text(2, "0.70.0");
        let mut config = about.recipe.as_object().cloned().unwrap_or_default();
        // Where the client keeps its own entries.
        config.insert("_wandb".to_owned(), json!({}));
        let item = |key: &str, value: &Value| Message::default().text(1, key).text(16, &value.to_string());
        let config = config.iter().fold(Message::default(), |config, (key, value)| config.message(1, item(key, value)));
        let start = timestamp(self.began);
        let run = Message::default().text(1, id).text(3, &self.project).message(4, config).text(8, &self.name).message(17, start);
        let files =
            Message::default().message(1, Message::default().text(1, "recipe.toml")).message(1, Message::default().text(1, "lock.json"));
        self.write(vec![
            Message::default().message(HEADER, Message::default().message(1, version)),
            Message::default().message(RUN, run),
            Message::default().message(FILES, files),
            Message::default().message(TELEMETRY, Message::default()),
        ])
    }

    fn history(&self, step: u64, at: f64, values: &[(String, Value)]) -> Vec<Message> {
        let own = [
            ("_step".to_owned(), json!(step)),
            ("_timestamp".to_owned(), json!(at)),
            ("_runtime".to_owned(), json!((at - self.began).max(0.0))),
        ];
        let all = || own.iter().chain(values);
        let number = Message::default().int(1, i64::try_from(step).unwrap_or(i64::MAX));
        let history = all().fold(Message::default(), |h, v| h.message(1, item(v))).message(2, number);
        let all_of_it: Vec<_> = all().cloned().collect();
        vec![summary(&all_of_it), Message::default().message(HISTORY, history)]
    }
}

/// A value of a row. A key is one part of a nested key, so that its dots and slashes stay.
fn item((key, value): &(String, Value)) -> Message {
    Message::default().text(2, key).text(16, &value.to_string())
}

/// The last values, for the run's overview.
fn summary(values: &[(String, Value)]) -> Message {
    Message::default().message(SUMMARY, values.iter().fold(Message::default(), |s, v| s.message(1, item(v))))
}

/// `google.protobuf.Timestamp` of seconds since 1970.
fn timestamp(at: f64) -> Message {
    let seconds = at.trunc();
    Message::default().int(1, seconds as i64).int(2, ((at - seconds) * 1e9) as i64)
}

/// What the machine had to do, under the client's own names, which W&B's page shows apart with `system.` before them. A run has one card.
fn stats(at: f64, load: &Load) -> Option<Message> {
    let values = [
        ("gpu.0.gpu", load.gpu),
        ("gpu.0.memoryAllocated", load.gpu_memory_percent()),
        ("gpu.0.memoryAllocatedBytes", load.gpu_memory.map(|b| b as f64)),
        ("proc.memory.rssMB", load.memory.map(|b| b as f64 / f64::from(1 << 20))),
    ];
    let item = |(key, value): (&str, f64)| Message::default().text(1, key).text(16, &value.to_string());
    let items: Vec<_> = values.into_iter().filter_map(|(key, value)| Some(item((key, value?)))).collect();
    let begin = Message::default().message(2, timestamp(at));
    (!items.is_empty()).then(|| Message::default().message(STATS, items.into_iter().fold(begin, |m, i| m.message(3, i))))
}

/// A project's name without what W&B refuses in one.
fn project(name: &str) -> String {
    name.chars().map(|c| if "/\\#?%:".contains(c) { '_' } else { c }).collect()
}

/// Eight characters that tell this run from others: from its folder and its beginning.
fn new_id(folder: &Path, began: f64) -> String {
    use std::hash::{BuildHasher, Hasher};
    let mut hash = std::hash::RandomState::new().build_hasher();
    hash.write(folder.as_os_str().as_encoded_bytes());
    hash.write_u64(began.to_bits());
    let mut value = hash.finish();
    let digit = |_| {
        let d = (value % 36) as u8;
        value /= 36;
        char::from(if d < 10 { b'0' + d } else { b'a' + d - 10 })
    };
    (0..8).map(digit).collect()
}

/// Seconds since 1970 as the client writes them in folder names.
fn stamp(seconds: f64) -> String {
    trainer_runs::stamp(seconds as u64).replace('-', "").replace('T', "_")
}

impl Sink for Wandb {
    fn open(&mut self, about: &About, _memory: &mut Value) -> Result<Option<u64>, SinkError> {
        self.began = about.began;
        let existing = self.existing();
        let (path, id) = match existing {
            Some(path) => (path, None),
            None => {
                let id = new_id(&self.folder, self.began);
                let folder = self.folder.join(format!("offline-run-{}-{id}", stamp(self.began)));
                (folder.join(format!("run-{id}.wandb")), Some(id))
            }
        };
        let folder = path.parent().unwrap_or(&self.folder).to_owned();
        let id = id.or_else(|| Some(path.file_stem()?.to_str()?.strip_prefix("run-")?.to_owned()));
        let id = id.ok_or_else(|| SinkError::new(format!("{} is not the name of a run's file; remove it", path.display())))?;
        fs::create_dir_all(folder.join("files")).map_err(SinkError::file("create", &folder))?;
        for (name, text) in [("recipe.toml", &about.recipe_text), ("lock.json", &about.lock_text)] {
            let path = folder.join("files").join(name);
            fs::write(&path, text).map_err(SinkError::file("write", &path))?;
        }
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(SinkError::file("read", &path)(e)),
        };
        let mut records = Records::new(&bytes);
        let (mut last, mut number, mut row, mut ended) = (0, 0, None, false);
        for record in records.by_ref() {
            number = int_of(&record, NUMBER);
            ended |= message_of(&record, EXIT).is_some();
            row = message_of(&record, HISTORY).and_then(|h| message_of(h, 2)).map_or(row, |step| Some(int_of(step, 1)));
            // Only steps count, as in the event files.
            let history = message_of(&record, HISTORY).filter(|h| has_item(h, "train/loss"));
            last = history.and_then(|h| message_of(h, 2)).map_or(last, |step| int_of(step, 1));
        }
        let good = if number == 0 { 0 } else { records.good };
        let open = || -> std::io::Result<File> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
            file.set_len(good)?;
            file.seek(SeekFrom::Start(good))?;
            Ok(file)
        };
        let file = open().map_err(SinkError::file("open", &path))?;
        self.open = Some(Open { path, file, length: good, number, row, ended });
        if good == 0 {
            self.begin(about, &id)?;
        }
        Ok(Some(last))
    }

    fn send(&mut self, items: &[Item]) -> Result<(), SinkError> {
        let mut records = Vec::new();
        let mut row = self.open.as_ref().and_then(|o| o.row);
        // Kept if the file cannot be written, when all of this comes again.
        let mut between = self.between.clone();
        for item in items {
            let number = |(key, value): &(String, f64)| (key.clone(), json!(value));
            let (step, at, values): (_, _, Vec<_>) = match item {
                Item::Step { step, at, values, load } => {
                    records.extend(stats(*at, load));
                    (*step, *at, values.iter().map(number).collect())
                }
                Item::Evaluation { step, at, values, .. } => (*step, *at, values.iter().map(number).collect()),
                Item::Sample { step, at, prompt, text } => {
                    (*step, *at, vec![("sample".to_owned(), json!(format!("user: {prompt}\nassistant: {text}")))])
                }
            };
            if row.is_some_and(|row| step <= row) {
                records.push(summary(&values));
                between.extend(values);
            } else {
                let mut all: Vec<_> = std::mem::take(&mut between).into_iter().collect();
                all.extend(values);
                records.extend(self.history(step, at, &all));
                row = Some(step);
            }
        }
        self.write(records)?;
        self.between = between;
        if let Some(open) = &mut self.open {
            open.row = row;
        }
        // What was uploaded before lacks this, and `wandb sync` would pass the run over.
        if let Some(open) = &self.open {
            let mut marker = open.path.clone().into_os_string();
            marker.push(".synced");
            let _ = fs::remove_file(marker);
        }
        Ok(())
    }

    fn close(&mut self, outcome: Outcome) -> Result<(), SinkError> {
        // A run that can be continued has not ended; `wandb sync` takes it as it is.
        if outcome == Outcome::Complete && self.open.as_ref().is_some_and(|o| !o.ended) {
            let row = self.open.as_ref().and_then(|o| o.row).unwrap_or(0);
            let rest: Vec<_> = self.between.clone().into_iter().collect();
            let mut records = if rest.is_empty() { Vec::new() } else { self.history(row + 1, now(), &rest) };
            records.push(Message::default().message(EXIT, Message::default()));
            self.write(records)?;
            self.between.clear();
            if let Some(open) = &mut self.open {
                open.ended = true;
            }
        }
        let Some(open) = &self.open else { return Ok(()) };
        open.file.sync_all().map_err(SinkError::file("sync", &open.path))
    }

    fn place(&self) -> String {
        let folder = self.open.as_ref().and_then(|o| o.path.parent()).unwrap_or(&self.folder);
        format!("wandb sync {}", folder.display())
    }
}

/// Whether a history record has a value of this name.
fn has_item(history: &[u8], name: &str) -> bool {
    use crate::proto::{Fields, Value};
    Fields(history).any(|(field, value)| matches!(value, Value::Bytes(item) if field == 1 && message_of(item, 2) == Some(name.as_bytes())))
}
