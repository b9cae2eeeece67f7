//! Sources of a recipe: compressed and Arrow files, filters, columns, limits, splits, windows; and the bench of the data path.

use std::io::Write;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use serde_json::{Value, json};

use crate::support::{Sandbox, bytes, json_file, lines};

const ROWS: usize = 60;

fn rows() -> Vec<Value> {
    lines("math_train", ROWS).iter().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// The same rows as plain text under the names that the formatter knows, and as Arrow stream and gzip under others, among rows to filter out.
fn project(sandbox: &Sandbox) {
    let field = |name: &str| rows().iter().map(|r| r[name].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let (problems, solutions) = (field("problem"), field("generated_solution"));
    let plain: String = lines("math_train", ROWS).iter().map(|l| format!("{l}\n")).collect();
    sandbox.write("plain.jsonl", plain);
    let packed = std::fs::File::create(sandbox.path("packed.jsonl.gz")).unwrap();
    let mut packed = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
    for (problem, solution) in problems.iter().zip(&solutions) {
        writeln!(packed, "{}", json!({ "q": problem, "meta": { "solution": solution, "lang": "en" } })).unwrap();
        writeln!(packed, "{}", json!({ "q": "?", "meta": { "solution": "!", "lang": "xx" } })).unwrap();
    }
    packed.finish().unwrap();
    let columns: [(&str, ArrayRef); 3] = [
        ("question", Arc::new(StringArray::from_iter_values(problems.iter().map(String::as_str).chain(["?"])))),
        ("score", Arc::new(Float64Array::from_iter_values(std::iter::repeat_n(1.0, ROWS).chain([0.25])))),
        ("answer", Arc::new(StringArray::from_iter_values(solutions.iter().map(String::as_str).chain(["!"])))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let file = std::fs::File::create(sandbox.path("table.arrow")).unwrap();
    let mut table = arrow_ipc::writer::StreamWriter::try_new(file, &batch.schema()).unwrap();
    table.write(&batch).unwrap();
    table.finish().unwrap();
    let recipe = |source: &str| {
        format!(
            "[[data.sources]]\nname = \"maths\"\nformatter = \"math_mix\"\n{source}\n[mix.settings]\nchat_percentage = 0\n\
             [train]\nepochs = 0.5\nwarmup_steps = 1\n[eval]\nbefore = false\nafter = false\n[sample]\nprompt = \"\"\n"
        )
    };
    sandbox.write("plain.toml", recipe("path = \"plain.jsonl\""));
    sandbox.write(
        "packed.toml",
        recipe("path = \"*.jsonl.gz\"\ncolumns = { problem = \"q\", generated_solution = \"/meta/solution\" }\nfilter = [{ column = \"/meta/lang\", is = \"en\" }]"),
    );
    sandbox.write(
        "table.toml",
        recipe("path = \"table.arrow\"\ncolumns = { problem = \"question\", generated_solution = \"answer\" }\nfilter = [{ column = \"score\", min = 0.5 }]"),
    );
}

#[test]
fn the_same_rows_however_they_are_kept() {
    let sandbox = Sandbox::new();
    project(&sandbox);
    for name in ["plain", "packed", "table"] {
        sandbox.ok(["run", &format!("{name}.toml"), "--out", name]);
        assert_eq!(json_file(&sandbox.path(name).join("lock.json"))["data"][0]["rows"], ROWS);
        assert_eq!(bytes(&sandbox.path(name)), bytes(&sandbox.path("plain")), "{name}");
    }
    // Another filter is another run, and the lock says so.
    let set = "data.sources.0.filter=[{column=\"/meta/lang\",is=\"xx\"}]";
    let error = sandbox.fails(["run", "packed.toml", "--out", "other", "--locked", "packed/lock.json", "--set", set]);
    assert!(error.contains("filter"), "{error}");
}

#[test]
fn streams_and_splits() {
    let sandbox = Sandbox::new();
    project(&sandbox);
    let stream = ["--set", "data.sources.0.shuffle_window=16", "--set", "data.sources.0.holdout=0.2"];
    for workers in ["0", "2"] {
        let more = ["--set", &format!("data.workers={workers}"), "--out", workers];
        sandbox.ok(["run", "packed.toml"].iter().chain(&stream).chain(&more));
    }
    assert_eq!(bytes(&sandbox.path("0")), bytes(&sandbox.path("2")));
    let trained = json_file(&sandbox.path("0/lock.json"))["data"][0]["rows"].as_u64().unwrap();
    // What is evaluated is the rest, in whatever format it is kept: rows as the metric knows them.
    let eval = ["--set", "eval.data=holdout:maths", "--set", "eval.after=true", "--set", "eval.max_new_tokens=4", "--out", "held"];
    let columns = "data.sources.0.columns={problem=\"q\",expected_answer=\"/meta/solution\",generated_solution=\"/meta/solution\"}";
    sandbox.ok(["run", "packed.toml", "--set", columns].iter().chain(&stream).chain(&eval));
    let report = json_file(&sandbox.path("held/eval/after.json"));
    assert_eq!(report["rows"]["boxed_answer"]["rows"].as_u64().unwrap() + trained, ROWS as u64, "{report}");
    assert!(trained > 36 && trained < 58, "{trained}");

    let fails = |set: &str| sandbox.fails(["run", "packed.toml", "--set", set]);
    assert!(fails("eval.data=holdout:math").contains("there is no source called \"math\""));
    assert!(fails("eval.data=holdout:maths").contains("holds no rows out"));
    assert!(fails("data.sources.0.filter=[{column=\"lang\"}]").contains("a filter without a condition"));
    assert!(fails("data.sources.0.filter=[{column=\"lang\",is=\"en\"}]").contains("no row has a value at `lang`"));
    let misses = fails("data.sources.0.columns={problem=\"z\"}");
    assert!(misses.contains("packed.jsonl.gz:") && misses.contains("problem"), "the formatter misses its column: {misses}");
}

#[test]
fn the_data_path_over_many_rows() {
    let sandbox = Sandbox::new();
    let bench = sandbox.json(["bench", "data", "--rows", "6000", "--device", "cpu", "--json"]);
    let figure = |name: &str| {
        let found = bench["figures"].as_array().unwrap().iter().find(|f| f["name"] == name);
        found.unwrap_or_else(|| panic!("{name} in {bench}"))["value"].as_f64().unwrap()
    };
    assert_eq!(figure("data_scale/rows"), 6000.0);
    for access in ["random", "stream"] {
        let (rows, tokens) =
            (figure(&format!("data_scale/{access}/rows_per_second")), figure(&format!("data_scale/{access}/tokens_per_second")));
        assert!(rows > 0.0 && tokens > 50.0 * rows, "{rows} rows/s, {tokens} tokens/s");
        assert!(figure(&format!("data_scale/{access}/peak_resident_memory")) > 1.0);
    }
    // With the same code as native code, and with what was prepared.
    for way in ["native", "prepared"] {
        assert!(figure(&format!("data_scale/{way}/tokens_per_second")) > 0.0, "{way}");
    }
    assert!(figure("data_scale/wasm_over_native") > 0.05 && figure("data_scale/prepared/size") > 1.0);
    assert!(sandbox.fails(["bench", "train", "--rows", "6000"]).contains("trainer bench data --rows N"));
}
