//! The part of the way that any thread may go: rows to weighted tokens, a batch at a time. The outcome of a row depends on nothing but the row.

use std::sync::Arc;

use super::spec::{NoTarget, PipelineSpec, SourceInput, TooLong, TrainOn, TruncationSide};
use super::trace::{RowTrace, SampleTrace};
use crate::conversation::{Conversation, Piece};
use crate::error::{BadKind, BadRow, DataError, StageError};
use crate::prepared::PreparedSource;
use crate::source::Row;
use crate::stages::{FormatOutcome, RenderFault, RenderedSegment, RowFormatter, SampleTemplate, SegmentEncoder};

/// The most samples that one conversation may give.
const MAX_SPLIT: usize = 65_536;

/// A decided draw.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) source: u32,
    pub(crate) at: At,
}

/// Which row.
#[derive(Debug)]
pub(crate) enum At {
    /// By its place in file order.
    Ordinal(u64),
    /// Already read, from a streamed source.
    Row(Box<Row>),
}

/// Ids and weights of one sample.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    pub(crate) ids: Vec<u32>,
    pub(crate) weights: Vec<f32>,
    /// It was longer.
    pub(crate) truncated: bool,
}

/// What became of a draw.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) source: u32,
    pub(crate) file: Arc<str>,
    pub(crate) row: u64,
    pub(crate) formatted: bool,
    pub(crate) result: Result<Vec<Result<Prepared, String>>, Failure>,
    /// What there was on the way, where it is kept.
    pub(crate) trace: Option<Box<RowTrace>>,
}

impl Outcome {
    /// How many samples it gives.
    pub(crate) fn samples(&self) -> u64 {
        self.result.as_ref().map_or(0, |parts| parts.iter().filter(|p| p.is_ok()).count() as u64)
    }
}

/// Why a draw gives no samples.
#[derive(Debug)]
pub(crate) enum Failure {
    Skip(String),
    Bad(BadRow),
    Fatal(DataError),
}

/// What all threads share.
pub(crate) struct Stages {
    inputs: Vec<SourceInput>,
    template: Arc<dyn SampleTemplate>,
    tokenizer: Arc<dyn SegmentEncoder>,
    train_on: TrainOn,
    max_seq_length: usize,
    too_long: TooLong,
    truncation_side: TruncationSide,
    no_target: NoTarget,
    /// Whether what there is on the way of a row is kept for showing it.
    traced: bool,
    /// By source, what became of its rows when that was computed before.
    prepared: Vec<Option<PreparedSource>>,
}

/// A row on its way through a batch.
struct Item {
    source: u32,
    name: String,
    file: Arc<str>,
    row: u64,
    formatted: bool,
    state: State,
    trace: Option<Box<RowTrace>>,
}

enum State {
    Json(String),
    Conversation(Box<Conversation>),
    Done(Result<Vec<Result<Prepared, String>>, Failure>),
}

impl Item {
    fn bad(&mut self, kind: BadKind, field: String, message: String) {
        let (source, file, row) = (self.name.clone(), self.file.to_string(), self.row);
        self.state = State::Done(Err(Failure::Bad(BadRow { source, file, row, field, kind, message })));
    }

    fn fatal(&mut self, stage: &'static str, message: String) {
        let (source_name, file, row) = (self.name.clone(), self.file.to_string(), self.row);
        self.state = State::Done(Err(Failure::Fatal(DataError::Stage { stage, source_name, file, row, message })));
    }
}

impl Stages {
    pub(crate) fn new(spec: &PipelineSpec) -> Self {
        Self {
            inputs: spec.sources.clone(),
            template: Arc::clone(&spec.template),
            tokenizer: Arc::clone(&spec.tokenizer),
            train_on: spec.train_on,
            max_seq_length: spec.max_seq_length,
            too_long: spec.too_long,
            truncation_side: spec.truncation_side,
            no_target: spec.no_target,
            traced: false,
            prepared: Vec::new(),
        }
    }

    /// The same with what was prepared, by source.
    pub(crate) fn with_prepared(mut self, prepared: Vec<Option<PreparedSource>>) -> Self {
        self.prepared = prepared;
        self
    }

    /// The same, keeping what there is on the way.
    pub(crate) fn traced(spec: &PipelineSpec) -> Self {
        Self { traced: true, ..Self::new(spec) }
    }

    /// One outcome per task, in order.
    pub(crate) fn process(&self, tasks: Vec<Task>) -> Vec<Outcome> {
        let mut items: Vec<Item> = tasks.into_iter().map(|t| self.read(t)).collect();
        for (index, input) in self.inputs.iter().enumerate() {
            let mut batch: Vec<&mut Item> =
                items.iter_mut().filter(|i| usize::try_from(i.source) == Ok(index) && matches!(i.state, State::Json(_))).collect();
            if !batch.is_empty() {
                format(input.formatter.as_ref(), &mut batch);
            }
        }
        let mut batch: Vec<(&mut Item, Conversation)> = Vec::with_capacity(items.len());
        for item in &mut items {
            match std::mem::replace(&mut item.state, State::Done(Ok(Vec::new()))) {
                State::Conversation(conversation) => batch.push((item, *conversation)),
                other => item.state = other,
            }
        }
        if !batch.is_empty() {
            self.render(batch);
        }
        items
            .into_iter()
            .map(|Item { source, file, row, formatted, state, name, trace }| {
                let result = match state {
                    State::Done(result) => result,
                    // Every stage finishes every row it was given.
                    _ => Err(Failure::Fatal(DataError::Worker(format!("a row of source `{name}` was left unfinished")))),
                };
                Outcome { source, file, row, formatted, result, trace }
            })
            .collect()
    }

    fn read(&self, task: Task) -> Item {
        let index = usize::try_from(task.source).unwrap_or(usize::MAX);
        let input = self.inputs.get(index);
        let prepared = self.prepared.get(index).and_then(Option::as_ref);
        if let (At::Ordinal(ordinal), Some(prepared)) = (&task.at, prepared)
            && let Some(Outcome { source, file, row, formatted, result, trace }) = prepared.get(task.source, *ordinal)
        {
            return Item { source, name: String::new(), file, row, formatted, state: State::Done(result), trace };
        }
        let name = input.map_or_else(String::new, |i| i.source.name().to_owned());
        let row = match (task.at, input) {
            (At::Row(row), _) => Ok(*row),
            (At::Ordinal(ordinal), Some(input)) if prepared.is_some() => input.source.read_slowly(ordinal),
            (At::Ordinal(ordinal), Some(input)) => input.source.read(ordinal),
            (At::Ordinal(_), None) => Err(DataError::Mixer(format!("there is no source {}", task.source))),
        };
        let (file, row, state) = match row {
            Ok(Row { file, row, json: Ok(json) }) => (file, row, State::Json(json)),
            Ok(Row { file, row, json: Err(bad) }) => (file, row, State::Done(Err(Failure::Bad(bad)))),
            Err(error) => (Arc::from(""), 0, State::Done(Err(Failure::Fatal(error)))),
        };
        let trace = self.traced.then(|| {
            let json = if let State::Json(json) = &state { Some(json.clone()) } else { None };
            Box::new(RowTrace::new(task.source, file.clone(), row, json))
        });
        Item { source: task.source, name, file, row, formatted: false, state, trace }
    }

    fn render(&self, batch: Vec<(&mut Item, Conversation)>) {
        let (mut items, mut conversations) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        for (item, conversation) in batch {
            if let Some(trace) = &mut item.trace {
                trace.conversation = Some(conversation.clone());
            }
            let weight = conversation.weight;
            if weight.is_finite() && weight >= 0.0 {
                items.push((item, weight));
                conversations.push(conversation);
            } else {
                item.bad(
                    BadKind::Format,
                    String::new(),
                    format!("the formatter gave the sample weight {weight}; it must be finite and not negative"),
                );
            }
        }
        match self.template.render(&conversations) {
            Ok(all) if all.len() == conversations.len() => {
                for ((item, weight), samples) in items.into_iter().zip(all) {
                    self.finish(item, weight, samples);
                }
            }
            Ok(all) => {
                let message = format!("it answered {} conversations with {} renderings", conversations.len(), all.len());
                items.into_iter().for_each(|(item, _)| item.fatal("template", message.clone()));
            }
            Err(StageError::Fatal(message)) => items.into_iter().for_each(|(item, _)| item.fatal("template", message.clone())),
            Err(StageError::Row(message)) => match &mut items[..] {
                [(item, _)] => item.bad(BadKind::Trap, String::new(), format!("template: {message}")),
                _ => items.into_iter().zip(conversations).for_each(|((item, _), conversation)| self.render(vec![(item, conversation)])),
            },
        }
    }

    fn finish(&self, item: &mut Item, factor: f32, samples: Result<Vec<Vec<RenderedSegment>>, RenderFault>) {
        let samples = match samples {
            Ok(samples) if samples.len() <= MAX_SPLIT => samples,
            Ok(samples) => {
                let message = format!("one conversation gave {} samples; the most is {MAX_SPLIT}", samples.len());
                return item.bad(BadKind::Template, String::new(), message);
            }
            Err(fault) => return item.bad(fault.kind, String::new(), fault.message),
        };
        if samples.is_empty() {
            item.state = State::Done(Err(Failure::Skip("the template gives no sample".to_owned())));
            return;
        }
        let mut parts = Vec::with_capacity(samples.len());
        for segments in samples {
            match self.tokenize(factor, segments, item.trace.as_deref_mut()) {
                Ok(part) => parts.push(part),
                Err(Refusal::Bad(kind, message)) => return item.bad(kind, String::new(), message),
                Err(Refusal::Fatal(message)) => return item.fatal("tokenizer", message),
            }
        }
        item.state = State::Done(Ok(parts));
    }

    fn tokenize(
        &self,
        factor: f32,
        segments: Vec<RenderedSegment>,
        mut trace: Option<&mut RowTrace>,
    ) -> Result<Result<Prepared, String>, Refusal> {
        let kept = trace.is_some().then(|| segments.clone());
        let mut weighted: Vec<(Piece, f32)> = Vec::with_capacity(segments.len());
        for RenderedSegment { piece, generated, weight, message: _ } in segments {
            let weight = match self.train_on {
                TrainOn::Assistant if !generated => 0.0,
                _ => weight * factor,
            };
            if !weight.is_finite() || weight < 0.0 {
                return Err(Refusal::Bad(BadKind::Template, format!("a loss weight of {weight}; it must be finite and not negative")));
            }
            weighted.push((piece, weight));
        }
        let mut tokens = self.tokenizer.encode(&weighted).map_err(|e| match e {
            StageError::Row(message) => Refusal::Bad(BadKind::Tokenize, message),
            StageError::Fatal(message) => Refusal::Fatal(message),
        })?;
        if tokens.ids.len() != tokens.weights.len() || tokens.ids.len() != tokens.segments.len() {
            let (ids, weights, segments) = (tokens.ids.len(), tokens.weights.len(), tokens.segments.len());
            return Err(Refusal::Fatal(format!("{ids} ids with {weights} weights and {segments} segments")));
        }
        if let (Some(trace), Some(segments)) = (&mut trace, kept) {
            trace.samples.push(SampleTrace::new(segments, tokens.clone()));
        }
        let (length, limit) = (tokens.ids.len(), self.max_seq_length);
        let truncated = length > limit;
        match self.too_long {
            _ if !truncated => {}
            TooLong::Error => {
                let message = format!("{length} tokens; raise max_seq_length ({limit}) or set too_long to \"truncate\" or \"drop\"");
                return Err(Refusal::Bad(BadKind::TooLong, message));
            }
            TooLong::Drop => return Ok(Err("longer than max_seq_length".to_owned())),
            TooLong::Truncate => {
                let kept = self.truncation_side.kept(length, limit);
                tokens.ids.truncate(kept.end);
                tokens.weights.truncate(kept.end);
                tokens.ids.drain(..kept.start);
                tokens.weights.drain(..kept.start);
                if let Some(sample) = trace.and_then(|t| t.samples.last_mut()) {
                    sample.kept = kept;
                }
            }
        }
        // Nothing predicts the first token.
        if !tokens.weights.iter().skip(1).any(|&w| w > 0.0) {
            let reason = if truncated { "no target tokens within max_seq_length" } else { "no target tokens" };
            return match self.no_target {
                NoTarget::Skip => Ok(Err(reason.to_owned())),
                NoTarget::Error => {
                    Err(Refusal::Bad(BadKind::NoTarget, format!("{reason}: {length} tokens, none with a loss weight (train_on)")))
                }
            };
        }
        Ok(Ok(Prepared { ids: tokens.ids, weights: tokens.weights, truncated }))
    }
}

enum Refusal {
    Bad(BadKind, String),
    Fatal(String),
}

/// Formats the rows of one source. A batch that fails is repeated row by row, so that one row's trap costs that row alone.
fn format(formatter: &dyn RowFormatter, batch: &mut [&mut Item]) {
    let rows: Vec<String> = batch
        .iter_mut()
        .map(|i| match &mut i.state {
            State::Json(text) => std::mem::take(text),
            _ => String::new(),
        })
        .collect();
    format_rows(formatter, batch, &rows);
}

fn format_rows(formatter: &dyn RowFormatter, batch: &mut [&mut Item], rows: &[String]) {
    match formatter.format(rows) {
        Ok(outcomes) if outcomes.len() == rows.len() => {
            for (item, outcome) in batch.iter_mut().zip(outcomes) {
                match outcome {
                    FormatOutcome::Sample(conversation) => {
                        item.formatted = true;
                        item.state = State::Conversation(Box::new(conversation));
                    }
                    FormatOutcome::Skip(reason) => item.state = State::Done(Err(Failure::Skip(reason))),
                    FormatOutcome::Bad { pointer, message } => item.bad(BadKind::Format, pointer, message),
                    FormatOutcome::Trap(message) => item.bad(BadKind::Trap, String::new(), message),
                }
            }
        }
        Ok(outcomes) => {
            let message = format!("it answered {} rows with {} outcomes", rows.len(), outcomes.len());
            batch.iter_mut().for_each(|item| item.fatal("formatter", message.clone()));
        }
        Err(StageError::Fatal(message)) => batch.iter_mut().for_each(|item| item.fatal("formatter", message.clone())),
        Err(StageError::Row(message)) => match batch {
            [item] => item.bad(BadKind::Trap, String::new(), message),
            _ => batch.chunks_mut(1).zip(rows.chunks(1)).for_each(|(item, row)| format_rows(formatter, item, row)),
        },
    }
}
