//! JSON as Python sees it: what `json.loads` makes of a text, `json.dumps(..., ensure_ascii=False)` of a value, and what `{{ value }}`
//! prints in a Jinja template.

use std::collections::HashMap;
use std::fmt::Write;

/// The deepest nesting that is read.
pub const MAX_DEPTH: usize = 200;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`.
    Null,
    /// `True`, `False`.
    Bool(bool),
    /// An integer, of any size, in decimal.
    Int(String),
    /// A float.
    Float(f64),
    /// A string.
    String(String),
    /// A list.
    List(Vec<Value>),
    /// A dict: of equal keys the last value at the first place.
    Dict(Vec<(String, Value)>),
}

/// Reads a JSON text.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(0)?;
    reader.space();
    if reader.at < text.len() { Err(reader.error("something follows the value")) } else { Ok(value) }
}

/// Writes a value as `json.dumps(value, ensure_ascii=False)` does.
pub fn dumps(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Int(digits) => out.push_str(digits),
        Value::Float(f) if f.is_infinite() => out.push_str(if *f > 0.0 { "Infinity" } else { "-Infinity" }),
        Value::Float(f) => float(*f, out),
        Value::String(s) => quote(s, out),
        Value::List(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                dumps(item, out);
            }
            out.push(']');
        }
        Value::Dict(entries) => {
            out.push('{');
            for (i, (key, item)) in entries.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                quote(key, out);
                out.push_str(": ");
                dumps(item, out);
            }
            out.push('}');
        }
    }
}

/// Writes a value as `str(value)` does.
pub fn print(value: &Value, out: &mut String) {
    match value {
        Value::String(s) => out.push_str(s),
        value => repr(value, out),
    }
}

fn repr(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(digits) => out.push_str(digits),
        Value::Float(f) if f.is_infinite() => out.push_str(if *f > 0.0 { "inf" } else { "-inf" }),
        Value::Float(f) => float(*f, out),
        Value::String(s) => repr_string(s, out),
        Value::List(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(item, out);
            }
            out.push(']');
        }
        Value::Dict(entries) => {
            out.push('{');
            for (i, (key, item)) in entries.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr_string(key, out);
                out.push_str(": ");
                repr(item, out);
            }
            out.push('}');
        }
    }
}

/// `repr(float)`: the shortest digits that round-trip, as a decimal for exponents from -4 to 15 and with an exponent of at least two
/// digits else.
fn float(f: f64, out: &mut String) {
    let scientific = format!("{f:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return out.push_str(&scientific);
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let start = out.len();
        // Infallible: a String takes everything.
        let _ = write!(out, "{f}");
        if !out.get(start..).unwrap_or_default().contains('.') {
            out.push_str(".0");
        }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        let _ = write!(out, "{mantissa}e{sign}{:02}", exponent.unsigned_abs());
    }
}

fn quote(s: &str, out: &mut String) {
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// `repr(str)`: single quotes unless there are only such inside, and escapes for what cannot be printed.
fn repr_string(s: &str, out: &mut String) {
    let quote = if s.contains('\'') && !s.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in s.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => {
                let code = u32::from(c);
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// Whether Python prints a character as it stands: by Unicode category, as Rust's own escaping of all but the first character of a string.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    let mut buffer = [b'a', 0, 0, 0, 0];
    let length = c.encode_utf8(&mut buffer[1..]).len();
    std::str::from_utf8(&buffer[..=length]).is_ok_and(|s| s.escape_debug().count() == 2)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, what: &str) -> String {
        format!("not JSON: {what} at byte {}", self.at)
    }

    fn rest(&self) -> &'a str {
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

    fn take(&mut self, wanted: &str) -> bool {
        let is = self.rest().starts_with(wanted);
        if is {
            self.at += wanted.len();
        }
        is
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > MAX_DEPTH {
            return Err(self.error(&format!("nested more than {MAX_DEPTH} deep")));
        }
        self.space();
        match self.peek() {
            Some(b'{') => self.dict(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => self.string().map(Value::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ if self.take("null") => Ok(Value::Null),
            _ if self.take("true") => Ok(Value::Bool(true)),
            _ if self.take("false") => Ok(Value::Bool(false)),
            Some(_) => Err(self.error("no value")),
            None => Err(self.error("the text ends")),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, String> {
        self.at += 1;
        let mut items = Vec::new();
        self.space();
        if self.take("]") {
            return Ok(Value::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            if self.take("]") {
                return Ok(Value::List(items));
            }
            if !self.take(",") {
                return Err(self.error("neither `,` nor `]` in a list"));
            }
        }
    }

    fn dict(&mut self, depth: usize) -> Result<Value, String> {
        self.at += 1;
        let mut entries: Vec<(String, Value)> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        self.space();
        if self.take("}") {
            return Ok(Value::Dict(entries));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.error("no key"));
            }
            let key = self.string()?;
            self.space();
            if !self.take(":") {
                return Err(self.error("no `:` after a key"));
            }
            let value = self.value(depth + 1)?;
            match places.get(&key).and_then(|place| entries.get_mut(*place)) {
                Some(entry) => entry.1 = value,
                None => {
                    places.insert(key.clone(), entries.len());
                    entries.push((key, value));
                }
            }
            self.space();
            if self.take("}") {
                return Ok(Value::Dict(entries));
            }
            if !self.take(",") {
                return Err(self.error("neither `,` nor `}` in an object"));
            }
        }
    }

    fn string(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let rest = self.rest();
            let plain = rest.find(|c| c == '"' || c == '\\' || c < ' ').ok_or_else(|| self.error("a string does not end"))?;
            out.push_str(rest.get(..plain).unwrap_or_default());
            self.at += plain;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    self.at += 1;
                    out.push(self.escape()?);
                }
                _ => return Err(self.error("a control character in a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        let escaped = self.peek().ok_or_else(|| self.error("a string does not end"))?;
        let c = match escaped {
            b'"' | b'\\' | b'/' => char::from(escaped),
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'u' => return self.unicode(),
            _ => return Err(self.error("an unknown escape")),
        };
        self.at += 1;
        Ok(c)
    }

    fn unicode(&mut self) -> Result<char, String> {
        let first = self.hex4()?;
        if (0xd800..0xdc00).contains(&first) && self.rest().starts_with("\\u") {
            self.at += 1;
            let second = self.hex4()?;
            if (0xdc00..0xe000).contains(&second) {
                let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return char::from_u32(code).ok_or_else(|| self.error("a surrogate without its other half"));
            }
        }
        char::from_u32(first).ok_or_else(|| self.error("a surrogate without its other half"))
    }

    /// `uXXXX`.
    fn hex4(&mut self) -> Result<u32, String> {
        let digits = self.text.get(self.at + 1..self.at + 5).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        let code =
            digits.and_then(|d| u32::from_str_radix(d, 16).ok()).ok_or_else(|| self.error("no four hexadecimal digits after \\u"))?;
        self.at += 5;
        Ok(code)
    }

    fn number(&mut self) -> Result<Value, String> {
        let start = self.at;
        let digits = |reader: &mut Self| {
            let first = reader.at;
            while matches!(reader.peek(), Some(b'0'..=b'9')) {
                reader.at += 1;
            }
            reader.at - first
        };
        self.take("-");
        let whole = self.at;
        if digits(self) == 0 {
            return Err(self.error("no digits in a number"));
        }
        if self.at - whole > 1 && self.text.as_bytes().get(whole) == Some(&b'0') {
            return Err(self.error("a number with a leading zero"));
        }
        let mut is_float = false;
        if self.take(".") {
            is_float = true;
            if digits(self) == 0 {
                return Err(self.error("no digits after the point of a number"));
            }
        }
        if self.take("e") || self.take("E") {
            is_float = true;
            let _ = self.take("+") || self.take("-");
            if digits(self) == 0 {
                return Err(self.error("no digits in the exponent of a number"));
            }
        }
        let text = self.text.get(start..self.at).unwrap_or_default();
        match is_float {
            true => text.parse().map(Value::Float).map_err(|_| self.error("no number")),
            false if text == "-0" => Ok(Value::Int("0".to_owned())),
            false => Ok(Value::Int(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dumped(text: &str) -> String {
        let mut out = String::new();
        dumps(&parse(text).unwrap(), &mut out);
        out
    }

    fn printed(text: &str) -> String {
        let mut out = String::new();
        print(&parse(text).unwrap(), &mut out);
        out
    }

    #[test]
    fn numbers_as_python_writes_them() {
        for (json, python) in [
            ("1", "1"),
            ("-0", "0"),
            ("-0.0", "-0.0"),
            ("1.0", "1.0"),
            ("1.50", "1.5"),
            ("1e0", "1.0"),
            ("1e-7", "1e-07"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("1e15", "1000000000000000.0"),
            ("1e16", "1e+16"),
            ("12345678901234567.0", "1.2345678901234568e+16"),
            ("1E+22", "1e+22"),
            ("1.5e300", "1.5e+300"),
            ("1e400", "Infinity"),
            ("-1e400", "-Infinity"),
            ("0.1", "0.1"),
            ("123456789.125", "123456789.125"),
            ("5e-324", "5e-324"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
        ] {
            assert_eq!(dumped(json), python, "{json}");
        }
    }

    #[test]
    fn values_as_python_writes_them() {
        assert_eq!(dumped(r#"{"b":[1,{}, []],"a":null ,"b":2}"#), r#"{"b": 2, "a": null}"#);
        assert_eq!(dumped(r#""\u0000\u001f\u007f\b\f\n\r\t\"\\\/é\ud83d\ude00""#), "\"\\u0000\\u001f\u{7f}\\b\\f\\n\\r\\t\\\"\\\\/é😀\"");
        assert_eq!(printed(r#"{"a": [1, true, null, "x"]}"#), "{'a': [1, True, None, 'x']}");
        assert_eq!(
            printed(r#"["it's", "say \"x\"", "both ' and \"", "\u0007\u00a0\u200b\ue000é\n"]"#),
            r#"["it's", 'say "x"', 'both \' and "', '\x07\xa0\u200b\ue000é\n']"#
        );
        assert_eq!(printed(r#""plain\n""#), "plain\n");
        assert_eq!(printed("1e400"), "inf");
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for bad in
            ["", "{", "[1,]", "{\"a\":1,}", "{a:1}", "01", "1.", "+1", "NaN", "\"\\ud800\"", "\"\\x\"", "\"\n\"", "1 2", "'a'", "tru"]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert!(parse(&"[".repeat(100_000)).unwrap_err().contains("deep"));
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(text in "[\\[\\]{}:,\"a\\\\u0-9eE.+-é ]{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn floats_round_trip(f in proptest::num::f64::NORMAL | proptest::num::f64::ZERO | proptest::num::f64::SUBNORMAL) {
            let mut out = String::new();
            float(f, &mut out);
            proptest::prop_assert_eq!(out.parse::<f64>().unwrap().to_bits(), f.to_bits());
        }
    }
}
