//! Plugins in every language and of every kind, from an empty folder to tested, by the commands that the book gives and with the languages' real
//! tools. For `.ci/full`, since it installs those tools.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::support::{Sandbox, shown};

const KINDS: [&str; 5] = ["formatter", "template", "mixing", "tool", "metric"];

/// The shell commands on a language's page, of which a newcomer types one after the other.
fn commands(page: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src").join(page);
    let text = std::fs::read_to_string(&path).unwrap();
    let (_, after) = text.split_once("<!-- from nothing -->\n```sh\n").unwrap_or_else(|| panic!("{page} has no commands"));
    after.split("```").next().unwrap().lines().map(str::to_owned).collect()
}

/// A shell command, with the program on PATH and the tester's home, where the languages' tools have their caches and settings.
fn shell(sandbox: &Sandbox, folder: &Path, command: &str) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_trainer")).parent().unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(program).chain(std::env::split_paths(&path))).unwrap();
    let mut shell = Command::new("bash");
    shell.args(["-euc", command]).current_dir(folder).env("PATH", path).env("CUDA_VISIBLE_DEVICES", "");
    // A cache of compiled plugins for this test alone, so that compilation is timed and tried.
    shell.env("XDG_CACHE_HOME", sandbox.path("cache")).env_remove("TRAINER_LOG");
    for (variable, folder) in [("PIP_CACHE_DIR", "pip"), ("GOCACHE", "go-build"), ("ZIG_GLOBAL_CACHE_DIR", "zig")] {
        shell.env(variable, tools_cache(folder));
    }
    shell
}

/// Shared by all tests: what the tools fetch and compile for themselves.
fn tools_cache(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("language-tools").join(folder)
}

fn ok(sandbox: &Sandbox, folder: &Path, command: &str) -> String {
    let output = shell(sandbox, folder, command).output().unwrap();
    assert!(output.status.success(), "{command}: {}", shown(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Types the page's commands for a kind; answers the project's folder.
fn follow(sandbox: &Sandbox, language: &str, page: &str, kind: &str) -> PathBuf {
    let folder = sandbox.path(&format!("{language}-{kind}"));
    std::fs::create_dir_all(&folder).unwrap();
    let project = folder.join("answers");
    for command in commands(page) {
        if command == "cd answers" {
            continue;
        }
        let here = if project.is_dir() { &project } else { &folder };
        let command = command.replace("--kind formatter", &format!("--kind {kind}"));
        let command = if command == "trainer plugin test" { format!("{command} --json") } else { command };
        let started = Instant::now();
        let said = ok(sandbox, here, &command);
        eprintln!("{language:<7} {kind:<10} {:>6.1} s  {command}", started.elapsed().as_secs_f64());
        if command.starts_with("trainer plugin test") {
            let report: Value = serde_json::from_str(&said).unwrap();
            assert_eq!(report["passed"], true, "{language} {kind}: {report:#}");
            assert!(!report["cases"].as_array().unwrap().is_empty() && !report["properties"].as_array().unwrap().is_empty());
        }
    }
    project
}

/// Puts a mistake into a formatter's source, and looks for its words in what the program says of it.
fn a_mistake_is_reported(sandbox: &Sandbox, project: &Path, file: &str, sound: &str, mistaken: &str, words: &[&str]) {
    let path = project.join(file);
    let source = std::fs::read_to_string(&path).unwrap();
    let broken = source.replacen(sound, mistaken, 1);
    assert_ne!(source, broken, "{sound} is no longer in {file}");
    std::fs::write(&path, broken).unwrap();
    ok(sandbox, project, "trainer plugin build");
    let output = shell(sandbox, project, "trainer plugin test").output().unwrap();
    let said = shown(&output);
    assert!(!output.status.success() && words.iter().all(|w| said.contains(w)), "{words:?} is not in {said}");
    std::fs::write(&path, source).unwrap();
}

/// What has to be there for a page's first command; its absence must not look like success.
fn require(program: &str) {
    let found = Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    assert!(found, "this test needs {program}: .ci/full installs it");
}

#[test]
#[ignore = "installs componentize-py; .ci/full runs it"]
fn python_from_nothing() {
    require("python3");
    let sandbox = Sandbox::cold();
    for kind in KINDS {
        let project = follow(&sandbox, "python", "plugins-python.md", kind);
        if kind == "formatter" {
            let sound = "if not row[\"answer\"]:";
            a_mistake_is_reported(&sandbox, &project, "app.py", sound, "if not row[\"anwser\"]:", &["KeyError: 'anwser'", "app.py:"]);
        }
    }
}

#[test]
#[ignore = "installs componentize-qjs; .ci/full runs it"]
fn javascript_from_nothing() {
    require("npm");
    let sandbox = Sandbox::cold();
    for kind in KINDS {
        let project = follow(&sandbox, "js", "plugins-js.md", kind);
        if kind == "formatter" {
            let words = ["TypeError", "plugin.js:"];
            a_mistake_is_reported(&sandbox, &project, "plugin.js", "row.answer === \"\"", "row.anwser.length === 0", &words);
        }
    }
}

#[test]
#[ignore = "installs zig; .ci/full runs it"]
fn c_from_nothing() {
    require("python3");
    let sandbox = Sandbox::cold();
    for kind in KINDS {
        let project = follow(&sandbox, "c", "plugins-c.md", kind);
        if kind == "formatter" {
            let mistaken = "if (json_string(answer, \"\").len != 0) fail(\"there is an answer after all\");\n  if (false) {";
            let sound = "if (json_string(answer, \"\").len == 0) {";
            a_mistake_is_reported(&sandbox, &project, "src/formatter.c", sound, mistaken, &["there is an answer after all"]);
        }
    }
}

#[test]
#[ignore = "needs clang with a C library for WASI; .ci/full runs it"]
fn c_by_clang() {
    require("clang");
    let sandbox = Sandbox::cold();
    let folder = sandbox.path("clang");
    std::fs::create_dir(&folder).unwrap();
    for kind in KINDS {
        let said = ok(
            &sandbox,
            &folder,
            &format!(
                "trainer plugin new my_{kind} --kind {kind} --lang c >&2; cd my_{kind}; trainer plugin build >&2; trainer plugin test --json"
            ),
        );
        assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["passed"], true, "{kind}: {said}");
    }
}

#[test]
#[ignore = "installs Go; .ci/full runs it"]
fn go_from_nothing() {
    require("python3");
    let sandbox = Sandbox::cold();
    for kind in KINDS {
        let project = follow(&sandbox, "go", "plugins-go.md", kind);
        if kind == "formatter" {
            let words = ["index out of range [7] with length", "plugin.go:"];
            a_mistake_is_reported(
                &sandbox,
                &project,
                "plugin.go",
                "if answer == \"\" {",
                "if answer == \"\" || answer[7] == ' ' {",
                &words,
            );
        }
    }
}

#[test]
fn a_missing_tool_is_named_with_the_way_to_get_it() {
    let sandbox = Sandbox::cold();
    for (language, program, install) in [
        ("python", "`componentize-py` is needed", "pip install"),
        ("js", "`componentize-qjs` is needed", "Run `npm install` in "),
        ("c", "`zig or clang` is needed", "pip install ziglang"),
        ("go", "`go` is needed", "Install Go 1.24 or later"),
    ] {
        let folder = sandbox.path(language);
        std::fs::create_dir(&folder).unwrap();
        sandbox.ok(["plugin", "new", "answers", "--kind", "metric", "--lang", language, "--path", &format!("{language}/answers")]);
        let mut build = sandbox.command(["plugin", "build"]);
        let output =
            build.current_dir(folder.join("answers")).env("PATH", sandbox.path("nothing")).env_remove("WASI_SDK_PATH").output().unwrap();
        let said = shown(&output);
        assert!(output.status.code() == Some(1) && said.contains(program) && said.contains(install), "{language}: {said}");
    }
}
