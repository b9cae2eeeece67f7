//! GGUF files, whole: header, metadata, tensors, and the configuration and tokenizer that follow from them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use trainer_model::ModelFiles;
use trainer_model_fuzz::{folder, read_all, write};
use trainer_text::{SpecialMode, Tokenizer};

fuzz_target!(|input: &[u8]| {
    write("model.gguf", input);
    let files = ModelFiles::dir(folder().join("model.gguf"));
    read_all(&files);
    let read = |name: &str| files.read(name, 64 << 20).ok().flatten();
    if let Some(json) = read("tokenizer.json")
        && let Ok(tokenizer) =
            Tokenizer::from_bytes(&json, read("tokenizer_config.json").as_deref(), read("generation_config.json").as_deref())
    {
        let _ = tokenizer.encode("Hello <|im_end|> 12", SpecialMode::Parse);
    }
});
