//! The Qwen3 decoder with LoRA, forward and backward once over the operations trait, its optimizer step, and generation with a key/value cache.
