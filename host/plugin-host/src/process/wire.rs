//! What the two sides say to each other: frames of a length and JSON.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bindings::executor::exports::trainer::tool_executor::executor::{Call, Outcome, Tool};
use crate::bindings::http::trainer::http::client::{Error, Request, Response};
use crate::call::place;
use crate::error::PluginError;
use crate::limits::{Limits, Span};
use crate::manifest::Manifest;

/// The largest frame: compiled code is what is large.
const MAX_FRAME: u32 = 1 << 30;

/// What the host says first. The compiled code follows as a frame of its own.
#[derive(Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) manifest: Manifest,
    pub(super) limits: Limits,
    /// The name of the memory layout of the compiled code.
    pub(super) layout: String,
    pub(super) clock: bool,
    pub(super) random: bool,
}

/// What the host asks.
#[derive(Serialize, Deserialize)]
pub(super) enum Ask {
    Tools {
        settings: String,
    },
    Open {
        settings: String,
        seed: u64,
        now_ms: u64,
    },
    Call(Vec<Call>),
    StateDigest,
    /// The answer to [`Say::Fetch`].
    Fetched(Result<Response, Error>),
    /// The answer to [`Say::Placeholder`].
    Placeholder(Result<String, String>),
}

/// What the process says.
#[derive(Serialize, Deserialize)]
pub(super) enum Say {
    /// It has given up its rights and waits.
    Ready,
    Tools(Result<Result<Vec<Tool>, String>, Failure>),
    Opened(Result<Result<(), String>, Failure>),
    Outcomes(Result<Vec<Outcome>, Failure>),
    Digest(Result<Option<String>, Failure>),
    /// The guest wants a request to be carried.
    Fetch(Request),
    /// The guest wants what stands for a secret.
    Placeholder(String),
    /// A line of the guest's log: trace, debug, info, warn or error by number.
    Log(u8, String),
    /// It could not begin.
    Failed(String),
}

/// A [`PluginError`] of a guest on its way.
#[derive(Serialize, Deserialize)]
pub(super) enum Failure {
    Trap { export: String, trap: String, panic: Option<String> },
    Limit { export: String, limit: String, current: String, requested: Option<String>, hint: String },
    Deadline { export: String, limit_ms: u64, elapsed_ms: u64, hint: String },
    BadValue { export: String, field: String, message: String },
    Instantiate { reason: String },
    Other { message: String },
}

/// The limits that an error of a guest can name.
const LIMITS: [&str; 10] = [
    "memory",
    "table_elements",
    "tables",
    "instances",
    "memories",
    "fuel_per_row",
    "wasm_stack",
    "returned_size",
    "string_size",
    "list_length",
];

impl Failure {
    pub(super) fn of(error: PluginError) -> Self {
        let millis = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        match error {
            PluginError::Trap { at, trap, panic } => Self::Trap { export: at.export.clone(), trap, panic },
            PluginError::Limit { at, limit, current, requested, hint } => {
                Self::Limit { export: at.export.clone(), limit: limit.to_owned(), current, requested, hint }
            }
            PluginError::Deadline { at, limit, elapsed, hint } => {
                Self::Deadline { export: at.export.clone(), limit_ms: millis(limit), elapsed_ms: millis(elapsed), hint }
            }
            PluginError::BadValue { at, field, message } => Self::BadValue { export: at.export.clone(), field, message },
            PluginError::Instantiate { reason, .. } => Self::Instantiate { reason },
            other => Self::Other { message: other.to_string() },
        }
    }

    /// The error as the host's own plugin has it. Words come from the process: `clean` cuts them and strikes out what stands for secrets.
    pub(super) fn into_error(self, manifest: &Manifest, clean: &dyn Fn(String) -> String) -> PluginError {
        let at = |export: String| place(manifest, &clean(export));
        let instantiate = |reason: String| PluginError::Instantiate {
            plugin: manifest.name.clone(),
            version: manifest.version.clone(),
            reason: clean(reason),
        };
        match self {
            Self::Trap { export, trap, panic } => PluginError::Trap { at: at(export), trap: clean(trap), panic: panic.map(clean) },
            Self::Limit { export, limit, current, requested, hint } => PluginError::Limit {
                at: at(export),
                limit: LIMITS.into_iter().find(|known| *known == limit).unwrap_or("limits"),
                current: clean(current),
                requested: requested.map(clean),
                hint: clean(hint),
            },
            Self::Deadline { export, limit_ms, elapsed_ms, hint } => PluginError::Deadline {
                at: at(export),
                limit: std::time::Duration::from_millis(limit_ms),
                elapsed: std::time::Duration::from_millis(elapsed_ms),
                hint: clean(hint),
            },
            Self::BadValue { export, field, message } => {
                PluginError::BadValue { at: at(export), field: clean(field), message: clean(message) }
            }
            Self::Instantiate { reason } => instantiate(reason),
            Self::Other { message } => instantiate(message),
        }
    }
}

/// The error of a process that did not answer in time or is gone.
pub(super) fn lost(manifest: &Manifest, reason: &str) -> PluginError {
    PluginError::Instantiate { plugin: manifest.name.clone(), version: manifest.version.clone(), reason: format!("its process {reason}") }
}

/// A deadline that the process itself did not keep.
pub(super) fn overdue(manifest: &Manifest, export: &str, limits: &Limits, elapsed: std::time::Duration) -> PluginError {
    let limit = limits.deadline.0;
    let hint = crate::call::hint(&manifest.name, "deadline", &format!("\"{}\"", Span(limit.saturating_mul(2))));
    PluginError::Deadline { at: place(manifest, export), limit, elapsed, hint }
}

/// Writes bytes as one frame.
pub(super) fn write_bytes(to: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).ok().filter(|n| *n <= MAX_FRAME).ok_or_else(|| io::Error::other("a message is too long"))?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(bytes)?;
    to.flush()
}

/// Reads one frame of at most `limit` bytes. None: the other side has ended.
pub(super) fn read_bytes(from: &mut dyn Read, limit: u32) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let length = u32::from_le_bytes(length);
    if length > limit.min(MAX_FRAME) {
        return Err(io::Error::other(format!("a message of {length} bytes; at most {limit} are read")));
    }
    let mut bytes = Vec::new();
    from.take(u64::from(length)).read_to_end(&mut bytes)?;
    if bytes.len() == length as usize { Ok(Some(bytes)) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Writes a message.
pub(super) fn write(to: &mut dyn Write, message: &impl Serialize) -> io::Result<()> {
    write_bytes(to, &serde_json::to_vec(message)?)
}

/// Reads a message.
pub(super) fn read<T: DeserializeOwned>(from: &mut dyn Read, limit: u32) -> io::Result<Option<T>> {
    Ok(read_bytes(from, limit)?.map(|bytes| serde_json::from_slice(&bytes)).transpose()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        let mut bytes = Vec::new();
        write(&mut bytes, &Say::Log(3, "x".to_owned())).unwrap();
        write_bytes(&mut bytes, b"raw").unwrap();
        let mut from = bytes.as_slice();
        assert!(matches!(read(&mut from, 100).unwrap(), Some(Say::Log(3, line)) if line == "x"));
        assert_eq!(read_bytes(&mut from, 100).unwrap().unwrap(), b"raw");
        assert!(read_bytes(&mut from, 100).unwrap().is_none());
        // Too long, cut short, and no message.
        assert!(read_bytes(&mut bytes.as_slice(), 3).unwrap_err().to_string().contains("at most 3 are read"));
        assert!(read_bytes(&mut &bytes[..6], 100).is_err());
        let mut wrong = Vec::new();
        write_bytes(&mut wrong, b"{\"Nothing\": 1}").unwrap();
        assert!(read::<Say>(&mut wrong.as_slice(), 100).is_err());
    }
}
