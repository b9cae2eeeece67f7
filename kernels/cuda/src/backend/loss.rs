//! Cross-entropy over the vocabulary in chunks of positions, and logits for sampling.

use super::types::{Batch, Table};
use super::{Cuda, Outcome};
use crate::launch::{BROKEN, DRAW_WORDS, MOST_SMALL_ROWS, ON_HOST, RowSet, draw_words};
use crate::matrix::{Matrix, Op, Out};
use crate::memory::{Buffer, Floats, Tensor};
use half::bf16;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use trainer_kernels::ops::OpsError;
use trainer_kernels::sampling::Draw;

/// The most candidates by rank that are drawn from on the card.
const MOST_RANKS: u32 = 1024;

/// How tokens are chosen from logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// The best.
    Likeliest,
    /// As [`Cuda::place_draws`] said.
    Drawn,
}

/// Logits, what tokens are drawn by, and the tokens.
#[derive(Default)]
pub struct Chosen {
    logits: Option<Floats>,
    draws: Option<Buffer<u64>>,
    tokens: Option<Buffer<u32>>,
}

/// The buffers of a chunk.
pub struct Scratch {
    rows: usize,
    vocab: usize,
    hidden: usize,
    gathered: Tensor,
    logits: Floats,
    d_logits: Buffer<bf16>,
    d_rows: Tensor,
}

/// Bytes that the loss holds beside activations, for chunks of `rows` positions.
pub fn loss_bytes(rows: usize, vocab: usize, hidden: usize) -> u64 {
    let (rows, vocab, hidden) = (rows as u64, vocab as u64, hidden as u64);
    [2 * rows * hidden, 4 * rows * vocab, 2 * rows * vocab, 2 * rows * hidden].iter().map(|b| b.max(&1).next_multiple_of(256)).sum()
}

impl Cuda {
    /// Buffers for chunks of up to `rows` positions.
    fn loss_scratch<T>(&self, rows: usize, vocab: usize, hidden: usize, work: impl FnOnce(&mut Scratch) -> Outcome<T>) -> Outcome<T> {
        let mut held = self.loss.lock().unwrap_or_else(PoisonError::into_inner);
        if !held.as_ref().is_some_and(|s| s.rows >= rows && s.vocab == vocab && s.hidden == hidden) {
            *held = None;
            self.replace();
            let d = &self.device;
            *held = Some(Scratch {
                rows,
                vocab,
                hidden,
                gathered: Tensor::new(d.arena(), rows, hidden, "positions of the loss")?,
                logits: d.buffer(rows * vocab, "logits")?,
                d_logits: d.buffer(rows * vocab, "gradients of logits")?,
                d_rows: Tensor::new(d.arena(), rows, hidden, "gradients of the loss")?,
            });
        }
        match held.as_mut() {
            Some(scratch) => work(scratch),
            None => Err(OpsError::Device("no scratch for the loss: a bug in trainer-kernels-cuda".into())),
        }
    }

    pub(super) fn weighted_cross_entropy(
        &self,
        batch: &Batch,
        n: usize,
        hidden: &Tensor,
        head: &Table,
        grad_scale: f32,
        dhidden: Option<&mut Tensor>,
    ) -> Outcome<Vec<f64>> {
        let op = "cross_entropy";
        batch.check_rows(op, n)?;
        let head = head.on_card(op)?;
        let (vocab, cols) = (head.rows(), head.cols());
        if hidden.cols() != cols || hidden.rows() < n {
            return Err(OpsError::Shape { op, what: "hidden", got: hidden.cols(), need: cols });
        }
        if !batch.has_targets {
            return Err(OpsError::Shape { op, what: "the batch's targets", got: 0, need: n });
        }
        if !batch.wanted.is_empty() && batch.largest_target as usize >= vocab {
            return Err(OpsError::Index { op, what: "target", index: batch.largest_target.into(), limit: vocab as u64 });
        }
        let mut dhidden = dhidden;
        if let Some(d) = dhidden.as_deref_mut() {
            if d.cols() != cols || d.rows() < n {
                return Err(OpsError::Shape { op, what: "dhidden", got: d.cols(), need: cols });
            }
            self.device.zero_tensor(n, d)?;
        }
        let count = batch.wanted.len();
        if count == 0 {
            return Ok(vec![0.0; batch.sequence_count]);
        }
        let factors: Vec<f32> = batch.wanted.iter().map(|w| w.weight * grad_scale).collect();
        let factors = self.device.floats(&factors)?;
        let mut losses = self.device.buffer::<f32>(count, "losses")?;
        let chunk = self.loss_rows.load(Ordering::Relaxed).max(1);
        self.loss_scratch(chunk, vocab, cols, |s| {
            let last = n as u32 - 1;
            for first in (0..count).step_by(chunk) {
                let rows = chunk.min(count - first);
                let set = RowSet { rows: &batch.wanted_rows, first, count: rows, largest: last };
                self.device.gather_rows(set, hidden, &mut s.gathered)?;
                let logits = Out::floats(&mut s.logits, 0, rows, vocab)?;
                let (x, w) = (Matrix::tensor(&s.gathered, rows)?, Matrix::tensor(head, vocab)?);
                self.gemm(x, Op::N, w, Op::T, logits, rows, vocab, cols, 1.0, 0.0)?;
                let gradient = dhidden.is_some().then_some(&mut s.d_logits);
                self.device.cross_entropy_rows(rows, vocab, &s.logits, &batch.targets, &factors, first, &mut losses, gradient)?;
                if let Some(d) = dhidden.as_deref_mut() {
                    let dl = Matrix::buffer(&s.d_logits, 0, rows, vocab)?;
                    let out = Out::tensor(&mut s.d_rows, rows)?;
                    self.gemm(dl, Op::N, w, Op::N, out, rows, cols, vocab, 1.0, 0.0)?;
                    self.device.scatter_rows(set, &s.d_rows, d)?;
                }
            }
            Ok(())
        })?;
        let mut sums = vec![0.0f64; batch.sequence_count];
        for (wanted, loss) in batch.wanted.iter().zip(losses.read()?) {
            if let Some(sum) = sums.get_mut(wanted.sequence as usize) {
                *sum += f64::from(wanted.weight) * f64::from(loss);
            }
        }
        Ok(sums)
    }

    /// Chooses the tokens of up to [`MOST_SMALL_ROWS`] rows, the likeliest or as [`Self::place_draws`] said; false for more.
    pub(super) fn choose(&self, n: usize, hidden: &Tensor, head: &Table, how: How) -> Outcome<bool> {
        if n > MOST_SMALL_ROWS {
            return Ok(false);
        }
        let head = head.on_card("choosing tokens")?;
        let vocab = head.rows();
        let mut held = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        if held.logits.as_ref().is_none_or(|logits| logits.len() < n * vocab) {
            held.logits = None;
            self.replace();
            held.logits = Some(self.device.buffer(n * vocab, "logits")?);
        }
        self.choice_buffers(&mut held)?;
        if let Chosen { logits: Some(logits), tokens: Some(out), draws: Some(draws) } = &mut *held {
            self.device.bf16_linear_small(n, hidden, head, logits)?;
            match how {
                How::Likeliest => self.device.logits_argmax(n, vocab, logits, out)?,
                How::Drawn => self.device.sample_rows(n, vocab, logits, draws, out)?,
            }
        }
        Ok(true)
    }

    /// How [`Self::choose`] draws. Only what has few candidates, by rank, is drawn here: there the card's draws are the host's.
    pub(super) fn place_draws(&self, draws: &[Draw]) -> Outcome<bool> {
        let here = |d: &Draw| d.params.temperature == 0.0 || (1..=MOST_RANKS).contains(&d.params.top_k);
        if draws.len() > MOST_SMALL_ROWS || !draws.iter().all(here) {
            return Ok(false);
        }
        let mut words = Vec::with_capacity(draws.len() * DRAW_WORDS);
        for draw in draws {
            words.extend(draw_words(draw)?);
        }
        let mut held = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        self.choice_buffers(&mut held)?.write_at(0, &words)?;
        Ok(true)
    }

    /// Buffers for tokens and draws, of which there is one size; gives those of draws.
    fn choice_buffers<'a>(&self, held: &'a mut Chosen) -> Outcome<&'a mut Buffer<u64>> {
        if held.tokens.is_none() {
            self.replace();
            held.tokens = Some(self.device.buffer(MOST_SMALL_ROWS, "tokens")?);
        }
        if held.draws.is_none() {
            held.draws = Some(self.device.zeros(MOST_SMALL_ROWS * DRAW_WORDS, "draws")?);
        }
        held.draws.as_mut().ok_or_else(|| OpsError::Device("no buffer for draws: a bug in trainer-kernels-cuda".into()))
    }

    /// What [`Self::choose`] chose.
    pub(super) fn chosen_read(&self, n: usize) -> Outcome<Vec<Option<u32>>> {
        let held = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut got = vec![0u32; n];
        match &held.tokens {
            Some(out) => out.read_at(0, &mut got)?,
            None => return Err(OpsError::Device("no tokens were chosen".into())),
        }
        Ok(got.into_iter().map(|t| (t != BROKEN && t != ON_HOST).then_some(t)).collect())
    }

    pub(super) fn all_logits(&self, n: usize, hidden: &Tensor, head: &Table) -> Outcome<Vec<f32>> {
        let op = "logits";
        let head = head.on_card(op)?;
        let (vocab, cols) = (head.rows(), head.cols());
        if hidden.cols() != cols || hidden.rows() < n {
            return Err(OpsError::Shape { op, what: "hidden", got: hidden.cols(), need: cols });
        }
        let len = n.checked_mul(vocab).ok_or(OpsError::Memory { what: op.into(), bytes: u64::MAX })?;
        let mut logits = Vec::new();
        logits.try_reserve_exact(len).map_err(|_| OpsError::Memory { what: op.into(), bytes: len as u64 * 4 })?;
        logits.resize(len, 0.0f32);
        let chunk = self.loss_rows.load(Ordering::Relaxed).clamp(MOST_SMALL_ROWS, n.max(MOST_SMALL_ROWS));
        let mut buffer = self.device.buffer::<f32>(chunk * vocab, "logits")?;
        for first in (0..n).step_by(chunk) {
            let rows = chunk.min(n - first);
            if n <= MOST_SMALL_ROWS {
                self.device.bf16_linear_small(n, hidden, head, &mut buffer)?;
                buffer.read_at(0, &mut logits)?;
                break;
            }
            let x = Matrix { ptr: hidden.ptr() + 2 * (first * hidden.stride()) as u64, rows, cols, stride: hidden.stride() };
            let out = Out::floats(&mut buffer, 0, rows, vocab)?;
            self.gemm(x, Op::N, Matrix::tensor(head, vocab)?, Op::T, out, rows, vocab, cols, 1.0, 0.0)?;
            if let Some(to) = logits.get_mut(first * vocab..(first + rows) * vocab) {
                buffer.read_at(0, to)?;
            }
        }
        Ok(logits)
    }
}
