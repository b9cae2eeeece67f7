//! How a run uses its memory: what the recipe leaves open is decided here, once, for training, planning and benchmarks alike.

use trainer_config::{Device, DevicePlan};
use trainer_engine::{LOSS_ROWS, MemoryPlan, PlanOptions, Recompute, plan};
use trainer_kernels::adamw::AdamWConfig;
use trainer_kernels::ops::{Ops, WeightPlan};
use trainer_model::{AdapterConfig, ModelConfig};

use crate::device::{DeviceInfo, DeviceKind};
use crate::error::{RuntimeError, gib};

/// What is to be planned.
#[derive(Clone, Debug)]
pub struct PlanRequest<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// The adapter that is trained.
    pub adapter: &'a AdapterConfig,
    /// The optimizer.
    pub optimizer: AdamWConfig,
    /// Tokens of the longest sample, which every micro-batch must have room for.
    pub longest: usize,
    /// Tokens that shorter samples are packed to where memory allows.
    pub packed: usize,
    /// What the recipe fixes about recomputation.
    pub recompute: Option<Recompute>,
    /// How memory is traded for speed.
    pub goal: DevicePlan,
    /// Bytes that may be used.
    pub limit: Option<u64>,
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// How frozen weights are held.
    pub weights: WeightPlan,
    /// Which layers are computed again.
    pub recompute: Recompute,
    /// The most tokens in a micro-batch.
    pub max_tokens: usize,
    /// What it holds, by part.
    pub memory: MemoryPlan,
    /// Bytes that may be used.
    pub limit: Option<u64>,
}

impl Choice {
    /// How the frozen weights are held, in words: `unpacked to f32`.
    pub fn weights_text<O: Ops>(&self, ops: &O) -> &'static str {
        match (self.weights, ops.element_bytes()) {
            (WeightPlan::Unpacked, 4) => "unpacked to f32",
            (WeightPlan::Unpacked, _) => "unpacked to bf16",
            (WeightPlan::Packed, _) => "unpacked for each use",
        }
    }
}

/// Bytes that a recipe's settings and the device leave to a plan; none where there is no limit.
pub fn memory_limit(device: &Device, info: &DeviceInfo) -> Option<u64> {
    match (device.memory_limit, info.kind) {
        (gib, _) if gib > 0.0 => Some((gib * f64::from(1 << 30)) as u64),
        (_, DeviceKind::Cuda) => info.memory,
        // What else runs on the machine is not ours to know, and the system can swap.
        (_, DeviceKind::Cpu) => None,
    }
}

/// Chooses. The candidates go from the fastest to the one that needs the least memory.
///
/// # Errors
/// [`RuntimeError::DoesNotFit`] with the setting that would make it fit; sizes that make no sense.
pub fn choose_plan<O: Ops>(ops: &O, request: &PlanRequest<'_>) -> Result<Choice, RuntimeError> {
    let roomy = request.longest.max(request.packed);
    let mut candidates = vec![
        (WeightPlan::Unpacked, Recompute::None, roomy),
        (WeightPlan::Packed, Recompute::None, roomy),
        (WeightPlan::Unpacked, Recompute::All, roomy),
        (WeightPlan::Packed, Recompute::All, roomy),
    ];
    if request.longest < roomy {
        candidates.extend([Recompute::None, Recompute::All].map(|recompute| (WeightPlan::Packed, recompute, request.longest)));
    }
    candidates.retain(|c| request.recompute.as_ref().is_none_or(|fixed| *fixed == c.1));
    let candidates = match request.goal {
        DevicePlan::Auto => candidates.as_slice(),
        DevicePlan::Fastest => candidates.get(..1).unwrap_or_default(),
        DevicePlan::Smallest => candidates.get(candidates.len().saturating_sub(1)..).unwrap_or_default(),
    };
    let mut least = u64::MAX;
    for (weights, recompute, max_tokens) in candidates {
        let memory = with(ops, request, *weights, recompute, *max_tokens)?;
        if request.limit.is_none_or(|limit| memory.total() <= limit) {
            let (weights, max_tokens) = (*weights, *max_tokens);
            return Ok(Choice { weights, recompute: recompute.clone(), max_tokens, memory, limit: request.limit });
        }
        least = least.min(memory.total());
    }
    let limit = request.limit.unwrap_or(0);
    Err(RuntimeError::DoesNotFit { need: least, limit, help: remedy(ops, request, limit)? })
}

fn with<O: Ops>(
    ops: &O,
    request: &PlanRequest<'_>,
    weights: WeightPlan,
    recompute: &Recompute,
    max_tokens: usize,
) -> Result<MemoryPlan, RuntimeError> {
    let options = PlanOptions {
        max_tokens,
        recompute: recompute.clone(),
        optimizer: Some(request.optimizer),
        weights,
        loss_rows: LOSS_ROWS,
        generation: None,
    };
    Ok(plan(ops, request.config, Some(request.adapter), &options)?)
}

/// The setting that would make a run fit.
fn remedy<O: Ops>(ops: &O, request: &PlanRequest<'_>, limit: u64) -> Result<String, RuntimeError> {
    let total = |tokens: usize| with(ops, request, WeightPlan::Packed, &Recompute::All, tokens).map(|m| m.total());
    let smallest = total(request.longest)?;
    if smallest <= limit {
        let recompute =
            if request.recompute.as_ref().is_some_and(|r| *r != Recompute::All) { " and train.recompute = \"auto\"" } else { "" };
        return Ok(format!("device.plan = \"auto\"{recompute} makes it fit ({} at the least)", gib(smallest)));
    }
    // Memory grows with the tokens, so halving finds the longest that fits, to within a factor of two.
    let mut tokens = request.longest;
    while tokens > 16 {
        tokens /= 2;
        if total(tokens)? <= limit {
            return Ok(format!(
                "data.max_seq_length = {tokens} with device.plan = \"smallest\" makes it fit; the smallest plan for micro-batches of {} tokens needs {}",
                request.longest,
                gib(smallest)
            ));
        }
    }
    Ok(format!(
        "no setting makes this model fit; it needs at least {}: raise device.memory_limit, or take a smaller model",
        gib(total(16)?)
    ))
}

#[cfg(test)]
#[path = "planning_tests.rs"]
mod tests;
