//! `adapter_config.json` of PEFT, both ways.

use crate::adapter_match::{KEYS, Matching, Pattern, ends_with_path, is_plain};
use crate::json::{Object, parse_object};
use crate::{ModelError, Result};
use serde_json::{Map, Value, json};

/// The largest rank that is read; ranks beyond the width of a weight gain nothing.
const RANK_LIMIT: u64 = 1 << 16;

/// Which biases were trained beside the adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdapterBias {
    /// None.
    #[default]
    None,
    /// All of the model's.
    All,
    /// Those of modules that have an adapter.
    LoraOnly,
}

impl AdapterBias {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::All => "all",
            Self::LoraOnly => "lora_only",
        }
    }
}

/// What a LoRA adapter is, in PEFT's terms.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// Rank (`r`).
    pub r: usize,
    /// `lora_alpha`: the adapter's output is scaled by `alpha / r`.
    pub alpha: f64,
    /// `lora_dropout`: probability of dropping an input in training.
    pub dropout: f64,
    /// `use_rslora`: scale by `alpha / sqrt(r)` instead (Kalajdzievski 2023).
    pub rslora: bool,
    /// Trained biases.
    pub bias: AdapterBias,
    /// `target_modules`: ends of module names, or the one entry `all-linear`; empty where a file has a regular expression.
    pub target_modules: Vec<String>,
    /// Other ranks for modules whose name ends so, or matches so where a file has a regular expression; the first entry that fits counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Other alphas, likewise.
    pub alpha_pattern: Vec<(String, f64)>,
    /// `base_model_name_or_path`: what the adapter was trained on.
    pub base_model: Option<String>,
    /// Regular expressions, layers and exceptions, from a file.
    matching: Matching,
    /// Keys that describe without changing the adapter, kept as they were read.
    descriptive: Map<String, Value>,
}

impl Default for AdapterConfig {
    /// PEFT's defaults, on the seven projections of Qwen3.
    fn default() -> Self {
        Self {
            r: 8,
            alpha: 8.0,
            dropout: 0.0,
            rslora: false,
            bias: AdapterBias::None,
            target_modules: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"].map(String::from).to_vec(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            base_model: None,
            matching: Matching::default(),
            descriptive: descriptive().into_iter().map(|(key, value)| (key.to_string(), value)).collect(),
        }
    }
}

/// Keys without influence on what an adapter computes, and what is written where nothing was read.
fn descriptive() -> [(&'static str, Value); 8] {
    [
        ("auto_mapping", Value::Null),
        ("inference_mode", json!(true)),
        ("init_lora_weights", json!(true)),
        ("megatron_core", json!("megatron.core")),
        ("peft_version", json!("0.21.2")),
        ("qalora_group_size", json!(16)),
        ("revision", Value::Null),
        ("task_type", json!("CAUSAL_LM")),
    ]
}

/// Features of PEFT that are not supported, with the value that means "not used". The same keys and values are written.
fn unused() -> [(&'static str, Value); 21] {
    let null = Value::Null;
    [
        ("alora_invocation_tokens", null.clone()),
        ("arrow_config", null.clone()),
        ("corda_config", null.clone()),
        ("ensure_weight_tying", json!(false)),
        ("eva_config", null.clone()),
        ("fan_in_fan_out", json!(false)),
        ("kasa_config", null.clone()),
        ("layer_replication", null.clone()),
        ("loftq_config", json!({})),
        ("lora_bias", json!(false)),
        ("lora_ga_config", null.clone()),
        ("megatron_config", null.clone()),
        ("modules_to_save", null.clone()),
        ("monteclora_config", null.clone()),
        ("target_parameters", null.clone()),
        ("trainable_token_indices", null.clone()),
        ("use_bdlora", null.clone()),
        ("use_dora", json!(false)),
        ("use_qalora", json!(false)),
        ("velora_config", null.clone()),
        // Written by other versions, never by this one.
        ("runtime_config", null),
    ]
}

/// A key of other versions that is recognised but not written.
const NOT_WRITTEN: &str = "runtime_config";

/// Whether a value means that its feature is not used.
fn is_unused(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.values().all(is_unused),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

impl AdapterConfig {
    /// Reads the text of an `adapter_config.json`; `file` is its name in messages. Keys of any version of PEFT are accepted as long as
    /// what they ask for is supported, or not used.
    ///
    /// # Errors
    /// Another method than LoRA, a feature that is not supported (DoRA, `modules_to_save`, ...), unknown keys that are in use, and values
    /// out of range.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let map = parse_object(text, file)?;
        let object = Object { map: &map, file, prefix: "" };
        match object.string("peft_type")? {
            Some("LORA") => {}
            Some(other) => return Err(ModelError::unsupported(file, format!("peft_type {other:?}"), "only LoRA adapters (\"LORA\") are")),
            None => return Err(object.error("peft_type", "is missing; it must be \"LORA\"")),
        }
        refuse_features(&object)?;
        let r = object.size("r", RANK_LIMIT)?.ok_or_else(|| object.error("r", "is missing"))?;
        let alpha = object.number("lora_alpha")?.ok_or_else(|| object.error("lora_alpha", "is missing"))?;
        let dropout = object.number("lora_dropout")?.unwrap_or(0.0);
        if !(0.0..1.0).contains(&dropout) {
            return Err(object.error("lora_dropout", format!("is {dropout}; it must be at least 0 and below 1")));
        }
        let bias = match object.string("bias")? {
            None | Some("none") => AdapterBias::None,
            Some("all") => AdapterBias::All,
            Some("lora_only") => AdapterBias::LoraOnly,
            Some(other) => return Err(object.error("bias", format!("is {other:?}; it must be \"none\", \"all\" or \"lora_only\""))),
        };
        let mut matching = Matching::read(&object)?;
        let target_modules = targets(&object, &mut matching)?;
        let rank_pattern = pattern(&object, &mut matching, "rank_pattern", |inner, key| inner.size(key, RANK_LIMIT))?;
        let alpha_pattern = pattern(&object, &mut matching, "alpha_pattern", |inner, key| inner.number(key))?;
        let described = |(key, default): (&str, Value)| (key.to_string(), map.get(key).cloned().unwrap_or(default));
        Ok(Self {
            r,
            alpha,
            dropout,
            rslora: object.bool("use_rslora")?.unwrap_or(false),
            bias,
            target_modules,
            rank_pattern,
            alpha_pattern,
            base_model: object.string("base_model_name_or_path")?.map(String::from),
            matching,
            descriptive: descriptive().into_iter().map(described).collect(),
        })
    }

    /// The text of an `adapter_config.json` as PEFT 0.21 writes it: every key, sorted. The same settings give the same text.
    pub fn to_json(&self) -> String {
        let number = |n: f64| if n.fract() == 0.0 && n.abs() < 1e15 { json!(n as i64) } else { json!(n) };
        let mut all: Vec<(String, Value)> = unused().into_iter().filter(|(k, _)| *k != NOT_WRITTEN).map(|(k, v)| (k.into(), v)).collect();
        all.extend(self.descriptive.iter().map(|(key, value)| (key.clone(), value.clone())));
        let ranks: Map<String, Value> = self.rank_pattern.iter().map(|(k, r)| (k.clone(), json!(r))).collect();
        let alphas: Map<String, Value> = self.alpha_pattern.iter().map(|(k, a)| (k.clone(), number(*a))).collect();
        all.extend(self.matching.to_json().map(|(key, value)| (key.to_string(), value)));
        let targets = match (self.matching.targets_text(), self.target_modules.as_slice()) {
            (Some(expression), _) => json!(expression),
            (None, [one]) if one == "all-linear" => json!(one),
            (None, list) => json!(list),
        };
        let own = [
            ("alpha_pattern", Value::Object(alphas)),
            ("base_model_name_or_path", json!(self.base_model)),
            ("bias", json!(self.bias.name())),
            ("lora_alpha", number(self.alpha)),
            ("lora_dropout", json!(self.dropout)),
            ("peft_type", json!("LORA")),
            ("r", json!(self.r)),
            ("rank_pattern", Value::Object(ranks)),
            ("target_modules", targets),
            ("use_rslora", json!(self.rslora)),
        ];
        all.extend(own.into_iter().map(|(k, v)| (k.to_string(), v)));
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let object: Map<String, Value> = all.into_iter().collect();
        // `{:#}` of a value cannot fail and indents by two, as PEFT does.
        format!("{:#}\n", Value::Object(object))
    }

    /// Whether a module (`model.layers.0.self_attn.q_proj`) has an adapter.
    pub fn targets(&self, module: &str) -> bool {
        let fits = |t: &String| (t == "all-linear" && !ends_with_path(module, "lm_head")) || ends_with_path(module, t);
        self.matching.targets(module, self.target_modules.iter().any(fits))
    }

    /// The targets for messages.
    pub(crate) fn targets_text(&self) -> String {
        self.matching.targets_text().map_or_else(|| format!("{:?}", self.target_modules), |text| format!("{text:?}"))
    }

    /// Whether there are targets at all.
    pub fn has_targets(&self) -> bool {
        !self.target_modules.is_empty() || self.matching.targets.is_some()
    }

    /// A target or a key of a pattern that fits none of the modules: most likely a misspelt name, which would train nothing, silently.
    pub fn unmatched(&self, modules: &[&str]) -> Option<&str> {
        let none = |fits: &dyn Fn(&str) -> bool| !modules.iter().any(|m| fits(m));
        if let Some(expression) = self.matching.targets_text()
            && none(&|m| self.targets(m))
        {
            return Some(expression);
        }
        let target = self.target_modules.iter().find(|t| *t != "all-linear" && none(&|m| ends_with_path(m, t)));
        let keys = self.rank_pattern.iter().map(|p| &p.0).chain(self.alpha_pattern.iter().map(|p| &p.0));
        let key = || keys.into_iter().find(|key| none(&|m| self.matching.key_fits(key, m)));
        target.or_else(key).map(String::as_str)
    }

    /// The rank at a module.
    pub fn rank_of(&self, module: &str) -> usize {
        self.rank_pattern.iter().find(|(key, _)| self.matching.key_fits(key, module)).map_or(self.r, |(_, r)| *r)
    }

    /// The factor of the adapter's output at a module.
    pub fn scale_of(&self, module: &str) -> f64 {
        let alpha = self.alpha_pattern.iter().find(|(key, _)| self.matching.key_fits(key, module)).map_or(self.alpha, |(_, a)| *a);
        let rank = self.rank_of(module) as f64;
        if self.rslora { alpha / rank.sqrt() } else { alpha / rank }
    }
}

fn refuse_features(object: &Object<'_>) -> Result<()> {
    const OWN: [&str; 11] = [
        "alpha_pattern",
        "base_model_name_or_path",
        "bias",
        "lora_alpha",
        "lora_dropout",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "use_rslora",
        "init_lora_weights",
    ];
    for (key, value) in object.map {
        let known = OWN.contains(&key.as_str()) || KEYS.contains(&key.as_str()) || descriptive().iter().any(|(k, _)| k == key);
        if known || is_unused(value) {
            continue;
        }
        let supported = if key == "modules_to_save" {
            "whole modules that were trained beside the adapter have no place in it here; merge the adapter with PEFT first (merge_and_unload)"
        } else if unused().iter().any(|(k, _)| k == key) {
            "supported are plain LoRA weights on linear layers, with biases, rsLoRA and rank and alpha patterns"
        } else {
            "this key of adapter_config.json is unknown, so what it asks for cannot be honoured"
        };
        return Err(ModelError::unsupported(object.file, format!("{key} {value}"), supported));
    }
    // These initialisations change the base model's weights, so that the adapter means nothing on the original ones.
    match object.get("init_lora_weights") {
        Some(Value::String(how)) if !["gaussian", "eva", "orthogonal"].contains(&how.as_str()) => {
            let supported = "adapters must fit the unchanged base model; convert it with PEFT's path_initial_model_for_weight_conversion";
            Err(ModelError::unsupported(object.file, format!("init_lora_weights {how:?}"), supported))
        }
        _ => Ok(()),
    }
}

fn targets(object: &Object<'_>, matching: &mut Matching) -> Result<Vec<String>> {
    let key = "target_modules";
    if let Some(Value::String(one)) = object.get(key) {
        if one == "all-linear" {
            return Ok(vec![one.clone()]);
        }
        matching.set_targets(object, one)?;
        return Ok(Vec::new());
    }
    let list = object.strings(key)?.unwrap_or_default();
    if list.is_empty() {
        return Err(object.error(key, "is empty; it must name the modules that have an adapter"));
    }
    match list.iter().find(|name| !is_plain(name)) {
        Some(name) => {
            let supported = "in a list, give names such as \"q_proj\"; PEFT takes a regular expression only in the place of the list";
            Err(ModelError::unsupported(object.file, format!("{key} entry {name:?}"), supported))
        }
        None => Ok(list),
    }
}

fn pattern<T>(
    object: &Object<'_>,
    matching: &mut Matching,
    key: &str,
    value: impl Fn(&Object<'_>, &str) -> Result<Option<T>>,
) -> Result<Vec<(String, T)>> {
    let Some(map) = object.object(key)? else { return Ok(Vec::new()) };
    let prefix = format!("{key}.");
    let inner = Object { map, file: object.file, prefix: &prefix };
    let mut entries = Vec::with_capacity(map.len());
    for name in map.keys() {
        if !is_plain(name) {
            matching.patterns.insert(name.clone(), Pattern::end(object, &format!("{key} entry"), name)?);
        }
        let value = value(&inner, name)?.ok_or_else(|| inner.error(name, "is null"))?;
        entries.push((name.clone(), value));
    }
    Ok(entries)
}
