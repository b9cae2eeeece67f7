//! What a pipeline is made from.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::prepared::PreparedStore;
use crate::source::Source;
use crate::stages::{MixerFactory, RowFormatter, SampleTemplate, SegmentEncoder};

/// Which tokens are learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainOn {
    /// What the model writes at inference: `segment.generated ? segment.weight : 0`, times the conversation's weight.
    #[default]
    Assistant,
    /// Every token by its segment's weight, times the conversation's weight.
    All,
}

/// What becomes of a sample with more than `max_seq_length` tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// The row is bad.
    Error,
    /// The sample is left out, and counted.
    Drop,
    /// `max_seq_length` tokens are kept, and it is counted. A special token is one id, so none is ever cut.
    #[default]
    Truncate,
}

/// Which end of a sample that is too long is cut off; named as in Hugging Face's tokenizers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TruncationSide {
    /// The end: the first tokens are kept.
    #[default]
    Right,
    /// The beginning: the last tokens are kept.
    Left,
}

impl TruncationSide {
    /// The tokens of a sample of `length` that are within `limit`.
    pub fn kept(self, length: usize, limit: usize) -> std::ops::Range<usize> {
        match self {
            Self::Right => 0..limit.min(length),
            Self::Left => length.saturating_sub(limit)..length,
        }
    }
}

/// What becomes of a sample without a single target token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoTarget {
    /// It is left out, and counted.
    #[default]
    Skip,
    /// The row is bad.
    Error,
}

/// Feedback of losses to the mixing policy.
///
/// With lag L and S samples a step, the feedback of step t is handed to the policy right before the first decision for step t + L, so
/// the samples of steps up to t + L - 1 can be had without it, and asking for more is an error. Under feedback the decisions of a step
/// are made in rounds: as many as samples are missing, then, when the outcomes of all of them are known, one more for each that
/// gave none. That makes the moment of feedback a pure function of the data, and limits reading ahead to the step being filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedbackPlan {
    /// Steps between an outcome and the decisions that know of it; at least 1.
    pub lag: u32,
    /// Batch x accumulation; at least 1.
    pub samples_per_step: u32,
}

/// A source with the formatter of its rows.
#[derive(Clone)]
pub struct SourceInput {
    /// Where rows come from.
    pub source: Arc<Source>,
    /// What makes conversations of them.
    pub formatter: Arc<dyn RowFormatter>,
}

/// Everything that decides the stream of samples, and how many threads compute it (which does not).
#[derive(Clone)]
pub struct PipelineSpec {
    /// In the recipe's order; at least one.
    pub sources: Vec<SourceInput>,
    /// The mixing policy.
    pub mixer: Arc<dyn MixerFactory>,
    /// The chat template.
    pub template: Arc<dyn SampleTemplate>,
    /// The tokenizer.
    pub tokenizer: Arc<dyn SegmentEncoder>,
    /// Seed of the order of rows and of the policy.
    pub seed: u64,
    /// Which tokens are learned.
    pub train_on: TrainOn,
    /// The longest sample, in tokens; at least 2.
    pub max_seq_length: usize,
    /// What becomes of longer ones.
    pub too_long: TooLong,
    /// Which end of them is cut off where they are truncated.
    pub truncation_side: TruncationSide,
    /// What becomes of samples without targets.
    pub no_target: NoTarget,
    /// How many bad rows the run survives; 0: the first one stops it.
    pub max_bad_rows: u64,
    /// How many bad rows to keep as examples in the counters.
    pub bad_examples: usize,
    /// The end of the stream in draws (epochs x `Pipeline::epoch_length`); none: as long as the policy decides.
    pub max_draws: Option<u64>,
    /// Whether data of which no row gives a sample is no error: for looking at it.
    pub may_be_barren: bool,
    /// Feedback to the policy, if the run gives any.
    pub feedback: Option<FeedbackPlan>,
    /// Worker threads; 0: everything happens in the caller. None: the machine's cores less one, at least one.
    pub workers: Option<usize>,
    /// How many draws may be under way or waiting beyond those handed out; at least 1. Memory is proportional to it.
    pub read_ahead: usize,
    /// How many rows go to a formatter at once; at least 1.
    pub format_batch: usize,
    /// Where prepared rows are looked for, which are used in place of computing them; changes nothing.
    pub prepared: Option<PreparedStore>,
}

impl PipelineSpec {
    /// A spec with the defaults: assistant turns only, 2048 tokens, truncation, no bad row allowed, threads by the machine.
    pub fn new(
        sources: Vec<SourceInput>,
        mixer: Arc<dyn MixerFactory>,
        template: Arc<dyn SampleTemplate>,
        tokenizer: Arc<dyn SegmentEncoder>,
        seed: u64,
    ) -> Self {
        Self {
            sources,
            mixer,
            template,
            tokenizer,
            seed,
            train_on: TrainOn::default(),
            max_seq_length: 2048,
            too_long: TooLong::default(),
            truncation_side: TruncationSide::default(),
            no_target: NoTarget::default(),
            max_bad_rows: 0,
            bad_examples: 20,
            max_draws: None,
            may_be_barren: false,
            feedback: None,
            workers: None,
            read_ahead: 512,
            format_batch: 32,
            prepared: None,
        }
    }

    /// The number of worker threads that the spec means on this machine.
    pub fn worker_count(&self) -> usize {
        self.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get().saturating_sub(1).max(1))).min(256)
    }

    pub(crate) fn check(&self) -> Result<(), DataError> {
        let refuse = |message: &str| Err(DataError::Settings(message.to_owned()));
        if self.sources.is_empty() {
            return refuse("there is no source; name at least one in the recipe");
        }
        if u32::try_from(self.sources.len()).is_err() {
            return refuse("more sources than can be numbered");
        }
        for (i, a) in self.sources.iter().enumerate() {
            if self.sources.iter().take(i).any(|b| b.source.name() == a.source.name()) {
                return Err(DataError::Settings(format!("two sources are called `{}`; names must be unique", a.source.name())));
            }
        }
        if self.max_seq_length < 2 {
            return refuse("max_seq_length must be at least 2: one token to predict and one to predict it from");
        }
        if u32::try_from(self.max_seq_length).is_err() {
            return refuse("max_seq_length must be below 2^32");
        }
        if self.read_ahead == 0 || self.format_batch == 0 {
            return refuse("read_ahead and format_batch must be at least 1");
        }
        if self.feedback.is_some_and(|f| f.lag == 0 || f.samples_per_step == 0) {
            return refuse("the feedback lag and the samples a step must be at least 1");
        }
        Ok(())
    }
}
