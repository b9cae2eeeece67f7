//! One's own data in every format, and one's own plugins, from a recipe anywhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use serde_json::Value;

use crate::support::{Sandbox, bytes, json_file, lines, metrics, prebuilt};

const ROWS: usize = 12;

/// Problem and solution of some rows.
fn problems(from: usize) -> Vec<(String, String)> {
    let all = lines("math_train", from + ROWS);
    let field = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    let rows = all[from..].iter().map(|l| serde_json::from_str(l).unwrap());
    rows.map(|row: Value| (field(&row, "problem"), field(&row, "generated_solution"))).collect()
}

fn csv() -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let mut text = "note,problem,generated_solution\n".to_owned();
    for (problem, solution) in problems(ROWS) {
        text += &format!("\"a, b\",{},{}\n", quoted(&problem), quoted(&solution));
    }
    text
}

fn parquet() -> Vec<u8> {
    let rows = problems(2 * ROWS);
    let column = |values: Vec<&String>| -> ArrayRef { Arc::new(StringArray::from_iter_values(values)) };
    let columns = [("question", column(rows.iter().map(|r| &r.0).collect())), ("answer", column(rows.iter().map(|r| &r.1).collect()))];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut out = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut out, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    out
}

fn chats() -> String {
    let turn = |from: &str, value: String| serde_json::json!({ "from": from, "value": value });
    let rows: Vec<Value> = (0..ROWS)
        .map(|i| serde_json::json!({ "conversations": [turn("human", format!("Say {i}.")), turn("gpt", format!("{i}!"))] }))
        .collect();
    serde_json::to_string_pretty(&rows).unwrap()
}

const RECIPE: &str = r#"
[data]
sources = [
    { name = "maths", path = "rows/maths.jsonl", formatter = "math_mix" },
    { name = "table", path = "rows/table.csv", formatter = "math_mix" },
    { name = "columns", path = "rows/columns.parquet", formatter = "math_mix", settings = { problem_column = "question", solution_column = "answer" } },
    { name = "talk", path = "rows/talk.json", formatter = "sharegpt" },
]

[mix.settings]
chat_percentage = 1.0

[train]
epochs = 1
warmup_steps = 1

[eval]
data = "rows/test.jsonl"
before = false
max_new_tokens = 16

[sample]
prompt = ""

[output]
dir = "results"
"#;

/// A project of one's own in the folder `project`.
fn project(sandbox: &Sandbox) {
    sandbox.write("project/recipe.toml", RECIPE);
    sandbox.write("project/rows/maths.jsonl", lines("math_train", ROWS).join("\n"));
    sandbox.write("project/rows/table.csv", csv());
    sandbox.write("project/rows/columns.parquet", parquet());
    sandbox.write("project/rows/talk.json", chats());
    sandbox.write("project/rows/test.jsonl", lines("math_test", 5).join("\n"));
}

#[test]
fn every_format_in_one_epoch() {
    let sandbox = Sandbox::new();
    project(&sandbox);
    // From another folder: paths in a recipe are relative to it.
    let output = sandbox.ok(["run", "project/recipe.toml"]);
    let run = sandbox.path("project/results");
    assert!(run.is_dir(), "{output}");

    // An epoch is every reasoning row once and as many of the others, shared evenly.
    let mut samples: BTreeMap<String, u64> = BTreeMap::new();
    let steps = metrics(&run);
    for source in steps.iter().flat_map(|m| m["sources"].as_array().unwrap()) {
        *samples.entry(source["name"].as_str().unwrap().to_owned()).or_default() += source["samples"].as_u64().unwrap();
    }
    let expected = [("columns", 4), ("maths", 12), ("table", 4), ("talk", 4)];
    assert_eq!(samples, expected.iter().map(|(n, c)| ((*n).to_owned(), *c)).collect());
    assert_eq!(steps.len(), 3, "24 samples, eight a step");

    let report = json_file(&run.join("eval/after.json"));
    assert_eq!(report["rows"]["boxed_answer"]["rows"], 5);
    let lock = json_file(&run.join("lock.json"));
    let rows: Vec<u64> = lock["data"].as_array().unwrap().iter().map(|d| d["rows"].as_u64().unwrap()).collect();
    assert_eq!(rows, [12; 4]);

    // The lock and the run are not tied to the folder that they were made from.
    let again = sandbox.ok(["run", "project/recipe.toml", "--out", "again", "--locked", "project/results/lock.json"]);
    assert_eq!(bytes(&sandbox.path("again")), bytes(&run), "{again}");
    // A run keeps its own copy of the recipe, with whole paths.
    sandbox.ok(["eval", "--run", "project/results", "--json"]);
}

#[test]
fn same_rows_in_another_format_are_the_same_run() {
    let sandbox = Sandbox::new();
    project(&sandbox);
    let rows: Vec<Value> = lines("math_train", ROWS).iter().map(|l| serde_json::from_str(l).unwrap()).collect();
    sandbox.write("project/rows/maths.json", serde_json::to_string(&rows).unwrap());
    sandbox.write("project/other.toml", RECIPE.replace("maths.jsonl", "maths.json").replace("results", "other"));
    sandbox.ok(["run", "project/recipe.toml", "--set", "eval.after=false"]);
    sandbox.ok(["run", "project/other.toml", "--set", "eval.after=false"]);
    assert_eq!(bytes(&sandbox.path("project/other")), bytes(&sandbox.path("project/results")));
}

#[test]
fn plugin_under_another_file_name() {
    let sandbox = Sandbox::new();
    project(&sandbox);
    let copy = sandbox.path("my own mixer.wasm");
    std::fs::copy(prebuilt("math_mix.wasm"), &copy).unwrap();
    let output = sandbox.ok(["run", "project/recipe.toml", "--plugin", "my own mixer.wasm", "--set", "eval.after=false"]);
    assert!(output.contains("plugin     math_mix 0.1.0"), "{output}");
    let run = sandbox.path("project/results");
    // The same component by its path or from the program itself: the same lock, the same bytes.
    sandbox.ok(["run", "project/recipe.toml", "--set", "eval.after=false", "--out", "embedded", "--locked", "project/results/lock.json"]);
    assert_eq!(bytes(&sandbox.path("embedded")), bytes(&run));

    // Once the file is another, the run cannot be continued with it unnoticed.
    std::fs::copy(prebuilt("sharegpt.wasm"), &copy).unwrap();
    insta::assert_snapshot!(sandbox.fails(["run", "--resume", "project/results"]), @"error: [plugins.math_mix] path is [DIR]/my own mixer.wasm, but that component's name is `sharegpt`; use that name in the recipe");
    std::fs::remove_file(&copy).unwrap();
    let said = sandbox.fails(["run", "--resume", "project/results"]);
    assert!(said.contains("my own mixer.wasm is gone; `trainer plugin add` the one with this digest"), "{said}");
}
