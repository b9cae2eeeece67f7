//! Generation with a key/value cache: prompts are prefilled together, decoded in one batch, and a finished sequence's slot goes to the next
//! request at once.
//!
//! What a request gives does not depend on what else is in the batch: no operation mixes sequences, a prompt is cut at multiples of `prefill_tokens` of
//! its own length, and each sample draws from a random stream of its own.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use rayon::prelude::*;
use trainer_kernels::ops::{HostBatch, Ops};
use trainer_kernels::sampling::{DrawStream, Sampler, SamplingError, SamplingParams};

use crate::adapter::Adapter;
use crate::error::{EngineError, OpsContext, Result};
use crate::forward::{Attend, Buffers, Forward, finish};
use crate::model::Model;

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
#[derive(Clone, Debug, PartialEq)]
pub struct GenRequest {
    /// The caller's name for it.
    pub id: u64,
    /// The prompt; at least one token.
    pub prompt_ids: Vec<u32>,
    /// How to choose tokens.
    pub params: SamplingParams,
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

/// Something that happened to a request: a new token, its end, or both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GenEvent<'a> {
    /// The request's name.
    pub id: u64,
    /// The token that was added; `None` where the sequence only ended (a stop token is not shown).
    pub token: Option<u32>,
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

/// A sequence that has a slot.
struct Active {
    /// Place in the results.
    index: usize,
    request: GenRequest,
    /// Prompt tokens in the cache.
    prefilled: usize,
    /// Prompt and generated tokens: the sampler's history.
    history: Vec<u32>,
}

impl Active {
    fn prompt_done(&self) -> bool {
        self.prefilled == self.request.prompt_ids.len()
    }

    fn draw(&self, sampler: &mut Sampler, logits: &[f32]) -> std::result::Result<u32, SamplingError> {
        let r = &self.request;
        let stream = DrawStream { seed: r.seed, sample: r.sample, repeat: r.repeat };
        sampler.sample(logits, &self.history, &r.params, &stream, self.generated().len() as u32)
    }

    /// Whether the likeliest token is always the next one.
    fn is_greedy(&self) -> bool {
        self.request.params.temperature == 0.0 && self.request.params.repetition_penalty == 1.0
    }

    fn generated(&self) -> &[u32] {
        self.history.get(self.request.prompt_ids.len()..).unwrap_or_default()
    }
}

/// Logits from which on drawing is spread over threads.
const PARALLEL_LOGITS: usize = 1 << 20;

/// One call of [`Generator::generate`].
struct Run<'a> {
    results: Vec<GenResult>,
    slots: Vec<Option<Active>>,
    on_event: &'a mut dyn FnMut(GenEvent<'_>) -> ControlFlow<Cancel>,
    /// The caller wants no more.
    stopped: bool,
}

impl Run<'_> {
    /// Whether the likeliest token is always the next one in all of these slots.
    fn greedy(&self, slots: &[usize]) -> bool {
        slots.iter().all(|slot| self.slots.get(*slot).and_then(Option::as_ref).is_some_and(Active::is_greedy))
    }

    /// Adds a drawn token to the sequence in a slot, or ends it.
    fn advance(&mut self, slot: usize, token: std::result::Result<u32, SamplingError>, cache_length: usize) {
        let Some(mut active) = self.slots.get_mut(slot).and_then(Option::take) else { return };
        let token = match token {
            Ok(token) if active.request.stop_ids.contains(&token) => return self.finish(active, None, Finish::Stop(token)),
            Ok(token) => token,
            Err(e) => return self.finish(active, None, Finish::Refused(RequestError::Sampling(e.to_string()))),
        };
        active.history.push(token);
        // The newest token enters the cache only when the next one is computed.
        if active.generated().len() >= active.request.max_new_tokens {
            return self.finish(active, Some(token), Finish::Length);
        }
        if active.history.len() > cache_length {
            return self.finish(active, Some(token), Finish::CacheFull);
        }
        match (self.on_event)(GenEvent { id: active.request.id, token: Some(token), finish: None }) {
            ControlFlow::Continue(()) => {}
            ControlFlow::Break(Cancel::Request) => return self.end(active, Finish::Cancelled),
            ControlFlow::Break(Cancel::All) => self.stopped = true,
        }
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(active);
        }
    }

    /// Ends a sequence and says so.
    fn finish(&mut self, active: Active, token: Option<u32>, finish: Finish) {
        let event = GenEvent { id: active.request.id, token, finish: Some(&finish) };
        if (self.on_event)(event) == ControlFlow::Break(Cancel::All) {
            self.stopped = true;
        }
        self.end(active, finish);
    }

    /// Ends a sequence.
    fn end(&mut self, active: Active, finish: Finish) {
        if let Some(result) = self.results.get_mut(active.index) {
            result.ids = active.generated().to_vec();
            result.finish = finish;
        }
    }
}

/// Decoding steps of one call that are alike.
struct Steps<O: Ops> {
    /// The slots of the last step.
    slots: Vec<usize>,
    recorded: Option<(O::Batch, O::Recording)>,
}

/// Pieces as a batch.
fn batch_of(pieces: &[Piece<'_>]) -> HostBatch {
    let mut batch = HostBatch { cu_seqlens: vec![0], ..HostBatch::default() };
    for piece in pieces {
        batch.ids.extend_from_slice(piece.ids);
        batch.positions.extend((piece.start..piece.start + piece.ids.len()).map(|p| p as u32));
        batch.cu_seqlens.push(batch.ids.len() as u32);
        batch.slots.push(piece.slot);
    }
    batch
}

/// Continues prompts.
pub struct Generator<O: Ops> {
    model: Arc<Model<O>>,
    options: GenOptions,
    pub(crate) cache: O::Cache,
    pub(crate) buffers: Buffers<O>,
}

/// A run of tokens of one slot, for one forward pass.
pub(crate) struct Piece<'a> {
    pub slot: u32,
    /// Position of the first token.
    pub start: usize,
    pub ids: &'a [u32],
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
        self.buffers.fit(self.model.ops(), self.model.dims(), adapter)?;
        let mut run = Run {
            results: requests.iter().map(|r| GenResult { id: r.id, ids: Vec::new(), finish: Finish::Cancelled }).collect(),
            slots: std::iter::repeat_with(|| None).take(self.options.slots).collect(),
            on_event,
            stopped: false,
        };
        let mut steps = Steps { slots: Vec::new(), recorded: None };
        let mut queue: VecDeque<(usize, GenRequest)> = requests.into_iter().enumerate().collect();
        while !run.stopped {
            self.admit(&mut run, &mut queue);
            if run.stopped || run.slots.iter().all(Option::is_none) {
                break;
            }
            if run.slots.iter().flatten().any(|a| !a.prompt_done()) {
                self.prefill(adapter, &mut run)?;
            } else {
                self.decode(adapter, &mut run, &mut steps)?;
            }
        }
        for active in std::mem::take(&mut run.slots).into_iter().flatten() {
            run.end(active, Finish::Cancelled);
        }
        Ok(run.results)
    }

    /// Fills free slots from the queue.
    fn admit(&self, run: &mut Run<'_>, queue: &mut VecDeque<(usize, GenRequest)>) {
        for slot in 0..run.slots.len() {
            if run.slots.get(slot).is_none_or(Option::is_some) {
                continue;
            }
            while !run.stopped {
                let Some((index, request)) = queue.pop_front() else { return };
                let refusal = self.refuse(&request);
                let history = request.prompt_ids.clone();
                let nothing = request.max_new_tokens == 0;
                let active = Active { index, request, prefilled: 0, history };
                if let Some(error) = refusal {
                    run.finish(active, None, Finish::Refused(error));
                } else if nothing {
                    run.finish(active, None, Finish::Length);
                } else if let Some(place) = run.slots.get_mut(slot) {
                    *place = Some(active);
                    break;
                }
            }
        }
    }

    fn refuse(&self, request: &GenRequest) -> Option<RequestError> {
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
        request.params.validate().err().map(|e| RequestError::Sampling(e.to_string()))
    }

    /// One pass over prompt tokens that are not in the cache yet; prompts that are complete get their first token.
    fn prefill(&mut self, adapter: Option<&Adapter<O>>, run: &mut Run<'_>) -> Result<()> {
        let limit = self.options.prefill_tokens;
        let mut pieces = Vec::new();
        let (mut total, mut fresh) = (0, None);
        for (slot, active) in run.slots.iter().enumerate() {
            let Some(active) = active.as_ref().filter(|a| !a.prompt_done()) else { continue };
            let start = active.prefilled;
            let rest = active.request.prompt_ids.get(start..).unwrap_or_default();
            let ids = rest.get(..rest.len().min(limit)).unwrap_or_default();
            // Beginnings attend within the batch, continuations through the cache: two kinds of passes.
            if *fresh.get_or_insert(start == 0) == (start == 0) && total + ids.len() <= limit {
                total += ids.len();
                pieces.push(Piece { slot: slot as u32, start, ids });
            }
        }
        self.pass(adapter, &pieces)?;
        let ends: Vec<(usize, usize)> = pieces.iter().map(|p| (p.slot as usize, p.ids.len())).collect();
        let (mut row, mut rows, mut slots) = (0, Vec::new(), Vec::new());
        for (slot, len) in ends {
            row += len;
            if let Some(Some(active)) = run.slots.get_mut(slot) {
                active.prefilled += len;
                if active.prompt_done() {
                    rows.push((row - 1) as u32);
                    slots.push(slot);
                }
            }
        }
        self.choose(run, &rows, &slots)?;
        Ok(())
    }

    /// One token for every sequence. When the same sequences go on greedily from step to step, the step is recorded and replayed.
    fn decode(&mut self, adapter: Option<&Adapter<O>>, run: &mut Run<'_>, steps: &mut Steps<O>) -> Result<()> {
        let mut pieces = Vec::new();
        for (slot, active) in run.slots.iter().enumerate() {
            let Some(active) = active else { continue };
            let start = active.history.len().saturating_sub(1);
            pieces.push(Piece { slot: slot as u32, start, ids: active.history.get(start..).unwrap_or_default() });
        }
        let slots: Vec<usize> = pieces.iter().map(|p| p.slot as usize).collect();
        let rows: Vec<u32> = (0..slots.len() as u32).collect();
        let host = batch_of(&pieces);
        let greedy = run.greedy(&slots);
        if !greedy || steps.slots != slots {
            steps.recorded = None;
            steps.slots = slots.clone();
            self.run_batch(adapter, &host, false)?;
            self.choose(run, &rows, &slots)?;
            return Ok(());
        }
        let ops = self.model.shared_ops();
        if let Some((batch, recording)) = &mut steps.recorded {
            let again = ops.refill(&host, batch).at(|| "batch".into())? && ops.replay(recording).at(|| "a recorded step".into())?;
            if again && self.take_chosen(run, &slots)? {
                return Ok(());
            }
            steps.recorded = None;
        }
        self.run_batch(adapter, &host, false)?;
        if !self.choose(run, &rows, &slots)? {
            // A recorded step has to choose for itself, and the backend does not for so many sequences.
            return Ok(());
        }
        // Everything that the step needs is there now, so that recording it allocates nothing.
        let batch = ops.batch(&host).at(|| "batch".into())?;
        let mut failure = None;
        let recording = ops.record(&mut || {
            let mut step = || -> Result<()> {
                self.layers(adapter, &batch, rows.len(), false)?;
                finish(&self.model, &rows, &mut self.buffers)?;
                self.model.ops().greedy(rows.len(), &self.buffers.last, self.model.head()).at(|| "choosing tokens".into())?;
                Ok(())
            };
            step().map_err(|e| {
                let text = e.to_string();
                failure = Some(e);
                trainer_kernels::ops::OpsError::Device(text)
            })
        });
        match (failure, recording) {
            (Some(e), _) => Err(e),
            (None, recording) => {
                steps.recorded = recording.at(|| "recording a step".into())?.map(|recording| (batch, recording));
                Ok(())
            }
        }
    }

    /// Runs pieces through all layers, which leaves the residual stream in the buffers and the keys and values in the cache. Pieces that begin at 0
    /// attend within the batch, all others through the cache; they must not be mixed unless each has one token.
    pub(crate) fn pass(&mut self, adapter: Option<&Adapter<O>>, pieces: &[Piece<'_>]) -> Result<()> {
        let fresh = pieces.iter().all(|p| p.start == 0);
        self.run_batch(adapter, &batch_of(pieces), fresh)
    }

    fn run_batch(&mut self, adapter: Option<&Adapter<O>>, host: &HostBatch, fresh: bool) -> Result<()> {
        let batch = self.model.ops().batch(host).at(|| "batch".into())?;
        self.layers(adapter, &batch, host.ids.len(), fresh)
    }

    fn layers(&mut self, adapter: Option<&Adapter<O>>, batch: &O::Batch, n: usize, fresh: bool) -> Result<()> {
        let forward = Forward { model: &self.model, adapter, batch, n };
        forward.embed(&mut self.buffers)?;
        for layer in 0..self.model.dims().layers {
            let attend = if fresh { Attend::Fresh(&mut self.cache) } else { Attend::Cached(&mut self.cache) };
            forward.layer(layer, &mut self.buffers, Some(attend))?;
        }
        Ok(())
    }

    /// Draws the next token of the sequences in `slots` from the logits of `rows`; whether the backend chose them.
    fn choose(&mut self, run: &mut Run<'_>, rows: &[u32], slots: &[usize]) -> Result<bool> {
        if rows.is_empty() {
            return Ok(false);
        }
        let vocabulary = self.model.dims().vocab;
        if run.greedy(slots) {
            finish(&self.model, rows, &mut self.buffers)?;
            let (ops, head) = (self.model.ops(), self.model.head());
            if ops.greedy(rows.len(), &self.buffers.last, head).at(|| "choosing tokens".into())? && self.take_chosen(run, slots)? {
                return Ok(true);
            }
        }
        let logits = self.logits(rows)?;
        let jobs: Vec<(&[f32], &Active)> = logits
            .chunks_exact(vocabulary)
            .zip(slots)
            .filter_map(|(logits, slot)| Some((logits, run.slots.get(*slot)?.as_ref()?)))
            .collect();
        let draw = |sampler: &mut Sampler, (logits, active): &(&[f32], &Active)| active.draw(sampler, logits);
        // Threads are only worth waking for a good deal of work; the result is the same either way.
        let tokens: Vec<_> = if logits.len() < PARALLEL_LOGITS {
            let mut sampler = Sampler::new();
            jobs.iter().map(|job| draw(&mut sampler, job)).collect()
        } else {
            jobs.par_iter().map_init(Sampler::new, draw).collect()
        };
        for (slot, token) in slots.iter().zip(tokens) {
            run.advance(*slot, token, self.options.cache_length);
        }
        Ok(false)
    }

    /// Adds the tokens that the backend chose to their sequences; false, and nothing done, where some row's logits are broken: the sampler, which then is
    /// given all of them, says how.
    fn take_chosen(&self, run: &mut Run<'_>, slots: &[usize]) -> Result<bool> {
        let chosen = self.model.ops().chosen(slots.len()).at(|| "chosen tokens".into())?;
        let Some(tokens) = chosen.into_iter().collect::<Option<Vec<u32>>>() else { return Ok(false) };
        for (slot, token) in slots.iter().zip(tokens) {
            run.advance(*slot, Ok(token), self.options.cache_length);
        }
        Ok(true)
    }

    /// The logits of some rows of the last pass, `[rows, vocabulary]`.
    pub(crate) fn logits(&mut self, rows: &[u32]) -> Result<Vec<f32>> {
        let ops = self.model.ops();
        finish(&self.model, rows, &mut self.buffers)?;
        ops.logits(rows.len(), &self.buffers.last, self.model.head()).at(|| "logits".into())
    }
}
