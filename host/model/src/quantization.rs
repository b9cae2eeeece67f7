//! `quantization_config` of config.json: bitsandbytes' 4-bit form.

use crate::config::float_type;
use crate::json::Object;
use crate::{ModelError, Result};
use serde_json::{Map, Value};
use trainer_kernels::nf4::FloatType;

/// How a checkpoint's linear layers are stored by bitsandbytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// Whether the scales are quantized as well.
    pub double_quant: bool,
    /// The type that peers compute in; the engine here has its own.
    pub compute_dtype: Option<FloatType>,
    /// Modules that were left as they were; `None` is the peers' default (the output head).
    pub skip_modules: Option<Vec<String>>,
}

impl QuantizationConfig {
    pub(crate) fn from_json(map: &Map<String, Value>, file: &str) -> Result<Self> {
        let object = Object { map, file, prefix: "quantization_config." };
        let supported = "only bitsandbytes NF4 checkpoints (load_in_4bit, bnb_4bit_quant_type \"nf4\") and dense ones are; \
                         take the model's unquantized checkpoint";
        let refuse = |what: String| Err(ModelError::unsupported(file, what, supported));
        match object.string("quant_method")? {
            None | Some("bitsandbytes") => {}
            Some(other) => return refuse(format!("quantization method {other:?}")),
        }
        let either =
            |key: &str| -> Result<bool> { Ok(object.bool(key)?.unwrap_or(false) || object.bool(&format!("_{key}"))?.unwrap_or(false)) };
        if either("load_in_8bit")? {
            return refuse("8-bit quantization (load_in_8bit)".to_string());
        }
        if !either("load_in_4bit")? {
            return refuse("a quantization_config without load_in_4bit".to_string());
        }
        // bitsandbytes' own default is fp4.
        match object.string("bnb_4bit_quant_type")?.unwrap_or("fp4") {
            "nf4" => {}
            other => return refuse(format!("bnb_4bit_quant_type {other:?}")),
        }
        match object.string("bnb_4bit_quant_storage")? {
            None | Some("uint8") => {}
            Some(other) => return refuse(format!("bnb_4bit_quant_storage {other:?} (4-bit values packed into another type than uint8)")),
        }
        let compute_dtype = match object.string("bnb_4bit_compute_dtype")? {
            None => None,
            Some(name) => Some(float_type(name).ok_or_else(|| object.error("bnb_4bit_compute_dtype", format!("is {name:?}")))?),
        };
        Ok(Self {
            double_quant: object.bool("bnb_4bit_use_double_quant")?.unwrap_or(false),
            compute_dtype,
            skip_modules: object.strings("llm_int8_skip_modules")?,
        })
    }

    /// Whether a module of this name was left unquantized, by transformers' rule: an entry of the list begins the name or ends it. What a
    /// file really holds decides when it is loaded; this tells what its author meant.
    pub fn skips(&self, module: &str) -> bool {
        match &self.skip_modules {
            None => module == "lm_head" || module.ends_with(".lm_head"),
            Some(list) => list.iter().any(|entry| module.starts_with(entry.as_str()) || module.ends_with(entry.as_str())),
        }
    }
}
