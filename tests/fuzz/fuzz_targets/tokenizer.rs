//! tokenizer.json and, behind zero bytes, tokenizer_config.json and generation_config.json.
//!
//! A tokenizer that loads encodes any text, its ids are within its size, and byte-level ones give the text back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use trainer_text::{SpecialMode, Tokenizer};

const TEXTS: [&str; 4] = ["", "Hello, world! 12\n\n  x", "<|im_start|>user\n\u{1f642} héé</s>", "a\u{0}\u{301}b   "];

fuzz_target!(|input: &[u8]| {
    let parts: Vec<&[u8]> = input.splitn(3, |b| *b == 0).collect();
    let (Some(json), config, generation) = (parts.first(), parts.get(1), parts.get(2)) else { return };
    let Ok(tokenizer) = Tokenizer::from_bytes(json, config.copied(), generation.copied()) else { return };
    for text in TEXTS {
        for mode in [SpecialMode::Plain, SpecialMode::Parse] {
            let Ok(ids) = tokenizer.encode(text, mode) else { continue };
            assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()), "{ids:?}");
            let whole = tokenizer.decode(&ids, false);
            let pieces: String = tokenizer.decode_pieces(&ids).iter().map(|p| p.as_str().to_owned()).collect();
            assert_eq!(pieces, whole);
        }
    }
});
