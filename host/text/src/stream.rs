//! Ids to text, one at a time.

use crate::segment::Piece;
use crate::tokenizer::Tokenizer;

/// Bytes in, text out; holds back at most the three bytes of an incomplete character. What it has given and what [`Utf8Stream::finish`]
/// gives are together `String::from_utf8_lossy` of all bytes.
#[derive(Clone, Debug, Default)]
struct Utf8Stream {
    held: Vec<u8>,
}

impl Utf8Stream {
    /// Appends to `out` what is certain after `bytes`.
    fn push(&mut self, bytes: &[u8], out: &mut String) {
        if self.held.is_empty() {
            let rest = Self::decode(bytes, out);
            self.held.extend_from_slice(rest);
        } else {
            self.held.extend_from_slice(bytes);
            let all = std::mem::take(&mut self.held);
            let rest = Self::decode(&all, out).len();
            self.held = all;
            self.held.drain(..self.held.len() - rest);
        }
    }

    /// Decodes as far as possible; gives the incomplete character at the end.
    fn decode<'a>(mut bytes: &'a [u8], out: &mut String) -> &'a [u8] {
        loop {
            match std::str::from_utf8(bytes) {
                Ok(text) => {
                    out.push_str(text);
                    return &[];
                }
                Err(e) => {
                    let (valid, rest) = bytes.split_at(e.valid_up_to());
                    // `valid` is valid by definition of `valid_up_to`; the lossy form needs no unwrap.
                    out.push_str(&String::from_utf8_lossy(valid));
                    match e.error_len() {
                        None => return rest,
                        Some(n) => {
                            out.push(char::REPLACEMENT_CHARACTER);
                            bytes = rest.get(n..).unwrap_or_default();
                        }
                    }
                }
            }
        }
    }

    /// The end: an incomplete character becomes U+FFFD.
    fn finish(&mut self, out: &mut String) {
        if !self.held.is_empty() {
            self.held.clear();
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

/// Decodes ids one at a time into text that never shows half a character, in constant time and memory per token.
///
/// Everything that [`StreamDecoder::push`] gave and what [`StreamDecoder::finish`] gives are together [`Tokenizer::decode`] of all ids.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    utf8: Utf8Stream,
    out: String,
}

impl StreamDecoder {
    pub(crate) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, utf8: Utf8Stream::default(), out: String::new() }
    }

    /// Takes the next id and gives the text that is certain now, often of one token, sometimes empty, sometimes of several. Unknown ids give
    /// nothing, as in `tokenizers`.
    pub fn push(&mut self, id: u32) -> &str {
        self.out.clear();
        if let Some(bytes) = self.tokenizer.shown_bytes(id, self.skip_special) {
            self.utf8.push(bytes, &mut self.out);
        }
        &self.out
    }

    /// Whether an incomplete character is held back.
    pub fn is_incomplete(&self) -> bool {
        !self.utf8.held.is_empty()
    }

    /// The ids have ended: U+FFFD for an incomplete character, else nothing. Afterwards the decoder is as new.
    pub fn finish(&mut self) -> &str {
        self.out.clear();
        self.utf8.finish(&mut self.out);
        &self.out
    }
}

/// Decodes ids one at a time into text and added tokens, for the output parser of a chat template.
///
/// The texts of all pieces are together [`Tokenizer::decode`] of all ids (without skipping).
#[derive(Clone, Debug)]
pub struct PieceDecoder {
    tokenizer: Tokenizer,
    utf8: Utf8Stream,
}

impl PieceDecoder {
    pub(crate) fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, utf8: Utf8Stream::default() }
    }

    /// Takes the next id and appends the pieces that are certain now. Text continues a text piece at the end of `out`.
    pub fn push(&mut self, id: u32, out: &mut Vec<Piece>) {
        let Some(bytes) = self.tokenizer.token_bytes(id) else { return };
        if let Some(added) = self.tokenizer.added_token(id) {
            // An added token is whole text, so a character that is incomplete here stays so.
            Self::text(out, |s| self.utf8.finish(s));
            out.push(Piece::Special(added.text.clone()));
        } else {
            Self::text(out, |s| self.utf8.push(bytes, s));
        }
    }

    /// The ids have ended: U+FFFD for an incomplete character. Afterwards the decoder is as new.
    pub fn finish(&mut self, out: &mut Vec<Piece>) {
        Self::text(out, |s| self.utf8.finish(s));
    }

    fn text(out: &mut Vec<Piece>, write: impl FnOnce(&mut String)) {
        if let Some(Piece::Text(s)) = out.last_mut() {
            return write(s);
        }
        let mut s = String::new();
        write(&mut s);
        if !s.is_empty() {
            out.push(Piece::Text(s));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However the bytes are cut, the stream gives the lossy text of all of them, and nothing but whole characters before the end.
        #[test]
        fn any_cut_gives_the_lossy_text(chunks in prop::collection::vec(prop::collection::vec(prop_oneof![
            any::<u8>(), Just(0xE4), Just(0xBD), Just(0xA0), Just(0xF0), Just(0x9F), Just(0x98), Just(0x8A), Just(b'a'), Just(0xED), Just(0xC2)
        ], 0..6), 0..30)) {
            let mut stream = Utf8Stream::default();
            let mut text = String::new();
            for (i, chunk) in chunks.iter().enumerate() {
                stream.push(chunk, &mut text);
                prop_assert!(stream.held.len() <= 3);
                // What a stream shows plus a mark for what it holds back is the lossy text of the bytes so far.
                let so_far = chunks[..=i].concat();
                let mut shown = text.clone();
                stream.clone().finish(&mut shown);
                prop_assert_eq!(&*String::from_utf8_lossy(&so_far), &shown);
            }
            stream.finish(&mut text);
            let all = chunks.concat();
            prop_assert_eq!(&*String::from_utf8_lossy(&all), &text);
        }
    }
}
