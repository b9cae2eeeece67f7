//! The author's loop: `trainer plugin new`, `build`, `test`, `run`, `bench` and `doc`, from an empty folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::{Sandbox, json_file, prebuilt, shown};

/// A command of the program in a folder, with the Rust tools of the user and a build folder that all tests share, as a user's projects do.
fn command(sandbox: &Sandbox, folder: &Path, args: &[&str]) -> Command {
    let mut command = sandbox.command(args);
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let tools = |name: &str, folder: &str| std::env::var_os(name).map_or_else(|| home.join(folder), PathBuf::from);
    command.current_dir(folder).env("CARGO_HOME", tools("CARGO_HOME", ".cargo")).env("RUSTUP_HOME", tools("RUSTUP_HOME", ".rustup"));
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/plugin-author-cache");
    // Where std is built from its sources, the official plugins' build has it already, or can use this one.
    let builds = target.join("trainer/plugin-builds");
    std::fs::create_dir_all(&builds).unwrap();
    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/target/guests");
    std::fs::create_dir_all(&guests).unwrap();
    let _ = std::os::unix::fs::symlink(guests.canonicalize().unwrap(), builds.join("rust-target"));
    command.env("XDG_CACHE_HOME", target);
    command
}

fn run(sandbox: &Sandbox, folder: &Path, args: &[&str]) -> Output {
    command(sandbox, folder, args).output().unwrap()
}

fn ok(sandbox: &Sandbox, folder: &Path, args: &[&str]) -> String {
    let output = run(sandbox, folder, args);
    assert!(output.status.success(), "{args:?}: {}", shown(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn fails(sandbox: &Sandbox, folder: &Path, args: &[&str]) -> String {
    let output = run(sandbox, folder, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", shown(&output));
    shown(&output)
}

#[test]
fn from_an_empty_folder_in_rust() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path("work");
    std::fs::create_dir(&folder).unwrap();
    for kind in ["formatter", "template", "mixing", "tool", "metric"] {
        let name = format!("my_{kind}");
        let said = ok(&sandbox, &folder, &["plugin", "new", &name, "--kind", kind, "--lang", "rust"]);
        assert!(said.contains("trainer plugin build && trainer plugin test"), "{said}");
        let project = folder.join(&name);
        // Tests before a build say what to do.
        assert!(fails(&sandbox, &project, &["plugin", "test"]).contains("run `trainer plugin build` first"));
        let said = ok(&sandbox, &project, &["plugin", "build"]);
        assert!(said.starts_with(&format!("{name}.wasm: {name} 0.1.0, ")), "{said}");
        let report: Value = serde_json::from_str(&ok(&sandbox, &project, &["plugin", "test", "--json"])).unwrap();
        assert_eq!(report["passed"], true, "{report:#}");
        assert!(report["cases"].as_array().unwrap().len() >= 3 && report["properties"].as_array().unwrap().len() >= 3, "{report:#}");
    }

    let formatter = folder.join("my_formatter");
    std::fs::write(formatter.join("rows.jsonl"), "{\"question\": \"1+1?\", \"answer\": \"2\"}\n\n{\"question\": 5}\n").unwrap();
    let said = ok(&sandbox, &formatter, &["plugin", "run", "my_formatter.wasm", "--call", "format", "--input", "rows.jsonl"]);
    let lines: Vec<Value> = said.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["sample"]["messages"][1]["content"], json!({"text": "2"}));
    assert_eq!(lines[1], json!({"bad": {"pointer": "/question", "message": "a string is needed"}}));

    let figures: Value =
        serde_json::from_str(&ok(&sandbox, &formatter, &["plugin", "bench", "my_formatter.wasm", "--seconds", "0.05", "--json"])).unwrap();
    let call = &figures["kinds"][0]["calls"][0];
    assert!(call["per_second"].as_f64().unwrap() > 0.0 && figures["cold_ms"].as_f64().unwrap() > figures["cached_ms"].as_f64().unwrap());

    a_wrong_expectation_fails_and_can_be_updated(&sandbox, &formatter);
    a_plugin_that_breaks_the_rules_is_told(&sandbox, &formatter);
}

fn a_wrong_expectation_fails_and_can_be_updated(sandbox: &Sandbox, project: &Path) {
    let case = project.join("tests/rows.json");
    let before = json_file(&case);
    let mut wrong = before.clone();
    wrong["calls"][0]["expect"][0]["sample"]["messages"][0]["role"] = json!("stranger");
    std::fs::write(&case, wrong.to_string()).unwrap();
    let said = fails(sandbox, project, &["plugin", "test"]);
    assert!(said.contains("FAIL  rows") && said.contains("messages[0].role: \"stranger\" was expected, and it is \"user\""), "{said}");
    ok(sandbox, project, &["plugin", "test", "--update"]);
    assert_eq!(json_file(&case)["calls"][0]["expect"][0]["sample"]["messages"][0]["role"], "user");
    ok(sandbox, project, &["plugin", "test"]);
}

fn a_plugin_that_breaks_the_rules_is_told(sandbox: &Sandbox, project: &Path) {
    let source = project.join("src/lib.rs");
    let text = std::fs::read_to_string(&source).unwrap();
    // A count that is kept between calls, and a panic on a row without an answer.
    let state = "static SEEN: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);\n\nplugin!";
    let broken = text
        .replace("plugin! {", &format!("{state} {{"))
        .replace(
            "Message::user(question)",
            "Message::user(format!(\"{question}{}\", SEEN.fetch_add(1, std::sync::atomic::Ordering::Relaxed)))",
        )
        .replace("column(\"answer\")?", "column(\"answer\").unwrap()");
    assert_ne!(broken, text);
    std::fs::write(&source, &broken).unwrap();
    ok(sandbox, project, &["plugin", "build"]);
    let report = run(sandbox, project, &["plugin", "test", "--json"]);
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    let failure = |name: &str| {
        let properties = report["properties"].as_array().unwrap();
        let property = properties.iter().find(|p| p["name"].as_str().unwrap().contains(name)).unwrap();
        property["failure"].as_str().unwrap_or_else(|| panic!("{name} was not noticed: {report:#}")).to_owned()
    };
    assert!(failure("in a batch and alone").contains("in a batch and alone"));
    assert!(failure("no trap").contains("a string is needed"));

    // What does not compile leaves the component as it was.
    let component = project.join("my_formatter.wasm");
    let before = std::fs::read(&component).unwrap();
    std::fs::write(&source, "this is no Rust").unwrap();
    assert!(fails(sandbox, project, &["plugin", "build"]).contains("cargo build"));
    assert_eq!(std::fs::read(&component).unwrap(), before);
    std::fs::write(&source, text).unwrap();
}

#[test]
fn a_metric_in_rust_moves_to_the_newer_version() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path("work");
    std::fs::create_dir(&folder).unwrap();
    ok(&sandbox, &folder, &["plugin", "new", "my_metric", "--kind", "metric", "--lang", "rust"]);
    let project = folder.join("my_metric");
    let source = project.join("src/lib.rs");
    let text = std::fs::read_to_string(&source).unwrap();
    // What the SDK's page on 0.2 says: other imports, `samples`, and `metric_0_2` in the macro.
    let newer = text
        .replace(
            "use trainer_plugin_sdk::{\n    Aggregate, Conversation, Generation, Item, Message, Metric, Plan, Pointer, Request, Response, RowError, Score, Value, plugin,\n};",
            "use trainer_plugin_sdk::metric_0_2::{Aggregate, Generation, Item, Metric, Plan, Request, Response, Score, Value};\n\
             use trainer_plugin_sdk::{Conversation, Message, Pointer, RowError, plugin};",
        )
        .replace("higher_is_better: Some(true),", "higher_is_better: Some(true),\n            samples: Some(scored.len() as u64),")
        .replace("&answers[0].text;", "&format!(\"{} in {:?}\", answers[0].text, answers[0].tokens);")
        .replace("plugin! { metric: Contains, }", "plugin! { metric_0_2: Contains, }");
    assert_eq!(newer.matches("0_2").count(), 2, "the scaffold has changed: {text}");
    std::fs::write(&source, newer).unwrap();
    let said = ok(&sandbox, &project, &["plugin", "build"]);
    assert!(said.starts_with("my_metric.wasm: my_metric 0.1.0, eval-metric@0.2.0, "), "{said}");
    // It gives what it gave, and the samples that were scored.
    let said = fails(&sandbox, &project, &["plugin", "test"]);
    assert!(said.contains("FAIL  aggregate") && said.contains(".samples: null was expected, and it is 4"), "{said}");
    ok(&sandbox, &project, &["plugin", "test", "--update"]);
    let report: Value = serde_json::from_str(&ok(&sandbox, &project, &["plugin", "test", "--json"])).unwrap();
    assert_eq!(report["passed"], true, "{report:#}");
    // It is told the tokens.
    let item = json!([[{"row": {"expected": "in Some(3)"}, "response": {"answers": [
        {"raw": "a", "text": "a", "reasoning": "", "calls": [], "malformed": [], "finish": "stop", "tokens": 3}
    ]}}]]);
    let said = ok(&sandbox, &project, &["plugin", "run", "my_metric.wasm", "--call", "score", "--args", &item.to_string()]);
    assert!(said.contains("\"boolean\":true"), "{said}");

    let component = project.join("my_metric.wasm");
    sandbox.write("rows.jsonl", "{\"question\": \"1+1?\", \"expected\": \"e\"}\n{\"question\": \"1+2?\", \"expected\": \"3\"}\n");
    let eval = ["eval", "--model", "nano", "--data", "rows.jsonl", "--plugin", component.to_str().unwrap(), "--out", "out", "--json", "-"];
    let report = sandbox.json(eval);
    assert_eq!(report["counted"], json!({ "my_metric/accuracy": 2 }));
    assert_eq!(
        report["plugins"].as_array().unwrap().iter().filter(|p| p["kinds"] == json!(["eval-metric@0.2.0"])).count(),
        1,
        "{report:#}"
    );
}

#[test]
fn a_bench_tells_what_is_called_by_name() {
    let sandbox = Sandbox::new();
    // A component in its project: the cases give the inputs.
    sandbox.write("mine/plugin.toml", "");
    sandbox.write("mine/exact_match.wasm", std::fs::read(prebuilt("exact_match.wasm")).unwrap());
    let answer = json!({"raw": "2", "text": "2", "reasoning": "", "calls": [], "malformed": [], "finish": "stop"});
    let row = json!({"question": "1+1?", "answer": "2"});
    let case = json!({"calls": [
        {"call": "prepare", "args": [[row]]},
        {"call": "score", "args": [[{"row": row, "response": {"answers": [answer]}}]]},
    ]});
    sandbox.write("mine/tests/case.json", case.to_string());
    let args = ["plugin", "bench", "mine/exact_match.wasm", "--seconds", "0.02"];
    let figures = sandbox.json(args.iter().chain(&["--json"]));
    let calls = figures["kinds"][0]["calls"].as_array().unwrap();
    let by_name: Vec<_> = calls.iter().map(|c| (c["call"].as_str().unwrap(), c["by_name"].as_bool().unwrap())).collect();
    assert_eq!(by_name, [("prepare", false), ("score", true)]);
    let said = sandbox.ok(args);
    let line = |name: &str| said.lines().find(|l| l.trim_start().starts_with(name)).unwrap_or_else(|| panic!("no {name} in {said}"));
    assert!(!line("prepare").contains("by name") && line("score").ends_with("; by name"), "{said}");
    assert!(said.contains("runs call with types, which is faster"), "{said}");
}

#[test]
fn what_cannot_be_is_refused() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path("work");
    std::fs::create_dir(&folder).unwrap();
    let new = |name: &str, kind: &str, lang: &str| run(&sandbox, &folder, &["plugin", "new", name, "--kind", kind, "--lang", lang]);
    assert!(shown(&new("My-Plugin", "formatter", "rust")).contains("for example my_plugin"));
    assert!(shown(&new("x", "sorter", "rust")).contains("`sorter` is no plugin kind"));
    assert!(shown(&new("x", "formatter", "cobol")).contains("the languages are rust, python, js, c and go"));
    assert!(std::fs::read_dir(&folder).unwrap().next().is_none(), "something was written");

    assert!(fails(&sandbox, &folder, &["plugin", "build"]).contains("it has no plugin.toml"));
    assert!(new("x", "formatter", "rust").status.success());
    assert!(shown(&new("x", "formatter", "rust")).contains("not empty"));
    let project = folder.join("x");
    for (from, to, words) in [
        ("version = \"0.1.0\"", "version = \"1\"", "no semantic version"),
        ("[build]", "colour = 1\n[build]", "unknown field `colour`"),
        ("\"formatter\"", "\"sorter\"", "`sorter` is no plugin kind"),
        ("settings = \"settings.json\"", "settings = \"none.json\"", "none.json"),
    ] {
        let path = project.join("plugin.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let said = fails(&sandbox, &project, &["plugin", "build"]);
        assert!(said.contains(words) && said.contains(if words == "none.json" { "none.json" } else { "plugin.toml" }), "{said}");
        std::fs::write(&path, text).unwrap();
    }
}

#[test]
fn calls_from_the_shell() {
    let sandbox = Sandbox::new();
    let functions = sandbox.ok(["plugin", "run", "calculator"]);
    insta::assert_snapshot!(functions, @r"
    tool-executor: open(context: {settings, seed, now_ms}) -> {ok: handle} or {error: string}
    tool-executor: call(calls: list<{name, arguments}>) -> list<ok | tool_error>
    tool-executor: state_digest() -> string or null
    tool-executor: tools(settings: string) -> {ok: list<{name, description, parameters, mutates}>} or {error: string}
    ");
    let context = r#"[{"settings": {}, "seed": 1, "now_ms": 0}]"#;
    let call = r#"[[{"name": "calculate", "arguments": {"expression": "2*21"}}]]"#;
    let said = sandbox.ok(["plugin", "run", "calculator", "--call", "open", "--args", context, "--call", "call", "--args", call]);
    assert_eq!(said, "{\"ok\":\"<handle>\"}\n[{\"ok\":\"{\\\"result\\\": 42}\"}]\n");
    // A method without its handle, a function that is none, arguments that do not fit.
    assert!(
        sandbox.fails(["plugin", "run", "calculator", "--call", "call", "--args", call]).contains("call the function that makes one first")
    );
    assert!(sandbox.fails(["plugin", "run", "calculator", "--call", "compute"]).contains("has no function `compute`"));
    let wrong = sandbox.fails(["plugin", "run", "calculator", "--call", "open", "--args", r#"[{"seed": "x"}]"#]);
    assert!(wrong.contains("context.settings: the field is missing"), "{wrong}");
    let wrong = sandbox.fails(["plugin", "run", "sharegpt", "--call", "format", "--input", "none.jsonl"]);
    assert!(wrong.contains("none.jsonl"), "{wrong}");
    sandbox.write("rows.jsonl", "{\"conversations\": []}\n{\n");
    let wrong = sandbox.fails(["plugin", "run", "sharegpt", "--call", "format", "--input", "rows.jsonl"]);
    assert!(wrong.contains("rows.jsonl:2: the line is no JSON"), "{wrong}");
}

#[test]
fn the_contract_of_a_kind() {
    let sandbox = Sandbox::new();
    for kind in ["formatter", "template", "mixing", "tool", "metric"] {
        let text = sandbox.ok(["plugin", "doc", kind]);
        assert!(text.starts_with(&format!("# Kind `{kind}`\n")) && text.contains("trainer:host/log@0.1.0"), "{text}");
    }
    // The newest version, or the one that is asked for.
    let newest = sandbox.ok(["plugin", "doc", "metric"]);
    assert!(newest.contains("## `trainer:eval-metric/metric@0.2.0`") && newest.contains("`tokens: option<u64>`"), "{newest}");
    assert_eq!(sandbox.ok(["plugin", "doc", "eval-metric@0.2.0"]), newest);
    let first = sandbox.ok(["plugin", "doc", "metric@0.1.0"]);
    assert!(first.contains("## `trainer:eval-metric/metric@0.1.0`") && !first.contains("`tokens`"), "{first}");
    assert!(first.contains("Plugins of 0.2.0 (`trainer plugin doc metric@0.2.0`) are run too."), "{first}");
    let said = shown(&sandbox.run(["plugin", "doc", "metric@0.3.0"]));
    assert!(said.contains("there is no eval-metric 0.3.0; this program knows 0.1.0, 0.2.0"), "{said}");
}
