//! Attention inside sequences and to the key/value cache.
//!
//! A task takes 32 query rows of one head: scores of all keys they see (a matrix product with the keys in panels of 32), softmax in place,
//! product with the values. Memory is 32 rows of scores per thread, never a whole score matrix. The backward recomputes the probabilities
//! from the log-sum-exps (Dao 2023), once by query rows for `dq` and once by key panels for `dk` and `dv`, so that every gradient is summed
//! by one task in a fixed order. Since a product's elements do not depend on its cut, a query gives the same bits alone, in a packed batch
//! and from the cache.

use super::Cpu;
use super::buffer::{Borrowed, Buffer, Parts, area};
use super::gemm::{self, Finish, PANEL, Product, Rhs, Term};
use super::simd::{LANES, Simd, at, dispatch, exp, largest, sum, vectors};
use super::types::{Batch, Stats, Tensor, index, same};
use crate::ops::{AttentionShape, OpsError, Result};

/// Query rows of a task; a block of query rows is also a panel of keys.
const ROWS: usize = PANEL;

/// Keys and values of all layers.
pub struct Cache {
    layers: Vec<LayerCache>,
    slots: usize,
    length: usize,
    shape: AttentionShape,
}

struct LayerCache {
    /// Per slot and head: panels of 32 positions, each `[head_dim, 32]`.
    k: Buffer,
    /// Per slot and head: `[length, head_dim]`.
    v: Buffer,
}

impl Cache {
    fn panels(&self) -> usize {
        self.length.div_ceil(PANEL)
    }
    fn k_start(&self, slot: usize, head: usize) -> usize {
        (slot * self.shape.kv_heads + head) * self.panels() * self.shape.head_dim * PANEL
    }
    fn v_start(&self, slot: usize, head: usize) -> usize {
        (slot * self.shape.kv_heads + head) * self.length * self.shape.head_dim
    }
}

/// Checks a shape that came from a model file.
pub(super) fn check_shape(op: &'static str, shape: AttentionShape) -> Result<()> {
    if shape.head_dim == 0 || !shape.head_dim.is_multiple_of(2) {
        return Err(OpsError::Device(format!("{op}: head_dim is {}; rotary embedding needs an even number of at least 2", shape.head_dim)));
    }
    if shape.kv_heads == 0 || shape.heads == 0 || !shape.heads.is_multiple_of(shape.kv_heads) {
        return Err(OpsError::Device(format!("{op}: {} key/value heads do not divide {} heads", shape.kv_heads, shape.heads)));
    }
    let widths =
        shape.kv_heads.checked_mul(2).and_then(|k| k.checked_add(shape.heads)).and_then(|h| area(h, shape.head_dim, "a row of heads").ok());
    widths.map(|_| ()).ok_or(OpsError::Memory { what: "a row of heads".into(), bytes: u64::MAX })
}

dispatch!(
    /// Softmax of rows of raw scores times `scale`: row `i` sees its first `seen.of(i)` columns; the others become 0. Writes log-sum-exps.
    /// `stride` is a multiple of the lanes.
    fn softmax_rows(scores: &mut [f32], stride: usize, width: usize, seen: Seen<'_>, scale: f32, lse: &mut [f32]) = softmax_rows_body
);

/// How many keys the rows of a block see.
#[derive(Clone, Copy)]
enum Seen<'a> {
    /// Row `i` sees `first + i`.
    From(usize),
    /// Row `i` sees one more than its position.
    Positions(&'a [u32]),
    /// Every row sees as many.
    All(usize),
}

impl Seen<'_> {
    #[inline(always)]
    fn of(self, row: usize) -> usize {
        match self {
            Seen::From(first) => first + row,
            Seen::Positions(p) => p.get(row).map_or(0, |p| *p as usize + 1),
            Seen::All(n) => n,
        }
    }
}

#[inline(always)]
fn softmax_rows_body<S: Simd>(s: S, scores: &mut [f32], stride: usize, width: usize, seen: Seen<'_>, scale: f32, lse: &mut [f32]) {
    for (i, (row, lse)) in scores.chunks_mut(stride).zip(lse).enumerate() {
        let seen = seen.of(i).min(width).min(row.len());
        // Rows are padded to whole vectors: hidden lanes of the last one become e^-inf = 0.
        let padded = seen.next_multiple_of(LANES).min(row.len());
        row[seen..padded].fill(f32::NEG_INFINITY);
        let chunks = row[..padded].as_chunks_mut::<LANES>().0;
        let mut top = s.splat(f32::NEG_INFINITY);
        for chunk in chunks.iter() {
            top = s.max(s.load(chunk), top);
        }
        let top = largest(s, top);
        let (shift, scale_v) = (s.splat(-top * scale), s.splat(scale));
        let mut total = s.splat(0.0);
        for chunk in chunks.iter_mut() {
            let e = exp(s, s.fma(s.load(chunk), scale_v, shift));
            total = s.add(total, e);
            s.store(chunk, e);
        }
        let total = sum(s, total);
        *lse = top * scale + total.ln();
        let inverse = s.splat(1.0 / total);
        for chunk in chunks.iter_mut() {
            let v = s.mul(s.load(chunk), inverse);
            s.store(chunk, v);
        }
        let width = width.min(row.len());
        row[seen..width].fill(0.0);
    }
}

dispatch!(
    /// From raw scores and `dp = dout Vᵀ` to probabilities (in `scores`) and `ds = p (dp - d) scale` (in `dp`). Row `i` sees its columns
    /// below `seen + i`; the others become 0. `stride` is a multiple of the lanes.
    fn backward_rows(scores: &mut [f32], dp: &mut [f32], stride: usize, width: usize, seen: usize, scale: f32, lse: &[f32], d: &[f32], stats_stride: usize) = backward_rows_body
);

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "one pass over two blocks with two statistics each")]
fn backward_rows_body<S: Simd>(
    s: S,
    scores: &mut [f32],
    dp: &mut [f32],
    stride: usize,
    width: usize,
    seen: usize,
    scale: f32,
    lse: &[f32],
    d: &[f32],
    stats_stride: usize,
) {
    let rows =
        scores.chunks_mut(stride).zip(dp.chunks_mut(stride)).zip(lse.iter().step_by(stats_stride)).zip(d.iter().step_by(stats_stride));
    for (i, (((p, dp), lse), d)) in rows.enumerate() {
        let width = width.min(p.len()).min(dp.len());
        let seen = (seen + i).min(width);
        // Rows are padded to whole vectors; what comes out of their hidden lanes is overwritten below.
        let padded = seen.next_multiple_of(LANES).min(p.len()).min(dp.len());
        let chunks = p[..padded].as_chunks_mut::<LANES>().0.iter_mut().zip(dp[..padded].as_chunks_mut::<LANES>().0);
        let (scale_v, lse, d) = (s.splat(scale), s.splat(-lse), s.splat(*d));
        for (p, dp) in chunks {
            let e = exp(s, s.fma(s.load(p), scale_v, lse));
            let g = s.mul(s.mul(e, s.sub(s.load(dp), d)), scale_v);
            s.store(p, e);
            s.store(dp, g);
        }
        p[seen..width].fill(0.0);
        dp[seen..width].fill(0.0);
    }
}

dispatch!(
    /// `d[i] = Σ a[i] b[i]` over the heads of rows.
    fn head_dots(a: &[f32], b: &[f32], dim: usize, d: &mut [f32]) = head_dots_body
);

#[inline(always)]
fn head_dots_body<S: Simd>(s: S, a: &[f32], b: &[f32], dim: usize, d: &mut [f32]) {
    for ((a, b), d) in a.chunks_exact(dim).zip(b.chunks_exact(dim)).zip(d) {
        let mut dot = s.splat(0.0);
        for c in 0..vectors(dim) {
            dot = s.fma(at(s, a, c), at(s, b, c), dot);
        }
        *d = sum(s, dot);
    }
}

/// A block of query rows of a sequence.
#[derive(Clone, Copy)]
struct QueryBlock {
    sequence: usize,
    /// First row of the sequence in the batch.
    base: usize,
    /// Rows of the block, within the sequence.
    start: usize,
    rows: usize,
    /// First key panel of the sequence, in panels.
    panel: usize,
}

/// Rows of the batch's sequences in blocks of [`ROWS`], the longest work first.
fn blocks(batch: &Batch) -> Vec<QueryBlock> {
    let mut blocks = Vec::new();
    let mut panel = 0;
    for sequence in 0..batch.sequences() {
        let (base, len) = batch.span(sequence);
        blocks.extend((0..len).step_by(ROWS).map(|start| QueryBlock { sequence, base, start, rows: ROWS.min(len - start), panel }));
        panel += len.div_ceil(PANEL);
    }
    blocks.sort_by_key(|b| std::cmp::Reverse(b.start));
    blocks
}

impl Cpu {
    /// Columns `offset..` of each key/value head as right operands `[head_dim, keys]`: per head, per sequence, panels of 32 keys.
    fn key_panels(&self, batch: &Batch, shape: AttentionShape, rows: &[f32], stride: usize, offset: usize) -> Result<Borrowed<'_>> {
        let (dim, heads) = (shape.head_dim, shape.kv_heads);
        let mut spans = Vec::new();
        for sequence in 0..batch.sequences() {
            let (base, len) = batch.span(sequence);
            spans.extend((0..len).step_by(PANEL).map(|first| (base + first, PANEL.min(len - first))));
        }
        let width = dim * PANEL;
        let all = spans.len();
        let mut panels = self.scratch.take(area(all * heads, width, "panels of keys")?, "panels of keys")?;
        self.pool.rows(all * heads, 2, [(&mut panels, width)], |tasks, [out]| {
            for (task, out) in tasks.zip(out.chunks_exact_mut(width)) {
                // Head-major, so that the panels of a head of a sequence follow each other.
                let (head, span) = (task / all, task % all);
                let Some(&(row, count)) = spans.get(span) else { continue };
                out.fill(0.0);
                for j in 0..count {
                    let start = (row + j) * stride + offset + head * dim;
                    for (value, out) in rows.get(start..start + dim).unwrap_or(&[]).iter().zip(out.chunks_exact_mut(PANEL)) {
                        out[j] = *value;
                    }
                }
            }
        });
        Ok(panels)
    }

    /// One scratch of `len` values per thread.
    fn per_thread(&self, len: usize, what: &str) -> Result<Borrowed<'_>> {
        self.scratch.take(area(self.pool.threads(), len, what)?, what)
    }

    #[expect(clippy::too_many_arguments, reason = "the operation's own arguments")]
    pub(super) fn attention_forward(
        &self,
        batch: &Batch,
        n: usize,
        shape: AttentionShape,
        qk: &Tensor,
        qkv: &Tensor,
        out: &mut Tensor,
        lse: &mut Stats,
    ) -> Result<()> {
        const OP: &str = "attention";
        check_shape(OP, shape)?;
        batch.check_rows(OP, n)?;
        let (dim, group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let (qk_width, width) = (shape.qk_width(), shape.qkv_width());
        let qks = qk.rows(OP, "qk", n, qk_width)?;
        qkv.rows(OP, "qkv", n, width)?;
        out.rows_mut(OP, "out", n, shape.q_width())?;
        lse.rows_mut(OP, "lse", n, shape.heads)?;
        let keys = self.key_panels(batch, shape, qks, qk_width, shape.q_width())?;
        let blocks = blocks(batch);
        let all_panels = batch.key_panels;
        let stride = batch.longest.next_multiple_of(PANEL);
        let mut scores = self.per_thread((stride + 1) * ROWS, "scores")?;
        let scores = Parts::new(&mut scores);
        let (out, lse) = (Parts::new(&mut out.data), Parts::new(&mut lse.data));
        let scale = 1.0 / (dim as f32).sqrt();
        self.pool.run(blocks.len() * shape.heads, &|worker, task| {
            let Some(&block) = blocks.get(task / shape.heads) else { return };
            let head = task % shape.heads;
            let kv = head / group;
            let seen = block.start + block.rows;
            let first = block.base + block.start;
            // SAFETY: each worker has its own scratch.
            #[expect(unsafe_code, reason = "per-thread scratch")]
            let scratch = unsafe { scores.part(worker * (stride + 1) * ROWS, (stride + 1) * ROWS) };
            let (scores, block_lse) = scratch.split_at_mut(stride * ROWS);
            let panels = keys.get((kv * all_panels + block.panel) * dim * PANEL..).unwrap_or(&[]);
            let q = qks.get(first * qk_width + head * dim..).unwrap_or(&[]);
            let term = Term { lhs: q, lhs_stride: qk_width, rhs: Rhs::panels(panels, dim * PANEL), k: dim };
            self.one(block.rows, seen, false, term, Parts::new(scores), 0, stride, Finish::STORE);
            let block_lse = &mut block_lse[..block.rows];
            softmax_rows(self.path, scores, stride, seen, Seen::From(block.start + 1), scale, block_lse);
            for (i, value) in block_lse.iter().enumerate() {
                // SAFETY: no other task has this row and head.
                #[expect(unsafe_code, reason = "scattered writes")]
                unsafe { lse.part((first + i) * shape.heads + head, 1) }.fill(*value);
            }
            let v = qkv.data.padded().get(block.base * width + qk_width + kv * dim..).unwrap_or(&[]);
            let term = Term { lhs: scores, lhs_stride: stride, rhs: Rhs::in_place(v, width), k: seen };
            self.one(block.rows, dim, false, term, out, first * shape.q_width() + head * dim, shape.q_width(), Finish::STORE);
        });
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the operation's own arguments")]
    pub(super) fn attention_gradient(
        &self,
        batch: &Batch,
        n: usize,
        shape: AttentionShape,
        dout: &Tensor,
        out: &Tensor,
        qk: &Tensor,
        qkv: &Tensor,
        lse: &Stats,
        dqk: &mut Tensor,
        dqkv: &mut Tensor,
    ) -> Result<()> {
        const OP: &str = "attention_backward";
        check_shape(OP, shape)?;
        batch.check_rows(OP, n)?;
        let (dim, heads, group) = (shape.head_dim, shape.heads, shape.heads / shape.kv_heads);
        let (q_width, qk_width, width) = (shape.q_width(), shape.qk_width(), shape.qkv_width());
        let douts = dout.rows(OP, "dout", n, q_width)?;
        let outs = out.rows(OP, "out", n, q_width)?;
        let qks = qk.rows(OP, "qk", n, qk_width)?;
        let qkvs = qkv.rows(OP, "qkv", n, width)?;
        let lses = lse.rows(OP, "lse", n, heads)?;
        dqk.rows_mut(OP, "dqk", n, qk_width)?;
        dqkv.rows_mut(OP, "dqkv", n, width)?;
        let mut dots = self.scratch.take(n * heads, "row sums of dout * out")?;
        self.pool.rows(n, ROWS, [(&mut dots, heads)], |rows, [d]| {
            let range = rows.start * q_width..rows.end * q_width;
            head_dots(self.path, douts.get(range.clone()).unwrap_or(&[]), outs.get(range).unwrap_or(&[]), dim, d);
        });
        let dots: &[f32] = &dots;
        let keys = self.key_panels(batch, shape, qks, qk_width, q_width)?;
        let values = self.key_panels(batch, shape, qkvs, width, qk_width)?;
        let blocks = blocks(batch);
        let all_panels = batch.key_panels;
        let stride = batch.longest.next_multiple_of(PANEL);
        let size = stride * ROWS;
        let mut scratch = self.per_thread(2 * size, "scores and their gradients")?;
        let scratch = Parts::new(&mut scratch);
        let (dqk, dqkv) = (Parts::new(&mut dqk.data), Parts::new(&mut dqkv.data));
        let scale = 1.0 / (dim as f32).sqrt();
        let by_query = blocks.len() * heads;
        let by_key = blocks.len() * shape.kv_heads;
        let panel_at =
            |panels: &Borrowed<'_>, kv: usize, panel: usize| -> usize { ((kv * all_panels + panel) * dim * PANEL).min(panels.len()) };
        self.pool.run(by_query + by_key, &|worker, task| {
            // SAFETY: each worker has its own scratch.
            #[expect(unsafe_code, reason = "per-thread scratch")]
            let (p, ds) = unsafe { scratch.part(worker * 2 * size, 2 * size) }.split_at_mut(size);
            if task < by_query {
                let Some(&block) = blocks.get(task / heads) else { return };
                let head = task % heads;
                let kv = head / group;
                let seen = block.start + block.rows;
                let first = block.base + block.start;
                let q = qks.get(first * qk_width + head * dim..).unwrap_or(&[]);
                let k = keys.get(panel_at(&keys, kv, block.panel)..).unwrap_or(&[]);
                let v = values.get(panel_at(&values, kv, block.panel)..).unwrap_or(&[]);
                let d_o = douts.get(first * q_width + head * dim..).unwrap_or(&[]);
                let term = Term { lhs: q, lhs_stride: qk_width, rhs: Rhs::panels(k, dim * PANEL), k: dim };
                self.one(block.rows, seen, false, term, Parts::new(p), 0, stride, Finish::STORE);
                let term = Term { lhs: d_o, lhs_stride: q_width, rhs: Rhs::panels(v, dim * PANEL), k: dim };
                self.one(block.rows, seen, false, term, Parts::new(ds), 0, stride, Finish::STORE);
                let (lse, d) = (lses.get(first * heads + head..).unwrap_or(&[]), dots.get(first * heads + head..).unwrap_or(&[]));
                let rows = block.rows * stride;
                backward_rows(self.path, &mut p[..rows], &mut ds[..rows], stride, seen, block.start + 1, scale, lse, d, heads);
                let k = qk.data.padded().get(block.base * qk_width + q_width + kv * dim..).unwrap_or(&[]);
                let term = Term { lhs: ds, lhs_stride: stride, rhs: Rhs::in_place(k, qk_width), k: seen };
                self.one(block.rows, dim, false, term, dqk, first * qk_width + head * dim, qk_width, Finish::STORE);
                return;
            }
            // The keys of one panel: the block's rows taken as keys. Query rows before the panel's first key do not see it.
            let task = task - by_query;
            let Some(&block) = blocks.get(blocks.len() - 1 - task / shape.kv_heads) else { return };
            let kv = task % shape.kv_heads;
            let (_, len) = batch.span(block.sequence);
            let first = block.base + block.start;
            let rows = len - block.start;
            let panel = block.panel + block.start / PANEL;
            let k = keys.get(panel_at(&keys, kv, panel)..).unwrap_or(&[]);
            let v = values.get(panel_at(&values, kv, panel)..).unwrap_or(&[]);
            for head in kv * group..(kv + 1) * group {
                let q = qks.get(first * qk_width + head * dim..).unwrap_or(&[]);
                let d_o = douts.get(first * q_width + head * dim..).unwrap_or(&[]);
                let term = Term { lhs: q, lhs_stride: qk_width, rhs: Rhs::panels(k, dim * PANEL), k: dim };
                self.one(rows, block.rows, false, term, Parts::new(p), 0, PANEL, Finish::STORE);
                let term = Term { lhs: d_o, lhs_stride: q_width, rhs: Rhs::panels(v, dim * PANEL), k: dim };
                self.one(rows, block.rows, false, term, Parts::new(ds), 0, PANEL, Finish::STORE);
                let (lse, d) = (lses.get(first * heads + head..).unwrap_or(&[]), dots.get(first * heads + head..).unwrap_or(&[]));
                backward_rows(self.path, &mut p[..rows * PANEL], &mut ds[..rows * PANEL], PANEL, block.rows, 1, scale, lse, d, heads);
                let finish = if head == kv * group { Finish::STORE } else { Finish::add(1.0) };
                let d_o = dout.data.padded().get(first * q_width + head * dim..).unwrap_or(&[]);
                let term = Term { lhs: p, lhs_stride: PANEL, rhs: Rhs::in_place(d_o, q_width), k: rows };
                self.one(block.rows, dim, true, term, dqkv, first * width + qk_width + kv * dim, width, finish);
                let q = qk.data.padded().get(first * qk_width + head * dim..).unwrap_or(&[]);
                let term = Term { lhs: ds, lhs_stride: PANEL, rhs: Rhs::in_place(q, qk_width), k: rows };
                self.one(block.rows, dim, true, term, dqk, first * qk_width + q_width + kv * dim, qk_width, finish);
            }
        });
        Ok(())
    }

    /// One product in the calling thread.
    #[expect(clippy::too_many_arguments, reason = "a product's own parts")]
    pub(super) fn one(
        &self,
        m: usize,
        n: usize,
        transposed: bool,
        term: Term<'_>,
        out: Parts<'_>,
        start: usize,
        stride: usize,
        finish: Finish<'_>,
    ) {
        gemm::serial(self.path, &Product { m, n, transposed, terms: vec![term], out, start, stride, finish });
    }

    pub(super) fn make_cache(&self, layers: usize, slots: usize, length: usize, shape: AttentionShape) -> Result<Cache> {
        const WHAT: &str = "the key/value cache";
        check_shape("cache", shape)?;
        let heads = area(slots, shape.kv_heads, WHAT)?;
        let k = area(heads, area(length.div_ceil(PANEL), shape.head_dim * PANEL, WHAT)?, WHAT)?;
        let v = area(heads, area(length, shape.head_dim, WHAT)?, WHAT)?;
        let layer = || Ok(LayerCache { k: Buffer::zeroed(k, WHAT)?, v: Buffer::zeroed(v, WHAT)? });
        let layers = (0..layers).map(|_| layer()).collect::<Result<_>>()?;
        Ok(Cache { layers, slots, length, shape })
    }

    /// Checks a batch against a cache.
    fn check_cache(&self, op: &'static str, batch: &Batch, n: usize, layer: usize, shape: AttentionShape, cache: &Cache) -> Result<()> {
        check_shape(op, shape)?;
        batch.check_rows(op, n)?;
        if shape != cache.shape {
            return Err(OpsError::Device(format!("{op}: the cache was made for {:?}, not {shape:?}", cache.shape)));
        }
        index(op, "layer", layer as u64, cache.layers.len() as u64)?;
        same(op, "the batch's slots", batch.host.slots.len(), batch.sequences())?;
        for &slot in &batch.host.slots {
            index(op, "cache slot", slot.into(), cache.slots as u64)?;
        }
        for &position in &batch.host.positions {
            index(op, "position", position.into(), cache.length as u64)?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the operation's own arguments")]
    pub(super) fn append(
        &self,
        batch: &Batch,
        n: usize,
        layer: usize,
        shape: AttentionShape,
        qk: &Tensor,
        qkv: &Tensor,
        cache: &mut Cache,
    ) -> Result<()> {
        const OP: &str = "cache_append";
        self.check_cache(OP, batch, n, layer, shape, cache)?;
        let (dim, qk_width, width) = (shape.head_dim, shape.qk_width(), shape.qkv_width());
        let qks = qk.rows(OP, "qk", n, qk_width)?;
        let qkvs = qkv.rows(OP, "qkv", n, width)?;
        for (row, (&sequence, &position)) in batch.sequence_of.iter().zip(&batch.host.positions).enumerate().take(n) {
            let Some(&slot) = batch.host.slots.get(sequence as usize) else { continue };
            let (slot, position) = (slot as usize, position as usize);
            for head in 0..shape.kv_heads {
                let (k_start, v_start) = (cache.k_start(slot, head), cache.v_start(slot, head));
                let Some(store) = cache.layers.get_mut(layer) else { continue };
                let from = row * qk_width + shape.q_width() + head * dim;
                let key = qks.get(from..from + dim).unwrap_or(&[]);
                let to = k_start + position / PANEL * dim * PANEL + position % PANEL;
                for (value, to) in key.iter().zip(store.k.get_mut(to..).unwrap_or(&mut []).iter_mut().step_by(PANEL)) {
                    *to = *value;
                }
                let from = row * width + qk_width + head * dim;
                let to = v_start + position * dim;
                if let (Some(from), Some(to)) = (qkvs.get(from..from + dim), store.v.get_mut(to..to + dim)) {
                    to.copy_from_slice(from);
                }
            }
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the operation's own arguments")]
    pub(super) fn attend_cache(
        &self,
        batch: &Batch,
        n: usize,
        layer: usize,
        shape: AttentionShape,
        qk: &Tensor,
        cache: &Cache,
        out: &mut Tensor,
    ) -> Result<()> {
        const OP: &str = "attention_cached";
        self.check_cache(OP, batch, n, layer, shape, cache)?;
        let (dim, group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let (q_width, qk_width) = (shape.q_width(), shape.qk_width());
        let qks = qk.rows(OP, "qk", n, qk_width)?;
        out.rows_mut(OP, "out", n, q_width)?;
        let store = cache.layers.get(layer).ok_or(OpsError::Index {
            op: OP,
            what: "layer",
            index: layer as u64,
            limit: cache.layers.len() as u64,
        })?;
        let last = batch.host.positions.iter().max().map_or(0, |p| *p as usize + 1);
        let stride = last.next_multiple_of(PANEL);
        // A single row brings all heads of a group, which share its keys; several rows come head by head.
        let widest = ROWS.max(group);
        let size = (stride + 1) * widest;
        let mut scores = self.per_thread(size, "scores")?;
        let scores = Parts::new(&mut scores);
        let blocks = blocks(batch);
        let mut tasks = Vec::new();
        for block in blocks {
            let (_, len) = batch.span(block.sequence);
            if len == 1 {
                tasks.extend((0..shape.kv_heads).map(|kv| (block, kv, kv * group, group)));
            } else {
                tasks.extend((0..shape.heads).map(|head| (block, head / group, head, 1)));
            }
        }
        let out = Parts::new(&mut out.data);
        let scale = 1.0 / (dim as f32).sqrt();
        self.pool.run(tasks.len(), &|worker, task| {
            let Some(&(block, kv, head, heads)) = tasks.get(task) else { return };
            let first = block.base + block.start;
            let positions = batch.host.positions.get(first..first + block.rows).unwrap_or(&[]);
            let seen = positions.iter().max().map_or(0, |p| *p as usize + 1);
            let slot = batch.host.slots.get(block.sequence).map_or(0, |s| *s as usize);
            // SAFETY: each worker has its own scratch.
            #[expect(unsafe_code, reason = "per-thread scratch")]
            let (scores, lse) = unsafe { scores.part(worker * size, size) }.split_at_mut(stride * widest);
            // Either one row of several heads or several rows of one head.
            let single = positions.len() == 1 && heads > 1;
            let (m, q_stride, out_stride, limit) =
                if single { (heads, dim, dim, Seen::All(seen)) } else { (positions.len(), qk_width, q_width, Seen::Positions(positions)) };
            let q = qks.get(first * qk_width + head * dim..).unwrap_or(&[]);
            let keys = store.k.get(cache.k_start(slot, kv)..).unwrap_or(&[]);
            let term = Term { lhs: q, lhs_stride: q_stride, rhs: Rhs::panels(keys, dim * PANEL), k: dim };
            self.one(m, seen, false, term, Parts::new(scores), 0, stride, Finish::STORE);
            softmax_rows(self.path, scores, stride, seen, limit, scale, &mut lse[..m]);
            let values = store.v.padded().get(cache.v_start(slot, kv)..).unwrap_or(&[]);
            let term = Term { lhs: scores, lhs_stride: stride, rhs: Rhs::in_place(values, dim), k: seen };
            self.one(m, dim, false, term, out, first * q_width + head * dim, out_stride, Finish::STORE);
        });
        Ok(())
    }
}
