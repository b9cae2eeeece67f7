//! AdamW with 32-bit and blockwise 8-bit states.
