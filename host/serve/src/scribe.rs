//! Writes down one answer as its tokens come: text, reasoning, calls, log-probabilities, and how it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use trainer_engine::{Finish, TokenLogprobs};
use trainer_eval::template_piece;
use trainer_plugin_host::template::{OutputParser, OutputPart, Piece as TemplatePiece};
use trainer_plugin_host::types::CallArguments;
use trainer_text::{Piece, PieceDecoder, StreamDecoder, Tokenizer};

use crate::error::{ApiError, Result};
use crate::queue::Output;
use crate::stops::Stops;
use crate::voice::broken;

/// Something new in an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Delta {
    /// Words.
    Text(String),
    /// Words of the reasoning.
    Reasoning(String),
    /// A whole call.
    Call(Call),
    /// A call that the server has executed.
    Ran(Ran),
}

/// A call that the server has executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// The tool; what the model wrote, where that is no call.
    pub name: String,
    /// Its arguments; empty where there is no call.
    pub arguments: String,
    /// What the model was shown.
    pub output: String,
    /// Whether that is an error.
    pub failed: bool,
}

/// A call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The tool.
    pub name: String,
    /// Its arguments, JSON where the model wrote JSON.
    pub arguments: String,
}

/// How an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// By itself, at a stop string, or with the call that was asked for.
    Stop,
    /// At the most tokens, or at the end of the context.
    Length,
    /// With calls.
    ToolCalls,
}

impl Reason {
    /// OpenAI's word.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Stop => "stop",
            Reason::Length => "length",
            Reason::ToolCalls => "tool_calls",
        }
    }
}

/// What some outputs of the generator came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// What is new.
    pub deltas: Vec<Delta>,
    /// The tokens with their log-probabilities, where they are wanted.
    pub tokens: Vec<TokenLogprobs>,
    /// The end, once.
    pub finish: Option<Reason>,
}

/// Which calls an answer may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    /// Whether any tool was on offer: without, what looks like a call is text.
    pub offered: bool,
    /// Whether an answer ends with its first call.
    pub single: bool,
    /// Whether the caller asked for one certain tool, after whose call OpenAI says `stop`.
    pub named: bool,
    /// Whether calls are kept for the end of the turn, because the server executes some.
    pub held: bool,
}

#[expect(clippy::large_enum_variant, reason = "one for each answer that is being written, and most are the large one")]
enum Reader {
    /// Through the chat template's parser.
    Chat { decoder: PieceDecoder, parser: Option<OutputParser>, calls: Calls },
    /// As it is, without special tokens.
    Plain { decoder: StreamDecoder },
}

/// One answer.
pub struct Scribe {
    reader: Reader,
    stops: Stops,
    /// Tells the generator that no more is wanted.
    enough: Arc<AtomicBool>,
    found_calls: usize,
    /// The output so far, where calls are held.
    parts: Vec<OutputPart>,
    done: bool,
    /// Tokens of the answer.
    pub tokens: usize,
    /// Tokens of the prompt that did not have to be read.
    pub reused: usize,
}

impl Scribe {
    /// For an answer in a chat, whose beginning may be fixed.
    ///
    /// # Errors
    /// The template's parser fails.
    pub fn chat(
        tokenizer: &Tokenizer,
        mut parser: OutputParser,
        begun: &[TemplatePiece],
        calls: Calls,
        stop: Vec<String>,
        enough: Arc<AtomicBool>,
    ) -> Result<Self> {
        if !begun.is_empty() {
            // It is the beginning of a call, of which nothing is certain yet.
            parser.push(begun).map_err(|e| broken(&e))?;
        }
        Ok(Self::new(Reader::Chat { decoder: tokenizer.piece_decoder(), parser: Some(parser), calls }, stop, enough))
    }

    /// For plain text.
    pub fn plain(tokenizer: &Tokenizer, stop: Vec<String>, enough: Arc<AtomicBool>) -> Self {
        Self::new(Reader::Plain { decoder: tokenizer.stream_decoder(true) }, stop, enough)
    }

    fn new(reader: Reader, stop: Vec<String>, enough: Arc<AtomicBool>) -> Self {
        Scribe { reader, stops: Stops::new(stop), enough, found_calls: 0, parts: Vec::new(), done: false, tokens: 0, reused: 0 }
    }

    /// What was written, where calls are held; afterwards it is gone.
    pub fn take_parts(&mut self) -> Vec<OutputPart> {
        std::mem::take(&mut self.parts)
    }

    /// Whether the answer has ended.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Takes outputs of the generator, in order.
    ///
    /// # Errors
    /// The generator refused the request, or the template's parser fails.
    pub fn take(&mut self, outputs: impl IntoIterator<Item = Output>) -> Result<Step> {
        let mut step = Step::default();
        let mut pieces = Vec::new();
        for output in outputs {
            if self.done {
                break;
            }
            self.reused = output.reused;
            step.tokens.extend(output.prompt.into_iter().flatten());
            let mut new = Vec::new();
            if let Some(id) = output.token {
                self.tokens += 1;
                match &mut self.reader {
                    Reader::Chat { decoder, .. } => decoder.push(id, &mut new),
                    Reader::Plain { decoder } => plain(decoder.push(id), &mut new),
                }
            }
            // A chat's log-probabilities are those of its words; plain text's end with the stop token's, so that there is one for every token drawn.
            if output.token.is_some() || matches!(self.reader, Reader::Plain { .. }) {
                step.tokens.extend(output.logprobs);
            }
            let ended = match output.finish {
                None => None,
                Some(Finish::Stop(_)) => Some(Reason::Stop),
                Some(Finish::Length | Finish::CacheFull) => Some(Reason::Length),
                Some(Finish::Cancelled) => return Err(ApiError::closing()),
                Some(Finish::Refused(error)) => return Err(ApiError::internal(format!("the request cannot be served: {error}"))),
            };
            if ended.is_some() {
                match &mut self.reader {
                    Reader::Chat { decoder, .. } => decoder.finish(&mut new),
                    Reader::Plain { decoder } => plain(decoder.finish(), &mut new),
                }
            }
            if self.stops.push(new, &mut pieces) {
                step.finish = Some(Reason::Stop);
            } else if let Some(reason) = ended {
                self.stops.finish(&mut pieces);
                step.finish = Some(reason);
            }
            self.done = step.finish.is_some();
            // Where the first call is the end, what counts as the answer's must not depend on how many tokens came at once.
            if matches!(self.reader, Reader::Chat { calls: Calls { single: true, .. }, .. }) {
                self.read(std::mem::take(&mut pieces), &mut step)?;
            }
        }
        self.read(pieces, &mut step)?;
        if self.done {
            self.enough.store(true, Ordering::Relaxed);
        }
        Ok(step)
    }

    /// Makes deltas of pieces.
    fn read(&mut self, pieces: Vec<Piece>, step: &mut Step) -> Result<()> {
        match &mut self.reader {
            Reader::Plain { .. } => pieces.iter().for_each(|p| add(&mut step.deltas, Delta::Text(p.as_str().to_owned()))),
            Reader::Chat { parser, calls, .. } => {
                let calls = *calls;
                let mut parts = Vec::new();
                if let Some(open) = parser.as_mut().filter(|_| !pieces.is_empty()) {
                    let pieces: Vec<TemplatePiece> = pieces.into_iter().map(template_piece).collect();
                    parts = open.push(&pieces).map_err(|e| broken(&e))?;
                }
                if self.done
                    && let Some(open) = parser.take()
                {
                    parts.extend(open.finish().map_err(|e| broken(&e))?);
                }
                for part in parts {
                    if calls.held {
                        self.parts.push(part.clone());
                    }
                    let call = match part {
                        OutputPart::Text(text) => {
                            add(&mut step.deltas, Delta::Text(text));
                            continue;
                        }
                        OutputPart::Reasoning(text) => {
                            add(&mut step.deltas, Delta::Reasoning(text));
                            continue;
                        }
                        OutputPart::Malformed(_) if calls.held => continue,
                        OutputPart::Malformed(malformed) => {
                            add(&mut step.deltas, Delta::Text(malformed.raw));
                            continue;
                        }
                        OutputPart::ToolCall(call) => call,
                    };
                    let (CallArguments::Json(arguments) | CallArguments::Text(arguments)) = call.arguments;
                    if !calls.offered {
                        let name = serde_json::Value::from(call.name);
                        add(&mut step.deltas, Delta::Text(format!("{{\"name\": {name}, \"arguments\": {arguments}}}")));
                        continue;
                    }
                    self.found_calls += 1;
                    if !calls.held {
                        step.deltas.push(Delta::Call(Call { name: call.name, arguments }));
                    }
                    if calls.single {
                        self.done = true;
                        step.finish = Some(Reason::Stop);
                        break;
                    }
                }
                if step.finish == Some(Reason::Stop) && self.found_calls > 0 && !calls.named {
                    step.finish = Some(Reason::ToolCalls);
                }
            }
        }
        Ok(())
    }
}

/// Text, if there is any, as a piece.
fn plain(text: &str, out: &mut Vec<Piece>) {
    if !text.is_empty() {
        out.push(Piece::Text(text.to_owned()));
    }
}

/// Adds a delta; words continue words.
fn add(deltas: &mut Vec<Delta>, delta: Delta) {
    match (deltas.last_mut(), delta) {
        (Some(Delta::Text(before)), Delta::Text(text)) | (Some(Delta::Reasoning(before)), Delta::Reasoning(text)) => before.push_str(&text),
        (_, Delta::Text(text) | Delta::Reasoning(text)) if text.is_empty() => {}
        (_, delta) => deltas.push(delta),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokenizer() -> Tokenizer {
        let file = |name: &str| trainer_nano::MODEL_FILES.iter().find(|f| f.0 == name).unwrap().1;
        Tokenizer::from_bytes(file("tokenizer.json"), Some(file("tokenizer_config.json")), None).unwrap()
    }

    fn outputs(ids: &[u32], finish: Finish) -> Vec<Output> {
        let one = |token: Option<u32>, finish: Option<Finish>| {
            let logprobs = token.map(|id| TokenLogprobs { id, logprob: -1.0, top: Vec::new() });
            Output { prompt: None, reused: 3, token, logprobs, finish }
        };
        let mut all: Vec<Output> = ids.iter().map(|id| one(Some(*id), None)).collect();
        all.push(one(None, Some(finish)));
        all
    }

    /// Everything that came of it, and whether the generator was told to stop.
    fn written(
        tokenizer: &Tokenizer,
        stop: &[String],
        outputs: Vec<Output>,
        cuts: &[usize],
    ) -> (String, Vec<u32>, Option<Reason>, usize, bool) {
        let enough = Arc::new(AtomicBool::new(false));
        let mut scribe = Scribe::plain(tokenizer, stop.to_vec(), enough.clone());
        let (mut text, mut ids, mut finish, mut rest) = (String::new(), Vec::new(), None, outputs);
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            let now: Vec<Output> = rest.drain(..cut.min(rest.len())).collect();
            if now.is_empty() || scribe.is_done() {
                continue;
            }
            let step = scribe.take(now).unwrap();
            for delta in step.deltas {
                let Delta::Text(words) = delta else { panic!("{delta:?}") };
                text.push_str(&words);
            }
            ids.extend(step.tokens.iter().map(|t| t.id));
            assert!(finish.is_none());
            finish = step.finish;
        }
        (text, ids, finish, scribe.tokens, enough.load(Ordering::Relaxed))
    }

    proptest! {
        #[test]
        fn how_many_tokens_come_at_once_changes_nothing(
            ids in prop::collection::vec(0u32..2534, 0..40),
            stop in prop::collection::vec("[a-e ]{1,2}", 0..3),
            cuts in prop::collection::vec(0usize..8, 0..12),
        ) {
            let tokenizer = tokenizer();
            let whole = written(&tokenizer, &stop, outputs(&ids, Finish::Length), &[]);
            prop_assert_eq!(&written(&tokenizer, &stop, outputs(&ids, Finish::Length), &cuts), &whole);
            prop_assert_eq!((whole.1.len(), whole.4), (whole.3, true));
            let all = tokenizer.decode(&ids, true);
            match stop.iter().filter_map(|s| all.find(s.as_str()).map(|at| (at + s.len(), at))).min() {
                Some((_, at)) => prop_assert_eq!((whole.0.as_str(), whole.2), (&all[..at], Some(Reason::Stop))),
                None => prop_assert_eq!((whole.0.as_str(), whole.2), (all.as_str(), Some(Reason::Length))),
            }
        }
    }

    #[test]
    fn refusals_are_errors() {
        let mut scribe = Scribe::plain(&tokenizer(), Vec::new(), Arc::default());
        let refused = Finish::Refused(trainer_engine::RequestError::EmptyPrompt);
        assert!(scribe.take(outputs(&[], refused)).unwrap_err().message.contains("the prompt is empty"));
    }
}
