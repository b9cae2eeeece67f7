//! The buffers of a training step: made once for the largest micro-batch and reused.
//!
//! What a layer's backward needs is either kept from the forward or computed again, all of it or what is cheap. All give the same bits, because the
//! same operations run on the same values.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use trainer_kernels::ops::{Ops, OpsError};

use crate::adapter::Site;
use crate::error::{EngineError, OpsContext, Result};
use crate::modules::{DOWN, Dims, GATE_UP, O, PROJECTIONS, QKV};

/// What of a layer's activations waits from forward to backward; the rest is computed again (Chen et al. 2016).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// Everything: fastest, most memory.
    All,
    /// What matrix products and attention made. Norms, rotation and SwiGLU are computed again, which costs memory traffic but no products.
    Lean,
    /// The layer's input alone: least memory, about a third more work.
    Input,
}

/// What the layers keep.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Every layer keeps everything.
    #[default]
    None,
    /// Every layer keeps its input alone.
    All,
    /// These layers, by number, keep their input alone, the others everything.
    Layers(Vec<usize>),
    /// One choice for each layer.
    Each(Vec<Keep>),
}

impl Recompute {
    /// What a layer keeps.
    pub fn keep(&self, layer: usize) -> Keep {
        match self {
            Recompute::None => Keep::All,
            Recompute::All => Keep::Input,
            Recompute::Layers(layers) if layers.contains(&layer) => Keep::Input,
            Recompute::Layers(_) => Keep::All,
            Recompute::Each(choices) => choices.get(layer).copied().unwrap_or(Keep::All),
        }
    }

    pub(crate) fn check(&self, layers: usize) -> Result<()> {
        match self {
            Recompute::Layers(list) if list.iter().any(|&l| l >= layers) => Err(EngineError::Setting {
                name: "recompute",
                value: format!("{list:?}"),
                expected: "numbers of layers of the model, from 0",
            }),
            Recompute::Each(list) if list.len() != layers => Err(EngineError::Setting {
                name: "recompute",
                value: format!("{} choices", list.len()),
                expected: "one choice for each layer of the model",
            }),
            _ => Ok(()),
        }
    }
}

/// Where a layer's activations lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    /// Its own [`Cheap`], by number, or the shared one.
    pub cheap: Option<usize>,
    /// Its own [`Dear`], by number, or the shared one.
    pub dear: Option<usize>,
    /// Whether there is a backward: something is trained in this layer or below.
    pub trained: bool,
}

/// Widths of the buffers between A and B of a layer's four groups: the sums of the ranks, each rounded up to eight so that a backend can align them.
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
            sites.iter().skip(layer * PROJECTIONS + first).take(count).flatten().map(|s| s.rank.next_multiple_of(8)).sum()
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
    /// Whether layer inputs wait outside of the device's memory.
    pub offload: bool,
}

impl Layout {
    /// Decides for each layer.
    pub fn new(dims: &Dims, sites: &[Option<Site>], recompute: &Recompute, offload: bool) -> Result<Layout> {
        recompute.check(dims.layers)?;
        let first = sites
            .iter()
            .position(Option::is_some)
            .map(|module| module / PROJECTIONS)
            .ok_or_else(|| EngineError::AdapterConfig("nothing is trained".into()))?;
        let (mut cheap, mut dear) = (0, 0);
        let next = |count: &mut usize, own: bool| {
            own.then(|| {
                *count += 1;
                *count - 1
            })
        };
        let mut holds = Vec::with_capacity(dims.layers);
        for layer in 0..dims.layers {
            let trained = layer >= first;
            let keep = recompute.keep(layer);
            holds.push(Hold {
                cheap: next(&mut cheap, trained && keep == Keep::All),
                dear: next(&mut dear, trained && keep != Keep::Input),
                trained,
            });
        }
        let mids = (0..dims.layers).map(|layer| MidWidths::of(sites, layer)).collect();
        Ok(Layout { first, holds, mids, offload })
    }

    /// Widths of what lies between A and B that a layer keeps in buffers of its own, apart from the inputs that it belongs to.
    pub fn apart(&self, layer: usize) -> MidWidths {
        match (self.holds.get(layer), self.mids.get(layer)) {
            (Some(Hold { cheap: None, dear, trained: true }), Some(m)) => {
                let kept = |width| if dear.is_some() { width } else { 0 };
                MidWidths { qkv: kept(m.qkv), o: 0, gate_up: kept(m.gate_up), down: m.down }
            }
            _ => MidWidths::default(),
        }
    }

    /// Widths that serve every layer whose hold is as asked for; None if there is no such layer.
    pub fn widths(&self, of: impl Fn(&Hold) -> bool) -> Option<MidWidths> {
        let mut some = self.holds.iter().zip(&self.mids).filter(|(h, _)| of(h)).map(|(_, m)| *m);
        some.next().map(|first| some.fold(first, MidWidths::max))
    }
}

/// Of a layer's forward, what elementwise operations make of [`Dear`] or of the layer's input, each beside what adapters make of it.
pub(crate) struct Cheap<O: Ops> {
    /// The normalised input.
    pub h1: O::Tensor,
    pub rstd1: O::Stats,
    pub mid_qkv: O::Tensor,
    /// `q | k` after norm and rotation.
    pub qk: O::Tensor,
    pub rstd_qk: O::Stats,
    pub h2: O::Tensor,
    pub rstd2: O::Stats,
    pub mid_gate_up: O::Tensor,
    pub activated: O::Tensor,
    pub mid_down: O::Tensor,
}

/// Of a layer's forward, what takes matrix products or attention to make.
pub(crate) struct Dear<O: Ops> {
    /// `q | k | v` before norm and rotation.
    pub qkv: O::Tensor,
    pub attended: O::Tensor,
    pub lse: O::Stats,
    pub mid_o: O::Tensor,
    /// The residual stream between attention and MLP.
    pub x2: O::Tensor,
    /// In the backward, its gradient; then also what lies between A and B of that.
    pub gate_up: O::Tensor,
    pub d_gate_up_mid: O::Tensor,
}

/// What lies between A and B, kept apart from its input: see [`Layout::apart`].
pub(crate) struct Mids<O: Ops> {
    pub qkv: O::Tensor,
    pub gate_up: O::Tensor,
    pub down: O::Tensor,
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

    /// An input of a group and what lies between A and B of its adapters.
    pub fn with_mid(&mut self, part: &'static str, cols: usize, ranks: usize) -> Result<(O::Tensor, O::Tensor)> {
        let width = cols + self.ops.mid_columns(cols, ranks);
        self.count(part, self.rows, width, self.ops.element_bytes())?;
        let rows = self.rows;
        self.ops.tensor_with_mid(rows, cols, ranks).at(|| format!("{part}: {rows} x {width} values"))
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

impl<O: Ops> Cheap<O> {
    fn new(make: &mut Maker<'_, O>, dims: &Dims, mids: MidWidths, part: &'static str) -> Result<Self> {
        let a = dims.attention;
        let (h1, mid_qkv) = make.with_mid(part, dims.hidden, mids.qkv)?;
        let (h2, mid_gate_up) = make.with_mid(part, dims.hidden, mids.gate_up)?;
        let (activated, mid_down) = make.with_mid(part, dims.intermediate, mids.down)?;
        let (rstd1, rstd2) = (make.stats(part, 1)?, make.stats(part, 1)?);
        let (qk, rstd_qk) = (make.tensor(part, a.qk_width())?, make.stats(part, a.heads + a.kv_heads)?);
        Ok(Cheap { h1, rstd1, mid_qkv, qk, rstd_qk, h2, rstd2, mid_gate_up, activated, mid_down })
    }
}

impl<O: Ops> Dear<O> {
    fn new(make: &mut Maker<'_, O>, dims: &Dims, mids: MidWidths, part: &'static str) -> Result<Self> {
        let a = dims.attention;
        let (attended, mid_o) = make.with_mid(part, a.q_width(), mids.o)?;
        let (gate_up, d_gate_up_mid) = make.with_mid(part, 2 * dims.intermediate, mids.gate_up)?;
        Ok(Dear {
            qkv: make.tensor(part, a.qkv_width())?,
            attended,
            lse: make.stats(part, a.heads)?,
            mid_o,
            x2: make.tensor(part, dims.hidden)?,
            gate_up,
            d_gate_up_mid,
        })
    }
}

/// Buffers of all layers.
pub(crate) struct Kept<O: Ops> {
    /// Those that keep theirs.
    cheap: Vec<Cheap<O>>,
    dear: Vec<Dear<O>>,
    /// For all others, one after the other.
    shared_cheap: Option<Cheap<O>>,
    shared_dear: Option<Dear<O>>,
    /// Per layer.
    pub mids: Vec<Mids<O>>,
}

impl<O: Ops> Kept<O> {
    fn new(make: &mut Maker<'_, O>, dims: &Dims, layout: &Layout) -> Result<Self> {
        let (mut cheap, mut dear, mut mids) = (Vec::new(), Vec::new(), Vec::new());
        for (layer, (hold, m)) in layout.holds.iter().zip(&layout.mids).enumerate() {
            if hold.cheap.is_some() {
                cheap.push(Cheap::new(make, dims, *m, KEPT)?);
            }
            if hold.dear.is_some() {
                dear.push(Dear::new(make, dims, *m, KEPT)?);
            }
            let apart = layout.apart(layer);
            let (qkv, gate_up) = (make.tensor(KEPT, apart.qkv)?, make.tensor(KEPT, apart.gate_up)?);
            mids.push(Mids { qkv, gate_up, down: make.tensor(KEPT, apart.down)? });
        }
        let shared_cheap = layout.widths(|h| h.cheap.is_none()).map(|m| Cheap::new(make, dims, m, SHARED)).transpose()?;
        let shared_dear = layout.widths(|h| h.dear.is_none()).map(|m| Dear::new(make, dims, m, SHARED)).transpose()?;
        Ok(Kept { cheap, dear, shared_cheap, shared_dear, mids })
    }

    /// A layer's activations, wherever they lie.
    pub fn of(&self, hold: Hold) -> Result<(&Cheap<O>, &Dear<O>)> {
        let cheap = hold.cheap.map_or(self.shared_cheap.as_ref(), |i| self.cheap.get(i));
        let dear = hold.dear.map_or(self.shared_dear.as_ref(), |i| self.dear.get(i));
        Ok((cheap.ok_or_else(|| absent("activations"))?, dear.ok_or_else(|| absent("activations"))?))
    }

    /// One layer's norms, to be filled, and what another one (or the same) holds dear.
    pub fn cheap_and_dear(&mut self, of: Hold, dear_of: Hold) -> Result<(&mut Cheap<O>, &Dear<O>)> {
        let cheap = match of.cheap {
            Some(i) => self.cheap.get_mut(i),
            None => self.shared_cheap.as_mut(),
        };
        let dear = dear_of.dear.map_or(self.shared_dear.as_ref(), |i| self.dear.get(i));
        Ok((cheap.ok_or_else(|| absent("activations"))?, dear.ok_or_else(|| absent("activations"))?))
    }

    /// A layer's norms, and where it keeps what lies between A and B.
    pub fn cheap_and_mids(&mut self, hold: Hold, layer: usize) -> Result<(&Cheap<O>, &mut Mids<O>)> {
        let cheap = hold.cheap.map_or(self.shared_cheap.as_ref(), |i| self.cheap.get(i));
        let mids = self.mids.get_mut(layer).ok_or_else(|| absent("adapter buffers"))?;
        Ok((cheap.ok_or_else(|| absent("activations"))?, mids))
    }

    /// As [`Kept::of`], for the backward of a layer, with what it keeps between A and B apart.
    pub fn of_backward(&mut self, hold: Hold, layer: usize) -> Result<(&Cheap<O>, &mut Dear<O>, &Mids<O>)> {
        let cheap = hold.cheap.map_or(self.shared_cheap.as_ref(), |i| self.cheap.get(i));
        let dear = match hold.dear {
            Some(i) => self.dear.get_mut(i),
            None => self.shared_dear.as_mut(),
        };
        let mids = self.mids.get(layer).ok_or_else(|| absent("adapter buffers"))?;
        Ok((cheap.ok_or_else(|| absent("activations"))?, dear.ok_or_else(|| absent("activations"))?, mids))
    }

    /// As [`Kept::of`], to be filled.
    pub fn of_mut(&mut self, hold: Hold) -> Result<(&mut Cheap<O>, &mut Dear<O>)> {
        let cheap = match hold.cheap {
            Some(i) => self.cheap.get_mut(i),
            None => self.shared_cheap.as_mut(),
        };
        let dear = match hold.dear {
            Some(i) => self.dear.get_mut(i),
            None => self.shared_dear.as_mut(),
        };
        Ok((cheap.ok_or_else(|| absent("activations"))?, dear.ok_or_else(|| absent("activations"))?))
    }
}

/// Layer inputs on the device at the same time where they wait outside: one in use, one on its way out or back, one being made.
const RING: usize = 3;

/// The residual stream at the input of every layer that has a backward, and after the last.
pub(crate) struct Streams<O: Ops> {
    /// The lowest layer with a backward. Layers below share its buffer.
    first: usize,
    /// One for each stream, or [`RING`] that take turns.
    device: Vec<O::Tensor>,
    /// Where streams wait from forward to backward, from [`Streams::first`] on; empty if they stay on the device.
    outside: Vec<O::Offloaded>,
}

impl<O: Ops> Streams<O> {
    fn new(make: &mut Maker<'_, O>, dims: &Dims, first: usize, offload: bool) -> Result<Self> {
        let count = dims.layers + 1 - first;
        let offload = offload && count > RING;
        let on_device = if offload { RING } else { count };
        let device = (0..on_device).map(|_| make.tensor(STREAM, dims.hidden)).collect::<Result<Vec<_>>>()?;
        let mut outside = Vec::new();
        if offload {
            for _ in 0..count - RING {
                let room =
                    make.ops.offloaded(make.rows, dims.hidden).at(|| format!("layer inputs outside: {} x {}", make.rows, dims.hidden))?;
                outside.push(room);
            }
        }
        Ok(Streams { first, device, outside })
    }

    /// How many buffers on the device streams take for a layout.
    pub fn on_device(layers: usize, first: usize, offload: bool) -> usize {
        let count = layers + 1 - first;
        if offload && count > RING { RING } else { count }
    }

    fn place(&self, layer: usize) -> usize {
        layer.saturating_sub(self.first) % self.device.len().max(1)
    }

    /// The input of a layer; `layer` = number of layers: what comes out of the last.
    pub fn get(&self, layer: usize) -> Result<&O::Tensor> {
        self.device.get(self.place(layer)).ok_or_else(|| absent("stream"))
    }

    /// As [`Streams::get`], to be filled: what took the place before has left it then.
    pub fn fill(&mut self, ops: &O, layer: usize) -> Result<&mut O::Tensor> {
        let place = self.place(layer);
        let index = layer.saturating_sub(self.first);
        // In the first round, what a forward without a backward has left: its last ones.
        let before = match index.checked_sub(RING) {
            Some(before) => before..before + 1,
            None => self.outside.len().saturating_sub(RING)..self.outside.len(),
        };
        for outside in self.outside.get(before).unwrap_or_default() {
            ops.settle(outside).at(|| format!("the input of layer {layer}"))?;
        }
        self.device.get_mut(place).ok_or_else(|| absent("stream"))
    }

    /// A layer's input is complete: it can be on its way out.
    pub fn filled(&mut self, ops: &O, n: usize, layer: usize) -> Result<()> {
        let place = self.place(layer);
        let index = layer.checked_sub(self.first);
        match (self.device.get(place), index.and_then(|i| self.outside.get_mut(i))) {
            (Some(from), Some(to)) => ops.offload(n, from, to).at(|| format!("the input of layer {layer}, on its way out")),
            _ => Ok(()),
        }
    }

    /// The backward of a layer begins: its input is there, and that of the layer below on its way.
    pub fn backward(&mut self, ops: &O, n: usize, layer: usize) -> Result<()> {
        let index = layer.saturating_sub(self.first);
        if let Some(outside) = self.outside.get(index) {
            ops.settle(outside).at(|| format!("the input of layer {layer}, back"))?;
        }
        // Those of the last layers have never left.
        match index.checked_sub(1) {
            Some(below) if below < self.outside.len() => self.bring(ops, n, layer - 1),
            _ => Ok(()),
        }
    }

    fn bring(&mut self, ops: &O, n: usize, layer: usize) -> Result<()> {
        let place = self.place(layer);
        match (self.device.get_mut(place), self.outside.get_mut(layer.saturating_sub(self.first))) {
            (Some(to), Some(from)) => ops.fetch(n, from, to).at(|| format!("the input of layer {layer}, on its way back")),
            _ => Ok(()),
        }
    }
}

/// All buffers of a training step.
pub(crate) struct Workspace<O: Ops> {
    /// Rows of every buffer.
    pub tokens: usize,
    pub layout: Layout,
    /// The residual stream.
    pub streams: Streams<O>,
    /// What the layers keep.
    pub kept: Kept<O>,
    pub hidden: O::Tensor,
    pub hidden_rstd: O::Stats,
    /// A sublayer's output in the forward, the gradient of its input in the backward.
    pub narrow: O::Tensor,
    /// The gradient of the residual stream, and of what lies between A and B of the projections whose output it is.
    pub dx: O::Tensor,
    pub dx_mid: O::Tensor,
    pub d_activated: O::Tensor,
    pub d_attended: O::Tensor,
    pub d_qk: O::Tensor,
    pub d_qkv: O::Tensor,
    pub d_qkv_mid: O::Tensor,
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
        let streams = Streams::new(make, dims, layout.first, layout.offload)?;
        let kept = Kept::new(make, dims, &layout)?;
        let a = dims.attention;
        let widest = layout.widths(|_| true).unwrap_or_default();
        let (dx, dx_mid) = make.with_mid(SCRATCH, dims.hidden, widest.o.max(widest.down))?;
        let (d_qkv, d_qkv_mid) = make.with_mid(SCRATCH, a.qkv_width(), widest.qkv)?;
        Ok(Workspace {
            tokens,
            streams,
            kept,
            hidden: make.tensor(SCRATCH, dims.hidden)?,
            hidden_rstd: make.stats(SCRATCH, 1)?,
            narrow: make.tensor(SCRATCH, dims.hidden)?,
            dx,
            dx_mid,
            d_activated: make.tensor(SCRATCH, dims.intermediate)?,
            d_attended: make.tensor(SCRATCH, a.q_width())?,
            d_qk: make.tensor(SCRATCH, a.qk_width())?,
            d_qkv,
            d_qkv_mid,
            layout,
            parts: std::mem::take(&mut make.parts),
        })
    }
}

/// A slot that the layout promised but that is not there: only a bug in this crate can cause it, and it must not become a panic.
pub(crate) fn absent(what: &'static str) -> EngineError {
    EngineError::Ops { context: "workspace".into(), source: OpsError::Device(format!("no {what}: this is a bug in trainer-engine")) }
}
