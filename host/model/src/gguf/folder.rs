//! A GGUF file as a model folder: the texts of config.json, generation_config.json, tokenizer.json and tokenizer_config.json that follow from its
//! metadata.

use super::metadata::Value;
use super::{GgmlType, GgufFile};
use crate::config::{CONFIG_FILE, GENERATION_FILE};
use crate::{ModelError, Result};
use serde_json::{Map, Value as Json, json};

/// Files that a GGUF file stands for.
pub(crate) const FILES: [&str; 4] = [CONFIG_FILE, GENERATION_FILE, "tokenizer.json", "tokenizer_config.json"];

/// The split pattern of the tokenizers that llama.cpp calls `qwen2`: those of Qwen2, Qwen2.5 and Qwen3.
const QWEN_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Kinds of tokens in `tokenizer.ggml.token_type`.
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// Control tokens that end an answer in every Qwen model, whatever else the metadata name: llama.cpp takes them by their texts, too.
const ENDS: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];

impl GgufFile {
    /// The text of one of [`FILES`]; none for other names.
    pub(crate) fn folder_file(&self, name: &str) -> Result<Option<String>> {
        Ok(Some(match name {
            CONFIG_FILE => self.config()?.to_string(),
            GENERATION_FILE => self.generation()?.to_string(),
            "tokenizer.json" => self.tokenizer()?.to_string(),
            "tokenizer_config.json" => self.tokenizer_config()?.to_string(),
            _ => return Ok(None),
        }))
    }

    fn get(&self, key: &str) -> Result<&Value> {
        self.metadata().get(key).ok_or_else(|| self.wrong(key, "is missing"))
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        let wrong = || self.wrong(key, "must be a string");
        self.metadata().get(key).map(|v| v.as_str().ok_or_else(wrong)).transpose()
    }

    fn number(&self, key: &str) -> Result<Option<u64>> {
        let wrong = || self.wrong(key, "must be a whole number that is not negative");
        self.metadata().get(key).map(|v| v.as_u64().ok_or_else(wrong)).transpose()
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        let wrong = || self.wrong(key, "must be a number");
        self.metadata().get(key).map(|v| v.as_f64().filter(|x| x.is_finite()).ok_or_else(wrong)).transpose()
    }

    fn config(&self) -> Result<Json> {
        let architecture = self.get("general.architecture")?.as_str().unwrap_or_default();
        if architecture != "qwen3" {
            let supported = "this program runs Qwen3 (architecture \"qwen3\")";
            return Err(ModelError::unsupported(&self.name(), format!("general.architecture {architecture:?}"), supported));
        }
        let key = |name: &str| format!("qwen3.{name}");
        let size = |name: &str| -> Result<u64> { self.number(&key(name))?.ok_or_else(|| self.wrong(&key(name), "is missing")) };
        for name in ["rope.scaling.type", "rope.scaling.factor"] {
            match self.metadata().get(&key(name)) {
                None => {}
                Some(value) if value.as_str() == Some("none") || value.as_f64() == Some(1.0) || value.as_f64() == Some(0.0) => {}
                Some(value) => {
                    let supported = "only unscaled rotary embeddings are";
                    return Err(ModelError::unsupported(&self.name(), format!("{} {value:?}", key(name)), supported));
                }
            }
        }
        let (hidden, heads) = (size("embedding_length")?, size("attention.head_count")?);
        let head_dim = match self.number(&key("attention.key_length"))? {
            Some(n) => n,
            None => hidden.checked_div(heads).ok_or_else(|| self.wrong(&key("attention.head_count"), "is 0"))?,
        };
        if self.number(&key("attention.value_length"))?.is_some_and(|n| n != head_dim) {
            return Err(self.wrong(&key("attention.value_length"), format!("differs from attention.key_length, which is {head_dim}")));
        }
        let embedding = self.tensors().get("token_embd.weight");
        let vocab = embedding
            .and_then(|t| t.shape().first().copied())
            .ok_or_else(|| ModelError::tensor(&self.name(), "token_embd.weight", "is missing"))?;
        let eps = self.float(&key("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-6);
        let mut map = json!({
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": self.tensors().contains_key("blk.0.attn_q.bias"),
            "head_dim": head_dim,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": size("feed_forward_length")?,
            "max_position_embeddings": size("context_length")?,
            "model_type": "qwen3",
            "num_attention_heads": heads,
            "num_hidden_layers": size("block_count")?,
            "num_key_value_heads": self.number(&key("attention.head_count_kv"))?.unwrap_or(heads),
            // The file has an f32; what its author wrote is its shortest decimal form.
            "rms_norm_eps": shortest(eps),
            "rope_theta": shortest(self.float(&key("rope.freq_base"))?.unwrap_or(10_000.0)),
            "tie_word_embeddings": !self.tensors().contains_key("output.weight"),
            "vocab_size": vocab,
        });
        if let (Json::Object(map), Some(name)) = (&mut map, self.dtype()) {
            map.insert("torch_dtype".to_string(), json!(name));
        }
        self.add_ids(&mut map)?;
        Ok(map)
    }

    /// The type of the embedding, where it is one that a configuration can name.
    fn dtype(&self) -> Option<&'static str> {
        match self.tensors().get("token_embd.weight")?.kind {
            GgmlType::F32 => Some("float32"),
            GgmlType::F16 => Some("float16"),
            GgmlType::BF16 => Some("bfloat16"),
            _ => None,
        }
    }

    fn add_ids(&self, map: &mut Json) -> Result<()> {
        for (key, name) in [("tokenizer.ggml.padding_token_id", "pad_token_id"), ("tokenizer.ggml.bos_token_id", "bos_token_id")] {
            if let Some(id) = self.number(key)? {
                map[name] = json!(id);
            }
        }
        map["eos_token_id"] = json!(self.ends()?);
        Ok(())
    }

    /// Tokens that end an answer.
    fn ends(&self) -> Result<Vec<u64>> {
        let mut ends = Vec::new();
        for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
            ends.extend(self.number(key)?);
        }
        let (tokens, kinds) = self.tokens()?;
        for (id, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
            if *kind == CONTROL && ENDS.contains(&token.as_str()) {
                ends.push(id as u64);
            }
        }
        let mut seen = Vec::new();
        ends.retain(|id| {
            !seen.contains(id) && {
                seen.push(*id);
                true
            }
        });
        Ok(ends)
    }

    fn generation(&self) -> Result<Json> {
        let mut map = json!({});
        self.add_ids(&mut map)?;
        Ok(map)
    }

    fn tokens(&self) -> Result<(&[String], &[i64])> {
        let list = "tokenizer.ggml.tokens";
        let tokens = self.get(list)?.as_texts().ok_or_else(|| self.wrong(list, "must be a list of strings"))?;
        let key = "tokenizer.ggml.token_type";
        let kinds = self.get(key)?.as_integers().ok_or_else(|| self.wrong(key, "must be a list of integers"))?;
        if kinds.len() != tokens.len() {
            return Err(self.wrong(key, format!("has {} entries for {} tokens", kinds.len(), tokens.len())));
        }
        Ok((tokens, kinds))
    }

    fn tokenizer(&self) -> Result<Json> {
        for (key, needed) in [("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "qwen2")] {
            match self.text(key)? {
                Some(name) if name == needed => {}
                other => {
                    let what = format!("{key} {:?}", other.unwrap_or("(none)"));
                    return Err(ModelError::unsupported(&self.name(), what, format!("only {needed:?} is, which Qwen's tokenizers have")));
                }
            }
        }
        let (tokens, kinds) = self.tokens()?;
        let mut vocab = Map::new();
        let mut added = Vec::new();
        for (id, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
            match *kind {
                NORMAL => {
                    if vocab.insert(token.clone(), json!(id)).is_some() {
                        return Err(self.wrong("tokenizer.ggml.tokens", format!("has {token:?} twice")));
                    }
                }
                CONTROL | USER_DEFINED => added.push(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                    "special": *kind == CONTROL,
                })),
                UNUSED => {}
                other => return Err(self.wrong("tokenizer.ggml.token_type", format!("says {other} of token {id}, which is not read"))),
            }
        }
        let key = "tokenizer.ggml.merges";
        let merges = self.get(key)?.as_texts().ok_or_else(|| self.wrong(key, "must be a list of strings"))?;
        let split =
            |merge: &String| merge.split_once(' ').map(|(a, b)| json!([a, b])).ok_or_else(|| self.wrong(key, format!("has {merge:?}")));
        let merges = merges.iter().map(split).collect::<Result<Vec<Json>>>()?;
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            ]},
            "post_processor": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": merges,
            },
        }))
    }

    fn tokenizer_config(&self) -> Result<Json> {
        let (tokens, kinds) = self.tokens()?;
        let mut decoder = Map::new();
        for (id, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
            if matches!(*kind, CONTROL | USER_DEFINED) {
                let entry = json!({
                    "content": token, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": *kind == CONTROL,
                });
                decoder.insert(id.to_string(), entry);
            }
        }
        let mut map = json!({
            "tokenizer_class": "Qwen2Tokenizer",
            "add_bos_token": matches!(self.metadata().get("tokenizer.ggml.add_bos_token"), Some(Value::Bool(true))),
            "clean_up_tokenization_spaces": false,
            "added_tokens_decoder": decoder,
            "bos_token": null,
            "unk_token": null,
        });
        for (key, name) in [("tokenizer.ggml.eos_token_id", "eos_token"), ("tokenizer.ggml.padding_token_id", "pad_token")] {
            if let Some(id) = self.number(key)? {
                let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
                let token = token.ok_or_else(|| self.wrong(key, format!("is {id}, but there are {} tokens", tokens.len())))?;
                map[name] = json!(token);
            }
        }
        if let Some(template) = self.text("tokenizer.chat_template")? {
            map["chat_template"] = json!(template);
        }
        Ok(map)
    }
}

/// The number with the fewest decimals that is the same in f32.
fn shortest(value: f64) -> f64 {
    format!("{}", value as f32).parse().unwrap_or(value)
}
