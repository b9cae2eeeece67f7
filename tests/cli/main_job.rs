//! The main job as a newcomer runs it, and the evaluation of what it leaves.

use std::path::PathBuf;
use std::sync::OnceLock;

use serde_json::Value;
use trainer_model::{Adapter, ModelFiles};

use crate::support::{Sandbox, json_file, lines, metrics, prebuilt};

const ACCURACY: &str = "boxed_answer/accuracy";

struct Finished {
    sandbox: Sandbox,
    dir: PathBuf,
    output: String,
    summary: Value,
}

/// The default job, run once.
fn finished() -> &'static Finished {
    static MADE: OnceLock<Finished> = OnceLock::new();
    MADE.get_or_init(|| {
        let sandbox = Sandbox::cold();
        let plugin = prebuilt("math_mix.wasm");
        let output = sandbox.ok(["run", "--plugin", plugin.to_str().unwrap(), "--out", "first", "--json", "summary.json"]);
        let summary = json_file(&sandbox.path("summary.json"));
        Finished { dir: sandbox.path("first"), output: sandbox.neutral(&output), summary, sandbox }
    })
}

fn accuracy(report: &Value) -> f64 {
    report["metrics"][ACCURACY].as_f64().unwrap_or_else(|| panic!("no {ACCURACY} in {report:#}"))
}

#[test]
fn output_is_the_whole_story() {
    let run = finished();
    // Whether an evaluation reports on its way depends on how long it takes.
    let told: Vec<&str> = run.output.lines().filter(|l| !l.starts_with("evaluating ")).collect();
    let (before, answer) = told.split_at(told.iter().position(|l| l.starts_with("user: ")).unwrap());
    let end = answer.iter().position(|l| l.starts_with("boxed_answer/accuracy after")).unwrap();
    let (answer, after) = answer.split_at(end);
    assert_eq!(answer[..2], ["user: Solve for x: 4(x + 2) + 9 = 37.", "assistant:"]);
    assert!(answer[2..].iter().any(|l| l.contains("\\boxed{")), "{answer:?}");
    assert!(!answer.iter().any(|l| l.contains("<|im_end|>")), "{answer:?}");
    insta::with_settings!({filters => vec![
        (r"backend    .*", "backend    [MACHINE]"),
        (r"sha256 [0-9a-f]{12}", "sha256 [DIGEST]"),
        (r"[0-9.]+ [KMG]iB planned", "[SIZE] planned"),
        (r"\(\d+\.\d s\)", "([TIME])"),
        (r"loss \d\.\d{4}", "loss [LOSS]"),
        (r"grad \d+\.\d{3}", "grad [NORM]"),
        (r"\d+ tokens/s", "[SPEED] tokens/s"),
        (r"eta .*", "eta [TIME]"),
        (r"(\d)  0\.\d{4}", "$1  [LOSS]"),
        (r"training: [01]\.\d{4}", "training: [SHARE]"),
        (r"\d+\.\d %( |\n|$)", "[SHARE] %$1"),
    ]}, {
        insta::assert_snapshot!(before.join("\n"), @r#"
        trainer 0.1.0
          backend    [MACHINE]
          model      nano, 2,854,080 parameters, frozen weights nf4 (double-quantized), unpacked to f32
          adapter    651,264 trainable parameters (18.58 %)
          plugin     boxed_answer 0.1.0 (eval-metric@0.1.0) sha256 [DIGEST], no grants
          plugin     math_mix 0.1.0 (dataset-formatter@0.1.0, mixing-policy@0.1.0) sha256 [DIGEST], no grants
          plugin     qwen3_chat 0.1.0 (chat-template@0.1.0) sha256 [DIGEST], no grants
          plugin     sharegpt 0.1.0 (dataset-formatter@0.1.0) sha256 [DIGEST], no grants
          source     math: builtin:math_train (4,000 rows), formatted by math_mix
          source     chat: builtin:chat_train (6,000 rows), formatted by sharegpt
          mix        by math_mix: 5,000 draws an epoch, of 10,000 rows
          plan       30 steps of 2 x 4 samples; [SIZE] planned
          run        [DIR]/first

        boxed_answer/accuracy before training: [SHARE] ([TIME])
        boxed_answer/boxed_rate before training: [SHARE] ([TIME])
        step  1/30  loss [LOSS]  lr 0.00e0  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step  2/30  loss [LOSS]  lr 4.00e-4  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step  3/30  loss [LOSS]  lr 8.00e-4  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step  4/30  loss [LOSS]  lr 1.20e-3  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step  5/30  loss [LOSS]  lr 1.60e-3  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step  6/30  loss [LOSS]  lr 2.00e-3  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step  7/30  loss [LOSS]  lr 1.92e-3  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step  8/30  loss [LOSS]  lr 1.84e-3  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step  9/30  loss [LOSS]  lr 1.76e-3  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 10/30  loss [LOSS]  lr 1.68e-3  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 11/30  loss [LOSS]  lr 1.60e-3  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 12/30  loss [LOSS]  lr 1.52e-3  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 13/30  loss [LOSS]  lr 1.44e-3  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 14/30  loss [LOSS]  lr 1.36e-3  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 15/30  loss [LOSS]  lr 1.28e-3  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 16/30  loss [LOSS]  lr 1.20e-3  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 17/30  loss [LOSS]  lr 1.12e-3  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 18/30  loss [LOSS]  lr 1.04e-3  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 19/30  loss [LOSS]  lr 9.60e-4  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 20/30  loss [LOSS]  lr 8.80e-4  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 21/30  loss [LOSS]  lr 8.00e-4  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 22/30  loss [LOSS]  lr 7.20e-4  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 23/30  loss [LOSS]  lr 6.40e-4  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 24/30  loss [LOSS]  lr 5.60e-4  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 25/30  loss [LOSS]  lr 4.80e-4  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 26/30  loss [LOSS]  lr 4.00e-4  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 27/30  loss [LOSS]  lr 3.20e-4  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 28/30  loss [LOSS]  lr 2.40e-4  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 29/30  loss [LOSS]  lr 1.60e-4  grad [NORM]  [SPEED] tokens/s  eta [TIME]
        step 30/30  loss [LOSS]  lr 8.00e-5  grad [NORM]  [SPEED] tokens/s  eta [TIME]

          step    loss     step    loss     step    loss     step    loss     step    loss
             1  [LOSS]        7  [LOSS]       13  [LOSS]       19  [LOSS]       25  [LOSS]
             2  [LOSS]        8  [LOSS]       14  [LOSS]       20  [LOSS]       26  [LOSS]
             3  [LOSS]        9  [LOSS]       15  [LOSS]       21  [LOSS]       27  [LOSS]
             4  [LOSS]       10  [LOSS]       16  [LOSS]       22  [LOSS]       28  [LOSS]
             5  [LOSS]       11  [LOSS]       17  [LOSS]       23  [LOSS]       29  [LOSS]
             6  [LOSS]       12  [LOSS]       18  [LOSS]       24  [LOSS]       30  [LOSS]
        "#);
        insta::assert_snapshot!(after.join("\n"), @r#"
        boxed_answer/accuracy after training: [SHARE] ([TIME])
        boxed_answer/boxed_rate after training: [SHARE] ([TIME])

        boxed_answer/accuracy  [SHARE] % -> [SHARE] %
        boxed_answer/boxed_rate  [SHARE] % -> [SHARE] %

        written to [DIR]/first
          recipe.toml              every setting, resolved
          lock.json                digests of everything that decides the result
          metrics.jsonl            loss, learning rate and gradient norm of each step
          timings.jsonl            how long each step took
          samples.jsonl            the sample answers
          checkpoints              for trainer run --resume
          adapter                  the LoRA adapter, in PEFT's format
          eval/before.json         the evaluation before training
          eval/after.json          the evaluation after training
        "#);
    });
}

#[test]
fn accuracy_rises_as_it_should() {
    let run = finished();
    let (before, after) = (accuracy(&run.summary["before"]), accuracy(&run.summary["after"]));
    assert!((0.22..=0.32).contains(&before), "{before}");
    assert!(after >= 0.95, "{after}");
    let told = format!("{ACCURACY}  {:.1} % -> {:.1} %", 100.0 * before, 100.0 * after);
    assert!(run.output.lines().any(|l| l == told), "{told}");
    assert_eq!(run.summary["complete"], true);
    assert_eq!(run.summary["steps"], 30);
    assert_eq!(run.summary["bad_rows"], 0);
}

#[test]
fn directory_holds_what_it_should() {
    let run = finished();
    for name in ["recipe.toml", "lock.json", "metrics.jsonl", "timings.jsonl", "eval/before.json", "eval/before.samples.jsonl"] {
        assert!(run.dir.join(name).is_file(), "{name}");
    }
    let lines = metrics(&run.dir);
    assert_eq!(lines.len(), 30);
    let mut math = 0;
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(line["step"], i + 1);
        let samples: u64 = line["sources"].as_array().unwrap().iter().map(|s| s["samples"].as_u64().unwrap()).sum();
        assert_eq!(samples, 8, "{line}");
        for source in line["sources"].as_array().unwrap() {
            math += if source["name"] == "math" { source["samples"].as_u64().unwrap() } else { 0 };
        }
        // Linear warmup over five steps and decay to the end, counted as transformers does: the first step has rate 0.
        let expected = if i < 5 { 2e-3 * i as f64 / 5.0 } else { 2e-3 * (30 - i) as f64 / 25.0 };
        assert!((line["lr"].as_f64().unwrap() - expected).abs() < 1e-12, "{line}");
    }
    // 240 draws of which 4 in 5 are to be reasoning: 192, standard deviation 6.
    assert!((168..=216).contains(&math), "{math} of 240 samples were reasoning");
    let (first, last) = (lines[1]["loss"].as_f64().unwrap(), lines[29]["loss"].as_f64().unwrap());
    assert!(last < 0.75 * first, "loss {first} -> {last}");
    for (step, loss) in run.summary["losses"].as_array().unwrap().iter().map(|l| (&l[0], &l[1])) {
        assert_eq!(*loss, lines[step.as_u64().unwrap() as usize - 1]["loss"]);
    }

    let lock = json_file(&run.dir.join("lock.json"));
    assert_eq!(lock["plugins"].as_object().unwrap().keys().collect::<Vec<_>>(), ["boxed_answer", "math_mix", "qwen3_chat", "sharegpt"]);
    for plugin in lock["plugins"].as_object().unwrap().values() {
        assert_eq!(plugin["sha256"].as_str().unwrap().len(), 64);
        assert_eq!(plugin["grants"], Value::Array(Vec::new()));
    }
}

#[test]
fn adapter_is_of_peft_s_form() {
    let folder = finished().dir.join("adapter");
    let adapter = Adapter::read(&ModelFiles::dir(&folder)).unwrap();
    assert_eq!((adapter.config.r, adapter.config.alpha), (32, 32.0));
    assert_eq!(adapter.config.target_modules.len(), 7);

    let config = json_file(&folder.join("adapter_config.json"));
    assert_eq!((&config["peft_type"], &config["task_type"], &config["r"]), (&"LORA".into(), &"CAUSAL_LM".into(), &32.into()));
    let tensors = trainer_test_support::tensors_at(&folder.join("adapter_model.safetensors"));
    let model: Value = serde_json::from_slice(trainer_nano_config()).unwrap();
    let layers = model["num_hidden_layers"].as_u64().unwrap() as usize;
    assert_eq!(tensors.len(), layers * 7 * 2);
    let mut trained = 0;
    for (name, tensor) in &tensors {
        assert!(name.starts_with("base_model.model.model.layers."), "{name}");
        assert_eq!(tensor.shape[if name.ends_with("lora_A.weight") { 0 } else { 1 }], 32, "{name}");
        let values = tensor.f32();
        assert!(values.iter().all(|v| v.is_finite()), "{name}");
        trained += usize::from(name.ends_with("lora_B.weight") && values.iter().any(|v| *v != 0.0));
    }
    assert_eq!(trained, layers * 7, "every B has left zero");
}

/// `config.json` of the embedded model.
fn trainer_nano_config() -> &'static [u8] {
    trainer_nano::MODEL_FILES.iter().find(|f| f.0 == "config.json").unwrap().1
}

#[test]
fn evaluating_a_run_repeats_its_own_report() {
    let run = finished();
    let dir = run.dir.to_str().unwrap();
    let report = run.sandbox.json(["eval", "--run", dir, "--json", "-"]);
    let own = json_file(&run.dir.join("eval/after.json"));
    assert_eq!(report["metrics"], own["metrics"]);
    assert_eq!(report["adapter"], own["adapter"]);
    assert_eq!(report["metrics"], run.summary["after"]["metrics"]);

    for key in ["model", "tokenizer", "adapter"] {
        assert_eq!(report[key]["sha256"].as_str().map(str::len), Some(64), "{key} in {report:#}");
    }
    assert_eq!(report["trainer"], env!("CARGO_PKG_VERSION"));
    let metric = report["plugins"].as_array().unwrap().iter().find(|p| p["name"] == "boxed_answer").unwrap();
    assert_eq!(metric["kinds"][0], "eval-metric@0.1.0");
    assert_eq!(report["rows"]["boxed_answer"]["scored"], 300);

    // The same samples, one by one.
    let samples = |report: &Value| -> Vec<Value> {
        let path = run.sandbox.path("x").parent().unwrap().join(report["samples"].as_str().unwrap());
        let path = if path.exists() { path } else { run.dir.join("eval").join(report["samples"].as_str().unwrap()) };
        std::fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    let all = samples(&report);
    assert_eq!(all.len(), 300);
    assert_eq!(all, samples(&own));
    let right =
        all.iter().filter(|s| s["scores"].as_array().unwrap().iter().any(|x| x["name"] == "correct" && is_right(&x["value"]))).count();
    assert!((right as f64 / 300.0 - accuracy(&report)).abs() < 1e-9, "{right} of 300; {}", all[0]);
}

fn is_right(value: &Value) -> bool {
    value == &Value::Bool(true) || value.as_f64() == Some(1.0)
}

#[test]
fn other_rows_of_the_same_columns() {
    let run = finished();
    let sandbox = Sandbox::new();
    let rows = lines("math_test", 20);
    sandbox.write("rows.jsonl", rows.join("\n"));
    let report = sandbox.json(["eval", "--run", run.dir.to_str().unwrap(), "--data", "rows.jsonl", "--out", "results", "--json"]);
    assert_eq!(report["rows"]["boxed_answer"]["rows"], 20);
    // The answers to these rows are those among all rows.
    let text = std::fs::read_to_string(run.dir.join("eval/after.samples.jsonl")).unwrap();
    let outputs =
        |text: &str| -> Vec<Value> { text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["outputs"].clone()).collect() };
    let (all, here) = (outputs(&text), sandbox.path("results"));
    let file = std::fs::read_dir(&here).unwrap().map(|e| e.unwrap().path()).find(|p| p.to_str().unwrap().ends_with(".samples.jsonl"));
    assert_eq!(outputs(&std::fs::read_to_string(file.unwrap()).unwrap()), all[..20]);
}

#[test]
fn evaluating_a_model() {
    let sandbox = Sandbox::new();
    // `--json` alone means standard output, like `--json -`.
    let alone = sandbox.json(["eval", "--model", "nano", "--limit", "40", "--out", "a", "--json"]);
    let dash = sandbox.json(["eval", "--model", "nano", "--limit", "40", "--out", "b", "--json", "-"]);
    assert_eq!(alone["metrics"], dash["metrics"]);
    assert_eq!(alone["rows"]["boxed_answer"]["rows"], 40);
    assert_eq!(alone["adapter"], Value::Null);

    let said = sandbox.ok(["eval", "--model", "nano", "--limit", "40", "--out", "c", "--json", "report.json"]);
    assert_eq!(said, "", "nothing is said on standard output where the report goes to a file");
    assert_eq!(json_file(&sandbox.path("report.json"))["metrics"], dash["metrics"]);

    let whole = sandbox.json(["eval", "--model", "nano", "--out", "d", "--json", "-"]);
    assert_eq!(whole["metrics"], finished().summary["before"]["metrics"]);
}
