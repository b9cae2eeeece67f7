//! Causal grouped-query attention inside sequences, forward and backward (Dao 2023; on Hopper with ideas of Shah et al. 2024).

use super::{blocks, fail, launch, launch_early, least, product, rows};
use crate::Result;
use crate::device::{Device, TensorMap};
use crate::memory::{Buffer, Floats, Tensor};
use cudarc::driver::{LaunchConfig, sys};
use trainer_kernels::ops::AttentionShape;

/// Words of a tile's entry in the schedule.
const ENTRY: usize = 4;
/// Query rows of a forward tile, and keys of a backward tile on Hopper.
const LARGE: usize = 128;
/// Rows of a tile of the portable backward.
const SMALL: usize = 64;

/// Where the sequences of a batch lie, on the card, and their work in tiles, heaviest first so that no block starts a long one last.
pub struct Sequences {
    /// Four lists of tiles `{first row of the sequence, its length, first row of the tile within it, 0}`, then `cu_seqlens`, then two
    /// counters that a forward on Hopper finds and leaves at 0.
    words: Buffer<u32>,
    /// Tiles of 128 rows.
    large: usize,
    /// Tiles of 64 rows.
    small: usize,
    rows: usize,
    count: usize,
    longest: usize,
}

impl Sequences {
    /// Token rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many sequences there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Rows of the longest.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The device address of `cu_seqlens`, `count + 1` values of `u32`.
    pub fn cu_seqlens(&self) -> u64 {
        self.list(2 * (self.large + self.small))
    }

    fn counters(&self) -> u64 {
        self.cu_seqlens() + ((self.count + 1) * size_of::<u32>()) as u64
    }
    fn list(&self, tiles_before: usize) -> u64 {
        self.words.ptr() + (tiles_before * ENTRY * size_of::<u32>()) as u64
    }
    /// Tiles of 128 query rows: the last of a sequence sees the most keys.
    fn large_queries(&self) -> u64 {
        self.list(0)
    }
    /// Tiles of 128 keys.
    fn large_keys(&self) -> u64 {
        self.list(self.large)
    }
    /// Tiles of 64 query rows.
    fn small_queries(&self) -> u64 {
        self.list(2 * self.large)
    }
    /// Tiles of 64 keys: the first of a sequence is seen by the most queries.
    fn small_keys(&self) -> u64 {
        self.list(2 * self.large + self.small)
    }
}

/// Tiles of `size` rows as `(first row, length, start)`.
fn tiles(cu_seqlens: &[u32], size: usize) -> Vec<[u32; 3]> {
    let spans = cu_seqlens.iter().zip(cu_seqlens.iter().skip(1));
    spans.flat_map(|(&first, &end)| (0..end - first).step_by(size).map(move |start| [first, end - first, start])).collect()
}

/// Appends the tiles, heaviest first, twice: by the keys that queries see, by the queries that see keys.
fn schedule(words: &mut Vec<u32>, mut tiles: Vec<[u32; 3]>) {
    tiles.sort_by_key(|&[_, len, start]| std::cmp::Reverse((start, len)));
    words.extend(tiles.iter().flat_map(|&[first, len, start]| [first, len, start, 0]));
    tiles.sort_by_key(|&[first, len, start]| (std::cmp::Reverse(len - start), first));
    words.extend(tiles.iter().flat_map(|&[first, len, start]| [first, len, start, 0]));
}

/// What the backward needs beside its inputs.
pub struct AttentionScratch {
    /// `Σ dout * out` by head and row.
    delta: Floats,
    /// On Hopper: whose turn it is to add to a query tile's dq, and sums of dq in f32, by head and row.
    sums: Option<(Buffer<u32>, Floats)>,
    rows: usize,
    heads: usize,
}

impl AttentionScratch {
    /// Whether it is large enough.
    pub fn serves(&self, rows: usize, shape: AttentionShape) -> bool {
        self.rows >= rows && self.heads >= shape.heads && (self.sums.is_some() || shape.head_dim != HOPPER_DIM)
    }
}

/// The head size that has kernels of its own on Hopper.
const HOPPER_DIM: usize = 128;
/// Those kernels' shared memory: tiles, barriers, and what it takes to begin at a multiple of 1024.
const FORWARD_SHARED: usize = 5 * 32768 + 256 + 1024;
const BACKWARD_SHARED: usize = 230_400 + 256 + 1024;

/// The kernels of a head size, and what a launch needs of the shape.
struct Heads {
    forward: &'static str,
    dq: &'static str,
    dkv: &'static str,
    heads: u32,
    kv_heads: u32,
    group: u32,
    dim: usize,
    /// `1 / sqrt(head_dim)`.
    scale: f32,
    /// The same in units of log 2.
    scale2: f32,
}

fn heads(op: &'static str, shape: AttentionShape) -> Result<Heads> {
    let dim = shape.head_dim;
    let [forward, dq, dkv] = match dim {
        32 => ["attention_32", "attention_dq_32", "attention_dkv_32"],
        64 => ["attention_64", "attention_dq_64", "attention_dkv_64"],
        128 => ["attention_128", "attention_dq_128", "attention_dkv_128"],
        _ => return Err(fail(op, "the head size", dim, "32, 64 or 128")),
    };
    if shape.kv_heads == 0 || !shape.heads.is_multiple_of(shape.kv_heads) || shape.heads == 0 {
        return Err(fail(op, "the number of heads", shape.heads, format_args!("a positive multiple of {}", shape.kv_heads)));
    }
    let (Ok(heads), Ok(kv_heads)) = (u16::try_from(shape.heads), u16::try_from(shape.kv_heads)) else {
        return Err(fail(op, "the number of heads", shape.heads, "at most 65535"));
    };
    let scale = 1.0 / (dim as f64).sqrt();
    let scale2 = (scale * std::f64::consts::LOG2_E) as f32;
    let (heads, kv_heads) = (u32::from(heads), u32::from(kv_heads));
    Ok(Heads { forward, dq, dkv, heads, kv_heads, group: heads / kv_heads, dim, scale: scale as f32, scale2 })
}

fn row_count(op: &'static str, n: usize, seqs: &Sequences) -> Result<u32> {
    if n != seqs.rows {
        return Err(fail(op, "the number of rows", n, format_args!("that of the sequences, {}", seqs.rows)));
    }
    u32::try_from(n).ok().filter(|n| *n <= i32::MAX as u32).ok_or_else(|| fail(op, "the number of rows", n, "less than 2^31"))
}

/// Tiles times heads: what blocks that stay take from a counter.
fn total(op: &'static str, tiles: usize, heads: usize) -> Result<u32> {
    let total = product(&[tiles, heads]).and_then(|t| u32::try_from(t).ok()).filter(|&t| t <= i32::MAX as u32);
    total.ok_or_else(|| fail(op, "the work", tiles, "fewer rows"))
}

/// A block for each tile and head.
fn config(op: &'static str, tiles: usize, heads: u32, threads: u32, shared: usize) -> Result<LaunchConfig> {
    let count = tiles.checked_mul(heads as usize).ok_or_else(|| fail(op, "the work", usize::MAX, "less than 2^31 blocks"))?;
    let shared_mem_bytes = u32::try_from(shared).map_err(|_| fail(op, "the shared memory", shared, "less than 2^32"))?;
    Ok(LaunchConfig { grid_dim: (blocks(op, count, 1)?, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes })
}

/// Describes the first `n` rows of a tensor to the copy engine, in boxes of 64 rows and 64 columns; what lies past row `n` is read as
/// zeros.
#[expect(unsafe_code, reason = "the driver's interface")]
fn tensor_map(t: &Tensor, n: usize) -> Result<TensorMap> {
    let mut map = TensorMap(sys::CUtensorMap { opaque: [0; 16] });
    let (sizes, strides) = ([t.cols() as u64, n as u64], [2 * t.stride() as u64]);
    // SAFETY: the driver reads two sizes, one stride and two pairs of numbers, and writes the map; the address is not followed here. Every
    // access through the map is within `n` rows of `cols` values, which the caller has checked against the tensor.
    let status = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map.0,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            2,
            t.ptr() as *mut std::ffi::c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            [64u32, 64].as_ptr(),
            [1u32, 1].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    status.result()?;
    Ok(map)
}

impl Device {
    /// Puts the sequences of a batch on the card, with a schedule of their tiles, in one transfer. `cu_seqlens` holds the first row of each
    /// sequence, then the number of rows.
    ///
    /// # Errors
    /// Rows that do not begin at 0 or go backwards, or the driver's.
    pub fn sequences(&self, cu_seqlens: &[u32]) -> Result<Sequences> {
        let op = "sequences";
        let ordered = cu_seqlens.iter().zip(cu_seqlens.iter().skip(1)).all(|(a, b)| a <= b);
        let (Some(0), Some(&rows), true) = (cu_seqlens.first(), cu_seqlens.last(), ordered) else {
            return Err(fail(op, "the list of first rows", cu_seqlens.len(), "one that begins with 0 and never decreases"));
        };
        if rows > i32::MAX as u32 {
            return Err(fail(op, "the number of rows", rows as usize, "less than 2^31"));
        }
        let (large, small) = (tiles(cu_seqlens, LARGE), tiles(cu_seqlens, SMALL));
        let counts = (large.len(), small.len());
        let mut words = Vec::with_capacity(2 * ENTRY * (large.len() + small.len()) + cu_seqlens.len());
        schedule(&mut words, large);
        schedule(&mut words, small);
        words.extend_from_slice(cu_seqlens);
        words.extend([0; 2]);
        let longest = cu_seqlens.iter().zip(cu_seqlens.iter().skip(1)).map(|(a, b)| b - a).max().unwrap_or(0) as usize;
        let words = self.upload(&words, "the schedule of a batch")?;
        Ok(Sequences { words, large: counts.0, small: counts.1, rows: rows as usize, count: cu_seqlens.len() - 1, longest })
    }

    /// Bytes that [`Self::attention_scratch`] takes, before the arena rounds its up to three buffers up.
    pub fn attention_scratch_bytes(&self, rows: usize, shape: AttentionShape) -> u64 {
        let values = (rows as u64).saturating_mul(shape.heads as u64);
        if self.own_attention(shape) {
            values.saturating_mul(8 + 4 * HOPPER_DIM as u64).saturating_add(4)
        } else {
            values.saturating_mul(4)
        }
    }

    /// Scratch of [`Self::attention_backward`] for up to `rows` rows: [`Self::attention_scratch_bytes`].
    ///
    /// # Errors
    /// The card has no more memory.
    pub fn attention_scratch(&self, rows: usize, shape: AttentionShape) -> Result<AttentionScratch> {
        let what = "scratch of attention";
        let too_many = || fail("attention_scratch", "the rows", rows, "fewer");
        let values = product(&[rows, shape.heads]).ok_or_else(too_many)?;
        let sums = if self.own_attention(shape) {
            let turns = values.checked_add(1).ok_or_else(too_many)?;
            let sums = product(&[values, HOPPER_DIM]).ok_or_else(too_many)?;
            Some((self.buffer(turns, what)?, self.buffer(sums, what)?))
        } else {
            None
        };
        Ok(AttentionScratch { delta: self.buffer(values, what)?, sums, rows, heads: shape.heads })
    }

    /// Whether this card has kernels of its own for the shape.
    fn own_attention(&self, shape: AttentionShape) -> bool {
        shape.head_dim == HOPPER_DIM
            && self.prefers("attention_sm90")
            && self.shared_limit() as usize >= FORWARD_SHARED.max(BACKWARD_SHARED)
    }

    /// Causal grouped-query attention of `n` rows, inside each sequence, scaled by `1 / sqrt(head_dim)`. Reads the rotated `q | k` rows
    /// of `qk` and the last `kv_width` columns of `qkv`; writes `out [n, q_width]` and `n * heads` log-sum-exps, in a layout of the
    /// backward's own. Rows of other sequences never decide a bit of a sequence's result, but a value that is not finite in one can spoil
    /// another.
    ///
    /// # Errors
    /// A head size other than 32, 64 and 128, or buffers that do not fit.
    #[expect(clippy::too_many_arguments, reason = "the fused projection and what was rotated of it are two buffers")]
    pub fn attention(
        &self,
        n: usize,
        seqs: &Sequences,
        shape: AttentionShape,
        qk: &Tensor,
        qkv: &Tensor,
        out: &mut Tensor,
        lse: &mut Floats,
    ) -> Result<()> {
        let op = "attention";
        let (h, count) = (heads(op, shape)?, row_count(op, n, seqs)?);
        let (sqk, sqkv) = (rows(op, "qk", qk, n, shape.qk_width())?, rows(op, "qkv", qkv, n, shape.qkv_width())?);
        let so = rows(op, "the output", out, n, shape.q_width())?;
        least(op, "the log-sum-exps", lse.len(), product(&[n, shape.heads]))?;
        if n == 0 {
            return Ok(());
        }
        if self.own_attention(shape) {
            let total = total(op, seqs.large, shape.heads)?;
            let (qk, qkv) = (tensor_map(qk, n)?, tensor_map(qkv, n)?);
            let config = config(op, total.min(self.multiprocessors()) as usize, 1, 384, FORWARD_SHARED)?;
            launch!(
                self,
                "attention_sm90",
                config,
                seqs.large_queries(),
                total,
                &qk,
                &qkv,
                out.ptr(),
                so,
                lse.ptr(),
                count,
                h.heads,
                h.group,
                h.scale2,
                seqs.counters()
            );
            return Ok(());
        }
        // A query tile of 128 rows, two key and two value tiles of 64.
        let config = config(op, seqs.large, h.heads, 256, 2 * h.dim * (LARGE + 4 * SMALL))?;
        let list = seqs.large_queries();
        launch!(self, h.forward, config, list, qk.ptr(), sqk, qkv.ptr(), sqkv, out.ptr(), so, lse.ptr(), count, h.heads, h.group, h.scale2);
        Ok(())
    }

    /// Backward of [`Self::attention`]: from `dout` and what the forward read and wrote, writes all of `dqk` and the `v` columns of `dqkv`.
    /// Sums over rows, and over the query heads that share a key/value head, have an order that lengths and shapes alone decide.
    ///
    /// # Errors
    /// A head size other than 32, 64 and 128, or buffers that do not fit.
    #[expect(clippy::too_many_arguments, reason = "the backward needs the forward's inputs and outputs")]
    pub fn attention_backward(
        &self,
        n: usize,
        seqs: &Sequences,
        shape: AttentionShape,
        dout: &Tensor,
        out: &Tensor,
        qk: &Tensor,
        qkv: &Tensor,
        lse: &Floats,
        scratch: &mut AttentionScratch,
        dqk: &mut Tensor,
        dqkv: &mut Tensor,
    ) -> Result<()> {
        let op = "attention_backward";
        let (h, count) = (heads(op, shape)?, row_count(op, n, seqs)?);
        let (sdo, so) = (rows(op, "dout", dout, n, shape.q_width())?, rows(op, "the output", out, n, shape.q_width())?);
        let (sqk, sqkv) = (rows(op, "qk", qk, n, shape.qk_width())?, rows(op, "qkv", qkv, n, shape.qkv_width())?);
        let (sdqk, sdqkv) = (rows(op, "dqk", dqk, n, shape.qk_width())?, rows(op, "dqkv", dqkv, n, shape.qkv_width())?);
        least(op, "the log-sum-exps", lse.len(), product(&[n, shape.heads]))?;
        if scratch.heads < shape.heads || scratch.rows < n {
            return Err(fail(op, "the scratch's rows", scratch.rows, format_args!("{n} of {} heads", shape.heads)));
        }
        if n == 0 {
            return Ok(());
        }
        let delta = &scratch.delta;
        let lanes = (h.dim / 8) as u32;
        let threads = product(&[n, shape.heads, lanes as usize]).ok_or_else(|| fail(op, "the work", n, "fewer rows"))?;
        let flat = super::grid(blocks(op, threads, 1024)?, 1, 256);
        let own = scratch.sums.as_ref().filter(|_| self.own_attention(shape));
        // One turn for each row and head, and the count of work taken: fewer than the threads.
        let turn_count =
            product(&[n, shape.heads]).and_then(|t| u32::try_from(t + 1).ok()).ok_or_else(|| fail(op, "the work", n, "fewer rows"))?;
        let (turns, turn_count) = own.map_or((0, 0), |(turns, _)| (turns.ptr(), turn_count));
        launch!(self, "attention_delta", flat, dout.ptr(), sdo, out.ptr(), so, count, h.heads, lanes, delta.ptr(), turns, turn_count);
        if let Some((turns, sums)) = own {
            let maps = (tensor_map(qk, n)?, tensor_map(qkv, n)?, tensor_map(dout, n)?);
            let total = total(op, seqs.large, shape.kv_heads)?;
            let config = config(op, total.min(self.multiprocessors()) as usize, 1, 384, BACKWARD_SHARED)?;
            launch_early!(
                self,
                "attention_backward_sm90",
                config,
                seqs.large_keys(),
                total,
                &maps.0,
                &maps.1,
                &maps.2,
                lse.ptr(),
                delta.ptr(),
                dqk.ptr(),
                sdqk,
                dqkv.ptr(),
                sdqkv,
                sums.ptr(),
                turns.ptr(),
                count,
                h.heads,
                h.group,
                h.scale2,
                h.scale
            );
            return Ok(());
        }
        let tile = 2 * h.dim * SMALL;
        // Tiles of q and dout, two of k and of v.
        let by_queries = config(op, seqs.small, h.heads, 128, 6 * tile)?;
        launch!(
            self,
            h.dq,
            by_queries,
            seqs.small_queries(),
            dout.ptr(),
            sdo,
            qk.ptr(),
            sqk,
            qkv.ptr(),
            sqkv,
            lse.ptr(),
            delta.ptr(),
            dqk.ptr(),
            sdqk,
            count,
            h.heads,
            h.group,
            h.scale2,
            h.scale
        );
        // Tiles of k and v, two of q and of dout, and two of both statistics.
        let by_keys = config(op, seqs.small, h.kv_heads, 128, 6 * tile + 4 * SMALL * size_of::<f32>())?;
        launch!(
            self,
            h.dkv,
            by_keys,
            seqs.small_keys(),
            dout.ptr(),
            sdo,
            qk.ptr(),
            sqk,
            qkv.ptr(),
            sqkv,
            lse.ptr(),
            delta.ptr(),
            dqk.ptr(),
            sdqk,
            dqkv.ptr(),
            sdqkv,
            count,
            h.heads,
            h.group,
            h.scale2,
            h.scale
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_row_once_and_the_heaviest_come_first() {
        let cu = [0, 5, 5, 69, 329];
        let all = tiles(&cu, 64);
        let mut seen = vec![0; 329];
        for &[first, len, start] in &all {
            (first + start..first + len.min(start + 64)).for_each(|r| seen[r as usize] += 1);
        }
        assert!(seen.iter().all(|&s| s == 1));
        let mut words = Vec::new();
        schedule(&mut words, all.clone());
        assert_eq!(words.len(), 2 * ENTRY * all.len());
        let (queries, keys) = words.split_at(ENTRY * all.len());
        assert_eq!(queries[..4], [69, 260, 256, 0]);
        assert_eq!(keys[..4], [69, 260, 0, 0]);
        let work: Vec<u32> = keys.chunks(ENTRY).map(|t| t[1] - t[2]).collect();
        assert!(work.is_sorted_by(|a, b| a >= b));
    }
}
