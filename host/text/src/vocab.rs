//! The tokens by id: their bytes, and which of them were added to the model's own vocabulary.

use std::collections::HashMap;

use crate::error::TextError;

/// Ids above this are refused, since tables are indexed by id. The largest vocabularies in use have about 300,000 entries.
pub(crate) const MAX_ID: u32 = (1 << 22) - 1;

/// A token that was added to the vocabulary and is recognised as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Whether decoding with `skip_special` leaves it out. Qwen3 flags `<think>` and `<tool_call>` as not special.
    pub special: bool,
}

/// The bytes that a character of a byte-level vocabulary stands for (GPT-2's map from 256 bytes to printable characters, reversed).
pub(crate) fn char_to_byte(c: char) -> Option<u8> {
    Some(match c as u32 {
        c @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => c as u8,
        c @ 0x100..=0x120 => (c - 0x100) as u8,
        c @ 0x121..=0x142 => (c - 0x121) as u8 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    })
}

/// Appends the bytes of a token as a byte-level decoder gives them: every character mapped to its byte, or, where one has none, the text itself.
pub(crate) fn token_to_bytes(token: &str, out: &mut Vec<u8>) {
    let start = out.len();
    for c in token.chars() {
        match char_to_byte(c) {
            Some(b) => out.push(b),
            None => {
                out.truncate(start);
                out.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// Bytes of every token by id.
#[derive(Debug, Default)]
pub(crate) struct TokenTable {
    bytes: Vec<u8>,
    spans: Vec<Option<(u32, u32)>>,
    added: Vec<AddedToken>,
    added_by_id: HashMap<u32, usize>,
    added_by_text: HashMap<String, usize>,
}

impl TokenTable {
    /// Adds a token of the model's vocabulary (or an added one, by [`TokenTable::insert_added`]).
    pub fn insert(&mut self, id: u32, token: &str) -> Result<(), TextError> {
        let invalid = |message| TextError::Invalid { file: "tokenizer.json", message };
        if id > MAX_ID {
            return Err(invalid(format!("token {token:?} has id {id}; ids may be at most {MAX_ID}")));
        }
        let at = id as usize;
        if at >= self.spans.len() {
            self.spans.resize(at + 1, None);
        }
        let start = self.bytes.len();
        token_to_bytes(token, &mut self.bytes);
        let span = u32::try_from(start)
            .ok()
            .zip(u32::try_from(self.bytes.len() - start).ok())
            .filter(|_| self.bytes.len() <= u32::MAX as usize)
            .ok_or_else(|| invalid("the tokens have more than 4 GiB of text".into()))?;
        if let Some((s, n)) = self.spans.get_mut(at).and_then(|slot| slot.replace(span)) {
            let (old, new) = (s as usize..s as usize + n as usize, start..self.bytes.len());
            if self.bytes.get(old.clone()) != self.bytes.get(new) {
                let old = String::from_utf8_lossy(self.bytes.get(old).unwrap_or_default()).into_owned();
                return Err(invalid(format!("id {id} belongs to two tokens, {old:?} and {token:?}")));
            }
        }
        Ok(())
    }

    /// Adds an added token.
    pub fn insert_added(&mut self, token: AddedToken) -> Result<(), TextError> {
        self.insert(token.id, &token.text)?;
        if let Some(&i) = self.added_by_text.get(&token.text) {
            let same = self.added.get(i).is_some_and(|t| *t == token);
            let message = format!("the added token {:?} is listed twice, with different ids or flags", token.text);
            return if same { Ok(()) } else { Err(TextError::Invalid { file: "tokenizer.json", message }) };
        }
        self.added_by_id.insert(token.id, self.added.len());
        self.added_by_text.insert(token.text.clone(), self.added.len());
        self.added.push(token);
        Ok(())
    }

    /// The bytes of a token; none for an id without token.
    #[inline]
    pub fn get(&self, id: u32) -> Option<&[u8]> {
        let (start, len) = (*self.spans.get(id as usize)?)?;
        self.bytes.get(start as usize..start as usize + len as usize)
    }

    /// The id of the token with this text, added or not. Walks the table: for the few names in configuration files.
    pub fn find(&self, text: &str) -> Option<u32> {
        let mut bytes = Vec::new();
        token_to_bytes(text, &mut bytes);
        (0..=MAX_ID).take(self.spans.len()).find(|&id| self.get(id) == Some(&bytes))
    }

    /// One more than the largest id.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    pub fn added(&self) -> &[AddedToken] {
        &self.added
    }

    #[inline]
    pub fn added_by_id(&self, id: u32) -> Option<&AddedToken> {
        self.added_by_id.get(&id).and_then(|&i| self.added.get(i))
    }

    pub fn added_by_text(&self, text: &str) -> Option<&AddedToken> {
        self.added_by_text.get(text).and_then(|&i| self.added.get(i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All 256 bytes have a character of their own.
    #[test]
    fn byte_characters_are_a_bijection() {
        let mut seen = [false; 256];
        for c in (0..0x400).filter_map(char::from_u32) {
            if let Some(b) = char_to_byte(c) {
                assert!(!std::mem::replace(&mut seen[b as usize], true), "{b} twice");
            }
        }
        assert!(seen.iter().all(|s| *s));
        assert_eq!(char_to_byte('Ġ'), Some(b' '));
        assert_eq!(char_to_byte('Ċ'), Some(b'\n'));
    }

    #[test]
    fn conflicting_ids_are_refused() {
        let mut t = TokenTable::default();
        t.insert(3, "ab").unwrap();
        t.insert(3, "ab").unwrap();
        let e = t.insert(3, "cd").unwrap_err().to_string();
        assert!(e.contains("id 3") && e.contains("\"ab\"") && e.contains("\"cd\""), "{e}");
        assert!(t.insert(u32::MAX, "x").unwrap_err().to_string().contains("4294967295"));
    }
}
