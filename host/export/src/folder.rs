//! The folder of an export: filled under a temporary name, with what goes beside weights.

use crate::{ExportError, Result};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use trainer_model::chat_template::{TEMPLATE_FILE, chat_template, special_tokens, tokenizer_settings};
use trainer_model::config::{CONFIG_FILE, GENERATION_FILE};
use trainer_model::{GenerationConfig, ModelConfig, ModelFiles, durable};

/// What a tokenizer consists of; the same names everywhere.
const TOKENIZER_FILES: [&str; 5] = ["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "vocab.json", "merges.txt"];
/// The file that names the special tokens by use.
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
/// Qwen3's template (Apache-2.0, Qwen), for models that bring none.
const QWEN3_TEMPLATE: &str = include_str!("../assets/qwen3.jinja");
/// Above this size a tokenizer's file is a mistake.
const LIMIT: u64 = 256 << 20;

/// A folder that appears under its name when it is complete.
pub(crate) struct Folder {
    temporary: tempfile::TempDir,
    target: PathBuf,
}

impl Folder {
    /// A place for `target`, where nothing or an empty folder may be.
    pub fn create(target: &Path) -> Result<Self> {
        let free = match std::fs::read_dir(target) {
            Ok(mut entries) => entries.next().is_none(),
            Err(e) => e.kind() == std::io::ErrorKind::NotFound,
        };
        if !free {
            return Err(ExportError::Occupied { path: target.to_path_buf() });
        }
        Ok(Self { temporary: durable::temporary_beside(target)?, target: target.to_path_buf() })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Writes a file.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> Result<()> {
        let path = self.path().join(name);
        std::fs::write(&path, bytes).map_err(ExportError::io("write", &path))
    }

    /// Gives the folder its name; says how many bytes are in it.
    pub fn commit(self) -> Result<u64> {
        let mut bytes = 0u64;
        for entry in std::fs::read_dir(self.path()).map_err(ExportError::io("list", self.path()))? {
            let entry = entry.map_err(ExportError::io("list", self.path()))?;
            bytes = bytes.saturating_add(entry.metadata().map_err(ExportError::io("read", &entry.path()))?.len());
        }
        durable::commit_dir(self.path(), &self.target)?;
        Ok(bytes)
    }

    /// Names, sizes and SHA-256 of the files so far, for the card.
    pub fn listing(&self) -> Result<Vec<(String, u64, String)>> {
        use sha2::{Digest, Sha256};
        let mut files = Vec::new();
        for name in ModelFiles::Dir(self.path().to_path_buf()).names()? {
            let path = self.path().join(&name);
            let mut file = std::fs::File::open(&path).map_err(ExportError::io("open", &path))?;
            let mut hash = Sha256::new();
            let bytes = std::io::copy(&mut file, &mut hash).map_err(ExportError::io("read", &path))?;
            files.push((name, bytes, hash.finalize().iter().map(|b| format!("{b:02x}")).collect()));
        }
        Ok(files)
    }
}

/// A file by its name.
type NamedFile = (String, Vec<u8>);

/// Tokenizer, special tokens, chat template and generation settings of a model, as files by name; with notes for the user.
pub(crate) fn companions(files: &ModelFiles, config: &ModelConfig) -> Result<(Vec<NamedFile>, Vec<String>)> {
    let mut out: Vec<NamedFile> = Vec::new();
    let mut notes = Vec::new();
    for name in TOKENIZER_FILES.into_iter().chain([SPECIAL_TOKENS, TEMPLATE_FILE]) {
        if let Some(bytes) = files.read(name, LIMIT)? {
            out.push((name.to_string(), bytes.into_owned()));
        }
    }
    let settings = tokenizer_settings(files)?;
    if !out.iter().any(|(name, _)| name == SPECIAL_TOKENS) {
        out.push((SPECIAL_TOKENS.to_string(), pretty(&Value::Object(special_tokens(&settings)))));
    }
    if chat_template(files)?.is_none() {
        out.push((TEMPLATE_FILE.to_string(), QWEN3_TEMPLATE.as_bytes().to_vec()));
        notes.push("the base model brings no chat template, so Qwen3's was added".to_string());
    }
    let generation = match files.read_text(GENERATION_FILE)? {
        Some(text) => text.into_bytes(),
        None => pretty(&generation_of(config)),
    };
    out.push((GENERATION_FILE.to_string(), generation));
    notes.extend(token_notes(files, config)?);
    Ok((out, notes))
}

/// The model's own chat template, or Qwen3's.
pub(crate) fn chat_template_or_qwen3(files: &ModelFiles) -> Result<String> {
    Ok(chat_template(files)?.unwrap_or_else(|| QWEN3_TEMPLATE.to_owned()))
}

fn generation_of(config: &ModelConfig) -> Value {
    let mut map = Map::new();
    if !config.eos_token_ids.is_empty() {
        map.insert("eos_token_id".to_string(), json!(config.eos_token_ids));
    }
    if let Some(pad) = config.pad_token_id {
        map.insert("pad_token_id".to_string(), json!(pad));
    }
    Value::Object(map)
}

/// What is odd about the tokens that end and fill sequences.
///
/// # Errors
/// Files that cannot be read.
pub fn token_notes(files: &ModelFiles, config: &ModelConfig) -> Result<Vec<String>> {
    let generation = GenerationConfig::read(files)?;
    let mut notes = Vec::new();
    let ends: Vec<u32> = generation.eos_token_ids.iter().chain(&config.eos_token_ids).copied().collect();
    if ends.is_empty() {
        notes.push("neither generation_config.json nor config.json names a token that ends an answer (eos_token_id)".to_string());
    }
    let pad = generation.pad_token_id.or(config.pad_token_id);
    for (name, id) in ends.iter().map(|id| ("eos_token_id", *id)).chain(pad.map(|id| ("pad_token_id", id))) {
        if id as usize >= config.vocab_size {
            notes.push(format!("{name} {id} is no row of the embedding, which has {}", config.vocab_size));
        }
    }
    match pad {
        None => notes.push("no padding token is named (pad_token_id)".to_string()),
        Some(pad) if generation.eos_token_ids.first().or(config.eos_token_ids.first()) == Some(&pad) => {
            notes.push(format!(
                "pad_token_id and eos_token_id are both {pad}: trainers that mask padding would never teach the end of an answer"
            ));
        }
        Some(_) => {}
    }
    if let (Some(a), Some(b)) = (generation.pad_token_id, config.pad_token_id)
        && a != b
    {
        notes.push(format!("pad_token_id is {a} in generation_config.json and {b} in config.json"));
    }
    notes.dedup();
    Ok(notes)
}

/// `config.json` of an export: that of the base with its type, and with or without a quantization.
pub(crate) fn config_text(files: &ModelFiles, dtype: &str, quantization: Option<Value>) -> Result<String> {
    let text = files.read_text(CONFIG_FILE)?.unwrap_or_default();
    let what = files.describe_file(CONFIG_FILE);
    let mut map: Map<String, Value> = serde_json::from_str(&text).map_err(|e| ExportError::unfit(what, e.to_string()))?;
    map.remove("quantization_config");
    // What only says where another program had the base.
    for key in ["_name_or_path", "unsloth_fixed", "unsloth_version"] {
        map.remove(key);
    }
    let key = if map.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    map.insert(key.to_string(), json!(dtype));
    if let Some(quantization) = quantization {
        map.insert("quantization_config".to_string(), quantization);
    }
    Ok(format!("{:#}\n", Value::Object(map)))
}

pub(crate) fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}
