//! Parameters that chat and plain completions share.

use std::sync::Arc;

use trainer_kernels::sampling::{MOST_BIAS, SamplingParams};

use crate::error::{ApiError, Result};
use crate::fields::{Fields, mistyped, short};

/// The most choices of one request.
pub const MOST_CHOICES: usize = 64;
/// The most alternatives beside a token.
pub const MOST_LOGPROBS: i64 = 20;
/// The most stop strings, and the longest one in bytes.
const MOST_STOPS: usize = 32;
/// The most tokens with a bias.
const MOST_BIASES: usize = 4096;
const LONGEST_STOP: usize = 1024;

/// What both kinds of requests say.
#[derive(Clone, Debug, PartialEq)]
pub struct Common {
    /// The model's name.
    pub model: String,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// What is added to the scores of single tokens.
    pub logit_bias: Arc<[(u32, f32)]>,
    /// The key of the random streams, where one is given.
    pub seed: Option<u64>,
    /// Choices per prompt.
    pub n: usize,
    /// The most tokens of an answer.
    pub max_tokens: Option<usize>,
    /// Strings at which an answer ends; none is empty.
    pub stop: Vec<String>,
    /// Whether the model's own stop tokens do not end an answer.
    pub ignore_eos: bool,
    /// As events.
    pub stream: bool,
    /// With the token counts as a last event.
    pub include_usage: bool,
}

impl Common {
    /// Reads them. `defaults` is what the model's own settings say.
    ///
    /// # Errors
    /// The first parameter that is wrong.
    pub fn read(fields: &mut Fields<'_>, defaults: &SamplingParams, least_tokens: i64) -> Result<Self> {
        let model = fields.string("model")?.ok_or_else(|| ApiError::param("model", "model is missing: name one of /v1/models"))?;
        let sampling = SamplingParams {
            temperature: fields.number("temperature", 0.0, 2.0)?.unwrap_or(defaults.temperature),
            top_p: fields.number("top_p", 0.0, 1.0)?.unwrap_or(defaults.top_p),
            top_k: match fields.integer("top_k", -1, i64::from(u32::MAX))? {
                None => defaults.top_k,
                Some(k) => u32::try_from(k).unwrap_or(0),
            },
            min_p: fields.number("min_p", 0.0, 1.0)?.unwrap_or(defaults.min_p),
            repetition_penalty: fields.number("repetition_penalty", 0.01, 100.0)?.unwrap_or(defaults.repetition_penalty),
            presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(defaults.presence_penalty),
            frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(defaults.frequency_penalty),
        };
        let seed = fields.integer("seed", i64::MIN, i64::MAX)?.map(|s| s as u64);
        let n = fields.integer("n", 1, MOST_CHOICES as i64)?.unwrap_or(1) as usize;
        let max_tokens = fields.integer("max_tokens", least_tokens, i64::from(u32::MAX))?.map(|n| n as usize);
        let stop = stops(fields)?;
        let stream = fields.bool("stream")?.unwrap_or(false);
        let include_usage = match fields.object("stream_options")? {
            Some(_) if !stream => return Err(ApiError::param("stream_options", "stream_options are for requests with stream = true")),
            Some(mut options) => {
                let include = options.bool("include_usage")?.unwrap_or(false);
                options.ignore(&["include_obfuscation"]);
                options.finish()?;
                include
            }
            None => false,
        };
        let ignore_eos = fields.bool("ignore_eos")?.unwrap_or(false);
        let logit_bias = biases(fields)?;
        fields.ignore(&["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"]);
        Ok(Common { model: model.to_owned(), sampling, logit_bias, seed, n, max_tokens, stop, ignore_eos, stream, include_usage })
    }
}

/// `{"token id": bias}`.
fn biases(fields: &mut Fields<'_>) -> Result<Arc<[(u32, f32)]>> {
    let bad = |text: String| ApiError::param("logit_bias", text);
    let map = match fields.get("logit_bias") {
        None => return Ok(Arc::default()),
        Some(serde_json::Value::Object(map)) => map,
        Some(other) => return Err(mistyped("logit_bias", other, "an object of token ids with numbers")),
    };
    if map.len() > MOST_BIASES {
        return Err(bad(format!("logit_bias has {} tokens; at most {MOST_BIASES} are possible", map.len())));
    }
    let one = |(key, value): (&String, &serde_json::Value)| {
        let id: u32 = key.parse().map_err(|_| bad(format!("logit_bias has the key {:?}, which is no token id", short(key))))?;
        let bias = value.as_f64().filter(|b| (-MOST_BIAS..=MOST_BIAS).contains(b));
        Ok((id, bias.ok_or_else(|| bad(format!("logit_bias of token {id} must be a number from -100 to 100")))? as f32))
    };
    map.iter().map(one).collect()
}

fn stops(fields: &mut Fields<'_>) -> Result<Vec<String>> {
    let Some(value) = fields.get("stop") else { return Ok(Vec::new()) };
    let texts = match value {
        serde_json::Value::String(text) => vec![text.clone()],
        serde_json::Value::Array(items) if items.len() <= MOST_STOPS => {
            let text = |item: &serde_json::Value| item.as_str().map(str::to_owned).ok_or_else(|| mistyped("stop", item, "strings"));
            items.iter().map(text).collect::<Result<_>>()?
        }
        serde_json::Value::Array(items) => {
            return Err(ApiError::param("stop", format!("stop has {} strings; at most {MOST_STOPS} are possible", items.len())));
        }
        other => return Err(mistyped("stop", other, "a string or an array of strings")),
    };
    if texts.iter().any(|t| t.is_empty() || t.len() > LONGEST_STOP) {
        return Err(ApiError::param("stop", format!("a stop string has 1 to {LONGEST_STOP} bytes")));
    }
    Ok(texts)
}
