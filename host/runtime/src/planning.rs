//! How a run uses its memory: what the recipe leaves open is decided here, once, for training, planning and benchmarks alike.

use serde::{Deserialize, Serialize};
use trainer_config::DevicePlan;
use trainer_engine::planner::{Choice, Goal, again, choose};
use trainer_engine::{EngineError, GenOptions, Keep, LOSS_ROWS, PlanOptions, Recompute};
use trainer_kernels::adamw::AdamWConfig;
use trainer_kernels::ops::{Ops, WeightPlan};
use trainer_model::{AdapterConfig, ModelConfig};

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
    /// The typical length of a sample, for the prediction of speed.
    pub sequence: usize,
    /// What the recipe fixes about recomputation.
    pub recompute: Option<Recompute>,
    /// How memory is traded for speed.
    pub goal: DevicePlan,
    /// Bytes that may be used, in place of what the device has.
    pub limit: Option<u64>,
    /// Evaluation while the training holds its memory.
    pub evaluation: Option<EvaluationSizes>,
}

/// What an evaluation during training needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvaluationSizes {
    /// Answers at once, if there is room; never changes a result.
    pub slots: usize,
    /// Tokens of a sequence, prompt included, that the cache is planned for. Where sequences are longer, fewer are generated at once.
    pub length: usize,
    /// The most prompt tokens in one forward pass.
    pub prefill_tokens: usize,
    /// Whether the adapter is folded into a second copy of the weights.
    pub merged: bool,
}

/// The key/value cache of an evaluation during training gets at most this share of the memory: training needs it all the time.
const CACHE_SHARE: u64 = 8;
/// The name of the copy of the weights that an adapter is folded into.
const MERGED: &str = "merged weights (evaluation)";

impl PlanRequest<'_> {
    /// The generator of an evaluation during training, as large as there is room for.
    fn generation<O: Ops>(&self, ops: &O) -> Option<GenOptions> {
        let sizes = self.evaluation?;
        let kv_width = self.config.num_key_value_heads.saturating_mul(self.config.head_dim) as u64;
        let token = (2 * self.config.num_hidden_layers as u64).saturating_mul(kv_width).saturating_mul(ops.element_bytes() as u64);
        let room = self.limit.or_else(|| ops.memory_available()).map_or(u64::MAX, |bytes| bytes / CACHE_SHARE);
        let length = sizes.length.min(self.config.max_position_embeddings).max(1);
        let fitting = room / token.saturating_mul(length as u64).max(1);
        let slots = sizes.slots.min(usize::try_from(fitting).unwrap_or(usize::MAX)).max(1);
        Some(GenOptions { slots, cache_length: length, prefill_tokens: sizes.prefill_tokens })
    }

    /// Bytes of the weights that an adapter is folded into.
    fn merged_bytes<O: Ops>(&self, ops: &O) -> u64 {
        let merged = self.evaluation.is_some_and(|e| e.merged);
        if merged { self.config.parameters().saturating_mul(ops.element_bytes() as u64) } else { 0 }
    }

    /// Counts the folded weights in a choice that was made without them.
    fn count_merged<O: Ops>(&self, ops: &O, choice: &mut Choice) {
        let bytes = self.merged_bytes(ops);
        if bytes > 0 {
            choice.memory.parts.insert(MERGED, bytes);
        }
    }
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// How weights, activations and the loss are held, and what that takes.
    pub choice: Choice,
    /// The most tokens in a micro-batch.
    pub max_tokens: usize,
    /// Tokens that samples are packed to.
    pub packed: usize,
    /// Bytes that may be used; none where there is no limit.
    pub limit: Option<u64>,
    /// The generator of an evaluation during training, where there is one.
    pub generation: Option<GenOptions>,
}

/// All that was chosen, to choose it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanChoice {
    /// The most tokens in a micro-batch.
    pub max_tokens: usize,
    /// Tokens that samples are packed to.
    pub packed: usize,
    /// Whether frozen weights are unpacked for each use.
    pub packed_weights: bool,
    /// What each layer keeps.
    pub keep: Vec<Keep>,
    /// Whether layer inputs wait outside of the device's memory, and the embedding lies there.
    pub offload: bool,
    /// Positions whose logits exist at the same time in the loss.
    pub loss_rows: usize,
}

impl Planned {
    /// What is needed to plan the same again.
    pub fn choice(&self, layers: usize) -> PlanChoice {
        PlanChoice {
            max_tokens: self.max_tokens,
            packed: self.packed,
            packed_weights: self.choice.weights == WeightPlan::Packed,
            keep: self.keeps(layers),
            offload: self.choice.offload,
            loss_rows: self.choice.loss_rows,
        }
    }

    /// What each layer keeps.
    pub fn keeps(&self, layers: usize) -> Vec<Keep> {
        (0..layers).map(|layer| self.choice.recompute.keep(layer)).collect()
    }

    /// How the frozen weights are held, in words: `unpacked to f32`.
    pub fn weights_text<O: Ops>(&self, ops: &O) -> &'static str {
        match (self.choice.weights, ops.element_bytes()) {
            (WeightPlan::Unpacked, 4) => "unpacked to f32",
            (WeightPlan::Unpacked, _) if ops.describe().contains("fp8") => "unpacked to fp8",
            (WeightPlan::Unpacked, _) => "unpacked to bf16",
            (WeightPlan::Packed, _) => "unpacked for each use",
        }
    }

    /// Predicted training speed, where the backend knows its rates.
    pub fn tokens_per_second(&self) -> Option<f64> {
        self.choice.seconds.map(|s| self.max_tokens as f64 / s.max(1e-12))
    }
}

/// Chooses: with room for packed micro-batches if that fits, else for the longest sample alone.
///
/// # Errors
/// [`RuntimeError::DoesNotFit`] with the setting that would make it fit; sizes that make no sense.
pub fn choose_plan<O: Ops>(ops: &O, request: &PlanRequest<'_>) -> Result<Planned, RuntimeError> {
    let roomy = request.longest.max(request.packed);
    let sizes = match request.goal {
        DevicePlan::Smallest => vec![request.longest],
        _ if roomy > request.longest => vec![roomy, request.longest],
        _ => vec![roomy],
    };
    let mut refused = None;
    for max_tokens in sizes {
        match with_tokens(ops, request, max_tokens) {
            Ok(mut choice) => {
                let limit = request.limit.or_else(|| ops.memory_available());
                request.count_merged(ops, &mut choice);
                return Ok(Planned {
                    choice,
                    max_tokens,
                    packed: request.packed.min(max_tokens),
                    limit,
                    generation: request.generation(ops),
                });
            }
            Err(e @ EngineError::DoesNotFit { .. }) => refused = Some(e),
            Err(e) => return Err(e.into()),
        }
    }
    match refused {
        Some(EngineError::DoesNotFit { need, budget, possible, .. }) => {
            let merged = request.merged_bytes(ops);
            let (need, limit) = (need.saturating_add(merged), budget.saturating_add(merged));
            Err(RuntimeError::DoesNotFit { need, limit, help: remedy(request, need, possible) })
        }
        Some(e) => Err(e.into()),
        None => Err(EngineError::Overflow("the plan").into()),
    }
}

/// The plan that was chosen before, whatever the device would be given now.
///
/// # Errors
/// [`RuntimeError::DoesNotFit`] if the device has not got the memory any more; sizes that make no sense.
pub fn plan_again<O: Ops>(ops: &O, request: &PlanRequest<'_>, before: &PlanChoice) -> Result<Planned, RuntimeError> {
    let options = PlanOptions {
        max_tokens: before.max_tokens,
        recompute: Recompute::Each(before.keep.clone()),
        offload: before.offload,
        optimizer: Some(request.optimizer),
        weights: if before.packed_weights { WeightPlan::Packed } else { WeightPlan::Unpacked },
        host_embedding: before.offload,
        loss_rows: before.loss_rows,
        generation: request.generation(ops),
    };
    let sequence = request.sequence.min(before.max_tokens);
    let merged = request.merged_bytes(ops);
    match again(ops, request.config, request.adapter, &options, sequence, request.limit.map(|l| l.saturating_sub(merged))) {
        Ok(mut choice) => {
            let limit = request.limit.or_else(|| ops.memory_available());
            request.count_merged(ops, &mut choice);
            Ok(Planned { choice, max_tokens: before.max_tokens, packed: before.packed, limit, generation: options.generation })
        }
        Err(EngineError::DoesNotFit { need, budget, .. }) => {
            let (need, budget) = (need.saturating_add(merged), budget.saturating_add(merged));
            let help = "the run was begun with a plan that takes this much; free the memory, or raise device.memory_limit".to_owned();
            Err(RuntimeError::DoesNotFit { need, limit: budget, help })
        }
        Err(e) => Err(e.into()),
    }
}

fn with_tokens<O: Ops>(ops: &O, request: &PlanRequest<'_>, max_tokens: usize) -> Result<Choice, EngineError> {
    let options = PlanOptions {
        max_tokens,
        recompute: Recompute::None,
        offload: false,
        optimizer: Some(request.optimizer),
        weights: WeightPlan::Unpacked,
        host_embedding: false,
        loss_rows: LOSS_ROWS,
        generation: request.generation(ops),
    };
    let goal = match request.goal {
        DevicePlan::Auto => Goal::Auto,
        DevicePlan::Fastest => Goal::Fastest,
        DevicePlan::Smallest => Goal::Smallest,
    };
    let sequence = request.sequence.min(max_tokens);
    let fixed = request.recompute.as_ref();
    let limit = request.limit.map(|l| l.saturating_sub(request.merged_bytes(ops)));
    choose(ops, request.config, request.adapter, &options, fixed, sequence, goal, limit)
}

/// The setting that would make a run fit.
fn remedy(request: &PlanRequest<'_>, need: u64, possible: u64) -> String {
    if request.recompute.is_some() {
        return "train.recompute = \"auto\" leaves more to choose from".to_owned();
    }
    // Whole multiples read better, and the estimate of tokens that fit is no more exact than that.
    match possible / 64 * 64 {
        0 => format!("even the smallest plan needs {}; raise device.memory_limit, or take a smaller model or rank", gib(need)),
        tokens => format!("data.max_seq_length = {tokens} makes it fit"),
    }
}

/// How weights are held for generation alone: unpacked if the device has room for that, else as they are stored.
pub fn inference_weights<O: Ops>(ops: &O, config: &ModelConfig) -> WeightPlan {
    let parameters = config.parameters().saturating_mul(ops.element_bytes() as u64);
    // As much again is left for the cache, activations and other programs.
    match ops.memory_available() {
        Some(bytes) if parameters > bytes / 2 => WeightPlan::Packed,
        _ => WeightPlan::Unpacked,
    }
}

#[cfg(test)]
#[path = "planning_tests.rs"]
mod tests;
