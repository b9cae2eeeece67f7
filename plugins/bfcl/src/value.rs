//! JSON values with the types and the equality of Python, in which the leaderboard's checker is written.
//!
//! What matters: an integer is not a float, and has any number of digits; numbers and booleans compare by value (`True == 1 == 1.0`);
//! objects compare without regard to the order of their keys.

use std::fmt::Write as _;

/// The deepest nesting that is read.
const MAX_DEPTH: u32 = 128;

/// A value.
#[derive(Clone, Debug)]
pub enum Value {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number without fraction and exponent.
    Int(Int),
    /// Any other number.
    Float(f64),
    /// A string.
    Str(String),
    /// A list.
    List(Vec<Value>),
    /// An object, in the order of its keys; of equal keys the last value counts.
    Dict(Vec<(String, Value)>),
}

/// A value's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `null`.
    Null,
    /// A boolean.
    Bool,
    /// An integer.
    Int,
    /// A number with fraction or exponent.
    Float,
    /// A string.
    Str,
    /// A list.
    List,
    /// An object.
    Dict,
}

impl Type {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "boolean",
            Self::Int => "integer",
            Self::Float => "float",
            Self::Str => "string",
            Self::List => "list",
            Self::Dict => "object",
        }
    }
}

/// An integer of any size: its decimal digits without leading zeros, and its sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Int(String);

impl Int {
    /// From digits with an optional sign; none if it is no integer.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let digits = digits.trim_start_matches('0');
        Some(Self(match (digits, negative) {
            ("", _) => "0".to_owned(),
            (digits, true) => format!("-{digits}"),
            (digits, false) => digits.to_owned(),
        }))
    }

    /// The nearest floating-point number; none if it is too large.
    pub fn to_float(&self) -> Option<f64> {
        self.0.parse().ok().filter(|f: &f64| f.is_finite())
    }

    /// Whether a floating-point number has exactly this value.
    fn equals_float(&self, float: f64) -> bool {
        // Without decimals a float is printed with all its digits.
        float.is_finite() && float.fract() == 0.0 && Self::parse(&format!("{float:.0}")).is_some_and(|int| int == *self)
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Str(a), Self::Str(b)) => a == b,
            (Self::List(a), Self::List(b)) => a == b,
            (Self::Dict(a), Self::Dict(_)) => {
                a.len() == other.len() && a.iter().all(|(key, value)| other.get(key).is_some_and(|theirs| value == theirs))
            }
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Float(a), Self::Float(b)) => a == b,
            (Self::Int(a), Self::Float(b)) | (Self::Float(b), Self::Int(a)) => a.equals_float(*b),
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Bool(a), b) | (b, Self::Bool(a)) => match b {
                Self::Int(int) => int.0 == if *a { "1" } else { "0" },
                Self::Float(float) => *float == f64::from(u8::from(*a)),
                _ => false,
            },
            _ => false,
        }
    }
}

impl Value {
    /// A value's type.
    pub fn kind(&self) -> Type {
        match self {
            Self::Null => Type::Null,
            Self::Bool(_) => Type::Bool,
            Self::Int(_) => Type::Int,
            Self::Float(_) => Type::Float,
            Self::Str(_) => Type::Str,
            Self::List(_) => Type::List,
            Self::Dict(_) => Type::Dict,
        }
    }

    /// Whether it is the empty string, by which the data marks what may be left out.
    pub fn is_empty_string(&self) -> bool {
        matches!(self, Self::Str(s) if s.is_empty())
    }

    /// A member of an object.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.members().iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// The members of an object; none of anything else.
    pub fn members(&self) -> &[(String, Value)] {
        match self {
            Self::Dict(members) => members,
            _ => &[],
        }
    }

    /// The elements of a list; none of anything else.
    pub fn elements(&self) -> &[Value] {
        match self {
            Self::List(elements) => elements,
            _ => &[],
        }
    }

    /// The text of a string.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    fn len(&self) -> usize {
        self.members().len()
    }

    /// Reads one JSON value.
    ///
    /// # Errors
    /// The text is no JSON value, or one that is nested too deeply.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut reader = Reader { text, at: 0 };
        let value = reader.value(0)?;
        reader.space();
        match reader.peek() {
            None => Ok(value),
            Some(_) => Err(reader.error("characters after the value")),
        }
    }

    /// The value as JSON, `, ` and `: ` between its parts. Numbers that JSON cannot hold are written as `null`.
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Self::Int(int) => out.push_str(&int.0),
            Self::Float(f) if f.is_finite() => {
                let _ = write!(out, "{f:?}");
            }
            Self::Float(_) => out.push_str("null"),
            Self::Str(s) => write_string(s, out),
            Self::List(elements) => {
                out.push('[');
                for (i, element) in elements.iter().enumerate() {
                    out.push_str(if i == 0 { "" } else { ", " });
                    element.write(out);
                }
                out.push(']');
            }
            Self::Dict(members) => {
                out.push('{');
                for (i, (key, value)) in members.iter().enumerate() {
                    out.push_str(if i == 0 { "" } else { ", " });
                    write_string(key, out);
                    out.push_str(": ");
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

fn write_string(text: &str, out: &mut String) {
    // A string always has a JSON form.
    out.push_str(&serde_json::to_string(text).unwrap_or_default());
}

/// Reads JSON from a text.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn error(&self, what: &str) -> String {
        format!("no JSON: {what} at byte {}", self.at)
    }

    fn take(&mut self, byte: u8) -> bool {
        self.space();
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn value(&mut self, depth: u32) -> Result<Value, String> {
        if depth > MAX_DEPTH {
            return Err(self.error(&format!("nested more than {MAX_DEPTH} deep")));
        }
        self.space();
        match self.peek() {
            Some(b'{') => self.dict(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => self.string().map(Value::Str),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => {
                for (word, value) in [("null", Value::Null), ("true", Value::Bool(true)), ("false", Value::Bool(false))] {
                    if self.rest().starts_with(word) {
                        self.at += word.len();
                        return Ok(value);
                    }
                }
                Err(self.error("no value"))
            }
        }
    }

    fn list(&mut self, depth: u32) -> Result<Value, String> {
        self.at += 1;
        let mut elements = Vec::new();
        if self.take(b']') {
            return Ok(Value::List(elements));
        }
        loop {
            elements.push(self.value(depth + 1)?);
            if self.take(b']') {
                return Ok(Value::List(elements));
            }
            if !self.take(b',') {
                return Err(self.error("no `,` or `]`"));
            }
        }
    }

    fn dict(&mut self, depth: u32) -> Result<Value, String> {
        self.at += 1;
        let mut members: Vec<(String, Value)> = Vec::new();
        if self.take(b'}') {
            return Ok(Value::Dict(members));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.error("no key"));
            }
            let key = self.string()?;
            if !self.take(b':') {
                return Err(self.error("no `:`"));
            }
            let value = self.value(depth + 1)?;
            match members.iter_mut().find(|(k, _)| *k == key) {
                Some((_, earlier)) => *earlier = value,
                None => members.push((key, value)),
            }
            if self.take(b'}') {
                return Ok(Value::Dict(members));
            }
            if !self.take(b',') {
                return Err(self.error("no `,` or `}`"));
            }
        }
    }

    /// A string, from its opening quote on; its escapes are left to `serde_json`.
    fn string(&mut self) -> Result<String, String> {
        let bytes = self.text.as_bytes();
        let mut end = self.at + 1;
        loop {
            match bytes.get(end) {
                None => return Err(self.error("a string that does not end")),
                Some(b'\\') => end += 2,
                Some(b'"') => break,
                Some(_) => end += 1,
            }
        }
        let quoted = self.text.get(self.at..=end).unwrap_or_default();
        let string = serde_json::from_str(quoted).map_err(|e| self.error(&e.to_string()))?;
        self.at = end + 1;
        Ok(string)
    }

    fn number(&mut self) -> Result<Value, String> {
        let length = self.rest().bytes().take_while(|b| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')).count();
        let text = self.rest().get(..length).unwrap_or_default().to_owned();
        // Whether it is a number of JSON, and not only of Rust.
        let digits = text.strip_prefix('-').unwrap_or(&text);
        let zero_first = digits.len() > 1 && digits.starts_with('0') && digits.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
        let is_int = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let well_formed = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        let value = match (is_int && !zero_first, well_formed && !is_int) {
            (true, _) => Int::parse(&text).map(Value::Int),
            (_, true) => text.parse().ok().map(Value::Float),
            _ => None,
        };
        match value {
            Some(value) => {
                self.at += length;
                Ok(value)
            }
            None => Err(self.error("no number")),
        }
    }
}
