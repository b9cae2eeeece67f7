//! `trainer eval --predictions`: given outputs are scored without a model.

use serde_json::{Value, json};

use crate::support::{Sandbox, prebuilt};

/// Rows in the leaderboard's form.
fn rows() -> Vec<Value> {
    let weather = json!({ "name": "weather.get", "description": "The weather.", "parameters": { "type": "dict", "properties": {
        "city": { "type": "string", "description": "Where." }, "days": { "type": "integer", "description": "How many." },
        "scale": { "type": "float", "description": "A factor." } }, "required": ["city"] } });
    let time = json!({ "name": "time", "description": "The time.", "parameters": { "type": "dict", "properties": {
        "zone": { "type": "string", "description": "Which." } }, "required": ["zone"] } });
    let row = |id: &str, functions: &[&Value], truth: Value| json!({ "id": id, "question": [[{ "role": "user", "content": "Well?" }]], "function": functions, "ground_truth": truth });
    vec![
        row(
            "simple_python_0",
            &[&weather],
            json!([{ "weather.get": { "city": ["New York", "NYC"], "days": [3, ""], "scale": ["", 1.5] } }]),
        ),
        row("multiple_0", &[&weather, &time], json!([{ "time": { "zone": ["CET"] } }])),
        row("parallel_0", &[&time], json!([{ "time": { "zone": ["CET"] } }, { "time": { "zone": ["UTC"] } }])),
        row("live_irrelevance_0-0-0", &[&time], Value::Null),
        row("multi_turn_base_0", &[&time], json!([["time()"]])),
    ]
}

fn call(name: &str, arguments: Value) -> String {
    format!("<tool_call>\n{}\n</tool_call>", json!({ "name": name, "arguments": arguments }))
}

fn lines(values: &[Value]) -> String {
    values.iter().map(|v| format!("{v}\n")).collect()
}

fn predictions(texts: &[(&str, String)]) -> String {
    lines(&texts.iter().map(|(id, text)| json!({ "id": id, "text": text })).collect::<Vec<_>>())
}

fn good() -> Vec<(&'static str, String)> {
    vec![
        // The order is not that of the rows, and what follows the end of the turn does not count.
        ("live_irrelevance_0-0-0", "<think>\nNo tool fits.\n</think>\n\nI cannot say.<|im_end|>\n".to_owned() + &call("time", json!({}))),
        (
            "simple_python_0",
            format!("<think>\nA call.\n</think>\n\n{}<|im_end|>", call("weather.get", json!({ "city": "new-york", "days": 3 }))),
        ),
        // Not at the beginning of a line, and with a tag inside an argument: tokens all the same.
        ("multiple_0", format!("I look: {}", call("time", json!({ "zone": "CET" })))),
        ("parallel_0", format!("{}\n{}", call("time", json!({ "zone": "utc" })), call("time", json!({ "zone": "C.E.T." })))),
    ]
}

#[test]
fn given_outputs_are_judged_without_a_model() {
    let sandbox = Sandbox::new();
    sandbox.write("rows.json", lines(&rows()));
    sandbox.write("out.jsonl", predictions(&good()));
    let component = prebuilt("bfcl.wasm");
    let args = [
        "eval",
        "--predictions",
        "out.jsonl",
        "--data",
        "rows.json",
        "--plugin",
        component.to_str().unwrap(),
        "--out",
        "right",
        "--json",
        "-",
    ];
    let report = sandbox.json(args);
    assert_eq!(
        report["metrics"],
        json!({
            "bfcl/accuracy": 1.0, "bfcl/simple_python": 1.0, "bfcl/multiple": 1.0, "bfcl/parallel": 1.0, "bfcl/live_irrelevance": 1.0
        })
    );
    assert_eq!(report["rows"]["bfcl"]["rows"], 5);
    assert_eq!(report["rows"]["bfcl"]["scored"], 4);
    assert_eq!(report["rows"]["bfcl"]["skipped"].as_object().unwrap().len(), 1);
    for absent in ["model", "tokenizer", "backend", "decoding", "adapter"] {
        assert_eq!(report.get(absent), None, "{absent}");
    }
    assert_eq!(report["predictions"]["path"], "out.jsonl");
    assert_eq!(report["predictions"]["files"][0]["sha256"].as_str().unwrap().len(), 64);
    // The samples are in the order of the rows.
    let samples = std::fs::read_to_string(sandbox.path("right").join(report["samples"].as_str().unwrap())).unwrap();
    let samples: Vec<Value> = samples.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let places: Vec<&str> = samples.iter().map(|s| s["row"].as_str().unwrap()).collect();
    let names: Vec<&str> = places.iter().map(|p| p.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["rows.json:1", "rows.json:2", "rows.json:3", "rows.json:4"]);
    assert_eq!(samples[0]["scores"][0], json!({ "name": "valid", "value": true, "explanation": "" }));

    // Each wrong in one way; the official plugin by its name gives the same as the file.
    let mut wrong = good();
    wrong[0].1 = call("time", json!({ "zone": "CET" }));
    wrong[1].1 = call("weather.get", json!({ "city": "NYC", "days": 3.0 }));
    wrong[2].1 = "<tool_call>\n{\"name\": \"time\", \"arguments\": {\"zone\": \"CET\"}\n</tool_call>".to_owned();
    wrong[3].1 = call("time", json!({ "zone": "CET" }));
    sandbox.write("out.jsonl", predictions(&wrong));
    let report =
        sandbox.json(["eval", "--predictions", "out.jsonl", "--data", "rows.json", "--plugin", "bfcl", "--out", "wrong", "--json", "-"]);
    assert_eq!(report["metrics"]["bfcl/accuracy"], 0.0);
    let samples = std::fs::read_to_string(sandbox.path("wrong/eval.samples.jsonl")).unwrap();
    let kinds: Vec<String> =
        samples.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["scores"][2]["value"].as_str().unwrap().to_owned()).collect();
    assert_eq!(
        kinds,
        [
            "type_error:simple",
            "multiple_function_checker:wrong_count",
            "parallel_function_checker_no_order:wrong_count",
            "irrelevance_error:decoder_success"
        ]
    );
    assert!(samples.contains("malformed call"), "{samples}");
}

/// Any metric that asks for an answer can judge given ones, and a limit leaves the other predictions alone.
#[test]
fn other_metrics_and_a_limit() {
    let sandbox = Sandbox::new();
    let row = |id: Value, answer: &str| json!({ "id": id, "problem": "p", "expected_answer": answer });
    sandbox.write("rows.jsonl", lines(&[row(json!(1), "14"), row(json!("b"), "15"), row(json!(3), "16")]));
    let texts = [
        json!({ "id": "1", "text": "<think>\n\\boxed{1}\n</think>\n\nIt is \\boxed{14}." }),
        json!({ "id": "b", "text": "\\boxed{16}", "more": [] }),
        json!({ "id": 3, "text": "" }),
    ];
    sandbox.write("out.txt", lines(&texts));
    let report = sandbox.json(["eval", "--predictions", "out.txt", "--data", "rows.jsonl", "--json"]);
    assert_eq!(report["metrics"], json!({ "boxed_answer/accuracy": 1.0 / 3.0, "boxed_answer/boxed_rate": 2.0 / 3.0 }));
    let report = sandbox.json(["eval", "--predictions", "out.txt", "--data", "rows.jsonl", "--limit", "1", "--json"]);
    assert_eq!(report["metrics"]["boxed_answer/accuracy"], 1.0);
    assert_eq!(report["rows"]["boxed_answer"]["rows"], 1);
    // In words, without tokens that nobody counted.
    let words = sandbox.ok(["eval", "--predictions", "out.txt", "--data", "rows.jsonl", "--out", "words"]);
    assert!(
        words.contains("boxed_answer/accuracy  0.3333") && words.contains("3 of 3 rows scored") && !words.contains("tokens"),
        "{words}"
    );
}

#[test]
fn predictions_that_do_not_match_the_rows_are_errors_with_their_place() {
    let sandbox = Sandbox::new();
    let row = |id: Value| json!({ "id": id, "problem": "p", "expected_answer": "1" });
    let rows = lines(&[row(json!("a")), row(json!("b"))]);
    let both = predictions(&[("a", String::new()), ("b", String::new())]);
    for (rows, out, expected) in [
        (
            rows.as_str(),
            predictions(&[("a", String::new())]),
            "rows.jsonl:2: no prediction in out.jsonl has the id \"b\" (1 of 2 rows have none)",
        ),
        (&rows, both.clone() + &predictions(&[("a", String::new())]), "out.jsonl:3: the id \"a\" is also that of out.jsonl:1"),
        (&rows, both.clone() + &predictions(&[("c", String::new())]), "out.jsonl:3: no row of the data has the id \"c\""),
        (&rows, "{\"text\": \"x\"}\n".to_owned(), "out.jsonl:1: it has no `id`"),
        (&rows, "{\"id\": [], \"text\": \"x\"}\n".to_owned(), "out.jsonl:1: its `id` is a list, neither a string nor a number"),
        (&rows, "{\"id\": \"a\", \"text\": [1]}\n".to_owned(), "out.jsonl:1: its `text` is a list, not a string"),
        (&rows, "{\"id\": \"a\", \"text\": null}\n".to_owned(), "out.jsonl:1: it has no `text`"),
        (&rows, both.clone() + "{\"id\": \n", "out.jsonl:3"),
        (&lines(&[row(json!("a")), row(json!("a"))]), both.clone(), "rows.jsonl:2: the id \"a\" is also that of rows.jsonl:1"),
        (&lines(&[row(json!("a")), json!({ "problem": "p" })]), both.clone(), "rows.jsonl:2: it has no `id`"),
    ] {
        sandbox.write("rows.jsonl", rows);
        sandbox.write("out.jsonl", out);
        let error = sandbox.fails(["eval", "--predictions", "out.jsonl", "--data", "rows.jsonl"]).replace("[DIR]/", "");
        assert!(error.contains(expected), "{expected}\n{error}");
    }
    sandbox.write("rows.jsonl", &rows);
    let error = sandbox.fails(["eval", "--predictions", "none.jsonl", "--data", "rows.jsonl"]);
    assert!(error.contains("none.jsonl"), "{error}");
    // A model and given outputs exclude each other: a mistake in the command's words.
    let output = sandbox.run(["eval", "--predictions", "out.jsonl", "--model", "nano"]);
    assert_eq!(output.status.code(), Some(2));
}
