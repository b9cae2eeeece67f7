//! What a generator is asked for, and what it answers.

use std::ops::ControlFlow;
use std::sync::Arc;

use trainer_kernels::sampling::SamplingParams;

use super::logprobs::TokenLogprobs;
use crate::error::{EngineError, Result};

/// Sizes of a generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenOptions {
    /// Sequences generated at the same time.
    pub slots: usize,
    /// The most tokens of a sequence, prompt included.
    pub cache_length: usize,
    /// The most prompt tokens in one forward pass.
    pub prefill_tokens: usize,
}

impl GenOptions {
    /// Rows of the forward pass's buffers: a prefill or one token of every slot.
    pub(crate) fn rows(&self) -> usize {
        self.prefill_tokens.max(self.slots)
    }

    pub(crate) fn check(&self) -> Result<()> {
        for (name, value) in [("slots", self.slots), ("cache_length", self.cache_length), ("prefill_tokens", self.prefill_tokens)] {
            if value == 0 || u32::try_from(value).is_err() {
                return Err(EngineError::Setting { name, value: value.to_string(), expected: "1 to 2^32 - 1" });
            }
        }
        Ok(())
    }
}

/// A prompt to continue.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenRequest {
    /// The caller's name for it.
    pub id: u64,
    /// Which of the adapters of [`super::Generator::serve`]; [`super::Generator::generate`] has one, number 0.
    pub adapter: usize,
    /// The prompt; at least one token.
    pub prompt_ids: Vec<u32>,
    /// How to choose tokens.
    pub params: SamplingParams,
    /// What is added to the scores of single tokens before one is drawn, each from -100 to 100.
    pub logit_bias: Arc<[(u32, f32)]>,
    /// With `sample` and `repeat` the key of the random stream.
    pub seed: u64,
    /// Number of the sample in its data set.
    pub sample: u64,
    /// Which of several answers to the same prompt.
    pub repeat: u32,
    /// The most tokens to generate.
    pub max_new_tokens: usize,
    /// Tokens that end the sequence.
    pub stop_ids: Vec<u32>,
    /// Whether log-probabilities of the generated tokens are wanted, and of how many of the likeliest tokens beside each.
    pub logprobs: Option<usize>,
    /// The same of the prompt's tokens from the second on.
    pub prompt_logprobs: Option<usize>,
}

/// Why a request cannot be served, while others can.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// Nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The sequence does not fit the cache.
    #[error("the prompt has {tokens} tokens, but sequences can have {limit}: shorten it or raise the length limit")]
    TooLong {
        /// Its length.
        tokens: usize,
        /// The cache's length.
        limit: usize,
    },
    /// A token that the model does not have.
    #[error("token {position} of the prompt is {id}, but the model has {vocabulary} tokens")]
    UnknownToken {
        /// Where.
        position: usize,
        /// Which.
        id: u32,
        /// The model's vocabulary.
        vocabulary: usize,
    },
    /// An adapter that is not there.
    #[error("adapter {number} was asked for, but there are {count}, counted from 0")]
    UnknownAdapter {
        /// Which.
        number: usize,
        /// How many there are.
        count: usize,
    },
    /// The sampling parameters or the logits cannot be sampled from.
    #[error("sampling: {0}")]
    Sampling(String),
}

/// Why a sequence ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Finish {
    /// At this stop token, which is not part of the result.
    Stop(u32),
    /// At `max_new_tokens`.
    Length,
    /// At the end of the cache, before `max_new_tokens`.
    CacheFull,
    /// The caller wanted no more.
    Cancelled,
    /// It could not be served.
    Refused(RequestError),
}

/// What a request gave.
#[derive(Clone, Debug, PartialEq)]
pub struct GenResult {
    /// The request's name.
    pub id: u64,
    /// The generated tokens, without the stop token.
    pub ids: Vec<u32>,
    /// Why they end.
    pub finish: Finish,
}

/// Something that happened to a request: its prompt was read, a new token, its end, or several of these.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GenEvent<'a> {
    /// The request's name.
    pub id: u64,
    /// Once, before the first token, where [`GenRequest::prompt_logprobs`] asks for it: one entry for each token of the prompt but the first.
    pub prompt: Option<&'a [TokenLogprobs]>,
    /// How many of the prompt's tokens were still in the cache from an earlier request.
    pub reused: usize,
    /// The token that was added; `None` where the sequence only ended (a stop token is not shown).
    pub token: Option<u32>,
    /// Log-probabilities of the token that was drawn, where [`GenRequest::logprobs`] asks for them; a stop token's too.
    pub logprobs: Option<&'a TokenLogprobs>,
    /// Why the sequence ended, if it did.
    pub finish: Option<&'a Finish>,
}

/// What a caller can answer to an event instead of going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// End the event's request.
    Request,
    /// End everything.
    All,
}

/// Where requests come from and their events go.
pub trait Feed {
    /// The next request, if there is one now. Asked whenever a slot is free; must not wait.
    fn next(&mut self) -> Option<GenRequest>;

    /// Nothing is being generated: may wait until there is something. False ends it all.
    fn idle(&mut self) -> bool;

    /// Hears of every token and every end as it happens, and can end the event's request or everything. Nothing is said of a request after its end,
    /// nor of an end that was the answer to an event.
    fn event(&mut self, event: GenEvent<'_>) -> ControlFlow<Cancel>;

    /// Whether a request is still wanted. Asked before each pass over its prompt: long prompts have no events until they are read. One that is not
    /// wanted ends as if cancelled.
    fn wants(&mut self, id: u64) -> bool {
        let _ = id;
        true
    }
}
