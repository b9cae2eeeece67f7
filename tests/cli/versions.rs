//! Plugins of several versions of their interface in one evaluation.

use serde_json::json;

use crate::support::Sandbox;

/// A metric against `eval-metric` 0.2.0, which sums up by the mean number of tokens of the answers where that is known.
fn tokens() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin-host/tests/fixtures/tokens-0.2.0.wasm")
}

#[test]
fn metrics_of_both_versions_in_one_evaluation() {
    let sandbox = Sandbox::new();
    let file = tokens();
    let file = file.to_str().unwrap();
    let args = ["eval", "--model", "nano", "--limit", "6", "--plugin", "boxed_answer", "--plugin", file, "--out", "out"];
    let report = sandbox.json(args.iter().chain(&["--json", "-"]));
    let kinds = |name: &str| report["plugins"].as_array().unwrap().iter().find(|p| p["name"] == name).unwrap()["kinds"].clone();
    assert_eq!((kinds("boxed_answer"), kinds("tokens")), (json!(["eval-metric@0.1.0"]), json!(["eval-metric@0.2.0"])));
    assert!(report["metrics"]["boxed_answer/accuracy"].is_number(), "{report:#}");
    // Answers of six rows, each with its tokens; an older metric does not say over how many samples its values are.
    assert_eq!(report["counted"], json!({ "tokens/mean_tokens": 6 }));
    assert!(report["metrics"]["tokens/mean_tokens"].as_f64().unwrap() >= 1.0, "{report:#}");
    let said = sandbox.ok(args);
    let line = said.lines().find(|l| l.starts_with("tokens/mean_tokens  ")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.ends_with("  over 6 samples"), "{line}");
}

#[test]
fn tokens_of_given_outputs_are_not_known() {
    let sandbox = Sandbox::new();
    sandbox.write("rows.jsonl", "{\"id\": \"a\"}\n{\"id\": \"b\"}\n");
    sandbox.write("out.jsonl", "{\"id\": \"a\", \"text\": \"one\"}\n{\"id\": \"b\", \"text\": \"two\"}\n");
    let file = tokens();
    let report = sandbox.json([
        "eval",
        "--predictions",
        "out.jsonl",
        "--data",
        "rows.jsonl",
        "--plugin",
        file.to_str().unwrap(),
        "--out",
        "out",
        "--json",
        "-",
    ]);
    assert_eq!(report["counted"], json!({ "tokens/mean_tokens": 0 }));
    assert_eq!(report["rows"]["tokens"]["scored"], 2);
}
