//! What belongs to adapters alone: their gradients, partial sums, and dropped-out inputs.

use super::linear::{Ranks, shape};
use super::types::{Batch, Param};
use super::weights::{Extended, Group};
use super::{Cuda, Outcome};
use crate::launch::{LoraIn, LoraOut, MOST_SMALL_ROWS, small_scratch};
use crate::memory::{Floats, Tensor};
use std::sync::PoisonError;
use trainer_kernels::ops::{Dropout, LoraGrads, LoraMember, OpsError};

impl Cuda {
    /// All gradients of a group's adapters in one pass over `dy` and one over `x`; false, and nothing done, where ranks are no whole vectors or some
    /// member with an adapter has no gradient.
    #[expect(clippy::too_many_arguments, reason = "what a gradient needs")]
    pub(super) fn adapter_gradients(
        &self,
        n: usize,
        dy: &Tensor,
        x: &Tensor,
        mid: &Tensor,
        w: &Group,
        lora: &[Option<LoraMember<'_, Param>>],
        ranks: &Ranks,
        e: &Extended,
        grads: &mut [Option<LoraGrads<'_, Param>>],
        dmid: &mut Tensor,
    ) -> Outcome<bool> {
        let inner = w.in_features;
        let regular = ranks.ranks.iter().zip(grads.iter()).all(|(rank, g)| rank.is_multiple_of(8) && (*rank == 0 || g.is_some()));
        if ranks.total == 0 || !regular {
            return Ok(false);
        }
        let (mut outs, mut ins) = (Vec::new(), Vec::new());
        for (((m, l), g), (&start, &rank)) in w.members.iter().zip(lora).zip(grads.iter_mut()).zip(ranks.starts.iter().zip(&ranks.ranks)) {
            let (Some(l), Some(g)) = (l.as_ref().filter(|_| rank > 0), g.as_mut()) else { continue };
            let LoraGrads { a_acc, b_acc, .. } = g;
            if a_acc.values().len() != rank * inner || b_acc.values().len() != rank * m.out {
                return Err(shape("linear_backward", "the gradient of an adapter", a_acc.values().len(), rank * inner));
            }
            let b = e.b(m.column, m.out, start, rank);
            outs.push(LoraOut { dy_from: m.column, out: m.out, mid_from: start, rank, b, db: b_acc.change(), scale: l.scale });
            ins.push(LoraIn { mid_from: start, rank, da: a_acc.change() });
        }
        let members: Vec<(usize, usize)> = outs.iter().map(|o| (o.out, o.rank)).collect();
        self.with_partial(self.partial_bytes(n, &members, inner), |scratch| {
            self.device.lora_backward(n, dy, mid, &mut outs, dmid, scratch)?;
            Ok(self.device.lora_da(n, dmid, x, &mut ins, scratch)?)
        })?;
        Ok(true)
    }

    /// Bytes of partial sums that a group with these outputs and ranks needs, forward and backward.
    pub(super) fn partial_bytes(&self, n: usize, members: &[(usize, usize)], inner: usize) -> usize {
        let ranks: usize = members.iter().map(|m| m.1.next_multiple_of(8)).sum();
        let d = &self.device;
        let with: Vec<(usize, usize)> = members.iter().filter(|m| m.1 > 0).copied().collect();
        if with.is_empty() {
            return 0;
        }
        d.lora_mid_scratch_bytes(n, inner, ranks)
            .max(d.lora_backward_scratch_bytes(None, n, &with))
            .max(d.lora_da_scratch_bytes(n, inner, ranks))
            .max(4 * small_scratch(n.min(MOST_SMALL_ROWS), inner, ranks))
    }

    /// Runs `work` with a buffer for so many bytes of partial sums.
    pub(super) fn with_partial<T>(&self, bytes: usize, work: impl FnOnce(&mut Floats) -> Outcome<T>) -> Outcome<T> {
        let mut held = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_none_or(|f| f.bytes() < bytes) {
            *held = None;
            self.replace();
            *held = Some(self.device.buffer(bytes.div_ceil(4), "adapters' partial sums")?);
        }
        match held.as_mut() {
            Some(scratch) => work(scratch),
            None => Err(OpsError::Device("no scratch for adapters: a bug in trainer-kernels-cuda".into())),
        }
    }

    /// Runs `work` with the dropped-out input of a member.
    pub(super) fn with_dropped<T>(
        &self,
        batch: &Batch,
        n: usize,
        x: &Tensor,
        dropout: Dropout,
        member: usize,
        work: impl FnOnce(&Tensor) -> Outcome<T>,
    ) -> Outcome<T> {
        let mut dropped = self.dropout_buffer(n, x.cols())?;
        self.device.dropout(n, x, batch.mask_rows(), dropout, member as u32, &mut dropped)?;
        let done = work(&dropped)?;
        self.give_dropout_buffer(dropped);
        Ok(done)
    }

    pub(super) fn dropout_buffer(&self, n: usize, cols: usize) -> Outcome<Tensor> {
        let taken = self.dropped.lock().unwrap_or_else(PoisonError::into_inner).take();
        match taken.filter(|t| t.capacity() >= n * cols) {
            Some(t) => Ok(t.reshaped(n, cols)?),
            None => Ok(Tensor::new(self.device.arena(), n, cols, "dropout")?),
        }
    }

    pub(super) fn give_dropout_buffer(&self, t: Tensor) {
        *self.dropped.lock().unwrap_or_else(PoisonError::into_inner) = Some(t);
    }
}
