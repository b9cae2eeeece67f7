//! What follows from a recipe: sizes and settings of the run's parts, and the memory plan.

use std::sync::Arc;

use trainer_config::{Length, Optimizer, Recipe, Recompute as RecomputeSetting};
use trainer_data::Source;
use trainer_engine::Recompute;
use trainer_eval::{PREFILL_TOKENS, calls_tools};
use trainer_kernels::adamw::{AdamWConfig, StateBits};
use trainer_kernels::ops::Ops;
use trainer_model::{AdapterBias, AdapterConfig, ModelConfig};
use trainer_plugin_host::mixing::{MixerSetup, Source as MixSource};
use trainer_runtime::{
    DeviceInfo, DeviceKind, EvaluationSizes, PlanChoice, PlanRequest, Planned, choose_plan, limit_in_bytes, model_texts, plan_again,
};

use crate::error::TrainError;

/// Tokens that samples are packed to on the CPU where the recipe packs: enough rows for the matrix kernels to be efficient, few enough to stay
/// in cache.
const PACKED_TOKENS: usize = 2048;
/// The same on a card, at the least: what the longest sample needs is there for packing too.
const PACKED_TOKENS_ON_CARD: usize = 4096;
/// Tokens of a prompt that the cache of an evaluation during training is planned for; where prompts are longer, fewer are answered at once.
const PROMPT_TOKENS: usize = 256;
pub(super) fn mixer_setup(recipe: &Recipe, sources: &[Arc<Source>]) -> MixerSetup {
    MixerSetup {
        settings: serde_json::Value::Object(recipe.settings_of(&recipe.mix.plugin, &recipe.mix.settings)),
        sources: sources
            .iter()
            .map(|s| MixSource { name: s.name().to_owned(), length: Some(s.mix_length()), random_access: s.random_access() })
            .collect(),
        seed: recipe.train.seed,
        feedback_lag: recipe.mix.feedback_lag,
    }
}

pub(super) fn steps(recipe: &Recipe, epoch: Option<u64>) -> Result<u64, TrainError> {
    match (recipe.length(), epoch) {
        (Length::Steps(n), _) => Ok(n),
        (Length::Epochs(epochs), Some(draws)) => {
            let samples = (epochs * draws as f64).ceil();
            Ok(((samples / recipe.samples_per_step().max(1) as f64).ceil() as u64).max(1))
        }
        (Length::Epochs(epochs), None) => Err(TrainError::NoEpoch { epochs, mixer: recipe.mix.plugin.to_string() }),
    }
}

pub(super) fn adapter_config(recipe: &Recipe) -> AdapterConfig {
    let a = &recipe.adapter;
    let mut config = AdapterConfig::default();
    config.r = a.r as usize;
    config.alpha = a.alpha;
    config.dropout = a.dropout;
    config.rslora = a.rslora;
    config.bias = match a.bias {
        trainer_config::Bias::None => AdapterBias::None,
        trainer_config::Bias::All => AdapterBias::All,
        trainer_config::Bias::LoraOnly => AdapterBias::LoraOnly,
    };
    config.target_modules = a.targets.iter().map(ToString::to_string).collect();
    config.rank_pattern = a.rank_pattern.iter().map(|(name, r)| (name.clone(), *r as usize)).collect();
    config.alpha_pattern = a.alpha_pattern.iter().map(|(name, alpha)| (name.clone(), *alpha)).collect();
    config
}

pub(super) fn optimizer(recipe: &Recipe) -> AdamWConfig {
    let t = &recipe.train;
    let [beta1, beta2] = t.betas;
    let bits = match t.optimizer {
        Optimizer::AdamW8bit => StateBits::Eight,
        Optimizer::AdamW => StateBits::ThirtyTwo,
    };
    AdamWConfig { beta1, beta2, eps: t.eps, weight_decay: t.weight_decay, bits, ..AdamWConfig::default() }
}

/// What the recipe fixes about recomputation.
pub(super) fn recompute(recipe: &Recipe) -> Option<Recompute> {
    match recipe.train.recompute {
        RecomputeSetting::All => Some(Recompute::All),
        RecomputeSetting::None => Some(Recompute::None),
        RecomputeSetting::Auto => None,
    }
}

/// How a run of a recipe would use a device, from the model's configuration and the rows that it is evaluated on: nothing is loaded.
///
/// # Errors
/// A model whose configuration cannot be read, or a run that does not fit.
pub fn plan_run<O: Ops>(ops: &O, recipe: &Recipe, device: &DeviceInfo) -> Result<(ModelConfig, Planned), TrainError> {
    let config = ModelConfig::read(&model_texts(&recipe.model.source)?)?;
    let planned = choose(ops, recipe, &config, device, evaluates_during(recipe) && calls_tools(recipe), None)?;
    Ok((config, planned))
}

/// Whether answers are generated while the training holds its memory.
pub(super) fn evaluates_during(recipe: &Recipe) -> bool {
    recipe.eval.every > 0 && !recipe.eval.metrics.is_empty()
}

/// The plan for a recipe: the longest sample must fit, and a packed micro-batch where memory allows; or the one that was chosen before.
pub(super) fn choose<O: Ops>(
    ops: &O,
    recipe: &Recipe,
    config: &ModelConfig,
    device: &DeviceInfo,
    calls_tools: bool,
    before: Option<&PlanChoice>,
) -> Result<Planned, TrainError> {
    let longest = recipe.data.max_seq_length;
    let request = PlanRequest {
        config,
        adapter: &adapter_config(recipe),
        optimizer: optimizer(recipe),
        longest,
        packed: match device.kind {
            DeviceKind::Cpu => PACKED_TOKENS,
            DeviceKind::Cuda => PACKED_TOKENS_ON_CARD.max(longest),
        },
        sequence: longest,
        recompute: recompute(recipe),
        goal: recipe.device.plan,
        limit: limit_in_bytes(&recipe.device),
        evaluation: evaluates_during(recipe).then(|| EvaluationSizes {
            slots: recipe.eval.batch,
            // A conversation with tools may fill its context.
            length: PROMPT_TOKENS.saturating_add(recipe.eval.max_new_tokens).max(if calls_tools { recipe.eval.max_context } else { 0 }),
            prefill_tokens: PREFILL_TOKENS,
            merged: device.kind == DeviceKind::Cpu,
        }),
    };
    Ok(match before {
        Some(before) => plan_again(ops, &request, before)?,
        None => choose_plan(ops, &request)?,
    })
}
