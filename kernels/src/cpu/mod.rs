//! The CPU backend: f32, on a pool of its own, with AVX-512 or AVX2 where the processor has them.
//!
//! The same call gives the same bits for any number of threads, and on every processor with a fused multiply-add. Work is cut by the data
//! alone, sums run in a fixed order over sixteen lanes (`simd`) or along one chain (`gemm`), and rows do not influence each other: a
//! sequence gives the same bits alone and in a packed batch.

mod attention;
mod buffer;
mod gemm;
mod linear;
mod loss;
mod norm;
mod pool;
mod simd;
mod types;

pub use attention::Cache;
pub use linear::Group;
pub use loss::Table;
pub use simd::InstructionSet;
pub use types::{Batch, Param, Stats, Tensor};

use crate::adamw::{self, AdamWConfig, OptimizerState};
use crate::ops::{
    AttentionShape, Dropout, HostBatch, HostLinear, HostMatrix, LoraGrads, LoraMember, Ops, OpsError, Result, ScratchNeed, WeightPlan,
};
use attention::check_shape;
use buffer::{Buffer, Scratch, area};
use norm::Heads;
use pool::Pool;
use simd::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use types::{index, need, same};

/// Rows of a task that works element by element.
const CHUNK: usize = 16;
/// Values of a task that works element by element on values without rows.
const FLAT: usize = 1 << 14;
/// The first position that has no rotation (the table of angles stays below 1 GiB at head size 256).
const POSITIONS: u64 = 1 << 20;

/// How the backend works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads that compute, the calling one among them; 0 means as many as the process may use.
    pub threads: usize,
}

/// The CPU backend.
pub struct Cpu {
    pool: Pool,
    path: Path,
    scratch: Scratch,
    rotations: RwLock<Option<Arc<Rotations>>>,
}

/// Cosines and sines of rotary embedding by position, `[positions, 2 * half]`: `cos | sin`.
struct Rotations {
    theta: f64,
    half: usize,
    positions: usize,
    values: Buffer,
}

impl Rotations {
    /// Cosines and sines of a position.
    fn of(&self, position: u32) -> (&[f32], &[f32]) {
        let start = position as usize * 2 * self.half;
        self.values.get(start..start + 2 * self.half).unwrap_or(&[]).split_at_checked(self.half).unwrap_or_default()
    }
}

impl Cpu {
    /// A backend with the best instructions that the processor has.
    ///
    /// # Errors
    /// Threads cannot be started.
    pub fn new(options: CpuOptions) -> Result<Cpu> {
        Self::with_instruction_set(options, InstructionSet::Best)
    }

    /// A backend with the given instructions.
    ///
    /// # Errors
    /// The processor has not got them, or threads cannot be started.
    pub fn with_instruction_set(options: CpuOptions, set: InstructionSet) -> Result<Cpu> {
        let path = Path::new(set).ok_or_else(|| OpsError::Device(format!("this processor has no {set:?} instructions")))?;
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        };
        let pool = Pool::new(threads).map_err(|e| OpsError::Device(format!("{threads} threads cannot be started: {e}")))?;
        tracing::debug!(threads, instructions = path.name(), "CPU backend");
        Ok(Cpu { pool, path, scratch: Scratch::default(), rotations: RwLock::new(None) })
    }

    /// How many threads compute.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The instructions in use, for people: those with a fused multiply-add all give the same bits.
    pub fn instructions(&self) -> &'static str {
        self.path.name()
    }

    /// A table of angles that reaches `limit` positions.
    fn rotations(&self, theta: f64, half: usize, limit: usize) -> Result<Arc<Rotations>> {
        if !(theta.is_finite() && theta > 0.0) {
            return Err(OpsError::Device(format!("the base of the rotary embedding is {theta}; it must be positive and finite")));
        }
        let fits = |r: &Arc<Rotations>| r.theta == theta && r.half == half && r.positions >= limit;
        if let Some(r) = self.rotations.read().unwrap_or_else(PoisonError::into_inner).as_ref().filter(|r| fits(r)) {
            return Ok(Arc::clone(r));
        }
        let positions = limit.next_power_of_two().max(256);
        let mut values = Buffer::zeroed(area(positions, 2 * half, "angles")?, "angles of the rotary embedding")?;
        let frequencies: Vec<f64> = (0..half).map(|i| theta.powf(-(i as f64) / half as f64)).collect();
        self.pool.rows(positions, 64, [(&mut values, 2 * half)], |rows, [out]| {
            for (position, out) in rows.zip(out.chunks_exact_mut(2 * half)) {
                let (cos, sin) = out.split_at_mut(half);
                for ((f, cos), sin) in frequencies.iter().zip(cos).zip(sin) {
                    let (s, c) = (position as f64 * f).sin_cos();
                    (*cos, *sin) = (c as f32, s as f32);
                }
            }
        });
        let made = Arc::new(Rotations { theta, half, positions, values });
        *self.rotations.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&made));
        Ok(made)
    }

    /// The angles for the positions of a batch.
    fn batch_rotations(&self, op: &'static str, batch: &Batch, theta: f64, half: usize) -> Result<Arc<Rotations>> {
        let last = batch.host.positions.iter().max().copied().unwrap_or(0);
        index(op, "position", last.into(), POSITIONS)?;
        self.rotations(theta, half, last as usize + 1)
    }
}

/// Checks the vectors and sizes of query/key norms.
fn check_heads(op: &'static str, shape: AttentionShape, q_weight: &[f32], k_weight: &[f32]) -> Result<Heads> {
    check_shape(op, shape)?;
    same(op, "the query norm's weight", q_weight.len(), shape.head_dim)?;
    same(op, "the key norm's weight", k_weight.len(), shape.head_dim)?;
    Ok(Heads { q: shape.heads, k: shape.kv_heads, dim: shape.head_dim })
}

/// Checks that a norm has a width.
fn check_norm(op: &'static str, weight: &[f32]) -> Result<usize> {
    need(op, "the norm's weight", weight.len(), 1)?;
    Ok(weight.len())
}

impl Ops for Cpu {
    type Tensor = Tensor;
    type Stats = Stats;
    type Param = Param;
    type Group = Group;
    type Table = Table;
    type Vector = Vec<f32>;
    type Batch = Batch;
    type Cache = Cache;
    type State = OptimizerState;
    type Offloaded = Tensor;
    type Recording = ();

    /// `cpu-f32-fma`, or `cpu-f32` where products are rounded before they are added: the two give different bits.
    fn describe(&self) -> String {
        if self.path.fused() { "cpu-f32-fma".into() } else { "cpu-f32".into() }
    }

    /// Unpacked weights are held twice: as right operands of the forward and of the backward.
    fn group_bytes(&self, members: &[(usize, usize)], plan: WeightPlan, _ranks: usize) -> u64 {
        let inner = members.first().map_or(0, |m| m.1);
        let out: usize = members.iter().map(|m| m.0).sum();
        match plan {
            WeightPlan::Unpacked => {
                let forward: usize = members.iter().map(|m| gemm::packed_len(inner, m.0)).sum();
                4 * (forward + gemm::packed_len(out, inner)) as u64
            }
            WeightPlan::Packed => nf4_bytes(out as u64 * inner as u64),
        }
    }

    /// What is unpacked for a call or while loading, and the output head as a right operand.
    fn scratch_bytes(&self, need: &ScratchNeed) -> Vec<(&'static str, u64)> {
        let (out, inner, _) = need.largest_group;
        let rows = 4 * out as u64 * inner as u64;
        let panels =
            if need.plan == WeightPlan::Packed { 4 * gemm::packed_len(inner, out).max(gemm::packed_len(out, inner)) as u64 } else { 0 };
        vec![("frozen projections", rows + panels), ("embedding and head", 4 * gemm::packed_len(need.hidden, need.vocab) as u64)]
    }

    fn tensor(&self, rows: usize, cols: usize) -> Result<Tensor> {
        Tensor::new(rows, cols)
    }

    fn stats(&self, rows: usize, cols: usize) -> Result<Stats> {
        Tensor::new(rows, cols)
    }

    fn read_tensor(&self, n: usize, t: &Tensor) -> Result<Vec<f32>> {
        Ok(t.rows("read_tensor", "the tensor", n, t.cols)?.to_vec())
    }

    fn write_tensor(&self, values: &[f32], t: &mut Tensor) -> Result<()> {
        let got = t.data.len();
        let need = values.len();
        t.data.get_mut(..need).ok_or(OpsError::Shape { op: "write_tensor", what: "the tensor", got, need })?.copy_from_slice(values);
        Ok(())
    }

    fn copy(&self, n: usize, from: &Tensor, to: &mut Tensor) -> Result<()> {
        let cols = from.cols;
        let from = from.rows("copy", "the source", n, cols)?;
        to.rows_mut("copy", "the target", n, cols)?.copy_from_slice(from);
        Ok(())
    }

    /// Here the columns lie without gaps from the buffer's start on, whatever its width.
    fn copy_mid(&self, n: usize, ranks: usize, from: &Tensor, to: &mut Tensor) -> Result<()> {
        const OP: &str = "copy_mid";
        let len = area(n, ranks, "mid")?;
        let got = from.data.len().min(to.data.len());
        match (from.data.get(..len), to.data.get_mut(..len)) {
            (Some(from), Some(to)) => to.copy_from_slice(from),
            _ => return Err(OpsError::Shape { op: OP, what: "mid", got, need: len }),
        }
        Ok(())
    }

    fn zero(&self, n: usize, t: &mut Tensor) -> Result<()> {
        let cols = t.cols;
        t.rows_mut("zero", "the tensor", n, cols)?.fill(0.0);
        Ok(())
    }

    fn param(&self, values: &[f32]) -> Result<Param> {
        Ok(Param { data: Buffer::copy_of(values, "a parameter")? })
    }

    fn read_param(&self, p: &Param) -> Result<Vec<f32>> {
        Ok(p.data.to_vec())
    }

    fn write_param(&self, values: &[f32], p: &mut Param) -> Result<()> {
        same("write_param", "the values", values.len(), p.len())?;
        p.data.copy_from_slice(values);
        Ok(())
    }

    fn zero_param(&self, p: &mut Param) -> Result<()> {
        p.data.fill(0.0);
        Ok(())
    }

    fn group(&self, members: &[HostLinear<'_>], plan: WeightPlan, _ranks: usize) -> Result<Group> {
        self.make_group(members, plan)
    }

    fn table(&self, weight: HostMatrix<'_>, rows: usize, cols: usize) -> Result<Table> {
        self.make_table(weight, rows, cols)
    }

    fn offloaded(&self, rows: usize, cols: usize) -> Result<Tensor> {
        Tensor::new(rows, cols)
    }

    /// Here both sides are the same memory: a copy, done at once.
    fn offload(&self, n: usize, from: &Tensor, to: &mut Tensor) -> Result<()> {
        self.copy(n, from, to)
    }

    fn fetch(&self, n: usize, from: &mut Tensor, to: &mut Tensor) -> Result<()> {
        self.copy(n, from, to)
    }

    fn settle(&self, _of: &Tensor) -> Result<()> {
        Ok(())
    }

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    /// Checks that the parts of the batch fit each other.
    fn batch(&self, batch: &HostBatch) -> Result<Batch> {
        const OP: &str = "batch";
        let n = batch.ids.len();
        index(OP, "the number of rows", n as u64, u32::MAX.into())?;
        same(OP, "positions", batch.positions.len(), n)?;
        if !batch.targets.is_empty() || !batch.weights.is_empty() {
            same(OP, "targets", batch.targets.len(), n)?;
            same(OP, "weights", batch.weights.len(), n)?;
        }
        need(OP, "cu_seqlens", batch.cu_seqlens.len(), 1)?;
        let sequences = batch.cu_seqlens.len() - 1;
        for (what, got) in [("samples", batch.samples.len()), ("slots", batch.slots.len())] {
            if got > 0 {
                same(OP, what, got, sequences)?;
            }
        }
        let mut sequence_of = Vec::with_capacity(n);
        let (mut key_panels, mut longest) = (0, 0);
        if let Some(&first) = batch.cu_seqlens.first() {
            index(OP, "the first row", first.into(), 1)?;
        }
        for (sequence, pair) in batch.cu_seqlens.windows(2).enumerate() {
            let &[start, end] = pair else { continue };
            index(OP, "a sequence's first row", start.into(), u64::from(end) + 1)?;
            let len = (end - start) as usize;
            index(OP, "a sequence's end", end.into(), n as u64 + 1)?;
            sequence_of.resize(end as usize, sequence as u32);
            key_panels += len.div_ceil(gemm::PANEL);
            longest = longest.max(len);
        }
        same(OP, "the rows of all sequences", sequence_of.len(), n)?;
        Ok(Batch { host: batch.clone(), sequence_of, key_panels, longest })
    }

    fn embed(&self, batch: &Batch, table: &Table, out: &mut Tensor) -> Result<()> {
        self.look_up(batch, table, out)
    }

    fn rms_norm(&self, n: usize, x: &Tensor, weight: &Vec<f32>, eps: f32, out: &mut Tensor, rstd: &mut Stats) -> Result<()> {
        const OP: &str = "rms_norm";
        let width = check_norm(OP, weight)?;
        let x = x.rows(OP, "x", n, width)?;
        let outs = [(out.rows_mut(OP, "out", n, width)?, width), (rstd.rows_mut(OP, "rstd", n, 1)?, 1)];
        self.pool.rows(n, CHUNK, outs, |rows, [out, rstd]| {
            norm::rms_norm(self.path, part(x, &rows, width), weight, eps, out, rstd);
        });
        Ok(())
    }

    fn add_rms_norm(
        &self,
        n: usize,
        x_acc: &mut Tensor,
        delta: &Tensor,
        weight: &Vec<f32>,
        eps: f32,
        out: &mut Tensor,
        rstd: &mut Stats,
    ) -> Result<()> {
        const OP: &str = "add_rms_norm";
        let width = check_norm(OP, weight)?;
        let delta = delta.rows(OP, "delta", n, width)?;
        let x = x_acc.rows_mut(OP, "x_acc", n, width)?;
        let outs = [(x, width), (out.rows_mut(OP, "out", n, width)?, width), (rstd.rows_mut(OP, "rstd", n, 1)?, 1)];
        self.pool.rows(n, CHUNK, outs, |rows, [x, out, rstd]| {
            norm::add_rms_norm(self.path, x, part(delta, &rows, width), weight, eps, out, rstd);
        });
        Ok(())
    }

    fn rms_norm_backward(&self, n: usize, dy: &Tensor, x: &Tensor, weight: &Vec<f32>, rstd: &Stats, dx_acc: &mut Tensor) -> Result<()> {
        const OP: &str = "rms_norm_backward";
        let width = check_norm(OP, weight)?;
        let (dy, x, rstd) = (dy.rows(OP, "dy", n, width)?, x.rows(OP, "x", n, width)?, rstd.rows(OP, "rstd", n, 1)?);
        self.pool.rows(n, CHUNK, [(dx_acc.rows_mut(OP, "dx_acc", n, width)?, width)], |rows, [dx]| {
            norm::rms_norm_backward(self.path, part(dy, &rows, width), part(x, &rows, width), weight, part(rstd, &rows, 1), dx);
        });
        Ok(())
    }

    fn add(&self, n: usize, x_acc: &mut Tensor, delta: &Tensor) -> Result<()> {
        const OP: &str = "add";
        let width = x_acc.cols;
        let delta = delta.rows(OP, "delta", n, width)?;
        let x = x_acc.rows_mut(OP, "x_acc", n, width)?;
        let len = x.len();
        self.pool.rows(len, FLAT, [(x, 1)], |values, [x]| norm::add(self.path, x, part(delta, &values, 1)));
        Ok(())
    }

    fn linear(
        &self,
        batch: &Batch,
        n: usize,
        x: &Tensor,
        w: &Group,
        lora: &[Option<LoraMember<'_, Param>>],
        dropout: Option<Dropout>,
        out: &mut Tensor,
        mid: &mut Tensor,
    ) -> Result<()> {
        self.linear_forward(batch, n, x, w, lora, dropout, out, mid)
    }

    fn linear_backward(
        &self,
        batch: &Batch,
        n: usize,
        dy: &Tensor,
        x: &Tensor,
        mid: &Tensor,
        w: &Group,
        lora: &[Option<LoraMember<'_, Param>>],
        dropout: Option<Dropout>,
        grads: &mut [Option<LoraGrads<'_, Param>>],
        dmid: &mut Tensor,
        dx: Option<&mut Tensor>,
    ) -> Result<()> {
        self.linear_gradient(batch, n, dy, x, mid, w, lora, dropout, grads, dmid, dx)
    }

    fn qk_norm_rope(
        &self,
        batch: &Batch,
        n: usize,
        shape: AttentionShape,
        qkv: &Tensor,
        q_weight: &Vec<f32>,
        k_weight: &Vec<f32>,
        eps: f32,
        theta: f64,
        qk: &mut Tensor,
        rstd: &mut Stats,
    ) -> Result<()> {
        const OP: &str = "qk_norm_rope";
        batch.check_rows(OP, n)?;
        let heads = check_heads(OP, shape, q_weight, k_weight)?;
        let angles = self.batch_rotations(OP, batch, theta, heads.dim / 2)?;
        let (width, qk_width, count) = (shape.qkv_width(), shape.qk_width(), heads.q + heads.k);
        let qkv = qkv.rows(OP, "qkv", n, width)?;
        let outs = [(qk.rows_mut(OP, "qk", n, qk_width)?, qk_width), (rstd.rows_mut(OP, "rstd", n, count)?, count)];
        self.pool.rows(n, CHUNK, outs, |rows, [qk, rstd]| {
            for ((row, qk), rstd) in rows.zip(qk.chunks_exact_mut(qk_width)).zip(rstd.chunks_exact_mut(count)) {
                let (cos, sin) = angles.of(batch.host.positions.get(row).copied().unwrap_or(0));
                let x = part(qkv, &(row..row + 1), width);
                norm::qk_row(self.path, heads, x, q_weight, k_weight, eps, cos, sin, qk, rstd);
            }
        });
        Ok(())
    }

    fn qk_norm_rope_backward(
        &self,
        batch: &Batch,
        n: usize,
        shape: AttentionShape,
        dqk: &Tensor,
        qkv: &Tensor,
        q_weight: &Vec<f32>,
        k_weight: &Vec<f32>,
        rstd: &Stats,
        theta: f64,
        dqkv: &mut Tensor,
    ) -> Result<()> {
        const OP: &str = "qk_norm_rope_backward";
        batch.check_rows(OP, n)?;
        let heads = check_heads(OP, shape, q_weight, k_weight)?;
        let angles = self.batch_rotations(OP, batch, theta, heads.dim / 2)?;
        let (width, qk_width, count) = (shape.qkv_width(), shape.qk_width(), heads.q + heads.k);
        let (dqk, qkv) = (dqk.rows(OP, "dqk", n, qk_width)?, qkv.rows(OP, "qkv", n, width)?);
        let rstd = rstd.rows(OP, "rstd", n, count)?;
        self.pool.rows(n, CHUNK, [(dqkv.rows_mut(OP, "dqkv", n, width)?, width)], |rows, [dqkv]| {
            for (row, dqkv) in rows.zip(dqkv.chunks_exact_mut(width)) {
                let (cos, sin) = angles.of(batch.host.positions.get(row).copied().unwrap_or(0));
                let one = row..row + 1;
                let (dqk, qkv, rstd) = (part(dqk, &one, qk_width), part(qkv, &one, width), part(rstd, &one, count));
                norm::qk_row_backward(self.path, heads, dqk, qkv, q_weight, k_weight, rstd, cos, sin, dqkv);
            }
        });
        Ok(())
    }

    fn attention(
        &self,
        batch: &Batch,
        n: usize,
        shape: AttentionShape,
        qk: &Tensor,
        qkv: &Tensor,
        out: &mut Tensor,
        lse: &mut Stats,
    ) -> Result<()> {
        self.attention_forward(batch, n, shape, qk, qkv, out, lse)
    }

    fn attention_backward(
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
        self.attention_gradient(batch, n, shape, dout, out, qk, qkv, lse, dqk, dqkv)
    }

    fn swiglu(&self, n: usize, width: usize, gate_up: &Tensor, out: &mut Tensor) -> Result<()> {
        const OP: &str = "swiglu";
        let double = area(2, width.max(1), "gate and up")?;
        let x = gate_up.rows(OP, "gate_up", n, double)?;
        self.pool.rows(n, CHUNK, [(out.rows_mut(OP, "out", n, width)?, width)], |rows, [out]| {
            norm::swiglu(self.path, width, part(x, &rows, double), out);
        });
        Ok(())
    }

    fn swiglu_backward(&self, n: usize, width: usize, dout: &Tensor, gate_up: &mut Tensor) -> Result<()> {
        const OP: &str = "swiglu_backward";
        let double = area(2, width.max(1), "gate and up")?;
        let dout = dout.rows(OP, "dout", n, width)?;
        self.pool.rows(n, CHUNK, [(gate_up.rows_mut(OP, "gate_up", n, double)?, double)], |rows, [gate_up]| {
            norm::swiglu_backward(self.path, width, part(dout, &rows, width), gate_up);
        });
        Ok(())
    }

    fn cross_entropy(
        &self,
        batch: &Batch,
        n: usize,
        hidden: &Tensor,
        head: &Table,
        grad_scale: f32,
        dhidden: Option<&mut Tensor>,
    ) -> Result<Vec<f64>> {
        self.weighted_cross_entropy(batch, n, hidden, head, grad_scale, dhidden)
    }

    fn cuts_freely(&self) -> bool {
        // Each product is one chain over the inner dimension; scores, their softmax and the sum over values depend on a query's own keys alone.
        true
    }

    fn cache(&self, layers: usize, slots: usize, length: usize, shape: AttentionShape) -> Result<Cache> {
        self.make_cache(layers, slots, length, shape)
    }

    fn cache_append(
        &self,
        batch: &Batch,
        n: usize,
        layer: usize,
        shape: AttentionShape,
        qk: &Tensor,
        qkv: &Tensor,
        cache: &mut Cache,
    ) -> Result<()> {
        self.append(batch, n, layer, shape, qk, qkv, cache)
    }

    fn attention_cached(
        &self,
        batch: &Batch,
        n: usize,
        layer: usize,
        shape: AttentionShape,
        qk: &Tensor,
        cache: &Cache,
        out: &mut Tensor,
    ) -> Result<()> {
        self.attend_cache(batch, n, layer, shape, qk, cache, out)
    }

    fn gather(&self, rows: &[u32], from: &Tensor, to: &mut Tensor) -> Result<()> {
        const OP: &str = "gather";
        let cols = from.cols;
        let to = to.rows_mut(OP, "to", rows.len(), cols)?;
        for (&row, to) in rows.iter().zip(to.chunks_exact_mut(cols.max(1))) {
            index(OP, "row", row.into(), from.rows as u64)?;
            to.copy_from_slice(part(&from.data, &(row as usize..row as usize + 1), cols));
        }
        Ok(())
    }

    fn logits(&self, n: usize, hidden: &Tensor, head: &Table) -> Result<Vec<f32>> {
        self.all_logits(n, hidden, head)
    }

    fn grad_norm_sq(&self, grads: &[&Param]) -> Result<f64> {
        // Sums of fixed pieces, added up in order: per tensor first, then over tensors.
        let pieces: Vec<(usize, &[f32])> = grads.iter().enumerate().flat_map(|(i, g)| g.data.chunks(FLAT).map(move |c| (i, c))).collect();
        let sums: Vec<AtomicU64> = pieces.iter().map(|_| AtomicU64::new(0)).collect();
        self.pool.run(pieces.len(), &|_, task| {
            if let (Some((_, piece)), Some(sum)) = (pieces.get(task), sums.get(task)) {
                sum.store(norm::sum_of_squares(piece).to_bits(), Ordering::Relaxed);
            }
        });
        let mut per_tensor = vec![0.0f64; grads.len()];
        for ((tensor, _), sum) in pieces.iter().zip(&sums) {
            if let Some(total) = per_tensor.get_mut(*tensor) {
                *total += f64::from_bits(sum.load(Ordering::Relaxed));
            }
        }
        Ok(per_tensor.into_iter().sum())
    }

    fn state(&self, len: usize, config: &AdamWConfig) -> Result<OptimizerState> {
        config.validate().map_err(device)?;
        Ok(OptimizerState::new(len, config))
    }

    fn read_state(&self, state: &OptimizerState) -> Result<OptimizerState> {
        Ok(state.clone())
    }

    fn write_state(&self, host: &OptimizerState) -> Result<OptimizerState> {
        host.validate(host.len()).map_err(device)?;
        Ok(host.clone())
    }

    fn adamw(
        &self,
        param: &mut Param,
        grad: &Param,
        state: &mut OptimizerState,
        config: &AdamWConfig,
        lr: f32,
        grad_scale: f32,
        step: u64,
    ) -> Result<()> {
        adamw::step(&mut param.data[..], &grad.data[..], state, config, lr.into(), grad_scale.into(), step).map_err(device)
    }
}

/// Bytes of so many weights in NF4 with double quantization.
fn nf4_bytes(values: u64) -> u64 {
    values.div_ceil(2) + values.div_ceil(64) + values.div_ceil(64 * 256) * 4
}

/// An error of a module that has its own.
fn device(e: impl std::fmt::Display) -> OpsError {
    OpsError::Device(e.to_string())
}

/// Rows of a matrix whose size was checked.
fn part<'a>(values: &'a [f32], rows: &std::ops::Range<usize>, width: usize) -> &'a [f32] {
    values.get(rows.start * width..rows.end * width).unwrap_or(&[])
}
