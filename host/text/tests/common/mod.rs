//! The tokenizers that the tests compare.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;
use std::sync::LazyLock;

use trainer_text::Tokenizer;

/// A tokenizer in the native and the general form.
pub struct Pair {
    pub name: &'static str,
    pub native: Tokenizer,
    pub general: Tokenizer,
}

impl Pair {
    fn new(name: &'static str, json: &[u8], config: Option<&[u8]>, generation: Option<&[u8]>) -> Self {
        let native = Tokenizer::from_bytes(json, config, generation).unwrap();
        let general = Tokenizer::general_from_bytes(json).unwrap();
        assert!(native.is_native() && !general.is_native(), "{name}");
        Self { name, native, general }
    }

    fn reference(name: &'static str) -> Self {
        let file = |f: &str| trainer_test_support::bytes(&format!("tokenizer/{name}/{f}"));
        Self::new(name, &file("tokenizer.json"), Some(&file("tokenizer_config.json")), None)
    }
}

/// The two tokenizers of the reference data: NFC, with 151,643 and about 1,600 entries.
pub static REFERENCE: LazyLock<[Pair; 2]> = LazyLock::new(|| [Pair::reference("qwen3"), Pair::reference("small")]);

/// The folder of the embedded model.
pub fn nano() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../nano/assets")
}

/// The tokenizer of the embedded model: no normalizer.
pub static NANO: LazyLock<Pair> = LazyLock::new(|| {
    let file = |f: &str| std::fs::read(nano().join("model").join(f)).unwrap();
    Pair::new("nano", &file("tokenizer.json"), Some(&file("tokenizer_config.json")), Some(&file("generation_config.json")))
});

/// All three.
pub fn all() -> impl Iterator<Item = &'static Pair> {
    REFERENCE.iter().chain(std::iter::once(&*NANO))
}
