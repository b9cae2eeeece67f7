//! Exports as the programs that they are for see them: transformers, PEFT, bitsandbytes and llama.cpp, from PyPI; and models that those make as this
//! program sees them. They are installed into a folder of the build, so these tests are for `.ci/full`.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use trainer_engine::{Adapter, Model};
use trainer_kernels::cpu::{Cpu, CpuOptions};
use trainer_kernels::ops::{HostBatch, WeightPlan};
use trainer_model::gguf::GgmlType;
use trainer_model::{Adapter as HostAdapter, Checkpoint, LoadOptions, ModelConfig, ModelFiles, Quantize, load_weights};
use trainer_test_support::{max_abs_diff, tensors_at};

use crate::python::{python, run, script};
use crate::support::{Sandbox, baseline, json_file};

/// llama.cpp in a package with everything built.
const LLAMA: &str = "xllamacpp==2026.10.11549";

const IDS: [u32; 12] = [2535, 84, 2536, 500, 1001, 7, 7, 1500, 2, 2535, 333, 198];

fn transformers() -> Command {
    let packages = ["torch==2.15.0", "transformers==5.24.0", "peft==0.21.2", "bitsandbytes==0.50.2", "accelerate==1.15.0"];
    let mut command = Command::new(python("transformers", &packages));
    command.arg(script("transformers_peer.py")).env("HF_HUB_OFFLINE", "1").env("CUDA_VISIBLE_DEVICES", "");
    command
}

/// nano as a folder.
fn nano(sandbox: &Sandbox) -> PathBuf {
    for file in trainer_nano::MODEL_FILES {
        sandbox.write(&format!("nano/{}", file.0), file.1);
    }
    sandbox.path("nano")
}

/// The logits of this program, `[tokens, vocabulary]`, with weights as they are stored.
fn logits(folder: &Path, adapter: Option<&Path>, ids: &[u32]) -> Vec<f32> {
    let files = ModelFiles::dir(folder);
    let config = ModelConfig::read(&files).unwrap();
    let options = LoadOptions { quantize: Quantize::AsStored, ..LoadOptions::default() };
    let weights = load_weights(&Checkpoint::open(&files).unwrap(), &config, options).unwrap();
    let ops = std::sync::Arc::new(Cpu::new(CpuOptions { threads: 2 }).unwrap());
    let model = Model::new(ops, &config, &weights, WeightPlan::Unpacked).unwrap();
    let adapter = adapter.map(|folder| Adapter::load(&model, &HostAdapter::read(&ModelFiles::dir(folder)).unwrap()).unwrap());
    let n = ids.len();
    let batch = HostBatch {
        ids: ids.to_vec(),
        targets: Vec::new(),
        weights: Vec::new(),
        positions: (0..n as u32).collect(),
        cu_seqlens: vec![0, n as u32],
        samples: Vec::new(),
        slots: Vec::new(),
    };
    model.hidden_states(adapter.as_ref(), &batch).unwrap().logits
}

/// What transformers makes of a folder: logits; and its tree must be the one that `model inspect` prints.
fn peer(sandbox: &Sandbox, folder: &Path, adapter: Option<&Path>) -> Vec<f32> {
    let out = tempfile::tempdir().unwrap();
    let mut command = transformers();
    command.arg("look").arg(folder).arg(json!(IDS).to_string()).arg(out.path()).args(adapter);
    run(&mut command);
    let mut args = vec!["model", "inspect", folder.to_str().unwrap()];
    if let Some(adapter) = adapter {
        args.extend(["--adapter", adapter.to_str().unwrap()]);
    }
    assert_eq!(tree(&sandbox.ok(args)), std::fs::read_to_string(out.path().join("tree.txt")).unwrap(), "{}", folder.display());
    tensors_at(&out.path().join("logits.safetensors"))["logits"].f32()
}

/// A printed tree without what stands beside and below it.
fn tree(text: &str) -> String {
    let lines = text.lines().take_while(|l| !l.is_empty());
    lines.map(|l| format!("{}\n", l.split("  # ").next().unwrap_or(l).trim_end())).collect()
}

#[test]
#[ignore = "installs Python packages"]
fn transformers_and_peft_give_our_logits() {
    let sandbox = Sandbox::new();
    let base = nano(&sandbox);
    let run_dir = baseline().dir.to_str().unwrap();
    for (format, out) in [("adapter", "adapter"), ("merged-16bit", "sixteen"), ("merged-4bit", "four")] {
        sandbox.ok(["export", format, "--run", run_dir, "--out", out]);
    }
    let (sixteen, four, adapter) = (sandbox.path("sixteen"), sandbox.path("four"), sandbox.path("adapter"));
    let mut seen = Vec::new();
    for (folder, adapter) in [(&base, None), (&base, Some(&adapter)), (&sixteen, None), (&four, None)] {
        let adapter = adapter.map(PathBuf::as_path);
        let (ours, theirs) = (logits(folder, adapter, &IDS), peer(&sandbox, folder, adapter));
        let difference = max_abs_diff(&ours, &theirs);
        println!("{} {:?}: {difference}", folder.display(), adapter.is_some());
        assert!(difference < 2e-4, "{}: {difference}", folder.display());
        seen.push(theirs);
    }
    // Merged in 16 bits, the model is that with its adapter beside it, up to rounding; in 4 bits it is near.
    let far = |a: usize, b: usize| trainer_test_support::relative_norm(&seen[a], &seen[b]);
    assert!(far(2, 1) < 0.02 && far(3, 1) < 0.5 && far(0, 1) > 0.001, "{} {} {}", far(2, 1), far(3, 1), far(0, 1));
}

/// What `model quantize` writes is what bitsandbytes makes through transformers: the same 4-bit values, scales and settings.
#[test]
#[ignore = "installs Python packages"]
fn transformers_loads_and_would_have_made_our_quantized_checkpoints() {
    let sandbox = Sandbox::new();
    let base = nano(&sandbox);
    for (double, skip) in [(true, vec![]), (false, vec!["model.layers.1.mlp.up_proj", "model.layers.3.self_attn.k_proj"])] {
        let out = format!("ours-{double}");
        let mut args = vec!["model", "quantize", "nano", "--out", &out];
        skip.iter().for_each(|s| args.extend(["--skip", s]));
        if !double {
            args.push("--single");
        }
        sandbox.ok(args);
        let ours = sandbox.path(&out);
        let theirs = sandbox.path(&format!("theirs-{double}"));
        let skip: Vec<&str> = ["lm_head"].into_iter().chain(skip).collect();
        run(transformers().arg("quantize").arg(&base).arg(&theirs).arg(json!({ "double": double, "skip": skip }).to_string()));
        let (a, b) = (tensors_at(&ours.join("model.safetensors")), tensors_at(&theirs.join("model.safetensors")));
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        let mut codes = (0, 0);
        for (name, ours) in &a {
            let theirs = &b[name];
            assert_eq!((&ours.shape, ours.dtype), (&theirs.shape, theirs.dtype), "{name}");
            if name.ends_with(".absmax") && double {
                // The CPU kernel of bitsandbytes picks codes through a table, and not always the nearest.
                codes.0 += ours.bytes.iter().zip(&theirs.bytes).filter(|(a, b)| a != b).count();
                codes.1 += ours.bytes.len();
                assert!(ours.bytes.iter().zip(&theirs.bytes).all(|(a, b)| a.abs_diff(*b) <= 1), "{name}");
            } else if name.ends_with(".quant_state.bitsandbytes__nf4") {
                let state = |bytes: &[u8]| -> Value { serde_json::from_slice(bytes).unwrap() };
                let (mut a, mut b) = (state(&ours.bytes), state(&theirs.bytes));
                if double {
                    let (x, y) = (a["nested_offset"].take().as_f64().unwrap(), b["nested_offset"].take().as_f64().unwrap());
                    assert!((x - y).abs() <= 1e-6 * y.abs(), "{name}: {x} {y}");
                }
                assert_eq!(a, b, "{name}");
            } else if name.ends_with(".nested_absmax") {
                assert!(max_abs_diff(&ours.f32(), &theirs.f32()) < 1e-6, "{name}");
            } else {
                assert_eq!(ours.bytes, theirs.bytes, "{name}");
            }
        }
        assert!(codes.0 * 50 <= codes.1, "{codes:?}");
        let (mut ours_config, theirs_config) = (json_file(&ours.join("config.json")), json_file(&theirs.join("config.json")));
        let mut want = theirs_config["quantization_config"].clone();
        for config in [&mut ours_config["quantization_config"], &mut want] {
            let list = config["llm_int8_skip_modules"].as_array().cloned().unwrap_or_default();
            let mut names: Vec<String> = list.iter().map(|v| v.as_str().unwrap().to_owned()).collect();
            names.sort();
            config["llm_int8_skip_modules"] = json!(names);
        }
        assert_eq!(ours_config["quantization_config"], want);
        let difference = max_abs_diff(&logits(&ours, None, &IDS), &peer(&sandbox, &ours, None));
        println!("quantized, double {double}: {difference}; codes {codes:?}");
        assert!(difference < 2e-4, "{difference}");
    }
}

/// Random models with random settings, made and saved by transformers and bitsandbytes.
#[test]
#[ignore = "installs Python packages"]
fn checkpoints_of_transformers_and_bitsandbytes_load_here() {
    let sandbox = Sandbox::cold();
    for seed in 1..=8 {
        let out = sandbox.path(&format!("made-{seed}"));
        std::fs::create_dir(&out).unwrap();
        run(transformers().arg("make").arg(&out).arg(seed.to_string()));
        let ids: Vec<u32> = serde_json::from_value(json_file(&out.join("ids.json"))).unwrap();
        let folder = out.join("model");
        let difference = max_abs_diff(&logits(&folder, None, &ids), &tensors_at(&out.join("logits.safetensors"))["logits"].f32());
        println!("seed {seed}: {difference}");
        assert!(difference < 2e-4, "seed {seed}: {difference}");
        let said = sandbox.ok(["model", "inspect", folder.to_str().unwrap()]);
        assert_eq!(tree(&said), std::fs::read_to_string(out.join("tree.txt")).unwrap(), "seed {seed}");
    }
}

/// Adapters made by PEFT: lists, regular expressions, patterns, rank-stabilized, on their own modules.
#[test]
#[ignore = "installs Python packages"]
fn adapters_of_peft_load_here() {
    let sandbox = Sandbox::new();
    let base = nano(&sandbox);
    for (i, settings) in [
        json!({ "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"] }),
        json!({ "r": 4, "lora_alpha": 8, "target_modules": "all-linear", "use_rslora": true }),
        json!({ "r": 2, "target_modules": r".*layers\.[024]\.(self_attn\.(q|k)_proj|mlp\.up_proj)" }),
        json!({
            "r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": { r"layers\.1\..*q_proj": 6, "v_proj": 3 }, "alpha_pattern": { r"layers\.\d\.self_attn\.v_proj": 5 },
        }),
        json!({ "r": 4, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1, 3], "layers_pattern": "layers" }),
        json!({ "r": 4, "target_modules": ["q_proj", "k_proj", "up_proj"], "exclude_modules": r".*layers\.0\..*" }),
    ]
    .into_iter()
    .enumerate()
    {
        let adapter = sandbox.path(&format!("adapter-{i}"));
        run(transformers().arg("adapter").arg(&base).arg(&adapter).arg(settings.to_string()));
        let (ours, theirs) = (logits(&base, Some(&adapter), &IDS), peer(&sandbox, &base, Some(&adapter)));
        let (difference, changed) = (max_abs_diff(&ours, &theirs), max_abs_diff(&ours, &logits(&base, None, &IDS)));
        println!("{settings}: {difference}, changed {changed}");
        assert!(difference < 2e-4 && changed > 0.01, "{settings}: {difference} {changed}");
    }
}

/// Values as weights have them and as they do not: by name.
fn values() -> Vec<(&'static str, Vec<f32>)> {
    const COUNT: usize = 64 * 1024;
    // Sums of four uniform numbers are near enough to normal ones.
    let random = |seed: u32, i: usize| {
        let words = trainer_kernels::rng::philox4x32_10([i as u32, 0, 0, 0], [seed, 7]);
        words.iter().map(|w| f64::from(*w) / f64::from(u32::MAX) - 0.5).sum::<f64>() as f32
    };
    let nano = Checkpoint::open(&ModelFiles::Embedded(trainer_nano::MODEL_FILES)).unwrap();
    let mut trained = Vec::new();
    for layer in 0..6 {
        trained.extend(nano.read(&format!("model.layers.{layer}.mlp.down_proj.weight")).unwrap().to_f32().unwrap());
    }
    trained.truncate(trained.len() / 256 * 256);
    vec![
        ("weights of nano", trained),
        ("normal", (0..COUNT).map(|i| random(1, i) * 0.05).collect()),
        ("heavy tails", (0..COUNT).map(|i| random(2, i).powi(5)).collect()),
        ("with outliers", (0..COUNT).map(|i| random(3, i) * if i % 97 == 0 { 8.0 } else { 0.02 }).collect()),
        ("of one sign", (0..COUNT).map(|i| 0.5 + random(4, i) * 0.1).collect()),
        ("in bfloat16", (0..COUNT).map(|i| f32::from_bits((random(5, i) * 0.03).to_bits() & 0xffff_0000)).collect()),
        ("tiny", (0..COUNT).map(|i| random(6, i) * 1e-7).collect()),
        ("mostly zeros", (0..COUNT).map(|i| if i % 11 == 0 { random(7, i) } else { 0.0 }).collect()),
        ("zeros", vec![0.0; 1024]),
        ("all the same", vec![0.25; 1024]),
    ]
}

/// Blocks are those that ggml's own quantizers make.
#[test]
#[ignore = "installs a Python package"]
fn ggml_makes_our_blocks() {
    let python = python("llama", &[LLAMA]);
    let sandbox = Sandbox::cold();
    for kind in [GgmlType::Q8_0, GgmlType::Q5_0, GgmlType::Q4_K, GgmlType::Q6_K] {
        let (_, size) = kind.block();
        for (name, values) in values() {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let (from, to) = (sandbox.write("values", bytes), sandbox.path("blocks"));
            run(Command::new(&python).arg(script("ggml_peer.py")).arg(from).args([kind.number().to_string(), "256".to_owned()]).arg(&to));
            let (ours, theirs) = (trainer_export::gguf::pack(kind, &values).unwrap(), std::fs::read(&to).unwrap());
            assert_eq!(ours.len(), theirs.len(), "{kind} {name}");
            let lost = |blocks: &[u8]| {
                let again = kind.unpack(blocks).unwrap();
                values.iter().zip(&again).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
            };
            let (ours_lost, theirs_lost) = (lost(&ours), lost(&theirs));
            let blocks = ours.len() / size;
            let equal = ours.chunks_exact(size).zip(theirs.chunks_exact(size)).filter(|(a, b)| a == b).count();
            println!("{kind} {name}: {equal} of {blocks} blocks equal; squared error {ours_lost:e}, ggml's {theirs_lost:e}");
            assert_eq!(equal, blocks, "{kind} {name}: squared error {ours_lost:e}, ggml's {theirs_lost:e}");
        }
    }
}

/// In F16 llama.cpp generates the same greedy tokens, and with every type it answers a chat through the template in the file.
#[test]
#[ignore = "installs a Python package"]
fn llama_cpp_generates_our_tokens() {
    let python = python("llama", &[LLAMA]);
    let sandbox = Sandbox::new();
    let run_dir = baseline().dir.to_str().unwrap();
    for quant in ["f16", "bf16", "q8_0", "q4_k_m"] {
        let file = format!("{quant}.gguf");
        sandbox.ok(["export", "gguf", "--run", run_dir, "--quant", quant, "--out", &file]);
        let mut equal = 0;
        let questions =
            ["Solve for x: 3(x + 1) = 12.", "What is 17 * 3?", "Tom has 5 apples and buys 7 more. How many has he?", "Hello, who are you?"];
        for question in questions {
            let args =
                ["generate", "--model", &file, "--prompt", question, "--chat", "--temperature", "0", "--max-new-tokens", "48", "--json"];
            let ours = sandbox.json(args);
            let output = Command::new(&python)
                .arg(script("llama_peer.py"))
                .arg(sandbox.path(&file))
                .args([ours["prompt_ids"].to_string(), "48".to_owned()])
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
            let theirs: Value = serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or_else(|e| panic!("{e}: {text}"));
            let ids = |v: &Value| v.as_array().unwrap().iter().map(|i| i.as_u64().unwrap()).collect::<Vec<_>>();
            let (ours, mut theirs_ids) = (ids(&ours["ids"]), ids(&theirs["ids"]));
            // llama.cpp shows the token that ended the answer.
            theirs_ids.truncate(theirs_ids.len().min(ours.len().max(theirs_ids.iter().position(|id| *id == 2536).unwrap_or(usize::MAX))));
            println!("{quant} {question:?}: {} tokens, equal {}", ours.len(), ours == theirs_ids);
            equal += usize::from(ours == theirs_ids);
            assert!(theirs["chat"]["role"] == "assistant", "{theirs}");
        }
        // Quantized activations of llama.cpp's kernels can tip a close choice where weights are in blocks.
        let least = if quant == "f16" { questions.len() } else { 2 };
        assert!(equal >= least, "{quant}: {equal} of {} equal", questions.len());
    }
}
