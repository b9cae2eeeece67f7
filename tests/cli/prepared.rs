//! Prepared data: a run with them is the run without them, whatever happened to them; what they no longer fit is a miss; and they can be cleaned away.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::support::{Sandbox, baseline, bytes, json_file, lines, prebuilt, short, until};

/// How many sources a command says that it takes from what was prepared.
fn used(output: &Output) -> usize {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stderr).matches("using prepared data").count()
}

fn run(sandbox: &Sandbox, more: &[&str]) -> Output {
    let mut args = vec!["-v"];
    args.extend(short(more));
    sandbox.run(args)
}

/// A lock without what differs between any two runs.
fn lock(run: &Path) -> Value {
    let mut lock = json_file(&run.join("lock.json"));
    lock["recorded"]["started"] = Value::Null;
    lock
}

/// The `found` of each source.
fn found(prepared: &Value) -> Vec<bool> {
    prepared["sources"].as_array().unwrap().iter().map(|s| s["found"].as_bool().unwrap()).collect()
}

fn clean(sandbox: &Sandbox, more: &[&str]) -> Value {
    sandbox.json(["data", "clean", "--json"].iter().chain(more))
}

fn states(cleaned: &Value) -> Vec<&str> {
    cleaned["entries"].as_array().unwrap().iter().map(|e| e["state"].as_str().unwrap()).collect()
}

#[test]
fn a_run_with_prepared_data_is_the_run_without() {
    let sandbox = Sandbox::new();
    let made = sandbox.json(["data", "prepare", "--json"]);
    assert_eq!(found(&made), [false, false]);
    assert!(made["sources"].as_array().unwrap().iter().all(|s| s["rows"].as_u64().unwrap() >= 1000 && s["bad"] == 0), "{made}");
    for workers in ["0", "3"] {
        let name = format!("with{workers}");
        assert_eq!(used(&run(&sandbox, &["--out", &name, "--set", &format!("data.workers={workers}")])), 2);
        assert_eq!(bytes(&sandbox.path(&name)), baseline().bytes);
    }
    // The lock says nothing of it.
    assert_eq!(used(&run(&sandbox, &["--out", "same"])), 2);
    assert_eq!(lock(&sandbox.path("same")), lock(&baseline().dir));
    assert_eq!(used(&run(&sandbox, &["--out", "off", "--set", "data.cache=off"])), 0);
    assert_eq!(lock(&sandbox.path("off")), lock(&baseline().dir));

    // A run that prepares for itself, and one that is continued by the other kind.
    let sandbox = Sandbox::new();
    assert_eq!(used(&run(&sandbox, &["--out", "prepares", "--set", "data.cache=prepare"])), 2);
    assert_eq!(bytes(&sandbox.path("prepares")), baseline().bytes);
    let entries = made["sources"].as_array().unwrap().len();
    assert_eq!(clean(&sandbox, &["--dry-run"])["entries"].as_array().unwrap().len(), entries);
}

#[test]
fn whatever_decides_a_sample_makes_a_miss() {
    let sandbox = Sandbox::new();
    let rows = lines("math_train", 40).join("\n");
    sandbox.write("rows.jsonl", &rows);
    sandbox.write(
        "recipe.toml",
        "[[data.sources]]\nname = \"maths\"\npath = \"rows.jsonl\"\nformatter = \"math_mix\"\n[mix.settings]\nchat_percentage = 0\n",
    );
    let prepare = |more: &[&str]| found(&sandbox.json(["data", "prepare", "recipe.toml", "--json"].iter().chain(more)));
    assert_eq!(prepare(&[]), [false]);
    assert_eq!(prepare(&[]), [true]);
    // What decides no sample is no miss: seed, threads, mixing, training.
    assert_eq!(
        prepare(&["--seed", "5", "--set", "data.workers=0", "--set", "train.batch=1", "--set", "data.sources.0.weight=2.0"]),
        [true]
    );
    for setting in [
        "data.max_seq_length=4096",
        "data.too_long=drop",
        "data.truncation_side=left",
        "data.train_on=all",
        "data.special_tokens=parse",
        "data.sources.0.limit=39",
        "data.sources.0.holdout=0.5",
        "data.sources.0.filter=[{column=\"problem\",min_length=1}]",
        "data.sources.0.shuffle_window=8",
        "data.sources.0.settings={skip_empty=true}",
        "template.settings={turns=\"split\"}",
        "plugins.math_mix.limits={fuel_per_row=19000000}",
    ] {
        assert_eq!((prepare(&["--set", setting]), prepare(&["--set", setting])), (vec![false], vec![true]), "{setting}");
    }
    // A component that differs only in a section that nobody reads.
    let mut component = std::fs::read(prebuilt("math_mix.wasm")).unwrap();
    component.extend([0, 5, 4, b'n', b'o', b't', b'e']);
    sandbox.write("math_mix.wasm", component);
    let plugin = ["--plugin", "math_mix.wasm", "--set", "mix.settings.chat_percentage=0"];
    assert_eq!((prepare(&plugin), prepare(&plugin)), (vec![false], vec![true]));
    // A tokenizer of the same tokens in another file.
    for (name, bytes) in trainer_nano::MODEL_FILES {
        let mut bytes = bytes.to_vec();
        if *name == "tokenizer.json" {
            bytes.push(b'\n');
        }
        sandbox.write(&format!("model/{name}"), bytes);
    }
    let model = ["--set", "model.source=model"];
    assert_eq!((prepare(&model), prepare(&model)), (vec![false], vec![true]));
    // A row; and the file at another place is the same data.
    std::fs::create_dir(sandbox.path("moved")).unwrap();
    std::fs::copy(sandbox.path("rows.jsonl"), sandbox.path("moved/other.jsonl")).unwrap();
    assert_eq!(prepare(&["--set", "data.sources.0.path=moved/other.jsonl"]), [true]);
    sandbox.write("rows.jsonl", rows.replacen("the", "The", 1));
    assert_eq!((prepare(&[]), prepare(&[])), (vec![false], vec![true]));

    // What the rows were is stale now, and goes; the rest is kept.
    let before = clean(&sandbox, &["--dry-run"]);
    let count = |cleaned: &Value, state: &str| states(cleaned).iter().filter(|s| **s == state).count();
    assert!(count(&before, "stale") >= 14 && count(&before, "usable") == 1, "{before}");
    assert!(before["entries"].as_array().unwrap().iter().any(|e| e["why"].as_str().is_some_and(|w| w.ends_with("rows.jsonl has changed"))));
    let text = sandbox.ok(["data", "clean"]);
    assert!(text.contains("has changed") && text.contains(" freed, ") && !text.contains("usable"), "{text}");
    assert_eq!(states(&clean(&sandbox, &["--dry-run"])), ["usable"]);
    assert_eq!(clean(&sandbox, &["--older-than", "1h", "--dry-run"])["freed"], 0);
    assert_eq!(prepare(&[]), [true]);
    assert_eq!(clean(&sandbox, &["--all"])["kept"], 0);
    assert_eq!(clean(&sandbox, &[])["entries"], json!([]));
}

#[test]
fn a_damaged_entry_changes_nothing() {
    let sandbox = Sandbox::new();
    let made = sandbox.json(["data", "prepare", "--json"]);
    let path = PathBuf::from(made["sources"][0]["path"].as_str().unwrap());
    let whole = std::fs::read(&path).unwrap();
    // A bit in every tenth of the records: some are computed anew, with a warning.
    let mut bad = whole.clone();
    for part in 2..9 {
        for byte in 0..200 {
            bad[whole.len() * part / 10 + byte * 97] ^= 4;
        }
    }
    std::fs::write(&path, bad).unwrap();
    let output = run(&sandbox, &["--out", "damaged"]);
    assert_eq!(used(&output), 2);
    assert!(String::from_utf8_lossy(&output.stderr).contains("prepared data are damaged"), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(bytes(&sandbox.path("damaged")), baseline().bytes);
    // Cut short it is no entry.
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let output = run(&sandbox, &["--out", "cut"]);
    assert_eq!(used(&output), 1);
    assert_eq!(bytes(&sandbox.path("cut")), baseline().bytes);
    assert_eq!(states(&clean(&sandbox, &["--dry-run"])).iter().filter(|s| **s == "damaged").count(), 1);
    assert_eq!(found(&sandbox.json(["data", "prepare", "--json"])), [false, true]);
    assert_eq!(std::fs::read(&path).unwrap().len(), whole.len());
}

/// Processes killed while they prepare leave nothing that counts, and what they leave goes.
#[test]
fn killed_while_preparing() {
    let sandbox = Sandbox::new();
    let path = sandbox.path("rows.jsonl");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    let rows = lines("math_train", 4000);
    for row in rows.iter().cycle().take(400_000) {
        writeln!(file, "{row}").unwrap();
    }
    file.into_inner().unwrap();
    sandbox.write("recipe.toml", "[[data.sources]]\nname = \"maths\"\npath = \"rows.jsonl\"\nlimit = 400000\nformatter = \"math_mix\"\n");
    let folder = sandbox.path("cache/trainer/prepared");
    let growing = || -> Vec<PathBuf> {
        let list = std::fs::read_dir(&folder).into_iter().flatten().map(|e| e.unwrap().path());
        list.filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with(".new-") && p.metadata().is_ok_and(|m| m.len() > 0)).collect()
    };
    let mut child = sandbox.command(["data", "prepare", "recipe.toml"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the first prepared rows", || !growing().is_empty() || child.try_wait().unwrap().is_some());
    // A second process waits for the first, and takes over when it is killed.
    assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
    assert_eq!(states(&clean(&sandbox, &["--all"])), ["growing"], "what is being written is left alone");
    child.kill().unwrap();
    child.wait().unwrap();
    let left = growing();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(!std::fs::read_dir(&folder).unwrap().any(|e| e.unwrap().path().extension().is_some_and(|e| e == "rows")));
    // Young files may belong to a process that has not locked them yet.
    let age = |seconds: u64| {
        let file = std::fs::File::open(&left[0]).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    };
    age(0);
    assert_eq!(states(&clean(&sandbox, &[])), ["growing"]);
    age(600);
    assert_eq!(states(&clean(&sandbox, &["--dry-run"])), ["unfinished"]);
    // The next one to prepare anything sweeps.
    assert_eq!(found(&sandbox.json(["data", "prepare", "recipe.toml", "--set", "data.sources.0.limit=100", "--json"])), [false]);
    assert!(growing().is_empty());
    assert_eq!(states(&clean(&sandbox, &[])), ["usable"]);
}
