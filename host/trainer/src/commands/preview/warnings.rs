//! What a preview warns of.

use anyhow::{Result, anyhow};
use trainer_data::stages::{RenderedSegment, SampleTemplate};
use trainer_data::{Fate, RowTrace, SampleTrace};
use trainer_eval::{Prompts, Speaker};
use trainer_runtime::DataSetup;
use trainer_text::Piece;

use super::report::Warning;

/// What every row is held against.
pub struct Checker<'a> {
    setup: &'a DataSetup,
    /// The token that ends an answer, as training teaches it.
    stop: Option<String>,
    /// Whether the template says that prefixes stay.
    stable: bool,
}

impl<'a> Checker<'a> {
    /// Asks the template what it says of itself.
    ///
    /// # Errors
    /// The template fails.
    pub fn new(setup: &'a DataSetup) -> Result<Self> {
        let description = setup.template().describe()?;
        Ok(Self { setup, stop: description.stop_tokens.into_iter().next(), stable: description.stable_prefixes })
    }

    /// What is wrong whatever the rows are: the template's training form on a probe, and the tokenizer's padding token.
    pub fn general(&self) -> Vec<Warning> {
        let mut out = Vec::new();
        let mut warn = |kind, message| out.push(Warning { kind, row: None, message });
        let recipe = self.setup.recipe();
        let (name, template) = (recipe.template.plugin.to_string(), self.setup.template().clone());
        let prompts = Prompts::by_plugin(template.clone());
        match (Speaker { name, template, prompts, stop_ids: Vec::new() }).check_training() {
            Ok(warnings) => warnings.into_iter().for_each(|w| warn("template", w)),
            Err(error) => warn("template", error.to_string()),
        }
        let tokenizer = self.setup.tokenizer();
        let stop = self.stop.as_deref().and_then(|s| tokenizer.added_token_id(s)).or_else(|| tokenizer.eos_ids().first().copied());
        if let (Some(pad), Some(stop)) = (tokenizer.pad_id(), stop)
            && pad == stop
        {
            let text = String::from_utf8_lossy(tokenizer.token_bytes(pad).unwrap_or_default()).into_owned();
            warn(
                "pad_is_eos",
                format!(
                    "the tokenizer pads with {text} ({pad}), the token that ends an answer: this program pads nothing, but others that leave \
                     padding out of the loss never teach the model to stop; give the tokenizer another pad_token"
                ),
            );
        }
        out
    }

    /// What is wrong with a row.
    ///
    /// # Errors
    /// The template fails.
    pub fn row(&self, trace: &RowTrace) -> Result<Vec<Warning>> {
        let mut out = Vec::new();
        let mut warn = |kind, message: String| out.push(Warning { kind, row: Some(format!("{}:{}", trace.file, trace.row)), message });
        match &trace.fate {
            Fate::Bad(bad) => {
                let allowed = self.setup.recipe().data.max_bad_rows;
                let then = if allowed == 0 { "a run stops here".to_owned() } else { format!("a run survives {allowed} bad rows") };
                warn("bad_row", format!("{}: {}; {then}", bad.kind, bad.message));
            }
            Fate::Skipped(reason) => warn("skipped", format!("the row is skipped: {reason}")),
            Fate::Samples => {
                for sample in &trace.samples {
                    match &sample.left_out {
                        Some(reason) => warn("left_out", format!("a sample is left out: {reason}")),
                        None if sample.truncated() => {
                            let (kept, all) = (sample.kept.len(), sample.tokens.ids.len());
                            warn("truncated", format!("only {kept} of {all} tokens are trained on (max_seq_length)"));
                        }
                        None => {}
                    }
                    if !learns(sample) {
                        warn("zero_weight", "no token of the sample has a loss weight, so nothing is learned from it".to_owned());
                    }
                    if let Some(message) = self.stop_missing(sample) {
                        warn("missing_stop", message);
                    }
                }
            }
        }
        if let Some(message) = self.unstable(trace)? {
            warn("unstable_prefix", message);
        }
        Ok(out)
    }

    /// Whether an answer that is learned is not ended by the stop token with a weight.
    fn stop_missing(&self, sample: &SampleTrace) -> Option<String> {
        let stop = self.stop.as_deref()?;
        if !learns(sample) {
            return None;
        }
        let ends = sample.segments.iter().rev().find(|s| s.generated);
        let ended = ends.is_some_and(|s| s.weight > 0.0 && matches!(&s.piece, Piece::Special(t) if t == stop));
        if !ended {
            return Some(format!("the last answer does not end with {stop} as a target, so the model may not learn to stop"));
        }
        // Cut off at the end, the text has its stop token but training does not see it.
        let id = self.setup.tokenizer().added_token_id(stop);
        let last = sample.tokens.ids.iter().rposition(|i| Some(*i) == id);
        (sample.truncated() && last.is_some_and(|at| at >= sample.kept.end))
            .then(|| format!("truncation cuts off the {stop} after the last answer, so the model may not learn to stop"))
    }

    /// Whether the training text of the row's first turns is not the beginning of the training text of all of them.
    fn unstable(&self, trace: &RowTrace) -> Result<Option<String>> {
        let (Some(conversation), [whole]) = (&trace.conversation, trace.samples.as_slice()) else { return Ok(None) };
        let whole = text(&whole.segments);
        let last = conversation.messages.len().saturating_sub(1);
        let answers = conversation.messages.iter().enumerate().take(last).filter(|(_, m)| m.role == "assistant");
        for (i, _) in answers {
            let mut first = conversation.clone();
            first.messages.truncate(i + 1);
            let rendered = SampleTemplate::render(self.setup.template().as_ref(), &[first]).map_err(|e| anyhow!("{e}"))?;
            let Some(Ok(samples)) = rendered.into_iter().next() else { continue };
            let [prefix] = samples.as_slice() else { continue };
            if !whole.starts_with(&text(prefix)) {
                let says = if self.stable { "although the template says otherwise" } else { "as the template says of itself" };
                return Ok(Some(format!(
                    "the training text up to message {i} is not the beginning of that of the whole conversation, {says}: earlier answers are \
                     trained in a form that inference does not show"
                )));
            }
        }
        Ok(None)
    }
}

fn learns(sample: &SampleTrace) -> bool {
    sample.trained().1.iter().skip(1).any(|w| *w > 0.0)
}

/// A rendered text in which a special token and the same characters as text are different.
fn text(segments: &[RenderedSegment]) -> String {
    segments.iter().fold(String::new(), |mut out, s| {
        if matches!(s.piece, Piece::Special(_)) {
            out.push('\u{0}');
        }
        out.push_str(s.piece.as_str());
        out
    })
}
