//! `trainer data`: figures about the training data, held against what a run counts.

use serde_json::{Value, json};

use crate::support::{Sandbox, lines, metrics};

/// Chats, some twice, one broken, one without an answer, one long, and rows of maths of which one is also among the chats.
fn project(sandbox: &Sandbox) {
    let chat = |n: usize, answer: &str| {
        json!({ "conversations": [{ "from": "human", "value": format!("Say {n}.") }, { "from": "gpt", "value": answer }] }).to_string()
    };
    let mut rows: Vec<String> = (0..20).map(|n| chat(n, "Yes.")).collect();
    rows.extend((0..3).map(|n| chat(n, "Yes.")));
    rows.push("{\"conversations\": 7}".to_owned());
    rows.push(json!({ "conversations": [{ "from": "human", "value": "Hello?" }] }).to_string());
    rows.push(chat(99, &"long ".repeat(300)));
    sandbox.write("talk.jsonl", rows.join("\n"));
    sandbox.write("more.jsonl", chat(5, "Yes.") + "\n" + &chat(500, "No."));
    sandbox.write("maths.jsonl", lines("math_train", 10).join("\n"));
    sandbox.write(
        "recipe.toml",
        r#"
[data]
max_seq_length = 256
max_bad_rows = 10
sources = [
    { name = "maths", path = "maths.jsonl", formatter = "math_mix" },
    { name = "talk", path = "talk.jsonl", formatter = "sharegpt" },
    { name = "more", path = "more.jsonl", formatter = "sharegpt" },
]
[mix.settings]
chat_percentage = 0.5
[train]
max_steps = 3
warmup_steps = 0
[eval]
before = false
after = false
[sample]
prompt = ""
"#,
    );
}

#[test]
fn counts_everything_by_reason() {
    let sandbox = Sandbox::new();
    project(&sandbox);
    let stat = |how: &str| sandbox.json(["data", "stat", "recipe.toml", "--set", &format!("data.too_long={how}"), "--json"]);
    let talk = |stat: &Value| stat["sources"][1].clone();
    let error = stat("error");
    assert_eq!(error["sources"][0]["rows"], 10);
    let t = talk(&error);
    assert_eq!((&t["rows"], &t["samples"], &t["duplicates"], &t["duplicates_across"]), (&json!(26), &json!(23), &json!(3), &json!(0)));
    assert_eq!(t["bad"], json!({ "refused by the formatter": 1, "longer than max_seq_length": 1 }));
    assert_eq!(t["skipped"].as_object().unwrap().values().map(|v| v.as_u64().unwrap()).sum::<u64>(), 1, "{t}");
    assert_eq!(t["bad_examples"][0]["row"], 24);
    assert_eq!(error["sources"][2]["duplicates_across"], 1);
    // The lengths are those of whole samples, whatever becomes of them.
    assert!(t["lengths"]["max"].as_u64().unwrap() > 256 && t["too_long"] == 1);
    let bars: u64 = t["lengths"]["histogram"].as_array().unwrap().iter().map(|b| b["samples"].as_u64().unwrap()).sum();
    assert_eq!(bars, 24);

    let drop = talk(&stat("drop"));
    assert_eq!((&drop["samples"], &drop["dropped"], &drop["bad"]), (&json!(23), &json!(1), &json!({ "refused by the formatter": 1 })));
    let cut = talk(&stat("truncate"));
    assert_eq!((&cut["samples"], &cut["truncated"]), (&json!(24), &json!(1)));
    assert_eq!(cut["tokens"].as_u64().unwrap(), drop["tokens"].as_u64().unwrap() + 256);
    for figures in [&error["total"], &t, &drop, &cut] {
        let share = figures["target_tokens"].as_f64().unwrap() / figures["tokens"].as_f64().unwrap();
        assert!((figures["trained_share"].as_f64().unwrap() - share).abs() < 1e-12 && share > 0.0 && share < 1.0, "{figures}");
    }

    // The same whatever the number of threads.
    for workers in ["0", "3"] {
        let again = sandbox.json(["data", "stat", "recipe.toml", "--set", &format!("data.workers={workers}"), "--json"]);
        assert_eq!(again, error);
    }
    let text = sandbox.ok(["data", "stat", "recipe.toml"]);
    assert!(
        text.contains("source talk by sharegpt") && text.contains("1 longer than max_seq_length") && text.contains("3 within a source"),
        "{text}"
    );
    assert!(text.contains(&format!("{}:24: ", sandbox.path("talk.jsonl").display())), "{text}");
}

#[test]
fn the_mix_is_that_of_the_run() {
    let sandbox = Sandbox::new();
    project(&sandbox);
    let drop = ["--set", "data.too_long=drop"];
    let stat = sandbox.json(["data", "stat", "recipe.toml", "--json"].iter().chain(&drop));
    assert_eq!((&stat["mix"]["draws"], &stat["mix"]["counted"], &stat["mix"]["policy"]), (&json!(24), &json!(24), &json!("math_mix")));
    let shares: f64 = stat["mix"]["sources"].as_array().unwrap().iter().map(|s| s["share"].as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-9);

    // Without rows that give nothing, a run draws exactly what was foretold.
    let clean = [
        "--set",
        "data.sources.1.path=more.jsonl",
        "--set",
        "data.sources.2.path=maths.jsonl",
        "--set",
        "data.sources.2.formatter=math_mix",
    ];
    let stat = sandbox.json(["data", "stat", "recipe.toml", "--json"].iter().chain(&clean));
    sandbox.ok(["run", "recipe.toml", "--out", "run"].iter().chain(&clean));
    let steps = metrics(&sandbox.path("run"));
    for source in stat["mix"]["sources"].as_array().unwrap() {
        let trained: u64 = steps
            .iter()
            .flat_map(|m| m["sources"].as_array().unwrap())
            .filter(|s| s["name"] == source["name"])
            .map(|s| s["samples"].as_u64().unwrap())
            .sum();
        assert_eq!(source["draws"], trained, "{source}");
    }
}
