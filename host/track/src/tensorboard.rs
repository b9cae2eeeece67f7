//! TensorBoard: one event file in the run's `tensorboard` folder, continued by a resumed run. What it has, the file itself says.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Outcome;
use crate::proto::{Message, int_of, message_of};
use crate::sink::{About, Item, Load, Sink, SinkError};
use crate::tfrecord::{Records, frame};

/// TensorBoard looks for `tfevents` in the name.
const FILE: &str = "events.out.tfevents.0.trainer";

/// `DT_STRING` of tensors.
const STRING: i64 = 7;

/// Writes event files.
pub struct TensorBoard {
    folder: PathBuf,
    file: Option<File>,
}

impl TensorBoard {
    /// For a run directory.
    pub fn new(run: &Path) -> Self {
        Self { folder: run.join("tensorboard"), file: None }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        let path = self.folder.join(FILE);
        let file = self.file.as_mut().ok_or_else(|| SinkError::new("the event file is not open"))?;
        let end = file.stream_position().map_err(SinkError::file("write", &path))?;
        if let Err(e) = file.write_all(bytes) {
            // A full disk may have taken a part; a torn record would hide what follows.
            let _ = file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end)));
            return Err(SinkError::file("write", &path)(e));
        }
        Ok(())
    }
}

/// `Event { wall_time, step }`.
fn event(at: f64, step: u64) -> Message {
    Message::default().double(1, at).int(2, i64::try_from(step).unwrap_or(i64::MAX))
}

/// `Summary.Value { tag, simple_value }` for each.
fn scalars(values: &[(String, f64)]) -> Message {
    let value = |(tag, value): &(String, f64)| Message::default().text(1, tag).float(2, *value as f32);
    values.iter().fold(Message::default(), |summary, v| summary.message(1, value(v)))
}

/// What the card had to do; TensorBoard knows no names for that.
fn system(load: &Load) -> Vec<(String, f64)> {
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let values = [("system/gpu_load", load.gpu), ("system/gpu_memory_gib", load.gpu_memory.map(gib))];
    values.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// A value of the text plugin: a string tensor of one entry, marked as text; TensorBoard shows it as Markdown.
fn text(tag: &str, text: &str) -> Message {
    let shape = Message::default().message(2, Message::default().int(1, 1));
    let tensor = Message::default().int(1, STRING).message(2, shape).text(8, text);
    let plugin = Message::default().text(1, "text");
    Message::default().message(1, Message::default().text(1, tag).message(8, tensor).message(9, Message::default().message(1, plugin)))
}

/// Text that Markdown leaves as it is: indented by four, the form in which nothing has a meaning.
fn literal(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

impl Sink for TensorBoard {
    fn open(&mut self, about: &About, _memory: &mut Value) -> Result<Option<u64>, SinkError> {
        let path = self.folder.join(FILE);
        fs::create_dir_all(&self.folder).map_err(SinkError::file("create", &self.folder))?;
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(SinkError::file("read", &path)(e)),
        };
        let mut records = Records::new(&bytes);
        // Only steps count: an evaluation stands at the last step, too, but is known by the notes. A step is one event, whole or not there.
        let is_step =
            |event: &&[u8]| message_of(event, 5).and_then(|s| message_of(s, 1)).and_then(|v| message_of(v, 1)) == Some(b"train/loss");
        let last = records.by_ref().filter(is_step).map(|event| int_of(event, 2)).max();
        let good = records.good;
        let open = || -> std::io::Result<File> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
            file.set_len(good)?;
            file.seek(SeekFrom::Start(good))?;
            Ok(file)
        };
        self.file = Some(open().map_err(SinkError::file("open", &path))?);
        if good == 0 {
            let mut bytes = frame(&Message::default().double(1, about.began).text(3, "brain.Event:2").into_bytes());
            let recipe = text("recipe", &literal(&about.recipe_text));
            bytes.extend(frame(&event(about.began, 0).message(5, recipe).into_bytes()));
            let facts: String = about.facts.iter().map(|(k, v)| format!("{k} = {v}\n")).collect();
            bytes.extend(frame(&event(about.began, 0).message(5, text("about", &literal(&facts))).into_bytes()));
            self.write(&bytes)?;
        }
        Ok(Some(last.unwrap_or(0)))
    }

    fn send(&mut self, items: &[Item]) -> Result<(), SinkError> {
        let mut bytes = Vec::new();
        for item in items {
            let event = match item {
                Item::Step { step, at, values, load } => {
                    event(*at, *step).message(5, scalars(&[values.as_slice(), &system(load)].concat()))
                }
                Item::Evaluation { step, at, values, .. } => event(*at, *step).message(5, scalars(values)),
                Item::Sample { step, at, prompt, text: answer } => {
                    let shown = format!("user:\n\n{}\nassistant:\n\n{}", literal(prompt), literal(answer));
                    event(*at, *step).message(5, text("sample", &shown))
                }
            };
            bytes.extend(frame(&event.into_bytes()));
        }
        self.write(&bytes)
    }

    fn close(&mut self, _outcome: Outcome) -> Result<(), SinkError> {
        let path = self.folder.join(FILE);
        self.file.as_ref().map_or(Ok(()), |f| f.sync_all()).map_err(SinkError::file("sync", &path))
    }

    fn place(&self) -> String {
        format!("tensorboard --logdir {}", self.folder.display())
    }
}
