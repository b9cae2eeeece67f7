//! config.json and, behind a zero byte, generation_config.json.

#![no_main]

use libfuzzer_sys::fuzz_target;
use trainer_model::{Checkpoint, GenerationConfig, ModelConfig, ModelFiles, check_tensors};
use trainer_model_fuzz::{folder, safetensors, tensors, write};

fuzz_target!(|input: &[u8]| {
    let mut parts = input.splitn(2, |b| *b == 0);
    let (config, generation) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if let Ok(text) = std::str::from_utf8(generation) {
        let _ = GenerationConfig::parse(text, "generation_config.json");
    }
    let Ok(text) = std::str::from_utf8(config) else { return };
    let Ok(config) = ModelConfig::parse(text, "config.json") else { return };
    assert!(config.num_attention_heads % config.num_key_value_heads == 0 && config.head_dim % 2 == 0);
    let _ = (config.parameters(), config.q_width(), config.kv_width());
    // Whatever it claims, what is missing is said, in a text of a size that people read.
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for (name, shape) in tensors() {
        let bytes = 4 * shape.iter().product::<usize>();
        header.insert(name, serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [at, at + bytes] }));
        at += bytes;
    }
    write("model.safetensors", &safetensors(serde_json::Value::Object(header).to_string().as_bytes(), at));
    let checkpoint = Checkpoint::open(&ModelFiles::dir(folder())).unwrap_or_else(|e| panic!("{e}"));
    if let Err(error) = check_tensors(&checkpoint, &config) {
        assert!(error.to_string().len() < 1 << 20);
    }
});
