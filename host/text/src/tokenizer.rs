//! The tokenizer of a model: loading, encoding, decoding.

use std::path::Path;
use std::sync::Arc;

use crate::error::TextError;
use crate::fallback::General;
use crate::native::Native;
use crate::segment::{Encoded, Piece, Segment, SpecialMode, Tokens};
use crate::spec::{self, Recognised, Settings};
use crate::stream::{PieceDecoder, StreamDecoder};
use crate::vocab::{AddedToken, TokenTable};

/// The largest text that can be encoded at once, in bytes: offsets are 32-bit, and normalisation can make a text longer.
const MAX_TEXT: usize = 256 << 20;

/// A model's tokenizer. Cheap to clone, and usable from many threads at once.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    table: TokenTable,
    encoder: Encoder,
    settings: Settings,
    digest: String,
    json_digest: String,
}

#[derive(Debug)]
enum Encoder {
    Native(Native),
    General(Box<General>),
}

impl Tokenizer {
    /// Loads `tokenizer.json` and, where they exist, `tokenizer_config.json` and `generation_config.json` from a model folder.
    ///
    /// # Errors
    /// A file that cannot be read, is no JSON, or contradicts itself or another; a tokenizer that is not byte-level.
    pub fn from_dir(folder: &Path) -> Result<Self, TextError> {
        let json = spec::read(&folder.join("tokenizer.json"))?;
        let config = spec::read_if_there(&folder.join("tokenizer_config.json"))?;
        let generation = spec::read_if_there(&folder.join("generation_config.json"))?;
        Self::from_bytes(&json, config.as_deref(), generation.as_deref())
    }

    /// Loads from the contents of `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`.
    ///
    /// # Errors
    /// As [`Tokenizer::from_dir`].
    pub fn from_bytes(json: &[u8], config: Option<&[u8]>, generation: Option<&[u8]>) -> Result<Self, TextError> {
        let file = spec::parse(json)?;
        let (table, encoder) = match spec::recognise(&file)? {
            Recognised::Native(model) => {
                let (native, table) = Native::new(model, &file)?;
                (table, Encoder::Native(native))
            }
            Recognised::Other(why) => {
                tracing::info!(reason = why, "the tokenizer is encoded by the tokenizers crate, not by the native encoder");
                let (general, table) = General::new(json, &file)?;
                (table, Encoder::General(Box::new(general)))
            }
        };
        let settings = Settings::new(config, generation, &table)?;
        let digest =
            spec::digest(&[("tokenizer.json", Some(json)), ("tokenizer_config.json", config), ("generation_config.json", generation)]);
        Ok(Self { inner: Arc::new(Inner { table, encoder, settings, digest, json_digest: spec::sha256_hex(json) }) })
    }

    /// Loads `tokenizer.json` through the `tokenizers` crate even if the native encoder could do it: the reference in tests and benchmarks.
    ///
    /// # Errors
    /// As [`Tokenizer::from_dir`].
    pub fn general_from_bytes(json: &[u8]) -> Result<Self, TextError> {
        let file = spec::parse(json)?;
        let (general, table) = General::new(json, &file)?;
        let settings = Settings::new(None, None, &table)?;
        let digest = spec::digest(&[("tokenizer.json", Some(json))]);
        let encoder = Encoder::General(Box::new(general));
        Ok(Self { inner: Arc::new(Inner { table, encoder, settings, digest, json_digest: spec::sha256_hex(json) }) })
    }

    /// SHA-256, in hex, over the names and contents of all files given: what a lock file pins.
    pub fn digest(&self) -> &str {
        &self.inner.digest
    }

    /// SHA-256, in hex, of `tokenizer.json` alone.
    pub fn json_digest(&self) -> &str {
        &self.inner.json_digest
    }

    /// Whether this crate's own encoder serves it, rather than the `tokenizers` crate.
    pub fn is_native(&self) -> bool {
        matches!(self.inner.encoder, Encoder::Native(_))
    }

    /// One more than the largest id. The model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.table.len()
    }

    /// The added tokens in the order of the file, special or not.
    pub fn added_tokens(&self) -> &[AddedToken] {
        self.inner.table.added()
    }

    /// The added token with this id.
    pub fn added_token(&self, id: u32) -> Option<&AddedToken> {
        self.inner.table.added_by_id(id)
    }

    /// The id of the added token with exactly this text.
    pub fn added_token_id(&self, text: &str) -> Option<u32> {
        self.inner.table.added_by_text(text).map(|t| t.id)
    }

    /// The tokens that end generation: `eos_token` of `tokenizer_config.json`, then those of `generation_config.json` that are not it.
    pub fn eos_ids(&self) -> &[u32] {
        &self.inner.settings.eos
    }

    /// `pad_token` of `tokenizer_config.json`, else `pad_token_id` of `generation_config.json`.
    pub fn pad_id(&self) -> Option<u32> {
        self.inner.settings.pad
    }

    /// `bos_token` of `tokenizer_config.json`. Qwen3 has none, and no text is ever given one unasked.
    pub fn bos_id(&self) -> Option<u32> {
        self.inner.settings.bos
    }

    /// The bytes that a token stands for, not necessarily whole characters. None for an id without token.
    #[inline]
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.inner.table.get(id)
    }

    /// The bytes that decoding shows for an id.
    #[inline]
    pub(crate) fn shown_bytes(&self, id: u32, skip_special: bool) -> Option<&[u8]> {
        if skip_special && self.added_token(id).is_some_and(|t| t.special) { None } else { self.token_bytes(id) }
    }

    /// Ids and weights of a rendered text.
    ///
    /// Neighbouring text pieces are joined first, so ids do not depend on where they are cut; a token that straddles two segments belongs to the
    /// one that holds its first byte. Under [`SpecialMode::Parse`] everything is joined, special pieces too, and added tokens are recognised in
    /// the whole.
    ///
    /// # Errors
    /// A special piece that is not exactly one added token (in either mode), a weight that is negative or not finite, or a text over 256 MiB.
    pub fn encode_segments(&self, segments: &[Segment<'_>], mode: SpecialMode) -> Result<Encoded, TextError> {
        let mut run =
            Run { tokenizer: self, segments, mode, start: 0, joined: String::new(), tokens: Tokens::default(), out: Encoded::default() };
        for (i, segment) in segments.iter().enumerate() {
            if !segment.weight.is_finite() || segment.weight < 0.0 {
                return Err(TextError::BadWeight { segment: i, weight: segment.weight });
            }
            if let Piece::Special(text) = segment.piece {
                let id = self.special_id(i, text)?;
                if mode == SpecialMode::Plain {
                    run.flush(i)?;
                    run.out.push(id, segment.weight, i);
                }
            }
        }
        run.flush(segments.len())?;
        Ok(run.out)
    }

    fn special_id(&self, segment: usize, text: &str) -> Result<u32, TextError> {
        self.added_token_id(text).ok_or_else(|| {
            let known: Vec<&str> = self.added_tokens().iter().take(40).map(|t| t.text.as_str()).collect();
            TextError::UnknownSpecial { segment, text: text.to_owned(), known: known.join(", ") }
        })
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// A text over 256 MiB, or a refusal of the `tokenizers` crate.
    pub fn encode(&self, text: &str, mode: SpecialMode) -> Result<Vec<u32>, TextError> {
        Ok(self.encode_tokens(text, mode)?.ids)
    }

    /// The ids of a text and where each token starts in it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_tokens(&self, text: &str, mode: SpecialMode) -> Result<Tokens, TextError> {
        let mut out = Tokens::default();
        self.encode_onto(text, mode, &mut out)?;
        Ok(out)
    }

    fn encode_onto(&self, text: &str, mode: SpecialMode, out: &mut Tokens) -> Result<(), TextError> {
        if text.len() > MAX_TEXT {
            return Err(TextError::TextTooLong { bytes: text.len(), limit: MAX_TEXT });
        }
        match &self.inner.encoder {
            Encoder::Native(native) => {
                native.encode(text, mode, &self.inner.table, out);
                Ok(())
            }
            Encoder::General(general) => general.encode(text, mode, &self.inner.table, out),
        }
    }

    /// The text of ids; U+FFFD for bytes that are no character. `skip_special` leaves out added tokens flagged as special (so not Qwen3's
    /// `<think>`). Ids without token give nothing, as in `tokenizers`.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut bytes = Vec::with_capacity(ids.len().saturating_mul(4));
        for &id in ids {
            bytes.extend_from_slice(self.shown_bytes(id, skip_special).unwrap_or_default());
        }
        String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }

    /// The text and the added tokens of ids, for the output parser of a chat template. No two text pieces follow each other, none is empty.
    pub fn decode_pieces(&self, ids: &[u32]) -> Vec<Piece> {
        let mut decoder = self.piece_decoder();
        let mut out = Vec::new();
        for &id in ids {
            decoder.push(id, &mut out);
        }
        decoder.finish(&mut out);
        out
    }

    /// A decoder for a growing list of ids.
    pub fn stream_decoder(&self, skip_special: bool) -> StreamDecoder {
        StreamDecoder::new(self.clone(), skip_special)
    }

    /// A decoder for a growing list of ids that tells text and added tokens apart.
    pub fn piece_decoder(&self) -> PieceDecoder {
        PieceDecoder::new(self.clone())
    }
}

impl Encoded {
    fn push(&mut self, id: u32, weight: f32, segment: usize) {
        self.ids.push(id);
        self.weights.push(weight);
        // Four billion segments would have to be empty ones.
        self.segments.push(u32::try_from(segment).unwrap_or(u32::MAX));
    }
}

/// Neighbouring segments that are encoded as one text.
struct Run<'a> {
    tokenizer: &'a Tokenizer,
    segments: &'a [Segment<'a>],
    mode: SpecialMode,
    /// The first segment that is not encoded yet.
    start: usize,
    joined: String,
    tokens: Tokens,
    out: Encoded,
}

impl Run<'_> {
    /// Encodes the segments before `end`; the one at `end` is the caller's.
    fn flush(&mut self, end: usize) -> Result<(), TextError> {
        let first = std::mem::replace(&mut self.start, end + 1);
        let run = self.segments.get(first..end).unwrap_or_default();
        let text = match run {
            [] => return Ok(()),
            [one] => one.piece.as_str(),
            _ => {
                self.joined.clear();
                self.joined.extend(run.iter().map(|s| s.piece.as_str()));
                &self.joined
            }
        };
        self.tokens.ids.clear();
        self.tokens.starts.clear();
        self.tokenizer.encode_onto(text, self.mode, &mut self.tokens)?;
        let mut at = run.iter().enumerate();
        let mut current = at.next();
        let mut end_of_current = run.first().map_or(0, |s| s.piece.as_str().len());
        for (&id, &start) in self.tokens.ids.iter().zip(&self.tokens.starts) {
            while start as usize >= end_of_current {
                match at.next() {
                    Some(next) => {
                        end_of_current += next.1.piece.as_str().len();
                        current = Some(next);
                    }
                    None => break,
                }
            }
            if let Some((i, segment)) = current {
                self.out.push(id, segment.weight, first + i);
            }
        }
        Ok(())
    }
}
