//! What a GGUF file says of a model: architecture, tokenizer, chat template (`docs/gguf.md` of ggml; `convert_hf_to_gguf.py` of llama.cpp).

use super::GgufQuant;
use crate::folder::chat_template_or_qwen3;
use crate::subject::Subject;
use crate::{ExportError, Result};
use serde_json::Value as Json;
use std::collections::BTreeSet;
use trainer_model::GenerationConfig;
use trainer_model::chat_template::{token_text, tokenizer_settings};
use trainer_model::gguf::{ALIGNMENT, Value};

/// Kinds of tokens.
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

const TOKENIZER_FILE: &str = "tokenizer.json";
/// Above this size a tokenizer is a mistake.
const LIMIT: u64 = 256 << 20;

/// All metadata in the order of the file.
pub(crate) fn of(subject: &Subject, quant: GgufQuant) -> Result<Vec<(String, Value)>> {
    let c = &subject.config;
    let mut all: Vec<(String, Value)> = Vec::new();
    let mut add = |key: &str, value: Value| all.push((key.to_string(), value));
    let text = |s: &str| Value::Text(s.to_string());
    let size = |n: usize| Value::Unsigned(n as u64);
    add("general.architecture", text("qwen3"));
    add("general.type", text("model"));
    add("general.name", text(&subject.provenance.name));
    add("general.alignment", Value::Unsigned(ALIGNMENT));
    add("general.file_type", Value::Unsigned(u64::from(quant.file_type())));
    add("general.quantization_version", Value::Unsigned(2));
    add("general.base_model.count", Value::Unsigned(1));
    add("general.base_model.0.name", text(&subject.provenance.base));
    if let Some((_, digest)) = &subject.provenance.lock {
        add("trainer.lock_digest", text(digest));
    }
    add("qwen3.block_count", size(c.num_hidden_layers));
    add("qwen3.context_length", size(c.max_position_embeddings));
    add("qwen3.embedding_length", size(c.hidden_size));
    add("qwen3.feed_forward_length", size(c.intermediate_size));
    add("qwen3.attention.head_count", size(c.num_attention_heads));
    add("qwen3.attention.head_count_kv", size(c.num_key_value_heads));
    add("qwen3.attention.key_length", size(c.head_dim));
    add("qwen3.attention.value_length", size(c.head_dim));
    add("qwen3.attention.layer_norm_rms_epsilon", Value::Float(c.rms_norm_eps));
    add("qwen3.rope.freq_base", Value::Float(c.rope_theta));
    add("qwen3.vocab_size", size(c.vocab_size));
    let tokenizer = Tokens::read(subject)?;
    add("tokenizer.ggml.model", text("gpt2"));
    add("tokenizer.ggml.pre", text("qwen2"));
    let settings = tokenizer_settings(&subject.files)?;
    let id_of = |key: &str| token_text(settings.get(key)).and_then(|t| tokenizer.tokens.iter().position(|known| known == t));
    let generation = GenerationConfig::read(&subject.files)?;
    let first = |ids: &[u32]| ids.first().map(|id| *id as usize);
    let eos = id_of("eos_token").or_else(|| first(&generation.eos_token_ids)).or_else(|| first(&c.eos_token_ids));
    let pad = id_of("pad_token").or_else(|| generation.pad_token_id.or(c.pad_token_id).map(|id| id as usize));
    let Tokens { tokens, kinds, merges } = tokenizer;
    add("tokenizer.ggml.tokens", Value::Texts(tokens));
    add("tokenizer.ggml.token_type", Value::Integers(kinds));
    add("tokenizer.ggml.merges", Value::Texts(merges));
    if let Some(id) = eos {
        add("tokenizer.ggml.eos_token_id", size(id));
    }
    if let Some(id) = pad {
        add("tokenizer.ggml.padding_token_id", size(id));
    }
    if let Some(id) = generation.bos_token_id.or(c.bos_token_id) {
        add("tokenizer.ggml.bos_token_id", Value::Unsigned(u64::from(id)));
    }
    add("tokenizer.ggml.add_bos_token", Value::Bool(settings.get("add_bos_token").and_then(Json::as_bool).unwrap_or(false)));
    add("tokenizer.chat_template", Value::Text(chat_template_or_qwen3(&subject.files)?));
    Ok(all)
}

/// The tokenizer as lists.
struct Tokens {
    tokens: Vec<String>,
    kinds: Vec<i64>,
    merges: Vec<String>,
}

impl Tokens {
    fn read(subject: &Subject) -> Result<Self> {
        let file = subject.files.describe_file(TOKENIZER_FILE);
        let wrong = |problem: String| ExportError::unfit(&file, problem);
        let bytes = subject.files.read(TOKENIZER_FILE, LIMIT)?.ok_or_else(|| wrong("is missing".into()))?;
        let json: Json = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        let model = json.get("model").cloned().unwrap_or_default();
        let is_bpe = model.get("type").and_then(Json::as_str).is_none_or(|t| t == "BPE") && is_byte_level(&json);
        if !is_bpe {
            return Err(wrong("is no byte-level BPE tokenizer of the Qwen family, which is the one that can be written".into()));
        }
        let rows = subject.config.vocab_size;
        let mut slots: Vec<Option<(String, i64)>> = vec![None; rows];
        let mut put = |id: Option<u64>, token: &str, kind: i64| -> Result<()> {
            let slot = id.and_then(|id| usize::try_from(id).ok()).and_then(|id| slots.get_mut(id));
            let slot = slot.ok_or_else(|| wrong(format!("token {token:?} has no row of the embedding, which has {rows}")))?;
            *slot = Some((token.to_string(), kind));
            Ok(())
        };
        let vocab = model.get("vocab").and_then(Json::as_object).ok_or_else(|| wrong("has no vocabulary".into()))?;
        for (token, id) in vocab {
            put(id.as_u64(), token, NORMAL)?;
        }
        for added in json.get("added_tokens").and_then(Json::as_array).into_iter().flatten() {
            let content = added.get("content").and_then(Json::as_str).ok_or_else(|| wrong("has an added token without content".into()))?;
            let special = added.get("special").and_then(Json::as_bool).unwrap_or(false);
            let kind = if special || looks_special(content) { CONTROL } else { USER_DEFINED };
            put(added.get("id").and_then(Json::as_u64), content, kind)?;
        }
        let texts: BTreeSet<&str> = slots.iter().flatten().map(|(t, _)| t.as_str()).collect();
        let filler = |id: usize| {
            let name = format!("[PAD{id}]");
            if texts.contains(name.as_str()) { format!("[PAD{id}]-unused") } else { name }
        };
        // The embedding has more rows than the tokenizer has tokens.
        let (tokens, kinds) = slots.iter().enumerate().map(|(id, slot)| slot.clone().unwrap_or_else(|| (filler(id), UNUSED))).unzip();
        let merges = model.get("merges").and_then(Json::as_array).ok_or_else(|| wrong("has no merges".into()))?;
        let merge = |merge: &Json| match merge {
            Json::String(text) => Some(text.clone()),
            Json::Array(pair) => match pair.as_slice() {
                [Json::String(a), Json::String(b)] => Some(format!("{a} {b}")),
                _ => None,
            },
            _ => None,
        };
        let merges = merges.iter().map(|m| merge(m).ok_or_else(|| wrong(format!("has the merge {m}"))));
        Ok(Self { tokens, kinds, merges: merges.collect::<Result<_>>()? })
    }
}

/// Whether text becomes bytes before it is merged, after Qwen's split: the one pattern with single digits and this lookahead.
fn is_byte_level(json: &Json) -> bool {
    let parts = json.pointer("/pre_tokenizer/pretokenizers").and_then(Json::as_array);
    let regex = parts.and_then(|p| p.first()?.pointer("/pattern/Regex")?.as_str());
    regex.is_some_and(|r| r.contains(r"|\p{N}|") && r.contains(r"\s+(?!\S)"))
        && json.pointer("/decoder/type").and_then(Json::as_str) == Some("ByteLevel")
}

/// As llama.cpp's converter: what is written like a special token is one.
fn looks_special(text: &str) -> bool {
    text.starts_with("<|") && text.ends_with("|>")
}
