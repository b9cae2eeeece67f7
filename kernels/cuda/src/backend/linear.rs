//! Groups of frozen projections with their adapters, forward and backward: each is one product, over the matrix that [`super::weights`] describes.

use super::fp8::Beside;
use super::types::{Batch, Param};
use super::weights::{Frozen, Group};
use super::{Cuda, Outcome, Products};
use crate::launch::{LONGEST_NORM, MOST_SMALL_ROWS, SmallLora, SmallMember, small_scratch};
use crate::matrix::{Float, Matrix, Op, Out};
use crate::memory::{Floats, Tensor};
use trainer_kernels::ops::{Dropout, LoraGrads, LoraMember, OpsError};

/// Ranks of a call, and where each member's columns start in `mid`: at multiples of eight.
pub(super) struct Ranks {
    pub starts: Vec<usize>,
    pub ranks: Vec<usize>,
    pub total: usize,
}

pub(super) fn shape(op: &'static str, what: &'static str, got: usize, need: usize) -> OpsError {
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
                let wide = |beta: f32| self.forward8(n, x, w, eights, out, beta, None);
                if r == 0 {
                    wide(0.0)
                } else if eights.takes(&ranks.ranks, r) {
                    self.forward8(n, x, w, eights, out, 0.0, Some(Beside { mid: view(mid, n, 0, r), adapters: e }))
                } else {
                    self.sum8(thin, wide)
                }
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
                Some(eights) => self.backward8(n, dy, w, eights, dx, beta, None),
                None => self.gemm(dys, Op::N, e.matrix(0, outer, 0, inner), Op::N, store(), n, inner, outer, 1.0, beta),
            };
            match (dropout.filter(|_| r > 0), &w.eights) {
                (None, Some(eights)) => {
                    if eights.takes(&ranks.ranks, r) {
                        self.backward8(n, dy, w, eights, dx, 0.0, Some(Beside { mid: view(dmid, n, 0, r), adapters: e }))
                    } else if r == 0 {
                        wide(0.0)
                    } else {
                        self.sum8(thin, wide)
                    }
                }
                (None, None) if r == 0 || dy.is_left_of(dmid) => {
                    let k = outer + r;
                    self.gemm(Matrix { cols: k, ..dys }, Op::N, e.matrix(0, k, 0, inner), Op::N, store(), n, inner, k, 1.0, 0.0)
                }
                (None, None) => {
                    wide(0.0)?;
                    thin(1.0)
                }
                (Some(dropout), _) => {
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
