//! Text from models, tools and files, made harmless for a terminal.

use std::fmt::Write;

/// Whether a character could steer a terminal or reorder what is read: control characters other than line feed and tab, and the marks that turn the
/// direction of writing.
fn steers(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        c if c.is_control() => true,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}' => true,
        _ => false,
    }
}

/// The text with everything that could steer a terminal written out: an escape character as `␛`, others as `<U+202E>`. Character by character, so
/// a stream can be cut anywhere.
pub fn safe(text: &str) -> std::borrow::Cow<'_, str> {
    if !text.chars().any(steers) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match u32::from(c) {
            _ if !steers(c) => out.push(c),
            code @ 0..0x20 => out.push(char::from_u32(0x2400 + code).unwrap_or(char::REPLACEMENT_CHARACTER)),
            0x7f => out.push('\u{2421}'),
            // Infallible: a String takes everything.
            code => drop(write!(out, "<U+{code:04X}>")),
        }
    }
    out.into()
}

/// What a model wrote, for standard output: as it is, unless that is a terminal.
pub fn shown(text: &str) -> std::borrow::Cow<'_, str> {
    if super::terminal() { safe(text) } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_comes_through() {
        assert_eq!(safe("plain é 😀 👩‍👧\n\ttext"), "plain é 😀 👩‍👧\n\ttext");
        assert_eq!(safe("\x1b]0;title\x07\x1b[2J\r\x08\x7f"), "␛]0;title␇␛[2J␍␈␡");
        // One-byte forms of the same, and what turns text around.
        assert_eq!(safe("\u{9b}31m\u{85}"), "<U+009B>31m<U+0085>");
        assert_eq!(safe("a\u{202e}b\u{2066}"), "a<U+202E>b<U+2066>");
        let all: String = (0..0x3000u32).chain(0xe0000..0xe0100).filter_map(char::from_u32).collect();
        assert!(!safe(&all).chars().any(steers));
        for c in all.chars() {
            assert!(!safe(&c.to_string()).contains('\u{1b}'));
        }
    }
}
