//! From template segments to token ids with a loss weight each, and back to text that never shows half a character.
//!
//! [`Tokenizer::encode_segments`] takes what a chat template renders and gives ids and weights; the mask of a training text therefore comes
//! from the template's own pieces and never from searching strings. By default ([`SpecialMode::Plain`]) a string in data that looks like a
//! special token is ordinary text, so data cannot forge a turn. [`StreamDecoder`] and [`PieceDecoder`] turn a growing list of ids into text
//! that ends on whole characters.
//!
//! Tokenizers of the Qwen family (byte-level BPE with Qwen's split pattern, see [`Tokenizer::is_native`]) are encoded by this crate's own
//! encoder, every other byte-level tokenizer by the `tokenizers` crate; ids are the same either way.

mod bpe;
mod error;
mod fallback;
mod native;
mod segment;
mod spec;
mod split;
mod stream;
mod tokenizer;
mod unicode;
mod vocab;

pub use error::TextError;
pub use segment::{Encoded, Piece, Segment, SpecialMode, Tokens};
pub use stream::{PieceDecoder, StreamDecoder};
pub use tokenizer::Tokenizer;
pub use vocab::AddedToken;
