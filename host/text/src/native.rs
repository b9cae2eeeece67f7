//! The encoder for tokenizers of the Qwen family.

use std::collections::{HashMap, HashSet};

use aho_corasick::{AhoCorasick, MatchKind};

use crate::bpe::{Bpe, Scratch};
use crate::error::TextError;
use crate::fallback::check_added_id;
use crate::segment::{SpecialMode, Tokens};
use crate::spec::{NativeModel, TokenizerFile, invalid};
use crate::split::Words;
use crate::unicode::nfc;
use crate::vocab::TokenTable;

/// NFC, Qwen's split pattern, byte-level BPE; gives what `tokenizers` gives.
#[derive(Debug)]
pub(crate) struct Native {
    bpe: Bpe,
    nfc: bool,
    /// Finds added tokens, the longest of those that start first.
    added: Option<AhoCorasick>,
    /// The ids of its patterns.
    added_ids: Vec<u32>,
}

impl Native {
    pub fn new(model: NativeModel, file: &TokenizerFile<'_>) -> Result<(Self, TokenTable), TextError> {
        let mut table = TokenTable::default();
        for (token, id) in &model.vocab {
            table.insert(*id, token)?;
        }
        let bpe = Bpe::new(&model.vocab, &model.merges, &table)?;
        let mut next = u32::try_from(model.vocab.len()).map_err(|_| invalid("the vocabulary has more than 4 billion tokens"))?;
        let wanted: HashSet<&str> = file.added_tokens.iter().map(|t| t.content.as_str()).collect();
        let mut given: HashMap<&str, u32> =
            model.vocab.iter().filter(|(t, _)| wanted.contains(t.as_str())).map(|(t, id)| (t.as_str(), *id)).collect();
        let reachable = bpe.reachable();
        let mut texts = Vec::new();
        let mut added_ids = Vec::new();
        for spec in &file.added_tokens {
            // As `tokenizers` does it: the token's id in the vocabulary, else the next free one.
            let id = *given.entry(&spec.content).or_insert_with(|| {
                next = next.saturating_add(1);
                next - 1
            });
            let known = table.added_by_text(&spec.content).is_some();
            check_added_id(spec.token(), Some(id), &mut table)?;
            if known {
                continue;
            }
            if reachable.contains(&id) {
                return Err(invalid(format!(
                    "ordinary text can produce the added token {:?} (id {id}), so data could forge it; take it out of the merges",
                    spec.content
                )));
            }
            texts.push(spec.content.clone());
            added_ids.push(id);
        }
        let added = if texts.is_empty() {
            None
        } else {
            let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&texts);
            Some(built.map_err(|e| invalid(format!("the added tokens cannot be searched for: {e}")))?)
        };
        Ok((Self { bpe, nfc: model.nfc, added, added_ids }, table))
    }

    /// Appends the tokens of a text of at most 256 MiB.
    pub fn encode(&self, text: &str, mode: SpecialMode, table: &TokenTable, out: &mut Tokens) {
        let mut scratch = Scratch::default();
        out.ids.reserve(text.len() / 3);
        out.starts.reserve(text.len() / 3);
        let mut at = 0;
        if let (SpecialMode::Parse, Some(added)) = (mode, &self.added) {
            for found in added.find_iter(text) {
                self.encode_plain(text.get(at..found.start()).unwrap_or_default(), at, table, &mut scratch, out);
                if let Some(&id) = self.added_ids.get(found.pattern().as_usize()) {
                    out.push(id, found.start() as u32);
                }
                at = found.end();
            }
        }
        self.encode_plain(text.get(at..).unwrap_or_default(), at, table, &mut scratch, out);
    }

    /// Encodes a text without added tokens that starts at `base` of the whole.
    fn encode_plain(&self, text: &str, base: usize, table: &TokenTable, scratch: &mut Scratch, out: &mut Tokens) {
        let first = out.starts.len();
        match self.nfc.then(|| nfc(text)).flatten() {
            None => self.encode_words(text, base, table, scratch, out),
            Some(normal) => {
                self.encode_words(&normal.text, 0, table, scratch, out);
                for start in out.starts.iter_mut().skip(first) {
                    *start = base as u32 + normal.starts.get(*start as usize).copied().unwrap_or(0);
                }
            }
        }
    }

    fn encode_words(&self, text: &str, base: usize, table: &TokenTable, scratch: &mut Scratch, out: &mut Tokens) {
        for word in Words::new(text) {
            let mut start = (base + word.start) as u32;
            let bytes = text.as_bytes().get(word).unwrap_or_default();
            self.bpe.encode(bytes, table, scratch, |id| {
                out.push(id, start);
                start = start.wrapping_add(table.get(id).map_or(0, |b| b.len() as u32));
            });
        }
    }
}
