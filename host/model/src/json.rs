//! Reading keys of a JSON object with errors that name file and key.

use crate::{ModelError, Result};
use serde_json::{Map, Value};

/// A JSON object and where it is.
pub(crate) struct Object<'a> {
    pub(crate) map: &'a Map<String, Value>,
    pub(crate) file: &'a str,
    /// Before every key in messages: empty, or `outer.`.
    pub(crate) prefix: &'a str,
}

impl<'a> Object<'a> {
    pub(crate) fn error(&self, key: &str, problem: impl Into<String>) -> ModelError {
        ModelError::config(self.file, format!("{}{key}", self.prefix), problem)
    }

    /// The value, unless it is missing or null.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn wrong(&self, key: &str, value: &Value, must: &str) -> ModelError {
        let mut shown = value.to_string();
        if let Some((cut, _)) = shown.char_indices().nth(80) {
            shown.truncate(cut);
            shown.push_str("...");
        }
        self.error(key, format!("is {shown}; it must be {must}"))
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.get(key).map(|v| v.as_bool().ok_or_else(|| self.wrong(key, v, "true or false"))).transpose()
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| self.wrong(key, v, "a string"))).transpose()
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        let finite = |v: &Value| v.as_f64().filter(|n| n.is_finite());
        self.get(key).map(|v| finite(v).ok_or_else(|| self.wrong(key, v, "a finite number"))).transpose()
    }

    /// A whole number in `1..=limit`.
    pub(crate) fn size(&self, key: &str, limit: u64) -> Result<Option<usize>> {
        let fits = |v: &Value| v.as_u64().filter(|n| (1..=limit).contains(n)).and_then(|n| usize::try_from(n).ok());
        self.get(key).map(|v| fits(v).ok_or_else(|| self.wrong(key, v, &format!("a whole number from 1 to {limit}")))).transpose()
    }

    /// A token id.
    pub(crate) fn id(&self, key: &str) -> Result<Option<u32>> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        self.get(key).map(|v| id(v).ok_or_else(|| self.wrong(key, v, "a token id"))).transpose()
    }

    /// One token id or a list of them.
    pub(crate) fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let must = "a token id or a list of them";
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(list @ Value::Array(items)) => items.iter().map(|v| id(v).ok_or_else(|| self.wrong(key, list, must))).collect(),
            Some(one) => id(one).map(|id| vec![id]).ok_or_else(|| self.wrong(key, one, must)),
        }
    }

    pub(crate) fn strings(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = value.as_array().and_then(|items| items.iter().map(|v| v.as_str().map(String::from)).collect());
        list.map(Some).ok_or_else(|| self.wrong(key, value, "a list of strings"))
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        self.get(key).map(|v| v.as_object().ok_or_else(|| self.wrong(key, v, "an object"))).transpose()
    }
}

/// Parses a text whose top level is an object.
pub(crate) fn parse_object(text: &str, file: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(text).map_err(|source| ModelError::Json { file: file.to_string(), source })
}
