//! `--locked`: the same run or none.

use crate::support::{Sandbox, baseline, bytes, lines, prebuilt, short};

/// A run under the baseline's lock that must be refused before anything is written.
fn refused(more: &[&str]) -> String {
    let sandbox = Sandbox::new();
    refused_in(&sandbox, more)
}

fn refused_in(sandbox: &Sandbox, more: &[&str]) -> String {
    let before = sandbox.names();
    let lock = baseline().dir.join("lock.json");
    let mut args = short(&["--locked", lock.to_str().unwrap(), "--out", "run"]);
    args.extend(more);
    let said = sandbox.fails(args);
    assert_eq!(sandbox.names(), before, "nothing is written");
    said
}

#[test]
fn same_bytes() {
    let sandbox = Sandbox::new();
    let lock = baseline().dir.join("lock.json");
    // Threads, workers and checkpoints do not decide the result, so they are not locked.
    let free = ["--threads", "1", "--set", "data.workers=2", "--set", "train.checkpoint_every=0"];
    let mut args = short(&["--locked", lock.to_str().unwrap(), "--out", "run"]);
    args.extend(free);
    sandbox.ok(args);
    assert_eq!(bytes(&sandbox.path("run")), baseline().bytes);
}

#[test]
fn another_seed() {
    insta::assert_snapshot!(refused(&["--seed", "1"]), @r#"
    error: the run differs from the lock in 1 place:
      recipe.train.seed: locked 3407, now 1 (set it as it was locked)
    make them equal, or run without --locked
    "#);
}

#[test]
fn other_data() {
    let sandbox = Sandbox::new();
    // The embedded rows, but for one of them.
    let mut rows = lines("math_train", 4000);
    rows[17] = rows[18].clone();
    sandbox.write("rows.jsonl", rows.join("\n") + "\n");
    sandbox.write("chat.parquet", trainer_nano::data("chat_train").unwrap().bytes);
    let sources = r#"data.sources=[{name="math", path="rows.jsonl", formatter="math_mix"}, {name="chat", path="chat.parquet", formatter="sharegpt"}]"#;
    let said = refused_in(&sandbox, &["--set", sources]);
    insta::with_settings!({filters => vec![(r"[0-9a-f]{64}", "[DIGEST]")]}, {
        insta::assert_snapshot!(said, @r#"
        error: the run differs from the lock in 1 place:
          data[0].sha256: locked "[DIGEST]", now "[DIGEST]" (use the rows of the locked run)
        make them equal, or run without --locked
        "#);
    });
}

#[test]
fn same_data_at_another_place() {
    let sandbox = Sandbox::new();
    sandbox.write("math.jsonl", trainer_nano::data("math_train").unwrap().bytes);
    sandbox.write("chat.parquet", trainer_nano::data("chat_train").unwrap().bytes);
    let sources = r#"data.sources=[{name="math", path="math.jsonl", formatter="math_mix"}, {name="chat", path="chat.parquet", formatter="sharegpt"}]"#;
    let lock = baseline().dir.join("lock.json");
    sandbox.ok(short(&["--locked", lock.to_str().unwrap(), "--out", "run", "--set", sources]));
    assert_eq!(bytes(&sandbox.path("run")), baseline().bytes);
}

#[test]
fn another_plugin() {
    let sandbox = Sandbox::new();
    // The same code with one more custom section: other bytes.
    let mut component = std::fs::read(prebuilt("qwen3_chat.wasm")).unwrap();
    component.extend([0, 5, 4, b'n', b'o', b't', b'e']);
    sandbox.write("qwen3_chat.wasm", component);
    let said = refused_in(&sandbox, &["--plugin", "./qwen3_chat.wasm"]);
    insta::with_settings!({filters => vec![(r"[0-9a-f]{64}", "[DIGEST]")]}, {
        insta::assert_snapshot!(said, @r#"
        error: the run differs from the lock in 1 place:
          plugins.qwen3_chat.sha256: locked "[DIGEST]", now "[DIGEST]" (use the component, grants and settings of the locked run)
        make them equal, or run without --locked
        "#);
    });
}

#[test]
fn not_a_lock() {
    let sandbox = Sandbox::new();
    sandbox.write("lock.json", "{\"version\": 1}");
    let said = sandbox.fails(short(&["--locked", "lock.json", "--out", "run"]));
    insta::assert_snapshot!(said, @"error: lock.json is not a lock file: missing field `trainer` at line 1 column 14");
    assert_eq!(sandbox.names(), ["lock.json"]);
}

#[test]
fn a_dry_run_looks_at_the_lock_too() {
    let sandbox = Sandbox::new();
    let lock = baseline().dir.join("lock.json");
    let args = |more: &[&'static str]| {
        let mut args = short(&["--locked", lock.to_str().unwrap(), "--dry-run"]);
        args.extend(more);
        args
    };
    assert!(sandbox.ok(args(&[])).contains("# plan"));
    assert!(sandbox.fails(args(&["--seed", "1"])).contains("recipe.train.seed"));
}
