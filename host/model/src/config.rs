//! config.json and generation_config.json.

use crate::files::ModelFiles;
use crate::json::{Object, parse_object};
use crate::quantization::QuantizationConfig;
use crate::{ModelError, Result};
use serde_json::{Map, Value};
use trainer_kernels::nf4::FloatType;

/// The name of the configuration file.
pub const CONFIG_FILE: &str = "config.json";
/// The name of the generation settings' file.
pub const GENERATION_FILE: &str = "generation_config.json";

/// Bounds on sizes that a configuration may claim: far beyond any Qwen3, small enough that no product of two overflows.
const SIZE_LIMIT: u64 = 1 << 24;
const LAYER_LIMIT: u64 = 4096;
const POSITION_LIMIT: u64 = 1 << 31;
/// What transformers takes where Qwen3's config.json has no `head_dim` key.
const DEFAULT_HEAD_DIM: usize = 128;

/// The architecture of a Qwen3 model, checked: sizes are positive and bounded, heads fit, and nothing in the file asks for what the engine
/// does not do.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Rows of the embedding; may be more than the tokenizer has.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Size of a head; even.
    pub head_dim: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Positions that the model was trained for.
    pub max_position_embeddings: usize,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k, v and o have biases.
    pub attention_bias: bool,
    /// The type that the file says its weights have.
    pub dtype: Option<FloatType>,
    /// Tokens that end a sequence, by config.json; generation_config.json may name others.
    pub eos_token_ids: Vec<u32>,
    /// The padding token.
    pub pad_token_id: Option<u32>,
    /// The token that begins a sequence.
    pub bos_token_id: Option<u32>,
    /// How the checkpoint is stored, if not densely.
    pub quantization: Option<QuantizationConfig>,
}

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// A file that is missing or broken, and everything that [`ModelConfig::parse`] refuses.
    pub fn read(files: &ModelFiles) -> Result<Self> {
        let Some(text) = files.read_text(CONFIG_FILE)? else {
            let hint = "a model folder needs config.json, model.safetensors and tokenizer.json".to_string();
            return Err(ModelError::MissingFile { folder: files.describe(), file: CONFIG_FILE.to_string(), hint });
        };
        Self::parse(&text, &files.describe_file(CONFIG_FILE))
    }

    /// Reads the text of a `config.json`; `file` is its name in messages. Both the keys of 2025 (`rope_theta`, `torch_dtype`) and the newer
    /// ones (`rope_parameters`, `dtype`) are understood.
    ///
    /// # Errors
    /// Another model type, RoPE scaling, a sliding window in use, a quantization other than bitsandbytes NF4, another activation, attention
    /// dropout, and sizes that are missing, zero, too large or do not fit each other.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let map = parse_object(text, file)?;
        let object = Object { map: &map, file, prefix: "" };
        architecture(&object)?;
        let size = |key: &str, limit: u64| object.size(key, limit)?.ok_or_else(|| object.error(key, "is missing"));
        let num_attention_heads = size("num_attention_heads", SIZE_LIMIT)?;
        let num_key_value_heads = object.size("num_key_value_heads", SIZE_LIMIT)?.unwrap_or(num_attention_heads);
        if num_attention_heads % num_key_value_heads != 0 {
            let problem = format!("is {num_key_value_heads}; it must divide num_attention_heads, which is {num_attention_heads}");
            return Err(object.error("num_key_value_heads", problem));
        }
        let head_dim = object.size("head_dim", 65536)?.unwrap_or(DEFAULT_HEAD_DIM);
        if head_dim % 2 != 0 {
            return Err(object.error("head_dim", format!("is {head_dim}; rotary position embedding needs an even number")));
        }
        let num_hidden_layers = size("num_hidden_layers", LAYER_LIMIT)?;
        attention_kind(&object, num_hidden_layers)?;
        let rms_norm_eps = object.number("rms_norm_eps")?.unwrap_or(1e-6);
        if rms_norm_eps <= 0.0 || rms_norm_eps >= 1.0 {
            return Err(object.error("rms_norm_eps", format!("is {rms_norm_eps}; it must be between 0 and 1")));
        }
        let quantization = match object.object("quantization_config")? {
            None => None,
            Some(inner) => Some(QuantizationConfig::from_json(inner, file)?),
        };
        Ok(Self {
            vocab_size: size("vocab_size", SIZE_LIMIT)?,
            hidden_size: size("hidden_size", SIZE_LIMIT)?,
            intermediate_size: size("intermediate_size", SIZE_LIMIT)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps,
            rope_theta: rope_theta(&object)?,
            max_position_embeddings: size("max_position_embeddings", POSITION_LIMIT)?,
            tie_word_embeddings: object.bool("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: object.bool("attention_bias")?.unwrap_or(false),
            dtype: dtype(&object)?,
            eos_token_ids: object.ids("eos_token_id")?,
            pad_token_id: object.id("pad_token_id")?,
            bos_token_id: object.id("bos_token_id")?,
            quantization,
        })
    }

    /// Width of the queries: `num_attention_heads * head_dim`.
    pub fn q_width(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.head_dim)
    }

    /// Width of the keys, and of the values: `num_key_value_heads * head_dim`.
    pub fn kv_width(&self) -> usize {
        self.num_key_value_heads.saturating_mul(self.head_dim)
    }

    /// Parameters of the whole model, embeddings included (a tied head counts once).
    pub fn parameters(&self) -> u64 {
        let wide = |n: usize| n as u128;
        let (h, q, kv, i) = (wide(self.hidden_size), wide(self.q_width()), wide(self.kv_width()), wide(self.intermediate_size));
        let biases = if self.attention_bias { q + 2 * kv + h } else { 0 };
        let layer = 2 * h * q + 2 * h * kv + 3 * h * i + 2 * h + 2 * wide(self.head_dim) + biases;
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        let total = wide(self.num_hidden_layers) * layer + heads * wide(self.vocab_size) * h + h;
        u64::try_from(total).unwrap_or(u64::MAX)
    }
}

fn architecture(object: &Object<'_>) -> Result<()> {
    let supported = "this program fine-tunes Qwen3ForCausalLM (model_type \"qwen3\")";
    match object.string("model_type")? {
        Some("qwen3") => {}
        Some(other) => return Err(ModelError::unsupported(object.file, format!("model_type {other:?}"), supported)),
        None => return Err(object.error("model_type", "is missing; it must be \"qwen3\"")),
    }
    if let Some(names) = object.strings("architectures")?
        && !names.iter().any(|n| n == "Qwen3ForCausalLM")
    {
        return Err(ModelError::unsupported(object.file, format!("architectures {names:?}"), supported));
    }
    match object.string("hidden_act")? {
        None | Some("silu") => {}
        Some(other) => return Err(ModelError::unsupported(object.file, format!("hidden_act {other:?}"), "Qwen3 uses \"silu\"")),
    }
    match object.number("attention_dropout")? {
        Some(p) if p != 0.0 => Err(ModelError::unsupported(
            object.file,
            format!("attention_dropout {p}"),
            "set it to 0.0: dropout is a setting of the adapter",
        )),
        _ => Ok(()),
    }
}

/// Refuses any layer that does not attend to everything before it.
fn attention_kind(object: &Object<'_>, layers: usize) -> Result<()> {
    let supported = "all layers must use full attention";
    if let Some(types) = object.strings("layer_types")? {
        if let Some(other) = types.iter().find(|t| *t != "full_attention") {
            return Err(ModelError::unsupported(object.file, format!("layer_types with {other:?}"), supported));
        }
        if types.len() != layers {
            return Err(object.error("layer_types", format!("has {} entries for {layers} layers", types.len())));
        }
        return Ok(());
    }
    // As transformers: a window is only in use where it is switched on, and only from max_window_layers on.
    let window = object.get("sliding_window").filter(|_| matches!(object.map.get("use_sliding_window"), Some(Value::Bool(true))));
    object.bool("use_sliding_window")?;
    let from = object.number("max_window_layers")?.unwrap_or(28.0);
    match window {
        Some(window) if from < layers as f64 => {
            Err(ModelError::unsupported(object.file, format!("sliding_window {window} from layer {from} on"), supported))
        }
        _ => Ok(()),
    }
}

/// `rope_parameters.rope_theta` or `rope_theta`; any scaling is refused.
fn rope_theta(object: &Object<'_>) -> Result<f64> {
    let plain = |inner: &Map<String, Value>, prefix: &str| -> Result<Option<f64>> {
        let inner = Object { map: inner, file: object.file, prefix };
        for key in ["rope_type", "type"] {
            match inner.string(key)? {
                None | Some("default") => {}
                Some(other) => {
                    let supported = "only unscaled rotary embeddings (rope_type \"default\") are";
                    return Err(ModelError::unsupported(object.file, format!("{prefix}{key} {other:?}"), supported));
                }
            }
        }
        for (key, value) in inner.map {
            let neutral = value.is_null() || (key == "partial_rotary_factor" && value.as_f64() == Some(1.0));
            if !matches!(key.as_str(), "rope_type" | "type" | "rope_theta") && !neutral {
                return Err(ModelError::unsupported(object.file, format!("{prefix}{key}"), "only unscaled rotary embeddings are"));
            }
        }
        inner.number("rope_theta")
    };
    if let Some(inner) = object.object("rope_scaling")? {
        plain(inner, "rope_scaling.")?;
    }
    let nested = match object.object("rope_parameters")? {
        Some(inner) => plain(inner, "rope_parameters.")?,
        None => None,
    };
    let theta = match (nested, object.number("rope_theta")?) {
        (Some(a), Some(b)) if a != b => {
            return Err(object.error("rope_theta", format!("is {b}, but rope_parameters.rope_theta is {a}; remove one of them")));
        }
        (Some(theta), _) | (None, Some(theta)) => theta,
        (None, None) => return Err(object.error("rope_theta", "is missing, and so is rope_parameters.rope_theta")),
    };
    if theta <= 0.0 {
        return Err(object.error("rope_theta", format!("is {theta}; it must be positive")));
    }
    Ok(theta)
}

/// `dtype` or `torch_dtype`.
fn dtype(object: &Object<'_>) -> Result<Option<FloatType>> {
    for key in ["dtype", "torch_dtype"] {
        if let Some(name) = object.string(key)? {
            return match float_type(name) {
                Some(found) => Ok(Some(found)),
                None => Err(ModelError::unsupported(object.file, format!("{key} {name:?}"), "weights may be float32, bfloat16 or float16")),
            };
        }
    }
    Ok(None)
}

/// PyTorch's name of a type, with or without `torch.`.
pub(crate) fn float_type(name: &str) -> Option<FloatType> {
    let name = name.strip_prefix("torch.").unwrap_or(name);
    [FloatType::F32, FloatType::Bf16, FloatType::F16].into_iter().find(|t| t.torch_name() == name)
}

/// What `generation_config.json` says about generating; absent keys are `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end an answer: one or several.
    pub eos_token_ids: Vec<u32>,
    /// The padding token.
    pub pad_token_id: Option<u32>,
    /// The token that begins a sequence.
    pub bos_token_id: Option<u32>,
    /// Sample instead of taking the most likely token.
    pub do_sample: Option<bool>,
    /// Divides the logits.
    pub temperature: Option<f64>,
    /// Keep this many tokens; 0 keeps all.
    pub top_k: Option<usize>,
    /// Keep the most likely tokens up to this share.
    pub top_p: Option<f64>,
    /// Keep tokens at least this likely, relative to the most likely.
    pub min_p: Option<f64>,
    /// Makes repeated tokens less likely.
    pub repetition_penalty: Option<f64>,
}

impl GenerationConfig {
    /// Reads `generation_config.json`; a folder without one gives the default.
    ///
    /// # Errors
    /// A broken file, or values of the wrong type. Keys that this program does not use are ignored.
    pub fn read(files: &ModelFiles) -> Result<Self> {
        match files.read_text(GENERATION_FILE)? {
            Some(text) => Self::parse(&text, &files.describe_file(GENERATION_FILE)),
            None => Ok(Self::default()),
        }
    }

    /// Reads the text of a `generation_config.json`; `file` is its name in messages.
    ///
    /// # Errors
    /// As [`GenerationConfig::read`].
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let map = parse_object(text, file)?;
        let object = Object { map: &map, file, prefix: "" };
        let top_k = match object.get("top_k") {
            Some(Value::Number(n)) if n.as_u64() == Some(0) => Some(0),
            _ => object.size("top_k", u64::from(u32::MAX))?,
        };
        Ok(Self {
            eos_token_ids: object.ids("eos_token_id")?,
            pad_token_id: object.id("pad_token_id")?,
            bos_token_id: object.id("bos_token_id")?,
            do_sample: object.bool("do_sample")?,
            temperature: object.number("temperature")?,
            top_k,
            top_p: object.number("top_p")?,
            min_p: object.number("min_p")?,
            repetition_penalty: object.number("repetition_penalty")?,
        })
    }
}
