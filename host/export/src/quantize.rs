//! A checkpoint in bitsandbytes' 4-bit form, as transformers saves and loads it.

use crate::card::{self, Card};
use crate::folder::Folder;
use crate::merged::{FourBits, fill};
use crate::subject::Subject;
use crate::{ExportError, Exported, Result};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use trainer_kernels::nf4::DoubleQuant;
use trainer_model::layout::{ModelTensor, TensorRole};
use trainer_model::{FloatType, QuantizationConfig};

/// How [`quantize`] quantizes.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizeOptions {
    /// Modules that stay in 16 bits, by transformers' rule: an entry begins or ends a module's name. The output head always stays.
    pub skip: Vec<String>,
    /// Whether scales are quantized, too.
    pub double: bool,
    /// Bytes of a shard at the most.
    pub shard_limit: u64,
}

/// Writes a model's checkpoint with its projections in 4 bits into a folder.
///
/// # Errors
/// A model that is quantized already, an entry of the list that names no module, a folder that is not free, what the operating system refuses, and a
/// file that differs when it is read again.
pub fn quantize(subject: &Subject, options: &QuantizeOptions, out: &Path) -> Result<Exported> {
    let what = &subject.provenance.base;
    if subject.config.quantization.is_some() {
        return Err(ExportError::unfit(what, "is in 4 bits already; give the unquantized model"));
    }
    let rule = QuantizationConfig { double_quant: options.double, compute_dtype: None, skip_modules: Some(options.skip.clone()) };
    let tensors = subject.tensors();
    let projections: Vec<&ModelTensor> = tensors.iter().filter(|t| t.role == TensorRole::Projection).collect();
    for entry in &options.skip {
        let plain = !entry.is_empty() && entry.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
        let one = QuantizationConfig { skip_modules: Some(vec![entry.clone()]), ..rule.clone() };
        let known = entry == "lm_head" || entry == "model.embed_tokens";
        if !plain || !(known || projections.iter().any(|t| one.skips(t.module()))) {
            let problem = "begins or ends no projection's name, such as model.layers.0.mlp.down_proj; `trainer model inspect` shows them";
            return Err(ExportError::unfit(format!("--skip {entry:?}"), problem));
        }
    }
    let names: BTreeSet<String> = projections.iter().filter(|t| !rule.skips(t.module())).map(|t| t.name.clone()).collect();
    if names.is_empty() {
        return Err(ExportError::unfit("--skip", "leaves nothing to quantize"));
    }
    let four = FourBits { names, double: if options.double { DoubleQuant::default() } else { DoubleQuant::No } };
    let folder = Folder::create(out)?;
    let mut notes = Vec::new();
    let verified = fill(subject, Some(&four), options.shard_limit, &folder, &mut notes)?;
    let usage = "from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained(\"PATH\")";
    let nested = if options.double { ", double-quantized" } else { "" };
    let count = four.names.len();
    card::write(
        &folder,
        subject,
        &Card {
            what: format!("`{what}` with {count} of {} projections in 4 bits (bitsandbytes NF4{nested}).", projections.len()),
            library: "transformers",
            tags: &["4-bit", "bitsandbytes"],
            usage: ("python", usage.to_string()),
            verified,
            notes: &notes,
        },
    )?;
    let bytes = folder.commit()?;
    Ok(Exported { path: out.to_path_buf(), format: "bitsandbytes-4bit".into(), weights: None, verified_tensors: verified, bytes, notes })
}

/// `quantization_config` as transformers writes it. Modules that stay are named in full: how shorter names match differs between its versions.
pub(crate) fn quantization_config(tensors: &[ModelTensor], quantized: &BTreeSet<String>, double: DoubleQuant, dtype: FloatType) -> Value {
    let stays = |t: &&ModelTensor| t.role == TensorRole::Projection && !quantized.contains(&t.name);
    let mut skip: Vec<&str> = Vec::new();
    if !quantized.contains("lm_head.weight") {
        skip.push("lm_head");
    }
    skip.extend(tensors.iter().filter(stays).map(ModelTensor::module));
    json!({
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": dtype.torch_name(),
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double != DoubleQuant::No,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": skip,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes",
    })
}
