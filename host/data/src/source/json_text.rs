//! Checks that a text is exactly one JSON object (RFC 8259) without building it, so that numbers and keys reach the plugins as written.
//!
//! Stricter than most parsers where laxness would surface later and elsewhere: lone surrogate escapes (no Unicode text holds them) and `NaN`
//! are refused. Repeated keys pass: readers take the last, as Python's and JavaScript's do.

/// The deepest nesting; what follows in the pipeline parses recursively.
const MAX_DEPTH: usize = 128;

/// What is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JsonFault {
    /// Byte offset into the text.
    pub(crate) offset: usize,
    /// What is wrong.
    pub(crate) message: &'static str,
}

/// Checks for one object, possibly among white space.
pub(crate) fn check_object(text: &str) -> Result<(), JsonFault> {
    let mut p = Parser { text: text.as_bytes(), at: 0 };
    p.space();
    match p.peek() {
        Some(b'{') => {}
        Some(b'[') => return p.fault("an array where an object {...} was expected"),
        Some(b'"') => return p.fault("a string where an object {...} was expected"),
        Some(b'n' | b't' | b'f' | b'-' | b'0'..=b'9') if p.value().is_ok() => {
            p.at = 0;
            p.space();
            return p.fault("a lone value where an object {...} was expected");
        }
        Some(_) => return p.fault("an object {...} was expected"),
        None => return p.fault("nothing where an object {...} was expected"),
    }
    p.value()?;
    p.space();
    match p.peek() {
        None => Ok(()),
        Some(b'{') => p.fault("a second object; each row must be on a line of its own"),
        Some(_) => p.fault("text after the object"),
    }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn fault<T>(&self, message: &'static str) -> Result<T, JsonFault> {
        Err(JsonFault { offset: self.at.min(self.text.len()), message })
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// Any value. Nesting lives in a bit per level (set: object), not on the stack.
    fn value(&mut self) -> Result<(), JsonFault> {
        let mut levels = Vec::with_capacity(8);
        loop {
            self.space();
            match self.peek() {
                Some(open @ (b'{' | b'[')) => {
                    if levels.len() == MAX_DEPTH {
                        return self.fault("nested more than 128 deep");
                    }
                    self.at += 1;
                    let object = open == b'{';
                    self.space();
                    if self.peek() == Some(if object { b'}' } else { b']' }) {
                        self.at += 1;
                    } else {
                        levels.push(object);
                        if object {
                            self.key()?;
                        }
                        continue;
                    }
                }
                Some(b'"') => self.string()?,
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.word(b"true")?,
                Some(b'f') => self.word(b"false")?,
                Some(b'n') => self.word(b"null")?,
                Some(b'N' | b'I') => return self.fault("NaN and Infinity are not JSON; write null or leave the key out"),
                Some(b',' | b'}' | b']' | b':') => return self.fault("a value is missing here"),
                Some(_) => return self.fault("this begins no JSON value"),
                None => return self.fault("the text ends inside the object; the line may have been cut short"),
            }
            // A value is complete: close levels until one goes on.
            loop {
                let Some(&object) = levels.last() else { return Ok(()) };
                self.space();
                match (self.peek(), object) {
                    (Some(b','), _) => {
                        self.at += 1;
                        self.space();
                        if matches!(self.peek(), Some(b'}' | b']')) {
                            return self.fault("a comma before the closing bracket");
                        }
                        if object {
                            self.key()?;
                        }
                        break;
                    }
                    (Some(b'}'), true) | (Some(b']'), false) => {
                        self.at += 1;
                        levels.pop();
                    }
                    (None, _) => return self.fault("the text ends inside the object; the line may have been cut short"),
                    (Some(_), true) => return self.fault("a comma or } was expected"),
                    (Some(_), false) => return self.fault("a comma or ] was expected"),
                }
            }
        }
    }

    fn key(&mut self) -> Result<(), JsonFault> {
        self.space();
        match self.peek() {
            Some(b'"') => self.string()?,
            None => return self.fault("the text ends inside the object; the line may have been cut short"),
            Some(_) => return self.fault("a key in double quotes was expected"),
        }
        self.space();
        match self.peek() {
            Some(b':') => {
                self.at += 1;
                Ok(())
            }
            None => self.fault("the text ends inside the object; the line may have been cut short"),
            Some(_) => self.fault("a colon was expected after the key"),
        }
    }

    fn word(&mut self, word: &[u8]) -> Result<(), JsonFault> {
        if self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            self.at += word.len();
            Ok(())
        } else {
            self.fault("this begins no JSON value")
        }
    }

    fn digits(&mut self) -> bool {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at > start
    }

    fn number(&mut self) -> Result<(), JsonFault> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => {
                self.at += 1;
                if matches!(self.peek(), Some(b'0'..=b'9')) {
                    return self.fault("a number with a leading zero");
                }
            }
            Some(b'1'..=b'9') => {
                self.digits();
            }
            Some(b'I') => return self.fault("NaN and Infinity are not JSON; write null or leave the key out"),
            _ => return self.fault("a digit was expected"),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            if !self.digits() {
                return self.fault("a digit was expected after the decimal point");
            }
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if !self.digits() {
                return self.fault("a digit was expected in the exponent");
            }
        }
        Ok(())
    }

    fn string(&mut self) -> Result<(), JsonFault> {
        let open = self.at;
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                Some(0..=0x1f) => return self.fault("a control character inside a string; write it as an escape such as \\n"),
                Some(_) => self.at += 1,
                None => return Err(JsonFault { offset: open, message: "a string that is never closed; the line may have been cut short" }),
            }
        }
    }

    fn escape(&mut self) -> Result<(), JsonFault> {
        let start = self.at;
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(())
            }
            Some(b'u') => {
                let lone = Err(JsonFault { offset: start, message: "half of a surrogate pair, which is no Unicode character" });
                match self.unit()? {
                    0xd800..=0xdbff => {
                        if self.text.get(self.at..self.at + 2) != Some(b"\\u") {
                            return lone;
                        }
                        self.at += 1;
                        match self.unit()? {
                            0xdc00..=0xdfff => Ok(()),
                            _ => lone,
                        }
                    }
                    0xdc00..=0xdfff => lone,
                    _ => Ok(()),
                }
            }
            _ => self.fault("an unknown escape in a string"),
        }
    }

    /// The four digits after `u`, at which the parser stands.
    fn unit(&mut self) -> Result<u32, JsonFault> {
        self.at += 1;
        let mut unit = 0;
        for _ in 0..4 {
            let Some(digit) = self.peek().and_then(|b| char::from(b).to_digit(16)) else {
                return self.fault("four hexadecimal digits were expected after \\u");
            };
            unit = unit * 16 + digit;
            self.at += 1;
        }
        Ok(unit)
    }
}

/// The text of a value by the name of its column or, from a `/` on, by a JSON Pointer, in an object that was checked. Of a repeated key the last counts.
pub(crate) fn raw_at<'a>(object: &'a str, column: &str) -> Option<&'a str> {
    let Some(pointer) = column.strip_prefix('/') else { return member(object, column) };
    pointer.split('/').try_fold(object, |value, part| {
        let part = part.replace("~1", "/").replace("~0", "~");
        if value.starts_with('[') { element(value, &part) } else { member(value, &part) }
    })
}

/// The outermost column that a name or a JSON Pointer leads through.
pub(crate) fn first_part(column: &str) -> String {
    match column.strip_prefix('/') {
        None => column.to_owned(),
        Some(pointer) => pointer.split('/').next().unwrap_or_default().replace("~1", "/").replace("~0", "~"),
    }
}

/// The text of a member of an object that was checked.
pub(crate) fn member<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    let mut p = Parser { text: object.as_bytes(), at: 0 };
    let mut found = None;
    p.open(b'{')?;
    while p.peek() == Some(b'"') {
        let key = p.span(object)?;
        p.space();
        p.at += 1;
        p.space();
        let value = p.span(object)?;
        let quoted = key.get(1..key.len().saturating_sub(1))?;
        let same = if quoted.contains('\\') { serde_json::from_str::<String>(key).is_ok_and(|k| k == name) } else { quoted == name };
        if same {
            found = Some(value);
        }
        p.next_item();
    }
    found
}

/// The text of an item of an array that was checked.
fn element<'a>(array: &'a str, index: &str) -> Option<&'a str> {
    let index: usize = index.parse().ok()?;
    let mut p = Parser { text: array.as_bytes(), at: 0 };
    p.open(b'[')?;
    for _ in 0..index {
        if p.peek() == Some(b']') {
            return None;
        }
        p.span(array)?;
        p.next_item();
    }
    if p.peek() == Some(b']') { None } else { p.span(array) }
}

/// A text as a JSON string.
pub(crate) fn escape_key(name: &str) -> String {
    serde_json::Value::from(name).to_string()
}

impl Parser<'_> {
    /// Goes into an object or array.
    fn open(&mut self, bracket: u8) -> Option<()> {
        self.space();
        if self.peek() != Some(bracket) {
            return None;
        }
        self.at += 1;
        self.space();
        Some(())
    }

    /// Goes past a comma.
    fn next_item(&mut self) {
        self.space();
        if self.peek() == Some(b',') {
            self.at += 1;
        }
        self.space();
    }

    /// The text of the value that begins here, in a text that was checked, and moves past it.
    fn span<'a>(&mut self, text: &'a str) -> Option<&'a str> {
        let start = self.at;
        let mut depth = 0usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    loop {
                        match self.peek()? {
                            b'\\' => self.at += 2,
                            b'"' => break,
                            _ => self.at += 1,
                        }
                    }
                    self.at += 1;
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                b',' | b':' | b' ' | b'\t' | b'\r' | b'\n' => self.at += 1,
                // A number or a word.
                _ => {
                    while self.peek().is_some_and(|b| !matches!(b, b',' | b':' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n')) {
                        self.at += 1;
                    }
                }
            }
            if depth == 0 {
                return text.get(start..self.at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(text: &str) -> &'static str {
        check_object(text).unwrap_err().message
    }

    #[test]
    fn faults_are_named_and_placed() {
        assert_eq!(
            check_object(r#"{"a": 1} {"b": 2}"#),
            Err(JsonFault { offset: 9, message: "a second object; each row must be on a line of its own" })
        );
        assert_eq!(check_object(r#"{"x": NaN}"#).unwrap_err().offset, 6);
        assert!(message(r#"{"x": -Infinity}"#).starts_with("NaN and Infinity"));
        assert!(message(r#"{"x": "\ud800"}"#).contains("surrogate"));
        assert!(message(r#"{"x": "\ud800A"}"#).contains("surrogate"));
        assert!(message(r#"{"x": "\udc00"}"#).contains("surrogate"));
        assert_eq!(check_object(r#"{"x": "\ud83d\ude00", "x": 1}"#), Ok(()));
        assert!(message("[1]").contains("array"));
        assert!(message("null").contains("lone value"));
        assert!(message("hello").contains("object"));
        assert!(message("").contains("nothing"));
        assert!(message(r#"{"a": "b"#).contains("never closed"));
        assert!(message(r#"{"a": 1,}"#).contains("comma before"));
        assert!(message("{\"a\": \"\u{1}\"}").contains("control"));
        assert!(message(r#"{"a": 01}"#).contains("leading zero"));
    }

    #[test]
    fn depth_is_limited_without_recursion() {
        let deep = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert_eq!(check_object(&deep(127)), Ok(()));
        assert!(message(&deep(128)).contains("nested"));
        assert!(message(&deep(1_000_000)).contains("nested"));
    }

    proptest! {
        /// Agrees with serde_json, which ignores what it does not need and so accepts lone surrogates when skipping.
        #[test]
        fn agrees_with_serde_json(text in r#"[\[\]{}:,"\\ntruefalse0-9.eE+u \-]{0,24}"#) {
            let text = format!("{{\"a\":{text}}}");
            let expected = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text);
            // A number that overflows f64 is valid JSON, which serde_json cannot hold.
            let overflow = expected.as_ref().is_err_and(|e| e.to_string().contains("out of range"));
            prop_assert!(overflow || expected.is_ok() == check_object(&text).is_ok(), "{text}: {expected:?}");
        }

        #[test]
        fn accepts_what_serde_json_writes(s in ".*", n: f64, i: i64) {
            let value = serde_json::json!({ s.clone(): [s, n, i, { "k": null }], "t": true });
            prop_assert_eq!(check_object(&value.to_string()), Ok(()));
            prop_assert_eq!(check_object(&serde_json::to_string_pretty(&value).unwrap()), Ok(()));
        }

        #[test]
        fn every_prefix_is_refused(s in "[a-z\"\\\\é]{0,8}") {
            let text = serde_json::json!({ s.clone(): [s, 1.5e3, { "k": null }] }).to_string();
            for (end, _) in text.char_indices() {
                prop_assert!(check_object(&text[..end]).is_err());
            }
        }
    }
}
