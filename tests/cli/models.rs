//! `trainer model`: trees of models, and checkpoints in 4 bits.

use serde_json::Value;

use crate::support::{Sandbox, baseline, reference, shown};

#[test]
fn a_model_is_printed_as_pytorch_prints_it() {
    let sandbox = Sandbox::cold();
    let text = sandbox.ok(["model", "inspect", "nano"]);
    insta::assert_snapshot!(text, @r"
    Qwen3ForCausalLM(
      (model): Qwen3Model(
        (embed_tokens): Embedding(2560, 192, padding_idx=2534)                    # BF16 2560 x 192, 491,520 parameters, 960.0 KiB
        (layers): ModuleList(
          (0-5): 6 x Qwen3DecoderLayer(
            (self_attn): Qwen3Attention(
              (q_proj): Linear(in_features=192, out_features=192, bias=False)     # BF16 192 x 192, 36,864 parameters, 72.0 KiB
              (k_proj): Linear(in_features=192, out_features=64, bias=False)      # BF16 64 x 192, 12,288 parameters, 24.0 KiB
              (v_proj): Linear(in_features=192, out_features=64, bias=False)      # BF16 64 x 192, 12,288 parameters, 24.0 KiB
              (o_proj): Linear(in_features=192, out_features=192, bias=False)     # BF16 192 x 192, 36,864 parameters, 72.0 KiB
              (q_norm): Qwen3RMSNorm((64,), eps=1e-06)                            # BF16 64, 64 parameters, 128 B
              (k_norm): Qwen3RMSNorm((64,), eps=1e-06)                            # BF16 64, 64 parameters, 128 B
            )
            (mlp): Qwen3MLP(
              (gate_proj): Linear(in_features=192, out_features=512, bias=False)  # BF16 512 x 192, 98,304 parameters, 192.0 KiB
              (up_proj): Linear(in_features=192, out_features=512, bias=False)    # BF16 512 x 192, 98,304 parameters, 192.0 KiB
              (down_proj): Linear(in_features=512, out_features=192, bias=False)  # BF16 192 x 512, 98,304 parameters, 192.0 KiB
              (act_fn): SiLUActivation()
            )
            (input_layernorm): Qwen3RMSNorm((192,), eps=1e-06)                    # BF16 192, 192 parameters, 384 B
            (post_attention_layernorm): Qwen3RMSNorm((192,), eps=1e-06)           # BF16 192, 192 parameters, 384 B
          )
        )
        (norm): Qwen3RMSNorm((192,), eps=1e-06)                                   # BF16 192, 192 parameters, 384 B
        (rotary_emb): Qwen3RotaryEmbedding()
      )
      (lm_head): Linear(in_features=192, out_features=2560, bias=False)
    )

    2,854,080 parameters, 5.4 MiB as stored; linear layers: 0 in 4 bits, 42 in others
    ");
    let json = sandbox.json(["model", "inspect", "nano", "--json"]);
    assert_eq!(json["totals"]["parameters"], 2_854_080);
    assert_eq!((&json["totals"]["four_bit_linears"], &json["totals"]["other_linears"]), (&Value::from(0), &Value::from(42)));
    assert_eq!(json["tree"]["children"][0]["children"][1]["children"][0]["count"], 6);
}

/// 4-bit and 16-bit linear layers are told apart, and layers that differ are not put together.
#[test]
fn a_dynamic_quantization_shows_which_layers_it_left() {
    let sandbox = Sandbox::cold();
    let folder = reference().join("quant/dynamic_nf4_bf16");
    let text = sandbox.ok(["model", "inspect", folder.to_str().unwrap()]);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let starts = |start: &str| lines.iter().filter(|l| l.starts_with(start)).count();
    assert_eq!((starts("(0): Qwen3DecoderLayer("), starts("(3): Qwen3DecoderLayer(")), (1, 1), "{text}");
    assert_eq!((starts("(gate_proj): Linear4bit("), starts("(gate_proj): Linear(")), (3, 1), "{text}");
    assert_eq!((starts("(k_proj): Linear4bit("), starts("(k_proj): Linear(")), (3, 1), "{text}");
    assert!(
        text.contains("# NF4 (double-quantized) 128 x 64, 8,192 parameters") && text.contains("# BF16 64 x 64, 4,096 parameters, 8.0 KiB"),
        "{text}"
    );
    assert!(text.contains("linear layers: 24 in 4 bits, 5 in others"), "{text}");
}

#[test]
fn an_adapters_parts_are_shown_in_their_places() {
    let sandbox = Sandbox::cold();
    let adapter = baseline().dir.join("adapter");
    let text = sandbox.ok(["model", "inspect", "nano", "--adapter", adapter.to_str().unwrap()]);
    for line in [
        "PeftModelForCausalLM(",
        "(base_model): LoraModel(",
        "(q_proj): lora.Linear(",
        "(base_layer): Linear(in_features=192, out_features=192, bias=False)",
        "(default): Dropout(p=0.1, inplace=False)",
        "(default): Linear(in_features=192, out_features=32, bias=False)",
    ] {
        assert!(text.lines().any(|l| l.trim().starts_with(line)), "{line} is not in {text}");
    }
    assert!(text.contains("adapter: 651,264 parameters (18.58 %)"), "{text}");
    // An adapter of another model is refused, by its module.
    let foreign = reference().join("model/nf4_goldens/adapter_init");
    let error = sandbox.fails(["model", "inspect", "nano", "--adapter", foreign.to_str().unwrap()]);
    assert!(error.contains("model.layers.0.mlp.down_proj: is 64 x 192; the model's is 192 x 512"), "{error}");
}

#[test]
fn a_model_in_four_bits_is_the_one_that_loading_makes() {
    let sandbox = Sandbox::new();
    let said = sandbox.ok(["model", "quantize", "nano", "--out", "small"]);
    assert!(said.contains("bitsandbytes-4bit written to small") && said.contains("tensors read again and equal"), "{said}");
    let ask = |model: &str, quantization: &str| {
        let args = ["generate", "--model", model, "--quantization", quantization, "--prompt", "Solve for x: 3(x + 1) = 12.", "--chat"];
        sandbox.json(args.iter().chain(&["--temperature", "0", "--max-new-tokens", "40", "--json"]))["ids"].clone()
    };
    assert_eq!(ask("small", "as-stored"), ask("nano", "nf4"));
    let json = sandbox.json(["model", "inspect", "small", "--json"]);
    assert_eq!((&json["totals"]["four_bit_linears"], &json["totals"]["parameters"]), (&Value::from(42), &Value::from(2_854_080)));
    for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "README.md", "config.json"]
    {
        assert!(sandbox.path("small").join(file).is_file(), "{file}");
    }
    // Modules that stay, by the beginning or the end of their names; several files.
    sandbox.ok([
        "model",
        "quantize",
        "nano",
        "--out",
        "mixed",
        "--skip",
        "model.layers.1.mlp",
        "--skip",
        "k_proj",
        "--single",
        "--shard-size",
        "0.001",
    ]);
    let json = sandbox.json(["model", "inspect", "mixed", "--json"]);
    assert_eq!(json["totals"]["four_bit_linears"], 42 - 3 - 6);
    assert!(sandbox.path("mixed/model.safetensors.index.json").is_file());
    let config = crate::support::json_file(&sandbox.path("mixed/config.json"));
    assert_eq!(config["quantization_config"]["bnb_4bit_use_double_quant"], false);
    let skip = config["quantization_config"]["llm_int8_skip_modules"].as_array().unwrap();
    assert!(skip.contains(&Value::from("model.layers.1.mlp.up_proj")) && skip.len() == 1 + 3 + 6, "{skip:?}");
}

/// A model in 32 bits: in bfloat16 where nothing is said, else in the type that is asked for, from which the rest is quantized.
#[test]
fn dense_weights_are_written_in_the_type_that_is_asked_for() {
    let sandbox = Sandbox::cold();
    let folder = reference().join("model/tied_f32");
    let folder = folder.to_str().unwrap();
    for (dtype, form, name) in [(None, "BF16", "bfloat16"), (Some("f16"), "F16", "float16"), (Some("f32"), "F32", "float32")] {
        let flag: Vec<&str> = dtype.into_iter().flat_map(|d| ["--dtype", d]).collect();
        sandbox.ok(["model", "quantize", folder, "--out", form].iter().chain(&flag));
        let text = sandbox.ok(["model", "inspect", form]);
        assert!(text.lines().any(|l| l.contains("embed_tokens") && l.contains(&format!("# {form} "))), "{text}");
        let config = crate::support::json_file(&sandbox.path(form).join("config.json"));
        assert!(config["dtype"] == name || config["torch_dtype"] == name, "{config}");
        let tensors = trainer_test_support::tensors_at(&sandbox.path(form).join("model.safetensors"));
        let state = tensors.iter().find(|(name, _)| name.ends_with("quant_state.bitsandbytes__nf4")).unwrap().1;
        let state: Value = serde_json::from_slice(&state.bytes).unwrap();
        assert_eq!(state["dtype"], name);
    }
    // In 32 bits, what is merged with nothing is what was there.
    sandbox.ok(["export", "merged-16bit", "--model", folder, "--out", "same", "--dtype", "f32"]);
    let tensors = |folder: &std::path::Path| trainer_test_support::tensors_at(&folder.join("model.safetensors"));
    let (ours, theirs) = (tensors(&sandbox.path("same")), tensors(&reference().join("model/tied_f32")));
    assert!(!ours.is_empty() && ours.iter().all(|(name, tensor)| theirs[name].bytes == tensor.bytes));
}

#[test]
fn what_cannot_be_inspected_or_quantized_is_refused_by_name() {
    let sandbox = Sandbox::cold();
    let folder = reference().join("model/nf4");
    let error = sandbox.fails(["model", "quantize", folder.to_str().unwrap(), "--out", "x"]);
    assert!(error.contains("is in 4 bits already"), "{error}");
    let error = sandbox.fails(["model", "quantize", "nano", "--out", "x", "--skip", "mlp.gate"]);
    assert!(error.contains("--skip \"mlp.gate\": begins or ends no projection's name"), "{error}");
    sandbox.write("taken/file", "x");
    let error = sandbox.fails(["model", "quantize", "nano", "--out", "taken"]);
    assert!(error.contains("taken is there already"), "{error}");
    assert_eq!(sandbox.names(), ["taken"], "nothing is left behind");
    for (name, config) in [
        ("llama", r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}"#),
        ("qwen2", r#"{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}"#),
    ] {
        sandbox.write(&format!("{name}/config.json"), config);
        let error = sandbox.fails(["model", "inspect", name]);
        assert!(error.contains(&format!("model_type \"{name}\" is not supported")), "{error}");
    }
}

#[test]
fn a_chat_template_is_compared_with_the_plugin() {
    let sandbox = Sandbox::new();
    let said = sandbox.ok(["model", "template", "nano"]);
    assert!(said.contains("20 of 20 probes are rendered alike by qwen3_chat"), "{said}");
    // Another revision: where it differs, and the setting that mends it.
    let folder = nano_with_template(&sandbox, "unsloth", &trainer_test_support::text("chat_template/templates/qwen3_unsloth.jinja"));
    let said = sandbox.ok(["model", "template", &folder]);
    if !said.contains("20 of 20 probes") {
        assert!(said.contains("differs: ") && said.contains("with the setting revision = \"qwen3_unsloth\""), "{said}");
    }
    // One of its own.
    let folder = nano_with_template(&sandbox, "own", "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}");
    let json = sandbox.json(["model", "template", &folder, "--json"]);
    assert_eq!((&json["same"], &json["equal_revision"]), (&Value::from(0), &Value::Null));
    assert_eq!(json["probes"][0]["own"]["text"], "[user] Hi\n");
    assert!(sandbox.ok(["model", "template", &folder]).contains("the model's  ...\"[user] Hi\\n\"..."));
}

fn nano_with_template(sandbox: &Sandbox, name: &str, template: &str) -> String {
    for file in trainer_nano::MODEL_FILES.iter().filter(|f| f.0 != "model.safetensors") {
        sandbox.write(&format!("{name}/{}", file.0), file.1);
    }
    sandbox.write(&format!("{name}/chat_template.jinja"), template);
    name.to_owned()
}

/// A template is a stranger's program: it gets neither time nor memory without end.
#[test]
fn a_hostile_chat_template_is_stopped() {
    let sandbox = Sandbox::new();
    let template = "{% set n = namespace(s='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}";
    let memory = nano_with_template(&sandbox, "memory", template);
    let outcome = shown(&sandbox.run(["model", "template", &memory]));
    // Whichever is reached first; where it is steps, each probe says so.
    let ends = ["within 2147483648 bytes", "did not end within", "more steps than are allowed"];
    assert!(ends.iter().any(|end| outcome.contains(end)), "{outcome}");
    let broken = nano_with_template(&sandbox, "broken", "{% if %}");
    let error = sandbox.fails(["model", "template", &broken]);
    assert!(error.contains("the chat template cannot be used: line 1"), "{error}");
    let folder = nano_with_template(&sandbox, "steps", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}");
    let json = sandbox.json(["model", "template", &folder, "--json"]);
    assert!(json["probes"][0]["own"]["refused"].as_str().unwrap().contains("more steps than are allowed"), "{json}");
}
