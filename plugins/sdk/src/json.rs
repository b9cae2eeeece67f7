//! Reading rows: JSON text in, values or an error with a pointer to the offending place out.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::row;
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
    members: Vec<(Cow<'a, str>, &'a str)>,
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
        let members = match row::members(json, wanted) {
            Some(members) => members,
            None => by_serde(json, wanted).map_err(|e| RowError::new(place.clone(), format!("not a JSON object: {e}")))?,
        };
        Ok(Self { place, members })
    }

    /// The place of a member.
    pub fn place(&self, key: &str) -> Pointer {
        self.place.at(key)
    }

    /// A member's JSON text; none if it is missing or null.
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.member(key).filter(|raw| *raw != "null")
    }

    /// Whether the member is there, null or not.
    pub fn has(&self, key: &str) -> bool {
        self.member(key).is_some()
    }

    fn member(&self, key: &str) -> Option<&'a str> {
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
        match row::unescaped(raw) {
            Some(text) => Ok(Some(text)),
            None => serde_json::from_str(raw).map(Some).map_err(|e| RowError::new(self.place(key), format!("not a string: {e}"))),
        }
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

/// The members in `wanted`, as serde_json reads them.
fn by_serde<'a>(json: &'a str, wanted: &[&str]) -> Result<Vec<(Cow<'a, str>, &'a str)>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let members = deserializer.deserialize_map(Wanted(wanted))?;
    deserializer.end()?;
    Ok(members)
}

struct Wanted<'w>(&'w [&'w str]);

impl<'de> Visitor<'de> for Wanted<'_> {
    type Value = Vec<(Cow<'de, str>, &'de str)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::with_capacity(self.0.len());
        while let Some(Key(key)) = map.next_key::<Key<'de>>()? {
            if self.0.contains(&key.as_ref()) {
                let value = map.next_value::<&RawValue>()?.get();
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const WANTED: [&str; 3] = ["a", "b", ""];

    /// One pass and serde_json say the same, wherever the one pass says anything.
    fn agree(json: &str) -> bool {
        let Some(found) = row::members(json, &WANTED) else { return false };
        let serde = by_serde(json, &WANTED).unwrap_or_else(|e| panic!("{json}: {e}"));
        assert_eq!(found, serde, "{json}");
        for (_, text) in found {
            if let Some(said) = row::unescaped(text) {
                assert_eq!(Ok(said), serde_json::from_str::<String>(text).map_err(|e| e.to_string()), "{text}");
            }
        }
        true
    }

    #[test]
    fn ordinary_rows_take_one_pass() {
        let long = "lang und ß ".repeat(50);
        for json in [
            "{}".to_owned(),
            " { } \n".to_owned(),
            r#"{"a":"x","b" : [1, {"a": "]"}], "c": -1.5e3, "d":true , "e":null}"#.to_owned(),
            r#"{"a":"first","a":"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00 last"}"#.to_owned(),
            format!(r#"{{"a":"{long}\n{long}","other":"{long}"}}"#),
        ] {
            assert!(agree(&json), "{json}");
        }
        let row = Object::row(r#"{"a":"\ud83d\ude00\u00DF\\"}"#, &["a"]).unwrap();
        assert_eq!(row.string("a").unwrap(), "\u{1f600}ß\\");
    }

    #[test]
    fn what_is_not_right_is_left_to_serde_json() {
        for json in [
            "",
            "{",
            r#"{"a""#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            r#"{"a":1}x"#,
            r#"{"a":01}"#,
            r#"{"a":tru}"#,
            r#"{"a":"\x"}"#,
            r#"{"a":"\u12g4"}"#,
            "{\"a\":\"\n\"}",
            r#"{"a":[1,]}"#,
            r#"{"a" "b"}"#,
            r#"{a:1}"#,
            r#"{"a":1 "b":2}"#,
            "{\"a\":\u{a0}1}",
            r#"{"a":"\"#,
            "[]",
        ] {
            assert!(row::members(json, &WANTED).is_none(), "{json}");
            assert!(by_serde(json, &WANTED).is_err(), "{json}");
        }
        // Lone halves of a surrogate pair, and signs that are no digits.
        for quoted in [r#""\ud83d""#, r#""\ud83d\u0041""#, r#""\ude00""#, r#""\u+123""#] {
            assert_eq!(row::unescaped(quoted), None, "{quoted}");
        }
        let error = Object::row(r#"{"a":"\ud83d"}"#, &["a"]).unwrap().string("a").unwrap_err();
        assert!(error.message.starts_with("not a string: ") && error.pointer.to_string() == "/a", "{error:?}");
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map("[ab]{0,1}|\\PC{0,3}", inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn both_ways_of_reading_agree(members in prop::collection::vec(("[ab]{0,1}|\\PC{0,4}", value()), 0..5), pretty in any::<bool>()) {
            let text = |v: &Value| if pretty { serde_json::to_string_pretty(v) } else { serde_json::to_string(v) }.unwrap();
            let parts: Vec<String> = members.iter().map(|(k, v)| format!("{}:{}", text(&Value::from(k.as_str())), text(v))).collect();
            let json = format!("{{{}}}", parts.join(","));
            let escaped = members.iter().any(|(k, _)| text(&Value::from(k.as_str())).contains('\\'));
            prop_assert!(agree(&json) || escaped, "{}", json);
        }

        #[test]
        fn nothing_is_read_that_serde_json_refuses(json in r#"\{("[ab\\"]{0,3}" ?: ?("[\\"unx0-9\n]{0,8}"|[0-9.eE+-]{0,5}|[\[\]{}, ]{0,4}|true|null),?){0,3}\}?"#) {
            agree(&json);
        }
    }
}
