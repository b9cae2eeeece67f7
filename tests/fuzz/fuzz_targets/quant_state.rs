//! The JSON that bitsandbytes writes beside a 4-bit weight, with scales of sizes that the input says.
//!
//! The first byte says which parts there are and of what size; the rest is the text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};
use trainer_model::ModelFiles;
use trainer_model_fuzz::{config, folder, read_all, safetensors, tensors, write};

const WEIGHT: &str = "model.layers.0.mlp.up_proj.weight";

fuzz_target!(|input: &[u8]| {
    let Some((kind, text)) = input.split_first() else { return };
    let nested = kind & 1 != 0;
    let scales = usize::from(kind >> 1 & 7);
    let mut header = Map::new();
    let mut at = 0usize;
    let mut add = |name: &str, dtype: &str, shape: Vec<usize>, size: usize| -> usize {
        let bytes = size * shape.iter().product::<usize>();
        header.insert(name.to_owned(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, at + bytes] }));
        at += bytes;
        at - bytes
    };
    for (name, shape) in tensors().into_iter().filter(|(name, _)| name != WEIGHT) {
        add(&name, "F32", shape, 4);
    }
    add(WEIGHT, "U8", vec![64, 1], 1);
    add(&format!("{WEIGHT}.quant_map"), "F32", vec![16], 4);
    if nested {
        add(&format!("{WEIGHT}.absmax"), "U8", vec![scales], 1);
        add(&format!("{WEIGHT}.nested_absmax"), "F32", vec![1 + scales / 4], 4);
        add(&format!("{WEIGHT}.nested_quant_map"), "F32", vec![256], 4);
    } else {
        add(&format!("{WEIGHT}.absmax"), "F32", vec![scales], 4);
    }
    let before = add(&format!("{WEIGHT}.quant_state.bitsandbytes__nf4"), "U8", vec![text.len()], 1);
    let mut file = safetensors(Value::Object(header).to_string().as_bytes(), before);
    file.extend_from_slice(text);
    let mut config = config();
    config["quantization_config"] = json!({ "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4" });
    write("config.json", config.to_string().as_bytes());
    write("model.safetensors", &file);
    read_all(&ModelFiles::dir(folder()));
});
