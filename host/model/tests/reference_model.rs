//! Checkpoints and adapters against what transformers, bitsandbytes and PEFT wrote (`tests/reference`). Sizes and names come from the files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use trainer_kernels::blockwise8::Rounding;
use trainer_kernels::nf4::{Absmax, Nf4};
use trainer_model::{
    Adapter, Checkpoint, FloatType, GenerationConfig, LinearWeight, LoadOptions, ModelConfig, ModelDigest, ModelFiles, ModelWeights,
    Quantize, load_weights,
};
use trainer_test_support::{Tensor, json, max_abs_diff, reference, reference_file, tensors};

fn load(path: &str, options: LoadOptions) -> (ModelConfig, ModelWeights) {
    let files = ModelFiles::dir(reference_file(path));
    let config = ModelConfig::read(&files).unwrap();
    let checkpoint = Checkpoint::open(&files).unwrap();
    let weights = load_weights(&checkpoint, &config, options).unwrap();
    (config, weights)
}

fn as_stored() -> LoadOptions {
    LoadOptions { quantize: Quantize::AsStored, ..LoadOptions::default() }
}

/// Every linear layer with its name.
fn linears(weights: &ModelWeights) -> Vec<(String, &LinearWeight)> {
    let mut all = Vec::new();
    for (i, l) in weights.layers.iter().enumerate() {
        let named = [
            ("self_attn.q_proj", &l.q),
            ("self_attn.k_proj", &l.k),
            ("self_attn.v_proj", &l.v),
            ("self_attn.o_proj", &l.o),
            ("mlp.gate_proj", &l.gate),
            ("mlp.up_proj", &l.up),
            ("mlp.down_proj", &l.down),
        ];
        all.extend(named.map(|(name, weight)| (format!("model.layers.{i}.{name}"), weight)));
    }
    all.extend(weights.lm_head.iter().map(|w| ("lm_head".to_string(), w)));
    all
}

/// All folders below the reference that hold a model.
fn models() -> Vec<String> {
    let found: Vec<String> = find("config.json").into_iter().filter(|p| p.join("model.safetensors").exists()).map(relative).collect();
    assert!(found.len() >= 4, "{found:?}");
    found
}

fn relative(path: PathBuf) -> String {
    path.strip_prefix(reference()).unwrap().to_str().unwrap().to_string()
}

fn find(name: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, name: &str, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, name, found);
            } else if path.file_name().unwrap() == name {
                found.push(dir.to_path_buf());
            }
        }
    }
    let mut found = Vec::new();
    walk(&reference(), name, &mut found);
    found.sort();
    found
}

/// Every dense tensor of every checkpoint arrives with exactly the values that the file has.
#[test]
fn reference_checkpoints_load_as_stored() {
    for path in models() {
        let (config, weights) = load(&path, as_stored());
        let stored = tensors(&format!("{path}/model.safetensors"));
        let raw = json(&format!("{path}/config.json"));
        let size = |key: &str| raw[key].as_u64().unwrap() as usize;
        assert_eq!(config.hidden_size, size("hidden_size"), "{path}");
        assert_eq!(config.num_hidden_layers, weights.layers.len());
        assert_eq!(config.rms_norm_eps, raw["rms_norm_eps"].as_f64().unwrap());
        let theta = raw["rope_theta"].as_f64().or(raw["rope_parameters"]["rope_theta"].as_f64()).unwrap();
        assert_eq!(config.rope_theta, theta, "{path}");
        let dtype = raw["dtype"].as_str().or(raw["torch_dtype"].as_str()).unwrap();
        assert_eq!(config.dtype.unwrap().torch_name(), dtype, "{path}");
        assert_eq!(config.tie_word_embeddings, raw["tie_word_embeddings"].as_bool().unwrap());
        assert_eq!(weights.lm_head.is_none(), config.tie_word_embeddings);

        let same = |name: &str, got: Vec<f32>| {
            let want = stored.get(name).unwrap_or_else(|| panic!("{path}: {name}"));
            assert!(got == want.f32(), "{path}: {name}");
        };
        same("model.embed_tokens.weight", weights.embed.to_f32().unwrap());
        same("model.norm.weight", weights.final_norm.clone());
        for (i, layer) in weights.layers.iter().enumerate() {
            same(&format!("model.layers.{i}.input_layernorm.weight"), layer.input_norm.clone());
            same(&format!("model.layers.{i}.post_attention_layernorm.weight"), layer.post_norm.clone());
            same(&format!("model.layers.{i}.self_attn.q_norm.weight"), layer.q_norm.clone());
            same(&format!("model.layers.{i}.self_attn.k_norm.weight"), layer.k_norm.clone());
        }
        let mut quantized = 0;
        for (name, weight) in linears(&weights) {
            let want = &stored[&format!("{name}.weight")];
            match weight {
                LinearWeight::Nf4 { weight, .. } => {
                    quantized += 1;
                    check_stored_form(&path, &name, weight, &stored);
                }
                LinearWeight::Stored { .. } => panic!("{path}: {name} was not to be deferred"),
                LinearWeight::F32 { .. } | LinearWeight::Bf16 { .. } => {
                    assert_eq!(want.shape, [weight.out_features(), weight.in_features()], "{path}: {name}");
                    same(&format!("{name}.weight"), weight.to_f32().unwrap());
                }
            }
        }
        assert_eq!(quantized > 0, config.quantization.is_some(), "{path}");
        assert_eq!(quantized, stored.keys().filter(|k| k.ends_with(".quant_state.bitsandbytes__nf4")).count(), "{path}");
    }
}

/// A 4-bit weight against its parts, dequantized by the formula of the reference's README.
fn check_stored_form(path: &str, name: &str, weight: &Nf4, stored: &BTreeMap<String, Tensor>) {
    let part = |suffix: &str| &stored[&format!("{name}.weight{suffix}")];
    let state: serde_json::Value = serde_json::from_slice(&part(".quant_state.bitsandbytes__nf4").bytes).unwrap();
    let packed = &part("").bytes;
    assert_eq!(weight.packed(), packed, "{path}: {name}");
    let (map, nested_map, nested) = (part(".quant_map").f32(), part(".nested_quant_map").f32(), part(".nested_absmax").f32());
    let blocksize = state["blocksize"].as_u64().unwrap() as usize;
    let nested_blocksize = state["nested_blocksize"].as_u64().unwrap() as usize;
    let offset = state["nested_offset"].as_f64().unwrap() as f32;
    let scales: Vec<f32> =
        part(".absmax").bytes.iter().enumerate().map(|(i, &q)| nested_map[q as usize] * nested[i / nested_blocksize] + offset).collect();
    let got = weight.dequantize::<f32>();
    assert_eq!(weight.dtype().torch_name(), state["dtype"].as_str().unwrap());
    for (i, got) in got.iter().enumerate() {
        let code = if i % 2 == 0 { packed[i / 2] >> 4 } else { packed[i / 2] & 15 };
        assert!(*got == map[code as usize] * scales[i / blocksize], "{path}: {name}: value {i}");
    }
}

/// Quantizing tied_f32 while loading gives what bitsandbytes stored as nf4: bytes, scales and dequantized values, bit for bit, when codes
/// are chosen as on the machine that wrote the file.
#[test]
fn reference_quantizing_while_loading_gives_the_stored_form() {
    let (_, stored) = load("model/nf4", as_stored());
    let (_, again) = load("model/nf4", LoadOptions::default());
    assert_eq!(stored, again, "a stored 4-bit form stays as it is");
    for rounding in [Rounding::CpuTable, Rounding::Nearest] {
        let (_, loaded) = load("model/tied_f32", LoadOptions { quantize: Quantize::Nf4Double, rounding, defer: false });
        for ((name, a), (_, b)) in linears(&loaded).into_iter().zip(linears(&stored)) {
            let (LinearWeight::Nf4 { weight: a, .. }, LinearWeight::Nf4 { weight: b, .. }) = (a, b) else {
                panic!("{name} is not in 4 bits")
            };
            assert_eq!(a.packed(), b.packed(), "{name}");
            let (Absmax::Nested(x), Absmax::Nested(y)) = (a.absmax(), b.absmax()) else { panic!("{name}: scales are not nested") };
            assert!((x.offset - y.offset).abs() <= 1e-6 * y.offset.abs(), "{name}: offset");
            assert!(max_abs_diff(&x.absmax, &y.absmax) <= 1e-6 * y.offset.abs(), "{name}: nested absmax");
            if rounding == Rounding::CpuTable {
                assert_eq!(x.codes, y.codes, "{name}: codes");
                assert!(max_abs_diff(&a.dequantize::<f32>(), &b.dequantize::<f32>()) <= 1e-6 * y.offset.abs(), "{name}: values");
            }
        }
    }
}

/// The partly quantized checkpoint: which modules are in 4 bits, and one of them in bf16.
#[test]
fn reference_partly_quantized_checkpoint() {
    let about = json("quant/dynamic_nf4_bf16_about.json");
    let names = |key: &str| -> Vec<String> { about[key].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_string()).collect() };
    let (config, weights) = load("quant/dynamic_nf4_bf16", LoadOptions::default());
    let quantization = config.quantization.unwrap();
    assert_eq!(quantization.skip_modules.as_ref().unwrap(), &names("skip_modules"));
    let all: BTreeMap<_, _> = linears(&weights).into_iter().collect();
    for name in names("four_bit") {
        assert!(all[&name].is_quantized() && !quantization.skips(&name), "{name}");
    }
    for name in names("full_precision_linears") {
        assert!(!all[&name].is_quantized() && quantization.skips(&name), "{name}");
    }
    let (_, dense) = load("quant/dynamic_nf4_bf16", LoadOptions { quantize: Quantize::None, ..LoadOptions::default() });
    for ((name, packed), (_, dense)) in linears(&weights).into_iter().zip(linears(&dense)) {
        assert!(!dense.is_quantized() && packed.to_f32().unwrap() == dense.to_f32().unwrap(), "{name}");
    }
    let goldens = tensors("quant/dynamic_nf4_bf16_forward.safetensors");
    let mut compared = 0;
    for (key, golden) in &goldens {
        let Some(name) = key.strip_prefix("dequant_bf16.") else { continue };
        let LinearWeight::Nf4 { weight, .. } = all[name] else { panic!("{name} is not in 4 bits") };
        let got: Vec<f32> = weight.dequantize::<half::bf16>().iter().map(|v| v.to_f32()).collect();
        assert!(got == golden.f32(), "{name}");
        compared += 1;
    }
    assert!(compared > 0);
}

#[test]
fn reference_generation_configs() {
    for path in models() {
        let files = ModelFiles::dir(reference_file(&path));
        let got = GenerationConfig::read(&files).unwrap();
        let raw = json(&format!("{path}/generation_config.json"));
        let eos: Vec<u32> = match &raw["eos_token_id"] {
            serde_json::Value::Array(list) => list.iter().map(|v| v.as_u64().unwrap() as u32).collect(),
            one => vec![one.as_u64().unwrap() as u32],
        };
        assert_eq!(got.eos_token_ids, eos, "{path}");
        assert_eq!(got.pad_token_id.map(u64::from), raw["pad_token_id"].as_u64(), "{path}");
    }
}

/// Every adapter that PEFT wrote is read, written and read again without a difference, settings included.
#[test]
fn reference_adapters_survive_a_round_trip() {
    let found = find("adapter_config.json");
    assert!(found.len() >= 7, "{found:?}");
    let out = tempfile::tempdir().unwrap();
    for (i, folder) in found.into_iter().enumerate() {
        let adapter = Adapter::read(&ModelFiles::dir(&folder)).unwrap();
        let name = relative(folder.clone());
        let raw = json(&format!("{name}/adapter_config.json"));
        assert_eq!(adapter.config.r as u64, raw["r"].as_u64().unwrap());
        assert_eq!(adapter.config.alpha, raw["lora_alpha"].as_f64().unwrap());

        let target = out.path().join(format!("adapter-{i}"));
        adapter.write(&target).unwrap();
        let again: serde_json::Value = serde_json::from_slice(&std::fs::read(target.join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!(again, raw, "{name}: settings");
        let (want, got) = (
            tensors(&format!("{name}/adapter_model.safetensors")),
            trainer_test_support::tensors_at(&target.join("adapter_model.safetensors")),
        );
        assert_eq!(want.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>(), "{name}");
        for (key, want) in &want {
            assert_eq!((&want.shape, want.f32()), (&got[key].shape, got[key].f32()), "{name}: {key}");
            assert_eq!(got[key].dtype, safetensors::Dtype::F32);
        }
        assert_eq!(Adapter::read(&ModelFiles::dir(&target)).unwrap(), adapter);

        // Writing over it gives the same bytes.
        let bytes = || ["adapter_config.json", "adapter_model.safetensors"].map(|f| std::fs::read(target.join(f)).unwrap());
        let before = bytes();
        adapter.write(&target).unwrap();
        assert_eq!(before, bytes());
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 2, "nothing is left beside the two files");
    }
    assert!(std::fs::read_dir(out.path()).unwrap().all(|e| e.unwrap().file_name().to_str().unwrap().starts_with("adapter-")));
}

/// The adapters of single steps are read with the settings they were trained with.
#[test]
fn reference_adapters_of_single_steps() {
    let mut read = 0;
    for model in ["tied_f32", "nf4"] {
        let goldens = format!("model/{model}_goldens");
        let init = Adapter::read(&ModelFiles::dir(reference_file(&format!("{goldens}/adapter_init")))).unwrap();
        for entry in std::fs::read_dir(reference_file(&format!("{goldens}/train"))).unwrap() {
            let path = entry.unwrap().path();
            if !path.file_name().unwrap().to_str().unwrap().starts_with("adapter_step_") {
                continue;
            }
            let step = Adapter::read_weights(init.config.clone(), &path).unwrap();
            assert_eq!(step.modules.keys().collect::<Vec<_>>(), init.modules.keys().collect::<Vec<_>>());
            read += 1;
        }
    }
    assert!(read > 0);
}

#[test]
fn reference_merged_layer() {
    let (config, weights) = load("model/tied_f32", as_stored());
    let adapter = Adapter::read(&ModelFiles::dir(reference_file("model/tied_f32_goldens/adapter_init"))).unwrap();
    let goldens = tensors("model/tied_f32_goldens/merged_layer_0.safetensors");
    let all: BTreeMap<_, _> = linears(&weights).into_iter().collect();
    for (name, golden) in &goldens {
        let module = name.strip_suffix(".weight").unwrap();
        let weight = all[module];
        let (out, inp) = (weight.out_features(), weight.in_features());
        let before = weight.to_f32().unwrap();
        let mut merged = before.clone();
        adapter.merge(module, &mut merged, out, inp).unwrap();
        assert!(max_abs_diff(&merged, &golden.f32()) <= 1e-6, "{module}");
        assert!(max_abs_diff(&merged, &before) > 1e-4, "{module}: the adapter changes something");
        assert!(adapter.merge(module, &mut merged, inp + 1, out).is_err());
    }
    assert_eq!(config.num_hidden_layers, weights.layers.len());
}

/// A folder and the same bytes inside the program are the same model.
#[test]
fn reference_embedded_files_equal_the_folder() {
    let folder = reference_file("model/untied_bf16");
    let names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    // Leaked: embedded files are static, and a test may keep them for good.
    let embedded: Vec<(&'static str, &'static [u8])> =
        names.iter().map(|n| (*n, &*std::fs::read(folder.join(n)).unwrap().leak())).collect();
    let embedded = ModelFiles::Embedded(embedded.leak());
    let dir = ModelFiles::dir(&folder);
    assert_eq!(ModelDigest::of(&embedded).unwrap(), ModelDigest::of(&dir).unwrap());
    let load = |files: &ModelFiles| {
        let config = ModelConfig::read(files).unwrap();
        load_weights(&Checkpoint::open(files).unwrap(), &config, LoadOptions::default()).unwrap()
    };
    assert_eq!(load(&embedded), load(&dir));
    let (config, _) = self::load("model/untied_bf16", as_stored());
    assert_eq!(config.dtype, Some(FloatType::Bf16));
}

/// The same checkpoint in several files with an index.
#[test]
fn reference_sharded_checkpoint_equals_the_single_file() {
    let folder = reference_file("model/nf4");
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let out = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join("config.json"), out.path().join("config.json")).unwrap();
    let mut map = serde_json::Map::new();
    for shard in 0..3usize {
        let file = format!("model-{:05}-of-00003.safetensors", shard + 1);
        let part: Vec<_> = all.tensors().into_iter().enumerate().filter(|(i, _)| i % 3 == shard).map(|(_, t)| t).collect();
        for (name, _) in &part {
            map.insert(name.clone(), file.clone().into());
        }
        std::fs::write(out.path().join(&file), safetensors::serialize(part, None).unwrap()).unwrap();
    }
    let write_index = |map: &serde_json::Map<String, serde_json::Value>| {
        let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
        std::fs::write(out.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    };
    write_index(&map);
    let files = ModelFiles::dir(out.path());
    let config = ModelConfig::read(&files).unwrap();
    let sharded = load_weights(&Checkpoint::open(&files).unwrap(), &config, as_stored()).unwrap();
    assert_eq!(sharded, load("model/nf4", as_stored()).1);

    for (what, change) in [
        ("elsewhere", ("model.norm.weight", Some("../model.safetensors"))),
        ("not named", ("model.norm.weight", None)),
        ("download", ("model.norm.weight", Some("model-00009-of-00003.safetensors"))),
        ("says so", ("no.such.tensor", Some("model-00001-of-00003.safetensors"))),
    ] {
        let mut broken = map.clone();
        match change {
            (name, Some(file)) => broken.insert(name.into(), file.into()),
            (name, None) => broken.remove(name),
        };
        write_index(&broken);
        let error = Checkpoint::open(&files).unwrap_err().to_string();
        let expected = if what == "elsewhere" { "not a plain name" } else { what };
        assert!(error.contains(expected) || error.contains("says it is in"), "{what}: {error}");
    }
}
