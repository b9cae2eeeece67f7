//! Writes a checkpoint with random weights of some shape, in shards as large models come, to measure loading with:
//!
//!     write_checkpoint 8b FOLDER [--nf4]
//!     trainer run --set model.source=FOLDER --max-steps 1 ...
//!
//! Weights are in bfloat16, about normal with deviation 0.02, or with `--nf4` in 4 bits as bitsandbytes stores them; norms are 1, the tokenizer is
//! the embedded model's. Values repeat after some millions.

use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use serde_json::{Map as Object, json};
use trainer_engine::synthetic::shape;
use trainer_kernels::blockwise8::Map;
use trainer_kernels::nf4::NF4_CODE;
use trainer_kernels::rng::philox4x32_10;

/// Bytes of a shard, about.
const SHARD: usize = 4 << 30;
/// Values that are drawn.
const DRAWN: usize = 16 << 20;

/// A tensor to write.
struct Tensor {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: usize,
    /// Its content, again and again; none: random bits of a bfloat16 weight.
    content: Option<Vec<u8>>,
}

impl Tensor {
    fn new(name: String, dtype: &'static str, shape: Vec<usize>, content: Option<Vec<u8>>) -> Self {
        let size = match dtype {
            "U8" => 1,
            "BF16" => 2,
            _ => 4,
        };
        Self { name, dtype, bytes: size * shape.iter().product::<usize>(), shape, content }
    }
}

/// The parts of a weight in 4 bits.
fn nf4(name: &str, out: usize, inner: usize) -> [Tensor; 6] {
    let floats = |values: &[f32]| Some(values.iter().flat_map(|v| v.to_le_bytes()).collect());
    let blocks = (out * inner).div_ceil(64);
    let state = json!({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [out, inner], "nested_blocksize": 256,
        "nested_dtype": "float32", "nested_offset": 0.04})
    .to_string();
    let part = |suffix: &str, dtype, shape, content| Tensor::new(format!("{name}{suffix}"), dtype, shape, content);
    [
        part("", "U8", vec![out * inner / 2, 1], None),
        part(".absmax", "U8", vec![blocks], None),
        part(".quant_map", "F32", vec![16], floats(&NF4_CODE)),
        part(".nested_absmax", "F32", vec![blocks.div_ceil(256)], floats(&[0.02])),
        part(".nested_quant_map", "F32", vec![256], floats(Map::signed().code())),
        part(".quant_state.bitsandbytes__nf4", "U8", vec![state.len()], Some(state.into_bytes())),
    ]
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (name, folder, quantized) = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [name, folder] => (name, folder, false),
        [name, folder, "--nf4"] => (name, folder, true),
        _ => return Err("usage: write_checkpoint SHAPE FOLDER [--nf4]".into()),
    };
    let c = shape(name).ok_or("no such shape")?;
    let folder = Path::new(folder);
    fs::create_dir_all(folder)?;
    let began = Instant::now();
    for (name, bytes) in trainer_nano::MODEL_FILES.iter().filter(|(name, _)| name.contains("token")) {
        fs::write(folder.join(name), bytes)?;
    }
    let mut config = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "attention_bias": false,
        "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size, "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads, "num_key_value_heads": c.num_key_value_heads, "head_dim": c.head_dim,
        "vocab_size": c.vocab_size, "max_position_embeddings": c.max_position_embeddings, "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta, "tie_word_embeddings": c.tie_word_embeddings, "torch_dtype": "bfloat16",
    });
    if quantized {
        config["quantization_config"] = json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "load_in_8bit": false,
            "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true, "bnb_4bit_compute_dtype": "bfloat16"});
    }
    fs::write(folder.join("config.json"), config.to_string())?;

    let (h, q, kv, i) = (c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim, c.intermediate_size);
    let table = |name: &str| Tensor::new(name.into(), "BF16", vec![c.vocab_size, h], None);
    let ones = |name: String, len: usize| Tensor::new(name, "BF16", vec![len], Some(vec![0x80, 0x3f]));
    let mut tensors = vec![table("model.embed_tokens.weight")];
    for layer in 0..c.num_hidden_layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let norms =
            [("input_layernorm", h), ("self_attn.q_norm", c.head_dim), ("self_attn.k_norm", c.head_dim), ("post_attention_layernorm", h)];
        tensors.extend(norms.map(|(part, len)| ones(name(part), len)));
        for (part, out, inner) in [
            ("self_attn.q_proj", q, h),
            ("self_attn.k_proj", kv, h),
            ("self_attn.v_proj", kv, h),
            ("self_attn.o_proj", h, q),
            ("mlp.gate_proj", i, h),
            ("mlp.up_proj", i, h),
            ("mlp.down_proj", h, i),
        ] {
            if quantized {
                tensors.extend(nf4(&name(part), out, inner));
            } else {
                tensors.push(Tensor::new(name(part), "BF16", vec![out, inner], None));
            }
        }
    }
    tensors.push(ones("model.norm.weight".into(), h));
    if !c.tie_word_embeddings {
        tensors.push(table("lm_head.weight"));
    }
    let mut shards: Vec<Vec<Tensor>> = vec![Vec::new()];
    let mut full = 0;
    for tensor in tensors {
        if full + tensor.bytes > SHARD {
            shards.push(Vec::new());
            full = 0;
        }
        full += tensor.bytes;
        shards.last_mut().ok_or("no shard")?.push(tensor);
    }
    let pool = pool();
    let (mut map, count, mut total) = (Object::new(), shards.len(), 0);
    let file = |number: usize| format!("model-{:05}-of-{count:05}.safetensors", number + 1);
    for (number, shard) in shards.iter().enumerate() {
        for tensor in shard {
            map.insert(tensor.name.clone(), json!(file(number)));
            total += tensor.bytes;
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

fn write(path: &Path, tensors: &[Tensor], pool: &[u8], mut at: usize) -> std::io::Result<()> {
    let (mut header, mut end) = (Object::new(), 0usize);
    for tensor in tensors {
        let start = end;
        end += tensor.bytes;
        header.insert(tensor.name.clone(), json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}));
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for tensor in tensors {
        if let Some(content) = &tensor.content {
            file.write_all(&content.repeat(tensor.bytes / content.len()))?;
            continue;
        }
        let mut left = tensor.bytes;
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
