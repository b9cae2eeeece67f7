//! How a run uses its memory: what the recipe leaves open is decided here, once, for training, planning and benchmarks alike.

use trainer_config::{Device, DevicePlan};
use trainer_engine::planner::{self, Goal};
use trainer_engine::{EngineError, LOSS_ROWS, MemoryPlan, PlanOptions, Recompute};
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
    /// What layers keep from forward to backward.
    pub recompute: Recompute,
    /// Positions whose logits exist at the same time in the loss.
    pub loss_rows: usize,
    /// Whether layer inputs and the embedding lie in host memory.
    pub offload: bool,
    /// The most tokens in a micro-batch.
    pub max_tokens: usize,
    /// What it holds, by part.
    pub memory: MemoryPlan,
    /// Bytes that may be used.
    pub limit: Option<u64>,
    /// Predicted tokens per second of full micro-batches, where the backend predicts.
    pub tokens_per_second: Option<f64>,
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

/// Chooses: a packed micro-batch where memory allows, else one that the longest sample fills; see [`trainer_engine::planner`].
///
/// # Errors
/// [`RuntimeError::DoesNotFit`] with the setting that would make it fit; sizes that make no sense.
pub fn choose_plan<O: Ops>(ops: &O, request: &PlanRequest<'_>) -> Result<Choice, RuntimeError> {
    let goal = match request.goal {
        DevicePlan::Auto => Goal::Auto,
        DevicePlan::Fastest => Goal::Fastest,
        DevicePlan::Smallest => Goal::Smallest,
    };
    let roomy = request.longest.max(request.packed);
    let sizes = match goal {
        Goal::Smallest => vec![request.longest],
        _ if roomy > request.longest => vec![roomy, request.longest],
        _ => vec![roomy],
    };
    let (mut least, mut budget) = (u64::MAX, 0);
    for max_tokens in sizes {
        let options = options(request, max_tokens);
        let fixed = request.recompute.as_ref();
        match planner::choose(ops, request.config, request.adapter, &options, fixed, request.longest, goal, request.limit) {
            Ok(choice) => {
                return Ok(Choice {
                    weights: choice.weights,
                    recompute: choice.recompute,
                    loss_rows: choice.loss_rows,
                    offload: choice.offload,
                    max_tokens,
                    memory: choice.memory,
                    limit: request.limit,
                    tokens_per_second: choice.seconds.map(|s| max_tokens as f64 / s),
                });
            }
            Err(EngineError::DoesNotFit { need, budget: had, .. }) => (least, budget) = (least.min(need), had),
            Err(e) => return Err(e.into()),
        }
    }
    Err(RuntimeError::DoesNotFit { need: least, limit: budget, help: remedy(ops, request, budget)? })
}

fn options(request: &PlanRequest<'_>, max_tokens: usize) -> PlanOptions {
    PlanOptions {
        max_tokens,
        recompute: Recompute::None,
        offload: false,
        optimizer: Some(request.optimizer),
        weights: WeightPlan::Unpacked,
        host_embedding: false,
        loss_rows: LOSS_ROWS,
        generation: None,
    }
}

/// Bytes of the smallest plan for micro-batches of so many tokens.
fn smallest<O: Ops>(ops: &O, request: &PlanRequest<'_>, tokens: usize) -> Result<u64, RuntimeError> {
    let options = options(request, tokens);
    let choice = planner::choose(ops, request.config, request.adapter, &options, None, tokens, Goal::Smallest, Some(u64::MAX))?;
    Ok(choice.memory.total())
}

/// The setting that would make a run fit.
fn remedy<O: Ops>(ops: &O, request: &PlanRequest<'_>, limit: u64) -> Result<String, RuntimeError> {
    let total = |tokens: usize| smallest(ops, request, tokens);
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
