//! What goes into the tokenizer and what comes out.

/// Text, or exactly one added token by its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Piece<S = String> {
    /// Ordinary text.
    Text(S),
    /// One added token, such as `<|im_start|>` or `<think>`, whether or not the tokenizer flags it as special.
    Special(S),
}

impl<S: AsRef<str>> Piece<S> {
    /// The text of the piece, of either sort.
    pub fn as_str(&self) -> &str {
        match self {
            Piece::Text(s) | Piece::Special(s) => s.as_ref(),
        }
    }
}

/// A piece of a rendered text with the loss weight of its tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment<'a> {
    /// The text or the token.
    pub piece: Piece<&'a str>,
    /// Finite and not negative. A token belongs to the segment that holds its first byte.
    pub weight: f32,
}

/// What strings inside text that look like added tokens become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SpecialMode {
    /// Ordinary text: added tokens come only from [`Piece::Special`].
    #[default]
    Plain,
    /// The added tokens they look like, as `tokenizers` does on the whole text. For compatibility with rows that already hold a rendered text.
    Parse,
}

/// The tokens of a list of segments. The three lists are equally long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// The loss weight of each token: that of its segment.
    pub weights: Vec<f32>,
    /// The index of the segment that holds each token's first byte.
    pub segments: Vec<u32>,
}

/// The tokens of a text. The two lists are equally long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Where each token's first byte comes from: a byte offset into the text as it was given, before normalisation; never decreasing.
    /// It may lie inside a character that the vocabulary cuts into several tokens (the `tokenizers` crate gives the character's start there).
    pub starts: Vec<u32>,
}

impl Tokens {
    pub(crate) fn push(&mut self, id: u32, start: u32) {
        self.ids.push(id);
        self.starts.push(start);
    }
}
