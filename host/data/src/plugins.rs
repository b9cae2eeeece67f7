//! The stages as sandboxed components and the tokenizer of the model.

use std::sync::Arc;

use trainer_plugin_host::{Formatter, Plugin, PluginError, RowError, RowOutcome, Template, mixing, template};
use trainer_text::{Piece, Segment, SpecialMode, Tokenizer};

use crate::conversation::Conversation;
use crate::error::{BadKind, StageError};
use crate::stages::{
    Draw, FormatOutcome, MixerFactory, MixerSetup, RenderFault, RenderedSegment, RowFormatter, SampleTemplate, SegmentEncoder, SourceLoss,
    SourceMixer, Tokens,
};

/// What the plugin host returns as an error stops the run: it has already tried row by row, in fresh instances.
fn fatal(error: PluginError) -> StageError {
    StageError::Fatal(error.to_string())
}

impl RowFormatter for Formatter {
    fn format(&self, rows: &[String]) -> Result<Vec<FormatOutcome>, StageError> {
        let outcomes = Formatter::format(self, rows).map_err(fatal)?;
        Ok(outcomes
            .into_iter()
            .map(|outcome| match outcome {
                RowOutcome::Sample(conversation) => FormatOutcome::Sample(conversation),
                RowOutcome::Skip(reason) => FormatOutcome::Skip(reason),
                RowOutcome::Bad { pointer, message } => FormatOutcome::Bad { pointer, message },
                RowOutcome::Trapped(error) => FormatOutcome::Trap(error.to_string()),
            })
            .collect())
    }

    fn identity(&self) -> Option<serde_json::Value> {
        self.plugin().grants().is_empty().then(|| Formatter::identity(self))
    }
}

impl SampleTemplate for Template {
    fn render(&self, conversations: &[Conversation]) -> Result<Vec<Result<Vec<Vec<RenderedSegment>>, RenderFault>>, StageError> {
        let rendered = self.render_training(conversations).map_err(fatal)?;
        Ok(rendered
            .into_iter()
            .map(|samples| match samples {
                Ok(samples) => Ok(samples.into_iter().map(|s| s.segments.into_iter().map(segment).collect()).collect()),
                Err(RowError::Refused(message)) => Err(RenderFault { kind: BadKind::Template, message }),
                Err(RowError::Trapped(error)) => Err(RenderFault { kind: BadKind::Trap, message: error.to_string() }),
            })
            .collect())
    }

    fn identity(&self) -> Option<serde_json::Value> {
        self.plugin().grants().is_empty().then(|| Template::identity(self))
    }
}

fn segment(segment: template::Segment) -> RenderedSegment {
    let piece = match segment.piece {
        template::Piece::Text(text) => Piece::Text(text),
        template::Piece::Special(token) => Piece::Special(token),
    };
    RenderedSegment { piece, generated: segment.generated, weight: segment.weight, message: segment.source_message }
}

/// The tokenizer of a model as the pipeline uses it.
#[derive(Clone)]
pub struct TextEncoder {
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// What strings in data that look like special tokens become; plain text unless compatibility asks otherwise.
    pub mode: SpecialMode,
}

impl TextEncoder {
    /// Plain text stays plain text: data cannot forge a turn.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, mode: SpecialMode::Plain }
    }
}

impl SegmentEncoder for TextEncoder {
    fn encode(&self, segments: &[(Piece, f32)]) -> Result<Tokens, StageError> {
        let borrowed: Vec<Segment<'_>> = segments
            .iter()
            .map(|(piece, weight)| {
                let piece = match piece {
                    Piece::Text(text) => Piece::Text(text.as_str()),
                    Piece::Special(token) => Piece::Special(token.as_str()),
                };
                Segment { piece, weight: *weight }
            })
            .collect();
        let encoded = self.tokenizer.encode_segments(&borrowed, self.mode).map_err(|e| StageError::Row(e.to_string()))?;
        Ok(Tokens { ids: encoded.ids, weights: encoded.weights, segments: encoded.segments })
    }

    fn identity(&self) -> Option<serde_json::Value> {
        let mode = match self.mode {
            SpecialMode::Plain => "plain",
            SpecialMode::Parse => "parse",
        };
        Some(serde_json::json!({ "sha256": self.tokenizer.digest(), "special_tokens": mode }))
    }
}

/// A mixing policy that is a plugin, under its settings.
#[derive(Clone)]
pub struct PluginMixer {
    /// The plugin.
    pub plugin: Arc<Plugin>,
    /// The recipe's settings for it.
    pub settings: serde_json::Value,
}

impl MixerFactory for PluginMixer {
    fn open(&self, setup: &MixerSetup, snapshot: Option<&[u8]>) -> Result<Box<dyn SourceMixer>, StageError> {
        let source =
            |s: &crate::stages::MixerSource| mixing::Source { name: s.name.clone(), length: s.length, random_access: s.random_access };
        let setup = mixing::MixerSetup {
            settings: self.settings.clone(),
            sources: setup.sources.iter().map(source).collect(),
            seed: setup.seed,
            feedback_lag: setup.feedback_lag,
        };
        Ok(Box::new(OpenMixer(self.plugin.mixer(&setup, snapshot).map_err(fatal)?)))
    }
}

struct OpenMixer(mixing::Mixer);

impl SourceMixer for OpenMixer {
    fn epoch_length(&mut self) -> Result<Option<u64>, StageError> {
        self.0.epoch_length().map_err(fatal)
    }

    fn next(&mut self, n: u32) -> Result<Vec<Draw>, StageError> {
        let draws = self.0.next(n).map_err(fatal)?;
        Ok(draws.into_iter().map(|d| Draw { source: d.source, ordinal: d.ordinal }).collect())
    }

    fn feedback(&mut self, step: u64, sources: &[SourceLoss]) -> Result<(), StageError> {
        let loss = |s: &SourceLoss| mixing::SourceLoss { source: s.source, loss: s.loss, weight: s.weight, samples: s.samples };
        self.0.feedback(&mixing::Feedback { step, sources: sources.iter().map(loss).collect() }).map_err(fatal)
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, StageError> {
        self.0.snapshot().map_err(fatal)
    }
}
