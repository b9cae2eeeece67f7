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

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// JSON of all sorts.
    pub fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-z_.]{0,12}|\\PC{0,6}".prop_map(Value::from),
            Just(json!({ "type": "function", "function": { "name": "f" } })),
            Just(json!({ "role": "user", "content": "x" })),
        ];
        let key = prop_oneof![Just("type"), Just("function"), Just("name"), Just("role"), Just("content"), Just("arguments"), Just("x")];
        leaf.prop_recursive(4, 48, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((key.clone(), inner), 0..5)
                    .prop_map(|entries| Value::Object(entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
            ]
        })
    }

    /// A request with another value at one of the keys that there are, or the value alone.
    pub fn with(mut request: Value, key: usize, value: Value) -> Value {
        const KEYS: [&str; 23] = [
            "model",
            "prompt",
            "messages",
            "tools",
            "tool_choice",
            "stop",
            "n",
            "seed",
            "stream",
            "stream_options",
            "temperature",
            "top_k",
            "logprobs",
            "top_logprobs",
            "max_tokens",
            "max_completion_tokens",
            "logit_bias",
            "response_format",
            "chat_template_kwargs",
            "parallel_tool_calls",
            "echo",
            "best_of",
            "unheard_of",
        ];
        match KEYS.get(key) {
            Some(key) => {
                request[*key] = value;
                request
            }
            None => value,
        }
    }

    #[test]
    fn numbers_have_types_and_ranges() {
        let body = json!({ "a": 3, "b": 3.0, "c": 3.5, "d": "3", "e": null, "f": 1e300 });
        let mut fields = Fields::new(&body, "").unwrap();
        assert_eq!((fields.integer("a", 0, 5).unwrap(), fields.integer("b", 0, 5).unwrap()), (Some(3), Some(3)));
        assert_eq!((fields.integer("e", 0, 5).unwrap(), fields.integer("missing", 0, 5).unwrap()), (None, None));
        for (key, code) in [("c", "invalid_type"), ("d", "invalid_type"), ("f", "invalid_type")] {
            let error = fields.integer(key, 0, 5).unwrap_err();
            assert_eq!((error.param.as_deref(), error.code), (Some(key), Some(code)));
        }
        assert_eq!(fields.integer("a", 4, 5).unwrap_err().message, "a is 3; it must be from 4 to 5");
        assert_eq!(fields.number("c", 0.0, 4.0).unwrap(), Some(3.5));
        assert!(fields.number("f", 0.0, 4.0).is_err());
        fields.finish().unwrap();
        let mut fields = Fields::new(&body, "x[1]").unwrap();
        fields.get("a");
        assert_eq!(fields.finish().unwrap_err().param.as_deref(), Some("x[1].b"));
    }
}
