//! `trainer export`: models for other programs, and this program reading them back.

use std::path::Path;

use serde_json::Value;

use crate::support::{Sandbox, baseline, json_file, reference};

const QUESTION: &str = "Solve for x: 3(x + 1) = 12.";

/// Greedy tokens of a model as it is stored.
fn greedy(sandbox: &Sandbox, model: &str, more: &[&str]) -> Value {
    let args = ["generate", "--model", model, "--prompt", QUESTION, "--chat", "--temperature", "0", "--max-new-tokens", "40", "--json"];
    sandbox.json(args[..args.len() - 1].iter().chain(more).chain(&["--json"]))["ids"].clone()
}

fn run_dir() -> &'static str {
    baseline().dir.to_str().unwrap()
}

#[test]
fn an_adapter_is_exported_whole_and_goes_on_working() {
    let sandbox = Sandbox::new();
    let json = sandbox.json(["export", "adapter", "--run", run_dir(), "--out", "out", "--json"]);
    assert_eq!((&json["format"], &json["verified_tensors"]), (&Value::from("adapter"), &Value::from(2 * 42)));
    let same = |name: &str| {
        std::fs::read(sandbox.path("out").join(name)).unwrap() == std::fs::read(baseline().dir.join("adapter").join(name)).unwrap()
    };
    assert!(same("adapter_model.safetensors"));
    assert_eq!(json_file(&sandbox.path("out/adapter_config.json"))["base_model_name_or_path"], "nano");
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "README.md", "lock.json"] {
        assert!(sandbox.path("out").join(name).is_file(), "{name}");
    }
    assert_eq!(
        greedy(&sandbox, "nano", &["--adapter", "out"]),
        greedy(&sandbox, "nano", &["--adapter", &format!("{}/adapter", run_dir())])
    );
}

#[test]
fn a_merged_model_says_what_it_was_merged_into_and_answers_alike() {
    let sandbox = Sandbox::new();
    let said = sandbox.ok(["export", "merged-16bit", "--run", run_dir(), "--out", "out"]);
    assert!(said.contains("merged into the original unquantized weights of nano"), "{said}");
    let card = std::fs::read_to_string(sandbox.path("out/README.md")).unwrap();
    for part in
        ["base_model: \"nano\"", "merged into the original unquantized weights of nano", "trainer run --locked lock.json", "\"math_mix\""]
    {
        assert!(card.contains(part), "{part} is not in {card}");
    }
    assert_eq!(json_file(&sandbox.path("out/lock.json")), json_file(&baseline().dir.join("lock.json")));
    let adapter = format!("{}/adapter", run_dir());
    assert_eq!(greedy(&sandbox, "out", &[]), greedy(&sandbox, "nano", &["--adapter", &adapter, "--quantization", "none"]));
    // A second export gives the same weights, and a place that is taken is left alone.
    sandbox.ok(["export", "merged-16bit", "--model", "nano", "--adapter", &adapter, "--out", "again", "--shard-size", "0.002"]);
    assert!(sandbox.path("again/model-00001-of-00003.safetensors").is_file());
    assert_eq!(weights(&sandbox.path("out")), weights(&sandbox.path("again")));
    assert!(sandbox.fails(["export", "merged-16bit", "--run", run_dir(), "--out", "out"]).contains("out is there already"));
}

/// All tensors of a folder.
fn weights(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            all.extend(trainer_test_support::tensors_at(&path).into_iter().map(|(name, t)| (name, t.bytes)));
        }
    }
    all.sort();
    all
}

/// In 4 bits, the merged model is the quantized form of the one in 16 bits.
#[test]
fn a_merged_model_in_four_bits_is_the_quantized_one() {
    let sandbox = Sandbox::new();
    sandbox.ok(["export", "merged-4bit", "--run", run_dir(), "--out", "four"]);
    sandbox.ok(["export", "merged-16bit", "--run", run_dir(), "--out", "sixteen"]);
    sandbox.ok(["model", "quantize", "sixteen", "--out", "quantized"]);
    assert_eq!(weights(&sandbox.path("four")), weights(&sandbox.path("quantized")));
    assert_eq!(greedy(&sandbox, "four", &[]), greedy(&sandbox, "quantized", &[]));
}

/// A base in 4 bits: merged into what it unpacks to, or into the original weights where they are given.
#[test]
fn a_base_in_four_bits_is_unpacked_or_replaced_by_the_original() {
    let sandbox = Sandbox::new();
    let (base, original) = (reference().join("model/nf4"), reference().join("model/tied_f32"));
    let adapter = reference().join("model/nf4_goldens/adapter_init");
    let common = ["export", "merged-16bit", "--model", base.to_str().unwrap(), "--adapter", adapter.to_str().unwrap()];
    let with = |more: &[&'static str]| {
        sandbox.ok(common.iter().copied().chain(more.iter().copied()).chain(["--out", if more.is_empty() { "a" } else { "b" }]))
    };
    let said = with(&[]);
    assert!(
        said.contains("merged into dequantized weights (NF4 (double-quantized)) of") && said.contains("their quantization error remains"),
        "{said}"
    );
    let said = sandbox.ok(common.iter().copied().chain(["--base", original.to_str().unwrap(), "--out", "b"]));
    assert!(said.contains("merged into the original unquantized weights of") && said.contains("tied_f32"), "{said}");
    // Layer 0 after PEFT's own merge, in f32; here it was rounded to bfloat16 at the end.
    let golden = trainer_test_support::tensors("model/tied_f32_goldens/merged_layer_0.safetensors");
    let merged = trainer_test_support::tensors_at(&sandbox.path("b/model.safetensors"));
    let mut seen = 0;
    for (name, tensor) in &golden {
        let Some(ours) = merged.iter().find(|(n, _)| name.ends_with(n.as_str()) || n.ends_with(name.as_str())) else {
            panic!("{name}: {:?}", merged.keys())
        };
        seen += 1;
        for (a, b) in ours.1.f32().iter().zip(tensor.f32()) {
            assert!((a - b).abs() <= b.abs() / 256.0 + 1e-6, "{name}: {a} {b}");
        }
    }
    assert_eq!(seen, 7);
    // In 4 bits again: what the adapter does not touch keeps its bytes, and what the base left in 16 bits stays there.
    let dynamic = reference().join("quant/dynamic_nf4_bf16");
    sandbox.ok(["export", "merged-4bit", "--model", dynamic.to_str().unwrap(), "--out", "dynamic"]);
    let (before, after) = (weights(&dynamic), weights(&sandbox.path("dynamic")));
    assert_eq!(before, after);
    let error = sandbox.fails(common.iter().copied().chain(["--base", "nano", "--out", "c"]));
    assert!(error.contains("its configuration is not that of the model that was trained"), "{error}");
    let error = sandbox.fails(common.iter().copied().chain(["--base", base.to_str().unwrap(), "--out", "c"]));
    assert!(error.contains("original weights must be unquantized"), "{error}");
}

#[test]
fn a_run_without_an_end_or_with_another_model_is_refused() {
    let sandbox = Sandbox::new();
    let error = sandbox.fails(["export", "adapter", "--run", "nowhere", "--out", "x"]);
    assert!(error.contains("nowhere is not a run directory"), "{error}");
    let error = sandbox.fails(["export", "adapter", "--run", run_dir(), "--best", "--out", "x"]);
    assert!(error.contains("has no adapter-best: the recipe's eval.best decides"), "{error}");
    let output = sandbox.run(["export", "gguf", "--out", "x"]);
    assert_eq!(output.status.code(), Some(2));
    // The lock pins the model's files.
    let copy = sandbox.path("run");
    for name in ["recipe.toml", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"] {
        sandbox.write(&format!("run/{name}"), std::fs::read(baseline().dir.join(name)).unwrap());
    }
    let lock = std::fs::read_to_string(baseline().dir.join("lock.json")).unwrap();
    let digest = json_file(&baseline().dir.join("lock.json"))["model"]["files"]["model.safetensors"].as_str().unwrap().to_owned();
    std::fs::write(copy.join("lock.json"), lock.replace(&digest, &"0".repeat(64))).unwrap();
    let error = sandbox.fails(["export", "adapter", "--run", "run", "--out", "x"]);
    assert!(error.contains("model.safetensors of the embedded model is not the file that the run was made with"), "{error}");
}

/// GGUF out and in again: in 16 bits nothing changes, and every type gives a model that answers.
#[test]
fn a_gguf_file_is_read_back_as_the_same_model() {
    let sandbox = Sandbox::new();
    let adapter = format!("{}/adapter", run_dir());
    sandbox.ok(["export", "merged-16bit", "--run", run_dir(), "--out", "sixteen"]);
    let whole = greedy(&sandbox, "sixteen", &[]);
    for quant in ["f16", "bf16", "q8_0", "q4_k_m"] {
        let out = format!("{quant}.gguf");
        let said = sandbox.ok(["export", "gguf", "--run", run_dir(), "--quant", quant, "--out", &out]);
        assert!(said.contains(&format!("gguf {quant} written to {out}")) && said.contains("68 tensors read again and equal"), "{said}");
        let ids = greedy(&sandbox, &out, &[]);
        if quant.ends_with("16") {
            assert_eq!(ids, whole, "{quant}");
        }
        assert!(ids.as_array().unwrap().len() > 3, "{ids}");
        let json = sandbox.json(["model", "inspect", &out, "--json"]);
        assert_eq!(json["totals"]["parameters"], 2_854_080);
        assert_eq!(json["config"], sandbox.json(["model", "inspect", "nano", "--json"])["config"]);
    }
    let tree = sandbox.ok(["model", "inspect", "q4_k_m.gguf"]);
    assert!(tree.contains("# Q4_K 192 x 512") && tree.contains("# Q6_K 192 x 512") && tree.contains("# Q5_0 512 x 192"), "{tree}");
    // A folder gets a Modelfile, the card and the lock.
    sandbox.ok(["export", "gguf", "--model", "nano", "--adapter", &adapter, "--out", "folder"]);
    let modelfile = std::fs::read_to_string(sandbox.path("folder/Modelfile")).unwrap();
    for part in ["FROM ./model.gguf\n", "PARAMETER stop \"<|im_end|>\"", "PARAMETER temperature 0.6", "<|im_start|>assistant"] {
        assert!(modelfile.contains(part), "{modelfile}");
    }
    assert!(sandbox.fails(["export", "gguf", "--model", "nano", "--out", "f16.gguf"]).contains("f16.gguf is there already"));
    let names = sandbox.names();
    assert!(!names.iter().any(|n| n.contains("tmp") || n.contains("export")), "{names:?}");
}

/// Training on from an adapter: the folder says its shape, and a step at a learning rate of 0 changes nothing of it.
#[test]
fn a_run_goes_on_from_an_adapter() {
    let sandbox = Sandbox::new();
    let adapter = reference().join("model/nf4_goldens/adapter_init");
    let base = reference().join("model/nf4");
    let common = [
        "--set",
        "eval.before=false",
        "--set",
        "eval.after=false",
        "--set",
        "sample.prompt=\"\"",
        "--set",
        "data.max_seq_length=2048",
        "--max-steps",
    ];
    let args = |steps: &'static str, out: &'static str| {
        let own = ["run", "--model", base.to_str().unwrap(), "--adapter", adapter.to_str().unwrap(), "--set", "train.warmup_steps=1"];
        own.into_iter().chain(common).chain([steps, "--out", out]).map(str::to_owned).collect::<Vec<_>>()
    };
    sandbox.ok(args("1", "first"));
    let tensors = |folder: &Path| trainer_test_support::tensors_at(&folder.join("adapter_model.safetensors"));
    let (before, after) = (tensors(&adapter), tensors(&sandbox.path("first/adapter")));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, tensor) in &before {
        assert_eq!((&tensor.shape, tensor.f32()), (&after[name].shape, after[name].f32()), "{name}");
    }
    let config = json_file(&sandbox.path("first/adapter/adapter_config.json"));
    assert_eq!((&config["r"], &config["lora_alpha"]), (&Value::from(4), &Value::from(8)));
    let lock = json_file(&sandbox.path("first/lock.json"));
    assert!(lock["adapter_from"]["adapter_model.safetensors"].is_string(), "{}", lock["adapter_from"]);
    sandbox.ok(args("3", "second"));
    assert_ne!(
        tensors(&sandbox.path("second/adapter")).into_values().map(|t| t.bytes).collect::<Vec<_>>(),
        before.into_values().map(|t| t.bytes).collect::<Vec<_>>()
    );
    // A regular expression that leaves layers out is no shape that a recipe has.
    let copy = sandbox.path("partial");
    std::fs::create_dir(&copy).unwrap();
    let text = std::fs::read_to_string(baseline().dir.join("adapter/adapter_config.json")).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    json["target_modules"] = Value::from(r".*layers\.[0-2]\..*_proj");
    std::fs::write(copy.join("adapter_config.json"), json.to_string()).unwrap();
    std::fs::copy(baseline().dir.join("adapter/adapter_model.safetensors"), copy.join("adapter_model.safetensors")).unwrap();
    let error = sandbox.fails(["run", "--adapter", "partial"]);
    assert!(error.contains("is not among target_modules"), "{error}");
}
