//! The decoder of a training step: Qwen3's forward and its backward, by hand, over the operations trait.
//!
//! A layer (pre-norm, Qwen3 technical report 2025): `x2 = x + O(attention(rope(norm(Q h1)), rope(norm(K h1)), V h1))` with `h1 = norm(x)`, then
//! `x' = x2 + down(silu(gate h2) * up h2)` with `h2 = norm(x2)`. Only adapters have gradients; those of the frozen weights are never computed.

use trainer_kernels::ops::{Dropout, Ops};

use crate::adapter::{Adapter, Gradients};
use crate::error::{OpsContext, Result};
use crate::model::{Layer, Model};
use crate::modules::{DOWN, GATE_UP, O, PROJECTIONS, QKV};
use crate::workspace::{Cheap, Dear, Kept, Layout, Workspace, absent};

/// The dropout of a whole step; see [`Dropout`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepDropout {
    pub p: f32,
    pub seed: u64,
    pub step: u32,
}

/// One micro-batch on its way through the decoder.
pub(crate) struct Pass<'a, B: Ops> {
    pub model: &'a Model<B>,
    pub adapter: &'a Adapter<B>,
    pub batch: &'a B::Batch,
    /// Token rows.
    pub n: usize,
    pub dropout: Option<StepDropout>,
}

impl<B: Ops> Pass<'_, B> {
    fn ops(&self) -> &B {
        self.model.ops()
    }

    fn dropout(&self, module: usize) -> Option<Dropout> {
        self.dropout.map(|d| Dropout { p: d.p, seed: d.seed, step: d.step, module: module as u32 })
    }

    /// From the normalised input to the output of attention, which is left in `out`.
    fn attention(&self, number: usize, layer: &Layer<B>, cheap: &mut Cheap<B>, dear: &mut Dear<B>, out: &mut B::Tensor) -> Result<()> {
        let (ops, n) = (self.ops(), self.n);
        let module = number * PROJECTIONS;
        let at = |what: &str| format!("layer {number}, {what}");
        let lora = self.adapter.members::<3>(module + QKV);
        ops.linear(self.batch, n, &cheap.h1, &layer.qkv, &lora, self.dropout(module + QKV), &mut dear.qkv, &mut cheap.mid_qkv)
            .at(|| at("q, k, v"))?;
        self.rotate(number, layer, cheap, dear)?;
        let shape = self.model.dims().attention;
        ops.attention(self.batch, n, shape, &cheap.qk, &dear.qkv, &mut dear.attended, &mut dear.lse).at(|| at("attention"))?;
        let lora = self.adapter.members::<1>(module + O);
        ops.linear(self.batch, n, &dear.attended, &layer.o, &lora, self.dropout(module + O), out, &mut dear.mid_o).at(|| at("o"))
    }

    fn rotate(&self, number: usize, layer: &Layer<B>, cheap: &mut Cheap<B>, dear: &Dear<B>) -> Result<()> {
        let dims = self.model.dims();
        let (q, k) = (&layer.q_norm, &layer.k_norm);
        self.ops()
            .qk_norm_rope(self.batch, self.n, dims.attention, &dear.qkv, q, k, dims.eps, dims.theta, &mut cheap.qk, &mut cheap.rstd_qk)
            .at(|| format!("layer {number}, query and key norm, rotation"))
    }

    /// From the layer's input `x` and what attention adds to it, `delta`, to the activated MLP.
    fn mlp(
        &self,
        number: usize,
        layer: &Layer<B>,
        cheap: &mut Cheap<B>,
        dear: &mut Dear<B>,
        x: &B::Tensor,
        delta: &B::Tensor,
    ) -> Result<()> {
        let (ops, n, dims) = (self.ops(), self.n, self.model.dims());
        let module = number * PROJECTIONS;
        let at = |what: &str| format!("layer {number}, {what}");
        ops.add_rms_norm_into(n, x, delta, &mut dear.x2, &layer.post_norm, dims.eps, &mut cheap.h2, &mut cheap.rstd2)
            .at(|| at("second norm"))?;
        let lora = self.adapter.members::<2>(module + GATE_UP);
        let dropout = self.dropout(module + GATE_UP);
        ops.linear(self.batch, n, &cheap.h2, &layer.gate_up, &lora, dropout, &mut dear.gate_up, &mut cheap.mid_gate_up)
            .at(|| at("gate, up"))?;
        ops.swiglu(n, dims.intermediate, &dear.gate_up, &mut cheap.activated).at(|| at("swiglu"))
    }

    /// Everything up to the final norm, whose result is in `ws.hidden`.
    pub fn forward(&self, ws: &mut Workspace<B>) -> Result<()> {
        let (ops, n, dims) = (self.ops(), self.n, self.model.dims());
        let Workspace { layout, streams, kept, narrow, hidden, hidden_rstd, .. } = ws;
        let hold = |number: usize| layout.holds.get(number).copied().ok_or_else(|| absent("layer"));
        let first = self.model.layers().first().ok_or_else(|| absent("layer"))?;
        let x0 = streams.fill(ops, 0)?;
        ops.embed(self.batch, self.model.embedding(), x0).at(|| "embedding".into())?;
        let (cheap, _) = kept.of_mut(hold(0)?)?;
        ops.rms_norm(n, x0, &first.input_norm, dims.eps, &mut cheap.h1, &mut cheap.rstd1).at(|| "layer 0, first norm".into())?;
        streams.filled(ops, n, 0)?;
        for (number, layer) in self.model.layers().iter().enumerate() {
            let (cheap, dear) = kept.of_mut(hold(number)?)?;
            self.attention(number, layer, cheap, dear, narrow)?;
            let x = streams.get(number)?;
            self.mlp(number, layer, cheap, dear, x, narrow)?;
            let module = number * PROJECTIONS + DOWN;
            let lora = self.adapter.members::<1>(module);
            ops.linear(self.batch, n, &cheap.activated, &layer.down, &lora, self.dropout(module), narrow, &mut cheap.mid_down)
                .at(|| format!("layer {number}, down"))?;
            self.keep_mids(number, layout, kept)?;
            let x = streams.fill(ops, number + 1)?;
            match self.model.layers().get(number + 1) {
                Some(next) => {
                    let (into, dear) = kept.cheap_and_dear(hold(number + 1)?, hold(number)?)?;
                    ops.add_rms_norm_into(n, &dear.x2, narrow, x, &next.input_norm, dims.eps, &mut into.h1, &mut into.rstd1)
                }
                None => {
                    let (_, dear) = kept.of(hold(number)?)?;
                    let norm = self.model.final_norm();
                    ops.add_rms_norm_into(n, &dear.x2, narrow, x, norm, dims.eps, hidden, hidden_rstd)
                }
            }
            .at(|| format!("norm after layer {number}"))?;
            streams.filled(ops, n, number + 1)?;
        }
        Ok(())
    }

    /// Copies what lies between A and B to where the layer keeps it, if its inputs' buffers are shared.
    fn keep_mids(&self, number: usize, layout: &Layout, kept: &mut Kept<B>) -> Result<()> {
        let apart = layout.apart(number);
        let hold = layout.holds.get(number).copied().ok_or_else(|| absent("layer"))?;
        let (cheap, mids) = kept.cheap_and_mids(hold, number)?;
        let pairs = [(apart.qkv, &cheap.mid_qkv, &mut mids.qkv), (apart.gate_up, &cheap.mid_gate_up, &mut mids.gate_up)];
        for (width, from, to) in pairs.into_iter().chain([(apart.down, &cheap.mid_down, &mut mids.down)]) {
            if width > 0 {
                self.ops().copy_mid(self.n, width, from, to).at(|| format!("layer {number}, adapters"))?;
            }
        }
        Ok(())
    }

    /// Weighted losses per sequence of the forward's result; with `grad_scale` also the gradient of `Σ weight * loss * grad_scale` in `ws.narrow`.
    pub fn loss(&self, ws: &mut Workspace<B>, grad_scale: Option<f32>) -> Result<Vec<f64>> {
        let dhidden = grad_scale.map(|_| &mut ws.narrow);
        self.ops()
            .cross_entropy(self.batch, self.n, &ws.hidden, self.model.head(), grad_scale.unwrap_or(1.0), dhidden)
            .at(|| "cross-entropy".into())
    }

    /// From the gradient that [`Pass::loss`] left to those of the adapter, which are added to `grads`.
    pub fn backward(&self, ws: &mut Workspace<B>, grads: &mut Gradients<B>) -> Result<()> {
        let (ops, n, dims) = (self.ops(), self.n, self.model.dims());
        let layout = ws.layout.clone();
        ops.zero(n, &mut ws.dx).at(|| "backward".into())?;
        let last = ws.streams.get(dims.layers)?;
        ops.rms_norm_backward(n, &ws.narrow, last, self.model.final_norm(), &ws.hidden_rstd, &mut ws.dx)
            .at(|| "final norm, backward".into())?;
        // The layers that used the shared buffers last have left their activations there.
        let mut cheap_of = layout.holds.iter().rposition(|h| h.cheap.is_none());
        let mut dear_of = layout.holds.iter().rposition(|h| h.dear.is_none());
        for (number, layer) in self.model.layers().iter().enumerate().skip(layout.first).rev() {
            let hold = layout.holds.get(number).copied().ok_or_else(|| absent("layer"))?;
            ws.streams.backward(ops, n, number)?;
            let x = ws.streams.get(number)?;
            let (cheap, dear) = ws.kept.of_mut(hold)?;
            if hold.dear.is_none() && (dear_of != Some(number) || cheap_of != Some(number)) {
                self.recompute(number, layer, x, cheap, dear, &mut ws.narrow)?;
                (cheap_of, dear_of) = (Some(number), Some(number));
            } else if hold.cheap.is_none() && cheap_of != Some(number) {
                self.recompute_cheap(number, layer, x, cheap, dear)?;
                cheap_of = Some(number);
            }
            self.layer_backward(number, layer, ws, grads)?;
        }
        Ok(())
    }

    /// Everything that the layer's backward needs, from its input.
    fn recompute(
        &self,
        number: usize,
        layer: &Layer<B>,
        x: &B::Tensor,
        cheap: &mut Cheap<B>,
        dear: &mut Dear<B>,
        narrow: &mut B::Tensor,
    ) -> Result<()> {
        self.first_norm(number, layer, x, cheap)?;
        self.attention(number, layer, cheap, dear, narrow)?;
        self.mlp(number, layer, cheap, dear, x, narrow)
    }

    fn first_norm(&self, number: usize, layer: &Layer<B>, x: &B::Tensor, cheap: &mut Cheap<B>) -> Result<()> {
        let eps = self.model.dims().eps;
        let (h1, rstd1) = (&mut cheap.h1, &mut cheap.rstd1);
        self.ops().rms_norm(self.n, x, &layer.input_norm, eps, h1, rstd1).at(|| format!("layer {number}, first norm, again"))
    }

    /// What elementwise operations give, from what the layer kept.
    fn recompute_cheap(&self, number: usize, layer: &Layer<B>, x: &B::Tensor, cheap: &mut Cheap<B>, dear: &Dear<B>) -> Result<()> {
        let (ops, n, dims) = (self.ops(), self.n, self.model.dims());
        self.first_norm(number, layer, x, cheap)?;
        self.rotate(number, layer, cheap, dear)?;
        ops.rms_norm(n, &dear.x2, &layer.post_norm, dims.eps, &mut cheap.h2, &mut cheap.rstd2)
            .at(|| format!("layer {number}, second norm, again"))?;
        ops.swiglu(n, dims.intermediate, &dear.gate_up, &mut cheap.activated).at(|| format!("layer {number}, swiglu, again"))
    }

    /// `ws.dx` goes from the gradient of the layer's output to that of its input.
    fn layer_backward(&self, number: usize, layer: &Layer<B>, ws: &mut Workspace<B>, grads: &mut Gradients<B>) -> Result<()> {
        let (ops, n, dims) = (self.ops(), self.n, self.model.dims());
        let shape = dims.attention;
        let module = number * PROJECTIONS;
        let at = |what: &str| format!("layer {number}, {what}, backward");
        let hold = ws.layout.holds.get(number).copied().ok_or_else(|| absent("layer"))?;
        let x = ws.streams.get(number)?;
        let apart = ws.layout.apart(number);
        let (cheap, dear, mids) = ws.kept.of_backward(hold, number)?;
        let mid_qkv = if apart.qkv > 0 { &mids.qkv } else { &cheap.mid_qkv };
        let mid_gate_up = if apart.gate_up > 0 { &mids.gate_up } else { &cheap.mid_gate_up };
        let mid_down = if apart.down > 0 { &mids.down } else { &cheap.mid_down };

        ops.linear_backward(
            self.batch,
            n,
            &ws.dx,
            &cheap.activated,
            mid_down,
            &layer.down,
            &self.adapter.members::<1>(module + DOWN),
            self.dropout(module + DOWN),
            &mut grads.members::<1>(module + DOWN),
            &mut ws.dx_mid,
            Some(&mut ws.d_activated),
        )
        .at(|| at("down"))?;
        ops.swiglu_backward(n, dims.intermediate, &ws.d_activated, &mut dear.gate_up).at(|| at("swiglu"))?;
        ops.linear_backward(
            self.batch,
            n,
            &dear.gate_up,
            &cheap.h2,
            mid_gate_up,
            &layer.gate_up,
            &self.adapter.members::<2>(module + GATE_UP),
            self.dropout(module + GATE_UP),
            &mut grads.members::<2>(module + GATE_UP),
            &mut dear.d_gate_up_mid,
            Some(&mut ws.narrow),
        )
        .at(|| at("gate, up"))?;
        ops.rms_norm_backward(n, &ws.narrow, &dear.x2, &layer.post_norm, &cheap.rstd2, &mut ws.dx).at(|| at("second norm"))?;

        ops.linear_backward(
            self.batch,
            n,
            &ws.dx,
            &dear.attended,
            &dear.mid_o,
            &layer.o,
            &self.adapter.members::<1>(module + O),
            self.dropout(module + O),
            &mut grads.members::<1>(module + O),
            &mut ws.dx_mid,
            Some(&mut ws.d_attended),
        )
        .at(|| at("o"))?;
        ops.attention_backward(
            self.batch,
            n,
            shape,
            &ws.d_attended,
            &dear.attended,
            &cheap.qk,
            &dear.qkv,
            &dear.lse,
            &mut ws.d_qk,
            &mut ws.d_qkv,
        )
        .at(|| at("attention"))?;
        ops.qk_norm_rope_backward(
            self.batch,
            n,
            shape,
            &ws.d_qk,
            &dear.qkv,
            &layer.q_norm,
            &layer.k_norm,
            &cheap.rstd_qk,
            dims.theta,
            &mut ws.d_qkv,
        )
        .at(|| at("query and key norm, rotation"))?;
        // Below the lowest trained layer nobody asks for a gradient.
        let lowest = number == ws.layout.first;
        ops.linear_backward(
            self.batch,
            n,
            &ws.d_qkv,
            &cheap.h1,
            mid_qkv,
            &layer.qkv,
            &self.adapter.members::<3>(module + QKV),
            self.dropout(module + QKV),
            &mut grads.members::<3>(module + QKV),
            &mut ws.d_qkv_mid,
            (!lowest).then_some(&mut ws.narrow),
        )
        .at(|| at("q, k, v"))?;
        if lowest {
            return Ok(());
        }
        ops.rms_norm_backward(n, &ws.narrow, x, &layer.input_norm, &cheap.rstd1, &mut ws.dx).at(|| at("first norm"))
    }
}
