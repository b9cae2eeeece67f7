//! Qwen's split pattern ([`crate::spec::QWEN_PATTERN`]) as a state machine.

use crate::unicode::{ClassTable, LETTER, NEWLINE, NUMBER, SPACE};

/// Neither letter, number nor space: punctuation, symbols, marks, unassigned.
const WORDLESS: u8 = LETTER | NUMBER | SPACE;

/// Cuts a text into the words that the pattern matches; every character belongs to one.
#[derive(Clone)]
pub(crate) struct Words<'a> {
    text: &'a str,
    at: usize,
    classes: ClassTable,
}

impl<'a> Words<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0, classes: ClassTable::get() }
    }

    /// Class and length of the character at a byte offset; none at the end.
    #[inline]
    fn class(&self, at: usize) -> Option<(u8, usize)> {
        let first = *self.text.as_bytes().get(at)?;
        if first < 0x80 {
            Some((ASCII[first as usize & 0x7F], 1))
        } else {
            let c = self.text.get(at..)?.chars().next()?;
            Some((self.classes.of(c), c.len_utf8()))
        }
    }

    /// The end of the run of characters from `at` on whose class bits under `mask` are `want`.
    #[inline]
    fn run(&self, mut at: usize, mask: u8, want: impl Fn(u8) -> bool) -> usize {
        while let Some((class, len)) = self.class(at) {
            if !want(class & mask) {
                break;
            }
            at += len;
        }
        at
    }

    /// `\p{L}+` from `at` on.
    fn letters(&self, at: usize) -> usize {
        self.run(at, LETTER, |c| c != 0)
    }

    /// `[^\s\p{L}\p{N}]+[\r\n]*` from `at` on.
    fn symbols(&self, at: usize) -> usize {
        self.run(self.run(at, WORDLESS, |c| c == 0), NEWLINE, |c| c != 0)
    }

    /// The end of the word that starts at `at`. The alternatives are tried in the order of the pattern.
    fn end(&self, at: usize) -> Option<usize> {
        let (class, len) = self.class(at)?;
        let next = at + len;
        let first = self.text.as_bytes().get(at);
        // (?i:'s|'t|'re|'ve|'m|'ll|'d)
        if first == Some(&b'\'')
            && let Some(n) = contraction(self.text.as_bytes().get(next..).unwrap_or_default())
        {
            return Some(next + n);
        }
        // [^\r\n\p{L}\p{N}]?\p{L}+
        if class & LETTER != 0 {
            return Some(self.letters(next));
        }
        let after = self.class(next);
        if class & (NUMBER | NEWLINE) == 0 && after.is_some_and(|(c, _)| c & LETTER != 0) {
            return Some(self.letters(next));
        }
        // \p{N}
        if class & NUMBER != 0 {
            return Some(next);
        }
        //  ?[^\s\p{L}\p{N}]+[\r\n]*
        if class & WORDLESS == 0 || first == Some(&b' ') && after.is_some_and(|(c, _)| c & WORDLESS == 0) {
            return Some(self.symbols(next));
        }
        Some(self.spaces(at))
    }

    /// `\s*[\r\n]+|\s+(?!\S)|\s+` at a space: up to the last newline of the run, else the run without its last character if a word follows.
    fn spaces(&self, start: usize) -> usize {
        let (mut at, mut last, mut after_newline) = (start, start, None);
        while let Some((class, len)) = self.class(at).filter(|(c, _)| c & SPACE != 0) {
            last = at;
            at += len;
            if class & NEWLINE != 0 {
                after_newline = Some(at);
            }
        }
        match after_newline {
            Some(end) => end,
            None if at == self.text.len() || last == start => at,
            None => last,
        }
    }
}

impl Iterator for Words<'_> {
    /// The byte range of a word.
    type Item = std::ops::Range<usize>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let start = self.at;
        self.at = self.end(start)?;
        Some(start..self.at)
    }
}

/// The length of `s|t|re|ve|m|ll|d` in any case at the start of `rest`. Unicode's simple case folding adds U+017F (ſ) to `s`.
fn contraction(rest: &[u8]) -> Option<usize> {
    let lower = |i: usize| rest.get(i).map(u8::to_ascii_lowercase);
    match (lower(0)?, lower(1)) {
        (b's' | b't' | b'm' | b'd', _) => Some(1),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(2),
        (0xC5, Some(0xBF)) => Some(2),
        _ => None,
    }
}

/// The classes of ASCII, by the definitions that [`ClassTable`] takes from the regex crate (a test compares them).
static ASCII: [u8; 128] = {
    let mut table = [0; 128];
    let mut i = 0u8;
    while i < 128 {
        table[i as usize] = match i {
            b'\r' | b'\n' => SPACE | NEWLINE,
            b'\t' | 0x0B | 0x0C | b' ' => SPACE,
            b'0'..=b'9' => NUMBER,
            b'a'..=b'z' | b'A'..=b'Z' => LETTER,
            _ => 0,
        };
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::QWEN_PATTERN;
    use proptest::prelude::*;
    use std::sync::LazyLock;
    use tokenizers::pattern::Pattern;
    use tokenizers::utils::SysRegex;

    #[test]
    fn ascii_table_agrees() {
        for c in 0..128u8 {
            assert_eq!(ASCII[c as usize], ClassTable::get().of(c as char) & (LETTER | NUMBER | SPACE | NEWLINE), "{c}");
        }
    }

    fn words(text: &str) -> Vec<&str> {
        Words::new(text).map(|r| &text[r]).collect()
    }

    #[test]
    fn words_of_each_alternative() {
        assert_eq!(words("I'm Tom's"), ["I", "'m", " Tom", "'s"]);
        assert_eq!(words("'ſ'LLx"), ["'ſ", "'LL", "x"]);
        assert_eq!(words("x  12 a"), ["x", " ", " ", "1", "2", " a"]);
        assert_eq!(words("a !?\r\n\n b"), ["a", " !?\r\n\n", " b"]);
        assert_eq!(words(" \n \n  x"), [" \n \n", " ", " x"]);
        assert_eq!(words("a   "), ["a", "   "]);
        assert_eq!(words("\u{A0}\u{A0}5"), ["\u{A0}", "\u{A0}", "5"]);
        assert_eq!(words("\tab\u{301}c"), ["\tab", "\u{301}c"]);
        assert_eq!(words(""), [""; 0]);
    }

    static REGEX: LazyLock<SysRegex> = LazyLock::new(|| SysRegex::new(QWEN_PATTERN).unwrap());

    fn check(regex: &SysRegex, text: &str) {
        let theirs: Vec<&str> =
            Pattern::find_matches(&regex, text).unwrap().into_iter().filter(|((a, b), _)| a < b).map(|((a, b), _)| &text[a..b]).collect();
        assert_eq!(words(text), theirs, "{text:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(6000))]
        #[test]
        fn words_are_those_of_the_regex(text in prop::collection::vec(prop_oneof![
            4 => prop::sample::select(vec!["'", " ", "\n", "\r", "\t", "s", "S", "ſ", "t", "re", "VE", "m", "ll", "K", "d", "a", "Z", "1", "²", "!", "\u{301}", "\u{A0}", "\u{2028}", "\u{85}", "你", "😊", "\u{378}", "\u{200B}", "\u{1C}"]).prop_map(str::to_owned),
            1 => any::<char>().prop_map(|c| c.to_string()),
        ], 0..24)) {
            check(&REGEX, &text.concat());
        }
    }
}
