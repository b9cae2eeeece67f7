//! `trainer eval` for tools: nano's cases with canned responses and the calculator, tapes, resuming, reports.

use std::time::Instant;

use serde_json::Value;

use crate::server::{Server, answer};
use crate::support::Sandbox;

const EVAL: [&str; 9] =
    ["eval", "--model", "nano", "--data", "tools_eval.jsonl", "--plugin", "calculator.wasm", "--plugin", "tool_calls.wasm"];

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("tools_eval.jsonl", trainer_nano::data("tools_eval").unwrap().bytes);
    sandbox
}

fn eval<'a>(more: &[&'a str]) -> Vec<&'a str> {
    EVAL.iter().copied().chain(more.iter().copied()).collect()
}

#[test]
fn nano_calls_tools_and_a_replay_gives_the_same_report() {
    let sandbox = sandbox();
    let began = Instant::now();
    let recorded =
        sandbox.ok(eval(&["--record", "tape.jsonl", "--out", "one", "--html", "page.html", "--junit", "junit.xml", "--json", "-"]));
    let seconds = began.elapsed().as_secs_f64();
    let report: Value = serde_json::from_str(&recorded).unwrap();
    for metric in ["tool_calls/exact", "tool_calls/answer_contains"] {
        let value = report["metrics"][metric].as_f64().unwrap();
        assert!(value >= 0.98, "{metric} is {value}");
    }
    assert_eq!(report["rows"]["tool_calls"]["scored"], 120);
    assert_eq!(report["plugins"].as_array().unwrap().len(), 3, "{}", report["plugins"]);
    let timing: Value = serde_json::from_slice(&std::fs::read(sandbox.path("one/eval.timing.json")).unwrap()).unwrap();
    println!("120 episodes: {} s of {seconds:.1} s", timing["seconds"]);

    // The same command on the tape: the same bytes, in the report and in the samples.
    let replayed = sandbox.ok(eval(&["--replay", "tape.jsonl", "--out", "two", "--json", "-"]));
    assert_eq!(replayed, recorded);
    let file = |name: &str| std::fs::read(sandbox.path(name)).unwrap();
    assert_eq!(file("one/eval.json"), file("two/eval.json"));
    assert_eq!(file("one/eval.samples.jsonl"), file("two/eval.samples.jsonl"));
    // Without the plugin too: the tape knows what there was.
    let args =
        ["eval", "--model", "nano", "--data", "tools_eval.jsonl", "--plugin", "tool_calls.wasm", "--replay", "tape.jsonl", "--json", "-"];
    assert_eq!(sandbox.ok(args), recorded);

    // Transcripts: 122 calls at least, each with its result, and the final answers.
    let samples: Vec<Value> =
        String::from_utf8(file("one/eval.samples.jsonl")).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let first = &samples[0]["transcripts"][0];
    assert_eq!((first["end"].as_str(), first["calls"][0]["name"].as_str()), (Some("answer"), Some("get_weather")), "{first}");
    assert_eq!(first["messages"][1]["content"], r#"{"location": "New York", "weather": "snow", "temp_c": 11}"#);
    let page = String::from_utf8(file("page.html")).unwrap();
    assert!(page.contains("tool-0000") && page.contains("get_weather(") && !page.contains("<script src") && !page.contains("http://"));
    let junit = String::from_utf8(file("junit.xml")).unwrap();
    assert!(junit.contains("<testsuite name=\"tool_calls\" tests=\"120\""), "{junit}");

    // A call that is not on the tape is an error.
    let tape = String::from_utf8(file("tape.jsonl")).unwrap();
    sandbox.write("other.jsonl", tape.replacen("\"New York\"", "\"York\"", 1));
    let error = sandbox.fails(eval(&["--replay", "other.jsonl"]));
    assert!(
        error.contains("not on the tape: case tool-0000, repeat 0, call 0 of metric `tool_calls`: get_weather({\"loc\":\"New York\"})"),
        "{error}"
    );
    sandbox.write("short.jsonl", &tape[..tape.len() / 2]);
    let error = sandbox.fails(eval(&["--replay", "short.jsonl"]));
    assert!(error.contains("short.jsonl:"), "{error}");
}

#[test]
fn an_evaluation_that_was_stopped_goes_on_to_the_same_bytes() {
    let sandbox = sandbox();
    let limit = ["--limit", "24"];
    let whole = sandbox.ok(eval(&[&limit[..], &["--out", "whole", "--record", "whole.jsonl", "--json", "-"]].concat()));
    // A journal as a killed evaluation leaves it: cut in the middle of a line.
    let mut child = sandbox
        .command(eval(&[&limit[..], &["--set", "eval.batch=1", "--out", "part", "--record", "part.jsonl"]].concat()))
        .spawn()
        .unwrap();
    let journal = sandbox.path("part/eval.journal.jsonl");
    let began = Instant::now();
    let lines = || std::fs::read_to_string(&journal).map_or(0, |t| t.lines().count());
    while lines() < 4 && child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < crate::support::PATIENCE, "no answer in the journal");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let _ = child.kill();
    child.wait().unwrap();
    assert!(lines() >= 4, "the evaluation was over before it could be stopped");
    let resumed =
        sandbox.ok(eval(&[&limit[..], &["--set", "eval.batch=1", "--out", "part", "--record", "part.jsonl", "--json", "-"]].concat()));
    assert_eq!(resumed, whole);
    let file = |name: &str| std::fs::read(sandbox.path(name)).unwrap();
    assert_eq!(file("part/eval.samples.jsonl"), file("whole/eval.samples.jsonl"));
    assert_eq!(file("part.jsonl"), file("whole.jsonl"));
    let timing: Value = serde_json::from_slice(&file("part/eval.timing.json")).unwrap();
    assert!(timing["taken_over"].as_u64().unwrap() >= 3, "{timing}");
    assert!(!journal.exists());
}

#[test]
fn repeats_give_pass_at_k() {
    let sandbox = sandbox();
    let args = eval(&["--limit", "8", "--repeats", "3", "--set", "eval.temperature=0.8", "--json", "-"]);
    let report = sandbox.json(&args);
    let table = report["pass_at_k"]["tool_calls/exact"].as_object().unwrap();
    let value = |k: &str| table[k].as_f64().unwrap();
    assert_eq!(table.keys().collect::<Vec<_>>(), ["1", "2", "3"]);
    assert!(value("1") <= value("2") && value("2") <= value("3") && value("3") <= 1.0);
    assert!((value("1") - report["metrics"]["tool_calls/exact"].as_f64().unwrap()).abs() < 1e-9);
    assert_eq!(sandbox.json(&args), report);
    let error = sandbox.fails(eval(&["--limit", "8", "--repeats", "3"]));
    insta::assert_snapshot!(error, @"error: eval.repeats is 3, but with eval.temperature = 0 all answers to a question are the same: set a temperature, or repeats = 1");
}

/// Rows of nano's cases that ask for the weather once, without canned responses: plugins answer.
fn uncanned(count: usize) -> String {
    let rows = std::str::from_utf8(trainer_nano::data("tools_eval").unwrap().bytes).unwrap().lines();
    let rows = rows.map(|l| serde_json::from_str::<Value>(l).unwrap()).filter(|row| row["expected_calls"][0]["name"] == "get_weather");
    rows.take(count).fold(String::new(), |text, mut row| {
        row.as_object_mut().unwrap().remove("tool_fixtures");
        format!("{text}{row}\n")
    })
}

/// A service that speaks as OpenWeatherMap does, and gives the key away in a header.
fn weather_service() -> Server {
    Server::start(|request, stream| {
        let query = request.split(' ').nth(1).unwrap_or_default();
        let value = |name: &str| query.split(['?', '&']).filter_map(|p| p.split_once('=')).find(|(n, _)| *n == name).map_or("", |(_, v)| v);
        let body = serde_json::json!({
            "name": value("q"), "weather": [{"description": "mist"}], "main": {"temp": 7.0}, "you": value("appid"), "cod": 200,
        });
        answer(stream, &format!("200 OK\r\ncontent-type: application/json\r\nx-key: {}", value("appid")), &body.to_string())
    })
}

#[test]
fn what_a_tool_sends_and_gets_is_on_the_tape_without_its_secrets() {
    const KEY: &str = "0123456789abcdef-hunter2";
    let sandbox = Sandbox::new();
    sandbox.write("cases.jsonl", uncanned(4));
    let server = weather_service();
    let (url, grant) = (format!("plugins.weather.settings.base_url={}", server.url("")), format!("weather:http=http://{}", server.address));
    let args = |more: &[&'static str]| {
        let args = [
            "eval",
            "--model",
            "nano",
            "--data",
            "cases.jsonl",
            "--set",
            "eval.tools=[\"weather\"]",
            "--plugin",
            "tool_calls",
            "--set",
            &url,
        ];
        args.iter().map(|a| (*a).to_owned()).chain(more.iter().map(|a| (*a).to_owned())).collect::<Vec<String>>()
    };
    let mut record = sandbox.command(args(&["--record", "tape.jsonl", "--out", "one", "--secret", "weather:OPENWEATHER_API_KEY=env:KEY"]));
    let output = record.args(["--grant", &grant, "--json", "-"]).env("KEY", KEY).output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !words.contains("was not granted"), "{words}");
    let requests = server.requests();
    assert!(requests.len() >= 4 && requests.iter().all(|r| r.contains(KEY)), "{requests:?}");
    let file = |name: &str| std::fs::read_to_string(sandbox.path(name)).unwrap();
    let tape = file("tape.jsonl");
    let exchanges: Vec<Value> = tape
        .lines()
        .skip(1)
        .map(|l| serde_json::from_str::<Value>(l).unwrap())
        .filter(|entry| entry["by"] == serde_json::json!({"plugin": "weather"}))
        .map(|entry| {
            assert_eq!(entry["http"].as_array().unwrap().len(), 1, "each call has its own request: {entry}");
            entry["http"][0].clone()
        })
        .collect();
    assert_eq!(exchanges.len(), requests.len());
    let first = &exchanges[0];
    assert!(first["method"] == "GET" && first["url"].as_str().unwrap().contains("appid=[secret OPENWEATHER_API_KEY]"), "{first}");
    let response = &first["answer"]["response"];
    assert_eq!(response["status"], 200);
    assert!(response["headers"].as_array().unwrap().contains(&serde_json::json!(["x-key", "[secret OPENWEATHER_API_KEY]"])), "{response}");
    let body = response["body"]["text"].as_str().unwrap();
    assert!(body.contains("mist") && body.contains("[secret OPENWEATHER_API_KEY]"), "{body}");
    assert_eq!(response["body"]["bytes"], body.len());
    for name in ["tape.jsonl", "one/eval.json", "one/eval.samples.jsonl"] {
        assert!(!file(name).contains(KEY) && (name == "tape.jsonl" || !file(name).contains("\"http\"")), "{name}");
    }
    // The server is gone, nothing is granted, and nothing is missed.
    drop(server);
    let output = sandbox.run(args(&["--replay", "tape.jsonl", "--out", "two"]));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !words.contains("was not granted"), "{words}");
    assert_eq!(file("one/eval.samples.jsonl"), file("two/eval.samples.jsonl"));
}

#[test]
fn a_tool_without_its_grants_is_told_at_the_start_and_in_its_errors() {
    let sandbox = Sandbox::new();
    sandbox.write("cases.jsonl", uncanned(1));
    let output =
        sandbox.run(["eval", "--model", "nano", "--data", "cases.jsonl", "--plugin", "weather", "--plugin", "tool_calls", "--out", "out"]);
    assert!(output.status.success());
    let words = String::from_utf8(output.stderr).unwrap();
    insta::assert_snapshot!(words.lines().next().unwrap(), @"warning: plugin `weather` 0.1.0 asks for http: https://api.openweathermap.org, secret: OPENWEATHER_API_KEY, which it was not granted: what needs it will be refused; grant it with --grant weather:http=https://api.openweathermap.org --secret weather:OPENWEATHER_API_KEY=env:OPENWEATHER_API_KEY");
    let samples = std::fs::read_to_string(sandbox.path("out/eval.samples.jsonl")).unwrap();
    assert!(
        samples.contains("plugin `weather` has no secret OPENWEATHER_API_KEY: grant it with --secret weather:OPENWEATHER_API_KEY=env:"),
        "{samples}"
    );
}

#[test]
fn time_ends_answers_and_a_replay_ends_them_where_they_ended() {
    let sandbox = sandbox();
    // Some in their first turn, some after it, some not at all: as the machine has it.
    let record = |seconds: &str, name: &str| {
        let (set, tape) = (format!("eval.max_seconds={seconds}"), format!("{name}.jsonl"));
        let recorded = sandbox.ok(eval(&["--set", &set, "--set", "eval.batch=8", "--record", &tape, "--out", name, "--json", "-"]));
        assert_eq!(
            sandbox.ok(eval(&["--set", &set, "--set", "eval.batch=8", "--replay", &tape, "--out", "replayed", "--json", "-"])),
            recorded
        );
        let samples = std::fs::read_to_string(sandbox.path(&format!("{name}/eval.samples.jsonl"))).unwrap();
        assert_eq!(std::fs::read_to_string(sandbox.path("replayed/eval.samples.jsonl")).unwrap(), samples);
        samples.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).collect::<Vec<_>>()
    };
    for sample in record("0.000001", "at_once") {
        let transcript = &sample["transcripts"][0];
        assert_eq!(
            (&sample["finish"][0], &sample["tokens"][0], &transcript["end"]),
            (&"limit".into(), &1.into(), &"time".into()),
            "{sample}"
        );
        assert_eq!(transcript["timed_out"], serde_json::json!({"turn": 0, "tokens": 1}));
    }
    let ends = |samples: &[Value]| samples.iter().filter(|s| s["transcripts"][0]["end"] == "time").count();
    let some = ends(&record("0.25", "some"));
    println!("{some} of 120 answers ran out of time");
    assert_eq!(ends(&record("600", "none")), 0);
}

/// Whether a process of this parent has given up its rights: it runs under a filter of system calls (proc(5), field `Seccomp`).
#[cfg(target_os = "linux")]
fn confined_child_of(parent: u32) -> bool {
    let statuses = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| std::fs::read_to_string(e.path().join("status")).ok());
    let has = |status: &str, field: &str, value: &str| status.lines().any(|l| l.split_whitespace().eq([field, value]));
    statuses.into_iter().any(|s| has(&s, "PPid:", &parent.to_string()) && has(&s, "Seccomp:", "2"))
}

#[cfg(target_os = "linux")]
#[test]
fn an_isolated_tool_gives_the_same_report() {
    use std::process::Stdio;
    use std::sync::{Arc, Mutex, OnceLock};

    let sandbox = Sandbox::new();
    sandbox.write("cases.jsonl", uncanned(6));
    // At each request: whether the tool that makes it runs in a process without rights. The request comes from the host all the same.
    let (program, confined) = (Arc::new(OnceLock::<u32>::new()), Arc::new(Mutex::new(Vec::new())));
    let (running, seen) = (Arc::new(Mutex::new(program)), Arc::clone(&confined));
    let asked = Arc::clone(&running);
    let server = Server::start(move |_, stream| {
        let program = Arc::clone(&asked.lock().unwrap());
        seen.lock().unwrap().push(confined_child_of(*program.wait()));
        let body = serde_json::json!({"name": "x", "weather": [{"description": "mist"}], "main": {"temp": 7.0}, "cod": 200});
        answer(stream, "200 OK\r\ncontent-type: application/json", &body.to_string())
    });
    let (url, grant) = (format!("plugins.weather.settings.base_url={}", server.url("")), format!("weather:http=http://{}", server.address));
    let eval = |out: &str, more: &[&str]| {
        let program = Arc::new(OnceLock::new());
        *running.lock().unwrap() = Arc::clone(&program);
        let tape = format!("{out}.jsonl");
        let mut command = sandbox.command(["eval", "--model", "nano", "--data", "cases.jsonl", "--set", "eval.tools=[\"weather\"]"]);
        command.args(["--plugin", "tool_calls", "--set", &url, "--grant", &grant, "--secret", "weather:OPENWEATHER_API_KEY=env:KEY"]);
        command.args(["--out", out, "--record", &tape, "--json", "-"]).args(more).env("KEY", "0123456789abcdef");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        program.set(child.id()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", crate::support::shown(&output));
        let file = |name: &str| std::fs::read(sandbox.path(name)).unwrap();
        let files = [file(&tape), file(&format!("{out}/eval.json")), file(&format!("{out}/eval.samples.jsonl"))];
        (String::from_utf8(output.stdout).unwrap(), files, std::mem::take(&mut *confined.lock().unwrap()))
    };
    let (report, files, here) = eval("here", &[]);
    let (isolated_report, isolated_files, apart) = eval("apart", &["--isolate", "weather"]);
    assert_eq!(isolated_report, report);
    for (isolated, file) in isolated_files.iter().zip(&files) {
        assert_eq!(String::from_utf8_lossy(isolated), String::from_utf8_lossy(file));
    }
    assert!(report.contains("\"weather\"") && String::from_utf8_lossy(&files[2]).contains("mist"), "{report}");
    assert!(here.len() >= 6 && here.iter().all(|c| !c), "{here:?}");
    assert!(apart.len() == here.len() && apart.iter().all(|c| *c), "{apart:?}");
    // What is no tool, or not there, cannot be isolated.
    let error = sandbox.fails(["eval", "--model", "nano", "--data", "cases.jsonl", "--plugin", "tool_calls", "--isolate", "tool_calls"]);
    assert!(error.contains("only a plugin of nothing but tools can be isolated"), "{error}");
    let error = sandbox.fails(["eval", "--model", "nano", "--data", "cases.jsonl", "--plugin", "tool_calls", "--isolate", "wether"]);
    assert!(error.contains("--isolate wether:...: no plugin of this name is in use"), "{error}");
}
