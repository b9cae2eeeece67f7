//! Models and data sets of hubs, and results sent there: against a hub on this machine that speaks their protocols.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use trainer_test_hub::{FakeHub, Fault, sha256};

use crate::support::{Sandbox, bytes, json_file, lines, reference, until};

const MIB: usize = 1 << 20;

/// A hub, and a folder whose commands ask it.
struct World {
    hub: FakeHub,
    sandbox: Sandbox,
}

impl World {
    fn new(sandbox: Sandbox) -> Self {
        Self { hub: FakeHub::start(), sandbox }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.sandbox.command(args);
        command.env("HF_ENDPOINT", self.hub.url()).env("MODELSCOPE_ENDPOINT", self.hub.url()).env("HF_TOKEN", "hf_secretsecret");
        command.env("MODELSCOPE_API_TOKEN", "hf_secretsecret");
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{errors}");
        assert!(!errors.contains("hf_secret"), "{errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    fn fails(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("error: ") && !text.contains("panicked") && !text.contains("hf_secret"), "{text}");
        self.sandbox.neutral(&text).replace(&self.hub.url(), "[HUB]")
    }

    fn start(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// The embedded model as a repository.
    fn serve_nano(&self, id: &str) -> String {
        let files: Vec<_> = trainer_nano::MODEL_FILES.iter().map(|(n, b)| (*n, b.to_vec(), n.ends_with(".safetensors"))).collect();
        self.hub.commit("models", id, &files)
    }

    /// A model with a large file, whose content is whatever.
    fn serve_large(&self, size: usize) -> Vec<u8> {
        let large: Vec<u8> = (0..size).map(|i| (i * 31 % 251) as u8).collect();
        self.hub.commit("models", "org/large", &[("config.json", b"{}".to_vec(), false), ("model.safetensors", large.clone(), true)]);
        large
    }

    /// The journal of a half-fetched file of `org/large`.
    fn journal(&self, content: &[u8]) -> String {
        let path = format!("cache/huggingface/hub/models--org--large/.incomplete/{}.spans", sha256(content));
        std::fs::read_to_string(self.sandbox.path(&path)).unwrap_or_default()
    }
}

#[test]
fn pull_says_what_it_fetched_and_where_it_is() {
    let world = World::new(Sandbox::cold());
    let commit = world.serve_nano("org/nano");
    let text = world.ok(&["model", "pull", "org/nano"]);
    let mut parts = text.lines();
    assert_eq!(parts.next().unwrap(), format!("hf://org/nano@{commit}"));
    assert!(text.contains("  config.json ") && text.contains("  model.safetensors "), "{text}");
    let dir = world.sandbox.path(&format!("cache/huggingface/hub/models--org--nano/snapshots/{commit}"));
    assert_eq!(text.lines().last().unwrap(), dir.display().to_string());
    for (name, content) in trainer_nano::MODEL_FILES {
        assert_eq!(std::fs::read(dir.join(name)).unwrap(), *content, "{name}");
    }
    let again = world.json(&["model", "pull", "hf://org/nano", "--revision", &commit, "--json"]);
    assert_eq!((&again["fetched"], &again["commit"], &again["hub"]), (&0.into(), &commit.clone().into(), &"hf".into()));
    assert_eq!(again["files"].as_array().unwrap().len(), trainer_nano::MODEL_FILES.len());
    let other = world.json(&["model", "pull", "org/nano", "--hub", "modelscope", "--json"]);
    assert_eq!((&other["hub"], &other["revision"]), (&"ms".into(), &"master".into()));
    assert!(other["dir"].as_str().unwrap().ends_with("home/.cache/modelscope/models/org--nano/snapshots/master"));

    insta::assert_snapshot!(world.fails(&["model", "pull", "org/none"]), @"error: Hugging Face shows no model org/none to this token (404): check the name (there is no folder org/none either); a private one needs a token in HF_TOKEN");
    insta::assert_snapshot!(world.fails(&["model", "pull", "org/nano", "--revision", "v9"]), @r#"error: org/nano has no branch, tag or commit "v9"; its page on the hub lists what there is"#);
    insta::assert_snapshot!(world.fails(&["model", "pull", "nano"]), @r#"error: "nano" names no repository of a hub: a name has two parts, org/name; write it like org/name, hf://org/name@revision, hf://datasets/org/name?split=train or ms://org/name"#);
    insta::assert_snapshot!(world.fails(&["generate", "--prompt", "x", "--model", "org/none"]), @"error: Hugging Face shows no model org/none to this token (404): check the name (there is no folder org/none either); a private one needs a token in HF_TOKEN");
    let mut offline = world.command(&["generate", "--prompt", "x", "--model", "hf://org/none"]);
    let output = offline.env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("hf://org/none is not in the cache"), "{output:?}");
}

#[test]
fn killed_in_the_middle_it_goes_on() {
    let world = World::new(Sandbox::cold());
    let large = world.serve_large(40 * MIB);
    world.hub.faults(|r| r.cdn.then_some(Fault::Stall(9 * MIB)));
    let mut child = world.start(&["model", "pull", "org/large", "--json"]);
    until("a part of the file", || world.journal(&large).lines().count() >= 3);
    child.kill().unwrap();
    child.wait().unwrap();
    let blob = world.sandbox.path(&format!("cache/huggingface/hub/models--org--large/blobs/{}", sha256(&large)));
    assert!(!blob.exists(), "half a file has no name");
    world.hub.release();
    let done = world.json(&["model", "pull", "org/large", "--json"]);
    let fetched = done["fetched"].as_u64().unwrap() as usize;
    assert!(fetched <= 40 * MIB - 8 * MIB, "{fetched} bytes came again");
    assert_eq!(std::fs::read(blob).unwrap(), large);
    assert_eq!(world.journal(&large), "");
}

#[test]
fn two_processes_share_one_download() {
    let world = World::new(Sandbox::cold());
    let large = world.serve_large(40 * MIB);
    // Neither gets far before the other is at it too.
    world.hub.faults(|r| r.cdn.then_some(Fault::Stall(MIB)));
    let children: Vec<Child> = (0..2).map(|_| world.start(&["model", "pull", "org/large", "--json"])).collect();
    until("both to ask", || world.hub.requests().iter().filter(|r| r.path.contains("/revision/")).count() == 2);
    world.hub.release();
    let outputs: Vec<Value> =
        children.into_iter().map(|c| serde_json::from_slice(&c.wait_with_output().unwrap().stdout).unwrap()).collect();
    let fetched: u64 = outputs.iter().map(|o| o["fetched"].as_u64().unwrap()).sum();
    assert_eq!(fetched, (large.len() + 2) as u64, "each byte once: {outputs:?}");
    assert_eq!(std::fs::read(Path::new(outputs[1]["dir"].as_str().unwrap()).join("model.safetensors")).unwrap(), large);
}

#[test]
fn a_name_is_as_good_as_a_folder() {
    let world = World::new(Sandbox::new());
    world.serve_nano("org/nano");
    let answer =
        |model: &str| world.ok(&["generate", "--model", model, "--prompt", "2 + 2", "--max-new-tokens", "8", "--temperature", "0"]);
    let expected = answer("nano");
    for name in ["org/nano", "hf://org/nano@main", "ms://org/nano"] {
        assert_eq!(answer(name), expected, "{name}");
    }
    // A folder that is there wins over a name on a hub.
    world.hub.forget();
    for (name, content) in trainer_nano::MODEL_FILES {
        world.sandbox.write(&format!("org/nano/{name}"), content);
    }
    assert_eq!(answer("org/nano"), expected);
    assert_eq!(world.hub.requests().len(), 0);
    // What needs no weights fetches none.
    world.serve_nano("org/other");
    world.ok(&["plan", "--set", "model.source=org/other"]);
    assert!(world.hub.requests().iter().any(|r| r.path.ends_with("/config.json")));
    assert!(!world.hub.requests().iter().any(|r| r.path.ends_with("model.safetensors")));
}

/// Of the weights only the headers are fetched, in pieces, from both hubs; what is in the cache is not asked for.
#[test]
fn a_model_is_looked_at_without_its_weights() {
    let world = World::new(Sandbox::cold());
    let commit = world.hub.commit_folder("models", "org/dynamic", &reference().join("quant/dynamic_nf4_bf16"), 100_000);
    let folder = reference().join("quant/dynamic_nf4_bf16");
    let expected = world.ok(&["model", "inspect", folder.to_str().unwrap()]);
    world.hub.forget();
    for name in ["org/dynamic", "ms://org/dynamic"] {
        assert_eq!(world.ok(&["model", "inspect", name]), expected, "{name}");
    }
    let weights: Vec<_> =
        world.hub.requests().into_iter().filter(|r| r.path.contains(".safetensors") && !r.path.contains("index")).collect();
    assert!(
        !weights.is_empty() && weights.iter().all(|r| r.headers.get("range").is_some_and(|v| v.starts_with("bytes=0-"))),
        "{weights:?}"
    );
    let cache = world.sandbox.path(&format!("cache/huggingface/hub/models--org--dynamic/snapshots/{commit}"));
    assert!(cache.join("config.json").exists() && !cache.join("model.safetensors").exists());
    let json = world.json(&["model", "inspect", &format!("org/dynamic@{commit}"), "--json"]);
    assert_eq!(
        (&json["files"], &json["totals"]["four_bit_linears"]),
        (&Value::from(format!("hf://org/dynamic@{commit}")), &Value::from(24))
    );
    // A header larger than what is asked for at first, and a server that knows no ranges.
    let (header, data) = padded();
    world.hub.commit(
        "models",
        "org/padded",
        &[("config.json", nano_config(), false), ("model.safetensors", [header, data].concat(), true)],
    );
    let nano = world.ok(&["model", "inspect", "nano"]);
    let tree = |text: &str| text.split("\n\n").next().unwrap_or_default().replace(", padding_idx=2534", "").to_owned();
    assert_eq!(tree(&world.ok(&["model", "inspect", "org/padded"])), tree(&nano));
    world.hub.faults(|r| r.cdn.then_some(Fault::NoRanges));
    assert_eq!(tree(&world.ok(&["model", "inspect", "ms://org/padded"])), tree(&nano));
    // Once the weights are there, nothing of them is asked for; and nothing at all without a network.
    world.hub.release();
    world.ok(&["model", "pull", "org/dynamic"]);
    world.hub.forget();
    assert_eq!(world.ok(&["model", "inspect", "org/dynamic"]), expected);
    assert!(world.hub.requests().iter().all(|r| !r.path.contains(".safetensors")), "{:?}", world.hub.requests());
    let offline = |name: &str| world.command(&["model", "inspect", name]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_eq!(String::from_utf8(offline("org/dynamic").stdout).unwrap(), expected);
    let output = offline("ms://org/dynamic");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is not in the cache"), "{output:?}");
    assert!(world.fails(&["model", "inspect", "org/none"]).contains("Hugging Face shows no model org/none"));
    // A header that is none.
    world.hub.commit("models", "org/bad", &[("config.json", nano_config(), false), ("model.safetensors", vec![255; 5000], true)]);
    assert!(world.fails(&["model", "inspect", "org/bad"]).contains("its header would have 18446744073709551615 bytes of 5000"));
}

fn nano_config() -> Vec<u8> {
    trainer_nano::MODEL_FILES.iter().find(|f| f.0 == "config.json").unwrap().1.to_vec()
}

/// nano's weights behind a header with half a megabyte of spaces.
fn padded() -> (Vec<u8>, Vec<u8>) {
    let file = trainer_nano::MODEL_FILES.iter().find(|f| f.0 == "model.safetensors").unwrap().1;
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let (header, data) = file[8..].split_at(length);
    let spaces = vec![b' '; 500_000];
    let length = ((header.len() + spaces.len()) as u64).to_le_bytes().to_vec();
    ([length, header.to_vec(), spaces].concat(), data.to_vec())
}

#[test]
fn a_data_set_is_fetched_beforehand() {
    let world = World::new(Sandbox::cold());
    let files = vec![("maths-00000-of-00001.jsonl", b"{}".to_vec(), true), ("other-00000-of-00001.jsonl", b"{} ".to_vec(), true)];
    let commit = world.hub.commit("datasets", "org/rows", &files);
    let said = world.ok(&["data", "pull", "org/rows", "--split", "maths"]);
    assert!(said.starts_with(&format!("hf://datasets/org/rows@{commit}?split=maths\n  maths-00000-of-00001.jsonl")), "{said}");
    assert!(!said.contains("other-"), "{said}");
    let again = world.json(&["data", "pull", "hf://datasets/org/rows?split=maths", "--json"]);
    assert_eq!((&again["fetched"], &again["commit"]), (&0.into(), &commit.clone().into()));
    let all = world.json(&["data", "pull", "org/rows", "--hub", "modelscope", "--all", "--json"]);
    assert_eq!((all["files"].as_array().unwrap().len(), &all["hub"]), (2, &"ms".into()));
    assert_eq!(
        world.fails(&["data", "pull", "org/rows", "--split", "x"]).trim_end(),
        "error: org/rows has no split `x`; there are maths, other"
    );
    let error = world.fails(&["data", "pull", "hf://org/rows"]);
    assert!(error.contains("it is a model; a data set is hf://datasets/org/rows"), "{error}");
    let error = world.fails(&["model", "pull", "hf://datasets/org/rows"]);
    assert!(error.contains("it is a data set, not a model (`trainer data pull` fetches those)"), "{error}");
    let error = world.fails(&["data", "pull", "hf://datasets/org/rows?split=maths", "--split", "other"]);
    assert!(error.contains("leave one of them out"), "{error}");
}

/// A recipe whose model and data are on a hub.
const RECIPE: &str = "\
[model]
source = \"org/nano\"

[[data.sources]]
name = \"maths\"
path = \"hf://datasets/org/rows?split=maths\"
formatter = \"math_mix\"

[mix.settings]
chat_percentage = 0

[train]
max_steps = 4
warmup_steps = 1
checkpoint_every = 1

[eval]
before = false
after = false

[sample]
prompt = \"\"
";

#[test]
fn a_run_keeps_the_commits_that_it_began_with() {
    let world = World::new(Sandbox::new());
    let model = world.serve_nano("org/nano");
    let rows = |n: usize| lines("math_train", n).join("\n").into_bytes();
    let files = |n: usize| vec![("maths-00000-of-00001.jsonl", rows(n), true), ("other-00000-of-00001.jsonl", rows(5), true)];
    let data = world.hub.commit("datasets", "org/rows", &files(40));
    world.sandbox.write("recipe.toml", RECIPE);
    world.ok(&["run", "recipe.toml", "--out", "whole"]);
    let lock = json_file(&world.sandbox.path("whole/lock.json"));
    assert_eq!(lock["recorded"]["model"], format!("hf://org/nano@{model}"));
    assert_eq!(lock["data"][0]["path"], format!("hf://datasets/org/rows@{data}?split=maths"));
    assert_eq!(lock["data"][0]["rows"], 40);
    let adapter = json_file(&world.sandbox.path("whole/adapter/adapter_config.json"));
    assert_eq!(adapter["base_model_name_or_path"], "org/nano", "as PEFT writes it");

    // Stopped after two steps; then both branches move. It goes on with what it began with, and needs no network for it.
    let mut child = world.start(&["run", "recipe.toml", "--out", "half", "--set", "train.max_steps=4"]);
    let metrics = world.sandbox.path("half/metrics.jsonl");
    until("two steps", || {
        std::fs::read(&metrics).map_or(0, |b| b.iter().filter(|c| **c == b'\n').count()) >= 2 || child.try_wait().unwrap().is_some()
    });
    child.kill().unwrap();
    child.wait().unwrap();
    world.hub.commit("datasets", "org/rows", &files(20));
    let changed: Vec<_> = trainer_nano::MODEL_FILES.iter().map(|(n, b)| (*n, [b, &b" "[..]].concat(), false)).collect();
    world.hub.commit("models", "org/nano", &changed);
    world.ok(&["run", "--resume", "half"]);
    assert_eq!(bytes(&world.sandbox.path("half")), bytes(&world.sandbox.path("whole")));
    world.ok(&["run", "recipe.toml", "--locked", "whole/lock.json", "--out", "locked"]);
    assert_eq!(bytes(&world.sandbox.path("locked")), bytes(&world.sandbox.path("whole")));
    // What comes of the run afterwards is about that model too: today's has no weights that read.
    world.ok(&["eval", "--run", "whole", "--data", "builtin:math_test", "--limit", "2", "--set", "eval.max_new_tokens=4", "--json"]);
    // A run of today is another one.
    let fresh = world.json(&["run", "recipe.toml", "--dry-run", "--set", "model.source=nano", "--json"]);
    assert_ne!(
        fresh["lock_digest"],
        world.json(&["run", "recipe.toml", "--dry-run", "--locked", "whole/lock.json", "--json"])["lock_digest"]
    );

    let error = world.fails(&[
        "run",
        "recipe.toml",
        "--dry-run",
        "--set",
        "model.source=nano",
        "--set",
        "data.sources.0.path=hf://datasets/org/rows?split=x",
    ]);
    assert_eq!(error.trim_end(), "error: org/rows has no split `x`; there are maths, other");
    let error = world.fails(&["run", "recipe.toml", "--set", "data.sources.0.path=hf://org/rows"]);
    assert!(
        error.contains("data.sources.0.path=hf://org/rows")
            && error.contains("hf://org/rows is a model; a data set is hf://datasets/org/rows"),
        "{error}"
    );
}

/// The tutorial's recipe, word for word, on a hub that has tiny things under the real names.
#[test]
fn the_tutorials_recipe() {
    let world = World::new(Sandbox::new());
    let data = |name: &str| std::fs::read(reference().join("dataset").join(name)).unwrap();
    world.hub.commit_folder("models", "unsloth/Qwen3-8B-unsloth-bnb-4bit", &reference().join("model/nf4"), 100_000);
    let card = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: cot\n    path: data/cot-*\n---\n".to_vec();
    world.hub.commit(
        "datasets",
        "unsloth/OpenMathReasoning-mini",
        &[("README.md", card, false), ("data/cot-00000-of-00001.parquet", data("maths.parquet"), true)],
    );
    world.hub.commit("datasets", "mlabonne/FineTome-100k", &[("data/train-00000-of-00001.parquet", data("chat.parquet"), true)]);
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/qwen3-8b-math.toml");
    let recipe = recipe.to_str().unwrap();
    let plan = world.json(&["run", recipe, "--dry-run", "--json"]);
    assert_eq!((&plan["plan"]["steps"], &plan["plan"]["micro_batch"], &plan["plan"]["accumulation"]), (&30.into(), &2.into(), &4.into()));
    let settings = |pointer: &str| plan["recipe"].pointer(pointer).unwrap_or(&Value::Null).clone();
    for (pointer, expected) in [
        ("/adapter/r", 32.into()),
        ("/data/max_seq_length", 8192.into()),
        ("/train/learning_rate", 2e-4.into()),
        ("/train/optimizer", "adamw_8bit".into()),
        ("/train/seed", 3407.into()),
        ("/model/source", Value::from("hf://unsloth/Qwen3-8B-unsloth-bnb-4bit")),
    ] {
        assert_eq!(settings(pointer), expected, "{pointer}");
    }
    // Three quarters of an epoch are reasoning: 200 rows, and a third of that number of chat rows.
    let epoch = world.json(&["run", recipe, "--dry-run", "--set", "train.epochs=1", "--json"]);
    assert_eq!(epoch["plan"]["steps"], (200 + 200 / 3_u64).div_ceil(8));
    // And it does train.
    world.ok(&[
        "run",
        recipe,
        "--max-steps",
        "2",
        "--set",
        "train.warmup_steps=1",
        "--set",
        "sample.prompt=\"\"",
        "--out",
        "run",
        "--quiet",
    ]);
    assert!(world.sandbox.path("run/adapter/adapter_model.safetensors").exists());
}

#[test]
fn push_lists_first_and_sends_what_is_new() {
    let world = World::new(Sandbox::cold());
    world.hub.token("hf_secretsecret");
    world.sandbox.write("adapter/adapter_config.json", "{\"r\": 32}");
    world.sandbox.write("adapter/adapter_model.safetensors", vec![3; 100_000]);
    world.sandbox.write("adapter/.cache/x", "x");
    let listed = world.ok(&["hub", "push", "adapter", "me/adapter", "--dry-run"]);
    insta::assert_snapshot!(listed, @r"
      adapter_config.json        9 B
      adapter_model.safetensors  97.7 KiB
    2 files, 97.7 KiB, to hf://me/adapter, private; 1 whose names begin with a dot stay here
    ");
    assert_eq!(world.hub.requests().len(), 0, "a dry run asks nothing");
    let text = world.ok(&["hub", "push", "adapter", "me/adapter"]);
    assert!(
        text.starts_with(&listed) && text.contains("made for it, 2 files in commit ") && text.contains("97.7 KiB sent apart"),
        "{text}"
    );
    let again = world.json(&["hub", "push", "adapter", "hf://me/adapter", "--json"]);
    assert_eq!((&again["committed"], &again["unchanged"], &again["sent"]), (&0.into(), &2.into(), &0.into()));
    let other = world.json(&["hub", "push", "adapter", "me/other", "--hub", "modelscope", "--public", "--json"]);
    assert_eq!(
        (&other["repo"], &other["committed"], &other["sent"]),
        (&"ms://me/other".into(), &2.into(), &0.into()),
        "the large content is there"
    );
    // What was sent comes back.
    let pulled = world.json(&["model", "pull", "me/adapter", "--json"]);
    assert_eq!(std::fs::read(Path::new(pulled["dir"].as_str().unwrap()).join("adapter_model.safetensors")).unwrap(), vec![3; 100_000]);
    insta::assert_snapshot!(world.fails(&["hub", "push", "nowhere", "me/adapter"]), @"error: nowhere cannot be pushed: it is no folder");
    let mut nobody = world.command(&["hub", "push", "adapter", "me/adapter"]);
    let output = nobody.env_remove("HF_TOKEN").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr).trim(), "error: writing to Hugging Face needs a token: set HF_TOKEN");
}
