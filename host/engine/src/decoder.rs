//! The decoder of a training step: Qwen3's forward and its backward, by hand, over the operations trait.
//!
//! A layer (pre-norm, Qwen3 technical report 2025): `x2 = x + O(attention(rope(norm(Q h1)), rope(norm(K h1)), V h1))` with `h1 = norm(x)`, then
//! `x' = x2 + down(silu(gate h2) * up h2)` with `h2 = norm(x2)`. Only adapters have gradients; those of the frozen weights are never computed.

use trainer_kernels::ops::{Dropout, Ops};

use crate::adapter::{Adapter, Gradients};
use crate::error::{OpsContext, Result};
use crate::model::{Layer, Model};
use crate::modules::{DOWN, GATE_UP, O, PROJECTIONS, QKV};
use crate::workspace::{Hold, LayerActs, Workspace, absent};

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
    fn attention(&self, number: usize, layer: &Layer<B>, acts: &mut LayerActs<B>, out: &mut B::Tensor) -> Result<()> {
        let (ops, n, dims) = (self.ops(), self.n, self.model.dims());
        let shape = dims.attention;
        let module = number * PROJECTIONS;
        let at = |what: &str| format!("layer {number}, {what}");
        let lora = self.adapter.members::<3>(module + QKV);
        ops.linear(self.batch, n, &acts.h1, &layer.qkv, &lora, self.dropout(module + QKV), &mut acts.qkv, &mut acts.mid_qkv)
            .at(|| at("q, k, v"))?;
        ops.qk_norm_rope(
            self.batch,
            n,
            shape,
            &acts.qkv,
            &layer.q_norm,
            &layer.k_norm,
            dims.eps,
            dims.theta,
            &mut acts.qk,
            &mut acts.rstd_qk,
        )
        .at(|| at("query and key norm, rotation"))?;
        ops.attention(self.batch, n, shape, &acts.qk, &acts.qkv, &mut acts.attended, &mut acts.lse).at(|| at("attention"))?;
        let lora = self.adapter.members::<1>(module + O);
        ops.linear(self.batch, n, &acts.attended, &layer.o, &lora, self.dropout(module + O), out, &mut acts.mid_o).at(|| at("o"))
    }

    /// From the sum of input and attention, `x2 + delta`, to the activated MLP.
    fn mlp(&self, number: usize, layer: &Layer<B>, acts: &mut LayerActs<B>, delta: &B::Tensor) -> Result<()> {
        let (ops, n, dims) = (self.ops(), self.n, self.model.dims());
        let module = number * PROJECTIONS;
        let at = |what: &str| format!("layer {number}, {what}");
        ops.add_rms_norm(n, &mut acts.x2, delta, &layer.post_norm, dims.eps, &mut acts.h2, &mut acts.rstd2).at(|| at("second norm"))?;
        let lora = self.adapter.members::<2>(module + GATE_UP);
        let dropout = self.dropout(module + GATE_UP);
        ops.linear(self.batch, n, &acts.h2, &layer.gate_up, &lora, dropout, &mut acts.gate_up, &mut acts.mid_gate_up)
            .at(|| at("gate, up"))?;
        ops.swiglu(n, dims.intermediate, &acts.gate_up, &mut acts.activated).at(|| at("swiglu"))
    }

    /// Everything up to the final norm, whose result is in `ws.hidden`.
    pub fn forward(&self, ws: &mut Workspace<B>) -> Result<()> {
        let (ops, n, dims) = (self.ops(), self.n, self.model.dims());
        let layout = ws.layout.clone();
        let first = self.model.layers().first().ok_or_else(|| absent("layer"))?;
        let x0 = ws.streams.first_mut().ok_or_else(|| absent("stream"))?;
        ops.embed(self.batch, self.model.embedding(), x0).at(|| "embedding".into())?;
        let acts = acts_of(&mut ws.kept, &mut ws.shared, &layout.holds, 0)?;
        ops.rms_norm(n, x0, &first.input_norm, dims.eps, &mut acts.h1, &mut acts.rstd1).at(|| "layer 0, first norm".into())?;
        for (number, layer) in self.model.layers().iter().enumerate() {
            let acts_here = acts_of(&mut ws.kept, &mut ws.shared, &layout.holds, number)?;
            self.attention(number, layer, acts_here, &mut ws.narrow)?;
            let x = ws.streams.get(layout.stream(number)).ok_or_else(|| absent("stream"))?;
            ops.copy(n, x, &mut acts_here.x2).at(|| format!("layer {number}, residual"))?;
            self.mlp(number, layer, acts_here, &ws.narrow)?;
            let module = number * PROJECTIONS + DOWN;
            let lora = self.adapter.members::<1>(module);
            let mid = ws.mid_down.get_mut(number).ok_or_else(|| absent("down buffer"))?;
            ops.linear(self.batch, n, &acts_here.activated, &layer.down, &lora, self.dropout(module), &mut ws.narrow, mid)
                .at(|| format!("layer {number}, down"))?;
            let x = ws.streams.get_mut(layout.stream(number + 1)).ok_or_else(|| absent("stream"))?;
            ops.copy(n, &acts_here.x2, x).at(|| format!("layer {number}, residual"))?;
            match self.model.layers().get(number + 1) {
                Some(next) => {
                    let acts = acts_of(&mut ws.kept, &mut ws.shared, &layout.holds, number + 1)?;
                    ops.add_rms_norm(n, x, &ws.narrow, &next.input_norm, dims.eps, &mut acts.h1, &mut acts.rstd1)
                }
                None => {
                    let norm = self.model.final_norm();
                    ops.add_rms_norm(n, x, &ws.narrow, norm, dims.eps, &mut ws.hidden, &mut ws.hidden_rstd)
                }
            }
            .at(|| format!("norm after layer {number}"))?;
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
        let last = ws.streams.get(layout.stream(dims.layers)).ok_or_else(|| absent("stream"))?;
        ops.rms_norm_backward(n, &ws.narrow, last, self.model.final_norm(), &ws.hidden_rstd, &mut ws.dx)
            .at(|| "final norm, backward".into())?;
        // The layer that used the shared buffer last has left its activations there.
        let mut shared_holds = layout.holds.iter().rposition(|h| !matches!(h, Hold::Kept(_)));
        for (number, layer) in self.model.layers().iter().enumerate().skip(layout.first).rev() {
            if layout.holds.get(number) == Some(&Hold::Recomputed) && shared_holds.take() != Some(number) {
                self.recompute(number, layer, ws)?;
            }
            self.layer_backward(number, layer, ws, grads)?;
        }
        Ok(())
    }

    fn recompute(&self, number: usize, layer: &Layer<B>, ws: &mut Workspace<B>) -> Result<()> {
        let (ops, n, dims) = (self.ops(), self.n, self.model.dims());
        let acts = ws.shared.as_mut().ok_or_else(|| absent("shared buffer"))?;
        let x = ws.streams.get(ws.layout.stream(number)).ok_or_else(|| absent("stream"))?;
        ops.rms_norm(n, x, &layer.input_norm, dims.eps, &mut acts.h1, &mut acts.rstd1)
            .at(|| format!("layer {number}, first norm, again"))?;
        self.attention(number, layer, acts, &mut ws.narrow)?;
        ops.copy(n, x, &mut acts.x2).at(|| format!("layer {number}, residual, again"))?;
        self.mlp(number, layer, acts, &ws.narrow)
    }

    /// `ws.dx` goes from the gradient of the layer's output to that of its input.
    fn layer_backward(&self, number: usize, layer: &Layer<B>, ws: &mut Workspace<B>, grads: &mut Gradients<B>) -> Result<()> {
        let (ops, n, dims) = (self.ops(), self.n, self.model.dims());
        let shape = dims.attention;
        let module = number * PROJECTIONS;
        let at = |what: &str| format!("layer {number}, {what}, backward");
        let stream = ws.layout.stream(number);
        let acts = match ws.layout.holds.get(number) {
            Some(Hold::Kept(i)) => ws.kept.get(*i),
            _ => ws.shared.as_ref(),
        }
        .ok_or_else(|| absent("activations"))?;
        let mid_down = ws.mid_down.get(number).ok_or_else(|| absent("down buffer"))?;
        let x = ws.streams.get(stream).ok_or_else(|| absent("stream"))?;

        ops.linear_backward(
            self.batch,
            n,
            &ws.dx,
            &acts.activated,
            mid_down,
            &layer.down,
            &self.adapter.members::<1>(module + DOWN),
            self.dropout(module + DOWN),
            &mut grads.members::<1>(module + DOWN),
            &mut ws.d_mid,
            Some(&mut ws.d_activated),
        )
        .at(|| at("down"))?;
        ops.swiglu_backward(n, dims.intermediate, &ws.d_activated, &acts.gate_up, &mut ws.d_gate_up).at(|| at("swiglu"))?;
        ops.linear_backward(
            self.batch,
            n,
            &ws.d_gate_up,
            &acts.h2,
            &acts.mid_gate_up,
            &layer.gate_up,
            &self.adapter.members::<2>(module + GATE_UP),
            self.dropout(module + GATE_UP),
            &mut grads.members::<2>(module + GATE_UP),
            &mut ws.d_mid,
            Some(&mut ws.narrow),
        )
        .at(|| at("gate, up"))?;
        ops.rms_norm_backward(n, &ws.narrow, &acts.x2, &layer.post_norm, &acts.rstd2, &mut ws.dx).at(|| at("second norm"))?;

        ops.linear_backward(
            self.batch,
            n,
            &ws.dx,
            &acts.attended,
            &acts.mid_o,
            &layer.o,
            &self.adapter.members::<1>(module + O),
            self.dropout(module + O),
            &mut grads.members::<1>(module + O),
            &mut ws.d_mid,
            Some(&mut ws.d_attended),
        )
        .at(|| at("o"))?;
        ops.attention_backward(
            self.batch,
            n,
            shape,
            &ws.d_attended,
            &acts.attended,
            &acts.qk,
            &acts.qkv,
            &acts.lse,
            &mut ws.d_qk,
            &mut ws.d_qkv,
        )
        .at(|| at("attention"))?;
        ops.qk_norm_rope_backward(
            self.batch,
            n,
            shape,
            &ws.d_qk,
            &acts.qkv,
            &layer.q_norm,
            &layer.k_norm,
            &acts.rstd_qk,
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
            &acts.h1,
            &acts.mid_qkv,
            &layer.qkv,
            &self.adapter.members::<3>(module + QKV),
            self.dropout(module + QKV),
            &mut grads.members::<3>(module + QKV),
            &mut ws.d_mid,
            (!lowest).then_some(&mut ws.narrow),
        )
        .at(|| at("q, k, v"))?;
        if lowest {
            return Ok(());
        }
        ops.rms_norm_backward(n, &ws.narrow, x, &layer.input_norm, &acts.rstd1, &mut ws.dx).at(|| at("first norm"))
    }
}

/// A layer's activations: its own, or the shared ones.
fn acts_of<'w, B: Ops>(
    kept: &'w mut [LayerActs<B>],
    shared: &'w mut Option<LayerActs<B>>,
    holds: &[Hold],
    number: usize,
) -> Result<&'w mut LayerActs<B>> {
    match holds.get(number) {
        Some(Hold::Kept(i)) => kept.get_mut(*i),
        _ => shared.as_mut(),
    }
    .ok_or_else(|| absent("activations"))
}
