//! adapter_config.json and, behind a zero byte, two bytes of size and the header of adapter_model.safetensors.
//!
//! What is read and written again is the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use trainer_model::{Adapter, AdapterConfig, ModelFiles};
use trainer_model_fuzz::{folder, safetensors, write};

const MODULES: [&str; 4] =
    ["model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "lm_head", "model.layers.1.self_attn.v_proj"];

fuzz_target!(|input: &[u8]| {
    let mut parts = input.splitn(2, |b| *b == 0);
    let (config, weights) = (parts.next().unwrap_or_default(), parts.next());
    let Ok(text) = std::str::from_utf8(config) else { return };
    let Ok(config) = AdapterConfig::parse(text, "adapter_config.json") else { return };
    let again = AdapterConfig::parse(&config.to_json(), "again").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(again.to_json(), config.to_json());
    for module in MODULES {
        assert_eq!((again.targets(module), again.rank_of(module)), (config.targets(module), config.rank_of(module)));
        let _ = config.scale_of(module);
    }
    let _ = config.unmatched(&MODULES);
    let Some((size, header)) = weights.and_then(|w| w.split_first_chunk::<2>()) else { return };
    write("adapter_config.json", text.as_bytes());
    write("adapter_model.safetensors", &safetensors(header, usize::from(u16::from_le_bytes(*size))));
    if let Ok(adapter) = Adapter::read(&ModelFiles::dir(folder())) {
        let copy = folder().join("copy");
        let _ = std::fs::remove_dir_all(&copy);
        if adapter.write(&copy).is_ok() {
            let read = Adapter::read(&ModelFiles::dir(&copy)).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(read.modules.len(), adapter.modules.len());
        }
    }
});
