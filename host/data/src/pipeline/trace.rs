//! Rows with everything that became of them: what a preview shows. The same stages and the same order as in training.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::decide::Decider;
use super::spec::PipelineSpec;
use super::worker::{At, Failure, Outcome, Stages, Task};
use crate::conversation::Conversation;
use crate::error::{BadRow, DataError};
use crate::source::Source;
use crate::stages::{RenderedSegment, Tokens};

/// Decisions asked for at a time.
const BLOCK: u64 = 64;
/// The most decisions in a row that may pass without one for the source that is looked for.
const MAX_PASSED: u64 = 1_000_000;

/// A sample on its way: its segments, all its tokens, and which of them are trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleTrace {
    /// As the template gave them.
    pub segments: Vec<RenderedSegment>,
    /// All tokens, those that were cut off included, with the weight that training gives them.
    pub tokens: Tokens,
    /// The tokens that are within `max_seq_length`.
    pub kept: Range<usize>,
    /// Why the sample is not trained on, if it is not.
    pub left_out: Option<String>,
}

impl SampleTrace {
    pub(super) fn new(segments: Vec<RenderedSegment>, tokens: Tokens) -> Self {
        Self { segments, kept: 0..tokens.ids.len(), tokens, left_out: None }
    }

    /// Whether tokens were cut off.
    pub fn truncated(&self) -> bool {
        self.kept.len() < self.tokens.ids.len()
    }

    /// Ids and weights of the tokens that are trained on.
    pub fn trained(&self) -> (&[u32], &[f32]) {
        let part = self.kept.clone();
        (self.tokens.ids.get(part.clone()).unwrap_or_default(), self.tokens.weights.get(part).unwrap_or_default())
    }
}

/// What became of a row as a whole.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate {
    /// It gave samples, some of which may be left out.
    Samples,
    /// It is not wanted, for this reason.
    Skipped(String),
    /// It is broken.
    Bad(BadRow),
}

/// A row on its way.
#[derive(Clone, Debug, PartialEq)]
pub struct RowTrace {
    /// Index of the source in the recipe.
    pub source: u32,
    /// The file.
    pub file: Arc<str>,
    /// Line or row in the file, from 1.
    pub row: u64,
    /// The number of its draw, from 0; none for a row that was asked for by its place.
    pub draw: Option<u64>,
    /// The row's JSON, where it is readable.
    pub json: Option<String>,
    /// What the formatter made of it.
    pub conversation: Option<Conversation>,
    /// What the template made of that, as far as it came.
    pub samples: Vec<SampleTrace>,
    /// What became of it.
    pub fate: Fate,
}

impl RowTrace {
    pub(super) fn new(source: u32, file: Arc<str>, row: u64, json: Option<String>) -> Self {
        Self { source, file, row, draw: None, json, conversation: None, samples: Vec::new(), fate: Fate::Samples }
    }
}

/// Gives rows in the order in which a run draws them, with everything that became of each. Bad rows are shown, not refused.
///
/// Under feedback to the policy the order is that of a run up to its first feedback.
pub struct Tracer {
    decider: Decider,
    stages: Stages,
    sources: Vec<Arc<Source>>,
    step: u64,
    draws: u64,
    tasks: VecDeque<Task>,
}

impl Tracer {
    /// Begins at the first draw. Errors: as `Pipeline::new`.
    pub fn new(spec: &PipelineSpec) -> Result<Self, DataError> {
        spec.check()?;
        let decider = Decider::new(spec.mixer.clone(), &spec.sources, &[], spec.seed, spec.feedback, spec.max_draws, None)?;
        Ok(Self {
            decider,
            stages: Stages::traced(spec),
            sources: spec.sources.iter().map(|s| Arc::clone(&s.source)).collect(),
            step: u64::from(spec.feedback.is_some()),
            draws: 0,
            tasks: VecDeque::new(),
        })
    }

    /// The next row, or the next of source `only`; none at the end of the data.
    ///
    /// Errors: an unreadable file, a failing plugin, a policy that never draws from `only`.
    pub fn next(&mut self, only: Option<u32>) -> Result<Option<RowTrace>, DataError> {
        let began = self.draws;
        loop {
            let Some(task) = self.tasks.pop_front() else {
                self.decider.prune(self.draws);
                self.tasks.extend(self.decider.decide(BLOCK, self.step)?);
                if self.tasks.is_empty() {
                    return Ok(None);
                }
                continue;
            };
            let draw = self.draws;
            self.draws += 1;
            if only.is_none_or(|only| only == task.source) {
                let mut row = self.trace(task)?;
                row.draw = Some(draw);
                return Ok(Some(row));
            }
            if self.draws - began > MAX_PASSED {
                let name = only.and_then(|i| self.sources.get(usize::try_from(i).ok()?)).map_or("", |s| s.name());
                return Err(DataError::Mixer(format!("none of {MAX_PASSED} draws was from source `{name}`")));
            }
        }
    }

    /// A row by its place in the file order of a source that can be read at random, whether or not it is ever drawn.
    ///
    /// Errors: no such row, an unreadable file, a failing plugin.
    pub fn row(&mut self, source: u32, ordinal: u64) -> Result<RowTrace, DataError> {
        self.trace(Task { source, at: At::Ordinal(ordinal) })
    }

    fn trace(&self, task: Task) -> Result<RowTrace, DataError> {
        let outcome = self.stages.process(vec![task]).pop();
        let Some(Outcome { trace: Some(mut trace), result, .. }) = outcome else {
            return Err(DataError::Worker("a row left no trace".to_owned()));
        };
        match result {
            Ok(parts) => {
                for (sample, part) in trace.samples.iter_mut().zip(parts) {
                    sample.left_out = part.err();
                }
            }
            Err(Failure::Skip(reason)) => trace.fate = Fate::Skipped(reason),
            Err(Failure::Bad(row)) => trace.fate = Fate::Bad(row),
            Err(Failure::Fatal(error)) => return Err(error),
        }
        Ok(*trace)
    }
}
