//! `trainer plugin`.

use serde_json::{Value, json};

use crate::support::{Sandbox, prebuilt};

const KINDS: [(&str, &str); 5] = [
    ("formatter", "dataset-formatter"),
    ("template", "chat-template"),
    ("policy", "mixing-policy"),
    ("tool", "tool-executor"),
    ("metric", "eval-metric"),
];

#[test]
fn list() {
    let sandbox = Sandbox::new();
    insta::assert_snapshot!(sandbox.ok(["plugin", "list"]), @r#"
    bfcl           0.1.0    dataset-formatter@0.1.0, eval-metric@0.1.0
    boxed_answer   0.1.0    eval-metric@0.1.0
    calculator     0.1.0    tool-executor@0.1.0
    exact_match    0.1.0    eval-metric@0.1.0
    math_equal     0.1.0    eval-metric@0.1.0
    math_mix       0.1.0    dataset-formatter@0.1.0, mixing-policy@0.1.0
    perplexity     0.1.0    eval-metric@0.1.0
    qwen3_chat     0.1.0    chat-template@0.1.0
    sharegpt       0.1.0    dataset-formatter@0.1.0
    tool_calls     0.1.0    eval-metric@0.1.0
    weather        0.1.0    tool-executor@0.1.0
    "#);
}

#[test]
fn list_by_short_and_long_names_of_kinds() {
    let sandbox = Sandbox::new();
    for (short, long) in KINDS {
        let text = sandbox.ok(["plugin", "list", "--kind", short]);
        assert_eq!(text, sandbox.ok(["plugin", "list", "--kind", long]));
        assert!(!text.is_empty() && text.lines().all(|l| l.contains(&format!("{long}@"))), "{text}");
        let json = sandbox.json(["plugin", "list", "--kind", short, "--json"]);
        let plugins = json["plugins"].as_array().unwrap();
        assert_eq!(plugins.len(), text.lines().count());
        for plugin in plugins {
            assert!(plugin["kinds"].as_array().unwrap().iter().any(|k| k["kind"] == long), "{plugin}");
        }
    }
}

#[test]
fn inspect_as_json() {
    let sandbox = Sandbox::new();
    let mut by_name = sandbox.json(["plugin", "inspect", "math_mix", "--json"]);
    let file = prebuilt("math_mix.wasm");
    let mut by_path = sandbox.json(["plugin", "inspect", file.to_str().unwrap(), "--json", "-"]);
    assert_eq!(sandbox.ok(["plugin", "inspect", "math_mix.wasm", "--json", "about.json"]), "");
    assert_eq!(crate::support::json_file(&sandbox.path("about.json")), by_name);
    // Only what is inside the program needs no signature.
    assert_eq!(by_name["signature"].take(), json!({"state": "official", "required": false}));
    assert_eq!(by_path["signature"].take(), json!({"state": "missing", "required": false}));
    assert_eq!(by_name, by_path);
    by_name.as_object_mut().unwrap().remove("signature");

    let mut shown = by_name;
    assert_eq!(shown["size"], std::fs::metadata(&file).unwrap().len());
    shown["size"] = json!("[SIZE]");
    assert_eq!(shown["digest"].as_str().unwrap().len(), 64);
    shown["digest"] = json!("[DIGEST]");
    let properties: Vec<String> = shown["settings_schema"]["properties"].as_object().unwrap().keys().cloned().collect();
    shown["settings_schema"]["properties"] = Value::from(properties);
    insta::assert_snapshot!(serde_json::to_string_pretty(&shown).unwrap(), @r#"
    {
      "name": "math_mix",
      "version": "0.1.0",
      "description": "Mixes reasoning rows with a share of chat rows, as the Qwen3 tutorial does, and formats OpenMathReasoning rows",
      "kinds": [
        {
          "kind": "dataset-formatter",
          "version": "0.1.0"
        },
        {
          "kind": "mixing-policy",
          "version": "0.1.0"
        }
      ],
      "imports": [
        "trainer:host/log@0.1.0",
        "trainer:conversation/types@0.1.0"
      ],
      "refused_imports": [],
      "needs": [],
      "deterministic": true,
      "settings_schema": {
        "type": "object",
        "additionalProperties": false,
        "properties": [
          "chat_percentage",
          "reasoning",
          "chat",
          "repeat_chat",
          "problem_column",
          "solution_column",
          "skip_empty"
        ]
      },
      "size": "[SIZE]",
      "digest": "[DIGEST]"
    }
    "#);
}

#[test]
fn inspect_for_people() {
    let sandbox = Sandbox::new();
    let text = sandbox.ok(["plugin", "inspect", "calculator"]);
    insta::with_settings!({filters => vec![(r"size     .*", "size     [SIZE]"), (r"[0-9a-f]{64}", "[DIGEST]")]}, {
        insta::assert_snapshot!(text, @r#"
        calculator 0.1.0
          Evaluates arithmetic expressions: + - * / ^, parentheses, decimals
          kinds    tool-executor@0.1.0
          imports  trainer:host/log@0.1.0, trainer:conversation/types@0.1.0
          needs    none
          size     [SIZE]
          sha256   [DIGEST]
          signer   none needed: it is part of the program
          settings {
                     "type": "object",
                     "additionalProperties": false
                   }
        "#);
    });
}

#[test]
fn inspect_says_how_needs_are_granted() {
    let sandbox = Sandbox::new();
    let text = sandbox.ok(["plugin", "inspect", "weather"]);
    let shown: Vec<&str> = text.lines().filter(|l| l.starts_with("  needs") || l.contains("--")).collect();
    insta::assert_snapshot!(shown.join("\n"), @r"
      needs    http: https://api.openweathermap.org, secret: OPENWEATHER_API_KEY
      grant    --grant weather:http=https://api.openweathermap.org
               --secret weather:OPENWEATHER_API_KEY=env:OPENWEATHER_API_KEY
    ");
    let about = sandbox.json(["plugin", "inspect", "weather", "--json"]);
    assert_eq!(about["refused_imports"], json!([]));
    assert_eq!(about["deterministic"], false);
    assert_eq!(about["grant_with"][0], "--grant weather:http=https://api.openweathermap.org");
}

#[test]
fn inspect_says_what_would_be_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("wasi.wasm", crate::errors::wasi_component());
    let about = sandbox.json(["plugin", "inspect", "wasi.wasm", "--json"]);
    assert_eq!(about["refused_imports"], json!(["wasi:http/outgoing-handler@0.2.6"]));
    let python = wat::parse_str(
        r#"(component
            (@custom "trainer:plugin" "{\"name\": \"runtime\", \"version\": \"1.2.3\"}")
            (import "wasi:cli/environment@0.2.3" (instance))
            (instance $i)
            (export "trainer:dataset-formatter/formatter@0.1.0" (instance $i)))"#,
    )
    .unwrap();
    sandbox.write("runtime.wasm", python);
    let about = sandbox.json(["plugin", "inspect", "runtime.wasm", "--json"]);
    assert_eq!((&about["refused_imports"], &about["empty_world"]), (&json!([]), &json!(["wasi:cli/environment@0.2.3"])));
    let said = sandbox.ok(["plugin", "inspect", "runtime.wasm"]);
    assert!(said.contains("  wasi     met by an empty world: no arguments, environment, files, network;"), "{said}");
    assert_eq!(about["kinds"][0]["kind"], "dataset-formatter");
}

#[test]
fn an_existing_file_wins_over_an_official_name() {
    let sandbox = Sandbox::new();
    std::fs::copy(prebuilt("sharegpt.wasm"), sandbox.path("math_mix.wasm")).unwrap();
    assert_eq!(sandbox.json(["plugin", "inspect", "math_mix.wasm", "--json"])["name"], "sharegpt");
    assert_eq!(sandbox.json(["plugin", "inspect", "math_mix", "--json"])["name"], "math_mix");
}
