//! Checkpoints of real sizes, made of holes: what commands hold in memory while they go through them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::Sandbox;

const MIB: u64 = 1 << 20;
/// What the program itself takes: code, plugins, tokenizer, buffers of threads.
const PROGRAM: u64 = 400 * MIB;

/// A Qwen3 shape.
struct Shape {
    hidden: u64,
    inner: u64,
    layers: u64,
    heads: u64,
    key_heads: u64,
    tied: bool,
}

const VOCABULARY: u64 = 151_936;
const HEAD: u64 = 128;

const SMALL: Shape = Shape { hidden: 1024, inner: 3072, layers: 14, heads: 16, key_heads: 8, tied: true };
const LARGE: Shape = Shape { hidden: 4096, inner: 12_288, layers: 36, heads: 32, key_heads: 8, tied: false };

impl Shape {
    fn config(&self) -> Value {
        json!({
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "torch_dtype": "bfloat16",
            "hidden_size": self.hidden, "intermediate_size": self.inner, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.key_heads, "head_dim": HEAD, "vocab_size": VOCABULARY,
            "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "tie_word_embeddings": self.tied,
            "eos_token_id": 2536, "pad_token_id": 2534,
        })
    }

    /// Names and shapes; those of projections are told.
    fn tensors(&self) -> Vec<(String, Vec<u64>, bool)> {
        let (queries, keys) = (self.heads * HEAD, self.key_heads * HEAD);
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, self.hidden], false)];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[u64], projection| {
                all.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec(), projection));
            };
            add("input_layernorm", &[self.hidden], false);
            add("post_attention_layernorm", &[self.hidden], false);
            add("self_attn.q_norm", &[HEAD], false);
            add("self_attn.k_norm", &[HEAD], false);
            add("self_attn.q_proj", &[queries, self.hidden], true);
            add("self_attn.k_proj", &[keys, self.hidden], true);
            add("self_attn.v_proj", &[keys, self.hidden], true);
            add("self_attn.o_proj", &[self.hidden, queries], true);
            add("mlp.gate_proj", &[self.inner, self.hidden], true);
            add("mlp.up_proj", &[self.inner, self.hidden], true);
            add("mlp.down_proj", &[self.hidden, self.inner], true);
        }
        all.push(("model.norm.weight".to_owned(), vec![self.hidden], false));
        if !self.tied {
            all.push(("lm_head.weight".to_owned(), vec![VOCABULARY, self.hidden], false));
        }
        all
    }

    /// Bytes of the checkpoint in bfloat16, and of a model that is loaded from it in NF4 with scales that are quantized too, rounded up.
    fn bytes(&self) -> (u64, u64) {
        let (mut stored, mut held) = (0, 0);
        for (_, shape, projection) in self.tensors() {
            let values: u64 = shape.iter().product();
            stored += 2 * values;
            // Half a byte, a scale's code for each 64 values, a scale of scales for each 256 of these; a small tensor may be held in f32.
            held += if projection { values / 2 + values / 64 + values / 4096 + 4096 } else { 2 * values.max(4096) };
        }
        (stored, held)
    }

    /// Writes a checkpoint whose weights are holes, in files of at most `limit` bytes.
    fn write(&self, folder: &Path, limit: u64) {
        std::fs::create_dir_all(folder).unwrap();
        for (name, bytes) in trainer_nano::MODEL_FILES.iter().filter(|f| f.0.contains("token") || f.0.contains("generation")) {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
        std::fs::write(folder.join("config.json"), self.config().to_string()).unwrap();
        let mut shards: Vec<(serde_json::Map<String, Value>, u64)> = vec![Default::default()];
        for (name, shape, _) in self.tensors() {
            let bytes = 2 * shape.iter().product::<u64>();
            if shards.last().is_some_and(|(header, size)| !header.is_empty() && size + bytes > limit) {
                shards.push(Default::default());
            }
            let (header, size) = shards.last_mut().unwrap();
            header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [*size, *size + bytes] }));
            *size += bytes;
        }
        let mut map = serde_json::Map::new();
        let count = shards.len();
        for (i, (header, size)) in shards.into_iter().enumerate() {
            let file = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
            map.extend(header.keys().map(|name| (name.clone(), json!(file))));
            let text = Value::Object(header).to_string();
            let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
            bytes.extend(text.as_bytes());
            let path = folder.join(file);
            std::fs::write(&path, &bytes).unwrap();
            std::fs::File::options().write(true).open(&path).unwrap().set_len(bytes.len() as u64 + size).unwrap();
        }
        std::fs::write(folder.join("model.safetensors.index.json"), json!({ "metadata": {}, "weight_map": map }).to_string()).unwrap();
    }
}

/// What a command held at the most: resident bytes, and those of them that are no pages of files.
#[derive(Debug)]
struct Held {
    resident: u64,
    anonymous: u64,
    seconds: f64,
    text: String,
}

/// Runs a command that must succeed, and looks at its memory while it does.
fn held(mut command: Command) -> Held {
    let began = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut held = Held { resident: 0, anonymous: 0, seconds: 0.0, text: String::new() };
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let kib = |key: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) << 10
        };
        // The first is the system's own record of the highest value.
        held.resident = held.resident.max(kib("VmHWM"));
        held.anonymous = held.anonymous.max(kib("RssAnon"));
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(held.resident > 0, "the command was over before it could be looked at");
    held.seconds = began.elapsed().as_secs_f64();
    held.text = String::from_utf8(output.stdout).unwrap();
    held
}

fn check(shape: &Shape, limit: u64) {
    let sandbox = Sandbox::new();
    shape.write(&sandbox.path("model"), limit);
    let (stored, weights) = shape.bytes();
    let show = |what: &str, held: &Held| {
        println!("{what}: {} MiB resident, {} MiB of them anonymous, {:.1} s", held.resident / MIB, held.anonymous / MIB, held.seconds);
    };
    println!("{} MiB in files, {} MiB as NF4", stored / MIB, weights / MIB);
    // Looking at it reads headers. That takes less time than looking at the process, so the system sets the limit: one on all that the program
    // can write to.
    let looking = sandbox.command(["model", "inspect", "model"]);
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit -d {} && exec \"$0\" \"$@\"", PROGRAM >> 10)]).arg(looking.get_program()).args(looking.get_args());
    limited.current_dir(looking.get_current_dir().unwrap());
    limited.envs(looking.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let looked = limited.output().unwrap();
    assert!(looked.status.success(), "{}", String::from_utf8_lossy(&looked.stderr));

    // Loading quantizes tensor by tensor: beside what the model is in the end there is one tensor at a time.
    let largest = shape.tensors().iter().map(|(_, shape, _)| 2 * shape.iter().product::<u64>()).max().unwrap();
    let args = ["run", "--dry-run", "--json", "--set", "model.source=model", "--set", "model.quantization=nf4", "--device", "cpu"];
    let loaded = held(sandbox.command(args));
    show("run --dry-run", &loaded);
    let plan: Value = serde_json::from_str(&loaded.text).unwrap();
    let planned = plan["memory_total"].as_u64().unwrap();
    println!("the plan: {} MiB: {}", planned / MIB, plan["memory"]);
    assert!(loaded.resident < planned, "{loaded:?} of {planned}");
    assert!(loaded.resident < weights + largest + PROGRAM, "{loaded:?}: {weights} and {largest}");

    // Writing it in four bits never holds more than a few tensors.
    let quantized = held(sandbox.command(["model", "quantize", "model", "--out", "small", "--json"]));
    show("quantize", &quantized);
    assert!(quantized.resident < 4 * largest + PROGRAM, "{quantized:?}: {largest}");
    let inspected = sandbox.json(["model", "inspect", "small", "--json"]);
    assert_eq!(inspected["totals"]["four_bit_linears"], shape.layers * 7, "{}", inspected["totals"]);
}

#[test]
fn a_model_of_seven_hundred_megabytes_is_loaded_in_what_it_takes_in_four_bits() {
    check(&SMALL, 500 << 20);
}

#[test]
#[ignore = "goes through 16 GB"]
fn a_model_of_sixteen_gigabytes_is_loaded_in_what_it_takes_in_four_bits() {
    check(&LARGE, 5_000_000_000);
}
