//! Looking at runs: trackers, lists, comparisons, reports, the dashboard; and what the command line says about itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use serde_json::Value;

use crate::support::{SHORT_STEPS, Sandbox, baseline, bytes, short, until};

#[test]
fn trackers_follow_a_run_and_change_nothing_of_it() {
    let sandbox = Sandbox::new();
    let said = sandbox.ok(short(&["--out", "run", "--report-to", "tensorboard,wandb"]));
    let run = sandbox.path("run");
    assert_eq!(bytes(&run), baseline().bytes);
    let said = sandbox.neutral(&said);
    assert!(said.contains("tensorboard  tensorboard --logdir [DIR]/run/tensorboard"), "{said}");
    assert!(said.contains("wandb        wandb sync [DIR]/run/wandb/offline-run-"), "{said}");
    for name in ["tensorboard", "wandb"] {
        let notes = crate::support::json_file(&run.join(format!("track/{name}.json")));
        assert_eq!((notes["step"].as_u64(), notes["closed"].as_bool()), (Some(SHORT_STEPS), Some(true)), "{notes}");
    }
    assert!(!said.contains("a key is set"));
    // Whoever has set a key for the client expects an upload; only the client itself can do that.
    for (mode, told) in [("online", true), ("offline", false)] {
        let mut command = sandbox.command(["run", "--resume", "run", "--report-to", "wandb"]);
        let output = command.env("WANDB_API_KEY", "0123456789").env("WANDB_MODE", mode).output().unwrap();
        let said = sandbox.neutral(std::str::from_utf8(&output.stderr).unwrap());
        assert!(
            output.status.success() && said.contains("`wandb sync [DIR]/run/wandb/offline-run-*` uploads it") == told,
            "{mode}: {said}"
        );
    }
    // The lock does not know of trackers, so the same run can be asked for without them.
    sandbox.ok(short(&["--out", "again", "--locked", "run/lock.json"]));
}

#[test]
fn a_tracker_that_is_named_later_gets_the_whole_run() {
    let sandbox = Sandbox::new();
    sandbox.ok(short(&["--out", "run"]));
    assert!(!sandbox.path("run/tensorboard").exists());
    sandbox.ok(["run", "--resume", "run", "--report-to", "tensorboard"]);
    assert_eq!(crate::support::json_file(&sandbox.path("run/track/tensorboard.json"))["step"], SHORT_STEPS);
}

#[test]
fn a_server_that_is_down_does_not_keep_a_run_from_its_end() {
    let sandbox = Sandbox::new();
    // The port of a listener that is gone.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let uri = format!("track.mlflow_uri=http://127.0.0.1:{port}");
    let output = sandbox.run(short(&["--out", "run", "--report-to", "mlflow", "--set", &uri]));
    let said = String::from_utf8(output.stderr).unwrap().replace(&port.to_string(), "[PORT]");
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("warning: mlflow does not have everything of this run: cannot reach http://127.0.0.1:[PORT]"), "{said}");
    assert_eq!(bytes(&sandbox.path("run")), baseline().bytes);
}

#[test]
fn samples_come_on_the_way_and_are_kept() {
    let sandbox = Sandbox::new();
    let set = ["--set", "sample.prompt=\"What is 3 + 4?\"", "--set", "sample.every=4", "--set", "sample.max_new_tokens=16"];
    sandbox.ok(short(&[&["--out", "run"], set.as_slice()].concat()));
    assert_eq!(bytes(&sandbox.path("run")), baseline().bytes, "answering changes no training");
    let text = std::fs::read_to_string(sandbox.path("run/samples.jsonl")).unwrap();
    let samples: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(samples.iter().map(|s| s["step"].as_u64().unwrap()).collect::<Vec<_>>(), [4, 8, 10]);
    assert!(samples.iter().all(|s| s["prompt"] == "What is 3 + 4?" && !s["text"].as_str().unwrap().is_empty()));
}

#[test]
fn runs_are_listed_shown_compared_reported_and_removed() {
    let sandbox = Sandbox::new();
    sandbox.ok(short(&["--out", "runs/a"]));
    sandbox.ok(short(&["--out", "runs/b", "--set", "train.learning_rate=1e-3"]));
    let list = sandbox.json(["runs", "list", "--json"]);
    let states: Vec<_> = list["runs"].as_array().unwrap().iter().map(|r| r["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["complete", "complete"]);
    let table = sandbox.ok(["runs", "list"]);
    assert!(table.lines().next().unwrap().starts_with("RUN") && table.contains("runs/a  complete  10/10"), "{table}");
    let show = sandbox.json(["runs", "show", "runs/a", "--json"]);
    assert_eq!(show["overview"]["step"], SHORT_STEPS);
    assert!(show["overview"]["memory"].as_u64().unwrap() > 1 << 20);
    assert_eq!(show["recipe"]["train"]["seed"], 3407);
    let compare = sandbox.json(["runs", "compare", "runs/a", "runs/b", "--json"]);
    let keys: Vec<_> = compare["recipe"].as_array().unwrap().iter().map(|d| d["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["train.learning_rate"]);
    // The first steps of the warmup have other rates, so the second loss is the first that can differ.
    assert_eq!(compare["lock"], Value::Array(vec![]));
    assert!(compare["first_different_step"].as_u64().unwrap() > 1);
    let shown = sandbox.ok(["runs", "compare", "runs/a", "runs/b"]);
    assert!(shown.contains("train.learning_rate  0.002  0.001"), "{shown}");

    let said = sandbox.ok(["report", "runs/a", "--out", "a.html"]);
    assert_eq!(said, "written to a.html\n");
    let page = std::fs::read_to_string(sandbox.path("a.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("<svg") && !page.contains("http"), "{}", page.len());

    insta::assert_snapshot!(sandbox.fails(["runs", "show", "runs"]), @"error: runs is not a run directory: it has no recipe.toml; `trainer runs list DIR` shows the runs below a folder");
    insta::assert_snapshot!(sandbox.fails(["runs", "rm", "runs/a"]).lines().last().unwrap(), @"error: removing needs a yes, and there is nobody to ask; add --yes");
    let would = sandbox.ok(["runs", "rm", "runs/a", "runs/b", "--dry-run"]);
    assert_eq!(would.lines().count(), 2);
    assert!(sandbox.path("runs/a/adapter").is_dir());
    // One that is no run keeps all of them.
    sandbox.fails(["runs", "rm", "runs/a", "runs", "--yes"]);
    assert!(sandbox.path("runs/a/adapter").is_dir());
    sandbox.ok(["runs", "rm", "runs/a", "--yes"]);
    assert!(!sandbox.path("runs/a").exists() && sandbox.path("runs/b").exists());

    // A run that is broken does not hide the others.
    std::fs::create_dir(sandbox.path("runs/c")).unwrap();
    std::fs::write(sandbox.path("runs/c/recipe.toml"), "").unwrap();
    std::fs::write(sandbox.path("runs/c/lock.json"), "{").unwrap();
    let output = sandbox.run(["runs", "list"]);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && out.contains("runs/b  complete") && !out.contains("runs/c"), "{out}");
    assert!(err.starts_with("warning: ") && err.contains("runs/c is left out: ") && err.contains("lock.json"), "{err}");
}

#[test]
fn a_run_without_a_card_tells_the_memory_of_its_process() {
    let sandbox = Sandbox::new();
    let run = baseline().dir.to_str().unwrap();
    let text = std::fs::read_to_string(baseline().dir.join("timings.jsonl")).unwrap();
    let timings: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(timings.len() as u64, SHORT_STEPS);
    for line in &timings {
        assert!(line["memory"].as_u64().unwrap() > 1 << 20, "{line}");
        assert!(line.as_object().unwrap().keys().all(|k| !k.starts_with("gpu")), "{line}");
    }
    sandbox.ok(["report", run, "--out", "page.html"]);
    let page = std::fs::read_to_string(sandbox.path("page.html")).unwrap();
    let chart = page.split("id=\"memory\"").nth(1).and_then(|p| p.split("</figure>").next()).unwrap();
    assert!(chart.contains("Resident memory (GiB)") && chart.contains("<path class=\"line"), "{chart}");
    assert!(!page.contains("id=\"gpu"), "there is no card to tell of");
    assert!(sandbox.ok(["runs", "show", run]).lines().any(|l| l.starts_with("memory   ")));
}

#[test]
fn the_dashboard_shows_a_run_that_goes_on() {
    let sandbox = Sandbox::new();
    let mut run = sandbox.command(short(&["--out", "runs/a"])).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the first step", || std::fs::read(sandbox.path("runs/a/metrics.jsonl")).is_ok_and(|b| b.contains(&b'\n')));
    let mut child = sandbox.command(["dashboard", "runs", "--port", "0"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.split("http://").nth(1).and_then(|l| l.split('/').next()).unwrap_or_else(|| panic!("{line}")).to_owned();
    let get = |path: &str| {
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    assert!(get("/run/a/").contains("id=\"loss\""));
    assert!(run.wait().unwrap().success());
    assert_eq!(bytes(&sandbox.path("runs/a")), baseline().bytes, "looking disturbs nothing");
    assert!(get("/api/runs").contains("\"state\":\"complete\""));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn progress_can_be_log_lines_or_nothing() {
    let sandbox = Sandbox::new();
    let output = sandbox.run(short(&["--out", "a", "--log-format", "json"]));
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
    let lines: Vec<Value> = std::str::from_utf8(&output.stderr).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let steps: Vec<_> = lines.iter().filter(|l| l["message"] == "step").collect();
    assert_eq!(steps.len() as u64, SHORT_STEPS);
    let metrics = crate::support::metrics(&sandbox.path("a"));
    for (logged, written) in steps.iter().zip(&metrics) {
        assert_eq!((&logged["step"], &logged["loss"]), (&written["step"], &written["loss"]));
        assert!(logged["tokens_per_second"].as_f64().unwrap() > 0.0 && logged["timestamp"].is_string());
    }
    // What goes wrong is a line of them as well.
    let output = sandbox.run(["run", "none.toml", "--log-format", "json"]);
    let line: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((output.status.code(), &line["level"]), (Some(1), &Value::from("ERROR")));
    assert!(line["message"].as_str().unwrap().contains("none.toml"), "{line}");
    let output = sandbox.run(short(&["--out", "b", "--quiet"]));
    assert_eq!((output.status.code(), output.stdout.len(), output.stderr.len()), (Some(0), 0, 0));
}

#[test]
fn misspelt_words_are_recognized() {
    let sandbox = Sandbox::cold();
    let wrong = |args: &[&str]| {
        let output = sandbox.run(args);
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    insta::assert_snapshot!(wrong(&["dashbord"]), @r"
    error: unrecognized subcommand 'dashbord'

      tip: a similar subcommand exists: 'dashboard'

    Usage: trainer [OPTIONS] <COMMAND>

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(wrong(&["run", "--report-too", "mlflow"]), @r"
    error: unexpected argument '--report-too' found

      tip: a similar argument exists: '--report-to'

    Usage: trainer run --report-to <LIST> [RECIPE]

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(wrong(&["run", "--report-to", "tensorbord"]), @r#"
    error: invalid value 'tensorbord' for '--report-to <LIST>': there is no tracker "tensorbord"; did you mean tensorboard?

    For more information, try '--help'.
    "#);
}

#[test]
fn help_completions_and_man_pages_come_of_one_definition() {
    let sandbox = Sandbox::cold();
    let help = sandbox.ok(["--help"]);
    insta::assert_snapshot!(&help[help.find("Options:").unwrap()..], @r"
    Options:
      -v, --verbose...           More log lines on standard error: -v info, -vv debug, -vvv trace (or
                                 set TRAINER_LOG, in tracing's filter syntax)
          --log-format <FORMAT>  How log lines look: text, or json, one object a line, for programs that
                                 collect logs. With json, a run's progress is among them, and not on
                                 standard output [default: text]
      -h, --help                 Print help
      -V, --version              Print version

    Exit codes: 0 done; 1 an error, which is told on standard error; 2 a command line that is not
    understood; 130 interrupted (a run then has a checkpoint and says how to continue).
    ");
    insta::assert_snapshot!(sandbox.ok(["runs", "rm", "--help"]), @r"
    Remove runs with their adapters and checkpoints. One that is running is refused

    Usage: trainer runs rm [OPTIONS] <RUN>...

    Arguments:
      <RUN>...  The run directories

    Options:
      -y, --yes                  Do not ask
          --dry-run              Only say what would be removed
      -v, --verbose...           More log lines on standard error: -v info, -vv debug, -vvv trace (or
                                 set TRAINER_LOG, in tracing's filter syntax)
          --log-format <FORMAT>  How log lines look: text, or json, one object a line, for programs that
                                 collect logs. With json, a run's progress is among them, and not on
                                 standard output [default: text]
      -h, --help                 Print help
    ");
    sandbox.ok(["man", "--out", "man"]);
    let pages: Vec<_> = std::fs::read_dir(sandbox.path("man")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    for line in help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty()) {
        // A command's line; others go on with its text.
        let Some(name) = line.strip_prefix("  ").filter(|l| !l.starts_with(' ')).and_then(|l| l.split(' ').next()) else { continue };
        assert!(name == "help" || pages.contains(&format!("trainer-{name}.1")), "no page for {name}: {pages:?}");
    }
    assert!(pages.contains(&"trainer-runs-rm.1".to_owned()) && !pages.iter().any(|p| p.contains("compile")), "{pages:?}");
    let page = std::fs::read_to_string(sandbox.path("man/trainer-run.1")).unwrap();
    assert!(page.contains("\\-\\-report\\-to") && page.contains("Examples:"), "{page}");
    for (shell, sign) in [
        ("bash", "complete -F _trainer"),
        ("zsh", "#compdef trainer"),
        ("fish", "complete -c trainer"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let text = sandbox.ok(["completions", shell]);
        assert!(text.contains(sign) && text.contains("dashboard") && text.contains("report-to"), "{shell}");
    }
}
