//! Character classes and normalisation, by the tables of the crates that `tokenizers` uses.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};
use unicode_normalization_alignments::char::canonical_combining_class;
use unicode_normalization_alignments::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// `\p{L}`.
pub(crate) const LETTER: u8 = 1;
/// `\p{N}`.
pub(crate) const NUMBER: u8 = 2;
/// `\s`.
pub(crate) const SPACE: u8 = 4;
/// Carriage return or line feed; they are `SPACE` too.
pub(crate) const NEWLINE: u8 = 8;
/// Text with such a character may not be in NFC.
const NOT_SURELY_NFC: u8 = 16;

/// The class of every character, in blocks of 256; equal blocks are stored once.
struct Classes {
    index: Vec<u16>,
    blocks: Vec<[u8; 256]>,
}

static CLASSES: LazyLock<Classes> = LazyLock::new(Classes::build);

/// A borrowed class table, so that inner loops do not ask whether it has been built.
#[derive(Clone, Copy)]
pub(crate) struct ClassTable(&'static Classes);

impl ClassTable {
    pub fn get() -> Self {
        Self(&CLASSES)
    }

    /// The class bits of a character.
    #[inline]
    pub fn of(self, c: char) -> u8 {
        let c = c as usize;
        let block = self.0.index.get(c >> 8).copied().unwrap_or(0);
        self.0.blocks.get(block as usize).map_or(0, |b| b[c & 0xFF])
    }
}

impl Classes {
    fn build() -> Self {
        let mut flat = vec![0u8; 0x11_0000];
        for (pattern, bit) in [(r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)] {
            for (from, to) in ranges(pattern) {
                flat[from as usize..=to as usize].iter_mut().for_each(|c| *c |= bit);
            }
        }
        flat['\r' as usize] |= NEWLINE;
        flat['\n' as usize] |= NEWLINE;
        for c in (0..FIRST_UNCOMPOSED).filter_map(char::from_u32) {
            if !is_surely_nfc(c) {
                flat[c as usize] |= NOT_SURELY_NFC;
            }
        }
        let mut blocks: Vec<[u8; 256]> = Vec::new();
        let index = flat
            .as_chunks::<256>()
            .0
            .iter()
            .map(|block| {
                let at = blocks.iter().position(|b| b == block).unwrap_or_else(|| {
                    blocks.push(*block);
                    blocks.len() - 1
                });
                // There are 4352 blocks in all.
                at as u16
            })
            .collect();
        Self { index, blocks }
    }
}

/// Behind this no character composes, decomposes or reorders (CJK extensions G and up, tags, variation selectors and private use); a test
/// looks at all of them.
const FIRST_UNCOMPOSED: u32 = 0x3_0000;

/// Whether a text of such characters only is in NFC: the quick check of UAX #15.
fn is_surely_nfc(c: char) -> bool {
    canonical_combining_class(c) == 0 && matches!(is_nfc_quick(std::iter::once(c)), IsNormalized::Yes)
}

/// The characters of a class, as the regex crate defines it.
fn ranges(class: &str) -> Vec<(char, char)> {
    match regex_syntax::parse(class).map(|h| h.into_kind()) {
        Ok(HirKind::Class(Class::Unicode(set))) => set.ranges().iter().map(|r| (r.start(), r.end())).collect(),
        // The three patterns are fixed, and the features they need are in Cargo.toml.
        other => unreachable!("{class} is not a Unicode class: {other:?}"),
    }
}

/// A text in NFC that differs from the given one.
#[derive(Debug)]
pub(crate) struct Normalised {
    /// The text.
    pub text: String,
    /// For every byte of it, where the character that it came from starts in the given text; never decreasing.
    pub starts: Vec<u32>,
}

/// Brings a text into NFC; none if it is already.
pub(crate) fn nfc(text: &str) -> Option<Normalised> {
    // Characters below U+0300, whose first byte is below 0xCC, neither combine nor decompose in NFC.
    if text.bytes().all(|b| b < 0xCC) {
        return None;
    }
    let classes = ClassTable::get();
    if text.chars().all(|c| classes.of(c) & NOT_SURELY_NFC == 0) || text.nfc().map(|(c, _)| c).eq(text.chars()) {
        return None;
    }
    let mut out = Normalised { text: String::with_capacity(text.len()), starts: Vec::with_capacity(text.len()) };
    let mut given = text.char_indices();
    let mut last = 0;
    // `change` counts characters: 1 stands for one put in, 0 for one in place of the next given, -n for one in place of the next and the n after.
    for (c, change) in text.nfc() {
        // What is put in belongs to the last character taken, gone or not, as in `tokenizers`.
        let mut start = last;
        if change <= 0 {
            start = given.next().map_or(last, |(at, _)| at);
            last = start;
            for _ in 0..change.unsigned_abs() {
                last = given.next().map_or(last, |(at, _)| at);
            }
        }
        out.text.push(c);
        out.starts.resize(out.text.len(), u32::try_from(start).unwrap_or(u32::MAX));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::normalizer::Range;
    use tokenizers::{NormalizedString, Normalizer};

    #[test]
    fn classes_are_those_of_the_regex_crate() {
        let of = |c| ClassTable::get().of(c) & (LETTER | NUMBER | SPACE | NEWLINE);
        for (c, class) in [
            ('a', LETTER),
            ('ſ', LETTER),
            ('你', LETTER),
            ('ª', LETTER),
            ('5', NUMBER),
            ('Ⅷ', NUMBER),
            ('½', NUMBER),
            (' ', SPACE),
            ('\u{A0}', SPACE),
            ('\u{85}', SPACE),
            ('\u{2028}', SPACE),
            ('\u{3000}', SPACE),
            ('\u{200B}', 0),
            ('\n', SPACE | NEWLINE),
            ('\r', SPACE | NEWLINE),
            ('\u{B}', SPACE),
            ('!', 0),
            ('\u{301}', 0),
            ('😊', 0),
            ('\u{378}', 0),
            ('\u{10FFFF}', 0),
        ] {
            assert_eq!(of(c), class, "{c:?}");
        }
        for (pattern, bit) in [(r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)] {
            let count: u32 = ranges(pattern).iter().map(|(a, b)| *b as u32 - *a as u32 + 1).sum();
            let got = (0..0x11_0000).filter_map(char::from_u32).filter(|c| of(*c) & bit != 0).count();
            assert_eq!(got as u32, count, "{pattern}");
        }
    }

    #[test]
    fn nothing_composes_behind_the_limit() {
        for c in (FIRST_UNCOMPOSED..0x11_0000).filter_map(char::from_u32) {
            assert!(is_surely_nfc(c), "{c:?}");
        }
    }

    fn check(text: &str) {
        let mut theirs = NormalizedString::from(text);
        tokenizers::normalizers::NFC.normalize(&mut theirs).unwrap();
        match nfc(text) {
            None => assert_eq!(theirs.get(), text),
            Some(ours) => {
                assert_eq!(theirs.get(), ours.text);
                assert_eq!(ours.starts.len(), ours.text.len());
                for (at, c) in ours.text.char_indices() {
                    let range = theirs.convert_offsets(Range::Normalized(at..at + c.len_utf8())).unwrap();
                    assert_eq!(ours.starts[at] as usize, range.start, "{text:?} at {at}");
                }
                assert!(ours.starts.is_sorted());
            }
        }
    }

    #[test]
    fn alignment_on_known_cases() {
        for text in
            ["e\u{301}", "a\u{315}\u{300}b", "\u{1100}\u{1161}\u{11A8}", "\u{212B}", "q\u{307}\u{323}", "\u{958}", "\u{344}x", "\u{301}"]
        {
            check(text);
        }
        let n = nfc("xe\u{301}y").unwrap();
        assert_eq!((n.text.as_str(), n.starts), ("xéy", vec![0, 1, 1, 4]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn normalisation_and_offsets_are_those_of_tokenizers(text in prop::collection::vec(prop_oneof![
            any::<char>(), (0x300u32..0x370).prop_map(|c| char::from_u32(c).unwrap()), (0x1100u32..0x1200).prop_map(|c| char::from_u32(c).unwrap()),
            (0xC0u32..0x250).prop_map(|c| char::from_u32(c).unwrap()), (0x900u32..0xE00).prop_map(|c| char::from_u32(c).unwrap()),
            (0xF900u32..0xFB50).prop_map(|c| char::from_u32(c).unwrap()), Just('a'), Just('e'), Just('가'), Just('q')
        ], 0..24)) {
            check(&text.into_iter().collect::<String>());
        }
    }
}
