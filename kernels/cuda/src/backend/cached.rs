//! The key/value cache of generation.

use super::types::Batch;
use super::{Cuda, Outcome};
use crate::launch::{CachedScratch, KvCache};
use crate::memory::{Floats, Tensor};
use std::sync::PoisonError;
use trainer_kernels::ops::{AttentionShape, OpsError};

/// Scratch with what it serves.
pub struct Scratch {
    parts: CachedScratch,
    rows: usize,
    longest: usize,
    shape: AttentionShape,
}

impl Cuda {
    /// An error unless the cache has the batch's slots and positions.
    fn check_cache(&self, op: &'static str, batch: &Batch, n: usize, cache: &KvCache) -> Outcome<()> {
        batch.check_rows(op, n)?;
        if batch.slots.len() != n {
            return Err(OpsError::Shape { op, what: "the batch's slots", got: batch.slots.len(), need: n });
        }
        for (what, index, limit) in
            [("cache slot", batch.largest_slot, cache.slots()), ("position", batch.largest_position, cache.length())]
        {
            if n > 0 && index as usize >= limit {
                return Err(OpsError::Index { op, what, index: index.into(), limit: limit as u64 });
            }
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "a cache needs to be told where it is written")]
    pub(super) fn append(
        &self,
        batch: &Batch,
        n: usize,
        layer: usize,
        shape: AttentionShape,
        qk: &Tensor,
        qkv: &Tensor,
        cache: &mut KvCache,
    ) -> Outcome<()> {
        self.check_cache("cache_append", batch, n, cache)?;
        Ok(self.device.cache_append(n, layer, &batch.positions, &batch.slots, shape, qk, qkv, cache)?)
    }

    /// Rotation, the cache's new rows, and attention: one kernel where each slot has one row, otherwise two.
    #[expect(clippy::too_many_arguments, reason = "a fused operation has the arguments of all of its parts")]
    pub(super) fn rotate_and_attend(
        &self,
        batch: &Batch,
        n: usize,
        layer: usize,
        shape: AttentionShape,
        qkv: &Tensor,
        (q_weight, k_weight): (&Floats, &Floats),
        eps: f32,
        theta: f64,
        qk: &mut Tensor,
        cache: &mut KvCache,
        out: &mut Tensor,
    ) -> Outcome<()> {
        let op = "attention_appended";
        self.check_cache(op, batch, n, cache)?;
        let angles = self.angles(op, batch, theta, shape.head_dim)?;
        let (positions, slots) = (&batch.positions, &batch.slots);
        if !batch.single {
            let mut q = qk.columns(0, shape.q_width())?;
            self.device.qk_norm_rope_append(n, layer, positions, slots, &angles, shape, qkv, q_weight, k_weight, eps, &mut q, cache)?;
            return self.attend_cache(batch, n, layer, shape, qk, cache, out);
        }
        let device = &self.device;
        self.with_cached(batch, n, shape, cache.length(), |longest, scratch| {
            Ok(device.attention_rotated(
                n, layer, shape, qkv, &angles, q_weight, k_weight, eps, cache, positions, slots, longest, scratch, out,
            )?)
        })
    }

    #[expect(clippy::too_many_arguments, reason = "a cache needs to be told where it is read")]
    pub(super) fn attend_cache(
        &self,
        batch: &Batch,
        n: usize,
        layer: usize,
        shape: AttentionShape,
        qk: &Tensor,
        cache: &KvCache,
        out: &mut Tensor,
    ) -> Outcome<()> {
        self.check_cache("attention_cached", batch, n, cache)?;
        let (device, positions, slots) = (&self.device, &batch.positions, &batch.slots);
        self.with_cached(batch, n, shape, cache.length(), |longest, scratch| {
            Ok(device.attention_cached(n, layer, shape, qk, cache, positions, slots, longest, scratch, out)?)
        })
    }

    /// Runs `work` with how far its launches reach and scratch for that.
    fn with_cached(
        &self,
        batch: &Batch,
        n: usize,
        shape: AttentionShape,
        length: usize,
        work: impl FnOnce(usize, &mut CachedScratch) -> Outcome<()>,
    ) -> Outcome<()> {
        if n == 0 {
            return Ok(());
        }
        let longest = batch.reach.min(length);
        let mut held = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if !held.as_ref().is_some_and(|s| s.rows >= n && s.longest >= longest && s.shape == shape) {
            *held = None;
            self.replace();
            // With room for some more tokens, so that a growing sequence does not ask anew at each.
            let longest = longest.next_multiple_of(1024).min(length);
            *held = Some(Scratch { parts: self.device.cached_scratch(n, longest, shape)?, rows: n, longest, shape });
        }
        held.as_mut().map_or(Ok(()), |scratch| work(longest, &mut scratch.parts))
    }
}
