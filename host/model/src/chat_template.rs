//! A model's own chat template, and what its tokenizer's settings say of special tokens.

use crate::files::ModelFiles;
use crate::{ModelError, Result};
use serde_json::{Map, Value, json};

/// The file of a chat template of its own.
pub const TEMPLATE_FILE: &str = "chat_template.jinja";
/// The tokenizer's settings.
pub const SETTINGS_FILE: &str = "tokenizer_config.json";

/// `tokenizer_config.json`.
///
/// # Errors
/// A file that is not a JSON object.
pub fn tokenizer_settings(files: &ModelFiles) -> Result<Map<String, Value>> {
    let Some(text) = files.read_text(SETTINGS_FILE)? else { return Ok(Map::new()) };
    serde_json::from_str(&text).map_err(|source| ModelError::Json { file: files.describe_file(SETTINGS_FILE), source })
}

/// The model's own chat template: that of its file, else that in the tokenizer's settings; of several there, the one named `default`.
///
/// # Errors
/// Files that cannot be read.
pub fn chat_template(files: &ModelFiles) -> Result<Option<String>> {
    if let Some(text) = files.read_text(TEMPLATE_FILE)? {
        return Ok(Some(text));
    }
    let settings = tokenizer_settings(files)?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Ok(match settings.get("chat_template") {
        Some(Value::Array(named)) => {
            let default = named.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
            default.and_then(|entry| entry.get("template")).and_then(text)
        }
        other => other.and_then(text),
    })
}

/// The text of a token in the tokenizer's settings, which is a string or an object.
pub fn token_text(value: Option<&Value>) -> Option<&str> {
    let value = value?;
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// Texts of special tokens by use (`bos_token`, ...), as transformers gives them to a chat template.
pub fn special_tokens(settings: &Map<String, Value>) -> Map<String, Value> {
    let uses = ["bos_token", "eos_token", "pad_token", "unk_token"];
    let named = uses.into_iter().filter_map(|key| Some((key.to_owned(), json!(token_text(settings.get(key))?))));
    let list = settings.get("additional_special_tokens").filter(|list| list.is_array());
    named.chain(list.map(|list| ("additional_special_tokens".to_owned(), list.clone()))).collect()
}
