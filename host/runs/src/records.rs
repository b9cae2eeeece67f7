//! The lines of a run's journals. One definition for the run that writes them and for everything that reads them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The outcome of one optimizer step: a line of `metrics.jsonl`, the same for the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepMetrics {
    /// The step, from 1.
    pub step: u64,
    /// Summed weighted loss of the step over its target weight, in nats per token.
    pub loss: f64,
    /// The learning rate that the step used.
    pub lr: f64,
    /// The gradient's global norm before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Summed loss weight of the predicted tokens.
    pub target_weight: f64,
    /// By source, in the recipe's order; only sources with samples in the step.
    pub sources: Vec<SourceMetrics>,
}

/// One source's share of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceMetrics {
    /// The source's name in the recipe.
    pub name: String,
    /// Summed weighted loss over the source's target weight, in nats per token.
    pub loss: f64,
    /// The source's target weight.
    pub target_weight: f64,
    /// Its samples.
    pub samples: u64,
}

/// How long one step took: a line of `timings.jsonl`. Never compared between runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepTimings {
    /// The step, from 1.
    pub step: u64,
    /// Wall-clock seconds of the whole step.
    pub seconds: f64,
    /// Tokens per second.
    pub tokens_per_second: f64,
    /// Seconds that the step waited for data.
    pub data_wait_seconds: f64,
    /// When it ended, in seconds since 1970; runs of older versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<f64>,
    /// The process's resident memory after it, in bytes, where the system tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// The card's mean load since the step before, in percent, where the run computes on a card that tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_load: Option<f64>,
    /// Memory of the card that is in use, by all processes, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory: Option<u64>,
    /// All memory of the card, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory_total: Option<u64>,
}

/// A sample answer: a line of `samples.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleAnswer {
    /// After this step.
    pub step: u64,
    /// The user's message.
    pub prompt: String,
    /// The answer.
    pub text: String,
}

/// An evaluation during training: a line of `evals.jsonl`, the same for the same run. Its report and transcripts are `eval/step-N.json` and
/// `eval/step-N.samples.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalMetrics {
    /// After this step.
    pub step: u64,
    /// `<metric>/<aggregate>` to its value.
    pub metrics: BTreeMap<String, f64>,
    /// Standard errors, where there are any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stderr: BTreeMap<String, f64>,
    /// SHA-256 of the adapter that was evaluated.
    pub adapter: String,
    /// Whether this was the best so far by `eval.best`; such a step's adapter was put into `adapter-best`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub best: bool,
    /// Why the run ended after this evaluation, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

impl EvalMetrics {
    /// The name of the files of a step's evaluation.
    pub fn report_name(step: u64) -> String {
        format!("step-{step}")
    }

    /// The step of such a name.
    pub fn step_of(name: &str) -> Option<u64> {
        let step = name.strip_prefix("step-")?.parse().ok()?;
        (name == Self::report_name(step)).then_some(step)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(value: &bool) -> bool {
    !value
}
