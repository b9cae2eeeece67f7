//! Conversations to tokens.

use trainer_plugin_host::template::{Piece as TemplatePiece, Rendered};
use trainer_text::{Piece, Segment, SpecialMode, Tokenizer};

/// A rendered text as a reader sees it.
pub fn rendered_text(rendered: &Rendered) -> String {
    rendered
        .segments
        .iter()
        .map(|s| match &s.piece {
            TemplatePiece::Text(t) | TemplatePiece::Special(t) => t.as_str(),
        })
        .collect()
}

/// A rendered prompt as tokens; strings in its text that look like special tokens stay text.
///
/// # Errors
/// The template asks for a special token that the tokenizer does not have.
pub fn encode_prompt(tokenizer: &Tokenizer, rendered: &Rendered) -> Result<Vec<u32>, trainer_text::TextError> {
    let segments: Vec<Segment<'_>> = rendered
        .segments
        .iter()
        .map(|s| Segment {
            piece: match &s.piece {
                TemplatePiece::Text(t) => Piece::Text(t.as_str()),
                TemplatePiece::Special(t) => Piece::Special(t.as_str()),
            },
            weight: 0.0,
        })
        .collect();
    Ok(tokenizer.encode_segments(&segments, SpecialMode::Plain)?.ids)
}

/// A decoded piece as the template's parser takes it.
pub fn template_piece(piece: Piece) -> TemplatePiece {
    match piece {
        Piece::Text(t) => TemplatePiece::Text(t),
        Piece::Special(t) => TemplatePiece::Special(t),
    }
}
