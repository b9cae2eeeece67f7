//! Reading a JSON object key by key, with errors that name the parameter, and without overlooking any.

use serde_json::{Map, Value};

use crate::error::{ApiError, Result};

/// An object of a request. A key with the value null counts as absent.
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// Path of the object, empty for the request itself.
    path: String,
    known: Vec<&'static str>,
}

/// What a value is, for messages.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A value of the wrong type.
pub fn mistyped(path: &str, value: &Value, wanted: &str) -> ApiError {
    ApiError::param(path, format!("{path} must be {wanted}, not {}", kind(value))).code("invalid_type")
}

impl<'a> Fields<'a> {
    /// Reads `value`, which stands at `path` (empty: it is the whole request).
    ///
    /// # Errors
    /// It is no object.
    pub fn new(value: &'a Value, path: &str) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Fields { map, path: path.to_owned(), known: Vec::new() }),
            other if path.is_empty() => {
                Err(ApiError::new(axum::http::StatusCode::BAD_REQUEST, format!("the request must be one JSON object, not {}", kind(other))))
            }
            other => Err(mistyped(path, other, "an object")),
        }
    }

    /// The path of a key.
    pub fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// A value of any type.
    pub fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn typed<T>(&mut self, key: &'static str, wanted: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| mistyped(&self.path(key), value, wanted))
    }

    /// A boolean.
    pub fn bool(&mut self, key: &'static str) -> Result<Option<bool>> {
        self.typed(key, "a boolean", Value::as_bool)
    }

    /// A string.
    pub fn string(&mut self, key: &'static str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// An array.
    pub fn array(&mut self, key: &'static str) -> Result<Option<&'a [Value]>> {
        self.typed(key, "an array", |v| v.as_array().map(Vec::as_slice))
    }

    /// An object.
    pub fn object(&mut self, key: &'static str) -> Result<Option<Fields<'a>>> {
        match self.get(key) {
            Some(value) => Ok(Some(Fields::new(value, &self.path(key))?)),
            None => Ok(None),
        }
    }

    /// A whole number in a range.
    pub fn integer(&mut self, key: &'static str, least: i64, most: i64) -> Result<Option<i64>> {
        // 3.0 is whole too: some clients write all numbers so.
        let read = |v: &Value| {
            v.as_i64().or_else(|| v.as_f64().filter(|f| f.fract() == 0.0 && f.abs() <= 9_007_199_254_740_992.0).map(|f| f as i64))
        };
        let value = self.typed(key, "a whole number", read)?;
        match value {
            Some(n) if !(least..=most).contains(&n) => {
                let path = self.path(key);
                Err(ApiError::param(&path, format!("{path} is {n}; it must be from {least} to {most}")))
            }
            value => Ok(value),
        }
    }

    /// A number in a range.
    pub fn number(&mut self, key: &'static str, least: f64, most: f64) -> Result<Option<f64>> {
        match self.typed(key, "a number", Value::as_f64)? {
            Some(x) if !(least..=most).contains(&x) => {
                let path = self.path(key);
                Err(ApiError::param(&path, format!("{path} is {x}; it must be from {least} to {most}")))
            }
            value => Ok(value),
        }
    }

    /// Names of parameters that are taken and change nothing.
    pub fn ignore(&mut self, keys: &[&'static str]) {
        self.known.extend_from_slice(keys);
    }

    /// Refuses parameters that this server does not offer, unless they have a value that means nothing (null, false, or as `harmless` says).
    ///
    /// # Errors
    /// One has another value.
    pub fn refuse(&mut self, key: &'static str, harmless: impl FnOnce(&Value) -> bool, why: &str) -> Result<()> {
        match self.get(key) {
            Some(value) if *value != Value::Bool(false) && !harmless(value) => {
                let path = self.path(key);
                Err(ApiError::unsupported(&path, format!("{path} is not supported{why}")))
            }
            _ => Ok(()),
        }
    }

    /// All keys have been read.
    ///
    /// # Errors
    /// There is one that was never asked for, and has a value.
    pub fn finish(&self) -> Result<()> {
        match self.map.iter().find(|(key, value)| !value.is_null() && !self.known.contains(&key.as_str())) {
            Some((key, _)) => {
                let path = self.path(&short(key));
                Err(ApiError::param(&path, format!("{path} is no parameter that this server knows")).code("unknown_parameter"))
            }
            None => Ok(()),
        }
    }
}

/// A caller's words, cut to what fits a message.
pub fn short(text: &str) -> String {
    const LIMIT: usize = 100;
    if text.len() <= LIMIT { text.to_owned() } else { format!("{}...", &text[..text.floor_char_boundary(LIMIT)]) }
}
