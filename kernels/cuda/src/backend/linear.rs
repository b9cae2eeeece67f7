//! Groups of frozen projections with their adapters: each is one product, forward and backward.
//!
//! The weight of a group lies in a larger matrix
//!
//! ```text
//!            in columns   R columns
//! out rows [     W      |   s B     ]        (member i: its rows, its columns; zeros elsewhere)
//!   R rows [     A      |    -      ]
//! ```
//!
//! so that `x Wᵀ + s (x Aᵀ) Bᵀ` is `[x | mid] [W | s B]ᵀ`, and `dy W + dmid A` is `[dy | dmid] [W ; A]`, where `mid` and `dmid` lie beside `x` and
//! `dy` (see [`Ops::tensor_with_mid`]). The adapter's share of a product is then a few columns more, instead of another pass over its output.
//!
//! [`Ops::tensor_with_mid`]: trainer_kernels::ops::Ops::tensor_with_mid

use super::fp8::Eights;
use super::types::{Batch, Param};
use super::{Cuda, Outcome, Products};
use crate::launch::{
    DeviceNf4, LONGEST_NORM, LoraIn, LoraOut, LoraPart, MOST_SMALL_ROWS, QuantSource, SmallLora, SmallMember, small_scratch,
};
use crate::matrix::{Float, Matrix, Op, Out};
use crate::memory::{Floats, Tensor};
use std::sync::{Mutex, PoisonError};
use trainer_kernels::nf4::DoubleQuant;
use trainer_kernels::ops::{Dropout, HostLinear, HostMatrix, LoraGrads, LoraMember, OpsError, Random, WeightPlan};

/// Rows of weights with adapters start at multiples of this many values: 128 bytes.
pub(super) const ROW: usize = 64;

/// A group of frozen projections of one input.
pub struct Group {
    pub(super) members: Vec<Member>,
    pub(super) in_features: usize,
    /// Sum of the members' outputs.
    pub(super) out_features: usize,
    /// The weights in 16 bits with room for adapters, if they are kept that way; where they are in e4m3, that room alone.
    kept: Option<Mutex<Extended>>,
    /// The weights in e4m3, if that is what is multiplied.
    eights: Option<Eights>,
}

pub(super) struct Member {
    pub(super) out: usize,
    /// Its first column in a row of the result.
    pub(super) column: usize,
    bias: Option<Floats>,
    /// What the checkpoint holds; dropped where the weights are kept unpacked.
    pub(super) frozen: Option<Frozen>,
}

pub(super) enum Frozen {
    Nf4(DeviceNf4),
    Dense(Tensor),
}

/// A weight matrix with its adapters: see the module. Without the frozen weight, its two other parts are tensors of their own.
pub(super) struct Extended {
    /// All of it, or `s B`, `[out, R]`.
    tensor: Tensor,
    /// A, `[R, in]`, where it lies apart.
    ins: Option<Tensor>,
    out: usize,
    in_features: usize,
    /// Sum of ranks that fit.
    room: usize,
    /// What adapters are in it: versions of A and B, rank and scale of each member.
    holds: Vec<(u64, u64, usize, u32)>,
}

impl Extended {
    /// Values of a row with `ranks` columns of adapters.
    pub(super) fn stride(in_features: usize, ranks: usize) -> usize {
        (in_features + ranks).next_multiple_of(ROW)
    }

    fn part(tensor: &Tensor, first_row: usize, rows: usize, first_col: usize, cols: usize) -> Matrix {
        let stride = tensor.stride();
        Matrix { ptr: tensor.ptr() + 2 * (first_row * stride + first_col) as u64, rows, cols, stride }
    }

    /// A part of the matrix that has all parts.
    fn matrix(&self, first_row: usize, rows: usize, first_col: usize, cols: usize) -> Matrix {
        Self::part(&self.tensor, first_row, rows, first_col, cols)
    }

    /// Rows of A.
    fn a(&self, start: usize, rank: usize) -> Matrix {
        match &self.ins {
            Some(ins) => Self::part(ins, start, rank, 0, self.in_features),
            None => self.matrix(self.out + start, rank, 0, self.in_features),
        }
    }

    /// Rows and columns of `s B`.
    fn b(&self, first_row: usize, rows: usize, start: usize, rank: usize) -> Matrix {
        let first_col = if self.ins.is_some() { 0 } else { self.in_features };
        self.matrix(first_row, rows, first_col + start, rank)
    }
}

/// Ranks of a call, and where each member's columns start in `mid`: at multiples of eight.
pub(super) struct Ranks {
    starts: Vec<usize>,
    pub ranks: Vec<usize>,
    pub total: usize,
}

fn shape(op: &'static str, what: &'static str, got: usize, need: usize) -> OpsError {
    OpsError::Shape { op, what, got, need }
}

/// A matrix of the first `n` rows and some columns of a tensor.
pub(super) fn view(t: &Tensor, n: usize, first: usize, cols: usize) -> Matrix {
    Matrix { ptr: t.ptr() + 2 * first as u64, rows: n, cols, stride: t.stride() }
}

fn check_tensor(op: &'static str, what: &'static str, t: &Tensor, n: usize, cols: usize) -> Outcome<()> {
    if t.cols() != cols {
        return Err(shape(op, what, t.cols(), cols));
    }
    if t.rows() < n { Err(shape(op, what, t.rows(), n)) } else { Ok(()) }
}

impl Cuda {
    pub(super) fn make_group(&self, members: &[HostLinear<'_>], plan: WeightPlan, ranks: usize) -> Outcome<Group> {
        let op = "group";
        let in_features = members.first().map_or(0, |m| m.in_features);
        if in_features == 0 || !in_features.is_multiple_of(8) {
            return Err(OpsError::Device(format!("a projection has {in_features} inputs; on CUDA they must be a multiple of 8")));
        }
        let mut group = Group { members: Vec::new(), in_features, out_features: 0, kept: None, eights: None };
        for m in members {
            let len = m.out_features.saturating_mul(m.in_features);
            let got = match m.weight {
                HostMatrix::Nf4(w) => w.len(),
                HostMatrix::F32(w) => w.len(),
                HostMatrix::Bf16(w) => w.len(),
            };
            if m.in_features != in_features || got != len || m.out_features == 0 {
                return Err(shape(op, "a frozen weight", got, len));
            }
            if !m.out_features.is_multiple_of(8) {
                return Err(OpsError::Device(format!("a projection has {} outputs; on CUDA they must be a multiple of 8", m.out_features)));
            }
            if let Some(bias) = m.bias.filter(|b| b.len() != m.out_features) {
                return Err(shape(op, "a frozen bias", bias.len(), m.out_features));
            }
            let frozen = match m.weight {
                HostMatrix::Nf4(w) => Frozen::Nf4(self.device.nf4(w)?),
                other => Frozen::Dense(self.dense(other, m.out_features, in_features)?),
            };
            let bias = m.bias.map(|b| self.device.floats(b)).transpose()?;
            group.members.push(Member { out: m.out_features, column: group.out_features, bias, frozen: Some(frozen) });
            group.out_features += m.out_features;
        }
        self.keep(&mut group, plan, ranks)?;
        Ok(group)
    }

    /// A group with random weights, made and quantized on the card.
    pub(super) fn make_random_group(&self, members: &[(usize, usize)], random: Random, plan: WeightPlan, ranks: usize) -> Outcome<Group> {
        let in_features = members.first().map_or(0, |m| m.1);
        let mut group = Group { members: Vec::new(), in_features, out_features: 0, kept: None, eights: None };
        for (&(out, inner), member) in members.iter().zip(0u64..) {
            let mut values = Tensor::new(self.device.arena(), out, inner, "random weights")?;
            self.device.random_normal(random.seed.wrapping_add(member), random.deviation, &mut values)?;
            let frozen = if random.nf4 {
                Frozen::Nf4(self.device.quantize_nf4(QuantSource::Bf16(&values), out, inner, DoubleQuant::default())?)
            } else {
                Frozen::Dense(values)
            };
            group.members.push(Member { out, column: group.out_features, bias: None, frozen: Some(frozen) });
            group.out_features += out;
        }
        self.keep(&mut group, plan, ranks)?;
        Ok(group)
    }

    /// Unpacks the weights of a group that keeps them unpacked.
    fn keep(&self, group: &mut Group, plan: WeightPlan, ranks: usize) -> Outcome<()> {
        group.eights = self.eights(group, plan, |dense| self.fill(group, dense))?;
        let (out, inner) = (group.out_features, group.in_features);
        if plan == WeightPlan::Unpacked {
            group.kept = Some(Mutex::new(match group.eights {
                Some(_) => self.apart(out, inner, ranks)?,
                None => {
                    let mut extended = self.extended(out, inner, ranks)?;
                    self.fill(group, &mut extended.tensor)?;
                    extended
                }
            }));
        }
        if plan == WeightPlan::Unpacked || group.eights.as_ref().is_some_and(Eights::kept) {
            group.members.iter_mut().for_each(|m| m.frozen = None);
        }
        Ok(())
    }

    /// A dense matrix in bf16.
    pub(super) fn dense(&self, matrix: HostMatrix<'_>, rows: usize, cols: usize) -> Outcome<Tensor> {
        let op = "dense";
        Ok(match matrix {
            HostMatrix::Nf4(w) => {
                let mut t = Tensor::new(self.device.arena(), rows, cols, "a matrix")?;
                self.device.nf4_unpack(&self.device.nf4(w)?, &mut t, 0)?;
                t
            }
            HostMatrix::F32(w) if w.len() == rows * cols => self.device.tensor(cols, w)?,
            HostMatrix::Bf16(w) if w.len() == rows * cols => Tensor::of(self.device.upload(w, "a matrix")?, rows, cols)?,
            HostMatrix::F32(w) => return Err(shape(op, "the matrix", w.len(), rows * cols)),
            HostMatrix::Bf16(w) => return Err(shape(op, "the matrix", w.len(), rows * cols)),
        })
    }

    fn extended(&self, out: usize, in_features: usize, ranks: usize) -> Outcome<Extended> {
        let stride = Extended::stride(in_features, ranks);
        let tensor = Tensor::new(self.device.arena(), out + ranks, stride, "weights in 16 bits")?;
        Ok(Extended { tensor, ins: None, out, in_features, room: ranks, holds: Vec::new() })
    }

    /// Room for adapters alone.
    fn apart(&self, out: usize, in_features: usize, ranks: usize) -> Outcome<Extended> {
        let tensor = Tensor::new(self.device.arena(), out, ranks, "adapters in 16 bits")?;
        let ins = Tensor::new(self.device.arena(), ranks, in_features, "adapters in 16 bits")?;
        Ok(Extended { tensor, ins: Some(ins), out, in_features, room: ranks, holds: Vec::new() })
    }

    /// The frozen weights into the top left.
    fn fill(&self, group: &Group, extended: &mut Tensor) -> Outcome<()> {
        let mut part = extended.columns(0, group.in_features)?;
        for m in &group.members {
            match &m.frozen {
                Some(Frozen::Nf4(w)) => self.device.nf4_unpack(w, &mut part, m.column)?,
                Some(Frozen::Dense(w)) => self.device.copy_tensor(m.out, w, &mut part.rows_from(m.column)?)?,
                None => return Err(OpsError::Device("weights were dropped that are needed: a bug in trainer-kernels-cuda".into())),
            }
        }
        Ok(())
    }

    pub(super) fn ranks(&self, op: &'static str, group: &Group, lora: &[Option<LoraMember<'_, Param>>]) -> Outcome<Ranks> {
        if lora.len() != group.members.len() {
            return Err(shape(op, "the adapters", lora.len(), group.members.len()));
        }
        let mut ranks = Ranks { starts: Vec::new(), ranks: Vec::new(), total: 0 };
        for (m, l) in group.members.iter().zip(lora) {
            let rank = l.as_ref().map_or(0, |l| l.rank);
            if let Some(l) = l {
                for (what, got, need) in
                    [("an adapter's A", l.a.values().len(), rank * group.in_features), ("an adapter's B", l.b.values().len(), rank * m.out)]
                {
                    if got != need {
                        return Err(shape(op, what, got, need));
                    }
                }
                if let Some(bias) = l.bias.filter(|b| b.values().len() != m.out) {
                    return Err(shape(op, "a trained bias", bias.values().len(), m.out));
                }
            }
            ranks.starts.push(ranks.total);
            ranks.ranks.push(rank);
            // Aligned, so that every block of a product starts at a whole vector.
            ranks.total += rank.next_multiple_of(8);
        }
        Ok(ranks)
    }

    /// Runs `work` with the group's weights and these adapters in one matrix.
    fn with_weights<T>(
        &self,
        group: &Group,
        lora: &[Option<LoraMember<'_, Param>>],
        ranks: &Ranks,
        work: impl FnOnce(&Extended) -> Outcome<T>,
    ) -> Outcome<T> {
        let wanted: Vec<(u64, u64, usize, u32)> =
            lora.iter().map(|l| l.as_ref().map_or((0, 0, 0, 0), |l| (l.a.version(), l.b.version(), l.rank, l.scale.to_bits()))).collect();
        if let Some(kept) = &group.kept {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if ranks.total <= kept.room {
                if ranks.total > 0 && kept.holds != wanted {
                    self.pack(group, lora, ranks, &mut kept)?;
                    kept.holds = wanted;
                }
                return work(&kept);
            }
            if group.eights.is_none() {
                // More than there is room for: right, but a copy slower.
                let mut scratch = self.scratch();
                let extended = self.shared_weights(&mut scratch.weights, group, ranks.total)?;
                let from = kept.tensor.columns(0, group.in_features)?;
                self.device.copy_tensor(group.out_features, &from, &mut extended.tensor.columns(0, group.in_features)?)?;
                self.pack(group, lora, ranks, extended)?;
                return work(extended);
            }
        }
        let mut scratch = self.scratch();
        let extended = if group.eights.is_some() {
            self.shared_adapters(&mut scratch.adapters, group, ranks.total)?
        } else {
            let extended = self.shared_weights(&mut scratch.weights, group, ranks.total)?;
            self.fill(group, &mut extended.tensor)?;
            extended
        };
        if ranks.total > 0 {
            self.pack(group, lora, ranks, extended)?;
        }
        work(extended)
    }

    /// The buffers that the adapters of groups in e4m3 take turns in, in the shape of this one's.
    fn shared_adapters<'s>(&self, shared: &'s mut Option<Extended>, group: &Group, ranks: usize) -> Outcome<&'s mut Extended> {
        let (out, inner) = (group.out_features, group.in_features);
        let (outs, ins) = match shared.take() {
            Some(held) => (Some(held.tensor), held.ins),
            None => (None, None),
        };
        // Each of the two only grows: the group with the longest B need not be the one with the longest A.
        let room = |held: Option<Tensor>, rows: usize, cols: usize| -> Outcome<Tensor> {
            match held.filter(|t| t.capacity() >= rows * cols) {
                Some(t) => Ok(t.reshaped(rows, cols)?),
                None => {
                    self.replace();
                    Ok(Tensor::new(self.device.arena(), rows, cols, "adapters in 16 bits")?)
                }
            }
        };
        let (tensor, ins) = (room(outs, out, ranks)?, room(ins, ranks, inner)?);
        Ok(shared.insert(Extended { tensor, ins: Some(ins), out, in_features: inner, room: ranks, holds: Vec::new() }))
    }

    /// The buffer that groups take turns in, in the shape of this one.
    fn shared_weights<'s>(&self, shared: &'s mut Option<Extended>, group: &Group, ranks: usize) -> Outcome<&'s mut Extended> {
        let (rows, stride) = (group.out_features + ranks, Extended::stride(group.in_features, ranks));
        let fits = shared.as_ref().is_some_and(|e| e.tensor.capacity() >= rows * stride);
        if !fits {
            *shared = None;
            self.replace();
            *shared = Some(self.extended(group.out_features, group.in_features, ranks)?);
        }
        match shared {
            Some(extended) => {
                extended.tensor = extended.tensor.reshaped(rows, stride)?;
                (extended.out, extended.in_features, extended.room) = (group.out_features, group.in_features, ranks);
                Ok(extended)
            }
            None => Err(OpsError::Device("no shared weights: a bug in trainer-kernels-cuda".into())),
        }
    }

    fn pack(&self, group: &Group, lora: &[Option<LoraMember<'_, Param>>], ranks: &Ranks, extended: &mut Extended) -> Outcome<()> {
        let parts: Vec<LoraPart<'_>> = group
            .members
            .iter()
            .zip(lora)
            .zip(&ranks.starts)
            .filter_map(|((m, l), &start)| {
                let l = l.as_ref().filter(|l| l.rank > 0)?;
                let (a, b) = (l.a.values(), l.b.values());
                Some(LoraPart { a, b, rank: l.rank, scale: l.scale, out_start: m.column, out: m.out, rank_start: start })
            })
            .collect();
        match &mut extended.ins {
            Some(ins) => {
                let mut outs = extended.tensor.columns(0, ranks.total)?;
                Ok(self.device.lora_pack_apart(&parts, &mut outs, ins)?)
            }
            None => Ok(self.device.lora_pack(&parts, group.out_features, group.in_features, ranks.total, &mut extended.tensor)?),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "base and adapter are one operation")]
    pub(super) fn linear_forward(
        &self,
        batch: &Batch,
        n: usize,
        x: &Tensor,
        w: &Group,
        lora: &[Option<LoraMember<'_, Param>>],
        dropout: Option<Dropout>,
        out: &mut Tensor,
        mid: &mut Tensor,
    ) -> Outcome<()> {
        let op = "linear";
        let (inner, outer) = (w.in_features, w.out_features);
        check_tensor(op, "x", x, n, inner)?;
        check_tensor(op, "out", out, n, outer)?;
        let ranks = self.ranks(op, w, lora)?;
        let r = ranks.total;
        if mid.cols() < r || (r > 0 && mid.rows() < n) {
            return Err(shape(op, "mid", mid.cols(), r));
        }
        if n == 0 {
            return Ok(());
        }
        let dropout = active(op, dropout)?;
        // Training needs what lies between A and B.
        if n <= MOST_SMALL_ROWS && dropout.is_none() && !batch.has_targets && self.small(n, x, w, lora, out)? {
            return Ok(());
        }
        self.with_weights(w, lora, &ranks, |e| {
            let xs = view(x, n, 0, inner);
            let store = || bf16(out, 0, outer);
            if r > 0 {
                match dropout {
                    // The library is the faster for this thin product; without it there is a kernel that reads x once.
                    None if matches!(self.products, Products::Own) => {
                        self.with_partial(self.device.lora_mid_scratch_bytes(n, inner, r), |scratch| {
                            Ok(self.device.lora_mid(n, x, e.a(0, r), mid, scratch)?)
                        })?;
                    }
                    None => self.gemm(xs, Op::N, e.a(0, r), Op::T, bf16(mid, 0, r), n, r, inner, 1.0, 0.0)?,
                    Some(dropout) => {
                        batch.check_rows(op, n)?;
                        for (i, (&start, &rank)) in ranks.starts.iter().zip(&ranks.ranks).enumerate().filter(|(_, (_, rank))| **rank > 0) {
                            self.with_dropped(batch, n, x, dropout, i, |dropped| {
                                let a = e.a(start, rank);
                                self.gemm(view(dropped, n, 0, inner), Op::N, a, Op::T, bf16(mid, start, rank), n, rank, inner, 1.0, 0.0)
                            })?;
                        }
                    }
                }
            }
            let thin = |beta: f32| self.gemm(view(mid, n, 0, r), Op::N, e.b(0, outer, 0, r), Op::T, store(), n, outer, r, 1.0, beta);
            if let Some(eights) = &w.eights {
                let wide = |beta: f32| self.forward8(n, x, w, eights, out, beta);
                if r == 0 { wide(0.0) } else { self.sum8(thin, wide) }
            } else if r == 0 || x.is_left_of(mid) {
                let k = inner + r;
                self.gemm(Matrix { cols: k, ..xs }, Op::N, e.matrix(0, outer, 0, k), Op::T, store(), n, outer, k, 1.0, 0.0)
            } else {
                self.gemm(xs, Op::N, e.matrix(0, outer, 0, inner), Op::T, store(), n, outer, inner, 1.0, 0.0)?;
                thin(1.0)
            }
        })?;
        for (m, l) in w.members.iter().zip(lora) {
            let trained = l.as_ref().and_then(|l| l.bias).map(Param::values);
            if let Some(bias) = trained.or(m.bias.as_ref()) {
                self.device.add_bias(n, out, bias, m.column)?;
            }
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "base and adapter are one operation")]
    pub(super) fn linear_gradient(
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
    ) -> Outcome<()> {
        let op = "linear_backward";
        let (inner, outer) = (w.in_features, w.out_features);
        check_tensor(op, "dy", dy, n, outer)?;
        check_tensor(op, "x", x, n, inner)?;
        let ranks = self.ranks(op, w, lora)?;
        let r = ranks.total;
        if mid.cols() < r || dmid.cols() < r || (r > 0 && (mid.rows() < n || dmid.rows() < n)) {
            return Err(shape(op, "mid", mid.cols().min(dmid.cols()), r));
        }
        if let Some(dx) = &dx {
            check_tensor(op, "dx", dx, n, inner)?;
        }
        if grads.len() != w.members.len() {
            return Err(shape(op, "the gradients", grads.len(), w.members.len()));
        }
        if n == 0 {
            return Ok(());
        }
        let dropout = active(op, dropout)?;
        if dropout.is_some() {
            batch.check_rows(op, n)?;
        }
        self.with_weights(w, lora, &ranks, |e| {
            let fused = dropout.is_none() && self.adapter_gradients(n, dy, x, mid, w, lora, &ranks, e, grads, dmid)?;
            for (i, ((m, l), g)) in w.members.iter().zip(lora).zip(grads.iter_mut()).enumerate() {
                let (Some(start), Some(l)) = (ranks.starts.get(i).copied(), l.as_ref()) else { continue };
                let rank = l.rank;
                let dys = view(dy, n, m.column, m.out);
                if rank > 0 && !fused {
                    // dmid = dy · s B
                    let sb = e.b(m.column, m.out, start, rank);
                    self.gemm(dys, Op::N, sb, Op::N, bf16(dmid, start, rank), n, rank, m.out, 1.0, 0.0)?;
                }
                let Some(g) = g.as_mut() else { continue };
                if rank > 0 && !fused {
                    let (need_a, need_b) = (rank * inner, rank * m.out);
                    if g.a_acc.values().len() != need_a || g.b_acc.values().len() != need_b {
                        return Err(shape(op, "the gradient of an adapter", g.a_acc.values().len(), need_a));
                    }
                    // dB += s dyᵀ mid, dA += dmidᵀ drop(x)
                    let b = Out::floats(g.b_acc.change(), 0, m.out, rank)?;
                    self.gemm(dys, Op::T, view(mid, n, start, rank), Op::N, b, m.out, rank, n, l.scale, 1.0)?;
                    let a = Out::floats(g.a_acc.change(), 0, rank, inner)?;
                    let dmids = view(dmid, n, start, rank);
                    match dropout {
                        None => self.gemm(dmids, Op::T, view(x, n, 0, inner), Op::N, a, rank, inner, n, 1.0, 1.0)?,
                        Some(dropout) => self.with_dropped(batch, n, x, dropout, i, |dropped| {
                            self.gemm(dmids, Op::T, view(dropped, n, 0, inner), Op::N, a, rank, inner, n, 1.0, 1.0)
                        })?,
                    }
                }
                if let Some(bias) = g.bias_acc.as_deref_mut() {
                    if bias.values().len() != m.out {
                        return Err(shape(op, "the gradient of a bias", bias.values().len(), m.out));
                    }
                    self.device.bias_grad(n, dy, m.column, bias.change())?;
                }
            }
            let Some(dx) = dx else { return Ok(()) };
            let store = || bf16(dx, 0, inner);
            let dys = view(dy, n, 0, outer);
            let thin = |beta: f32| self.gemm(view(dmid, n, 0, r), Op::N, e.a(0, r), Op::N, store(), n, inner, r, 1.0, beta);
            let wide = |beta: f32| match &w.eights {
                Some(eights) => self.backward8(n, dy, w, eights, dx, beta),
                None => self.gemm(dys, Op::N, e.matrix(0, outer, 0, inner), Op::N, store(), n, inner, outer, 1.0, beta),
            };
            match dropout.filter(|_| r > 0) {
                None if w.eights.is_some() => {
                    if r == 0 {
                        wide(0.0)
                    } else {
                        self.sum8(thin, wide)
                    }
                }
                None if r == 0 || dy.is_left_of(dmid) => {
                    let k = outer + r;
                    self.gemm(Matrix { cols: k, ..dys }, Op::N, e.matrix(0, k, 0, inner), Op::N, store(), n, inner, k, 1.0, 0.0)
                }
                None => {
                    wide(0.0)?;
                    thin(1.0)
                }
                Some(dropout) => {
                    wide(0.0)?;
                    for (i, (&start, &rank)) in ranks.starts.iter().zip(&ranks.ranks).enumerate().filter(|(_, (_, rank))| **rank > 0) {
                        let part = self.dropout_buffer(n, inner)?;
                        let a = e.a(start, rank);
                        self.gemm(view(dmid, n, start, rank), Op::N, a, Op::N, bf16(&part, 0, inner), n, inner, rank, 1.0, 0.0)?;
                        self.device.dropout_add(n, &part, batch.mask_rows(), dropout, i as u32, dx)?;
                        self.give_dropout_buffer(part);
                    }
                    Ok(())
                }
            }
        })
    }

    /// All gradients of a group's adapters in one pass over `dy` and one over `x`; false, and nothing done, where ranks are no whole vectors or some
    /// member with an adapter has no gradient.
    #[expect(clippy::too_many_arguments, reason = "what a gradient needs")]
    fn adapter_gradients(
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
    fn with_partial<T>(&self, bytes: usize, work: impl FnOnce(&mut Floats) -> Outcome<T>) -> Outcome<T> {
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

    /// A group's members for few rows and the sum of their ranks; None where some weight is not in NF4.
    fn small_members<'a>(w: &'a Group, lora: &'a [Option<LoraMember<'_, Param>>]) -> Option<(Vec<SmallMember<'a>>, usize)> {
        let mut ranks = 0;
        let mut members = Vec::with_capacity(w.members.len());
        for (m, l) in w.members.iter().zip(lora) {
            let Some(Frozen::Nf4(weight)) = &m.frozen else { return None };
            let with = l.as_ref().filter(|l| l.rank > 0);
            ranks += with.map_or(0, |l| l.rank);
            members.push(SmallMember {
                weight,
                column: m.column,
                lora: with.map(|l| SmallLora { a: l.a.values(), b: l.b.values(), rank: l.rank, scale: l.scale }),
                bias: l.as_ref().and_then(|l| l.bias).map(Param::values).or(m.bias.as_ref()),
            });
        }
        Some((members, ranks))
    }

    /// A few rows straight from packed weights; false, and nothing done, where the weights are not in NF4.
    fn small(&self, n: usize, x: &Tensor, w: &Group, lora: &[Option<LoraMember<'_, Param>>], out: &mut Tensor) -> Outcome<bool> {
        let Some((members, ranks)) = Self::small_members(w, lora) else { return Ok(false) };
        let bytes = 4 * small_scratch(n, w.in_features, ranks).max(1);
        self.with_partial(bytes, |mid| Ok(self.device.nf4_linear(n, x, &members, mid, out)?))?;
        Ok(true)
    }

    /// SwiGLU of a few rows straight from packed weights of gate and up; false, and nothing done, where no kernel serves that.
    pub(super) fn small_swiglu(
        &self,
        batch: &Batch,
        n: usize,
        x: &Tensor,
        w: &Group,
        lora: &[Option<LoraMember<'_, Param>>],
        out: &mut Tensor,
    ) -> Outcome<bool> {
        let op = "linear_swiglu";
        if n == 0 || n > MOST_SMALL_ROWS || batch.has_targets {
            return Ok(false);
        }
        self.ranks(op, w, lora)?;
        check_tensor(op, "x", x, n, w.in_features)?;
        let Some((members, ranks)) = Self::small_members(w, lora) else { return Ok(false) };
        let &[gate, up] = members.as_slice() else { return Ok(false) };
        if !self.device.nf4_swiglu_fits(n, gate.weight, up.weight, ranks) {
            return Ok(false);
        }
        check_tensor(op, "out", out, n, gate.weight.rows)?;
        let bytes = 4 * small_scratch(n, w.in_features, ranks).max(1);
        self.with_partial(bytes, |mid| Ok(self.device.nf4_swiglu(n, x, gate, up, mid, out)?))?;
        Ok(true)
    }

    /// One row straight from packed weights, normalised before (`norm`) or added to `out`; false, and nothing done, where no kernel serves that.
    #[expect(clippy::too_many_arguments, reason = "a fused operation has the arguments of all of its parts")]
    pub(super) fn folded(
        &self,
        batch: &Batch,
        n: usize,
        x: &Tensor,
        norm: Option<(&Floats, f32)>,
        w: &Group,
        lora: &[Option<LoraMember<'_, Param>>],
        out: &mut Tensor,
        swiglu: bool,
    ) -> Outcome<bool> {
        let op = "a folded product";
        if batch.has_targets || norm.is_some_and(|(weight, _)| weight.len() > LONGEST_NORM) {
            return Ok(false);
        }
        self.ranks(op, w, lora)?;
        check_tensor(op, "x", x, n, w.in_features)?;
        let Some((members, ranks)) = Self::small_members(w, lora) else { return Ok(false) };
        if !self.device.nf4_folds(n, &members) {
            return Ok(false);
        }
        let d = &self.device;
        let bytes = 4 * small_scratch(n, w.in_features, ranks).max(1);
        let done = self.with_partial(bytes, |mid| match (norm, swiglu, members.as_slice()) {
            (Some((norm, eps)), true, &[gate, up]) if gate.weight.rows == up.weight.rows => {
                d.nf4_norm_swiglu(n, x, norm, eps, gate, up, mid, out)?;
                Ok(true)
            }
            (Some((norm, eps)), false, members) => {
                check_tensor(op, "out", out, n, w.out_features)?;
                d.nf4_norm_linear(n, x, norm, eps, members, mid, out)?;
                Ok(true)
            }
            (None, false, &[member]) => {
                d.nf4_linear_add(n, x, member, mid, out)?;
                Ok(true)
            }
            _ => Ok(false),
        })?;
        if done {
            self.forget();
        }
        Ok(done)
    }

    /// Runs `work` with the dropped-out input of a member.
    fn with_dropped<T>(
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

    fn dropout_buffer(&self, n: usize, cols: usize) -> Outcome<Tensor> {
        let taken = self.dropped.lock().unwrap_or_else(PoisonError::into_inner).take();
        match taken.filter(|t| t.capacity() >= n * cols) {
            Some(t) => Ok(t.reshaped(n, cols)?),
            None => Ok(Tensor::new(self.device.arena(), n, cols, "dropout")?),
        }
    }

    fn give_dropout_buffer(&self, t: Tensor) {
        *self.dropped.lock().unwrap_or_else(PoisonError::into_inner) = Some(t);
    }
}

/// Where a product in bf16 goes: some columns of a tensor's rows, which its owner is about to overwrite.
pub(super) fn bf16(t: &Tensor, first: usize, cols: usize) -> Out {
    Out { ptr: t.ptr() + 2 * first as u64, rows: t.rows(), cols, stride: t.stride(), dtype: Float::Bf16 }
}

/// The dropout that has an effect, with its probability checked.
fn active(op: &'static str, dropout: Option<Dropout>) -> Outcome<Option<Dropout>> {
    match dropout {
        Some(d) if !(0.0..1.0).contains(&d.p) => {
            Err(OpsError::Device(format!("{op}: the dropout probability is {}; it must be at least 0 and below 1", d.p)))
        }
        d => Ok(d.filter(|d| d.p > 0.0)),
    }
}
