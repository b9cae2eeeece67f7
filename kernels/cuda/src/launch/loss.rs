//! Cross-entropy over rows of logits, the rows that count in it, and the greedy token.

use super::{blocks, fail, grid, launch, least, product, rows, vectors};
use crate::Result;
use crate::device::Device;
use crate::memory::{Buffer, Floats, Tensor};
use cudarc::driver::LaunchConfig;
use half::bf16;

/// Threads of a row of logits: enough loads in flight for a vocabulary of 150,000.
const ROW_THREADS: u32 = 1024;

/// The vocabulary as the kernels take it: small enough that four rounds past its end do not wrap.
pub(super) fn vocabulary(op: &'static str, vocab: usize) -> Result<u32> {
    u32::try_from(vocab).ok().filter(|v| (1..=1 << 30).contains(v)).ok_or_else(|| fail(op, "the vocabulary", vocab, "from 1 to 2^30"))
}

/// A block per row, with no more threads than there are vectors of four.
fn row_blocks(op: &'static str, rows: usize, vocab: u32) -> Result<LaunchConfig> {
    Ok(grid(blocks(op, rows, 1)?, 1, vocab.div_ceil(4).next_multiple_of(32).min(ROW_THREADS)))
}

/// Row numbers on the card, a part of which says which rows are meant.
#[derive(Clone, Copy)]
pub struct RowSet<'a> {
    /// Row numbers.
    pub rows: &'a Buffer<u32>,
    /// The first of them that is used.
    pub first: usize,
    /// How many are used.
    pub count: usize,
    /// The largest of them, as the host knows it: no row may be larger.
    pub largest: u32,
}

impl Device {
    /// For each of `rows` rows of `logits`, `[rows, vocab]` without gaps: the loss `ln Σ exp(logit) - logit[target]`, not weighted, and with `dlogits`
    /// (of the same shape) `factor * (softmax - onehot(target))`. Targets, factors (loss weight times the scale of the gradient) and losses are those
    /// from `first` on. One pass over the logits finds the largest and the sum together (Milakov & Gimelshein 2018), a second one writes the gradient.
    /// A target outside of the vocabulary gives a loss of NaN.
    ///
    /// # Errors
    /// Buffers that do not fit.
    #[expect(clippy::too_many_arguments, reason = "loss and gradient are one pass")]
    pub fn cross_entropy_rows(
        &self,
        rows: usize,
        vocab: usize,
        logits: &Buffer<f32>,
        targets: &Buffer<u32>,
        factors: &Floats,
        first: usize,
        losses: &mut Floats,
        dlogits: Option<&mut Buffer<bf16>>,
    ) -> Result<()> {
        let op = "cross_entropy_rows";
        let v = vocabulary(op, vocab)?;
        let end = first.checked_add(rows);
        least(op, "the logits", logits.len(), product(&[rows, vocab]))?;
        least(op, "the targets", targets.len(), end)?;
        least(op, "the factors", factors.len(), end)?;
        least(op, "the losses", losses.len(), end)?;
        if let Some(d) = &dlogits {
            least(op, "the gradient", d.len(), product(&[rows, vocab]))?;
        }
        if rows > 0 {
            let (skip, d) = (4 * first as u64, dlogits.map_or(0, |d| d.ptr()));
            let config = row_blocks(op, rows, v)?;
            launch!(self, op, config, logits.ptr(), v, targets.ptr() + skip, factors.ptr() + skip, losses.ptr() + skip, d);
        }
        Ok(())
    }

    /// The index of the largest of each row of `logits`, `[rows, vocab]` without gaps: the lowest among equals. `u32::MAX` if a logit is NaN or +infinity,
    /// or if all are -infinity.
    ///
    /// # Errors
    /// Buffers that do not fit.
    pub fn logits_argmax(&self, rows: usize, vocab: usize, logits: &Buffer<f32>, out: &mut Buffer<u32>) -> Result<()> {
        let op = "logits_argmax";
        let v = vocabulary(op, vocab)?;
        least(op, "the logits", logits.len(), product(&[rows, vocab]))?;
        least(op, "the tokens", out.len(), Some(rows))?;
        if rows > 0 {
            launch!(self, op, row_blocks(op, rows, v)?, logits.ptr(), v, out.ptr());
        }
        Ok(())
    }

    /// `to[i] = from[rows[i]]`.
    ///
    /// # Errors
    /// Buffers that do not fit, or a row that `from` has not got.
    pub fn gather_rows(&self, set: RowSet<'_>, from: &Tensor, to: &mut Tensor) -> Result<()> {
        self.move_rows("gather_rows", set, from, to, set.largest as usize + 1, set.count)
    }

    /// `to[rows[i]] = from[i]`; other rows of `to` stay as they are. No row may occur twice.
    ///
    /// # Errors
    /// Buffers that do not fit, or a row that `to` has not got.
    pub fn scatter_rows(&self, set: RowSet<'_>, from: &Tensor, to: &mut Tensor) -> Result<()> {
        self.move_rows("scatter_rows", set, from, to, set.count, set.largest as usize + 1)
    }

    fn move_rows(&self, op: &'static str, set: RowSet<'_>, from: &Tensor, to: &mut Tensor, from_rows: usize, to_rows: usize) -> Result<()> {
        let v = vectors(op, "the width", from.cols())?;
        least(op, "the row numbers", set.rows.len(), set.first.checked_add(set.count))?;
        if set.count == 0 {
            return Ok(());
        }
        let (sf, st) = (rows(op, "the source", from, from_rows, from.cols())?, rows(op, "the target", to, to_rows, from.cols())?);
        let total = set.count as u64 * u64::from(v);
        if u32::try_from(total).is_err() {
            return Err(fail(op, "the rows", set.count, "less than 2^35 values"));
        }
        let config = grid(blocks(op, total as usize, 256)?, 1, 256);
        launch!(self, op, config, set.rows.ptr() + 4 * set.first as u64, from.ptr(), sf, v, total, to.ptr(), st);
        Ok(())
    }
}
