//! The author's loop: `trainer plugin new`, `build`, `test`, `run`, `bench` and `doc`, from an empty folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::{Sandbox, json_file, shown};

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
}
