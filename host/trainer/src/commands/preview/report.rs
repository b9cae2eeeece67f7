//! What a preview says, as data.

use serde::Serialize;
use trainer_data::stages::RenderedSegment;
use trainer_data::{Fate, RowTrace, SampleTrace};
use trainer_text::{Piece, Tokenizer};

/// The whole preview.
#[derive(Debug, Serialize)]
pub struct Preview {
    /// This program's version.
    pub trainer: &'static str,
    /// The base model.
    pub model: String,
    /// SHA-256 of its tokenizer's files.
    pub tokenizer: String,
    /// The chat template.
    pub template: String,
    /// Which tokens the loss counts.
    pub train_on: String,
    /// The longest sample in tokens.
    pub max_seq_length: usize,
    /// What becomes of a longer one.
    pub too_long: String,
    /// What should be looked at before training.
    pub warnings: Vec<Warning>,
    /// The rows, in the order in which a run draws them.
    pub rows: Vec<RowView>,
    /// How the first step's samples are put together; none where the device's plan could not be made.
    pub packing: Option<Packing>,
}

/// Something that is likely wrong.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// Its kind, for programs.
    pub kind: &'static str,
    /// The row that it is about, as `file:row`; none where it is about everything.
    pub row: Option<String>,
    /// The words.
    pub message: String,
}

/// A row.
#[derive(Debug, Serialize)]
pub struct RowView {
    /// The number of its draw, from 0; none if it was asked for by its number.
    pub draw: Option<u64>,
    /// The source's name in the recipe.
    pub source: String,
    /// The file.
    pub file: String,
    /// Line or row in the file, from 1.
    pub row: u64,
    /// `samples`, `skipped` or `bad`.
    pub outcome: &'static str,
    /// Why it is skipped or bad.
    pub reason: Option<String>,
    /// The messages of its conversation.
    pub messages: Vec<MessageView>,
    /// Its samples.
    pub samples: Vec<SampleView>,
}

/// A message.
#[derive(Debug, Serialize)]
pub struct MessageView {
    /// Who speaks.
    pub role: String,
    /// The loss weight that the data gives it, if it does.
    pub weight: Option<f32>,
}

/// A sample.
#[derive(Debug, Serialize)]
pub struct SampleView {
    /// The number of the sample in the run, from 0; none if it is left out or its row was asked for.
    pub index: Option<u64>,
    /// Tokens that are trained on, as context or as target.
    pub length: usize,
    /// Those among them whose prediction is learned.
    pub targets: usize,
    /// Their summed weight.
    pub target_weight: f64,
    /// Whether tokens were cut off.
    pub truncated: bool,
    /// Why the sample is not trained on, if it is not.
    pub left_out: Option<String>,
    /// The template's segments.
    pub segments: Vec<SegmentView>,
    /// Every token, those that were cut off included.
    pub tokens: Vec<TokenView>,
}

/// A segment of the rendered text.
#[derive(Debug, Serialize)]
pub struct SegmentView {
    /// Whether it is one added token.
    pub special: bool,
    /// Its text.
    pub text: String,
    /// Whether the model writes it at inference.
    pub generated: bool,
    /// The data's own weight for it.
    pub weight: f32,
    /// Index of the message that it comes from; none for what the template adds around all messages.
    pub message: Option<u32>,
}

/// A token.
#[derive(Debug, Serialize)]
pub struct TokenView {
    /// Its id.
    pub id: u32,
    /// Its text; bytes that are no whole character are shown as U+FFFD.
    pub text: String,
    /// Its bytes in hexadecimal, where they are no whole characters.
    pub bytes: Option<String>,
    /// Whether it is an added token.
    pub special: bool,
    /// The loss weight of predicting it; 0 for a sample's first token, which nothing predicts.
    pub weight: f32,
    /// Index of the segment that holds its first byte.
    pub segment: u32,
    /// Index of the message that this comes from.
    pub message: Option<u32>,
    /// Whether it lies within `max_seq_length`.
    pub kept: bool,
}

/// How samples are put together.
#[derive(Debug, Serialize)]
pub struct Packing {
    /// Tokens that a micro-batch holds; none where each sample is one of its own.
    pub max_tokens: Option<usize>,
    /// Samples in an optimizer step.
    pub samples_per_step: usize,
    /// How many samples there were to lay out: fewer than a step's, where a step is very large or the data ends.
    pub samples: usize,
    /// The micro-batches, in order.
    pub batches: Vec<BatchView>,
}

/// A micro-batch.
#[derive(Debug, Serialize)]
pub struct BatchView {
    /// Numbers of its samples.
    pub samples: Vec<u64>,
    /// Their lengths in tokens.
    pub lengths: Vec<usize>,
    /// Tokens in all.
    pub tokens: usize,
}

/// A row's view. `next` counts the samples that are trained on.
pub fn row_view(trace: &RowTrace, source: &str, tokenizer: &Tokenizer, next: &mut u64) -> RowView {
    let (outcome, reason) = match &trace.fate {
        Fate::Samples => ("samples", None),
        Fate::Skipped(reason) => ("skipped", Some(reason.clone())),
        Fate::Bad(bad) => ("bad", Some(bad.to_string())),
    };
    let messages = trace.conversation.iter().flat_map(|c| &c.messages);
    RowView {
        draw: trace.draw,
        source: source.to_owned(),
        file: trace.file.to_string(),
        row: trace.row,
        outcome,
        reason,
        messages: messages.map(|m| MessageView { role: m.role.clone(), weight: m.weight }).collect(),
        samples: trace
            .samples
            .iter()
            .map(|sample| {
                let trained = sample.left_out.is_none() && trace.fate == Fate::Samples;
                let index = (trained && trace.draw.is_some()).then_some(*next);
                *next += u64::from(trained);
                sample_view(sample, tokenizer, index)
            })
            .collect(),
    }
}

fn sample_view(sample: &SampleTrace, tokenizer: &Tokenizer, index: Option<u64>) -> SampleView {
    let (_, weights) = sample.trained();
    let tokens: Vec<TokenView> = sample
        .tokens
        .ids
        .iter()
        .zip(&sample.tokens.weights)
        .zip(&sample.tokens.segments)
        .enumerate()
        .map(|(at, ((&id, &weight), &segment))| {
            let kept = sample.kept.contains(&at);
            let bytes = tokenizer.token_bytes(id).unwrap_or_default();
            let broken = std::str::from_utf8(bytes).is_err();
            TokenView {
                id,
                text: String::from_utf8_lossy(bytes).into_owned(),
                bytes: broken.then(|| bytes.iter().map(|b| format!("{b:02x}")).collect()),
                special: tokenizer.added_token(id).is_some(),
                weight: if kept && at != sample.kept.start { weight } else { 0.0 },
                segment,
                message: usize::try_from(segment).ok().and_then(|s| sample.segments.get(s)).and_then(|s| s.message),
                kept,
            }
        })
        .collect();
    SampleView {
        index,
        length: sample.kept.len(),
        targets: weights.iter().skip(1).filter(|w| **w > 0.0).count(),
        target_weight: weights.iter().skip(1).map(|w| f64::from(*w)).sum(),
        truncated: sample.truncated(),
        left_out: sample.left_out.clone(),
        segments: sample.segments.iter().map(segment_view).collect(),
        tokens,
    }
}

fn segment_view(segment: &RenderedSegment) -> SegmentView {
    SegmentView {
        special: matches!(segment.piece, Piece::Special(_)),
        text: segment.piece.as_str().to_owned(),
        generated: segment.generated,
        weight: segment.weight,
        message: segment.message,
    }
}
