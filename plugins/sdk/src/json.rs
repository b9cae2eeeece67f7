//! Reading rows: JSON text in, values or an error with a pointer to the offending place out.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::types::{BadRow, Outcome};

/// A place in a row, as a JSON Pointer (RFC 6901).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pointer(String);

impl Pointer {
    /// The row itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// A member or element below this place.
    #[must_use]
    pub fn at(&self, key: impl fmt::Display) -> Self {
        let key = key.to_string().replace('~', "~0").replace('/', "~1");
        Self(format!("{}/{key}", self.0))
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a row is broken, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowError {
    /// The place; empty for the row itself.
    pub pointer: Pointer,
    /// What is there, and what was expected.
    pub message: String,
}

impl RowError {
    /// An error at a place.
    pub fn new(pointer: Pointer, message: impl Into<String>) -> Self {
        Self { pointer, message: message.into() }
    }
}

impl From<RowError> for Outcome {
    fn from(error: RowError) -> Self {
        Self::Bad(BadRow { pointer: error.pointer.0, message: error.message })
    }
}

/// Reads a row into a type of the plugin's. Use [`Object`] where errors should point at single columns.
pub fn parse_row<T: DeserializeOwned>(row: &str) -> Result<T, RowError> {
    serde_json::from_str(row).map_err(|e| RowError::new(Pointer::root(), e.to_string()))
}

/// A JSON object whose members are kept as JSON text, so that only those which a plugin wants are read, and others cost a scan. Of equal
/// keys the last counts.
#[derive(Debug)]
pub struct Object<'a> {
    place: Pointer,
    /// Few, so that going through them is faster than a table.
    members: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Object<'a> {
    /// Reads a row, keeping the members in `wanted`.
    pub fn row(json: &'a str, wanted: &[&str]) -> Result<Self, RowError> {
        Self::read(json, wanted, Pointer::root())
    }

    /// Reads the object at a place of a row, keeping the members in `wanted`.
    pub fn read(json: &'a str, wanted: &[&str], place: Pointer) -> Result<Self, RowError> {
        if !json.trim_start().starts_with('{') {
            return Err(RowError::new(place, format!("{} where an object belongs", kind(json))));
        }
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let members = deserializer
            .deserialize_map(Wanted(wanted))
            .and_then(|members| deserializer.end().map(|()| members))
            .map_err(|e| RowError::new(place.clone(), format!("not a JSON object: {e}")))?;
        Ok(Self { place, members })
    }

    /// The place of a member.
    pub fn place(&self, key: &str) -> Pointer {
        self.place.at(key)
    }

    /// A member's JSON text; none if it is missing or null.
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.member(key).map(RawValue::get).filter(|raw| *raw != "null")
    }

    /// Whether the member is there, null or not.
    pub fn has(&self, key: &str) -> bool {
        self.member(key).is_some()
    }

    fn member(&self, key: &str) -> Option<&'a RawValue> {
        self.members.iter().find(|(name, _)| name == key).map(|(_, raw)| *raw)
    }

    /// A member that must be a string.
    pub fn string(&self, key: &str) -> Result<String, RowError> {
        self.optional_string(key)?.ok_or_else(|| self.missing(key, "a string"))
    }

    /// A member that is a string if it is there.
    pub fn optional_string(&self, key: &str) -> Result<Option<String>, RowError> {
        let Some(raw) = self.get(key) else { return Ok(None) };
        if !raw.starts_with('"') {
            return Err(RowError::new(self.place(key), format!("{} where a string belongs", kind(raw))));
        }
        serde_json::from_str(raw).map(Some).map_err(|e| RowError::new(self.place(key), format!("not a string: {e}")))
    }

    /// A member's elements as JSON text; the member must be a list.
    pub fn list(&self, key: &str) -> Result<Vec<&'a str>, RowError> {
        let raw = self.get(key).ok_or_else(|| self.missing(key, "a list"))?;
        if !raw.starts_with('[') {
            return Err(RowError::new(self.place(key), format!("{} where a list belongs", kind(raw))));
        }
        let elements: Vec<&RawValue> = serde_json::from_str(raw).map_err(|e| RowError::new(self.place(key), format!("not a list: {e}")))?;
        Ok(elements.into_iter().map(RawValue::get).collect())
    }

    /// The error for a member that is not there.
    pub fn missing(&self, key: &str, expected: &str) -> RowError {
        let what = if self.has(key) { "null" } else { "missing" };
        RowError::new(self.place(key), format!("{what} where {expected} belongs"))
    }
}

/// What kind of value a JSON text holds, in words.
pub(crate) fn kind(json: &str) -> &'static str {
    match json.trim_start().as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        Some(b'-' | b'0'..=b'9') => "a number",
        _ => "no JSON value",
    }
}

struct Wanted<'w>(&'w [&'w str]);

impl<'de> Visitor<'de> for Wanted<'_> {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::with_capacity(self.0.len());
        while let Some(Key(key)) = map.next_key::<Key<'de>>()? {
            if self.0.contains(&key.as_ref()) {
                let value = map.next_value()?;
                match members.iter_mut().find(|(name, _): &&mut (Cow<'_, str>, _)| *name == key) {
                    Some((_, last)) => *last = value,
                    None => members.push((key, value)),
                }
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(members)
    }
}

/// A key, borrowed where it holds no escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(key)))
            }
            fn visit_str<E>(self, key: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(key.to_owned())))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}
