//! Cross-entropy over the vocabulary in chunks of positions, and logits for sampling.

use super::types::{Batch, Table};
use super::{Cuda, Outcome};
use crate::launch::{MOST_SMALL_ROWS, RowSet};
use crate::matrix::{Matrix, Op, Out};
use crate::memory::{Buffer, Floats, Tensor};
use half::bf16;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use trainer_kernels::ops::OpsError;

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

    /// Chooses the likeliest tokens of up to [`MOST_SMALL_ROWS`] rows; false for more.
    pub(super) fn likeliest(&self, n: usize, hidden: &Tensor, head: &Table) -> Outcome<bool> {
        if n > MOST_SMALL_ROWS {
            return Ok(false);
        }
        let head = head.on_card("greedy")?;
        let vocab = head.rows();
        let mut held = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_none_or(|(logits, _)| logits.len() < n * vocab) {
            *held = None;
            self.replace();
            *held = Some((self.device.buffer(n * vocab, "logits")?, self.device.buffer(MOST_SMALL_ROWS, "tokens")?));
        }
        if let Some((logits, out)) = held.as_mut() {
            self.device.bf16_linear_small(n, hidden, head, logits)?;
            self.device.logits_argmax(n, vocab, logits, out)?;
        }
        Ok(true)
    }

    /// What [`Self::likeliest`] chose.
    pub(super) fn likeliest_read(&self, n: usize) -> Outcome<Vec<Option<u32>>> {
        let held = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut got = vec![0u32; n];
        match held.as_ref() {
            Some((_, out)) => out.read_at(0, &mut got)?,
            None => return Err(OpsError::Device("no tokens were chosen".into())),
        }
        Ok(got.into_iter().map(|t| (t != u32::MAX).then_some(t)).collect())
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
