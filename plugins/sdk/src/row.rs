//! The members of a row, in one pass over its text. What a row that is not quite right is refused with is serde_json's business: this here gives up on
//! whatever it does not know, and the caller asks serde_json.

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::scan::string_stop;

/// The members in `wanted` of the JSON object that `json` is, with their values' texts; of equal keys the last counts. None: ask serde_json.
pub(crate) fn members<'a>(json: &'a str, wanted: &[&str]) -> Option<Vec<(Cow<'a, str>, &'a str)>> {
    let mut found: Vec<(Cow<'a, str>, &'a str)> = Vec::with_capacity(wanted.len());
    let mut text = Text { json, at: 0 };
    text.expect(b'{')?;
    if text.peek()? == b'}' {
        text.at += 1;
        return text.ended().then_some(found);
    }
    loop {
        text.space();
        let quoted = text.string()?;
        let key = inside(quoted)?;
        if key.contains('\\') {
            return None;
        }
        text.expect(b':')?;
        text.space();
        let value = text.value()?;
        if wanted.contains(&key) {
            match found.iter_mut().find(|(name, _)| name == key) {
                Some((_, last)) => *last = value,
                None => found.push((Cow::Borrowed(key), value)),
            }
        }
        match text.peek()? {
            b',' => text.at += 1,
            b'}' => {
                text.at += 1;
                return text.ended().then_some(found);
            }
            _ => return None,
        }
    }
}

/// What a JSON string says. None: ask serde_json.
pub(crate) fn unescaped(quoted: &str) -> Option<String> {
    let mut rest = inside(quoted)?;
    let mut out = String::with_capacity(rest.len());
    while let Some(at) = string_stop(rest.as_bytes()) {
        out.push_str(rest.get(..at)?);
        let mut after = rest.get(at..)?.strip_prefix('\\')?.chars();
        out.push(match after.next()? {
            plain @ ('"' | '\\' | '/') => plain,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let (character, left) = code_point(after.as_str())?;
                after = left.chars();
                character
            }
            _ => return None,
        });
        rest = after.as_str();
    }
    out.push_str(rest);
    Some(out)
}

/// The character of what follows `\u`, and the text after it.
fn code_point(text: &str) -> Option<(char, &str)> {
    let unit = |text: &str| {
        let digits = text.get(..4)?;
        // The standard library would also take a sign.
        digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok())?
    };
    let (first, rest) = (unit(text)?, text.get(4..)?);
    if !(0xd800..0xdc00).contains(&first) {
        return Some((char::from_u32(first)?, rest));
    }
    let rest = rest.strip_prefix("\\u")?;
    let second = unit(rest)?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
    Some((char::from_u32(0x10000 + ((first - 0xd800) << 10) + second)?, rest.get(4..)?))
}

fn inside(quoted: &str) -> Option<&str> {
    quoted.strip_prefix('"')?.strip_suffix('"')
}

/// A JSON text that is read from front to back.
struct Text<'a> {
    json: &'a str,
    at: usize,
}

impl<'a> Text<'a> {
    fn byte(&self) -> Option<u8> {
        self.json.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.byte(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// The next byte that is no space.
    fn peek(&mut self) -> Option<u8> {
        self.space();
        self.byte()
    }

    fn expect(&mut self, wanted: u8) -> Option<()> {
        (self.peek()? == wanted).then(|| self.at += 1)
    }

    fn ended(&mut self) -> bool {
        self.peek().is_none()
    }

    /// A string with its quotes, whose escapes are looked at only as far as a value is that nobody wants.
    fn string(&mut self) -> Option<&'a str> {
        let bytes = self.json.as_bytes();
        let from = self.at;
        if self.byte()? != b'"' {
            return None;
        }
        let mut at = from + 1;
        loop {
            at += string_stop(bytes.get(at..)?)?;
            match bytes.get(at)? {
                b'"' => {
                    self.at = at + 1;
                    return self.json.get(from..self.at);
                }
                b'\\' => match bytes.get(at + 1)? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => at += 2,
                    b'u' if bytes.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit) => at += 6,
                    _ => return None,
                },
                _ => return None,
            }
        }
    }

    fn value(&mut self) -> Option<&'a str> {
        if self.byte()? == b'"' {
            return self.string();
        }
        let mut values = serde_json::Deserializer::from_str(self.json.get(self.at..)?).into_iter::<&'a RawValue>();
        let raw = values.next()?.ok()?.get();
        self.at += raw.len();
        Some(raw)
    }
}
