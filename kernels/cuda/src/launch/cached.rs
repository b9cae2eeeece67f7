//! The key/value cache of generation and attention to it.

use super::{Angles, blocks, fail, grid, launch_early, least, product, rows};
use crate::device::Device;
use crate::memory::{Buffer, Floats, Tensor};
use crate::ranges::rounded;
use crate::{CudaError, Result};
use half::bf16;
use trainer_kernels::ops::AttentionShape;

/// Keys of a part: fixed, so that a row's result does not depend on the batch.
pub const SPLIT: usize = 128;
/// Query heads of a block.
const GROUP: usize = 4;

/// Keys and values of all layers in bf16, each `[layer][slot][kv_head][length][head_dim]`.
pub struct KvCache {
    keys: Buffer<bf16>,
    values: Buffer<bf16>,
    layers: usize,
    slots: usize,
    length: usize,
    shape: AttentionShape,
}

impl KvCache {
    /// Sequences that it holds.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Positions of a sequence.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Bytes of a layer's keys, which are as many as its values'.
    fn layer_bytes(&self) -> u64 {
        (2 * self.slots * self.length * self.shape.kv_width()) as u64
    }
}

/// What a cache takes of the arena; None where that is more than memory can hold.
pub fn kv_cache_bytes(layers: usize, slots: usize, length: usize, shape: AttentionShape) -> Option<u64> {
    let values = product(&[layers, slots, length, shape.kv_width()])?;
    rounded((values as u64).checked_mul(2)?)?.checked_mul(2)
}

/// Scratch of [`Device::attention_cached`]: the parts of rows that see more than [`SPLIT`] keys.
pub struct CachedScratch {
    parts: Floats,
    weights: Floats,
    /// Finished parts of each row and group of heads; zero between launches.
    counters: Buffer<u32>,
}

/// Heads that the kernels can take.
fn check(op: &'static str, shape: AttentionShape) -> Result<()> {
    if shape.kv_heads == 0 || shape.heads == 0 || !shape.heads.is_multiple_of(shape.kv_heads) {
        return Err(fail(op, "the number of key/value heads", shape.kv_heads, format_args!("a divisor of {} heads", shape.heads)));
    }
    if ![32, 64, 128].contains(&shape.head_dim) {
        return Err(fail(op, "the head size", shape.head_dim, "32, 64 or 128"));
    }
    Ok(())
}

fn number(op: &'static str, what: &'static str, v: usize) -> Result<u32> {
    u32::try_from(v).ok().filter(|&v| v <= i32::MAX as u32).ok_or_else(|| fail(op, what, v, "less than 2^31"))
}

/// Blocks of a row: groups of up to four query heads of one key/value head.
fn chunks(shape: AttentionShape) -> usize {
    shape.kv_heads * (shape.heads / shape.kv_heads).div_ceil(GROUP)
}

impl Device {
    /// An empty cache for `layers` layers and `slots` sequences of up to `length` tokens. It takes [`kv_cache_bytes`].
    ///
    /// # Errors
    /// Heads that the kernels do not take, or no memory.
    pub fn kv_cache(&self, layers: usize, slots: usize, length: usize, shape: AttentionShape) -> Result<KvCache> {
        let op = "kv_cache";
        check(op, shape)?;
        number(op, "the number of slots", slots)?;
        number(op, "the length", length)?;
        let values = product(&[layers, slots, length, shape.kv_width()]).filter(|&v| v <= isize::MAX as usize / 4);
        let values =
            values.ok_or_else(|| CudaError::Memory { what: "the key/value cache".into(), bytes: u64::MAX, reserved: 0, limit: None })?;
        let mut cache = KvCache {
            keys: self.buffer(values, "the key cache")?,
            values: self.buffer(values, "the value cache")?,
            layers,
            slots,
            length,
            shape,
        };
        cache.keys.fill_bytes(0)?;
        cache.values.fill_bytes(0)?;
        Ok(cache)
    }

    /// Scratch for up to `rows` rows and positions below `longest`.
    ///
    /// # Errors
    /// Heads that the kernels do not take, or no memory.
    pub fn cached_scratch(&self, rows: usize, longest: usize, shape: AttentionShape) -> Result<CachedScratch> {
        let op = "cached_scratch";
        check(op, shape)?;
        let parts = product(&[rows, shape.heads, longest.div_ceil(SPLIT)]).and_then(|p| Some((p, product(&[p, shape.head_dim])?)));
        let (parts, values) = parts.ok_or_else(|| fail(op, "the number of rows", rows, "less"))?;
        let mut counters = self.buffer(product(&[rows, chunks(shape)]).unwrap_or(usize::MAX), "counters of attention")?;
        counters.fill_bytes(0)?;
        Ok(CachedScratch {
            parts: self.buffer(values, "parts of attention")?,
            weights: self.buffer(2 * parts, "weights of attention")?,
            counters,
        })
    }

    /// The addresses of a layer's keys and values.
    fn layer(&self, op: &'static str, layer: usize, shape: AttentionShape, cache: &KvCache) -> Result<(u64, u64)> {
        if shape != cache.shape {
            return Err(fail(op, "the cache's head size", cache.shape.head_dim, format_args!("that of {shape:?}, as are its heads")));
        }
        if layer >= cache.layers {
            return Err(fail(op, "the layer", layer, format_args!("less than {}", cache.layers)));
        }
        let at = layer as u64 * cache.layer_bytes();
        Ok((cache.keys.ptr() + at, cache.values.ptr() + at))
    }

    /// Writes the rotated keys (the last columns of `qk`) and the values (the last columns of `qkv`) of `n` rows into `layer` at each row's slot
    /// and position. Rows whose slot or position the cache has not got are left out: the host checks them before it uploads them.
    ///
    /// # Errors
    /// Buffers, a layer or heads that do not fit.
    #[expect(clippy::too_many_arguments, reason = "a cache needs to be told where it is written")]
    pub fn cache_append(
        &self,
        n: usize,
        layer: usize,
        positions: &Buffer<u32>,
        slots_of_rows: &Buffer<u32>,
        shape: AttentionShape,
        qk: &Tensor,
        qkv: &Tensor,
        cache: &mut KvCache,
    ) -> Result<()> {
        let op = "cache_append";
        let (keys, values) = self.layer(op, layer, shape, cache)?;
        least(op, "positions", positions.len(), Some(n))?;
        least(op, "slots", slots_of_rows.len(), Some(n))?;
        let (narrow, wide) = (rows(op, "qk", qk, n, shape.qk_width())?, rows(op, "qkv", qkv, n, shape.qkv_width())?);
        if n == 0 {
            return Ok(());
        }
        let dim = number(op, "the head size", shape.head_dim / 8)?;
        let (q, kv) = (number(op, "the queries", shape.q_width() / 8)?, number(op, "the heads", shape.kv_heads)?);
        let items = product(&[n, 2, shape.kv_width() / 8]).ok_or_else(|| fail(op, "the number of rows", n, "less"))?;
        let config = grid(blocks(op, items, 256)?, 1, 256);
        let (slots, length) = (number(op, "slots", cache.slots)?, number(op, "the length", cache.length)?);
        launch_early!(
            self,
            op,
            config,
            qk.ptr(),
            narrow,
            q,
            qkv.ptr(),
            wide,
            positions.ptr(),
            slots_of_rows.ptr(),
            n as u64,
            kv,
            dim,
            slots,
            length,
            keys,
            values
        );
        Ok(())
    }

    /// [`Self::qk_norm_rope`] and [`Self::cache_append`] in one: `q [n, q_width]` gets the rotated queries, the cache the rotated keys and the
    /// values. Rows whose slot or position does not exist are left out.
    ///
    /// # Errors
    /// Buffers, a layer or heads that do not fit.
    #[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of all of its parts")]
    pub fn qk_norm_rope_append(
        &self,
        n: usize,
        layer: usize,
        positions: &Buffer<u32>,
        slots_of_rows: &Buffer<u32>,
        angles: &Angles,
        shape: AttentionShape,
        qkv: &Tensor,
        q_weight: &Floats,
        k_weight: &Floats,
        eps: f32,
        q: &mut Tensor,
        cache: &mut KvCache,
    ) -> Result<()> {
        let op = "qk_norm_rope_append";
        let (keys, values) = self.layer(op, layer, shape, cache)?;
        least(op, "positions", positions.len(), Some(n))?;
        least(op, "slots", slots_of_rows.len(), Some(n))?;
        if angles.head_dim != shape.head_dim || q_weight.len() != shape.head_dim || k_weight.len() != shape.head_dim {
            return Err(fail(op, "the head size", shape.head_dim, "that of the angles and of both norms"));
        }
        let (narrow, wide) = (rows(op, "q", q, n, shape.q_width())?, rows(op, "qkv", qkv, n, shape.qkv_width())?);
        if n == 0 {
            return Ok(());
        }
        let (heads, kv) = (number(op, "the heads", shape.heads)?, number(op, "the heads", shape.kv_heads)?);
        let lanes = number(op, "the head size", shape.head_dim / 16)?;
        let items = product(&[n, shape.heads + 2 * shape.kv_heads, shape.head_dim / 16]);
        let items = items.ok_or_else(|| fail(op, "the number of rows", n, "less"))?;
        let config = grid(blocks(op, items, 128)?, 1, 128);
        let (slots, length) = (number(op, "slots", cache.slots)?, number(op, "the length", cache.length)?);
        let turns = number(op, "the angles", angles.positions)?;
        launch_early!(
            self,
            op,
            config,
            qkv.ptr(),
            wide,
            q_weight.ptr(),
            k_weight.ptr(),
            positions.ptr(),
            slots_of_rows.ptr(),
            angles.values.ptr(),
            eps,
            n as u64,
            heads,
            kv,
            lanes,
            slots,
            length,
            turns,
            q.ptr(),
            narrow,
            keys,
            values
        );
        Ok(())
    }

    /// Attention of `n` rows' queries (the first columns of `q`, which may be `qk`) to all that `layer` of the cache holds of their slots up to
    /// and including their own positions, scaled by `1 / sqrt(head_dim)`: `out [n, q_width]`. All positions must be below `longest`, which sizes
    /// the grid (parts past a row's position return at once), so that a recorded launch serves all positions up to it; keys beyond it are not
    /// seen. Rows whose slot or position does not exist are left out. A row's result depends on nothing but its query, its position and its keys.
    ///
    /// # Errors
    /// Buffers, a layer or heads that do not fit.
    #[expect(clippy::too_many_arguments, reason = "a cache needs to be told where it is read")]
    pub fn attention_cached(
        &self,
        n: usize,
        layer: usize,
        shape: AttentionShape,
        q: &Tensor,
        cache: &KvCache,
        positions: &Buffer<u32>,
        slots_of_rows: &Buffer<u32>,
        longest: usize,
        scratch: &mut CachedScratch,
        out: &mut Tensor,
    ) -> Result<()> {
        let op = "attention_cached";
        let q_stride =
            if q.cols() == shape.q_width() { rows(op, "q", q, n, shape.q_width())? } else { rows(op, "qk", q, n, shape.qk_width())? };
        self.attend(op, n, layer, shape, (q.ptr(), 8 * q_stride), cache, positions, slots_of_rows, longest, scratch, out, None)
    }

    /// [`Self::qk_norm_rope_append`] and [`Self::attention_cached`] in one, to the same bits, where each slot has one row: of `qkv [n, qkv_width]`
    /// the queries are normalised and rotated for `out [n, q_width]`, and the keys and values go into the cache, where all others are older than what
    /// was launched since the last time that the host waited or a kernel was launched plainly. Rows whose slot or position does not exist are left out.
    ///
    /// # Errors
    /// Buffers, a layer or heads that do not fit.
    #[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of all of its parts")]
    pub fn attention_rotated(
        &self,
        n: usize,
        layer: usize,
        shape: AttentionShape,
        qkv: &Tensor,
        angles: &Angles,
        q_weight: &Floats,
        k_weight: &Floats,
        eps: f32,
        cache: &mut KvCache,
        positions: &Buffer<u32>,
        slots_of_rows: &Buffer<u32>,
        longest: usize,
        scratch: &mut CachedScratch,
        out: &mut Tensor,
    ) -> Result<()> {
        let op = "attention_rotated";
        if angles.head_dim != shape.head_dim || q_weight.len() != shape.head_dim || k_weight.len() != shape.head_dim {
            return Err(fail(op, "the head size", shape.head_dim, "that of the angles and of both norms"));
        }
        let stride = rows(op, "qkv", qkv, n, shape.qkv_width())?;
        let by = (q_weight.ptr(), k_weight.ptr(), angles.values.ptr(), eps, number(op, "the angles", angles.positions)?);
        self.attend(op, n, layer, shape, (qkv.ptr(), 8 * stride), cache, positions, slots_of_rows, longest, scratch, out, Some(by))
    }

    #[expect(clippy::too_many_arguments, reason = "a cache needs to be told where it is read")]
    fn attend(
        &self,
        op: &'static str,
        n: usize,
        layer: usize,
        shape: AttentionShape,
        (q, q_stride): (u64, u32),
        cache: &KvCache,
        positions: &Buffer<u32>,
        slots_of_rows: &Buffer<u32>,
        longest: usize,
        scratch: &mut CachedScratch,
        out: &mut Tensor,
        by: Option<(u64, u64, u64, f32, u32)>,
    ) -> Result<()> {
        let (keys, values) = self.layer(op, layer, shape, cache)?;
        least(op, "positions", positions.len(), Some(n))?;
        least(op, "slots", slots_of_rows.len(), Some(n))?;
        let out_stride = rows(op, "the output", out, n, shape.q_width())?;
        if longest == 0 || longest > cache.length {
            return Err(fail(op, "the longest sequence", longest, format_args!("from 1 to {}", cache.length)));
        }
        let splits = longest.div_ceil(SPLIT);
        let parts = product(&[n, shape.heads, splits]).filter(|p| *p <= u32::MAX as usize);
        least(op, "the scratch", scratch.parts.len(), parts.and_then(|p| product(&[p, shape.head_dim])))?;
        least(op, "the scratch", scratch.weights.len(), parts.and_then(|p| product(&[p, 2])))?;
        least(op, "the scratch", scratch.counters.len(), product(&[n, chunks(shape)]))?;
        if n == 0 {
            return Ok(());
        }
        let name = match (by.is_some(), shape.head_dim) {
            (false, 32) => "attention_cached_32",
            (false, 64) => "attention_cached_64",
            (false, _) => "attention_cached_128",
            (true, 32) => "attention_rotated_32",
            (true, 64) => "attention_rotated_64",
            (true, _) => "attention_rotated_128",
        };
        if n > 65535 || chunks(shape) > 65535 {
            return Err(fail(op, "the number of rows", n, "at most 65535, as are the heads"));
        }
        let mut config = grid(blocks(op, splits, 1)?, chunks(shape) as u32, 256);
        config.grid_dim.2 = n as u32;
        let (kv, group) = (number(op, "the heads", shape.kv_heads)?, number(op, "the heads", shape.heads / shape.kv_heads)?);
        let (slots, length) = (number(op, "slots", cache.slots)?, number(op, "the length", cache.length)?);
        // The exponentials are powers of two.
        let scale = std::f32::consts::LOG2_E / (shape.head_dim as f32).sqrt();
        let (positions, slots_of_rows) = (positions.ptr(), slots_of_rows.ptr());
        let (parts, weights, counters) = (scratch.parts.ptr(), scratch.weights.ptr(), scratch.counters.ptr());
        let (to, stride) = (out.ptr(), 8 * out_stride);
        #[rustfmt::skip]
        match by {
            None => launch_early!(
                self, name, config, q, q_stride, keys, values, positions, slots_of_rows, kv, group, slots, length, scale, parts, weights,
                counters, to, stride
            ),
            Some((q_weight, k_weight, angles, eps, turns)) => launch_early!(
                self, name, config, q, q_stride, keys, values, positions, slots_of_rows, kv, group, slots, length, scale, parts, weights,
                counters, to, stride, q_weight, k_weight, angles, eps, turns
            ),
        };
        Ok(())
    }
}
