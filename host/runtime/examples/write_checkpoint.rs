//! Writes a checkpoint with random weights of some shape, in bfloat16 and in shards as large models come, to measure loading with:
//!
//!     write_checkpoint 8b FOLDER
//!     trainer run --set model.source=FOLDER --max-steps 1 ...
//!
//! Weights are about normal with deviation 0.02, norms are 1, the tokenizer is the embedded model's. Values repeat after some millions.

use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use serde_json::{Map, json};
use trainer_engine::synthetic::shape;
use trainer_kernels::rng::philox4x32_10;

/// Bytes of a shard, about.
const SHARD: usize = 4 << 30;
/// Values that are drawn.
const DRAWN: usize = 16 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(name), Some(folder)) = (args.next(), args.next()) else { return Err("usage: write_checkpoint SHAPE FOLDER".into()) };
    let c = shape(&name).ok_or("no such shape")?;
    let folder = Path::new(&folder);
    fs::create_dir_all(folder)?;
    let began = Instant::now();
    for (name, bytes) in trainer_nano::MODEL_FILES.iter().filter(|(name, _)| name.contains("token")) {
        fs::write(folder.join(name), bytes)?;
    }
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "attention_bias": false,
        "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size, "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads, "num_key_value_heads": c.num_key_value_heads, "head_dim": c.head_dim,
        "vocab_size": c.vocab_size, "max_position_embeddings": c.max_position_embeddings, "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta, "tie_word_embeddings": c.tie_word_embeddings, "torch_dtype": "bfloat16",
    });
    fs::write(folder.join("config.json"), config.to_string())?;

    let (h, q, kv, i) = (c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim, c.intermediate_size);
    let mut tensors: Vec<(String, Vec<usize>)> = vec![("model.embed_tokens.weight".into(), vec![c.vocab_size, h])];
    for layer in 0..c.num_hidden_layers {
        let parts = [
            ("input_layernorm", vec![h]),
            ("self_attn.q_proj", vec![q, h]),
            ("self_attn.k_proj", vec![kv, h]),
            ("self_attn.v_proj", vec![kv, h]),
            ("self_attn.q_norm", vec![c.head_dim]),
            ("self_attn.k_norm", vec![c.head_dim]),
            ("self_attn.o_proj", vec![h, q]),
            ("post_attention_layernorm", vec![h]),
            ("mlp.gate_proj", vec![i, h]),
            ("mlp.up_proj", vec![i, h]),
            ("mlp.down_proj", vec![h, i]),
        ];
        tensors.extend(parts.into_iter().map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    tensors.push(("model.norm.weight".into(), vec![h]));
    if !c.tie_word_embeddings {
        tensors.push(("lm_head.weight".into(), vec![c.vocab_size, h]));
    }
    let bytes = |shape: &[usize]| 2 * shape.iter().product::<usize>();
    let mut shards: Vec<Vec<(String, Vec<usize>)>> = vec![Vec::new()];
    let mut full = 0;
    for (name, shape) in tensors {
        if full + bytes(&shape) > SHARD {
            shards.push(Vec::new());
            full = 0;
        }
        full += bytes(&shape);
        shards.last_mut().ok_or("no shard")?.push((name, shape));
    }
    let pool = pool();
    let (mut map, count, mut total) = (Map::new(), shards.len(), 0);
    let file = |number: usize| format!("model-{:05}-of-{count:05}.safetensors", number + 1);
    for (number, shard) in shards.iter().enumerate() {
        for (name, shape) in shard {
            map.insert(name.clone(), json!(file(number)));
            total += bytes(shape);
        }
    }
    fs::write(folder.join("model.safetensors.index.json"), json!({"metadata": {"total_size": total}, "weight_map": map}).to_string())?;
    std::thread::scope(|scope| {
        let writers: Vec<_> = shards
            .iter()
            .enumerate()
            .map(|(number, shard)| {
                let (path, pool) = (folder.join(file(number)), &pool);
                scope.spawn(move || write(&path, shard, pool, 7919 * number))
            })
            .collect();
        writers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    println!("{count} shards of {total} bytes in {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// Values to write from: bytes of bfloat16.
fn pool() -> Vec<u8> {
    let mut pool = vec![0u8; 2 * DRAWN];
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for (thread, part) in pool.chunks_mut((2 * DRAWN).div_ceil(threads).next_multiple_of(2)).enumerate() {
            scope.spawn(move || {
                for (i, value) in part.chunks_exact_mut(2).enumerate() {
                    let random = philox4x32_10([i as u32, thread as u32, 0, 0], [11, 13]);
                    let sum: f32 = random.iter().map(|r| *r as f32 / 4_294_967_296.0 - 0.5).sum();
                    // The sum of four uniform values has the deviation 0.577. The upper half of an f32 is a bfloat16.
                    value.copy_from_slice(&((sum * 0.0346).to_bits() >> 16).to_le_bytes()[..2]);
                }
            });
        }
    });
    pool
}

fn write(path: &Path, tensors: &[(String, Vec<usize>)], pool: &[u8], mut at: usize) -> std::io::Result<()> {
    let (mut header, mut end) = (Map::new(), 0usize);
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}));
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for (_, shape) in tensors {
        let mut left = 2 * shape.iter().product::<usize>();
        if shape.len() == 1 {
            file.write_all(&[0x80u8, 0x3f].repeat(left / 2))?;
            continue;
        }
        while left > 0 {
            // Each piece from another place, so that no two rows are the same ones.
            at = (at + 1_000_003) % (pool.len() / 2);
            let piece = pool.get(2 * at..).map_or(&[][..], |rest| rest.get(..left.min(8 << 20)).unwrap_or(rest));
            file.write_all(piece)?;
            left -= piece.len();
        }
    }
    Ok(())
}
