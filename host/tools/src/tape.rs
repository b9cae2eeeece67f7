//! Tool traffic on file: what was called and what came back, so that an evaluation repeats without plugins and without a network.
//!
//! A tape is JSONL: a header, then one line per call in the order of metrics, cases, repeats and calls. It is written whole or not at all. Secrets are
//! not on it: what a plugin sends and receives passes the host, which puts secrets in only on the way out, and results are as the
//! model sees them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use trainer_model::durable;
use trainer_plugin_host::http::Exchange;

use crate::error::{NotOnTape, ToolsError};
use crate::json::shown;
use crate::session::EpisodeKey;
use crate::transcript::{By, CallRecord, Outcome, TimedOut, Transcript};

const FORMAT: &str = "trainer-tools";
const VERSION: u32 = 1;
/// Bytes of a line: a call's arguments and result have limits far below.
const MOST_LINE: u64 = 64 << 20;

/// A tool on a tape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapeTool {
    /// What the model calls it.
    pub name: String,
    /// What the model is told.
    pub description: String,
    /// JSON Schema of the arguments.
    pub parameters: Value,
}

/// A plugin whose tools were on offer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapePlugin {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// sha256 of the component.
    pub sha256: String,
    /// Its kinds with the version of each contract.
    pub kinds: Vec<String>,
    /// What it was granted.
    pub grants: Vec<String>,
    /// Its tools under the settings that it had.
    pub tools: Vec<TapeTool>,
}

/// The first line of a tape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapeHeader {
    format: String,
    version: u32,
    /// The program's version.
    pub trainer: String,
    /// Digest of the model, for the reader.
    pub model_sha256: String,
    /// Digest of the rows.
    pub data_sha256: String,
    /// The tool plugins, in the order given.
    pub plugins: Vec<TapePlugin>,
    /// Calls on the tape.
    pub calls: u64,
    /// The episodes that a limit on time ended, and where.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub timed_out: Vec<TapeTimeout>,
}

/// An episode whose time was up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TapeTimeout {
    /// The metric whose question it was.
    pub metric: String,
    /// The case.
    pub case: String,
    /// Which of several answers, from 0.
    pub repeat: u32,
    /// Where.
    #[serde(flatten)]
    pub at: TimedOut,
}

impl TapeTimeout {
    /// That of an episode, if its time was up.
    pub fn of_transcript(key: &EpisodeKey, transcript: &Transcript) -> Option<Self> {
        let at = transcript.timed_out?;
        Some(Self { metric: key.metric.clone(), case: key.case.clone(), repeat: key.repeat, at })
    }
}

impl TapeHeader {
    /// A header; the number of calls is filled in by [`write_tape`].
    pub fn new(trainer: &str, model_sha256: &str, data_sha256: &str, plugins: Vec<TapePlugin>) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            trainer: trainer.to_owned(),
            model_sha256: model_sha256.to_owned(),
            data_sha256: data_sha256.to_owned(),
            plugins,
            calls: 0,
            timed_out: Vec::new(),
        }
    }
}

/// A call with its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapeEntry {
    /// The metric whose question it was.
    pub metric: String,
    /// The case.
    pub case: String,
    /// Which of several answers, from 0.
    pub repeat: u32,
    /// Which call of the episode, from 0.
    pub ordinal: u32,
    /// The tool.
    pub name: String,
    /// The arguments in canonical form.
    pub arguments: Value,
    /// Who answered.
    pub by: By,
    /// sha256 of the plugin that answered.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub plugin_sha256: Option<String>,
    /// What came back.
    pub outcome: Outcome,
    /// The digest of the plugin's state afterwards.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub state_digest: Option<String>,
    /// The requests that the plugin made for it, without secrets. A replay does not make them again: it takes the outcome.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub http: Vec<Exchange>,
}

impl TapeEntry {
    /// The calls of an episode as its tape has them. What was no call is not traffic: a replay comes to it by itself.
    pub fn of_transcript(key: &EpisodeKey, transcript: &Transcript, plugins: &[TapePlugin]) -> Vec<Self> {
        let is_call = |c: &&CallRecord| !c.arguments.is_null();
        let digest = |by: &By| match by {
            By::Plugin(name) => plugins.iter().find(|p| p.name == *name).map(|p| p.sha256.clone()),
            By::Host | By::Fixture => None,
        };
        transcript
            .calls
            .iter()
            .filter(is_call)
            .map(|c| Self {
                metric: key.metric.clone(),
                case: key.case.clone(),
                repeat: key.repeat,
                ordinal: c.ordinal,
                name: c.name.clone(),
                arguments: c.arguments.clone(),
                by: c.by.clone(),
                plugin_sha256: digest(&c.by),
                outcome: c.outcome.clone(),
                state_digest: c.state_digest.clone(),
                http: c.http.clone(),
            })
            .collect()
    }
}

/// Writes a tape, whole or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn write_tape(path: &Path, mut header: TapeHeader, entries: &[TapeEntry]) -> Result<(), ToolsError> {
    header.calls = entries.len() as u64;
    let mut bytes = Vec::new();
    let failed = |e: serde_json::Error| ToolsError::Io { action: "write", path: path.to_owned(), source: e.into() };
    let newline = |source| ToolsError::Io { action: "write", path: path.to_owned(), source };
    serde_json::to_writer(&mut bytes, &header).map_err(failed)?;
    bytes.write_all(b"\n").map_err(newline)?;
    for entry in entries {
        serde_json::to_writer(&mut bytes, entry).map_err(failed)?;
        bytes.write_all(b"\n").map_err(newline)?;
    }
    Ok(durable::write_atomic(path, &bytes)?)
}

/// A tape to answer from.
#[derive(Debug)]
pub struct Tape {
    path: PathBuf,
    sha256: String,
    header: TapeHeader,
    entries: BTreeMap<(EpisodeKey, u32), TapeEntry>,
}

impl Tape {
    /// Reads a tape.
    ///
    /// # Errors
    /// The file is no tape, of another version, incomplete or broken: the error names the line.
    pub fn read(path: &Path) -> Result<Self, ToolsError> {
        let io = |source| ToolsError::Io { action: "read", path: path.to_owned(), source };
        let mut reader = BufReader::new(std::fs::File::open(path).map_err(io)?);
        let mut line = Vec::new();
        let mut number = 0u64;
        let mut header: Option<TapeHeader> = None;
        let mut entries = BTreeMap::new();
        let mut digest = Sha256::new();
        loop {
            line.clear();
            let read = reader.by_ref().take(MOST_LINE + 1).read_until(b'\n', &mut line).map_err(io)?;
            if read == 0 {
                break;
            }
            number += 1;
            let wrong = |message: String| ToolsError::Tape { path: path.to_owned(), line: number, message };
            if read as u64 > MOST_LINE {
                return Err(wrong(format!("the line is longer than {MOST_LINE} bytes")));
            }
            digest.update(&line);
            match &header {
                None => header = Some(read_header(&line).map_err(wrong)?),
                Some(_) => {
                    let entry: TapeEntry = serde_json::from_slice(&line).map_err(|e| wrong(format!("this is no call of a tape: {e}")))?;
                    let key = EpisodeKey { metric: entry.metric.clone(), case: entry.case.clone(), repeat: entry.repeat };
                    if let Some(before) = entries.insert((key, entry.ordinal), entry) {
                        let (case, repeat, ordinal) = (shown(&before.case, 200), before.repeat, before.ordinal);
                        return Err(wrong(format!("case {case}, repeat {repeat}, call {ordinal} is on the tape already")));
                    }
                }
            }
        }
        let wrong = |message: String| ToolsError::Tape { path: path.to_owned(), line: number.max(1), message };
        let header = header.ok_or_else(|| wrong("the file is empty; a tape begins with a header".into()))?;
        if header.calls != entries.len() as u64 {
            return Err(wrong(format!("the tape ends here with {} of {} calls: it is not complete", entries.len(), header.calls)));
        }
        let sha256 = digest.finalize().iter().map(|b| format!("{b:02x}")).collect();
        Ok(Self { path: path.to_owned(), sha256, header, entries })
    }

    /// What it says of itself.
    pub fn header(&self) -> &TapeHeader {
        &self.header
    }

    /// sha256 of the whole tape.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses other rows than those of the recording.
    ///
    /// # Errors
    /// The digests differ.
    pub fn check_data(&self, data_sha256: &str) -> Result<(), ToolsError> {
        if self.header.data_sha256 == data_sha256 {
            return Ok(());
        }
        let message = format!(
            "the tape was recorded on other data (sha256 {} there, {data_sha256} here): replay it on its own rows, or record again",
            self.header.data_sha256
        );
        Err(ToolsError::OtherTape { path: self.path.clone(), message })
    }

    /// Refuses another build of a plugin than that of the recording. One that the tape does not know offers no tool in a replay.
    ///
    /// # Errors
    /// The digests differ, or the tape does not have the plugin.
    pub fn check_plugin(&self, name: &str, sha256: &str) -> Result<(), ToolsError> {
        let message = match self.header.plugins.iter().find(|p| p.name == name) {
            Some(p) if p.sha256 == sha256 => return Ok(()),
            Some(p) => format!(
                "the tape was recorded with another build of the plugin `{name}` (sha256 {} there, {sha256} here): leave it out of the replay, or record again",
                p.sha256
            ),
            None => format!("the tape was recorded without the plugin `{name}`: leave it out of the replay, or record again"),
        };
        Err(ToolsError::OtherTape { path: self.path.clone(), message })
    }

    /// Where an episode's time was up, if it was.
    pub(crate) fn timed_out(&self, key: &EpisodeKey) -> Option<TimedOut> {
        let is_it = |t: &&TapeTimeout| t.metric == key.metric && t.case == key.case && t.repeat == key.repeat;
        self.header.timed_out.iter().find(is_it).map(|t| t.at)
    }

    /// The answer to a call.
    pub(crate) fn answer(&self, key: &EpisodeKey, ordinal: u32, name: &str, arguments: &Value) -> Result<&TapeEntry, ToolsError> {
        let found = self.entries.get(&(key.clone(), ordinal));
        match found {
            Some(entry) if entry.name == name && entry.arguments == *arguments => Ok(entry),
            _ => Err(ToolsError::NotOnTape(Box::new(NotOnTape {
                tape: self.path.clone(),
                metric: key.metric.clone(),
                case: shown(&key.case, 200),
                repeat: key.repeat,
                ordinal,
                tool: shown(name, 200),
                arguments: shown_json(arguments),
                found: found.map(|e| format!("{}({})", shown(&e.name, 200), shown_json(&e.arguments))),
            }))),
        }
    }
}

fn shown_json(value: &Value) -> String {
    let text = value.to_string();
    let cut = text.floor_char_boundary(500);
    let dots = if cut < text.len() { "…" } else { "" };
    format!("{}{dots}", text.get(..cut).unwrap_or_default())
}

fn read_header(line: &[u8]) -> Result<TapeHeader, String> {
    #[derive(Deserialize)]
    struct Kind {
        format: Option<String>,
        version: Option<u32>,
    }
    let no_tape = |e: serde_json::Error| format!("this is no tape: its first line is no header: {e}");
    let kind: Kind = serde_json::from_slice(line).map_err(no_tape)?;
    match (kind.format.as_deref(), kind.version) {
        (Some(FORMAT), Some(VERSION)) => serde_json::from_slice(line).map_err(|e| format!("the tape's header is broken: {e}")),
        (Some(FORMAT), version) => {
            let version = version.map_or_else(|| "none".to_owned(), |v| v.to_string());
            Err(format!("the tape is of version {version}; this program reads version {VERSION}"))
        }
        _ => Err(format!("this is no tape: its first line does not say \"format\": \"{FORMAT}\"")),
    }
}
