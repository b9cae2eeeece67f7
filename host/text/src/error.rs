//! What can go wrong between text and ids.

use std::path::PathBuf;

/// A tokenizer that cannot be used, or a text that cannot be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file of the model folder cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is larger than any real tokenizer.
    #[error("{} has {size} bytes, more than the {limit} that a tokenizer file may have", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A file is not the JSON it should be.
    #[error("{file}: {source}")]
    Json {
        /// `tokenizer.json` and so on.
        file: &'static str,
        /// Where and what.
        source: serde_json::Error,
    },
    /// A file is well-formed but contradicts itself, or the other files.
    #[error("{file}: {message}")]
    Invalid {
        /// `tokenizer.json` and so on.
        file: &'static str,
        /// What is wrong, and how to fix it.
        message: String,
    },
    /// The tokenizer is of a kind that this program does not support.
    #[error(
        "tokenizer.json: {what}; supported are byte-level tokenizers (a decoder of type \"ByteLevel\", as Qwen, Llama 3 and GPT-2 have)"
    )]
    Unsupported {
        /// What is not supported.
        what: String,
    },
    /// A special piece that is no added token.
    #[error(
        "segment {segment}: {text:?} is not an added token of this tokenizer; known are {known}. Write it as text if it is not meant as a token"
    )]
    UnknownSpecial {
        /// Index of the segment.
        segment: usize,
        /// The piece.
        text: String,
        /// Added tokens of the tokenizer, comma-separated, at most 40.
        known: String,
    },
    /// A loss weight that is negative, infinite or NaN.
    #[error("segment {segment}: the loss weight is {weight}; it must be finite and not negative")]
    BadWeight {
        /// Index of the segment.
        segment: usize,
        /// The weight.
        weight: f32,
    },
    /// A text over the limit.
    #[error("the text has {bytes} bytes; at most {limit} can be encoded at once")]
    TextTooLong {
        /// Its size in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Plain text became an added token, which must not happen.
    #[error(
        "plain text at byte {byte} became the added token {text:?} (id {id}): the vocabulary holds an added token that ordinary text can produce"
    )]
    Forged {
        /// Offset in the text.
        byte: u32,
        /// The token.
        text: String,
        /// Its id.
        id: u32,
    },
    /// The `tokenizers` crate refused.
    #[error("tokenizers: {message}")]
    Backend {
        /// Its words.
        message: String,
    },
}
