//! Groups of frozen projections with their adapters, forward and backward.

use super::Cpu;
use super::buffer::{Borrowed, Buffer, Parts, area};
use super::gemm::{self, Finish, Product, Rhs, Term, Transposed};
use super::types::{Batch, Param, Tensor, need, same};
use crate::nf4::Nf4;
use crate::ops::{Dropout, HostLinear, HostMatrix, LoraGrads, LoraMember, OpsError, ReadMatrix, Result, WeightPlan};
use crate::rng::{Purpose, philox4x32_10, split, stream_key};

/// Rows of a task that works element by element.
const CHUNK: usize = 32;

/// A group of frozen projections of one input.
pub struct Group {
    members: Vec<Member>,
    in_features: usize,
    /// Sum of the members' outputs.
    out_features: usize,
    weights: Weights,
}

struct Member {
    out: usize,
    /// Its first column in a row of the result.
    column: usize,
    bias: Option<Buffer>,
}

enum Weights {
    Unpacked(Panels),
    Packed(Vec<Frozen>),
}

/// A weight as it was given.
enum Frozen {
    Nf4(Box<Nf4>),
    F32(Vec<f32>),
    Bf16(Vec<half::bf16>),
}

/// The weights as right operands: for the forward each member's transpose `[in, outᵢ]`, for the backward `[Σ out, in]`.
struct Panels {
    forward: Buffer,
    backward: Buffer,
}

/// Dense weights of a call, or those that are kept.
enum Operand<'a> {
    Kept(&'a [f32]),
    Scratch(Borrowed<'a>),
}

impl Operand<'_> {
    fn values(&self) -> &[f32] {
        match self {
            Operand::Kept(v) => v,
            Operand::Scratch(b) => b,
        }
    }
}

impl Group {
    /// Output features of all members together.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Where member `i`'s forward panels start.
    fn forward_start(&self, i: usize) -> usize {
        self.members.iter().take(i).map(|m| gemm::packed_len(self.in_features, m.out)).sum()
    }
}

/// Writes the values of a matrix as f32.
pub(super) fn dense(op: &'static str, matrix: HostMatrix<'_>, out: &mut [f32]) -> Result<()> {
    match matrix {
        HostMatrix::Nf4(w) => {
            same(op, "the NF4 weight", w.len(), out.len())?;
            w.dequantize_into(out).map_err(|e| OpsError::Device(format!("{op}: {e}")))
        }
        HostMatrix::F32(w) => {
            same(op, "the f32 weight", w.len(), out.len())?;
            out.copy_from_slice(w);
            Ok(())
        }
        HostMatrix::Bf16(w) => {
            same(op, "the bf16 weight", w.len(), out.len())?;
            out.iter_mut().zip(w).for_each(|(o, w)| *o = w.to_f32());
            Ok(())
        }
        // The values of a matrix do not depend on its shape.
        HostMatrix::Stored { source, quantize } => dense(op, ReadMatrix::new(source, 1, out.len(), quantize)?.matrix(), out),
    }
}

/// Ranks and where each member's columns start in `mid`.
struct Adapters {
    starts: Vec<usize>,
    ranks: Vec<usize>,
    total: usize,
}

impl Cpu {
    pub(super) fn make_group(&self, members: &[HostLinear<'_>], plan: WeightPlan) -> Result<Group> {
        const OP: &str = "group";
        let in_features = members.first().map_or(0, |m| m.in_features);
        let mut infos = Vec::with_capacity(members.len());
        let mut column = 0usize;
        let mut frozen = Vec::with_capacity(members.len());
        need(OP, "the input of a group", in_features, 1)?;
        for m in members {
            same(OP, "the input of a member", m.in_features, in_features)?;
            need(OP, "the output of a member", m.out_features, 1)?;
            let len = area(m.out_features, m.in_features, "a frozen weight")?;
            same(OP, "a frozen weight", m.weight.len(), len)?;
            if let Some(bias) = m.bias {
                same(OP, "a frozen bias", bias.len(), m.out_features)?;
            }
            let bias = m.bias.map(|b| Buffer::copy_of(b, "a frozen bias")).transpose()?;
            infos.push(Member { out: m.out_features, column, bias });
            column = column.checked_add(m.out_features).ok_or(OpsError::Memory { what: "a group".into(), bytes: u64::MAX })?;
            frozen.push(match m.weight {
                HostMatrix::Nf4(w) => Frozen::Nf4(Box::new(w.clone())),
                HostMatrix::F32(w) => Frozen::F32(w.to_vec()),
                HostMatrix::Bf16(w) => Frozen::Bf16(w.to_vec()),
                HostMatrix::Stored { source, quantize } => match ReadMatrix::new(source, m.out_features, in_features, quantize)? {
                    ReadMatrix::Nf4(w) => Frozen::Nf4(Box::new(w)),
                    ReadMatrix::Bf16(w) => Frozen::Bf16(w),
                },
            });
        }
        area(column, in_features, "a group")?;
        let mut group = Group { members: infos, in_features, out_features: column, weights: Weights::Packed(frozen) };
        if plan == WeightPlan::Unpacked {
            let mut forward = Buffer::zeroed(group.forward_start(group.members.len()), "unpacked weights")?;
            let mut backward = Buffer::zeroed(gemm::packed_len(column, in_features), "unpacked weights for the backward")?;
            let rows = self.unpack(&group)?;
            self.pack_forward(&group, &rows, &mut forward);
            gemm::pack(&self.pool, &rows, in_features, column, in_features, &mut backward);
            drop(rows);
            group.weights = Weights::Unpacked(Panels { forward, backward });
        }
        Ok(group)
    }

    /// All members' weights one below the other, `[Σ out, in]`.
    fn unpack(&self, group: &Group) -> Result<Borrowed<'_>> {
        let mut rows = self.scratch.take(group.out_features * group.in_features, "unpacked weights")?;
        if let Weights::Packed(frozen) = &group.weights {
            let mut rest: &mut [f32] = &mut rows;
            for (member, weight) in group.members.iter().zip(frozen) {
                let (this, after) = rest.split_at_mut((member.out * group.in_features).min(rest.len()));
                let matrix = match weight {
                    Frozen::Nf4(w) => HostMatrix::Nf4(w),
                    Frozen::F32(w) => HostMatrix::F32(w),
                    Frozen::Bf16(w) => HostMatrix::Bf16(w),
                };
                dense("unpack", matrix, this)?;
                rest = after;
            }
        }
        Ok(rows)
    }

    fn pack_forward(&self, group: &Group, rows: &[f32], forward: &mut [f32]) {
        let inner = group.in_features;
        let mut rest = forward;
        for m in &group.members {
            let (this, after) = rest.split_at_mut(gemm::packed_len(inner, m.out).min(rest.len()));
            let src = rows.get(m.column * inner..(m.column + m.out) * inner).unwrap_or(&[]);
            gemm::pack_transposed(&self.pool, &[Transposed { src, stride: inner, n: m.out, factor: 1.0 }], inner, this);
            rest = after;
        }
    }

    fn forward_panels<'a>(&'a self, group: &'a Group) -> Result<Operand<'a>> {
        match &group.weights {
            Weights::Unpacked(p) => Ok(Operand::Kept(&p.forward)),
            Weights::Packed(_) => {
                let rows = self.unpack(group)?;
                let mut panels = self.scratch.take(group.forward_start(group.members.len()), "panels of weights")?;
                self.pack_forward(group, &rows, &mut panels);
                Ok(Operand::Scratch(panels))
            }
        }
    }

    fn backward_panels<'a>(&'a self, group: &'a Group) -> Result<Operand<'a>> {
        match &group.weights {
            Weights::Unpacked(p) => Ok(Operand::Kept(&p.backward)),
            Weights::Packed(_) => {
                let rows = self.unpack(group)?;
                let mut panels = self.scratch.take(gemm::packed_len(group.out_features, group.in_features), "panels of weights")?;
                gemm::pack(&self.pool, &rows, group.in_features, group.out_features, group.in_features, &mut panels);
                Ok(Operand::Scratch(panels))
            }
        }
    }

    fn adapters(&self, op: &'static str, group: &Group, lora: &[Option<LoraMember<'_, Param>>]) -> Result<Adapters> {
        same(op, "the adapters", lora.len(), group.members.len())?;
        let (mut starts, mut ranks, mut total) = (Vec::new(), Vec::new(), 0usize);
        for (l, m) in lora.iter().zip(&group.members) {
            let rank = l.as_ref().map_or(0, |l| l.rank);
            if let Some(l) = l {
                same(op, "lora A", l.a.len(), area(rank, group.in_features, "lora A")?)?;
                same(op, "lora B", l.b.len(), area(rank, m.out, "lora B")?)?;
                if let Some(bias) = l.bias {
                    same(op, "a trained bias", bias.len(), m.out)?;
                }
            }
            starts.push(total);
            ranks.push(rank);
            total = total.checked_add(rank).ok_or(OpsError::Memory { what: "adapters".into(), bytes: u64::MAX })?;
        }
        Ok(Adapters { starts, ranks, total })
    }

    #[expect(clippy::too_many_arguments, reason = "the operation's own arguments")]
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
    ) -> Result<()> {
        const OP: &str = "linear";
        let xs = x.rows(OP, "x", n, w.in_features)?;
        out.rows_mut(OP, "out", n, w.out_features)?;
        let adapters = self.adapters(OP, w, lora)?;
        let total = adapters.total;
        if total > 0 {
            need(OP, "mid", mid.data.len(), area(n, total, "mid")?)?;
            match active(OP, dropout)? {
                None => {
                    let sources: Vec<_> = lora
                        .iter()
                        .flatten()
                        .map(|l| Transposed { src: &l.a.data, stride: w.in_features, n: l.rank, factor: 1.0 })
                        .collect();
                    let mut a = self.scratch.take(gemm::packed_len(w.in_features, total), "panels of lora A")?;
                    gemm::pack_transposed(&self.pool, &sources, w.in_features, &mut a);
                    let terms = vec![Term { lhs: xs, lhs_stride: w.in_features, rhs: Rhs::packed(&a, w.in_features), k: w.in_features }];
                    let out = Parts::new(&mut mid.data);
                    self.products(&[Product {
                        m: n,
                        n: total,
                        transposed: false,
                        terms,
                        out,
                        start: 0,
                        stride: total,
                        finish: Finish::STORE,
                    }]);
                }
                Some(dropout) => {
                    let mut dropped = self.scratch.take(n * w.in_features, "dropped inputs")?;
                    for (i, l) in lora.iter().enumerate() {
                        let (Some(l), Some(&start)) = (l, adapters.starts.get(i)) else { continue };
                        self.drop_out(OP, batch, n, xs, w.in_features, dropout, i, &mut dropped, false)?;
                        let mut a = self.scratch.take(gemm::packed_len(w.in_features, l.rank), "panels of lora A")?;
                        gemm::pack_transposed(
                            &self.pool,
                            &[Transposed { src: &l.a.data, stride: w.in_features, n: l.rank, factor: 1.0 }],
                            w.in_features,
                            &mut a,
                        );
                        let terms =
                            vec![Term { lhs: &dropped, lhs_stride: w.in_features, rhs: Rhs::packed(&a, w.in_features), k: w.in_features }];
                        let out = Parts::new(&mut mid.data);
                        self.products(&[Product {
                            m: n,
                            n: l.rank,
                            transposed: false,
                            terms,
                            out,
                            start,
                            stride: total,
                            finish: Finish::STORE,
                        }]);
                    }
                }
            }
        }
        let panels = self.forward_panels(w)?;
        let b_len = |rank: usize, m: &Member| gemm::packed_len(rank, m.out);
        let b_total: usize = adapters.ranks.iter().zip(&w.members).map(|(&r, m)| b_len(r, m)).sum();
        let mut b_panels = self.scratch.take(b_total, "panels of lora B")?;
        let mut rest: &mut [f32] = &mut b_panels;
        for (l, m) in lora.iter().zip(&w.members) {
            let Some(l) = l else { continue };
            let (this, after) = rest.split_at_mut(b_len(l.rank, m).min(rest.len()));
            gemm::pack_transposed(&self.pool, &[Transposed { src: &l.b.data, stride: l.rank, n: m.out, factor: l.scale }], l.rank, this);
            rest = after;
        }
        let out = Parts::new(&mut out.data);
        let mut products = Vec::with_capacity(w.members.len());
        let (mut base, mut b_base) = (0, 0);
        for (i, (l, m)) in lora.iter().zip(&w.members).enumerate() {
            let base_panels = panels.values().get(base..).unwrap_or(&[]);
            let mut terms =
                vec![Term { lhs: xs, lhs_stride: w.in_features, rhs: Rhs::packed(base_panels, w.in_features), k: w.in_features }];
            base += gemm::packed_len(w.in_features, m.out);
            let mut bias = m.bias.as_deref();
            if let (Some(l), Some(&start)) = (l, adapters.starts.get(i)) {
                if l.rank > 0 {
                    let rhs = Rhs::packed(b_panels.get(b_base..).unwrap_or(&[]), l.rank);
                    terms.push(Term { lhs: mid.data.get(start..).unwrap_or(&[]), lhs_stride: total, rhs, k: l.rank });
                }
                b_base += b_len(l.rank, m);
                bias = l.bias.map(|b| &b.data[..]).or(bias);
            }
            let finish = Finish { bias, ..Finish::STORE };
            products.push(Product { m: n, n: m.out, transposed: false, terms, out, start: m.column, stride: w.out_features, finish });
        }
        self.products(&products);
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the operation's own arguments")]
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
    ) -> Result<()> {
        const OP: &str = "linear_backward";
        let inner = w.in_features;
        let xs = x.rows(OP, "x", n, inner)?;
        let dys = dy.rows(OP, "dy", n, w.out_features)?;
        let adapters = self.adapters(OP, w, lora)?;
        let total = adapters.total;
        let dropout = if total > 0 { active(OP, dropout)? } else { None };
        same(OP, "the gradients", grads.len(), w.members.len())?;
        if total > 0 {
            need(OP, "mid", mid.data.len(), area(n, total, "mid")?)?;
            need(OP, "dmid", dmid.data.len(), area(n, total, "dmid")?)?;
        }
        for ((g, l), m) in grads.iter().zip(lora).zip(&w.members) {
            let Some(g) = g else { continue };
            let rank = l.as_ref().map_or(0, |l| l.rank);
            same(OP, "the gradient of lora A", g.a_acc.len(), rank * inner)?;
            same(OP, "the gradient of lora B", g.b_acc.len(), rank * m.out)?;
            if let Some(bias) = &g.bias_acc {
                same(OP, "the gradient of a bias", bias.len(), m.out)?;
            }
        }
        let columns = |m: &Member| dys.get(m.column..).unwrap_or(&[]);

        // d mid = scale * dy B
        let out = Parts::new(&mut dmid.data);
        let mut products = Vec::with_capacity(w.members.len());
        for ((l, m), &start) in lora.iter().zip(&w.members).zip(&adapters.starts) {
            let Some(l) = l.as_ref().filter(|l| l.rank > 0) else { continue };
            let terms = vec![Term { lhs: columns(m), lhs_stride: w.out_features, rhs: Rhs::in_place(l.b.data.padded(), l.rank), k: m.out }];
            products.push(Product {
                m: n,
                n: l.rank,
                transposed: false,
                terms,
                out,
                start,
                stride: total,
                finish: Finish::scaled(l.scale),
            });
        }
        self.products(&products);
        let dmids = dmid.data.padded();

        // dB += scale * dyᵀ mid, dA += dmidᵀ drop(x): tasks share out the rows and columns of the result, each sums over all tokens in order.
        let mids = mid.data.padded();
        let mut products = Vec::with_capacity(2 * w.members.len());
        let mut biases = Vec::new();
        let mut later = Vec::new();
        for (i, ((g, l), m)) in grads.iter_mut().zip(lora).zip(&w.members).enumerate() {
            let (Some(g), Some(&start)) = (g.as_mut(), adapters.starts.get(i)) else { continue };
            if let Some(bias) = g.bias_acc.as_deref_mut() {
                biases.push((columns(m), bias));
            }
            let Some(l) = l.as_ref().filter(|l| l.rank > 0) else { continue };
            let rhs = Rhs::in_place(mids.get(start..).unwrap_or(&[]), total);
            let terms = vec![Term { lhs: columns(m), lhs_stride: w.out_features, rhs, k: n }];
            let out = Parts::new(&mut g.b_acc.data);
            products.push(Product {
                m: m.out,
                n: l.rank,
                transposed: true,
                terms,
                out,
                start: 0,
                stride: l.rank,
                finish: Finish::add(l.scale),
            });
            let a_lhs = dmids.get(start..).unwrap_or(&[]);
            if dropout.is_none() {
                let terms = vec![Term { lhs: a_lhs, lhs_stride: total, rhs: Rhs::in_place(x.data.padded(), inner), k: n }];
                let out = Parts::new(&mut g.a_acc.data);
                products.push(Product {
                    m: l.rank,
                    n: inner,
                    transposed: true,
                    terms,
                    out,
                    start: 0,
                    stride: inner,
                    finish: Finish::add(1.0),
                });
            } else {
                later.push((i, l.rank, a_lhs, &mut *g.a_acc));
            }
        }
        self.products(&products);
        drop(products);
        if let Some(dropout) = dropout {
            let mut dropped = self.scratch.take(n * inner, "dropped inputs")?;
            for (i, rank, lhs, a_acc) in later {
                self.drop_out(OP, batch, n, xs, inner, dropout, i, &mut dropped, false)?;
                let terms = vec![Term { lhs, lhs_stride: total, rhs: Rhs::in_place(dropped.padded(), inner), k: n }];
                let out = Parts::new(&mut a_acc.data);
                self.products(&[Product {
                    m: rank,
                    n: inner,
                    transposed: true,
                    terms,
                    out,
                    start: 0,
                    stride: inner,
                    finish: Finish::add(1.0),
                }]);
            }
        }
        for (dy, bias) in biases {
            self.pool.rows(bias.len(), 64, [(&mut bias.data, 1)], |columns, [acc]| {
                for row in dy.chunks(w.out_features).take(n) {
                    super::norm::add(self.path, acc, row.get(columns.clone()).unwrap_or(&[]));
                }
            });
        }

        // dx = dy W + Σ dropᵢ(dmidᵢ Aᵢ)
        let Some(dx) = dx else { return Ok(()) };
        dx.rows_mut(OP, "dx", n, inner)?;
        let panels = self.backward_panels(w)?;
        let mut terms =
            vec![Term { lhs: dys, lhs_stride: w.out_features, rhs: Rhs::packed(panels.values(), w.out_features), k: w.out_features }];
        let mut adapter_terms = Vec::new();
        for (i, (l, &start)) in lora.iter().zip(&adapters.starts).enumerate() {
            let Some(l) = l.as_ref().filter(|l| l.rank > 0) else { continue };
            let lhs = dmids.get(start..).unwrap_or(&[]);
            adapter_terms.push((i, Term { lhs, lhs_stride: total, rhs: Rhs::in_place(l.a.data.padded(), inner), k: l.rank }));
        }
        if dropout.is_none() {
            terms.extend(adapter_terms.iter().map(|(_, t)| *t));
        }
        let out = Parts::new(&mut dx.data);
        self.products(&[Product { m: n, n: inner, transposed: false, terms, out, start: 0, stride: inner, finish: Finish::STORE }]);
        if let Some(dropout) = dropout {
            let mut part = self.scratch.take(n * inner, "the input's gradient through an adapter")?;
            for (i, term) in adapter_terms {
                let out = Parts::new(&mut part);
                self.products(&[Product {
                    m: n,
                    n: inner,
                    transposed: false,
                    terms: vec![term],
                    out,
                    start: 0,
                    stride: inner,
                    finish: Finish::STORE,
                }]);
                self.drop_out(OP, batch, n, &part, inner, dropout, i, &mut dx.data, true)?;
            }
        }
        Ok(())
    }

    /// `out = x * mask / (1 - p)`, or adds that to `out`, with the mask of member `i` of the group.
    #[expect(clippy::too_many_arguments, reason = "a mask depends on everything that identifies an element")]
    fn drop_out(
        &self,
        op: &'static str,
        batch: &Batch,
        n: usize,
        x: &[f32],
        width: usize,
        dropout: Dropout,
        i: usize,
        out: &mut [f32],
        add: bool,
    ) -> Result<()> {
        batch.check_rows(op, n)?;
        same(op, "the batch's sample numbers", batch.host.samples.len(), batch.sequences())?;
        let module = dropout.module.wrapping_add(i as u32);
        let mask = Mask::new(dropout.p);
        self.pool.rows(n, CHUNK, [(out, width)], |rows, [out]| {
            for (row, out) in rows.zip(out.chunks_exact_mut(width.max(1))) {
                let x = x.get(row * width..).unwrap_or(&[]);
                let sample = batch.sequence_of.get(row).and_then(|&s| batch.host.samples.get(s as usize)).copied().unwrap_or(0);
                let position = batch.host.positions.get(row).copied().unwrap_or(0);
                mask.row(&dropout, module, sample, position, &x[..width.min(x.len())], out, add);
            }
        });
        Ok(())
    }

    fn products(&self, products: &[Product<'_>]) {
        gemm::run(&self.pool, self.path, products);
    }
}

/// The dropout that has an effect, with its probability checked.
fn active(op: &'static str, dropout: Option<Dropout>) -> Result<Option<Dropout>> {
    match dropout {
        Some(d) if !(0.0..1.0).contains(&d.p) => {
            Err(OpsError::Device(format!("{op}: the dropout probability is {}; it must be at least 0 and below 1", d.p)))
        }
        Some(d) if d.p > 0.0 => Ok(Some(d)),
        _ => Ok(None),
    }
}

/// Which elements stay.
struct Mask {
    /// A random word below this drops the element.
    threshold: u32,
    /// `1 / (1 - p)`.
    scale: f32,
}

impl Mask {
    fn new(p: f32) -> Self {
        // p < 1, so the product is below 2^32 (the largest f32 below 1 gives 2^32 - 256).
        Mask { threshold: (f64::from(p) * 4_294_967_296.0) as u32, scale: 1.0 / (1.0 - p) }
    }

    /// One row. All that identifies it is 256 bits with the feature, more than a Philox block takes: step, sample and module are hashed with
    /// the seed into the key and half of the counter, which position and feature complete.
    #[expect(clippy::too_many_arguments, reason = "a mask depends on everything that identifies an element")]
    fn row(&self, dropout: &Dropout, module: u32, sample: u64, position: u32, x: &[f32], out: &mut [f32], add: bool) {
        let [sample_low, sample_high] = split(sample);
        let hash = philox4x32_10([sample_low, sample_high, dropout.step, module], stream_key(dropout.seed, Purpose::Dropout));
        for (block, (x, out)) in x.chunks(4).zip(out.chunks_mut(4)).enumerate() {
            let random = philox4x32_10([block as u32, position, hash[2], hash[3]], [hash[0], hash[1]]);
            for ((x, out), random) in x.iter().zip(out).zip(random) {
                let kept = if random < self.threshold { 0.0 } else { x * self.scale };
                *out = if add { *out + kept } else { kept };
            }
        }
    }
}
