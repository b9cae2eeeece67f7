//! The memory of a run, computed before anything is allocated.

use trainer_kernels::adamw::{AdamWConfig, OptimizerState};
use trainer_kernels::ops::{Ops, WeightPlan};
use trainer_model::{AdapterConfig, ModelConfig};

use crate::adapter::sites;
use crate::error::{EngineError, Result};
use crate::forward::GENERATION;
use crate::generate::GenOptions;
use crate::model::count;
use crate::modules::Dims;
use crate::workspace::{Hold, KEPT, Layout, MidWidths, Parts, Recompute, SCRATCH, SHARED, STREAM};

/// What is to be held.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanOptions {
    /// The most tokens in a micro-batch.
    pub max_tokens: usize,
    /// Which layers are computed again in the backward.
    pub recompute: Recompute,
    /// The optimizer; `None`: no training.
    pub optimizer: Option<AdamWConfig>,
    /// How frozen weights are held.
    pub weights: WeightPlan,
    /// Generation beside it, if any.
    pub generation: Option<GenOptions>,
}

/// Bytes by what they are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Name of the part and its bytes.
    pub parts: Parts,
}

impl MemoryPlan {
    /// All parts together.
    pub fn total(&self) -> u64 {
        self.parts.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// One part; 0 if there is none of that name.
    pub fn part(&self, name: &str) -> u64 {
        self.parts.get(name).copied().unwrap_or(0)
    }
}

/// What a run will hold, by part. Weights held [`WeightPlan::Packed`] are taken to be NF4 with double quantization; the workspace's parts are exact. The
/// backend's own scratch (a chunk of logits, an unpacked weight) is not counted.
///
/// # Errors
/// Settings that could not be run, or sizes that overflow.
pub fn plan<O: Ops>(ops: &O, config: &ModelConfig, adapter: Option<&AdapterConfig>, options: &PlanOptions) -> Result<MemoryPlan> {
    let dims = Dims::new(config)?;
    let element = ops.element_bytes() as u64;
    let mut parts = Parts::new();
    let linear: u64 = dims.modules().iter().map(|m| m.out_features as u64 * m.in_features as u64).sum();
    let other = count(&dims) - linear;
    let tables = if dims.tied { 1 } else { 2 } * dims.vocab as u64 * dims.hidden as u64;
    let held = match options.weights {
        WeightPlan::Unpacked => product(&[linear, element])?,
        WeightPlan::Packed => linear.div_ceil(2) + linear.div_ceil(64) + linear.div_ceil(64 * 256) * 4,
    };
    parts.insert("frozen projections", held);
    parts.insert("embedding and head", product(&[tables, element])?);
    parts.insert("norms and biases", (other - tables) * 4);
    let sites = adapter.map(|a| sites(a, &dims)).transpose()?;
    if let Some(sites) = &sites {
        let modules = dims.modules();
        let trained: u64 = modules.iter().zip(sites).filter_map(|(m, s)| s.map(|s| s.parameters(m))).sum();
        parts.insert("adapter", trained * 4);
        if let Some(optimizer) = options.optimizer {
            parts.insert("adapter gradients", trained * 4);
            let lengths = modules
                .iter()
                .zip(sites)
                .filter_map(|(m, s)| s.map(|s| [s.rank * m.in_features, s.rank * m.out_features, if s.bias { m.out_features } else { 0 }]));
            parts.insert("optimizer states", lengths.flatten().filter(|len| *len > 0).map(|len| state_bytes(len, &optimizer)).sum());
            let layout = Layout::new(&dims, sites, &options.recompute)?;
            workspace(&dims, &layout, options.max_tokens, element, &mut parts)?;
        }
    }
    if let Some(generation) = options.generation {
        generation.check()?;
        let a = dims.attention;
        let cache =
            product(&[2, dims.layers as u64, generation.slots as u64, generation.cache_length as u64, a.kv_width() as u64, element])?;
        parts.insert("key/value cache", cache);
        let widest = sites.as_ref().map_or(0, |s| (0..dims.layers).map(|l| MidWidths::of(s, l).widest()).max().unwrap_or(0));
        let h = dims.hidden;
        let tensors = 3 * h + a.qkv_width() + a.qk_width() + a.q_width() + 3 * dims.intermediate + widest;
        let stats = 1 + a.heads + a.kv_heads + a.heads;
        let row = tensors as u64 * element + stats as u64 * 4;
        let last = product(&[generation.slots as u64, 2 * h as u64, element])?;
        parts.insert(GENERATION, product(&[generation.rows() as u64, row])?.saturating_add(last));
    }
    Ok(MemoryPlan { parts })
}

fn workspace(dims: &Dims, layout: &Layout, tokens: usize, element: u64, parts: &mut Parts) -> Result<()> {
    let a = dims.attention;
    let (h, i, qkv, qk, q) = (dims.hidden, dims.intermediate, a.qkv_width(), a.qk_width(), a.q_width());
    let tokens = tokens as u64;
    // Per token of a layer: norms and x2, projections, attention, MLP, buffers between A and B; then the statistics.
    let layer = |m: &MidWidths| {
        let tensors = 3 * h + qkv + qk + q + 3 * i + m.qkv + m.o + m.gate_up;
        tensors as u64 * element + (2 + a.heads + a.kv_heads + a.heads) as u64 * 4
    };
    let kept: u64 = layout.holds.iter().zip(&layout.mids).filter(|(hold, _)| matches!(hold, Hold::Kept(_))).map(|(_, m)| layer(m)).sum();
    let down: usize = layout.mids.iter().map(|m| m.down).sum();
    parts.insert(KEPT, product(&[tokens, kept + down as u64 * element])?);
    if layout.shares() {
        parts.insert(SHARED, product(&[tokens, layer(&layout.shared_mids())])?);
    }
    let streams = (dims.layers + 1 - layout.first) as u64;
    parts.insert(STREAM, product(&[tokens, streams, h as u64, element])?);
    let widest = layout.mids.iter().map(|m| m.widest()).max().unwrap_or(0);
    let scratch = (3 * h + 3 * i + q + qk + qkv + widest) as u64 * element + 4;
    parts.insert(SCRATCH, product(&[tokens, scratch])?);
    Ok(())
}

/// Bytes of the optimizer's state of one tensor.
fn state_bytes(len: usize, config: &AdamWConfig) -> u64 {
    OptimizerState::new(len, config).bytes() as u64
}

fn product(factors: &[u64]) -> Result<u64> {
    factors.iter().try_fold(1u64, |product, f| product.checked_mul(*f)).ok_or(EngineError::Overflow("the memory plan"))
}
