//! Choosing a plan: how weights are held, what each layer keeps, how the loss is cut, so that a run fits a device and is as fast as that allows.
//!
//! Nothing is allocated here. A choice is compared by what it costs on top of the unavoidable products: bytes moved and products done again.

use trainer_kernels::ops::{Ops, Rates, WeightPlan};
use trainer_model::{AdapterConfig, ModelConfig};

use crate::adapter::trained_parameters;
use crate::error::{EngineError, OpsContext, Result};
use crate::modules::Dims;
use crate::plan::{MemoryPlan, PlanOptions, plan};
use crate::workspace::{Keep, Recompute};

/// What a plan should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Goal {
    /// The fastest that fits what the device has, with a margin.
    #[default]
    Auto,
    /// The fastest that fits.
    Fastest,
    /// The least memory.
    Smallest,
}

/// A chosen plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// How frozen weights are held.
    pub weights: WeightPlan,
    /// What each layer keeps.
    pub recompute: Recompute,
    /// Positions whose logits exist at the same time in the loss.
    pub loss_rows: usize,
    /// Whether layer inputs wait outside of the device's memory, and the embedding lies there.
    pub offload: bool,
    /// What it holds, by part.
    pub memory: MemoryPlan,
    /// Predicted seconds of a micro-batch of `max_tokens`, where the backend knows its rates.
    pub seconds: Option<f64>,
}

impl Choice {
    /// Takes the planned memory from the device in one piece, before anything is made: nothing is allocated after the first step then, and a run that
    /// does not fit ends here. A little more is taken than planned, for batches and what loading needs in passing, but never more than `limit`.
    ///
    /// # Errors
    /// The device has not got the memory.
    pub fn reserve<O: Ops>(&self, ops: &O, limit: Option<u64>) -> Result<()> {
        let planned = self.memory.total();
        let room = planned + slack(planned);
        ops.reserve(limit.map_or(room, |limit| room.min(limit))).at(|| "the planned memory".into())
    }
}

/// Positions of the loss in a fast and in a small plan.
const LOSS_ROWS: [usize; 2] = [1024, 256];
/// Memory beyond a plan, so that what it counts as one number finds places that are long enough: loading leaves gaps, and so do buffers that grow.
const fn slack(planned: u64) -> u64 {
    let gaps = planned / 32;
    planned / 128 + if gaps < 64 << 20 { gaps } else { 64 << 20 }
}

/// What is left free under [`Goal::Auto`]: for the driver, other programs, and what evaluation makes for itself.
const MARGIN: f64 = 0.04;

/// Chooses. `options` gives everything that is not a choice (its `recompute`, `offload`, `host_embedding`, `weights` and `loss_rows` are ignored);
/// `fixed` takes the choice of what layers keep away; `sequence` is the typical length of a sample, for the prediction; `limit` is a number of bytes in
/// place of what the device says it has.
///
/// # Errors
/// [`EngineError::DoesNotFit`] if nothing fits, with what would.
#[expect(clippy::too_many_arguments, reason = "a plan depends on everything that is planned")]
pub fn choose<O: Ops>(
    ops: &O,
    config: &ModelConfig,
    adapter: &AdapterConfig,
    options: &PlanOptions,
    fixed: Option<&Recompute>,
    sequence: usize,
    goal: Goal,
    limit: Option<u64>,
) -> Result<Choice> {
    let dims = Dims::new(config)?;
    let layers = dims.layers;
    let available = ops.memory_available();
    let budget = match (goal, limit, available) {
        (_, Some(bytes), _) => Some(bytes),
        (Goal::Auto, None, Some(bytes)) => Some((bytes as f64 * (1.0 - MARGIN)) as u64),
        (_, None, bytes) => bytes,
    };
    let candidate = |weights: WeightPlan, given_up: usize, loss_rows: usize, offload: bool| -> Result<Choice> {
        let keeps: Vec<Keep> = match fixed {
            Some(fixed) => (0..layers).map(|layer| fixed.keep(layer)).collect(),
            None => keeps(layers, given_up),
        };
        let recompute = canonical(&keeps);
        let loss_rows = loss_rows.min(options.max_tokens.max(1));
        let with = PlanOptions { recompute: recompute.clone(), weights, loss_rows, offload, host_embedding: offload, ..options.clone() };
        let memory = plan(ops, config, Some(adapter), &with)?;
        let seconds = match ops.rates() {
            Some(rates) => Some(seconds(&dims, adapter, &rates, options.max_tokens, sequence, weights, &keeps)?),
            None => None,
        };
        Ok(Choice { weights, recompute, loss_rows, offload, memory, seconds })
    };
    // Where nothing is known to be scarce, host and device are the same memory.
    let smallest = candidate(WeightPlan::Packed, 2 * layers, LOSS_ROWS[1], available.is_some())?;
    if goal == Goal::Smallest {
        return fits(smallest, budget, &dims, options);
    }
    let tries = if fixed.is_some() { 1 } else { 2 * layers + 1 };
    let mut best: Option<Choice> = None;
    for weights in [WeightPlan::Unpacked, WeightPlan::Packed] {
        for loss_rows in LOSS_ROWS {
            // Layers give up what they keep one by one, what is cheap first.
            let fitting = first_that(tries, |given_up| {
                let choice = candidate(weights, given_up, loss_rows, false)?;
                let total = choice.memory.total();
                // With one candidate there is nothing to give up for it.
                let room = if fixed.is_some() { total } else { total + slack(total) };
                Ok(budget.is_none_or(|b| room <= b).then_some(choice))
            })?;
            let Some(choice) = fitting else { continue };
            if best.as_ref().is_none_or(|b| slower(b, &choice)) {
                best = Some(choice);
            }
        }
    }
    match best {
        Some(choice) => Ok(choice),
        None => fits(smallest, budget, &dims, options),
    }
}

/// A plan that was chosen before, as the options say all of it, for this device.
///
/// # Errors
/// [`EngineError::DoesNotFit`] if it takes more than `limit`, or than the device has; sizes that make no sense.
pub fn again<O: Ops>(
    ops: &O,
    config: &ModelConfig,
    adapter: &AdapterConfig,
    options: &PlanOptions,
    sequence: usize,
    limit: Option<u64>,
) -> Result<Choice> {
    let dims = Dims::new(config)?;
    let memory = plan(ops, config, Some(adapter), options)?;
    let keeps: Vec<Keep> = (0..dims.layers).map(|layer| options.recompute.keep(layer)).collect();
    let rated = ops.rates().map(|rates| seconds(&dims, adapter, &rates, options.max_tokens, sequence, options.weights, &keeps));
    let PlanOptions { weights, loss_rows, offload, .. } = *options;
    let choice = Choice { weights, recompute: canonical(&keeps), loss_rows, offload, memory, seconds: rated.transpose()? };
    fits(choice, limit.or_else(|| ops.memory_available()), &dims, options)
}

/// The shortest way to say what layers keep.
fn canonical(keeps: &[Keep]) -> Recompute {
    match keeps.first() {
        Some(Keep::All) if keeps.iter().all(|k| *k == Keep::All) => Recompute::None,
        Some(Keep::Input) if keeps.iter().all(|k| *k == Keep::Input) => Recompute::All,
        _ => Recompute::Each(keeps.to_vec()),
    }
}

/// The first of `count` tries that gives something: tries only ever get smaller, so halving finds it.
fn first_that<T>(count: usize, mut attempt: impl FnMut(usize) -> Result<Option<T>>) -> Result<Option<T>> {
    let (mut low, mut high, mut found) = (0, count, None);
    while low < high {
        let middle = low.midpoint(high);
        match attempt(middle)? {
            Some(value) => (found, high) = (Some(value), middle),
            None => low = middle + 1,
        }
    }
    Ok(found)
}

/// What layers keep after `given_up` steps: the first `layers` steps make a layer lean, the next make one keep its input alone.
fn keeps(layers: usize, given_up: usize) -> Vec<Keep> {
    (0..layers)
        .map(|layer| match (layer + layers < given_up, layer < given_up) {
            (true, _) => Keep::Input,
            (_, true) => Keep::Lean,
            _ => Keep::All,
        })
        .collect()
}

fn slower(than: &Choice, choice: &Choice) -> bool {
    match (than.seconds, choice.seconds) {
        (Some(a), Some(b)) => b < a,
        // Without rates the first that fits is taken: weights in 16 bits before packed ones.
        _ => false,
    }
}

fn fits(choice: Choice, budget: Option<u64>, dims: &Dims, options: &PlanOptions) -> Result<Choice> {
    let need = choice.memory.total();
    match budget {
        Some(budget) if need > budget => {
            let per_token =
                choice.memory.parts.iter().filter(|(part, _)| crate::plan::grows_with_tokens(part)).map(|(_, b)| b).sum::<u64>()
                    / options.max_tokens.max(1) as u64;
            let fixed = need - per_token * options.max_tokens as u64;
            let tokens = budget.saturating_sub(fixed) / per_token.max(1);
            Err(EngineError::DoesNotFit { need, budget, layers: dims.layers, tokens: options.max_tokens, possible: tokens })
        }
        _ => Ok(choice),
    }
}

/// Seconds of a micro-batch: products, attention and memory traffic, one after the other.
fn seconds(
    dims: &Dims,
    adapter: &AdapterConfig,
    rates: &Rates,
    tokens: usize,
    sequence: usize,
    weights: WeightPlan,
    keeps: &[Keep],
) -> Result<f64> {
    let (tokens, layers) = (tokens as f64, dims.layers as f64);
    let a = dims.attention;
    let linear = dims.modules().iter().map(|m| m.out_features as f64 * m.in_features as f64).sum::<f64>();
    let down = layers * dims.hidden as f64 * dims.intermediate as f64;
    let lora = trained_parameters(adapter, dims)? as f64;
    let share = |keep: Keep| keeps.iter().filter(|k| **k == keep).count() as f64 / layers;
    let (input, lean) = (share(Keep::Input), share(Keep::Lean));
    let again = input * (linear - down);
    let head = dims.vocab as f64 * dims.hidden as f64;
    let frozen = 2.0 * tokens * (2.0 * linear + again);
    let products = 2.0 * tokens * (2.0 * head + 3.0 * lora);
    // Half of the square of a sequence; the backward does two and a half times the forward, and here seven products where five would do.
    let attention = layers * tokens * sequence as f64 * a.heads as f64 * a.head_dim as f64 * 2.0 * (1.0 + 3.5 + input);
    let (h, i) = (dims.hidden as f64, dims.intermediate as f64);
    let (q, qk, qkv) = (a.q_width() as f64, a.qk_width() as f64, a.qkv_width() as f64);
    // Values read or written by norms, rotation, SwiGLU and what the adapters read of their inputs and gradients.
    let forward = 8.0 * h + 2.0 * qk + 3.0 * i + (2.0 * h + q + i);
    let backward = 8.0 * h + 3.0 * qk + 5.0 * i + 2.0 * (qkv + 2.0 * h + 2.0 * i) + (2.0 * h + q + i);
    let cheap = 4.0 * h + 2.0 * qk + 3.0 * i;
    let traffic = 2.0 * tokens * layers * (forward + backward + (lean + input) * cheap + input * (forward - cheap).max(0.0));
    let logits = tokens * dims.vocab as f64 * 14.0;
    let unpacked = match weights {
        WeightPlan::Unpacked => 0.0,
        WeightPlan::Packed => (2.0 * linear + again) * (2.0 + 0.52),
    };
    Ok(frozen / rates.frozen + products / rates.products + attention / rates.attention + (traffic + logits + unpacked) / rates.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_give_up_what_is_cheap_first() {
        assert_eq!(keeps(3, 0), [Keep::All; 3]);
        assert_eq!(keeps(3, 2), [Keep::Lean, Keep::Lean, Keep::All]);
        assert_eq!(keeps(3, 4), [Keep::Input, Keep::Lean, Keep::Lean]);
        assert_eq!(keeps(3, 6), [Keep::Input; 3]);
    }

    #[test]
    fn halving_finds_the_first_success() {
        for first in 0..10 {
            assert_eq!(first_that(10, |i| Ok((i >= first).then_some(i))).unwrap(), Some(first));
        }
        assert_eq!(first_that(10, |_| Ok(None::<usize>)).unwrap(), None);
    }
}
