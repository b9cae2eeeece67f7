//! The memory of a run, computed before anything is allocated.

use trainer_kernels::adamw::{AdamWConfig, OptimizerState};
use trainer_kernels::ops::{Ops, ScratchNeed, WeightPlan};
use trainer_model::{AdapterConfig, ModelConfig};

use crate::adapter::sites;
use crate::error::{EngineError, Result};
use crate::forward::GENERATION;
use crate::generate::GenOptions;
use crate::model::count;
use crate::modules::{Dims, PROJECTIONS, Projection};
use crate::workspace::{KEPT, Layout, MidWidths, Parts, Recompute, SCRATCH, SHARED, STREAM, Streams};

/// What is to be held.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanOptions {
    /// The most tokens in a micro-batch.
    pub max_tokens: usize,
    /// Which layers are computed again in the backward.
    pub recompute: Recompute,
    /// Whether layer inputs wait outside of the device's memory from forward to backward.
    pub offload: bool,
    /// The optimizer; `None`: no training.
    pub optimizer: Option<AdamWConfig>,
    /// How frozen weights are held.
    pub weights: WeightPlan,
    /// Whether the embedding, if it is not the output head too, may lie in host memory.
    pub host_embedding: bool,
    /// Positions whose logits exist at the same time in the loss.
    pub loss_rows: usize,
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

/// What a run will hold, by part. Weights held [`WeightPlan::Packed`] are taken to be NF4 with double quantization; the workspace's parts are exact. What a backend
/// makes for itself (a chunk of logits, an unpacked weight) is counted as it says ([`Ops::scratch_bytes`]).
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
    let sites = adapter.map(|a| sites(a, &dims)).transpose()?;
    let widths = |layer: usize| sites.as_deref().map(|s| MidWidths::of(s, layer)).unwrap_or_default();
    let held = (0..dims.layers)
        .flat_map(|layer| groups(&dims, widths(layer)))
        .fold(0u64, |sum, (members, ranks)| sum.saturating_add(ops.group_bytes(&members, options.weights, ranks)));
    let dense = if options.weights == WeightPlan::Packed { left_dense(ops, config, &dims) } else { 0 };
    parts.insert("frozen projections", held.saturating_add(dense));
    let table = product(&[dims.vocab as u64, dims.hidden as u64, element])?;
    let embedding = if dims.tied {
        0
    } else if options.host_embedding {
        ops.lookup_table_bytes(dims.vocab, dims.hidden)
    } else {
        table
    };
    parts.insert("embedding and head", table.saturating_add(embedding));
    parts.insert("norms and biases", (other - tables) * 4);
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
            let layout = Layout::new(&dims, sites, &options.recompute, options.offload)?;
            workspace(ops, &dims, &layout, options.max_tokens, &mut parts)?;
        }
    }
    if let Some(generation) = options.generation {
        generation.check()?;
        let a = dims.attention;
        let cache =
            product(&[2, dims.layers as u64, generation.slots as u64, generation.cache_length as u64, a.kv_width() as u64, element])?;
        parts.insert("key/value cache", cache);
        let widest = (0..dims.layers).map(|layer| widths(layer).widest()).max().unwrap_or(0);
        let h = dims.hidden;
        let pair = |cols: usize| cols + ops.mid_columns(cols, widest);
        let pairs = pair(h) + pair(a.q_width()) + pair(dims.intermediate);
        let tensors = 2 * h + a.qkv_width() + a.qk_width() + 2 * dims.intermediate + pairs;
        let stats = 1 + a.heads + a.kv_heads + a.heads;
        let row = tensors as u64 * element + stats as u64 * 4;
        let last = product(&[generation.slots as u64, 2 * h as u64, element])?;
        parts.insert(GENERATION, product(&[generation.rows() as u64, row])?.saturating_add(last));
    }
    let largest = (0..dims.layers)
        .flat_map(|layer| groups(&dims, widths(layer)))
        .map(|(members, ranks)| (members.iter().map(|m| m.0).sum::<usize>(), members.first().map_or(0, |m| m.1), ranks))
        .max_by_key(|(out, inner, ranks)| (out + ranks).saturating_mul(inner + ranks));
    let mut kinds: Vec<(Vec<(usize, usize)>, usize)> = Vec::new();
    for (layer, modules) in dims.modules().chunks_exact(PROJECTIONS).enumerate() {
        for range in [0..3, 3..4, 4..6, 6..7] {
            let rank = |i: usize| sites.as_ref().and_then(|s| s.get(layer * PROJECTIONS + i).copied().flatten()).map_or(0, |s| s.rank);
            let members: Vec<(usize, usize)> = range.clone().filter_map(|i| Some((modules.get(i)?.out_features, rank(i)))).collect();
            let kind = (members, modules.get(range.start).map_or(0, |m| m.in_features));
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
    }
    let need = ScratchNeed {
        groups: kinds,
        tokens: options.max_tokens.max(options.generation.map_or(0, |g| g.rows())),
        largest_group: largest.unwrap_or_default(),
        plan: options.weights,
        attention: dims.attention,
        vocab: dims.vocab,
        hidden: dims.hidden,
        loss_rows: options.loss_rows,
        training: options.optimizer.is_some(),
        dropout: adapter.is_some_and(|a| a.dropout > 0.0),
    };
    for (part, bytes) in ops.scratch_bytes(&need) {
        *parts.entry(part).or_default() += bytes;
    }
    Ok(MemoryPlan { parts })
}

/// What projections take beyond packed ones that a checkpoint in 4 bits has left in 16 (bitsandbytes' `llm_int8_skip_modules`, as dynamic quantization
/// writes it): they stay so.
fn left_dense<O: Ops>(ops: &O, config: &ModelConfig, dims: &Dims) -> u64 {
    let Some(quantization) = &config.quantization else { return 0 };
    let skipped = dims.modules().into_iter().filter(|m| quantization.skips(&m.name));
    skipped.fold(0, |sum, m| {
        let dense = (m.out_features as u64).saturating_mul(m.in_features as u64).saturating_mul(ops.element_bytes() as u64);
        sum.saturating_add(dense.saturating_sub(ops.group_bytes(&[(m.out_features, m.in_features)], WeightPlan::Packed, 0)))
    })
}

/// Whether a part is as many bytes for each token of a micro-batch.
pub(crate) fn grows_with_tokens(part: &str) -> bool {
    [KEPT, SHARED, STREAM, SCRATCH].contains(&part)
}

/// The members of a layer's four groups (output and input features), and the widths of what lies between A and B.
fn groups(dims: &Dims, mids: MidWidths) -> [(Vec<(usize, usize)>, usize); 4] {
    let members = |projections: &[Projection]| projections.iter().map(|p| dims.features(*p)).collect();
    [
        (members(&[Projection::Q, Projection::K, Projection::V]), mids.qkv),
        (members(&[Projection::O]), mids.o),
        (members(&[Projection::Gate, Projection::Up]), mids.gate_up),
        (members(&[Projection::Down]), mids.down),
    ]
}

fn workspace<O: Ops>(ops: &O, dims: &Dims, layout: &Layout, tokens: usize, parts: &mut Parts) -> Result<()> {
    let a = dims.attention;
    let (h, i, qkv, qk, q) = (dims.hidden, dims.intermediate, a.qkv_width(), a.qk_width(), a.q_width());
    let (tokens, element) = (tokens as u64, ops.element_bytes() as u64);
    let pair = |cols: usize, ranks: usize| cols + ops.mid_columns(cols, ranks);
    // Bytes of a token: tensors in the compute type, statistics in f32.
    let cheap = |m: &MidWidths| {
        (pair(h, m.qkv) + qk + pair(h, m.gate_up) + pair(i, m.down)) as u64 * element + (2 + a.heads + a.kv_heads) as u64 * 4
    };
    let dear = |m: &MidWidths| (qkv + pair(q, m.o) + h + pair(2 * i, m.gate_up)) as u64 * element + a.heads as u64 * 4;
    let mut kept = 0;
    for (layer, (hold, m)) in layout.holds.iter().zip(&layout.mids).enumerate() {
        let apart = layout.apart(layer);
        kept += hold.cheap.map_or(0, |_| cheap(m)) + hold.dear.map_or(0, |_| dear(m));
        kept += (apart.qkv + apart.gate_up + apart.down) as u64 * element;
    }
    parts.insert(KEPT, product(&[tokens, kept])?);
    let shared_cheap = layout.widths(|hold| hold.cheap.is_none()).map_or(0, |m| cheap(&m));
    let shared = shared_cheap + layout.widths(|hold| hold.dear.is_none()).map_or(0, |m| dear(&m));
    if shared > 0 {
        parts.insert(SHARED, product(&[tokens, shared])?);
    }
    let streams = Streams::<O>::on_device(dims.layers, layout.first, layout.offload) as u64;
    parts.insert(STREAM, product(&[tokens, streams, h as u64, element])?);
    let widest = layout.widths(|_| true).unwrap_or_default();
    let pairs = pair(h, widest.o.max(widest.down)) + pair(qkv, widest.qkv);
    let scratch = (2 * h + pairs + i + q + qk) as u64 * element + 4;
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

#[cfg(test)]
mod tests {
    use super::*;
    use trainer_kernels::cpu::{Cpu, CpuOptions};
    use trainer_model::QuantizationConfig;

    #[test]
    fn layers_that_a_checkpoint_left_dense_count_as_such() {
        let mut config = crate::synthetic::shape("0.6b").unwrap();
        let ops = Cpu::new(CpuOptions { threads: 1 }).unwrap();
        let projections = |config: &ModelConfig, weights| {
            let options = PlanOptions {
                max_tokens: 64,
                recompute: Recompute::None,
                offload: false,
                optimizer: None,
                weights,
                host_embedding: false,
                loss_rows: 64,
                generation: None,
            };
            plan(&ops, config, None, &options).unwrap().parts["frozen projections"]
        };
        let quantized = |skip: &[&str]| {
            let skip_modules = Some(skip.iter().map(|s| (*s).to_owned()).collect());
            Some(QuantizationConfig { double_quant: true, compute_dtype: None, skip_modules })
        };
        config.quantization = quantized(&["lm_head"]);
        let all = projections(&config, WeightPlan::Packed);
        config.quantization = quantized(&["lm_head", "model.layers.0.mlp", "self_attn.o_proj"]);
        let some = projections(&config, WeightPlan::Packed);
        let (h, i, layers) = (config.hidden_size, config.intermediate_size, config.num_hidden_layers);
        let values = (3 * h * i + layers * h * config.num_attention_heads * config.head_dim) as f64;
        // In place of 4 bits and an eighth of a bit for scales, the size of a value.
        let more = values * (ops.element_bytes() as f64 - 4.127 / 8.0);
        assert!((((some - all) as f64) / more - 1.0).abs() < 0.002, "{some} {all} {more}");
        assert_eq!(projections(&config, WeightPlan::Unpacked), {
            config.quantization = None;
            projections(&config, WeightPlan::Unpacked)
        });
    }
}
