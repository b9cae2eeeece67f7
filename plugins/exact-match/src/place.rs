//! Places in rows, as a setting names them.

use serde_json::value::RawValue;
use trainer_plugin_sdk::{Message, Object, Pointer, RowError};

/// A place: a JSON Pointer (RFC 6901).
pub struct Place {
    keys: Vec<String>,
    pointer: Pointer,
}

impl Place {
    /// Reads a pointer.
    ///
    /// # Errors
    /// It does not begin with `/`, or a `~` in it is no escape.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix('/') else {
            return Err(format!("{text:?} is no JSON Pointer to a part of a row, such as /answer"));
        };
        let key = |part: &str| {
            let escapes = part.matches('~').count();
            if part.matches("~0").count() + part.matches("~1").count() != escapes {
                return Err(format!("{text:?} is no JSON Pointer: `~` is written `~0`, and `/` in a name `~1`"));
            }
            Ok(part.replace("~1", "/").replace("~0", "~"))
        };
        let keys: Vec<String> = path.split('/').map(key).collect::<Result<_, _>>()?;
        let pointer = keys.iter().fold(Pointer::root(), |place, key| place.at(key));
        Ok(Self { keys, pointer })
    }

    /// The JSON text at the place in a row.
    ///
    /// # Errors
    /// There is nothing, or null.
    pub fn find<'a>(&self, row: &'a str) -> Result<&'a str, RowError> {
        let mut place = Pointer::root();
        let mut raw = row.trim();
        for key in &self.keys {
            let next = if raw.starts_with('[') {
                let index = key.parse::<usize>().ok();
                index.and_then(|i| elements(raw, &place).ok()?.get(i).copied())
            } else {
                Object::read(raw, &[key], place.clone())?.get(key)
            };
            place = place.at(key);
            raw = next.ok_or_else(|| RowError::new(place.clone(), "missing or null"))?;
        }
        Ok(raw)
    }

    /// An error at the place.
    pub fn wrong(&self, message: impl Into<String>) -> RowError {
        RowError::new(self.pointer.clone(), message)
    }

    /// A string's text.
    pub fn text(&self, raw: &str) -> Result<String, RowError> {
        serde_json::from_str(raw).map_err(|_| self.wrong("something else where a string belongs"))
    }

    /// A string's text, or a number or boolean as it is written.
    pub fn scalar(&self, raw: &str) -> Result<String, RowError> {
        match raw.as_bytes().first() {
            Some(b'-' | b'0'..=b'9' | b't' | b'f') => Ok(raw.to_owned()),
            _ => serde_json::from_str(raw).map_err(|_| self.wrong("neither a string nor a number nor a boolean")),
        }
    }

    /// A list's elements.
    pub fn elements<'a>(&self, raw: &'a str) -> Result<Vec<&'a str>, RowError> {
        elements(raw, &self.pointer)
    }

    /// A list of messages with `role` and `content`.
    pub fn messages(&self, raw: &str) -> Result<Vec<Message>, RowError> {
        let messages = self.elements(raw).map_err(|_| self.wrong("neither a string nor a list of messages"))?;
        if messages.is_empty() {
            return Err(self.wrong("an empty list where at least one message belongs"));
        }
        let message = |(i, raw): (usize, &&str)| {
            let message = Object::read(raw, &["role", "content"], self.pointer.at(i))?;
            Ok(Message::text(message.string("role")?, message.string("content")?))
        };
        messages.iter().enumerate().map(message).collect()
    }
}

fn elements<'a>(raw: &'a str, place: &Pointer) -> Result<Vec<&'a str>, RowError> {
    let elements: Vec<&RawValue> = serde_json::from_str(raw).map_err(|e| RowError::new(place.clone(), format!("not a list: {e}")))?;
    Ok(elements.into_iter().map(RawValue::get).collect())
}
