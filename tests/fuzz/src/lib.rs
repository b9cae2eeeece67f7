//! What the targets share: a folder that lasts as long as the process, a tiny model's configuration and its tensors.
//!
//! What every target demands beside its own promises is libFuzzer's: no panic, no input that takes longer than `-timeout`, no memory beyond
//! `-rss_limit_mb` and no single allocation beyond `-malloc_limit_mb`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};
use trainer_model::{Checkpoint, GenerationConfig, LoadOptions, ModelConfig, ModelFiles, ModelTree, Quantize, load_weights};

/// A folder in memory, where the system has such.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let shared = Path::new("/dev/shm");
        let place = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
        // Left to the system: libFuzzer ends its processes without destructors.
        let made = tempfile::Builder::new().prefix("trainer-fuzz-").tempdir_in(place).unwrap_or_else(|e| panic!("{e}"));
        made.keep()
    })
}

/// Writes a file of the folder.
pub fn write(name: &str, bytes: &[u8]) {
    std::fs::write(folder().join(name), bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
}

/// A model of one layer.
pub fn config() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
        "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "vocab_size": 10, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "torch_dtype": "float32",
    })
}

/// The tensors that [`config`] asks for.
pub fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![10, 8]), ("model.norm.weight".to_owned(), vec![8])];
    for (name, shape) in [
        ("input_layernorm", vec![8]),
        ("post_attention_layernorm", vec![8]),
        ("self_attn.q_norm", vec![4]),
        ("self_attn.k_norm", vec![4]),
        ("self_attn.q_proj", vec![8, 8]),
        ("self_attn.k_proj", vec![4, 8]),
        ("self_attn.v_proj", vec![4, 8]),
        ("self_attn.o_proj", vec![8, 8]),
        ("mlp.gate_proj", vec![16, 8]),
        ("mlp.up_proj", vec![16, 8]),
        ("mlp.down_proj", vec![8, 16]),
    ] {
        all.push((format!("model.layers.0.{name}.weight"), shape));
    }
    all
}

/// A safetensors file of a header and so many bytes of data.
pub fn safetensors(header: &[u8], data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    // Little-endian floats of about 0.03.
    bytes.extend((0..data).map(|i| if i % 4 == 3 { 0x3d } else { (i * 37 % 251) as u8 }));
    bytes
}

/// Everything that commands read of a model; errors are answers.
pub fn read_all(files: &ModelFiles) {
    let _ = GenerationConfig::read(files);
    let Ok(config) = ModelConfig::read(files) else { return };
    let Ok(checkpoint) = Checkpoint::open(files) else { return };
    for name in checkpoint.names() {
        let _ = (checkpoint.tensor(name), checkpoint.storage(name));
    }
    if let Ok(tree) = ModelTree::new(&checkpoint, &config, None) {
        let _ = tree.to_string();
    }
    for quantize in [Quantize::AsStored, Quantize::Nf4Double, Quantize::None] {
        let options = LoadOptions { quantize, ..LoadOptions::default() };
        if let Ok(weights) = load_weights(&checkpoint, &config, options) {
            // What loads has the shapes that were asked for.
            assert_eq!((weights.embed.out_features(), weights.embed.in_features()), (config.vocab_size, config.hidden_size));
            assert_eq!(weights.layers.len(), config.num_hidden_layers);
            for layer in &weights.layers {
                assert_eq!(layer.q.to_f32().map(|v| v.len()).ok(), config.q_width().checked_mul(config.hidden_size));
            }
        }
    }
}
