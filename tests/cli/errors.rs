//! What goes wrong is said so that it can be mended, and nothing is left behind.

use crate::support::{Sandbox, baseline, lines, prebuilt, short};

/// A recipe with one source, and nothing but one step of two samples.
fn recipe(path: &str, formatter: &str, more: &str) -> String {
    format!(
        r#"
[data]
train_on = "all"
workers = 0
sources = [{{ name = "rows", path = "{path}", formatter = "{formatter}" }}]
[mix.settings]
chat_percentage = 0
[train]
batch = 1
accumulation = 2
max_steps = 1
warmup_steps = 0
[eval]
before = false
after = false
[sample]
prompt = ""
{more}
"#
    )
}

/// A valid component of a plugin that asks for the web.
pub fn wasi_component() -> Vec<u8> {
    wat::parse_str(
        r#"(component
            (@custom "trainer:plugin" "{\"name\": \"curious\", \"version\": \"1.2.3\", \"description\": \"wants to read the web\"}")
            (import "wasi:http/outgoing-handler@0.2.6" (instance))
            (instance $i)
            (export "trainer:dataset-formatter/formatter@0.1.0" (instance $i)))"#,
    )
    .unwrap()
}

/// What a run refuses before it leaves anything.
fn refused(args: &[&str]) -> String {
    let sandbox = Sandbox::new();
    let said = sandbox.fails(["run", "--out", "out"].iter().chain(args));
    assert_eq!(sandbox.names(), [""; 0], "nothing is written");
    said
}

#[test]
fn unknown_key_with_the_nearest_name() {
    insta::assert_snapshot!(refused(&["--set", "train.lerning_rate=1"]), @r#"
    error: --set train.lerning_rate=1: train.lerning_rate: unknown key
      help: did you mean `learning_rate`?
    "#);
    let sandbox = Sandbox::new();
    sandbox.write("recipe.toml", "[train]\nmax_stepps = 3\n");
    insta::assert_snapshot!(sandbox.fails(["run", "recipe.toml"]), @r#"
    error: recipe.toml:2:1: train.max_stepps: unknown key
      help: did you mean `max_steps`?
    "#);
    sandbox.write("recipe.toml", "[trian]\nmax_steps = 3\n");
    insta::assert_snapshot!(sandbox.fails(["run", "recipe.toml"]), @r#"
    error: recipe.toml:1:2: trian: unknown key
      help: did you mean `train`?
    "#);
    sandbox.write("recipe.toml", "[train]\nmax_steps = \"many\"\n");
    insta::assert_snapshot!(sandbox.fails(["run", "recipe.toml"]), @"error: recipe.toml:2:13: train.max_steps: expected an integer, found a string");
    sandbox.write("recipe.toml", "[train\n");
    insta::assert_snapshot!(sandbox.fails(["run", "recipe.toml"]), @"error: recipe.toml:1:7: not TOML: unclosed table, expected `]`");
    insta::assert_snapshot!(sandbox.fails(["run", "nowhere.toml"]), @"error: cannot read the recipe nowhere.toml: No such file or directory (os error 2)");
    assert_eq!(sandbox.names(), ["recipe.toml"]);
}

#[test]
fn missing_plugin() {
    insta::assert_snapshot!(refused(&["--plugin", "nosuch"]), @"error: there is no file nosuch and no official plugin of that name; official plugins are bfcl, boxed_answer, calculator, exact_match, math_equal, math_mix, perplexity, qwen3_chat, sharegpt, tool_calls, weather");
    // A path whose file is missing never means the official plugin of that name.
    insta::assert_snapshot!(refused(&["--plugin", "folder/math_mix.wasm"]), @"error: there is no file folder/math_mix.wasm and no official plugin of that name; official plugins are bfcl, boxed_answer, calculator, exact_match, math_equal, math_mix, perplexity, qwen3_chat, sharegpt, tool_calls, weather");
    insta::assert_snapshot!(refused(&["--set", "template.plugin=\"nosuch\""]), @r#"error: template.plugin names the plugin `nosuch`, which is not an official one (bfcl, boxed_answer, calculator, exact_match, math_equal, math_mix, perplexity, qwen3_chat, sharegpt, tool_calls, weather) and not installed; say where it is: [plugins.nosuch] path = "...", or --plugin FILE, or install it: trainer plugin add"#);
}

#[test]
fn plugin_of_the_wrong_kind() {
    insta::assert_snapshot!(refused(&["--set", "mix.plugin=\"sharegpt\""]), @"error: mix.plugin needs a plugin of kind mixing-policy, but plugin sharegpt 0.1.0 is a dataset-formatter");
    insta::assert_snapshot!(refused(&["--set", "eval.metrics=[\"calculator\"]"]), @"error: eval.metrics needs a plugin of kind eval-metric, but plugin calculator 0.1.0 is a tool-executor");
}

#[test]
fn wrong_settings_of_a_plugin() {
    insta::assert_snapshot!(refused(&["--set", "mix.settings={chat_percent=0.5}"]), @"error: settings of plugin `math_mix` 0.1.0, at `/`: Additional properties are not allowed ('chat_percent' was unexpected)");
    insta::assert_snapshot!(refused(&["--set", "mix.settings={chat_percentage=-1}"]), @"error: settings of plugin `math_mix` 0.1.0, at `/chat_percentage`: -1 is less than the minimum of 0");
    insta::assert_snapshot!(refused(&["--set", "mix.settings={reasoning=\"maths\"}"]), @r#"error: plugin `math_mix` 0.1.0, trainer:mixing-policy/policy@0.1.0#mixer.open failed: there is no source "maths" among those of the run: math, chat"#);
    insta::assert_snapshot!(refused(&["--set", "plugins.qwen3_chat.limits={memory=\"lots\"}"]), @r#"error: --set plugins.qwen3_chat.limits={memory="lots"}: plugins.qwen3_chat.limits.memory: must be a whole number, at least 0, or a size such as "64MiB", not "lots""#);
}

#[test]
fn what_is_no_plugin() {
    let sandbox = Sandbox::new();
    sandbox.write("curious.wasm", wasi_component());
    sandbox.write("text.wasm", "not a component");
    let mut cut = std::fs::read(prebuilt("math_mix.wasm")).unwrap();
    cut.truncate(cut.len() / 2);
    sandbox.write("cut.wasm", cut);
    let recipe = recipe("rows.jsonl", "curious", "[plugins.curious]\npath = \"curious.wasm\"");
    sandbox.write("recipe.toml", recipe);
    sandbox.write("rows.jsonl", "{}\n");
    let names = sandbox.names();
    insta::assert_snapshot!(sandbox.fails(["run", "recipe.toml", "--out", "out"]), @"error: plugin `curious` 1.2.3 imports `wasi:http/outgoing-handler@0.2.6`, and nothing grants it: of WASI the host has an empty world, which knows the interfaces of wasi:cli, wasi:clocks, wasi:filesystem, wasi:io, wasi:random and wasi:sockets in versions 0.2; build the component without the others");
    insta::assert_snapshot!(sandbox.fails(["run", "--plugin", "text.wasm", "--out", "out"]), @r"error: plugin `text.wasm` is not a valid WebAssembly component: it does not begin as WebAssembly does, with the bytes \0asm: it is some other file");
    insta::with_settings!({filters => vec![(r"offset 0x[0-9a-f]+", "offset [OFFSET]"), (r"\d+ bytes", "[N] bytes")]}, {
        insta::assert_snapshot!(sandbox.fails(["run", "--plugin", "cut.wasm", "--out", "out"]), @"error: plugin `cut.wasm` is not a valid WebAssembly component: unexpected end-of-file (at offset [OFFSET])");
    });
    assert_eq!(sandbox.names(), names);
}

#[test]
fn wrong_run_directory() {
    let sandbox = Sandbox::new();
    insta::assert_snapshot!(sandbox.fails(["run", "--resume", "nowhere"]), @"error: [DIR]/nowhere is not a run directory: it has no recipe.toml");
    std::fs::create_dir(sandbox.path("empty")).unwrap();
    insta::assert_snapshot!(sandbox.fails(["run", "--resume", "empty"]), @"error: [DIR]/empty is not a run directory: it has no recipe.toml");
    insta::assert_snapshot!(sandbox.fails(["eval", "--run", "empty"]), @"error: [DIR]/empty is not a run directory: it has no recipe.toml");
    sandbox.write("full/notes.txt", "mine");
    insta::assert_snapshot!(sandbox.fails(["run", "--out", "full"]), @"error: [DIR]/full is not empty; choose another folder with --out, or continue a run with --resume");
    insta::assert_snapshot!(sandbox.fails(["run", "--out", "full/notes.txt"]), @"error: [DIR]/full/notes.txt exists and is no folder; choose another folder with --out, or continue a run with --resume");
    assert_eq!(std::fs::read_to_string(sandbox.path("full/notes.txt")).unwrap(), "mine");

    let made = baseline();
    let said = sandbox.fails(["run", "--out", made.dir.to_str().unwrap()]);
    insta::assert_snapshot!(said.replace(made.dir.to_str().unwrap(), "[RUN]"), @"error: [RUN] already holds a run; choose another folder with --out, or continue a run with --resume");
    assert_eq!(crate::support::bytes(&made.dir), made.bytes);
}

#[test]
fn nothing_to_evaluate() {
    let sandbox = Sandbox::new();
    insta::assert_snapshot!(sandbox.fails(["eval"]), @"error: say what to evaluate: --run DIR for a run, --model MODEL (nano, a folder, or org/name on a hub), or --predictions FILE for outputs that are given");
    insta::assert_snapshot!(sandbox.fails(["eval", "--model", "nano", "--data", "nowhere.jsonl"]), @"error: source `eval`: cannot read [DIR]/nowhere.jsonl: entity not found");
    insta::assert_snapshot!(sandbox.fails(["eval", "--model", "nano", "--data", "builtin:math_tset"]), @r#"
    error: --set eval.data="builtin:math_tset": eval.data: there is no embedded data "math_tset"
      help: did you mean `math_test`?
    "#);
    insta::assert_snapshot!(sandbox.fails(["eval", "--model", "nowhere"]), @"error: [DIR]/nowhere has no config.json: a model folder needs config.json, model.safetensors and tokenizer.json");
    assert_eq!(sandbox.names(), [""; 0]);
}

#[test]
fn json_does_not_swallow_a_recipe() {
    let sandbox = Sandbox::new();
    sandbox.write("recipe.toml", "# mine\n");
    insta::assert_snapshot!(sandbox.fails(["run", "--json", "recipe.toml"]), @"error: --json would write to recipe.toml, which looks like an input; give inputs first and --json last, or write --json -");
    assert_eq!(std::fs::read_to_string(sandbox.path("recipe.toml")).unwrap(), "# mine\n");
}

#[test]
fn bad_row_stops_the_run() {
    let sandbox = Sandbox::new();
    let good = lines("math_train", 2);
    sandbox.write("rows.jsonl", format!("{}\n{{\"problem\": 7}}\n{}\n", good[0], good[1]));
    sandbox.write("recipe.toml", recipe("rows.jsonl", "math_mix", "").replace("accumulation = 2", "accumulation = 3"));
    insta::assert_snapshot!(sandbox.fails(["run", "recipe.toml", "--out", "out"]), @r#"
    error: [DIR]/rows.jsonl:2: refused by the formatter at /problem: a number where a string belongs (source `rows`)
      fix or remove the row, or allow some with --max-bad-rows
    "#);

    sandbox.write("rows.jsonl", format!("{}\nnot JSON\n{}\n", good[0], good[1]));
    insta::assert_snapshot!(sandbox.fails(["run", "recipe.toml", "--out", "out2"]), @r#"
    error: [DIR]/rows.jsonl:2: invalid JSON: column 1: an object {...} was expected (source `rows`)
      fix or remove the row, or allow some with --max-bad-rows
    "#);
}

#[test]
fn bad_rows_are_counted_where_they_are_allowed() {
    let sandbox = Sandbox::new();
    let good = lines("math_train", 2);
    sandbox.write("rows.jsonl", format!("{}\n{{\"problem\": 7}}\n{}\n", good[0], good[1]));
    sandbox.write("recipe.toml", recipe("rows.jsonl", "math_mix", "").replace("accumulation = 2", "accumulation = 3"));
    let output = sandbox.run(["run", "recipe.toml", "--out", "out", "--max-bad-rows", "5", "--json", "summary.json"]);
    let said = sandbox.neutral(&String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(0), "{said}");
    let summary = crate::support::json_file(&sandbox.path("summary.json"));
    // Three samples of two good rows: one epoch and a part of the next, so the bad row comes once or twice.
    let bad = summary["bad_rows"].as_u64().unwrap();
    assert!((1..=2).contains(&bad), "{summary}");
    assert_eq!(said.matches("[DIR]/rows.jsonl:2: ").count() as u64, bad, "each bad row is reported: {said}");
    assert!(!said.contains('\u{1b}'), "no colours where there is no terminal: {said:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains(&format!("rows left out: {bad} bad; skipped: none")), "{told}");
}

#[test]
fn unreadable_files() {
    let sandbox = Sandbox::new();
    sandbox.write("rows.parquet", "PAR1 and then nothing");
    sandbox.write("recipe.toml", recipe("rows.parquet", "math_mix", ""));
    insta::assert_snapshot!(sandbox.fails(["run", "recipe.toml", "--out", "out"]), @"error: source `rows`: [DIR]/rows.parquet is not a readable parquet file: Parquet error: Invalid Parquet file. Corrupt footer; the file may have been cut short or be of another format");
    let chat = trainer_nano::data("chat_train").unwrap().bytes;
    sandbox.write("rows.parquet", &chat[..chat.len() / 2]);
    insta::assert_snapshot!(sandbox.fails(["run", "recipe.toml", "--out", "out"]), @"error: source `rows`: [DIR]/rows.parquet is not a readable parquet file: Parquet error: Invalid Parquet file. Corrupt footer; the file may have been cut short or be of another format");
    sandbox.write("rows.parquet", "");
    insta::assert_snapshot!(sandbox.fails(["run", "recipe.toml", "--out", "out"]), @"error: source `rows`: [DIR]/rows.parquet is not a readable parquet file: the file is empty");
    sandbox.write("recipe.toml", recipe("rows.jsonl", "math_mix", ""));
    insta::assert_snapshot!(sandbox.fails(["run", "recipe.toml", "--out", "out"]), @"error: source `rows`: cannot read [DIR]/rows.jsonl: entity not found");
    sandbox.write("rows.jsonl", "\n\n");
    insta::assert_snapshot!(sandbox.fails(["run", "recipe.toml", "--out", "out"]), @"error: source `rows` has no rows (read 1 file(s): [DIR]/rows.jsonl); check the path, or take the source out of the recipe");
    assert!(!sandbox.path("out").exists());
}

/// Rows that make a formatter misbehave, and what is said of each.
const MISDEEDS: [&str; 7] = ["loop", "alloc", "recurse", "gigabyte", "trap", "nan_weight", "bad_json"];

fn evil_recipe() -> String {
    let path = prebuilt("test/evil.wasm");
    // Small limits make the misdeeds short.
    let limits =
        r#"limits = { fuel_per_call = 20000000, fuel_per_row = 1000000, fuel_per_byte = 100, memory = "16MiB", returned_size = "4MiB" }"#;
    recipe("rows.jsonl", "evil", &format!("[plugins.evil]\npath = {:?}\n{limits}", path.to_str().unwrap()))
}

#[test]
fn misbehaving_formatter_stops_the_run() {
    let sandbox = Sandbox::new();
    sandbox.write("recipe.toml", evil_recipe());
    sandbox.write("rows.jsonl", "{\"evil\": \"loop\"}\n");
    insta::assert_snapshot!(sandbox.fails(["run", "recipe.toml", "--out", "out"]), @r#"
    error: [DIR]/rows.jsonl:1: plugin failed: plugin `evil` 0.1.0, trainer:dataset-formatter/formatter@0.1.0#format hit its fuel_per_row limit: 21001600 units of fuel in this call (fuel_per_call + rows x fuel_per_row + bytes x fuel_per_byte) are allowed; raise it in the recipe: [plugins.evil.limits] fuel_per_row = 10000000 (source `rows`)
      fix or remove the row, or allow some with --max-bad-rows
    "#);
}

#[test]
fn misbehaving_formatter_costs_its_rows_only() {
    let sandbox = Sandbox::new();
    sandbox.write("recipe.toml", evil_recipe());
    let mut rows: Vec<String> = MISDEEDS.iter().map(|m| format!("{{\"evil\": {m:?}}}")).collect();
    rows.push("{}".to_owned());
    sandbox.write("rows.jsonl", rows.join("\n"));
    // Two samples of the one harmless row: every other row comes at least once in between.
    let output = sandbox.run(["run", "recipe.toml", "--out", "out", "--max-bad-rows", "100", "--json"]);
    let said = sandbox.neutral(&String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(0), "{said}");
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let reports: Vec<&str> = said.lines().filter(|l| l.contains("rows.jsonl:")).collect();
    assert_eq!(summary["bad_rows"], reports.len());
    let mut distinct: Vec<&str> = reports.iter().map(|l| &l[l.find("[DIR]").unwrap()..]).collect();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), MISDEEDS.len(), "{said}");
    insta::assert_snapshot!(distinct.join("\n"), @r#"
    [DIR]/rows.jsonl:1: plugin failed: plugin `evil` 0.1.0, trainer:dataset-formatter/formatter@0.1.0#format hit its fuel_per_row limit: 21001600 units of fuel in this call (fuel_per_call + rows x fuel_per_row + bytes x fuel_per_byte) are allowed; raise it in the recipe: [plugins.evil.limits] fuel_per_row = 10000000 (source `rows`)
    [DIR]/rows.jsonl:2: plugin failed: plugin `evil` 0.1.0, trainer:dataset-formatter/formatter@0.1.0#format hit its memory limit: 16MiB are allowed, 16448KiB were requested; raise it in the recipe: [plugins.evil.limits] memory = "32MiB" (source `rows`)
    [DIR]/rows.jsonl:3: plugin failed: plugin `evil` 0.1.0, trainer:dataset-formatter/formatter@0.1.0#format hit its wasm_stack limit: 512KiB are allowed; raise it in the recipe: [plugins.evil.limits] wasm_stack = "1MiB" (source `rows`)
    [DIR]/rows.jsonl:4: plugin failed: plugin `evil` 0.1.0, trainer:dataset-formatter/formatter@0.1.0#format hit its memory limit: 16MiB are allowed, 1049856KiB were requested; raise it in the recipe: [plugins.evil.limits] memory = "2GiB" (source `rows`)
    [DIR]/rows.jsonl:5: plugin failed: plugin `evil` 0.1.0, trainer:dataset-formatter/formatter@0.1.0#format trapped: wasm `unreachable` instruction executed (source `rows`)
    [DIR]/rows.jsonl:6: plugin failed: plugin `evil` 0.1.0, trainer:dataset-formatter/formatter@0.1.0#format returned a bad value: outcomes[0].messages[0].weight: NaN is no weight; it is finite and not negative (source `rows`)
    [DIR]/rows.jsonl:7: plugin failed: plugin `evil` 0.1.0, trainer:dataset-formatter/formatter@0.1.0#format returned a bad value: outcomes[0].tools[0]: it is not valid JSON: EOF while parsing a value at line 1 column 9 (source `rows`)
    "#);
}

#[test]
fn a_reader_that_goes_away_is_no_accident() {
    let sandbox = Sandbox::new();
    for args in [vec!["plugin", "list"], vec!["plugin", "inspect", "math_mix"], vec!["run", "--dry-run"], short(&["--out", "out"])] {
        let mut child = sandbox.command(&args).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.as_str()), (Some(0), ""), "{args:?}");
    }
    assert_eq!(crate::support::bytes(&sandbox.path("out")), baseline().bytes, "a run goes on to its end");
}
