//! The way of a row: sources with provenance, seeded order, mixing policy, formatter, template, tokens, packing.
//!
//! [`source::Source`] reads rows; [`pipeline::Pipeline`] turns them into [`Sample`]s in an order that depends only on the seed, the mixing
//! policy and the data; [`pack`] lays samples into [`MicroBatch`]es.
//!
//! ```text
//! impl Pipeline {
//!     fn new(spec: PipelineSpec) -> Result<Pipeline, DataError>;
//!     fn resume(spec: PipelineSpec, state: &PipelineState) -> Result<Pipeline, DataError>;
//!     fn next_samples(&mut self, n: usize) -> Result<Vec<Sample>, DataError>;   // fewer than n only at the end of the data
//!     fn feedback(&mut self, step: u64, sources: &[SourceLoss]) -> Result<(), DataError>;
//!     fn state(&mut self) -> Result<PipelineState, DataError>;                  // after the samples handed out so far
//!     fn counters(&self) -> &Counters;                                         // as of the samples handed out so far
//!     fn epoch_length(&mut self) -> Result<Option<u64>, DataError>;             // draws in a pass over the mix
//!     fn waited(&self) -> Duration;                                             // how long next_samples has blocked
//! }
//! impl Tracer { fn next(&mut self) -> ...; fn row(&mut self, source: u32, ordinal: u64) -> ...; } // rows with everything that became of them
//! pub fn pack(samples: &[Sample], max_tokens: usize) -> Result<Vec<MicroBatch>, DataError>;      // greedy, in order, no padding
//! pub fn batches(samples: &[Sample], batch: usize) -> Result<Vec<MicroBatch>, DataError>;        // `batch` samples each
//! fn prepare(spec: &PipelineSpec, source: usize, store: &PreparedStore, ...) -> ...;                // outcomes of all rows, kept on disk
//! impl Source { fn open(spec: SourceSpec) -> Result<Source, DataError>; fn len(&self) -> u64; fn files(&self) -> &[FileInfo]; fn rows(&self) -> Rows<'_>; }
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod conversation;
mod error;
mod order;
mod pack;
pub mod pipeline;
pub mod plugins;
mod prepared;
pub mod source;
pub mod stages;
mod survey;

pub use error::{BadKind, BadRow, DataError, MaxBadRows, StageError};
pub use order::Permutation;
pub use pack::{MicroBatch, Sample, batches, pack};
pub use pipeline::{
    Counters, Fate, FeedbackPlan, NoTarget, PendingFeedback, Pipeline, PipelineSpec, PipelineState, RowTrace, SampleTrace, SourceInput,
    SourcePosition, TooLong, Tracer, TrainOn, TruncationSide,
};
pub use plugins::{PluginMixer, TextEncoder};
pub use prepared::{EntryInfo, EntryState, Preparation, PrepareProgress, PreparedStore, StoreError, prepare};
pub use source::{Access, FileInfo, Filter, Format, Holdout, Order, Row, RowView, Source, SourceData, SourceSpec, read_rows};
pub use stages::{Draw, FormatOutcome, MixerFactory, MixerSetup, RowFormatter, SampleTemplate, SegmentEncoder, SourceLoss, SourceMixer};
pub use survey::{Drawn, count_draws, each_sample};
