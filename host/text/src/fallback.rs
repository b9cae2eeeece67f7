//! Byte-level tokenizers that the native encoder does not serve, through the `tokenizers` crate.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokenizers::tokenizer::AddedVocabulary;

use crate::error::TextError;
use crate::segment::{SpecialMode, Tokens};
use crate::spec::{TokenizerFile, invalid};
use crate::vocab::{AddedToken, TokenTable};

/// A tokenizer of the `tokenizers` crate, with and without its added tokens.
pub(crate) struct General {
    parse: tokenizers::Tokenizer,
    plain: tokenizers::Tokenizer,
}

impl std::fmt::Debug for General {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("General").finish_non_exhaustive()
    }
}

impl General {
    /// Loads a `tokenizer.json`. Its truncation and padding are ignored: a row's length is the packer's business.
    pub fn new(json: &[u8], file: &TokenizerFile<'_>) -> Result<(Self, TokenTable), TextError> {
        let mut parse = guarded(|| tokenizers::Tokenizer::from_bytes(json))?;
        parse.with_truncation(None).map_err(|e| TextError::Backend { message: e.to_string() })?;
        parse.with_padding(None);
        // Templates say themselves which special tokens they want, and trimmed offsets would miss a token's leading space.
        parse.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        let mut plain = parse.clone();
        plain.with_added_vocabulary(AddedVocabulary::new());

        let mut table = TokenTable::default();
        for (token, id) in parse.get_vocab(false) {
            table.insert(id, &token)?;
        }
        for spec in &file.added_tokens {
            check_added_id(spec.token(), parse.token_to_id(&spec.content), &mut table)?;
        }
        Ok((Self { parse, plain }, table))
    }

    /// Appends the tokens of a text.
    pub fn encode(&self, text: &str, mode: SpecialMode, table: &TokenTable, out: &mut Tokens) -> Result<(), TextError> {
        let tokenizer = match mode {
            SpecialMode::Plain => &self.plain,
            SpecialMode::Parse => &self.parse,
        };
        let encoding = guarded(|| tokenizer.encode(text, false))?;
        for (&id, &(start, _)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            let start = u32::try_from(start).unwrap_or(u32::MAX);
            if mode == SpecialMode::Plain
                && let Some(t) = table.added_by_id(id)
            {
                return Err(TextError::Forged { byte: start, text: t.text.clone(), id });
            }
            out.push(id, start);
        }
        Ok(())
    }
}

/// Enters an added token whose id in the file must be the one that `tokenizers` gives it: the token's own in the vocabulary, else the next
/// free one.
pub(crate) fn check_added_id(token: AddedToken, given: Option<u32>, table: &mut TokenTable) -> Result<(), TextError> {
    match given {
        Some(id) if id == token.id => table.insert_added(token),
        Some(id) => Err(invalid(format!(
            "the added token {:?} has id {}, but its place gives it {id}; ids of added tokens continue those of the vocabulary without holes",
            token.text, token.id
        ))),
        None => Err(invalid(format!("the added token {:?} cannot be used", token.text))),
    }
}

/// Calls into `tokenizers`, whose code is not proven free of panics on malformed tokenizers.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, TextError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| TextError::Backend { message: e.to_string() }),
        Err(_) => Err(TextError::Backend { message: "the tokenizers crate panicked; the tokenizer.json is malformed or unusual".into() }),
    }
}
