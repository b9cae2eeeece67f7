//! From template segments to token ids with a loss weight each, and back to text that never shows half a character.
