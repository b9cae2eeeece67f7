//! The buffers of a training step: made once for the largest micro-batch and reused.
//!
//! What a layer's backward needs is either kept from the forward or computed again from the layer's input. Both give the same bits,
//! because the same operations run on the same values.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use trainer_kernels::ops::{Ops, OpsError};

use crate::adapter::Site;
use crate::error::{EngineError, OpsContext, Result};
use crate::modules::{DOWN, Dims, GATE_UP, O, PROJECTIONS, QKV};

/// Which layers compute their activations again in the backward instead of keeping them (Chen et al. 2016).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// No layer: fastest, most memory.
    #[default]
    None,
    /// Every layer: least memory, about a third more work.
    All,
    /// These layers, by number.
    Layers(Vec<usize>),
}

impl Recompute {
    pub(crate) fn has(&self, layer: usize) -> bool {
        match self {
            Recompute::None => false,
            Recompute::All => true,
            Recompute::Layers(layers) => layers.contains(&layer),
        }
    }

    pub(crate) fn check(&self, layers: usize) -> Result<()> {
        match self {
            Recompute::Layers(list) if list.iter().any(|&l| l >= layers) => Err(EngineError::Setting {
                name: "recompute",
                value: format!("{list:?}"),
                expected: "numbers of layers of the model, from 0",
            }),
            _ => Ok(()),
        }
    }
}

/// What holds a layer's activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// A buffer of its own, from forward to backward.
    Kept(usize),
    /// The shared buffer, filled again in the backward.
    Recomputed,
    /// The shared buffer; there is no backward, because nothing is trained in this layer or below.
    Frozen,
}

/// Widths of the buffers between A and B of a layer's four groups: the sums of the ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MidWidths {
    pub qkv: usize,
    pub o: usize,
    pub gate_up: usize,
    pub down: usize,
}

impl MidWidths {
    /// Those of one layer.
    pub fn of(sites: &[Option<Site>], layer: usize) -> MidWidths {
        let sum = |first: usize, count: usize| -> usize {
            sites.iter().skip(layer * PROJECTIONS + first).take(count).flatten().map(|s| s.rank).sum()
        };
        MidWidths { qkv: sum(QKV, O - QKV), o: sum(O, GATE_UP - O), gate_up: sum(GATE_UP, DOWN - GATE_UP), down: sum(DOWN, 1) }
    }

    /// The larger of each.
    pub fn max(self, other: MidWidths) -> MidWidths {
        MidWidths {
            qkv: self.qkv.max(other.qkv),
            o: self.o.max(other.o),
            gate_up: self.gate_up.max(other.gate_up),
            down: self.down.max(other.down),
        }
    }

    /// The largest of the four.
    pub fn widest(self) -> usize {
        self.qkv.max(self.o).max(self.gate_up).max(self.down)
    }
}

/// How the layers of a run hold their activations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The lowest layer in which something is trained.
    pub first: usize,
    /// Per layer.
    pub holds: Vec<Hold>,
    /// Per layer.
    pub mids: Vec<MidWidths>,
}

impl Layout {
    /// Decides for each layer.
    pub fn new(dims: &Dims, sites: &[Option<Site>], recompute: &Recompute) -> Result<Layout> {
        recompute.check(dims.layers)?;
        let first = sites
            .iter()
            .position(Option::is_some)
            .map(|module| module / PROJECTIONS)
            .ok_or_else(|| EngineError::AdapterConfig("nothing is trained".into()))?;
        let mut kept = 0;
        let mut holds = Vec::with_capacity(dims.layers);
        for layer in 0..dims.layers {
            holds.push(if layer < first {
                Hold::Frozen
            } else if recompute.has(layer) {
                Hold::Recomputed
            } else {
                kept += 1;
                Hold::Kept(kept - 1)
            });
        }
        let mids = (0..dims.layers).map(|layer| MidWidths::of(sites, layer)).collect();
        Ok(Layout { first, holds, mids })
    }

    /// Whether any layer needs the shared buffer.
    pub fn shares(&self) -> bool {
        self.holds.iter().any(|h| !matches!(h, Hold::Kept(_)))
    }

    /// Widths that serve every layer of the shared buffer.
    pub fn shared_mids(&self) -> MidWidths {
        let shared = self.holds.iter().zip(&self.mids).filter(|(h, _)| !matches!(h, Hold::Kept(_)));
        shared.fold(MidWidths::default(), |widths, (_, m)| widths.max(*m))
    }

    /// The residual stream's buffer at a layer's input; `layer` = number of layers: after the last one.
    pub fn stream(&self, layer: usize) -> usize {
        layer.saturating_sub(self.first)
    }
}

/// What one layer's backward needs of its forward.
pub(crate) struct LayerActs<O: Ops> {
    /// The normalised input.
    pub h1: O::Tensor,
    pub rstd1: O::Stats,
    pub mid_qkv: O::Tensor,
    /// `q | k | v` before norm and rotation.
    pub qkv: O::Tensor,
    /// `q | k` after them.
    pub qk: O::Tensor,
    pub rstd_qk: O::Stats,
    pub attended: O::Tensor,
    pub lse: O::Stats,
    pub mid_o: O::Tensor,
    /// The residual stream between attention and MLP.
    pub x2: O::Tensor,
    pub h2: O::Tensor,
    pub rstd2: O::Stats,
    pub mid_gate_up: O::Tensor,
    pub gate_up: O::Tensor,
    pub activated: O::Tensor,
}

/// Bytes by what they are for.
pub type Parts = BTreeMap<&'static str, u64>;

/// Makes buffers and adds up their bytes.
pub(crate) struct Maker<'a, O: Ops> {
    pub ops: &'a O,
    pub rows: usize,
    pub parts: Parts,
}

impl<'a, O: Ops> Maker<'a, O> {
    pub fn new(ops: &'a O, rows: usize) -> Self {
        Maker { ops, rows, parts: Parts::new() }
    }

    fn count(&mut self, part: &'static str, rows: usize, cols: usize, bytes: usize) -> Result<()> {
        let bytes = rows.checked_mul(cols).and_then(|v| v.checked_mul(bytes)).ok_or(EngineError::Overflow("the workspace"))?;
        *self.parts.entry(part).or_default() += bytes as u64;
        Ok(())
    }

    pub fn tensor(&mut self, part: &'static str, cols: usize) -> Result<O::Tensor> {
        self.tensor_of(part, self.rows, cols)
    }

    pub fn tensor_of(&mut self, part: &'static str, rows: usize, cols: usize) -> Result<O::Tensor> {
        self.count(part, rows, cols, self.ops.element_bytes())?;
        self.ops.tensor(rows, cols).at(|| format!("{part}: {rows} x {cols} values"))
    }

    pub fn stats(&mut self, part: &'static str, cols: usize) -> Result<O::Stats> {
        self.count(part, self.rows, cols, size_of::<f32>())?;
        let rows = self.rows;
        self.ops.stats(rows, cols).at(|| format!("{part}: {rows} x {cols} statistics"))
    }
}

pub(crate) const KEPT: &str = "kept activations";
pub(crate) const SHARED: &str = "recomputed activations";
pub(crate) const STREAM: &str = "layer inputs";
pub(crate) const SCRATCH: &str = "backward scratch";

impl<O: Ops> LayerActs<O> {
    fn new(make: &mut Maker<'_, O>, dims: &Dims, mids: MidWidths, part: &'static str) -> Result<Self> {
        let a = dims.attention;
        Ok(LayerActs {
            h1: make.tensor(part, dims.hidden)?,
            rstd1: make.stats(part, 1)?,
            mid_qkv: make.tensor(part, mids.qkv)?,
            qkv: make.tensor(part, a.qkv_width())?,
            qk: make.tensor(part, a.qk_width())?,
            rstd_qk: make.stats(part, a.heads + a.kv_heads)?,
            attended: make.tensor(part, a.q_width())?,
            lse: make.stats(part, a.heads)?,
            mid_o: make.tensor(part, mids.o)?,
            x2: make.tensor(part, dims.hidden)?,
            h2: make.tensor(part, dims.hidden)?,
            rstd2: make.stats(part, 1)?,
            mid_gate_up: make.tensor(part, mids.gate_up)?,
            gate_up: make.tensor(part, 2 * dims.intermediate)?,
            activated: make.tensor(part, dims.intermediate)?,
        })
    }
}

/// All buffers of a training step.
pub(crate) struct Workspace<O: Ops> {
    /// Rows of every buffer.
    pub tokens: usize,
    pub layout: Layout,
    /// The residual stream at the input of every layer that has a backward, and after the last; see [`Layout::stream`].
    pub streams: Vec<O::Tensor>,
    /// Of the layers that keep theirs.
    pub kept: Vec<LayerActs<O>>,
    /// Of all others, one after the other.
    pub shared: Option<LayerActs<O>>,
    /// Between A and B of the down projection, kept in every layer: small, and it spares the recomputation that projection.
    pub mid_down: Vec<O::Tensor>,
    pub hidden: O::Tensor,
    pub hidden_rstd: O::Stats,
    /// A sublayer's output in the forward, the gradient of its input in the backward.
    pub narrow: O::Tensor,
    pub dx: O::Tensor,
    pub d_gate_up: O::Tensor,
    pub d_activated: O::Tensor,
    pub d_attended: O::Tensor,
    pub d_qk: O::Tensor,
    pub d_qkv: O::Tensor,
    pub d_mid: O::Tensor,
    /// What was allocated.
    pub parts: Parts,
}

impl<O: Ops> Workspace<O> {
    /// Allocates everything.
    pub fn new(ops: &O, dims: &Dims, layout: Layout, tokens: usize) -> Result<Self> {
        if tokens == 0 || u32::try_from(tokens).is_err() {
            return Err(EngineError::Setting { name: "max_tokens", value: tokens.to_string(), expected: "1 to 2^32 - 1" });
        }
        let make = &mut Maker::new(ops, tokens);
        let streams = (layout.first..=dims.layers).map(|_| make.tensor(STREAM, dims.hidden)).collect::<Result<Vec<_>>>()?;
        let mut kept = Vec::new();
        for (hold, mids) in layout.holds.iter().zip(&layout.mids) {
            if matches!(hold, Hold::Kept(_)) {
                kept.push(LayerActs::new(make, dims, *mids, KEPT)?);
            }
        }
        let shared = if layout.shares() { Some(LayerActs::new(make, dims, layout.shared_mids(), SHARED)?) } else { None };
        let mid_down = layout.mids.iter().map(|m| make.tensor(KEPT, m.down)).collect::<Result<Vec<_>>>()?;
        let a = dims.attention;
        let widest = layout.mids.iter().map(|m| m.widest()).max().unwrap_or(0);
        Ok(Workspace {
            tokens,
            streams,
            kept,
            shared,
            mid_down,
            hidden: make.tensor(SCRATCH, dims.hidden)?,
            hidden_rstd: make.stats(SCRATCH, 1)?,
            narrow: make.tensor(SCRATCH, dims.hidden)?,
            dx: make.tensor(SCRATCH, dims.hidden)?,
            d_gate_up: make.tensor(SCRATCH, 2 * dims.intermediate)?,
            d_activated: make.tensor(SCRATCH, dims.intermediate)?,
            d_attended: make.tensor(SCRATCH, a.q_width())?,
            d_qk: make.tensor(SCRATCH, a.qk_width())?,
            d_qkv: make.tensor(SCRATCH, a.qkv_width())?,
            d_mid: make.tensor(SCRATCH, widest)?,
            layout,
            parts: std::mem::take(&mut make.parts),
        })
    }
}

/// A slot that the layout promised but that is not there: only a bug in this crate can cause it, and it must not become a panic.
pub(crate) fn absent(what: &'static str) -> EngineError {
    EngineError::Ops { context: "workspace".into(), source: OpsError::Device(format!("no {what}: this is a bug in trainer-engine")) }
}
