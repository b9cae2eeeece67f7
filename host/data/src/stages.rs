//! The seams of the data path: what the pipeline asks of a formatter, a template, a tokenizer and a mixing policy.
//!
//! `plugins` implements them for the sandboxed components; tests implement them natively.

use serde_json::Value;

use crate::conversation::{Conversation, Piece};
use crate::error::{BadKind, StageError};

/// What becomes of a row (`dataset-formatter.outcome`, plus a trap on one row).
#[derive(Clone, Debug)]
pub enum FormatOutcome {
    /// A sample.
    Sample(Conversation),
    /// Fine but not wanted, with the reason that is counted.
    Skip(String),
    /// Broken.
    Bad {
        /// JSON Pointer to the offending value.
        pointer: String,
        /// What is wrong with it.
        message: String,
    },
    /// The plugin trapped on this row.
    Trap(String),
}

/// Rows to conversations. Deterministic and without state between calls, so any number of threads may share one and batch as they like.
pub trait RowFormatter: Send + Sync {
    /// One outcome per row, in order.
    fn format(&self, rows: &[String]) -> Result<Vec<FormatOutcome>, StageError>;

    /// All that decides its answers besides the rows, if they may be kept; none: they may not.
    fn identity(&self) -> Option<Value> {
        None
    }
}

/// A segment of a rendered text (`chat-template.segment`).
#[derive(Clone, Debug, PartialEq)]
pub struct RenderedSegment {
    /// Text or special token.
    pub piece: Piece,
    /// Whether the model writes it at inference.
    pub generated: bool,
    /// Loss weight from the data; 1 where it says nothing.
    pub weight: f32,
    /// Index of the message that it comes from; none for what the template adds around all messages.
    pub message: Option<u32>,
}

/// Why one conversation cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderFault {
    /// `Template` for a refusal, `Trap` for a failure of the plugin.
    pub kind: BadKind,
    /// The words.
    pub message: String,
}

/// Conversations to weighted text. Deterministic and without state between calls.
pub trait SampleTemplate: Send + Sync {
    /// For each conversation its training samples (several where turns are split), or why it cannot be rendered.
    #[expect(clippy::type_complexity, reason = "the nesting is the contract: batch, result, samples, segments")]
    fn render(&self, conversations: &[Conversation]) -> Result<Vec<Result<Vec<Vec<RenderedSegment>>, RenderFault>>, StageError>;

    /// All that decides its answers besides the conversations, if they may be kept; none: they may not.
    fn identity(&self) -> Option<Value> {
        None
    }
}

/// Ids with the loss weight of each as a target and the segment that each begins in; equally long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tokens {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Loss weight of each id.
    pub weights: Vec<f32>,
    /// Index of the segment that holds each id's first byte.
    pub segments: Vec<u32>,
}

/// Weighted text to tokens.
pub trait SegmentEncoder: Send + Sync {
    /// Encodes the joined pieces; a token takes the weight of its first byte.
    fn encode(&self, segments: &[(Piece, f32)]) -> Result<Tokens, StageError>;

    /// All that decides its answers besides the segments, if they may be kept; none: they may not.
    fn identity(&self) -> Option<Value> {
        None
    }
}

/// A source as the mixing policy sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MixerSource {
    /// The name in the recipe.
    pub name: String,
    /// Rows, where known.
    pub length: Option<u64>,
    /// Whether `Draw::ordinal` may be used.
    pub random_access: bool,
}

/// What a mixing policy starts from; its settings belong to the factory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MixerSetup {
    /// All sources in the recipe's order.
    pub sources: Vec<MixerSource>,
    /// The run's seed.
    pub seed: u64,
    /// See `FeedbackPlan::lag`; 0 when the run gives no feedback.
    pub feedback_lag: u32,
}

/// One decision of the mixing policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Index of the source.
    pub source: u32,
    /// None: the next row in the host's order; otherwise the row's position in file order, from 0.
    pub ordinal: Option<u64>,
}

/// What training saw of one source in one step.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SourceLoss {
    /// Index of the source.
    pub source: u32,
    /// Summed weighted loss of its target tokens.
    pub loss: f64,
    /// Summed weight of its target tokens.
    pub weight: f64,
    /// Its samples in the step.
    pub samples: u32,
}

/// A mixing in progress.
pub trait SourceMixer: Send {
    /// Draws in one pass over the mix, if there is such a thing.
    fn epoch_length(&mut self) -> Result<Option<u64>, StageError>;
    /// The next `n` decisions; fewer only at the end of the data.
    fn next(&mut self, n: u32) -> Result<Vec<Draw>, StageError>;
    /// Tells what became of a step (from 1).
    fn feedback(&mut self, step: u64, sources: &[SourceLoss]) -> Result<(), StageError>;
    /// The state after the decisions given so far.
    fn snapshot(&mut self) -> Result<Vec<u8>, StageError>;
}

/// Opens mixers: once for the run, and again to replay decisions for a checkpoint.
pub trait MixerFactory: Send + Sync {
    /// Begins, or continues from a snapshot of the same policy under the same setup.
    fn open(&self, setup: &MixerSetup, snapshot: Option<&[u8]>) -> Result<Box<dyn SourceMixer>, StageError>;
}
