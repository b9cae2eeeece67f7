//! Headers of safetensors files, and the index of a checkpoint in several.
//!
//! The first two bytes are the bytes of data behind the header; then comes the header's text. With the highest bit set the rest is the whole file.
//! Behind a zero byte stands the text of an index, which makes the file a shard.

#![no_main]

use libfuzzer_sys::fuzz_target;
use trainer_model::ModelFiles;
use trainer_model_fuzz::{config, folder, read_all, safetensors, write};

fuzz_target!(|input: &[u8]| {
    let Some((size, rest)) = input.split_first_chunk::<2>() else { return };
    let size = u16::from_le_bytes(*size);
    let (header, index) = match rest.iter().position(|b| *b == 0).filter(|_| size & 0x8000 == 0) {
        Some(at) => (&rest[..at], Some(&rest[at + 1..])),
        None => (rest, None),
    };
    let file = if size & 0x8000 == 0 { safetensors(header, usize::from(size)) } else { header.to_vec() };
    write("config.json", config().to_string().as_bytes());
    let _ = std::fs::remove_file(folder().join("model.safetensors"));
    match index {
        Some(index) => {
            write("model-00001-of-00001.safetensors", &file);
            write("model.safetensors.index.json", index);
        }
        None => write("model.safetensors", &file),
    }
    read_all(&ModelFiles::dir(folder()));
});
