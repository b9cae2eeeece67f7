//! The hubs' own Python packages on the caches that this program fills, and this program on theirs. They are installed into a folder of the build, so these
//! tests are for `.ci/full`.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use trainer_test_hub::FakeHub;

use crate::python::python;
use crate::support::Sandbox;

/// A model that needs all of its files, so that a whole snapshot is what a command fetches.
fn serve(hub: &FakeHub) -> String {
    let shard = |n: u8| vec![n; 3_000_000];
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let files = [
        ("README.md", b"# x\n".to_vec(), false),
        ("config.json", b"{}".to_vec(), false),
        ("model-00001-of-00002.safetensors", shard(1), true),
        ("model-00002-of-00002.safetensors", shard(2), true),
        ("model.safetensors.index.json", index.as_bytes().to_vec(), false),
        ("tokenizer.json", vec![7; 50_000], true),
    ];
    hub.commit("models", "org/tiny", &files)
}

/// A command with both hubs' surroundings.
fn at(mut command: Command, hub: &FakeHub, sandbox: &Sandbox, cache: &str) -> Command {
    command.env("HF_ENDPOINT", hub.url()).env("MODELSCOPE_ENDPOINT", hub.url()).env("HF_HOME", sandbox.path(cache));
    command.env("MODELSCOPE_CACHE", sandbox.path(cache)).env("HOME", sandbox.path("home")).env("HF_HUB_DISABLE_TELEMETRY", "1");
    command.env_remove("HF_TOKEN").env_remove("HF_HUB_OFFLINE");
    command
}

fn script(python: &Path, text: &str) -> Command {
    let mut command = Command::new(python);
    command.args(["-c", text]);
    command
}

/// Runs a program that must succeed, and gives its standard output; bars go elsewhere.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn pull(hub: &FakeHub, sandbox: &Sandbox, cache: &str, more: &[&str]) -> Value {
    let args = ["model", "pull", "org/tiny", "--json"].iter().chain(more);
    let output = at(sandbox.command(args), hub, sandbox, cache).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn contents_asked(hub: &FakeHub) -> usize {
    hub.requests().iter().filter(|r| r.method == "GET" && (r.cdn || r.path.contains("/resolve/") || r.path.ends_with("/repo"))).count()
}

#[test]
#[ignore = "installs a Python package"]
fn huggingface_hub_shares_the_cache() {
    let python = python("huggingface_hub", &["huggingface_hub==2.*"]);
    let (hub, sandbox) = (FakeHub::start(), Sandbox::cold());
    let commit = serve(&hub);
    let snapshot = "import huggingface_hub as h; print(h.snapshot_download('org/tiny'))";

    // What this program fetched is complete for the package, with a network and without.
    let ours = pull(&hub, &sandbox, "ours", &[]);
    hub.forget();
    let theirs = run(&mut at(script(&python, snapshot), &hub, &sandbox, "ours"));
    assert_eq!(theirs.lines().last().unwrap(), ours["dir"].as_str().unwrap());
    assert_eq!(contents_asked(&hub), 0, "{:?}", hub.requests());
    hub.forget();
    let offline = run(at(script(&python, snapshot), &hub, &sandbox, "ours").env("HF_HUB_OFFLINE", "1"));
    assert_eq!((offline.lines().last().unwrap(), hub.requests().len()), (ours["dir"].as_str().unwrap(), 0));
    let scan = "import huggingface_hub as h; c = h.scan_cache_dir(); print(c.warnings, [(r.repo_id, r.size_on_disk, [v.commit_hash for v in r.revisions]) for r in c.repos])";
    let scanned = run(&mut at(script(&python, scan), &hub, &sandbox, "ours"));
    assert!(scanned.contains(&format!("[] [('org/tiny', {}, ['{commit}'])]", ours["bytes"])), "{scanned}");
    let tree = "import huggingface_hub as h; print(sorted((f.path, f.size) for f in h.get_cached_repo_tree('org/tiny')))";
    assert!(run(&mut at(script(&python, tree), &hub, &sandbox, "ours")).contains("('config.json', 2)"));

    // And the other way round.
    let theirs = run(&mut at(script(&python, snapshot), &hub, &sandbox, "theirs"));
    hub.forget();
    let ours = pull(&hub, &sandbox, "theirs", &[]);
    assert_eq!((ours["dir"].as_str().unwrap(), ours["fetched"].as_u64()), (theirs.lines().last().unwrap(), Some(0)));
    assert_eq!(contents_asked(&hub), 0);
    // Each goes on with what the other has begun: here the package has one file of six.
    let one = "import huggingface_hub as h; print(h.hf_hub_download('org/tiny', 'model-00001-of-00002.safetensors'))";
    run(&mut at(script(&python, one), &hub, &sandbox, "mixed"));
    let ours = pull(&hub, &sandbox, "mixed", &[]);
    assert_eq!(ours["fetched"].as_u64().unwrap(), ours["bytes"].as_u64().unwrap() - 3_000_000);
    hub.forget();
    run(&mut at(script(&python, snapshot), &hub, &sandbox, "mixed"));
    assert_eq!(contents_asked(&hub), 0);
}

#[test]
#[ignore = "installs a Python package"]
fn huggingface_hub_uploads_to_the_same_hub() {
    // That the hub of these tests is one: the package sends a folder, this program finds the same there.
    let python = python("huggingface_hub", &["huggingface_hub==2.*"]);
    let (hub, sandbox) = (FakeHub::start(), Sandbox::cold());
    hub.token("hf_secretsecret");
    sandbox.write("out/config.json", "{}");
    sandbox.write("out/model.safetensors", vec![5; 200_000]);
    let upload = "import huggingface_hub as h; a = h.HfApi(); a.create_repo('me/x', private=True); print(a.upload_folder(repo_id='me/x', folder_path='out').oid)";
    let mut command = at(script(&python, upload), &hub, &sandbox, "cache");
    let theirs = run(command.env("HF_TOKEN", "hf_secretsecret").env("HF_HUB_DISABLE_XET", "1").current_dir(sandbox.path("")));
    let mut push = at(sandbox.command(["hub", "push", "out", "me/x", "--json"]), &hub, &sandbox, "cache");
    let output = push.env("HF_TOKEN", "hf_secretsecret").output().unwrap();
    let ours: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&ours["committed"], &ours["unchanged"], &ours["created"]), (&0.into(), &2.into(), &false.into()), "{theirs}");
}

#[test]
#[ignore = "installs a Python package"]
fn modelscope_shares_the_cache() {
    let python = python("modelscope", &["modelscope==1.*"]);
    let (hub, sandbox) = (FakeHub::start(), Sandbox::cold());
    serve(&hub);
    let snapshot = "from modelscope import snapshot_download; print(snapshot_download('org/tiny'))";
    let ours = pull(&hub, &sandbox, "ours", &["--hub", "modelscope"]);
    hub.forget();
    let theirs = run(&mut at(script(&python, snapshot), &hub, &sandbox, "ours"));
    assert_eq!(theirs.lines().last().unwrap(), ours["dir"].as_str().unwrap(), "{theirs}");
    assert_eq!(contents_asked(&hub), 0, "{:?}", hub.requests());
    let theirs = run(&mut at(script(&python, snapshot), &hub, &sandbox, "theirs"));
    hub.forget();
    let ours = pull(&hub, &sandbox, "theirs", &["--hub", "modelscope"]);
    assert_eq!((ours["dir"].as_str().unwrap(), ours["fetched"].as_u64()), (theirs.lines().last().unwrap(), Some(0)));
    assert_eq!(contents_asked(&hub), 0);
}
