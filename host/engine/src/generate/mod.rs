//! Generation with a key/value cache: prompts are prefilled together, decoded in one batch, and a finished sequence's slot goes to the next
//! request at once. Requests may come while others are being generated, and each names the adapter that it wants; sequences of one adapter share a pass.
//!
//! What a request gives does not depend on what else is in the batch: no operation mixes sequences, a prompt is cut at multiples of `prefill_tokens` of
//! its own length, and each sample draws from a random stream of its own. Where a backend's results do not depend on how a sequence is cut either
//! ([`Ops::cuts_freely`]), a prompt that begins with what a free slot's cache holds is only read from there on, with the same results.

mod logprobs;
mod passes;
mod request;
mod run;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use trainer_kernels::ops::Ops;

pub(crate) use logprobs::LogSoftmax;
pub use logprobs::TokenLogprobs;
pub(crate) use passes::Piece;
pub use request::{Cancel, Feed, Finish, GenEvent, GenOptions, GenRequest, GenResult, RequestError};

use crate::adapter::Adapter;
use crate::error::{OpsContext, Result};
use crate::forward::Buffers;
use crate::model::Model;
use passes::Steps;
use run::Run;

/// Passes over prompts in a row, after which the sequences that are being decoded get a token: long prompts do not hold them up.
const PREFILLS_IN_A_ROW: usize = 4;

/// Continues prompts.
pub struct Generator<O: Ops> {
    model: Arc<Model<O>>,
    options: GenOptions,
    pub(crate) cache: O::Cache,
    pub(crate) buffers: Buffers<O>,
}

impl<O: Ops> Generator<O> {
    /// Allocates the cache and all buffers.
    ///
    /// # Errors
    /// Sizes of 0 or that overflow, or memory that the backend cannot give.
    pub fn new(model: Arc<Model<O>>, options: GenOptions) -> Result<Self> {
        options.check()?;
        let (ops, dims) = (model.ops(), model.dims());
        let cache = ops
            .cache(dims.layers, options.slots, options.cache_length, dims.attention)
            .at(|| format!("key/value cache of {} x {} tokens", options.slots, options.cache_length))?;
        let buffers = Buffers::new(ops, dims, None, options.rows(), options.slots)?;
        Ok(Generator { model, options, cache, buffers })
    }

    /// The sizes it was made with.
    pub fn options(&self) -> &GenOptions {
        &self.options
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model<O>> {
        &self.model
    }

    /// Bytes of the activation buffers as they were allocated.
    pub fn buffer_bytes(&self) -> u64 {
        self.buffers.parts.values().sum()
    }

    /// Continues all requests, as many at a time as there are slots, in the order given; results are in that order too. `on_event` hears of every token and
    /// every end as it happens and can end a request or everything.
    ///
    /// # Errors
    /// Only what concerns all requests: a failing backend. What is wrong with one request is its [`Finish::Refused`].
    pub fn generate(
        &mut self,
        adapter: Option<&Adapter<O>>,
        requests: Vec<GenRequest>,
        on_event: &mut dyn FnMut(GenEvent<'_>) -> ControlFlow<Cancel>,
    ) -> Result<Vec<GenResult>> {
        let results = requests.iter().map(|r| GenResult { id: r.id, ids: Vec::new(), finish: Finish::Cancelled }).collect();
        let queue = (0..).zip(requests).map(|(place, r)| GenRequest { id: place, ..r }).collect();
        let mut all = All { results, queue, on_event };
        self.serve(&[adapter], &mut all)?;
        Ok(all.results)
    }

    /// Continues requests as they come, as many at a time as there are slots, until the feed ends it. A request names its adapter by its place in
    /// `adapters`; None is the model alone.
    ///
    /// # Errors
    /// As [`Generator::generate`].
    pub fn serve(&mut self, adapters: &[Option<&Adapter<O>>], feed: &mut dyn Feed) -> Result<()> {
        let (model, slots) = (self.model.clone(), self.options.slots);
        for adapter in adapters {
            self.buffers.fit(model.ops(), model.dims(), *adapter)?;
        }
        let mut run = Run::new(slots, model.ops().cuts_freely(), feed);
        let mut steps: Vec<Steps<O>> = adapters.iter().map(|_| Steps::default()).collect();
        let mut prefills = 0;
        loop {
            run.admit(|request| self.refuse(request, adapters.len()));
            run.drop_unwanted();
            if run.stopped {
                return Ok(());
            }
            let pending = run.active().filter(|(_, a)| !a.prompt_done()).count();
            let decoding = run.active().count() - pending;
            if pending > 0 && (decoding == 0 || prefills < PREFILLS_IN_A_ROW) {
                prefills += 1;
                self.prefill(adapters, &mut run)?;
            } else if decoding > 0 {
                prefills = 0;
                for (number, (adapter, steps)) in adapters.iter().zip(&mut steps).enumerate() {
                    self.decode(number, *adapter, &mut run, steps)?;
                }
            } else if !run.wait() {
                return Ok(());
            }
        }
    }

    fn refuse(&self, request: &GenRequest, adapters: usize) -> Option<RequestError> {
        let vocabulary = self.model.dims().vocab;
        let tokens = request.prompt_ids.len();
        if tokens == 0 {
            return Some(RequestError::EmptyPrompt);
        }
        if tokens > self.options.cache_length {
            return Some(RequestError::TooLong { tokens, limit: self.options.cache_length });
        }
        if let Some((position, id)) = request.prompt_ids.iter().enumerate().find(|(_, id)| **id as usize >= vocabulary) {
            return Some(RequestError::UnknownToken { position, id: *id, vocabulary });
        }
        if request.adapter >= adapters {
            return Some(RequestError::UnknownAdapter { number: request.adapter, count: adapters });
        }
        request.params.validate().err().map(|e| RequestError::Sampling(e.to_string()))
    }
}

/// Requests that are all there, numbered in their order, and their results.
struct All<'a> {
    results: Vec<GenResult>,
    queue: VecDeque<GenRequest>,
    on_event: &'a mut dyn FnMut(GenEvent<'_>) -> ControlFlow<Cancel>,
}

impl Feed for All<'_> {
    fn next(&mut self) -> Option<GenRequest> {
        self.queue.pop_front()
    }

    fn idle(&mut self) -> bool {
        !self.queue.is_empty()
    }

    fn event(&mut self, event: GenEvent<'_>) -> ControlFlow<Cancel> {
        let Some(result) = usize::try_from(event.id).ok().and_then(|place| self.results.get_mut(place)) else {
            return ControlFlow::Continue(());
        };
        result.ids.extend(event.token);
        if let Some(finish) = event.finish {
            result.finish = finish.clone();
        }
        (self.on_event)(GenEvent { id: result.id, ..event })
    }
}
