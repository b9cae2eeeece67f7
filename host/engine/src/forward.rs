//! The decoder's forward without a backward: generation, scoring, and looking inside. Nothing is kept but the residual stream.

use trainer_kernels::ops::{LoraMember, Ops};

use crate::adapter::Adapter;
use crate::error::{OpsContext, Result};
use crate::model::Model;
use crate::modules::{DOWN, Dims, GATE_UP, O, PROJECTIONS, QKV};
use crate::workspace::{Maker, Parts, absent};

pub(crate) const GENERATION: &str = "generation activations";

/// The buffers of a forward pass.
pub(crate) struct Buffers<O: Ops> {
    /// Token rows.
    pub rows: usize,
    /// Rows whose logits can be asked for at once.
    pub last_rows: usize,
    /// The residual stream.
    pub x: O::Tensor,
    h: O::Tensor,
    rstd: O::Stats,
    qkv: O::Tensor,
    qk: O::Tensor,
    rstd_qk: O::Stats,
    attended: O::Tensor,
    lse: O::Stats,
    delta: O::Tensor,
    gate_up: O::Tensor,
    activated: O::Tensor,
    mid_h: O::Tensor,
    mid_attended: O::Tensor,
    mid_activated: O::Tensor,
    mid_width: usize,
    gathered: O::Tensor,
    /// After the final norm, of the rows that were asked for.
    pub last: O::Tensor,
    /// What was allocated.
    pub parts: Parts,
}

impl<O: Ops> Buffers<O> {
    /// Buffers for `rows` tokens at once and the logits of `last_rows`.
    pub fn new(ops: &O, dims: &Dims, adapter: Option<&Adapter<O>>, rows: usize, last_rows: usize) -> Result<Self> {
        let a = dims.attention;
        let mid_width = adapter.map_or(0, Adapter::widest);
        let make = &mut Maker::new(ops, rows);
        let (h, mid_h) = make.with_mid(GENERATION, dims.hidden, mid_width)?;
        let (attended, mid_attended) = make.with_mid(GENERATION, a.q_width(), mid_width)?;
        let (activated, mid_activated) = make.with_mid(GENERATION, dims.intermediate, mid_width)?;
        Ok(Buffers {
            rows,
            last_rows,
            x: make.tensor(GENERATION, dims.hidden)?,
            h,
            rstd: make.stats(GENERATION, 1)?,
            qkv: make.tensor(GENERATION, a.qkv_width())?,
            qk: make.tensor(GENERATION, a.qk_width())?,
            rstd_qk: make.stats(GENERATION, a.heads + a.kv_heads)?,
            attended,
            lse: make.stats(GENERATION, a.heads)?,
            delta: make.tensor(GENERATION, dims.hidden)?,
            gate_up: make.tensor(GENERATION, 2 * dims.intermediate)?,
            activated,
            mid_h,
            mid_attended,
            mid_activated,
            mid_width,
            gathered: make.tensor_of(GENERATION, last_rows, dims.hidden)?,
            last: make.tensor_of(GENERATION, last_rows, dims.hidden)?,
            parts: std::mem::take(&mut make.parts),
        })
    }

    /// Makes room for an adapter with larger ranks than any before.
    pub fn fit(&mut self, ops: &O, dims: &Dims, adapter: Option<&Adapter<O>>) -> Result<()> {
        if adapter.map_or(0, Adapter::widest) > self.mid_width {
            *self = Self::new(ops, dims, adapter, self.rows, self.last_rows)?;
        }
        Ok(())
    }
}

/// What the queries of a batch attend to.
pub(crate) enum Attend<'c, C> {
    /// Their own sequence in the batch, which begins at position 0; keys and values go into the cache too.
    Fresh(&'c mut C),
    /// What the cache holds of their slot, to which the batch is added first.
    Cached(&'c mut C),
}

/// One batch on its way through the decoder.
pub(crate) struct Forward<'a, B: Ops> {
    pub model: &'a Model<B>,
    pub adapter: Option<&'a Adapter<B>>,
    pub batch: &'a B::Batch,
    /// Token rows.
    pub n: usize,
}

impl<'a, B: Ops> Forward<'a, B> {
    fn members<const N: usize>(&self, module: usize) -> [Option<LoraMember<'a, B::Param>>; N] {
        match self.adapter {
            Some(adapter) => adapter.members::<N>(module),
            None => std::array::from_fn(|_| None),
        }
    }

    /// Embeds the batch and normalises it for the first layer.
    pub fn embed(&self, b: &mut Buffers<B>) -> Result<()> {
        let (ops, dims) = (self.model.ops(), self.model.dims());
        ops.embed(self.batch, self.model.embedding(), &mut b.x).at(|| "embedding".into())?;
        let first = self.model.layers().first().ok_or_else(|| absent("layer"))?;
        if ops.folds_norms(self.n) {
            return Ok(());
        }
        ops.rms_norm(self.n, &b.x, &first.input_norm, dims.eps, &mut b.h, &mut b.rstd).at(|| "layer 0, first norm".into())
    }

    /// One layer: `b.x` goes from its input to its output, and is normalised for the next layer if there is one. Without a cache the batch attends to itself.
    pub fn layer(&self, number: usize, b: &mut Buffers<B>, attend: Option<Attend<'_, B::Cache>>) -> Result<()> {
        let (ops, n, dims) = (self.model.ops(), self.n, self.model.dims());
        let shape = dims.attention;
        let layer = self.model.layers().get(number).ok_or_else(|| absent("layer"))?;
        let module = number * PROJECTIONS;
        let at = |what: &str| format!("layer {number}, {what}");
        let folds = ops.folds_norms(n);
        let lora = self.members::<3>(module + QKV);
        if folds {
            let (h, rstd, norm) = (&mut b.h, &mut b.rstd, &layer.input_norm);
            ops.norm_linear(self.batch, n, &b.x, norm, dims.eps, h, rstd, &layer.qkv, &lora, &mut b.qkv, &mut b.mid_h)
        } else {
            ops.linear(self.batch, n, &b.h, &layer.qkv, &lora, None, &mut b.qkv, &mut b.mid_h)
        }
        .at(|| at("q, k, v"))?;
        let (q_norm, k_norm) = (&layer.q_norm, &layer.k_norm);
        if let Some(Attend::Cached(cache)) = attend {
            let (qk, rstd, out) = (&mut b.qk, &mut b.rstd_qk, &mut b.attended);
            ops.attention_appended(self.batch, n, number, shape, &b.qkv, q_norm, k_norm, dims.eps, dims.theta, qk, rstd, cache, out)
                .at(|| at("attention to the cache"))?;
        } else {
            ops.qk_norm_rope(self.batch, n, shape, &b.qkv, q_norm, k_norm, dims.eps, dims.theta, &mut b.qk, &mut b.rstd_qk)
                .at(|| at("query and key norm, rotation"))?;
            if let Some(Attend::Fresh(cache)) = attend {
                ops.cache_append(self.batch, n, number, shape, &b.qk, &b.qkv, cache).at(|| at("cache"))?;
            }
            ops.attention(self.batch, n, shape, &b.qk, &b.qkv, &mut b.attended, &mut b.lse).at(|| at("attention"))?;
        }
        let lora = self.members::<1>(module + O);
        if folds {
            let (delta, mid) = (&mut b.delta, &mut b.mid_attended);
            ops.linear_add(self.batch, n, &b.attended, &layer.o, &lora, delta, mid, &mut b.x).at(|| at("o"))?;
            let (h, rstd, norm) = (&mut b.h, &mut b.rstd, &layer.post_norm);
            let (w, lora, wide, mid) = (&layer.gate_up, self.members::<2>(module + GATE_UP), &mut b.gate_up, &mut b.mid_h);
            ops.norm_linear_swiglu(self.batch, n, dims.intermediate, &b.x, norm, dims.eps, h, rstd, w, &lora, wide, mid, &mut b.activated)
                .at(|| at("gate, up, swiglu"))?;
            let (w, lora) = (&layer.down, self.members::<1>(module + DOWN));
            let (delta, mid) = (&mut b.delta, &mut b.mid_activated);
            return ops.linear_add(self.batch, n, &b.activated, w, &lora, delta, mid, &mut b.x).at(|| at("down"));
        }
        ops.linear(self.batch, n, &b.attended, &layer.o, &lora, None, &mut b.delta, &mut b.mid_attended).at(|| at("o"))?;
        ops.add_rms_norm(n, &mut b.x, &b.delta, &layer.post_norm, dims.eps, &mut b.h, &mut b.rstd).at(|| at("second norm"))?;
        let lora = self.members::<2>(module + GATE_UP);
        let (gate_up, mid) = (&mut b.gate_up, &mut b.mid_h);
        ops.linear_swiglu(self.batch, n, dims.intermediate, &b.h, &layer.gate_up, &lora, gate_up, mid, &mut b.activated)
            .at(|| at("gate, up, swiglu"))?;
        let lora = self.members::<1>(module + DOWN);
        ops.linear(self.batch, n, &b.activated, &layer.down, &lora, None, &mut b.delta, &mut b.mid_activated).at(|| at("down"))?;
        match self.model.layers().get(number + 1) {
            Some(next) => ops.add_rms_norm(n, &mut b.x, &b.delta, &next.input_norm, dims.eps, &mut b.h, &mut b.rstd),
            None => ops.add(n, &mut b.x, &b.delta),
        }
        .at(|| at("residual"))
    }
}

/// The final norm of some rows of the residual stream, into the first rows of `b.last`.
pub(crate) fn finish<B: Ops>(model: &Model<B>, rows: &[u32], b: &mut Buffers<B>) -> Result<()> {
    let (ops, dims) = (model.ops(), model.dims());
    if rows.iter().enumerate().all(|(i, row)| i == *row as usize) {
        let norm = model.final_norm();
        return ops.rms_norm(rows.len(), &b.x, norm, dims.eps, &mut b.last, &mut b.rstd).at(|| "final norm".into());
    }
    ops.gather(rows, &b.x, &mut b.gathered).at(|| "rows for the head".into())?;
    ops.rms_norm(rows.len(), &b.gathered, model.final_norm(), dims.eps, &mut b.last, &mut b.rstd).at(|| "final norm".into())
}
