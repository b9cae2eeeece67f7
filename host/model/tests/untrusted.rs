//! Broken and hostile model files: every one is refused with an error that says what is wrong, and none panics.

use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::Path;
use trainer_model::{Adapter, AdapterConfig, Checkpoint, GenerationConfig, LoadOptions, ModelConfig, ModelError, ModelFiles, load_weights};

fn config() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "attention_dropout": 0.0,
        "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "vocab_size": 10, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "torch_dtype": "float32", "eos_token_id": [1, 2],
    })
}

fn with(change: Value) -> Value {
    let mut base = config();
    for (key, value) in change.as_object().unwrap() {
        base[key] = value.clone();
    }
    base
}

fn refused(change: Value) -> String {
    match ModelConfig::parse(&with(change.clone()).to_string(), "config.json") {
        Ok(_) => panic!("accepted {change}"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn what_the_engine_does_not_do_is_refused_by_name() {
    ModelConfig::parse(&config().to_string(), "config.json").unwrap();
    for (change, needles) in [
        (json!({"model_type": "llama"}), ["model_type \"llama\"", "Qwen3ForCausalLM"]),
        (json!({"architectures": ["Qwen3ForSequenceClassification"]}), ["Qwen3ForSequenceClassification", "Qwen3ForCausalLM"]),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), ["rope_scaling.rope_type \"yarn\"", "unscaled"]),
        (json!({"rope_scaling": {"factor": 4.0}}), ["rope_scaling.factor", "unscaled"]),
        (json!({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}), ["rope_parameters.rope_type", "unscaled"]),
        (json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}), ["rope_theta", "remove one"]),
        (json!({"rope_theta": null}), ["rope_theta", "missing"]),
        (json!({"rope_theta": 0.0}), ["rope_theta", "positive"]),
        (json!({"use_sliding_window": true, "sliding_window": 32, "max_window_layers": 0}), ["sliding_window 32", "full attention"]),
        (json!({"layer_types": ["sliding_attention"]}), ["sliding_attention", "full attention"]),
        (json!({"layer_types": ["full_attention", "full_attention"]}), ["layer_types", "2 entries for 1"]),
        (json!({"hidden_act": "gelu"}), ["hidden_act \"gelu\"", "silu"]),
        (json!({"attention_dropout": 0.1}), ["attention_dropout 0.1", "0.0"]),
        (json!({"hidden_size": 0}), ["hidden_size is 0", "from 1"]),
        (json!({"hidden_size": -4}), ["hidden_size is -4", "whole number"]),
        (json!({"hidden_size": 8.5}), ["hidden_size is 8.5", "whole number"]),
        (json!({"vocab_size": u64::MAX}), ["vocab_size", "from 1"]),
        (json!({"hidden_size": null}), ["hidden_size", "missing"]),
        (json!({"num_key_value_heads": 3}), ["num_key_value_heads is 3", "divide"]),
        (json!({"head_dim": 5}), ["head_dim is 5", "even"]),
        (json!({"rms_norm_eps": -1.0}), ["rms_norm_eps", "between"]),
        (json!({"torch_dtype": "float8_e4m3fn"}), ["float8_e4m3fn", "bfloat16"]),
        (json!({"eos_token_id": "x"}), ["eos_token_id is \"x\"", "list"]),
        (json!({"tie_word_embeddings": "yes"}), ["tie_word_embeddings", "true or false"]),
        (json!({"quantization_config": {"quant_method": "gptq"}}), ["gptq", "NF4"]),
        (json!({"quantization_config": {"load_in_8bit": true}}), ["load_in_8bit", "NF4"]),
        (json!({"quantization_config": {"load_in_4bit": true, "bnb_4bit_quant_type": "fp4"}}), ["fp4", "nf4"]),
        (json!({"quantization_config": {"load_in_4bit": true}}), ["fp4", "nf4"]),
        (json!({"quantization_config": {"quant_method": "bitsandbytes"}}), ["load_in_4bit", "NF4"]),
        (
            json!({"quantization_config": {"load_in_4bit": true, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "bfloat16"}}),
            ["bnb_4bit_quant_storage", "uint8"],
        ),
    ] {
        let error = refused(change);
        for needle in needles {
            assert!(error.contains(needle), "{needle:?} is not in: {error}");
        }
        assert!(error.starts_with("config.json"), "{error}");
    }
}

#[test]
fn harmless_variants_are_accepted() {
    for change in [
        json!({"rope_scaling": null}),
        json!({"rope_scaling": {"rope_type": "default"}}),
        json!({"rope_theta": null, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 1.0}}),
        json!({"use_sliding_window": false, "sliding_window": 4096}),
        json!({"use_sliding_window": true, "sliding_window": 4096, "max_window_layers": 28}),
        json!({"head_dim": null}),
        json!({"torch_dtype": null, "dtype": "torch.bfloat16"}),
        json!({"eos_token_id": null}),
        json!({"num_key_value_heads": null}),
    ] {
        ModelConfig::parse(&with(change.clone()).to_string(), "config.json").unwrap_or_else(|e| panic!("{change}: {e}"));
    }
    let parsed = ModelConfig::parse(&config().to_string(), "config.json").unwrap();
    assert_eq!(parsed.eos_token_ids, [1, 2]);
    let shapes = [10 * 8, 8, 8, 8, 4, 4, 8 * 8, 4 * 8, 4 * 8, 8 * 8, 12 * 8, 12 * 8, 8 * 12];
    assert_eq!(parsed.parameters(), shapes.iter().sum::<u64>());
    let generation = GenerationConfig::parse(r#"{"eos_token_id": [5, 6], "top_k": 0, "temperature": 0.6, "unknown": {}}"#, "g").unwrap();
    assert_eq!((generation.eos_token_ids, generation.top_k, generation.temperature), (vec![5, 6], Some(0), Some(0.6)));
    assert!(GenerationConfig::parse(r#"{"top_k": -1}"#, "g").is_err());
}

/// The tensors that `config()` asks for.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut all = vec![("model.embed_tokens.weight".to_string(), vec![10, 8]), ("model.norm.weight".to_string(), vec![8])];
    for (name, shape) in [
        ("input_layernorm", vec![8]),
        ("post_attention_layernorm", vec![8]),
        ("self_attn.q_norm", vec![4]),
        ("self_attn.k_norm", vec![4]),
        ("self_attn.q_proj", vec![8, 8]),
        ("self_attn.k_proj", vec![4, 8]),
        ("self_attn.v_proj", vec![4, 8]),
        ("self_attn.o_proj", vec![8, 8]),
        ("mlp.gate_proj", vec![12, 8]),
        ("mlp.up_proj", vec![12, 8]),
        ("mlp.down_proj", vec![8, 12]),
    ] {
        all.push((format!("model.layers.0.{name}.weight"), shape));
    }
    all
}

fn header(tensors: &[(String, Vec<usize>)]) -> (Value, usize) {
    let mut at = 0;
    let mut map = serde_json::Map::new();
    for (name, shape) in tensors {
        let bytes = 4 * shape.iter().product::<usize>();
        map.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [at, at + bytes]}));
        at += bytes;
    }
    (Value::Object(map), at)
}

fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..data).map(|i| if i % 4 == 3 { 0x3D } else { (i * 37 % 251) as u8 }));
    bytes
}

fn write(dir: &Path, config: &str, weights: &[u8]) -> ModelFiles {
    std::fs::write(dir.join("config.json"), config).unwrap();
    std::fs::write(dir.join("model.safetensors"), weights).unwrap();
    ModelFiles::dir(dir)
}

fn load(files: &ModelFiles) -> Result<(), ModelError> {
    let config = ModelConfig::read(files)?;
    let checkpoint = Checkpoint::open(files)?;
    load_weights(&checkpoint, &config, LoadOptions::default()).map(drop)
}

#[test]
fn a_sound_checkpoint_loads_and_broken_headers_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let (sound, data) = header(&tensors());
    load(&write(dir.path(), &config().to_string(), &file(&sound.to_string(), data))).unwrap();

    let entry = |name: &str, change: Value| {
        let mut broken = sound.clone();
        for (key, value) in change.as_object().unwrap() {
            broken[name][key] = value.clone();
        }
        file(&broken.to_string(), data)
    };
    let norm = "model.norm.weight";
    let text = sound.to_string();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("the length of the header alone takes 8", vec![1, 2, 3]),
        ("its header would have", u64::MAX.to_le_bytes().to_vec()),
        ("its header would have", [(1u64 << 40).to_le_bytes().to_vec(), text.clone().into_bytes()].concat()),
        ("its header", file("[]", 0)),
        ("its header", file("{\"a\": 1}", 0)),
        ("its header", file(&"[".repeat(10_000), 0)),
        (
            "occurs twice",
            file(&text.replacen('{', "{\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},", 1), data),
        ),
        ("__metadata__ occurs twice", file(&text.replacen('{', "{\"__metadata__\":{},\"__metadata__\":{},", 1), data)),
        ("unknown variant", entry(norm, json!({"dtype": "F12"}))),
        ("unknown field", entry(norm, json!({"more": 1}))),
        ("would be bytes", entry(norm, json!({"data_offsets": [0, 1u64 << 60]}))),
        ("would be bytes", entry(norm, json!({"data_offsets": [40, 8]}))),
        ("does not have the", entry(norm, json!({"shape": [9]}))),
        ("does not have the", entry(norm, json!({"shape": [u64::MAX, u64::MAX]}))),
        ("does not have the", entry(norm, json!({"dtype": "I64"}))),
        ("overlaps", entry(norm, json!({"data_offsets": [0, 32]}))),
        ("the tensors end at byte", file(&text, data + 1)),
        ("would be bytes", file(&text, data - 1)),
    ];
    for (needle, bytes) in cases {
        let error = load(&write(dir.path(), &config().to_string(), &bytes)).unwrap_err().to_string();
        assert!(error.contains(needle), "{needle:?} is not in: {error}");
        assert!(error.contains("model.safetensors"), "the file is named: {error}");
    }
}

#[test]
fn every_missing_extra_and_misshapen_tensor_is_listed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut list = tensors();
    list.retain(|(name, _)| !name.contains("k_proj") && !name.contains("q_norm"));
    list.push(("model.layers.7.mlp.up_proj.weight".into(), vec![12, 8]));
    list.push(("model.layers.0.self_attn.q_proj.bias".into(), vec![8]));
    list.iter_mut().find(|(name, _)| name.contains("down_proj")).unwrap().1 = vec![12, 8];
    let (header, data) = header(&list);
    let error = load(&write(dir.path(), &config().to_string(), &file(&header.to_string(), data))).unwrap_err();
    let ModelError::Tensors(problems) = &error else { panic!("{error}") };
    assert_eq!(problems.missing.len(), 2);
    assert_eq!(problems.extra, ["model.layers.0.self_attn.q_proj.bias", "model.layers.7.mlp.up_proj.weight"]);
    assert_eq!(problems.misshapen.len(), 1);
    let text = error.to_string();
    for needle in
        ["2 missing, 2 extra, 1 misshapen", "missing: model.layers.0.self_attn.k_proj.weight [4, 8]", "shape [12, 8] instead of [8, 12]"]
    {
        assert!(text.contains(needle), "{needle:?} is not in: {text}");
    }
    // A configuration that claims a great many layers is answered at once.
    let error =
        load(&write(dir.path(), &with(json!({"num_hidden_layers": 4096})).to_string(), &file(&header.to_string(), data))).unwrap_err();
    assert!(matches!(error, ModelError::Tensors(_)));
}

#[test]
fn a_tied_head_that_is_written_twice_is_accepted_and_biases_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut list = tensors();
    list.push(("lm_head.weight".into(), vec![10, 8]));
    for (name, len) in [("q", 8), ("k", 4), ("v", 4), ("o", 8)] {
        list.push((format!("model.layers.0.self_attn.{name}_proj.bias"), vec![len]));
    }
    let (header, data) = header(&list);
    let files = write(dir.path(), &with(json!({"attention_bias": true})).to_string(), &file(&header.to_string(), data));
    let weights = load_weights(&Checkpoint::open(&files).unwrap(), &ModelConfig::read(&files).unwrap(), LoadOptions::default()).unwrap();
    let layer = &weights.layers[0];
    assert_eq!([&layer.q, &layer.k, &layer.v, &layer.o].map(|w| w.bias().unwrap().len()), [8, 4, 4, 8]);
    assert!(layer.gate.bias().is_none() && weights.lm_head.is_none());
}

#[test]
fn folders_that_are_not_models_say_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let files = ModelFiles::dir(dir.path());
    assert!(ModelConfig::read(&files).unwrap_err().to_string().contains("has no config.json"));
    assert!(Checkpoint::open(&files).unwrap_err().to_string().contains("model.safetensors.index.json"));
    std::fs::write(dir.path().join("pytorch_model.bin"), b"x").unwrap();
    assert!(Checkpoint::open(&files).unwrap_err().to_string().contains("convert the model to safetensors"));
    assert!(Adapter::read(&files).unwrap_err().to_string().contains("adapter_config.json"));
    assert!(Checkpoint::open(&ModelFiles::dir(dir.path().join("absent"))).is_err());
    assert!(Checkpoint::open(&ModelFiles::Embedded(&[])).is_err());
}

fn adapter_config(change: Value) -> Result<AdapterConfig, ModelError> {
    let mut base = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none"});
    for (key, value) in change.as_object().unwrap() {
        base[key] = value.clone();
    }
    AdapterConfig::parse(&base.to_string(), "adapter_config.json")
}

#[test]
fn adapter_features_are_honoured_or_refused() {
    let plain = adapter_config(json!({})).unwrap();
    assert_eq!(plain.scale_of("model.layers.0.self_attn.q_proj"), 2.0);
    assert!(plain.targets("model.layers.3.self_attn.v_proj") && !plain.targets("model.layers.3.self_attn.k_proj"));
    let rich = adapter_config(json!({
        "use_rslora": true, "r": 16, "lora_alpha": 32, "rank_pattern": {"layers.0.self_attn.q_proj": 4}, "alpha_pattern": {"v_proj": 8},
        "target_modules": "all-linear", "bias": "lora_only", "lora_dropout": 0.05,
    }))
    .unwrap();
    assert_eq!(rich.scale_of("model.layers.0.self_attn.q_proj"), 32.0 / 2.0);
    assert_eq!(rich.scale_of("model.layers.1.self_attn.q_proj"), 32.0 / 4.0);
    assert_eq!(rich.scale_of("model.layers.1.self_attn.v_proj"), 8.0 / 4.0);
    assert_eq!((rich.rank_of("model.layers.0.self_attn.q_proj"), rich.rank_of("model.layers.10.self_attn.q_proj")), (4, 16));
    assert!(rich.targets("model.layers.0.mlp.up_proj") && !rich.targets("lm_head"));
    assert_eq!(AdapterConfig::parse(&rich.to_json(), "again").unwrap().to_json(), rich.to_json());
    let chosen = adapter_config(json!({
        "target_modules": r".*layers\.[0-2]\..*_proj", "exclude_modules": ["k_proj"], "rank_pattern": {r"layers\.1\..*q_proj": 2},
        "alpha_pattern": {r"(q|v)_proj": 12},
    }))
    .unwrap();
    assert!(chosen.targets("model.layers.2.mlp.up_proj") && !chosen.targets("model.layers.3.mlp.up_proj"));
    assert!(!chosen.targets("model.layers.2.self_attn.k_proj"));
    assert_eq!((chosen.rank_of("model.layers.1.self_attn.q_proj"), chosen.rank_of("model.layers.11.self_attn.q_proj")), (2, 4));
    assert_eq!((chosen.scale_of("model.layers.1.self_attn.q_proj"), chosen.scale_of("model.layers.0.mlp.up_proj")), (6.0, 2.0));
    let again = AdapterConfig::parse(&chosen.to_json(), "again").unwrap();
    assert_eq!(again, chosen);
    assert_eq!(chosen.unmatched(&["model.layers.1.self_attn.q_proj"]), None);
    assert_eq!(chosen.unmatched(&["model.layers.1.mlp.up_proj"]), Some(r"layers\.1\..*q_proj"));
    adapter_config(json!({"use_new_thing": null, "another": false, "third": {}, "fourth": []})).unwrap();

    for (change, needle) in [
        (json!({"peft_type": "IA3"}), "peft_type \"IA3\""),
        (json!({"use_dora": true}), "use_dora true"),
        (json!({"modules_to_save": ["lm_head"]}), "merge the adapter with PEFT first"),
        (json!({"layers_to_transform": [0, "x"]}), "layers_to_transform must be"),
        (json!({"layers_to_transform": [0, 1], "target_modules": ".*q_proj"}), "list of target_modules only"),
        (json!({"use_new_thing": 1}), "unknown"),
        (json!({"init_lora_weights": "pissa"}), "pissa"),
        (json!({"target_modules": "(?!x)q_proj"}), "without look-around"),
        (json!({"exclude_modules": "("}), "exclude_modules \"(\""),
        (json!({"target_modules": ["(q|k)_proj"]}), "(q|k)_proj"),
        (json!({"target_modules": []}), "empty"),
        (json!({"rank_pattern": {"^a.*(": 4}}), "rank_pattern entry"),
        (json!({"rank_pattern": {"q_proj": 0}}), "rank_pattern.q_proj is 0"),
        (json!({"r": 0}), "r is 0"),
        (json!({"r": null}), "r is missing"),
        (json!({"lora_dropout": 1.0}), "lora_dropout"),
        (json!({"bias": "some"}), "bias is \"some\""),
    ] {
        let error = adapter_config(change).unwrap_err().to_string();
        assert!(error.contains(needle), "{needle:?} is not in: {error}");
    }
}

fn adapter_tensors(list: &[(&str, &[usize])]) -> Result<Adapter, ModelError> {
    let dir = tempfile::tempdir().unwrap();
    let list: Vec<_> = list.iter().map(|(name, shape)| (format!("base_model.model.{name}"), shape.to_vec())).collect();
    let (header, data) = header(&list);
    let path = dir.path().join("adapter_model.safetensors");
    std::fs::write(&path, file(&header.to_string(), data)).unwrap();
    Adapter::read_weights(adapter_config(json!({"bias": "all"})).unwrap(), &path)
}

#[test]
fn adapter_tensors_that_do_not_fit_are_refused() {
    let (a, b) = ("model.layers.0.self_attn.q_proj.lora_A.weight", "model.layers.0.self_attn.q_proj.lora_B.weight");
    let good = adapter_tensors(&[
        (a, &[4, 8]),
        (b, &[6, 4]),
        ("model.layers.0.self_attn.q_proj.base_layer.bias", &[6]),
        ("model.layers.0.mlp.up_proj.bias", &[3]),
    ])
    .unwrap();
    assert_eq!(good.modules["model.layers.0.mlp.up_proj"].rank, 0);
    let dir = tempfile::tempdir().unwrap();
    good.write(&dir.path().join("new/adapter")).unwrap();
    assert_eq!(Adapter::read(&ModelFiles::dir(dir.path().join("new/adapter"))).unwrap(), good);

    for (list, needle) in [
        (&[(a, &[4usize, 8][..])][..], "no lora_B"),
        (&[(b, &[6, 4])], "no lora_A"),
        (&[(a, &[3, 8]), (b, &[6, 3])], "do not have rank 4"),
        (&[(a, &[32]), (b, &[6, 4])], "must be matrices"),
        (
            &[("model.layers.0.mlp.up_proj.lora_A.weight", &[4, 8]), ("model.layers.0.mlp.up_proj.lora_B.weight", &[6, 4])],
            "not among target_modules",
        ),
        (&[("model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight", &[4])], "not a part of a LoRA adapter"),
        (&[(a, &[4, 8]), (b, &[6, 4]), ("model.layers.0.self_attn.q_proj.bias", &[5])], "5 entries for 6"),
        (&[], "no adapter"),
    ] {
        let error = adapter_tensors(list).unwrap_err().to_string();
        assert!(error.contains(needle), "{needle:?} is not in: {error}");
    }
    let mut broken = good;
    broken.modules.values_mut().for_each(|m| m.a.push(0.0));
    assert!(broken.to_files().is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Any bytes in place of some of a sound file: an answer, never a panic.
    #[test]
    fn corrupted_checkpoints_never_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in any::<prop::sample::Index>(), cuts in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let (header, data) = header(&tensors());
        let mut bytes = file(&header.to_string(), data);
        let reach = header.to_string().len() + 8;
        for (at, byte) in changes {
            bytes[at.index(reach)] = byte;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = load(&write(dir.path(), &config().to_string(), &bytes));
    }

    /// Any JSON value under any known key.
    #[test]
    fn strange_configurations_never_panic(which in any::<prop::sample::Index>(), value in json_value()) {
        let mut changed = config();
        changed["quantization_config"] = json!({"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"});
        changed["rope_parameters"] = json!({"rope_theta": 10000.0});
        changed["layer_types"] = json!(["full_attention"]);
        let keys: Vec<String> = changed.as_object().unwrap().keys().cloned().collect();
        changed[which.get(&keys)] = value.clone();
        let _ = ModelConfig::parse(&changed.to_string(), "config.json");
        let _ = GenerationConfig::parse(&changed.to_string(), "generation_config.json");
        for key in [
            "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "loftq_config", "bias", "exclude_modules",
            "layers_to_transform", "layers_pattern",
        ] {
            let _ = adapter_config(json!({key: value}));
        }
    }

    /// Any names against any expressions: an answer, never a panic.
    #[test]
    fn any_expression_is_honoured_or_refused(expression in r"[a-z.*+?()\[\]{}|\\^$0-9_-]{0,40}", name in "[a-z.0-9_]{0,60}") {
        for key in ["target_modules", "exclude_modules", "layers_pattern"] {
            if let Ok(config) = adapter_config(json!({key: expression.clone(), "layers_to_transform": null})) {
                config.targets(&name);
            }
        }
        if let Ok(config) = adapter_config(json!({"rank_pattern": {expression.clone(): 3}, "alpha_pattern": {expression: 5}})) {
            prop_assert!(config.rank_of(&name) <= 4 && config.scale_of(&name).is_finite());
        }
    }

    /// Any JSON, and any change of a sound one, as the state of a 4-bit weight.
    #[test]
    fn strange_quant_states_never_panic(key in any::<prop::sample::Index>(), value in json_value(), parts in any::<prop::sample::Index>()) {
        let mut state = json!({
            "quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [8, 8], "nested_blocksize": 256, "nested_dtype": "float32",
            "nested_offset": 0.5,
        });
        let keys: Vec<String> = state.as_object().unwrap().keys().cloned().collect();
        state[key.get(&keys)] = value;
        let dir = tempfile::tempdir().unwrap();
        let name = "model.layers.0.self_attn.q_proj.weight";
        let text = state.to_string();
        let lengths = [
            ("", "U8", 32), (".absmax", "U8", 1), (".quant_map", "F32", 64), (".nested_absmax", "F32", 4), (".nested_quant_map", "F32", 1024),
            (".quant_state.bitsandbytes__nf4", "U8", text.len()),
        ];
        let left_out = parts.index(lengths.len() * 2);
        let (mut map, at) = header(&tensors().into_iter().filter(|t| t.0 != name).collect::<Vec<_>>());
        let mut bytes = file("", at)[8..].to_vec();
        let mut end = at;
        for (i, (suffix, dtype, len)) in lengths.into_iter().enumerate() {
            if i == left_out {
                continue;
            }
            let size = if dtype == "F32" { len / 4 } else { len };
            map[format!("{name}{suffix}")] = json!({"dtype": dtype, "shape": [size], "data_offsets": [end, end + len]});
            end += len;
            bytes.extend(if suffix.contains("quant_state") { text.clone().into_bytes() } else { vec![0; len] });
        }
        let mut whole = file(&map.to_string(), 0);
        whole.extend(bytes);
        let mut quantized = config();
        quantized["quantization_config"] = json!({"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"});
        let _ = load(&write(dir.path(), &quantized.to_string(), &whole));
    }

    #[test]
    fn any_text_as_configuration_never_panics(text in ".{0,200}") {
        let _ = ModelConfig::parse(&text, "config.json");
        let _ = AdapterConfig::parse(&text, "adapter_config.json");
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-z_]{1,12}", inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}
