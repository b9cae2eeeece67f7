//! What computes: `trainer doctor`, `trainer selftest`, `trainer plan`, and `--device` on machines with and without a card.

use serde_json::Value;

use crate::support::{Sandbox, json_file, reference};

/// Whether this machine has a card that can be used.
fn has_card(found: &Value) -> bool {
    found["auto"]["kind"] == "cuda"
}

#[test]
fn doctor_tells_what_there_is_and_never_fails() {
    let sandbox = Sandbox::cold();
    let found = sandbox.json(["doctor", "--json"]);
    let keys: Vec<&str> = found.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["trainer", "machine", "driver", "cuda", "cards", "kernels_inside", "libraries", "missing", "kernel_cache", "auto"]);
    assert!(found["machine"]["cores"].as_u64().unwrap() >= 1);
    let names: Vec<&str> = found["libraries"].as_array().unwrap().iter().map(|l| l["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["nvrtc", "cublasLt"]);
    for library in found["libraries"].as_array().unwrap() {
        assert!(library["found"].is_boolean() && library["detail"].is_string() && !library["serves"].as_str().unwrap().is_empty());
        assert!(library["needed"].is_boolean() && library["remedy"].as_str().unwrap().contains("pip install"), "{library}");
    }
    for card in found["cards"].as_array().unwrap() {
        assert!(card["memory"].as_u64().unwrap() > 1 << 30 && card["compute_capability"].as_str().unwrap().contains('.'), "{card}");
    }
    assert!(found["auto"]["reason"].is_string());
    let folder = found["kernel_cache"]["folder"].as_str().unwrap();
    assert_eq!(folder, sandbox.path("cache").join("trainer/cubins").to_str().unwrap());
    assert_eq!(sandbox.names(), [""; 0], "looking makes nothing");
    let text = sandbox.ok(["doctor"]);
    assert!(text.contains("auto means") && text.contains("cache"), "{text}");
    let home_less = sandbox.command(["doctor"]).env_remove("XDG_CACHE_HOME").env_remove("HOME").output().unwrap();
    assert_eq!(home_less.status.code(), Some(0));
}

#[test]
fn doctor_without_a_card() {
    let sandbox = Sandbox::cold();
    if !sandbox.json(["doctor", "--json"])["cuda"].is_null() {
        return;
    }
    // Libraries are told to be nowhere, so that the text is the same wherever the test runs.
    let output = sandbox.command(["doctor"]).env("TRAINER_NVRTC", "/nowhere").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let text = sandbox.neutral(&String::from_utf8(output.stdout).unwrap());
    let filters = vec![
        (r"machine    .*", "machine    [MACHINE]"),
        (r"kernels    .*", "kernels    [KERNELS]"),
        (r"nvrtc      missing.*", "nvrtc      [MISSING]"),
        (r"cublasLt   .*", "cublasLt   [LIBRARY]"),
        // Not missing where the program holds the kernels.
        (r"(?m)^  - NVRTC.*\n", ""),
        (r"(?m)^  - cublasLt.*\n", ""),
    ];
    insta::with_settings!({filters => filters}, {
        insta::assert_snapshot!(text, @r"
        trainer 0.1.0
          machine    [MACHINE]
          driver     none
          cards      none
          kernels    [KERNELS]
          nvrtc      [MISSING]
          cublasLt   [LIBRARY]
          cache      [DIR]/cache/trainer/cubins: not there yet: it is made when a card is first used
          auto means cpu, because no NVIDIA driver was found (libcuda.so.1): install the driver, or use the CPU

        missing
          - no NVIDIA driver was found (libcuda.so.1): install the driver, or use the CPU
        ");
    });
}

#[test]
fn auto_computes_on_what_doctor_says() {
    let sandbox = Sandbox::new();
    let found = sandbox.json(["doctor", "--json"]);
    let plan = sandbox.json(["plan", "--json"]);
    assert_eq!(plan["device"]["kind"], found["auto"]["kind"]);
    let text = sandbox.ok(["generate", "--prompt", "a", "--max-new-tokens", "2", "--device", "auto", "--json"]);
    assert!(text.contains("\"finish\""), "{text}");
    if !has_card(&found) {
        // Why, for who asks.
        let output = sandbox.run(["-v", "generate", "--prompt", "a", "--max-new-tokens", "2"]);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(log.contains("the CPU computes: ") && log.contains(found["auto"]["reason"].as_str().unwrap()), "{log}");
    }
}

#[test]
fn a_card_that_is_not_there_is_an_error_that_says_what_to_do() {
    let sandbox = Sandbox::new();
    for command in [
        vec!["run", "--device", "cuda:99"],
        vec!["run", "--dry-run", "--set", "device.backend=cuda:99"],
        vec!["eval", "--model", "nano", "--device", "cuda:99"],
        vec!["generate", "--prompt", "a", "--device", "cuda:99"],
        vec!["plan", "--device", "cuda:99"],
        vec!["selftest", "--device", "cuda:99"],
        vec!["bench", "train", "--device", "cuda:99"],
        vec!["bench", "train", "--shape", "nano", "--device", "cuda:99"],
    ] {
        let text = sandbox.fails(&command);
        assert!(text.contains("device cuda:99 cannot be used: ") && text.contains("trainer doctor"), "{command:?}: {text}");
    }
    let text = sandbox.fails(["generate", "--prompt", "a", "--device", "gpu"]);
    assert!(text.contains("device.backend: must be \"auto\", \"cpu\", \"cuda\" or \"cuda:N\""), "{text}");
    assert_eq!(sandbox.names(), [""; 0], "nothing was begun");
}

/// Runs where a card can be used, and says so where none can.
#[test]
fn the_main_job_on_a_card() {
    let sandbox = Sandbox::new();
    let with_cards = |args: &[&str]| {
        let output = sandbox.command(args).env_remove("CUDA_VISIBLE_DEVICES").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let found: Value = serde_json::from_str(&with_cards(&["doctor", "--json"])).unwrap();
    if !has_card(&found) {
        eprintln!("not checked: {}", found["auto"]["reason"]);
        return;
    }
    let banner = with_cards(&["run", "--plugin", "math_mix", "--out", "first"]);
    assert!(banner.contains("on cuda:"), "{banner}");
    let report = json_file(&sandbox.path("first/eval/after.json"));
    assert!(report["metrics"]["boxed_answer/accuracy"].as_f64().unwrap() >= 0.95, "{report}");
    let lock = json_file(&sandbox.path("first/lock.json"));
    assert!(lock["machine"]["backend"].as_str().unwrap().starts_with("cuda") && lock["machine"]["device"].is_string(), "{lock}");
    let lock = sandbox.path("first/lock.json");
    with_cards(&["run", "--plugin", "math_mix", "--out", "second", "--locked", lock.to_str().unwrap()]);
    assert_eq!(crate::support::bytes(&sandbox.path("second")), crate::support::bytes(&sandbox.path("first")), "a run repeats to the byte");
    // The lock of a card is not kept by the CPU.
    let text = sandbox.fails(["run", "--plugin", "math_mix", "--out", "third", "--locked", lock.to_str().unwrap()]);
    assert!(text.contains("machine.backend: locked"), "{text}");
}

#[test]
fn plan_shows_the_parts_and_follows_limit_and_goal() {
    let sandbox = Sandbox::new();
    let plan = |more: &[&str]| {
        let mut args = vec!["plan", "--device", "cpu", "--json"];
        args.extend(more);
        sandbox.json(args)
    };
    let auto = plan(&["-"]);
    let parts: u64 = auto["parts"].as_object().unwrap().values().map(|v| v.as_u64().unwrap()).sum();
    assert_eq!(auto["total"], parts);
    assert_eq!((auto["weights"].as_str(), auto["goal"].as_str(), &auto["limit"]), (Some("unpacked"), Some("auto"), &Value::Null));
    let smallest = plan(&["-", "--plan", "smallest"]);
    assert!(smallest["total"].as_u64() < auto["total"].as_u64());
    assert_eq!(smallest["weights"], "packed");
    let limited = plan(&["-", "--memory-limit", "0.5"]);
    assert_eq!(limited["limit"], 1u64 << 29);
    assert!(limited["total"].as_u64().unwrap() <= 1 << 29 && auto["total"].as_u64().unwrap() > 1 << 29);
    let text = sandbox.ok(["plan", "--device", "cpu"]);
    assert!(text.contains("kept activations") && text.contains(" GiB") && text.contains("total"), "{text}");
    // The recipe's own keys do the same.
    let recipe = sandbox.write("recipe.toml", "[device]\nbackend = \"cpu\"\nplan = \"smallest\"\n");
    assert_eq!(sandbox.json(["plan", recipe.to_str().unwrap(), "--json", "-"])["total"], smallest["total"]);
    for command in ["plan", "run"] {
        let text = sandbox.fails([command, "--device", "cpu", "--set", "device.memory_limit=0.001"]);
        assert!(text.contains("the run needs at least") && text.contains("may be used"), "{text}");
    }
}

#[test]
fn plan_needs_only_the_models_configuration() {
    let sandbox = Sandbox::cold();
    let config = r#"{"architectures":["Qwen3ForCausalLM"],"model_type":"qwen3","hidden_act":"silu","attention_bias":false,"hidden_size":4096,
        "intermediate_size":12288,"num_hidden_layers":36,"num_attention_heads":32,"num_key_value_heads":8,"head_dim":128,"vocab_size":151936,
        "max_position_embeddings":40960,"rms_norm_eps":1e-6,"rope_theta":1000000.0,"tie_word_embeddings":false,"torch_dtype":"bfloat16"}"#;
    sandbox.write("model/config.json", config);
    let recipe = sandbox.write("recipe.toml", "[model]\nsource = \"model\"\n[device]\nbackend = \"cpu\"\n");
    let plan = sandbox.json(["plan", recipe.to_str().unwrap(), "--json"]);
    assert_eq!(plan["keeps"].as_array().unwrap().len(), 36);
    assert!(plan["total"].as_u64().unwrap() > 30 << 30, "eight billion weights in f32: {plan}");
    std::fs::remove_file(sandbox.path("model/config.json")).unwrap();
    assert!(sandbox.fails(["plan", recipe.to_str().unwrap()]).contains("config.json"));
}

#[test]
fn a_small_plan_trains_the_same() {
    let sandbox = Sandbox::new();
    let run = |name: &str, more: &[&str]| {
        let mut args = vec!["run", "--device", "cpu", "--max-steps", "3", "--set", "eval.before=false", "--set", "eval.after=false"];
        args.extend(["--set", "sample.prompt=\"\"", "--set", "train.warmup_steps=1", "--out", name]);
        args.extend(more);
        sandbox.ok(args);
        crate::support::bytes(&sandbox.path(name))
    };
    let fast = run("fast", &[]);
    // The recomputed activations are the same bits, and so are the weights that are unpacked for each use.
    assert_eq!(run("small", &["--set", "device.plan=smallest"]), fast);
}

#[test]
fn selftest_of_the_cpu_passes_on_the_reference_data() {
    let sandbox = Sandbox::cold();
    let folder = reference();
    let folder = folder.to_str().unwrap();
    let out = sandbox.json(["selftest", "--device", "cpu", "--reference", folder, "--json", "-"]);
    assert_eq!((out["pass"].as_bool(), out["failed"].as_u64()), (Some(true), Some(0)));
    assert!(out["compared"].as_u64().unwrap() > 100);
    assert_eq!(out["kernels"], Value::Array(vec![]));
    let groups: std::collections::BTreeSet<&str> =
        out["reference"].as_array().unwrap().iter().map(|c| c["group"].as_str().unwrap()).collect();
    let all = ["ref-adamw8bit", "ref-blockwise8", "ref-cpu", "ref-curves", "ref-forward", "ref-greedy", "ref-lora", "ref-nf4"];
    assert_eq!(groups.into_iter().collect::<Vec<_>>(), all);
    let text = sandbox.ok(["selftest", "--device", "cpu", "--reference", folder, "ref-blockwise8"]);
    assert!(text.lines().all(|l| !l.starts_with("FAIL")) && text.contains("comparisons, 0 failed"), "{text}");
}

#[test]
fn selftest_says_what_is_wrong_with_the_question() {
    let sandbox = Sandbox::cold();
    for (args, expected) in [
        (vec!["selftest", "--device", "cpu"], "--reference DIR"),
        (vec!["selftest", "--device", "cpu", "norm"], "--device cuda"),
        (vec!["selftest", "--device", "cpu", "ref-nf4"], "ref-nf4 needs a folder of reference data"),
        (vec!["selftest", "--device", "cpu", "nothing"], "there are no checks called nothing"),
        (vec!["selftest", "--device", "cpu", "--reference", "."], "`model` and `quant`"),
    ] {
        let text = sandbox.fails(&args);
        assert!(text.contains(expected), "{args:?}: {text}");
    }
}

#[test]
fn selftest_fails_on_other_values() {
    let sandbox = Sandbox::cold();
    let link = |from: &str, to: &str| {
        let to = sandbox.path(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(reference().join(from), to).unwrap();
    };
    link("quant", "data/quant");
    link("model/nf4", "data/model/a");
    link("model/tied_f32_goldens", "data/model/a_goldens");
    let output = sandbox.run(["selftest", "--device", "cpu", "--reference", "data", "ref-greedy"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FAIL ref-greedy"), "{text}");
}

#[test]
fn bench_of_a_shape_says_everything() {
    let sandbox = Sandbox::cold();
    let args = ["bench", "train", "--shape", "nano", "--batch", "2", "--accum", "2", "--seq", "32", "--plan", "smallest"];
    let args = [&args[..], &["--steps", "4", "--device", "cpu", "--json", "-"]].concat();
    let out = sandbox.json(&args);
    for key in ["tokens_per_second", "useful_tflops", "seconds_to_first_step", "peak_bytes_driver", "predicted_peak_bytes"] {
        assert!(out[key].as_f64().unwrap() > 0.0, "{key}: {out}");
    }
    for key in ["step_seconds", "loss", "grad_norm"] {
        let list = out[key].as_array().unwrap();
        assert!(list.len() == 4 && list.iter().all(|x| x.as_f64().unwrap() > 0.0), "{key}: {out}");
    }
    for key in ["peak_bytes_arena", "share_of_floor", "driver"] {
        assert!(out.get(key).is_some_and(Value::is_null), "{key} is there, and null on the CPU: {out}");
    }
    assert_eq!((out["plan"]["weights"].as_str(), out["plan"]["goal"].as_str()), (Some("packed"), Some("smallest")));
    assert_eq!((out["tokens_per_step"].as_u64(), out["precision"].as_str(), out["shape"].as_str()), (Some(128), Some("f32"), Some("nano")));
    // The same numbers again: weights and ids come from seeds.
    assert_eq!(sandbox.json(&args)["loss"], out["loss"]);

    let out = sandbox
        .json(["bench", "decode", "--shape", "nano", "--batch", "3", "--prompt", "9", "--new", "5", "--device", "cpu", "--json", "-"]);
    assert!(out["tokens_per_second"].as_f64().unwrap() > 0.0 && out["decode_tokens_per_second"].as_f64().unwrap() > 0.0, "{out}");
    assert_eq!((out["batch"].as_u64(), out["prompt"].as_u64(), out["new"].as_u64()), (Some(3), Some(9), Some(5)));
}

#[test]
fn bench_of_a_shape_says_what_is_wrong_with_the_question() {
    let sandbox = Sandbox::cold();
    for (args, expected) in [
        (vec!["bench", "train", "--shape", "7b"], "there is no shape 7b; there are nano, 0.6b"),
        (vec!["bench", "--shape", "nano"], "--shape measures one part"),
        (vec!["bench", "data", "--shape", "nano"], "--shape measures one part"),
        (vec!["bench", "train", "--shape", "nano", "--steps", "2"], "more than the 2 of the warm-up"),
        (vec!["bench", "train", "--shape", "nano", "--precision", "fp8", "--device", "cpu"], "the CPU cannot compute in fp8"),
        (vec!["bench", "train", "--shape", "8b", "--memory-limit", "1", "--device", "cpu"], "the run needs at least"),
    ] {
        let text = sandbox.fails(&args);
        assert!(text.contains(expected), "{args:?}: {text}");
    }
    let output = sandbox.run(["bench", "train", "--steps", "4"]);
    assert_eq!(output.status.code(), Some(2), "--steps without --shape means nothing");
}
