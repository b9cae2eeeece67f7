//! Forward passes of a generator: over prompts, and by one token of every sequence.

use rayon::prelude::*;
use trainer_kernels::ops::{HostBatch, Ops, OpsError};
use trainer_kernels::sampling::Sampler;

use super::Generator;
use super::logprobs::TokenLogprobs;
use super::run::{Active, Choice, Drawn, Run};
use crate::adapter::Adapter;
use crate::error::{OpsContext, Result};
use crate::forward::{Attend, Forward, finish};

/// Logits from which on drawing is spread over threads.
const PARALLEL_LOGITS: usize = 1 << 20;

/// A run of tokens of one slot, for one forward pass.
pub(crate) struct Piece<'a> {
    pub slot: u32,
    /// Position of the first token.
    pub start: usize,
    pub ids: &'a [u32],
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

/// Decoding steps of one adapter that are alike.
pub(super) struct Steps<O: Ops> {
    /// The slots of the last step.
    slots: Vec<usize>,
    /// Whether its tokens were drawn, not the likeliest.
    drawn: bool,
    recorded: Option<(O::Batch, O::Recording)>,
}

impl<O: Ops> Default for Steps<O> {
    fn default() -> Self {
        Steps { slots: Vec::new(), drawn: false, recorded: None }
    }
}

impl<O: Ops> Generator<O> {
    /// One pass over prompt tokens that are not in the cache yet, of one adapter; prompts that are complete get their first token.
    pub(super) fn prefill(&mut self, adapters: &[Option<&Adapter<O>>], run: &mut Run<'_>) -> Result<()> {
        let limit = self.options.prefill_tokens;
        let mut waiting: Vec<(usize, &Active)> = run.active().filter(|(_, a)| !a.prompt_done()).collect();
        waiting.sort_by_key(|(_, a)| a.number);
        let Some(first) = waiting.first().map(|(_, a)| (a.request.adapter, a.cached == 0)) else { return Ok(()) };
        let mut pieces = Vec::new();
        let mut total = 0;
        for (slot, active) in waiting {
            let start = active.cached;
            let rest = active.request.prompt_ids.get(start..).unwrap_or_default();
            let ids = rest.get(..rest.len().min(limit)).unwrap_or_default();
            // Beginnings attend within the batch, continuations through the cache: two kinds of passes.
            if (active.request.adapter, start == 0) == first && total + ids.len() <= limit {
                total += ids.len();
                pieces.push(Piece { slot: slot as u32, start, ids });
            }
        }
        self.pass(adapters.get(first.0).copied().flatten(), &pieces)?;
        let ends: Vec<(usize, usize)> = pieces.iter().map(|p| (p.slot as usize, p.ids.len())).collect();
        let (mut row, mut rows, mut slots) = (0, Vec::new(), Vec::new());
        for (slot, len) in ends {
            self.score_prompt(run, slot, row, len)?;
            row += len;
            let Some(active) = run.get_mut(slot) else { continue };
            active.cached += len;
            if active.prompt_done() && run.prompt_read(slot) {
                rows.push((row - 1) as u32);
                slots.push(slot);
            }
        }
        self.choose(run, &rows, &slots)?;
        Ok(())
    }

    /// Adds the log-probabilities that a pass over `len` tokens of a prompt, in the rows from `row` on, gives to it, where they are wanted.
    fn score_prompt(&mut self, run: &mut Run<'_>, slot: usize, row: usize, len: usize) -> Result<()> {
        let Some(active) = run.get(slot) else { return Ok(()) };
        let Some(count) = active.request.prompt_logprobs else { return Ok(()) };
        // The row of position p predicts the token at p + 1.
        let next = active.request.prompt_ids.get(active.cached + 1..).unwrap_or_default();
        let wanted: Vec<(u32, u32)> = next.iter().take(len).zip(row as u32..).map(|(id, row)| (row, *id)).collect();
        let (vocabulary, chunk_rows) = (self.model.dims().vocab, self.buffers.last_rows);
        for chunk in wanted.chunks(chunk_rows) {
            let rows: Vec<u32> = chunk.iter().map(|w| w.0).collect();
            let logits = self.logits(&rows)?;
            let scored = logits.chunks_exact(vocabulary).zip(chunk).map(|(logits, (_, id))| TokenLogprobs::new(logits, *id, count));
            if let Some(active) = run.get_mut(slot) {
                active.prompt_logprobs.extend(scored);
            }
        }
        Ok(())
    }

    /// One token for every sequence of an adapter whose prompt has been read. When the same sequences go on from step to step, and the backend
    /// chooses their tokens, the step is recorded and replayed.
    pub(super) fn decode(&mut self, number: usize, adapter: Option<&Adapter<O>>, run: &mut Run<'_>, steps: &mut Steps<O>) -> Result<()> {
        let mut pieces = Vec::new();
        for (slot, active) in run.active().filter(|(_, a)| a.request.adapter == number && a.prompt_done()) {
            pieces.push(Piece { slot: slot as u32, start: active.cached, ids: active.history.get(active.cached..).unwrap_or_default() });
        }
        if pieces.is_empty() {
            return Ok(());
        }
        let slots: Vec<usize> = pieces.iter().map(|p| p.slot as usize).collect();
        let rows: Vec<u32> = (0..slots.len() as u32).collect();
        let host = batch_of(&pieces);
        for slot in &slots {
            if let Some(active) = run.get_mut(*slot) {
                active.cached += 1;
            }
        }
        let choice = run.choice(&slots);
        let drawn = matches!(choice, Choice::Drawn(_));
        if matches!(choice, Choice::OnHost) || steps.slots != slots || steps.drawn != drawn {
            *steps = Steps { slots: slots.clone(), drawn, recorded: None };
            self.run_batch(adapter, &host, false)?;
            self.choose(run, &rows, &slots)?;
            return Ok(());
        }
        let ops = self.model.shared_ops();
        if let Some((batch, recording)) = &mut steps.recorded {
            let placed = match &choice {
                Choice::Drawn(draws) => ops.set_draws(draws).at(|| "drawing tokens".into())?,
                _ => true,
            };
            let again =
                placed && ops.refill(&host, batch).at(|| "batch".into())? && ops.replay(recording).at(|| "a recorded step".into())?;
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
                let (ops, n, last, head) = (self.model.ops(), rows.len(), &self.buffers.last, self.model.head());
                if drawn { ops.draw(n, last, head) } else { ops.greedy(n, last, head) }.at(|| "choosing tokens".into())?;
                Ok(())
            };
            step().map_err(|e| {
                let text = e.to_string();
                failure = Some(e);
                OpsError::Device(text)
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
        let choice = run.choice(slots);
        let here = match &choice {
            Choice::OnHost => false,
            Choice::Likeliest => true,
            Choice::Drawn(draws) => self.model.ops().set_draws(draws).at(|| "drawing tokens".into())?,
        };
        if here {
            finish(&self.model, rows, &mut self.buffers)?;
            let (ops, n, last, head) = (self.model.ops(), rows.len(), &self.buffers.last, self.model.head());
            let drawn = matches!(choice, Choice::Drawn(_));
            let chosen = if drawn { ops.draw(n, last, head) } else { ops.greedy(n, last, head) }.at(|| "choosing tokens".into())?;
            if chosen && self.take_chosen(run, slots)? {
                return Ok(true);
            }
        }
        let logits = self.logits(rows)?;
        let jobs: Vec<(&[f32], &Active)> =
            logits.chunks_exact(vocabulary).zip(slots).filter_map(|(logits, slot)| Some((logits, run.get(*slot)?))).collect();
        let draw = |sampler: &mut Sampler, (logits, active): &(&[f32], &Active)| active.draw(sampler, logits);
        // Threads are only worth waking for a good deal of work; the result is the same either way.
        let drawn: Vec<Drawn> = if logits.len() < PARALLEL_LOGITS {
            let mut sampler = Sampler::new();
            jobs.iter().map(|job| draw(&mut sampler, job)).collect()
        } else {
            jobs.par_iter().map_init(Sampler::new, draw).collect()
        };
        for (slot, drawn) in slots.iter().zip(drawn) {
            run.advance(*slot, drawn, self.options.cache_length);
        }
        Ok(false)
    }

    /// Adds the tokens that the backend chose to their sequences; false, and nothing done, where some row's logits are broken: the sampler, which then is
    /// given all of them, says how.
    fn take_chosen(&self, run: &mut Run<'_>, slots: &[usize]) -> Result<bool> {
        let chosen = self.model.ops().chosen(slots.len()).at(|| "chosen tokens".into())?;
        let Some(tokens) = chosen.into_iter().collect::<Option<Vec<u32>>>() else { return Ok(false) };
        for (slot, token) in slots.iter().zip(tokens) {
            run.advance(*slot, Ok((token, None)), self.options.cache_length);
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
