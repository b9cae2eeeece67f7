//! Where a stream of samples stands: everything a checkpoint needs to continue it, and what has been counted so far.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{BadKind, BadRow};
use crate::stages::SourceLoss;

/// The number of different skip reasons that are counted by name; the rest is counted together.
const MAX_REASONS: usize = 256;
/// The longest reason kept, in bytes.
const MAX_REASON_BYTES: usize = 200;

/// What has been counted, as of the samples handed out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Rows drawn.
    pub rows: u64,
    /// Rows that a formatter made conversations of.
    pub formatted: u64,
    /// Rows and samples left out, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Bad rows, by kind.
    pub bad: BTreeMap<BadKind, u64>,
    /// The first bad rows.
    pub bad_examples: Vec<BadRow>,
    /// Samples cut to `max_seq_length`.
    pub truncated: u64,
    /// Samples handed out.
    pub samples: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Those of their tokens that are targets of weight above 0.
    pub target_tokens: u64,
}

impl Counters {
    /// Bad rows of all kinds.
    pub fn bad_rows(&self) -> u64 {
        self.bad.values().sum()
    }

    /// Skips of all reasons.
    pub fn skipped_total(&self) -> u64 {
        self.skipped.values().sum()
    }

    pub(crate) fn skip(&mut self, reason: &str) {
        let mut end = reason.len().min(MAX_REASON_BYTES);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let reason = reason.get(..end).unwrap_or_default();
        match self.skipped.get_mut(reason) {
            Some(count) => *count += 1,
            None => {
                let name = if self.skipped.len() < MAX_REASONS { reason } else { "(other reasons)" };
                *self.skipped.entry(name.to_owned()).or_default() += 1;
            }
        }
    }

    pub(crate) fn bad(&mut self, row: BadRow, examples: usize) {
        *self.bad.entry(row.kind).or_default() += 1;
        if self.bad_examples.len() < examples {
            self.bad_examples.push(row);
        }
    }
}

/// How far a source has been drawn from in the host's order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcePosition {
    /// Passes over the source that are complete.
    pub pass: u64,
    /// Rows drawn in the current pass.
    pub next: u64,
}

/// Feedback that has been given but whose step the policy has not reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PendingFeedback {
    /// The step, from 1.
    pub step: u64,
    /// What training saw, by source.
    pub sources: Vec<SourceLoss>,
}

/// The state of a pipeline after the samples handed out so far: a pure function of (seed, policy, data, how many samples), equal whatever
/// the number of threads or the depth of reading ahead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PipelineState {
    /// The format of this record.
    pub version: u32,
    /// The run's seed.
    pub seed: u64,
    /// Names, row counts and file digests of the sources, in order, as one text: the data must be the same to continue.
    pub data: String,
    /// Draws whose samples have all been handed out.
    pub draws: u64,
    /// Samples of draw `draws` that have been handed out already (one conversation may give several).
    pub within: u32,
    /// The policy's snapshot as of `draws` decisions.
    #[serde(with = "hex_bytes")]
    pub mixer: Vec<u8>,
    /// Positions of the sources as of `draws` decisions.
    pub sources: Vec<SourcePosition>,
    /// Under feedback: the step that the last of these decisions belongs to, from 1; else 0.
    pub step: u64,
    /// Under feedback: decisions of the current round that are still to come.
    pub round_left: u64,
    /// Draws since the last one that gave a sample.
    pub barren: u64,
    /// Feedback given but not yet due.
    pub feedback: Vec<PendingFeedback>,
    /// What has been counted.
    pub counters: Counters,
}

/// Bytes as a hexadecimal string, so that the state is readable JSON.
mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::fmt::Write;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(bytes.len().saturating_mul(2));
        for b in bytes {
            let _ = write!(text, "{b:02x}");
        }
        s.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(d)?;
        let digit = |b: u8| char::from(b).to_digit(16).ok_or_else(|| D::Error::custom("the policy's snapshot is not hexadecimal"));
        let pairs = text.as_bytes().chunks_exact(2);
        if !pairs.remainder().is_empty() {
            return Err(D::Error::custom("the policy's snapshot has half a byte"));
        }
        pairs
            .map(|pair| match *pair {
                [hi, lo] => Ok((digit(hi)? * 16 + digit(lo)?) as u8),
                _ => Err(D::Error::custom("the policy's snapshot has half a byte")),
            })
            .collect()
    }
}
